"""Bytes on the wire: deterministic CBOR in, deterministic CBOR out, and compression against a limit.

Any bytes decode to plain values or raise Malformed; nothing else escapes. What decodes has one spelling only
(RFC 8949, 4.2.1). Nothing reaches cbor2 before a scanner has read the heads of all items and counted them.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import cbor2

from .errors import (
    CompressionBomb,
    EmptyPayload,
    Malformed,
    NotDeterministic,
    TooDeep,
    TooLarge,
    TrailingBytes,
)
from .limits import DEPTH_MAX, ITEMS_MAX, NUMBER_MAX, TEXT_MAX_BYTES, WINDOW_BITS

Value = None | bool | int | str | bytes | Sequence["Value"] | Mapping[int, "Value"] | Mapping[str, "Value"]
"""What travels: no floats, no tags; the keys of a map are all non-negative integers or all text."""

_COMPRESSION_LEVEL: Final = 9
_PIECE_BYTES: Final = 65_536
# Inflated at a time: large enough that most records lie in one piece.

# Major types of CBOR (RFC 8949, 3.1), and what a head's low five bits hold.
_UNSIGNED: Final = 0
_NEGATIVE: Final = 1
_BYTES: Final = 2
_TEXT: Final = 3
_ARRAY: Final = 4
_MAP: Final = 5
_TAG: Final = 6
_SIMPLE: Final = 7
_ARGUMENT_INLINE: Final = 23
_ARGUMENT_BYTE: Final = 24
_ARGUMENT_SHORT: Final = 25
_ARGUMENT_LAST: Final = 27
_INDEFINITE: Final = 31
_SHORTEST: Final = (24, 1 << 8, 1 << 16, 1 << 32)
_FALSE: Final = 20
_NULL: Final = 22
_NO_MAP: Final = -1
_ANY_KEY: Final = -2


def encode(value: Value) -> bytes:
    """The one spelling of a value.

    cbor2's canonical order is the length-first one (RFC 8949, 4.2.3). It coincides with the bytewise order of 4.2.1
    as long as all keys of a map are of one type, which `Value` demands.

    Raises:
        Malformed: a text that is not Unicode (it holds a lone surrogate).
    """
    try:
        return cbor2.dumps(value, canonical=True)
    except UnicodeEncodeError as error:
        raise Malformed(f"{error.object!r:.80} is not Unicode text") from error


def decode(data: bytes, what: str) -> Value:
    """Decode one value that fills `data` exactly; `what` names it in errors.

    1. `scan` reads the heads of all items. Only the one spelling of data that travels reaches cbor2: a tag makes cbor2 call
       into half of the standard library (a regular expression, a decimal), and an array costs it 60 times its byte.
    2. cbor2 decodes.

    Raises:
        Malformed: or one of its leaves; the bytes are not CBOR, not deterministic, or hold what never travels.
    """
    return decode_counted(data, what)[0]


def decode_counted(data: bytes, what: str) -> tuple[Value, int]:
    """The same, and how many items it has."""
    if not data:
        raise EmptyPayload(f"{what}: no bytes at all")
    items = scan(data, what)
    try:
        value: Value = cbor2.loads(data)
    except (cbor2.CBORDecodeError, UnicodeDecodeError) as error:
        # The one thing that the scanner leaves.
        raise Malformed(f"{what}: a text that is not UTF-8") from error
    return value, items


def scan(data: bytes, what: str) -> int:
    """Count the items of one value that fills `data` exactly, from their heads alone (RFC 8949, 3 and 4.2.1).

    No recursion, and no object for an item: a stack of counters, at most DEPTH_MAX deep. What passes is the one spelling of
    its data but for texts that are not UTF-8: definite lengths, all numbers in their shortest form, the keys of each map all
    non-negative integers or all texts, in ascending bytewise order of their encodings, and nothing that never travels.

    Raises:
        TooDeep: an array or a map within DEPTH_MAX others, empty or not.
        TooLarge: more than ITEMS_MAX items, announced or there; each key and each value of a map is one.
        TrailingBytes, NotDeterministic, Malformed
    """
    try:
        return _scan(data, what)
    except IndexError as error:
        raise Malformed(f"{what}: cut short") from error


def _scan(data: bytes, what: str) -> int:
    # An IndexError is a head beyond the end. Content that reaches beyond it is noticed there too, or at the end of all.
    at = 0
    items = left = 1  # `left`: items that the innermost container still lacks; of a map, twice its entries.
    keys = _NO_MAP  # Of the innermost container: _NO_MAP, _ANY_KEY, or the major type of its first key.
    last = b""  # The last key of the innermost container, as it is encoded.
    outer: list[
        int
    ] = []  # What the containers around it lack; of a map ~left, and its keys are in `outer_keys`.
    outer_keys: list[tuple[int, bytes]] = []
    while True:
        head = at
        first = data[at]
        at += 1
        left -= 1
        major = first >> 5
        argument = first & 0x1F
        if argument > _ARGUMENT_INLINE:
            # As below, without a call: numbers and lengths below 65,536 are most of those that are not inline.
            if argument == _ARGUMENT_BYTE and major != _SIMPLE and data[at] > _ARGUMENT_INLINE:
                argument = data[at]
                at += 1
            elif argument == _ARGUMENT_SHORT and major != _SIMPLE and data[at]:
                argument = data[at] << 8 | data[at + 1]
                at += 2
            else:
                argument, at = _long_argument(data, at, what)
                # The negative integer is -1 - argument.
                if argument > NUMBER_MAX - major and major <= _NEGATIVE:
                    raise Malformed(f"{what}: an integer beyond 63 bits")
        if major > _TEXT:
            if major > _MAP:
                if major == _TAG:
                    raise NotDeterministic(f"{what}: a tag never travels")
                if not _FALSE <= argument <= _NULL:
                    raise NotDeterministic(f"{what}: a simple value that never travels")
            elif len(outer) == DEPTH_MAX:
                raise TooDeep(f"{what}: nested deeper than {DEPTH_MAX} levels")
            elif argument and (keys == _NO_MAP or not left & 1):
                if keys == _NO_MAP:
                    outer.append(left)
                else:
                    outer.append(~left)
                    outer_keys.append((keys, last))
                if major == _ARRAY:
                    left, keys = argument, _NO_MAP
                else:
                    left, keys, last = 2 * argument, _ANY_KEY, b""
                items += left
                if items > ITEMS_MAX:
                    raise TooLarge(f"{what}: more than {ITEMS_MAX} items")
                continue
        elif major > _NEGATIVE:
            at += argument
        if keys != _NO_MAP and left & 1:
            if major not in (_UNSIGNED, _TEXT):
                raise Malformed(f"{what}: a map key that is neither text nor a small non-negative integer")
            if keys != major:
                if keys != _ANY_KEY:
                    raise NotDeterministic(f"{what}: a map with both text and integer keys")
                keys = major
            key = data[head:at]
            if key <= last:
                raise NotDeterministic(f"{what}: map keys that do not ascend, or one that stands twice")
            last = key
        while not left:
            if not outer:
                if at > len(data):
                    raise Malformed(f"{what}: cut short")
                if at != len(data):
                    raise TrailingBytes(f"{what}: {len(data) - at} bytes after its end")
                return items
            left, keys = outer.pop(), _NO_MAP
            if left < 0:
                left = ~left
                keys, last = outer_keys.pop()


def deflate(data: bytes) -> bytes:
    """Compress as zlib (RFC 1950) with a window of WINDOW_BITS."""
    stream = zlib.compressobj(_COMPRESSION_LEVEL, zlib.DEFLATED, WINDOW_BITS)
    return stream.compress(data) + stream.flush()


def inflate(data: bytes, limit: int, what: str) -> bytes:
    """Decompress one zlib stream that fills `data` exactly, to at most `limit` bytes.

    Raises:
        CompressionBomb, TrailingBytes, Malformed: as `inflated`.
    """
    return b"".join(inflated([data], limit, what))


def inflated(bodies: Iterable[bytes], limit: int, what: str) -> Iterator[bytes]:
    """Inflated bytes, piece by piece, of one zlib stream that fills the joined `bodies` exactly.

    A reader that stops at the first fault has never held more than a piece of a bomb.

    Raises:
        CompressionBomb: it would inflate beyond the limit.
        TrailingBytes: something follows the stream.
        Malformed: it is not a whole zlib stream, or has a larger window than WINDOW_BITS.
    """
    stream = zlib.decompressobj(WINDOW_BITS)
    left = limit
    for body in bodies:
        waiting, is_more = body, False
        while (waiting or is_more) and not stream.eof:
            size = min(_PIECE_BYTES, left + 1)
            try:
                piece = stream.decompress(waiting, size)
            except zlib.error as error:
                raise Malformed(f"{what}: not a zlib stream: {error}") from error
            # A full piece: the stream may hold back more of what it has read.
            is_more = len(piece) == size
            left -= len(piece)
            if left < 0:
                raise CompressionBomb(f"{what}: inflates beyond {limit} bytes")
            waiting = stream.unconsumed_tail
            yield piece
        if excess := len(stream.unused_data) or (stream.eof and len(waiting)):
            raise TrailingBytes(f"{what}: {excess} bytes after the zlib stream")
    if not stream.eof:
        raise Malformed(f"{what}: the zlib stream is cut short")


class Items:
    """A reader of CBOR items, one after another, in pieces as they come.

    For an outer structure that is too large to be decoded at once: what it announces is compared with its limit before
    anything is held. Every fault is a Malformed.
    """

    __slots__ = ("_at", "_piece", "_pieces", "_what")

    def __init__(self, pieces: Iterable[bytes], what: str) -> None:
        self._pieces = iter(pieces)
        self._piece = b""
        self._at = 0
        self._what = what

    def array(self, what: str, high: int) -> int:
        """The number of elements of the array that begins here; they follow."""
        count = self._head(_ARRAY, f"{what}: not a list")
        if count > high:
            raise TooLarge(f"{what}: {count} elements, at most {high}")
        return count

    def byte_string(self, what: str, high: int) -> bytes:
        """A byte string of at most `high` bytes."""
        length = self._head(_BYTES, f"{what}: an element that is not a byte string")
        if length > high:
            raise TooLarge(f"{what}: {length} bytes, at most {high}")
        return self._take(length)

    def text(self, what: str, high: int) -> str:
        """A text of at most `high` bytes of UTF-8."""
        length = self._head(_TEXT, f"{what}: not a text")
        if length > high:
            raise TooLarge(f"{what}: longer than {high} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise Malformed(f"{what}: not UTF-8") from error

    def end(self) -> None:
        """Refuse whatever follows."""
        # All pieces are read, because the last one shows whether the compressed stream is whole.
        excess = len(self._piece) - self._at + sum(map(len, self._pieces))
        if excess:
            raise TrailingBytes(f"{self._what}: {excess} bytes after its end")

    def _head(self, major: int, otherwise: str) -> int:
        first = self._take(1)[0]
        if first >> 5 != major:
            raise Malformed(otherwise)
        argument = first & 0x1F
        if argument <= _ARGUMENT_INLINE:
            return argument
        width = 1 << (argument - 24) if argument <= _ARGUMENT_LAST else 0
        argument, _ = _long_argument(bytes([first]) + self._take(width), 1, self._what)
        return argument

    def _take(self, size: int) -> bytes:
        taken = self._piece[self._at : self._at + size]
        self._at += len(taken)
        if len(taken) == size:
            return taken
        pieces = [taken]
        missing = size - len(taken)
        for piece in self._pieces:
            pieces.append(piece[:missing])
            if len(piece) >= missing:
                self._piece, self._at = piece, missing
                return b"".join(pieces)
            missing -= len(piece)
        self._piece, self._at = b"", 0
        raise Malformed(f"{self._what}: cut short")


def _long_argument(data: bytes, at: int, what: str) -> tuple[int, int]:
    # RFC 8949, 3: 24 to 27 announce 1, 2, 4 or 8 bytes; 28 to 30 are reserved; 31 is a length that a break tells, or the
    # break. Of major type 7 these are floats and simple values, none of which travels.
    major, kind = data[at - 1] >> 5, data[at - 1] & 0x1F
    if kind == _INDEFINITE and _BYTES <= major <= _MAP:
        raise NotDeterministic(f"{what}: an indefinite length never travels")
    if kind > _ARGUMENT_LAST:
        raise Malformed(f"{what}: not CBOR: byte {data[at - 1]:#x} begins no item")
    if major == _SIMPLE:
        raise NotDeterministic(f"{what}: a float or an unknown simple value never travels")
    width = 1 << (kind - 24)
    written = data[at : at + width]
    if len(written) != width:
        raise Malformed(f"{what}: cut short")
    argument = int.from_bytes(written, "big")
    if argument < _SHORTEST[kind - 24]:
        raise NotDeterministic(f"{what}: a number or length spelled longer than needed (RFC 8949, 4.2.1)")
    return argument, at + width


class Fields:
    """Reads the known fields of a decoded map by number; unknown ones are ignored, so that old agents survive.

    Every method raises Malformed with the place, the field's number and what was expected.
    """

    __slots__ = ("_map", "_what")

    def __init__(self, value: Value, what: str) -> None:
        if not isinstance(value, Mapping):
            raise Malformed(f"{what}: not a map")
        self._map: Mapping[Any, Value] = value
        self._what = what

    def __contains__(self, number: int) -> bool:
        return number in self._map

    def get(self, number: int) -> Value:
        """The raw value, None when absent."""
        return self._map.get(number)

    def integer(self, number: int, low: int = 0, high: int = NUMBER_MAX) -> int:
        """An integer from low to high, both included."""
        return integer(self._map.get(number), self._at(number), low, high)

    def boolean(self, number: int) -> bool:
        """True or false."""
        value = self._map.get(number)
        if not isinstance(value, bool):
            raise Malformed(f"{self._at(number)}: not a boolean")
        return value

    def text(self, number: int, max_bytes: int) -> str:
        """A text of at most so many bytes of UTF-8."""
        return text(self._map.get(number), self._at(number), max_bytes)

    def bytes(self, number: int, low: int, high: int) -> bytes:
        """A byte string from low to high bytes long, both included."""
        value = self._map.get(number)
        if not isinstance(value, bytes):
            raise Malformed(f"{self._at(number)}: not a byte string")
        if not low <= len(value) <= high:
            raise TooLarge(f"{self._at(number)}: {len(value)} bytes, not {low} to {high}")
        return value

    def array(self, number: int, high: int) -> Sequence[Value]:
        """A list of at most so many elements; empty when the field is absent."""
        if number not in self._map:
            return ()
        return array(self._map[number], self._at(number), high)

    def texts(self, number: int, high: int, max_bytes: int = TEXT_MAX_BYTES) -> Mapping[str, str]:
        """A map of text to text with at most so many entries, each text of at most so many bytes of UTF-8; empty when the
        field is absent.
        """
        value = self._map.get(number, {})
        if not isinstance(value, Mapping):
            raise Malformed(f"{self._at(number)}: not a map")
        if len(value) > high:
            raise TooLarge(f"{self._at(number)}: {len(value)} entries, at most {high}")
        at = self._at(number)
        return {text(key, at, max_bytes): text(entry, at, max_bytes) for key, entry in value.items()}

    def _at(self, number: int) -> str:
        return f"{self._what}, field {number}"


def integer(value: Value, what: str, low: int = 0, high: int = NUMBER_MAX) -> int:
    """`value` as an integer from low to high, both included; raises Malformed."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise Malformed(f"{what}: not an integer")
    if not low <= value <= high:
        raise Malformed(f"{what}: {value} is not within {low} to {high}")
    return value


def text(value: Value, what: str, max_bytes: int) -> str:
    """`value` as a text of at most so many bytes; raises Malformed or TooLarge."""
    if not isinstance(value, str):
        raise Malformed(f"{what}: not a text")
    # Characters bound the bytes from below and, four times, from above.
    if len(value) > max_bytes or (len(value) * 4 > max_bytes and len(value.encode()) > max_bytes):
        raise TooLarge(f"{what}: longer than {max_bytes} bytes")
    return value


def array(value: Value, what: str, high: int) -> Sequence[Value]:
    """`value` as a list of at most so many elements; raises Malformed or TooLarge."""
    if not isinstance(value, list):
        raise Malformed(f"{what}: not a list")
    if len(value) > high:
        raise TooLarge(f"{what}: {len(value)} elements, at most {high}")
    return value
