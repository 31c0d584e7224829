"""What to publish: decided from what is wanted, what is live, what was ever issued, and the time. Pure.

A namespace ends in one of these ways:

    UNCHANGED  the fleet has been told exactly this, and its head stays fresh for more than half of its lifetime
    REFRESH    the same content under a new head
    RESTORE    the same content under its old version, published again because the broker lost some of it, and a new head
    CHANGE     a content under a version of its own, and a new head
    ROLLBACK   as CHANGE, with a content of before
    CANDIDATE  a content for some of the devices, beside the stable one that stays
    SHARE      another share or other labels for the candidate: a new head
    PAUSE      as SHARE, with a share of 0: nobody new joins, those who are in stay
    PROMOTE    the candidate becomes stable under its version: a new head
    ABORT      the stable content under a version above the candidate's, so that nobody steps down

Content under one version is the same bytes for ever: that is why RESTORE takes the ledger's own body, and why a version whose
bytes are no longer known is not continued. Neither is one below a number that was reserved: a device may have seen that one, and
would keep what it holds. Then every content on offer gets a new version, which costs a device that holds it nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum, StrEnum
from typing import Final

from flagcast_bridge.flags import describe
from flagcast_shared.codec import deflate
from flagcast_shared.envelope import SIGNATURE_BYTES, seal
from flagcast_shared.errors import FlagcastError, InvalidDocument, Malformed
from flagcast_shared.ids import Digest, Environment, Epoch, KeyId, Namespace, RecordId, Version
from flagcast_shared.ids import Sequence as HeadSequence
from flagcast_shared.limits import (
    CONTENT_MAX_BYTES,
    INLINE_DELTA_MAX_BYTES,
    NUMBER_MAX,
    PARTS_MAX,
)
from flagcast_shared.messages import (
    Candidate,
    Delta,
    Head,
    InlineDelta,
    Offering,
    Place,
    SnapshotPart,
    encode_delta_message,
    encode_head,
    encode_part,
)
from flagcast_shared.model import (
    BooleanFlag,
    Entry,
    UnsupportedFlag,
    UnsupportedRecord,
    UnsupportedSegment,
    VariantFlag,
)
from flagcast_shared.records import (
    Record,
    content_digest,
    encode_content,
    encode_delta,
    encode_record,
    extent_of,
)
from flagcast_shared.root import KEY_ID_BYTES
from flagcast_shared.topics import Address, DeltaAddress, HeadAddress, Kind, SnapshotAddress

DELTAS: Final = 8
"""From how many of the last versions a delta is kept on the broker unless configured: a device that was away for a week or two
of a team's work."""
DELTAS_TOTAL_BYTES: Final = 262_144
"""All deltas that lead to one content, unless configured: with a device away for longer, a snapshot is the better answer."""
REMOVED_PARTS: Final = 3
"""A release that removes more than one in so many of a namespace's flags is asked about: a folder half checked out looks so."""

_NO_VERSION: Final = Version(0)
_NO_SEQUENCE: Final = HeadSequence(0)
# Numbers that are issued begin at 1.

_FLAG: Final = "flag"
# The kind of a flag's record.

_REFRESH_SHARE: Final = 2
# What part of a head's lifetime is over when it is renewed.


class Action(StrEnum):
    """How a namespace ends; see the module."""

    UNCHANGED = "unchanged"
    REFRESH = "refresh"
    RESTORE = "restore"
    CHANGE = "change"
    ROLLBACK = "rollback"
    CANDIDATE = "candidate"
    SHARE = "share"
    PAUSE = "pause"
    PROMOTE = "promote"
    ABORT = "abort"


class PlanRefused(FlagcastError):
    """What was asked cannot be done as things stand: a staged rollout is in its way, or there is none. Says what to do."""


@dataclass(frozen=True, slots=True)
class Content:
    """A namespace's content as it travels: `body` is compressed, and sliced into `parts`."""

    version: Version
    epoch: Epoch
    digest: Digest
    parts: int
    body: bytes
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Past:
    """A content that devices may hold: what a delta can begin from."""

    version: Version
    digest: Digest
    records: Mapping[RecordId, Digest]


@dataclass(frozen=True, slots=True)
class Live:
    """What stands on the broker for a namespace, verified.

    `records` and `candidate` are None where that snapshot is not there whole; `lost` are deltas that the head names and that are
    not there as they were published.
    """

    head: Head
    records: tuple[Record, ...] | None
    candidate: tuple[Record, ...] | None = None
    lost: tuple[Address, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether everything that the head names is there."""
        has_candidate = self.head.candidate is None or self.candidate is not None
        return self.records is not None and has_candidate and not self.lost


@dataclass(frozen=True, slots=True)
class Issued:
    """What the ledger knows of a namespace: the highest numbers ever reserved, and what was published last.

    `published` and `candidate` are the contents of the last published `head`; `past` are the last contents that were published,
    newest first.
    """

    version: Version = _NO_VERSION
    sequence: HeadSequence = _NO_SEQUENCE
    published: Content | None = None
    head: Head | None = None
    candidate: Content | None = None
    past: tuple[Past, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """For whom a candidate is: `share` hundredths of a percent of the devices that carry all `labels`.

    `salt` is fresh and used where no candidate is out; a candidate that replaces one keeps its salt, so that the same devices
    stay in. Labels of None are those of the candidate that is out.
    """

    share: int
    salt: bytes
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for a whole run. `signatures` is how many each message carries; spans in seconds, sizes in bytes.

    `deltas` is from how many of the last versions a delta is kept on the broker, `deltas_total` what all deltas to one content
    may take there together.
    """

    environment: Environment
    epoch: Epoch
    now: int
    head_lifetime: int
    message_limit: int
    signatures: int = 1
    provenance: Mapping[str, str] = field(default_factory=dict)
    forces_refresh: bool = False
    deltas: int = DELTAS
    deltas_total: int = DELTAS_TOTAL_BYTES


@dataclass(frozen=True, slots=True)
class Changed:
    """A record that stays under another body, and what differs, for people."""

    id: RecordId
    what: str


@dataclass(frozen=True, slots=True)
class Answers:
    """What a flag answers in words, before and after; "" where it is not there. `is_off`: it is false for everyone afterwards."""

    before: str
    after: str
    is_off: bool = False


@dataclass(frozen=True, slots=True)
class Diff:
    """From the content that the fleet was told last to the one that is wanted, each in order.

    `answers` are those of the flags among them in words, before and after; `flags_before` is how many flags there were.
    """

    added: tuple[RecordId, ...] = ()
    changed: tuple[Changed, ...] = ()
    removed: tuple[RecordId, ...] = ()
    answers: Mapping[RecordId, Answers] = field(default_factory=dict)
    flags_before: int = 0

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.added or self.changed or self.removed)

    @property
    def removed_flags(self) -> tuple[RecordId, ...]:
        """The flags among what is removed."""
        return tuple(each for each in self.removed if each.kind == _FLAG)

    @property
    def removes_much(self) -> bool:
        """Whether more than one in REMOVED_PARTS of the flags goes, or all of them."""
        return REMOVED_PARTS * len(self.removed_flags) > self.flags_before


@dataclass(frozen=True, slots=True)
class Draft:
    """A message that is not signed yet."""

    address: Address
    place: Place
    payload: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do for one namespace. `head` is the one that stands when it is done; `previous` the stable version told before.

    `contents` are issued or restored, none where only the head is new. `body` are the drafts that must stand on the broker
    before `head_draft` may be published. `note` is what else an operator has to read.
    """

    namespace: Namespace
    action: Action
    why: str
    diff: Diff
    previous: Version | None
    head: Head
    contents: tuple[Content, ...] = ()
    body: tuple[Draft, ...] = ()
    head_draft: Draft | None = None
    note: str = ""


def plan(
    namespace: Namespace, wanted: Iterable[Entry], live: Live | None, issued: Issued, terms: Terms
) -> Plan:
    """What to publish so that every device comes to hold what is wanted.

    While a candidate is out, the stable and the candidate's own content keep both as they are; so does any other where a new head
    is asked for, because heads have to be renewed whatever the files have become meanwhile.

    Raises:
        InvalidDocument: the content is beyond a limit of the wire.
        PlanRefused: a candidate is out, what is wanted is neither of both, and no new head is asked for.
    """
    records = _records(namespace, wanted)
    case = _Case(namespace, live, issued, terms)
    told = case.told
    if told is None:
        return _change(case, Action.CHANGE, "it is new", records)
    digest, out = _digest(records), told.candidate
    is_stable = digest == told.stable.offering.digest
    if out is not None:
        staged = f"a candidate is out, version {out.offering.version} for {_audience(told.stage)}"
        if is_stable:
            whose = "these flags are the stable ones"
        elif digest == out.offering.digest:
            whose = "these flags are the candidate's"
        elif terms.forces_refresh:
            whose = "these flags are neither the stable ones nor the candidate's, and were NOT published"
        else:
            raise PlanRefused(
                f"{namespace}: {staged}, and these flags are neither the stable ones nor the candidate's; end it with flagcast "
                "rollout promote or flagcast rollout abort, replace it with flagcast publish --candidate PERCENT, or renew its "
                "head alone with flagcast publish --refresh"
            )
        planned = _continue(case, records if is_stable else None)
        return replace(planned, note=f"{staged}; {whose}; both contents stay as they are")
    if is_stable:
        return _continue(case, records)
    return _change(case, Action.CHANGE, "it differs from what was published", records)


def plan_candidate(
    namespace: Namespace,
    wanted: Iterable[Entry],
    live: Live | None,
    issued: Issued,
    terms: Terms,
    *,
    stage: Stage,
) -> Plan:
    """What to publish so that some devices come to hold what is wanted, and all others what is stable.

    Raises:
        InvalidDocument: the content is beyond a limit of the wire.
        PlanRefused: nothing is stable yet, or what is wanted is the stable content while another candidate is out.
    """
    records = _records(namespace, wanted)
    case = _Case(namespace, live, issued, terms)
    told = case.told
    if told is None:
        raise PlanRefused(
            f"{namespace}: nothing is published that the other devices could keep; publish it without --candidate first"
        )
    out, stable = told.candidate, told.stable
    digest = _digest(records)
    if digest == stable.offering.digest:
        if out is not None:
            raise PlanRefused(
                f"{namespace}: these flags are the stable ones; take the candidate, version {out.offering.version}, back with "
                "flagcast rollout abort"
            )
        return _continue(case, records)
    known = told.stage
    staged = Stage(
        stage.share,
        stage.salt if known is None else known.salt,
        stage.labels if stage.labels is not None else {} if known is None else known.labels,
    )
    diff = _diff(stable.records or (), records)
    if out is not None and out.offering.digest == digest:
        if known is not None and (known.share, known.labels) == (staged.share, staged.labels):
            return _continue(case, stable.records)
        return _restage(case, staged)
    stands = _stand(case, stable)
    content = _new_content(case, records)
    why = f"a candidate for {_audience(staged)}"
    return _finish(
        case,
        Action.CANDIDATE,
        why,
        diff,
        stands,
        provenance=terms.provenance,
        candidate=_offer(case, content, in_head=False),
        stage=staged,
    )


def plan_share(namespace: Namespace, share: int, live: Live | None, issued: Issued, terms: Terms) -> Plan:
    """A new head that gives the candidate to another share of the devices, in hundredths of a percent. Raises PlanRefused."""
    case = _Case(namespace, live, issued, terms)
    stage = _stage_of(case)
    if stage.share == share:
        return _continue(case, None)
    return _restage(case, replace(stage, share=share))


def plan_promote(namespace: Namespace, live: Live | None, issued: Issued, terms: Terms) -> Plan:
    """A new head in which the candidate, under its version, is what every device takes. Raises PlanRefused."""
    case = _Case(namespace, live, issued, terms)
    told, out, stage = _rollout_of(case)
    stands = _stand(case, out)
    was, becomes = told.stable, out.records
    if stands.inline is None and was.records is not None and becomes is not None:
        body = _delta_body(_past(was.offering.version, was.records), becomes)
        if len(body) <= INLINE_DELTA_MAX_BYTES:
            stands = replace(stands, inline=InlineDelta(was.offering.version, stands.offering.version, body))
    diff = _diff(was.records or (), becomes or ())
    why = f"the candidate for {_audience(stage)} is for all"
    return _finish(case, Action.PROMOTE, why, diff, stands, provenance=_provenance(case))


def plan_abort(namespace: Namespace, live: Live | None, issued: Issued, terms: Terms) -> Plan:
    """The stable content under a version above the candidate's, for every device. Raises PlanRefused."""
    case = _Case(namespace, live, issued, terms)
    told, out, _ = _rollout_of(case)
    records = told.stable.records
    if records is None:
        raise _unknown(case, told.stable)
    content = _new_content(case, records)
    why = f"the candidate, version {out.offering.version}, is taken back"
    diff = _diff(out.records or (), records)
    stable = _offer(case, content, in_head=True)
    provenance = {"abort": f"version {out.offering.version}"}
    return _finish(case, Action.ABORT, why, diff, stable, provenance=provenance)


def plan_rollback(
    namespace: Namespace, back: Content, live: Live | None, issued: Issued, terms: Terms
) -> Plan:
    """A content of before under a new version, for every device.

    Raises:
        PlanRefused: a candidate is out, or nothing differs.
    """
    terms = replace(terms, provenance={"rollback": f"version {back.version}"})
    case = _Case(namespace, live, issued, terms)
    told = case.told
    if told is not None and told.candidate is not None:
        raise PlanRefused(
            f"{namespace}: a candidate is out, version {told.candidate.offering.version}; take it back with flagcast rollout "
            "abort, which leaves the stable content, or make it stable with flagcast rollout promote; then roll back"
        )
    if told is not None and told.stable.offering.digest == back.digest:
        raise PlanRefused(
            f"{namespace}: version {back.version} holds what version {told.stable.offering.version}, which is published, holds; "
            "nothing is to be rolled back"
        )
    return _change(case, Action.ROLLBACK, f"back to the content of version {back.version}", back.records)


def plan_upkeep(namespace: Namespace, live: Live | None, issued: Issued, terms: Terms) -> Plan | None:
    """What to publish so that devices go on finding what they were told last; None where nothing was ever published.

    Raises:
        PlanRefused: what was published is neither whole on the broker nor in the ledger.
    """
    case = _Case(namespace, live, issued, terms)
    return _continue(case, None) if case.told is not None else None


def named(head: Head) -> frozenset[Address]:
    """Everything that a head needs on the broker: the head itself, the parts and the deltas that it names."""
    addresses: set[Address] = {HeadAddress(head.namespace)}
    for offering in _offerings(head):
        addresses.update(
            SnapshotAddress(head.namespace, offering.version, part) for part in range(offering.parts)
        )
        addresses.update(DeltaAddress(head.namespace, offering.version, old) for old in offering.deltas)
    return frozenset(addresses)


def top_version(head: Head) -> Version:
    """The highest version that a head offers."""
    return max(offering.version for offering in _offerings(head))


def obsolete(heads: Iterable[Head], retained: Iterable[Address]) -> list[Address]:
    """The snapshots and deltas among `retained` that belong to the heads' namespaces and that no head names, in order."""
    keep = {head.namespace: named(head) for head in heads}
    found = [
        address
        for address in retained
        if isinstance(address, SnapshotAddress | DeltaAddress)
        and address.namespace in keep
        and address not in keep[address.namespace]
    ]
    return sorted(found, key=repr)


def newest_head(live: Live | None, issued: Issued) -> Head | None:
    """The head that the fleet was told last: the broker's, or the ledger's where the broker lost it or shows an older one."""
    told = _told(live, issued)
    return None if told is None else told.head


def part_size(content: Content) -> int:
    """The bytes of every part of a content but the last, which is the rest."""
    return -(-len(content.body) // content.parts)


def percent(share: int) -> str:
    """A share in hundredths of a percent, for people: `12.5 %`."""
    whole, rest = divmod(share, 100)
    return f"{whole} %" if not rest else f"{whole}.{rest:02}".rstrip("0") + " %"


@dataclass(frozen=True, slots=True)
class _Known:
    # A content that the fleet was told, with its records and its bytes where they are known.
    offering: Offering
    records: tuple[Record, ...] | None
    content: Content | None


@dataclass(frozen=True, slots=True)
class _Told:
    # What the fleet was told last. No head: a ledger of before heads were kept.
    epoch: Epoch
    head: Head | None
    stable: _Known
    candidate: _Known | None = None

    @property
    def stage(self) -> Candidate | None:
        return None if self.head is None else self.head.candidate

    @property
    def offerings(self) -> tuple[Offering, ...]:
        return (
            (self.stable.offering,)
            if self.candidate is None
            else (self.stable.offering, self.candidate.offering)
        )


@dataclass(frozen=True, slots=True)
class _Offer:
    # How a content will stand: its place in the head, what must be published before, and the delta that travels in the head.
    offering: Offering
    content: Content | None = None
    drafts: tuple[Draft, ...] = ()
    inline: InlineDelta | None = None


class _Standing(Enum):
    # Whether what was told can stay as it is.
    WHOLE = "whole"
    LOST = "lost"
    BROKEN = "broken"


class _Case:
    # One namespace and everything that decides about it. Hands out new versions.

    def __init__(self, namespace: Namespace, live: Live | None, issued: Issued, terms: Terms) -> None:
        self.namespace = namespace
        self.live = live
        self.issued = issued
        self.terms = terms
        self.told = _told(live, issued)
        self.sequence = HeadSequence(max(issued.sequence, live.head.sequence if live is not None else 0) + 1)
        self._version = _highest(live, issued)
        self.standing = self._judge()
        if max(self._version, self.sequence) >= NUMBER_MAX:
            raise InvalidDocument(
                f"{namespace}: its numbers are used up, as a thief of a publisher's key would do; begin the next epoch with "
                "flagcast keys rotate publisher, then publish"
            )

    def next_version(self) -> Version:
        self._version = Version(self._version + 1)
        return self._version

    @property
    def previous(self) -> Version | None:
        return None if self.told is None else self.told.stable.offering.version

    def pasts(self) -> list[Past]:
        """What devices may hold, newest first."""
        known = {past.version: past for past in self.issued.past}
        if self.told is not None:
            for each in (self.told.stable, self.told.candidate):
                if each is not None and each.records is not None:
                    known[each.offering.version] = _past(each.offering.version, each.records)
        return [known[version] for version in sorted(known, reverse=True)]

    def _judge(self) -> _Standing:
        told, live = self.told, self.live
        if told is None:
            return _Standing.BROKEN
        highest = max(offering.version for offering in told.offerings)
        if told.epoch != self.terms.epoch or highest != self._version:
            return _Standing.BROKEN
        if live is not None and live.is_whole and _offerings(live.head) == told.offerings:
            return _Standing.WHOLE
        contents = [each.content for each in (told.stable, told.candidate) if each is not None]
        return _Standing.LOST if all(contents) else _Standing.BROKEN


def _told(live: Live | None, issued: Issued) -> _Told | None:
    published = issued.published
    # A broker restored from an old save shows less than the ledger knows; the fleet has seen more.
    if live is not None and _is_newest(live.head, issued):
        return _as_told(live.head, live.records, live.candidate, issued)
    if issued.head is not None:
        return _as_told(issued.head, None, None, issued)
    if published is None:
        return None
    offering = Offering(published.version, published.digest, len(published.body), published.parts)
    return _Told(published.epoch, None, _Known(offering, published.records, published))


def _is_newest(head: Head, issued: Issued) -> bool:
    if issued.head is not None:
        return (head.epoch, head.sequence) >= (issued.head.epoch, issued.head.sequence)
    return issued.published is None or head.stable.version >= issued.published.version


def _as_told(
    head: Head,
    stable: tuple[Record, ...] | None,
    candidate: tuple[Record, ...] | None,
    issued: Issued,
) -> _Told:
    return _Told(
        head.epoch,
        head,
        _known(head.stable, stable, issued),
        None if head.candidate is None else _known(head.candidate.offering, candidate, issued),
    )


def _known(offering: Offering, records: tuple[Record, ...] | None, issued: Issued) -> _Known:
    content = next(
        (each for each in (issued.published, issued.candidate) if each and each.digest == offering.digest),
        None,
    )
    if records is None and content is not None:
        records = content.records
    continues = content is not None and content.version == offering.version
    return _Known(offering, records, content if continues else None)


def _highest(live: Live | None, issued: Issued) -> Version:
    versions = [issued.version]
    if live is not None:
        versions.extend(offering.version for offering in _offerings(live.head))
    return max(versions)


def _offerings(head: Head) -> tuple[Offering, ...]:
    return (head.stable,) if head.candidate is None else (head.stable, head.candidate.offering)


def _past(version: Version, records: Iterable[Record]) -> Past:
    digests = {record.id: record.digest for record in records}
    return Past(version, content_digest(digests.values()), digests)


def _provenance(case: _Case) -> Mapping[str, str]:
    # What issues no content of its own is no release: where the content came from stays as it was said.
    told = case.told
    return case.terms.provenance if told is None or told.head is None else told.head.provenance


def _stage_of(case: _Case) -> Stage:
    return _rollout_of(case)[2]


def _rollout_of(case: _Case) -> tuple[_Told, _Known, Stage]:
    told = case.told
    if told is None or told.candidate is None or told.stage is None:
        raise PlanRefused(
            f"{case.namespace}: no candidate is out; begin with flagcast publish PATH --candidate PERCENT"
        )
    stage = told.stage
    return told, told.candidate, Stage(stage.share, stage.salt, stage.labels)


def _audience(stage: Stage | Candidate | None) -> str:
    if stage is None:
        return "no device"
    labels = " and ".join(f"{name}={value}" for name, value in sorted((stage.labels or {}).items()))
    return f"{percent(stage.share)} of the devices{' with ' if labels else ''}{labels}"


def _continue(case: _Case, stable: tuple[Record, ...] | None) -> Plan:
    # What the fleet was told stays what it is told. `stable` are the stable records, where the caller has them.
    told, live = case.told, case.live
    assert told is not None, "only what was told can be continued"
    if told.stable.records is None and stable is not None:
        told = replace(told, stable=replace(told.stable, records=stable))
    previous = told.stable.offering.version
    if case.standing is _Standing.WHOLE and live is not None and told.head is not None:
        why = _why_refresh(live.head, case.issued, case.terms)
        if not why:
            return Plan(
                case.namespace,
                Action.UNCHANGED,
                "nothing differs from what is live",
                Diff(),
                previous,
                live.head,
            )
        head = _renew(told.head, case.sequence, case.terms)
        return Plan(case.namespace, Action.REFRESH, why, Diff(), previous, head, head_draft=_head_draft(head))
    action, why = Action.CHANGE, "its old version cannot be continued"
    if case.standing is _Standing.LOST:
        action = Action.RESTORE
        why = "the broker has lost its head" if live is None else "the broker has lost part of it"
        if live is not None and live.is_whole:
            why = "the broker shows an older state of it"
    stands = _stand(case, told.stable)
    out = None if told.candidate is None else _stand(case, told.candidate)
    stage = None if out is None else _stage_of(case)
    return _finish(
        case, action, why, Diff(), stands, provenance=_provenance(case), candidate=out, stage=stage
    )


def _change(case: _Case, action: Action, why: str, records: tuple[Record, ...]) -> Plan:
    before = case.told.stable.records if case.told is not None else None
    content = _new_content(case, records)
    diff = _diff(before or (), records)
    stable = _offer(case, content, in_head=True)
    return _finish(case, action, why, diff, stable, provenance=case.terms.provenance)


def _restage(case: _Case, stage: Stage) -> Plan:
    told, out, before = _rollout_of(case)
    action = Action.SHARE if stage.share else Action.PAUSE
    why = f"the candidate for {_audience(before)} is for {_audience(stage)}"
    if action is Action.PAUSE:
        why = f"the candidate for {_audience(before)} is paused; devices that have it keep it"
    # In this order: a candidate stands above what is stable.
    stable = _stand(case, told.stable)
    return _finish(
        case,
        action,
        why,
        Diff(),
        stable,
        provenance=_provenance(case),
        candidate=_stand(case, out),
        stage=stage,
    )


def _stand(case: _Case, known: _Known) -> _Offer:
    told = case.told
    assert told is not None, "what is known was told"
    is_stable = known.offering == told.stable.offering
    if case.standing is _Standing.WHOLE:
        inline = told.head.inline if told.head is not None else None
        fits = inline is not None and inline.version == known.offering.version
        return _Offer(known.offering, inline=inline if fits else None)
    if case.standing is _Standing.LOST and known.content is not None:
        return _offer(case, known.content, in_head=is_stable)
    if known.records is None:
        raise _unknown(case, known)
    return _offer(case, _new_content(case, known.records), in_head=is_stable)


def _unknown(case: _Case, known: _Known) -> PlanRefused:
    return PlanRefused(
        f"{case.namespace}: version {known.offering.version} is neither whole on the broker nor in the ledger; "
        + (
            "publish its flags again with flagcast publish"
            if case.told is None or case.told.candidate is None or known is case.told.stable
            else "take it back with flagcast rollout abort"
        )
    )


def _finish(
    case: _Case,
    action: Action,
    why: str,
    diff: Diff,
    stable: _Offer,
    *,
    provenance: Mapping[str, str],
    candidate: _Offer | None = None,
    stage: Stage | None = None,
) -> Plan:
    head = _head(case, stable, candidate, stage, provenance)
    draft = _head_draft(head)
    if (
        stable.inline is not None
        and _sealed_size(draft.payload, draft.place, case.terms) > case.terms.message_limit
    ):
        bare = replace(stable, inline=None)
        stable = bare if stable.content is None else _offer(case, stable.content, in_head=False)
        head = _head(case, stable, candidate, stage, provenance)
        draft = _head_draft(head)
    size = _sealed_size(draft.payload, draft.place, case.terms)
    if size > case.terms.message_limit:
        raise InvalidDocument(
            f"{case.namespace}: its head takes {size} bytes, at most {case.terms.message_limit}; less provenance, fewer labels "
            "or deltas, or raise publish.message_limit_bytes"
        )
    offers = [each for each in (stable, candidate) if each is not None]
    return Plan(
        case.namespace,
        action,
        why,
        diff,
        case.previous,
        head,
        tuple(each.content for each in offers if each.content is not None),
        tuple(each for offer in offers for each in offer.drafts),
        draft,
    )


def _head(
    case: _Case,
    stable: _Offer,
    candidate: _Offer | None,
    stage: Stage | None,
    provenance: Mapping[str, str],
) -> Head:
    staged = None
    if candidate is not None and stage is not None:
        staged = Candidate(candidate.offering, stage.share, stage.salt, stage.labels or {})
    terms = case.terms
    return Head(
        terms.environment,
        case.namespace,
        terms.epoch,
        case.sequence,
        terms.now,
        terms.now + terms.head_lifetime,
        stable.offering,
        staged,
        provenance,
        stable.inline,
    )


def _why_refresh(head: Head, issued: Issued, terms: Terms) -> str:
    if terms.forces_refresh:
        return "a new head was asked for"
    if head.sequence < issued.sequence:
        return f"head {issued.sequence} was issued, and the broker shows {head.sequence}"
    remaining = head.expires - terms.now
    if remaining <= 0:
        return "its head has expired"
    if terms.now >= renew_at(head):
        return "its head expires soon"
    return ""


def renew_at(head: Head) -> int:
    """From when on (Unix seconds) a head is to be renewed: half of its lifetime, so that one missed run is no alarm."""
    return head.issued + (head.expires - head.issued) // _REFRESH_SHARE


def _renew(head: Head, sequence: HeadSequence, terms: Terms) -> Head:
    # The inline delta stays: a device that missed the last change can still use it.
    return replace(
        head,
        sequence=sequence,
        issued=terms.now,
        expires=terms.now + terms.head_lifetime,
    )


def _records(namespace: Namespace, wanted: Iterable[Entry]) -> tuple[Record, ...]:
    records: dict[RecordId, Record] = {}
    for entry in wanted:
        if isinstance(entry, UnsupportedRecord):
            raise InvalidDocument(f"{namespace}: a {entry.kind} is of no known kind")
        try:
            record = encode_record(entry)
        except Malformed as error:
            raise InvalidDocument(f"{namespace}: {error}") from error
        if record.id in records:
            raise InvalidDocument(f"{namespace}: {record.id.kind} {record.id.key} stands twice")
        records[record.id] = record
    if fault := extent_of(records.values()).over_limit():
        raise InvalidDocument(f"{namespace}: {fault}")
    return tuple(records[identity] for identity in sorted(records))


def _diff(before: Iterable[Record], after: Iterable[Record]) -> Diff:
    old = {record.id: record for record in before}
    new = {record.id: record for record in after}
    changed = [each for each in sorted(new.keys() & old.keys()) if old[each].digest != new[each].digest]
    return Diff(
        tuple(sorted(new.keys() - old.keys())),
        tuple(Changed(each, _what_changed(old[each].entry, new[each].entry)) for each in changed),
        tuple(sorted(old.keys() - new.keys())),
        _answers(old, new, {*changed, *(new.keys() ^ old.keys())}),
        sum(identity.kind == _FLAG for identity in old),
    )


def _answers(
    old: Mapping[RecordId, Record], new: Mapping[RecordId, Record], differing: Iterable[RecordId]
) -> dict[RecordId, Answers]:
    # A flag that refers to a segment which changed from or to one for everyone answers otherwise too, under the same bytes.
    sides = [
        (each, describe.matching_everyone(record.entry for record in each.values())) for each in (old, new)
    ]
    shifted = sides[0][1] ^ sides[1][1]
    also = (
        each
        for each in new.keys() & old.keys()
        if isinstance(entry := new[each].entry, BooleanFlag | VariantFlag)
        and describe.segments_of(entry) & shifted
    )
    found = {}
    for identity in sorted({*differing, *also}):
        words, is_off = [], False
        for records, everyone in sides:
            record = records.get(identity)
            flag = None if record is None else record.entry
            if isinstance(flag, BooleanFlag | VariantFlag | UnsupportedFlag):
                words.append(describe.answers(flag, everyone))
                is_off = describe.is_off(flag, everyone)
            else:
                words.append("")
                is_off = False
        if words[0] != words[1]:
            found[identity] = Answers(words[0], words[1], is_off)
    return found


def _what_changed(before: Entry, after: Entry) -> str:
    flags = (BooleanFlag, VariantFlag)
    if isinstance(before, flags) and isinstance(after, flags):
        return describe.change(before, after)
    unknown = (UnsupportedFlag, UnsupportedSegment, UnsupportedRecord)
    if type(before) is not type(after) or isinstance(before, unknown):
        return "type"
    words = []
    for each in fields(after):
        old, new = getattr(before, each.name), getattr(after, each.name)
        if old != new:
            words.append(f"{each.name} {_shown(old)} -> {_shown(new)}" if _is_short(old, new) else each.name)
    return ", ".join(words)


def _is_short(*values: object) -> bool:
    return all(value is None or isinstance(value, bool | str) for value in values)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else str(value)


def _digest(records: Iterable[Record]) -> Digest:
    return content_digest(record.digest for record in records)


def _new_content(case: _Case, records: tuple[Record, ...]) -> Content:
    namespace, terms = case.namespace, case.terms
    content = encode_content(records)
    if len(content) > CONTENT_MAX_BYTES:
        raise InvalidDocument(f"{namespace}: {len(content)} bytes, at most {CONTENT_MAX_BYTES}")
    body = deflate(content)
    parts = -(-len(body) // _room(namespace, terms))
    if parts > PARTS_MAX:
        raise InvalidDocument(
            f"{namespace}: {len(body)} compressed bytes are {parts} messages of {terms.message_limit} bytes, at most "
            f"{PARTS_MAX}; raise publish.message_limit_bytes"
        )
    return Content(case.next_version(), terms.epoch, _digest(records), parts, body, records)


def _room(namespace: Namespace, terms: Terms) -> int:
    # What a part's body may take so that the signed message keeps the limit, measured on a part with the longest numbers.
    body = bytes(terms.message_limit)
    largest = SnapshotPart(
        terms.environment, namespace, terms.epoch, Version(NUMBER_MAX), PARTS_MAX - 1, PARTS_MAX, body
    )
    place = Place(terms.environment, namespace, Kind.SNAPSHOT)
    return terms.message_limit - (_sealed_size(encode_part(largest), place, terms) - len(body))


def _sealed_size(payload: bytes, place: Place, terms: Terms) -> int:
    signatures = [
        (KeyId(number.to_bytes(KEY_ID_BYTES, "big")), bytes(SIGNATURE_BYTES))
        for number in range(terms.signatures)
    ]
    return len(seal(payload, place, signatures, several=terms.signatures > 1))


def _offer(case: _Case, content: Content, *, in_head: bool) -> _Offer:
    # The content in parts, with deltas from the last versions, newest first: the first may travel in the head, the others are
    # messages of their own where they are smaller than the snapshot. What has the same digest needs none.
    terms = case.terms
    below = [past for past in case.pasts() if past.version < content.version][: max(terms.deltas, 1)]
    bases = [past for past in below if past.digest != content.digest]
    drafts = _part_drafts(case.namespace, content, terms)
    place = Place(terms.environment, case.namespace, Kind.DELTA)
    inline: InlineDelta | None = None
    kept: list[Version] = []
    room = terms.deltas_total if terms.deltas else 0
    for base in bases:
        body = _delta_body(base, content.records)
        if in_head and base is bases[0] and len(body) <= INLINE_DELTA_MAX_BYTES:
            inline = InlineDelta(base.version, content.version, body)
            continue
        payload = encode_delta_message(
            Delta(terms.environment, case.namespace, terms.epoch, content.version, base.version, body)
        )
        size = _sealed_size(payload, place, terms)
        if len(body) < len(content.body) and size <= min(room, terms.message_limit):
            room -= size
            kept.append(base.version)
            drafts.append(Draft(DeltaAddress(case.namespace, content.version, base.version), place, payload))
    offering = Offering(content.version, content.digest, len(content.body), content.parts, tuple(kept))
    return _Offer(offering, content, tuple(drafts), inline)


def _delta_body(base: Past, records: Sequence[Record]) -> bytes:
    after = {record.id for record in records}
    changed = [record for record in records if base.records.get(record.id) != record.digest]
    return deflate(encode_delta([identity for identity in base.records if identity not in after], changed))


def _part_drafts(namespace: Namespace, content: Content, terms: Terms) -> list[Draft]:
    size = part_size(content)
    place = Place(terms.environment, namespace, Kind.SNAPSHOT)
    return [
        Draft(
            SnapshotAddress(namespace, content.version, part),
            place,
            encode_part(
                SnapshotPart(
                    terms.environment,
                    namespace,
                    content.epoch,
                    content.version,
                    part,
                    content.parts,
                    content.body[part * size : (part + 1) * size],
                )
            ),
        )
        for part in range(content.parts)
    ]


def _head_draft(head: Head) -> Draft:
    return Draft(
        HeadAddress(head.namespace), Place(head.environment, head.namespace, Kind.HEAD), encode_head(head)
    )
