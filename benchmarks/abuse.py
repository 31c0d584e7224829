"""Every attack on Flagcast's walls, carried out on real processes: what it costs the victim, and whether the wall holds.

Victims are an agent, a collector and commands, started from a checkout's `.venv/bin` behind a real mosquitto. `--before DIR`
carries out the same attacks on another checkout that has its own .venv, and shows its figures beside this one's.

Attackers have processes of their own. Those on the broker send at a fixed rate; the one on the socket sends as fast as it is
read. On a small machine its loop alone would slow every other process, so the waits of another caller are compared with its
waits while processes that never talk to the agent burn as much CPU as the attackers, the broker and the collector did. What
the agent itself spends on an attack is not in that: it is what is measured.

No attack takes the machine: a victim is killed above MEMORY_CAP_MEBIBYTES, a command or decoder at CPU_CAP_SECONDS; the row
then says "more than".
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import resource
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import cbor2
from devices import Device, DeviceFailed, provision
from publisher_simulator import PublisherSimulator, SigningKey
from publishing import features
from raw_http1 import HttpClient
from usage_attacks import HostileBroker, Session

from brokers import Broker, start_mosquitto
from flagcast_bridge import mqtt
from flagcast_shared.codec import Value, deflate, encode
from flagcast_shared.ids import DeviceId, Digest, Environment, FlagKey, Namespace, VariantKey
from flagcast_shared.limits import (
    DEPTH_MAX,
    NUMBER_MAX,
    RECORD_MAX_BYTES,
    REPORT_MAX_BYTES,
    USAGE_COUNT_MAX,
    USAGE_MAX_BYTES,
)
from flagcast_shared.messages import Offering
from flagcast_shared.model import BooleanFlag, Variant, VariantFlag
from flagcast_shared.records import content_digest
from flagcast_shared.reports import Count, Usage, encode_usage
from flagcast_shared.root import PublicKey, Quorum, Role, encode_root, root_place
from flagcast_shared.topics import DeviceAddress, Topics
from harness import Goal, Options, Row, run

ROOT = Path(__file__).resolve().parent.parent
MEMORY_MAX_MEBIBYTES = 100.0
"""The goal for an agent and a collector under any attack; without one they take some 45 MiB."""
MEMORY_CAP_MEBIBYTES = 1_024.0
"""A victim above this is killed: its wall does not hold, and how far it would go is of no interest."""
CPU_CAP_SECONDS, QUICK_CPU_CAP_SECONDS = 10, 3
"""Processor time of a command or a decoder, after which it is killed."""
COMMAND_CPU_SECONDS = 60
"""Processor time of a command that is not attacked itself."""
PATIENCE_SECONDS = 60.0
"""For what a victim does in the end, on a machine that is busy."""
SLOW_SECONDS, QUICK_SLOW_SECONDS = 15.0, 4.0
"""How long another caller, or SIGTERM, waits for a victim that does not answer."""
WINDOW_BITS = 12
FLAGS = 1_000
QOS_0_SECONDS = 0.05
HONEST_SECONDS = 0.1
"""Between two batches of the honest device."""
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202egnp.exe\u2066\u200b\u2028\r\nflagcast: all is well"
"""A title, a cleared screen, a C1 control, text from right to left, what has no width, and a line of its own."""
TEST = Environment("test")
GOOD, MALLORY = DeviceId("good"), DeviceId("mallory")
NOTHING = Goal("<=", 0)
MEMORY = Goal("<=", MEMORY_MAX_MEBIBYTES)
TWICE = Goal("<=", 2.0, "ratio")
LONGEST = Goal("<=", 500.0)
"""Milliseconds. A caller that waits asks nothing meanwhile, so that a few long waits do not show in a p99."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of one attack; `peer` is what it is compared with in the same run."""

    name: str
    value: float | None
    unit: str = ""
    goal: Goal | None = None
    peer: str = ""
    peer_value: float | None = None
    note: str = ""


@dataclass(slots=True)
class Bench:
    """One checkout's programs, a mosquitto, and a project that `flagcast init` made, with a published flag."""

    bin: Path
    folder: Path
    broker: Broker
    is_quick: bool
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def project(self) -> Path:
        return self.folder / "project"

    @property
    def topics(self) -> Topics:
        return Topics("flagcast", TEST)

    @property
    def cpu_cap(self) -> int:
        return QUICK_CPU_CAP_SECONDS if self.is_quick else CPU_CAP_SECONDS

    @property
    def slow_seconds(self) -> float:
        return QUICK_SLOW_SECONDS if self.is_quick else SLOW_SECONDS

    def fresh(self, name: str) -> Path:
        """A folder that is not there yet."""
        return self.folder / f"{next(self._numbers)}-{name}"

    def flagcast(self, *arguments: str | Path, cpu_cap: int = COMMAND_CPU_SECONDS) -> "Done":
        """The command `flagcast`, to its end or to the cap of its time."""
        return _run(self.bin / "flagcast", arguments, cpu_cap)

    def agent(self, device: Device, *arguments: str) -> str:
        """What a command of `flagcast-agent` prints on a device."""
        return _run(
            self.bin / "flagcast-agent", (*arguments, "--dir", device.folder), COMMAND_CPU_SECONDS
        ).text

    def put(self, *messages: tuple[str, bytes]) -> None:
        """Retain messages on the broker, as anybody with an account could."""
        with mqtt.connect(self.broker.host, self.broker.port, mqtt.Login()) as connection:
            connection.publish(messages)

    def metrics(self, device: DeviceId) -> str:
        return self.topics.of(DeviceAddress(device, "metrics"))


Attack = Callable[[Bench], Iterator[Figure]]


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended. `is_capped`: it was killed for its processor time."""

    code: int
    text: str
    cpu: float
    is_capped: bool


def measure(options: Options, before: Path | None) -> Iterator[Row]:
    with ExitStack() as stack:
        here = stack.enter_context(_bench(ROOT, options))
        there = stack.enter_context(_bench(before, options)) if before is not None else None
        ours = _carried_out(here)
        theirs = _carried_out(there) if there is not None else {}
        for name, figure in ours.items():
            yield from _rows(figure, theirs.get(name))


def _carried_out(bench: Bench) -> dict[str, Figure]:
    """Every figure of every attack by name; those that measure time have the machine for themselves."""
    found: dict[Attack, list[Figure]] = {}

    def carry_out(*attacks: Attack) -> None:
        for each in attacks:
            began = time.monotonic()
            found[each] = list(each(bench))
            took = time.monotonic() - began
            print(f"{bench.bin.parent.parent}: {each.__name__}, {took:.1f} s", file=sys.stderr, flush=True)

    carry_out(*TIMED)
    with ThreadPoolExecutor(len(BESIDE)) as pool:
        for each in [pool.submit(carry_out, *attacks) for attacks in BESIDE]:
            each.result()
    return {figure.name: figure for attack in ATTACKS for figure in found[attack]}


def _rows(figure: Figure, old: Figure | None) -> Iterator[Row]:
    is_beside = old is not None and not figure.peer
    yield Row(
        figure.name,
        figure.value,
        figure.unit,
        "before" + (f", {old.note}" if old is not None and old.note else "") if is_beside else figure.peer,
        old.value if old is not None and is_beside else figure.peer_value,
        goal=figure.goal,
        note=figure.note,
    )
    if old is not None and not is_beside:
        yield Row(f"  before", old.value, old.unit, old.peer, old.peer_value, note=old.note)  # noqa: F541


@contextmanager
def _bench(checkout: Path, options: Options) -> Iterator[Bench]:
    programs = checkout.resolve() / ".venv" / "bin"
    with (
        tempfile.TemporaryDirectory(prefix="fc-") as folder,
        start_mosquitto(Path(folder) / "broker", lines=["max_queued_messages 100000"]) as broker,
    ):
        bench = Bench(programs, Path(folder), broker, options.quick)
        made = bench.flagcast("init", bench.project, "--environment", TEST, "--broker", broker.url)
        if made.code:
            sys.exit(f"{programs}: {made.text}")
        (bench.folder / "features.yml").write_text(features({"lights": True}))
        bench.flagcast("publish", bench.folder / "features.yml", "--project", bench.project)
        yield bench


# Victims


@contextmanager
def _following(bench: Bench, name: str) -> Iterator[tuple[Device, PublisherSimulator]]:
    """An agent that holds version 1 of FLAGS flags, and the publisher whose keys it trusts."""
    publisher = PublisherSimulator(environment=Environment(name), now=_now())
    publisher.release(*_flags())
    bench.put(*publisher.retained.items())
    with _provisioned(bench, publisher, bench.broker.url) as device:
        device.start()
        device.holds(1)
        yield device, publisher


@contextmanager
def _provisioned(bench: Bench, publisher: PublisherSimulator, url: str) -> Iterator[Device]:
    folder = bench.fresh("device")
    anchor = folder.with_suffix(".root")
    anchor.write_bytes(publisher.anchor)
    with provision(folder, anchor, url, program=bench.bin / "flagcast-agent") as device:
        yield device


def _flags(*, is_evil: bool = False) -> list[BooleanFlag]:
    first = BooleanFlag(FlagKey("on"), enabled=not is_evil)
    return [first, *(BooleanFlag(FlagKey(f"flag-{number}"), enabled=False) for number in range(1, FLAGS))]


@dataclass(slots=True)
class Collector:
    """A real `flagcast usage collect` that has subscribed."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="surrogateescape")

    def ask(self, question: str, *values: object) -> list[tuple[object, ...]]:
        """A question to its book, read while it writes."""
        book = self.folder / "usage.sqlite"
        if not book.exists():
            return []
        with closing(sqlite3.connect(book, timeout=PATIENCE_SECONDS)) as connection, connection:
            return list(connection.execute(question, values))

    def counted(self, device: DeviceId = GOOD) -> int:
        """Batches of a device in its book."""
        with contextlib.suppress(sqlite3.OperationalError):  # it has made no table yet
            for (count,) in self.ask("SELECT count(*) FROM batch WHERE device = ?", device):
                assert isinstance(count, int)
                return count
        return 0


@contextmanager
def _collecting(bench: Bench) -> Iterator[Collector]:
    log_path = bench.fresh("collector.log")
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [bench.bin / "flagcast", "usage", "collect", "--project", bench.project],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    collector = Collector(process, bench.project, log_path)
    try:
        _first_batch(bench, collector)
        yield collector
    finally:
        process.kill()
        process.wait()


def _first_batch(bench: Bench, collector: Collector) -> None:
    # Sent until it is counted: the collector may not have subscribed yet.
    first, before = _batch(), collector.counted()
    with mqtt.connect(bench.broker.host, bench.broker.port, mqtt.Login()) as connection:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while collector.counted() == before:
            if time.monotonic() > give_up or collector.process.poll() is not None:
                sys.exit(f"the collector does not collect:\n{collector.log}")
            connection._client.publish(bench.metrics(GOOD), first, qos=1).wait_for_publish(PATIENCE_SECONDS)
            time.sleep(0.05)


# Attackers and other callers


@dataclass(frozen=True, slots=True)
class Stream:
    """Messages that are sent one after another, every so many seconds; from the first again where it `repeats`."""

    seconds: float
    messages: Sequence[tuple[str, bytes]]
    qos: int = 1
    retain: bool = False
    repeats: bool = True


class Sender:
    """A process that sends streams until it is stopped. A context manager."""

    def __init__(self, port: int, *streams: Stream) -> None:
        self._spawning = multiprocessing.get_context("spawn")
        self._ours, theirs = self._spawning.Pipe()
        self._process = self._spawning.Process(target=_send, args=(port, streams, theirs), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        if not self._ours.poll(PATIENCE_SECONDS):
            sys.exit("a sender did not start")
        self._ours.recv()
        return self

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def stop(self) -> list[int]:
        """How many messages it has sent, of each stream."""
        self._ours.send("over")
        if not self._ours.poll(2 * PATIENCE_SECONDS):
            sys.exit("a sender does not stop")
        sent: list[int] = self._ours.recv()
        return sent

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()


def _send(port: int, streams: Sequence[Stream], pipe: Connection) -> None:
    with mqtt.connect("127.0.0.1", port, mqtt.Login()) as connection:
        pipe.send("ready")
        now = time.monotonic()
        due = [now + each.seconds for each in streams]
        sent = [0 for _ in streams]
        while not pipe.poll(max(0.0, min(due) - time.monotonic())):
            for place, each in enumerate(streams):
                if due[place] > time.monotonic():
                    continue
                due[place] += each.seconds
                if each.repeats or sent[place] < len(each.messages):
                    topic, payload = each.messages[sent[place] % len(each.messages)]
                    connection._client.publish(topic, payload, qos=each.qos, retain=each.retain)
                    sent[place] += 1
        give_up = time.monotonic() + PATIENCE_SECONDS
        while connection._client._out_messages and time.monotonic() < give_up:
            time.sleep(0.01)
        pipe.send(sent)
        pipe.recv()  # until this process is killed


_FLOOD = """
import socket, sys, time
requests = b"GET /livez HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n" * 1500
end, is_first = time.monotonic() + float(sys.argv[2]), True
while time.monotonic() < end:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.settimeout(1.0)
            client.connect(sys.argv[1])
            at = 0
            while time.monotonic() < end:
                try:
                    at = (at + client.send(requests[at:])) % len(requests)
                except TimeoutError:
                    pass
                if is_first:
                    print("begun", flush=True)
                    is_first = False
        except OSError:
            time.sleep(0.1)
"""
"""Pipelines requests and never reads; connects again where the agent ends the connection."""


@contextmanager
def _unread_requests(socket_path: Path, seconds: float) -> Iterator[int]:
    """A client of HTTP/1.1 that pipelines requests and never reads, as fast as the agent takes them; its process."""
    command = [sys.executable, "-c", _FLOOD, str(socket_path), str(seconds + PATIENCE_SECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # once it has begun
            yield process.pid
        finally:
            process.kill()


_BURN = """
import sys, time
share, seconds = float(sys.argv[1]), float(sys.argv[2])
began, spent = time.monotonic(), time.process_time()
while (gone := time.monotonic() - began) < seconds:
    if time.process_time() - spent > share * gone:
        time.sleep(0.001)
"""


@contextmanager
def _burning(cores: float, seconds: float) -> Iterator[None]:
    """Bystanders: processes that burn so much CPU and talk to nobody."""
    count = max(1, round(cores + 0.499))
    with ExitStack() as stack:
        for _ in range(count):
            command = [sys.executable, "-c", _BURN, str(min(1.0, cores / count)), str(seconds)]
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)
        yield


@dataclass(slots=True)
class Watch:
    """Looks at processes all the time: the peak memory of `victims`, the CPU of `loads`. A context manager."""

    victims: Mapping[str, int]
    loads: Sequence[int] = ()
    most: dict[str, float] = field(default_factory=dict)
    """MiB, by the victim's name."""
    exceeded: set[str] = field(default_factory=set)
    """Victims that were killed for their memory."""
    _cpu: dict[int, tuple[float, float]] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _began: float = 0.0
    _ended: float = 0.0

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._look()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        assert self._thread is not None
        self._thread.join()
        self._look()
        self._ended = time.monotonic()

    @property
    def cores(self) -> float:
        """Cores that the loads kept busy."""
        spent = sum(last - first for first, last in self._cpu.values())
        return spent / (self._ended - self._began)

    def memory(self, name: str, victim: str, *, goal: Goal | None = MEMORY, note: str = "") -> Figure:
        """The row of a victim's peak memory."""
        if victim in self.exceeded:
            note = "more than; it was killed"
        return Figure(name, self.most[victim], "MiB", goal, note=note)

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self._look()

    def _look(self) -> None:
        for name, pid in self.victims.items():
            resident, peak = _memory(pid)
            self.most[name] = max(self.most.get(name, 0.0), peak)
            if resident > MEMORY_CAP_MEBIBYTES and name not in self.exceeded:
                self.exceeded.add(name)
                self.most[name] = MEMORY_CAP_MEBIBYTES
                os.kill(pid, signal.SIGKILL)
        for pid in self.loads:
            with contextlib.suppress(OSError):
                seconds = _cpu_seconds(pid)
                self._cpu[pid] = (self._cpu.get(pid, (seconds, seconds))[0], seconds)


def _memory(pid: int) -> tuple[float, float]:
    # VmRSS and VmHWM in MiB; nothing of a process that has ended.
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0, 0.0
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.MULTILINE))
    return int(found.get("VmRSS", 0)) / 1024, int(found.get("VmHWM", 0)) / 1024


def _cpu_seconds(pid: int) -> float:
    # proc(5): utime and stime, the 14th and 15th field; the second one may hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Waits:
    """Another caller's waits for an answer: when it asked, and milliseconds."""

    found: list[tuple[float, float]] = field(default_factory=list)
    is_cut: bool = False
    """The last answer did not come."""

    @property
    def longest(self) -> float:
        return max(wait for _, wait in self.found)

    def p99(self, since: float = 0.0, until: float = float("inf")) -> float:
        waits = [wait for at, wait in self.found if since <= at < until]
        return statistics.quantiles(waits, n=100, method="inclusive")[98] if len(waits) > 1 else sum(waits)


def _calls(socket_path: Path, seconds: float, patience: float) -> Waits:
    """One caller that asks for a flag all the time, with a breath between an answer and the next question."""
    waits = Waits()
    body = b'{"context":{"targetingKey":"e"}}'
    kind = {"content-type": "application/json"}
    with contextlib.suppress(OSError), HttpClient(socket_path, timeout=patience) as client:
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            waits.is_cut = True
            try:
                status = client.ask("POST", "/ofrep/v1/evaluate/flags/on", body, kind).status
            finally:
                waits.found.append((began, (time.monotonic() - began) * 1000))
            assert status == 200
            waits.is_cut = False
            time.sleep(0.001)
    if not waits.found:
        waits = Waits([(time.monotonic(), patience * 1000)], is_cut=True)
    return waits


def _pid(device: Device) -> int:
    assert device._process is not None
    return device._process.pid


# The attacks


def unread_requests(bench: Bench) -> Iterator[Figure]:
    rounds, seconds = (3, 0.5) if bench.is_quick else (5, 4.0)
    attacked, beside, longest, cores = [], [], 0.0, 0.0
    with _following(bench, "unread") as (device, _), Watch({"agent": _pid(device)}) as watch:
        _calls(device.socket, 0.2, bench.slow_seconds)
        is_cut = False
        for _ in range(rounds):
            with _unread_requests(device.socket, seconds) as flood, Watch({}, [flood]) as spent:
                waits = _calls(device.socket, seconds, bench.slow_seconds)
            attacked.append(waits.p99())
            longest = max(longest, waits.longest)
            cores = max(cores, spent.cores)
            is_cut = waits.is_cut or bool(watch.exceeded)
            if is_cut:
                break
            with _burning(spent.cores, seconds):
                beside.append(_calls(device.socket, seconds, bench.slow_seconds).p99())
    name = "requests without end, no answer read"
    yield watch.memory(f"{name}: agent's memory", "agent")
    yield Figure(
        f"{name}: another caller's p99",
        statistics.median(attacked),
        "ms",
        TWICE,
        "as much CPU burnt beside",
        statistics.median(beside) if beside else None,
        "more than; the agent was killed or silent" if is_cut else f"{cores:.2f} cores",
    )
    yield Figure(f"{name}: another caller's longest wait", longest, "ms", LONGEST)


def wrong_quality(bench: Bench) -> Iterator[Figure]:
    seconds = 2.0 if bench.is_quick else 20.0
    name = "a message of QoS 0 every 50 ms at the collector"
    batches = [(bench.metrics(GOOD), _batch()) for _ in range(int(seconds / HONEST_SECONDS))]
    with (
        _collecting(bench) as collector,
        Watch({"collector": collector.process.pid}) as watch,
        Sender(
            bench.broker.port,
            Stream(QOS_0_SECONDS, [(bench.metrics(MALLORY), b"x")], qos=0),
            Stream(HONEST_SECONDS, batches, repeats=False),
        ) as sender,
    ):
        before = collector.counted()
        # The attack goes on when the last one has been sent, for a collector that is slow.
        _until(lambda: collector.counted() - before >= len(batches), seconds + 5.0)
        counted = collector.counted() - before
        _, sent = sender.stop()
        connections = collector.log.count("collecting from")
    yield Figure(
        f"{name}: honest batches counted", counted, "batches", Goal(">=", 1.0, "ratio"), "sent", sent
    )
    yield Figure(f"{name}: connections it made", connections, "", Goal("<=", 1))
    yield watch.memory(f"{name}: collector's memory", "collector")


_READ = """
import resource, sys, time
cap = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CPU, (cap, cap))
from flagcast_shared.errors import Refused
from flagcast_shared.reports import decode_report, decode_usage
read = {"usage": decode_usage, "report": decode_report}
for line in sys.stdin:
    kind, _, data = line.partition(" ")
    data, took = bytes.fromhex(data), []
    print("reading", flush=True)
    while len(took) < 5 and sum(took) < 0.1:
        began = time.thread_time()
        try:
            read[kind](data)
        except Refused:
            pass
        took.append(time.thread_time() - began)
    print(min(took), flush=True)
"""
"""Reads messages and prints what each took, in seconds of CPU: the thread's, as the process's comes in ticks under a limit."""


def tags(bench: Bench) -> Iterator[Figure]:
    name = "CBOR with a tag in any place"
    for kind, size, what in (
        ("usage", USAGE_MAX_BYTES, "16 KB of counts"),
        ("report", REPORT_MAX_BYTES, "a report of 2 KB"),
    ):
        hostile = _tagged(size)
        lines = "".join(f"{kind} {data.hex()}\n" for data in hostile.values())
        done = subprocess.run(
            [bench.bin / "python", "-c", _READ, str(bench.cpu_cap)],
            input=lines, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        took = [float(line) for line in done.stdout.splitlines() if line != "reading"]
        if done.returncode == 0:
            assert len(took) == len(hostile), done.stderr
            slowest = max(range(len(took)), key=took.__getitem__)
            note, most = list(hostile)[slowest], took[slowest]
        else:
            note, most = f"more than: {list(hostile)[len(took)]}", float(bench.cpu_cap)
        yield Figure(f"{name}: to read {what}", most * 1000, "ms CPU", Goal("<=", 5.0), note=note)
    with _collecting(bench) as collector:
        worst = next(iter(_tagged(USAGE_MAX_BYTES).values()))
        with mqtt.connect(bench.broker.host, bench.broker.port, mqtt.Login()) as connection:
            for _ in range(20):
                sent = connection._client.publish(bench.metrics(MALLORY), worst, qos=1)
                sent.wait_for_publish(PATIENCE_SECONDS)
        began = time.monotonic()
        collector.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            collector.process.wait(bench.slow_seconds)
        ended = collector.process.poll() is not None
        seconds = time.monotonic() - began
    yield Figure(
        f"{name}: collector's end after SIGTERM",
        seconds,
        "s",
        Goal("<=", 2.0),
        note="" if ended else "more than",
    )


def _tagged(size: int) -> dict[str, bytes]:
    # The most costly one first.
    room = size - 200
    sets = "(?i)" + "[\x01-\uffff]" * (room // 7)
    groups = "(" * 90 + sets + ")*" * 90
    inner = {
        "a pattern of sets": cbor2.CBORTag(35, sets),
        "a pattern of nested groups": cbor2.CBORTag(35, groups[: room // 2]),
        "a pattern of repeated groups": cbor2.CBORTag(35, "(a+)+" * (room // 5)),
        "mail": cbor2.CBORTag(36, "A: b\n" * (room // 5)),
        "a date": cbor2.CBORTag(0, "2" * room),
        "a large number": cbor2.CBORTag(2, bytes([255]) * room),
        "a decimal": cbor2.CBORTag(4, [-(2**40), 1]),
        "a fraction": cbor2.CBORTag(30, [2 ** (3 * room), 2 ** (3 * room) - 1]),
        "a shared value": cbor2.CBORTag(28, [cbor2.CBORTag(29, 0)]),
    }
    found = {name: cbor2.dumps(value) for name, value in inner.items()}
    tag = b"\xd8\x23\x61a"  # 35("a")
    left = size - len(tag) - 16
    last: dict[str, bytes] = {
        "after numbers": _list_of(b"\x00", left, tag),
        "after numbers of two bytes": _list_of(b"\x18\x18", left, tag),
        "after empty lists": _list_of(b"\x80", left, tag),
        "after empty maps": _list_of(b"\xa0", left, tag),
        "after lists of one": _list_of(b"\x81\x00", left, tag),
        "after maps of one": _list_of(b"\xa1\x00\x00", left, tag),
        "after deep lists": _list_of(b"\x81" * (DEPTH_MAX - 2) + b"\x00", left, tag),
        "after empty texts": _list_of(b"\x60", left, tag),
        "after a map of numbers": _map_of([b"\x19" + (256 + at).to_bytes(2, "big") for at in range(left // 4)], tag),
        "after a map of texts": _map_of([bytes([0x62, *divmod(at, 128)]) for at in range(left // 4)], tag),
        "a key": b"\xa1" + tag + b"\x00",
        "a value": b"\xa1\x01" + tag,
        "in an unknown field": b"\xa2\x01\x01\x18\x63" + tag,
        "first in a list": b"\x82" + tag + b"\x00",
        "deep": b"\x81" * DEPTH_MAX + tag,
        "around a tag": b"\xc1" + tag,
    }  # fmt: skip
    found |= last
    assert all(len(data) <= size for data in found.values()), {
        name: len(data) for name, data in found.items()
    }
    return found


def _list_of(item: bytes, room: int, last: bytes) -> bytes:
    count = (room - 3) // len(item)
    return b"\x99" + (count + 1).to_bytes(2, "big") + item * count + last


def _map_of(keys: Sequence[bytes], last: bytes) -> bytes:
    # The value of the last key is what matters.
    return b"\xb9" + len(keys).to_bytes(2, "big") + b"\x00".join(keys) + last


def bombs(bench: Bench) -> Iterator[Figure]:
    name = "24 to 30 KB of structure, truly signed by a stolen key"
    sizes = " and ".join(f"{len(body):,}" for body, _ in _bombs())
    with (
        _following(bench, "bombs") as (device, publisher),
        Watch({"agent": _pid(device)}) as watch,
        _calling(device.socket, bench.slow_seconds) as waits,
        contextlib.suppress(DeviceFailed),  # it was killed for its memory
    ):
        for number, (body, digest) in enumerate(_bombs(), 1):
            bench.put(*_offered(publisher, body, digest))
            device.wait_until(lambda: device.log.count("message=refused") >= number, "a refusal")  # noqa: B023  # in this turn
    yield watch.memory(f"{name}: agent's memory", "agent", note=f"{sizes} bytes")
    yield Figure(f"{name}: another caller's longest wait", waits.longest, "ms", LONGEST)


@functools.cache
def _bombs() -> list[tuple[bytes, Digest]]:
    lists = zlib.compress(b"\x9a" + (24_000_000).to_bytes(4, "big") + b"\x80" * 24_000_000, 9, WINDOW_BITS)
    each = RECORD_MAX_BYTES - 100
    ends = b"\x9a" + each.to_bytes(4, "big") + b"\x80" * each  # in place of the one empty list
    records = [
        encode(["flag", f"x{number:03}", {1: "boolean", 2: True, 99: []}])[:-1] + ends for number in range(80)
    ]
    digest = content_digest(Digest(hashlib.sha256(record).digest()) for record in records)
    bodies: list[Value] = list(records)
    return [(lists, Digest(bytes(32))), (deflate(encode(bodies)), digest)]


def _offered(publisher: PublisherSimulator, body: bytes, digest: Digest) -> list[tuple[str, bytes]]:
    """The messages of a next version with any body, truly signed; the head last."""
    version = type(publisher.head.stable.version)(publisher.head.stable.version + 1)
    content = replace(publisher.make_content([], version=version), parts=(body,))
    (part,) = publisher.make_parts(content)
    head = publisher.make_head(stable=Offering(version, digest, len(body), 1))
    publisher.heads.append(head)
    return [
        (publisher.part_topic(version), publisher.part_message(part)),
        (publisher.head_topic, publisher.head_message(head)),
    ]


@contextmanager
def _calling(socket_path: Path, patience: float) -> Iterator[Waits]:
    """Another caller while the block lasts."""
    waits, over = Waits(), threading.Event()

    def call() -> None:
        while not over.is_set() and not waits.is_cut:
            more = _calls(socket_path, 0.1, patience)
            waits.found += more.found
            waits.is_cut = more.is_cut

    thread = threading.Thread(target=call, name="caller", daemon=True)
    thread.start()
    try:
        yield waits
    finally:
        over.set()
        thread.join()


def texts(bench: Bench) -> Iterator[Figure]:
    now = _now()
    for field_name in ("agent", "applied", "attack", "namespace"):
        topic = bench.topics.of(DeviceAddress(DeviceId(f"{MALLORY}-{field_name}"), "report"))
        bench.put((topic, _hostile_report(now, **{field_name: HOSTILE})))
    fleet = "".join(
        bench.flagcast("fleet", *words, "--project", bench.project).text
        for words in ((), ("--device", f"{MALLORY}-agent"), ("--format", "json"))
    )
    with _collecting(bench) as collector:
        before = collector.counted()
        hostile = [
            encode_usage(Usage(os.urandom(16), now, now, (replace_count(word, at),)))
            for at, word in enumerate([HOSTILE] * 4)
        ]
        with Sender(
            bench.broker.port,
            Stream(0.01, [(bench.metrics(MALLORY), data) for data in hostile], repeats=False),
            Stream(0.1, [(bench.metrics(GOOD), _batch())], repeats=True),
        ) as sender:
            _until(lambda: collector.counted() > before, PATIENCE_SECONDS)
            sender.stop()
        collector.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            collector.process.wait(bench.slow_seconds)
        usage = collector.log
    usage += bench.flagcast("usage", "--project", bench.project).text
    with _following(bench, "texts") as (device, publisher):
        variant = VariantKey(f"v{HOSTILE}")
        publisher.release(
            VariantFlag(FlagKey(f"f{HOSTILE}"), True, (Variant(variant),), variant),
            VariantFlag(FlagKey("plain"), True, (Variant(variant),), variant),
        )
        bench.put(*publisher.retained.items())
        device.holds(2)
        others = PublisherSimulator(environment=Environment(f"e{HOSTILE}"), now=now)
        others.release()
        bench.put((publisher.head_topic, others.retained[others.head_topic]))
        device.wait_for("message=refused")
        status = "".join(bench.agent(device, command) for command in ("status", "flags", "doctor"))
        status += bench.agent(device, "eval", "plain")
        device.stop()
        log = device.log
    for what, text in (
        ("flagcast fleet", fleet),
        ("flagcast usage", usage),
        ("flagcast-agent status, flags, doctor, eval", status),
        ("the agent's log", log),
    ):
        assert text, what
        yield Figure(f"strangers' texts: control characters in {what}", _controls(text), "", NOTHING)


def _controls(text: str) -> int:
    # Our own tab stands between the columns of `eval`.
    return sum(not each.isprintable() for each in text if each not in "\n\t")


def replace_count(word: str, at: int) -> Count:
    """A count, one of whose four words is this."""
    words = ["default", "lights", "true", "match"]
    words[at] = word
    return Count(Namespace(words[0]), FlagKey(words[1]), words[2], words[3], 1)


def _hostile_report(now: int, **given: str) -> bytes:
    rejection: dict[int, Value] = {1: given.get("attack", "malformed"), 2: given.get("namespace", ""), 3: now}
    held: dict[str, Value] = {given.get("applied", "default"): {1: 1, 2: 1, 3: 1}}
    agent = given.get("agent", "1.0")
    return encode({1: 1, 2: 1, 3: 1, 4: True, 5: now, 6: agent, 7: 1, 8: held, 9: rejection})


_GUESS = """
import sys, time
from pathlib import Path
from cryptography.hazmat.primitives.serialization import load_pem_private_key
data = Path(sys.argv[1]).read_bytes()
for guess in (b"one", b"two", b"three"):
    began = time.process_time()
    try:
        load_pem_private_key(data, guess)
    except ValueError:
        print(time.process_time() - began)
"""
"""Guesses the passphrase of a key file as a thief of it would, and prints the CPU seconds of each guess."""


def passphrases(bench: Bench) -> Iterator[Figure]:
    folder, secret = bench.fresh("encrypted"), bench.fresh("passphrase")
    secret.write_text("correct horse battery staple\n")
    secret.chmod(0o600)
    bench.flagcast("init", folder, "--environment", TEST, "--passphrase-file", secret)
    key = folder / "keys" / "publisher.key"
    done = subprocess.run(
        [bench.bin / "python", "-c", _GUESS, key], capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    )  # fmt: skip
    took = [float(line) for line in done.stdout.splitlines()]
    assert len(took) == 3, "a wrong passphrase opened the key"
    yield Figure(
        "a stolen key file: one guess of its passphrase",
        statistics.median(took),
        "s CPU",
        Goal(">=", 0.05),
        note=_derivation(key.read_text()),
    )


def _derivation(pem: str) -> str:
    # Of PKCS#8 with PBES2 (RFC 8018, RFC 7914): what follows the name of the function are its parameters.
    import base64

    der = base64.b64decode("".join(pem.splitlines()[1:-1]))
    scrypt, pbkdf2 = bytes.fromhex("06092b06010401da47040b"), bytes.fromhex("06092a864886f70d01050c")
    for oid, name, labels in ((scrypt, "scrypt", ("N", "r", "p")), (pbkdf2, "PBKDF2", ("rounds",))):
        if oid in der:
            rest = der[der.index(oid) + len(oid) + 2 :]
            rest = rest[2 + rest[1] :]  # the salt
            shown = []
            for label in labels:
                shown.append(f"{label} = {int.from_bytes(rest[2 : 2 + rest[1]], 'big'):,}")
                rest = rest[2 + rest[1] :]
            return f"{name}, {', '.join(shown)}"
    return "no function that is known"


_REFUSE = """
import json, sys
from flagcast_shared.context import Device
from flagcast_shared.errors import Refused
from flagcast_shared.ids import DeviceId, Environment
from flagcast_shared.reports import decode_usage
from flagcast_shared.trust import begin
for line in sys.stdin:
    kind, _, data = line.partition(" ")
    try:
        if kind == "root":
            begin(Environment("production"), Device(DeviceId("device-1")), bytes.fromhex(data))
        else:
            decode_usage(bytes.fromhex(data))
        print("taken")
    except Refused as error:
        print(error.attack)
"""


def refusals(bench: Bench) -> Iterator[Figure]:
    publisher = PublisherSimulator()
    tried = [
        (f"root with the small-order key {raw.hex()[:6]}", "root", _root_with(publisher, raw))
        for raw in _small_order()
    ]
    fields = cbor2.loads(encode_root(publisher.root))
    place = root_place(publisher.environment)
    twice = cbor2.dumps({**fields, 9: [*fields[9], fields[9][0]]}, canonical=True)
    tried += [
        ("root that names a key twice", "root", publisher.sign(twice, place, *publisher.root_keys, several=True)),
        ("batch with a row twice", "usage", _rows_twice()),
    ]  # fmt: skip
    done = subprocess.run(
        [bench.bin / "python", "-c", _REFUSE],
        input="".join(f"{kind} {data.hex()}\n" for _, kind, data in tried),
        capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    taken = [
        name for (name, *_), line in zip(tried, done.stdout.splitlines(), strict=True) if line == "taken"
    ]
    commands = _refused_commands(bench)
    taken += [name for name, code in commands.items() if code == 0]
    count = len(tried) + len(commands)
    yield Figure(
        "roots with keys that anybody signs for, keys or rows twice, open key files, texts that do not print: refused",
        count - len(taken), "", Goal(">=", 1.0, "ratio"), "tried", count,
        note=f"taken: {len(taken)}, among them {taken[-1]}" if taken else "",
    )  # fmt: skip


def _refused_commands(bench: Bench) -> dict[str, int]:
    publish = ("publish", bench.folder / "features.yml", "--project", bench.project)
    key = bench.project / "keys" / "publisher.key"
    key.chmod(0o644)
    try:
        found = {"key file that everybody may read": bench.flagcast(*publish).code}
    finally:
        key.chmod(0o600)
    found["provenance that does not print"] = bench.flagcast(
        *publish, "--provenance", f"source={HOSTILE}"
    ).code
    path = bench.fresh("variants.yml")
    path.write_text(
        'flags:\n- {key: f, name: f, type: VARIANT_FLAG_TYPE, enabled: true, variants: [{key: "\\e[2J"}]}\n'
    )
    found["variant that does not print"] = bench.flagcast("validate", path).code
    return found


def _small_order() -> list[bytes]:
    """Every encoding of the points whose order divides 8 (RFC 8032, 5.1.2), those beyond the prime among them."""
    prime = 2**255 - 19
    eighth = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
    rows = (0, 1, prime - 1, eighth, prime - eighth, prime, prime + 1)
    return [(y | sign << 255).to_bytes(32, "little") for y in rows for sign in (0, 1)]


def _root_with(publisher: PublisherSimulator, raw: bytes) -> bytes:
    key = PublicKey(raw)
    quorum = Quorum(publisher.root.roles[Role.PUBLISHER].keys | {key.id}, 1)
    root = replace(
        publisher.root,
        keys={**publisher.root.keys, key.id: key},
        roles={**publisher.root.roles, Role.PUBLISHER: quorum},
    )
    return publisher.root_message(root)


def _rows_twice() -> bytes:
    row: Value = ["true", "match", 1]
    return encode({1: 1, 2: bytes(16), 3: 1, 4: 2, 6: {"default": {"lights": [row, row]}}})


def digits(bench: Bench) -> Iterator[Figure]:
    most, note = 0.0, ""
    for what, scalar in (
        ("in an attachment", "0x" + "f" * 100_000),
        ("that end in a letter", "0x" + "f" * 100_000 + "z"),
        ("of a number", ""),
    ):
        path = bench.fresh("digits.yml")
        path.write_text(
            f"flags:\n- {{key: f, name: F, variants: [{{key: v, name: V, default: true, attachment: {{a: {scalar}}}}}]}}\n"
            if scalar
            else "segments:\n- {key: s, name: S, match_type: ALL_MATCH_TYPE, constraints: [{type: NUMBER_COMPARISON_TYPE,"
            f" property: p, operator: eq, value: '0x{'f' * 100_000}z'}}]}}\n"
        )
        done = bench.flagcast("validate", path, cpu_cap=bench.cpu_cap)
        if done.cpu > most:
            most, note = done.cpu, f"{'more than, ' if done.is_capped else ''}{what}"
    yield Figure("100 KB of hexadecimal digits: flagcast validate", most, "s CPU", Goal("<=", 2.0), note=note)


def usage_book(bench: Bench) -> Iterator[Figure]:
    rows = 60_000
    flood = _many_rows(rows, "flood")
    flooder = DeviceId("flooder")
    with _collecting(bench) as collector, Watch({"collector": collector.process.pid}) as watch:
        with Sender(
            bench.broker.port, Stream(0.01, [(bench.metrics(flooder), data) for data in flood], repeats=False)
        ) as sender:
            _until(lambda: collector.counted(flooder) >= len(flood), PATIENCE_SECONDS)
            sender.stop()
        ((kept,),) = collector.ask("SELECT count(*) FROM usage WHERE flag = 'flood'")
        collector.ask("UPDATE usage SET evaluations = ? WHERE flag = 'lights'", NUMBER_MAX - 5)
        collector.ask(
            "INSERT INTO usage SELECT environment, day - 1, namespace, flag, answer, reason, evaluations FROM usage"
            " WHERE flag = 'lights'"
        )
        before = collector.counted()
        wrong = 0
        with Sender(
            bench.broker.port,
            Stream(0.01, [(bench.metrics(GOOD), _batch(10)) for _ in range(3)], repeats=False),
        ) as sender:
            wrong += not _until(lambda: collector.counted() >= before + 3, 10.0)
            sender.stop()
        wrong += collector.process.poll() is not None
        shown = bench.flagcast("usage", "--format", "json", "--project", bench.project)
        sums = (
            [each["evaluations"] for each in json.loads(shown.text)["usage"] if each["flag"] == "lights"]
            if not shown.code
            else []
        )
        wrong += sums != [NUMBER_MAX]
    assert isinstance(kept, int)
    yield Figure("60,000 new rows of one device in a day: in the book", kept, "rows", Goal("<=", 50_000))
    yield watch.memory("60,000 new rows of one device in a day: collector's memory", "collector")
    yield Figure(
        "sums at the maximum and beyond: wrong, of three looks",
        wrong, "", NOTHING, note="counted on, collector alive, flagcast usage right" if not wrong else f"shown: {sums}"
    )  # fmt: skip


def _many_rows(count: int, flag: str) -> list[bytes]:
    each = 1_500
    return [
        encode_usage(
            Usage(
                os.urandom(16), _now(), _now(),
                tuple(
                    Count(Namespace("default"), FlagKey(flag), f"{number:x}", "m", 1)
                    for number in range(first, first + each)
                ),
            )
        )
        for first in range(0, count, each)
    ]  # fmt: skip


def revoked(bench: Bench) -> Iterator[Figure]:
    rounds = 1 if bench.is_quick else 5
    for order in ("root first", "head first"):
        admitted = sum(_admits_revoked(bench, is_head_first=order == "head first") for _ in range(rounds))
        yield Figure(
            f"head of a revoked key beside the root that revokes it, {order}: admitted",
            admitted, "", NOTHING, note=f"of {rounds}",
        )  # fmt: skip
    count = 2 if bench.is_quick else 5
    yield Figure(
        "honest rotation: devices that report unknown_key afterwards", _reporting(bench, count), "", NOTHING, note=f"of {count}"
    )  # fmt: skip


def _admits_revoked(bench: Bench, *, is_head_first: bool) -> bool:
    """Whether an agent that was away admits the head; the broker shows it and the root in this order, before any answer."""
    publisher = PublisherSimulator(now=_now())
    publisher.release(*_flags())
    shown: list[tuple[str, bytes]] = list(publisher.retained.items())

    def show(session: Session) -> None:
        for topic, payload in shown:
            session.publish(topic, payload, qos=0)

    with (
        HostileBroker(show, before_suback=show) as broker,
        _provisioned(bench, publisher, broker.url) as device,
    ):
        device.start()
        device.holds(1)
        device.stop()
        publisher.release(*_flags(is_evil=True), inline=True)
        stolen = (publisher.head_topic, publisher.retained[publisher.head_topic])
        publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
        root = (publisher.root_topic(2), publisher.retained[publisher.root_topic(2)])
        shown[:] = [stolen, root] if is_head_first else [root, stolen]
        device.start()
        device.wait_until(
            lambda: "attack=unknown_key" in device.log or 2 in device.logged_versions, "the head of the thief"
        )
        return 2 in device.logged_versions


def _reporting(bench: Bench, count: int) -> int:
    anchor = bench.project / "roots" / "1.root"
    with ExitStack() as stack:
        devices = [
            stack.enter_context(
                provision(
                    bench.fresh("device"), anchor, bench.broker.url,
                    device=f"rotated-{number}", program=bench.bin / "flagcast-agent",
                )
            )
            for number in range(count)
        ]  # fmt: skip
        for device in devices:
            device.start()
        for device in devices:
            device.wait_for("message=admitted")
        bench.flagcast("keys", "rotate", "publisher", "--project", bench.project)
        bench.flagcast("publish", bench.folder / "features.yml", "--project", bench.project)
        for device in devices:
            device.wait_for("message=admitted namespace=default epoch=2")
        fleet: list[Mapping[str, object]] = []

        def is_reported() -> bool:
            done = bench.flagcast("fleet", "--format", "json", "--project", bench.project)
            listed = json.loads(done.text[done.text.index("{") :])["devices"]
            fleet[:] = [each for each in listed if str(each["device"]).startswith("rotated-")]
            return json.dumps(fleet).count('"epoch": 2') == count

        if not _until(is_reported, PATIENCE_SECONDS):
            sys.exit(f"the devices do not report the next epoch: {fleet}")
    return sum("unknown_key" in json.dumps(each) for each in fleet)


def everything(bench: Bench) -> Iterator[Figure]:
    seconds, window = (3.0, 1.0) if bench.is_quick else (60.0, 10.0)
    name = f"everything at once for {seconds:.0f} s"
    honest_batches = [(bench.metrics(GOOD), _batch()) for _ in range(int(3 * seconds / HONEST_SECONDS))]
    with (
        _following(bench, "everything") as (device, publisher),
        _collecting(bench) as collector,
        Watch({"agent": _pid(device), "collector": collector.process.pid}) as watch,
        Sender(bench.broker.port, Stream(HONEST_SECONDS, honest_batches, repeats=False)) as honest,
    ):
        counted = collector.counted()
        _calls(device.socket, 0.3, bench.slow_seconds)
        with (
            Sender(bench.broker.port, *_broker_attacks(bench, publisher, seconds)) as attacker,
            _unread_requests(device.socket, seconds) as flood,
            Watch({}, [attacker.pid, flood, bench.broker.pid, collector.process.pid]) as spent,
        ):
            began = time.monotonic()
            attacked = _calls(device.socket, seconds, bench.slow_seconds)
        is_cut = attacked.is_cut or bool(watch.exceeded)
        beside = []
        if not is_cut:
            with _burning(spent.cores, seconds / 2):
                start = time.monotonic()
                waits = _calls(device.socket, seconds / 2, bench.slow_seconds)
                beside = _windows(waits, start, window, seconds / 2)
        (sent,) = honest.stop()
        _until(lambda: collector.counted() - counted >= sent, 5.0)
        counted = collector.counted() - counted
    yield Figure(
        f"{name}: another caller's p99",
        statistics.median(_windows(attacked, began, window, seconds)),
        "ms",
        TWICE,
        "as much CPU burnt beside",
        statistics.median(beside) if beside else None,
        "more than; the agent was killed or silent" if is_cut else f"{spent.cores:.2f} cores",
    )
    yield Figure(f"{name}: another caller's longest wait", attacked.longest, "ms", LONGEST)
    yield watch.memory(f"{name}: agent's memory", "agent")
    yield watch.memory(f"{name}: collector's memory", "collector")
    yield Figure(
        f"{name}: honest batches counted", counted, "batches", Goal(">=", 1.0, "ratio"), "sent", sent
    )


def _windows(waits: Waits, began: float, window: float, seconds: float) -> list[float]:
    found = [
        waits.p99(began + at * window, began + (at + 1) * window)
        for at in range(max(1, int(seconds / window)))
    ]
    return [each for each in found if each] or [waits.p99()]


def _broker_attacks(bench: Bench, publisher: PublisherSimulator, seconds: float) -> list[Stream]:
    """What can be sent at once, each at a rate that a broker would let an account have."""
    now = _now()
    others = PublisherSimulator(environment=Environment("others"), now=now)
    others.release()
    stranger = [(publisher.head_topic, others.retained[others.head_topic])]
    offered: list[tuple[str, bytes]] = []
    made = _bombs()
    for number in range(int(seconds) + 1):
        offered += _offered(publisher, *made[number % len(made)])
    metrics = bench.metrics(MALLORY)
    pattern = next(iter(_tagged(USAGE_MAX_BYTES).values()))
    reports = bench.topics.of(DeviceAddress(MALLORY, "report"))
    return [
        Stream(QOS_0_SECONDS, [(metrics, b"x")], qos=0),
        Stream(0.2, [(metrics, pattern)]),
        Stream(0.2, [(metrics, encode_usage(Usage(os.urandom(16), now, now, (replace_count(HOSTILE, 2),))))]),
        Stream(1.0, [(metrics, bytes(2**20))]),
        Stream(0.5, [(metrics, data) for data in _many_rows(int(3_000 * seconds), "crowd")], repeats=False),
        Stream(0.2, [(reports, _hostile_report(now, agent=HOSTILE))], retain=True),
        Stream(0.2, stranger, retain=True),
        Stream(1.0, offered, retain=True, repeats=False),
    ]


TIMED: tuple[Attack, ...] = (unread_requests, wrong_quality, tags, bombs, everything)
BESIDE: tuple[tuple[Attack, ...], ...] = (
    (texts, passphrases, usage_book),
    (refusals, digits, revoked),
)
"""Attacks that count, or measure processor time: each of these groups beside the others."""
ATTACKS = (*TIMED[:-1], *BESIDE[0], *BESIDE[1], TIMED[-1])
"""In the order of the table."""


def _batch(evaluations: int = 1) -> bytes:
    assert evaluations <= USAGE_COUNT_MAX
    counts = (Count(Namespace("default"), FlagKey("lights"), "true", "match", evaluations),)
    return encode_usage(Usage(os.urandom(16), _now(), _now(), counts))


def _run(program: Path, arguments: Sequence[str | Path], cpu_cap: int) -> Done:
    with (
        tempfile.TemporaryFile() as out,
        subprocess.Popen(
            [program, *arguments], stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT
        ) as process,
    ):
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (cpu_cap, cpu_cap))
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(b"yes\n" * 3)
            process.stdin.close()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read().decode(errors="surrogateescape")
    is_capped = process.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
    return Done(process.returncode, text, used.ru_utime + used.ru_stime, is_capped)


def _until(holds: Callable[[], object], seconds: float) -> bool:
    give_up = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)
    return True


def _now() -> int:
    return int(time.time())  # noqa: TID251  # the clock that messages are judged by


def main() -> int:
    """Takes the option of its own out of the command line; the others are every benchmark's."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--before", type=Path, metavar="DIR", help="another checkout with its own .venv")
    own, rest = parser.parse_known_args()
    return run(
        "Attacks on Flagcast's walls", lambda options: measure(options, own.before), rest, parents=[parser]
    )


if __name__ == "__main__":
    sys.exit(main())
