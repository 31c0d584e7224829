"""docs/flagcast.cddl describes what the code writes: all of it, and nothing more than the code reads."""

import re
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import cbor2
import pytest
from cddl import Grammar
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from repository import ROOT

from flagcast_shared import limits
from flagcast_shared.codec import deflate, encode
from flagcast_shared.constraints import TAKES, Takes
from flagcast_shared.envelope import open_envelope, seal, to_sign
from flagcast_shared.errors import Malformed, Refused
from flagcast_shared.ids import (
    Digest,
    Environment,
    Epoch,
    FlagKey,
    KeyId,
    Namespace,
    RecordId,
    SegmentKey,
    Sequence,
    VariantKey,
    Version,
)
from flagcast_shared.messages import (
    Candidate,
    Delta,
    Head,
    InlineDelta,
    Offering,
    Place,
    SnapshotPart,
    decode_delta_message,
    decode_head,
    decode_part,
    encode_delta_message,
    encode_head,
    encode_part,
)
from flagcast_shared.model import (
    BooleanFlag,
    Constraint,
    Distribution,
    Instant,
    Join,
    Match,
    Rule,
    Segment,
    SegmentRollout,
    ThresholdRollout,
    Variant,
    VariantFlag,
)
from flagcast_shared.records import decode_record, encode_content, encode_delta, encode_record
from flagcast_shared.reports import (
    Applied,
    Count,
    Refresh,
    Rejection,
    Report,
    Usage,
    decode_refresh,
    decode_report,
    decode_usage,
    encode_refresh,
    encode_report,
    encode_usage,
)
from flagcast_shared.root import (
    PublicKey,
    Quorum,
    Role,
    Root,
    decode_root,
    encode_root,
    root_place,
)
from flagcast_shared.topics import Kind

TEXT = (ROOT / "docs" / "flagcast.cddl").read_text(encoding="utf-8")
GRAMMAR = Grammar(TEXT)
STRICT = Grammar(TEXT, later=False)
"""Without room for what a later publisher may add: a field that is not described does not fit."""

ENVIRONMENT, NAMESPACE = Environment("production"), Namespace("default")
HEAD_PLACE = Place(ENVIRONMENT, NAMESPACE, Kind.HEAD)
PART_PLACE = Place(ENVIRONMENT, NAMESPACE, Kind.SNAPSHOT)
DELTA_PLACE = Place(ENVIRONMENT, NAMESPACE, Kind.DELTA)
ROOT_PLACE = root_place(ENVIRONMENT)

VALUES = {
    Takes.NONE: None,
    Takes.TEXT: "oslo",
    Takes.NUMBER: "1.5",
    Takes.INSTANT: Instant(-1, 999_999_999),
    Takes.TEXTS: ("a", "b"),
    Takes.NUMBERS: ("1.0", "inf"),
}
SEGMENTS = [
    Segment(SegmentKey("everyone"), Match.ALL, ()),
    *(
        Segment(
            SegmentKey(f"{kind}-{operator}"), Match.ANY, (Constraint(kind, "p", operator, VALUES[takes]),)
        )
        for (kind, operator), takes in TAKES.items()
    ),
]
RULE = Rule(
    (SegmentKey("everyone"),),
    Join.AND,
    (Distribution(VariantKey("a"), 400), Distribution(VariantKey("b"), 1000)),
)
FLAGS: list[BooleanFlag | VariantFlag] = [
    BooleanFlag(FlagKey("plain"), enabled=False),
    BooleanFlag(
        FlagKey("rolled-out"),
        True,
        (ThresholdRollout(100, True), SegmentRollout((SegmentKey("everyone"),), Join.OR, False)),
    ),
    VariantFlag(FlagKey("bare"), enabled=True),
    VariantFlag(
        FlagKey("full"),
        True,
        (Variant(VariantKey("a"), '{"x": 1}'), Variant(VariantKey("b"))),
        VariantKey("b"),
        (RULE, replace(RULE, join=Join.OR, distributions=())),
    ),
    BooleanFlag(FlagKey("owned"), enabled=True, metadata='{"owner":"a"}'),
    VariantFlag(FlagKey("owned-too"), enabled=True, metadata='{"owner":"a"}'),
]
ENTRIES: list[BooleanFlag | VariantFlag | Segment] = [*FLAGS, *SEGMENTS]
RECORDS = [encode_record(entry) for entry in ENTRIES]
OFFERING = Offering(Version(7), Digest(bytes(32)), 100, 2, (Version(6), Version(5)))
HEAD = Head(ENVIRONMENT, NAMESPACE, Epoch(1), Sequence(9), 1_000, 2_000, replace(OFFERING, deltas=()))
FULL_HEAD = replace(
    HEAD,
    candidate=Candidate(OFFERING, 10_000, b"salt", {"site": "oslo"}),
    provenance={"commit": "0" * 40},
    inline=InlineDelta(Version(6), Version(7), deflate(encode_delta([], RECORDS[:1]))),
)
PART = SnapshotPart(ENVIRONMENT, NAMESPACE, Epoch(1), Version(7), 1, 2, b"body")
DELTA = Delta(ENVIRONMENT, NAMESPACE, Epoch(1), Version(7), Version(6), b"body")
SIGNING_KEYS = [Ed25519PrivateKey.from_private_bytes(sha256(bytes([n])).digest()) for n in range(3)]
PUBLIC_KEYS = [PublicKey(key.public_key().public_bytes_raw(), "n") for key in SIGNING_KEYS]
A_ROOT = Root(
    ENVIRONMENT,
    1,
    Epoch(1),
    1_000,
    2_000,
    {key.id: key for key in PUBLIC_KEYS},
    {
        Role.ROOT: Quorum(frozenset(key.id for key in PUBLIC_KEYS[:2]), 2),
        Role.PUBLISHER: Quorum(frozenset([PUBLIC_KEYS[2].id]), 1),
    },
)
OFFLINE = Report(3, 0, is_online=False)
ONLINE = Report(
    3,
    4,
    True,
    1_000,
    "0.1.0",
    1,
    {
        NAMESPACE: Applied(Epoch(1), Version(7), 9, bytes(8)),
        Namespace("kiosk"): Applied(Epoch(1), Version(7), 9),
    },
    Rejection("rollback", "default", 1_000),
)
REFRESH = Refresh((NAMESPACE, Namespace("kiosk")))
USAGE = Usage(
    bytes(16),
    1_000,
    2_000,
    (
        Count(NAMESPACE, FlagKey("plain"), "false", "flag_disabled", 1),
        Count(NAMESPACE, FlagKey("full"), "a", "match", limits.USAGE_COUNT_MAX),
        Count(NAMESPACE, FlagKey("full"), "", "unknown", 2),
    ),
    7,
)

PAYLOADS: list[tuple[str, bytes]] = [
    ("head", encode_head(HEAD)),
    ("head", encode_head(FULL_HEAD)),
    ("snapshot-part", encode_part(PART)),
    ("delta", encode_delta_message(DELTA)),
    ("root", encode_root(A_ROOT)),
    ("report", encode_report(OFFLINE)),
    ("report", encode_report(ONLINE)),
    ("report", encode_report(replace(ONLINE, is_online=False))),
    ("refresh", encode_refresh(REFRESH)),
    ("refresh", encode_refresh(Refresh())),
    ("usage", encode_usage(USAGE)),
    ("usage", encode_usage(replace(USAGE, counts=(), dropped=0))),
    ("content", encode_content(RECORDS)),
    ("delta-content", encode_delta([RecordId("flag", "gone")], RECORDS)),
    *(("record", record.data) for record in RECORDS),
]
READERS = {
    "head": lambda data: decode_head(data, HEAD_PLACE),
    "snapshot-part": lambda data: decode_part(data, PART_PLACE),
    "delta": lambda data: decode_delta_message(data, DELTA_PLACE),
    "root": lambda data: decode_root(data, ENVIRONMENT),
    "report": decode_report,
    "refresh": decode_refresh,
    "usage": decode_usage,
    "record": decode_record,
}


def signed(payload: bytes, place: Place, keys: Iterable[int], *, several: bool) -> bytes:
    signatures = []
    for number in keys:
        key: KeyId = PUBLIC_KEYS[number].id
        signatures.append((key, SIGNING_KEYS[number].sign(to_sign(payload, place, key, several=several))))
    return seal(payload, place, signatures, several=several)


MESSAGES = [
    (signed(encode_head(FULL_HEAD), HEAD_PLACE, [2], several=False), HEAD_PLACE),
    (signed(encode_part(PART), PART_PLACE, [2], several=False), PART_PLACE),
    (signed(encode_delta_message(DELTA), DELTA_PLACE, [2], several=False), DELTA_PLACE),
    (signed(encode_head(HEAD), HEAD_PLACE, [0, 2], several=True), HEAD_PLACE),
    (signed(encode_root(A_ROOT), ROOT_PLACE, [0, 1], several=True), ROOT_PLACE),
]


@pytest.mark.parametrize(("rule", "data"), PAYLOADS)
def test_what_the_code_writes_is_described(rule: str, data: bytes) -> None:
    assert STRICT.fits(rule, cbor2.loads(data))


@pytest.mark.parametrize(("message", "place"), MESSAGES, ids=lambda value: getattr(value, "kind", ""))
def test_signed_messages_and_what_their_keys_sign_are_described(message: bytes, place: Place) -> None:
    assert STRICT.fits("published", cbor2.loads(message))
    for signature in open_envelope(message, place).signatures:
        assert STRICT.fits("to-sign", cbor2.loads(signature.signed))


@pytest.mark.parametrize("rule", ["head", "snapshot-part", "delta", "root", "report", "refresh", "usage"])
def test_every_field_of_a_message_that_is_described_is_written(rule: str) -> None:
    described = {entry.key[1] for entry in GRAMMAR.rules[rule][1] if entry.key is not None}
    written = {key for name, data in PAYLOADS if name == rule for key in cbor2.loads(data)}
    assert described == written


@pytest.mark.parametrize("rule", ["head", "snapshot-part", "delta", "root", "report", "refresh", "usage"])
def test_an_unknown_field_is_allowed_and_passed_over(rule: str) -> None:
    for _, data in [each for each in PAYLOADS if each[0] == rule]:
        value = cbor2.loads(data)
        later = encode({**value, 99: [1, "two"]})
        assert GRAMMAR.fits(rule, cbor2.loads(later))
        assert not STRICT.fits(rule, cbor2.loads(later))
        assert READERS[rule](later) == READERS[rule](data)


WRONG: list[tuple[str, bytes, int, Any]] = [
    ("head", encode_head(HEAD), 1, 2),
    ("head", encode_head(HEAD), 2, "delta"),
    ("head", encode_head(HEAD), 5, -1),
    ("head", encode_head(HEAD), 6, 2**63),
    ("head", encode_head(HEAD), 7, "now"),
    ("head", encode_head(HEAD), 9, {}),
    ("head", encode_head(HEAD), 10, 5),
    ("head", encode_head(HEAD), 11, {str(n): "x" for n in range(limits.PROVENANCE_MAX_ENTRIES + 1)}),
    ("head", encode_head(HEAD), 11, {"commit": "x" * (limits.PROVENANCE_TEXT_MAX_BYTES + 1)}),
    ("head", encode_head(HEAD), 11, {"x" * (limits.PROVENANCE_TEXT_MAX_BYTES + 1): ""}),
    ("head", encode_head(HEAD), 12, {1: 1, 2: 2, 3: bytes(limits.INLINE_DELTA_MAX_BYTES + 1)}),
    ("snapshot-part", encode_part(PART), 8, limits.PARTS_MAX + 1),
    ("snapshot-part", encode_part(PART), 9, b""),
    ("snapshot-part", encode_part(PART), 9, bytes(limits.MESSAGE_MAX_BYTES + 1)),
    ("delta", encode_delta_message(DELTA), 9, bytes(limits.MESSAGE_MAX_BYTES + 1)),
    ("root", encode_root(A_ROOT), 4, "default"),
    ("root", encode_root(A_ROOT), 5, 0),
    ("root", encode_root(A_ROOT), 6, 0),
    ("root", encode_root(A_ROOT), 9, [[bytes(31), "short"]]),
    ("root", encode_root(A_ROOT), 10, {"root": {1: 1, 2: [PUBLIC_KEYS[0].id]}}),
    ("report", encode_report(ONLINE), 4, 1),
    ("report", encode_report(ONLINE), 6, "x" * (limits.KEY_MAX_BYTES + 1)),
    ("refresh", encode_refresh(REFRESH), 1, 2),
    ("refresh", encode_refresh(REFRESH), 2, ["x"] * (limits.REFRESH_NAMESPACES_MAX + 1)),
    ("refresh", encode_refresh(REFRESH), 2, [""]),
    ("refresh", encode_refresh(REFRESH), 2, [1]),
    ("usage", encode_usage(USAGE), 1, 2),
    ("usage", encode_usage(USAGE), 2, bytes(limits.USAGE_BATCH_ID_BYTES - 1)),
    ("usage", encode_usage(USAGE), 2, bytes(limits.USAGE_BATCH_ID_BYTES + 1)),
    ("usage", encode_usage(USAGE), 3, -1),
    ("usage", encode_usage(USAGE), 5, limits.USAGE_COUNT_MAX + 1),
    ("usage", encode_usage(USAGE), 6, []),
    ("usage", encode_usage(USAGE), 6, {"default": []}),
    ("usage", encode_usage(USAGE), 6, {"default": {"plain": {}}}),
    ("usage", encode_usage(USAGE), 6, {"default": {"plain": [["true", "match"]]}}),
    ("usage", encode_usage(USAGE), 6, {"default": {"plain": [["true", "match", 0]]}}),
    (
        "usage",
        encode_usage(USAGE),
        6,
        {"default": {"plain": [["true", "match", limits.USAGE_COUNT_MAX + 1]]}},
    ),
    (
        "usage",
        encode_usage(USAGE),
        6,
        {"default": {"plain": [["x" * (limits.KEY_MAX_BYTES + 1), "match", 1]]}},
    ),
]


@pytest.mark.parametrize(("rule", "data", "field", "wrong"), WRONG)
def test_what_does_not_fit_the_grammar_is_refused_by_the_code(
    rule: str, data: bytes, field: int, wrong: Any
) -> None:
    value = {**cbor2.loads(data), field: wrong}
    assert not GRAMMAR.fits(rule, value)
    with pytest.raises(Refused):
        READERS[rule](cbor2.dumps(value, canonical=True))


OFFERED = {1: 7, 2: bytes(32), 3: 100, 4: 2}


@pytest.mark.parametrize(
    ("offering", "fits"),
    [
        (OFFERED | {3: limits.CONTENT_MAX_BYTES, 4: limits.PARTS_MAX}, True),
        (OFFERED | {3: limits.CONTENT_MAX_BYTES + 1}, False),
        (OFFERED | {3: 0}, False),
        (OFFERED | {4: limits.PARTS_MAX + 1}, False),
        (OFFERED | {2: bytes(31)}, False),
        (OFFERED | {5: [1] * limits.DELTAS_MAX}, True),
        (OFFERED | {5: [1] * (limits.DELTAS_MAX + 1)}, False),
    ],
)
def test_the_limits_of_an_offering_are_those_of_the_code(offering: dict[int, Any], fits: bool) -> None:
    value = {**cbor2.loads(encode_head(HEAD)), 9: offering}
    assert GRAMMAR.fits("head", value) is fits
    assert accepted("head", value) is fits


@pytest.mark.parametrize(
    ("more", "fits"),
    [
        ({6: 10_000, 7: bytes(32)}, True),
        ({6: 10_001, 7: b"s"}, False),
        ({6: 1, 7: b""}, False),
        ({6: 1, 7: bytes(33)}, False),
        ({6: 1, 7: b"s", 8: {str(n): "" for n in range(limits.LABELS_MAX)}}, True),
        ({6: 1, 7: b"s", 8: {str(n): "" for n in range(limits.LABELS_MAX + 1)}}, False),
        ({6: 1, 7: b"s", 8: {"x" * limits.LABEL_MAX_BYTES: "\N{SNOWMAN}" * 128}}, True),
        ({6: 1, 7: b"s", 8: {"ring": "x" * (limits.LABEL_MAX_BYTES + 1)}}, False),
    ],
)
def test_the_limits_of_a_candidate_are_those_of_the_code(more: dict[int, Any], fits: bool) -> None:
    value = {**cbor2.loads(encode_head(HEAD)), 10: OFFERED | more}
    assert GRAMMAR.fits("head", value) is fits
    assert accepted("head", value) is fits


RECORD_CASES: list[tuple[list[Any], bool]] = [
    (["flag", "k", {1: "boolean", 2: False, 3: [{1: "threshold", 2: True, 3: 100}]}], True),
    (["flag", "k", {1: "boolean", 2: False, 3: [{1: "threshold", 2: True, 3: 101}]}], False),
    (["flag", "k", {1: "boolean"}], False),
    (["flag", "k", {1: "variant", 2: True, 4: [["a"]], 6: [{4: [], 6: [[0, 1000]]}]}], True),
    (["flag", "k", {1: "variant", 2: True, 4: [["a"]], 6: [{4: [], 6: [[0, 1001]]}]}], False),
    (["flag", "k", {1: "variant", 2: True, 4: [[]]}], False),
    (["flag", "k" * (limits.KEY_MAX_BYTES + 1), {1: "boolean", 2: True}], False),
    (["segment", "k", {1: "all", 2: [{1: "datetime", 2: "p", 3: "eq", 4: [0, 1_000_000_000]}]}], False),
    (["segment", "k", {1: "all", 2: [{1: "datetime", 2: "p", 3: "eq", 4: [0, 999_999_999]}]}], True),
    (["segment", "k", {1: "all", 2: [{1: "string", 2: "p", 3: "eq"}]}], False),
    (["segment", "k", {1: "all", 2: [{1: "string", 2: "p", 3: "isoneof", 4: "a"}]}], False),
    (["segment", "k", {1: "all", 2: [{1: "string", 2: "p", 3: "isoneof"}]}], True),
    (["segment", "k", {1: "all", 2: [{1: "number", 2: "p", 3: "isnotoneof"}]}], True),
    (["flag", "k", {1: "boolean", 2: False, 3: [{1: "segment", 2: True}]}], True),
    (["flag", "k", {1: "variant", 2: True, 6: [{5: "and"}]}], True),
    (["flag", "k", {1: "boolean", 2: True, 7: "x" * limits.METADATA_MAX_BYTES}], True),
    (["flag", "k", {1: "boolean", 2: True, 7: "x" * (limits.METADATA_MAX_BYTES + 1)}], False),
    (["flag", "k", {1: "variant", 2: True, 7: {"owner": "a"}}], False),
    (["flag", "k"], False),
]


@pytest.mark.parametrize(("value", "fits"), RECORD_CASES)
def test_a_record_fits_the_grammar_exactly_when_the_code_reads_it(value: list[Any], fits: bool) -> None:
    assert STRICT.fits("record", value) is fits
    try:
        decode_record(encode(value))
    except Malformed:
        assert not fits
    else:
        assert fits


def test_an_operator_is_described_for_exactly_the_types_that_have_it() -> None:
    types = {kind for kind, _ in TAKES}
    operators = {operator for _, operator in TAKES}
    for kind in types:
        for operator in operators:
            takes = TAKES.get((kind, operator))
            value = VALUES[takes or Takes.NONE]
            body: dict[int, Any] = {1: str(kind), 2: "p", 3: str(operator)}
            if value is not None:
                body[4] = value if isinstance(value, str) else list(value)
            assert STRICT.fits("constraint", body) is (takes is not None), (kind, operator)


@pytest.mark.parametrize("number", range(len(MESSAGES)))
def test_a_header_outside_the_profile_is_not_described(number: int) -> None:
    message, _ = MESSAGES[number]
    tag = cbor2.loads(message)
    for place, wrong in ((0, encode({1: -7})), (1, {4: b"x"}), (2, b"\xa0"), (3, b"")):
        altered = list(tag.value)
        altered[place] = wrong
        assert not GRAMMAR.fits("published", cbor2.CBORTag(tag.tag, altered))


def test_every_rule_is_defined_and_used() -> None:
    roots = {"published", "to-sign", "content", "delta-content", "report", "refresh", "usage"}
    assert GRAMMAR.names() | roots == set(GRAMMAR.rules)


def test_the_document_names_every_rule_that_a_reader_starts_from() -> None:
    document = (ROOT / "docs" / "wire-format.md").read_text(encoding="utf-8")
    assert "(flagcast.cddl)" in document
    quoted = set(re.findall(r"`([a-z0-9]+(?:-[a-z0-9]+)*)`", document))
    wanted = {
        "published", "to-sign", "place", "root", "head", "snapshot-part", "delta", "content", "delta-content",
        "record", "boolean-flag", "variant-flag", "segment", "constraint", "report", "refresh", "usage",
    }  # fmt: skip
    assert wanted <= quoted


def accepted(rule: str, value: Any) -> bool:
    try:
        READERS[rule](cbor2.dumps(value, canonical=True))
    except Refused:
        return False
    return True
