"""Records: one flag or segment as bytes, and the digest of all of a namespace's records.

A record is the deterministic CBOR of `[kind, key, body]`. Its digest is the SHA-256 of those bytes; the content
digest is the SHA-256 of all record digests, sorted and joined. So one changed flag is checked, written and compiled
alone. A wrong shape raises Malformed. A word that this release does not know makes an Unsupported entry: fields are read in
ascending order and lists in theirs, and after the first unknown word nothing further of the body.
"""

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeVar

from .codec import Fields, Items, Value, array, decode_counted, encode, integer, scan, text
from .constraints import TAKES, Takes
from .errors import Malformed, TooLarge
from .ids import Digest, FlagKey, RecordId, SegmentKey, VariantKey
from .limits import (
    CONTENT_ITEMS_MAX,
    CONTENT_MAX_BYTES,
    KEY_MAX_BYTES,
    METADATA_MAX_BYTES,
    NUMBER_MAX,
    RECORD_MAX_BYTES,
    RECORDS_MAX,
    TEXT_MAX_BYTES,
)
from .literals import parse_float
from .model import (
    AnySegment,
    BooleanFlag,
    Constraint,
    ConstraintType,
    ConstraintValue,
    Distribution,
    Entry,
    Flag,
    Instant,
    Join,
    Match,
    Operator,
    Rollout,
    Rule,
    Segment,
    SegmentRollout,
    ThresholdRollout,
    UnsupportedFlag,
    UnsupportedRecord,
    UnsupportedSegment,
    Variant,
    VariantFlag,
)

FLAG: Final = "flag"
SEGMENT: Final = "segment"

_LIST_MAX: Final = RECORD_MAX_BYTES
# A list inside a record is bounded by the record's own size.


@dataclass(frozen=True, slots=True)
class Record:
    """A decoded record with the bytes that its digest covers, and how many CBOR items they hold."""

    id: RecordId
    digest: Digest
    data: bytes
    entry: Entry
    items: int

    @property
    def extent(self) -> "Extent":
        """Its share of a content's extent."""
        return Extent(1, len(self.data), self.items)


@dataclass(frozen=True, slots=True)
class Extent:
    """The extent of a content: its records, their bytes, and the CBOR items in them."""

    records: int = 0
    bytes: int = 0
    items: int = 0

    def __add__(self, other: "Extent") -> "Extent":
        return Extent(self.records + other.records, self.bytes + other.bytes, self.items + other.items)

    def over_limit(self) -> str:
        """The limit of `flagcast_shared.limits` that it is over, in words; empty where there is none."""
        for number, limit, what in (
            (self.records, RECORDS_MAX, "flags and segments"),
            (self.bytes, CONTENT_MAX_BYTES, "bytes of flags and segments"),
            (self.items, CONTENT_ITEMS_MAX, "CBOR items (lists, numbers, texts) in flags and segments"),
        ):
            if number > limit:
                return f"{number} {what}, at most {limit}"
        return ""


def measure(listed: Iterable[bytes], what: str, held: Extent | None = None) -> Extent:
    """Extent of encoded records, added to `held`, before any of them is decoded.

    Raises:
        TooLarge: over a limit of a namespace; the rest is not looked at.
        Malformed: or one of its leaves, for a record that is not the one spelling of its data.
    """
    extent = held or Extent()
    for data in listed:
        extent += Extent(1, len(data), scan(data, "record"))
        if fault := extent.over_limit():
            raise TooLarge(f"{what}: {fault}")
    return extent


def extent_of(records: Iterable[Record]) -> Extent:
    """The extent of these records together."""
    listed = tuple(records)
    return Extent(len(listed), sum(len(each.data) for each in listed), sum(each.items for each in listed))


_Word = TypeVar("_Word", ConstraintType, Operator, Match, Join)
_Ordered = TypeVar("_Ordered", bytes, RecordId)


class _UnknownWord(Exception):
    """A word of a newer publisher; makes the entry Unsupported."""


def digest_of(data: bytes) -> Digest:
    """SHA-256, of a record or of a payload."""
    return Digest(hashlib.sha256(data).digest())


def content_digest(digests: Iterable[Digest]) -> Digest:
    """The digest of a namespace's content from the digests of its records, in any order."""
    return digest_of_ascending(sorted(digests))


def digest_of_ascending(digests: Sequence[Digest]) -> Digest:
    """The same from digests that ascend already."""
    return Digest(hashlib.sha256(b"".join(digests)).digest())


def exchange(ascending: Sequence[Digest], gone: Iterable[Digest], come: Iterable[Digest]) -> Sequence[Digest]:
    """Ascending digests without those that are `gone`, each of which is among them, and with those that `come`."""
    digests = list(ascending)
    for digest in gone:
        del digests[bisect_left(digests, digest)]
    for digest in come:
        insort(digests, digest)
    return digests


def encode_record(entry: Flag | AnySegment) -> Record:
    """An entry as a record.

    Raises:
        TooLarge: over RECORD_MAX_BYTES or ITEMS_MAX.
        Malformed: an Unsupported entry, which has no bytes of its own; a text that is not Unicode.
    """
    body: Value
    match entry:
        case BooleanFlag():
            kind, body = FLAG, _boolean_body(entry)
        case VariantFlag():
            kind, body = FLAG, _variant_body(entry)
        case Segment():
            kind, body = SEGMENT, _segment_body(entry)
        case _:
            raise Malformed(f"{entry.key}: a record of unknown words cannot be encoded")
    data = encode([kind, str(entry.key), body])
    if len(data) > RECORD_MAX_BYTES:
        raise TooLarge(f"{kind} {entry.key}: {len(data)} bytes, at most {RECORD_MAX_BYTES}")
    return Record(RecordId(kind, entry.key), digest_of(data), data, entry, scan(data, f"{kind} {entry.key}"))


def decode_record(data: bytes) -> Record:
    """A record from its bytes.

    Raises:
        Malformed: or one of its leaves.
    """
    if len(data) > RECORD_MAX_BYTES:
        raise TooLarge(f"record: {len(data)} bytes, at most {RECORD_MAX_BYTES}")
    value, items = decode_counted(data, "record")
    parts = array(value, "record", high=3)
    if len(parts) != 3:
        raise Malformed("record: not [kind, key, body]")
    kind = text(parts[0], "record kind", KEY_MAX_BYTES)
    key = text(parts[1], "record key", KEY_MAX_BYTES)
    entry: Entry
    if kind == FLAG:
        entry = _read_flag(FlagKey(key), Fields(parts[2], f"flag {key}"))
    elif kind == SEGMENT:
        entry = _read_segment(SegmentKey(key), Fields(parts[2], f"segment {key}"))
    else:
        entry = UnsupportedRecord(kind, key)
    return Record(RecordId(kind, key), digest_of(data), data, entry, items)


def encode_content(records: Iterable[Record]) -> bytes:
    """The body of a snapshot before compression: the records, ascending by their bytes."""
    return encode(sorted(record.data for record in records))


def split_content(pieces: Iterable[bytes]) -> Sequence[bytes]:
    """The records' bytes of an inflated snapshot body: ascending, so none stands twice.

    Their number is compared with RECORDS_MAX first, and each is taken as it comes.

    Raises:
        Malformed: or one of its leaves; also from `pieces`.
    """
    items = Items(pieces, "snapshot")
    listed = _byte_strings(items, "snapshot")
    items.end()
    if not _ascends(listed):
        raise Malformed("snapshot: its records do not ascend")
    return listed


def encode_delta(removed: Iterable[RecordId], changed: Iterable[Record]) -> bytes:
    """The body of a delta before compression: `[removed, changed]`."""
    return encode(
        [[list(identity) for identity in sorted(removed)], sorted(record.data for record in changed)]
    )


def split_delta(pieces: Iterable[bytes]) -> tuple[Sequence[RecordId], Sequence[bytes]]:
    """What an inflated delta body removes, and the bytes of the records that it adds or replaces.

    Raises:
        Malformed: or one of its leaves; also from `pieces`.
    """
    items = Items(pieces, "delta")
    if items.array("delta", high=2) != 2:
        raise Malformed("delta: not [removed, changed]")
    removed = []
    for _ in range(items.array("delta, removed", RECORDS_MAX)):
        if items.array("delta, removed", high=2) != 2:
            raise Malformed("delta, removed: not [kind, key]")
        removed.append(
            RecordId(items.text("removed kind", KEY_MAX_BYTES), items.text("removed key", KEY_MAX_BYTES))
        )
    changed = _byte_strings(items, "delta, changed")
    items.end()
    if not (_ascends(removed) and _ascends(changed)):
        raise Malformed("delta: what it removes or changes does not ascend")
    return removed, changed


def _ascends(listed: Sequence[_Ordered]) -> bool:
    return all(first < second for first, second in pairwise(listed))


def _byte_strings(items: Items, what: str) -> list[bytes]:
    return [items.byte_string(what, RECORD_MAX_BYTES) for _ in range(items.array(what, RECORDS_MAX))]


# Field numbers of a flag: 1 type, 2 enabled, 3 rollouts, 4 variants, 5 default, 6 rules, 7 metadata.
# Of a rollout: 1 kind, 2 value, 3 percentage, 4 segments, 5 join. Of a rule: 4 segments, 5 join, 6 distributions.
# Of a segment: 1 match, 2 constraints. Of a constraint: 1 type, 2 property, 3 operator, 4 value.


def _boolean_body(flag: BooleanFlag) -> Mapping[int, Value]:
    body: dict[int, Value] = {1: "boolean", 2: flag.enabled}
    if flag.rollouts:
        body[3] = [_rollout_body(rollout) for rollout in flag.rollouts]
    return {**body, **_metadata_field(flag)}


def _metadata_field(flag: BooleanFlag | VariantFlag) -> Mapping[int, Value]:
    # Without metadata there is no field, so that such a flag has the bytes and the digest that it always had.
    if len(flag.metadata.encode("utf-8", "surrogatepass")) > METADATA_MAX_BYTES:
        raise TooLarge(f"flag {flag.key}: metadata of more than {METADATA_MAX_BYTES} bytes")
    return {7: flag.metadata} if flag.metadata else {}


def _rollout_body(rollout: Rollout) -> Mapping[int, Value]:
    if isinstance(rollout, ThresholdRollout):
        return {1: "threshold", 2: rollout.value, 3: rollout.percentage}
    return {1: "segment", 2: rollout.value, **_joined(rollout.segments, rollout.join)}


def _joined(segments: Sequence[SegmentKey], join: Join) -> dict[int, Value]:
    body: dict[int, Value] = {4: [str(segment) for segment in segments]}
    if join is not Join.OR:
        body[5] = join.value
    return body


def _variant_body(flag: VariantFlag) -> Mapping[int, Value]:
    body: dict[int, Value] = {1: "variant", 2: flag.enabled}
    places = {variant.key: place for place, variant in enumerate(flag.variants)}
    if flag.variants:
        body[4] = [
            [variant.key, variant.attachment] if variant.attachment else [variant.key]
            for variant in flag.variants
        ]
    try:
        if flag.default is not None:
            body[5] = places[flag.default]
        if flag.rules:
            body[6] = [
                {
                    **_joined(rule.segments, rule.join),
                    **(
                        {6: [[places[share.variant], share.bound] for share in rule.distributions]}
                        if rule.distributions
                        else {}
                    ),
                }
                for rule in flag.rules
            ]
    except KeyError as error:
        raise Malformed(f"flag {flag.key}: it has no variant {error}") from error
    return {**body, **_metadata_field(flag)}


def _segment_body(segment: Segment) -> Mapping[int, Value]:
    body: dict[int, Value] = {1: segment.match.value}
    if segment.constraints:
        body[2] = [_constraint_body(constraint) for constraint in segment.constraints]
    return body


def _constraint_body(constraint: Constraint) -> Mapping[int, Value]:
    body: dict[int, Value] = {1: constraint.type.value, 2: constraint.property, 3: constraint.operator.value}
    if constraint.value is not None:
        body[4] = constraint.value if isinstance(constraint.value, str) else list(constraint.value)
    return body


def _read_flag(key: FlagKey, body: Fields) -> Flag:
    try:
        kind = body.text(1, KEY_MAX_BYTES)
        if kind == "boolean":
            is_enabled = body.boolean(2)
            rollouts = tuple(_read_rollout(key, item) for item in body.array(3, _LIST_MAX))
            return BooleanFlag(key, is_enabled, rollouts, _read_metadata(body))
        if kind == "variant":
            return _read_variant_flag(key, body)
        raise _UnknownWord(f"flag type {kind!r}")
    except _UnknownWord as word:
        return UnsupportedFlag(key, f"{word} is not known to this release")


def _read_rollout(key: FlagKey, value: Value) -> Rollout:
    body = Fields(value, f"flag {key}, rollout")
    kind = body.text(1, KEY_MAX_BYTES)
    if kind == "threshold":
        return ThresholdRollout(body.integer(3, 0, 100), body.boolean(2))
    if kind == "segment":
        value = body.boolean(2)
        return SegmentRollout(*_read_joined(body, key), value)
    raise _UnknownWord(f"rollout type {kind!r}")


def _read_joined(body: Fields, key: FlagKey) -> tuple[tuple[SegmentKey, ...], Join]:
    segments = tuple(
        SegmentKey(text(item, f"flag {key}, segment", KEY_MAX_BYTES)) for item in body.array(4, _LIST_MAX)
    )
    return segments, _word(Join, body.text(5, KEY_MAX_BYTES), "segment operator") if 5 in body else Join.OR


def _read_variant_flag(key: FlagKey, body: Fields) -> VariantFlag:
    is_enabled = body.boolean(2)
    variants = tuple(_read_variant(key, item) for item in body.array(4, _LIST_MAX))
    last = len(variants) - 1
    default = variants[body.integer(5, 0, last)].key if 5 in body else None
    rules = []
    for item in body.array(6, _LIST_MAX):
        rule = Fields(item, f"flag {key}, rule")
        joined = _read_joined(rule, key)
        shares: list[Distribution] = []
        for pair in rule.array(6, _LIST_MAX):
            share = array(pair, f"flag {key}, distribution", high=2)
            if len(share) != 2:
                raise Malformed(f"flag {key}, distribution: not [variant, bound]")
            below = shares[-1].bound if shares else 0
            shares.append(
                Distribution(
                    variants[integer(share[0], f"flag {key}, distribution", 0, last)].key,
                    integer(share[1], f"flag {key}, distribution bound", below, 1000),
                )
            )
        if shares and shares[-1].bound != 1000:
            raise Malformed(f"flag {key}: the last bound of a rule is {shares[-1].bound}, not 1000")
        rules.append(Rule(*joined, tuple(shares)))
    return VariantFlag(key, is_enabled, variants, default, tuple(rules), _read_metadata(body))


def _read_metadata(body: Fields) -> str:
    return body.text(7, METADATA_MAX_BYTES) if 7 in body else ""


def _read_variant(key: FlagKey, value: Value) -> Variant:
    parts = array(value, f"flag {key}, variant", high=2)
    if not parts:
        raise Malformed(f"flag {key}, variant: not [key, attachment]")
    name = VariantKey(text(parts[0], f"flag {key}, variant", KEY_MAX_BYTES))
    return Variant(name, text(parts[1], f"flag {key}, attachment", TEXT_MAX_BYTES) if len(parts) == 2 else "")


def _read_segment(key: SegmentKey, body: Fields) -> AnySegment:
    try:
        match = _word(Match, body.text(1, KEY_MAX_BYTES), "match type")
        return Segment(key, match, tuple(_read_constraint(key, item) for item in body.array(2, _LIST_MAX)))
    except _UnknownWord as word:
        return UnsupportedSegment(key, f"{word} is not known to this release")


def _read_constraint(key: SegmentKey, value: Value) -> Constraint:
    what = f"segment {key}, constraint"
    body = Fields(value, what)
    kind = _word(ConstraintType, body.text(1, KEY_MAX_BYTES), "constraint type")
    asked = body.text(2, TEXT_MAX_BYTES)
    operator = _word(Operator, body.text(3, KEY_MAX_BYTES), "operator")
    takes = TAKES.get((kind, operator))
    if takes is None:
        raise _UnknownWord(f"operator {operator.value!r} of type {kind.value!r}")
    return Constraint(kind, asked, operator, _read_value(takes, body, what))


def _read_value(takes: Takes, body: Fields, what: str) -> ConstraintValue:
    match takes:
        case Takes.NONE:
            return None
        case Takes.TEXT:
            return body.text(4, TEXT_MAX_BYTES)
        case Takes.NUMBER:
            return _number(body.text(4, TEXT_MAX_BYTES), what)
        case Takes.TEXTS:
            return tuple(text(item, what, TEXT_MAX_BYTES) for item in body.array(4, _LIST_MAX))
        case Takes.NUMBERS:
            return tuple(_number(text(item, what, TEXT_MAX_BYTES), what) for item in body.array(4, _LIST_MAX))
        case Takes.INSTANT:
            pair = array(body.get(4), f"{what}, instant", high=2)
            if len(pair) != 2:
                raise Malformed(f"{what}, instant: not [seconds, nanoseconds]")
            return Instant(integer(pair[0], what, -NUMBER_MAX), integer(pair[1], what, 0, 999_999_999))


def _number(written: str, what: str) -> str:
    # The evaluation counts on it; what could not be activated must not be admitted.
    if parse_float(written) is None:
        raise Malformed(f"{what}: {written[:40]!r} is not a number")
    return written


def _word(words: type[_Word], word: str, what: str) -> _Word:
    try:
        return words(word)
    except ValueError:
        raise _UnknownWord(f"{what} {word!r}") from None
