"""What gRPC clients rarely ask for: Flagcast's own service, flagd's, health, reflection.

Imported by the first call that is not for Flipt's service, so that a start does not wait for it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpclib.const
from google.protobuf.message import Message
from grpclib.const import Cardinality
from grpclib.const import Status as GrpcStatus
from grpclib.exceptions import GRPCError
from grpclib.health.check import CheckBase
from grpclib.health.service import OVERALL, Health
from grpclib.health.v1 import health_pb2
from grpclib.reflection.service import ServerReflection
from grpclib.reflection.v1 import reflection_pb2
from grpclib.reflection.v1alpha import reflection_pb2 as reflection_v1alpha_pb2
from grpclib.server import Stream as ServerStream

from flagcast_agent.evaluator import Evaluator
from flagcast_agent.limits import (
    KEEP_ALIVE_SECONDS,
    SNAPSHOTS_MAX,
    SYNC_MAX_SECONDS,
    SYNC_SECONDS,
    SYNCS_MAX,
    UNREAD_SECONDS,
)
from flagcast_agent.status import Caught, Status
from flagcast_shared.errors import FlagcastError, InvalidCall
from flagcast_shared.ids import Namespace

from . import agent_messages
from .answers import Answers, Snapshot
from .calls import answer_call, receive, shown, status_of, told
from .changes import Change, Changes, Stopping
from .protos import flagcast_agent_pb2 as agent
from .protos.flagcast_agent_grpc import AgentBase
from .protos.pool import POOL, add_file
from .resolutions import FLAGD_V1_SERVICE, FLAGD_V2_SERVICE, SELECTOR_HEADER, WANTED_BY, selected
from .resolutions import NAMESPACE_HEADER as FLAGCAST_HEADER

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpclib._typing import ICheckable, IServable

    from .flagd import Flagd

OF_GRPC = (
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
"""Services of gRPC itself, which answer as long as the agent does."""
EVALUATION_SERVICE = "flipt.evaluation.EvaluationService"
AGENT_SERVICE = "flagcast.agent.v1.Agent"

CatchUp = Callable[[float], Awaitable[Caught]]
ReadSnapshot = Callable[[Namespace], Snapshot]

log = logging.getLogger(__name__)

# Reflection describes what is in our pool; these services are grpclib's and stand in protobuf's default one.
for _messages in (health_pb2, reflection_pb2, reflection_v1alpha_pb2):
    add_file(_messages.DESCRIPTOR.serialized_pb)


class OtherServices:
    """Everything but Flipt's service, by the paths of its calls."""

    def __init__(
        self,
        evaluation: "IServable",
        *,
        answers: Answers,
        evaluator: Evaluator,
        flagd: "Callable[[], Flagd]",
        changes: Callable[[], Changes],
        status: Callable[[], Status],
        catch_up: CatchUp | None,
        snapshot: ReadSnapshot | None,
    ) -> None:
        self._readiness = _Readiness(evaluator)
        own = _Agent(answers, status, changes, catch_up, snapshot)
        resolving = [_Flagd(flagd, service) for service in (FLAGD_V1_SERVICE, FLAGD_V2_SERVICE)]
        evaluating: list[IServable] = [evaluation, *resolving]
        checks: dict[ICheckable, list[CheckBase]] = {service: [self._readiness] for service in evaluating}
        alive: list[ICheckable] = [OVERALL, own, *map(_Named, OF_GRPC)]
        checks |= {service: [] for service in alive}
        services: list[IServable] = ServerReflection.extend(
            [*evaluating, own, Health(checks)], pool=_WholePool()
        )
        self.methods: Mapping[str, grpclib.const.Handler] = {
            name: method for service in services for name, method in service.__mapping__().items()
        }

    def changed(self) -> None:
        """Something was activated."""
        self._readiness.changed()


class _Agent(AgentBase):
    # Flagcast's own service (flagcast_agent.proto).

    def __init__(
        self,
        answers: Answers,
        status: Callable[[], Status],
        changes: Callable[[], Changes],
        catch_up: CatchUp | None,
        snapshot: ReadSnapshot | None,
    ) -> None:
        self._answers = answers
        self._status = status
        self._changes = changes
        self._catch_up = catch_up
        self._snapshot = snapshot
        self._syncs = _Places(SYNCS_MAX, "calls of Sync wait")
        self._snapshots = _Places(SNAPSHOTS_MAX, "snapshots are being read")
        # One thread: what is being read from the disk is in memory twice, and a caller who left while it was read starts no
        # second read beside it.
        self._reader = ThreadPoolExecutor(1, "snapshot")

    async def Status(  # noqa: N802  # the .proto's name
        self, stream: ServerStream[agent.StatusRequest, agent.StatusResponse]
    ) -> None:
        await answer_call(
            stream, agent.StatusRequest, lambda _: agent_messages.status_response(self._status())
        )

    async def Sync(  # noqa: N802  # the .proto's name
        self, stream: ServerStream[agent.SyncRequest, agent.SyncResponse]
    ) -> None:
        request = await receive(stream, agent.SyncRequest)
        if self._catch_up is None:
            raise GRPCError(GrpcStatus.UNIMPLEMENTED, "this agent follows no broker")
        seconds = request.timeout_milliseconds / 1000 or SYNC_SECONDS
        if not 0 < seconds <= SYNC_MAX_SECONDS:
            raise GRPCError(
                GrpcStatus.INVALID_ARGUMENT,
                f"a wait of {seconds:g} s; allowed are up to {SYNC_MAX_SECONDS:g}",
            )
        with self._syncs.take():
            caught = await self._catch_up(seconds)
        await stream.send_message(agent_messages.sync_response(caught))

    async def ListFlags(  # noqa: N802  # the .proto's name
        self, stream: ServerStream[agent.ListFlagsRequest, agent.ListFlagsResponse]
    ) -> None:
        await answer_call(
            stream,
            agent.ListFlagsRequest,
            lambda request: agent_messages.flags_response(self._answers.flags(request.namespace)),
        )

    async def Explain(  # noqa: N802  # the .proto's name
        self, stream: ServerStream[agent.ExplainRequest, agent.ExplainResponse]
    ) -> None:
        await answer_call(
            stream,
            agent.ExplainRequest,
            lambda request: agent_messages.explain_response(
                self._answers.explain(agent_messages.question_to_explain(request))
            ),
        )

    async def Watch(  # noqa: N802  # the .proto's name
        self, stream: ServerStream[agent.WatchRequest, agent.WatchResponse]
    ) -> None:
        request = await receive(stream, agent.WatchRequest)
        await stream.send_initial_metadata()
        told: dict[str, tuple[int, int]] = {}
        with self._changes().subscription(Namespace(request.namespace) or None) as subscription:
            for known in subscription.known():
                told[known.namespace] = (known.epoch, known.version)
                await stream.send_message(agent_messages.watch_response(Change(known, {})))
            while True:
                try:
                    change = await subscription.next(KEEP_ALIVE_SECONDS)
                except Stopping:
                    raise GRPCError(GrpcStatus.UNAVAILABLE, "the agent stops") from None
                if change is None:
                    continue
                known = change.knowledge
                if change.flags or told.get(known.namespace) != (known.epoch, known.version):
                    told[known.namespace] = (known.epoch, known.version)
                    await stream.send_message(agent_messages.watch_response(change))

    async def Snapshot(  # noqa: N802  # the .proto's name
        self, stream: ServerStream[agent.SnapshotRequest, agent.SnapshotResponse]
    ) -> None:
        request = await receive(stream, agent.SnapshotRequest)
        if self._snapshot is None:
            raise GRPCError(GrpcStatus.UNIMPLEMENTED, "this agent keeps nothing on disk")
        # Each holds a whole snapshot in memory until its client has read it, so there are few, and none for long: the wait for
        # the disk is within the time.
        with self._snapshots.take():
            try:
                async with asyncio.timeout(UNREAD_SECONDS):
                    namespace = self._answers.knowledge(request.namespace).namespace
                    loop = asyncio.get_running_loop()
                    found = await loop.run_in_executor(self._reader, self._snapshot, namespace)
                    for part in agent_messages.snapshot_responses(found):
                        await stream.send_message(part)
            except TimeoutError:
                raise GRPCError(GrpcStatus.DEADLINE_EXCEEDED, "the snapshot was not read in time") from None
            except InvalidCall as error:
                raise GRPCError(status_of(error), shown(error)) from None
            except FlagcastError as error:
                log.warning("a snapshot could not be read: %s", error)
                raise GRPCError(
                    GrpcStatus.INTERNAL, "the snapshot cannot be read; the agent's log says why"
                ) from None


class _Places:
    # So many calls of one kind at once; one more is refused at once, because a queue would only hide that somebody does not read.

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self._taken = 0

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        if self._taken >= self._most:
            raise GRPCError(
                GrpcStatus.RESOURCE_EXHAUSTED, f"{self._most} {self._what} already; ask again later"
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class _Named:
    # A service of which nothing but the name counts: for the health of what answers as long as the agent does.

    def __init__(self, service: str) -> None:
        self._service = service

    def __mapping__(self) -> dict[str, None]:
        return {f"/{self._service}/": None}


class _WholePool:
    # All that reflection describes. flagd's messages are put into the pool when somebody asks for anything in it.

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: ANN401, N802  # a descriptor pool's, and raises as it
        pool = self._filled()
        try:
            return pool.FindFileContainingSymbol(symbol)
        except KeyError:
            # Protobuf's pool finds no methods (package.Service.Method); of reflection clients ask for them.
            service, _, method = symbol.rpartition(".")
            return pool.FindServiceByName(service).methods_by_name[method].containing_service.file

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever a descriptor pool offers
        return getattr(self._filled(), name)

    @staticmethod
    def _filled() -> "DescriptorPool":
        from .protos import flagd_evaluation_v1_pb2, flagd_evaluation_v2_pb2  # noqa: F401  # for what importing them does

        return POOL


class _Flagd:
    # flagd's service, in one of its versions; both have the same messages on the wire. What speaks its language is imported by
    # the first call.

    def __init__(self, flagd: "Callable[[], Flagd]", service: str) -> None:
        self._flagd = flagd
        self._service = service

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        unary, streaming = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM
        handlers = {
            name: grpclib.const.Handler(self._resolving(name), unary, Message, Message) for name in WANTED_BY
        }
        handlers["ResolveAll"] = grpclib.const.Handler(self._resolve_all, unary, Message, Message)
        handlers["EventStream"] = grpclib.const.Handler(self._event_stream, streaming, Message, Message)
        return {f"/{self._service}/{name}": handler for name, handler in handlers.items()}

    def _resolving(self, name: str) -> Callable[[ServerStream[Any, Any]], Awaitable[None]]:
        is_first_version = self._service == FLAGD_V1_SERVICE

        async def resolve(stream: ServerStream[Any, Any]) -> None:
            from .flagd import METHODS

            flagd, method, namespace = self._flagd(), METHODS[name], _selected(stream)
            await answer_call(
                stream,
                method.request,
                lambda request: flagd.resolve(method, request, namespace, is_first_version=is_first_version),
                _flagd_status,
            )

        return resolve

    async def _resolve_all(self, stream: ServerStream[Any, Any]) -> None:
        from .protos.flagd_evaluation_v2_pb2 import ResolveAllRequest

        request = await receive(stream, ResolveAllRequest)
        with told(_flagd_status):
            flagd = self._flagd()
            response = await flagd.resolve_all(flagd.question_for_all(request, _selected(stream)))
        await stream.send_message(response)

    async def _event_stream(self, stream: ServerStream[Any, Any]) -> None:
        from .flagd import event_message
        from .protos.flagd_evaluation_v2_pb2 import EventStreamRequest

        await receive(stream, EventStreamRequest)
        with told(_flagd_status):
            found = self._flagd().events(_selected(stream))
        await stream.send_initial_metadata()
        try:
            async with contextlib.aclosing(found) as events:
                async for event in events:
                    await stream.send_message(event_message(event))
        except Stopping:
            # Never OK: Node's provider would not subscribe again.
            raise GRPCError(GrpcStatus.UNAVAILABLE, "the agent stops") from None


class _Readiness(CheckBase):
    # Serving means that something was admitted; the agent being alive is the health of "".

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._watchers: set[asyncio.Event] = set()

    def changed(self) -> None:
        for watcher in self._watchers:
            watcher.set()

    def __status__(self) -> bool:
        return bool(self._evaluator.namespaces())

    async def __check__(self) -> bool:
        return self.__status__()

    async def __subscribe__(self) -> asyncio.Event:
        watcher = asyncio.Event()
        self._watchers.add(watcher)
        return watcher

    async def __unsubscribe__(self, event: asyncio.Event) -> None:
        self._watchers.discard(event)


def _flagd_status(error: InvalidCall) -> GrpcStatus:
    from .flagd import code_of

    return GrpcStatus[code_of(error).upper()]


def _selected(stream: ServerStream[Any, Any]) -> str:
    headers = stream.metadata
    if not headers:
        return ""
    return selected(str(headers.get(SELECTOR_HEADER, "")), str(headers.get(FLAGCAST_HEADER, "")))
