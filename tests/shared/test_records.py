"""What cannot be a record is refused by name, whichever of its texts is at fault."""

import tracemalloc
from hashlib import sha256

import cbor2
import pytest

from flagcast_shared.errors import Malformed, Refused, TooLarge
from flagcast_shared.evaluation import compile_flags
from flagcast_shared.ids import FlagKey, SegmentKey, VariantKey
from flagcast_shared.limits import METADATA_MAX_BYTES, RECORD_MAX_BYTES
from flagcast_shared.model import (
    AnySegment,
    BooleanFlag,
    Constraint,
    ConstraintType,
    Flag,
    Join,
    Match,
    Operator,
    Segment,
    SegmentRollout,
    UnsupportedFlag,
    Variant,
    VariantFlag,
)
from flagcast_shared.records import decode_record, encode_record

LONE = "a\ud800b"
"""Half of a pair of UTF-16: Python keeps it in a text, UTF-8 has no bytes for it."""


@pytest.mark.parametrize(
    "entry",
    [
        BooleanFlag(FlagKey(LONE), enabled=True),
        BooleanFlag(FlagKey("f"), True, (SegmentRollout((SegmentKey(LONE),), Join.OR, True),)),
        VariantFlag(FlagKey("f"), True, (Variant(VariantKey(LONE)),)),
        VariantFlag(FlagKey("f"), True, (Variant(VariantKey("v"), LONE),)),
        BooleanFlag(FlagKey("f"), True, metadata=LONE),
        VariantFlag(FlagKey("f"), True, metadata=LONE),
        Segment(SegmentKey(LONE), Match.ALL, ()),
        Segment(SegmentKey("s"), Match.ALL, (Constraint(ConstraintType.STRING, LONE, Operator.EMPTY, None),)),
        Segment(SegmentKey("s"), Match.ALL, (Constraint(ConstraintType.STRING, "p", Operator.EQ, LONE),)),
        Segment(
            SegmentKey("s"),
            Match.ALL,
            (Constraint(ConstraintType.STRING, "p", Operator.ISONEOF, ("x", LONE)),),
        ),
    ],
    ids=repr,
)
def test_text_that_is_not_unicode_is_no_record(entry: Flag | AnySegment) -> None:
    with pytest.raises(Malformed, match="not Unicode"):
        encode_record(entry)


def test_entry_of_unknown_words_has_no_bytes() -> None:
    with pytest.raises(Refused):
        encode_record(UnsupportedFlag(FlagKey("f"), "flag type 'later' is not known"))


def test_record_beyond_the_limit() -> None:
    with pytest.raises(TooLarge):
        encode_record(VariantFlag(FlagKey("f"), True, (Variant(VariantKey("v"), "x" * RECORD_MAX_BYTES),)))


OWNED = '{"days":90,"owner":"a-team","ratio":0.5,"temporary":true}'


@pytest.mark.parametrize("kind", [BooleanFlag, VariantFlag])
def test_metadata_is_a_field_of_the_flag_and_comes_back(kind: type[BooleanFlag | VariantFlag]) -> None:
    record = encode_record(kind(FlagKey("f"), True, metadata=OWNED))
    assert cbor2.loads(record.data)[2][7] == OWNED
    assert decode_record(record.data) == record
    compiled = compile_flags([decode_record(record.data).entry], {})
    assert (compiled.metadata("f"), compiled.metadata("g")) == (OWNED, "")


def test_flag_without_metadata_has_the_digest_that_it_always_had() -> None:
    # [kind, key, {1: type, 2: enabled}], spelled by hand.
    assert (
        encode_record(BooleanFlag(FlagKey("f"), True)).digest
        == sha256(b"\x83\x64flag\x61f\xa2\x01\x67boolean\x02\xf5").digest()
    )
    assert (
        encode_record(VariantFlag(FlagKey("f"), False)).digest
        == sha256(b"\x83\x64flag\x61f\xa2\x01\x67variant\x02\xf4").digest()
    )


@pytest.mark.parametrize("kind", [BooleanFlag, VariantFlag])
def test_metadata_is_bounded_on_both_sides(kind: type[BooleanFlag | VariantFlag]) -> None:
    largest = encode_record(kind(FlagKey("f"), True, metadata="x" * METADATA_MAX_BYTES))
    assert decode_record(largest.data) == largest
    with pytest.raises(TooLarge, match="metadata"):
        encode_record(kind(FlagKey("f"), True, metadata="\N{SNOWMAN}" * METADATA_MAX_BYTES))
    value = cbor2.loads(largest.data)
    value[2][7] += "x"
    with pytest.raises(TooLarge, match="field 7"):
        decode_record(cbor2.dumps(value, canonical=True))


def test_metadata_of_ten_thousand_flags_stays_text() -> None:
    # Parsed, forty entries of this kind would take some 6 KB for each flag.
    text = "{" + ",".join(f'"name-{number}":"v{number}"' for number in range(40)) + "}"
    records = [
        encode_record(BooleanFlag(FlagKey(f"f{number}"), True, metadata=text)).data
        for number in range(10_000)
    ]
    bare = [encode_record(BooleanFlag(FlagKey(f"f{number}"), True)).data for number in range(10_000)]

    def held(listed: list[bytes]) -> int:
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        compiled = compile_flags([decode_record(each).entry for each in listed], {})
        after = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(compiled.flags) == 10_000
        return after - before

    assert (held(records) - held(bare)) / 10_000 < len(text) + 100
