"""What a device's flags cost on the wire: the first snapshot, a change of one flag, and coming back to no news.

Everything is real: `flagcast publish`, mosquitto, an agent that speaks MQTT 5 through a proxy that counts packets. The peer
is what a Flipt server sends its own clients: the whole namespace as JSON, for the first time and for every change.
"""

import gzip
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from devices import Device, provision
from mqtt_meter import Kind, Meter, Packet, metered

import flipt_json
from brokers import start_mosquitto
from flagcast_shared.reports import decode_report
from fleet import PATIENCE_SECONDS, command, write_flags
from harness import Goal, Options, Row, run

COUNTS = (10, 100, 1_000, 10_000)
QUICK_COUNTS = (10, 1_000)
PROMISED = 1_000
"""The number of flags that the goals are about."""
CHANGE_GOAL_BYTES = 600
RECONNECT_GOAL_BYTES = 1_024
_POLL_SECONDS = 0.01


def measure(options: Options) -> Iterator[Row]:
    for count in QUICK_COUNTS if options.quick else COUNTS:
        with tempfile.TemporaryDirectory() as scratch:
            yield from _rows(count, _measure(Path(scratch), count))


@dataclass(frozen=True, slots=True)
class Measured:
    """The packets of each of the three, and the flags file as the peer's JSON."""

    first: Sequence[Packet]
    change: Sequence[Packet]
    reconnect: Sequence[Packet]
    peer: bytes


def _measure(scratch: Path, count: int) -> Measured:
    flags = write_flags(scratch / "flags", count)
    features = flags / "default" / "features.json"
    document = json.loads(features.read_text(encoding="utf-8"))
    project = scratch / "project"
    with (
        start_mosquitto(scratch / "broker") as broker,
        metered(broker.host, broker.port) as meter,
    ):
        command("flagcast", "init", str(project), "--environment", "production", "--broker", broker.url)
        command("flagcast", "publish", str(flags), "--project", str(project))
        anchor = next((project / "roots").iterdir())
        url = f"mqtt://127.0.0.1:{meter.port}"
        with provision(scratch / "device", anchor, url, device="charger-000001") as device:
            device.start()
            first = _settled(meter, device, lambda: "up to date" in device.log and _reported(meter) == 1)
            flag = document["flags"][count // 2]
            flag["enabled"] = not flag.get("enabled", False)
            features.write_text(json.dumps(document), encoding="utf-8")
            meter.forget()
            command("flagcast", "publish", str(flags), "--project", str(project))
            change = _settled(meter, device, lambda: _reported(meter) == 2)
            device.stop()
            meter.forget()
            device.start()
            reconnect = _settled(meter, device, lambda: "up to date" in device.log and _reported(meter) == 2)
    return Measured(first, change, reconnect, flipt_json.snapshot(document))


def _rows(count: int, measured: Measured) -> Iterable[Row]:
    is_promised = count == PROMISED
    zipped = len(gzip.compress(measured.peer, 9))
    flags = f"{count:,} flags"
    ours = [packet for packet in measured.first if packet.payload and not packet.from_client]
    whole = sum(len(packet.payload) for packet in ours)
    yield Row(f"{flags}, first snapshot: our messages", whole, "bytes", "Flipt's JSON, gzipped", zipped)
    yield Row(
        f"{flags}, first snapshot: all of MQTT",
        _size(measured.first),
        "bytes",
        "Flipt's JSON",
        len(measured.peer),
    )
    received = [packet for packet in measured.change if packet.payload and not packet.from_client]
    yield Row(
        f"{flags}, one flag changed: received",
        _size(received),
        "bytes",
        "Flipt's JSON, gzipped",
        zipped,
        goal=Goal("<=", CHANGE_GOAL_BYTES) if is_promised else None,
        note=f"our messages: {sum(len(packet.payload) for packet in received)} bytes",
    )
    yield Row("  messages", len(received), "messages", goal=Goal("<=", 1) if is_promised else None)
    yield Row("  all of MQTT, the device's report included", _size(measured.change), "bytes")
    yield Row(
        f"{flags}, back to no news: all of MQTT",
        _size(measured.reconnect),
        "bytes",
        "Flipt's JSON, gzipped",
        zipped,
        goal=Goal("<=", RECONNECT_GOAL_BYTES) if is_promised else None,
    )
    if is_promised:
        for packet in measured.reconnect:
            what = packet.topic.split("/", 3)[-1] or "acknowledgement" if packet.topic else ""
            way = "sent" if packet.from_client else "received"
            yield Row(f"  {way} {packet.kind.name} {what}".rstrip(), packet.size, "bytes")


def _size(packets: Iterable[Packet]) -> int:
    return sum(packet.size for packet in packets)


def _reported(meter: Meter) -> int:
    # The version of the default namespace in the last report that the device sent.
    reports = [
        decode_report(packet.payload)
        for packet in meter.packets
        if packet.from_client and packet.kind is Kind.PUBLISH and packet.topic.endswith("/report")
    ]
    return next((one.version for report in reports[-1:] for one in report.applied.values()), 0)


def _settled(meter: Meter, device: Device, is_there: Callable[[], bool]) -> Sequence[Packet]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (is_there() and meter.is_settled):
        if time.monotonic() > deadline:
            sys.exit(f"the device does not settle:\n{device.log}")
        time.sleep(_POLL_SECONDS)
    return meter.packets


if __name__ == "__main__":
    sys.exit(run("A device's flags on the wire, over MQTT 5", measure))
