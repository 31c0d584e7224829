"""What a device spends on one changed flag among 10,000: admit the head, persist it, answer from it, and write to flash.

The change travels inside the head, as a publisher sends it. The database is the agent's own (WAL, synchronous=FULL) on a
real disk. The floor is what the disk itself costs: one bare commit of the same bytes with the same settings, by turns with
the agent's, in the same run.
"""

import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from publisher_simulator import DEFAULT, NOW, PRODUCTION, PublisherSimulator

from flagcast_agent.evaluator import Evaluator
from flagcast_agent.store.writer import Store
from flagcast_agent.sync.time_floor import TimeFloor
from flagcast_shared.codec import deflate
from flagcast_shared.context import Device, device_attributes
from flagcast_shared.ids import DeviceId, Version
from flagcast_shared.messages import InlineDelta
from flagcast_shared.model import BooleanFlag, VariantFlag
from flagcast_shared.records import content_digest, encode_delta, encode_record
from flagcast_shared.trust import AdmittedUpdate, Trusted, admit, begin
from fleet import make_entries
from harness import Goal, Options, Row, run

FLAGS = 10_000
_MEMORY_DISKS = {"tmpfs", "ramfs"}


def measure(options: Options) -> Iterator[Row]:
    changes = 60 if options.quick else 300
    with tempfile.TemporaryDirectory(dir=_disk()) as scratch:
        work = _Work(Path(scratch))
        floor = _Floor(Path(scratch) / "floor.sqlite")
        rounds = [_round(work, floor) for _ in range(changes)]
        work.store.close()
    admitted, persisted, activated, bare, written, bare_written, busy = (
        statistics.median(column) for column in zip(*rounds, strict=True)
    )
    whole = statistics.median(sum(row[:3]) for row in rounds)
    worst = sorted(sum(row[:3]) for row in rounds)[int(len(rounds) * 0.95)]
    commit = "bare commit of these bytes"
    yield Row(
        f"one flag of {FLAGS:,}: admit, persist, activate", whole, "ms", commit, bare, goal=Goal("<=", 5.0)
    )
    yield Row("  95th percentile", worst, "ms")
    yield Row("  of which processor time, whatever else the machine does", busy, "ms")
    yield Row("  admit: signature, delta, content digest", admitted, "ms")
    yield Row("  persist: one transaction", persisted, "ms", commit, bare)
    yield Row("  activate: compile what changed", activated, "ms")
    yield Row("bytes written to disk", written, "bytes", commit, bare_written)
    yield Row("bytes received, topic included", work.message_bytes, "bytes")


class _Work:
    """A device that holds a namespace, and a publisher that changes one flag of it after another."""

    def __init__(self, scratch: Path) -> None:
        entries = make_entries(FLAGS)
        self._flags = [entry for entry in entries if isinstance(entry, BooleanFlag | VariantFlag)]
        self._changed = 0
        self._publisher = publisher = PublisherSimulator()
        self._records = dict(publisher.release(*entries).records)
        device = Device(DeviceId("device-1"))
        self.store = Store(scratch / "agent.sqlite")
        self.evaluator = Evaluator(device_attributes(device))
        self.trusted: Trusted = begin(PRODUCTION, device, publisher.anchor)
        for topic in (publisher.head_topic, *publisher.retained):
            self.trusted, update = self.admit(topic, publisher.retained[topic])
            if update is not None:
                self.persist(update)
                self.activate(update)
        assert self.evaluator.knowledge(DEFAULT).version == 1
        self.message_bytes = 0

    def next_change(self) -> tuple[str, bytes]:
        """A head with the delta of one flag that is switched on or off."""
        flag = self._flags[
            self._changed * 7 % FLAGS
        ]  # neighbours in the file are not neighbours in the change
        record = encode_record(replace(flag, enabled=not flag.enabled))
        self._changed += 1
        self._records[record.id] = record
        last = self._publisher.head.stable
        version = Version(last.version + 1)
        stable = replace(
            last, version=version, digest=content_digest(one.digest for one in self._records.values())
        )
        inline = InlineDelta(last.version, version, deflate(encode_delta([], [record])))
        self._publisher.publish_head(self._publisher.make_head(stable=stable, inline=inline))
        topic = self._publisher.head_topic
        message = self._publisher.retained[topic]
        self.message_bytes = len(topic) + len(message)
        return topic, message

    def admit(self, topic: str, message: bytes) -> tuple[Trusted, AdmittedUpdate | None]:
        address = self._publisher.topics.address(topic)
        assert address is not None
        trusted, outcome = admit(self.trusted, address, message, now=NOW + 60)
        return trusted, outcome if isinstance(outcome, AdmittedUpdate) else None

    def persist(self, update: AdmittedUpdate) -> None:
        self.store.persist_update(update, TimeFloor(self.trusted.floor))

    def activate(self, update: AdmittedUpdate) -> None:
        self.evaluator.activate(update)


class _Floor:
    """One bare commit: a row of so many bytes is replaced."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("CREATE TABLE floor (name TEXT PRIMARY KEY, data BLOB) WITHOUT ROWID")

    def commit(self, data: bytes) -> None:
        self._connection.execute("INSERT OR REPLACE INTO floor VALUES ('head', ?)", [data])


# Milliseconds of admitting, persisting, activating and the bare commit; bytes written by ours and by the bare one;
# milliseconds of processor time of ours.
def _round(work: _Work, floor: _Floor) -> tuple[float, ...]:
    topic, message = work.next_change()
    at_start = _written()
    busy_before = time.process_time()
    began = time.perf_counter()
    work.trusted, update = work.admit(topic, message)
    assert update is not None
    assert len(update.changed) == 1
    admitted = time.perf_counter()
    work.persist(update)
    persisted = time.perf_counter()
    work.activate(update)
    activated = time.perf_counter()
    busy = (time.process_time() - busy_before) * 1000
    after = _written()
    assert work.evaluator.knowledge(DEFAULT).version == update.holding.version
    data = message + update.changed[0].data
    began_bare = time.perf_counter()
    floor.commit(data)
    bare = time.perf_counter() - began_bare
    steps = (admitted - began, persisted - admitted, activated - persisted, bare)
    in_ms = tuple(step * 1000 for step in steps)
    return (*in_ms, after - at_start, _written() - after, busy)


def _written() -> int:
    # What the kernel has sent towards the disk for this process, in whole pages.
    for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines():
        if line.startswith("write_bytes: "):
            return int(line.split()[1])
    sys.exit("/proc/self/io does not say write_bytes")


def _disk() -> Path:
    # A commit on a disk of memory costs nothing and says nothing.
    lines = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    kinds = {line.split()[1]: line.split()[2] for line in lines}
    for folder in (Path(tempfile.gettempdir()), Path("/var/tmp"), Path(__file__).resolve().parent):
        place = folder
        while not os.path.ismount(place):
            place = place.parent
        if kinds.get(str(place)) not in _MEMORY_DISKS:
            return folder
    sys.exit("every folder that is writable is a disk of memory")


if __name__ == "__main__":
    sys.exit(run("One changed flag on a device", measure))
