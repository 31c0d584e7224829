"""The agent's core: what to do next. No socket, no disk, no clock, no thread.

`Sync.handle` takes one event with the time it happened and returns the effects to perform, in order. A shell performs them and
hands the outcome of a persist back as the next event, before any other. So nothing is active that is not on disk, and nothing
is on disk that `trust.admit` has not made.

The link:

| state        | event                     | next         | effects                                            |
|--------------|---------------------------|--------------|----------------------------------------------------|
| DISCONNECTED | Started                   | CONNECTING   | Connect                                            |
| CONNECTING   | Connected                 | CONNECTED    | Subscribe next root, then heads; Publish the birth |
| CONNECTING   | ConnectFailed             | BACKING_OFF  |                                                    |
| CONNECTING   | Ticked, no answer in time | BACKING_OFF  |                                                    |
| CONNECTED    | Disconnected              | BACKING_OFF  |                                                    |
| BACKING_OFF  | Ticked, the wait is over  | CONNECTING   | Connect                                            |

What it does not do: it never waits for a message to be sure that there is none; a retained message may come before or after the
SUBACK or never, and every order of arrival leads to the same state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final

from flagcast_shared.errors import Misplaced, Refused, Unauthentic
from flagcast_shared.ids import Namespace, Version
from flagcast_shared.reports import Applied, Rejection, Report, encode_report
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

BACKOFF_FIRST_SECONDS: Final = 1.0
BACKOFF_CAP_SECONDS: Final = 300.0
BACKOFF_REFUSED_FIRST_SECONDS: Final = 30.0
"""A broker that refuses credentials will refuse them again; asking often only locks accounts and fills logs."""
BACKOFF_REFUSED_CAP_SECONDS: Final = 1800.0
RECONNECT_MIN_SECONDS: Final = 1.0
"""Never more than one attempt a second: AWS IoT throttles clients that do."""
ANSWER_PATIENCE_SECONDS: Final = 20.0
"""How long connecting may take, over the slowest link."""
TRIAL_PATIENCE_SECONDS: Final = 5.0
"""The same for MQTT 5 where 3.1.1 may be tried instead: some brokers take its CONNECT for a longer one and never answer."""
STABLE_AFTER_SECONDS: Final = 60.0
"""A connection that held this long starts the backoff afresh."""
FETCH_PATIENCE_SECONDS: Final = 15.0
"""How long content may take before it is asked for otherwise, or again."""
FETCH_PATIENCE_CAP_SECONDS: Final = 600.0
PERSIST_RETRY_SECONDS: Final = 30.0
"""How often a disk that was full is tried again."""


class LinkState(StrEnum):
    """Where the link to the broker stands."""

    DISCONNECTED = "disconnected"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    BACKING_OFF = "backing off"


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
    """The connection ended."""

    why: str


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
class SubscriptionRefused:
    """The broker refused to subscribe."""

    why: str


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
    | SubscriptionRefused
    | Ticked
)


@dataclass(frozen=True, slots=True)
class Connect:
    """Connect with this version of MQTT ("5" or "3.1.1") and this will."""

    protocol: str
    will_topic: str
    will: bytes


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
class PersistUpdate:
    """Put an update on disk, then say Persisted or PersistFailed before anything else."""

    update: AdmittedUpdate
    floor: int


@dataclass(frozen=True, slots=True)
class PersistRoot:
    """Put a root on disk, then say Persisted or PersistFailed before anything else."""

    root: AdmittedRoot
    floor: int


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


Effect = Connect | Subscribe | Unsubscribe | Publish | PersistUpdate | PersistRoot | Activate | Log


@dataclass(frozen=True, slots=True)
class Refusal:
    """The last message that was not believed."""

    attack: str
    why: str
    topic: str
    at: int


@dataclass(slots=True)
class _Fetch:
    # Content that was asked for: by which subscription, until when to wait, and how long the next wait is. Spoiled: its
    # parts do not fit together.
    version: Version
    topic_filter: str
    deadline: float
    patience: float
    is_delta: bool
    is_spoiled: bool = False


@dataclass(slots=True)
class Sync:
    """The state of one agent's synchronisation; nothing about it lives elsewhere."""

    trusted: Trusted
    topics: Topics
    namespaces: tuple[Namespace, ...]
    session: int
    agent: str
    protocol: str = "auto"
    link: LinkState = LinkState.DISCONNECTED
    link_since: int = 0
    last_error: str = ""
    refusal: Refusal | None = None
    rejected: int = 0
    _speaks: str = "5"
    _attempts: int = 0
    _refusals: int = 0
    _retry_at: float = 0.0
    _connected_at: float = 0.0
    _fetches: dict[Namespace, _Fetch] = field(default_factory=dict)
    _proposed: tuple[Trusted, AdmittedUpdate | AdmittedRoot] | None = None
    _persist_again_at: float | None = None
    _reports: int = 0
    _told: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if self.protocol != "auto":
            self._speaks = self.protocol

    def handle(self, event: Event, *, now: int, monotonic: float, jitter: float) -> Sequence[Effect]:
        """The effects of one event. `now` is Unix seconds, `jitter` a random number from 0 to 1."""
        match event:
            case Started():
                return self._connect(now, monotonic)
            case Connected():
                return self._on_connected(now, monotonic)
            case ConnectFailed(fault, why):
                return self._on_connect_failed(fault, why, now, monotonic, jitter)
            case Disconnected(why):
                return self._on_disconnected(why, now, monotonic, jitter)
            case Received(topic, payload):
                return self._on_received(topic, payload, now, monotonic)
            case Persisted():
                return self._on_persisted(now)
            case PersistFailed(why):
                return self._on_persist_failed(why, monotonic)
            case SubscriptionRefused(why):
                self.last_error = why
                return [Log(Level.ERROR, "the broker refused a subscription", (("why", why),))]
            case Ticked():
                return self._on_ticked(now, monotonic, jitter)

    def farewell(self) -> Publish:
        """The last report of a clean end, the same as the will."""
        return Publish(
            self._report_topic(), encode_report(Report(self.session, self._reports, is_online=False))
        )

    def next_deadline(self) -> float | None:
        """The monotonic time at which Ticked is next worth telling; None when nothing is waited for."""
        deadlines = (
            [fetch.deadline for fetch in self._fetches.values()] if self.link is LinkState.CONNECTED else []
        )
        if self.link in {LinkState.BACKING_OFF, LinkState.CONNECTING}:
            deadlines.append(self._retry_at)
        if self._persist_again_at is not None:
            deadlines.append(self._persist_again_at)
        return min(deadlines, default=None)

    # The link

    def _connect(self, now: int, monotonic: float) -> Sequence[Effect]:
        self._enter(LinkState.CONNECTING, now)
        is_trial = self.protocol == "auto" and self._speaks == "5"
        self._retry_at = monotonic + (TRIAL_PATIENCE_SECONDS if is_trial else ANSWER_PATIENCE_SECONDS)
        will = encode_report(Report(self.session, 0, is_online=False))
        return [Connect(self._speaks, self._report_topic(), will)]

    def _on_connected(self, now: int, monotonic: float) -> Sequence[Effect]:
        self._enter(LinkState.CONNECTED, now)
        self._connected_at = monotonic
        self.last_error = ""
        self._fetches.clear()
        return [
            Log(Level.INFO, "connected", (("mqtt", self._speaks),)),
            Subscribe(self._standing_filters()),
            self._report(now),
        ]

    def _standing_filters(self) -> tuple[str, ...]:
        # The next root stands before the heads, so that a new publisher key is known before what it signed.
        heads = (self.topics.of(HeadAddress(namespace)) for namespace in self.namespaces)
        return (self.topics.of(RootAddress(self.trusted.root.number + 1)), *heads)

    def _on_connect_failed(
        self, fault: Fault, why: str, now: int, monotonic: float, jitter: float
    ) -> Sequence[Effect]:
        self.last_error = why
        if fault is Fault.PROTOCOL and self.protocol == "auto":
            self._speaks = "3.1.1" if self._speaks == "5" else "5"
        self._refusals = self._refusals + 1 if fault is Fault.REFUSED else 0
        wait = self._back_off(now, monotonic, jitter)
        return [
            Log(
                Level.WARNING,
                "no connection",
                (("fault", fault), ("why", why), ("again_in_seconds", round(wait, 1))),
            )
        ]

    def _on_disconnected(self, why: str, now: int, monotonic: float, jitter: float) -> Sequence[Effect]:
        self.last_error = why
        if monotonic - self._connected_at >= STABLE_AFTER_SECONDS:
            self._attempts = 0
        self._refusals = 0
        self._fetches.clear()
        wait = self._back_off(now, monotonic, jitter)
        return [Log(Level.WARNING, "connection lost", (("why", why), ("again_in_seconds", round(wait, 1))))]

    def _back_off(self, now: int, monotonic: float, jitter: float) -> float:
        if self._refusals:
            span = min(
                BACKOFF_REFUSED_CAP_SECONDS,
                BACKOFF_REFUSED_FIRST_SECONDS * 2.0 ** min(self._refusals - 1, 16),
            )
            wait = span * (0.5 + jitter / 2)
        else:
            span = min(BACKOFF_CAP_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** min(self._attempts, 16))
            # Added, not the larger of both: else half a fleet would come back in the same second.
            wait = min(BACKOFF_CAP_SECONDS, RECONNECT_MIN_SECONDS + span * jitter)
        self._attempts += 1
        self._retry_at = monotonic + wait
        self._enter(LinkState.BACKING_OFF, now)
        return wait

    def _enter(self, state: LinkState, now: int) -> None:
        self.link = state
        self.link_since = now

    # Messages

    def _on_received(self, topic: str, payload: bytes, now: int, monotonic: float) -> Sequence[Effect]:
        address = self.topics.address(topic)
        if address is None or not self._follows(address):
            return [Log(Level.WARNING, "a message on a topic that is not ours", (("topic", topic),))]
        try:
            trusted, outcome = admit(self.trusted, address, payload, now=now)
        except Refused as error:
            return self._refuse(error, topic, address, now, monotonic)
        match outcome:
            case Nothing():
                self.trusted = trusted
                return []
            case Wanted():
                self.trusted = trusted
                return self._fetch(outcome, topic, now, monotonic)
            case AdmittedUpdate():
                self._proposed = (trusted, outcome)
                return [PersistUpdate(outcome, trusted.floor)]
            case AdmittedRoot():
                self._proposed = (trusted, outcome)
                return [PersistRoot(outcome, trusted.floor)]

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
        self.rejected += 1
        effects: list[Effect] = [
            Log(Level.WARNING, "refused", (("attack", error.attack), ("topic", topic), ("why", str(error))))
        ]
        # What is refused over and over is reported once, until something has been admitted in between.
        if self._told != (error.attack, topic):
            self._told = (error.attack, topic)
            effects.append(self._report(now))
        return effects

    def _fetch(self, wanted: Wanted, topic: str, now: int, monotonic: float) -> Sequence[Effect]:
        # An inline delta that is of no use is a refusal like any other, of a head that stands all the same.
        effects = self._note(wanted.refused, topic, now) if wanted.refused is not None else []
        known = self._fetches.get(wanted.namespace)
        if known is not None and known.version == wanted.offering.version:
            return effects
        if known is not None:
            effects.append(Unsubscribe((known.topic_filter,)))
        if wanted.has_delta and wanted.held is not None and wanted.refused is None:
            wished = self.topics.of(DeltaAddress(wanted.namespace, wanted.offering.version, wanted.held))
        else:
            wished = self.topics.snapshot_filter(wanted.namespace, wanted.offering.version)
        self._fetches[wanted.namespace] = _Fetch(
            wanted.offering.version,
            wished,
            monotonic + FETCH_PATIENCE_SECONDS,
            FETCH_PATIENCE_SECONDS,
            is_delta="/delta/" in wished,
        )
        return [*effects, Subscribe((wished,))]

    def _fetch_snapshot(self, namespace: Namespace, monotonic: float) -> Sequence[Effect]:
        fetch = self._fetches.get(namespace)
        if fetch is None or not fetch.is_delta:
            return []
        former = fetch.topic_filter
        fetch.topic_filter = self.topics.snapshot_filter(namespace, fetch.version)
        fetch.is_delta = False
        fetch.deadline = monotonic + fetch.patience
        return [Unsubscribe((former,)), Subscribe((fetch.topic_filter,))]

    def _drop_fetches(self) -> tuple[str, ...]:
        filters = tuple(fetch.topic_filter for fetch in self._fetches.values())
        self._fetches.clear()
        return filters

    # The disk

    def _on_persisted(self, now: int) -> Sequence[Effect]:
        if self._proposed is None:
            return []
        former_root = self.trusted.root.number
        self.trusted, outcome = self._proposed
        self._proposed = None
        self._persist_again_at = None
        self._told = None
        if isinstance(outcome, AdmittedRoot):
            return [
                Log(
                    Level.INFO,
                    "root admitted",
                    (("root", outcome.root.number), ("epoch", outcome.root.epoch)),
                ),
                Unsubscribe((self.topics.of(RootAddress(former_root + 1)), *self._drop_fetches())),
                Subscribe(self._standing_filters()),
                self._report(now),
            ]
        effects: list[Effect] = [Activate(outcome)]
        fetch = self._fetches.pop(outcome.namespace, None)
        if fetch is not None:
            effects.append(Unsubscribe((fetch.topic_filter,)))
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
            effects += [Unsubscribe((fetch.topic_filter,))] if fetch is not None else []
        self._proposed = None
        self.last_error = why
        self._persist_again_at = monotonic + PERSIST_RETRY_SECONDS
        return effects

    # Time

    def _on_ticked(self, now: int, monotonic: float, jitter: float) -> Sequence[Effect]:
        effects: list[Effect] = []
        if self.link is LinkState.BACKING_OFF and monotonic >= self._retry_at:
            effects += self._connect(now, monotonic)
        elif self.link is LinkState.CONNECTING and monotonic >= self._retry_at:
            why = f"the broker did not answer in time (MQTT {self._speaks})"
            effects += self._on_connect_failed(Fault.PROTOCOL, why, now, monotonic, jitter)
        if self._persist_again_at is not None and monotonic >= self._persist_again_at:
            # The broker sends its retained messages again to whoever subscribes again.
            self._persist_again_at = None
            if self.link is LinkState.CONNECTED:
                former = self._drop_fetches()
                effects += [Unsubscribe(former)] if former else []
                effects.append(Subscribe(self._standing_filters()))
        if self.link is LinkState.CONNECTED:
            for namespace, fetch in self._fetches.items():
                if monotonic >= fetch.deadline:
                    effects += self._ask_again(namespace, fetch, monotonic)
        return effects

    def _ask_again(self, namespace: Namespace, fetch: _Fetch, monotonic: float) -> Sequence[Effect]:
        waited = Log(
            Level.WARNING,
            "content did not arrive; asking again",
            (("namespace", namespace), ("version", fetch.version), ("topic", fetch.topic_filter)),
        )
        if fetch.is_delta:
            return [waited, *self._fetch_snapshot(namespace, monotonic)]
        if fetch.is_spoiled:
            self.trusted = without_parts(self.trusted, namespace)
            fetch.is_spoiled = False
        fetch.patience = min(FETCH_PATIENCE_CAP_SECONDS, fetch.patience * 2)
        fetch.deadline = monotonic + fetch.patience
        return [waited, Unsubscribe((fetch.topic_filter,)), Subscribe((fetch.topic_filter,))]

    # Reports

    def _report(self, now: int) -> Publish:
        self._reports += 1
        applied = {
            namespace: Applied(holding.epoch, holding.version, holding.head.sequence)
            for namespace, holding in self.trusted.holdings.items()
        }
        rejection = None
        if self.refusal is not None:
            address = self.topics.address(self.refusal.topic)
            namespace = getattr(address, "namespace", "")
            rejection = Rejection(self.refusal.attack, namespace, self.refusal.at)
        report = Report(
            session=self.session,
            number=self._reports,
            is_online=True,
            at=now,
            agent=self.agent,
            root=self.trusted.root.number,
            applied=applied,
            rejection=rejection,
        )
        return Publish(self._report_topic(), encode_report(report))

    def _report_topic(self) -> str:
        return self.topics.of(DeviceAddress(self.trusted.device.id, "report"))
