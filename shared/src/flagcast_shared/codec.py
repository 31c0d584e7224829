"""Bytes on the wire: deterministic CBOR in, deterministic CBOR out, and compression against a limit.

Any bytes decode to plain values or raise Malformed; nothing else escapes. What decodes has one spelling only
(RFC 8949, 4.2.1): it is encoded again and compared, because cbor2 alone accepts duplicate keys, trailing bytes and
integers that are longer than they need to be.
"""

import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
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
from .limits import DEPTH_MAX, NUMBER_MAX, TEXT_MAX_BYTES

Value = None | bool | int | str | bytes | Sequence["Value"] | Mapping[int, "Value"] | Mapping[str, "Value"]
"""What travels: no floats, no tags; the keys of a map are all non-negative integers or all text."""

_COMPRESSION_LEVEL: Final = 9
_DEPTH_WORDS: Final = ("depth", "recursion")


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

    Raises:
        Malformed: or one of its leaves; the bytes are not CBOR, not deterministic, or hold what never travels.
    """
    if not data:
        raise EmptyPayload(f"{what}: no bytes at all")
    try:
        value: Value = cbor2.CBORDecoder(io.BytesIO(data), max_depth=DEPTH_MAX).decode()
        _require_plain(value, len(data), what)
        again = encode(value)
    except Malformed:
        raise
    except Exception as error:
        if any(word in str(error).lower() for word in _DEPTH_WORDS):
            raise TooDeep(f"{what}: nested deeper than {DEPTH_MAX} levels") from error
        # Tags make cbor2 call into half of the standard library, which raises what it likes.
        raise Malformed(f"{what}: not CBOR: {error}") from error
    if again != data:
        if data.startswith(again):
            raise TrailingBytes(f"{what}: {len(data) - len(again)} bytes after its end")
        raise NotDeterministic(f"{what}: not the deterministic spelling of its data (RFC 8949, 4.2.1)")
    return value


def deflate(data: bytes) -> bytes:
    """Compress as zlib (RFC 1950)."""
    return zlib.compress(data, _COMPRESSION_LEVEL)


def inflate(data: bytes, limit: int, what: str) -> bytes:
    """Decompress one zlib stream that fills `data` exactly, to at most `limit` bytes.

    Raises:
        CompressionBomb: it would inflate beyond the limit.
        TrailingBytes: something follows the stream.
        Malformed: it is not a whole zlib stream.
    """
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise Malformed(f"{what}: not a zlib stream: {error}") from error
    if len(inflated) > limit:
        raise CompressionBomb(f"{what}: inflates beyond {limit} bytes")
    if not stream.eof:
        raise Malformed(f"{what}: the zlib stream is cut short")
    if stream.unused_data:
        raise TrailingBytes(f"{what}: {len(stream.unused_data)} bytes after the zlib stream")
    return inflated


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


def _require_plain(value: object, size: int, what: str) -> None:
    # Tags come out of cbor2 as dates, decimals, patterns and more, and would encode back to the same bytes. Shared values
    # (tags 28, 29 and 25) come out as one object in many places: a few hundred bytes are then a tree of any size. Every
    # value, and every byte of a string, takes at least a byte of its own in the message, so what is met is counted
    # against `size` before anything is encoded again.
    left = size
    waiting: list[object] = [value]
    while waiting:
        value = waiting.pop()
        kind = type(value)
        if kind is str or kind is bytes:
            left -= len(value)  # type: ignore[arg-type]  # narrowed by type() for speed
        elif kind is int:
            if not -NUMBER_MAX <= value <= NUMBER_MAX:  # type: ignore[operator]  # as above
                raise Malformed(f"{what}: an integer beyond 63 bits")
        elif kind is list:
            elements: Sequence[object] = value  # type: ignore[assignment]  # as above
            left -= len(elements)
            if left >= 0:
                waiting += elements
        elif kind is dict:
            entries: Mapping[object, object] = value  # type: ignore[assignment]  # as above
            left -= 2 * len(entries)
            if left >= 0:
                _require_plain_keys(entries, what)
                waiting += entries
                waiting += entries.values()
        elif kind is not bool and value is not None:
            raise NotDeterministic(f"{what}: a {kind.__name__} never travels")
        if left < 0:
            raise NotDeterministic(f"{what}: a shared value never travels")


def _require_plain_keys(keys: Iterable[object], what: str) -> None:
    kinds: set[type] = set()
    for key in keys:
        if type(key) is int and 0 <= key <= NUMBER_MAX:
            kinds.add(int)
        elif type(key) is str:
            kinds.add(str)
        else:
            raise Malformed(f"{what}: a map key that is neither text nor a small non-negative integer")
    if len(kinds) > 1:
        raise NotDeterministic(f"{what}: a map with both text and integer keys")
