"""The agent's core: what to do next. No socket, no disk, no clock, no thread.

`Sync.handle` takes one event with the time it happened and returns the effects to perform, in order. A shell performs them and
hands the outcome of a persist back as the next event, before any other. So nothing is active that is not on disk, and nothing
is on disk that `trust.admit` has not made.

The states of the link and what leads from one to another stand in `link.TRANSITIONS`. In every connection:

1. Subscribe the next root in a packet of its own, then the heads, and publish the birth. A head that comes before the broker
   has answered the first of them is kept until then: the root may take back the key that signed it.
2. A root that is admitted leads back to 1, so that heads which only it can verify are sent again.
3. A head that names content not held leads to a subscription of that content alone, and to its end once it is there.
4. Up to date (LIVE) is whoever has heard a head of every followed namespace since 1, believed it and holds its content. MQTT has
   no word for "there are no more retained messages": a namespace of which nothing is held and nothing is heard for
   HEADLESS_PATIENCE_SECONDS counts as one where nothing is published. Of one that is held there was a head, so its absence is a
   loss, and the link stays SYNCING.

Every connection is a clean start whose session ends with it. A session that outlives its connection would save the heads, a few
hundred bytes each, and would have the broker queue every head and every content of the time between.

Some brokers keep retained messages where this device does not hear them: of another node of the cluster, or not for a filter
with a wildcard. So parts of a snapshot are asked for by name, and a head or a content that does not come is asked of the
publisher, which publishes it again, live.

What it does not do: it never waits for a message to be sure that there is none; a retained message may come before or after the
SUBACK or never, and every order of arrival leads to the same state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Final

from flagcast_shared.bucketing import candidate_bucket
from flagcast_shared.errors import Frozen, Misplaced, Refused, Unauthentic
from flagcast_shared.ids import Namespace, Version
from flagcast_shared.limits import REPORT_DIGEST_BYTES
from flagcast_shared.reports import (
    Applied,
    Refresh,
    Rejection,
    Report,
    Usage,
    encode_refresh,
    encode_report,
)
from flagcast_shared.topics import (
    Address,
    DeltaAddress,
    DeviceAddress,
    HeadAddress,
    RootAddress,
    SnapshotAddress,
    Topics,
)
from flagcast_shared.trust import (
    AdmittedRoot,
    AdmittedUpdate,
    Nothing,
    Trusted,
    Wanted,
    admit,
    without_parts,
)

from .link import (
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
from .timefloor import TimeFloor

ANSWER_PATIENCE_SECONDS: Final = 20.0
"""How long connecting or subscribing may take, over the slowest link."""
TRIAL_PATIENCE_SECONDS: Final = 5.0
"""The same for MQTT 5 where 3.1.1 may be tried instead: some brokers take its CONNECT for a longer one and never answer."""
HURRIED_PATIENCE_SECONDS: Final = 2.0
"""The least that an answer may take once somebody has asked: who knows that the radio is back need not wait until TCP finds out
that the old connection is dead. It is more on a slow link, see `_hurried_until`."""
HEADLESS_PATIENCE_SECONDS: Final = 10.0
"""How long after the SUBACK a namespace of which nothing is held may be silent before it counts as not published. Retained
messages come with the SUBACK; the rest is what an answer to a refresh may take."""
REFRESH_PATIENCE_SECONDS: Final = 4.0
"""How long after the SUBACK a head may be missing before the publisher is asked for it."""
REFRESH_INTERVAL_SECONDS: Final = 600.0
"""How often one connection asks the publisher for heads at most, until a root is admitted, and how often for one content."""
FETCH_PATIENCE_SECONDS: Final = 15.0
"""How long content may take before it is asked for otherwise, or again. Where the head itself had to be asked for, the content is
not expected to be there either, and REFRESH_PATIENCE_SECONDS is enough."""
EARLY_HEADS_MAX: Final = 64
"""Heads that are kept until the broker has answered for the next root: a few of each namespace. The rest is asked for again."""
EARLY_HEADS_MAX_BYTES: Final = 262_144
"""The same in bytes: as much as the largest message."""
FETCH_BYTES_PER_SECOND: Final = 1_000
"""The slowest link for which content is waited for without asking for it once more: GPRS on a bad day."""
PARTS_BY_NAME_MAX: Final = 32
"""More parts, of all namespaces together, are subscribed to with a wildcard: AWS IoT allows a connection 50 subscriptions."""
FETCH_PATIENCE_CAP_SECONDS: Final = 600.0
PERSIST_RETRY_SECONDS: Final = 30.0
"""How often a disk that was full is tried again."""
REJECTIONS_TOLD_MAX: Final = 16
"""Refusals that one connection reports; a broker that lies all the time must not make its devices write all the time."""
HEARTBEAT_SALT: Final = b"heartbeat"
_BUCKETS: Final = 10_000


class Fault(StrEnum):
    """Why a connection was not made."""

    NETWORK = "network"
    PROTOCOL = "protocol"
    """The broker does not speak this version of MQTT, or closed before saying anything."""
    REFUSED = "refused"
    """The broker refused the credentials, the client or its certificate."""


@dataclass(frozen=True, slots=True)
class Started:
    """The agent is up."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker accepted the connection."""


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """No connection; `why` is for people."""

    fault: Fault
    why: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended; `fault` is REFUSED where the broker said that it will not have this device."""

    why: str
    fault: Fault = Fault.NETWORK


@dataclass(frozen=True, slots=True)
class Received:
    """A message of a subscribed topic."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Persisted:
    """The last Persist effect is on disk."""


@dataclass(frozen=True, slots=True)
class PersistFailed:
    """The last Persist effect is not on disk; nothing changed."""

    why: str


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The broker answered a subscription of these filters; it took all but the `refused` ones."""

    filters: tuple[str, ...]
    refused: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The broker answered a Send. `is_kept`: it took the message and knows of somebody to give it to, as far as it says.

    `may_retry` is false where asking again in this connection is of no use.
    """

    token: int
    is_kept: bool
    may_retry: bool = True
    why: str = ""


@dataclass(frozen=True, slots=True)
class Reported:
    """The broker's answer to a report: why it was refused, blank where it was taken."""

    refused: str


@dataclass(frozen=True, slots=True)
class Woken:
    """Somebody wants to be up to date now."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Evaluations to be kept until they are sent."""

    batches: tuple[Usage, ...]


@dataclass(frozen=True, slots=True)
class UsageNotKept:
    """The disk did not take a batch of so many evaluations."""

    evaluations: int


@dataclass(frozen=True, slots=True)
class UsageFound:
    """The oldest batch on disk; `number` is 0 where there is none."""

    number: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed; `next_deadline` says when this is next worth telling."""


Event = (
    Started
    | Connected
    | ConnectFailed
    | Disconnected
    | Received
    | Persisted
    | PersistFailed
    | Subscribed
    | Delivered
    | Reported
    | Woken
    | Counted
    | UsageNotKept
    | UsageFound
    | Ticked
)


@dataclass(frozen=True, slots=True)
class Connect:
    """Connect with this version of MQTT ("5" or "3.1.1") and this will."""

    protocol: str
    will_topic: str
    will: bytes


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Give the connection up, or the attempt at one; nothing of it is of interest any more."""


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribe at QoS 1."""

    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Unsubscribe."""

    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish at QoS 1, retained."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Send:
    """Publish at QoS 1, not retained; Delivered with the same token follows."""

    topic: str
    payload: bytes
    token: int


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep what is known of the broker for the next start; None to forget it. A disk that does not take it is no harm."""

    memory: BrokerMemory | None


@dataclass(frozen=True, slots=True)
class KeepUsage:
    """Put a batch on disk; UsageNotKept follows where that fails."""

    batch: Usage


@dataclass(frozen=True, slots=True)
class FindUsage:
    """Look for the oldest batch on disk; UsageFound follows."""


@dataclass(frozen=True, slots=True)
class DropUsage:
    """This batch was taken; it is not needed any more."""

    number: int


@dataclass(frozen=True, slots=True)
class PersistUpdate:
    """Put an update on disk, then say Persisted or PersistFailed before anything else."""

    update: AdmittedUpdate
    floor: TimeFloor


@dataclass(frozen=True, slots=True)
class PersistRoot:
    """Put a root on disk, then say Persisted or PersistFailed before anything else."""

    root: AdmittedRoot
    floor: TimeFloor


@dataclass(frozen=True, slots=True)
class Believe:
    """Judge age and staleness by this from now on."""

    floor: TimeFloor


@dataclass(frozen=True, slots=True)
class Activate:
    """Answer applications from this from now on."""

    update: AdmittedUpdate


class Level(IntEnum):
    """How much a Log matters; the numbers of Python's `logging`."""

    INFO = 20
    WARNING = 30
    ERROR = 40


@dataclass(frozen=True, slots=True)
class Log:
    """Say something; `fields` are pairs of name and value."""

    level: Level
    message: str
    fields: tuple[tuple[str, object], ...] = ()


Effect = (
    Connect
    | Disconnect
    | Subscribe
    | Unsubscribe
    | Publish
    | Send
    | Remember
    | KeepUsage
    | FindUsage
    | DropUsage
    | PersistUpdate
    | PersistRoot
    | Believe
    | Activate
    | Log
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The last message that was not believed."""

    attack: str
    why: str
    topic: str
    at: int


@dataclass(slots=True)
class _Fetch:
    # Content that was asked for: by which subscriptions, until when to wait, and how long the next wait is. Spoiled: its
    # parts do not fit together. Come on: a part came since it was asked for last.
    version: Version
    parts: int
    filters: tuple[str, ...]
    deadline: float
    patience: float
    is_delta: bool
    is_spoiled: bool = False
    has_come_on: bool = False


@dataclass(slots=True)
class Sync:
    """The state of one agent's synchronisation; nothing about it lives elsewhere.

    `session` is the number of the connection to come: each connection has the next one. `broker` names the broker, `memory` is
    what was remembered of one. `heartbeat_seconds` is how often a report is sent without news, 0 for never.

    `floor` says what time it is at least. `link_since` is the monotonic time when the connection was made, or when it was lost.
    `asked` counts the times that somebody wanted to be up to date, `answered` is how many of them have been by now. `rejections`
    counts refused messages by the name of the attack. `report_refused` says why the broker refused the last report, blank
    where it took it. A report holds the last `refusal` until something is admitted in its place: an update of its namespace,
    or a root.
    """

    trusted: Trusted
    topics: Topics
    namespaces: tuple[Namespace, ...]
    session: int
    agent: str
    protocol: str = "auto"
    broker: str = ""
    memory: BrokerMemory | None = None
    heartbeat_seconds: int = 0
    link: LinkState = LinkState.DISCONNECTED
    floor: TimeFloor = field(default_factory=TimeFloor)
    link_since: float = 0.0
    last_error: str = ""
    report_refused: str = ""
    refusal: Refusal | None = None
    rejections: dict[str, int] = field(default_factory=dict)
    connections: int = 0
    asked: int = 0
    answered: int = 0
    _speaks: str = "5"
    _waits: Waits = field(default_factory=Waits)
    _retry_at: float = 0.0
    _attempted_at: float | None = None
    _trial_ends: float = 0.0
    _answer_seconds: float | None = None
    _is_hurried: bool = False
    _is_begun_in_hurry: bool = False
    _connected_at: float = 0.0
    _unconfirmed: set[str] = field(default_factory=set)
    _is_walking: bool = False
    _denied: set[str] = field(default_factory=set)
    _subscribed_at: float = 0.0
    _again_at: float | None = None
    _heard: dict[Namespace, str] = field(default_factory=dict)
    _early: list[Received] = field(default_factory=list)
    _frozen_at: int | None = None
    _quiet_at: float | None = None
    _refresh_at: float = 0.0
    _asked_for_heads: set[Namespace] = field(default_factory=set)
    _asked_for_content: dict[Namespace, tuple[Version, float]] = field(default_factory=dict)
    _heartbeat_at: float | None = None
    _fetches: dict[Namespace, _Fetch] = field(default_factory=dict)
    _proposed: tuple[Trusted, AdmittedUpdate | AdmittedRoot, TimeFloor] | None = None
    _persist_again_at: float | None = None
    _disk_error: str = ""
    _reports: int = 0
    _told: tuple[str, str] | None = None
    _is_refusal_settled: bool = False
    _rejections_told: int = 0
    _usage_sent: int = 0
    _usage_number: int = 0
    _usage_rests: bool = False
    _usage_denied: bool = False
    _usage_unkept: int = 0
    _tokens: int = 0

    def handle(self, event: Event, *, now: int, monotonic: float, jitter: float) -> Sequence[Effect]:
        """The effects of one event. `now` is Unix seconds, `jitter` a random number from 0 to 1.

        What comes of a connection that stands no more is passed over.
        """
        effects = [*self._effects_of(event, now, monotonic, jitter)]
        # One at a time: what is admitted is on disk before the next one is judged.
        while self._early and self._proposed is None and not self._awaits_root():
            effects += self._on_received(self._early.pop(0), now, monotonic)
        return [*effects, *self._progress(monotonic)]

    def _effects_of(self, event: Event, now: int, monotonic: float, jitter: float) -> Sequence[Effect]:
        match event:
            case Started():
                return self._on_started(now, monotonic)
            case Connected():
                return self._on_connected(now, monotonic)
            case ConnectFailed(fault, why):
                return self._on_connect_failed(fault, why, monotonic, jitter)
            case Disconnected(why, fault):
                return self._on_disconnected(fault, why, monotonic, jitter)
            case Subscribed():
                return self._on_subscribed(event, monotonic, jitter)
            case Received():
                return self._on_received(event, now, monotonic)
            case Persisted():
                return self._on_persisted(now, monotonic)
            case PersistFailed(why):
                return self._on_persist_failed(why, monotonic)
            case Delivered(token):
                return self._on_delivered(event) if token == self._usage_sent else []
            case Reported(refused):
                return self._on_reported(refused)
            case Woken():
                return self._on_woken(now, monotonic)
            case Counted(batches):
                return self._on_counted(batches)
            case UsageNotKept(evaluations):
                self._usage_unkept += evaluations
                return []
            case UsageFound(number, payload):
                return self._on_usage_found(number, payload)
            case Ticked():
                return self._on_ticked(now, monotonic, jitter)

    def farewell(self, now: int) -> Publish:
        """The last report of a clean end: what is held, and offline. `now` in Unix seconds."""
        return self._report(now, is_online=False)

    def next_deadline(self) -> float | None:
        """The monotonic time at which Ticked is next worth telling; None when nothing is waited for."""
        deadlines = [self._persist_again_at, self._again_at]
        if self.link in WAITING or self.link in {LinkState.CONNECTING, LinkState.SUBSCRIBING}:
            deadlines.append(self._retry_at)
        if self.link in CONNECTED:
            deadlines += [self._heartbeat_at, *(fetch.deadline for fetch in self._fetches.values())]
        if self.link is LinkState.SYNCING and self._headless():
            deadlines += [self._refresh_at, self._quiet_at]
        return min((each for each in deadlines if each is not None), default=None)

    @property
    def is_sending(self) -> bool:
        """Whether evaluation counts are on their way to the broker."""
        return self._usage_sent != 0 and self.link in CONNECTED

    def why_not_current(self) -> tuple[str, ...]:
        """For people: what keeps the agent from being up to date; empty when it is."""
        if self.link is LinkState.LIVE:
            return ()
        if self.link is not LinkState.SYNCING:
            return (f"the link is {self.link}" + (f": {self.last_error}" if self.last_error else ""),)
        return tuple(
            f"{namespace}: {why}" for namespace in self.namespaces if (why := self._why_unsettled(namespace))
        )

    # The link

    def _move(self, cause: Cause, monotonic: float) -> None:
        former, self.link = self.link, TRANSITIONS[self.link, cause]
        if (former in CONNECTED) != (self.link in CONNECTED):
            self.link_since = monotonic

    def _may(self, cause: Cause) -> bool:
        return (self.link, cause) in TRANSITIONS

    def _on_started(self, now: int, monotonic: float) -> Sequence[Effect]:
        if not self._may(Cause.STARTED):
            return []
        self._speaks = "5" if self.protocol == "auto" else self.protocol
        if self.protocol == "auto" and self.memory is not None and self.memory.holds(self.broker, now):
            self._speaks = self.memory.protocol
        if self.heartbeat_seconds:
            # Each device has its own place within the interval: a fleet that is switched on at once does not beat at once.
            phase = candidate_bucket(HEARTBEAT_SALT, self.trusted.device.id) / _BUCKETS
            self._heartbeat_at = monotonic + phase * self.heartbeat_seconds
        return self._connect(Cause.STARTED, now, monotonic)

    def _connect(self, cause: Cause, now: int, monotonic: float) -> Sequence[Effect]:
        self._move(cause, monotonic)
        self._attempted_at = monotonic
        self._again_at = None
        effects: list[Effect] = []
        if self.protocol == "auto" and self.memory is not None and not self.memory.holds(self.broker, now):
            self.memory = None
            self._speaks = "5"
            effects.append(Remember(None))
        is_trial = self.protocol == "auto" and self._speaks == "5"
        self._trial_ends = monotonic + (TRIAL_PATIENCE_SECONDS if is_trial else ANSWER_PATIENCE_SECONDS)
        self._retry_at = self._trial_ends
        self.session += 1
        self._reports = 0
        will = encode_report(self._make_report(now, number=0, is_online=False))
        return [*effects, Connect(self._speaks, self._report_topic(), will)]

    def _on_connected(self, now: int, monotonic: float) -> Sequence[Effect]:
        if not self._may(Cause.ACCEPTED):
            return []
        self._move(Cause.ACCEPTED, monotonic)
        self._answer_seconds = monotonic - (self._attempted_at or monotonic)
        self.connections += 1
        self._connected_at = monotonic
        self._refresh_at = monotonic
        self._asked_for_heads.clear()
        self._asked_for_content.clear()
        self._is_heartbeat_due(monotonic)  # the birth is a sign of life too
        self.last_error = ""
        self._fetches.clear()
        self._denied.clear()
        self._is_walking = False
        self._rejections_told = 0
        self._usage_sent = 0
        self._usage_rests = self._usage_denied = False
        return [
            Log(Level.INFO, "connected", (("mqtt", self._speaks),)),
            *self._remember(now),
            *self._subscribe(monotonic, self._root_filter(), *self._head_filters()),
            self._report(now),
        ]

    def _remember(self, now: int) -> Sequence[Effect]:
        if self.protocol != "auto":
            return []
        if self._speaks == "5":
            former, self.memory = self.memory, None
            return [Remember(None)] if former is not None else []
        if self.memory is not None and self.memory.holds(self.broker, now):
            return []
        self.memory = BrokerMemory(self.broker, self._speaks, now)
        return [Remember(self.memory)]

    def _root_filter(self) -> str:
        return self.topics.of(RootAddress(self.trusted.root.number + 1))

    def _head_filters(self) -> tuple[str, ...]:
        return tuple(self.topics.of(HeadAddress(namespace)) for namespace in self.namespaces)

    def _awaits_root(self) -> bool:
        # Whether the broker has yet to answer for the next root; it may hold one.
        return self._root_filter() in self._unconfirmed

    def _subscribe(self, monotonic: float, *filters: str) -> list[Effect]:
        # The broker sends its retained messages again to whoever subscribes again (MQTT 3.1.1 and 5, 3.8.4). The next root has
        # a packet of its own before the heads, because a broker may take the filters of one packet in any order. Both packets
        # leave at once, so that is no round trip.
        packets: list[tuple[str, ...]] = [(name,) for name in filters if name == self._root_filter()]
        if heads := tuple(name for name in filters if name != self._root_filter()):
            packets.append(heads)
        self._unconfirmed = set(filters)
        self._heard.clear()
        self._early.clear()
        self._frozen_at = None
        self._again_at = None
        self._subscribed_at = monotonic
        self._retry_at = (
            self._hurried_until(monotonic) if self._is_hurried else monotonic + ANSWER_PATIENCE_SECONDS
        )
        return [Subscribe(packet) for packet in packets]

    def _subscribe_again(self, monotonic: float) -> list[Effect]:
        self._move(Cause.AGAIN, monotonic)
        self._is_walking = False
        former = self._drop_fetches()
        again = self._subscribe(monotonic, self._root_filter(), *self._head_filters())
        return [*([Unsubscribe(former)] if former else []), *again]

    def _walk(self, former_root: int, monotonic: float) -> list[Effect]:
        # Another root may follow at once, and take back the key of a head that is already on its way: no head is judged
        # until the broker has answered what stands after this root.
        self._move(Cause.AGAIN, monotonic)
        self._is_walking = True
        self._refresh_at = monotonic
        former = (self.topics.of(RootAddress(former_root + 1)), *self._drop_fetches())
        return [Unsubscribe(former), *self._subscribe(monotonic, self._root_filter())]

    def _on_subscribed(self, answer: Subscribed, monotonic: float, jitter: float) -> Sequence[Effect]:
        if self.link not in CONNECTED:
            return []
        effects: list[Effect] = []
        if answer.refused:
            self.last_error = f"the broker refused a subscription: {answer.why}"
            fields = (("why", answer.why), ("topics", " ".join(answer.refused)))
            effects.append(Log(Level.ERROR, "the broker refused a subscription", fields))
        self._denied |= set(answer.refused)
        self._unconfirmed -= set(answer.filters)
        if self._unconfirmed or not self._may(Cause.SUBSCRIBED):
            return effects
        if self._is_walking:
            self._is_walking = False
            return [*effects, *self._subscribe(monotonic, *self._head_filters())]
        if self._denied >= set(self._head_filters()):
            wait = self._give_up(Cause.DENIED, monotonic, jitter)
            return [*effects, Disconnect(), _no_connection(Fault.REFUSED, self.last_error, wait)]
        self._move(Cause.SUBSCRIBED, monotonic)
        self._is_hurried = self._is_begun_in_hurry = False
        if self._subscribed_at == self._connected_at:
            self._answer_seconds = max(self._answer_seconds or 0.0, monotonic - self._subscribed_at)
        self._quiet_at = monotonic + HEADLESS_PATIENCE_SECONDS
        self._refresh_at = max(self._refresh_at, monotonic + REFRESH_PATIENCE_SECONDS)
        return [*effects, *self._find_usage()]

    def _on_connect_failed(self, fault: Fault, why: str, monotonic: float, jitter: float) -> Sequence[Effect]:
        cause = Cause.DENIED if fault is Fault.REFUSED else Cause.FAILED
        if self.link is not LinkState.CONNECTING:
            return []
        self.last_error = why
        if fault is Fault.PROTOCOL and self.protocol == "auto":
            self._speaks = "3.1.1" if self._speaks == "5" else "5"
        wait = self._give_up(cause, monotonic, jitter)
        return [_no_connection(fault, why, wait)]

    def _on_disconnected(self, fault: Fault, why: str, monotonic: float, jitter: float) -> Sequence[Effect]:
        cause = Cause.DENIED if fault is Fault.REFUSED else Cause.LOST
        if not self._may(cause) or self.link not in CONNECTED:
            return []
        self.last_error = why
        if monotonic - self._connected_at >= STABLE_AFTER_SECONDS:
            self._waits.begin_afresh()
        self._fetches.clear()
        wait = self._give_up(cause, monotonic, jitter)
        return [Log(Level.WARNING, "connection lost", (("why", why), ("again_in_seconds", round(wait, 1))))]

    def _give_up(self, cause: Cause, monotonic: float, jitter: float) -> float:
        self._move(cause, monotonic)
        waits = self._waits
        wait = waits.after_refusal(jitter) if cause is Cause.DENIED else waits.after_failure(jitter)
        if self._is_hurried and cause is not Cause.DENIED:
            wait = max(0.0, (self._attempted_at or 0.0) + RECONNECT_MIN_SECONDS - monotonic)
        self._is_begun_in_hurry = self._is_hurried
        self._is_hurried = False
        self._retry_at = monotonic + wait
        self._again_at = None
        return wait

    def _on_woken(self, now: int, monotonic: float) -> Sequence[Effect]:
        self.asked += 1
        if self.link in WAITING:
            # An attempt a second at most, whoever asks and however often.
            soonest = (self._attempted_at or 0.0) + RECONNECT_MIN_SECONDS
            self._retry_at = min(self._retry_at, max(monotonic, soonest))
            self._is_begun_in_hurry = True
            return self._connect(Cause.DUE, now, monotonic) if monotonic >= self._retry_at else []
        if self._is_begun_in_hurry and self.link in {LinkState.CONNECTING, LinkState.SUBSCRIBING}:
            return []  # it has all its time: else whoever asks again and again would never be up to date
        # What was begun before may be dead, and the network back: it gets little time, and then the next attempt comes at once.
        self._is_hurried = True
        if self.link is LinkState.CONNECTING:
            self._retry_at = min(
                self._retry_at, max(monotonic, self._hurried_until(self._attempted_at or 0.0))
            )
        elif self.link is LinkState.SUBSCRIBING:
            self._retry_at = min(self._retry_at, max(monotonic, self._hurried_until(self._subscribed_at)))
        elif self._may(Cause.AGAIN):
            soonest = self._subscribed_at + RECONNECT_MIN_SECONDS
            if monotonic >= soonest:
                return self._subscribe_again(monotonic)
            self._again_at = soonest
        return []

    def _hurried_until(self, begun: float) -> float:
        # A link's pace is what its last connection took to make, or to subscribe first; one of which nothing is known gets all
        # the time there is.
        pace = ANSWER_PATIENCE_SECONDS if self._answer_seconds is None else 4 * self._answer_seconds
        return begun + min(ANSWER_PATIENCE_SECONDS, max(HURRIED_PATIENCE_SECONDS, pace))

    def _progress(self, monotonic: float) -> Sequence[Effect]:
        # Called after every event: whether the agent is up to date is a matter of what is there, not of what came last.
        if self.link is LinkState.LIVE and (self._fetches or self._persist_again_at is not None):
            self._move(Cause.WANTED, monotonic)
        if self._quiet_at is not None and monotonic >= self._quiet_at:
            self._quiet_at = None
        if self.link is not LinkState.SYNCING or self._proposed is not None:
            return []
        unpublished = {name for name in self._headless() if name not in self.trusted.holdings}
        for namespace in self.namespaces:
            if self._quiet_at is None and namespace in unpublished:
                continue
            if self._why_unsettled(namespace):
                return []
        self._move(Cause.SETTLED, monotonic)
        if self._again_at is None:
            self.answered = self.asked
        return [Log(Level.INFO, "up to date")]

    def _why_unsettled(self, namespace: Namespace) -> str:
        if self.topics.of(HeadAddress(namespace)) in self._denied:
            return "the broker refused the subscription of its head"
        fetch = self._fetches.get(namespace)
        if fetch is not None:
            return f"content of version {fetch.version} is awaited"
        heard = self._heard.get(namespace)
        if heard is None:
            return "no head was heard"
        return f"the head was not taken: {heard}" if heard else ""

    def _headless(self) -> list[Namespace]:
        # Followed, readable, and silent.
        return [
            namespace
            for namespace in self.namespaces
            if namespace not in self._heard and self.topics.of(HeadAddress(namespace)) not in self._denied
        ]

    # Messages

    def _on_received(self, message: Received, now: int, monotonic: float) -> Sequence[Effect]:
        if self.link not in CONNECTED:
            return []
        topic, payload = message.topic, message.payload
        address = self.topics.address(topic)
        if address is None or not self._follows(address):
            return [Log(Level.WARNING, "a message on a topic that is not ours", (("topic", topic),))]
        if self._is_hurried and self.link is LinkState.SUBSCRIBING:
            # The link is alive, and slow: the answer has its time.
            self._is_hurried = False
            self._retry_at = self._subscribed_at + ANSWER_PATIENCE_SECONDS
        if isinstance(address, HeadAddress) and self._awaits_root():
            return self._keep_early(message)
        try:
            trusted, outcome = admit(self.trusted, address, payload, now=now)
        except Refused as error:
            return self._refuse(error, topic, address, now, monotonic)
        match outcome:
            case Nothing():
                self._come_on(address, trusted, monotonic)
                self.trusted = trusted
                self._hear(address, self._why_outlived(address))
                return []
            case Wanted():
                self.trusted = trusted
                self._hear(address)
                return self._fetch(outcome, topic, now, monotonic)
            case AdmittedUpdate():
                floor = self.floor.learn(trusted.floor, monotonic)
                self._proposed = (trusted, outcome, floor)
                return [PersistUpdate(outcome, floor)]
            case AdmittedRoot():
                is_new_epoch = outcome.root.epoch > self.trusted.root.epoch
                learn = self.floor.begin_afresh if is_new_epoch else self.floor.learn
                floor = learn(trusted.floor, monotonic)
                self._proposed = (trusted, outcome, floor)
                return [PersistRoot(outcome, floor)]

    def _keep_early(self, message: Received) -> Sequence[Effect]:
        # All of them in their order: garbage on a topic must not take the place of the head before it.
        kept = sum(len(other.payload) for other in self._early)
        if len(self._early) == EARLY_HEADS_MAX or kept + len(message.payload) > EARLY_HEADS_MAX_BYTES:
            self._again_at = self._subscribed_at + FETCH_PATIENCE_SECONDS
        else:
            self._early.append(message)
        return []

    def _hear(self, address: Address, trouble: str = "") -> None:
        # Once a head was believed, later messages on its topic that are not do not take that back.
        if isinstance(address, HeadAddress) and (not trouble or self._heard.get(address.namespace) != ""):
            self._heard[address.namespace] = trouble

    def _why_outlived(self, address: Address) -> str:
        # A head that is held and was signed under an earlier epoch: nothing new, yet the one of this epoch is still to come.
        holding = self.trusted.holdings.get(address.namespace) if isinstance(address, HeadAddress) else None
        is_outlived = holding is not None and holding.head.epoch < self.trusted.root.epoch
        return "it was signed before the publisher's keys were rotated" if is_outlived else ""

    def _come_on(self, address: Address, trusted: Trusted, monotonic: float) -> None:
        # One more part is there: the rest has its time anew.
        if not isinstance(address, SnapshotAddress):
            return
        fetch = self._fetches.get(address.namespace)
        if fetch is not None and _parts(trusted, address.namespace) > _parts(self.trusted, address.namespace):
            fetch.has_come_on = True
            fetch.deadline = monotonic + fetch.patience

    def _follows(self, address: Address) -> bool:
        # A broker may send what was not asked for; namespaces that are not followed take no memory.
        match address:
            case HeadAddress(namespace) | SnapshotAddress(namespace) | DeltaAddress(namespace):
                return namespace in self.namespaces
            case RootAddress():
                return True
            case DeviceAddress():
                return False

    def _refuse(
        self, error: Refused, topic: str, address: Address, now: int, monotonic: float
    ) -> Sequence[Effect]:
        effects = self._note(error, topic, now)
        self._hear(address, error.attack)
        if isinstance(error, Frozen):
            self._frozen_at = now
        match address:
            case DeltaAddress(namespace):
                effects += self._fetch_snapshot(namespace, monotonic)
            case SnapshotAddress(namespace) if not isinstance(error, Unauthentic | Misplaced):
                fetch = self._fetches.get(namespace)
                if fetch is not None:
                    fetch.is_spoiled = True
            case _:
                pass
        return effects

    def _note(self, error: Refused, topic: str, now: int) -> list[Effect]:
        self.refusal = Refusal(error.attack, str(error), topic, now)
        self._is_refusal_settled = False
        self.rejections[error.attack] = self.rejections.get(error.attack, 0) + 1
        effects: list[Effect] = [
            Log(Level.WARNING, "refused", (("attack", error.attack), ("topic", topic), ("why", str(error))))
        ]
        # What is refused over and over is reported once, until something has been admitted in between.
        if self._told != (error.attack, topic) and self._rejections_told < REJECTIONS_TOLD_MAX:
            self._told = (error.attack, topic)
            self._rejections_told += 1
            effects.append(self._report(now))
        return effects

    def _fetch(self, wanted: Wanted, topic: str, now: int, monotonic: float) -> Sequence[Effect]:
        # An inline delta that is of no use is a refusal like any other, of a head that stands all the same.
        effects = self._note(wanted.refused, topic, now) if wanted.refused is not None else []
        known = self._fetches.get(wanted.namespace)
        if known is not None and known.version == wanted.offering.version:
            return effects
        if known is not None:
            effects.append(Unsubscribe(known.filters))
        version, parts = wanted.offering.version, wanted.offering.parts
        is_delta = wanted.has_delta and wanted.refused is None
        if is_delta and wanted.held is not None:
            wished: tuple[str, ...] = (self.topics.of(DeltaAddress(wanted.namespace, version, wanted.held)),)
        else:
            wished = self._snapshot_filters(wanted.namespace, version, parts)
        first = patience = REFRESH_PATIENCE_SECONDS
        if wanted.namespace not in self._asked_for_heads:
            first = FETCH_PATIENCE_SECONDS
            # Of one part: the next one has its time anew.
            patience = max(first, wanted.offering.size / parts / FETCH_BYTES_PER_SECOND)
        deadline = monotonic + (first if is_delta else patience)
        self._fetches[wanted.namespace] = _Fetch(
            version, parts, wished, deadline, patience, is_delta=is_delta
        )
        return [*effects, Subscribe(wished)]

    def _snapshot_filters(self, namespace: Namespace, version: Version, parts: int) -> tuple[str, ...]:
        others = sum(len(fetch.filters) for name, fetch in self._fetches.items() if name != namespace)
        if parts + others > PARTS_BY_NAME_MAX:
            return (self.topics.snapshot_filter(namespace, version),)
        return tuple(self.topics.of(SnapshotAddress(namespace, version, part)) for part in range(parts))

    def _fetch_snapshot(self, namespace: Namespace, monotonic: float) -> Sequence[Effect]:
        fetch = self._fetches.get(namespace)
        if fetch is None or not fetch.is_delta:
            return []
        former = fetch.filters
        fetch.filters = self._snapshot_filters(namespace, fetch.version, fetch.parts)
        fetch.is_delta = False
        fetch.deadline = monotonic + fetch.patience
        return [Unsubscribe(former), Subscribe(fetch.filters)]

    def _drop_fetches(self) -> tuple[str, ...]:
        filters = tuple(name for fetch in self._fetches.values() for name in fetch.filters)
        self._fetches.clear()
        return filters

    # The disk

    def _on_persisted(self, now: int, monotonic: float) -> Sequence[Effect]:
        if self._proposed is None:
            return []
        former_root = self.trusted.root.number
        self.trusted, outcome, self.floor = self._proposed
        self._proposed = None
        self._persist_again_at = None
        if self.last_error == self._disk_error:
            self.last_error = ""
        self._told = None
        self._rejections_told = 0
        admitted = "" if isinstance(outcome, AdmittedRoot) else outcome.namespace
        self._is_refusal_settled |= self.refusal is not None and admitted == self._namespace_of(self.refusal)
        if isinstance(outcome, AdmittedRoot):
            return [
                Believe(self.floor),
                Log(
                    Level.INFO,
                    "root admitted",
                    (("root", outcome.root.number), ("epoch", outcome.root.epoch)),
                ),
                *self._walk(former_root, monotonic),
                self._report(now),
            ]
        self._heard[outcome.namespace] = ""
        effects: list[Effect] = [Believe(self.floor), Activate(outcome)]
        fetch = self._fetches.pop(outcome.namespace, None)
        if fetch is not None:
            effects.append(Unsubscribe(fetch.filters))
        holding = outcome.holding
        effects.append(
            Log(
                Level.INFO,
                "admitted",
                (
                    ("namespace", outcome.namespace),
                    ("epoch", holding.epoch),
                    ("version", holding.version),
                    ("sequence", holding.head.sequence),
                    ("changed", len(outcome.changed)),
                    ("removed", len(outcome.removed)),
                ),
            )
        )
        if outcome.warning:
            effects.append(Log(Level.WARNING, outcome.warning, (("namespace", outcome.namespace),)))
        effects.append(self._report(now))
        return effects

    def _on_persist_failed(self, why: str, monotonic: float) -> Sequence[Effect]:
        effects: list[Effect] = [
            Log(Level.ERROR, "an update could not be persisted and is not active", (("why", why),))
        ]
        if self._proposed is not None and isinstance(self._proposed[1], AdmittedUpdate):
            # The content has arrived; asking for it again before the disk is tried again would be of no use.
            fetch = self._fetches.pop(self._proposed[1].namespace, None)
            effects += [Unsubscribe(fetch.filters)] if fetch is not None else []
            self._heard[self._proposed[1].namespace] = "it could not be persisted"
        self._proposed = None
        self.last_error = self._disk_error = why
        self._persist_again_at = monotonic + PERSIST_RETRY_SECONDS
        return effects

    # Time

    def _on_ticked(self, now: int, monotonic: float, jitter: float) -> Sequence[Effect]:
        effects: list[Effect] = []
        if self.link in WAITING and monotonic >= self._retry_at:
            effects += self._connect(Cause.DUE, now, monotonic)
        elif self.link is LinkState.CONNECTING and monotonic >= self._retry_at:
            why = f"the broker did not answer in time (MQTT {self._speaks})"
            # An attempt that was cut short says nothing about what the broker speaks.
            fault = Fault.NETWORK if monotonic < self._trial_ends else Fault.PROTOCOL
            effects += [
                Disconnect(),
                *self._on_connect_failed(fault, why, monotonic, jitter),
            ]
        elif self.link is LinkState.SUBSCRIBING and monotonic >= self._retry_at:
            why = "the broker did not acknowledge a subscription in time"
            effects += [
                Disconnect(),
                *self._on_disconnected(Fault.NETWORK, why, monotonic, jitter),
            ]
        is_again_due = self._again_at is not None and monotonic >= self._again_at
        # The clock was set back since a head was refused that it made look expired; no broker offers that head again by itself.
        is_again_due |= self._frozen_at is not None and now < self._frozen_at
        if self._persist_again_at is not None and monotonic >= self._persist_again_at:
            self._persist_again_at = None
            is_again_due = True
        if is_again_due and self._may(Cause.AGAIN):
            effects += self._subscribe_again(monotonic)
        if self.link in CONNECTED:
            for namespace, fetch in self._fetches.items():
                if monotonic >= fetch.deadline:
                    effects += self._ask_again(namespace, fetch, monotonic)
            effects += self._refresh(monotonic)
        if self._is_heartbeat_due(monotonic) and self.link in CONNECTED:
            effects.append(self._report(now))
        return effects

    def _is_heartbeat_due(self, monotonic: float) -> bool:
        # Asked once for each beat: it moves the next one on.
        if self._heartbeat_at is None or monotonic < self._heartbeat_at:
            return False
        passed = (monotonic - self._heartbeat_at) // self.heartbeat_seconds + 1
        self._heartbeat_at += passed * self.heartbeat_seconds
        return True

    def _refresh(self, monotonic: float) -> Sequence[Effect]:
        missing = self._headless()
        if self.link is not LinkState.SYNCING or not missing or monotonic < self._refresh_at:
            return []
        self._refresh_at = monotonic + REFRESH_INTERVAL_SECONDS
        self._asked_for_heads.update(missing)
        return [
            Log(
                Level.WARNING,
                "no head was heard; asking for it to be published again",
                (("namespaces", " ".join(missing)),),
            ),
            self._ask_publisher(missing),
        ]

    def _refresh_content(self, namespace: Namespace, fetch: _Fetch, monotonic: float) -> Sequence[Effect]:
        version, again_at = self._asked_for_content.get(namespace, (None, 0.0))
        if version == fetch.version and monotonic < again_at:
            return []
        self._asked_for_content[namespace] = (fetch.version, monotonic + REFRESH_INTERVAL_SECONDS)
        return [self._ask_publisher([namespace])]

    def _ask_publisher(self, namespaces: Sequence[Namespace]) -> Send:
        topic = self.topics.of(DeviceAddress(self.trusted.device.id, "refresh"))
        return Send(topic, encode_refresh(Refresh(tuple(namespaces))), self._token())

    def _ask_again(self, namespace: Namespace, fetch: _Fetch, monotonic: float) -> Sequence[Effect]:
        waited = Log(
            Level.WARNING,
            "content did not arrive; asking again",
            (("namespace", namespace), ("version", fetch.version), ("topic", fetch.filters[0])),
        )
        if fetch.is_delta:
            # Where heads were there, the snapshot will be too.
            is_hidden = namespace in self._asked_for_heads
            asked = self._refresh_content(namespace, fetch, monotonic) if is_hidden else ()
            return [waited, *self._fetch_snapshot(namespace, monotonic), *asked]
        if fetch.is_spoiled:
            self.trusted = without_parts(self.trusted, namespace)
            fetch.is_spoiled = False
        fetch.patience = min(FETCH_PATIENCE_CAP_SECONDS, fetch.patience * 2)
        fetch.deadline = monotonic + fetch.patience
        # Where some of it came, the broker has it and the link is what is slow; asking the publisher would make it slower.
        asked = () if fetch.has_come_on else self._refresh_content(namespace, fetch, monotonic)
        fetch.has_come_on = False
        # Without an UNSUBSCRIBE: aedes, which takes both at once, ends with no subscription, and the publisher's answer is lost.
        return [waited, Subscribe(fetch.filters), *asked]

    # Reports

    def _report(self, now: int, *, is_online: bool = True) -> Publish:
        self._reports += 1
        report = self._make_report(now, number=self._reports, is_online=is_online)
        return Publish(self._report_topic(), encode_report(report))

    def _make_report(self, now: int, *, number: int, is_online: bool) -> Report:
        applied = {
            namespace: Applied(
                holding.epoch,
                holding.version,
                holding.head.sequence,
                holding.digest[:REPORT_DIGEST_BYTES],
            )
            for namespace, holding in self.trusted.holdings.items()
        }
        rejection = None
        if self.refusal is not None and not self._is_refusal_settled:
            rejection = Rejection(self.refusal.attack, self._namespace_of(self.refusal), self.refusal.at)
        return Report(
            session=self.session,
            number=number,
            is_online=is_online,
            at=now,
            agent=self.agent,
            root=self.trusted.root.number,
            applied=applied,
            rejection=rejection,
        )

    def _namespace_of(self, refusal: Refusal) -> str:
        # "" for a root.
        match self.topics.address(refusal.topic):
            case HeadAddress(namespace) | SnapshotAddress(namespace) | DeltaAddress(namespace):
                return namespace
            case _:
                return ""

    def _on_reported(self, refused: str) -> Sequence[Effect]:
        # Told once, until a report was taken: a device reports again and again.
        former, self.report_refused = self.report_refused, refused
        if refused and refused != former:
            fields = (("why", refused), ("topic", self._report_topic()), ("device", self.trusted.device.id))
            return [Log(Level.WARNING, "report refused: is the broker's user the device id?", fields)]
        if former and not refused:
            return [Log(Level.INFO, "report taken again", ())]
        return []

    def _report_topic(self) -> str:
        return self.topics.of(DeviceAddress(self.trusted.device.id, "report"))

    # Usage

    def _on_counted(self, batches: tuple[Usage, ...]) -> Sequence[Effect]:
        if not self._usage_denied:
            self._usage_rests = False
        if not batches:
            return self._find_usage()
        first, *others = batches
        if self._usage_unkept:
            first = replace(first, dropped=first.dropped + self._usage_unkept)
            self._usage_unkept = 0
        kept: list[Effect] = [KeepUsage(batch) for batch in (first, *others)]
        return [*kept, *self._find_usage()]

    def _find_usage(self) -> Sequence[Effect]:
        # One batch is under way at a time; the broker's answer, or the next span, leads to the next one.
        is_idle = not self._usage_sent and not self._usage_rests
        return [FindUsage()] if is_idle and self.link in CONNECTED else []

    def _on_usage_found(self, number: int, payload: bytes) -> Sequence[Effect]:
        if not number or self._usage_sent or self.link not in CONNECTED:
            return []
        self._usage_number = number
        self._usage_sent = self._token()
        topic = self.topics.of(DeviceAddress(self.trusted.device.id, "metrics"))
        return [Send(topic, payload, self._usage_sent)]

    def _on_delivered(self, answer: Delivered) -> Sequence[Effect]:
        self._usage_sent = 0
        if answer.is_kept:
            return [DropUsage(self._usage_number), *self._find_usage()]
        # Until the next span, or the next connection.
        self._usage_rests = True
        if self._usage_denied or answer.may_retry:
            return []
        self._usage_denied = True
        return [Log(Level.WARNING, "usage was not taken; it is kept", (("why", answer.why),))]

    def _token(self) -> int:
        self._tokens += 1
        return self._tokens


def _parts(trusted: Trusted, namespace: Namespace) -> int:
    pending = trusted.pending.get(namespace)
    return len(pending.parts) if pending is not None else 0


def _no_connection(fault: Fault, why: str, wait: float) -> Log:
    fields = (("fault", fault), ("why", why), ("again_in_seconds", round(wait, 1)))
    return Log(Level.WARNING, "no connection", fields)
