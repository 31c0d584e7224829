"""What the agent says about itself: one value, for machines as a dictionary and for people as lines.

How old its knowledge is stands first: an application's owner asks for that before anything else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from flagcast_shared.literals import format_instant
from flagcast_shared.model import Instant

Freshness = Literal["fresh", "stale", "never synced"]
"""fresh: the head in force has not expired. stale: it has; the flags are evaluated all the same."""

LinkState = Literal["disconnected", "connecting", "subscribing", "syncing", "live", "backing off", "refused"]
"""How the agent stands with its broker, in the words of `link.LinkState`."""

_CONNECTED: Final = frozenset({"subscribing", "syncing", "live"})


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """The link to the broker. `since` is when the connection was made, or when there was one last. Instants are Unix seconds.

    `report_refused` says why the broker refused this device's last report, blank where it took it.
    """

    state: LinkState
    since: int
    last_error: str = ""
    last_error_at: int = 0
    report_refused: str = ""

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, up to date or not."""
        return self.state in _CONNECTED


@dataclass(frozen=True, slots=True)
class Rejection:
    """The last update that was not believed: the attack's or failure's name, why, and when (Unix seconds)."""

    attack: str
    why: str
    at: int


@dataclass(frozen=True, slots=True)
class NamespaceStatus:
    """What the agent knows of one namespace. Instants are Unix seconds; "never synced" has zeros.

    `age` is the seconds since the head in force was issued, when its publisher last said that this is the truth: by the
    device's clock, or by what time it is at least where that clock is behind.
    """

    namespace: str
    freshness: Freshness
    epoch: int = 0
    version: int = 0
    digest: str = ""
    issued: int = 0
    expires: int = 0
    age: int = 0
    flags: int = 0
    last_rejection: Rejection | None = None

    @property
    def held(self) -> str:
        """For people: which version is held."""
        is_known = self.freshness != "never synced"
        return f"version {self.version} of epoch {self.epoch}" if is_known else "nothing is published"


@dataclass(frozen=True, slots=True)
class Status:
    """The agent at one instant. Instants are Unix seconds.

    `now` is what the device's clock says. `clock_is_trusted` is false while that is behind what the agent has reason to
    believe: an update that has expired is then admitted with a warning, and ages are what they are at least.
    """

    agent_version: str
    device: str
    environment: str
    started: int
    now: int
    clock_is_trusted: bool
    link: LinkStatus
    namespaces: tuple[NamespaceStatus, ...] = ()

    def as_json(self) -> dict[str, object]:
        """A dictionary that `json` can write; instants as RFC 3339 text, null where there is none."""
        return {
            "agent_version": self.agent_version,
            "device": self.device,
            "environment": self.environment,
            "started": _instant(self.started),
            "now": _instant(self.now),
            "clock_is_trusted": self.clock_is_trusted,
            "link": {
                "state": self.link.state,
                "since": _instant(self.link.since),
                "last_error": self.link.last_error or None,
                "last_error_at": _instant(self.link.last_error_at),
                "report_refused": self.link.report_refused or None,
            },
            "namespaces": [_namespace_json(namespace) for namespace in self.namespaces],
        }

    def as_text(self) -> tuple[str, ...]:
        """Lines for people."""
        span = _span(self.now - self.link.since)
        link = (
            f"{self.link.state}, connected for {span}"
            if self.link.is_connected
            else f"{self.link.state} for {span}"
        )
        if self.link.last_error:
            link += f"; last error {_span(self.now - self.link.last_error_at)} ago: {self.link.last_error}"
        lines = [
            f"device       {self.device} in {self.environment}",
            f"agent        {self.agent_version}, up {_span(self.now - self.started)}",
            f"broker       {link}",
        ]
        if self.link.report_refused:
            lines.append(
                f"report       refused by the broker: {self.link.report_refused}; is its user {self.device}?"
            )
        if not self.clock_is_trusted:
            lines.append("clock        behind what the publisher has said; expiry is not enforced")
        for namespace in self.namespaces:
            lines += _namespace_lines(namespace, self.now)
        if not self.namespaces:
            lines.append("flags        no namespace is configured")
        return tuple(lines)


@dataclass(frozen=True, slots=True)
class Caught:
    """How far an agent came that was asked to be up to date: `why` it is not, a line each; none when it is."""

    why: tuple[str, ...]
    status: Status

    @property
    def is_current(self) -> bool:
        """Whether it is up to date."""
        return not self.why

    def as_json(self) -> dict[str, object]:
        """A dictionary that `json` can write."""
        return {"is_current": self.is_current, "why": list(self.why), "status": self.status.as_json()}


@dataclass(frozen=True, slots=True)
class Activity:
    """What happened since the agent started: connections to the broker, and refused messages by the name of the attack.

    Bytes are those of MQTT on the link, without what WebSocket, TLS, TCP and IP add.
    """

    connections: int
    rejections: Mapping[str, int]
    received_bytes: int = 0
    sent_bytes: int = 0


_LAST_WRITABLE: Final = 253_402_300_799
# 9999-12-31T23:59:59Z: RFC 3339 has years of four digits; an expiry beyond them is allowed on the wire.


def _namespace_json(status: NamespaceStatus) -> dict[str, object]:
    is_known = status.freshness != "never synced"
    rejection = status.last_rejection
    return {
        "namespace": status.namespace,
        "freshness": status.freshness,
        "epoch": status.epoch if is_known else None,
        "version": status.version if is_known else None,
        "digest": status.digest or None,
        "issued": _instant(status.issued),
        "expires": _instant(status.expires),
        "age_seconds": status.age if is_known else None,
        "flags": status.flags,
        "last_rejection": None
        if rejection is None
        else {"attack": rejection.attack, "why": rejection.why, "at": _instant(rejection.at)},
    }


def _namespace_lines(status: NamespaceStatus, now: int) -> list[str]:
    if status.freshness == "never synced":
        lines = [f"{status.namespace:<12} never synced"]
    else:
        left = status.expires - status.issued - status.age
        expiry = f"expires in {_span(left)}" if left > 0 else f"expired {_span(-left)} ago"
        known = f"version {status.version} of epoch {status.epoch}, {status.flags} flags"
        lines = [
            f"{status.namespace:<12} {status.freshness}: {known}, issued {_span(status.age)} ago, {expiry}",
            f"{'':<12} content {status.digest[:16]}",
        ]
    if status.last_rejection is not None:
        rejection = status.last_rejection
        lines.append(
            f"{'':<12} last rejected {_span(now - rejection.at)} ago: {rejection.attack}: {rejection.why}"
        )
    return lines


def _instant(seconds: int) -> str | None:
    if seconds > _LAST_WRITABLE:
        return str(seconds)
    return format_instant(Instant(seconds, 0)) if seconds else None


def _span(seconds: int) -> str:
    """A span as people say it, in its two largest units: "3 d 4 h", "12 min 5 s", "0 s"."""
    rest = max(0, seconds)
    amounts: list[tuple[int, str]] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        amount, rest = divmod(rest, size)
        if amount or amounts or unit == "s":
            amounts.append((amount, unit))
    first, *others = amounts[:2]
    return " ".join(f"{amount} {unit}" for amount, unit in [first, *(other for other in others if other[0])])
