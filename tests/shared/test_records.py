"""What cannot be a record is refused by name, whichever of its texts is at fault."""

import pytest

from flagcast_shared.errors import Malformed, Refused, TooLarge
from flagcast_shared.ids import FlagKey, SegmentKey, VariantKey
from flagcast_shared.limits import RECORD_MAX_BYTES
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
from flagcast_shared.records import encode_record

LONE = "a\ud800b"
"""Half of a pair of UTF-16: Python keeps it in a text, UTF-8 has no bytes for it."""


@pytest.mark.parametrize(
    "entry",
    [
        BooleanFlag(FlagKey(LONE), enabled=True),
        BooleanFlag(FlagKey("f"), True, (SegmentRollout((SegmentKey(LONE),), Join.OR, True),)),
        VariantFlag(FlagKey("f"), True, (Variant(VariantKey(LONE)),)),
        VariantFlag(FlagKey("f"), True, (Variant(VariantKey("v"), LONE),)),
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
