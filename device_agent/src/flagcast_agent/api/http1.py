"""HTTP/1.1 as local clients speak it: bytes in, requests out; answers as bytes. No socket, no clock.

A strict reader of RFC 9112 for a server that nothing stands in front of: whatever is ambiguous is an error and ends the
connection. Any bytes give requests or BadRequest, however they are cut into pieces; nothing is held beyond the limits.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from flagcast_agent.limits import HEAD_MAX_BYTES, HEADERS_MAX, REQUEST_MAX_BYTES, UNPARSED_MAX_BYTES

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"

REASONS: Final[Mapping[int, str]] = MappingProxyType(
    {
        200: "OK",
        304: "Not Modified",
        400: "Bad Request",
        404: "Not Found",
        405: "Method Not Allowed",
        408: "Request Timeout",
        413: "Content Too Large",
        415: "Unsupported Media Type",
        421: "Misdirected Request",
        429: "Too Many Requests",
        431: "Request Header Fields Too Large",
        500: "Internal Server Error",
        501: "Not Implemented",
        503: "Service Unavailable",
        504: "Gateway Timeout",
        505: "HTTP Version Not Supported",
    }
)

# RFC 9110, section 5.6.2 and 5.5; RFC 9112, section 3. A target has no white space and no control character.
_LINE: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,20}) ([\x21-\x7e\x80-\xff]+) HTTP/(\d)\.(\d)")
_HEADER: Final = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*((?:[\x21-\x7e\x80-\xff](?:[\x20-\x7e\x80-\xff\t]*[\x21-\x7e\x80-\xff])?)?)[ \t]*"
)
_ABSOLUTE: Final = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
_LENGTH: Final = re.compile(r"[0-9]{1,15}")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?")
_CHUNK_LINE_MAX: Final = 1024
_REMEMBERED_MAX: Final = 4
"""Parsed heads that a connection keeps: a client sends the same few, which differ in the length of the body at most."""
_REMEMBERED_MAX_BYTES: Final = 512
"""A longer head is parsed every time; 256 connections keep 2 MB at most."""
_ONCE: Final = frozenset({"host", "content-length", "transfer-encoding", "content-type", "expect"})


class BadRequest(Exception):
    """Bytes that are not a request, or one over a limit; `status` is HTTP's. The connection cannot go on."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Request(NamedTuple):
    """One request. Header names are in lower case; `target` is a path with its query, as it was sent."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""
    is_last: bool = False
    is_chunking: bool = True
    """Whether the client reads chunks: HTTP/1.1, not 1.0."""

    def without_content(self) -> "Request":
        """The request's form, enough to write its answer.

        A client can make nothing in it large.
        """
        return Request(self.method, "", {}, b"", self.is_last, self.is_chunking)


class _Head(NamedTuple):
    method: str
    target: str
    headers: Mapping[str, str]
    is_last: bool
    is_chunking: bool
    length: int | None  # None: in chunks
    size: int  # bytes that it was read from


class RequestReader:
    """The requests of one connection, in order."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._searched = 0
        self._blank = 0
        self._head: _Head | None = None
        self._heads: dict[bytes, _Head] = {}
        self._body = bytearray()
        self._chunk: int | None = None  # bytes of the chunk that are still to come
        self._is_in_trailer = False
        self._trailer = 0
        self.owes_continue = False

    @property
    def is_in_request(self) -> bool:
        """Whether a request has begun and not ended."""
        return self._head is not None or bool(self._bytes)

    @property
    def waiting(self) -> int:
        """Bytes of requests not returned yet, without a parsed head."""
        return len(self._bytes) + len(self._body)

    @property
    def held(self) -> int:
        """Bytes of requests not returned yet, a parsed head included."""
        return self.waiting if self._head is None else self.waiting + self._head.size

    def feed(self, data: bytes | memoryview) -> None:
        """Bytes from the client, in any pieces.

        Raises BadRequest, and keeps none of them, where more than UNPARSED_MAX_BYTES would be held.
        """
        if self.waiting + len(data) > UNPARSED_MAX_BYTES:
            raise BadRequest(413, f"more than {UNPARSED_MAX_BYTES} bytes sent ahead of their answers")
        self._bytes += data

    def next(self) -> Request | None:
        """The next whole request; None until there is one. Raises BadRequest.

        After None, `owes_continue` says that the client waits for CONTINUE before it sends the body.
        """
        if self._head is None:
            self._head = self._read_head()
            if self._head is None:
                return None
            # RFC 9110, section 10.1.1.
            self.owes_continue = self._head.headers.get("expect", "").lower() == "100-continue"
        method, target, headers, is_last, is_chunking, length, _ = self._head
        is_whole = self._read_chunks() if length is None else self._read_body(length)
        if not is_whole:
            return None
        body, self._body = bytes(self._body), bytearray()
        self._head = None
        self.owes_continue = False
        return Request(method, target, headers, body, is_last, is_chunking)

    def _read_head(self) -> _Head | None:
        # RFC 9112, section 2.2: empty lines before a request are ignored.
        blank = 0
        while self._bytes.startswith(b"\r\n", blank):
            blank += 2
        if blank:
            del self._bytes[:blank]
            self._searched = 0
            self._blank += blank
            if self._blank > HEAD_MAX_BYTES:
                raise BadRequest(400, f"more than {HEAD_MAX_BYTES} bytes of empty lines before a request")
        end = self._bytes.find(b"\r\n\r\n", max(0, self._searched - 3))
        if end < 0:
            self._searched = len(self._bytes)
            if self._searched > HEAD_MAX_BYTES:
                raise BadRequest(431, f"a request's head of more than {HEAD_MAX_BYTES} bytes")
            if self._searched and not 0x21 <= self._bytes[0] <= 0x7E and self._bytes[0] != 0x0D:
                raise BadRequest(400, "not HTTP")
            return None
        if end > HEAD_MAX_BYTES:
            raise BadRequest(431, f"a request's head of more than {HEAD_MAX_BYTES} bytes")
        text = bytes(self._bytes[:end])
        del self._bytes[: end + 4]
        self._searched = 0
        self._blank = 0
        self._chunk = None
        self._is_in_trailer = False
        head = self._heads.get(text)
        if head is None:
            head = _parse_head(text)
            if len(text) <= _REMEMBERED_MAX_BYTES:
                if len(self._heads) >= _REMEMBERED_MAX:
                    self._heads.clear()
                self._heads[text] = head
        return head

    def _read_body(self, length: int) -> bool:
        if len(self._bytes) < length:
            return False
        if length:
            self._body = self._bytes[:length]
            del self._bytes[:length]
        return True

    def _read_chunks(self) -> bool:
        # RFC 9112, section 7.1. What stands in a trailer means nothing here.
        while True:
            if self._chunk:
                part = self._bytes[: self._chunk]
                self._body += part
                del self._bytes[: len(part)]
                self._chunk -= len(part)
                if self._chunk:
                    return False
            if self._chunk == 0 and not self._is_in_trailer:
                if len(self._bytes) < 2:
                    return False
                if not self._bytes.startswith(b"\r\n"):
                    raise BadRequest(400, "a chunk longer than its size")
                del self._bytes[:2]
                self._chunk = None
            line = self._take_line()
            if line is None:
                return False
            if self._is_in_trailer:
                if not line:
                    return True
                self._trailer += len(line)
                if self._trailer > HEAD_MAX_BYTES or not _HEADER.fullmatch(line):
                    raise BadRequest(400, "a trailer that cannot be read")
                continue
            size = _CHUNK.fullmatch(line)
            if size is None:
                raise BadRequest(400, "a chunk without a size")
            self._chunk = int(size.group(1), 16)
            if len(self._body) + self._chunk > REQUEST_MAX_BYTES:
                raise BadRequest(413, f"a request of more than {REQUEST_MAX_BYTES} bytes")
            if not self._chunk:
                self._is_in_trailer = True
                self._trailer = 0

    def _take_line(self) -> bytes | None:
        end = self._bytes.find(b"\r\n", 0, _CHUNK_LINE_MAX + 2)
        if end < 0:
            if len(self._bytes) > _CHUNK_LINE_MAX:
                raise BadRequest(400, "a chunk without a size")
            return None
        line = bytes(self._bytes[:end])
        del self._bytes[: end + 2]
        return line


def head_of(
    status: int, headers: Mapping[str, str], *, length: int | None, is_last: bool, is_chunking: bool = True
) -> bytes:
    """The head of an answer; `length` None for a body in chunks or, to a client that reads none, up to the end."""
    lines = [f"HTTP/1.1 {status} {REASONS[status]}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if length is not None:
        # RFC 9110, section 8.6: no length where there may not be a body.
        lines += [] if status == 304 else [f"content-length: {length}"]
    elif is_chunking:
        lines.append("transfer-encoding: chunked")
    if is_last:
        lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def chunk_of(data: bytes) -> bytes:
    """Bytes, not none, as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _parse_head(text: bytes) -> _Head:
    lines = text.split(b"\r\n")
    line = _LINE.fullmatch(lines[0])
    if line is None:
        raise BadRequest(400, "not a request line of HTTP/1.1")
    method, target = line.group(1).decode("ascii"), line.group(2).decode("latin-1")
    if line.group(3) != b"1":
        raise BadRequest(505, "HTTP/1.1 and, with prior knowledge, HTTP/2 are spoken here")
    is_chunking = line.group(4) != b"0"
    headers = _parse_headers(lines[1:])
    if is_chunking and "host" not in headers:
        raise BadRequest(400, "a request without Host")
    absolute = _ABSOLUTE.match(target)
    if absolute:
        target = target[absolute.end() :] or "/"
    connection = {word.strip() for word in headers.get("connection", "").lower().split(",")}
    is_last = "close" in connection or (not is_chunking and "keep-alive" not in connection)
    length = _length_of(headers, is_chunking=is_chunking)
    return _Head(method, target, MappingProxyType(headers), is_last, is_chunking, length, len(text) + 4)


def _parse_headers(lines: list[bytes]) -> dict[str, str]:
    if len(lines) > HEADERS_MAX:
        raise BadRequest(431, f"more than {HEADERS_MAX} headers")
    headers: dict[str, str] = {}
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise BadRequest(400, "a header that cannot be read")
        name, value = found.group(1).decode("ascii").lower(), found.group(2).decode("latin-1")
        if name in headers:
            if name in _ONCE:
                raise BadRequest(400, f"the header {name} twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def _length_of(headers: Mapping[str, str], *, is_chunking: bool) -> int | None:
    # RFC 9112, section 6.3: two ways to tell where a body ends are an attack.
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if length is not None or not is_chunking:
            raise BadRequest(400, "a body whose end is told in two ways")
        if coding.lower() != "chunked":
            raise BadRequest(501, "a transfer coding other than chunked")
        return None
    if length is None:
        return 0
    if not _LENGTH.fullmatch(length):
        raise BadRequest(400, "a Content-Length that is no number")
    if int(length) > REQUEST_MAX_BYTES:
        raise BadRequest(413, f"a request of {length} bytes; at most {REQUEST_MAX_BYTES}")
    return int(length)
