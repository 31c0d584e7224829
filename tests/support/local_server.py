"""A real server of the local interfaces on a real Unix socket, in a thread with a loop of its own."""

import asyncio
import concurrent.futures
import contextlib
import itertools
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from admitted import Content, History

from flagcast_agent.api.answers import Answers, Snapshot
from flagcast_agent.api.load import Place
from flagcast_agent.api.server import LocalServer
from flagcast_agent.api.socket import SocketOptions, UnixSocket, bind_loopback
from flagcast_agent.evaluator import Evaluator
from flagcast_agent.status import Caught, LinkStatus, NamespaceStatus, Rejection, Status
from flagcast_shared.codec import encode
from flagcast_shared.ids import Environment, FlagKey, Namespace, SegmentKey, VariantKey
from flagcast_shared.model import (
    AnySegment,
    BooleanFlag,
    Constraint,
    ConstraintType,
    Distribution,
    Flag,
    Join,
    Match,
    Operator,
    Rule,
    Segment,
    SegmentRollout,
    ThresholdRollout,
    Variant,
    VariantFlag,
)
from flagcast_shared.records import Record, decode_record

NOW = 1_700_000_000.25
"""What the server's clock says, in every reply."""

_T = TypeVar("_T")

ENTRIES: tuple[Flag | AnySegment, ...] = (
    Segment(
        SegmentKey("north"),
        Match.ALL,
        (Constraint(ConstraintType.STRING, "region", Operator.EQ, "north"),),
    ),
    Segment(
        SegmentKey("this-device"),
        Match.ALL,
        (Constraint(ConstraintType.STRING, "device.model", Operator.EQ, "cam-2"),),
    ),
    BooleanFlag(FlagKey("on"), enabled=True),
    BooleanFlag(FlagKey("off"), enabled=False),
    BooleanFlag(
        FlagKey("in-north"),
        enabled=False,
        rollouts=(SegmentRollout((SegmentKey("north"),), Join.OR, value=True),),
    ),
    BooleanFlag(
        FlagKey("on-this-device"),
        enabled=False,
        rollouts=(SegmentRollout((SegmentKey("this-device"),), Join.OR, value=True),),
    ),
    BooleanFlag(FlagKey("half"), enabled=False, rollouts=(ThresholdRollout(50, value=True),)),
    VariantFlag(
        FlagKey("theme"),
        enabled=True,
        variants=(Variant(VariantKey("dark"), '{"ink":"white"}'), Variant(VariantKey("light"))),
        default=VariantKey("light"),
        rules=(Rule((SegmentKey("north"),), Join.OR, (Distribution(VariantKey("dark"), 1000),)),),
    ),
    VariantFlag(FlagKey("bare"), enabled=True, variants=(Variant(VariantKey("a")),)),
    BooleanFlag(
        FlagKey("broken"),
        enabled=True,
        rollouts=(SegmentRollout((SegmentKey("nowhere"),), Join.OR, value=True),),
    ),
)

STATUS = Status(
    agent_version="0.1.0",
    device="cam-17",
    environment="test",
    started=1_699_999_000,
    now=1_700_000_000,
    clock_is_trusted=False,
    link=LinkStatus("disconnected", 1_699_999_900, "connection refused", 1_699_999_990),
    namespaces=(
        NamespaceStatus(
            "default",
            "stale",
            epoch=2,
            version=41,
            digest="ab" * 32,
            issued=1_699_913_600,
            expires=1_699_999_400,
            age=86_400,
            flags=10,
            last_rejection=Rejection("rollback", "head 3 was offered, head 7 is known", 1_699_999_950),
        ),
        NamespaceStatus("other", "never synced"),
    ),
)


class RunningServer:
    """A server that answers until the test ends; `call` runs something in its loop."""

    def __init__(
        self,
        folder: Path,
        removed: Mapping[Namespace, Sequence[FlagKey]] | None = None,
        namespaces: Sequence[Namespace] = (),
        *,
        tells_static: bool = True,
    ) -> None:
        self._tells_static = tells_static
        self._removed = removed or {}
        self._namespaces = namespaces
        self.path = folder / "agent.sock"
        self.evaluator = Evaluator({"device.model": "cam-2"})
        self.status = STATUS
        self.snapshot: Callable[[Namespace], Snapshot]
        self.catch_up: Callable[[float], Awaitable[Caught]]
        self._bound = UnixSocket(SocketOptions(self.path))
        self._tcp = bind_loopback(0)
        self.port: int = self._tcp.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="local server", daemon=True)
        self._thread.start()
        self.server = self.call(self._start())

    def call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return self.begin(coroutine).result(10)

    def begin(self, coroutine: Coroutine[Any, Any, _T]) -> "concurrent.futures.Future[_T]":
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def open_calls(self) -> int:
        return self.server._load.calls

    def open_connections(self) -> int:
        return len(self.server._load.connections)

    def held(self) -> int:
        """Bytes held for clients of HTTP/1.1."""
        return self.server._load.held

    @contextlib.contextmanager
    def large_answers_held_up(self) -> Iterator[None]:
        """A time in which no answer of all flags is made: another process has the turn."""
        turns = self.server._load.large

        async def enter() -> Place:
            place = turns.enter("another process")
            assert place is not None
            await place.turn.wait()
            return place

        async def leave(place: Place) -> None:
            turns.leave(place)

        place = self.call(enter())
        try:
            yield
        finally:
            self.call(leave(place))

    def stop(self) -> None:
        self.call(self.server.stop())

    def end(self) -> None:
        with contextlib.suppress(Exception):
            self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._bound.close()
        self._tcp.close()

    def _read_snapshot(self, namespace: Namespace) -> Snapshot:
        return self.snapshot(namespace)

    async def _wait(self, seconds: float) -> Caught:
        return await self.catch_up(seconds)

    async def _start(self) -> LocalServer:
        ticks = itertools.count()
        answers = Answers(
            self.evaluator,
            environment=Environment("test"),
            default_namespace=Namespace("default"),
            now=lambda: NOW,
            monotonic=lambda: next(ticks) / 1000,  # every look at the clock is a millisecond later
            fresh_id=_ids().__next__,
        )
        server = LocalServer(
            answers,
            self.evaluator,
            lambda: self.status,
            self._wait,
            snapshot=self._read_snapshot,
            removed=self._removed,
            namespaces=self._namespaces,
            tells_static=self._tells_static,
        )
        await server.start([self._bound.socket, self._tcp])
        return server


@contextlib.contextmanager
def running(
    entries: Content | None = ENTRIES,
    *,
    namespace: str = "default",
    removed: Mapping[Namespace, Sequence[FlagKey]] | None = None,
    namespaces: Sequence[Namespace] = (),
    tells_static: bool = True,
) -> Iterator[RunningServer]:
    """A server that knows `entries`; None for one that was never told anything. `removed` are flags that it knew before.

    `namespaces` are configured beside the default one; `tells_static` is flagd.caching.
    """
    with tempfile.TemporaryDirectory(prefix="fc-") as name:
        server = RunningServer(Path(name), removed, namespaces, tells_static=tells_static)
        try:
            if entries is not None:
                server.evaluator.activate(History(namespace).begin(entries))
            yield server
        finally:
            server.end()


def flag_from_the_future(key: str) -> Record:
    """A record as a newer publisher may write it: of a type that this release does not know."""
    return decode_record(encode(["flag", key, {1: "matrix", 2: True}]))


def _ids() -> Iterator[str]:
    return (f"fresh-{number}" for number in itertools.count(1))
