import json
from zlib import crc32

import pytest

from flagcast_shared.evaluation import compile_flags
from flagcast_shared.ids import FlagKey, SegmentKey, VariantKey
from flagcast_shared.literals import parse_instant
from flagcast_shared.model import (
    BooleanFlag,
    Constraint,
    ConstraintType,
    Distribution,
    Join,
    Match,
    Operator,
    Rule,
    Segment,
    SegmentRollout,
    ThresholdRollout,
    Variant,
    VariantFlag,
)

PRO, EU = SegmentKey("pro"), SegmentKey("eu")
SEGMENTS = [
    Segment(
        PRO,
        Match.ALL,
        (
            Constraint(ConstraintType.STRING, "plan", Operator.ISONEOF, ("pro", "gold")),
            Constraint(ConstraintType.DATETIME, "since", Operator.LT, parse_instant("2024-03-01")),
        ),
    ),
    Segment(
        EU,
        Match.ANY,
        (
            Constraint(ConstraintType.STRING, "device.label.region", Operator.EQ, "eu"),
            Constraint(ConstraintType.ENTITY, "", Operator.PREFIX, "eu-"),
        ),
    ),
    Segment(SegmentKey("all"), Match.ALL, ()),
]
SWITCH = BooleanFlag(
    FlagKey("switch"),
    enabled=False,
    rollouts=(
        SegmentRollout((PRO, EU), Join.AND, value=True),
        ThresholdRollout(25, value=True),
        ThresholdRollout(0, value=True),
    ),
)
COLOUR = VariantFlag(
    FlagKey("colour"),
    enabled=True,
    variants=(Variant(VariantKey("red"), '{"hex":"f00"}'), Variant(VariantKey("blue"))),
    default=VariantKey("blue"),
    rules=(
        Rule((PRO,), Join.OR, ()),
        Rule(
            (EU,),
            Join.OR,
            (Distribution(VariantKey("red"), 300), Distribution(VariantKey("blue"), 1000)),
        ),
    ),
)
PLAIN = BooleanFlag(FlagKey("plain"), enabled=False)
OFF = VariantFlag(FlagKey("off"), enabled=False, variants=COLOUR.variants, default=VariantKey("red"))
BARE = VariantFlag(FlagKey("bare"), enabled=True, rules=(Rule((PRO,), Join.OR, ()),))
FLAGS = compile_flags([*SEGMENTS, SWITCH, COLOUR, PLAIN, OFF, BARE], {"device.label.region": "eu"})


def told(flag: str, entity: str, **context: str) -> str:
    return "\n".join(FLAGS.explain(flag, entity, context).lines())


def test_a_boolean_flag_is_told_rollout_by_rollout() -> None:
    bucket = crc32(b"eu-1switch") % 100
    assert bucket >= 25
    assert told("switch", "eu-1", plan="gold") == "\n".join(
        [
            "boolean flag 'switch' (otherwise off) for entity 'eu-1':",
            "  false, reason default",
            "  rollout 1 (segment), and of 2 segments: does not match",
            "    segment 'pro', all of 2 constraints: does not match",
            "      plan isoneof ['pro', 'gold'] (string): saw 'gold', holds",
            "      since lt 2024-03-01T00:00:00Z (datetime): saw nothing, does not hold",
            "    segment 'eu', any of 2 constraints: matches",
            "      device.label.region eq 'eu' (string): saw 'eu', holds",
            "      the entity id prefix 'eu-' (entity): saw 'eu-1', holds",
            "  rollout 2 (threshold): does not match",
            f"    bucket {bucket} of 100: not in 0 to 24",
            "  rollout 3 (threshold): does not match",
            f"    bucket {bucket} of 100: none is asked for",
            "  no rule or rollout matches: otherwise off",
        ]
    )


def test_a_matching_rollout_is_the_last_that_is_told() -> None:
    assert told("switch", "e", plan="pro", since="2020-01-01").splitlines()[:3] == [
        "boolean flag 'switch' (otherwise off) for entity 'e':",
        "  true, reason match, segments pro, eu",
        "  rollout 1 (segment), and of 2 segments: matches, gives true",
    ]
    assert "rollout 2" not in told("switch", "e", plan="pro", since="2020-01-01")


def test_a_variant_flag_is_told_with_the_bucket_against_the_bound() -> None:
    bucket = crc32(b"colouruser") % 1000
    first, last, key = (0, 299, "red") if bucket < 300 else (300, 999, "blue")
    assert told("colour", "user").splitlines()[-5:] == [
        f"  rule 2: matches, gives {key}",
        "    segment 'eu', any of 2 constraints: matches",
        "      device.label.region eq 'eu' (string): saw 'eu', holds",
        "      the entity id prefix 'eu-' (entity): saw 'user', does not hold",
        f"    bucket {bucket} of 1000: in {first} to {last}",
    ]


@pytest.mark.parametrize(
    ("flag", "lines"),
    [
        (
            "plain",
            [
                "boolean flag 'plain' (otherwise off) for entity 'e':",
                "  false, reason flag_disabled",
                "  the flag has no rules or rollouts: otherwise off",
            ],
        ),
        (
            "off",
            [
                "variant flag 'off' (disabled) for entity 'e':",
                "  'red', reason flag_disabled",
                "  the flag is disabled",
            ],
        ),
    ],
)
def test_a_disabled_flag_is_told_as_such(flag: str, lines: list[str]) -> None:
    assert told(flag, "e").splitlines() == lines


def test_no_variant_at_all_is_told() -> None:
    lines = told("bare", "e").splitlines()
    assert lines[1] == "  no variant, reason unknown"
    assert lines[-1] == "  no rule or rollout matches: there is no default variant"


def test_numbers_are_told_as_people_write_them() -> None:
    grown = Segment(
        SegmentKey("grown"),
        Match.ANY,
        (
            Constraint(ConstraintType.NUMBER, "age", Operator.GTE, "18.0"),
            Constraint(ConstraintType.NUMBER, "age", Operator.ISONEOF, ("1.5", "7.0")),
        ),
    )
    single = Segment(SegmentKey("single"), Match.ALL, grown.constraints[:1])
    both = SegmentRollout((grown.key, single.key), Join.OR, value=True)
    flags = compile_flags([grown, single, BooleanFlag(FlagKey("f"), False, (both,))], {})
    assert flags.explain("f", "e", {"age": "7"}).lines()[2:] == [
        "  rollout 1 (segment), or of 2 segments: matches, gives true",
        "    segment 'grown', any of 2 constraints: matches",
        "      age gte 18 (number): saw '7', does not hold",
        "      age isoneof [1.5, 7] (number): saw '7', holds",
        "    segment 'single': does not match",
        "      age gte 18 (number): saw '7', does not hold",
    ]


def test_a_caller_that_overrides_a_device_attribute_is_told_the_devices() -> None:
    assert "saw 'eu', holds" in told("colour", "user", **{"device.label.region": "us"})


def test_an_explanation_is_json() -> None:
    explanation = FLAGS.explain("colour", "user", {"plan": "pro", "since": "2020-01-01T00:00:00.5Z"})
    read = json.loads(json.dumps(explanation.as_dict()))
    assert read == explanation.as_dict()
    assert read["answer"] == {
        "match": True,
        "variant": "blue",
        "attachment": "",
        "reason": "match",
        "resolution": "TARGETING_MATCH",
        "segments": ["pro"],
    }
    assert (read["flag"], read["type"], read["entity"], read["enabled"]) == (
        "colour",
        "variant",
        "user",
        True,
    )
    (step,) = read["steps"]
    assert (step["number"], step["kind"], step["matches"], step["bucket"]) == (1, "rule", True, None)
    assert step["segments"][0]["constraints"] == [
        {
            "type": "string",
            "property": "plan",
            "operator": "isoneof",
            "value": ["pro", "gold"],
            "seen": "pro",
            "matches": True,
        },
        {
            "type": "datetime",
            "property": "since",
            "operator": "lt",
            "value": "2024-03-01T00:00:00Z",
            "seen": "2020-01-01T00:00:00.5Z",
            "matches": True,
        },
    ]
    threshold = FLAGS.explain("switch", "e", {}).as_dict()["steps"][1]
    assert threshold["bucket"] == {
        "bucket": crc32(b"eswitch") % 100,
        "buckets": 100,
        "first": 0,
        "last": 24,
    }


@pytest.mark.parametrize("flag", ["switch", "colour", "plain", "off", "bare"])
@pytest.mark.parametrize(
    "context", [{}, {"plan": "pro"}, {"plan": "pro", "since": "2020-01-01"}, {"plan": "x", "since": "x"}]
)
def test_what_is_explained_is_what_is_answered(flag: str, context: dict[str, str]) -> None:
    ask = FLAGS.boolean if flag in ("switch", "plain") else FLAGS.variant
    for entity in ("", "e", "eu-1", "user", "日本"):
        assert FLAGS.explain(flag, entity, context).answer == ask(flag, entity, context)
