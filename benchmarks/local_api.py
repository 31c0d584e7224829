"""Every local protocol over the Unix socket, against an empty handler of the same server in the same run.

Servers run as processes of their own. The empty handlers stand on our HTTP/2 and HTTP/1.1 connections, decode the request and
send a blank response. So the ratio shows what Flagcast adds to a call. The gRPC client is grpcio's; the HTTP client writes a
fixed request and reads up to the announced length. Where ghz is found, a client that is quicker than the server shows the rest:
see benchmarks/ghz.py, also for the servers of others beside it.

Clients ask all the time, each on a connection of its own, in threads of one process. So with several of them a time has the
waiting in it: for the server, which answers one call after the other, and for the other clients' turns in their process.
"""

import asyncio
import importlib
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ghz
from harness import Goal, Options, Row, run

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

FLIPT = "/flipt.evaluation.EvaluationService"
FLAGD = "/flagd.evaluation.v2.Service"
CLIENTS = (1, 4, 16)
GHZ_CLIENTS = (1, 16, 64)
BATCH = 100
CONTEXT = {"region": "north", "firmware": "2.1.0"}

Call = Callable[[], object]
Connect = Callable[[ExitStack, Path], Call]
"""A connection of its own to the server behind a socket, and a call on it."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How one flag is asked for, and many at once where that exists. `empty` names the server with the empty handler."""

    name: str
    one: Connect
    empty: str
    many: Connect | None = None
    many_name: str = ""


def measure(options: Options) -> Iterator[Row]:
    rounds, seconds = (5, 0.1) if options.quick else (20, 0.15)
    with ExitStack() as stack:
        servers = {
            "agent": stack.enter_context(_served(_serve_agent)),
            "grpc": stack.enter_context(_served(_serve_empty_grpc)),
            "http": stack.enter_context(_served(_serve_empty_http)),
        }
        for protocol in _protocols():
            for clients in CLIENTS:
                yield from _under_load(protocol, servers, clients, rounds, seconds)
            if protocol.many is not None:
                yield _of_many(protocol, servers["agent"].path, 5 if options.quick else 20)
        yield from _by_ghz(servers["agent"], servers["grpc"], options)
        yield Row(
            "resident memory, every protocol in use",
            servers["agent"].resident_mib(),
            "MiB",
            "empty gRPC handler",
            servers["grpc"].resident_mib(),
        )


def _under_load(
    protocol: Protocol, servers: "dict[str, _Server]", clients: int, rounds: int, seconds: float
) -> Iterator[Row]:
    times: dict[str, list[float]] = {"agent": [], protocol.empty: []}
    with ExitStack() as stack, ThreadPoolExecutor(clients) as pool:
        asked = {name: [protocol.one(stack, servers[name].path) for _ in range(clients)] for name in times}
        for calls in asked.values():
            list(pool.map(_warm_up, calls))
        # By turns, so that a slow minute of the machine slows both.
        for _ in range(rounds):
            for name, calls in asked.items():
                end = time.perf_counter() + seconds
                for found in pool.map(_times_until, calls, [end] * clients):
                    times[name] += found
    agent, empty = times["agent"], times[protocol.empty]
    who = f"{protocol.name}, {clients} client{'s' if clients > 1 else ''}"
    yield Row(
        f"{who}, p50", statistics.median(agent), "ms", "empty handler", statistics.median(empty),
        goal=Goal("<=", 1.3, "ratio") if protocol.empty == "http" else None,
    )  # fmt: skip
    yield Row(f"{who}, p99", _p99(agent), "ms", "empty handler", _p99(empty))
    spent = rounds * seconds
    yield Row(who, len(agent) / spent, "calls/s", "empty handler", len(empty) / spent)


def _by_ghz(agent: "_Server", empty: "_Server", options: Options) -> Iterator[Row]:
    program = ghz.find()
    if program is None:
        return
    rounds, seconds = (1, 0.5) if options.quick else (5, 2.0)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fc-")))
        servers = {
            "agent, Flipt's": ghz.Server(f"unix://{agent.path}", agent.pid, ghz.FLIPT),
            "agent, flagd's": ghz.Server(f"unix://{agent.path}", agent.pid, ghz.FLAGD),
            "empty handler": ghz.Server(f"unix://{empty.path}", empty.pid, ghz.FLIPT),
        }
        if flipt := os.environ.get("FLIPT_BIN"):
            servers["Flipt"] = stack.enter_context(ghz.flipt(flipt, folder))
        if flagd := os.environ.get("FLAGD_BIN"):
            servers["flagd"] = stack.enter_context(ghz.flagd(flagd, folder))
        for deadline in (True, False):
            for clients in GHZ_CLIENTS:
                runs: dict[str, list[ghz.Loaded]] = {}
                for _ in range(rounds):  # by turns, so that a slow minute of the machine slows all of them
                    for name, server in servers.items():
                        found = ghz.load(program, server, clients, seconds, deadline=deadline)
                        runs.setdefault(name, []).append(found)
                yield from _rows_by_ghz(runs, clients, deadline=deadline)
        for name in ("Flipt", "flagd"):
            if name in servers:
                ours, theirs = agent.resident_mib(), _resident_mib(servers[name].process)
                yield Row("resident memory after the calls", ours, "MiB", name, theirs)


def _rows_by_ghz(runs: "dict[str, list[ghz.Loaded]]", clients: int, *, deadline: bool) -> Iterator[Row]:
    def median(name: str, figure: str) -> float:
        return float(statistics.median(getattr(each, figure) for each in runs[name]))

    how = f"ghz, {clients} client{'s' if clients > 1 else ''}, {'' if deadline else 'no '}deadline"
    for name, faster, more in (("Flipt", 0.9, 1.2), ("flagd", 1.0, 2.0)):
        own = f"agent, {name}'s"
        peer = name if name in runs else "empty handler"
        goals = dict.fromkeys(("p50", "rate", "p99", "cpu"), None) | (
            {
                "p50": Goal("<=", faster, "ratio") if clients == 1 else None,
                "rate": Goal(">=", more, "ratio") if clients > 1 else None,
                "p99": Goal("<=", 1.0, "ratio"),
            }
            if name in runs
            else {}
        )
        if name == "Flipt" and clients == 16:
            goals["cpu"] = Goal("<=", 40.0)
        for figure, called, unit in (
            ("p50", ", p50", "ms"),
            ("rate", "", "calls/s"),
            ("p99", ", p99", "ms"),
            ("cpu", ", CPU per call", "µs"),
        ):
            yield Row(
                f"{how}: {name}'s Boolean{called}", median(own, figure), unit, peer, median(peer, figure),
                goal=goals[figure],
            )  # fmt: skip


def _of_many(protocol: Protocol, path: Path, rounds: int) -> Row:
    assert protocol.many is not None
    with ExitStack() as stack:
        asked = {"one": protocol.one(stack, path), "many": protocol.many(stack, path)}
        times = _in_turns(asked, rounds, 60)
    # Against as many calls one after the other: it is to be worth asking for many at once.
    return Row(
        f"{protocol.many_name} of {BATCH}, p50",
        statistics.median(times["many"]),
        "ms",
        f"{BATCH} calls",
        statistics.median(times["one"]) * BATCH,
        goal=Goal("<=", 0.1, "ratio"),
    )


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


def _in_turns(asked: dict[str, Call], rounds: int, calls: int) -> dict[str, list[float]]:
    # So that a slow minute of the machine slows all of them.
    times: dict[str, list[float]] = {name: [] for name in asked}
    for call in asked.values():
        _times(call, 10)
    for _ in range(rounds):
        for name, call in asked.items():
            times[name] += _times(call, calls)
    return times


def _protocols() -> list[Protocol]:
    from flagcast_agent.api.protos import flagd_evaluation_v2_pb2 as flagd
    from flagcast_agent.api.protos import flipt_evaluation_pb2 as flipt

    single = flipt.EvaluationRequest(flag_key="theme", entity_id="entity-1", context=CONTEXT)
    batch = flipt.BatchEvaluationRequest(requests=[single] * BATCH)
    resolve = flagd.ResolveStringRequest(flag_key="theme")
    every = flagd.ResolveAllRequest()
    for request in (resolve, every):
        for key, value in {"targetingKey": "entity-1", **CONTEXT}.items():
            request.context.fields[key].string_value = value
    json_context = b'{"targetingKey":"entity-1","region":"north","firmware":"2.1.0"}'
    ofrep = "/ofrep/v1/evaluate/flags"
    return [
        Protocol(
            "Flipt by gRPC",
            _grpc(f"{FLIPT}/Variant", single.SerializeToString()),
            "grpc",
            _grpc(f"{FLIPT}/Batch", batch.SerializeToString()),
            "Flipt's Batch",
        ),
        Protocol(
            "flagd by gRPC",
            _grpc(f"{FLAGD}/ResolveString", resolve.SerializeToString()),
            "grpc",
            _grpc(f"{FLAGD}/ResolveAll", every.SerializeToString()),
            "flagd's ResolveAll",
        ),
        Protocol(
            "flagd by Connect",
            _http(f"{FLAGD}/ResolveString", "application/proto", resolve.SerializeToString()),
            "http",
        ),
        Protocol(
            "OFREP",
            _http(f"{ofrep}/theme", "application/json", b'{"context":' + json_context + b"}"),
            "http",
            _http(ofrep, "application/json", b'{"context":' + json_context + b"}"),
            "OFREP's bulk",
        ),
    ]


class _Server:
    def __init__(self, path: Path, process: multiprocessing.process.BaseProcess) -> None:
        self.path = path
        self._process = process

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def resident_mib(self) -> float:
        return _resident_mib(self.pid)


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def _served(serve: Callable[[str, Connection], None]) -> Iterator[_Server]:
    spawning = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="fc-") as folder:
        path = Path(folder) / "agent.sock"
        ours, theirs = spawning.Pipe()
        process = spawning.Process(target=serve, args=(str(path), theirs), daemon=True)
        process.start()
        if not ours.poll(20):
            raise SystemExit("the server did not start")
        ours.recv()
        try:
            yield _Server(path, process)
        finally:
            process.kill()
            process.join()


def _serve_agent(path: str, ready: Connection) -> None:
    from admitted import History
    from local_server import ENTRIES, STATUS

    from flagcast_agent import clock
    from flagcast_agent.api.answers import Answers
    from flagcast_agent.api.server import LocalServer
    from flagcast_agent.api.socket import SocketOptions, UnixSocket
    from flagcast_agent.evaluator import Evaluator
    from flagcast_agent.usage import Tally
    from flagcast_shared.ids import Environment, FlagKey, Namespace
    from flagcast_shared.model import BooleanFlag, ThresholdRollout

    # With what the example has already, a hundred flags for whoever asks for all of them.
    more = [
        BooleanFlag(FlagKey(f"flag-{number}"), enabled=False, rollouts=(ThresholdRollout(50, value=True),))
        for number in range(BATCH - sum(not hasattr(entry, "match") for entry in ENTRIES))
    ]

    async def serve() -> None:
        evaluator = Evaluator({"device.model": "cam-2"})
        evaluator.tally = Tally()
        evaluator.activate(History().begin([*ENTRIES, *more]))
        answers = Answers(
            evaluator,
            environment=Environment("test"),
            default_namespace=Namespace("default"),
            now=clock.now_precise,
            monotonic=clock.monotonic,
            fresh_id=clock.fresh_id,
        )
        with UnixSocket(SocketOptions(Path(path))) as bound:
            await LocalServer(answers, evaluator, lambda: STATUS).start([bound.socket])
            ready.send("ready")
            await asyncio.Event().wait()

    asyncio.run(serve())


def _serve_empty_grpc(path: str, ready: Connection) -> None:
    from google.protobuf.message import Message

    from flagcast_agent.api.calls import Unary, decoded
    from flagcast_agent.api.grpc import GrpcMethods
    from flagcast_agent.api.http2.headers import Fields
    from flagcast_agent.api.load import Load
    from flagcast_agent.api.protos import flagd_evaluation_v2_pb2 as flagd
    from flagcast_agent.api.protos import flipt_evaluation_pb2 as flipt
    from flagcast_agent.api.web2 import Http2Connection

    def blank(request: type[Message], response: type[Message]) -> Unary:
        def answer(body: bytes, _: Fields) -> bytes:
            decoded(request, body)
            return response().SerializeToString()

        return Unary(answer)

    class Empty(GrpcMethods):
        def __init__(self) -> None:
            self._found = {
                f"{FLIPT}/Boolean": blank(flipt.EvaluationRequest, flipt.BooleanEvaluationResponse),
                f"{FLIPT}/Variant": blank(flipt.EvaluationRequest, flipt.VariantEvaluationResponse),
                f"{FLAGD}/ResolveString": blank(flagd.ResolveStringRequest, flagd.ResolveStringResponse),
            }

        def find(self, path: str) -> Unary:
            return self._found[path]

    async def serve() -> None:
        load, methods = Load(), Empty()
        loop = asyncio.get_running_loop()
        await loop.create_unix_server(lambda: Http2Connection(methods, load, _no_site), path)
        ready.send("ready")
        await asyncio.Event().wait()

    asyncio.run(serve())


def _no_site() -> Any:  # noqa: ANN401  # never called
    raise NotImplementedError


def _serve_empty_http(path: str, ready: Connection) -> None:
    import json

    from flagcast_agent.api.http1 import Request
    from flagcast_agent.api.load import Load
    from flagcast_agent.api.protos import flagd_evaluation_v2_pb2 as flagd
    from flagcast_agent.api.web import Reply, WebConnection

    blank = Reply(200, "application/json", b"{}")

    def site(request: Request) -> Reply:
        # A fair floor: the request is read, as every answer needs it.
        if request.headers["content-type"] == "application/proto":
            flagd.ResolveStringRequest.FromString(request.body)
        else:
            json.loads(request.body)
        return blank

    async def serve() -> None:
        load = Load()
        loop = asyncio.get_running_loop()
        await loop.create_unix_server(lambda: WebConnection(site, load, is_tcp=False), path)
        ready.send("ready")
        await asyncio.Event().wait()

    asyncio.run(serve())


def _grpc(method: str, payload: bytes) -> Connect:
    def connect(stack: ExitStack, path: Path) -> Call:
        # Imported here, so that the servers, which import this module too, do not carry it. It ships no types.
        grpc: Any = importlib.import_module("grpc")
        channel = stack.enter_context(
            grpc.insecure_channel(f"unix:{path}", options=[("grpc.use_local_subchannel_pool", 1)])
        )
        call = channel.unary_unary(method)
        return lambda: call(payload)

    return connect


def _http(target: str, content_type: str, body: bytes) -> Connect:
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body

    def connect(stack: ExitStack, path: Path) -> Call:
        connection = stack.enter_context(socket.socket(socket.AF_UNIX))
        connection.connect(str(path))

        def call() -> bytes:
            connection.sendall(request)
            data = connection.recv(65536)
            while True:
                head, found, rest = data.partition(b"\r\n\r\n")
                if found:
                    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                    if len(rest) >= length:
                        assert head.startswith(b"HTTP/1.1 200"), data
                        return rest
                data += connection.recv(65536)

        return call

    return connect


def _times(call: Call, calls: int) -> list[float]:
    found = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        call()
        found.append((time.perf_counter_ns() - start) / 1e6)
    return found


def _times_until(call: Call, end: float) -> list[float]:
    found = []
    now = time.perf_counter()
    while now < end:
        call()
        before, now = now, time.perf_counter()
        found.append((now - before) * 1000)
    return found


def _warm_up(call: Call) -> None:
    _times(call, 10)


if __name__ == "__main__":
    sys.exit(run("the local protocols over the Unix socket", measure))
