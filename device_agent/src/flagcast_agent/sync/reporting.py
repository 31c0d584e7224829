"""Device reports: what the device holds, its last rejection, and when a report is due."""

from collections.abc import Mapping
from typing import Final

from flagcast_shared.bucketing import candidate_bucket
from flagcast_shared.errors import Refused
from flagcast_shared.ids import DeviceId, Namespace
from flagcast_shared.limits import REPORT_DIGEST_BYTES
from flagcast_shared.reports import Applied, Rejection, Report, encode_report
from flagcast_shared.topics import DeltaAddress, HeadAddress, SnapshotAddress, Topics
from flagcast_shared.trust import Trusted

from .events import Effect, Level, Log, Publish, Refusal

REJECTIONS_TOLD_MAX: Final = 16
"""Refusals that one connection reports; a broker that lies all the time must not make its devices write all the time."""
HEARTBEAT_SALT: Final = b"heartbeat"
_BUCKETS: Final = 10_000


class Reporting:
    """Reports of one device. `session` is the number of the connection to come: each connection has the next one.

    `rejections` counts refused messages by the name of the attack. A report holds the last `refusal` until something is admitted
    in its place: an update of its namespace, or a root. `refused_why` is why the broker refused the last report, blank where it
    took it.
    """

    def __init__(self, topics: Topics, topic: str, session: int, agent: str, heartbeat_seconds: int) -> None:
        self._topics = topics
        self._topic = topic
        self._agent = agent
        self._heartbeat_seconds = heartbeat_seconds
        self._heartbeat_at: float | None = None
        self._number = 0
        self._told: tuple[str, str] | None = None
        self._told_count = 0
        self._is_settled = False
        self.session = session
        self.refusal: Refusal | None = None
        self.rejections: dict[str, int] = {}
        self.refused_why = ""

    def next_deadline(self) -> float | None:
        """When the next heartbeat is due."""
        return self._heartbeat_at

    def start(self, device: DeviceId, monotonic: float) -> None:
        """Begins the heartbeats, if there are any."""
        if self._heartbeat_seconds:
            # Each device has its own place within the interval: a fleet that is switched on at once does not beat at once.
            phase = candidate_bucket(HEARTBEAT_SALT, device) / _BUCKETS
            self._heartbeat_at = monotonic + phase * self._heartbeat_seconds

    def will(self, trusted: Trusted, now: int) -> tuple[str, bytes]:
        """Topic and bytes of the next connection's will."""
        self.session += 1
        self._number = 0
        return self._topic, encode_report(self._report(trusted, now, is_online=False))

    def connected(self, monotonic: float) -> None:
        """A connection begins."""
        self.is_heartbeat_due(monotonic)  # the birth is a sign of life too
        self._told_count = 0

    def publish(self, trusted: Trusted, now: int, *, is_online: bool = True) -> Publish:
        """The next report."""
        self._number += 1
        return Publish(self._topic, encode_report(self._report(trusted, now, is_online=is_online)))

    def note(self, error: Refused, topic: str, now: int) -> tuple[Log, bool]:
        """Records a refused message: what to log, and whether to report it.

        What is refused over and over is reported once, until something has been admitted in between.
        """
        self.refusal = Refusal(error.attack, str(error), topic, now)
        self._is_settled = False
        self.rejections[error.attack] = self.rejections.get(error.attack, 0) + 1
        line = Log(
            Level.WARNING, "refused", (("attack", error.attack), ("topic", topic), ("why", str(error)))
        )
        if self._told == (error.attack, topic) or self._told_count >= REJECTIONS_TOLD_MAX:
            return line, False
        self._told = (error.attack, topic)
        self._told_count += 1
        return line, True

    def admitted(self, namespace: str) -> None:
        """Something was admitted: of a namespace, or a root ("")."""
        self._told = None
        self._told_count = 0
        self._is_settled |= self.refusal is not None and namespace == self._namespace_of(self.refusal)

    def on_answer(self, refused: str, device: DeviceId) -> list[Effect]:
        """The broker's answer to a report: why it was refused, blank where it was taken."""
        # Told once, until a report was taken: a device reports again and again.
        former, self.refused_why = self.refused_why, refused
        if refused and refused != former:
            fields = (("why", refused), ("topic", self._topic), ("device", device))
            return [Log(Level.WARNING, "report refused: is the broker's user the device id?", fields)]
        if former and not refused:
            return [Log(Level.INFO, "report taken again", ())]
        return []

    def is_heartbeat_due(self, monotonic: float) -> bool:
        """Whether a heartbeat is due. To be asked once for each: the next one is set then."""
        if self._heartbeat_at is None or monotonic < self._heartbeat_at:
            return False
        passed = (monotonic - self._heartbeat_at) // self._heartbeat_seconds + 1
        self._heartbeat_at += passed * self._heartbeat_seconds
        return True

    def _report(self, trusted: Trusted, now: int, *, is_online: bool) -> Report:
        rejection = None
        if self.refusal is not None and not self._is_settled:
            rejection = Rejection(self.refusal.attack, self._namespace_of(self.refusal), self.refusal.at)
        return Report(
            session=self.session,
            number=self._number,
            is_online=is_online,
            at=now,
            agent=self._agent,
            root=trusted.root.number,
            applied=_applied(trusted),
            rejection=rejection,
        )

    def _namespace_of(self, refusal: Refusal) -> str:
        # "" for a root.
        match self._topics.address(refusal.topic):
            case HeadAddress(namespace) | SnapshotAddress(namespace) | DeltaAddress(namespace):
                return namespace
            case _:
                return ""


def _applied(trusted: Trusted) -> Mapping[Namespace, Applied]:
    return {
        namespace: Applied(
            holding.epoch, holding.version, holding.head.sequence, holding.digest[:REPORT_DIGEST_BYTES]
        )
        for namespace, holding in trusted.holdings.items()
    }
