"""Huffman's code of header texts (RFC 7541, 5.2 and appendix B)."""

from bisect import bisect_right
from functools import cache
from typing import Final, NamedTuple

_LENGTHS: Final = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b08060606"
    "0505050606060606060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e06"
    "0f05060506050606060507070606060506070605050607070707070f0b0e0d1c14161414161616171617171717171817"
    "181816171817171717151617161717181615141616171715171616181516171715151615171617171416161617161617"
    "1a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b14181415161515171616191918181a17"
    "1a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)
"""The length in bits of the code of each byte, then that of the end. Codes of one length ascend with what they stand for, and
follow those that are shorter, so that nothing else is needed."""

_END: Final = 256
_LONGEST: Final = 30
_PADDING_MAX_BITS: Final = 7


class NotHuffman(Exception):
    """Bits that are no such text; the connection cannot go on (RFC 7541, 5.2)."""


class _Tables(NamedTuple):
    short: list[tuple[int, int] | None]
    """By eight bits: the symbol whose code they begin with, and its length; None where the code is longer."""
    firsts: list[int]
    """The first code of each length, filled up to 30 bits; ascending."""
    lengths: list[int]
    starts: list[int]
    """The place in `symbols` of the first one of each length."""
    symbols: list[int]


@cache
def _tables() -> _Tables:
    # Built by the first text that needs them.
    symbols = sorted(range(len(_LENGTHS)), key=lambda symbol: (_LENGTHS[symbol], symbol))
    tables = _Tables([None] * 256, [], [], [], symbols)
    code = former = 0
    for at, symbol in enumerate(symbols):
        length = _LENGTHS[symbol]
        code <<= length - former
        if length != former:
            tables.firsts.append(code << (_LONGEST - length))
            tables.lengths.append(length)
            tables.starts.append(at)
        former = length
        if length <= 8:
            first = code << (8 - length)
            tables.short[first : first + (1 << (8 - length))] = [(symbol, length)] * (1 << (8 - length))
        code += 1
    return tables


def decode(data: bytes) -> bytes:
    """Bytes of which `data` is the code. Raises NotHuffman."""
    short, firsts, lengths, starts, symbols = _tables()
    found = bytearray()
    bits = left = at = 0
    while True:
        while left >= 8:
            pair = short[bits >> (left - 8) & 0xFF]
            if pair is None:
                break
            found.append(pair[0])
            left -= pair[1]
        bits &= (1 << left) - 1
        if left < _LONGEST and at < len(data):
            more = data[at : at + 4]
            bits = bits << 8 * len(more) | int.from_bytes(more, "big")
            left += 8 * len(more)
            at += 4
            continue
        # The missing bits are ones: a whole code is told apart by its own bits, whatever follows.
        missing = _LONGEST - left
        window = (bits + 1 << missing) - 1 if missing > 0 else bits >> -missing
        row = bisect_right(firsts, window) - 1
        length = lengths[row]
        if length > left:
            break
        symbol = symbols[starts[row] + (window - firsts[row] >> _LONGEST - length)]
        if symbol == _END:
            raise NotHuffman("the end within a text")
        found.append(symbol)
        left -= length
    # The rest is padding: the beginning of the end's code, all ones, and less than a byte.
    if left > _PADDING_MAX_BITS or bits != (1 << left) - 1:
        raise NotHuffman("padding that is none")
    return bytes(found)
