"""Ed25519 public keys that may count: points of the curve, in their one encoding, and not of small order. Pure Python.

Libraries differ in what they accept (Chalkias, Garillot, Nikolaenko: "Taming the Many EdDSAs", 2020). Under a key of
small order anybody makes signatures that OpenSSL takes, and a key with a second encoding has a second id, so that one person
counts twice. So keys are checked where they enter, in roots, and not where a signature is verified.
"""

from typing import Final

PRIME: Final = 2**255 - 19
"""The field of edwards25519 (RFC 8032, 5.1)."""
CURVE_D: Final = -121_665 * pow(121_666, -1, PRIME) % PRIME
"""The d of -x^2 + y^2 = 1 + d x^2 y^2 (RFC 8032, 5.1)."""

_SIGN_BIT: Final = 255
_Y_MASK: Final = (1 << _SIGN_BIT) - 1
_SMALL_ORDER_8: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER_Y: Final = frozenset({1, PRIME - 1, 0, _SMALL_ORDER_8, PRIME - _SMALL_ORDER_8})
# Of the points of order 1, 2, 4 and 8; with both signs of x these are all eight of them.


def flaw(raw: bytes) -> str:
    """The reason why 32 bytes are no public key that may count; blank for a good one."""
    y = int.from_bytes(raw, "little") & _Y_MASK
    # With x = 0 and a sign bit there are two more encodings that are not canonical; both are of small order.
    if y % PRIME in _SMALL_ORDER_Y:
        return "of small order: anybody can sign for it"
    if y >= PRIME:
        return "not in its canonical encoding (RFC 8032, 5.1.3)"
    if not _has_x(y):
        return "not a point of the curve (RFC 8032, 5.1.3)"
    return ""


def _has_x(y: int) -> bool:
    # Whether x^2 = (y^2 - 1) / (d y^2 + 1) is a square, by Euler's criterion; d y^2 + 1 is never 0 (RFC 8032, 5.1.3).
    square = y * y % PRIME
    ratio = (square - 1) * (CURVE_D * square + 1)  # a product is a square where the quotient is one
    return pow(ratio, (PRIME - 1) // 2, PRIME) <= 1
