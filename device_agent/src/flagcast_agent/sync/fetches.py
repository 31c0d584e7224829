"""Content fetches: content that heads name and the device does not hold yet."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from flagcast_shared.ids import Namespace, Version
from flagcast_shared.topics import DeltaAddress, SnapshotAddress, Topics
from flagcast_shared.trust import Wanted

from .events import Effect, Level, Log, Subscribe, Unsubscribe

REFRESH_PATIENCE_SECONDS: Final = 4.0
"""How long after the SUBACK a head may be missing before the publisher is asked for it."""
REFRESH_INTERVAL_SECONDS: Final = 600.0
"""How often one connection asks the publisher for heads at most, until a root is admitted, and how often for one content."""
FETCH_PATIENCE_SECONDS: Final = 15.0
"""How long content may take before it is asked for otherwise, or again. Where the head itself had to be asked for, the content is
not expected to be there either, and REFRESH_PATIENCE_SECONDS is enough."""
FETCH_BYTES_PER_SECOND: Final = 1_000
"""The slowest link for which content is waited for without asking for it once more: GPRS on a bad day."""
FETCH_PATIENCE_CAP_SECONDS: Final = 600.0
PARTS_BY_NAME_MAX: Final = 32
"""More parts, of all namespaces together, are subscribed to with a wildcard: AWS IoT allows a connection 50 subscriptions."""


@dataclass(slots=True)
class Fetch:
    """Content of one namespace that was subscribed to.

    `filters` are the subscriptions. `deadline` ends the wait, `patience` is the next one in seconds. `is_spoiled`: its parts do
    not fit together. `has_progressed`: a part came since the last request.
    """

    version: Version
    parts: int
    filters: tuple[str, ...]
    deadline: float
    patience: float
    is_delta: bool
    is_spoiled: bool = False
    has_progressed: bool = False


class Retry(NamedTuple):
    """Effects of a wait that is over; what else is to be done."""

    effects: list[Effect]
    forgets_parts: bool = False
    asks_publisher: bool = False


class Fetches:
    """Content of all namespaces that is awaited, and when the publisher was last asked for some."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._awaited: dict[Namespace, Fetch] = {}
        self._requested: dict[Namespace, tuple[Version, float]] = {}

    def __bool__(self) -> bool:
        return bool(self._awaited)

    def of(self, namespace: Namespace) -> Fetch | None:
        """What is awaited of a namespace."""
        return self._awaited.get(namespace)

    def next_deadlines(self) -> Iterable[float]:
        """Ends of all waits."""
        return [fetch.deadline for fetch in self._awaited.values()]

    def connected(self) -> None:
        """A connection begins: nothing of the former one counts."""
        self._awaited.clear()
        self._requested.clear()

    def drop(self) -> tuple[str, ...]:
        """Forgets what is awaited; returns its subscriptions."""
        filters = tuple(name for fetch in self._awaited.values() for name in fetch.filters)
        self._awaited.clear()
        return filters

    def begin(self, wanted: Wanted, monotonic: float, *, is_hidden: bool) -> list[Effect]:
        """Subscribes to what a head names.

        `is_hidden`: the broker did not show the head, so it is not expected to show its content.
        """
        effects: list[Effect] = []
        known = self._awaited.get(wanted.namespace)
        if known is not None and known.version == wanted.offering.version:
            return effects
        if known is not None:
            effects.append(Unsubscribe(known.filters))
        version, parts = wanted.offering.version, wanted.offering.parts
        is_delta = wanted.has_delta and wanted.refused is None
        if is_delta and wanted.held is not None:
            filters: tuple[str, ...] = (
                self._topics.of(DeltaAddress(wanted.namespace, version, wanted.held)),
            )
        else:
            filters = self.snapshot_filters(wanted.namespace, version, parts)
        first = patience = REFRESH_PATIENCE_SECONDS
        if not is_hidden:
            first = FETCH_PATIENCE_SECONDS
            # Of one part: the next one has its time anew.
            patience = max(first, wanted.offering.size / parts / FETCH_BYTES_PER_SECOND)
        deadline = monotonic + (first if is_delta else patience)
        self._awaited[wanted.namespace] = Fetch(
            version, parts, filters, deadline, patience, is_delta=is_delta
        )
        return [*effects, Subscribe(filters)]

    def fall_back(self, namespace: Namespace, monotonic: float) -> list[Effect]:
        """Subscribes to the snapshot where a delta was awaited."""
        fetch = self._awaited.get(namespace)
        if fetch is None or not fetch.is_delta:
            return []
        former = fetch.filters
        fetch.filters = self.snapshot_filters(namespace, fetch.version, fetch.parts)
        fetch.is_delta = False
        fetch.deadline = monotonic + fetch.patience
        return [Unsubscribe(former), Subscribe(fetch.filters)]

    def end(self, namespace: Namespace) -> list[Effect]:
        """Unsubscribes from what has arrived."""
        fetch = self._awaited.pop(namespace, None)
        return [Unsubscribe(fetch.filters)] if fetch is not None else []

    def note_progress(self, namespace: Namespace, monotonic: float) -> None:
        """One more part arrived: the rest has its time anew."""
        fetch = self._awaited.get(namespace)
        if fetch is not None:
            fetch.has_progressed = True
            fetch.deadline = monotonic + fetch.patience

    def spoil(self, namespace: Namespace) -> None:
        """The parts that were collected do not fit together."""
        fetch = self._awaited.get(namespace)
        if fetch is not None:
            fetch.is_spoiled = True

    def overdue(self, monotonic: float) -> list[Namespace]:
        """Namespaces whose wait is over."""
        return [namespace for namespace, fetch in self._awaited.items() if monotonic >= fetch.deadline]

    def retry(self, namespace: Namespace, monotonic: float, *, is_hidden: bool) -> Retry:
        """Asks once more for content whose wait is over."""
        fetch = self._awaited[namespace]
        waited = Log(
            Level.WARNING,
            "content did not arrive; asking again",
            (("namespace", namespace), ("version", fetch.version), ("topic", fetch.filters[0])),
        )
        if fetch.is_delta:
            # Where heads were there, the snapshot will be too.
            asks = is_hidden and self._may_request(namespace, fetch, monotonic)
            return Retry([waited, *self.fall_back(namespace, monotonic)], asks_publisher=asks)
        forgets, fetch.is_spoiled = fetch.is_spoiled, False
        fetch.patience = min(FETCH_PATIENCE_CAP_SECONDS, fetch.patience * 2)
        fetch.deadline = monotonic + fetch.patience
        # Where some of it came, the broker has it and the link is what is slow; asking the publisher would make it slower.
        asks = not fetch.has_progressed and self._may_request(namespace, fetch, monotonic)
        fetch.has_progressed = False
        # Without an UNSUBSCRIBE: aedes, which takes both at once, ends with no subscription, and the publisher's answer is lost.
        return Retry([waited, Subscribe(fetch.filters)], forgets, asks)

    def snapshot_filters(self, namespace: Namespace, version: Version, parts: int) -> tuple[str, ...]:
        """Subscriptions for a snapshot: its parts by their names, or a wildcard for many."""
        others = sum(len(fetch.filters) for name, fetch in self._awaited.items() if name != namespace)
        if parts + others > PARTS_BY_NAME_MAX:
            return (self._topics.snapshot_filter(namespace, version),)
        return tuple(self._topics.of(SnapshotAddress(namespace, version, part)) for part in range(parts))

    def _may_request(self, namespace: Namespace, fetch: Fetch, monotonic: float) -> bool:
        version, again_at = self._requested.get(namespace, (None, 0.0))
        if version == fetch.version and monotonic < again_at:
            return False
        self._requested[namespace] = (fetch.version, monotonic + REFRESH_INTERVAL_SECONDS)
        return True
