"""What devices say, heard by the publisher: their reports, once, and what they counted, for as long as somebody listens.

A batch of counts is acknowledged to the broker when the disk has it, so a collector may be killed at any instant: the broker
gives again what was not acknowledged, and what was counted already is not counted twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from flagcast_shared.errors import Refused
from flagcast_shared.ids import DeviceId, Epoch, Namespace, Version
from flagcast_shared.reports import Report, decode_report, decode_usage
from flagcast_shared.topics import DeviceAddress

from . import clock, publisher
from .fleet import Fleet, gather
from .ledger import UsageBook
from .mqtt import BrokerError
from .project import Project

QUIET_SECONDS: Final = 2.0
"""No further batch for so long: the broker has handed over what it kept."""
RETRY_FIRST_SECONDS: Final = 1.0
RETRY_CAP_SECONDS: Final = 60.0
"""Waits between attempts double from the first to the cap, each with a random part."""


@dataclass(frozen=True, slots=True)
class Muster:
    """What was read: every device, what everybody is offered, and the topics whose message is no report.

    With `needs_names` the broker shows reports only to who asks for them by a device's name.
    """

    fleet: Fleet
    stable: Mapping[Namespace, tuple[Epoch, Version]]
    unreadable: Mapping[str, str]
    needs_names: bool = False


def muster(settings: Project, device: DeviceId | None = None) -> Muster:
    """Every retained report that the broker shows, that of `device` for sure, and what is published.

    Raises:
        BrokerError, InvalidConfiguration
    """
    topics = settings.topics
    seen = publisher.read_broker(settings)
    with publisher.connect(settings) as connection:
        found = connection.read_all([topics.all_devices("report")])
        own = "" if device is None else topics.of(DeviceAddress(device, "report"))
        if own and own not in found:
            found |= connection.read([own])
    reports: list[tuple[DeviceId, Report]] = []
    unreadable: dict[str, str] = {}
    for topic, payload in sorted(found.items()):
        address = topics.address(topic)
        if not isinstance(address, DeviceAddress) or not payload:
            continue
        try:
            reports.append((address.device, decode_report(payload)))
        except Refused as error:
            unreadable[topic] = str(error)
    stable = {name: (live.head.epoch, live.head.stable.version) for name, live in seen.live.items()}
    return Muster(gather(reports), stable, unreadable, seen.needs_names)


def collect(
    settings: Project, book: UsageBook, say: Callable[[str], None], *, is_once: bool
) -> tuple[int, int]:
    """Add what devices counted to the book: all that the broker kept for us (`is_once`), or for ever.

    Returns the batches added and those that were known already.

    Raises:
        BrokerError: with `is_once`; otherwise it is said, and tried again.
        LedgerError, InvalidConfiguration
    """
    added = known = failures = 0
    while True:
        try:
            with publisher.connect(settings, f"flagcast-usage-{settings.environment}") as connection:
                say(f"collecting from {settings.broker.url}")
                quiet = QUIET_SECONDS if is_once else None
                for topic, payload in connection.incoming(
                    [settings.topics.all_devices("metrics")], quiet_seconds=quiet
                ):
                    failures = 0
                    is_new = _take(settings, book, topic, payload, say)
                    added += is_new is True
                    known += is_new is False
                if is_once:
                    return added, known
        except BrokerError as error:
            if is_once:
                raise
            span = min(RETRY_CAP_SECONDS, RETRY_FIRST_SECONDS * 2.0**failures)
            failures = min(failures + 1, 16)
            say(f"warning: {error}; trying again")
            clock.pause(RETRY_FIRST_SECONDS + span * clock.jitter())


def _take(
    settings: Project, book: UsageBook, topic: str, payload: bytes, say: Callable[[str], None]
) -> bool | None:
    # None for a message that is no batch: it is acknowledged too, or it would come for ever.
    address = settings.topics.address(topic)
    if not isinstance(address, DeviceAddress):
        return None
    try:
        usage = decode_usage(payload)
    except Refused as error:
        say(f"warning: {topic}: not counted: {error}")
        return None
    return book.take(address.device, usage, clock.now())
