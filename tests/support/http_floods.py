"""Floods of the agent's socket by HTTP/1.1 clients, and their effects.

`attack(socket, seconds, flood)` runs one against an agent that is answering; the flood is a process of its own, so that what is
measured is the agent and not this process's turns. Run as `python http_floods.py SOCKET SECONDS NAME` it is that process; as
`python http_floods.py SECONDS` it tries every flood on a fresh agent of 10,000 flags and prints how each went.
"""

import contextlib
import re
import selectors
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent_shell import AgentShell
from devices import Device, provision
from publisher_simulator import PublisherSimulator
from raw_http1 import HttpClient, enveloped

from flagcast_agent import config
from flagcast_shared.ids import FlagKey, VariantKey
from flagcast_shared.model import BooleanFlag, Variant, VariantFlag

OTHER_PATIENCE_SECONDS = 60.0
_SAMPLE_SECONDS = 0.01
_QUIET_QUESTIONS = 50
_BETWEEN_QUESTIONS_SECONDS = 0.001
_PIECE_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Flood:
    """One abuse of HTTP/1.1, on so many connections.

    Each sends `opening` once, then `again` without end, whatever is answered; cut off, it connects again. One that is leaving
    closes its connection after `opening` and connects again. A gradual one connects only when the connection before has sent
    `opening`, so that whole requests gather. The other client `asks_for_all` flags, or else for liveness.
    """

    name: str
    opening: bytes
    again: bytes
    connections: int = 1
    is_reading: bool = False
    is_leaving: bool = False
    is_gradual: bool = False
    asks_for_all: bool = False


@dataclass(frozen=True, slots=True)
class Suffered:
    """Figures of an agent and one other client: resident memory in MiB, waits for an answer in ms.

    `quiet` is the other client's median before the flood.
    """

    resident_before: float
    resident_most: float
    sent_mebibytes: float
    answers: int
    quiet: float
    p50: float
    p99: float
    longest: float

    def __str__(self) -> str:
        return (
            f"{self.resident_before:.0f} -> {self.resident_most:.0f} MiB resident; other client p50 {self.quiet:.2f} ms before,"
            f" {self.p50:.2f} ms in the flood, p99 {self.p99:.2f} ms, longest {self.longest:.0f} ms, {self.answers} answers;"
            f" {self.sent_mebibytes:.0f} MiB sent"
        )


def _post(target: str, body: bytes, *, kind: str = "application/json") -> bytes:
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _chunked(target: str, body: bytes, size: int) -> bytes:
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return head.encode() + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


_GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
_ONE = "/ofrep/v1/evaluate/flags/on"
_ALL = "/ofrep/v1/evaluate/flags"
_V2 = "/flagd.evaluation.v2.Service"
_CONTEXT = b'{"context":{"targetingKey":"' + b"e" * 900 + b'"}}'
_EVENTS = b"GET /ofrep/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
_EVENT_STREAM = _post(f"{_V2}/EventStream", enveloped(b"{}"), kind="application/connect+json")
_NEVER_WHOLE = (
    b"POST /ofrep/v1/evaluate/flags HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048576\r\n\r\n"
    + b" " * 1_048_575
)
_BLANKS = b" " * (2**20 - 64)
_LARGE_EVENTS = (
    f"GET /ofrep/v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(_BLANKS)}\r\n\r\n".encode()
    + _BLANKS
)
_LARGE_EVENT_STREAM = _post(
    f"{_V2}/EventStream", enveloped(b"{" + _BLANKS + b"}"), kind="application/connect+json"
)

UNREAD_GETS = Flood("unread requests", b"", _GET)
FLOODS = (
    UNREAD_GETS,
    Flood("unread requests on 64 connections", b"", _GET, 64),
    Flood("unread OFREP bodies", b"", _post(_ONE, _CONTEXT)),
    Flood("unread OFREP bodies in small chunks", b"", _chunked(_ONE, _CONTEXT, 1)),
    Flood("unread answers of all flags", b"", _post(_ALL, _CONTEXT), 200),
    Flood("unread Connect answers", b"", _post(f"{_V2}/ResolveAll", _CONTEXT), 16),
    Flood("requests behind server-sent events", _EVENTS, _GET, 16),
    Flood("requests behind a Connect stream", _EVENT_STREAM, _GET, 16),
    Flood("unread event streams", _EVENT_STREAM, b"", 200),
    Flood("requests that never become whole", _NEVER_WHOLE, b"", 250),
    Flood("server-sent events whose requests have large bodies", _LARGE_EVENTS, b"", 250, is_gradual=True),
    Flood("Connect streams whose requests have large bodies", _LARGE_EVENT_STREAM, b"", 250, is_gradual=True),
    Flood("large requests for all flags", _post(_ALL, _BLANKS + b"{}"), b"", 250, is_gradual=True),
    Flood("requests for all flags", b"", _post(_ALL, _CONTEXT), 250, is_reading=True, asks_for_all=True),
    Flood(
        "all flags for clients that hang up",
        _post(_ALL, _CONTEXT),
        b"",
        32,
        is_leaving=True,
        asks_for_all=True,
    ),
    Flood(
        "a body in chunks of one byte", _chunked(_ONE, b"", 1).removesuffix(b"0\r\n\r\n"), b"1\r\n \r\n", 4
    ),
    Flood("empty lines", b"", b"\r\n", 4),
    Flood("requests whose answers are read", b"", _GET, 1, is_reading=True),
    Flood("requests whose answers are read, 64 connections", b"", _GET, 64, is_reading=True),
)


@contextlib.contextmanager
def answering_agent(folder: Path, flags: int) -> Iterator[Device]:
    """A real agent process without a broker, in a folder.

    It answers from so many flags on its disk: `on`, `flag-1` and so on, and beside them `large`, whose attachment is.
    """
    publisher = PublisherSimulator()
    publisher.release(
        BooleanFlag(FlagKey("on"), enabled=True),
        VariantFlag(
            FlagKey("large"),
            enabled=True,
            variants=(Variant(VariantKey("a"), '"' + "a" * 30_000 + '"'),),
            default=VariantKey("a"),
        ),
        *(BooleanFlag(FlagKey(f"flag-{number}"), enabled=False) for number in range(1, flags)),
    )
    (folder / "anchor").write_bytes(publisher.anchor)
    with provision(folder / "device", folder / "anchor", "mqtt://127.0.0.1:1") as device:
        shell = AgentShell(config.load(device.folder).store, publisher)
        shell.catch_up()
        shell.close()
        device.start()
        device.wait_for("no connection")  # the last that it does when it starts
        assert device.enabled("on") == (True,)
        yield device


def attack(socket_path: Path, seconds: float, flood: Flood = UNREAD_GETS) -> Suffered:
    """One flood for so many seconds, while another client asks."""
    with HttpClient(socket_path, timeout=OTHER_PATIENCE_SECONDS) as other:
        agent = _peer(other.socket)
        quiet = [_wait(other, flood) for _ in range(_QUIET_QUESTIONS)]
        before = resident_mebibytes(agent)
        with _watched(agent) as resident, _flooding(socket_path, seconds, flood) as process:
            waits = []
            while process.poll() is None:
                waits.append(_wait(other, flood))
                time.sleep(_BETWEEN_QUESTIONS_SECONDS)
            assert process.stdout is not None
            sent = int(process.stdout.read())
            assert process.returncode == 0
    return Suffered(
        before,
        max(resident),
        sent / 2**20,
        len(waits),
        statistics.median(quiet),
        statistics.median(waits),
        statistics.quantiles(waits, n=100)[98],
        max(waits),
    )


def _wait(other: HttpClient, flood: Flood) -> float:
    began = time.perf_counter()
    if flood.asks_for_all:
        assert other.ask("POST", _ALL, _CONTEXT).status == 200
    else:
        assert other.ask("GET", "/livez").body == b"alive\n"
    return (time.perf_counter() - began) * 1000


def resident_mebibytes(process: int) -> float:
    """VmRSS of a process."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found.group(1)) / 1024


def _peer(connected: socket.socket) -> int:
    # unix(7): whoever called listen(2).
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


@contextlib.contextmanager
def _watched(process: int) -> Iterator[list[float]]:
    found = [resident_mebibytes(process)]
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_SAMPLE_SECONDS):
            found.append(resident_mebibytes(process))

    thread = threading.Thread(target=watch, name="resident memory", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        is_over.set()
        thread.join()


@contextlib.contextmanager
def _flooding(socket_path: Path, seconds: float, flood: Flood) -> "Iterator[subprocess.Popen[str]]":
    command = [sys.executable, __file__, str(socket_path), str(seconds), flood.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


class _Flooder:
    # One connection, made again whenever the agent ends it.

    def __init__(self, path: str, flood: Flood, selector: selectors.BaseSelector) -> None:
        self._path = path
        self._flood = flood
        self._selector = selector
        again = flood.again
        self._again = again * (_PIECE_BYTES // len(again) + 1) if again else b""
        self.sent = 0
        self._socket: socket.socket
        self._waiting = memoryview(b"")
        self._reads = selectors.EVENT_READ if flood.is_reading else 0
        self._connect()

    def move(self, events: int) -> None:
        try:
            if events & selectors.EVENT_READ and not self._socket.recv(_PIECE_BYTES):
                raise ConnectionError  # as if the next write had told
            if events & selectors.EVENT_WRITE:
                self._send()
        except BlockingIOError:
            pass
        except OSError:
            self._selector.unregister(self._socket)
            self._socket.close()
            self._connect()

    @property
    def has_opened(self) -> bool:
        """Whether `opening` was sent whole, on the first connection or a later one."""
        return self.sent >= len(self._flood.opening)

    def _send(self) -> None:
        count = self._socket.send(self._waiting)
        self.sent += count
        self._waiting = self._waiting[count:] or memoryview(self._again)
        if not self._waiting and self._flood.is_leaving:
            raise ConnectionError  # as if the agent had ended it
        if not self._waiting:
            # There is nothing more to send: wait for the end, without reading.
            self._selector.modify(self._socket, self._reads, self)

    def _connect(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(self._path)
        self._socket.setblocking(False)  # the socket module's own switch
        self._waiting = memoryview(self._flood.opening or self._again)
        self._selector.register(self._socket, selectors.EVENT_WRITE | self._reads, self)


def every_flood() -> "tuple[Flood, ...]":
    """Those of both versions of HTTP."""
    import http2_floods  # which needs what stands here

    return (*FLOODS, *http2_floods.FLOODS)


def show(seconds: float) -> None:
    """Every flood, each on a fresh agent: one line of figures."""
    for flood in every_flood():
        with (
            tempfile.TemporaryDirectory(prefix="fc-") as folder,
            answering_agent(Path(folder), 10_000) as device,
        ):
            sys.stdout.write(f"{flood.name}: {attack(device.socket, seconds, flood)}\n")
            sys.stdout.flush()


def flood_until(path: str, seconds: float, name: str) -> None:
    """One flood until its time is over.

    Prints how many bytes the agent has taken.
    """
    (flood,) = [each for each in every_flood() if each.name == name]
    end = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        flooders = [_Flooder(path, flood, selector)]
        while time.monotonic() < end:
            while len(flooders) < flood.connections and (not flood.is_gradual or flooders[-1].has_opened):
                flooders.append(_Flooder(path, flood, selector))
            for key, events in selector.select(0.1):
                key.data.move(events)
    sys.stdout.write(f"{sum(each.sent for each in flooders)}\n")


if __name__ == "__main__":
    sys.modules["http_floods"] = sys.modules["__main__"]
    if len(sys.argv) == 2:
        show(float(sys.argv[1]))
    else:
        flood_until(sys.argv[1], float(sys.argv[2]), sys.argv[3])
