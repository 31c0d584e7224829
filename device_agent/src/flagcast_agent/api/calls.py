"""One gRPC call: its request against the limits, its answer, and the status of what has none.

Statuses are chosen so that no client retries a question whose answer will be the same: never UNKNOWN or UNAVAILABLE for an
evaluation.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from grpclib.const import Status as GrpcStatus
from grpclib.exceptions import GRPCError
from grpclib.server import Stream as ServerStream

from flagcast_agent.limits import ERROR_MAX_CHARACTERS, REQUEST_MAX_BYTES, REQUEST_TIMEOUT_SECONDS
from flagcast_shared.errors import FlagNotFound, FlagNotUsable, InvalidCall, NamespaceNotFound

log = logging.getLogger(__name__)

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)


async def answer_call(
    stream: ServerStream[_Request, _Response],
    kind: type[_Request],
    answer: Callable[[_Request], _Response],
    status: Callable[[InvalidCall], GrpcStatus] | None = None,
) -> None:
    """Answers a call of one request and one response; `status` says what an InvalidCall becomes, `status_of` unless given."""
    request = await receive(stream, kind)
    with told(status or status_of):
        response = answer(request)
    await stream.send_message(response)


@contextlib.contextmanager
def told(status: Callable[[InvalidCall], GrpcStatus]) -> Iterator[None]:
    """Whatever goes wrong inside becomes the call's status."""
    try:
        yield
    except InvalidCall as error:
        raise GRPCError(status(error), shown(error)) from None
    except Exception:
        log.exception("a call failed inside the agent")
        raise GRPCError(GrpcStatus.INTERNAL, "the agent failed; its log says how") from None


async def receive(stream: ServerStream[_Request, _Response], kind: type[_Request]) -> _Request:
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
            GrpcStatus.INVALID_ARGUMENT, f"the request is not a {kind.DESCRIPTOR.full_name}: {shown(error)}"
        ) from None


def status_of(error: InvalidCall) -> GrpcStatus:
    """Flipt's status of a question without an answer."""
    match error:
        case FlagNotFound() | NamespaceNotFound():
            return GrpcStatus.NOT_FOUND
        case FlagNotUsable():
            return GrpcStatus.INTERNAL
        case _:
            return GrpcStatus.INVALID_ARGUMENT


def shown(error: Exception) -> str:
    """An error's text within ERROR_MAX_CHARACTERS."""
    text = str(error)
    return text if len(text) <= ERROR_MAX_CHARACTERS else f"{text[:ERROR_MAX_CHARACTERS]}…"
