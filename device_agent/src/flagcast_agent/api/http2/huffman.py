"""Huffman's code of header texts (RFC 7541, 5.2 and appendix B)."""

from functools import cache
from typing import Final

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
_PADDING_MAX_BITS: Final = 7


class NotHuffman(Exception):
    """Bits that are no such text; the connection cannot go on (RFC 7541, 5.2)."""


@cache
def _tables() -> tuple[list[tuple[int, int] | None], dict[tuple[int, int], int]]:
    # By eight bits, the symbol whose code they begin with, and its length; by length and bits, the symbols of longer codes.
    # Built by the first text that needs them.
    short: list[tuple[int, int] | None] = [None] * 256
    long: dict[tuple[int, int], int] = {}
    code = former = 0
    for symbol in sorted(range(len(_LENGTHS)), key=lambda symbol: (_LENGTHS[symbol], symbol)):
        length = _LENGTHS[symbol]
        code <<= length - former
        former = length
        if length <= 8:
            first = code << (8 - length)
            short[first : first + (1 << (8 - length))] = [(symbol, length)] * (1 << (8 - length))
        else:
            long[length, code] = symbol
        code += 1
    return short, long


def decode(data: bytes) -> bytes:
    """Bytes of which `data` is the code. Raises NotHuffman."""
    short, long = _tables()
    found = bytearray()
    bits = left = 0
    tried = 8  # the lengths up to this one are known to be too short for what `bits` begins with
    for byte in data:
        bits = (bits & (1 << left) - 1) << 8 | byte
        left += 8
        while left >= 8:
            pair = short[bits >> (left - 8) & 0xFF] if tried == 8 else None
            if pair is not None:
                found.append(pair[0])
                left -= pair[1]
                continue
            while tried < left:
                tried += 1
                symbol = long.get((tried, bits >> (left - tried) & (1 << tried) - 1))
                if symbol is not None:
                    if symbol == _END:
                        raise NotHuffman("the end within a text")
                    found.append(symbol)
                    left -= tried
                    tried = 8
                    break
            else:
                break
    # What is left are short codes, and padding: the beginning of the end's code, all ones, and less than a byte.
    while left and tried == 8:
        pair = short[(bits << 8 | 0xFF) >> left & 0xFF]
        if pair is None or pair[1] > left:
            break
        found.append(pair[0])
        left -= pair[1]
    padding = (1 << left) - 1
    if left > _PADDING_MAX_BITS or bits & padding != padding:
        raise NotHuffman("padding that is none")
    return bytes(found)
