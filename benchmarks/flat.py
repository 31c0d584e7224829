"""Growth of the agent's memory over millions of calls and tens of thousands of connections.

The agent is a real one on 1,000 flags. Calls are Flipt's Boolean by gRPC, a hundred to a write, on four connections that stay;
every other entity is one that was never asked about. Connections are made, asked on once and closed: by turns with gRPC, and with
OFREP over HTTP/1.1. Memory is what the kernel counts as resident, after a first part that fills what the agent remembers.
"""

import itertools
import json
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import frames

from flagcast_agent.api.http2.frames import END_STREAM, HEADERS
from fleet import BIN, make_device, resident_mebibytes, running_agent, write_flags
from harness import Goal, Options, Row, run

FLAG = "contactless-payment-0"
PATH = "/flipt.evaluation.EvaluationService/Boolean"
HELD = 4
"""Connections that stay."""
AT_ONCE = 100
"""Calls to a write: as many as one connection may have open."""
WINDOW = 2**31 - 1 - 65_535
_GROWTH = Goal("<=", 1.0)
"""MiB: one arena of the interpreter's allocator, which it may take or give back at any time."""
PATIENCE_SECONDS = 30.0


def measure(options: Options) -> Iterator[Row]:
    calls, connections = (60_000, 600) if options.quick else (5_000_000, 50_000)
    with tempfile.TemporaryDirectory(prefix="fc-") as scratch:
        device = make_device(Path(scratch), write_flags(Path(scratch) / "flags", 1_000))
        with running_agent(device.folder) as agent:
            _wait_for(device.socket)
            entities = (f"entity-{number}" for number in itertools.count())
            _connect(device.socket, connections // 10)
            _call(device.socket, calls // 10, entities)
            first = resident_mebibytes(agent.pid)
            began = time.perf_counter()
            answered = _call(device.socket, calls, entities)
            rate = answered / (time.perf_counter() - began)
            after_calls = resident_mebibytes(agent.pid)
            yield Row(
                f"resident after {calls // 10:,} calls and {connections // 10:,} connections", first, "MiB"
            )
            yield Row(
                f"  more after {answered:,} further calls", after_calls - first, "MiB", goal=_GROWTH,
                note=f"{rate:,.0f} calls a second",
            )  # fmt: skip
            began = time.perf_counter()
            made = _connect(device.socket, connections)
            rate = made / (time.perf_counter() - began)
            yield Row(
                f"  more after {made:,} further connections", resident_mebibytes(agent.pid) - after_calls, "MiB",
                goal=_GROWTH, note=f"{rate:,.0f} connections a second",
            )  # fmt: skip
            yield Row("  open files", float(len(list(Path(f"/proc/{agent.pid}/fd").iterdir()))), "files")


class _Client:
    # One HTTP/2 connection with windows that nothing fills.

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_SECONDS)
        self._socket.connect(str(path))
        self._socket.sendall(frames.HELLO + frames.window(0, WINDOW))
        self._block = frames.request(PATH)
        self._stream = 1
        self._rest = b""

    def ask(self, messages: list[bytes]) -> int:
        """Calls that end with OK, as a number."""
        sent = bytearray()
        for message in messages:
            sent += frames.calls(self._stream, self._block, struct.pack(">BI", 0, len(message)) + message)
            self._stream += 2
        self._socket.sendall(sent)
        ended = succeeded = 0
        while ended < len(messages):
            data = self._socket.recv(262_144)
            if not data:
                raise SystemExit("the agent closed a connection")
            self._rest += data
            while len(self._rest) >= 9 and len(self._rest) >= 9 + (
                size := int.from_bytes(self._rest[:3], "big")
            ):
                kind, flags, content = self._rest[3], self._rest[4], self._rest[9 : 9 + size]
                self._rest = self._rest[9 + size :]
                if kind == HEADERS and flags & END_STREAM:
                    ended += 1
                    succeeded += b"grpc-status\x010" in content
        return succeeded

    def close(self) -> None:
        self._socket.close()


def _message(entity: str) -> bytes:
    from flagcast_agent.api.protos import flipt_evaluation_pb2 as flipt

    return flipt.EvaluationRequest(
        flag_key=FLAG, entity_id=entity, context={"region": "north"}
    ).SerializeToString()


def _call(path: Path, calls: int, entities: Iterator[str]) -> int:
    clients = [_Client(path) for _ in range(HELD)]
    known = [_message("known") for _ in range(AT_ONCE // 2)]
    answered = 0
    for client in itertools.islice(itertools.cycle(clients), calls // AT_ONCE):
        answered += client.ask(known + [_message(next(entities)) for _ in range(AT_ONCE // 2)])
    for client in clients:
        client.close()
    return answered


def _connect(path: Path, connections: int) -> int:
    body = json.dumps({"context": {"targetingKey": "known", "region": "north"}}).encode()
    request = (
        f"POST /ofrep/v1/evaluate/flags/{FLAG} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    answered = 0
    for number in range(connections):
        if number % 2:
            client = _Client(path)
            answered += client.ask([_message("known")])
            client.close()
            continue
        with socket.socket(socket.AF_UNIX) as plain:
            plain.settimeout(PATIENCE_SECONDS)
            plain.connect(str(path))
            plain.sendall(request)
            answered += plain.recv(65_536).startswith(b"HTTP/1.1 200")
    return answered


def _wait_for(path: Path) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < give_up:
        try:
            _connect(path, 2)
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"no agent answers on {path}; is {BIN} complete?")


if __name__ == "__main__":
    sys.exit(run("memory over many calls and connections", measure))
