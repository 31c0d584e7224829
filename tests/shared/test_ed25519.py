"""Which public keys may count, against arithmetic of the curve that is spelled out here, and against OpenSSL."""

import hashlib

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from flagcast_shared.ed25519 import CURVE_D, PRIME, flaw

Point = tuple[int, int]
NEUTRAL: Point = (0, 1)
BASE_Y = 4 * pow(5, -1, PRIME) % PRIME
COFACTOR = 8


def roots_of(square: int) -> list[int]:
    """The square roots modulo the prime, which is 5 modulo 8."""
    candidate = pow(square, (PRIME + 3) // 8, PRIME)
    for root in (candidate, candidate * pow(2, (PRIME - 1) // 4, PRIME) % PRIME):
        if root * root % PRIME == square % PRIME:
            return sorted({root, -root % PRIME})
    return []


def points_of(y: int) -> list[Point]:
    square = (y * y - 1) * pow(CURVE_D * y * y + 1, -1, PRIME) % PRIME
    return [(x, y) for x in roots_of(square)]


def added(one: Point, other: Point) -> Point:
    (x1, y1), (x2, y2) = one, other
    product = CURVE_D * x1 * x2 * y1 * y2 % PRIME
    return (
        (x1 * y2 + x2 * y1) * pow(1 + product, -1, PRIME) % PRIME,
        (y1 * y2 + x1 * x2) * pow(1 - product, -1, PRIME) % PRIME,
    )


def times_cofactor(point: Point) -> Point:
    for _ in range(3):
        point = added(point, point)
    return point


def encoded(y: int, sign: int = 0) -> bytes:
    return (y | sign << 255).to_bytes(32, "little")


def small_order() -> set[Point]:
    """All points of small order: multiples of one of order 8, found by taking the large order away from random points."""
    order = 2**252 + 27742317777372353535851937790883648493
    y = 2
    while True:
        y += 1
        for start in points_of(y):
            point, total, factor = start, NEUTRAL, order
            while factor:
                if factor & 1:
                    total = added(total, point)
                point, factor = added(point, point), factor >> 1
            multiples = {NEUTRAL}
            each = total
            while each != NEUTRAL:
                multiples.add(each)
                each = added(each, total)
            if len(multiples) == COFACTOR:
                return multiples


def test_exactly_the_eight_points_of_small_order_are_found() -> None:
    points = small_order()
    assert len(points) == COFACTOR
    for x, y in points:
        assert times_cofactor((x, y)) == NEUTRAL
        for sign in (0, 1):  # also the sign that x = 0 does not have
            assert "small order" in flaw(encoded(y, sign))


@pytest.mark.parametrize("sign", [0, 1])
def test_no_encoding_beyond_the_prime_is_taken(sign: int) -> None:
    beyond = [flaw(encoded(y, sign)) for y in range(PRIME, 2**255)]
    assert all(beyond)
    assert sum("canonical" in reason for reason in beyond) == 17  # those of 0 and 1 are of small order


@given(st.binary(min_size=32, max_size=32))
def test_any_32_bytes_are_a_key_only_where_they_are_a_point_of_the_curve_and_its_encoding(raw: bytes) -> None:
    number = int.from_bytes(raw, "little")
    y = number & (2**255 - 1)
    is_good = y < PRIME and bool(points_of(y)) and times_cofactor(points_of(y)[0]) != NEUTRAL
    assert (flaw(raw) == "") == is_good


@given(st.binary(min_size=32, max_size=32))
def test_every_key_that_is_made_is_taken(seed: bytes) -> None:
    assert flaw(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()) == ""


def test_the_base_point_is_taken() -> None:
    assert flaw(encoded(BASE_Y)) == ""


def test_without_the_check_a_signature_that_nobody_made_counts_for_any_message() -> None:
    neutral = Ed25519PublicKey.from_public_bytes(encoded(1))
    for number in range(10):
        message = hashlib.sha256(bytes([number])).digest()
        neutral.verify(encoded(1) + bytes(32), message)  # R is the neutral point and S is 0
    good = Ed25519PrivateKey.generate().public_key()
    with pytest.raises(InvalidSignature):
        good.verify(encoded(1) + bytes(32), b"x")
