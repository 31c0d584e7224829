"""A device is cut off for a while within a stream of updates: how many round trips until it is right again, and what that costs.

The agent and mosquitto stand on hosts of their own (network namespaces) with a link of a fixed round-trip time between them;
`flagcast publish` changes one flag of a thousand at a time. A cut is silent: packets vanish and neither side is told. When it
ends, a device that knows when its radio is on says so (SIGUSR1); "nobody says" shows what TCP and the keep-alive find out.

"Right" is a device that has admitted the version that was the newest when the link came back. A round trip is the floor: nothing
is right before what it asks for has come. Of a new connection the first two round trips are TCP's and MQTT's (SYN, CONNECT); what
follows is the agent's: one brings the head, with the last change inside it; content that the head only names takes one more. So
what is measured against one round trip begins when the broker has taken the connection.
"""

import json
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleet import command, write_flags
from harness import Goal, Options, Row, run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from devices import Device, provision
from network import Network, why_not

from brokers import free_port, start_mosquitto
from flagcast_agent.sync.connection import HURRIED_PATIENCE_SECONDS

RTT_SECONDS = 0.3
"""Of a cellular modem on a bad day."""
FLAGS = 1_000
UPDATES_PAUSE_SECONDS = 1.0
SPANS_SECONDS, QUICK_SPANS_SECONDS = (1.0, 5.0, 20.0, 60.0, 150.0), (2.0,)
UNSAID_SPANS_SECONDS, QUICK_UNSAID_SPANS_SECONDS = (1.0, 5.0, 20.0), ()
ROUNDS, QUICK_ROUNDS = 5, 1
"""Of the reconnects that are taken apart."""
OVERHEAD = 1.25
"""What may be added to a round trip: two processes on a busy machine, signatures, a disk that is synced."""
PATIENCE_SECONDS = 240.0
_POLL_SECONDS = 0.002
_SETTLE_SECONDS = 3 * RTT_SECONDS


def measure(options: Options) -> Iterator[Row]:
    if missing := why_not():
        yield Row("cuts", None, "", note=missing)
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        Network(rtt_seconds=RTT_SECONDS) as network,
        _scene(Path(folder), network) as scene,
    ):
        yield from _reconnects(scene, QUICK_ROUNDS if options.quick else ROUNDS)
        with scene.updates():
            for span in QUICK_SPANS_SECONDS if options.quick else SPANS_SECONDS:
                yield _cut_row(scene, span, is_said=True)
            for span in QUICK_UNSAID_SPANS_SECONDS if options.quick else UNSAID_SPANS_SECONDS:
                yield _cut_row(scene, span, is_said=False)


@dataclass(slots=True)
class Scene:
    """A device that is up to date, and what publishes to it from the other host. `version` is the newest that was published."""

    network: Network
    device: Device
    project: Path
    flags: Path
    version: int = 1
    _before: int = 0
    _document: Any = field(init=False)

    def __post_init__(self) -> None:
        self._document = json.loads(self._features.read_text(encoding="utf-8"))

    @property
    def _features(self) -> Path:
        return self.flags / "default" / "features.json"

    @property
    def held(self) -> int:
        """The version that the device has admitted, in this life of its process or a former one."""
        return max([self._before, *self.device.logged_versions])

    def publish(self) -> None:
        """One flag changes."""
        flag = self._document["flags"][self.version % FLAGS]
        flag["enabled"] = not flag.get("enabled", False)
        self._features.write_text(json.dumps(self._document), encoding="utf-8")
        with self.network.far.inside():
            command("flagcast", "publish", str(self.flags), "--project", str(self.project))
        self.version += 1

    @contextmanager
    def updates(self) -> Iterator[None]:
        """One change after another until the block ends."""
        over = threading.Event()

        def publish() -> None:
            while not over.wait(UPDATES_PAUSE_SECONDS):
                self.publish()

        thread = threading.Thread(target=publish, name="publisher")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def start(self) -> None:
        self._before = self.held
        with self.network.near.inside():
            self.device.start()

    def wait_until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                sys.exit(f"the device does not come back:\n{self.device.log}")
            time.sleep(_POLL_SECONDS)


@contextmanager
def _scene(folder: Path, network: Network) -> Iterator[Scene]:
    flags, project, port = write_flags(folder / "flags", FLAGS), folder / "project", free_port()
    with network.far.inside():
        # With the same line as the configuration in deploy/.
        lines = [f"listener {port} {network.far.address}", "set_tcp_nodelay true"]
        broker = start_mosquitto(folder / "broker", lines=lines)
    with broker:
        with network.far.inside():
            command("flagcast", "init", str(project), "--environment", "production", "--broker", broker.url)
            command("flagcast", "publish", str(flags), "--project", str(project))
        anchor = next((project / "roots").iterdir())
        url = f"mqtt://{network.far.address}:{port}"
        with provision(folder / "device", anchor, url, device="charger-000001") as device:
            scene = Scene(network, device, project, flags)
            scene.start()
            scene.wait_until(lambda: "up to date" in device.log)
            yield scene


def _cut_row(scene: Scene, span: float, *, is_said: bool) -> Row:
    device, network = scene.device, scene.network
    scene.wait_until(lambda: scene.held == scene.version)  # nothing is under way
    network.is_cut = True
    time.sleep(span)  # the span is what varies
    scene.wait_until(lambda: scene.version > scene.held)
    wanted, missed = scene.version, scene.version - scene.held
    payload, connections = network.arrived_payload, device.log.count("message=connected")
    network.is_cut = False
    began = time.monotonic()
    if is_said:
        device.send_signal(signal.SIGUSR1)
    scene.wait_until(lambda: scene.held >= wanted)
    seconds = time.monotonic() - began
    used = network.arrived_payload - payload
    is_new = device.log.count("message=connected") > connections
    # A connection that died in silence is given this long, or four times what it took to make; a new one takes four round trips.
    bound = max(HURRIED_PATIENCE_SECONDS, 4 * 2 * RTT_SECONDS * OVERHEAD) + 4 * RTT_SECONDS * OVERHEAD
    return Row(
        f"cut for {span:g} s, {'the device says when it is over' if is_said else 'nobody says'}: right after",
        seconds,
        "s",
        "a round trip",
        RTT_SECONDS,
        goal=Goal("<=", round(bound, 2)) if is_said else None,
        note=f"{missed} versions behind, over {'a new' if is_new else 'the old'} connection, {used:,} bytes of MQTT",
    )


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Seconds from the first packet to the broker's word, from there to being right, and the bytes both ways."""

    connecting: float
    catching_up: float
    payload: int
    packets: int


def _reconnects(scene: Scene, rounds: int) -> Iterable[Row]:
    for name, behind, trips in (("no news", 0, 1), ("1 version behind", 1, 1), ("3 versions behind", 3, 2)):
        found = [_reconnect(scene, behind) for _ in range(rounds)]
        yield Row(
            f"back to {name}: connected after",
            statistics.median(each.connecting for each in found),
            "s",
            "a round trip",
            RTT_SECONDS,
            note="TCP and CONNECT, a round trip each",
        )
        yield Row(
            "  right after that in",
            statistics.median(each.catching_up for each in found),
            "s",
            "a round trip",
            RTT_SECONDS,
            goal=Goal("<=", trips * OVERHEAD, of="ratio"),
            note="the head" if trips == 1 else "the head, then the delta that it names",
        )
        yield Row(
            "  bytes of MQTT, both ways",
            statistics.median(each.payload for each in found),
            "bytes",
            "with TCP and IP",
            statistics.median(each.packets for each in found),
        )


def _reconnect(scene: Scene, behind: int) -> Reconnect:
    # The agent ends and is started: the connection ends cleanly, and the next attempt comes without a wait.
    device, network = scene.device, scene.network
    scene.wait_until(lambda: scene.held == scene.version)
    if device.stop():
        sys.exit(f"the agent did not end well:\n{device.log}")
    for _ in range(behind):
        scene.publish()
    time.sleep(_SETTLE_SECONDS)  # the old connection's last packets
    payload, octets, packets = network.arrived_payload, network.arrived_bytes, network.near.sent.packets
    scene.start()
    scene.wait_until(lambda: network.near.sent.packets > packets)
    began = time.monotonic()
    scene.wait_until(lambda: "message=connected" in device.log)
    connected = time.monotonic()
    scene.wait_until(lambda: 'message="up to date"' in device.log)
    right = time.monotonic()
    time.sleep(_SETTLE_SECONDS)  # what is still on its way is part of it
    return Reconnect(
        connected - began,
        right - connected,
        network.arrived_payload - payload,
        network.arrived_bytes - octets,
    )


if __name__ == "__main__":
    sys.exit(run("Cut off and back, over a slow link", measure))
