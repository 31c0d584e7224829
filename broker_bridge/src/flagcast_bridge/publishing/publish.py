"""The shell that publishes: reads what is live, lets the planner decide, signs, publishes, reads back, remembers.

The order is what keeps devices from ever seeing half a truth, whenever this process ends:

1. What stands on the broker is read and verified against the project's own roots, as a device would.
2. The planner decides; numbers are reserved in the ledger before anything that carries them is sent.
3. Snapshot parts and deltas are published and read back, byte for byte.
4. Heads are published and read back. From here on devices act.
5. The ledger notes them as published, and keeps the messages.
6. What no head names any more is cleared, once devices that were fetching it have had time to.
"""

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from flagcast_bridge import clock, project
from flagcast_bridge.broker import connection as mqtt
from flagcast_bridge.flags import describe
from flagcast_bridge.ledger.ledger import (
    LEASE_STOP_SECONDS,
    RECOVERY_MARGIN,
    Ledger,
    LedgerBusy,
    LedgerError,
    existing,
)
from flagcast_bridge.ledger.ledger import Entry as LedgerEntry
from flagcast_bridge.planning.fleet import RECOVERY_BOUND, Claim, Fleet, Numbers, Published, claims, gather
from flagcast_bridge.planning.plan import (
    Content,
    Draft,
    Issued,
    Live,
    Plan,
    PlanRefused,
    Stage,
    Terms,
    named,
    newest_head,
    obsolete,
    plan,
    plan_abort,
    plan_candidate,
    plan_promote,
    plan_rollback,
    plan_share,
    plan_upkeep,
    renew_at,
    top_version,
)
from flagcast_bridge.project import Project
from flagcast_bridge.signing import ceremony, keychain, signer
from flagcast_bridge.signing.ceremony import Ceremony, CeremonyRefused, Subject
from flagcast_bridge.signing.passphrase import Unlock, from_environment
from flagcast_bridge.signing.signer import Signer
from flagcast_bridge.sources import git
from flagcast_shared import trust
from flagcast_shared.envelope import open_envelope
from flagcast_shared.errors import FlagcastError, InvalidConfiguration, InvalidInput, Refused
from flagcast_shared.ids import (
    DeviceId,
    Environment,
    Epoch,
    FlagKey,
    Namespace,
    RecordId,
    Version,
    parse_environment,
)
from flagcast_shared.ids import Sequence as HeadSequence
from flagcast_shared.keyring import verify
from flagcast_shared.limits import MESSAGE_MAX_BYTES, NUMBER_MAX
from flagcast_shared.messages import Head, Offering, Place
from flagcast_shared.model import BooleanFlag, Entry
from flagcast_shared.records import Record
from flagcast_shared.reports import Report, decode_report
from flagcast_shared.root import Quorum, Role, Root, encode_root, root_place
from flagcast_shared.topics import (
    Address,
    DeltaAddress,
    DeviceAddress,
    HeadAddress,
    Kind,
    RootAddress,
    SnapshotAddress,
)

LEASE_PATIENCE_SECONDS: Final = 90.0
"""How long publishing waits for another bridge to end unless told otherwise: a turn of flagcast serve beside it takes a few
seconds, the lease of one that froze ends after LEASE_SECONDS."""
LEASE_POLL_SECONDS: Final = 0.2
ROOT_WARNING_SECONDS: Final = 90 * 86_400
"""How long before the root expires every run says so: its keys are in safes, and people take holidays."""
ROOT_NAME: Final = "root"
PUBLISHER_NAME: Final = "publisher"

_NAMED_MAX: Final = 3
# Of devices or namespaces, so many stand in a line.
_LYING: Final = "reports are unsigned: publish.ignored_reports leaves out a device that lies"
_PREPARE_ANEW: Final = "prepare it anew"
_COMMIT: Final = "commit"
# The name in a provenance under which a commit of git stands.
_EXPIRY_UNCHECKED: Final = 0
# Judged at this time, before any root was made, expiry is not checked: an expired head is still what stands there.


class ProjectOutdated(FlagcastError):
    """The broker shows a root that follows the project's last one: somebody else rotated keys."""


class LedgerMissing(FlagcastError):
    """A ledger that has issued nothing, beside a broker that shows what these keys have published."""


class NumbersUnknown(FlagcastError):
    """Numbers that devices hold and this ledger does not know; the text says of which device, and what to do."""


class RootExpired(FlagcastError):
    """The root in force has expired, and devices take nothing new under it."""


class RemovalNotAgreed(FlagcastError):
    """The flags would remove much of a namespace, and nobody agreed to that; nothing was sent. `removals` is what would go."""

    def __init__(self, text: str, removals: frozenset[tuple[Namespace, RecordId]]) -> None:
        super().__init__(text)
        self.removals = removals


@dataclass(frozen=True, slots=True)
class OnBroker:
    """Everything retained under the environment's topics, verified. What is not believed stands in `refused`, with the reason."""

    trusted: trust.Trusted
    messages: Mapping[Address, bytes]
    live: Mapping[Namespace, Live]
    refused: Mapping[Address, Refused]
    foreign: tuple[str, ...]
    """Topics under ours that are of no known kind."""
    needs_names: bool = False
    """Whether the broker keeps what is retained from subscriptions with wildcards, so that only what is known is seen."""

    @property
    def root(self) -> Root:
        """The root in force."""
        return self.trusted.root


@dataclass(frozen=True, slots=True)
class Wanted:
    """What shall be live. Namespaces in neither `entries` nor `remove` are left alone; those in `remove` become empty.

    With a `stage` it becomes the candidate of a staged rollout. `written_off` are boolean flags that somebody means to be off.
    `agreed` are flags that may go even where much of a namespace goes with them, None for any; `path` is where they come from.
    """

    entries: Mapping[Namespace, tuple[Entry, ...]]
    provenance: Mapping[str, str]
    remove: frozenset[Namespace] = frozenset()
    forces_refresh: bool = False
    stage: Stage | None = None
    written_off: frozenset[tuple[Namespace, FlagKey]] = frozenset()
    agreed: frozenset[tuple[Namespace, RecordId]] | None = frozenset()
    path: Path | None = None


class Step(StrEnum):
    """What becomes of a staged rollout."""

    SHARE = "share"
    PROMOTE = "promote"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class Rollout:
    """A step of the staged rollouts of these namespaces, or of all that are on. `share` is hundredths of a percent."""

    step: Step
    namespaces: frozenset[Namespace] = frozenset()
    share: int = 0


@dataclass(frozen=True, slots=True)
class Rollback:
    """An old content again: that of a version, or the one before what is published. The only namespace, if none is named."""

    namespace: Namespace | None = None
    version: Version | None = None


Order = Wanted | Rollout | Rollback


@dataclass(frozen=True, slots=True)
class StillTrue:
    """A boolean flag that somebody turned off and that its rollouts still make true, for whom in words."""

    namespace: Namespace
    flag: FlagKey
    whom: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did, or would do. `left_alone` are namespaces that are live or were, and that the flags no longer name."""

    plans: tuple[Plan, ...]
    left_alone: tuple[Namespace, ...] = ()
    cleared: int = 0
    roots: tuple[int, ...] = ()
    """The numbers of roots that the broker did not have and has now."""
    still_true: tuple[StillTrue, ...] = ()


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """What a namespace's devices are told. `since` is when (Unix seconds) the candidate was published, as the ledger knows it.

    `share_before` is the last share, in hundredths of a percent, that was not a pause.
    """

    namespace: Namespace
    head: Head
    since: int | None = None
    share_before: int | None = None

    @property
    def is_paused(self) -> bool:
        """Whether a candidate is out and no further device takes it."""
        return self.head.candidate is not None and self.head.candidate.share == 0


@dataclass(frozen=True, slots=True)
class Recovered:
    """One namespace whose numbers go on above `after`. `before` is what ledger and broker knew."""

    namespace: Namespace
    before: Numbers
    after: Numbers


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn of upkeep did and found.

    `put_back` were lost or aged and are there again; `standing` is what the broker shows at the topics of roots and heads when it
    is done; `due` is when (Unix seconds) the next head is to be renewed or the next old message to be cleared.
    """

    plans: tuple[Plan, ...]
    put_back: tuple[Address, ...]
    cleared: int
    standing: Mapping[str, bytes]
    due: int | None


@dataclass(frozen=True, slots=True)
class Released:
    """What became of a release that several people signed."""

    heads: tuple[Head, ...]
    cleared: int
    roots: tuple[int, ...] = ()


def found(
    folder: Path,
    environment: str,
    broker_url: str,
    prefix: str = "flagcast",
    *,
    passphrase: bytes | None = None,
) -> Project:
    """Make a new project with new keys and its first root. Nothing that exists is overwritten, nothing half-made is left.

    With a passphrase both keys are encrypted under it.

    Raises:
        InvalidInput: a name or URL that is not allowed, or something of a project is already there.
    """
    text = project.template(parse_environment(environment), broker_url, prefix)
    root_signer, publisher_signer = signer.create(ROOT_NAME), signer.create(PUBLISHER_NAME)
    with project.founding(folder, text) as new:
        for path, made in ((new.root_key, root_signer), (new.publisher_key, publisher_signer)):
            signer.save_public(made.public, path)
            made.save(path, passphrase)
        project.write_root(new, 1, _first_root(new, root_signer, publisher_signer, clock.now()))
    return project.load(folder)


def read_broker(settings: Project) -> OnBroker:
    """What is live, verified. Needs no signing key; the ledger, where it can be read, names what to ask a broker for that shows
    nothing to a subscription with wildcards.

    Raises:
        BrokerError, InvalidConfiguration
    """
    roots = project.read_roots(settings)
    known: list[Address] = []
    with suppress(LedgerError, OSError):
        ledger = existing(settings.ledger, settings.environment)
        if ledger is not None:
            with closing(ledger):
                known = ledger.to_ask_for()
    with connect(settings) as connection:
        return _read(settings, roots, connection, known)


def read_rollouts(settings: Project, namespaces: frozenset[Namespace]) -> tuple[RolloutStatus, ...]:
    """What every device is told, and where a staged rollout stands; of these namespaces, or of all.

    Raises:
        BrokerError, LedgerError, InvalidConfiguration, ProjectOutdated
    """
    seen = read_broker(settings)
    issued: Mapping[Namespace, Issued] = {}
    entries: list[LedgerEntry] = []
    ledger = existing(settings.ledger, settings.environment)
    if ledger is not None:
        with closing(ledger):
            issued, entries = ledger.issued(), ledger.entries()
    return tuple(
        _rollout_status(head, entries)
        for name, head in newest_heads(seen, issued)
        if not namespaces or name in namespaces
    )


def preview(
    settings: Project, order: Order, *, say: Callable[[str], None], without_ledger: bool = False
) -> Outcome:
    """What `publish` would do. Writes nothing, needs no signing key, and keeps nobody from publishing.

    Where it would refuse, because its ledger is missing or knows less than devices report, `say` is given the reason.

    Raises:
        BrokerError, LedgerError, InvalidInput, PlanRefused, ProjectOutdated, RootExpired
    """
    roots = project.read_roots(settings)
    with ExitStack() as stack:
        connection = stack.enter_context(connect(settings))
        ledger = existing(settings.ledger, settings.environment)
        if ledger is None:
            seen = _read(settings, roots, connection)
            now, issued = clock.now(), dict[Namespace, Issued]()
        else:
            stack.enter_context(closing(ledger))
            seen = _read(settings, roots, connection, ledger.to_ask_for())
            now, issued = ledger.now(), ledger.issued(epoch=seen.root.epoch)
        outcome = _decide(settings, order, seen, ledger, now=now, say=say, previews=True)
        why = "" if without_ledger or issued else _lacks_ledger(settings, seen, order)
        why = why or _lacks_numbers(settings, seen, issued, outcome.plans, say)
        if why:
            say(f"warning: flagcast publish would refuse this: {why}")
        return outcome


def publish(
    settings: Project,
    order: Order,
    *,
    say: Callable[[str], None],
    show: Callable[[Plan], None],
    unlock: Unlock = from_environment,
    patience: float = LEASE_PATIENCE_SECONDS,
    without_ledger: bool = False,
) -> Outcome:
    """Bring the broker to what is ordered. `show` is given every plan before anything is sent, `say` what is noteworthy.

    `unlock` gives the passphrase of a signing key that has one; for another bridge that is at work it waits `patience` seconds.
    `without_ledger` goes on above what is live where the ledger has issued nothing.

    Raises:
        LedgerMissing, NumbersUnknown: nothing was reserved and nothing sent.
        BrokerError, LedgerError, InvalidInput, PlanRefused, ProjectOutdated, RootExpired
    """
    with _run(settings, patience, say) as run:
        signers = keychain.publishers(settings, run.seen.root, unlock)
        if not without_ledger:
            run.require_ledger(order)
        outcome = _decide(settings, order, run.seen, run.ledger, now=run.now, say=say)
        for each in outcome.plans:
            show(each)
        run.require_known_numbers(outcome.plans, say)
        _require_agreed(order, outcome.plans)
        threshold = run.seen.root.roles[Role.PUBLISHER].threshold
        if len(signers) < threshold and any(each.head_draft is not None for each in outcome.plans):
            raise InvalidConfiguration(
                f"{threshold} publisher keys must sign and {len(signers)} are here; write what is to be signed into a file with "
                "--prepare FILE, and have the others sign it with flagcast keys sign"
            )
        roots = run.carry_out(outcome.plans, signers)
        cleared, _ = run.clear([each.head for each in outcome.plans])
        return replace(outcome, cleared=cleared, roots=roots)


def prepare(
    settings: Project,
    order: Order,
    *,
    say: Callable[[str], None],
    show: Callable[[Plan], None],
    patience: float = LEASE_PATIENCE_SECONDS,
    without_ledger: bool = False,
) -> tuple[Outcome, Ceremony | None]:
    """What `publish` would send, for several people to sign; None where there is nothing. Its numbers are reserved already.

    Raises:
        LedgerMissing, NumbersUnknown: nothing was reserved.
        BrokerError, LedgerError, InvalidInput, PlanRefused, ProjectOutdated, RootExpired
    """
    with _run(settings, patience, say) as run:
        if not without_ledger:
            run.require_ledger(order)
        issued = run.ledger.issued(epoch=run.seen.root.epoch)
        told = {name: head.sequence for name, head in newest_heads(run.seen, issued)}
        outcome = _decide(settings, order, run.seen, run.ledger, now=run.now, say=say)
        for each in outcome.plans:
            show(each)
        _require_agreed(order, outcome.plans)
        drafted = [(each, each.head_draft) for each in outcome.plans if each.head_draft is not None]
        if not drafted:
            return outcome, None
        run.require_known_numbers(outcome.plans, say)
        run.ledger.reserve(outcome.plans, run.now)
        drafts = [draft for each, _ in drafted for draft in each.body] + [head for _, head in drafted]
        base = {each.namespace: told.get(each.namespace, HeadSequence(0)) for each, _ in drafted}
        return outcome, ceremony.of_release(run.seen.root, run.root_data, drafts, base)


def release(
    settings: Project,
    signed: Ceremony,
    *,
    say: Callable[[str], None],
    patience: float = LEASE_PATIENCE_SECONDS,
) -> Released:
    """Publish what enough people have signed, once it is verified as devices would. May be run again after it was ended.

    Raises:
        CeremonyRefused: signatures are missing, or things have moved on since it was prepared; nothing was sent.
        BrokerError, LedgerError, InvalidConfiguration, ProjectOutdated, RootExpired
    """
    if signed.subject is not Subject.RELEASE:
        raise CeremonyRefused("it signs a root; take it into the project with flagcast keys apply")
    if signed.environment != settings.environment:
        raise CeremonyRefused(
            f"it is for environment {signed.environment!r}, and this project is {settings.environment!r}"
        )
    messages = ceremony.sealed(signed)
    with _run(settings, patience, say) as run:
        ceremony.require_issued(signed, run.now, clock.as_text)
        if signed.in_force_data != run.root_data:
            raise CeremonyRefused(
                f"it was signed under root {signed.in_force.number}, and root {run.seen.root.number} is in force; {_PREPARE_ANEW}"
            )
        issued = run.ledger.issued(settings.deltas, epoch=run.seen.root.epoch)
        for line in (*_warnings(settings, run.seen, issued, run.now), *_foreign_heads(run.seen, issued)):
            say(f"warning: {line}")
        if run.now >= run.seen.root.expires:
            raise RootExpired(_root_expired(run.seen.root))
        _require_current(signed, run, issued)
        _require_admissible(run.seen, messages)
        roots = run.send(messages)
        for head in signed.heads:
            run.ledger.confirm(head, run.ledger.now(), run.seen.messages)
        cleared, _ = run.clear(list(signed.heads))
        return Released(signed.heads, cleared, roots)


def recover(
    settings: Project,
    namespaces: frozenset[Namespace],
    *,
    say: Callable[[str], None],
    is_dry: bool = False,
    patience: float = LEASE_PATIENCE_SECONDS,
) -> tuple[Recovered, ...]:
    """Take all numbers that were seen anywhere, and RECOVERY_MARGIN more, in a ledger that was restored from an older state.

    Of every namespace that the ledger knows or the broker shows, and of `namespaces`. What devices report counts up to
    RECOVERY_BOUND above ledger and broker; `say` names the devices beyond. With `is_dry` nothing is taken.

    Raises:
        BrokerError, LedgerError, InvalidConfiguration, ProjectOutdated
        PlanRefused: numbers are used up.
    """
    with _run(settings, patience, say) as run:
        epoch = run.seen.root.epoch
        issued = run.ledger.issued(epoch=epoch)
        known = {
            name: _numbers(name, run.seen, issued)
            for name in issued.keys() | run.seen.live.keys() | namespaces
        }
        members = _read_members(settings, run.seen, say) or {}
        found = claims(members, epoch, known)
        for line in (*_beyond(found), *_of_later_epochs(found, run.seen.root)):
            say(f"warning: {line}")
        others = {name for member in members.values() for name in member.said.applied} - known.keys()
        if others:
            listed = ", ".join(sorted(others)[:_NAMED_MAX])
            say(
                f"devices hold {len(others)} namespaces more of which neither ledger nor broker knows ({listed}); --namespace "
                "NAME recovers one that is yours"
            )
        done = []
        for name, before in sorted(known.items()):
            counted = [
                each.held
                for each in found
                if each.namespace == name and not each.is_beyond and not each.is_of_later_epoch
            ]
            after = Numbers(
                max(before.version, *(each.version for each in counted), 0) + RECOVERY_MARGIN,
                max(before.sequence, *(each.sequence for each in counted), 0) + RECOVERY_MARGIN,
            )
            if max(after.version, after.sequence) >= NUMBER_MAX:
                raise PlanRefused(
                    f"{name}: its numbers are used up; begin the next epoch with flagcast keys rotate publisher"
                )
            if not is_dry:
                run.ledger.recover(
                    name, epoch, Version(after.version), HeadSequence(after.sequence), run.ledger.now()
                )
            done.append(Recovered(name, before, after))
        return tuple(done)


def keep_up(
    settings: Project,
    *,
    say: Callable[[str], None],
    repeats: AbstractSet[Namespace] | None = None,
    unlock: Unlock = from_environment,
) -> Turn:
    """Keep what was published last as it is: put back what the broker lost or aged, renew heads, clear what is old.

    What is put back is the very messages that were published, so that no device has news and no key is needed. Roots, and what
    stands for the namespaces in `repeats`, are published again although they are there: of all where it is empty. What cannot be
    done is said, and the rest is done.

    Raises:
        LedgerBusy: another bridge is at work; it is not waited for.
        BrokerError, LedgerError, InvalidConfiguration, ProjectOutdated
    """
    with _run(settings, 0, say) as run:
        issued = run.ledger.issued(settings.deltas, epoch=run.seen.root.epoch)
        for line in _warnings(settings, run.seen, issued, run.now):
            say(f"warning: {line}")
        for line in _foreign_heads(run.seen, issued):
            say(f"error: {line}")
        run.witness()
        held_up = run.held_up(issued, say)
        put_back = run.put_back(issued, held_up, repeats=repeats, say=say)
        unissued = run.ledger.unissued()
        for name, version in unissued.items():
            live = run.seen.live.get(name)
            if live is None or run.now >= renew_at(live.head):
                say(f"warning: {_taken(name, version)}")
        left_alone = held_up | unissued.keys()
        plans = tuple(_upkeep_plans(settings, run.seen, issued, run.now, say, left_alone=left_alone))
        needs_keys = [each for each in plans if each.head_draft is not None]
        signers = (
            _signers_if_any(settings, run.seen, needs_keys, run.now, say=say, unlock=unlock)
            if needs_keys
            else []
        )
        done = plans if signers else tuple(each for each in plans if each.head_draft is None)
        run.carry_out(done, signers)
        cleared, due = run.clear([each.head for each in done])
        standing = {
            settings.topics.of(address): data
            for address, data in run.seen.messages.items()
            if isinstance(address, HeadAddress | RootAddress)
        }
        moments = [renew_at(each.head) for each in done] + ([due] if due is not None else [])
        # The caller waits by this machine's clock, which need not be the ledger's.
        ahead = clock.now() - run.ledger.now()
        return Turn(done, put_back, cleared, standing, min((at + ahead for at in moments), default=None))


class _Run:
    # One run that holds the ledger and a connection. `seen` is what stands on the broker, also after this run has published.

    def __init__(
        self,
        settings: Project,
        ledger: Ledger,
        connection: mqtt.Connection,
        roots: tuple[bytes, ...],
        now: int,
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.now = now
        self.root_data = roots[-1]
        self._connection = connection
        self._roots = roots
        self.seen = _read(settings, roots, connection, ledger.to_ask_for())
        for live in self.seen.live.values():
            # A head that a run before this one published and could not note down any more.
            ledger.confirm(live.head, now, self.seen.messages if live.is_whole else {})
        self.seen = _compared(self.seen, ledger.kept())

    def carry_out(self, plans: tuple[Plan, ...], signers: Sequence[Signer]) -> tuple[int, ...]:
        """Reserve the plans' numbers, publish what they hold, and note it down; returns the numbers of new roots."""
        self.ledger.reserve(plans, self.now)
        drafts = [draft for each in plans for draft in each.body]
        drafts += [each.head_draft for each in plans if each.head_draft is not None]
        roots = self.send(_signed(drafts, signers, self.seen.root.roles[Role.PUBLISHER].threshold))
        for each in plans:
            self.ledger.confirm(each.head, self.ledger.now(), self.seen.messages, adopts=True)
        return roots

    def send(self, messages: Mapping[Address, bytes]) -> tuple[int, ...]:
        """Publish, the heads last, and before everything the roots that the broker lacks, whose numbers are returned."""
        roots = self._missing_roots()
        heads: dict[Address, bytes] = {
            address: data for address, data in messages.items() if isinstance(address, HeadAddress)
        }
        self.keep(roots | {address: data for address, data in messages.items() if address not in heads})
        self.keep(heads)
        return tuple(address.number for address in roots if isinstance(address, RootAddress))

    def require_ledger(self, order: Order) -> None:
        """Raises LedgerMissing where nothing was issued from here and the broker shows what the order is about."""
        if not self.ledger.namespaces() and (why := _lacks_ledger(self.settings, self.seen, order)):
            raise LedgerMissing(why)

    def require_known_numbers(self, plans: Iterable[Plan], say: Callable[[str], None]) -> None:
        """Raises NumbersUnknown where devices report numbers that neither ledger nor broker knows, or content under theirs."""
        issued = self.ledger.issued(epoch=self.seen.root.epoch)
        if why := _lacks_numbers(self.settings, self.seen, issued, plans, say):
            raise NumbersUnknown(why)

    def witness(self) -> None:
        """Note down newer heads that this project's keys have signed elsewhere, so that nothing older takes their place."""
        for live in self.seen.live.values():
            self.ledger.witness(live.head, self.seen.messages if live.is_whole else {}, self.ledger.now())

    def held_up(self, issued: Mapping[Namespace, Issued], say: Callable[[str], None]) -> frozenset[Namespace]:
        """The namespaces in which nothing may be published, because devices report numbers that this ledger does not know."""
        # Reports are read only where something is to be done; as a rule everything stands as it was published.
        due = [
            name
            for name, known in issued.items()
            if (live := self.seen.live.get(name)) is None
            or not live.is_whole
            or live.head.sequence < known.sequence
            or self.now >= renew_at(live.head)
        ]
        members = _read_members(self.settings, self.seen, say) if due else None
        if members is None:
            return frozenset()
        root = self.seen.root
        known = {name: _numbers(name, self.seen, issued) for name in due}
        found = claims(members, root.epoch, known)
        for line in (*_beyond(found), *_of_later_epochs(found, root), *_unknown(found, known)):
            say(f"warning: {line}")
        return frozenset(each.namespace for each in found if not each.is_beyond)

    def put_back(
        self,
        issued: Mapping[Namespace, Issued],
        held_up: frozenset[Namespace],
        *,
        repeats: AbstractSet[Namespace] | None,
        say: Callable[[str], None],
    ) -> tuple[Address, ...]:
        """Publish the messages again that stood there when each namespace's last head was published."""
        unissued = self.ledger.unissued()
        kept = self.ledger.kept()
        lost = {
            address: data
            for address, data in kept.items()
            if self.seen.messages.get(address) != data
            or (repeats is not None and (not repeats or getattr(address, "namespace", None) in repeats))
        }
        touched = {getattr(address, "namespace", None) for address in lost}
        lives, _ = _verified(
            self.seen.trusted,
            {
                address: data
                for address, data in kept.items()
                if getattr(address, "namespace", None) in touched
            },
        )
        back: dict[Address, bytes] = {}
        for namespace, known in issued.items():
            was, live = lives.get(namespace), self.seen.live.get(namespace)
            if was is None or not was.is_whole or newest_head(was, known) != was.head:
                continue  # nothing was kept, or under keys that are no longer in force
            if live is not None and live.head.sequence > was.head.sequence:
                continue
            version = top_version(was.head)
            if live is not None and top_version(live.head) > version:
                say(
                    f"warning: {namespace}: the broker shows version {top_version(live.head)} under head {live.head.sequence}, "
                    f"signed by this project's keys, and this ledger knows of version {version} under head {was.head.sequence}; "
                    "two ledgers publish, and nothing is put back; flagcast publish from the right one goes on above both"
                )
                continue
            if namespace in held_up or unissued.get(namespace, version) > version:
                continue
            back |= {address: lost[address] for address in named(was.head) if address in lost}
            self.seen = replace(self.seen, live={**self.seen.live, namespace: was})
        heads: dict[Address, bytes] = {
            address: data for address, data in back.items() if isinstance(address, HeadAddress)
        }
        first = self._missing_roots(repeats=repeats is not None)
        self.keep(first | {address: data for address, data in back.items() if address not in heads})
        self.keep(heads)
        return (*first, *back)

    def clear(self, heads: list[Head]) -> tuple[int, int | None]:
        """Clear what the heads' namespaces no longer need: how many messages, and when (Unix seconds) the next is due."""
        now = self.ledger.now()  # what was named until this run published is unnamed since a moment ago
        left = obsolete(heads, self.seen.messages)
        since = self.ledger.unnamed([head.namespace for head in heads], left, now)
        due = {address: since[address] + self.settings.grace for address in left}
        over = [address for address in left if now >= due[address]]
        if over:
            self.ledger.check_lease()
            self._connection.publish([(self.settings.topics.of(address), b"") for address in over])
            # Who asks for it by its name waits in vain.
            kept = [address for address in left if address not in over]
            self.ledger.unnamed([head.namespace for head in heads], kept, now)
        return len(over), min((due[address] for address in left if address not in over), default=None)

    def keep(self, messages: Mapping[Address, bytes]) -> None:
        """Publish, and see that it is there by reading it back: a PUBACK alone says neither retained nor permitted."""
        self.ledger.check_lease()
        _keep(self.settings, self._connection, messages)
        self.seen = replace(self.seen, messages={**self.seen.messages, **messages})

    def _missing_roots(self, *, repeats: bool = False) -> dict[Address, bytes]:
        return {
            RootAddress(number): data
            for number, data in enumerate(self._roots, 1)
            if repeats or self.seen.messages.get(RootAddress(number)) != data
        }


@contextmanager
def _run(settings: Project, patience: float, say: Callable[[str], None]) -> Iterator[_Run]:
    roots = project.read_roots(settings)
    with ExitStack() as stack:
        ledger = stack.enter_context(closing(Ledger(settings.ledger, settings.environment)))
        opened: list[mqtt.Connection] = []
        was_stopped: list[bool] = []

        def stop() -> None:
            was_stopped.append(True)
            for each in opened:
                each.cut()

        _take_lease(ledger, stack, patience, say, stop)
        connection = stack.enter_context(connect(settings))
        opened.append(connection)
        try:
            yield _Run(settings, ledger, connection, roots, ledger.now())
        except mqtt.BrokerError as error:
            if not was_stopped:
                raise
            ledger.check_lease()  # says why, if it is still so
            raise LedgerError(
                f"the ledger's lease could not be renewed for {LEASE_STOP_SECONDS:.0f} s, and nothing more was sent; run it again"
            ) from error


def _take_lease(
    ledger: Ledger, stack: ExitStack, patience: float, say: Callable[[str], None], stop: Callable[[], None]
) -> None:
    until = clock.monotonic() + patience
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    told = None
    while True:
        try:
            stack.enter_context(ledger.lease(holder, stop))
        except LedgerBusy as error:
            left = until - clock.monotonic()
            if left <= 0:
                raise
            if told != error.holder:
                told = error.holder
                say(
                    f"waiting for {error.holder}, at work since {clock.as_text(error.since)}; at most {left:.0f} s"
                )
            clock.pause(min(LEASE_POLL_SECONDS, left))
        else:
            return


def _decide(
    settings: Project,
    order: Order,
    seen: OnBroker,
    ledger: Ledger | None,
    *,
    now: int,
    say: Callable[[str], None],
    previews: bool = False,
) -> Outcome:
    issued: Mapping[Namespace, Issued] = {}
    if ledger is not None:
        issued = ledger.issued(settings.deltas, epoch=seen.root.epoch)
        seen = _compared(seen, ledger.kept())
    for line in (*_warnings(settings, seen, issued, now), *_foreign_heads(seen, issued)):
        say(f"warning: {line}")
    if now >= seen.root.expires:
        raise RootExpired(_root_expired(seen.root))
    terms = _terms(settings, seen.root, now)
    match order:
        case Wanted():
            return _for_flags(order, seen, issued, terms, say)
        case Rollout():
            return Outcome(tuple(_for_rollout(order, seen, issued, terms)))
        case Rollback():
            if previews and order.namespace is None and len(issued) > 1:
                return Outcome(tuple(_for_rollbacks(order, seen, issued, terms, ledger, say=say)))
            return Outcome((_for_rollback(order, seen, issued, terms, ledger),))


def _terms(settings: Project, root: Root, now: int) -> Terms:
    return Terms(
        settings.environment,
        root.epoch,
        now,
        settings.head_lifetime,
        settings.message_limit,
        root.roles[Role.PUBLISHER].threshold,
        deltas=settings.deltas,
        deltas_total=settings.deltas_total,
    )


def _for_flags(
    wanted: Wanted,
    seen: OnBroker,
    issued: Mapping[Namespace, Issued],
    terms: Terms,
    say: Callable[[str], None],
) -> Outcome:
    for namespace in sorted(wanted.remove):
        if namespace in wanted.entries:
            raise InvalidInput(f"--remove {namespace}: the flags to be published hold this namespace")
        if namespace not in seen.live and namespace not in issued:
            raise InvalidInput(f"--remove {namespace}: it was never published")
    for line in _older_commits(wanted, seen, issued):
        say(f"warning: {line}")
    goal: dict[Namespace, tuple[Entry, ...]] = {**wanted.entries, **dict.fromkeys(wanted.remove, ())}
    terms = replace(terms, provenance=wanted.provenance, forces_refresh=wanted.forces_refresh)
    plans = []
    for name, entries in sorted(goal.items()):
        live, known = seen.live.get(name), issued.get(name, Issued())
        if wanted.stage is None:
            plans.append(plan(name, entries, live, known, terms))
        else:
            plans.append(plan_candidate(name, entries, live, known, terms, stage=wanted.stage))
    carried = list(_carried(goal.keys(), seen, issued, terms, say))
    done = goal.keys() | {each.namespace for each in carried}
    return Outcome(
        (*plans, *carried),
        tuple(sorted((seen.live.keys() | issued.keys()) - done)),
        still_true=tuple(_still_true(wanted)),
    )


def _older_commits(wanted: Wanted, seen: OnBroker, issued: Mapping[Namespace, Issued]) -> Iterator[str]:
    # A branch that is behind, or a pipeline that was run again, takes newer flags back.
    commit = wanted.provenance.get(_COMMIT)
    if wanted.path is None or commit is None:
        return
    published: dict[str, list[str]] = {}
    for name, head in newest_heads(seen, issued):
        if name in wanted.entries and _COMMIT in head.provenance:
            published.setdefault(head.provenance[_COMMIT], []).append(name)
    for newer, names in published.items():
        if git.is_ancestor(wanted.path, commit, newer):
            yield (
                f"{', '.join(names)}: commit {commit} is an ancestor of {newer}, which is published; this takes back what was "
                "changed in between"
            )


def _still_true(wanted: Wanted) -> Iterator[StillTrue]:
    for name, entries in sorted(wanted.entries.items()):
        everyone = describe.matching_everyone(entries)
        for each in entries:
            if isinstance(each, BooleanFlag) and (name, each.key) in wanted.written_off:
                whom = describe.still_true(each, everyone)
                if whom:
                    yield StillTrue(name, each.key, whom)


def _require_agreed(order: Order, plans: Iterable[Plan]) -> None:
    much = [each for each in plans if asks_about(order, each)]
    removals = frozenset((each.namespace, identity) for each in much for identity in each.diff.removed_flags)
    agreed: frozenset[tuple[Namespace, RecordId]] = frozenset()
    if isinstance(order, Wanted) and order.agreed is not None:
        agreed = order.agreed
    if not removals <= agreed:
        texts = [
            f"{each.namespace}: this removes {len(each.diff.removed_flags)} of {each.diff.flags_before} flags"
            for each in much
        ]
        raise RemovalNotAgreed(
            f"{'; '.join(texts)}, and applications get their own defaults for these; nothing was published",
            removals,
        )


def _carried(
    named_here: Iterable[Namespace],
    seen: OnBroker,
    issued: Mapping[Namespace, Issued],
    terms: Terms,
    say: Callable[[str], None],
) -> Iterator[Plan]:
    # What was signed under keys or a threshold that devices no longer believe in is signed anew, also where nobody spoke of it.
    for name, head in newest_heads(seen, issued):
        if name in named_here or (head.epoch == terms.epoch and HeadAddress(name) not in seen.refused):
            continue
        try:
            planned = plan_upkeep(name, seen.live.get(name), issued.get(name, Issued()), terms)
        except PlanRefused as error:
            say(f"warning: {error}")
        else:
            if planned is not None:
                yield planned


def _require_current(signed: Ceremony, run: _Run, issued: Mapping[Namespace, Issued]) -> None:
    # What people signed was made for the broker and ledger of that moment.
    told = dict(newest_heads(run.seen, issued))
    for head in signed.heads:
        name, last = head.namespace, told.get(head.namespace)
        if run.now >= head.expires:
            raise CeremonyRefused(
                f"{name}: head {head.sequence} expired at {clock.as_text(head.expires)}, before it was published; {_PREPARE_ANEW}"
            )
        if not run.ledger.has_issued(head):
            raise CeremonyRefused(
                f"{name}: this ledger has not issued head {head.sequence}; publish it from where it was prepared"
            )
        if last is not None and last != head and last.sequence != signed.base[name]:
            raise CeremonyRefused(
                f"{name}: head {last.sequence} was published since this was prepared after head {signed.base[name] or 'none'}; "
                f"{_PREPARE_ANEW}"
            )


def _require_admissible(seen: OnBroker, messages: Mapping[Address, bytes]) -> None:
    # Every message as a device judges it: with empty hands, and holding what stands there now.
    live, refused = _verified(seen.trusted, {**seen.messages, **messages})
    for address, data in messages.items():
        error = refused.get(address)
        if isinstance(address, DeltaAddress):
            place = Place(seen.trusted.environment, address.namespace, Kind.DELTA)
            try:
                verify(open_envelope(data, place), seen.root, Role.PUBLISHER)
            except Refused as found_wrong:
                error = found_wrong
        if isinstance(address, HeadAddress) and error is None:
            error = _refused_on_top(seen, address, messages)
            if error is None and not live[address.namespace].is_whole:
                raise CeremonyRefused(
                    f"{address.namespace}: part of what its head names is neither in this release nor on the broker; "
                    f"{_PREPARE_ANEW}"
                )
        if error is not None:
            raise CeremonyRefused(f"devices would refuse it ({error.attack}): {error}")


def _refused_on_top(
    seen: OnBroker, address: HeadAddress, messages: Mapping[Address, bytes]
) -> Refused | None:
    # A device that holds what is live: the head, and the delta in it or beside it.
    if address not in seen.messages or address.namespace not in seen.live:
        return None
    try:
        trusted, _ = trust.admit(seen.trusted, address, seen.messages[address], now=_EXPIRY_UNCHECKED)
        for at, data in seen.messages.items():
            if isinstance(at, SnapshotAddress) and at.namespace == address.namespace:
                trusted, _ = trust.admit(trusted, at, data, now=_EXPIRY_UNCHECKED)
        trusted, outcome = trust.admit(trusted, address, messages[address], now=_EXPIRY_UNCHECKED)
        if isinstance(outcome, trust.Wanted):
            if outcome.refused is not None:
                return outcome.refused
            if outcome.has_delta and outcome.held is not None:
                at = DeltaAddress(address.namespace, outcome.offering.version, outcome.held)
                if at in messages:
                    trust.admit(trusted, at, messages[at], now=_EXPIRY_UNCHECKED)
    except Refused as error:
        return error
    return None


def _for_rollout(
    order: Rollout, seen: OnBroker, issued: Mapping[Namespace, Issued], terms: Terms
) -> Iterator[Plan]:
    names = sorted(order.namespaces) or [name for name, head in newest_heads(seen, issued) if head.candidate]
    if not names:
        raise PlanRefused("no candidate is out; begin with flagcast publish PATH --candidate PERCENT")
    for name in names:
        live, known = seen.live.get(name), issued.get(name, Issued())
        match order.step:
            case Step.SHARE:
                yield plan_share(name, order.share, live, known, terms)
            case Step.PROMOTE:
                yield plan_promote(name, live, known, terms)
            case Step.ABORT:
                yield plan_abort(name, live, known, terms)


def _rollout_status(head: Head, entries: list[LedgerEntry]) -> RolloutStatus:
    if head.candidate is None:
        return RolloutStatus(head.namespace, head)
    version = head.candidate.offering.version
    steps = [
        (each.published, each.candidate.share)
        for each in entries  # newest first
        if each.namespace == head.namespace
        and each.published is not None
        and each.candidate is not None
        and each.candidate.offering.version == version
    ]
    return RolloutStatus(
        head.namespace,
        head,
        min((at for at, _ in steps), default=None),
        next((share for _, share in steps if share), None),
    )


def _for_rollbacks(
    order: Rollback,
    seen: OnBroker,
    issued: Mapping[Namespace, Issued],
    terms: Terms,
    ledger: Ledger | None,
    *,
    say: Callable[[str], None],
) -> Iterator[Plan]:
    # What each namespace would become; a step back itself is for one that is named.
    for name in sorted(issued):
        try:
            yield _for_rollback(replace(order, namespace=name), seen, issued, terms, ledger)
        except PlanRefused as error:
            say(str(error))


def _for_rollback(
    order: Rollback,
    seen: OnBroker,
    issued: Mapping[Namespace, Issued],
    terms: Terms,
    ledger: Ledger | None,
) -> Plan:
    name = order.namespace
    if name is None:
        if len(issued) > 1:
            raise InvalidInput(f"--namespace: name the one to roll back: {', '.join(sorted(issued))}")
        name = next(iter(issued), None)
    if name is None or ledger is None or name not in issued:
        raise PlanRefused(f"{name or 'rollback'}: nothing of it was ever published from this ledger")
    known, live = issued[name], seen.live.get(name)
    back: Content | None = None
    if order.version is not None:
        back = ledger.content(name, order.version)
        if back is None:
            raise PlanRefused(
                f"{name}: version {order.version} was never published from this ledger; flagcast log shows what was"
            )
    else:
        head = newest_head(live, known)
        current = head.stable if head is not None else known.published
        back = ledger.content_before(name, current.digest) if current is not None else None
        if back is None:
            raise PlanRefused(f"{name}: nothing else was published before what is published now")
    return plan_rollback(name, back, live, known, terms)


def newest_heads(seen: OnBroker, issued: Mapping[Namespace, Issued]) -> list[tuple[Namespace, Head]]:
    """The head that each namespace was told last, from the broker or, where it lost or aged it, from the ledger."""
    found = (
        (name, newest_head(seen.live.get(name), issued.get(name, Issued())))
        for name in sorted(seen.live.keys() | issued.keys())
    )
    return [(name, head) for name, head in found if head is not None]


def _numbers(name: Namespace, seen: OnBroker, issued: Mapping[Namespace, Issued]) -> Numbers:
    # The highest that ledger and broker know.
    known, live = issued.get(name, Issued()), seen.live.get(name)
    if live is None:
        return Numbers(known.version, known.sequence)
    return Numbers(max(known.version, top_version(live.head)), max(known.sequence, live.head.sequence))


def _lacks_ledger(settings: Project, seen: OnBroker, order: Order) -> str:
    # Why an empty ledger may not issue what is ordered; blank where it may.
    names = set(seen.live)
    if isinstance(order, Wanted):
        names &= order.entries.keys() | order.remove
    if not names:
        return ""
    name = min(names)
    head = seen.live[name].head
    return (
        f"{settings.ledger}: no ledger was here, and the broker shows version {head.stable.version} of {name}, which "
        "another one issued; a runner needs the ledger too: on PostgreSQL, or kept from run to run (docs/operations.md); "
        "--without-ledger goes on above what is live"
    )


def _lacks_numbers(
    settings: Project,
    seen: OnBroker,
    issued: Mapping[Namespace, Issued],
    plans: Iterable[Plan],
    say: Callable[[str], None],
) -> str:
    # Why devices would refuse the plans' numbers; blank where no report is against them.
    taken = [each for each in plans if each.head_draft is not None]
    members = _read_members(settings, seen, say) if taken else None
    if members is None:
        return ""
    root = seen.root
    known = {each.namespace: _numbers(each.namespace, seen, issued) for each in taken}
    found = claims(members, root.epoch, known)
    for line in _beyond(found):
        say(f"warning: {line}")
    why = [*_of_later_epochs(found, root), *_unknown(found, known)]
    why += [line for each in taken for line in _split(members, each)]
    return why[0] if why else ""


def _read_members(settings: Project, seen: OnBroker, say: Callable[[str], None]) -> Fleet | None:
    # The devices whose reports count; None where the broker does not show reports. On a connection of its own, so that more
    # than is read at once, or a missing right, costs the check and not the run.
    if seen.needs_names:
        why = "the broker shows no retained message to a subscription with wildcards"
    else:
        try:
            with connect(settings) as connection:
                found = connection.read_all([settings.topics.all_devices("report")])
        except (mqtt.NotAllowed, mqtt.TooManyMessages) as error:
            why = str(error)
        else:
            reports, _ = parse_reports(settings, found)
            return gather(each for each in reports if each[0] not in settings.ignored_reports)
    say(f"warning: devices' reports were not compared with the ledger: {why}")
    return None


def parse_reports(
    settings: Project, found: Mapping[str, bytes]
) -> tuple[list[tuple[DeviceId, Report]], dict[str, str]]:
    """The reports among retained messages, and why others of these topics are none."""
    reports: list[tuple[DeviceId, Report]] = []
    unreadable: dict[str, str] = {}
    for topic, payload in sorted(found.items()):
        address = settings.topics.address(topic)
        if not isinstance(address, DeviceAddress) or not payload:
            continue
        try:
            reports.append((address.device, decode_report(payload)))
        except Refused as error:
            unreadable[topic] = str(error)
    return reports, unreadable


def _beyond(found: Iterable[Claim]) -> Iterator[str]:
    for each in [each for each in found if each.is_beyond][:_NAMED_MAX]:
        yield (
            f"{each.namespace}: device {each.device} reports version {each.held.version}, head {each.held.sequence}, more than "
            f"{RECOVERY_BOUND} above what is known, which does not count, because reports are unsigned: it lies, or a thief of a "
            "key has published that; flagcast keys rotate publisher outranks every number of before"
        )


def _of_later_epochs(found: Iterable[Claim], root: Root) -> Iterator[str]:
    for each, more in _by_namespace(each for each in found if each.is_of_later_epoch):
        yield (
            f"{each.namespace}: device {each.device} holds epoch {each.held.epoch}{more}, and this project's roots end at root "
            f"{root.number}, epoch {root.epoch}; devices refuse what is published from here: bring the later roots back "
            f"into {project.ROOTS_NAME}/ and their keys into {project.KEYS_NAME}/; {_LYING}"
        )


def _unknown(found: Iterable[Claim], known: Mapping[Namespace, Numbers]) -> Iterator[str]:
    for each, more in _by_namespace(
        each for each in found if not each.is_beyond and not each.is_of_later_epoch
    ):
        numbers = known[each.namespace]
        named_here = "" if numbers.sequence else f" --namespace {each.namespace}"
        yield (
            f"{each.namespace}: device {each.device} holds version {each.held.version}, head {each.held.sequence}{more}, "
            f"and this ledger knows of version {numbers.version}, head {numbers.sequence}: it was restored from an older state, "
            "or another ledger publishes; nothing was published, because devices refuse numbers that were used before; bring "
            f"the newest ledger here, or go on above them: flagcast ledger recovered{named_here}, then flagcast publish; {_LYING}"
        )


def _split(members: Fleet, planned: Plan) -> Iterator[str]:
    offered = published(planned.head)
    for device, member in sorted(members.items()):
        held = member.said.applied.get(planned.namespace)
        if held is not None and offered.has_other(held):
            yield (
                f"{planned.namespace}: device {device} holds another content of version {held.version}: that number was used "
                f"twice, and the device refuses it; go on above it: flagcast ledger recovered, then flagcast publish; {_LYING}"
            )
            return


def published(head: Head) -> Published:
    """The contents that a head offers, as reports are compared with them."""
    digests = {head.stable.version: head.stable.digest}
    if head.candidate is not None:
        digests[head.candidate.offering.version] = head.candidate.offering.digest
    return Published((head.epoch, head.stable.version), digests)


def _by_namespace(found: Iterable[Claim]) -> Iterator[tuple[Claim, str]]:
    # The highest claim of each namespace, and how many devices more there are.
    gathered: dict[Namespace, list[Claim]] = {}
    for each in found:
        gathered.setdefault(each.namespace, []).append(each)
    for listed in gathered.values():
        highest = max(listed, key=lambda each: (each.held.epoch, each.held.version, each.held.sequence))
        others = len(listed) - 1
        yield highest, f" (and {others} devices more)" if others else ""


def _taken(name: Namespace, version: Version) -> str:
    return (
        f"{name}: its numbers were recovered, or another ledger has published up to version {version}; what devices hold need "
        "not be in this ledger, so nothing is published from here until flagcast publish is run"
    )


def _upkeep_plans(
    settings: Project,
    seen: OnBroker,
    issued: Mapping[Namespace, Issued],
    now: int,
    say: Callable[[str], None],
    *,
    left_alone: frozenset[Namespace],
) -> Iterator[Plan]:
    terms = _terms(settings, seen.root, now)
    for name, live in seen.live.items():
        head = live.head
        if (
            name not in left_alone
            and head.sequence > issued.get(name, Issued()).sequence
            and now >= renew_at(head)
        ):
            say(
                f"warning: {name}: head {head.sequence} expires at {clock.as_text(head.expires)} and is not renewed from here, "
                "because this ledger has not issued it; flagcast publish from this project takes the namespace over"
            )
    for name, known in issued.items():
        if name in left_alone:
            continue
        found_there = seen.live.get(name)
        if found_there is not None and (
            found_there.head.sequence > known.sequence or top_version(found_there.head) > known.version
        ):
            continue
        try:
            planned = plan_upkeep(name, found_there, known, terms)
        except (PlanRefused, InvalidInput) as error:
            say(f"warning: {error}")
        else:
            if planned is not None:
                yield planned


def _signers_if_any(
    settings: Project,
    seen: OnBroker,
    plans: list[Plan],
    now: int,
    *,
    say: Callable[[str], None],
    unlock: Unlock,
) -> list[Signer]:
    # Without enough keys what stands on the broker can be kept there, but nothing can be renewed. A head whose number alone is
    # behind, as while a release is being signed elsewhere, still does its work.
    root = seen.root
    if now >= root.expires:
        say(f"warning: {_root_expired(root)}")
        return []
    threshold = root.roles[Role.PUBLISHER].threshold
    try:
        signers = keychain.publishers(settings, root, unlock)
    except InvalidConfiguration as error:
        why = f"a new head is due and cannot be signed here: {error}"
    else:
        if len(signers) >= threshold:
            return signers
        why = (
            f"a new head is due, {threshold} keys must sign it and {len(signers)} are here; sign it with flagcast publish "
            "--prepare"
        )
    good = {name for name, live in seen.live.items() if live.is_whole and now < renew_at(live.head)}
    names = ", ".join(each.namespace for each in plans if each.namespace not in good)
    if names:
        say(f"warning: {names}: {why}")
    return []


def _root_expired(root: Root) -> str:
    return (
        f"root {root.number} expired at {clock.as_text(root.expires)}, and devices take nothing new under it; make the next "
        "root with flagcast keys rotate root, then publish"
    )


def _warnings(
    settings: Project, seen: OnBroker, issued: Mapping[Namespace, Issued], now: int
) -> Iterator[str]:
    if now < seen.root.issued:
        yield f"this machine's clock ({clock.as_text(now)}) is before the root was made"
    if 0 < seen.root.expires - now <= ROOT_WARNING_SECONDS:
        yield (
            f"root {seen.root.number} expires at {clock.as_text(seen.root.expires)}, and devices take nothing new from then on; "
            "make the next root with flagcast keys rotate root"
        )
    for address, error in seen.refused.items():
        topic = settings.topics.of(address)
        yield f"{topic} on the broker is not believed ({error.attack}): {error}; numbers go on without it"
    for topic in seen.foreign:
        yield f"{topic!r} on the broker is no topic of ours; it is left alone"
    for namespace, live in seen.live.items():
        known = issued.get(namespace, Issued())
        version = live.head.stable.version
        if live.head.issued > now:
            yield f"{namespace}: its head was issued {live.head.issued - now} s after this machine's time"
        if known.published is not None and version < known.published.version:
            yield (
                f"{namespace}: the broker shows version {version}, {known.published.version} was published; "
                "it was restored from an older state"
            )


def _foreign_heads(seen: OnBroker, issued: Mapping[Namespace, Issued]) -> Iterator[str]:
    # Every run reserves its numbers here before it sends them, so these are not from a run of this ledger.
    for namespace, live in seen.live.items():
        number, known = live.head.sequence, issued.get(namespace, Issued()).sequence
        if number > known:
            yield (
                f"{namespace}: head {number} is live, and the ledger knows of {known or 'none'}; another publisher, or a thief "
                "of a key, or a ledger that was lost; numbers go on above it"
            )


def _keep(settings: Project, connection: mqtt.Connection, messages: Mapping[Address, bytes]) -> None:
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


def asks_about(order: Order, each: Plan) -> bool:
    """Whether somebody has to agree to a plan first. What --remove names is meant, and so is a step back."""
    if not isinstance(order, Wanted) or order.agreed is None or each.namespace in order.remove:
        return False
    return each.diff.removes_much


def connect(settings: Project, client_id: str = "", limit_bytes: int = MESSAGE_MAX_BYTES) -> mqtt.Connection:
    """A connection to the project's broker; see `mqtt.connect`. Raises BrokerError, InvalidConfiguration."""
    broker = settings.broker
    login = mqtt.Login(
        broker.user,
        project.read_password(broker),
        broker.uses_tls,
        broker.ca_file,
        broker.cert_file,
        broker.key_file,
        broker.server_name,
        broker.alpn,
    )
    return mqtt.connect(
        broker.host,
        broker.port,
        login,
        path=broker.path,
        protocol=broker.protocol,
        client_id=client_id,
        limit_bytes=limit_bytes,
    )


def _read(
    settings: Project,
    roots: tuple[bytes, ...],
    connection: mqtt.Connection,
    known: Iterable[Address] = (),
) -> OnBroker:
    # A broker drops what it cannot queue for us, and some show nothing retained to a subscription with wildcards. So what must be
    # there is asked for by its name: roots, what is known, and what heads name. Roots and heads stand first, because those that
    # nobody knows can only be found.
    topics = settings.topics
    messages: dict[Address, bytes] = {}
    foreign = []
    everything = [topics.all_roots(), topics.all_heads(), topics.all_flags()]
    for topic, data in sorted(connection.read_all(everything).items()):
        address = topics.address(topic)
        if address is None:
            foreign.append(topic)
        elif data:  # an empty one is a topic that was cleared while we looked
            messages[address] = data
    wanted = list(known)
    needs_names = not any(isinstance(address, RootAddress) for address in messages)
    if needs_names:
        wanted += [RootAddress(number) for number in range(1, len(roots) + 2)]
    _ask_for(settings, wanted, messages, connection)
    needs_names = needs_names and any(isinstance(address, RootAddress) for address in messages)
    trusted, refused = _walk_roots(settings.environment, roots, messages)
    live, wrong = _verified(trusted, messages)
    if _ask_for(settings, [at for each in live.values() for at in named(each.head)], messages, connection):
        live, wrong = _verified(trusted, messages)
    return OnBroker(trusted, messages, live, {**refused, **wrong}, tuple(foreign), needs_names)


def _ask_for(
    settings: Project,
    addresses: Iterable[Address],
    messages: dict[Address, bytes],
    connection: mqtt.Connection,
) -> bool:
    # Adds those of the addresses that are missing and are there after all; whether there were any.
    missing = {settings.topics.of(at): at for at in addresses if at not in messages}
    found = {missing[topic]: data for topic, data in connection.read(sorted(missing)).items() if data}
    messages |= found
    return bool(found)


def _compared(seen: OnBroker, kept: Mapping[Address, bytes]) -> OnBroker:
    # A delta is judged against the content that it begins from, which the publisher does not hold; its bytes are known.
    live = {}
    for name, each in seen.live.items():
        wrong = [
            address
            for address in named(each.head)
            if isinstance(address, DeltaAddress)
            and seen.messages.get(address) != kept.get(address, seen.messages.get(address, b""))
        ]
        live[name] = replace(each, lost=tuple(sorted({*each.lost, *wrong}, key=repr)))
    return replace(seen, live=live)


def _verified(
    trusted: trust.Trusted, messages: Mapping[Address, bytes]
) -> tuple[dict[Namespace, Live], dict[Address, Refused]]:
    live: dict[Namespace, Live] = {}
    refused: dict[Address, Refused] = {}
    for address in [address for address in messages if isinstance(address, HeadAddress)]:
        found_there = _verify(trusted, address, messages, refused)
        if found_there is not None:
            live[address.namespace] = found_there
    return live, refused


def _walk_roots(
    environment: Environment, roots: tuple[bytes, ...], messages: Mapping[Address, bytes]
) -> tuple[trust.Trusted, dict[Address, Refused]]:
    trusted = keychain.walk(environment, roots).trusted
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
    # As devices with empty hands would: the head first, then the parts of what is stable, and those of the candidate.
    try:
        trusted, _ = trust.admit(trusted, address, messages[address], now=_EXPIRY_UNCHECKED)
    except Refused as error:
        refused[address] = error
        return None
    head = trusted.pending[address.namespace].head
    candidate = None if head.candidate is None else head.candidate.offering
    return Live(
        head,
        _verify_content(trusted, head, head.stable, messages, refused),
        None if candidate is None else _verify_content(trusted, head, candidate, messages, refused),
        tuple(
            sorted(
                (at for at in named(head) if isinstance(at, DeltaAddress) and at not in messages), key=repr
            )
        ),
    )


def _verify_content(
    trusted: trust.Trusted,
    head: Head,
    offering: Offering,
    messages: Mapping[Address, bytes],
    refused: dict[Address, Refused],
) -> tuple[Record, ...] | None:
    # Which of its contents a head offers depends on the device; here it is each in turn.
    namespace = head.namespace
    waiting = replace(trusted.pending[namespace], offering=offering)
    trusted = replace(trusted, pending={**trusted.pending, namespace: waiting})
    for part in range(offering.parts):
        at = SnapshotAddress(namespace, offering.version, part)
        if at not in messages:
            continue
        try:
            trusted, outcome = trust.admit(trusted, at, messages[at], now=_EXPIRY_UNCHECKED)
        except Refused as error:
            refused[at] = error
            return None
        if isinstance(outcome, trust.AdmittedUpdate):
            return outcome.changed
    return None


def _signed(drafts: Iterable[Draft], signers: Sequence[Signer], threshold: int) -> dict[Address, bytes]:
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
