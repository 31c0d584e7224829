"""What the devices' reports say together: who is at which version, behind, offline, silent, or refuses what it is sent.

Pure: reports in, the state of the fleet out. Reports are the devices' own word, which nobody verifies. An offline report counts
only in the session that was last seen online, because the will of an old connection may come late.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from flagcast_shared.ids import DeviceId, Epoch, Namespace, Version
from flagcast_shared.reports import Applied, Rejection, Report

SILENT_AFTER_SECONDS: Final = 2 * 86_400
"""A device that says it is online and has not reported for two heartbeats, as they are unless configured, is not believed."""


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


def summarize(fleet: Fleet, live: Mapping[Namespace, tuple[Epoch, Version]], now: int) -> Summary:
    """The fleet in numbers at `now` (Unix seconds); `live` is the stable content of every namespace that is published."""
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
        live,
        {name: dict(sorted(counted.items(), reverse=True)) for name, counted in versions.items()},
        dict(sorted(Counter(report.root for report in said).items(), reverse=True)),
        dict(sorted(Counter(report.agent for report in said).items(), reverse=True)),
        dict(sorted(Counter(each.rejection.attack for each in said if each.rejection is not None).items())),
    )


def applied_as_text(applied: Mapping[Namespace, Applied]) -> str:
    """What a device holds, for people."""
    held = [f"{name} {one.version}" for name, one in sorted(applied.items())]
    return ", ".join(held) or "nothing"
