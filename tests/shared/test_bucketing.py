import hashlib
import itertools
import math
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagcast_shared.bucketing import (
    boolean_bucket,
    candidate_bucket,
    compile_bounds,
    compile_percentage,
    variant_bucket,
)
from flagcast_shared.ids import DeviceId


@given(st.text(), st.text())
def test_a_variant_flag_hashes_its_key_before_the_entity(flag_key: str, entity_id: str) -> None:
    assert variant_bucket(flag_key, entity_id) == zlib.crc32((flag_key + entity_id).encode()) % 1000


@given(st.text(), st.text())
def test_a_boolean_flag_hashes_the_entity_before_its_key(flag_key: str, entity_id: str) -> None:
    assert boolean_bucket(flag_key, entity_id) == zlib.crc32((entity_id + flag_key).encode()) % 100


def test_the_hash_is_crc_32_of_utf_8() -> None:
    # 0xCBF43926 is the check value of CRC-32 (IEEE): that of "123456789".
    assert variant_bucket("1234", "56789") == 0xCBF43926 % 1000
    assert boolean_bucket("6789", "12345") == 0xCBF43926 % 100
    assert variant_bucket("größe", "日本🎈") == zlib.crc32("größe日本🎈".encode()) % 1000


@pytest.mark.parametrize(
    ("rollouts", "bounds"),
    [
        ([], ()),
        ([100], (1000,)),
        ([0.001], (1000,)),
        ([50, 50], (500, 1000)),
        ([30, 70], (300, 1000)),
        ([0.1, 99.9], (1, 1000)),
        ([0.05, 99.95], (0, 1000)),
        ([33.33, 33.33, 33.34], (333, 666, 1000)),
        ([33.3, 33.3, 33.4], (333, 666, 1000)),
        ([10] * 10, tuple(range(100, 1001, 100))),
        # Truncated where the engine in the clients rounds.
        ([16.67, 83.33], (166, 1000)),
        ([14.9, 85.1], (148, 1000)),
        # Shares of what they add up to, less or more than 100.
        ([50, 20], (714, 1000)),
        ([1, 1, 1], (333, 666, 1000)),
        ([60, 60], (500, 1000)),
    ],
)
def test_bounds_are_those_of_the_server(rollouts: list[float], bounds: tuple[int, ...]) -> None:
    assert compile_bounds(rollouts) == bounds


@given(st.lists(st.floats(min_value=0.001, max_value=100), min_size=1, max_size=50))
def test_bounds_ascend_to_the_number_of_buckets(rollouts: list[float]) -> None:
    bounds = compile_bounds(rollouts)
    assert len(bounds) == len(rollouts)
    assert bounds[-1] == 1000
    assert all(0 <= low <= high for low, high in itertools.pairwise((0, *bounds)))


@pytest.mark.parametrize(
    ("percentage", "compiled"),
    [
        (0, 0), (-5, 0), (0.1, 1), (1, 1), (33, 33), (33.3, 34), (50, 50), (99, 99), (99.5, 100), (100, 100),
        (250, 100), (math.inf, 100), (-math.inf, 0), (math.nan, 0), (1e300, 100),
        # What lies within half a step of a float32 is that float32.
        (33.0000001, 33), (32.9999999, 33), (33.00001, 34),
    ],
)  # fmt: skip
def test_percentages_are_the_next_integer_above(percentage: float, compiled: int) -> None:
    assert compile_percentage(percentage) == compiled


@given(st.floats(min_value=-1e30, max_value=1e30))
def test_a_compiled_percentage_splits_every_bucket_as_the_float_does(percentage: float) -> None:
    compiled = compile_percentage(percentage)
    assert 0 <= compiled <= 100
    (narrowed,) = struct.unpack("<f", struct.pack("<f", percentage))
    assert all((bucket < compiled) == (float(bucket) < narrowed) for bucket in range(100))


def test_a_candidate_bucket_is_the_start_of_a_sha_256() -> None:
    device = DeviceId("press-7")
    digest = hashlib.sha256(b"salt" + b"press-7").hexdigest()
    assert candidate_bucket(b"salt", device) == int(digest[:16], 16) % 10_000
    assert candidate_bucket(b"other", device) != candidate_bucket(b"salt", device)


def test_candidate_buckets_spread_evenly() -> None:
    below = sum(candidate_bucket(b"s", DeviceId(f"d{number}")) < 500 for number in range(20_000))
    assert 850 < below < 1150  # 5 % of 20,000, five standard deviations either way
