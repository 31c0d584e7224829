"""The Connect protocol for flagd's service: unary calls in protobuf and JSON, and its event stream, over HTTP/1.1.

Go's provider speaks nothing else, and PHP's posts JSON to the service's former name. Errors and framing are those of the
Connect protocol (connectrpc.com/docs/protocol): a unary error is an HTTP status with a JSON object; a stream always begins with
200 and says in its last message how it ended.
"""

import asyncio
import contextlib
import struct
import sys
from collections.abc import AsyncGenerator, Mapping
from types import MappingProxyType
from typing import Final

from flagcast_agent.limits import ERROR_MAX_CHARACTERS
from flagcast_shared.errors import InvalidCall

from .changes import Stopping
from .flagd import (
    METHODS,
    Flagd,
    Method,
    code_of,
    compact,
    decoded,
)
from .flagd_events import as_json, as_message
from .http1 import Request
from .protos import flagd_evaluation_v2_pb2 as flagd
from .questions import Question
from .resolutions import (
    FLAGD_V1_SERVICE,
    FLAGD_V2_SERVICE,
    NAMESPACE_HEADER,
    SELECTOR_HEADER,
    memory_of,
    selected,
)
from .web import JSON, Answer, Large, Reply, Stream

FORMER_SERVICE: Final = "schema.v1.Service"
"""What the first version was called before; PHP's provider still does."""

PROTO: Final = "application/proto"
STREAM_PROTO: Final = "application/connect+proto"
STREAM_JSON: Final = "application/connect+json"

STATUS_OF: Final[Mapping[str, int]] = MappingProxyType(
    {
        "invalid_argument": 400,
        "deadline_exceeded": 504,
        "not_found": 404,
        "resource_exhausted": 429,
        "unimplemented": 501,
        "internal": 500,
        "unavailable": 503,
        "data_loss": 500,
    }
)

_END: Final = 0x02
_COMPRESSED: Final = 0x01


class _Refused(Exception):
    # A call that Connect itself refuses.

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


class Connect:
    """flagd's service for whoever speaks Connect."""

    def __init__(self, flagd: Flagd) -> None:
        self._flagd = flagd
        self._paths = {
            f"/{service}/{name}": (name, service != FLAGD_V2_SERVICE)
            for service in (FLAGD_V2_SERVICE, FLAGD_V1_SERVICE, FORMER_SERVICE)
            for name in (*METHODS, "ResolveAll", "EventStream")
        }

    def serves(self, path: str) -> bool:
        """Whether a path is a call of this service."""
        return path in self._paths

    def answer(self, path: str, request: Request) -> Answer:
        """The answer to a call of a path that is served."""
        if request.method != "POST":
            return Reply(405, JSON, b"", {"allow": "POST"})
        name, is_first_version = self._paths[path]
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        namespace = selected(
            request.headers.get(SELECTOR_HEADER, ""), request.headers.get(NAMESPACE_HEADER, "")
        )
        if name == "EventStream":
            if content_type not in {STREAM_PROTO, STREAM_JSON}:
                return Reply(415, JSON, b"", {"accept-post": f"{STREAM_PROTO}, {STREAM_JSON}"})
            return self._event_stream(content_type, request, namespace)
        if content_type not in {PROTO, JSON}:
            return Reply(415, JSON, b"", {"accept-post": f"{PROTO}, {JSON}"})
        is_json = content_type == JSON
        try:
            _require_plain(request, "content-encoding")
            if name == "ResolveAll":
                return self._resolve_all(request, namespace, is_json=is_json)
            body = self._resolve(
                METHODS[name], request.body, namespace, is_json=is_json, is_first=is_first_version
            )
        except (InvalidCall, _Refused) as error:
            return _error(error)
        return Reply(200, content_type, body)

    def _resolve(
        self, method: Method, body: bytes, namespace: str, *, is_json: bool, is_first: bool
    ) -> bytes:
        if is_json:
            return self._flagd.resolve_json(method, body, namespace, is_first_version=is_first)
        message = decoded(method.request, body)
        return self._flagd.resolve(method, message, namespace, is_first_version=is_first)

    def _resolve_all(self, request: Request, namespace: str, *, is_json: bool) -> Answer:
        if is_json:
            question = self._flagd.question_for_all_json(request.body, namespace)
        else:
            question = self._flagd.question_for_all(decoded(flagd.ResolveAllRequest, request.body), namespace)
        return Large(lambda: self._answer_all(question, is_json=is_json), memory_of(question))

    async def _answer_all(self, question: Question, *, is_json: bool) -> Reply:
        try:
            if is_json:
                return Reply(200, JSON, await self._flagd.resolve_all_json(question))
            return Reply(200, PROTO, b"".join(await self._flagd.resolve_all(question)))
        except InvalidCall as error:
            return _error(error)

    def _event_stream(self, content_type: str, request: Request, namespace: str) -> Stream:
        try:
            _require_plain(request, "connect-content-encoding")
            _require_one_message(request.body)
            seconds = _timeout(request)
        except _Refused as error:
            return Stream(content_type, _only(_end(error.code, str(error))), 0)
        events = self._events(namespace, seconds, is_json=content_type == STREAM_JSON)
        return Stream(content_type, events, sys.getsizeof(namespace))

    async def _events(
        self, namespace: str, seconds: float | None, *, is_json: bool
    ) -> AsyncGenerator[bytes, None]:
        try:
            async with (
                asyncio.timeout(seconds),
                contextlib.aclosing(
                    self._flagd.events(namespace, as_json if is_json else as_message)
                ) as events,
            ):
                async for event in events:
                    yield _framed(event)
        except InvalidCall as error:
            yield _end(code_of(error), str(error)[:ERROR_MAX_CHARACTERS])
        except TimeoutError:
            yield _end("deadline_exceeded", "the time that the client gave is over")
        except Stopping:
            # Never without an error: some providers would not subscribe again.
            yield _end("unavailable", "the agent stops")


async def _only(part: bytes) -> AsyncGenerator[bytes, None]:
    yield part


def _require_plain(request: Request, header: str) -> None:
    coding = request.headers.get(header, "identity")
    if coding.lower() != "identity":
        raise _Refused("unimplemented", f"compression {coding!r} is not supported; send it plain (identity)")
    version = request.headers.get("connect-protocol-version", "1")
    if version != "1":
        raise _Refused("invalid_argument", f"version {version!r} of Connect is not spoken here; version 1 is")


def _require_one_message(body: bytes) -> None:
    if len(body) < 5:
        raise _Refused("invalid_argument", "the call has no request")
    flags, size = struct.unpack(">BI", body[:5])
    if flags & _COMPRESSED:
        raise _Refused("unimplemented", "compressed requests are not supported")
    if flags or len(body) != 5 + size:
        raise _Refused("invalid_argument", "the call is not exactly one request")


def _timeout(request: Request) -> float | None:
    text = request.headers.get("connect-timeout-ms")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise _Refused("invalid_argument", f"connect-timeout-ms: {text!r} is no number of milliseconds")
    return int(text) / 1000


def _framed(message: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(message)) + message


def _end(code: str, why: str) -> bytes:
    return _framed(compact({"error": {"code": code, "message": why}}), _END)


def _error(error: InvalidCall | _Refused) -> Reply:
    code = error.code if isinstance(error, _Refused) else code_of(error)
    return Reply(STATUS_OF[code], JSON, compact({"code": code, "message": str(error)[:ERROR_MAX_CHARACTERS]}))
