"""Header blocks: HPACK's decoder with a memory of whole blocks, and blocks of answers that are prepared once (RFC 7541).

Clients send the same headers with every call. A block that leaves the dynamic table as it is means the same as long as the table
stays so, and is looked up by its bytes then.
"""

import re
from collections import deque
from collections.abc import Collection
from typing import Final, NamedTuple

from flagcast_agent.limits import HEAD_MAX_BYTES, HEADERS_MAX

from . import huffman

TABLE_MAX_BYTES: Final = 4_096
"""The dynamic table's largest size, which is the initial one (RFC 9113, 6.5.2)."""
EMPTY_TABLE: Final = b"\x20"
"""The beginning of a block after which the table of whoever reads it has no room (RFC 7541, 6.3)."""
TIMEOUT: Final = "grpc-timeout"
"""A header whose value differs from call to call while all others stay."""

_ENTRY_OVERHEAD: Final = 32  # RFC 7541, 4.1
_ENTRY_MEMORY: Final = 400  # of Python's objects for a header, beside its text
_KEPT_MAX_BYTES: Final = (
    65_536  # of blocks and headers that are remembered: a dozen sets as most clients send them
)
_TEXTS_MAX: Final = 256
_TEXT_MAX_BYTES: Final = 64
_TIMEOUT_MAX: Final = 16  # characters; what is longer than nine is wrong anyway

_INDEXED: Final = 0x80
_INSERTED: Final = 0x40
_TABLE_SIZE: Final = 0x20
_HUFFMAN: Final = 0x80
_INTEGER_MAX_BYTES: Final = 5

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE: Final = re.compile(rb"[^\0\r\n\t ](?:[^\0\r\n]*[^\0\r\n\t ])?|")
_PSEUDO: Final = frozenset({":method", ":scheme", ":path", ":authority"})
_NEEDED: Final = (":method", ":scheme", ":path")
# RFC 9113, 8.2.2.
_OF_A_CONNECTION: Final = frozenset(
    {"connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"}
)


class NotHpack(Exception):
    """A block that cannot be decoded, so that no later one can be either (RFC 9113, 4.3)."""


class TooManyHeaders(Exception):
    """More or longer headers than HEADERS_MAX and HEAD_MAX_BYTES allow."""


class Entry(NamedTuple):
    """One header. `fault` tells why no request may have it."""

    name: str
    value: str
    size: int
    fault: str


class Fields:
    """The headers of a request but for TIMEOUT, whose value differs from call to call.

    `fault` tells why it is malformed (RFC 9113, 8.1.1), "" where it is not; `trailers_fault` the same of trailers. `length` is
    the body's announced one in bytes, None without. `memory` is about what all this takes, in bytes. `route` is for whoever
    answers: what was found once for these headers.
    """

    __slots__ = (
        "authority",
        "fault",
        "headers",
        "length",
        "memory",
        "method",
        "path",
        "route",
        "trailers_fault",
    )

    def __init__(self, entries: Collection[Entry]) -> None:
        pseudo: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.length: int | None = None
        self.route: object = None
        self.fault = ""
        self.memory = len(entries) * _ENTRY_MEMORY
        for name, value, size, fault in entries:
            self.memory += size
            if fault:
                self.fault = fault
            elif name.startswith(":"):
                if self.headers or name in pseudo:
                    self.fault = f"{name} twice or after the other headers"
                pseudo[name] = value
            else:
                former = self.headers.get(name)
                self.headers[name] = value if former is None else f"{former},{value}"
        self.method = pseudo.get(":method", "")
        self.path = pseudo.get(":path", "")
        self.authority = pseudo.get(":authority", "")
        self.trailers_fault = self.fault or (f"{next(iter(pseudo))} among trailers" if pseudo else "")  # 8.1
        if missing := [name for name in _NEEDED if not pseudo.get(name)]:
            self.fault = self.fault or f"no {missing[0]}"
        self._read_length()

    def _read_length(self) -> None:
        written = self.headers.get("content-length")
        if written is not None:
            if written.isascii() and written.isdigit() and len(written) <= 19:
                self.length = int(written)
            else:
                self.fault = "a content-length that is no number"


def _entry(name: bytes, value: bytes) -> Entry:
    fault = ""
    text = name.decode("latin-1")
    if name.startswith(b":"):
        if text not in _PSEUDO:
            fault = "an unknown pseudo-header"
    elif not _NAME.fullmatch(name):
        fault = "a header's name that is none"
    elif text in _OF_A_CONNECTION or (text == "te" and value != b"trailers"):
        fault = f"{text}, which HTTP/2 does not have"
    if not _VALUE.fullmatch(value):
        fault = "a header's value that is none"
    return Entry(text, value.decode("latin-1"), len(name) + len(value) + _ENTRY_OVERHEAD, fault)


# RFC 7541, appendix A, each with "=" before its value. Names that no request may have are found to be so like any other.
_STATIC_TEXT: Final = (
    b":authority= :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https :status=200 :status=204 "
    b":status=206 :status=304 :status=400 :status=404 :status=500 accept-charset= accept-encoding=gzip,_deflate "
    b"accept-language= accept-ranges= accept= access-control-allow-origin= age= allow= authorization= cache-control= "
    b"content-disposition= content-encoding= content-language= content-length= content-location= content-range= content-type= "
    b"cookie= date= etag= expect= expires= from= host= if-match= if-modified-since= if-none-match= if-range= "
    b"if-unmodified-since= last-modified= link= location= max-forwards= proxy-authenticate= proxy-authorization= range= "
    b"referer= refresh= retry-after= server= set-cookie= strict-transport-security= transfer-encoding= user-agent= vary= via= "
    b"www-authenticate="
)
_STATIC: Final = (
    Entry("", "", 0, "index 0, which means no header"),
    *(_entry(*pair.replace(b"_", b" ").split(b"=", 1)) for pair in _STATIC_TEXT.split(b" ")),
)
_FIRST_DYNAMIC: Final = len(_STATIC)


class Decoder:
    """One connection's headers."""

    def __init__(self) -> None:
        self._dynamic: deque[Entry] = deque()  # the newest first
        self._size = 0
        self._size_max = TABLE_MAX_BYTES
        # Blocks that left the table as it is, with what they mean while it stays so; then what each set of headers is.
        self._blocks: dict[bytes, tuple[Fields, str]] = {}
        self._forms: dict[tuple[Entry, ...], Fields] = {}
        self._kept = 0
        self._texts: dict[bytes, bytes] = {}

    def decode(self, block: bytes) -> tuple[Fields, str]:
        """A request's headers, and its TIMEOUT, "" without one.

        Raises:
            NotHpack: the connection cannot go on.
            TooManyHeaders
        """
        known = self._blocks.get(block)
        if known is not None:
            return known
        entries, is_changed = self._entries(block)
        timeout = ""
        for at, entry in enumerate(entries):
            if entry.name == TIMEOUT and not entry.fault:
                if not entries[at + 1 :] or not entries[at + 1].name.startswith(":"):  # which would be late
                    timeout = entry.value[:_TIMEOUT_MAX]
                    del entries[at]
                break
        form = tuple(entries)
        fields = self._forms.get(form)
        if fields is None:
            fields = Fields(form)
            if self._keeps(fields.memory):
                self._forms[form] = fields
        if is_changed:
            self._blocks.clear()
        elif self._keeps(len(block) + _ENTRY_MEMORY) and form in self._forms:
            self._blocks[block] = fields, timeout
        return fields, timeout

    def _keeps(self, size: int) -> bool:
        # What is large is not remembered: a client could fill the memory with what it sends once.
        if size > _KEPT_MAX_BYTES // 4:
            return False
        self._kept += size
        if self._kept > _KEPT_MAX_BYTES:
            self._forms.clear()
            self._blocks.clear()
            self._kept = size
        return True

    def _entries(self, block: bytes) -> tuple[list[Entry], bool]:
        at, end, size = 0, len(block), 0
        entries: list[Entry] = []
        dynamic = self._dynamic
        is_changed = False
        while at < end:
            first = block[at]
            at += 1
            if first & _INDEXED:
                index = first & 0x7F
                if index == 0x7F:
                    index, at = _integer(block, at, index)
                entry = self._at(index)
                if not index:
                    raise NotHpack("index 0")
            elif first & _INSERTED or not first & _TABLE_SIZE:
                prefix = 0x3F if first & _INSERTED else 0x0F
                index = first & prefix
                if index == prefix:
                    index, at = _integer(block, at, index)
                if index:
                    name = self._at(index).name.encode("latin-1")
                else:
                    name, at = self._text(block, at)
                value, at = self._text(block, at)
                entry = _entry(name, value)
                if first & _INSERTED:
                    is_changed = True
                    dynamic.appendleft(entry)
                    self._size += entry.size
                    self._evict()
            else:
                size_max = first & 0x1F
                if size_max == 0x1F:
                    size_max, at = _integer(block, at, size_max)
                if entries or size_max > TABLE_MAX_BYTES:  # RFC 7541, 4.2 and 6.3
                    raise NotHpack("a table size that is too large, or after a header")
                is_changed = True
                self._size_max = size_max
                self._evict()
                continue
            entries.append(entry)
            size += entry.size
            # A byte may mean an entry of kilobytes. All of them were decoded, so that the table stays right, but are not kept.
            if size > HEAD_MAX_BYTES or len(entries) > HEADERS_MAX:
                raise TooManyHeaders
        return entries, is_changed

    def _at(self, index: int) -> Entry:
        if index < _FIRST_DYNAMIC:
            return _STATIC[index]
        try:
            return self._dynamic[index - _FIRST_DYNAMIC]
        except IndexError:
            raise NotHpack("an index beyond the table") from None

    def _evict(self) -> None:
        while self._size > self._size_max:
            self._size -= self._dynamic.pop().size

    def _text(self, block: bytes, at: int) -> tuple[bytes, int]:
        if at >= len(block):
            raise NotHpack("a block that is cut short")
        first = block[at]
        at += 1
        length = first & 0x7F
        if length == 0x7F:
            length, at = _integer(block, at, length)
        stop = at + length
        if stop > len(block):
            raise NotHpack("a block that is cut short")
        text = block[at:stop]
        if first & _HUFFMAN:
            plain = self._texts.get(text)
            if plain is None:
                try:
                    plain = huffman.decode(text)
                except huffman.NotHuffman as error:
                    raise NotHpack(str(error)) from None
                if length <= _TEXT_MAX_BYTES:
                    if len(self._texts) == _TEXTS_MAX:
                        self._texts.clear()
                    self._texts[text] = plain
            text = plain
        return text, stop


def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    # RFC 7541, 5.1. No number here needs more bytes.
    value, shift = prefix, 0
    for place in range(at, at + _INTEGER_MAX_BYTES):
        if place >= len(block):
            raise NotHpack("a block that is cut short")
        value += (block[place] & 0x7F) << shift
        if not block[place] & 0x80:
            return value, place + 1
        shift += 7
    raise NotHpack("a number of too many bytes")


def block_of(*headers: tuple[str, str]) -> bytes:
    """A block of headers that leaves the client's dynamic table as it is."""
    return b"".join(_literal(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers)


def _literal(name: bytes, value: bytes) -> bytes:
    # RFC 7541, 6.1 and 6.2.2: the static table's index of the whole header, or a literal without indexing, with an index for its
    # name where there is one.
    named = [index for index, entry in enumerate(_STATIC) if index and entry.name.encode("latin-1") == name]
    for index in named:
        if value and _STATIC[index].value.encode("latin-1") == value:
            return bytes([_INDEXED | index])
    if named:
        return _number(named[0], 0x0F) + _length(len(value)) + value
    return b"\0" + _length(len(name)) + name + _length(len(value)) + value


def _length(size: int) -> bytes:
    return _number(size, 0x7F)


def _number(value: int, prefix: int) -> bytes:
    if value < prefix:
        return bytes([value])
    written = [prefix]
    value -= prefix
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])
