"""The peer of `wire.py`: the JSON that a Flipt server sends a client of its own for the same flags (docs of its client API)."""

import json
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]


def snapshot(document: Mapping[str, Any]) -> bytes:
    """One namespace as Flipt's evaluation snapshot, without white space, from a flags file.

    Its segments stand inside every rule and rollout that refers to them.
    """
    segments = {segment["key"]: _segment(segment) for segment in document["segments"]}
    flags = [_flag(flag, segments) for flag in document["flags"]]
    namespace = document["namespace"]
    key = namespace["key"] if isinstance(namespace, Mapping) else namespace
    whole = {"digest": "0" * 40, "namespace": {"key": key}, "flags": flags}
    return json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode()


def _flag(flag: Json, segments: Mapping[str, Json]) -> Json:
    variants = {variant["key"]: variant for variant in flag.get("variants", ())}
    answer: Json = {
        "key": flag["key"],
        "name": flag["name"],
        "description": flag.get("description", ""),
        "enabled": flag.get("enabled", False),
        "type": flag.get("type", "VARIANT_FLAG_TYPE"),
        "rules": [
            {
                "rank": rank,
                **_joined(rule["segment"], segments),
                "distributions": [
                    {
                        "variantKey": share["variant"],
                        "variantAttachment": _attachment(variants[share["variant"]]),
                        "rollout": share["rollout"],
                    }
                    for share in rule["distributions"]
                ],
            }
            for rank, rule in enumerate(flag.get("rules", ()), 1)
        ],
        "rollouts": [
            _rollout(rank, rollout, segments) for rank, rollout in enumerate(flag.get("rollouts", ()), 1)
        ],
    }
    for variant in variants.values():
        if variant.get("default"):
            answer["defaultVariant"] = {"key": variant["key"], "attachment": _attachment(variant)}
    return answer


def _rollout(rank: int, rollout: Json, segments: Mapping[str, Json]) -> Json:
    if "threshold" in rollout:
        return {"type": "THRESHOLD_ROLLOUT_TYPE", "rank": rank, "threshold": rollout["threshold"]}
    segment = rollout["segment"]
    joined = {"value": segment["value"], **_joined(segment, segments)}
    return {"type": "SEGMENT_ROLLOUT_TYPE", "rank": rank, "segment": joined}


def _joined(segment: str | Json, segments: Mapping[str, Json]) -> Json:
    if isinstance(segment, str):
        segment = {"key": segment}
    keys = segment.get("keys") or [segment["key"]]
    return {
        "segmentOperator": segment.get("operator", "OR_SEGMENT_OPERATOR"),
        "segments": [segments[key] for key in keys],
    }


def _segment(segment: Json) -> Json:
    return {
        "key": segment["key"],
        "matchType": segment["match_type"].replace("_MATCH", "_SEGMENT_MATCH"),
        "constraints": [
            {
                "type": constraint["type"].replace("_COMPARISON", "_CONSTRAINT_COMPARISON"),
                "property": constraint["property"],
                "operator": constraint["operator"],
                "value": _text(constraint.get("value", "")),
            }
            for constraint in segment.get("constraints", ())
        ],
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _attachment(variant: Json) -> str:
    return json.dumps(variant["attachment"], separators=(",", ":")) if "attachment" in variant else ""
