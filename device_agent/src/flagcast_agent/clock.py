"""The one place of the agent that reads a clock or draws a random number."""

import random
import secrets
import time
import uuid


def now() -> int:
    """The device's clock in Unix seconds; it may be wrong by years."""
    return int(time.time())  # noqa: TID251  # this is the side's clock module


def now_precise() -> float:
    """The device's clock in Unix seconds with a fraction, for timestamps that people read."""
    return time.time()  # noqa: TID251  # this is the side's clock module


def monotonic() -> float:
    """Seconds that only grow, for spans within one run."""
    return time.monotonic()


def jitter() -> float:
    """A random number from 0 to 1, for spreading a fleet's reconnects."""
    return random.random()  # noqa: S311  # spreads load, guards nothing


def session_number() -> int:
    """A number that birth and will of one run share."""
    return secrets.randbits(48)


def batch_id() -> bytes:
    """A number that no other batch of the fleet has."""
    return secrets.token_bytes(16)


def fresh_id() -> str:
    """A new request id."""
    return str(uuid.uuid4())
