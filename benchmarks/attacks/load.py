"""Load: senders, a flood and bystanders as processes of their own, and what victims and another caller notice of it."""

import contextlib
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

from raw_http1 import HttpClient

from flagcast_bridge.broker import connection as mqtt

PATIENCE_SECONDS = 60.0
"""For what a process does in the end, on a machine that is busy."""
MEMORY_CAP_MEBIBYTES = 1_024.0
"""A victim above this is killed: its wall does not hold, and how far it would go is of no interest."""
LOOK_SECONDS = 0.02
"""Between two looks at a victim's memory: it takes a good second to fill what it may have."""


def until(holds: Callable[[], object], seconds: float) -> bool:
    """Whether a condition came to hold in time."""
    give_up = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)
    return True


@dataclass(frozen=True, slots=True)
class Stream:
    """Messages that are sent one after another, every so many seconds; from the first again where it `repeats`."""

    seconds: float
    messages: Sequence[tuple[str, bytes]]
    qos: int = 1
    retain: bool = False
    repeats: bool = True


@dataclass(slots=True)
class Sent:
    """Number of messages sent of each stream, once their block has ended."""

    counts: list[int] = field(default_factory=list)


class Sender:
    """A process that sends streams, for one block after another. A context manager; made before any thread, as it is forked."""

    def __init__(self, port: int) -> None:
        forking = multiprocessing.get_context("fork")
        self._ours, theirs = forking.Pipe()
        self._process = forking.Process(target=_serve, args=(port, theirs), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @contextmanager
    def sending(self, *streams: Stream) -> Iterator[Sent]:
        """Streams that are sent while the block lasts, from a moment at which the broker has taken the connection."""
        sent = Sent()
        self._ours.send(streams)
        self._receive()
        yield sent
        self._ours.send("over")
        sent.counts = self._receive()

    def _receive(self) -> list[int]:
        if not self._ours.poll(2 * PATIENCE_SECONDS):
            sys.exit("a sender does not answer")
        received: list[int] = self._ours.recv()
        return received


def _serve(port: int, pipe: Connection) -> None:
    while True:
        streams: Sequence[Stream] = pipe.recv()
        with mqtt.connect("127.0.0.1", port, mqtt.Login()) as connection:
            pipe.send([])
            sent = _send(connection, streams, pipe)
            pipe.recv()
            until(lambda: not connection._client._out_messages, PATIENCE_SECONDS)  # in this turn
            pipe.send(sent)


def _send(connection: mqtt.Connection, streams: Sequence[Stream], pipe: Connection) -> list[int]:
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
    return sent


_FLOOD = """
import socket, sys, time
requests = b"GET /livez HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n" * 1500
is_first = True
while True:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.settimeout(1.0)
            client.connect(sys.argv[1])
            at = 0
            while True:
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
def unread_requests(socket_path: Path) -> Iterator[int]:
    """A client of HTTP/1.1 that pipelines requests and never reads, as fast as the agent takes them; its process.

    The block begins when the agent has taken its first bytes.
    """
    command = [sys.executable, "-c", _FLOOD, str(socket_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "the flood did not begin"
            yield process.pid
        finally:
            process.kill()


@contextmanager
def flooding(socket_path: Path, name: str) -> Iterator[int]:
    """A flood of tests/support/http2_floods.py by its name, until the block ends; its process."""
    script = Path(__file__).resolve().parents[2] / "tests" / "support" / "http_floods.py"
    command = [sys.executable, str(script), str(socket_path), "1000", name]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield process.pid
        finally:
            process.kill()


_BURN = """
import sys, time
share, began, spent = float(sys.argv[1]), time.monotonic(), time.process_time()
print("begun", flush=True)
while True:
    if time.process_time() - spent > share * (time.monotonic() - began):
        time.sleep(0.001)
"""


@contextmanager
def burning(cores: float) -> Iterator[None]:
    """Bystanders: processes that burn so much CPU and talk to nobody."""
    count = max(1, round(cores + 0.499))
    with ExitStack() as stack:
        command = [sys.executable, "-c", _BURN, str(min(1.0, cores / count))]
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
        yield


@dataclass(slots=True)
class Spent:
    """Cores that some processes kept busy, once their block has ended."""

    cores: float = 0.0


@contextmanager
def spending(*processes: int) -> Iterator[Spent]:
    """CPU that these processes spend while the block lasts; one that ends in it counts nothing."""
    spent, began = Spent(), time.monotonic()
    first = [_cpu_seconds(each) for each in processes]
    yield spent
    used = sum(max(0.0, _cpu_seconds(each) - before) for each, before in zip(processes, first, strict=True))
    spent.cores = used / (time.monotonic() - began)


def _cpu_seconds(pid: int) -> float:
    # proc(5): utime and stime, the 14th and 15th field; the second one may hold spaces.
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Watch:
    """Looks at the memory of victims, and kills one above MEMORY_CAP_MEBIBYTES. A context manager."""

    victims: Mapping[str, int]
    most: dict[str, float] = field(default_factory=dict)
    """Peaks in MiB since the block began, by the victim's name."""
    exceeded: set[str] = field(default_factory=set)
    """Victims that were killed."""
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        for pid in self.victims.values():
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")  # proc(5): forget the peak
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

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        for name, pid in self.victims.items():
            resident, peak = _memory(pid)
            self.most[name] = max(self.most.get(name, 0.0), peak)
            if resident > MEMORY_CAP_MEBIBYTES and name not in self.exceeded:
                self.exceeded.add(name)
                self.most[name] = MEMORY_CAP_MEBIBYTES
                os.kill(pid, signal.SIGKILL)


def _memory(pid: int) -> tuple[float, float]:
    # VmRSS and VmHWM in MiB; nothing of a process that has ended.
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0, 0.0
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.MULTILINE))
    return int(found.get("VmRSS", 0)) / 1024, int(found.get("VmHWM", 0)) / 1024


@dataclass(slots=True)
class Waits:
    """Another caller's waits for an answer, in milliseconds."""

    found: list[float] = field(default_factory=list)
    is_cut: bool = False
    """The last answer did not come."""

    @property
    def longest(self) -> float:
        return max(self.found)

    @property
    def p99(self) -> float:
        if len(self.found) == 1:
            return self.found[0]
        return statistics.quantiles(self.found, n=100, method="inclusive")[98]


def calls(socket_path: Path, patience: float, goes_on: Callable[[], bool]) -> Waits:
    """One caller that asks for a flag all the time, with a breath between an answer and the next question."""
    waits = Waits()
    body = b'{"context":{"targetingKey":"e"}}'
    kind = {"content-type": "application/json"}
    with contextlib.suppress(OSError), HttpClient(socket_path, timeout=patience) as client:
        while goes_on():
            began, waits.is_cut = time.monotonic(), True
            try:
                status = client.ask("POST", "/ofrep/v1/evaluate/flags/on", body, kind).status
            finally:
                waits.found.append((time.monotonic() - began) * 1000)
            assert status == 200
            waits.is_cut = False
            time.sleep(0.001)
    return waits if waits.found else Waits([patience * 1000], is_cut=True)


def calls_for(socket_path: Path, patience: float, seconds: float) -> Waits:
    """The same, for so many seconds."""
    end = time.monotonic() + seconds
    return calls(socket_path, patience, lambda: time.monotonic() < end)
