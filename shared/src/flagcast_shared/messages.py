"""The payloads that a publisher signs: head, snapshot part, delta. Encoded and decoded here, believed nowhere.

Field numbers are given beside each encoder; docs/wire-format.md holds the same as CDDL. Decoding raises Malformed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from .codec import Fields, Value, decode, encode, integer
from .errors import Replayed, UnknownFormat
from .ids import Digest, Environment, Epoch, Namespace, Sequence, Version
from .limits import (
    CONTENT_MAX_BYTES,
    DELTAS_MAX,
    INLINE_DELTA_MAX_BYTES,
    KEY_MAX_BYTES,
    LABEL_MAX_BYTES,
    LABELS_MAX,
    MESSAGE_MAX_BYTES,
    PARTS_MAX,
    PROVENANCE_MAX_ENTRIES,
    PROVENANCE_TEXT_MAX_BYTES,
)
from .topics import FORMAT, Kind

SHARE_ALL: Final = 10_000
"""A candidate's share is in hundredths of a percent."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message is valid; it is signed together with the payload. A root has the namespace ""."""

    environment: Environment
    namespace: Namespace
    kind: Kind


@dataclass(frozen=True, slots=True)
class Offering:
    """A content that a head offers: its snapshot is `size` compressed bytes in `parts` parts."""

    version: Version
    digest: Digest
    size: int
    parts: int
    deltas: tuple[Version, ...] = ()
    """The versions from which a delta to this one stands on the broker."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An offering for some of the devices: `share` hundredths of a percent of those that carry all `labels`."""

    offering: Offering
    share: int
    salt: bytes
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InlineDelta:
    """A small delta that travels inside the head; `body` is compressed."""

    from_version: Version
    version: Version
    body: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """The small truth of a namespace: what is current and until when that is fresh (Unix seconds)."""

    environment: Environment
    namespace: Namespace
    epoch: Epoch
    sequence: Sequence
    issued: int
    expires: int
    stable: Offering
    candidate: Candidate | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    inline: InlineDelta | None = None


@dataclass(frozen=True, slots=True)
class SnapshotPart:
    """One part of a compressed snapshot; parts count from 0."""

    environment: Environment
    namespace: Namespace
    epoch: Epoch
    version: Version
    part: int
    parts: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Delta:
    """What leads from one version to another, compressed."""

    environment: Environment
    namespace: Namespace
    epoch: Epoch
    version: Version
    from_version: Version
    body: bytes


def encode_head(head: Head) -> bytes:
    """1 format, 2 kind, 3 environment, 4 namespace, 5 epoch, 6 sequence, 7 issued, 8 expires, 9 stable, 10 candidate,
    11 provenance, 12 inline delta (1 from, 2 version, 3 body).
    """
    fields = _common(head.environment, head.namespace, Kind.HEAD, head.epoch)
    fields |= {6: head.sequence, 7: head.issued, 8: head.expires, 9: _offering_fields(head.stable)}
    if head.candidate is not None:
        candidate = _offering_fields(head.candidate.offering)
        candidate |= {6: head.candidate.share, 7: head.candidate.salt}
        if head.candidate.labels:
            candidate[8] = dict(head.candidate.labels)
        fields[10] = candidate
    if head.provenance:
        fields[11] = dict(head.provenance)
    if head.inline is not None:
        fields[12] = {1: head.inline.from_version, 2: head.inline.version, 3: head.inline.body}
    return encode(fields)


def decode_head(payload: bytes, place: Place) -> Head:
    """A head from its payload, which must name the place it was found at."""
    fields = open_payload(payload, place)
    issued = fields.integer(7)
    provenance = fields.texts(11, PROVENANCE_MAX_ENTRIES, PROVENANCE_TEXT_MAX_BYTES)
    inline = None
    if 12 in fields:
        body = Fields(fields.get(12), "head, inline delta")
        inline = InlineDelta(
            Version(body.integer(1)), Version(body.integer(2)), body.bytes(3, 1, INLINE_DELTA_MAX_BYTES)
        )
    return Head(
        place.environment,
        place.namespace,
        Epoch(fields.integer(5)),
        Sequence(fields.integer(6)),
        issued,
        fields.integer(8, issued),
        _read_offering(Fields(fields.get(9), "head, stable")),
        _read_candidate(Fields(fields.get(10), "head, candidate")) if 10 in fields else None,
        provenance,
        inline,
    )


def encode_part(part: SnapshotPart) -> bytes:
    """1 to 5 as in a head, 6 version, 7 part, 8 parts, 9 body."""
    fields = _common(part.environment, part.namespace, Kind.SNAPSHOT, part.epoch)
    return encode(fields | {6: part.version, 7: part.part, 8: part.parts, 9: part.body})


def decode_part(payload: bytes, place: Place) -> SnapshotPart:
    """A part of a snapshot from its payload, which must name the place it was found at."""
    fields = open_payload(payload, place)
    parts = fields.integer(8, 1, PARTS_MAX)
    return SnapshotPart(
        place.environment,
        place.namespace,
        Epoch(fields.integer(5)),
        Version(fields.integer(6)),
        fields.integer(7, 0, parts - 1),
        parts,
        fields.bytes(9, 1, MESSAGE_MAX_BYTES),
    )


def encode_delta_message(delta: Delta) -> bytes:
    """1 to 5 as in a head, 6 version, 7 from, 9 body."""
    fields = _common(delta.environment, delta.namespace, Kind.DELTA, delta.epoch)
    return encode(fields | {6: delta.version, 7: delta.from_version, 9: delta.body})


def decode_delta_message(payload: bytes, place: Place) -> Delta:
    """A delta from its payload, which must name the place it was found at."""
    fields = open_payload(payload, place)
    return Delta(
        place.environment,
        place.namespace,
        Epoch(fields.integer(5)),
        Version(fields.integer(6)),
        Version(fields.integer(7)),
        fields.bytes(9, 1, MESSAGE_MAX_BYTES),
    )


def open_payload(payload: bytes, place: Place) -> Fields:
    """The fields of any payload, once format, kind, environment and namespace fit the place.

    Raises:
        UnknownFormat: a later format version.
        Replayed: made for another place.
        Malformed: not a payload at all.
    """
    fields = Fields(decode(payload, place.kind), place.kind)
    if (spoken := fields.integer(1)) != FORMAT:
        raise UnknownFormat(f"{place.kind}: format {spoken}; this release speaks format {FORMAT}")
    found = (fields.text(2, KEY_MAX_BYTES), fields.text(3, KEY_MAX_BYTES), fields.text(4, KEY_MAX_BYTES))
    if found != (place.kind, place.environment, place.namespace):
        raise Replayed(
            f"made as {found[0]} for environment {found[1]!r}, namespace {found[2]!r}; found as {place.kind} "
            f"in {place.environment!r}, {place.namespace!r}"
        )
    return fields


def _common(environment: Environment, namespace: Namespace, kind: Kind, epoch: Epoch) -> dict[int, Value]:
    return {1: FORMAT, 2: kind.value, 3: environment, 4: namespace, 5: epoch}


def _offering_fields(offering: Offering) -> dict[int, Value]:
    # 1 version, 2 digest, 3 size, 4 parts, 5 deltas; a candidate adds 6 share, 7 salt, 8 labels.
    fields: dict[int, Value] = {1: offering.version, 2: offering.digest, 3: offering.size, 4: offering.parts}
    if offering.deltas:
        fields[5] = list(offering.deltas)
    return fields


def _read_offering(fields: Fields) -> Offering:
    return Offering(
        Version(fields.integer(1)),
        Digest(fields.bytes(2, 32, 32)),
        fields.integer(3, 1, CONTENT_MAX_BYTES),
        fields.integer(4, 1, PARTS_MAX),
        tuple(Version(integer(item, "head, deltas")) for item in fields.array(5, DELTAS_MAX)),
    )


def _read_candidate(fields: Fields) -> Candidate:
    return Candidate(
        _read_offering(fields),
        fields.integer(6, 0, SHARE_ALL),
        fields.bytes(7, 1, 32),
        fields.texts(8, LABELS_MAX, LABEL_MAX_BYTES),
    )
