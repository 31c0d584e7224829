"""The one place of the publisher that reads a clock or draws a random number."""

import random
import secrets
import time
from datetime import UTC, datetime


def now() -> int:
    """Unix seconds. A publisher's clock must be right: heads say until when they are fresh."""
    return int(time.time())  # noqa: TID251  # this is the side's clock module


def monotonic() -> float:
    """Seconds that only grow, for spans within one run."""
    return time.monotonic()


def pause(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


def jitter() -> float:
    """A random number from 0 to 1, for spreading attempts over time."""
    return random.random()  # noqa: S311  # spreads load, guards nothing


def salt() -> bytes:
    """16 random bytes, from which nobody can tell beforehand which devices a candidate takes."""
    return secrets.token_bytes(16)


def as_text(seconds: int) -> str:
    """Unix seconds as `2025-01-31T09:30:00Z`; the number itself where no calendar reaches."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(seconds)
