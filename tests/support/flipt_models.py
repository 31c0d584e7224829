"""Flipt's snapshots: random ones in the domain where its engines agree, and their compiled records.

A snapshot here is the JSON that a Flipt server gives its clients (segments stand inside every rule and rollout).
"""

import json
import random
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from flipt_oracle import NAMESPACE, Request

from flagcast_shared.bucketing import compile_bounds, compile_percentage
from flagcast_shared.constraints import TAKES, Takes
from flagcast_shared.ids import FlagKey, SegmentKey, VariantKey
from flagcast_shared.literals import format_float, parse_float, parse_instant
from flagcast_shared.model import (
    BooleanFlag,
    Constraint,
    ConstraintType,
    ConstraintValue,
    Distribution,
    Entry,
    Flag,
    Join,
    Match,
    Operator,
    Rollout,
    Rule,
    Segment,
    SegmentRollout,
    ThresholdRollout,
    Variant,
    VariantFlag,
)

Json = dict[str, Any]

_TYPE_WORDS = {
    ConstraintType.STRING: "STRING",
    ConstraintType.NUMBER: "NUMBER",
    ConstraintType.BOOLEAN: "BOOLEAN",
    ConstraintType.DATETIME: "DATETIME",
    ConstraintType.ENTITY: "ENTITY_ID",
}
_TYPES = {f"{word}_CONSTRAINT_COMPARISON_TYPE": type_ for type_, word in _TYPE_WORDS.items()}

# Few properties and few values, so that constraints often hold and often just fail to.
_PROPERTIES = {
    ConstraintType.STRING: ("plan", "größe", "a.b", "国"),
    ConstraintType.NUMBER: ("age", "n"),
    ConstraintType.BOOLEAN: ("beta", "b"),
    ConstraintType.DATETIME: ("since", "t"),
}
_TEXTS = (
    "pro",
    "professional",
    "free",
    "fr",
    "ee",
    "Pro",
    "größer",
    "日本語",
    "日本",
    "a b",
    "🎈x",
    "x",
    "0",
)
_NUMBERS = ("0", "1", "-1", "7", "42", "43", "-42", "100", "2147483647", "-2147483648")
_BOOLEANS = ("true", "false")
_INSTANTS = (
    "2024-02-29T12:00:00Z",
    "2024-02-29T13:00:00+01:00",
    "2024-02-29T11:59:59Z",
    "2024-02-29T12:00:01Z",
    "1969-12-31T23:59:59Z",
    "2030-01-01T00:00:00-05:30",
    "2024-03-01T00:00:00Z",
)
_ENTITIES = ("", "user", "pro", "größer", "日本語-7", "🎈x", "free", "0")
_VALUES = {
    ConstraintType.STRING: _TEXTS,
    ConstraintType.ENTITY: _ENTITIES[1:],
    ConstraintType.NUMBER: _NUMBERS,
    ConstraintType.BOOLEAN: _BOOLEANS,
    ConstraintType.DATETIME: _INSTANTS,
}
_LETTERS = "abcXYZ019-_,äß日本🎈 "


def random_snapshot(rng: random.Random, flags: int = 8) -> Json:
    """Flags of both types over shared segments, with constraints of every type and operator."""
    segments = [_segment(rng, f"segment{number}") for number in range(6)]
    made = []
    for number in range(flags):
        make = _boolean_flag if rng.random() < 0.5 else _variant_flag
        alike = rng.random() < 0.2
        pool = _alike_segments(rng, f"alike{number}-") if alike else segments
        made.append(make(rng, f"{_key(rng)}{number}", pool, rng.randint(4, 16) if alike else None))
    return {"digest": "d", "namespace": {"key": NAMESPACE}, "flags": made}


def random_requests(rng: random.Random, snapshot: Json, number: int) -> Iterator[Request]:
    """Questions about its flags, now and then about an unknown one or of the wrong type."""
    for _ in range(number):
        flag = rng.choice(snapshot["flags"])
        kind = "boolean" if flag["type"] == "BOOLEAN_FLAG_TYPE" else "variant"
        key = flag["key"]
        dice = rng.random()
        if dice < 0.005:
            key += "?"
        elif dice < 0.01:
            kind = "variant" if kind == "boolean" else "boolean"
        yield Request(kind, key, _entity(rng), _context(rng))


def entries_of(snapshot: Json) -> list[Entry]:
    """The records that a publisher would make of a snapshot."""
    segments: dict[str, Segment] = {}
    flags = [_flag_entry(flag, segments) for flag in snapshot["flags"]]
    return [*segments.values(), *flags]


def constraint_entry(constraint: Json) -> Constraint:
    """One constraint of a snapshot, compiled."""
    type_, operator = _TYPES[constraint["type"]], Operator(constraint["operator"])
    return Constraint(
        type_, constraint["property"], operator, _value_entry(TAKES[type_, operator], constraint["value"])
    )


def rounded_bounds(rollouts: Sequence[float]) -> tuple[int, ...]:
    """The bounds of Flipt's engine in the clients: as the server's, but rounded instead of truncated."""
    total, cumulative, bounds = 0.0, 0.0, []
    for rollout in rollouts:
        total = _float32(total + _float32(rollout))
    for rollout in rollouts:
        cumulative = _float32(cumulative + _float32(_float32(_float32(rollout) / total) * 100.0))
        bounds.append(int(_float32(cumulative * 10.0) + 0.5))
    return (*bounds[:-1], 1000) if bounds else ()


def _float32(number: float) -> float:
    narrowed: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return narrowed


def _key(rng: random.Random) -> str:
    return "".join(rng.choices(_LETTERS, k=rng.randint(1, 8)))


def _entity(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return rng.choice(_ENTITIES)
    # No space around it: the engine in the clients does not trim before it compares a prefix.
    return f"{_key(rng).strip()}{rng.randint(0, 10**6)}"


def _context(rng: random.Random) -> dict[str, str]:
    context = {}
    for type_, names in _PROPERTIES.items():
        for name in names:
            dice = rng.random()
            if dice < 0.75:
                context[name] = rng.choice(_VALUES[type_])
            elif dice < 0.8:
                context[name] = ""
            elif dice < 0.85:
                context[name] = rng.choice(("nonsense", "--1", "yes"))
    return context


def _segment(rng: random.Random, key: str) -> Json:
    constraints = [
        _constraint(rng, rng.choice(list(ConstraintType)))
        for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 4)))
    ]
    match = rng.choice(("ALL", "ANY"))
    return {"key": key, "matchType": f"{match}_SEGMENT_MATCH_TYPE", "constraints": constraints}


def _alike_segments(rng: random.Random, prefix: str) -> list[Json]:
    """Segments that ask one property for certain values and, some of them, for more: one of many rules each."""
    name = rng.choice(_PROPERTIES[ConstraintType.STRING])
    segments = []
    for number in range(10):
        operator = rng.choice((Operator.EQ, Operator.ISONEOF))
        texts = rng.choices(_TEXTS, k=2)
        value = texts[0] if operator is Operator.EQ else json.dumps(texts, ensure_ascii=False)
        further = [_constraint(rng, rng.choice(list(ConstraintType))) for _ in range(rng.choice((0, 0, 1)))]
        asked = {
            "type": "STRING_CONSTRAINT_COMPARISON_TYPE",
            "property": name,
            "operator": str(operator),
            "value": value,
        }
        constraints = [asked, *further] if rng.random() < 0.7 else [*further, asked]
        match = rng.choice(("ALL", "ALL", "ANY"))
        segments.append(
            {
                "key": f"{prefix}{number}",
                "matchType": f"{match}_SEGMENT_MATCH_TYPE",
                "constraints": constraints,
            }
        )
    return segments


def _constraint(rng: random.Random, type_: ConstraintType) -> Json:
    operator, takes = rng.choice([(pair[1], takes) for pair, takes in TAKES.items() if pair[0] is type_])
    value = ""
    if takes is Takes.NUMBERS:
        value = json.dumps([int(rng.choice(_NUMBERS)) for _ in range(rng.randint(0, 4))])
    elif takes is Takes.TEXTS:
        # The engine in the clients reads no escapes in lists.
        value = json.dumps(rng.choices(_VALUES[type_], k=rng.randint(0, 4)), ensure_ascii=False)
    elif takes is not Takes.NONE:
        value = rng.choice(_VALUES[type_])
        if takes is Takes.TEXT and rng.random() < 0.3:
            value = value[: rng.randint(1, 3)] if rng.random() < 0.5 else value[-rng.randint(1, 3) :]
        value = value.strip() or "x"
    names = _PROPERTIES.get(type_, ("ignored",))
    return {
        "type": f"{_TYPE_WORDS[type_]}_CONSTRAINT_COMPARISON_TYPE",
        "property": rng.choice(names),
        "operator": str(operator),
        "value": value,
    }


def _some(rng: random.Random, segments: Sequence[Json]) -> list[Json]:
    return rng.sample(segments, rng.choice((0, 1, 1, 1, 2, 3)))


def _boolean_flag(rng: random.Random, key: str, segments: Sequence[Json], number: int | None) -> Json:
    rollouts: list[Json] = []
    for rank in range(rng.choice((0, 1, 1, 2, 3, 5)) if number is None else number):
        value = rng.random() < 0.5
        if rng.random() < (0.5 if number is None else 0.1):
            percentage = rng.choice((0, 50, 100, rng.randint(0, 100), rng.randint(0, 1000) / 10))
            rollouts.append({"rank": rank, "threshold": {"percentage": percentage, "value": value}})
        else:
            joined = {"value": value, "segmentOperator": _operator(rng), "segments": _some(rng, segments)}
            rollouts.append({"rank": rank, "segment": joined})
    return {
        "key": key,
        "name": key,
        "type": "BOOLEAN_FLAG_TYPE",
        "enabled": rng.random() < 0.5,
        "rules": [],
        "rollouts": rollouts,
    }


def _variant_flag(rng: random.Random, key: str, segments: Sequence[Json], number: int | None) -> Json:
    variants = [(f"v{place}", rng.choice(("", '{"a":1}', '"日本"'))) for place in range(4)]
    rules = [
        {
            "id": f"{key}/{rank}",
            "rank": rank,
            "segmentOperator": _operator(rng),
            "segments": _some(rng, segments),
            "distributions": [
                {"variantKey": variant, "variantAttachment": attachment, "rollout": rollout}
                for (variant, attachment), rollout in zip(variants, _rollouts(rng), strict=False)
            ],
        }
        for rank in range(rng.choice((0, 1, 1, 2, 3, 5)) if number is None else number)
    ]
    flag = {
        "key": key,
        "name": key,
        "type": "VARIANT_FLAG_TYPE",
        "enabled": rng.random() < 0.9,
        "rules": rules,
        "rollouts": [],
    }
    if rng.random() < 0.5:
        default, attachment = rng.choice(variants)
        flag["defaultVariant"] = {"id": default, "key": default, "attachment": attachment}
    return flag


def _operator(rng: random.Random) -> str:
    return rng.choice(("OR_SEGMENT_OPERATOR", "AND_SEGMENT_OPERATOR"))


def _rollouts(rng: random.Random) -> list[float]:
    """Zero to four shares whose bounds the engines agree about."""
    while True:
        number = rng.randint(0, 4)
        match rng.randint(0, 3):
            case 0:
                shares = [float(rng.randint(0, 100)) for _ in range(number)]
            case 1:
                cuts = sorted(rng.randint(0, 1000) for _ in range(number - 1))
                edges = [0, *cuts, 1000]
                shares = [round((high - low) / 10, 1) for low, high in pairwise(edges)]
            case 2:
                shares = [0.0] * number
            case _:
                shares = [round(100 / number, 2)] * number if number else []
        positive = [share for share in shares if share > 0]
        if compile_bounds(positive) == rounded_bounds(positive):
            return shares


def _flag_entry(flag: Json, segments: dict[str, Segment]) -> Flag:
    key = FlagKey(flag["key"])
    if flag["type"] == "BOOLEAN_FLAG_TYPE":
        return BooleanFlag(
            key, flag["enabled"], tuple(_rollout_entry(rollout, segments) for rollout in flag["rollouts"])
        )
    attachments: dict[str, str] = {}
    default = flag.get("defaultVariant")
    if default:
        attachments[default["key"]] = default["attachment"]
    for rule in flag["rules"]:
        attachments |= {share["variantKey"]: share["variantAttachment"] for share in rule["distributions"]}
    return VariantFlag(
        key,
        flag["enabled"],
        tuple(Variant(VariantKey(variant), attachment) for variant, attachment in attachments.items()),
        VariantKey(default["key"]) if default else None,
        tuple(_rule_entry(rule, segments) for rule in flag["rules"]),
    )


def _rule_entry(rule: Json, segments: dict[str, Segment]) -> Rule:
    positive = [share for share in rule["distributions"] if share["rollout"] > 0]
    bounds = compile_bounds([share["rollout"] for share in positive])
    return Rule(
        _segment_keys(rule["segments"], segments),
        Join.AND if rule["segmentOperator"].startswith("AND") else Join.OR,
        tuple(
            Distribution(VariantKey(share["variantKey"]), bound)
            for share, bound in zip(positive, bounds, strict=True)
        ),
    )


def _rollout_entry(rollout: Json, segments: dict[str, Segment]) -> Rollout:
    if "threshold" in rollout:
        threshold = rollout["threshold"]
        return ThresholdRollout(compile_percentage(threshold["percentage"]), threshold["value"])
    joined = rollout["segment"]
    return SegmentRollout(
        _segment_keys(joined["segments"], segments),
        Join.AND if joined["segmentOperator"].startswith("AND") else Join.OR,
        joined["value"],
    )


def _segment_keys(listed: Sequence[Json], segments: dict[str, Segment]) -> tuple[SegmentKey, ...]:
    for segment in listed:
        segments.setdefault(
            segment["key"],
            Segment(
                SegmentKey(segment["key"]),
                Match.ALL if segment["matchType"].startswith("ALL") else Match.ANY,
                tuple(constraint_entry(constraint) for constraint in segment["constraints"]),
            ),
        )
    return tuple(SegmentKey(segment["key"]) for segment in listed)


def _value_entry(takes: Takes, text: str) -> ConstraintValue:
    match takes:
        case Takes.NONE:
            return None
        case Takes.TEXT:
            return text
        case Takes.TEXTS:
            return tuple(json.loads(text))
        case Takes.NUMBERS:
            return tuple(format_float(float(number)) for number in json.loads(text))
        case Takes.NUMBER:
            number = parse_float(text)
            assert number is not None
            return format_float(number)
        case Takes.INSTANT:
            instant = parse_instant(text)
            assert instant is not None
            return instant


REASONS: Mapping[str, str] = {
    "UNKNOWN_EVALUATION_REASON": "unknown",
    "FLAG_DISABLED_EVALUATION_REASON": "flag_disabled",
    "MATCH_EVALUATION_REASON": "match",
    "DEFAULT_EVALUATION_REASON": "default",
}
