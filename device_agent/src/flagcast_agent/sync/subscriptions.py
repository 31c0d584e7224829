"""Subscriptions of roots and heads: the walk over roots, which heads arrived, and when to subscribe again."""

from collections.abc import Iterable, Mapping
from typing import Final

from flagcast_shared.ids import Namespace
from flagcast_shared.topics import HeadAddress, RootAddress, Topics

from .events import Effect, Level, Log, Received, Subscribe, Subscribed
from .fetches import FETCH_PATIENCE_SECONDS, REFRESH_INTERVAL_SECONDS, REFRESH_PATIENCE_SECONDS

HEADLESS_PATIENCE_SECONDS: Final = 10.0
"""How long after the SUBACK a namespace of which nothing is held may be silent before it counts as not published. Retained
messages come with the SUBACK; the rest is what an answer to a refresh may take."""
EARLY_HEADS_MAX: Final = 64
"""Heads that are kept until the broker has answered for the next root: a few of each namespace. The rest is asked for again."""
EARLY_HEADS_MAX_BYTES: Final = 262_144
"""The same in bytes: as much as the largest message."""


class Subscriptions:
    """Roots and heads of one connection.

    `unconfirmed` are filters that the broker has not answered for, `denied` those that it refused. `is_walking`: a root was
    admitted, and the next one is awaited. `early` are heads that wait for the answer for the next root. `requested` are
    namespaces whose heads the publisher was asked for. `again_at` is when to subscribe once more, in monotonic seconds.
    """

    def __init__(self, topics: Topics, namespaces: tuple[Namespace, ...]) -> None:
        self._topics = topics
        self.namespaces = namespaces
        self._heads: Mapping[Namespace, str] = {name: topics.of(HeadAddress(name)) for name in namespaces}
        # Of each namespace whose head arrived: why it was not taken, "" if it was.
        self._arrived: dict[Namespace, str] = {}
        self._quiet_at: float | None = None
        self._refresh_at = 0.0
        self._frozen_at: int | None = None
        self.unconfirmed: set[str] = set()
        self.denied: set[str] = set()
        self.is_walking = False
        self.early: list[Received] = []
        self.requested: set[Namespace] = set()
        self.again_at: float | None = None

    def root_filter(self, number: int) -> str:
        """The subscription of the root after this one."""
        return self._topics.of(RootAddress(number + 1))

    @property
    def head_filters(self) -> tuple[str, ...]:
        """The subscriptions of all heads."""
        return tuple(self._heads.values())

    @property
    def are_all_denied(self) -> bool:
        """Whether the broker refuses every head."""
        return self.denied >= set(self._heads.values())

    def next_deadlines(self, *, is_syncing: bool) -> Iterable[float | None]:
        """When to subscribe again; while syncing also when a missing head is requested, or given up."""
        waits = [self._refresh_at, self._quiet_at] if is_syncing and self.missing() else []
        return [self.again_at, *waits]

    def connected(self, monotonic: float) -> None:
        """A connection begins."""
        self._refresh_at = monotonic
        self.requested.clear()
        self.denied.clear()
        self.is_walking = False

    def subscribe(self, filters: Iterable[str], root_filter: str) -> list[Effect]:
        """Subscribes; what arrived before counts no more.

        The broker sends its retained messages again to whoever subscribes again (MQTT 3.1.1 and 5, 3.8.4). The next root has a
        packet of its own before the heads, because a broker may take the filters of one packet in any order. Both packets leave
        at once, so that is no round trip.
        """
        filters = tuple(filters)
        packets: list[tuple[str, ...]] = [(name,) for name in filters if name == root_filter]
        if heads := tuple(name for name in filters if name != root_filter):
            packets.append(heads)
        self.unconfirmed = set(filters)
        self._arrived.clear()
        self.early.clear()
        self._frozen_at = None
        self.again_at = None
        return [Subscribe(packet) for packet in packets]

    def walk(self, monotonic: float) -> None:
        """A root was admitted.

        Another root may follow at once, and take back the key of a head that is already on its way: no head is judged until the
        broker has answered for what comes after this root.
        """
        self.is_walking = True
        self._refresh_at = monotonic

    def on_answer(self, answer: Subscribed) -> list[Effect]:
        """The broker's answer to subscriptions."""
        self.denied |= set(answer.refused)
        self.unconfirmed -= set(answer.filters)
        if not answer.refused:
            return []
        fields = (("why", answer.why), ("topics", " ".join(answer.refused)))
        return [Log(Level.ERROR, "the broker refused a subscription", fields)]

    def confirm(self, monotonic: float) -> None:
        """Every subscription is acknowledged: missing heads have their time."""
        self._quiet_at = monotonic + HEADLESS_PATIENCE_SECONDS
        self._refresh_at = max(self._refresh_at, monotonic + REFRESH_PATIENCE_SECONDS)

    def keep_early(self, message: Received, subscribed_at: float) -> None:
        """Keeps a head until the broker has answered for the next root.

        All of them in their order: garbage on a topic must not take the place of the head before it.
        """
        kept = sum(len(other.payload) for other in self.early)
        if len(self.early) == EARLY_HEADS_MAX or kept + len(message.payload) > EARLY_HEADS_MAX_BYTES:
            self.again_at = subscribed_at + FETCH_PATIENCE_SECONDS
        else:
            self.early.append(message)

    def record(self, namespace: Namespace, trouble: str = "") -> None:
        """A head arrived; `trouble` is why it was not taken.

        Once a head was trusted, later messages on its topic that are not do not take that back.
        """
        if not trouble or self._arrived.get(namespace) != "":
            self._arrived[namespace] = trouble

    def fail(self, namespace: Namespace, trouble: str) -> None:
        """A head that was trusted could not be taken after all."""
        self._arrived[namespace] = trouble

    def freeze(self, now: int) -> None:
        """A head was refused because it has expired, by a clock that may be ahead."""
        self._frozen_at = now

    def missing(self) -> list[Namespace]:
        """Namespaces that are followed, readable, and whose head did not arrive."""
        return [
            name
            for name, topic in self._heads.items()
            if name not in self._arrived and topic not in self.denied
        ]

    def is_patient(self, monotonic: float) -> bool:
        """Whether a head that is missing may still arrive by itself."""
        if self._quiet_at is not None and monotonic >= self._quiet_at:
            self._quiet_at = None
        return self._quiet_at is not None

    def is_denied(self, namespace: Namespace) -> bool:
        """Whether the broker refused the subscription of a head."""
        return self._heads[namespace] in self.denied

    def why_unsettled(self, namespace: Namespace) -> str:
        """For people: what is wrong with a namespace's head, "" if nothing is."""
        if self.is_denied(namespace):
            return "the broker refused the subscription of its head"
        trouble = self._arrived.get(namespace)
        if trouble is None:
            return "no head was heard"
        return f"the head was not taken: {trouble}" if trouble else ""

    def is_again_due(self, now: int, monotonic: float) -> bool:
        """Whether to subscribe once more.

        Also when the clock was set back since a head was refused that it made look expired: no broker offers that head again by
        itself.
        """
        is_due = self.again_at is not None and monotonic >= self.again_at
        return is_due or (self._frozen_at is not None and now < self._frozen_at)

    def request_missing(self, monotonic: float) -> list[Namespace]:
        """Namespaces whose heads the publisher is to be asked for now."""
        missing = self.missing()
        if not missing or monotonic < self._refresh_at:
            return []
        self._refresh_at = monotonic + REFRESH_INTERVAL_SECONDS
        self.requested.update(missing)
        return missing
