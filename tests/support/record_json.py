"""The readable JSON of records that the vectors of evaluations use (tests/vectors/README.md)."""

from collections.abc import Mapping, Sequence
from typing import Any

from flagcast_shared.ids import FlagKey, SegmentKey, VariantKey
from flagcast_shared.model import (
    BooleanFlag,
    Constraint,
    ConstraintType,
    ConstraintValue,
    Distribution,
    Entry,
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
    UnsupportedSegment,
    Variant,
    VariantFlag,
)

Json = dict[str, Any]


def entry_of(record: Mapping[str, Any]) -> Entry:
    """A record from its JSON."""
    match record["kind"]:
        case "segment":
            constraints = tuple(constraint_of(item) for item in record["constraints"])
            return Segment(SegmentKey(record["key"]), Match(record["match"]), constraints)
        case "boolean":
            rollouts = tuple(_rollout_of(item) for item in record["rollouts"])
            return BooleanFlag(
                FlagKey(record["key"]), record["enabled"], rollouts, record.get("metadata", "")
            )
        case "variant":
            return VariantFlag(
                FlagKey(record["key"]),
                record["enabled"],
                tuple(Variant(VariantKey(item["key"]), item["attachment"]) for item in record["variants"]),
                None if record["default"] is None else VariantKey(record["default"]),
                tuple(_rule_of(item) for item in record["rules"]),
                record.get("metadata", ""),
            )
        case "unsupported-flag":
            return UnsupportedFlag(FlagKey(record["key"]), "of a newer publisher")
        case "unsupported-segment":
            return UnsupportedSegment(SegmentKey(record["key"]), "of a newer publisher")
        case kind:
            raise AssertionError(f"no kind {kind!r}")


def constraint_of(item: Mapping[str, Any]) -> Constraint:
    """A constraint from its JSON."""
    return Constraint(
        ConstraintType(item["type"]),
        item["property"],
        Operator(item["operator"]),
        value_of(item["type"], item["value"]),
    )


def value_of(type_: str, value: str | Sequence[Any] | None) -> ConstraintValue:
    """A constraint's value: null, a text, a list of texts, or [seconds, nanoseconds] of an instant."""
    if value is None or isinstance(value, str):
        return value
    return Instant(*value) if type_ == "datetime" else tuple(value)


def json_of(entry: Entry) -> Json:
    """The JSON of a flag or segment."""
    match entry:
        case Segment():
            return {
                "kind": "segment",
                "key": entry.key,
                "match": str(entry.match),
                "constraints": [
                    {
                        "type": str(item.type),
                        "property": item.property,
                        "operator": str(item.operator),
                        "value": list(item.value) if isinstance(item.value, tuple) else item.value,
                    }
                    for item in entry.constraints
                ],
            }
        case BooleanFlag():
            return {
                "kind": "boolean",
                "key": entry.key,
                "enabled": entry.enabled,
                "rollouts": [
                    {"percentage": item.percentage, "value": item.value}
                    if isinstance(item, ThresholdRollout)
                    else {"segments": list(item.segments), "join": str(item.join), "value": item.value}
                    for item in entry.rollouts
                ],
                **_metadata_of(entry),
            }
        case VariantFlag():
            return {
                "kind": "variant",
                "key": entry.key,
                "enabled": entry.enabled,
                "variants": [{"key": item.key, "attachment": item.attachment} for item in entry.variants],
                "default": entry.default,
                "rules": [
                    {
                        "segments": list(rule.segments),
                        "join": str(rule.join),
                        "distributions": [
                            {"variant": share.variant, "bound": share.bound} for share in rule.distributions
                        ],
                    }
                    for rule in entry.rules
                ],
                **_metadata_of(entry),
            }
        case _:
            raise AssertionError(f"{entry} has no JSON")


def _metadata_of(flag: BooleanFlag | VariantFlag) -> Json:
    return {"metadata": flag.metadata} if flag.metadata else {}


def _rollout_of(item: Mapping[str, Any]) -> Rollout:
    if "percentage" in item:
        return ThresholdRollout(item["percentage"], item["value"])
    return SegmentRollout(tuple(map(SegmentKey, item["segments"])), Join(item["join"]), item["value"])


def _rule_of(item: Mapping[str, Any]) -> Rule:
    return Rule(
        tuple(map(SegmentKey, item["segments"])),
        Join(item["join"]),
        tuple(Distribution(VariantKey(share["variant"]), share["bound"]) for share in item["distributions"]),
    )
