"""An evaluation over the Unix socket, against an empty handler of the same gRPC library in the same run.

Both servers run as processes of their own with the same protobuf messages; the empty one, on grpclib's own server, reads
the request and sends a blank response. What the ratio shows is what Flagcast adds to a call. The client is grpcio's.
"""

import asyncio
import importlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness import Goal, Options, Row, run

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

SERVICE = "/flipt.evaluation.EvaluationService"
CALLERS = 16
BATCH = 100


def measure(options: Options) -> Iterator[Row]:
    from flagcast_agent.api.protos import flipt_evaluation_pb2 as flipt

    rounds, calls = (6, 150) if options.quick else (20, 300)
    single = flipt.EvaluationRequest(
        flag_key="theme", entity_id="entity-1", context={"region": "north", "firmware": "2.1.0"}
    )
    batch = flipt.BatchEvaluationRequest(requests=[single] * BATCH)
    with ExitStack() as stack:
        empty = stack.enter_context(_served(_serve_empty))
        agent = stack.enter_context(_served(_serve_agent))
        one, floor = _caller(stack, agent.path, "Variant"), _caller(stack, empty.path, "Variant")
        many = _caller(stack, agent.path, "Batch")
        payload, batch_payload = single.SerializeToString(), batch.SerializeToString()
        times: dict[str, list[float]] = {"agent": [], "empty": [], "batch": []}
        for _ in range(rounds):  # in turns, so that a slow minute of the machine slows all of them
            times["empty"] += _times(floor, payload, calls)
            times["agent"] += _times(one, payload, calls)
            times["batch"] += _times(many, batch_payload, calls // 10)
        p50 = {name: statistics.median(found) for name, found in times.items()}
        p99 = {name: statistics.quantiles(found, n=100)[98] for name, found in times.items()}
        yield Row(
            "one evaluation, p50",
            p50["agent"],
            "ms",
            "empty handler",
            p50["empty"],
            goal=Goal("<=", 1.3, "ratio"),
        )
        yield Row("one evaluation, p99", p99["agent"], "ms", "empty handler", p99["empty"])
        yield Row(
            f"batch of {BATCH}, p50",
            p50["batch"],
            "ms",
            "one evaluation",
            p50["agent"],
            goal=Goal("<=", 3.0, "ratio"),
        )
        seconds = 1.0 if options.quick else 3.0
        slow = _throughput(stack, empty.path, payload, seconds)
        yield Row(
            f"{CALLERS} callers",
            _throughput(stack, agent.path, payload, seconds),
            "calls/s",
            "empty handler",
            slow,
        )
        yield Row("resident memory", agent.resident_mib(), "MiB", "empty handler", empty.resident_mib())


class _Server:
    def __init__(self, path: Path, process: multiprocessing.process.BaseProcess) -> None:
        self.path = path
        self._process = process

    def resident_mib(self) -> float:
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()[1])
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
    from local_api import ENTRIES, STATUS

    from flagcast_agent import clock
    from flagcast_agent.api.answers import Answers
    from flagcast_agent.api.grpc import LocalServer
    from flagcast_agent.api.socket import SocketOptions, UnixSocket
    from flagcast_agent.evaluator import Evaluator
    from flagcast_shared.ids import Environment, Namespace

    async def serve() -> None:
        evaluator = Evaluator({"device.model": "cam-2"})
        evaluator.activate(History().begin(ENTRIES), now=0)
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


def _serve_empty(path: str, ready: Connection) -> None:
    from grpclib.server import Server, Stream

    from flagcast_agent.api.protos import flipt_evaluation_pb2 as flipt
    from flagcast_agent.api.protos.flipt_evaluation_grpc import EvaluationServiceBase

    class Empty(EvaluationServiceBase):
        async def Boolean(self, stream: Stream[Any, Any]) -> None:  # noqa: N802  # the .proto's name
            raise NotImplementedError

        async def Variant(self, stream: Stream[Any, Any]) -> None:  # noqa: N802  # the .proto's name
            await stream.recv_message()
            await stream.send_message(flipt.VariantEvaluationResponse())

        async def Batch(self, stream: Stream[Any, Any]) -> None:  # noqa: N802  # the .proto's name
            raise NotImplementedError

    async def serve() -> None:
        await Server([Empty()]).start(path=path)
        ready.send("ready")
        await asyncio.Event().wait()

    asyncio.run(serve())


def _caller(stack: ExitStack, path: Path, method: str) -> Callable[[bytes], bytes]:
    # Imported here, so that the servers, which import this module too, do not carry it. It ships no types.
    grpc: Any = importlib.import_module("grpc")
    # A connection of its own, whatever other channels there are.
    channel = stack.enter_context(
        grpc.insecure_channel(f"unix:{path}", options=[("grpc.use_local_subchannel_pool", 1)])
    )
    call: Callable[[bytes], bytes] = channel.unary_unary(f"{SERVICE}/{method}")
    return call


def _times(call: Callable[[bytes], bytes], payload: bytes, calls: int) -> list[float]:
    found = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        call(payload)
        found.append((time.perf_counter_ns() - start) / 1e6)
    return found


def _throughput(stack: ExitStack, path: Path, payload: bytes, seconds: float) -> float:
    callers = [_caller(stack, path, "Variant") for _ in range(CALLERS)]
    end = time.perf_counter() + seconds

    def ask(call: Callable[[bytes], bytes]) -> int:
        count = 0
        while time.perf_counter() < end:
            call(payload)
            count += 1
        return count

    with ThreadPoolExecutor(CALLERS) as pool:
        return sum(pool.map(ask, callers)) / seconds


if __name__ == "__main__":
    sys.exit(run("evaluation over the Unix socket", measure))
