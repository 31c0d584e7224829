"""What to publish: decided from what is wanted, what is live, what was ever issued, and the time. Pure.

A namespace ends in one of four ways:

    UNCHANGED  the fleet has been told exactly this, and its head stays fresh for more than half of its lifetime
    REFRESH    the same content under a new head
    RESTORE    the same content under its old version, published again because the broker lost some of it, and a new head
    CHANGE     a content under a version of its own, and a new head

Content under one version is the same bytes for ever: that is why RESTORE takes the ledger's own body, and why a version whose
bytes are no longer known is not continued.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Final

from flagcast_shared.codec import deflate
from flagcast_shared.envelope import SIGNATURE_BYTES, seal
from flagcast_shared.errors import InvalidDocument, Malformed
from flagcast_shared.ids import Digest, Environment, Epoch, KeyId, Namespace, RecordId, Version
from flagcast_shared.ids import Sequence as HeadSequence
from flagcast_shared.limits import (
    CONTENT_MAX_BYTES,
    INLINE_DELTA_MAX_BYTES,
    NUMBER_MAX,
    PARTS_MAX,
    RECORDS_MAX,
)
from flagcast_shared.messages import (
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
from flagcast_shared.model import Entry, UnsupportedFlag, UnsupportedRecord, UnsupportedSegment
from flagcast_shared.records import (
    Record,
    content_digest,
    encode_content,
    encode_delta,
    encode_record,
)
from flagcast_shared.root import KEY_ID_BYTES
from flagcast_shared.topics import Address, DeltaAddress, HeadAddress, Kind, SnapshotAddress

_NO_VERSION: Final = Version(0)
_NO_SEQUENCE: Final = HeadSequence(0)
# Numbers that are issued begin at 1.

_REFRESH_SHARE: Final = 2
# A head is renewed in the second half of its lifetime, so that one missed run of the publisher is no alarm.


class Action(StrEnum):
    """How a namespace ends; see the module."""

    UNCHANGED = "unchanged"
    REFRESH = "refresh"
    RESTORE = "restore"
    CHANGE = "change"


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
class Live:
    """What stands on the broker for a namespace, verified. `records` is None where its snapshot is not there whole."""

    head: Head
    records: tuple[Record, ...] | None


@dataclass(frozen=True, slots=True)
class Issued:
    """What the ledger knows of a namespace: the highest numbers ever reserved, and what was published last."""

    version: Version = _NO_VERSION
    sequence: HeadSequence = _NO_SEQUENCE
    published: Content | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for a whole run. `signatures` is how many each message carries; spans in seconds, sizes in bytes."""

    environment: Environment
    epoch: Epoch
    now: int
    head_lifetime: int
    message_limit: int
    signatures: int = 1
    provenance: Mapping[str, str] = field(default_factory=dict)
    forces_refresh: bool = False


@dataclass(frozen=True, slots=True)
class Changed:
    """A record that stays under another body, and what differs, for people."""

    id: RecordId
    what: str


@dataclass(frozen=True, slots=True)
class Diff:
    """From the content that the fleet was told last to the one that is wanted, each in order."""

    added: tuple[RecordId, ...] = ()
    changed: tuple[Changed, ...] = ()
    removed: tuple[RecordId, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.added or self.changed or self.removed)


@dataclass(frozen=True, slots=True)
class Draft:
    """A message that is not signed yet."""

    address: Address
    place: Place
    payload: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do for one namespace. `head` is the one that stands when it is done; `previous` the version told before.

    `content` is what is issued or restored, None where only the head is new. `body` are the drafts that must stand on the
    broker before `head_draft` may be published.
    """

    namespace: Namespace
    action: Action
    why: str
    diff: Diff
    previous: Version | None
    head: Head
    content: Content | None = None
    body: tuple[Draft, ...] = ()
    head_draft: Draft | None = None


def plan(
    namespace: Namespace, wanted: Iterable[Entry], live: Live | None, issued: Issued, terms: Terms
) -> Plan:
    """What to publish for one namespace.

    Raises:
        InvalidDocument: the content is beyond a limit of the wire.
    """
    records = _records(namespace, wanted)
    digest = content_digest(record.digest for record in records)
    told = _told(live, issued)
    diff = _diff(told.records if told is not None and told.records is not None else (), records)
    previous = told.version if told is not None else None
    highest = _highest(live, issued)
    sequence = HeadSequence(max(issued.sequence, live.head.sequence if live is not None else 0) + 1)
    if max(highest, sequence) >= NUMBER_MAX:
        raise InvalidDocument(
            f"{namespace}: its numbers are used up; a new root with new publisher keys is needed"
        )
    keeps_version = (
        told is not None
        and told.digest == digest
        and told.epoch == terms.epoch
        and told.version == highest
        and (live is None or live.head.candidate is None)
    )
    if (
        keeps_version
        and live is not None
        and live.head.stable.version == highest
        and live.records is not None
    ):
        why = _why_refresh(live.head, issued, terms)
        if not why:
            return Plan(
                namespace, Action.UNCHANGED, "nothing differs from what is live", diff, previous, live.head
            )
        head = _renew(live.head, sequence, terms)
        return Plan(namespace, Action.REFRESH, why, diff, previous, head, head_draft=_head_draft(head))
    content = issued.published
    if keeps_version and content is not None and content.version == highest and content.digest == digest:
        why = "the broker has lost its head" if live is None else "the broker has lost part of it"
        return _issue(
            namespace,
            Action.RESTORE,
            why,
            content,
            base=None,
            sequence=sequence,
            diff=diff,
            previous=previous,
            terms=terms,
        )
    content = _new_content(namespace, Version(highest + 1), digest, records, terms)
    why = "it differs from what was published" if diff else "its old version cannot be continued"
    if told is None:
        why = "it is new"
    return _issue(
        namespace,
        Action.CHANGE,
        why,
        content,
        base=told,
        sequence=sequence,
        diff=diff,
        previous=previous,
        terms=terms,
    )


def obsolete(heads: Iterable[Head], retained: Iterable[Address]) -> list[Address]:
    """The snapshots and deltas among `retained` that belong to the heads' namespaces and that no head names, in order."""
    named: dict[Namespace, set[Address]] = {}
    for head in heads:
        keep = named.setdefault(head.namespace, set())
        for offering in _offerings(head):
            keep.update(
                SnapshotAddress(head.namespace, offering.version, part) for part in range(offering.parts)
            )
            keep.update(DeltaAddress(head.namespace, offering.version, old) for old in offering.deltas)
    found = [
        address
        for address in retained
        if isinstance(address, SnapshotAddress | DeltaAddress)
        and address.namespace in named
        and address not in named[address.namespace]
    ]
    return sorted(found, key=repr)


def part_size(content: Content) -> int:
    """The bytes of every part of a content but the last, which is the rest."""
    return -(-len(content.body) // content.parts)


@dataclass(frozen=True, slots=True)
class _Told:
    # The content that the fleet most likely holds.
    version: Version
    epoch: Epoch
    digest: Digest
    records: tuple[Record, ...] | None


def _told(live: Live | None, issued: Issued) -> _Told | None:
    published = issued.published
    # A broker restored from an old save shows less than the ledger knows; the fleet has seen more.
    if live is not None and (published is None or live.head.stable.version >= published.version):
        stable = live.head.stable
        records = live.records
        if records is None and published is not None and published.digest == stable.digest:
            records = published.records
        return _Told(stable.version, live.head.epoch, stable.digest, records)
    if published is None:
        return None
    return _Told(published.version, published.epoch, published.digest, published.records)


def _highest(live: Live | None, issued: Issued) -> Version:
    versions = [issued.version]
    if live is not None:
        versions.extend(offering.version for offering in _offerings(live.head))
    return max(versions)


def _offerings(head: Head) -> tuple[Offering, ...]:
    return (head.stable,) if head.candidate is None else (head.stable, head.candidate.offering)


def _why_refresh(head: Head, issued: Issued, terms: Terms) -> str:
    if terms.forces_refresh:
        return "a new head was asked for"
    if head.sequence < issued.sequence:
        return f"head {issued.sequence} was issued, and the broker shows {head.sequence}"
    remaining = head.expires - terms.now
    if remaining <= 0:
        return "its head has expired"
    if remaining <= terms.head_lifetime // _REFRESH_SHARE:
        return "its head expires soon"
    return ""


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
    if len(records) > RECORDS_MAX:
        raise InvalidDocument(f"{namespace}: {len(records)} flags and segments, at most {RECORDS_MAX}")
    return tuple(records[identity] for identity in sorted(records))


def _diff(before: Iterable[Record], after: Iterable[Record]) -> Diff:
    old = {record.id: record for record in before}
    new = {record.id: record for record in after}
    return Diff(
        tuple(sorted(new.keys() - old.keys())),
        tuple(
            Changed(identity, _what_changed(old[identity].entry, new[identity].entry))
            for identity in sorted(new.keys() & old.keys())
            if old[identity].digest != new[identity].digest
        ),
        tuple(sorted(old.keys() - new.keys())),
    )


def _what_changed(before: Entry, after: Entry) -> str:
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


def _new_content(
    namespace: Namespace, version: Version, digest: Digest, records: tuple[Record, ...], terms: Terms
) -> Content:
    inflated = encode_content(records)
    if len(inflated) > CONTENT_MAX_BYTES:
        raise InvalidDocument(f"{namespace}: {len(inflated)} bytes, at most {CONTENT_MAX_BYTES}")
    body = deflate(inflated)
    parts = -(-len(body) // _room(namespace, terms))
    if parts > PARTS_MAX:
        raise InvalidDocument(
            f"{namespace}: {len(body)} compressed bytes are {parts} messages of {terms.message_limit} bytes, at most "
            f"{PARTS_MAX}; raise publish.message_limit_bytes"
        )
    return Content(version, terms.epoch, digest, parts, body, records)


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


def _issue(
    namespace: Namespace,
    action: Action,
    why: str,
    content: Content,
    *,
    base: _Told | None,
    sequence: HeadSequence,
    diff: Diff,
    previous: Version | None,
    terms: Terms,
) -> Plan:
    head = Head(
        terms.environment,
        namespace,
        terms.epoch,
        sequence,
        terms.now,
        terms.now + terms.head_lifetime,
        Offering(content.version, content.digest, len(content.body), content.parts),
        provenance=terms.provenance,
    )
    drafts = _part_drafts(namespace, content, terms)
    if base is not None and base.records is not None:
        head, delta = _with_delta(head, content, base, base.records, terms)
        drafts.extend(delta)
    return Plan(namespace, action, why, diff, previous, head, content, tuple(drafts), _head_draft(head))


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


def _with_delta(
    head: Head, content: Content, base: _Told, known: Sequence[Record], terms: Terms
) -> tuple[Head, Sequence[Draft]]:
    # The smallest of: inline in the head, a message of its own, none where the snapshot is as cheap.
    namespace = head.namespace
    before = {record.id: record.digest for record in known}
    after = {record.id for record in content.records}
    changed = [record for record in content.records if before.get(record.id) != record.digest]
    body = deflate(encode_delta([identity for identity in before if identity not in after], changed))
    if len(body) <= INLINE_DELTA_MAX_BYTES:
        with_inline = replace(head, inline=InlineDelta(base.version, content.version, body))
        draft = _head_draft(with_inline)
        if _sealed_size(draft.payload, draft.place, terms) <= terms.message_limit:
            return with_inline, ()
    place = Place(terms.environment, namespace, Kind.DELTA)
    payload = encode_delta_message(
        Delta(terms.environment, namespace, terms.epoch, content.version, base.version, body)
    )
    if len(body) >= len(content.body) or _sealed_size(payload, place, terms) > terms.message_limit:
        return head, ()
    address = DeltaAddress(namespace, content.version, base.version)
    with_delta = replace(head, stable=replace(head.stable, deltas=(base.version,)))
    return with_delta, (Draft(address, place, payload),)


def _head_draft(head: Head) -> Draft:
    return Draft(
        HeadAddress(head.namespace), Place(head.environment, head.namespace, Kind.HEAD), encode_head(head)
    )
