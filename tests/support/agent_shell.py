"""The smallest shell around a real core, a real database and a real evaluator, and what a device believes at an instant.

`AgentShell` performs effects as the daemon does, without sockets: what the core subscribes to is delivered from the
publisher's retained messages when the test says so.
"""

import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from publisher_simulator import NOW, PublisherSimulator

from flagcast_agent.evaluator import Evaluator
from flagcast_agent.store.errors import StoreError
from flagcast_agent.store.writer import Store
from flagcast_agent.sync.core import Sync
from flagcast_agent.sync.events import (
    Activate,
    Believe,
    Connected,
    Disconnected,
    DropUsage,
    Effect,
    Event,
    FindUsage,
    KeepUsage,
    Persisted,
    PersistFailed,
    PersistRoot,
    PersistUpdate,
    Publish,
    Received,
    Started,
    Subscribe,
    Subscribed,
    Ticked,
    Unsubscribe,
    UsageFound,
)
from flagcast_agent.sync.transitions import CONNECTED, WAITING
from flagcast_shared.context import Device, device_attributes
from flagcast_shared.errors import InvalidCall
from flagcast_shared.ids import DeviceId, EntityId, Namespace
from flagcast_shared.reports import Report, decode_report
from flagcast_shared.root import Root
from flagcast_shared.trust import AdmittedUpdate, Holding, Stored, Trusted, begin, restore

ENTITIES = tuple(EntityId(f"entity-{number}") for number in range(5))


@dataclass(frozen=True, slots=True)
class Belief:
    """All that an attack must not change."""

    holdings: Mapping[Namespace, Holding]
    root: Root
    floor: int
    disk: object
    answers: object


class AgentShell:
    """An agent that has booted from `path`; `now` and `monotonic` are its clocks, `jitter` its chance."""

    def __init__(
        self,
        path: Path,
        publisher: PublisherSimulator,
        *,
        device: str = "device-1",
        labels: Mapping[str, str] | None = None,
        protocol: str = "auto",
    ) -> None:
        self.path = path
        self.publisher = publisher
        self.now = NOW + 60
        self.monotonic = 1000.0
        self.jitter = 0.5
        self.filters: list[str] = []
        self.effects: list[Effect] = []
        self.fail_persisting = False
        self.is_mute = False
        """The broker takes subscriptions and says nothing."""
        self.activated: list[AdmittedUpdate] = []
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._device = Device(DeviceId(device), dict(labels or {}))
        self.store = Store(path)
        self.evaluator = Evaluator(device_attributes(self._device))
        try:
            trusted = self._boot()
        except BaseException:
            self.store.close()
            raise
        self.sync = Sync(
            trusted, publisher.topics, (publisher.namespace,), session=7, agent="1.0", protocol=protocol
        )

    def _boot(self) -> Trusted:
        saved = self.store.load()
        anchor = saved.root_data if saved.root_data is not None else self.publisher.anchor
        trusted = begin(self.publisher.environment, self._device, anchor, floor=saved.floor.time)
        for stored in saved.namespaces:
            trusted, update = restore(trusted, stored)
            self.evaluator.activate(update)
        return trusted

    def close(self) -> None:
        self.store.close()

    # Events

    def handle(self, event: Event) -> list[Effect]:
        """Hands one event to the core and performs the effects; returns all of them, also those of persisting."""
        done: list[Effect] = []
        given_up = set[str]()
        for effect in self.sync.handle(event, now=self.now, monotonic=self.monotonic, jitter=self.jitter):
            done.append(effect)
            self.effects.append(effect)
            if isinstance(effect, Unsubscribe):
                given_up |= set(effect.filters)
            if isinstance(effect, Subscribe):
                assert not given_up & set(effect.filters), (
                    "some brokers take both at once, and then it is lost"
                )
            outcome = self._perform(effect)
            if outcome is not None:
                done += self.handle(outcome)
        return done

    def connect(self) -> list[Effect]:
        """A first connection; what is retained waits to be delivered."""
        return [*self.handle(Started()), *self.reconnect()]

    def reconnect(self) -> list[Effect]:
        """A connection that stands ends, the wait passes, and the broker accepts a connection of a clean session."""
        self.filters.clear()
        self._waiting.clear()
        if self.sync.connection.state in CONNECTED:
            self.disconnect()
        if self.sync.connection.state in WAITING:
            deadline = self.sync.next_deadline()
            assert deadline is not None
            self.tick(deadline - self.monotonic)
        return self.handle(Connected())

    def disconnect(self) -> list[Effect]:
        return self.handle(Disconnected("gone"))

    def deliver(self, topic: str, payload: bytes) -> list[Effect]:
        """The broker hands over one message, asked for or not."""
        return self.handle(Received(topic, payload))

    def tick(self, seconds: float) -> list[Effect]:
        """Time passes on the monotonic clock."""
        self.monotonic += seconds
        return self.handle(Ticked())

    def settle(self, order: Callable[[int], int] = lambda waiting: 0) -> None:
        """Delivers retained messages, `order` choosing among so many, until there is nothing more to deliver."""
        for _ in range(10_000):
            if not self._waiting:
                return
            place = order(len(self._waiting))
            topic, payload = self._waiting[place]
            del self._waiting[place]
            self.deliver(topic, payload)
        raise AssertionError("the agent and the broker talk without end")

    def hear(self) -> None:
        """What is retained now is delivered to those who are subscribed, as a broker forwards it live."""
        for topic, payload in list(self.publisher.retained.items()):
            if any(_matches(one, topic) for one in self.filters):
                self._waiting.append((topic, payload))
        self.settle()

    def offer_again(self) -> None:
        """Leaves one more copy of every waiting message in the queue."""
        self._waiting.extend(list(self._waiting))

    def catch_up(self) -> None:
        """Connects and hears all that is retained."""
        self.connect()
        self.settle()

    # What it says and believes

    @property
    def reports(self) -> list[Report]:
        return [decode_report(effect.payload) for effect in self.effects if isinstance(effect, Publish)]

    @property
    def rejections(self) -> int:
        """How many messages were refused."""
        return sum(self.sync.reporting.rejections.values())

    def belief(self) -> Belief:
        return Belief(
            dict(self.sync.trusted.holdings),
            self.sync.trusted.root,
            self.sync.trusted.floor,
            disk_of(self.path),
            self.answers(),
        )

    def answers(self) -> object:
        """What applications are told: every flag of every namespace, for a handful of entities."""
        told: dict[object, object] = {}
        for namespace in self.evaluator.namespaces():
            knowledge = self.evaluator.knowledge(namespace)
            told[namespace] = (knowledge.epoch, knowledge.version, knowledge.digest, knowledge.expires)
            for key in knowledge.compiled.flags:
                for entity in ENTITIES:
                    for ask in (self.evaluator.boolean, self.evaluator.variant):
                        try:
                            told[namespace, key, entity, ask.__name__] = ask(namespace, key, entity, {})
                        except InvalidCall as error:
                            told[namespace, key, entity, ask.__name__] = type(error)
        return told

    def _perform(self, effect: Effect) -> Event | None:
        match effect:
            case Subscribe(filters):
                if self.is_mute:
                    return None
                self.filters += [one for one in filters if one not in self.filters]
                self._waiting.extend(
                    (topic, payload)
                    for topic, payload in self.publisher.retained.items()
                    if payload and any(_matches(one, topic) for one in filters)
                )
                return Subscribed(filters)
            case Unsubscribe(filters):
                for one in filters:
                    if one in self.filters:
                        self.filters.remove(one)
            case PersistUpdate(update, floor):
                return self._persist(lambda: self.store.persist_update(update, floor))
            case PersistRoot(root, floor):
                return self._persist(lambda: self.store.persist_root(root, floor))
            case KeepUsage(batch):
                self.store.keep_usage(batch)
            case FindUsage():
                return UsageFound(*(self.store.oldest_usage() or (0, b"")))
            case DropUsage(number):
                self.store.drop_usage(number)
            case Believe(floor):
                self.evaluator.floor = floor
            case Activate(update):
                self.evaluator.activate(update)
                self.activated.append(update)
            case _:
                pass
        return None

    def _persist(self, persist: Callable[[], None]) -> Event:
        if self.fail_persisting:
            return PersistFailed("database or disk is full")
        try:
            persist()
        except StoreError as error:
            return PersistFailed(str(error))
        return Persisted()


def disk_of(path: Path) -> object:
    """Everything on disk, read through a connection of its own."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return [
            connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
            for table in ("trust", "holding", "record")
        ] + [connection.execute("SELECT namespace, kind, key FROM record ORDER BY 1, 2, 3").fetchall()]


def stored_on(store: Store, namespace: Namespace) -> Stored:
    """One namespace as the store gives it back."""
    (found,) = [one for one in store.load().namespaces if one.namespace == namespace]
    return found


@contextmanager
def refused(agent: AgentShell, *attacks: str) -> Iterator[None]:
    """What happens inside is refused as one of `attacks`, and changes nothing: not in memory, not on disk, in no answer."""
    before, count, said = agent.belief(), agent.rejections, len(agent.reports)
    yield
    assert agent.rejections > count, "nothing was refused"
    assert agent.sync.reporting.refusal is not None
    assert agent.sync.reporting.refusal.attack in attacks, agent.sync.reporting.refusal
    assert agent.belief() == before
    rejections = [report.rejection for report in agent.reports[said:]]
    assert rejections, "the refusal was not reported"
    assert rejections[-1] is not None
    assert rejections[-1].attack == agent.sync.reporting.refusal.attack
    assert rejections[-1].at == agent.now


@contextmanager
def ignored(agent: AgentShell) -> Iterator[None]:
    """What happens inside is no attack and no news: nothing is refused and nothing changes."""
    before, count = agent.belief(), agent.rejections
    yield
    assert agent.rejections == count, agent.sync.reporting.refusal
    assert agent.belief() == before


def _matches(topic_filter: str, topic: str) -> bool:
    levels, found = topic_filter.split("/"), topic.split("/")
    return len(levels) == len(found) and all(
        level in ("+", name) for level, name in zip(levels, found, strict=True)
    )
