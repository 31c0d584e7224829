"""Attacks over the broker: by an account that writes to it, by the thief of a key, and by the broker itself."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from devices import Device, DeviceFailed, provision
from publisher_simulator import PublisherSimulator, SigningKey
from usage_attacks import HostileBroker, Session

from flagcast_shared.ids import DeviceId
from flagcast_shared.limits import NUMBER_MAX, REPORT_MAX_BYTES, USAGE_MAX_BYTES
from harness import Goal

from .bench import GOOD, MALLORY, Bench, Collector, flag
from .figures import ALL, LONGEST, NOTHING, Figure, memory
from .load import PATIENCE_SECONDS, Stream, Waits, Watch, calls, until
from .messages import batch, bombs, many_rows, now, offered, tagged

QOS_0_SECONDS = 0.05
HONEST_SECONDS = 0.1
"""Between two batches of the honest device."""


def wrong_quality(bench: Bench) -> Iterator[Figure]:
    """Messages of a quality of service that the collector did not ask for."""
    seconds = 1.0 if bench.is_quick else 20.0
    name = "a message of QoS 0 every 50 ms at the collector"
    batches = [(bench.metrics(GOOD), batch()) for _ in range(int(seconds / HONEST_SECONDS))]
    collector = bench.collector()
    before, connections = collector.counted(), collector.log.count("collecting from")
    with (
        Watch({"collector": collector.process.pid}) as watch,
        bench.sender.sending(
            Stream(QOS_0_SECONDS, [(bench.metrics(MALLORY), b"x")], qos=0),
            Stream(HONEST_SECONDS, batches, repeats=False),
        ) as sent,
    ):
        # The attack goes on when the last one has been sent, for a collector that is slow.
        until(lambda: collector.counted() - before >= len(batches), seconds + 5.0)
        counted = collector.counted() - before
    made = collector.log.count("collecting from") - connections
    yield Figure(f"{name}: honest batches counted", counted, "batches", ALL, "sent", sent.counts[1])
    yield Figure(f"{name}: connections it made again", made, "", NOTHING)
    yield memory(watch, "collector", name)


_READ = """
import resource, sys, time
cap, rounds = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_CPU, (cap, cap))
from flagcast_shared.errors import Refused
from flagcast_shared.reports import decode_report, decode_usage
read = {"usage": decode_usage, "report": decode_report}[sys.argv[3]]
messages = [bytes.fromhex(line) for line in sys.stdin]
least = {}
for number in range(rounds):
    for data in messages:
        if not number:
            print("reading", flush=True)
        began = time.thread_time()
        try:
            read(data)
        except Refused:
            pass
        took = time.thread_time() - began
        least[data] = min(took, least.get(data, took))
print(*(least[data] for data in messages), flush=True)
"""
"""Reads all messages in several rounds and prints the least that each took, in seconds of CPU of the thread.

The process's own come in ticks under a limit. A slow moment of the machine is in one round of several messages.
"""


def tags(bench: Bench) -> Iterator[Figure]:
    """A tag, which a decoder may call half of the standard library for, in any place of a message."""
    name = "CBOR with a tag in any place"
    for kind, size, what in (
        ("usage", USAGE_MAX_BYTES, "16 KB of counts"),
        ("report", REPORT_MAX_BYTES, "a report of 2 KB"),
    ):
        hostile = tagged(size)
        rounds = 5 if bench.is_quick else 15
        lines = "".join(f"{data.hex()}\n" for data in hostile.values())
        done = bench.python(_READ, bench.cpu_cap, rounds, kind, lines=lines)
        *begun, last = done.stdout.splitlines()
        if done.returncode == 0:
            took = [float(word) for word in last.split()]
            slowest = max(range(len(took)), key=took.__getitem__)
            note, most = list(hostile)[slowest], took[slowest]
        else:
            assert last == "reading", done.stderr
            note, most = f"more than: {list(hostile)[len(begun)]}", float(bench.cpu_cap)
        yield Figure(f"{name}: to read {what}", most * 1000, "ms CPU", Goal("<=", 5.0), note=note)
    collector = bench.collector()
    worst = next(iter(tagged(USAGE_MAX_BYTES).values()))
    bench.send(*[(bench.metrics(MALLORY), worst)] * 20)
    began = time.monotonic()
    collector.process.send_signal(signal.SIGTERM)
    try:
        collector.process.wait(bench.slow_seconds)
        note = ""
    except subprocess.TimeoutExpired:
        collector.process.kill()
        note = "more than"
    seconds = time.monotonic() - began
    yield Figure(f"{name}: collector's end after SIGTERM", seconds, "s", Goal("<=", 2.0), note=note)


def structure(bench: Bench) -> Iterator[Figure]:
    """A few kilobytes that inflate to millions of items, beside a caller."""
    name = "24 to 30 KB of structure, truly signed by a stolen key"
    sizes = " and ".join(f"{len(body):,}" for body, _ in bombs())
    agent = bench.agent()
    with (
        Watch({"agent": agent.pid}) as watch,
        _calling(agent.device.socket, bench.slow_seconds) as waits,
        contextlib.suppress(DeviceFailed),  # it was killed for its memory
    ):
        for body, digest in bombs():
            refusals = agent.refusals()
            bench.put(*offered(agent.publisher, body, digest))
            agent.device.wait_until(lambda: agent.refusals() > refusals, "a refusal")  # noqa: B023  # in this turn
    yield memory(watch, "agent", name, f"{sizes} bytes")
    yield Figure(f"{name}: another caller's longest wait", waits.longest, "ms", LONGEST)


@contextmanager
def _calling(socket_path: Path, patience: float) -> Iterator[Waits]:
    """Another caller while the block lasts."""
    waits, over = Waits(), threading.Event()

    def call() -> None:
        found = calls(socket_path, patience, lambda: not over.is_set())
        waits.found, waits.is_cut = found.found, found.is_cut

    thread = threading.Thread(target=call, name="caller", daemon=True)
    thread.start()
    try:
        yield waits
    finally:
        over.set()
        thread.join()


def usage_book(bench: Bench) -> Iterator[Figure]:
    """A device that invents rows, and sums that reach the largest number of the database."""
    collector = bench.collector()
    if not bench.is_quick:
        yield from _invented_rows(bench, collector)
    collector.ask("UPDATE usage SET evaluations = ? WHERE flag = 'lights'", NUMBER_MAX - 5)
    collector.ask(
        "INSERT OR REPLACE INTO usage SELECT environment, day - 1, namespace, flag, answer, reason, evaluations"
        " FROM usage WHERE flag = 'lights'"
    )
    before = collector.counted()
    bench.send(*[(bench.metrics(GOOD), batch(10)) for _ in range(3)])
    is_counting = until(lambda: collector.counted() >= before + 3, 10.0)
    sums, _ = _shown(bench, "lights")
    right = (is_counting, collector.process.poll() is None, sums == [NUMBER_MAX])
    yield Figure(
        "sums at the maximum and beyond: wrong, of three looks", right.count(False), "", NOTHING,
        note="counted on, collector alive, flagcast usage right" if all(right) else f"shown: {sums}",
    )  # fmt: skip


def _invented_rows(bench: Bench, collector: Collector) -> Iterator[Figure]:
    count, flooder, flag = 60_000, DeviceId("flooder"), "invented"
    batches = many_rows(count, flag)
    with Watch({"collector": collector.process.pid}) as watch:
        bench.send(*[(bench.metrics(flooder), data) for data in batches])
        until(lambda: collector.counted(flooder) >= len(batches), PATIENCE_SECONDS)
    kept = collector.count("SELECT count(*) FROM usage WHERE flag = ? GROUP BY day ORDER BY 1 DESC", flag)
    sums, uncounted = _shown(bench, flag)
    named = uncounted.get(flooder, 0)
    name = f"{count:,} new rows of one device in a day"
    yield Figure(f"{name}: in the book", kept, "rows", Goal("<=", 50_000))
    yield Figure(
        f"{name}: evaluations that flagcast usage loses or counts twice",
        abs(sum(sums) + named - count), "", NOTHING, note=f"{sum(sums):,} summed, {named:,} named as not counted",
    )  # fmt: skip
    yield memory(watch, "collector", name)


def _shown(bench: Bench, flag: str) -> tuple[list[int], Mapping[str, int]]:
    """The sums of a flag's answers, and each device's evaluations that are in no sum, as `flagcast usage` shows them."""
    shown = bench.flagcast("usage", "--format", "json", "--project", bench.project)
    if shown.code:
        return [], {}
    found = json.loads(shown.text)
    return [each["evaluations"] for each in found["usage"] if each["flag"] == flag], found.get(
        "uncounted", {}
    )


def revoked(bench: Bench) -> Iterator[Figure]:
    """A head of a revoked key, shown to a device that was away beside the root that revokes it."""
    rounds = 1 if bench.is_quick else 5
    admitted = _admitted_revoked(bench, rounds)
    for order, count in admitted.items():
        yield Figure(
            f"head of a revoked key beside the root that revokes it, {order}: admitted",
            count, "", NOTHING, note=f"of {rounds}",
        )  # fmt: skip
    if not bench.is_quick:
        yield Figure(
            "honest rotation: devices that report unknown_key afterwards",
            _reporting_unknown_key(bench, 5), "", NOTHING, note="of 5",
        )  # fmt: skip


def _admitted_revoked(bench: Bench, rounds: int) -> dict[str, int]:
    """Number of times that an agent admits the head, by the order in which the broker shows both before any answer."""
    publisher = PublisherSimulator(now=now())
    publisher.release(flag(is_on=True))
    shown: list[tuple[str, bytes]] = list(publisher.retained.items())

    def show(session: Session) -> None:
        for topic, payload in shown:
            session.publish(topic, payload, qos=0)

    found: dict[str, int] = {}
    with (
        HostileBroker(show, before_suback=show) as broker,
        bench.provision(publisher, broker.url) as away,
    ):
        away.start()
        away.holds(1)
        away.stop()
        publisher.release(flag(is_on=False), inline=True)
        stolen = (publisher.head_topic, publisher.retained[publisher.head_topic])
        publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
        root = (publisher.root_topic(2), publisher.retained[publisher.root_topic(2)])
        for order, messages in {"root first": [root, stolen], "head first": [stolen, root]}.items():
            shown[:] = messages
            found[order] = sum(_admits(bench, away) for _ in range(rounds))
    return found


def _admits(bench: Bench, away: Device) -> bool:
    # On a copy, so that each round begins with what the device held when it went away.
    folder = bench.fresh("device")
    shutil.copytree(away.folder, folder, ignore=shutil.ignore_patterns("*.sock", "log"))
    with Device(folder, program=away.program) as device:
        device.start()
        device.wait_until(
            lambda: "attack=unknown_key" in device.log or 2 in device.logged_versions, "the head of the thief"
        )
        return 2 in device.logged_versions


def _reporting_unknown_key(bench: Bench, count: int) -> int:
    anchor, program = bench.project / "roots" / "1.root", bench.bin / "flagcast-agent"
    with ExitStack() as stack:
        devices = [
            stack.enter_context(
                provision(bench.fresh("device"), anchor, bench.broker.url, device=f"rotated-{number}", program=program)
            )
            for number in range(count)
        ]  # fmt: skip
        for device in devices:
            device.start()
        for device in devices:
            device.wait_for("message=admitted")
        bench.flagcast("keys", "rotate", "publisher", "--project", bench.project)
        bench.flagcast("publish", bench.features, "--project", bench.project)
        for device in devices:
            device.wait_for("message=admitted namespace=default epoch=2")
        fleet: list[Mapping[str, object]] = []

        def is_reported() -> bool:
            done = bench.flagcast("fleet", "--format", "json", "--project", bench.project)
            listed = json.loads(done.text[done.text.index("{") :])["devices"]
            fleet[:] = [each for each in listed if str(each["device"]).startswith("rotated-")]
            return json.dumps(fleet).count('"epoch": 2') == count

        if not until(is_reported, PATIENCE_SECONDS):
            sys.exit(f"the devices do not report the next epoch: {fleet}")
    return sum("unknown_key" in json.dumps(each) for each in fleet)
