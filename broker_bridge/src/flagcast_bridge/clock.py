"""The one place of the publisher that reads a clock."""

import time
from datetime import UTC, datetime


def now() -> int:
    """Unix seconds. A publisher's clock must be right: heads say until when they are fresh."""
    return int(time.time())  # noqa: TID251  # this is the side's clock module


def monotonic() -> float:
    """Seconds that only grow, for spans within one run."""
    return time.monotonic()


def as_text(seconds: int) -> str:
    """Unix seconds as `2025-01-31T09:30:00Z`; the number itself where no calendar reaches."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(seconds)
