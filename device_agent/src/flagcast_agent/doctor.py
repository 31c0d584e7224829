"""What is wrong with this device's agent, and what to do: one check after the other, each with its own line.

It changes nothing, needs no running agent, and harms none that runs: where an agent says that it is connected, its word is
taken instead of a connection that would end its own.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from flagcast_shared.errors import FlagcastError, Freeze, InvalidConfiguration, Refused
from flagcast_shared.ids import Epoch
from flagcast_shared.literals import format_instant
from flagcast_shared.model import Instant
from flagcast_shared.reports import Report, encode_report
from flagcast_shared.root import Root
from flagcast_shared.topics import DeviceAddress, Topics
from flagcast_shared.trust import anchor, floor_from_disk

from . import clock, config, mqtt
from .config import AgentConfig, BrokerConfig
from .status import Status
from .store.errors import StoreError, StoreUnreadable
from .store.reader import Reader
from .sync.time_floor import TimeFloor

Verdict = Literal["ok", "warning", "failed"]

FREE_LOW_BYTES: Final = 64 * 1024 * 1024
"""The largest content of one namespace, twice: as it stands and as it is replaced."""
FREE_NONE_BYTES: Final = 2 * 1024 * 1024
"""Below this a write-ahead log of a few updates may not find room."""
ROOT_SOON_SECONDS: Final = 60 * 86_400
"""So long before a root expires its publisher should have made the next one."""
_LAST_YEAR: Final = 253_402_300_799


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was found and, unless it is ok, what to do."""

    check: str
    verdict: Verdict
    found: str
    do: str = ""

    def as_json(self) -> dict[str, object]:
        """A dictionary that `json` can write."""
        return {"check": self.check, "verdict": self.verdict, "found": self.found, "do": self.do or None}

    def as_text(self) -> str:
        """One line for people."""
        return f"{self.verdict:<8} {self.check:<14} {self.found}" + (f"; {self.do}" if self.do else "")


def examine(folder: Path) -> Iterator[Finding]:
    """Every check of a provisioned folder, in an order in which the first failure is most often the cause of the others."""
    try:
        settings = config.load(folder)
    except InvalidConfiguration as error:
        yield Finding("configuration", "failed", str(error), "correct it, or provision the device")
        return
    yield Finding(
        "configuration",
        "ok",
        f"{settings.device.id} in {settings.environment}, {_count(settings.namespaces, 'namespace')}",
    )
    in_force: Root | None = None
    try:
        in_force = anchor(config.read_anchor(settings.anchor), settings.environment)
    except (InvalidConfiguration, Refused) as error:
        yield Finding(
            "anchor", "failed", f"{settings.anchor}: {error}", "put the publisher's newest root there again"
        )
    else:
        yield Finding("anchor", "ok", _root(in_force))
    yield from _database(settings)
    floor, epochs, now = TimeFloor(boot=clock.boot_id()), frozenset[Epoch](), clock.now()
    try:
        saved, root_data, epochs = Reader(settings.store).belief()
        floor = floor.resume(saved, clock.monotonic())
        if root_data is not None:
            walked = anchor(root_data, settings.environment)
            in_force = walked if in_force is None or walked.number > in_force.number else in_force
    except (StoreError, Refused):
        pass  # said above
    if in_force is not None:
        learn = floor.learn if in_force.epoch in epochs else floor.begin_afresh
        floor = learn(floor_from_disk(in_force, floor.time, epochs), clock.monotonic())
        # Where the device's own clock is trusted, it is what admission goes by.
        believed = now if floor.allows(now) else floor.now(now, clock.monotonic())
        yield _expiry(in_force, believed, is_enforced=floor.allows(now))
    yield _clock(floor, now)
    yield from _permissions(settings)
    yield _room(settings)
    status, finding = _agent(settings)
    yield finding
    if status is not None:
        yield from _readiness(status)
    if status is not None and status.link.is_connected:
        yield Finding(
            "broker", "ok", f"the agent is connected to {settings.broker.host}:{settings.broker.port}"
        )
        if status.link.report_refused:
            found = f"refused by the broker: {status.link.report_refused}; the publisher does not hear of this device"
            do = f"give this device an account of its own, whose user (or certificate's name) is {status.device}"
            yield Finding("report", "failed", found, do)
    else:
        yield from _broker(settings)


def _clock(floor: TimeFloor, now: int) -> Finding:
    if not floor.allows(now):
        found = f"{_instant(now)} is before {_instant(floor.time)}, which the publisher has signed"
        do = "set the device's clock; until then expiry is not enforced"
        return Finding("clock", "warning", found, do)
    return Finding("clock", "ok", _instant(now))


def _root(root: Root) -> str:
    return f"root {root.number}, epoch {root.epoch}, issued {_instant(root.issued)}"


def _expiry(root: Root, now: int, *, is_enforced: bool) -> Finding:
    found = f"{_root(root)}, expires {_instant(root.expires)}"
    if now >= root.expires and not is_enforced:
        found += ": by now, if what the publisher has signed is true"
        return Finding("root in force", "warning", found, "look at the clock below")
    if now >= root.expires:
        return Finding(
            "root in force",
            "failed",
            f"{found}: nothing new is admitted",
            "is the clock below right? If it is, the publisher makes a new root",
        )
    if root.expires - now < ROOT_SOON_SECONDS:
        return Finding("root in force", "warning", f"{found}: soon", "the publisher makes a new root in time")
    return Finding("root in force", "ok", found)


def _database(settings: AgentConfig) -> Iterator[Finding]:
    path, reader = settings.store, Reader(settings.store)
    if not path.exists():
        yield Finding("database", "warning", f"{path}: there is none yet", "start the agent")
        return
    try:
        damages = reader.damages()
        seen = reader.look({})
    except StoreUnreadable as error:
        yield Finding("database", "failed", str(error), "run this as the agent's user")
        return
    except StoreError as error:
        yield Finding("database", "failed", str(error))
        return
    finally:
        reader.close()
    if damages:
        do = "look for what damages the storage, then start the agent with --recover"
        yield Finding("database", "failed", f"{path}: {damages[0]}", do)
        return
    holdings = seen.holdings if seen is not None else ()
    records = sum(len(held.records or ()) for held in holdings)
    yield Finding("database", "ok", f"sound; {_count(holdings, 'namespace')}, {records} records")


def _permissions(settings: AgentConfig) -> Iterator[Finding]:
    # Whoever may write the folder or the anchor decides what the device believes; whoever may read a key may be the device.
    broker = settings.broker
    guarded = [
        settings.folder,
        settings.store.parent,
        settings.anchor,
        settings.folder / config.CONFIG_NAME,
        settings.store,
    ]
    problems = []
    for path in dict.fromkeys(guarded):
        mode = _mode(path)
        if mode is not None and mode & stat.S_IWOTH:
            problems.append((f"every user may write {path}", f"chmod o-w {path}"))
    for secret in (broker.password_file, broker.key_file):
        if secret is None:
            continue
        mode = _mode(secret)
        if mode is None:
            problems.append((f"{secret} cannot be read", "put it there, readable for the agent's user"))
        elif mode & stat.S_IROTH:
            problems.append((f"every user may read {secret}", f"chmod o-r {secret}"))
    if not os.access(settings.store.parent, os.W_OK):
        problems.append(
            (
                f"this user may not write {settings.store.parent}",
                "fine for another user than the agent's; else chown it",
            )
        )
    for found, do in problems:
        is_grave = found.startswith("every user")
        yield Finding("permissions", "failed" if is_grave else "warning", found, do)
    if not problems:
        yield Finding("permissions", "ok", f"{settings.folder} and what stands in it")


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except OSError:
        return None


def _room(settings: AgentConfig) -> Finding:
    folder = settings.store.parent
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        return Finding("disk", "failed", f"{folder}: {error.strerror}", "make the folder")
    if disk.f_flag & os.ST_RDONLY:
        return Finding(
            "disk", "failed", f"{folder} is on a read-only disk; nothing new is admitted", "make it writable"
        )
    free = disk.f_bavail * disk.f_frsize
    found = f"{free // 2**20} MB free at {folder}"
    if free < FREE_NONE_BYTES:
        return Finding("disk", "failed", found, "make room; until then nothing new is admitted")
    if free < FREE_LOW_BYTES:
        return Finding("disk", "warning", found, "make room")
    return Finding("disk", "ok", found)


def _agent(settings: AgentConfig) -> tuple[Status | None, Finding]:
    from .api.local import LocalClient

    try:
        status = LocalClient(settings.socket).status()
    except FlagcastError as error:
        return None, Finding("agent", "failed", str(error))
    if status.device != settings.device.id:
        found = f"the agent at {settings.socket} is {status.device}'s"
        return None, Finding("agent", "failed", found, "give each agent a socket of its own")
    return status, Finding("agent", "ok", f"{status.agent_version} answers at {settings.socket}")


def _readiness(status: Status) -> Iterator[Finding]:
    for namespace in status.namespaces:
        name = f"flags {namespace.namespace}"
        rejection = namespace.last_rejection
        if namespace.freshness == "never synced":
            do = "look at the broker below; is the namespace published?"
            yield Finding(name, "failed", "never synced: applications get their defaults", do)
        elif namespace.freshness == "stale":
            do = "the publisher renews heads with: flagcast publish"
            yield Finding(
                name, "warning", f"version {namespace.version}, expired {_instant(namespace.expires)}", do
            )
        else:
            yield Finding(
                name, "ok", f"version {namespace.version}, fresh until {_instant(namespace.expires)}"
            )
        if rejection is not None:
            found = f"last rejected {_instant(rejection.at)}: {rejection.attack}: {rejection.why}"
            do = "docs/operations.md explains each word"
            if rejection.attack == Freeze.attack:
                do = "is the clock above right? If it is, the publisher renews heads with: flagcast publish"
            yield Finding(name, "warning", found, do)


def _broker(settings: AgentConfig) -> Iterator[Finding]:
    broker, device = settings.broker, settings.device.id
    topic = Topics(settings.prefix, settings.environment).of(DeviceAddress(device, "report"))
    will = encode_report(Report(clock.session_number(), 0, is_online=False))
    for probed in mqtt.probe(broker, f"flagcast-{device}", topic, will):
        check = f"broker {probed.step}"
        if probed.problem:
            yield Finding(
                check, "failed", f"{broker.host}:{broker.port}: {probed.problem}", _BROKER_ADVICE[probed.step]
            )
        else:
            yield Finding(check, "ok", _reached(probed.step, broker))


_BROKER_ADVICE: Final = {
    "name": "correct broker.url, or the device's name server",
    "port": "is the broker up, is the port right, does a firewall stand between?",
    "tls": "check broker.ca_file, broker.cert_file, broker.key_file, the name in broker.url and the clock",
    "login": "check broker.user, broker.password_file, broker.protocol and the broker's access rights",
}


def _reached(step: str, broker: BrokerConfig) -> str:
    match step:
        case "name":
            return f"{broker.host} is known"
        case "port":
            return f"port {broker.port} is open"
        case "tls":
            return "the certificate is trusted"
        case _:
            return "the broker lets this device in"


def _count(things: Iterable[object], word: str) -> str:
    count = len(tuple(things))
    return f"{count} {word}" + ("" if count == 1 else "s")


def _instant(seconds: int) -> str:
    return format_instant(Instant(min(seconds, _LAST_YEAR), 0))
