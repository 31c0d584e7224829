"""The gRPC services on the agent's sockets, by grpclib: Flipt's evaluation, flagd's, Flagcast's own, health, reflection.

No decision about flags is made here: a request becomes a Question, a reply a message, an InvalidCall a status. Whatever a
client sends ends its own call or connection and nobody else's. Statuses are chosen so that no client retries a question
whose answer will be the same: never UNKNOWN or UNAVAILABLE for an evaluation.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import grpclib.const
import grpclib.protocol
import grpclib.server
from google.protobuf.message import DecodeError, Message
from grpclib.config import Configuration
from grpclib.const import Cardinality
from grpclib.const import Status as GrpcStatus
from grpclib.encoding.proto import ProtoCodec
from grpclib.events import _DispatchServerEvents
from grpclib.exceptions import GRPCError
from grpclib.health.check import CheckBase
from grpclib.health.service import OVERALL, Health
from grpclib.health.v1 import health_pb2
from grpclib.reflection.service import ServerReflection
from grpclib.server import Stream as ServerStream
from h2.config import H2Configuration
from h2.events import UnknownFrameReceived

from flagcast_agent.evaluator import Evaluator
from flagcast_agent.limits import (
    ERROR_MAX_CHARACTERS,
    KEEP_ALIVE_SECONDS,
    REQUEST_MAX_BYTES,
    REQUEST_TIMEOUT_SECONDS,
    SYNC_MAX_SECONDS,
    SYNC_SECONDS,
    UNREAD_MAX_BYTES,
    UNREAD_SECONDS,
)
from flagcast_agent.status import Caught, Status
from flagcast_shared.errors import (
    FlagcastError,
    FlagNotFound,
    FlagNotUsable,
    InvalidCall,
    NamespaceNotFound,
)
from flagcast_shared.ids import Namespace

from . import messages
from .answers import ENVIRONMENT_HEADER, NAMESPACE_HEADER, NO_FILLING, Answers, Filling, Snapshot
from .changes import Change, Changes, Stopping
from .load import Load
from .protos import flagcast_agent_pb2 as agent
from .protos import flipt_evaluation_pb2 as flipt
from .protos.flagcast_agent_grpc import AgentBase
from .protos.flipt_evaluation_grpc import EvaluationServiceBase
from .protos.pool import POOL, add_file
from .resolutions import FLAGD_V1_SERVICE, FLAGD_V2_SERVICE, SELECTOR_HEADER, WANTED_BY, selected
from .resolutions import NAMESPACE_HEADER as FLAGCAST_HEADER

if TYPE_CHECKING:
    from grpclib._typing import IServable

    from .flagd import Flagd

EVALUATION_SERVICE = "flipt.evaluation.EvaluationService"
AGENT_SERVICE = "flagcast.agent.v1.Agent"

log = logging.getLogger(__name__)

CatchUp = Callable[[float], Awaitable[Caught]]
ReadSnapshot = Callable[[Namespace], Snapshot]

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)

_CONFIGURATION = Configuration().__for_server__()
_NO_EVENTS = _DispatchServerEvents()  # grpclib's hooks; nobody listens to any
_H2 = H2Configuration(
    client_side=False,
    header_encoding="ascii",
    # As grpclib's own server has it: what is wrong with a header is answered per call, not by closing the connection.
    validate_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_inbound_headers=False,
    normalize_outbound_headers=False,
)

# Reflection describes what is in our pool; the health service is grpclib's and stands in protobuf's default one.
add_file(health_pb2.DESCRIPTOR.serialized_pb)


class GrpcCalls:
    """What every gRPC connection can be asked; `connection` makes one.

    `status` is asked once for every Status call and must not block. `catch_up` makes the agent try to be up to date and waits
    so many seconds for it; None for an agent that follows no broker. `snapshot` reads an admitted snapshot from the disk, in a
    thread; None where there is no disk.
    """

    def __init__(
        self,
        *,
        answers: Answers,
        evaluator: Evaluator,
        flagd: "Callable[[], Flagd]",
        changes: Callable[[], Changes],
        load: Load,
        status: Callable[[], Status],
        catch_up: CatchUp | None = None,
        snapshot: ReadSnapshot | None = None,
    ) -> None:
        self._load = load
        self._readiness = _Readiness(evaluator)
        evaluation = _Evaluation(answers)
        own = _Agent(answers, status, changes, catch_up, snapshot)
        resolving = [_Flagd(flagd, service) for service in (FLAGD_V1_SERVICE, FLAGD_V2_SERVICE)]
        health = Health({OVERALL: [], evaluation: [self._readiness], own: []})
        services: list[IServable] = ServerReflection.extend(
            [evaluation, *resolving, own, health], pool=_WholePool()
        )
        self._methods = {
            name: method for service in services for name, method in service.__mapping__().items()
        }

    def changed(self) -> None:
        """Something was activated."""
        self._readiness.changed()

    def connection(self) -> "GrpcConnection":
        """The protocol of one client."""
        return GrpcConnection(_Calls(self._methods, self._load), self._load)


class _Evaluation(EvaluationServiceBase):
    # Flipt's service (FLIPT: evaluation.proto).

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    async def Boolean(  # noqa: N802  # the .proto's name
        self, stream: ServerStream[flipt.EvaluationRequest, flipt.BooleanEvaluationResponse]
    ) -> None:
        filling = _filling(stream)
        await _answer(
            stream,
            flipt.EvaluationRequest,
            lambda request: messages.boolean_response(
                self._answers.boolean(messages.question(request), filling)
            ),
        )

    async def Variant(  # noqa: N802  # the .proto's name
        self, stream: ServerStream[flipt.EvaluationRequest, flipt.VariantEvaluationResponse]
    ) -> None:
        filling = _filling(stream)
        await _answer(
            stream,
            flipt.EvaluationRequest,
            lambda request: messages.variant_response(
                self._answers.variant(messages.question(request), filling)
            ),
        )

    async def Batch(  # noqa: N802  # the .proto's name
        self, stream: ServerStream[flipt.BatchEvaluationRequest, flipt.BatchEvaluationResponse]
    ) -> None:
        filling = _filling(stream)
        await _answer(
            stream,
            flipt.BatchEvaluationRequest,
            lambda request: messages.batch_response(
                self._answers.batch(
                    [messages.question(entry) for entry in request.requests], request.request_id, filling
                )
            ),
        )


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
        self._reading = asyncio.Lock()

    async def Status(  # noqa: N802  # the .proto's name
        self, stream: ServerStream[agent.StatusRequest, agent.StatusResponse]
    ) -> None:
        await _answer(stream, agent.StatusRequest, lambda _: messages.status_response(self._status()))

    async def Sync(  # noqa: N802  # the .proto's name
        self, stream: ServerStream[agent.SyncRequest, agent.SyncResponse]
    ) -> None:
        request = await _receive(stream, agent.SyncRequest)
        if self._catch_up is None:
            raise GRPCError(GrpcStatus.UNIMPLEMENTED, "this agent follows no broker")
        seconds = request.timeout_milliseconds / 1000 or SYNC_SECONDS
        if not 0 < seconds <= SYNC_MAX_SECONDS:
            raise GRPCError(
                GrpcStatus.INVALID_ARGUMENT,
                f"a wait of {seconds:g} s; allowed are up to {SYNC_MAX_SECONDS:g}",
            )
        await stream.send_message(messages.sync_response(await self._catch_up(seconds)))

    async def ListFlags(  # noqa: N802  # the .proto's name
        self, stream: ServerStream[agent.ListFlagsRequest, agent.ListFlagsResponse]
    ) -> None:
        await _answer(
            stream,
            agent.ListFlagsRequest,
            lambda request: messages.flags_response(self._answers.flags(request.namespace)),
        )

    async def Explain(  # noqa: N802  # the .proto's name
        self, stream: ServerStream[agent.ExplainRequest, agent.ExplainResponse]
    ) -> None:
        await _answer(
            stream,
            agent.ExplainRequest,
            lambda request: messages.explain_response(
                self._answers.explain(messages.question_to_explain(request))
            ),
        )

    async def Watch(  # noqa: N802  # the .proto's name
        self, stream: ServerStream[agent.WatchRequest, agent.WatchResponse]
    ) -> None:
        request = await _receive(stream, agent.WatchRequest)
        await stream.send_initial_metadata()
        told: dict[str, tuple[int, int]] = {}
        with self._changes().subscription(Namespace(request.namespace) or None) as subscription:
            for known in subscription.known():
                told[known.namespace] = (known.epoch, known.version)
                await stream.send_message(messages.watch_response(Change(known, {})))
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
                    await stream.send_message(messages.watch_response(change))

    async def Snapshot(  # noqa: N802  # the .proto's name
        self, stream: ServerStream[agent.SnapshotRequest, agent.SnapshotResponse]
    ) -> None:
        request = await _receive(stream, agent.SnapshotRequest)
        if self._snapshot is None:
            raise GRPCError(GrpcStatus.UNIMPLEMENTED, "this agent keeps nothing on disk")
        # One at a time: each holds a whole snapshot in memory until its client has read it.
        async with self._reading:
            try:
                async with asyncio.timeout(UNREAD_SECONDS):
                    namespace = self._answers.knowledge(request.namespace).namespace
                    found = await asyncio.to_thread(self._snapshot, namespace)
                    for part in messages.snapshot_responses(found):
                        await stream.send_message(part)
            except TimeoutError:
                raise GRPCError(GrpcStatus.DEADLINE_EXCEEDED, "the snapshot was not read in time") from None
            except InvalidCall as error:
                raise GRPCError(_status_of(error), _shown(error)) from None
            except FlagcastError as error:
                log.warning("a snapshot could not be read: %s", error)
                raise GRPCError(
                    GrpcStatus.INTERNAL, "the snapshot cannot be read; the agent's log says why"
                ) from None


class _WholePool:
    # All that reflection describes. flagd's messages are put into the pool when somebody asks for anything in it.

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever a descriptor pool offers
        from .protos import flagd_evaluation_v1_pb2, flagd_evaluation_v2_pb2  # noqa: F401  # for what importing them does

        return getattr(POOL, name)


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
            await _answer(
                stream,
                method.request,
                lambda request: flagd.resolve(method, request, namespace, is_first_version=is_first_version),
                _flagd_status,
            )

        return resolve

    async def _resolve_all(self, stream: ServerStream[Any, Any]) -> None:
        from .protos.flagd_evaluation_v2_pb2 import ResolveAllRequest

        request = await _receive(stream, ResolveAllRequest)
        with _told(_flagd_status):
            response = await self._flagd().resolve_all(request, _selected(stream))
        await stream.send_message(response)

    async def _event_stream(self, stream: ServerStream[Any, Any]) -> None:
        from .flagd import event_message
        from .protos.flagd_evaluation_v2_pb2 import EventStreamRequest

        await _receive(stream, EventStreamRequest)
        await stream.send_initial_metadata()
        try:
            async with contextlib.aclosing(self._flagd().events(_selected(stream))) as events:
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


class _Calls(grpclib.server.Handler):
    # The calls of one connection.

    def __init__(self, methods: Mapping[str, grpclib.const.Handler], load: Load) -> None:
        super().__init__(dict(methods), ProtoCodec(), None, _NO_EVENTS)
        self._load = load

    def accept(
        self,
        stream: grpclib.protocol.Stream,
        headers: list[tuple[str, str]],
        release_stream: Callable[[], object],
    ) -> None:
        # grpclib leaves a call without any answer when a binary header does not decode or a pseudo-header is missing.
        # No binary header means anything here, and a blank method or path gets an error.
        usable = [(":method", ""), (":path", ""), *(pair for pair in headers if not pair[0].endswith("-bin"))]
        self._load.began()
        is_released = False

        def release(_: object = None) -> None:
            nonlocal is_released
            if is_released:
                return
            is_released = True
            release_stream()
            self._load.ended()

        super().accept(stream, usable, release)
        # A call that is reset before its task ever ran would keep its stream for as long as the connection lives.
        self._tasks[stream].add_done_callback(release)


class GrpcConnection(grpclib.protocol.H2Protocol):
    """One client that speaks HTTP/2."""

    def __init__(self, calls: _Calls, load: Load) -> None:
        super().__init__(calls, _CONFIGURATION, _H2)
        self.calls = calls
        self._load = load
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio's protocol."""
        super().connection_made(transport)
        # RFC 9113, section 5.5: frames of an unknown type are ignored.
        self.processor.processors[UnknownFrameReceived] = _ignore
        if isinstance(transport, asyncio.Transport):
            self._transport = transport
        self._load.opened(self)

    def data_received(self, data: bytes) -> None:
        """Of asyncio's protocol."""
        try:
            super().data_received(data)
            if self._awaits_too_long_a_frame() or self._leaves_too_much_unread():
                self.abort()
        except Exception as error:  # noqa: BLE001  # whatever these bytes do to HTTP/2, they end this connection alone
            log.warning("a connection was closed: its bytes gave %r", error)
            self.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Of asyncio's protocol."""
        super().connection_lost(exc)
        self._load.closed(self)

    def _awaits_too_long_a_frame(self) -> bool:
        # RFC 9113, section 4.2: at most SETTINGS_MAX_FRAME_SIZE. h2 collects the whole frame, up to 16 MiB, before it
        # says so; the three bytes that announce the length already do.
        http2 = self.connection._connection  # noqa: SLF001  # there is no public way to what h2 has not parsed yet
        unparsed = http2.incoming_buffer._data  # noqa: SLF001
        return len(unparsed) >= 9 and int.from_bytes(unparsed[:3], "big") > http2.max_inbound_frame_size

    def _leaves_too_much_unread(self) -> bool:
        # Answers wait for the client's flow control. Acknowledgements of its pings and settings do not.
        return self._transport is not None and self._transport.get_write_buffer_size() > UNREAD_MAX_BYTES

    async def finish(self) -> None:
        """Closes it; calls in progress are cut."""
        self.processor.close("the agent stops")
        await self.calls.wait_closed()

    def abort(self) -> None:
        """Closes it at once."""
        if self._transport is not None:
            self._transport.abort()


async def _answer(
    stream: ServerStream[_Request, _Response],
    kind: type[_Request],
    answer: Callable[[_Request], _Response],
    status_of: Callable[[InvalidCall], GrpcStatus] | None = None,
) -> None:
    request = await _receive(stream, kind)
    with _told(status_of or _status_of):
        response = answer(request)
    await stream.send_message(response)


@contextlib.contextmanager
def _told(status_of: Callable[[InvalidCall], GrpcStatus]) -> Iterator[None]:
    try:
        yield
    except InvalidCall as error:
        raise GRPCError(status_of(error), _shown(error)) from None
    except Exception:
        log.exception("a call failed inside the agent")
        raise GRPCError(GrpcStatus.INTERNAL, "the agent failed; its log says how") from None


async def _receive(stream: ServerStream[_Request, _Response], kind: type[_Request]) -> _Request:
    """The request of a unary call.

    grpclib's `recv_message` reads whatever size is announced, up to 4 GiB, and answers UNKNOWN to bytes that do not
    decode. So the length-prefixed message (gRPC over HTTP2, "Requests") is read here, against a limit.
    """
    raw = stream._stream  # noqa: SLF001  # there is no public way to a message's bytes
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS):
            prefix = await raw.recv_data(5)
            if not prefix:
                raise GRPCError(GrpcStatus.INVALID_ARGUMENT, "the call has no request")
            size = int.from_bytes(prefix[1:], "big")
            if prefix[0]:
                raise GRPCError(GrpcStatus.UNIMPLEMENTED, "compressed requests are not supported")
            if size > REQUEST_MAX_BYTES:
                raise GRPCError(
                    GrpcStatus.RESOURCE_EXHAUSTED,
                    f"a request of {size} bytes; at most {REQUEST_MAX_BYTES}",
                )
            body = await raw.recv_data(size)
    except TimeoutError:
        raise GRPCError(
            GrpcStatus.DEADLINE_EXCEEDED, f"the request did not arrive within {REQUEST_TIMEOUT_SECONDS} s"
        ) from None
    except AssertionError:  # how grpclib's buffer says that the stream ended early
        body, size = b"", 1
    if len(body) != size:
        raise GRPCError(GrpcStatus.INVALID_ARGUMENT, "the call ended in the middle of its request")
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise GRPCError(
            GrpcStatus.INVALID_ARGUMENT, f"the request is not a {kind.DESCRIPTOR.full_name}: {_shown(error)}"
        ) from None


def _status_of(error: InvalidCall) -> GrpcStatus:
    match error:
        case FlagNotFound() | NamespaceNotFound():
            return GrpcStatus.NOT_FOUND
        case FlagNotUsable():
            return GrpcStatus.INTERNAL
        case _:
            return GrpcStatus.INVALID_ARGUMENT


def _flagd_status(error: InvalidCall) -> GrpcStatus:
    from .flagd import code_of

    return GrpcStatus[code_of(error).upper()]


def _shown(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= ERROR_MAX_CHARACTERS else f"{text[:ERROR_MAX_CHARACTERS]}…"


def _filling(stream: ServerStream[_Request, _Response]) -> Filling:
    headers = stream.metadata
    if not headers:
        return NO_FILLING
    return Filling(str(headers.get(NAMESPACE_HEADER, "")), str(headers.get(ENVIRONMENT_HEADER, "")))


def _selected(stream: ServerStream[_Request, _Response]) -> str:
    headers = stream.metadata
    if not headers:
        return ""
    return selected(str(headers.get(SELECTOR_HEADER, "")), str(headers.get(FLAGCAST_HEADER, "")))


def _ignore(_: object) -> None:
    pass
