"""Answers of flags in words: for whom a flag gives which answer, and what differs between two flags. Pure.

The words follow the evaluation: the first rollout or rule that matches decides, thresholds of one flag share their buckets, and
of a boolean flag `enabled` is the answer when no rollout matches. So a rollout that can decide about nobody is left out, and 25 %
after 10 % are 15 % more.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final, TypeVar

from flagcast_shared.bucketing import BOOLEAN_BUCKETS
from flagcast_shared.ids import SegmentKey
from flagcast_shared.model import (
    BooleanFlag,
    Entry,
    Flag,
    Join,
    Rollout,
    Rule,
    Segment,
    ThresholdRollout,
    UnsupportedFlag,
    VariantFlag,
)

NAMES_MAX: Final = 8
"""Segments, steps or changes that one line names: more than a person reads; the rest is counted."""
ALIGNED_MAX: Final = 200
"""Rollouts or rules of a flag that are compared one by one; people write a handful, and aligning is a square."""

HOW_TO_TURN_OFF: Final = "to turn it off for everybody: remove its rollouts and set enabled: false"
"""The edit after which a boolean flag is false for every entity."""

_TENTHS: Final = 10
# Of a percent: what a bucket of a variant flag is.


def answers(flag: Flag, everyone: Collection[SegmentKey] = ()) -> str:
    """The answers of a flag: `true for 25 % and segment pilots, otherwise false`. `everyone` are segments that match everyone."""
    if isinstance(flag, UnsupportedFlag):
        return "the default of the application"
    found = _boolean(flag, everyone) if isinstance(flag, BooleanFlag) else _variant(flag, everyone)
    if not found.steps:
        return f"{found.rest} for everyone"
    steps = [f"{step.answer} for {_joined(step.whom)}" for step in found.steps]
    return f"{', then '.join(_some(steps))}, otherwise {found.rest}"


def is_off(flag: Flag, everyone: Collection[SegmentKey] = ()) -> bool:
    """Whether a boolean flag is false for every entity."""
    return isinstance(flag, BooleanFlag) and _boolean(flag, everyone) == _Answers((), _word(value=False))


def still_true(flag: Flag, everyone: Collection[SegmentKey] = ()) -> str:
    """For whom a boolean flag that is not enabled is true all the same: `25 % and segment pilots`; "" for nobody."""
    if not isinstance(flag, BooleanFlag) or flag.enabled:
        return ""
    found = _boolean(flag, everyone)
    whom: list[str] = []
    apart: list[str] = []
    for step in found.steps:
        if step.answer == _word(value=True):
            whom.append(_joined(step.whom) + (f" apart from {_joined(apart)}" if apart else ""))
        else:
            apart += step.whom
    if found.rest == _word(value=True):
        whom.append("everyone else" if found.steps else "everyone")
    return _joined(whom)


def change(before: Flag, after: Flag) -> str:
    """The differences of two flags: `enabled true -> false, rollout 25 % -> 26 %`; "type" where they are of different kinds."""
    if isinstance(before, BooleanFlag) and isinstance(after, BooleanFlag):
        found = [*_field("enabled", _word(value=before.enabled), _word(value=after.enabled))]
        found += _steps("rollout", before.rollouts, after.rollouts, _rollout_name, _rollout_answer)
        found += _metadata(before, after)
        return ", ".join(_some(found))
    if isinstance(before, VariantFlag) and isinstance(after, VariantFlag):
        found = [*_field("enabled", _word(value=before.enabled), _word(value=after.enabled))]
        found += _field("default", before.default or "none", after.default or "none")
        found += _variants(before, after)
        found += _steps("rule", before.rules, after.rules, _rule_name, _shares)
        found += _metadata(before, after)
        return ", ".join(_some(found))
    return "type"


def matching_everyone(entries: Iterable[Entry]) -> frozenset[SegmentKey]:
    """The segments without constraints, which match every entity."""
    return frozenset(each.key for each in entries if isinstance(each, Segment) and not each.constraints)


def segments_of(flag: BooleanFlag | VariantFlag) -> frozenset[SegmentKey]:
    """The segments that a flag refers to."""
    places = flag.rollouts if isinstance(flag, BooleanFlag) else flag.rules
    return frozenset(
        key for place in places if not isinstance(place, ThresholdRollout) for key in place.segments
    )


@dataclass(frozen=True, slots=True)
class _Step:
    # An answer and for whom it is, of those about whom no step before has decided.
    answer: str
    whom: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Answers:
    # Steps in order, and the answer of all others.
    steps: tuple[_Step, ...]
    rest: str


class _Steps:
    # Collects steps: neighbours of one answer become one, and what decides about nobody is left out.

    def __init__(self, everyone: Collection[SegmentKey]) -> None:
        self._everyone = everyone
        self._steps: list[tuple[str, list[str], int]] = []  # the answer, the segments, the percentage
        self._seen: set[str] = set()
        self._covered = 0

    def add_share(self, percentage: int, answer: str) -> bool:
        """A threshold; whether it leaves nobody."""
        share = min(percentage, BOOLEAN_BUCKETS) - self._covered
        if share > 0 and percentage < BOOLEAN_BUCKETS:
            self._covered += share
            self._add(answer, [], share)
        return percentage >= BOOLEAN_BUCKETS

    def add_segments(self, segments: Sequence[SegmentKey], join: Join, answer: str) -> bool:
        """A segment or several; whether they leave nobody."""
        keys = list(dict.fromkeys(segments))
        if join is Join.AND:
            keys = [key for key in keys if key not in self._everyone]
            if not keys:
                return True
        elif any(key in self._everyone for key in keys):
            return True
        name = _segments_name(keys, join)
        if keys and name not in self._seen:
            self._seen.add(name)
            self._add(answer, [name], 0)
        return False

    def _add(self, answer: str, names: list[str], share: int) -> None:
        if self._steps and self._steps[-1][0] == answer:
            _, before, covered = self._steps.pop()
            names, share = before + names, covered + share
        self._steps.append((answer, names, share))

    def finish(self, rest: str) -> _Answers:
        while self._steps and self._steps[-1][0] == rest:
            self._steps.pop()
        steps = (
            _Step(answer, ((f"{share} %",) if share else ()) + tuple(names))
            for answer, names, share in self._steps
        )
        return _Answers(tuple(steps), rest)


def _boolean(flag: BooleanFlag, everyone: Collection[SegmentKey]) -> _Answers:
    steps = _Steps(everyone)
    for rollout in flag.rollouts:
        answer = _word(value=rollout.value)
        if isinstance(rollout, ThresholdRollout):
            is_last = steps.add_share(rollout.percentage, answer)
        else:
            is_last = steps.add_segments(rollout.segments, rollout.join, answer)
        if is_last:
            return steps.finish(answer)
    return steps.finish(_word(value=flag.enabled))


def _variant(flag: VariantFlag, everyone: Collection[SegmentKey]) -> _Answers:
    steps = _Steps(everyone)
    otherwise = flag.default or "no variant"
    for rule in flag.rules if flag.enabled else ():
        answer = _shares(rule) or otherwise
        if steps.add_segments(rule.segments, rule.join, answer):
            return steps.finish(answer)
    return steps.finish(otherwise)


def _shares(rule: Rule) -> str:
    # The variants of a rule with their shares; "" where a match leaves the default.
    below, found = 0, []
    for each in rule.distributions:
        whole, tenths = divmod(each.bound - below, _TENTHS)
        if each.bound > below:
            found.append((each.variant, f"{whole}.{tenths} %" if tenths else f"{whole} %"))
        below = each.bound
    if len(found) == 1:
        return found[0][0]
    return _joined([f"{share} {variant}" for variant, share in found])


def _segments_name(keys: Sequence[SegmentKey], join: Join) -> str:
    if len(keys) == 1:
        return f"segment {keys[0]}"
    return f"{'all' if join is Join.AND else 'any'} of segments {_joined(keys)}"


def _rollout_name(rollout: Rollout) -> str:
    if isinstance(rollout, ThresholdRollout):
        return f"{rollout.percentage} %"
    return _segments_name(rollout.segments, rollout.join)


def _rollout_answer(rollout: Rollout) -> str:
    return _word(value=rollout.value)


def _rule_name(rule: Rule) -> str:
    return _segments_name(rule.segments, rule.join)


def _variants(before: VariantFlag, after: VariantFlag) -> Iterator[str]:
    old = {each.key: each for each in before.variants}
    new = {each.key: each for each in after.variants}
    yield from (f"variant {key} removed" for key in old if key not in new)
    yield from (f"variant {key} added" for key in new if key not in old)
    yield from (f"variant {key}: attachment" for key in new if key in old and new[key] != old[key])
    if not old.keys() ^ new.keys() and list(old) != list(new):
        yield "order of variants"


_Place = TypeVar("_Place", Rollout, Rule)


def _steps(
    word: str,
    before: Sequence[_Place],
    after: Sequence[_Place],
    name: Callable[[_Place], str],
    answer: Callable[[_Place], str],
) -> Iterator[str]:
    # The rollouts or rules that are other ones, came, went or moved.
    if max(len(before), len(after)) > ALIGNED_MAX:
        if before != after:
            yield f"{word}s"
        return
    gone: list[_Place] = []
    come: list[_Place] = []
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    for kind, low, high, new_low, new_high in matcher.get_opcodes():
        old, new = before[low:high], after[new_low:new_high]
        if kind == "equal":
            continue
        if len(old) == len(new) and not set(old) & set(after) and not set(new) & set(before):
            for one, other in zip(old, new, strict=True):
                yield _step_change(word, (name(one), answer(one)), (name(other), answer(other)))
            continue
        gone += old
        come += new
    yield from (f"{word} {name(each)} removed" for each in gone if each not in come)
    yield from (
        f"{word} {name(each)} added, {answer(each) or 'default'}" for each in come if each not in gone
    )
    yield from (f"{word} {name(each)} moved" for each in come if each in gone)


def _step_change(word: str, before: tuple[str, str], after: tuple[str, str]) -> str:
    named = before[0] if before[0] == after[0] else f"{before[0]} -> {after[0]}"
    gives = "" if before[1] == after[1] else f": {before[1] or 'default'} -> {after[1] or 'default'}"
    return f"{word} {named}{gives}"


def _metadata(before: BooleanFlag | VariantFlag, after: BooleanFlag | VariantFlag) -> Iterator[str]:
    if before.metadata != after.metadata:
        yield "metadata"


def _field(name: str, before: str, after: str) -> Iterator[str]:
    if before != after:
        yield f"{name} {before} -> {after}"


def _some(texts: Sequence[str]) -> list[str]:
    # The first of them, and how many more there are.
    if len(texts) <= NAMES_MAX:
        return list(texts)
    return [*texts[:NAMES_MAX], f"{len(texts) - NAMES_MAX} more"]


def _joined(texts: Sequence[str]) -> str:
    some = _some(texts)
    return " and ".join([", ".join(some[:-1]), some[-1]] if len(some) > 1 else some)


def _word(*, value: bool) -> str:
    return "true" if value else "false"
