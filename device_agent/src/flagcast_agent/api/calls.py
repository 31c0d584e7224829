"""gRPC's calls without a connection: messages in their frames, statuses, and what answers a method (gRPC over HTTP/2).

Statuses are chosen so that no client retries a question whose answer will be the same: never UNKNOWN or UNAVAILABLE for an
evaluation.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from logging import getLogger
from typing import Final, Protocol, TypeVar
from urllib.parse import quote

from google.protobuf.message import DecodeError, Message

from flagcast_agent.limits import ERROR_MAX_CHARACTERS, REQUEST_MAX_BYTES
from flagcast_shared.errors import AnswerTooLarge, FlagNotFound, FlagNotUsable, InvalidCall, NamespaceNotFound

from .http2.headers import Fields, block_of

log = getLogger(__name__)

_Request = TypeVar("_Request", bound=Message)

CONTENT_TYPE: Final = "application/grpc"
_PREFIX_BYTES: Final = 5
_TIMEOUT: Final = re.compile(r"([0-9]{1,8})([HMSmun])", re.ASCII)
_SECONDS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class Status(IntEnum):
    """How a call ended (gRPC's status codes)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class CallFailed(Exception):
    """A call that ends with a status other than OK."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status


class Call(Protocol):
    """One call that takes time; `request` is its message's bytes, b"" of a method that reads several."""

    fields: Fields
    request: bytes

    def begin(self) -> None:
        """Sends the headers of the answer, if they were not yet."""

    async def send(self, *parts: bytes) -> None:
        """Sends a message, and waits until the client has room for more. Its parts are not copied into one."""

    async def receive(self) -> bytes | None:
        """The next message of the client; None after its last one. Raises CallFailed."""

    def turn(self) -> AbstractAsyncContextManager[None]:
        """The time in which a large answer may be made: one at a time for all clients. Raises CallFailed."""


@dataclass(frozen=True, slots=True)
class Lasting:
    """A method that takes time, or sends several messages; `reads_several`: the client does too."""

    run: Callable[[Call], Awaitable[None]]
    reads_several: bool = False


@dataclass(frozen=True, slots=True)
class Unary:
    """A method whose answer is there at once; raises InvalidCall or CallFailed.

    In place of an answer that would keep others waiting it gives the method that makes it, for the same request.
    """

    answer: "Callable[[bytes, Fields], bytes | Lasting]"


Method = Unary | Lasting

HEAD: Final = block_of((":status", "200"), ("content-type", CONTENT_TYPE))
"""Headers of an answer with a message."""
TAIL: Final = block_of(("grpc-status", "0"))
"""Trailers of a call that ended well."""


@lru_cache(64)
def failure_tail(status: Status, why: str) -> bytes:
    """Trailers of a call that failed."""
    return block_of(*_failure(status, why))


@lru_cache(64)
def failure_head(status: Status, why: str) -> bytes:
    """The whole answer of a call that failed before its first message."""
    return block_of((":status", "200"), ("content-type", CONTENT_TYPE), *_failure(status, why))


def _failure(status: Status, why: str) -> tuple[tuple[str, str], ...]:
    # Percent-encoded UTF-8 (gRPC over HTTP/2, "Status-Message").
    return ("grpc-status", str(int(status))), ("grpc-message", quote(why, safe=_PLAIN, errors="replace"))


_PLAIN: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


def framed(message: bytes) -> bytes:
    """A message as it travels: not compressed, with its length before it."""
    return b"\0%b%b" % (len(message).to_bytes(4, "big"), message)


def framed_parts(parts: Sequence[bytes]) -> Sequence[bytes]:
    """The same of a message in parts: what travels, in parts."""
    if len(parts) == 1:
        return (framed(parts[0]),)
    return b"\0" + sum(map(len, parts)).to_bytes(4, "big"), *parts


def announced(body: bytes | bytearray) -> int | None:
    """The size of the message that begins here, in bytes; None while that has not arrived.

    Raises:
        CallFailed: it is compressed, or over REQUEST_MAX_BYTES, whose bytes nobody waits for.
    """
    if len(body) < _PREFIX_BYTES:
        return None
    if body[0]:
        raise CallFailed(Status.UNIMPLEMENTED, "compressed requests are not supported")
    size = int.from_bytes(body[1:_PREFIX_BYTES], "big")
    if size > REQUEST_MAX_BYTES:
        raise CallFailed(Status.RESOURCE_EXHAUSTED, f"a request of {size} bytes; at most {REQUEST_MAX_BYTES}")
    return size


def missing_bytes(body: bytes | bytearray) -> int | None:
    """What the first message still lacks, negative where more than it is there; None while its size has not arrived.

    Raises:
        CallFailed: as `announced`.
    """
    size = announced(body)
    return None if size is None else _PREFIX_BYTES + size - len(body)


def only_message(body: bytes | bytearray) -> bytes:
    """The one message of a call whose client sends nothing more. Raises CallFailed."""
    size = announced(body)
    if size is None:
        why = "the call ended in the middle of its request" if body else "the call has no request"
        raise CallFailed(Status.INVALID_ARGUMENT, why)
    if size > len(body) - _PREFIX_BYTES:
        raise CallFailed(Status.INVALID_ARGUMENT, "the call ended in the middle of its request")
    if size < len(body) - _PREFIX_BYTES:
        raise CallFailed(Status.INVALID_ARGUMENT, "the call has more than one request")
    return bytes(body[_PREFIX_BYTES:])


def first_message(body: bytearray) -> bytes | None:
    """Takes the next message out of a body; None while it has not arrived whole. Raises CallFailed."""
    size = announced(body)
    if size is None or size > len(body) - _PREFIX_BYTES:
        return None
    message = bytes(body[_PREFIX_BYTES : _PREFIX_BYTES + size])
    del body[: _PREFIX_BYTES + size]
    return message


def decoded(kind: type[_Request], body: bytes) -> _Request:
    """A request's message. Raises CallFailed."""
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise CallFailed(
            Status.INVALID_ARGUMENT, f"the request is not a {kind.DESCRIPTOR.full_name}: {shown(error)}"
        ) from None


def seconds_of(timeout: str) -> float | None:
    """The time that a client gives its call, None without one. Raises CallFailed."""
    if not timeout:
        return None
    found = _TIMEOUT.fullmatch(timeout)
    if found is None:
        raise CallFailed(Status.INVALID_ARGUMENT, f"grpc-timeout {timeout[:20]!r} is no time")
    return int(found[1]) * _SECONDS[found[2]]


def failed(error: Exception, status: "Callable[[InvalidCall], Status] | None" = None) -> CallFailed:
    """The status of a call that met `error`; one that nobody expected is logged."""
    match error:
        case CallFailed():
            return error
        case InvalidCall():
            return CallFailed((status or status_of)(error), shown(error))
    log.error("a call failed inside the agent", exc_info=error)
    return CallFailed(Status.INTERNAL, "the agent failed; its log says how")


def status_of(error: InvalidCall) -> Status:
    """Flipt's status of a question without an answer."""
    match error:
        case FlagNotFound() | NamespaceNotFound():
            return Status.NOT_FOUND
        case FlagNotUsable():
            return Status.INTERNAL
        case AnswerTooLarge():
            return Status.RESOURCE_EXHAUSTED
        case _:
            return Status.INVALID_ARGUMENT


def shown(error: Exception) -> str:
    """An error's text within ERROR_MAX_CHARACTERS."""
    text = str(error)
    return text if len(text) <= ERROR_MAX_CHARACTERS else f"{text[:ERROR_MAX_CHARACTERS]}…"
