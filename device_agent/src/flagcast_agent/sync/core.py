"""The agent's core: what to do next. No socket, no disk, no clock, no thread.

`Sync.handle` takes one event with the time it happened and returns the effects to perform, in order. A shell performs them and
hands the outcome of a persist back as the next event, before any other. So nothing is active that is not on disk, and nothing
is on disk that `trust.admit` has not made.

The states of the link, and what leads from one to another, are in `transitions.TRANSITIONS`. In every connection:

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

from flagcast_shared.errors import Freeze, Misplaced, Refused, Unauthentic
from flagcast_shared.ids import Namespace
from flagcast_shared.reports import Refresh, encode_refresh
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

from .connection import BrokerLink, no_connection
from .events import (
    Activate,
    Believe,
    Connect,
    Connected,
    ConnectFailed,
    Counted,
    Delivered,
    Disconnect,
    Disconnected,
    Effect,
    Event,
    Fault,
    Level,
    Log,
    Persisted,
    PersistFailed,
    Publish,
    Received,
    Reported,
    Send,
    Started,
    Subscribed,
    Ticked,
    Unsubscribe,
    UsageFound,
    UsageNotKept,
    Woken,
)
from .fetches import Fetches
from .outbox import Outbox
from .persistence import Persistence
from .reporting import Reporting
from .subscriptions import Subscriptions
from .time_floor import TimeFloor
from .transitions import RECONNECT_MIN_SECONDS, WAITING, BrokerMemory, Cause, LinkState

# The machines of which `Sync` is made. Each is a small state with its own deadlines, and has no other's:
#
#   connection     attempts, answers and waits, the version of MQTT
#   subscriptions  the walk over roots, heads that arrived or are missing
#   fetches        content that heads name, as a delta or a snapshot
#   persistence    the one proposal that is on its way to the disk
#   reporting      device reports and refused messages
#   outbox         batches of evaluation counts on their way


class Sync:
    """The state of one agent's synchronisation; nothing about it is elsewhere.

    `trusted` is what `trust.admit` has made and the disk has taken, `floor` the time floor. `asked` counts the requests to be up
    to date, `answered` is how many of them have been by now.
    """

    def __init__(
        self,
        trusted: Trusted,
        topics: Topics,
        namespaces: tuple[Namespace, ...],
        session: int,
        agent: str,
        *,
        protocol: str = "auto",
        broker: str = "",
        memory: BrokerMemory | None = None,
        heartbeat_seconds: int = 0,
        floor: TimeFloor | None = None,
    ) -> None:
        """A synchronisation that is not started.

        Args:
            trusted: what the disk holds.
            topics: the environment's topics.
            namespaces: those that are followed.
            session: the number of the connection before the first one.
            agent: the release of the agent, for reports.
            protocol: "auto", "5" or "3.1.1".
            broker: the broker's address.
            memory: what was remembered of a broker.
            heartbeat_seconds: how often a report is sent without news, 0 for never.
            floor: what time it is at least.
        """
        device = trusted.device.id
        self.trusted = trusted
        self.topics = topics
        self.floor = floor or TimeFloor()
        self.asked = 0
        self.answered = 0
        self.connection = BrokerLink(protocol, broker, memory)
        self.subscriptions = Subscriptions(topics, namespaces)
        self.fetches = Fetches(topics)
        self.persistence = Persistence()
        report_topic = topics.of(DeviceAddress(device, "report"))
        self.reporting = Reporting(topics, report_topic, session, agent, heartbeat_seconds)
        self.outbox = Outbox(topics.of(DeviceAddress(device, "metrics")))

    def handle(self, event: Event, *, now: int, monotonic: float, jitter: float) -> Sequence[Effect]:
        """The effects of one event. `now` is Unix seconds, `jitter` a random number from 0 to 1.

        What comes of a connection that has ended is passed over.
        """
        effects = [*self._effects_of(event, now, monotonic, jitter)]
        # One at a time: what is admitted is on disk before the next one is judged.
        early = self.subscriptions.early
        while early and not self.persistence.is_busy and not self._awaits_root():
            effects += self._on_received(early.pop(0), now, monotonic)
        return [*effects, *self._settle(monotonic)]

    def _effects_of(self, event: Event, now: int, monotonic: float, jitter: float) -> Sequence[Effect]:
        connection, outbox = self.connection, self.outbox
        match event:
            case Started():
                return self._on_started(now, monotonic)
            case Connected():
                return self._on_connected(now, monotonic)
            case ConnectFailed(fault, why):
                is_news = connection.state is LinkState.CONNECTING
                return [self._failed(connection.fail(fault, why, monotonic, jitter))] if is_news else []
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
            case Delivered():
                return outbox.on_delivered(event, is_connected=connection.is_connected)
            case Reported(refused):
                return self.reporting.on_answer(refused, self.trusted.device.id)
            case Woken():
                return self._on_woken(now, monotonic)
            case Counted(batches):
                return [*outbox.keep(batches), *outbox.find(is_connected=connection.is_connected)]
            case UsageNotKept(evaluations):
                outbox.lose(evaluations)
                return []
            case UsageFound(number, payload):
                return outbox.send(number, payload) if connection.is_connected else []
            case Ticked():
                return self._on_ticked(now, monotonic, jitter)

    def farewell(self, now: int) -> Publish:
        """The last report of a clean end: what is held, and offline. `now` in Unix seconds."""
        return self.reporting.publish(self.trusted, now, is_online=False)

    def next_deadline(self) -> float | None:
        """The monotonic time of the next Ticked; None when nothing is waited for."""
        is_syncing = self.connection.state is LinkState.SYNCING
        deadlines = [
            self.connection.next_deadline(),
            self.persistence.next_deadline(),
            *self.subscriptions.next_deadlines(is_syncing=is_syncing),
        ]
        if self.connection.is_connected:
            deadlines += [self.reporting.next_deadline(), *self.fetches.next_deadlines()]
        return min((each for each in deadlines if each is not None), default=None)

    @property
    def namespaces(self) -> tuple[Namespace, ...]:
        """Those that are followed."""
        return self.subscriptions.namespaces

    @property
    def is_sending(self) -> bool:
        """Whether evaluation counts are on their way to the broker."""
        return self.outbox.is_sending and self.connection.is_connected

    def why_not_current(self) -> tuple[str, ...]:
        """For people: what keeps the agent from being up to date; empty when it is."""
        state, error = self.connection.state, self.connection.last_error
        if state is LinkState.LIVE:
            return ()
        if state is not LinkState.SYNCING:
            return (f"the link is {state}" + (f": {error}" if error else ""),)
        return tuple(
            f"{namespace}: {why}" for namespace in self.namespaces if (why := self._why_unsettled(namespace))
        )

    # The connection

    def _on_started(self, now: int, monotonic: float) -> Sequence[Effect]:
        if not self.connection.may(Cause.STARTED):
            return []
        self.connection.start(now)
        self.reporting.start(self.trusted.device.id, monotonic)
        return self._connect(Cause.STARTED, now, monotonic)

    def _connect(self, cause: Cause, now: int, monotonic: float) -> Sequence[Effect]:
        effects = self.connection.attempt(cause, now, monotonic)
        self.subscriptions.again_at = None
        return [*effects, Connect(self.connection.version, *self.reporting.will(self.trusted, now))]

    def _on_connected(self, now: int, monotonic: float) -> Sequence[Effect]:
        if not self.connection.may(Cause.ACCEPTED):
            return []
        effects = self.connection.accept(now, monotonic)
        self.subscriptions.connected(monotonic)
        self.fetches.connected()
        self.reporting.connected(monotonic)
        self.outbox.connected()
        subscribing = self._subscribe(monotonic, self._root_filter(), *self.subscriptions.head_filters)
        return [*effects, *subscribing, self._report(now)]

    def _root_filter(self) -> str:
        return self.subscriptions.root_filter(self.trusted.root.number)

    def _awaits_root(self) -> bool:
        # Whether the broker has yet to answer for the next root; it may hold one.
        return self._root_filter() in self.subscriptions.unconfirmed

    def _subscribe(self, monotonic: float, *filters: str) -> list[Effect]:
        self.connection.subscribe(monotonic)
        return self.subscriptions.subscribe(filters, self._root_filter())

    def _subscribe_again(self, monotonic: float) -> list[Effect]:
        self.connection.move(Cause.AGAIN, monotonic)
        self.subscriptions.is_walking = False
        former = self.fetches.drop()
        again = self._subscribe(monotonic, self._root_filter(), *self.subscriptions.head_filters)
        return [*([Unsubscribe(former)] if former else []), *again]

    def _await_next_root(self, former_root: int, monotonic: float) -> list[Effect]:
        self.connection.move(Cause.AGAIN, monotonic)
        self.subscriptions.walk(monotonic)
        former = (self.subscriptions.root_filter(former_root), *self.fetches.drop())
        return [Unsubscribe(former), *self._subscribe(monotonic, self._root_filter())]

    def _on_subscribed(self, answer: Subscribed, monotonic: float, jitter: float) -> Sequence[Effect]:
        connection, subscriptions = self.connection, self.subscriptions
        if not connection.is_connected:
            return []
        if answer.refused:
            connection.last_error = f"the broker refused a subscription: {answer.why}"
        effects = subscriptions.on_answer(answer)
        if subscriptions.unconfirmed or not connection.may(Cause.SUBSCRIBED):
            return effects
        if subscriptions.is_walking:
            subscriptions.is_walking = False
            return [*effects, *self._subscribe(monotonic, *subscriptions.head_filters)]
        if subscriptions.are_all_denied:
            wait = connection.give_up(Cause.DENIED, monotonic, jitter)
            line = self._failed(no_connection(Fault.REFUSED, connection.last_error, wait))
            return [*effects, Disconnect(), line]
        connection.confirm(monotonic)
        subscriptions.confirm(monotonic)
        return [*effects, *self.outbox.find(is_connected=True)]

    def _on_disconnected(self, fault: Fault, why: str, monotonic: float, jitter: float) -> Sequence[Effect]:
        cause = Cause.DENIED if fault is Fault.REFUSED else Cause.LOST
        if not self.connection.may(cause) or not self.connection.is_connected:
            return []
        self.fetches.drop()
        return [self._failed(self.connection.lose(fault, why, monotonic, jitter))]

    def _failed(self, line: Log) -> Log:
        # The link waits: there is nothing to subscribe to.
        self.subscriptions.again_at = None
        return line

    def _on_woken(self, now: int, monotonic: float) -> Sequence[Effect]:
        self.asked += 1
        connection = self.connection
        if connection.state in WAITING:
            return self._connect(Cause.DUE, now, monotonic) if connection.hasten(monotonic) else []
        if connection.shorten(monotonic) and self._may_subscribe_again():
            soonest = connection.subscribed_at + RECONNECT_MIN_SECONDS
            if monotonic >= soonest:
                return self._subscribe_again(monotonic)
            self.subscriptions.again_at = soonest
        return []

    def _may_subscribe_again(self) -> bool:
        return self.connection.state is not LinkState.SUBSCRIBING and self.connection.may(Cause.AGAIN)

    def _settle(self, monotonic: float) -> Sequence[Effect]:
        # Called after every event: whether the agent is up to date is a matter of what is there, not of what came last.
        connection = self.connection
        is_unsettled = self.fetches or self.persistence.next_deadline() is not None
        if connection.state is LinkState.LIVE and is_unsettled:
            connection.move(Cause.WANTED, monotonic)
        is_patient = self.subscriptions.is_patient(monotonic)
        if connection.state is not LinkState.SYNCING or self.persistence.is_busy:
            return []
        unpublished = {name for name in self.subscriptions.missing() if name not in self.trusted.holdings}
        for namespace in self.namespaces:
            if not is_patient and namespace in unpublished:
                continue
            if self._why_unsettled(namespace):
                return []
        connection.move(Cause.SETTLED, monotonic)
        if self.subscriptions.again_at is None:
            self.answered = self.asked
        return [Log(Level.INFO, "up to date")]

    def _why_unsettled(self, namespace: Namespace) -> str:
        fetch = self.fetches.of(namespace)
        if fetch is not None and not self.subscriptions.is_denied(namespace):
            return f"content of version {fetch.version} is awaited"
        return self.subscriptions.why_unsettled(namespace)

    # Messages

    def _on_received(self, message: Received, now: int, monotonic: float) -> Sequence[Effect]:
        if not self.connection.is_connected:
            return []
        topic, payload = message.topic, message.payload
        address = self.topics.address(topic)
        if address is None or not self._follows(address):
            return [Log(Level.WARNING, "a message on a topic that is not ours", (("topic", topic),))]
        self.connection.note_message()
        if isinstance(address, HeadAddress) and self._awaits_root():
            self.subscriptions.keep_early(message, self.connection.subscribed_at)
            return []
        try:
            trusted, outcome = admit(self.trusted, address, payload, now=now)
        except Refused as error:
            return self._refuse(error, topic, address, now, monotonic)
        match outcome:
            case Nothing():
                self._note_progress(address, trusted, monotonic)
                self.trusted = trusted
                self._record_head(address, self._why_outlived(address))
                return []
            case Wanted():
                self.trusted = trusted
                self._record_head(address)
                # An inline delta that is of no use is a refusal like any other, of a head that stays trusted.
                effects = self._note(outcome.refused, topic, now) if outcome.refused is not None else []
                is_hidden = outcome.namespace in self.subscriptions.requested
                return [*effects, *self.fetches.begin(outcome, monotonic, is_hidden=is_hidden)]
            case AdmittedUpdate():
                floor = self.floor.learn(trusted.floor, monotonic)
                return [self.persistence.propose(trusted, outcome, floor)]
            case AdmittedRoot():
                is_new_epoch = outcome.root.epoch > self.trusted.root.epoch
                learn = self.floor.begin_afresh if is_new_epoch else self.floor.learn
                return [self.persistence.propose_root(trusted, outcome, learn(trusted.floor, monotonic))]

    def _follows(self, address: Address) -> bool:
        # A broker may send what was not asked for; namespaces that are not followed take no memory.
        match address:
            case HeadAddress(namespace) | SnapshotAddress(namespace) | DeltaAddress(namespace):
                return namespace in self.namespaces
            case RootAddress():
                return True
            case DeviceAddress():
                return False

    def _record_head(self, address: Address, trouble: str = "") -> None:
        if isinstance(address, HeadAddress):
            self.subscriptions.record(address.namespace, trouble)

    def _why_outlived(self, address: Address) -> str:
        # A head that is held and was signed under an earlier epoch: nothing new, yet the one of this epoch is still to come.
        holding = self.trusted.holdings.get(address.namespace) if isinstance(address, HeadAddress) else None
        is_outlived = holding is not None and holding.head.epoch < self.trusted.root.epoch
        return "it was signed before the publisher's keys were rotated" if is_outlived else ""

    def _note_progress(self, address: Address, trusted: Trusted, monotonic: float) -> None:
        if not isinstance(address, SnapshotAddress):
            return
        namespace = address.namespace
        if _parts(trusted, namespace) > _parts(self.trusted, namespace):
            self.fetches.note_progress(namespace, monotonic)

    def _refuse(
        self, error: Refused, topic: str, address: Address, now: int, monotonic: float
    ) -> Sequence[Effect]:
        effects = self._note(error, topic, now)
        self._record_head(address, error.attack)
        if isinstance(error, Freeze):
            self.subscriptions.freeze(now)
        match address:
            case DeltaAddress(namespace):
                effects += self.fetches.fall_back(namespace, monotonic)
            case SnapshotAddress(namespace) if not isinstance(error, Unauthentic | Misplaced):
                self.fetches.spoil(namespace)
            case _:
                pass
        return effects

    def _note(self, error: Refused, topic: str, now: int) -> list[Effect]:
        line, is_reported = self.reporting.note(error, topic, now)
        return [line, self._report(now)] if is_reported else [line]

    def _report(self, now: int) -> Publish:
        return self.reporting.publish(self.trusted, now)

    # The disk

    def _on_persisted(self, now: int, monotonic: float) -> Sequence[Effect]:
        proposal = self.persistence.complete()
        if proposal is None:
            return []
        former_root = self.trusted.root.number
        self.trusted, outcome, self.floor = proposal
        if self.connection.last_error == self.persistence.error:
            self.connection.last_error = ""
        if isinstance(outcome, AdmittedRoot):
            self.reporting.admitted("")
            fields = (("root", outcome.root.number), ("epoch", outcome.root.epoch))
            walking = self._await_next_root(former_root, monotonic)
            line = Log(Level.INFO, "root admitted", fields)
            return [Believe(self.floor), line, *walking, self._report(now)]
        self.reporting.admitted(outcome.namespace)
        self.subscriptions.record(outcome.namespace)
        effects = [Believe(self.floor), Activate(outcome), *self.fetches.end(outcome.namespace)]
        effects.append(_admitted(outcome))
        if outcome.warning:
            effects.append(Log(Level.WARNING, outcome.warning, (("namespace", outcome.namespace),)))
        return [*effects, self._report(now)]

    def _on_persist_failed(self, why: str, monotonic: float) -> Sequence[Effect]:
        effects: list[Effect] = [
            Log(Level.ERROR, "an update could not be persisted and is not active", (("why", why),))
        ]
        proposal = self.persistence.fail(why, monotonic)
        if proposal is not None and isinstance(proposal[1], AdmittedUpdate):
            # The content has arrived; asking for it again before the disk is tried again would be of no use.
            namespace = proposal[1].namespace
            effects += self.fetches.end(namespace)
            self.subscriptions.fail(namespace, "it could not be persisted")
        self.connection.last_error = why
        return effects

    # Time

    def _on_ticked(self, now: int, monotonic: float, jitter: float) -> Sequence[Effect]:
        effects: list[Effect] = []
        connection = self.connection
        if connection.is_due(monotonic):
            effects += self._on_overdue(now, monotonic, jitter)
        is_again_due = self.subscriptions.is_again_due(now, monotonic)
        is_again_due |= self.persistence.is_retry_due(monotonic)
        if is_again_due and connection.may(Cause.AGAIN):
            effects += self._subscribe_again(monotonic)
        if connection.is_connected:
            for namespace in self.fetches.overdue(monotonic):
                effects += self._retry(namespace, monotonic)
            effects += self._request_heads(monotonic)
        if self.reporting.is_heartbeat_due(monotonic) and connection.is_connected:
            effects.append(self._report(now))
        return effects

    def _on_overdue(self, now: int, monotonic: float, jitter: float) -> Sequence[Effect]:
        match self.connection.state:
            case LinkState.CONNECTING:
                return [Disconnect(), self._failed(self.connection.fail_overdue(monotonic, jitter))]
            case LinkState.SUBSCRIBING:
                why = "the broker did not acknowledge a subscription in time"
                return [Disconnect(), *self._on_disconnected(Fault.NETWORK, why, monotonic, jitter)]
            case _:
                return self._connect(Cause.DUE, now, monotonic)

    def _retry(self, namespace: Namespace, monotonic: float) -> Sequence[Effect]:
        is_hidden = namespace in self.subscriptions.requested
        effects, forgets_parts, asks_publisher = self.fetches.retry(namespace, monotonic, is_hidden=is_hidden)
        if forgets_parts:
            self.trusted = without_parts(self.trusted, namespace)
        return [*effects, self._ask_publisher([namespace])] if asks_publisher else effects

    def _request_heads(self, monotonic: float) -> Sequence[Effect]:
        if self.connection.state is not LinkState.SYNCING:
            return []
        missing = self.subscriptions.request_missing(monotonic)
        if not missing:
            return []
        fields = (("namespaces", " ".join(missing)),)
        line = Log(Level.WARNING, "no head was heard; asking for it to be published again", fields)
        return [line, self._ask_publisher(missing)]

    def _ask_publisher(self, namespaces: Sequence[Namespace]) -> Send:
        topic = self.topics.of(DeviceAddress(self.trusted.device.id, "refresh"))
        return Send(topic, encode_refresh(Refresh(tuple(namespaces))), self.outbox.next_token())


def _parts(trusted: Trusted, namespace: Namespace) -> int:
    pending = trusted.pending.get(namespace)
    return len(pending.parts) if pending is not None else 0


def _admitted(update: AdmittedUpdate) -> Log:
    holding = update.holding
    fields = (
        ("namespace", update.namespace),
        ("epoch", holding.epoch),
        ("version", holding.version),
        ("sequence", holding.head.sequence),
        ("changed", len(update.changed)),
        ("removed", len(update.removed)),
    )
    return Log(Level.INFO, "admitted", fields)
