"""Why an entity gets its answer, step by step: which rule, which constraint with which value, which bucket.

This walks the flag itself and shares with the compiled form only the definition of each operator and of the buckets;
that both come to the same answer is tested on every case of the differential test.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .answers import NO_VARIANT, Answer, BooleanAnswer, Reason, Resolution, VariantAnswer
from .bucketing import BOOLEAN_BUCKETS, VARIANT_BUCKETS, boolean_bucket, variant_bucket
from .constraints import Context, seen_value, value_test
from .ids import SegmentKey
from .literals import format_instant
from .model import (
    BooleanFlag,
    Constraint,
    ConstraintType,
    ConstraintValue,
    Instant,
    Join,
    Match,
    Rule,
    Segment,
    ThresholdRollout,
    VariantFlag,
)


@dataclass(frozen=True, slots=True)
class ConstraintStep:
    """One constraint, the value it saw ("" for none), and whether it holds."""

    constraint: Constraint
    seen: str
    matches: bool


@dataclass(frozen=True, slots=True)
class SegmentStep:
    """One segment with all its constraints, each evaluated."""

    key: SegmentKey
    match: Match
    constraints: tuple[ConstraintStep, ...]
    matches: bool


@dataclass(frozen=True, slots=True)
class BucketStep:
    """The entity's bucket of `buckets`, and the buckets `first` to `last` (both included) that it has to be in."""

    bucket: int
    buckets: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Step:
    """One rule or rollout: `number` from 1 in the order of the file, `kind` "rule", "segment" or "threshold".

    A threshold has no segments; `bucket` is there where one was computed. `gives` is what it gives if it matches.
    """

    number: int
    kind: str
    join: Join | None
    segments: tuple[SegmentStep, ...]
    bucket: BucketStep | None
    matches: bool
    gives: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """An answer and the steps that led to it; what comes after the step that matched was never evaluated."""

    entity_id: str
    enabled: bool
    steps: tuple[Step, ...]
    answer: Answer

    def lines(self) -> list[str]:
        """The explanation for people, a line each."""
        lines = [*_answer_lines(self)]
        for step in self.steps:
            lines.append(f"  {_step_text(step)}")
            for segment in step.segments:
                lines.append(f"    {_segment_text(segment)}")
                lines.extend(f"      {_constraint_text(seen)}" for seen in segment.constraints)
            if step.bucket is not None:
                lines.append(f"    {_bucket_text(step.bucket, step)}")
        if not any(step.matches for step in self.steps):
            lines.append(f"  {_fallback_text(self)}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The explanation for programs: texts, numbers, booleans, lists and maps, as JSON has them."""
        return {
            "flag": self.answer.flag_key,
            "type": "boolean" if isinstance(self.answer, BooleanAnswer) else "variant",
            "enabled": self.enabled,
            "entity": self.entity_id,
            "answer": _answer_dict(self.answer),
            "steps": [_step_dict(step) for step in self.steps],
        }


def explain_boolean(
    flag: BooleanFlag,
    segments: Mapping[SegmentKey, Segment],
    device: Context,
    entity_id: str,
    context: Context,
) -> Explanation:
    """The steps of a boolean flag. `segments` holds every segment that the flag refers to."""
    steps: list[Step] = []
    for number, rollout in enumerate(flag.rollouts, 1):
        gives = str(rollout.value).lower()
        if isinstance(rollout, ThresholdRollout):
            bucket = boolean_bucket(flag.key, entity_id)
            below = BucketStep(bucket, BOOLEAN_BUCKETS, 0, rollout.percentage - 1)
            steps.append(Step(number, "threshold", None, (), below, bucket < rollout.percentage, gives))
            keys: tuple[SegmentKey, ...] = ()
            resolution = Resolution.SPLIT
        else:
            walked = [
                _segment(segments[key], device, entity_id, context) for key in _distinct(rollout.segments)
            ]
            matches = _joined(rollout.join, walked)
            steps.append(Step(number, "segment", rollout.join, tuple(walked), None, matches, gives))
            keys = tuple(segment.key for segment in walked if segment.matches)
            resolution = Resolution.TARGETING_MATCH
        if steps[-1].matches:
            answer = BooleanAnswer(flag.key, rollout.value, Reason.MATCH, keys, resolution)
            return Explanation(entity_id, flag.enabled, tuple(steps), answer)
    reason, resolution = Reason.DEFAULT, Resolution.DEFAULT if flag.rollouts else Resolution.STATIC
    if not flag.enabled and not flag.rollouts:
        reason = Reason.FLAG_DISABLED
    last = BooleanAnswer(flag.key, flag.enabled, reason, (), resolution)
    return Explanation(entity_id, flag.enabled, tuple(steps), last)


def explain_variant(
    flag: VariantFlag,
    segments: Mapping[SegmentKey, Segment],
    device: Context,
    entity_id: str,
    context: Context,
) -> Explanation:
    """The steps of a variant flag. `segments` and the flag's variants hold all that the flag refers to."""
    attachments = {variant.key: variant.attachment for variant in flag.variants}
    answer = VariantAnswer(
        flag_key=flag.key,
        match=False,
        variant_key=NO_VARIANT,
        attachment="",
        reason=Reason.UNKNOWN,
        segment_keys=(),
        resolution=Resolution.DEFAULT if flag.rules else Resolution.STATIC,
    )
    if flag.default is not None:
        answer = replace(
            answer, variant_key=flag.default, attachment=attachments[flag.default], reason=Reason.DEFAULT
        )
    if not flag.enabled:
        answer = replace(answer, reason=Reason.FLAG_DISABLED, resolution=Resolution.DISABLED)
        return Explanation(entity_id, flag.enabled, (), answer)
    steps: list[Step] = []
    for number, rule in enumerate(flag.rules, 1):
        walked = [_segment(segments[key], device, entity_id, context) for key in _distinct(rule.segments)]
        if not _joined(rule.join, walked):
            steps.append(
                Step(number, "rule", rule.join, tuple(walked), None, matches=False, gives=_shares_text(rule))
            )
            continue
        answer = replace(
            answer,
            match=True,
            reason=Reason.MATCH,
            segment_keys=tuple(segment.key for segment in walked if segment.matches),
            resolution=Resolution.SPLIT if len(rule.distributions) > 1 else Resolution.TARGETING_MATCH,
        )
        bucket = None
        if rule.distributions:
            bounds = [share.bound for share in rule.distributions]
            number_of_bucket = variant_bucket(flag.key, entity_id)
            place = bisect_right(bounds, number_of_bucket)
            first = bounds[place - 1] if place else 0
            bucket = BucketStep(number_of_bucket, VARIANT_BUCKETS, first, bounds[place] - 1)
            chosen = rule.distributions[place].variant
            answer = replace(answer, variant_key=chosen, attachment=attachments[chosen])
        gives = answer.variant_key or "no variant"
        steps.append(Step(number, "rule", rule.join, tuple(walked), bucket, matches=True, gives=gives))
        break
    return Explanation(entity_id, flag.enabled, tuple(steps), answer)


def _segment(segment: Segment, device: Context, entity_id: str, context: Context) -> SegmentStep:
    walked = []
    for constraint in segment.constraints:
        seen = seen_value(constraint, device, entity_id, context)
        walked.append(ConstraintStep(constraint, seen, value_test(constraint)(seen)))
    results = [step.matches for step in walked]
    matches = not results or (all(results) if segment.match is Match.ALL else any(results))
    return SegmentStep(segment.key, segment.match, tuple(walked), matches)


def _joined(join: Join, segments: Sequence[SegmentStep]) -> bool:
    results = [segment.matches for segment in segments]
    return all(results) if join is Join.AND else any(results)


def _distinct(keys: Sequence[SegmentKey]) -> list[SegmentKey]:
    return list(dict.fromkeys(keys))


def _shares_text(rule: Rule) -> str:
    return ", ".join(share.variant for share in rule.distributions) or "the default variant"


def _answer_lines(explanation: Explanation) -> list[str]:
    answer = explanation.answer
    if isinstance(answer, BooleanAnswer):
        kind, given = "boolean", str(answer.enabled).lower()
    else:
        kind, given = "variant", repr(answer.variant_key) if answer.variant_key else "no variant"
    keys = f", segments {', '.join(answer.segment_keys)}" if answer.segment_keys else ""
    # `enabled` of a boolean flag is what it answers where no rollout matches, and no switch above them.
    words = ("otherwise on", "otherwise off") if kind == "boolean" else ("enabled", "disabled")
    state = words[0] if explanation.enabled else words[1]
    return [
        f"{kind} flag {answer.flag_key!r} ({state}) for entity {explanation.entity_id!r}:",
        f"  {given}, reason {answer.reason}{keys}",
    ]


def _step_text(step: Step) -> str:
    name = f"rule {step.number}" if step.kind == "rule" else f"rollout {step.number} ({step.kind})"
    joined = (
        f", {step.join} of {len(step.segments)} segments" if step.join and len(step.segments) != 1 else ""
    )
    return f"{name}{joined}: {f'matches, gives {step.gives}' if step.matches else 'does not match'}"


def _segment_text(segment: SegmentStep) -> str:
    word = "matches" if segment.matches else "does not match"
    if not segment.constraints:
        return f"segment {segment.key!r} has no constraints: {word}"
    number = len(segment.constraints)
    joined = f", {segment.match} of {number} constraints" if number > 1 else ""
    return f"segment {segment.key!r}{joined}: {word}"


def _constraint_text(step: ConstraintStep) -> str:
    constraint = step.constraint
    of = "the entity id" if constraint.type is ConstraintType.ENTITY else constraint.property
    value = "" if constraint.value is None else f" {_value_text(constraint)}"
    seen = repr(step.seen) if step.seen else "nothing"
    return (
        f"{of} {constraint.operator}{value} ({constraint.type}): "
        f"saw {seen}, {'holds' if step.matches else 'does not hold'}"
    )


def _bucket_text(bucket: BucketStep, step: Step) -> str:
    if bucket.last < bucket.first:
        return f"bucket {bucket.bucket} of {bucket.buckets}: none is asked for"
    where = "in" if step.matches else "not in"
    return f"bucket {bucket.bucket} of {bucket.buckets}: {where} {bucket.first} to {bucket.last}"


def _fallback_text(explanation: Explanation) -> str:
    answer = explanation.answer
    if answer.reason is Reason.FLAG_DISABLED and not isinstance(answer, BooleanAnswer):
        return "the flag is disabled"
    before = "no rule or rollout matches" if explanation.steps else "the flag has no rules or rollouts"
    if isinstance(answer, BooleanAnswer):
        return f"{before}: otherwise {'on' if answer.enabled else 'off'}"
    return f"{before}: {'the default variant' if answer.variant_key else 'there is no default variant'}"


def _value_text(constraint: Constraint) -> str:
    show = _number_text if constraint.type is ConstraintType.NUMBER else repr
    match constraint.value:
        case Instant() as instant:
            return format_instant(instant)
        case tuple() as listed:
            return f"[{', '.join(map(show, listed))}]"
        case value:
            return show(value)


def _number_text(number: object) -> str:
    return str(number).removesuffix(".0")


def _value_json(value: ConstraintValue) -> str | list[str] | None:
    match value:
        case Instant():
            return format_instant(value)
        case str() | None:
            return value
        case _:
            return list(value)


def _answer_dict(answer: Answer) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "reason": str(answer.reason),
        "resolution": str(answer.resolution),
        "segments": list(answer.segment_keys),
    }
    if isinstance(answer, BooleanAnswer):
        return {"enabled": answer.enabled, **shared}
    return {
        "match": answer.match,
        "variant": answer.variant_key,
        "attachment": answer.attachment,
        **shared,
    }


def _step_dict(step: Step) -> dict[str, Any]:
    return {
        "number": step.number,
        "kind": step.kind,
        "join": None if step.join is None else str(step.join),
        "segments": [
            {
                "key": segment.key,
                "match": str(segment.match),
                "matches": segment.matches,
                "constraints": [
                    {
                        "type": str(seen.constraint.type),
                        "property": seen.constraint.property,
                        "operator": str(seen.constraint.operator),
                        "value": _value_json(seen.constraint.value),
                        "seen": seen.seen,
                        "matches": seen.matches,
                    }
                    for seen in segment.constraints
                ],
            }
            for segment in step.segments
        ],
        "bucket": None
        if step.bucket is None
        else {
            "bucket": step.bucket.bucket,
            "buckets": step.bucket.buckets,
            "first": step.bucket.first,
            "last": step.bucket.last,
        },
        "matches": step.matches,
        "gives": step.gives,
    }
