"""gRPC on the agent's sockets, by grpclib: the connection, and Flipt's service; every other service is `services`'.

No decision about flags is made here: a request becomes a Question, a reply a message, an InvalidCall a status. Whatever a
client sends ends its own call or connection and nobody else's.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import grpclib.const
import grpclib.protocol
import grpclib.server
from google.protobuf.message import Message
from grpclib.config import Configuration
from grpclib.const import Cardinality
from grpclib.const import Status as GrpcStatus
from grpclib.encoding.proto import ProtoCodec
from grpclib.events import _DispatchServerEvents
from grpclib.exceptions import GRPCError
from grpclib.server import Stream as ServerStream
from h2.config import H2Configuration
from h2.events import UnknownFrameReceived

from flagcast_agent.limits import UNREAD_MAX_BYTES

from . import messages
from .answers import ENVIRONMENT_HEADER, NAMESPACE_HEADER, NO_FILLING, Answers, Filling
from .calls import answer_call
from .load import Load
from .protos import flipt_evaluation_pb2 as flipt
from .protos.flipt_evaluation_grpc import EvaluationServiceBase

if TYPE_CHECKING:
    from grpclib._typing import IServable

    from .services import OtherServices

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


class GrpcCalls:
    """What every gRPC connection can be asked; `connection` makes one.

    `others` makes the services beside Flipt's, and is asked for them by the first call that is not for Flipt's.
    """

    def __init__(self, answers: Answers, load: Load, others: "Callable[[IServable], OtherServices]") -> None:
        self._load = load
        evaluation = _Evaluation(answers)
        self._methods = _Methods(evaluation.__mapping__(), lambda: others(evaluation))

    def connection(self) -> "GrpcConnection":
        """The protocol of one client."""
        return GrpcConnection(_Calls(self._methods, self._load), self._load)


class _Methods(dict[str, grpclib.const.Handler]):
    # What can be called, by its path. grpclib looks methods up by `get` alone. What cannot be called is a method that fails:
    # grpclib's own answer has no content-type, which Go's clients make UNKNOWN of.

    def __init__(
        self, evaluation: dict[str, grpclib.const.Handler], others: "Callable[[], OtherServices]"
    ) -> None:
        super().__init__(evaluation)
        self._others: Callable[[], OtherServices] | None = others

    def get(self, path: str, default: Any = None) -> Any:  # noqa: ANN401, ARG002  # as the dictionary's
        if path not in self and self._others is not None:
            self.update(self._others().methods)
            self._others = None
        return super().get(path, _NO_METHOD)


async def _unimplemented(stream: ServerStream[Message, Message]) -> None:  # noqa: ARG001  # a method's signature
    raise GRPCError(GrpcStatus.UNIMPLEMENTED, "no such method; reflection lists the services")


_NO_METHOD = grpclib.const.Handler(_unimplemented, Cardinality.STREAM_STREAM, Message, Message)


class _Evaluation(EvaluationServiceBase):
    # Flipt's service (FLIPT: evaluation.proto).

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    async def Boolean(  # noqa: N802  # the .proto's name
        self, stream: ServerStream[flipt.EvaluationRequest, flipt.BooleanEvaluationResponse]
    ) -> None:
        filling = _filling(stream)
        await answer_call(
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
        await answer_call(
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
        await answer_call(
            stream,
            flipt.BatchEvaluationRequest,
            lambda request: messages.batch_response(
                self._answers.batch(
                    [messages.question(entry) for entry in request.requests], request.request_id, filling
                )
            ),
        )


class _Calls(grpclib.server.Handler):
    # The calls of one connection.

    def __init__(self, methods: _Methods, load: Load) -> None:
        super().__init__(methods, ProtoCodec(), None, _NO_EVENTS)
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


def _filling(stream: ServerStream[_Request, _Response]) -> Filling:
    headers = stream.metadata
    if not headers:
        return NO_FILLING
    return Filling(str(headers.get(NAMESPACE_HEADER, "")), str(headers.get(ENVIRONMENT_HEADER, "")))


def _ignore(_: object) -> None:
    pass
