"""States of the link to the broker as a table, and how long it waits between attempts.

`TRANSITIONS` is the one place that tells what may follow what; a cause that has no row in a state changes nothing. Time and
chance are arguments. Which bytes are sent in a state is decided by `core`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

BACKOFF_FIRST_SECONDS: Final = 1.0
BACKOFF_CAP_SECONDS: Final = 300.0
BACKOFF_REFUSED_FIRST_SECONDS: Final = 30.0
"""A broker that refuses credentials will refuse them again; asking often only locks accounts and fills logs."""
BACKOFF_REFUSED_CAP_SECONDS: Final = 1800.0
RECONNECT_MIN_SECONDS: Final = 1.0
"""Never more than one attempt a second: AWS IoT throttles clients that do."""
STABLE_AFTER_SECONDS: Final = 60.0
"""A connection that held this long starts the waits afresh."""
REMEMBER_SECONDS: Final = 7 * 86_400
"""How long MQTT 3.1.1 is spoken to a broker that did not take 5, before 5 is tried again: brokers are updated now and then."""


class LinkState(StrEnum):
    """Where the link to the broker stands."""

    DISCONNECTED = "disconnected"
    """Not started."""
    CONNECTING = "connecting"
    """An attempt is under way."""
    SUBSCRIBING = "subscribing"
    """The broker took the connection and has not acknowledged every subscription."""
    SYNCING = "syncing"
    """Subscribed; a head has not been heard, or content is awaited."""
    LIVE = "live"
    """Up to date: what is published from now on arrives as it is published."""
    BACKING_OFF = "backing off"
    """Waiting for the next attempt."""
    REFUSED = "refused"
    """The same, for long: the broker refuses this device."""


CONNECTED: Final = frozenset({LinkState.SUBSCRIBING, LinkState.SYNCING, LinkState.LIVE})
"""The states in which the broker hears what is sent."""
WAITING: Final = frozenset({LinkState.BACKING_OFF, LinkState.REFUSED})


class Cause(StrEnum):
    """What moves the link."""

    STARTED = "the agent is up"
    DUE = "the wait is over, or somebody asks"
    ACCEPTED = "the broker takes the connection"
    FAILED = "no connection, or no answer in time"
    DENIED = "the broker refuses the device, or every head's subscription"
    SUBSCRIBED = "every subscription is acknowledged"
    AGAIN = "a new root, a disk that may have room again, or somebody asks"
    SETTLED = "every followed head is heard and its content is held"
    WANTED = "a head names content that is not held"
    LOST = "the connection ends, or a subscription is not acknowledged in time"


TRANSITIONS: Final[Mapping[tuple[LinkState, Cause], LinkState]] = MappingProxyType(
    {
        (LinkState.DISCONNECTED, Cause.STARTED): LinkState.CONNECTING,
        (LinkState.CONNECTING, Cause.ACCEPTED): LinkState.SUBSCRIBING,
        (LinkState.CONNECTING, Cause.FAILED): LinkState.BACKING_OFF,
        (LinkState.CONNECTING, Cause.DENIED): LinkState.REFUSED,
        (LinkState.SUBSCRIBING, Cause.SUBSCRIBED): LinkState.SYNCING,
        (LinkState.SUBSCRIBING, Cause.AGAIN): LinkState.SUBSCRIBING,
        (LinkState.SUBSCRIBING, Cause.DENIED): LinkState.REFUSED,
        (LinkState.SUBSCRIBING, Cause.LOST): LinkState.BACKING_OFF,
        (LinkState.SYNCING, Cause.SETTLED): LinkState.LIVE,
        (LinkState.SYNCING, Cause.AGAIN): LinkState.SUBSCRIBING,
        (LinkState.SYNCING, Cause.DENIED): LinkState.REFUSED,
        (LinkState.SYNCING, Cause.LOST): LinkState.BACKING_OFF,
        (LinkState.LIVE, Cause.WANTED): LinkState.SYNCING,
        (LinkState.LIVE, Cause.AGAIN): LinkState.SUBSCRIBING,
        (LinkState.LIVE, Cause.DENIED): LinkState.REFUSED,
        (LinkState.LIVE, Cause.LOST): LinkState.BACKING_OFF,
        (LinkState.BACKING_OFF, Cause.DUE): LinkState.CONNECTING,
        (LinkState.REFUSED, Cause.DUE): LinkState.CONNECTING,
    }
)


@dataclass(slots=True)
class Waits:
    """How long to wait before the next attempt: full jitter under a cap, and much longer after a refusal.

    `jitter` is a random number from 0 to 1. Spans double from the first one on; a refusal counts in a row of its own.
    """

    failures: int = 0
    refusals: int = 0

    def after_failure(self, jitter: float) -> float:
        """Seconds to wait after an attempt that failed or a connection that ended."""
        span = min(BACKOFF_CAP_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** min(self.failures, 16))
        self.failures += 1
        self.refusals = 0
        # Added, not the larger of both: else half a fleet would come back in the same second.
        return min(BACKOFF_CAP_SECONDS, RECONNECT_MIN_SECONDS + span * jitter)

    def after_refusal(self, jitter: float) -> float:
        """Seconds to wait after the broker refused this device."""
        span = min(BACKOFF_REFUSED_CAP_SECONDS, BACKOFF_REFUSED_FIRST_SECONDS * 2.0 ** min(self.refusals, 16))
        self.refusals += 1
        return span * (0.5 + jitter / 2)

    def begin_afresh(self) -> None:
        """After a connection that was stable."""
        self.failures = self.refusals = 0


@dataclass(frozen=True, slots=True)
class BrokerMemory:
    """A broker that did not take MQTT 5: its address, the version it took, and when that was seen (Unix seconds)."""

    broker: str
    protocol: str
    since: int

    def holds(self, broker: str, now: int) -> bool:
        """Whether this is still to be acted on for the broker of this address.

        What a clock far ahead wrote down is not: it would be acted on for as long as that clock was ahead.
        """
        return self.broker == broker and self.since <= now < self.since + REMEMBER_SECONDS
