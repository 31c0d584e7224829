"""The one place of the agent that reads a clock or draws a random number."""

import os
import random
import time
from pathlib import Path


def now() -> int:
    """The device's clock in Unix seconds; it may be wrong by years."""
    return int(time.time())  # noqa: TID251  # this is the side's clock module


def now_precise() -> float:
    """The device's clock in Unix seconds with a fraction, for timestamps that people read."""
    return time.time()  # noqa: TID251  # this is the side's clock module


# Linux: of two clocks that only grow, the one that goes on while the device sleeps; what was to be done meanwhile is due then.
_GROWING = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def monotonic() -> float:
    """Seconds that only grow, for spans within one boot."""
    return time.clock_gettime(_GROWING)


def instant_of(moment: float) -> int:
    """When a moment of the monotonic clock was, by the device's clock as it is now: spans stay true when that clock is set."""
    return round(now_precise() - (monotonic() - moment))


def boot_id() -> str:
    """A name for this boot of the device, within which the monotonic clock is the same for every process; blank where unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()  # Linux: random(4)
    except (OSError, ValueError):
        return ""


def jitter() -> float:
    """A random number from 0 to 1, for spreading a fleet's reconnects."""
    return random.random()  # noqa: S311  # spreads load, guards nothing


def session_number() -> int:
    """A number that birth and will of one run share."""
    return int.from_bytes(os.urandom(6), "big")


def batch_id() -> bytes:
    """A number that no other batch of the fleet has."""
    return os.urandom(16)


def fresh_id() -> str:
    """A new request id."""
    # RFC 9562, 5.4: version 4 and its variant over random bits. The standard library's module for it costs a start 5 ms.
    number = (
        int.from_bytes(os.urandom(16), "big") & ~(0xF000 << 64 | 0xC000 << 48) | 0x4000 << 64 | 0x8000 << 48
    )
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
