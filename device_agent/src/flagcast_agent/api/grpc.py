"""The gRPC services on the agent's sockets, by grpclib: Flipt's evaluation, Flagcast's own, health and reflection.

No decision about flags is made here: a request becomes a Question, a reply a message, an InvalidCall a status. Whatever a
client sends ends its own call or connection and nobody else's. Statuses are chosen so that no client retries a question
whose answer will be the same: never UNKNOWN or UNAVAILABLE for an evaluation.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import grpclib.const
import grpclib.protocol
import grpclib.server
from google.protobuf.message import DecodeError, Message
from grpclib.config import Configuration
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

from flagcast_agent.evaluator import Evaluator, Knowledge
from flagcast_agent.limits import (
    CONNECTIONS_MAX,
    ERROR_MAX_CHARACTERS,
    REQUEST_MAX_BYTES,
    REQUEST_TIMEOUT_SECONDS,
    SHUTDOWN_GRACE_SECONDS,
)
from flagcast_agent.status import Status
from flagcast_shared.errors import FlagNotFound, FlagNotUsable, InvalidCall, NamespaceNotFound

from . import messages
from .answers import ENVIRONMENT_HEADER, NAMESPACE_HEADER, NO_FILLING, Answers, Filling
from .protos import flagcast_agent_pb2 as agent
from .protos import flipt_evaluation_pb2 as flipt
from .protos.flagcast_agent_grpc import AgentBase
from .protos.flipt_evaluation_grpc import EvaluationServiceBase
from .protos.pool import POOL, add_file

if TYPE_CHECKING:
    from grpclib._typing import IServable

EVALUATION_SERVICE = "flipt.evaluation.EvaluationService"
AGENT_SERVICE = "flagcast.agent.v1.Agent"

log = logging.getLogger(__name__)

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


class LocalServer:
    """Serves the local interfaces on sockets that are bound already; runs in one event loop.

    `status` is asked once for every Status call and must not block.
    """

    def __init__(self, answers: Answers, evaluator: Evaluator, status: Callable[[], Status]) -> None:
        self._evaluator = evaluator
        self._readiness = _Readiness(evaluator)
        evaluation = _Evaluation(answers)
        own = _Agent(answers, status)
        health = Health({OVERALL: [], evaluation: [self._readiness], own: []})
        services: list[IServable] = ServerReflection.extend([evaluation, own, health], pool=POOL)
        self._methods = {
            name: method for service in services for name, method in service.__mapping__().items()
        }
        self._load = _Load()
        self._listening: list[asyncio.Server] = []
        self._forget: Callable[[], None] | None = None

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Begins to answer on bound stream sockets, Unix or TCP."""
        loop = asyncio.get_running_loop()

        def activated(_: Knowledge) -> None:
            # Activations may come from another thread, and one may come while the loop ends.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._readiness.changed)

        self._forget = self._evaluator.listen(activated)
        for bound in sockets:
            if bound.family == socket.AF_UNIX:
                server = await loop.create_unix_server(self._accept, sock=bound, backlog=CONNECTIONS_MAX)
            else:
                server = await loop.create_server(self._accept, sock=bound, backlog=CONNECTIONS_MAX)
            self._listening.append(server)

    async def stop(self, grace: float = SHUTDOWN_GRACE_SECONDS) -> None:
        """Accepts no more connections, gives calls in progress `grace` seconds to end, then closes everything."""
        if self._forget is not None:
            self._forget()
            self._forget = None
        for server in self._listening:
            server.close()
        await _within(grace, self._load.idle)
        connections = tuple(self._load.connections)
        for connection in connections:
            connection.processor.close("the agent stops")
        await asyncio.gather(*(connection.calls.wait_closed() for connection in connections))
        await _within(grace, self._load.unconnected)
        for connection in tuple(self._load.connections):
            connection.abort()  # a client that does not read what it asked for
        for server in self._listening:
            await server.wait_closed()
        self._listening.clear()

    def _accept(self) -> asyncio.Protocol:
        if len(self._load.connections) >= CONNECTIONS_MAX:
            log.warning("a connection was refused: %d are open", CONNECTIONS_MAX)
            return _Refusal()
        return _Connection(_Calls(self._methods, self._load), self._load)


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

    def __init__(self, answers: Answers, status: Callable[[], Status]) -> None:
        self._answers = answers
        self._status = status

    async def Status(  # noqa: N802  # the .proto's name
        self, stream: ServerStream[agent.StatusRequest, agent.StatusResponse]
    ) -> None:
        await _answer(stream, agent.StatusRequest, lambda _: messages.status_response(self._status()))

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


class _Load:
    # What all connections together are doing.

    def __init__(self) -> None:
        self.connections: set[_Connection] = set()
        self.calls = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.unconnected = asyncio.Event()
        self.unconnected.set()


class _Calls(grpclib.server.Handler):
    # The calls of one connection.

    def __init__(self, methods: Mapping[str, grpclib.const.Handler], load: _Load) -> None:
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
        self._load.calls += 1
        self._load.idle.clear()
        is_released = False

        def release(_: object = None) -> None:
            nonlocal is_released
            if is_released:
                return
            is_released = True
            release_stream()
            self._load.calls -= 1
            if not self._load.calls:
                self._load.idle.set()

        super().accept(stream, usable, release)
        # A call that is reset before its task ever ran would keep its stream for as long as the connection lives.
        self._tasks[stream].add_done_callback(release)


class _Connection(grpclib.protocol.H2Protocol):
    # One client.

    def __init__(self, calls: _Calls, load: _Load) -> None:
        super().__init__(calls, _CONFIGURATION, _H2)
        self.calls = calls
        self._load = load
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # RFC 9113, section 5.5: frames of an unknown type are ignored.
        self.processor.processors[UnknownFrameReceived] = _ignore
        if isinstance(transport, asyncio.Transport):
            self._transport = transport
        self._load.connections.add(self)
        self._load.unconnected.clear()

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
            if self._awaits_too_long_a_frame():
                self.abort()
        except Exception as error:  # noqa: BLE001  # whatever these bytes do to HTTP/2, they end this connection alone
            log.warning("a connection was closed: its bytes gave %r", error)
            self.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._load.connections.discard(self)
        if not self._load.connections:
            self._load.unconnected.set()

    def _awaits_too_long_a_frame(self) -> bool:
        # RFC 9113, section 4.2: at most SETTINGS_MAX_FRAME_SIZE. h2 collects the whole frame, up to 16 MiB, before it
        # says so; the three bytes that announce the length already do.
        http2 = self.connection._connection  # noqa: SLF001  # there is no public way to what h2 has not parsed yet
        unparsed = http2.incoming_buffer._data  # noqa: SLF001
        return len(unparsed) >= 9 and int.from_bytes(unparsed[:3], "big") > http2.max_inbound_frame_size

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Refusal(asyncio.Protocol):
    # A connection above the limit: closed at once, so that the client hears of it.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


async def _answer(
    stream: ServerStream[_Request, _Response],
    kind: type[_Request],
    answer: Callable[[_Request], _Response],
) -> None:
    request = await _receive(stream, kind)
    try:
        response = answer(request)
    except InvalidCall as error:
        raise GRPCError(_status_of(error), _shown(error)) from None
    except Exception:
        log.exception("a call failed inside the agent")
        raise GRPCError(GrpcStatus.INTERNAL, "the agent failed; its log says how") from None
    await stream.send_message(response)


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


def _shown(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= ERROR_MAX_CHARACTERS else f"{text[:ERROR_MAX_CHARACTERS]}…"


def _filling(stream: ServerStream[_Request, _Response]) -> Filling:
    headers = stream.metadata
    if not headers:
        return NO_FILLING
    return Filling(str(headers.get(NAMESPACE_HEADER, "")), str(headers.get(ENVIRONMENT_HEADER, "")))


def _ignore(_: object) -> None:
    pass


async def _within(seconds: float, event: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
