"""What devices say, heard by the publisher: their reports, once, and what they counted, for as long as somebody listens.

A batch of counts is acknowledged to the broker when the disk has it, so a collector may be killed at any instant: the broker
gives again what was not acknowledged, and what was counted already is not counted twice.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from flagcast_bridge import clock
from flagcast_bridge.broker.connection import BrokerError
from flagcast_bridge.ledger.ledger import TooManyBatches, UsageBook
from flagcast_bridge.planning.fleet import Fleet, Published, gather
from flagcast_bridge.project import Project
from flagcast_bridge.publishing import publish as publisher
from flagcast_shared.errors import Refused
from flagcast_shared.ids import DeviceId, Epoch, Namespace, Version
from flagcast_shared.limits import USAGE_MAX_BYTES
from flagcast_shared.reports import decode_usage
from flagcast_shared.topics import DeviceAddress

QUIET_SECONDS: Final = 2.0
"""No further batch for so long: the broker has handed over what it kept."""
RETRY_FIRST_SECONDS: Final = 1.0
RETRY_CAP_SECONDS: Final = 60.0
"""Waits between attempts double from the first to the cap, each with a random part."""
NOTICE_SECONDS: Final = 60.0
"""At most one line on messages that were dropped, and one on batches that were not counted, in so long: a flood fills no log."""


@dataclass(slots=True)
class Collected:
    """Totals of one collection: batches, and messages that were none, by the reason."""

    added: int = 0
    known: int = 0
    refused: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """All of it in one line."""
        line = f"batches added: {self.added}, known already: {self.known}"
        dropped = self.dropped + Counter({"not counted": self.refused})
        if dropped:
            why = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
            line += f"; messages dropped: {dropped.total()} ({why})"
        return line


@dataclass(frozen=True, slots=True)
class Muster:
    """What was read: every device, what everybody is offered, and the topics whose message is no report.

    With `needs_names` the broker shows reports only to who asks for them by a device's name.
    """

    fleet: Fleet
    stable: Mapping[Namespace, tuple[Epoch, Version]]
    unreadable: Mapping[str, str]
    offered: Mapping[Namespace, Published] = field(default_factory=dict)
    needs_names: bool = False


def muster(settings: Project, device: DeviceId | None = None) -> Muster:
    """Every retained report that the broker shows, that of `device` for sure, and what is published.

    Raises:
        BrokerError, InvalidConfiguration
    """
    topics = settings.topics
    # Reports first: a device that takes a new version meanwhile is behind for a moment, and does not seem to be split.
    with publisher.connect(settings) as connection:
        found = connection.read_all([topics.all_devices("report")])
        own = "" if device is None else topics.of(DeviceAddress(device, "report"))
        if own and own not in found:
            found |= connection.read([own])
    reports, unreadable = publisher.parse_reports(settings, found)
    seen = publisher.read_broker(settings)
    offered = {name: publisher.published(live.head) for name, live in seen.live.items()}
    stable = {name: each.stable for name, each in offered.items()}
    return Muster(gather(reports), stable, unreadable, offered, seen.needs_names)


def collect(
    settings: Project, book: UsageBook, say: Callable[[str], None], collected: Collected, *, is_once: bool
) -> None:
    """Add what devices counted to the book: all that the broker kept for us (`is_once`), or for ever.

    `collected` grows meanwhile, and holds also where this ends by an exception.

    Raises:
        BrokerError: with `is_once`; otherwise it is said, and tried again.
        LedgerError, InvalidConfiguration
    """
    failures = 0
    refusals = _Notices(say)
    drops = _Notices(say)
    name = f"flagcast-usage-{settings.environment}"
    quiet = QUIET_SECONDS if is_once else None
    while True:
        try:
            with publisher.connect(settings, name, USAGE_MAX_BYTES) as connection:
                say(f"collecting from {settings.broker.url}")
                before = collected.dropped
                try:
                    for found in connection.incoming(
                        [settings.topics.all_devices("metrics")], quiet_seconds=quiet
                    ):
                        collected.dropped = before + Counter(connection.dropped)
                        drops.note(
                            collected.dropped.total(), "messages were dropped: too large, or not of QoS 1"
                        )
                        if found is not None:
                            failures = 0
                            _take(settings, book, found, collected, refusals)
                finally:
                    collected.dropped = before + Counter(connection.dropped)
                if is_once:
                    return
        except BrokerError as error:
            if is_once:
                raise
            span = min(RETRY_CAP_SECONDS, RETRY_FIRST_SECONDS * 2.0**failures)
            failures = min(failures + 1, 16)
            say(f"warning: {error}; trying again")
            clock.pause(RETRY_FIRST_SECONDS + span * clock.jitter())


class _Notices:
    # A line about what others cause, at most once in NOTICE_SECONDS however often it happens.

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._due = clock.monotonic()
        self._noted = 0

    def note(self, total: int, text: str) -> None:
        # `total` counts from the beginning of the run.
        if total > self._noted and clock.monotonic() >= self._due:
            more = f" ({total - self._noted} since the last such line)" if total - self._noted > 1 else ""
            self._say(f"warning: {text}{more}")
            self._noted = total
            self._due = clock.monotonic() + NOTICE_SECONDS


def _take(
    settings: Project,
    book: UsageBook,
    message: tuple[str, bytes],
    collected: Collected,
    refusals: _Notices,
) -> None:
    topic, payload = message
    # A message that is no batch is acknowledged too, or it would come for ever.
    address = settings.topics.address(topic)
    if not isinstance(address, DeviceAddress):
        collected.refused += 1
        return
    try:
        is_new = book.take(address.device, decode_usage(payload), clock.now())
    except (Refused, TooManyBatches) as error:
        collected.refused += 1
        refusals.note(collected.refused, f"{topic}: not counted: {error}")
        return
    collected.added += is_new
    collected.known += not is_new
