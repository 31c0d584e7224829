"""When to look after what was published: events and times in, effects out. No socket, no disk, no clock, no thread.

A shell holds one connection that hears of roots, heads and devices that ask, and performs a turn when it is told to: a turn reads
the whole broker, puts back what is lost or aged, renews heads and clears what is old (`publisher.keep_up`).

The link:

| state   | event                  | next    | effects                     |
|---------|------------------------|---------|-----------------------------|
| WAITING | Ticked, the wait ended | WAITING | Connect                     |
| WAITING | Connected              | HEARING | a turn is due               |
| WAITING | ConnectFailed          | WAITING | a longer wait               |
| HEARING | Disconnected           | WAITING | a wait                      |
| HEARING | Ticked, a turn is due  | HEARING | Turn                        |

A turn is due: on every connection, because a broker that restarted may have forgotten; soon after a message at the topic of a
root or head that is not what stood there after the last turn; when a head is to be renewed or an old message to be cleared; when
a device asks, but at most REFRESH_BURST times in REFRESH_SECONDS; and on a timer, because what is lost without a message tells
nobody.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from flagcast_shared.ids import Digest, Namespace

CHECK_SECONDS: Final = 600.0
"""How long a part that the broker lost in silence may be missing before somebody looks."""
SETTLE_SECONDS: Final = 1.0
"""From an unexpected message to the turn: a publisher beside us may be in the middle of its run."""
TURN_PAUSE_SECONDS: Final = 3.0
"""Between turns that messages cause: somebody who writes without end must not keep us busy without end."""
REFRESH_SECONDS: Final = 60.0
REFRESH_BURST: Final = 3
"""So many times within so long messages are published again because devices ask: a whole fleet asks at once, and one answer
serves it. A device that finds nothing on its broker asks for a root, then for the head, then for what the head names."""
NAMED_MAX: Final = 256
"""Namespaces that requests name until they are answered; where there are more, everything is published again."""
LEASE_PAUSE_SECONDS: Final = 2.0
"""How soon the ledger is asked for again while another publisher has it."""
BACKOFF_FIRST_SECONDS: Final = 1.0
BACKOFF_CAP_SECONDS: Final = 300.0
BACKOFF_REFUSED_FIRST_SECONDS: Final = 30.0
"""A broker that refuses credentials will refuse them again; asking often only locks accounts and fills logs."""
STABLE_AFTER_SECONDS: Final = 60.0
"""A connection that held this long starts the backoff afresh."""
SAY_AGAIN_SECONDS: Final = 3_600.0
"""How often a warning that still holds is repeated."""
_DOUBLINGS_MAX: Final = 16


class Link(StrEnum):
    """Where the link to the broker stands."""

    WAITING = "waiting"
    HEARING = "hearing"


class Level(StrEnum):
    """How much a line matters."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker accepted the connection and the subscriptions."""


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """It did not; `is_refused` when it knows us not or lets us not."""

    why: str
    is_refused: bool = False


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended."""

    why: str


@dataclass(frozen=True, slots=True)
class Received:
    """A message at the topic of a root or head; `digest` is of its bytes."""

    topic: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class Asked:
    """A device misses heads or content of these namespaces; none means any."""

    namespaces: frozenset[Namespace] = frozenset()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A device's request cannot be read."""

    why: str


@dataclass(frozen=True, slots=True)
class Missed:
    """More messages came than were taken in."""


@dataclass(frozen=True, slots=True)
class Turned:
    """A turn is over. `standing` are the digests at the topics of roots and heads, `due` is when (Unix seconds) the next is due.

    `warnings` are what could not be done, as people should read it; `errors` what nobody may overlook.
    """

    standing: Mapping[str, Digest]
    due: int | None
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    has_repeated: bool = False


@dataclass(frozen=True, slots=True)
class TurnFailed:
    """A turn could not be finished; what it did holds."""

    why: str


@dataclass(frozen=True, slots=True)
class LedgerHeld:
    """Another publisher is at work; `why` says who."""

    why: str


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed; `next_deadline` says when this is next worth telling."""


Event = (
    Connected
    | ConnectFailed
    | Disconnected
    | Received
    | Asked
    | Unreadable
    | Missed
    | Turned
    | TurnFailed
    | LedgerHeld
    | Ticked
)


@dataclass(frozen=True, slots=True)
class Connect:
    """Connect and subscribe; say Connected or ConnectFailed."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Look after everything; say Turned, TurnFailed or LedgerHeld.

    Roots, and what stands for the namespaces in `repeats`, are published again; empty means all of them, None nothing.
    """

    why: str
    repeats: frozenset[Namespace] | None = None


@dataclass(frozen=True, slots=True)
class Say:
    """One line of the log; `fields` are pairs of name and value."""

    level: Level
    message: str
    fields: tuple[tuple[str, object], ...] = ()


Effect = Connect | Turn | Say


@dataclass(slots=True)
class Upkeep:
    """The state of one upkeep; nothing about it lives elsewhere. Times are monotonic seconds."""

    link: Link = Link.WAITING
    _retry_at: float = 0.0
    _attempts: int = 0
    _connected_at: float = 0.0
    _turn_at: float = 0.0
    _turn_why: str = ""
    _quiet_until: float = 0.0
    _repeat_at: float | None = None
    _repeats: frozenset[Namespace] = frozenset()
    _repeated_at: tuple[float, ...] = ()
    _unreadable_said_at: float | None = None
    _failures: int = 0
    _is_held: bool = False
    _standing: Mapping[str, Digest] = field(default_factory=dict)
    _said: dict[str, float] = field(default_factory=dict)

    def handle(self, event: Event, *, now: int, monotonic: float, jitter: float) -> Sequence[Effect]:
        """The effects of one event. `now` is Unix seconds, `jitter` a random number from 0 to 1."""
        match event:
            case Connected():
                self.link, self._connected_at = Link.HEARING, monotonic
                self._turn_at, self._turn_why = monotonic, "connected"
                return [Say(Level.INFO, "connected")]
            case ConnectFailed(why, is_refused):
                wait = self._back_off(monotonic, jitter, is_refused=is_refused)
                return [
                    Say(Level.WARNING, "no connection", (("why", why), ("again_in_seconds", round(wait, 1))))
                ]
            case Disconnected(why):
                return self._on_disconnected(why, monotonic, jitter)
            case Received(topic, digest):
                if self._standing.get(topic) != digest:
                    self._wake(f"{topic} has changed", monotonic)
                return []
            case Missed():
                self._wake("more messages came than were read", monotonic)
                return []
            case Asked(namespaces):
                return self._on_asked(namespaces, monotonic)
            case Unreadable(why):
                return self._on_unreadable(why, monotonic)
            case Turned():
                return self._on_turned(event, now, monotonic)
            case TurnFailed(why):
                wait = _span(BACKOFF_FIRST_SECONDS, self._failures, jitter)
                self._failures += 1
                self._put_off(monotonic + wait)
                return [Say(Level.ERROR, "failed", (("why", why), ("again_in_seconds", round(wait, 1))))]
            case LedgerHeld(why):
                self._put_off(monotonic + LEASE_PAUSE_SECONDS)
                is_news, self._is_held = not self._is_held, True
                return [Say(Level.INFO, "waiting", (("why", why),))] if is_news else []
            case Ticked():
                return self._on_ticked(monotonic)

    def next_deadline(self) -> float:
        """The monotonic time at which Ticked is next worth telling."""
        if self.link is Link.WAITING:
            return self._retry_at
        return self._turn_at if self._repeat_at is None else min(self._turn_at, self._repeat_at)

    def _on_ticked(self, monotonic: float) -> Sequence[Effect]:
        if self.link is Link.WAITING:
            return [Connect()] if monotonic >= self._retry_at else []
        repeats = self._repeat_at is not None and monotonic >= self._repeat_at
        if repeats:
            return [Turn("a device asked", self._repeats)]
        return [Turn(self._turn_why)] if monotonic >= self._turn_at else []

    def _on_asked(self, namespaces: frozenset[Namespace], monotonic: float) -> Sequence[Effect]:
        if self._repeat_at is not None:
            both = self._repeats | namespaces
            is_any = not self._repeats or not namespaces or len(both) > NAMED_MAX
            self._repeats = frozenset() if is_any else both
            return []
        self._repeats = namespaces
        is_spent = len(self._repeated_at) == REFRESH_BURST
        earliest = self._repeated_at[0] + REFRESH_SECONDS if is_spent else 0.0
        self._repeat_at = max(monotonic + SETTLE_SECONDS, earliest)
        return []

    def _on_unreadable(self, why: str, monotonic: float) -> Sequence[Effect]:
        said_at = self._unreadable_said_at
        if said_at is not None and monotonic - said_at < SAY_AGAIN_SECONDS:
            return []
        self._unreadable_said_at = monotonic
        return [Say(Level.WARNING, "a device's request cannot be read and is passed over", (("why", why),))]

    def _on_turned(self, turned: Turned, now: int, monotonic: float) -> Sequence[Effect]:
        self._failures, self._is_held = 0, False
        self._standing = turned.standing
        self._quiet_until = monotonic + TURN_PAUSE_SECONDS
        wait, self._turn_why = CHECK_SECONDS, "timer"
        if turned.due is not None and turned.due - now < wait:
            wait, self._turn_why = max(TURN_PAUSE_SECONDS, float(turned.due - now)), "due"
        self._turn_at = monotonic + wait
        if turned.has_repeated:
            self._repeat_at = None
            self._repeated_at = (*self._repeated_at, monotonic)[-REFRESH_BURST:]
        levels = dict.fromkeys(turned.warnings, Level.WARNING) | dict.fromkeys(turned.errors, Level.ERROR)
        self._said = {line: at for line, at in self._said.items() if line in levels}
        fresh = [
            line
            for line in levels
            if line not in self._said or monotonic - self._said[line] >= SAY_AGAIN_SECONDS
        ]
        self._said |= dict.fromkeys(fresh, monotonic)
        return [Say(levels[line], line) for line in fresh]

    def _on_disconnected(self, why: str, monotonic: float, jitter: float) -> Sequence[Effect]:
        if self.link is Link.WAITING:
            return []
        if monotonic - self._connected_at >= STABLE_AFTER_SECONDS:
            self._attempts = 0
        wait = self._back_off(monotonic, jitter, is_refused=False)
        return [Say(Level.WARNING, "connection lost", (("why", why), ("again_in_seconds", round(wait, 1))))]

    def _back_off(self, monotonic: float, jitter: float, *, is_refused: bool) -> float:
        first = BACKOFF_REFUSED_FIRST_SECONDS if is_refused else BACKOFF_FIRST_SECONDS
        wait = _span(first, self._attempts, jitter)
        self.link = Link.WAITING
        self._attempts += 1
        self._retry_at = monotonic + wait
        return wait

    def _put_off(self, until: float) -> None:
        self._turn_at = until
        if self._repeat_at is not None:
            self._repeat_at = max(self._repeat_at, until)

    def _wake(self, why: str, monotonic: float) -> None:
        at = max(monotonic + SETTLE_SECONDS, self._quiet_until)
        if at < self._turn_at:
            self._turn_at, self._turn_why = at, why


def _span(first: float, attempts: int, jitter: float) -> float:
    # Full jitter above one second, so that nothing is ever tried more than once a second.
    span = min(BACKOFF_CAP_SECONDS, first * 2.0 ** min(attempts, _DOUBLINGS_MAX))
    return min(BACKOFF_CAP_SECONDS, 1.0 + span * jitter)
