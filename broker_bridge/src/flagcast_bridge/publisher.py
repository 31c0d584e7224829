"""The shell that publishes: reads what is live, lets the planner decide, signs, publishes, reads back, remembers.

The order is what keeps devices from ever seeing half a truth, whenever this process ends:

1. What stands on the broker is read and verified against the project's own roots, as a device would.
2. The planner decides; numbers are reserved in the ledger before anything that carries them is sent.
3. Snapshot parts and deltas are published and read back, byte for byte.
4. Heads are published and read back. From here on devices act.
5. The ledger notes them as published.
6. What no head names any more is cleared.
"""

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from flagcast_shared import trust
from flagcast_shared.context import Device
from flagcast_shared.errors import FlagcastError, InvalidConfiguration, InvalidInput, Refused
from flagcast_shared.ids import DeviceId, Environment, Epoch, Namespace, parse_environment
from flagcast_shared.messages import Head
from flagcast_shared.model import Entry
from flagcast_shared.root import Quorum, Role, Root, encode_root, root_place
from flagcast_shared.topics import Address, HeadAddress, RootAddress, SnapshotAddress

from . import clock, mqtt, project, signer
from .ledger import Ledger, lease
from .planner import Draft, Issued, Live, Plan, Terms, obsolete, plan
from .project import Project
from .signer import Signer

ROOT_NAME: Final = "root"
PUBLISHER_NAME: Final = "publisher"

_EXPIRY_UNCHECKED: Final = 0
# Judged at this time, before any root was made, expiry is not checked: an expired head is still what stands there.


class ProjectOutdated(FlagcastError):
    """The broker shows a root that follows the project's last one: somebody else rotated keys."""


@dataclass(frozen=True, slots=True)
class OnBroker:
    """Everything retained under the environment's topics, verified. What is not believed stands in `refused`, with the reason."""

    root: Root
    messages: Mapping[Address, bytes]
    live: Mapping[Namespace, Live]
    refused: Mapping[Address, Refused]
    foreign: tuple[str, ...]
    """Topics under ours that are of no known kind."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What shall be live. Namespaces in neither `entries` nor `remove` are left alone; those in `remove` become empty."""

    entries: Mapping[Namespace, tuple[Entry, ...]]
    provenance: Mapping[str, str]
    remove: frozenset[Namespace] = frozenset()
    forces_refresh: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did, or would do. `left_alone` are namespaces that are live or were, and that the flags no longer name."""

    plans: tuple[Plan, ...]
    left_alone: tuple[Namespace, ...]
    cleared: int = 0


def found(folder: Path, environment: str, broker_url: str, prefix: str = "flagcast") -> Project:
    """Make a new project with new keys and its first root. Nothing that exists is overwritten, nothing half-made is left.

    Raises:
        InvalidInput: a name or URL that is not allowed, or something of a project is already there.
    """
    text = project.template(parse_environment(environment), broker_url, prefix)
    root_signer, publisher_signer = signer.create(ROOT_NAME), signer.create(PUBLISHER_NAME)
    with project.founding(folder, text) as new:
        root_signer.save(new.root_key)
        publisher_signer.save(new.publisher_key)
        project.write_root(new, 1, _first_root(new, root_signer, publisher_signer, clock.now()))
    return project.load(folder)


def read_broker(settings: Project) -> OnBroker:
    """What is live, verified. Needs no signing key and no ledger. Raises BrokerError, InvalidConfiguration."""
    roots = project.read_roots(settings)
    with _connect(settings) as connection:
        return _read(settings, roots, connection)


def preview(settings: Project, wanted: Wanted, *, say: Callable[[str], None]) -> Outcome:
    """What `publish` would do. Writes nothing, needs no signing key, and keeps nobody from publishing.

    Raises:
        BrokerError, LedgerError, InvalidInput, ProjectOutdated
    """
    roots = project.read_roots(settings)
    with _connect(settings) as connection:
        seen = _read(settings, roots, connection)
    issued: Mapping[Namespace, Issued] = {}
    if settings.ledger.exists():
        with closing(Ledger(settings.ledger, settings.environment)) as ledger:
            issued = ledger.issued()
    return _decide(settings, wanted, seen, issued, now=clock.now(), say=say)


def publish(
    settings: Project, wanted: Wanted, *, say: Callable[[str], None], show: Callable[[Plan], None]
) -> Outcome:
    """Bring the broker to what is wanted. `show` is given every plan before anything is sent, `say` what is noteworthy.

    Raises:
        BrokerError, LedgerError, InvalidInput, ProjectOutdated
    """
    now = clock.now()
    roots = project.read_roots(settings)
    holder = f"process {os.getpid()} on {socket.gethostname()}, since {clock.as_text(now)}"
    with (
        lease(settings.ledger, holder),
        closing(Ledger(settings.ledger, settings.environment)) as ledger,
        _connect(settings) as connection,
    ):
        seen = _read(settings, roots, connection)
        signers = _signers(settings, seen.root)
        for namespace, live in seen.live.items():
            # A head that a run before this one published and could not note down any more.
            ledger.confirm(namespace, live.head.sequence, live.head.stable.digest, now)
        outcome = _decide(settings, wanted, seen, ledger.issued(), now=now, say=say)
        for each in outcome.plans:
            show(each)
        ledger.reserve(outcome.plans, now)
        threshold = seen.root.roles[Role.PUBLISHER].threshold
        first: dict[Address, bytes] = {
            RootAddress(number): data
            for number, data in enumerate(roots, 1)
            if seen.messages.get(RootAddress(number)) != data
        }
        first |= _signed([draft for each in outcome.plans for draft in each.body], signers, threshold)
        _keep(settings, connection, first)
        heads = [each.head_draft for each in outcome.plans if each.head_draft is not None]
        _keep(settings, connection, _signed(heads, signers, threshold))
        for each in outcome.plans:
            ledger.confirm(each.namespace, each.head.sequence, each.head.stable.digest, clock.now())
        left = obsolete((each.head for each in outcome.plans), seen.messages)
        connection.publish([(settings.topics.of(address), b"") for address in left])
        return replace(outcome, cleared=len(left))


def _decide(
    settings: Project,
    wanted: Wanted,
    seen: OnBroker,
    issued: Mapping[Namespace, Issued],
    *,
    now: int,
    say: Callable[[str], None],
) -> Outcome:
    for line in _warnings(settings, seen, issued, now):
        say(f"warning: {line}")
    for namespace in sorted(wanted.remove):
        if namespace in wanted.entries:
            raise InvalidInput(f"--remove {namespace}: the flags to be published hold this namespace")
        if namespace not in seen.live and namespace not in issued:
            raise InvalidInput(f"--remove {namespace}: it was never published")
    terms = Terms(
        settings.environment,
        seen.root.epoch,
        now,
        settings.head_lifetime,
        settings.message_limit,
        seen.root.roles[Role.PUBLISHER].threshold,
        wanted.provenance,
        wanted.forces_refresh,
    )
    goal: dict[Namespace, tuple[Entry, ...]] = {**wanted.entries, **dict.fromkeys(wanted.remove, ())}
    plans = tuple(
        plan(name, entries, seen.live.get(name), issued.get(name, Issued()), terms)
        for name, entries in sorted(goal.items())
    )
    return Outcome(plans, tuple(sorted((seen.live.keys() | issued.keys()) - goal.keys())))


def _warnings(
    settings: Project, seen: OnBroker, issued: Mapping[Namespace, Issued], now: int
) -> Iterator[str]:
    if now < seen.root.issued:
        yield f"this machine's clock ({clock.as_text(now)}) is before the root was made"
    if now >= seen.root.expires:
        yield f"root {seen.root.number} expired at {clock.as_text(seen.root.expires)}; devices take nothing new"
    for address, error in seen.refused.items():
        topic = settings.topics.of(address)
        yield f"{topic} on the broker is not believed ({error.attack}): {error}; numbers go on without it"
    for topic in seen.foreign:
        yield f"{topic!r} on the broker is no topic of ours; it is left alone"
    for namespace, live in seen.live.items():
        known = issued.get(namespace, Issued())
        number, version = live.head.sequence, live.head.stable.version
        if number > known.sequence:
            yield (
                f"{namespace}: head {number} is live, and the ledger knows of {known.sequence or 'none'}; another publisher, "
                "or a ledger that was lost; numbers go on above it"
            )
        if live.head.issued > now:
            yield f"{namespace}: its head was issued {live.head.issued - now} s after this machine's time"
        if known.published is not None and version < known.published.version:
            yield (
                f"{namespace}: the broker shows version {version}, {known.published.version} was published; "
                "it was restored from an older state"
            )


def _keep(settings: Project, connection: mqtt.Connection, messages: Mapping[Address, bytes]) -> None:
    # Published, and seen to be there by reading it back: a PUBACK alone says neither retained nor permitted.
    if not messages:
        return
    by_topic = {settings.topics.of(address): data for address, data in messages.items()}
    connection.publish(list(by_topic.items()))
    wrong = connection.read_back(by_topic)
    if wrong:
        topic, found_there = next(iter(wrong.items()))
        instead = "nothing" if found_there is None else f"{len(found_there)} other bytes"
        more = f" (and {len(wrong) - 1} more topics)" if len(wrong) > 1 else ""
        raise mqtt.NotRetained(
            f"{connection.where}: the broker acknowledged {topic} and returns {instead}{more}; check that this user may "
            "publish and read there, and the broker's limits on retained messages"
        )


def _signers(settings: Project, root: Root) -> list[Signer]:
    path = settings.publisher_key
    loaded = signer.load(path, PUBLISHER_NAME)
    if loaded.public.id not in root.roles[Role.PUBLISHER].keys:
        raise InvalidConfiguration(
            f"{path}: root {root.number} does not name this key as a publisher's; devices would refuse what it signs"
        )
    return [loaded]


def _connect(settings: Project) -> mqtt.Connection:
    broker = settings.broker
    login = mqtt.Login(
        broker.user,
        project.read_password(broker),
        broker.uses_tls,
        broker.ca_file,
        broker.cert_file,
        broker.key_file,
    )
    return mqtt.connect(broker.host, broker.port, login, protocol=broker.protocol)


def _read(settings: Project, roots: tuple[bytes, ...], connection: mqtt.Connection) -> OnBroker:
    topics = settings.topics
    messages: dict[Address, bytes] = {}
    foreign = []
    for topic, data in sorted(connection.read_all([topics.all_roots(), topics.all_flags()]).items()):
        address = topics.address(topic)
        if address is None:
            foreign.append(topic)
        elif data:  # an empty one is a topic that was cleared while we looked
            messages[address] = data
    trusted, refused = _walk_roots(settings.environment, roots, messages)
    live: dict[Namespace, Live] = {}
    for address in [address for address in messages if isinstance(address, HeadAddress)]:
        seen = _verify(trusted, address, messages, refused)
        if seen is not None:
            live[address.namespace] = seen
    return OnBroker(trusted.root, messages, live, refused, tuple(foreign))


def _walk_roots(
    environment: Environment, roots: tuple[bytes, ...], messages: Mapping[Address, bytes]
) -> tuple[trust.Trusted, dict[Address, Refused]]:
    try:
        trusted = trust.begin(environment, Device(DeviceId(PUBLISHER_NAME)), roots[0])
        for number, data in enumerate(roots[1:], 2):
            trusted, _ = trust.admit(trusted, RootAddress(number), data, now=_EXPIRY_UNCHECKED)
    except Refused as error:
        raise InvalidConfiguration(
            f"{project.ROOTS_NAME}: the project's own roots do not verify: {error}"
        ) from error
    refused: dict[Address, Refused] = {}
    successor = RootAddress(trusted.root.number + 1)
    if successor in messages:
        try:
            trust.admit(trusted, successor, messages[successor], now=_EXPIRY_UNCHECKED)
        except Refused as error:
            refused[successor] = error
        else:
            raise ProjectOutdated(
                f"the broker shows root {successor.number}, which follows this project's root {trusted.root.number}; copy it "
                f"into {project.ROOTS_NAME}/ from where it was made"
            )
    return trusted, refused


def _verify(
    trusted: trust.Trusted,
    address: HeadAddress,
    messages: Mapping[Address, bytes],
    refused: dict[Address, Refused],
) -> Live | None:
    # As a device with empty hands would: the head first, then the parts that it names.
    try:
        trusted, outcome = trust.admit(trusted, address, messages[address], now=_EXPIRY_UNCHECKED)
    except Refused as error:
        refused[address] = error
        return None
    namespace = address.namespace
    head: Head = trusted.pending[namespace].head
    if not isinstance(outcome, trust.Wanted) or outcome.offering != head.stable:
        return Live(head, None)
    for part in range(head.stable.parts):
        at = SnapshotAddress(namespace, head.stable.version, part)
        if at not in messages:
            continue
        try:
            trusted, outcome = trust.admit(trusted, at, messages[at], now=_EXPIRY_UNCHECKED)
        except Refused as error:
            refused[at] = error
            return Live(head, None)
        if isinstance(outcome, trust.AdmittedUpdate):
            return Live(head, outcome.changed)
    return Live(head, None)


def _signed(drafts: Iterable[Draft], signers: list[Signer], threshold: int) -> dict[Address, bytes]:
    return {
        draft.address: signer.sign_message(draft.payload, draft.place, signers, threshold) for draft in drafts
    }


def _first_root(settings: Project, root_signer: Signer, publisher_signer: Signer, now: int) -> bytes:
    keys = {each.public.id: each.public for each in (root_signer, publisher_signer)}
    root = Root(
        settings.environment,
        1,
        Epoch(1),
        now,
        now + settings.root_lifetime,
        keys,
        {
            Role.ROOT: Quorum(frozenset({root_signer.public.id}), 1),
            Role.PUBLISHER: Quorum(frozenset({publisher_signer.public.id}), 1),
        },
    )
    return signer.sign_message(encode_root(root), root_place(settings.environment), [root_signer], 1)
