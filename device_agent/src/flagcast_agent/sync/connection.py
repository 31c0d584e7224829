"""Broker link: one attempt after the other, how long each may take, and the version of MQTT."""

from dataclasses import dataclass, field
from typing import Final

from .events import Effect, Fault, Level, Log, Remember
from .transitions import (
    CONNECTED,
    RECONNECT_MIN_SECONDS,
    STABLE_AFTER_SECONDS,
    TRANSITIONS,
    WAITING,
    BrokerMemory,
    Cause,
    LinkState,
    Waits,
)

ANSWER_PATIENCE_SECONDS: Final = 20.0
"""How long connecting or subscribing may take, over the slowest link."""
TRIAL_PATIENCE_SECONDS: Final = 5.0
"""The same for MQTT 5 where 3.1.1 may be tried instead: some brokers take its CONNECT for a longer one and never answer."""
HURRIED_PATIENCE_SECONDS: Final = 2.0
"""The least that an answer may take once somebody has asked: who knows that the radio is back need not wait until TCP finds out
that the old connection is dead. It is more on a slow link, see `BrokerLink.shorten`."""
_UNANSWERED: Final = frozenset({LinkState.CONNECTING, LinkState.SUBSCRIBING})


@dataclass(slots=True)
class BrokerLink:
    """The link's state and its deadlines, in monotonic seconds.

    `protocol` is the configured version of MQTT or "auto", `version` the one that the next attempt uses. `broker` names the
    broker, `memory` is what was remembered of one. `since` is when the connection was made, or when it was lost. `retry_at`
    ends the wait for the next attempt, or for an answer to this one.
    """

    protocol: str = "auto"
    broker: str = ""
    memory: BrokerMemory | None = None
    state: LinkState = LinkState.DISCONNECTED
    since: float = 0.0
    last_error: str = ""
    connections: int = 0
    version: str = "5"
    connected_at: float = 0.0
    subscribed_at: float = 0.0
    _retry_at: float = 0.0
    _attempted_at: float | None = None
    _trial_ends: float = 0.0
    _answer_seconds: float | None = None
    _has_short_deadline: bool = False
    _was_hastened: bool = False
    _waits: Waits = field(default_factory=Waits)

    @property
    def is_connected(self) -> bool:
        """Whether the broker receives what is sent."""
        return self.state in CONNECTED

    def may(self, cause: Cause) -> bool:
        """Whether a cause has a row in this state."""
        return (self.state, cause) in TRANSITIONS

    def move(self, cause: Cause, monotonic: float) -> None:
        """The next state."""
        former, self.state = self.state, TRANSITIONS[self.state, cause]
        if (former in CONNECTED) != (self.state in CONNECTED):
            self.since = monotonic

    def next_deadline(self) -> float | None:
        """When the wait for an attempt or an answer is over."""
        return self._retry_at if self.state in WAITING or self.state in _UNANSWERED else None

    def is_due(self, monotonic: float) -> bool:
        """Whether that wait is over."""
        deadline = self.next_deadline()
        return deadline is not None and monotonic >= deadline

    # Attempts

    def start(self, now: int) -> None:
        """Chooses the version of MQTT for the first attempt."""
        self.version = "5" if self.protocol == "auto" else self.protocol
        if self.protocol == "auto" and self.memory is not None and self.memory.holds(self.broker, now):
            self.version = self.memory.protocol

    def attempt(self, cause: Cause, now: int, monotonic: float) -> list[Effect]:
        """Begins an attempt."""
        self.move(cause, monotonic)
        self._attempted_at = monotonic
        effects: list[Effect] = []
        if self.protocol == "auto" and self.memory is not None and not self.memory.holds(self.broker, now):
            self.memory = None
            self.version = "5"
            effects.append(Remember(None))
        is_trial = self.protocol == "auto" and self.version == "5"
        self._trial_ends = monotonic + (TRIAL_PATIENCE_SECONDS if is_trial else ANSWER_PATIENCE_SECONDS)
        self._retry_at = self._trial_ends
        return effects

    def accept(self, now: int, monotonic: float) -> list[Effect]:
        """The broker took the connection."""
        self.move(Cause.ACCEPTED, monotonic)
        self._answer_seconds = monotonic - (self._attempted_at or monotonic)
        self.connections += 1
        self.connected_at = monotonic
        self.last_error = ""
        return [Log(Level.INFO, "connected", (("mqtt", self.version),)), *self._remember(now)]

    def _remember(self, now: int) -> list[Effect]:
        if self.protocol != "auto":
            return []
        if self.version == "5":
            former, self.memory = self.memory, None
            return [Remember(None)] if former is not None else []
        if self.memory is not None and self.memory.holds(self.broker, now):
            return []
        self.memory = BrokerMemory(self.broker, self.version, now)
        return [Remember(self.memory)]

    def subscribe(self, monotonic: float) -> None:
        """Subscriptions are on their way."""
        self.subscribed_at = monotonic
        self._retry_at = (
            self._short_deadline(monotonic)
            if self._has_short_deadline
            else monotonic + ANSWER_PATIENCE_SECONDS
        )

    def confirm(self, monotonic: float) -> None:
        """Every subscription is acknowledged."""
        self.move(Cause.SUBSCRIBED, monotonic)
        self._has_short_deadline = self._was_hastened = False
        if self.subscribed_at == self.connected_at:
            self._answer_seconds = max(self._answer_seconds or 0.0, monotonic - self.subscribed_at)

    # Ends

    def fail(self, fault: Fault, why: str, monotonic: float, jitter: float) -> Log:
        """The attempt came to nothing."""
        self.last_error = why
        if fault is Fault.PROTOCOL and self.protocol == "auto":
            self.version = "3.1.1" if self.version == "5" else "5"
        cause = Cause.DENIED if fault is Fault.REFUSED else Cause.FAILED
        return no_connection(fault, why, self.give_up(cause, monotonic, jitter))

    def fail_overdue(self, monotonic: float, jitter: float) -> Log:
        """The attempt had no answer in time."""
        # An attempt that was cut short tells nothing about what the broker speaks.
        fault = Fault.NETWORK if monotonic < self._trial_ends else Fault.PROTOCOL
        return self.fail(fault, f"the broker did not answer in time (MQTT {self.version})", monotonic, jitter)

    def lose(self, fault: Fault, why: str, monotonic: float, jitter: float) -> Log:
        """The connection ended."""
        self.last_error = why
        if monotonic - self.connected_at >= STABLE_AFTER_SECONDS:
            self._waits.begin_afresh()
        cause = Cause.DENIED if fault is Fault.REFUSED else Cause.LOST
        wait = self.give_up(cause, monotonic, jitter)
        return Log(Level.WARNING, "connection lost", (("why", why), ("again_in_seconds", round(wait, 1))))

    def give_up(self, cause: Cause, monotonic: float, jitter: float) -> float:
        """Waits for the next attempt; returns for how long."""
        self.move(cause, monotonic)
        waits = self._waits
        wait = waits.after_refusal(jitter) if cause is Cause.DENIED else waits.after_failure(jitter)
        if self._has_short_deadline and cause is not Cause.DENIED:
            wait = max(0.0, (self._attempted_at or 0.0) + RECONNECT_MIN_SECONDS - monotonic)
        self._was_hastened = self._has_short_deadline
        self._has_short_deadline = False
        self._retry_at = monotonic + wait
        return wait

    # Haste

    def hasten(self, monotonic: float) -> bool:
        """Somebody asks in a wait: whether the next attempt is due now."""
        # An attempt a second at most, whoever asks and however often.
        soonest = (self._attempted_at or 0.0) + RECONNECT_MIN_SECONDS
        self._retry_at = min(self._retry_at, max(monotonic, soonest))
        self._was_hastened = True
        return monotonic >= self._retry_at

    def shorten(self, monotonic: float) -> bool:
        """Somebody asks outside of a wait: whether anything changes by it.

        What was begun before may be dead, and the network back: it gets little time, and then the next attempt comes at once.
        """
        if self._was_hastened and self.state in _UNANSWERED:
            return False  # it has all its time: else whoever asks again and again would never be up to date
        self._has_short_deadline = True
        if self.state in _UNANSWERED:
            is_connecting = self.state is LinkState.CONNECTING
            begun = self._attempted_at or 0.0 if is_connecting else self.subscribed_at
            self._retry_at = min(self._retry_at, max(monotonic, self._short_deadline(begun)))
        return True

    def note_message(self) -> None:
        """Something arrived: the link is alive, and slow. The answer has its time."""
        if self._has_short_deadline and self.state is LinkState.SUBSCRIBING:
            self._has_short_deadline = False
            self._retry_at = self.subscribed_at + ANSWER_PATIENCE_SECONDS

    def _short_deadline(self, begun: float) -> float:
        # A link's pace is what its last connection took to make, or to subscribe first; one of which nothing is known gets all
        # the time there is.
        pace = ANSWER_PATIENCE_SECONDS if self._answer_seconds is None else 4 * self._answer_seconds
        return begun + min(ANSWER_PATIENCE_SECONDS, max(HURRIED_PATIENCE_SECONDS, pace))


def no_connection(fault: Fault, why: str, wait: float) -> Log:
    """The log line of an attempt that came to nothing."""
    fields = (("fault", fault), ("why", why), ("again_in_seconds", round(wait, 1)))
    return Log(Level.WARNING, "no connection", fields)
