"""Answers in words: the sentences of many flags, and that they are what the evaluation really answers."""

import itertools
import random
import re
from dataclasses import replace

import pytest

from flagcast_bridge.flags import describe
from flagcast_shared.bucketing import BOOLEAN_BUCKETS, boolean_bucket
from flagcast_shared.evaluation import compile_flags
from flagcast_shared.ids import FlagKey, SegmentKey, VariantKey
from flagcast_shared.model import (
    BooleanFlag,
    Constraint,
    ConstraintType,
    Distribution,
    Flag,
    Join,
    Match,
    Operator,
    Rollout,
    Rule,
    Segment,
    SegmentRollout,
    ThresholdRollout,
    UnsupportedFlag,
    Variant,
    VariantFlag,
)

KEY = FlagKey("lights")
PILOTS, METERED, ALL = SegmentKey("pilots"), SegmentKey("metered"), SegmentKey("all")
EVERYONE = frozenset({ALL})
A, B = VariantKey("a"), VariantKey("b")


def boolean(enabled: bool, *rollouts: Rollout) -> BooleanFlag:
    return BooleanFlag(KEY, enabled, rollouts)


def share(percentage: int, value: bool = True) -> ThresholdRollout:
    return ThresholdRollout(percentage, value)


def within(*keys: SegmentKey, value: bool = True, join: Join = Join.OR) -> SegmentRollout:
    return SegmentRollout(keys, join, value)


def variant(*rules: Rule, enabled: bool = True, default: VariantKey | None = A) -> VariantFlag:
    return VariantFlag(KEY, enabled, (Variant(A), Variant(B)), default, rules)


def rule(*keys: SegmentKey, shares: tuple[tuple[VariantKey, int], ...] = ((B, 1_000),)) -> Rule:
    return Rule(keys, Join.OR, tuple(Distribution(name, bound) for name, bound in shares))


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        (boolean(True), "true for everyone"),
        (boolean(False), "false for everyone"),
        (boolean(False, share(25)), "true for 25 %, otherwise false"),
        (boolean(False, within(PILOTS), share(25)), "true for 25 % and segment pilots, otherwise false"),
        (
            boolean(False, share(10), within(PILOTS), share(25)),
            "true for 25 % and segment pilots, otherwise false",
        ),
        (boolean(True, within(METERED, value=False)), "false for segment metered, otherwise true"),
        (
            boolean(False, within(METERED, value=False), share(50)),
            "false for segment metered, then true for 50 %, otherwise false",
        ),
        (boolean(False, share(10, False), share(30)), "false for 10 %, then true for 20 %, otherwise false"),
        (boolean(True, share(10)), "true for everyone"),
        (boolean(False, share(0), within(METERED, value=False)), "false for everyone"),
        (boolean(False, share(100)), "true for everyone"),
        (boolean(True, share(100, False), within(PILOTS)), "false for everyone"),
        (boolean(False, share(50), share(20, False)), "true for 50 %, otherwise false"),
        (boolean(False, within(ALL)), "true for everyone"),
        (boolean(True, within(PILOTS, value=False), within(ALL)), "false for segment pilots, otherwise true"),
        (
            boolean(False, within(PILOTS, METERED)),
            "true for any of segments pilots and metered, otherwise false",
        ),
        (
            boolean(False, within(PILOTS, METERED, join=Join.AND)),
            "true for all of segments pilots and metered, otherwise false",
        ),
        (boolean(False, within(PILOTS, ALL, join=Join.AND)), "true for segment pilots, otherwise false"),
        (boolean(False, within()), "false for everyone"),
        (boolean(False, within(join=Join.AND)), "true for everyone"),
        (
            boolean(False, within(PILOTS), within(PILOTS, value=False)),
            "true for segment pilots, otherwise false",
        ),
        (
            boolean(False, *(within(SegmentKey(f"s{number}")) for number in range(10))),
            (
                "true for segment s0, segment s1, segment s2, segment s3, segment s4, segment s5, segment s6, "
                "segment s7 and 2 more, otherwise false"
            ),
        ),
        (variant(), "a for everyone"),
        (variant(default=None), "no variant for everyone"),
        (variant(rule(PILOTS)), "b for segment pilots, otherwise a"),
        (variant(rule(PILOTS), enabled=False), "a for everyone"),
        (variant(rule(PILOTS), default=None), "b for segment pilots, otherwise no variant"),
        (variant(rule(PILOTS, shares=())), "a for everyone"),
        (variant(rule(ALL, shares=((A, 333), (B, 1_000)))), "33.3 % a and 66.7 % b for everyone"),
        (
            variant(rule(METERED, shares=((A, 1_000),)), rule(PILOTS, shares=((A, 500), (B, 1_000)))),
            "a for segment metered, then 50 % a and 50 % b for segment pilots, otherwise a",
        ),
        (variant(rule(PILOTS, shares=((A, 0), (B, 1_000)))), "b for segment pilots, otherwise a"),
        (UnsupportedFlag(KEY, "a new type"), "the default of the application"),
    ],
)
def test_answers_in_words(flag: Flag, words: str) -> None:
    assert describe.answers(flag, EVERYONE) == words
    assert describe.is_off(flag, EVERYONE) is (words == "false for everyone")


@pytest.mark.parametrize(
    ("flag", "whom"),
    [
        (boolean(False), ""),
        (boolean(True, share(25)), ""),  # nobody turned it off
        (variant(rule(PILOTS), enabled=False), ""),
        (boolean(False, within(PILOTS), share(25)), "25 % and segment pilots"),
        (boolean(False, share(0)), ""),
        (boolean(False, within(METERED, value=False)), ""),
        (boolean(False, share(100)), "everyone"),
        (boolean(False, within(METERED, value=False), share(50)), "50 % apart from segment metered"),
        (boolean(False, within(METERED, value=False), within(ALL)), "everyone else"),
        (
            boolean(False, within(PILOTS), within(METERED, value=False), share(5)),
            "segment pilots and 5 % apart from segment metered",
        ),
    ],
)
def test_for_whom_a_flag_that_was_turned_off_is_still_true(flag: Flag, whom: str) -> None:
    assert describe.still_true(flag, EVERYONE) == whom


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (boolean(True), boolean(False), "enabled true -> false"),
        (boolean(False, share(25)), boolean(False, share(26)), "rollout 25 % -> 26 %"),
        (boolean(False, share(25)), boolean(False), "rollout 25 % removed"),
        (boolean(False), boolean(False, share(25)), "rollout 25 % added, true"),
        (boolean(False, share(25)), boolean(False, share(25, False)), "rollout 25 %: true -> false"),
        (boolean(False, share(25)), boolean(False, share(10, False)), "rollout 25 % -> 10 %: true -> false"),
        (
            boolean(True, within(PILOTS), share(25)),
            boolean(False, share(25)),
            "enabled true -> false, rollout segment pilots removed",
        ),
        (
            boolean(False, share(25)),
            boolean(False, within(PILOTS), share(30)),
            "rollout 25 % removed, rollout segment pilots added, true, rollout 30 % added, true",
        ),
        (
            boolean(False, within(PILOTS)),
            boolean(False, within(METERED)),
            "rollout segment pilots -> segment metered",
        ),
        (
            boolean(False, within(PILOTS, METERED)),
            boolean(False, within(PILOTS, METERED, join=Join.AND)),
            "rollout any of segments pilots and metered -> all of segments pilots and metered",
        ),
        (
            boolean(False, share(25), within(PILOTS)),
            boolean(False, within(PILOTS), share(25)),
            re.compile("rollout (25 %|segment pilots) moved"),
        ),
        (
            boolean(False, *(share(number) for number in range(12))),
            boolean(False),
            (
                "rollout 0 % removed, rollout 1 % removed, rollout 2 % removed, rollout 3 % removed, rollout 4 % removed, "
                "rollout 5 % removed, rollout 6 % removed, rollout 7 % removed, 4 more"
            ),
        ),
        (boolean(False, *[share(1)] * 300), boolean(False), "rollouts"),
        (variant(), variant(enabled=False), "enabled true -> false"),
        (variant(), variant(default=None), "default a -> none"),
        (
            variant(rule(PILOTS)),
            variant(rule(PILOTS, shares=((A, 500), (B, 1_000)))),
            "rule segment pilots: b -> 50 % a and 50 % b",
        ),
        (variant(rule(PILOTS)), variant(), "rule segment pilots removed"),
        (variant(rule(PILOTS)), variant(rule(PILOTS, shares=())), "rule segment pilots: b -> default"),
        (
            VariantFlag(KEY, True, (Variant(A, "1"), Variant(B)), A),
            VariantFlag(KEY, True, (Variant(A, "2"), Variant(VariantKey("c"))), A),
            "variant b removed, variant c added, variant a: attachment",
        ),
        (
            VariantFlag(KEY, True, (Variant(A), Variant(B))),
            VariantFlag(KEY, True, (Variant(B), Variant(A))),
            "order of variants",
        ),
        (boolean(True), replace(boolean(True), metadata='{"owner":"app"}'), "metadata"),
        (
            replace(variant(), metadata='{"owner":"app"}'),
            replace(variant(default=None), metadata='{"owner":"site"}'),
            "default a -> none, metadata",
        ),
        (boolean(True), variant(), "type"),
    ],
)
def test_the_change_of_a_flag_in_words(before: Flag, after: Flag, words: "str | re.Pattern[str]") -> None:
    found = describe.change(before, after)
    assert words.fullmatch(found) if isinstance(words, re.Pattern) else found == words
    assert describe.change(before, before) == describe.change(after, after) == ""


def test_a_segment_is_for_everyone_when_it_has_no_constraints() -> None:
    one = Constraint(ConstraintType.STRING, "site", Operator.EQ, "oslo")
    segments = [Segment(ALL, Match.ANY, ()), Segment(PILOTS, Match.ALL, (one,))]
    assert describe.matching_everyone([*segments, boolean(True)]) == EVERYONE


def read_back(words: str, bucket: int, segments: frozenset[str]) -> bool:
    """The answer that a reader of the words expects, for an entity in this bucket and these segments."""
    if words.endswith(" for everyone"):
        return words.startswith("true")
    *steps, rest = re.split(r", then |, otherwise ", words)
    covered = 0
    for step in steps:
        answer, _, whom = step.partition(" for ")
        is_in = False
        for each in re.split(r", | and (?=segment|any|all)", whom):
            if found := re.fullmatch(r"(\d+) %", each):
                is_in |= covered <= bucket < covered + int(found[1])
                covered += int(found[1])
            else:
                how, names = (
                    each.split(" ", 1) if each.startswith("segment ") else each.split(" of segments ")
                )
                tests = [name in segments for name in names.split(" and ")]
                is_in |= all(tests) if how == "all" else any(tests)
        if is_in:
            return answer == "true"
    return rest == "true"


def test_the_words_are_what_the_evaluation_answers() -> None:
    keys = [SegmentKey(name) for name in "pqr"]
    segments = [
        Segment(key, Match.ALL, (Constraint(ConstraintType.STRING, key, Operator.EQ, "in"),)) for key in keys
    ]
    entries = [Segment(ALL, Match.ALL, ()), *segments]
    entities: dict[int, str] = {}
    for number in itertools.count():
        entities.setdefault(boolean_bucket(KEY, str(number)), str(number))
        if len(entities) == BOOLEAN_BUCKETS:
            break
    subsets = [frozenset(each) for size in range(4) for each in itertools.combinations(keys, size)]
    random_source = random.Random(20)
    for _ in range(400):
        rollouts: list[Rollout] = []
        for _ in range(random_source.randint(0, 5)):
            value = random_source.random() < 0.5
            if random_source.random() < 0.5:
                rollouts.append(ThresholdRollout(random_source.choice((0, 10, 25, 50, 75, 100)), value))
            else:
                named = random_source.sample([*keys, *keys, ALL], random_source.choice((0, 1, 1, 2)))
                rollouts.append(SegmentRollout(tuple(named), random_source.choice(list(Join)), value))
        flag = boolean(random_source.random() < 0.5, *rollouts)
        words = describe.answers(flag, describe.matching_everyone(entries))
        compiled = compile_flags([flag, *entries], {})
        answers = set()
        for bucket, subset in itertools.product(range(0, BOOLEAN_BUCKETS, 5), subsets):
            answer = compiled.boolean(KEY, entities[bucket], dict.fromkeys(subset, "in")).enabled
            assert answer is read_back(words, bucket, subset), (words, flag, bucket, subset)
            answers.add(answer)
        assert describe.is_off(flag, EVERYONE) <= (answers == {False})
        if not flag.enabled:
            assert bool(describe.still_true(flag, EVERYONE)) >= (True in answers)
