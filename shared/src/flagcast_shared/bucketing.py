"""Which bucket an entity or a device falls into, and the integer bounds that buckets are compared with.

Flipt keeps percentages as float32. The publisher turns them into integers here, once; a device of any language then
hashes and compares integers and comes to the same answer.
"""

import math
import struct
from collections.abc import Sequence
from hashlib import sha256
from typing import Final
from zlib import crc32

from .ids import DeviceId

VARIANT_BUCKETS: Final = 1000
BOOLEAN_BUCKETS: Final = 100
CANDIDATE_BUCKETS: Final = 10_000


def variant_bucket(flag_key: str, entity_id: str) -> int:
    """The entity's bucket of a variant flag, 0 to 999: CRC-32 (IEEE) of the flag's key, then the entity id."""
    return crc32((flag_key + entity_id).encode()) % VARIANT_BUCKETS


def boolean_bucket(flag_key: str, entity_id: str) -> int:
    """The entity's bucket of a boolean flag, 0 to 99: CRC-32 (IEEE) of the entity id, then the flag's key."""
    return crc32((entity_id + flag_key).encode()) % BOOLEAN_BUCKETS


def candidate_bucket(salt: bytes, device: DeviceId) -> int:
    """The device's bucket of a staged rollout, 0 to 9999: SHA-256 of salt and id, its first 8 bytes as a number."""
    return int.from_bytes(sha256(salt + device.encode()).digest()[:8], "big") % CANDIDATE_BUCKETS


def compile_bounds(rollouts: Sequence[float]) -> tuple[int, ...]:
    """The cumulative bounds (0 to 1000) of the distributions of one rule, from their positive rollouts in order.

    Flipt's v2 server: each rollout divided by the sum of all, times 100, accumulated, times 10, truncated, every
    step in float32; the last bound is 1000 so that every bucket has a distribution. A distribution owns the buckets
    from the previous bound up to, not including, its own.
    """
    shares = [_float32(rollout) for rollout in rollouts]
    assert all(share > 0 for share in shares), "only positive rollouts take part"
    total = 0.0
    for share in shares:
        total = _float32(total + share)
    cumulative = 0.0
    bounds = []
    for share in shares:
        cumulative = _float32(cumulative + _float32(_float32(share / total) * 100.0))
        bounds.append(min(int(_float32(cumulative * 10.0)), VARIANT_BUCKETS))
    return (*bounds[:-1], VARIANT_BUCKETS) if bounds else ()


def compile_percentage(percentage: float) -> int:
    """The integer (0 to 100) that a bucket is below exactly when it is below the percentage as a float32."""
    if math.isnan(percentage):
        return 0
    # Clamped before it is narrowed: what lies beyond a float32's range compares as an infinity would.
    narrowed = _float32(max(-1.0, min(101.0, percentage)))
    return max(0, min(BOOLEAN_BUCKETS, math.ceil(narrowed)))


def _float32(number: float) -> float:
    # A float64 holds twice a float32's digits and more, so that computing in float64 and narrowing each step
    # gives the same result as float32 arithmetic.
    narrowed: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return narrowed
