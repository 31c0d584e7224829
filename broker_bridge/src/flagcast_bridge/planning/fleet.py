"""What the devices' reports say together: who is at which version, behind, offline, silent, or refuses what it is sent.

Pure: reports in, the state of the fleet out. Reports are the devices' own word, which nobody verifies. An offline report counts
only in the session that was last seen online, because the will of an old connection may come late.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from flagcast_shared.ids import DeviceId, Digest, Epoch, Namespace, Version
from flagcast_shared.limits import REPORT_DIGEST_BYTES
from flagcast_shared.reports import Applied, Rejection, Report

SILENT_AFTER_SECONDS: Final = 2 * 86_400
"""A device that says it is online and has not reported for two heartbeats, as they are unless configured, is not believed."""


RECOVERY_BOUND: Final = 1_000_000
"""Distance above the known numbers within which a report counts.

Reports are unsigned, and no device that lies may use up the numbers or stop a
publisher with such a claim; a release every minute takes two years to get so far."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """The highest version and sequence of a namespace that a publisher knows of."""

    version: int = 0
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Published:
    """The content that everybody is offered, and that of the candidate: (epoch, version), and digests by version.

    `digests` has what is known; a device that reports no digest is judged by its numbers alone.
    """

    stable: tuple[Epoch, Version]
    digests: Mapping[Version, Digest] = field(default_factory=dict)

    def is_split(self, held: Applied) -> bool:
        """Whether a device holds another content under a number of these, or a number above all of them."""
        epoch, version = self.stable
        if held.epoch != epoch:
            return held.epoch > epoch
        return self.has_other(held) or held.version > max((version, *self.digests))

    def has_other(self, held: Applied) -> bool:
        """Whether a device holds another content under one of these very numbers."""
        digest = self.digests.get(held.version)
        is_known = held.epoch == self.stable[0] and digest is not None and bool(held.digest)
        return is_known and digest is not None and digest[:REPORT_DIGEST_BYTES] != held.digest


@dataclass(frozen=True, slots=True)
class Claim:
    """Numbers that a device reports and that the publisher does not know of."""

    device: DeviceId
    namespace: Namespace
    held: Applied
    is_beyond: bool
    """Whether they are more than RECOVERY_BOUND above the known ones."""
    is_of_later_epoch: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """One device as it was heard of last. `said` is its latest state, `session` the connection that was last online."""

    device: DeviceId
    said: Report
    session: int
    is_online: bool

    @property
    def seen(self) -> int:
        """When it last spoke, by its own clock (Unix seconds); 0 where it did not say."""
        return self.said.at

    @property
    def rejection(self) -> Rejection | None:
        """The last update it refused."""
        return self.said.rejection

    def is_silent(self, now: int) -> bool:
        """Whether it claims to be online and has not said anything for too long."""
        return self.is_online and now - self.seen > SILENT_AFTER_SECONDS

    def split(self, live: Mapping[Namespace, Published]) -> tuple[Namespace, ...]:
        """The namespaces in which it holds what was never published under that number, sorted."""
        return tuple(
            sorted(
                namespace
                for namespace, held in self.said.applied.items()
                if namespace in live and live[namespace].is_split(held)
            )
        )

    def behind(self, live: Mapping[Namespace, tuple[Epoch, Version]]) -> tuple[Namespace, ...]:
        """The namespaces it follows and holds an older content of than everybody is offered, sorted.

        A device that holds nothing at all is behind in everything.
        """
        if not self.said.applied:
            return tuple(sorted(live))
        return tuple(
            sorted(
                namespace
                for namespace, held in self.said.applied.items()
                if namespace in live and (held.epoch, held.version) < live[namespace]
            )
        )


Fleet = Mapping[DeviceId, Member]


@dataclass(frozen=True, slots=True)
class Summary:
    """A fleet in numbers. `versions` counts devices by namespace and (epoch, version) of the content held.

    `stable` is what everybody is offered. A device is counted wherever it belongs, so the numbers overlap.
    """

    devices: int
    online: int
    offline: int
    silent: int
    behind: int
    split: int
    stable: Mapping[Namespace, tuple[Epoch, Version]]
    versions: Mapping[Namespace, Mapping[tuple[Epoch, Version], int]]
    roots: Mapping[int, int]
    agents: Mapping[str, int]
    rejections: Mapping[str, int] = field(default_factory=dict)


def gather(reports: Iterable[tuple[DeviceId, Report]]) -> Fleet:
    """The fleet that these reports make, in the order in which they came."""
    members: dict[DeviceId, Member] = {}
    for device, report in reports:
        members[device] = hear(members.get(device), device, report)
    return members


def hear(known: Member | None, device: DeviceId, report: Report) -> Member:
    """A device after one more report; the same as before where the report is an old one."""
    if known is None:
        return Member(device, report, report.session, report.is_online)
    is_same = report.session == known.session
    if report.is_online:
        is_old = is_same and report.number <= known.said.number
        return known if is_old else Member(device, report, report.session, is_online=True)
    if not is_same:
        return known
    # A will was made before its connection; what the device said since is the better word on what it holds.
    is_later = report.number > known.said.number and report.at != 0
    return replace(known, said=report if is_later else known.said, is_online=False)


def claims(fleet: Fleet, epoch: Epoch, known: Mapping[Namespace, Numbers]) -> list[Claim]:
    """The numbers above the known ones that devices report of these namespaces, by namespace and device.

    Numbers of an earlier epoch are outranked by every number of this one, and count nothing.
    """
    found = []
    for device, member in sorted(fleet.items()):
        for namespace, held in member.said.applied.items():
            numbers = known.get(namespace)
            if numbers is None or held.epoch < epoch:
                continue
            if held.epoch > epoch:
                found.append(Claim(device, namespace, held, is_beyond=False, is_of_later_epoch=True))
                continue
            above = max(held.version - numbers.version, held.sequence - numbers.sequence)
            if above > 0:
                found.append(Claim(device, namespace, held, is_beyond=above > RECOVERY_BOUND))
    return sorted(found, key=lambda each: (each.namespace, each.device))


def summarize(
    fleet: Fleet,
    live: Mapping[Namespace, tuple[Epoch, Version]],
    now: int,
    published: Mapping[Namespace, Published] | None = None,
) -> Summary:
    """The fleet in numbers at `now` (Unix seconds); `live` is the stable content of every namespace that is published.

    `published` adds its digests, without which nothing is split.
    """
    versions: dict[Namespace, Counter[tuple[Epoch, Version]]] = {name: Counter() for name in sorted(live)}
    for member in fleet.values():
        for namespace, held in member.said.applied.items():
            versions.setdefault(namespace, Counter())[held.epoch, held.version] += 1
    said = [member.said for member in fleet.values()]
    online = sum(member.is_online for member in fleet.values())
    return Summary(
        len(fleet),
        online,
        len(fleet) - online,
        sum(member.is_silent(now) for member in fleet.values()),
        sum(bool(member.behind(live)) for member in fleet.values()),
        sum(bool(member.split(published or {})) for member in fleet.values()),
        live,
        {name: dict(sorted(counted.items(), reverse=True)) for name, counted in versions.items()},
        dict(sorted(Counter(report.root for report in said).items(), reverse=True)),
        dict(sorted(Counter(report.agent for report in said).items(), reverse=True)),
        dict(sorted(Counter(each.rejection.attack for each in said if each.rejection is not None).items())),
    )
