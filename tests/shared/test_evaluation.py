import random
import threading
from itertools import count
from zlib import crc32

import pytest
from flipt_models import entries_of, random_requests, random_snapshot

from flagcast_shared.errors import FlagNotFound, FlagNotUsable, InvalidCall, TypeMismatch
from flagcast_shared.evaluation import (
    BooleanAnswer,
    FlagState,
    FlagType,
    Reason,
    Resolution,
    VariantAnswer,
    compile_flags,
)
from flagcast_shared.ids import FlagKey, RecordId, SegmentKey, VariantKey
from flagcast_shared.model import (
    BooleanFlag,
    Constraint,
    ConstraintType,
    Distribution,
    Entry,
    Join,
    Match,
    Operator,
    Rollout,
    Rule,
    Segment,
    SegmentRollout,
    ThresholdRollout,
    UnsupportedFlag,
    UnsupportedRecord,
    UnsupportedSegment,
    Variant,
    VariantFlag,
)


def is_(name: str, value: str) -> Constraint:
    return Constraint(ConstraintType.STRING, name, Operator.EQ, value)


def segment(key: str, *constraints: Constraint, match: Match = Match.ALL) -> Segment:
    return Segment(SegmentKey(key), match, constraints)


def boolean(*rollouts: Rollout, enabled: bool = False, key: str = "b") -> BooleanFlag:
    return BooleanFlag(FlagKey(key), enabled, rollouts)


def within(*keys: str, join: Join = Join.OR, value: bool = True) -> SegmentRollout:
    return SegmentRollout(tuple(map(SegmentKey, keys)), join, value)


def shares(**bounds: int) -> tuple[Distribution, ...]:
    return tuple(Distribution(VariantKey(key), bound) for key, bound in bounds.items())


def rule(*keys: str, join: Join = Join.OR, to: tuple[Distribution, ...] = ()) -> Rule:
    return Rule(tuple(map(SegmentKey, keys)), join, to)


def variant(*rules: Rule, enabled: bool = True, default: str | None = None, key: str = "v") -> VariantFlag:
    variants = (
        Variant(VariantKey("a"), '{"n":1}'),
        Variant(VariantKey("b")),
        Variant(VariantKey("c"), '"text"'),
    )
    return VariantFlag(
        FlagKey(key), enabled, variants, None if default is None else VariantKey(default), rules
    )


def ask_boolean(flag: BooleanFlag, *segments: Segment, entity: str = "e", **context: str) -> BooleanAnswer:
    return compile_flags([*segments, flag], {}).boolean(flag.key, entity, context)


def ask_variant(flag: VariantFlag, *segments: Segment, entity: str = "e", **context: str) -> VariantAnswer:
    return compile_flags([*segments, flag], {}).variant(flag.key, entity, context)


def entity_in(bucket: int, of: int, before: str = "", after: str = "") -> str:
    return next(
        entity for entity in map(str, count()) if crc32(f"{before}{entity}{after}".encode()) % of == bucket
    )


PRO = segment("pro", is_("plan", "pro"))
EU = segment("eu", is_("region", "eu"))
ALL = segment("all")
SEGMENTS = (PRO, EU, ALL)


# Boolean flags


@pytest.mark.parametrize("enabled", [True, False])
def test_enabled_is_the_answer_when_nothing_matches(*, enabled: bool) -> None:
    answer = ask_boolean(boolean(within("pro", value=not enabled), enabled=enabled), PRO)
    assert answer == BooleanAnswer(FlagKey("b"), enabled, Reason.DEFAULT, (), Resolution.DEFAULT)


def test_enabled_is_no_kill_switch() -> None:
    answer = ask_boolean(boolean(within("pro"), enabled=False), PRO, plan="pro")
    assert (answer.enabled, answer.reason) == (True, Reason.MATCH)


def test_without_rollouts_a_disabled_flag_says_so_and_an_enabled_one_is_the_default() -> None:
    off, on = ask_boolean(boolean()), ask_boolean(boolean(enabled=True))
    # A value like on: OpenFeature's DISABLED would be "use the default".
    assert off == BooleanAnswer(FlagKey("b"), False, Reason.FLAG_DISABLED, (), Resolution.STATIC)
    assert on == BooleanAnswer(FlagKey("b"), True, Reason.DEFAULT, (), Resolution.STATIC)


@pytest.mark.parametrize(("bucket", "enabled"), [(0, True), (49, True), (50, False), (99, False)])
def test_a_threshold_takes_the_buckets_below_it(bucket: int, *, enabled: bool) -> None:
    answer = ask_boolean(boolean(ThresholdRollout(50, True)), entity=entity_in(bucket, 100, after="b"))
    assert answer.enabled is enabled
    assert answer.reason is (Reason.MATCH if enabled else Reason.DEFAULT)
    assert answer.resolution is (Resolution.SPLIT if enabled else Resolution.DEFAULT)
    assert answer.segment_keys == ()


@pytest.mark.parametrize(
    ("bucket", "enabled"), [(0, False), (29, False), (30, True), (69, True), (70, False)]
)
def test_thresholds_one_after_the_other_take_what_is_left(bucket: int, *, enabled: bool) -> None:
    flag = boolean(ThresholdRollout(30, False), ThresholdRollout(70, True))
    assert ask_boolean(flag, entity=entity_in(bucket, 100, after="b")).enabled is enabled


@pytest.mark.parametrize(("percentage", "matches"), [(0, False), (100, True)])
def test_a_threshold_of_nobody_and_of_everybody(percentage: int, *, matches: bool) -> None:
    for bucket in (0, 50, 99):
        entity = entity_in(bucket, 100, after="b")
        assert ask_boolean(boolean(ThresholdRollout(percentage, True)), entity=entity).enabled is matches


def test_rollouts_are_asked_in_order() -> None:
    flag = boolean(within("pro", value=False), ThresholdRollout(100, True), within("all", value=False))
    assert not ask_boolean(flag, *SEGMENTS, plan="pro").enabled
    second = ask_boolean(flag, *SEGMENTS, plan="free")
    assert (second.enabled, second.reason, second.segment_keys) == (True, Reason.MATCH, ())


def test_a_matching_rollout_names_the_segments_that_matched_in_the_order_of_the_file() -> None:
    flag = boolean(within("eu", "pro", "all"))
    assert ask_boolean(flag, *SEGMENTS, plan="pro").segment_keys == ("pro", "all")
    assert ask_boolean(flag, *SEGMENTS, plan="pro", region="eu").segment_keys == ("eu", "pro", "all")
    answer = ask_boolean(flag, *SEGMENTS)
    assert (answer.segment_keys, answer.resolution) == (("all",), Resolution.TARGETING_MATCH)


# Segments and joins


@pytest.mark.parametrize("match", Match)
def test_a_segment_without_constraints_matches_everyone(match: Match) -> None:
    answer = ask_boolean(boolean(within("s")), segment("s", match=match))
    assert (answer.enabled, answer.segment_keys) == (True, ("s",))


@pytest.mark.parametrize("number", [2, 3, 4])
def test_all_and_any_join_constraints(number: int) -> None:
    constraints = [is_(f"p{place}", "x") for place in range(number)]
    everything = {f"p{place}": "x" for place in range(number)}
    for match in Match:
        flags = compile_flags([segment("s", *constraints, match=match), boolean(within("s"))], {})
        assert flags.boolean("b", "e", everything).enabled
        assert not flags.boolean("b", "e", {}).enabled
        for place in range(number):
            one_missing = {**everything, f"p{place}": "y"}
            only_one = {f"p{place}": "x"}
            assert flags.boolean("b", "e", one_missing).enabled is (match is Match.ANY)
            assert flags.boolean("b", "e", only_one).enabled is (match is Match.ANY)


@pytest.mark.parametrize(
    ("join", "keys", "matches"),
    [
        (Join.AND, (), True),
        (Join.OR, (), False),
        (Join.AND, ("pro", "eu"), False),
        (Join.OR, ("pro", "eu"), True),
        (Join.AND, ("pro", "all"), True),
        (Join.AND, ("pro", "pro"), True),
        (Join.OR, ("eu",), False),
        (Join.AND, ("eu",), False),
    ],
)
def test_and_and_or_join_segments(join: Join, keys: tuple[str, ...], *, matches: bool) -> None:
    yes = ask_boolean(boolean(within(*keys, join=join)), *SEGMENTS, plan="pro")
    chosen = ask_variant(variant(rule(*keys, join=join, to=shares(a=1000))), *SEGMENTS, plan="pro")
    assert (yes.enabled, chosen.match) == (matches, matches)
    expected = tuple(dict.fromkeys(key for key in keys if key != "eu")) if matches else ()
    assert yes.segment_keys == chosen.segment_keys == expected


# Variant flags


def test_no_rule_matches_without_a_default_variant() -> None:
    answer = ask_variant(variant(rule("pro", to=shares(a=1000))), PRO)
    assert answer == VariantAnswer(FlagKey("v"), False, "", "", Reason.UNKNOWN, (), Resolution.DEFAULT)
    assert ask_variant(variant()).resolution is Resolution.STATIC


def test_no_rule_matches_with_a_default_variant() -> None:
    answer = ask_variant(variant(rule("pro", to=shares(b=1000)), default="a"), PRO)
    assert answer == VariantAnswer(
        FlagKey("v"), False, "a", '{"n":1}', Reason.DEFAULT, (), Resolution.DEFAULT
    )
    assert ask_variant(variant(default="a")).resolution is Resolution.STATIC


def test_a_disabled_flag_still_carries_its_default_variant() -> None:
    answer = ask_variant(variant(rule("all", to=shares(b=1000)), enabled=False, default="a"), ALL)
    assert answer == VariantAnswer(
        FlagKey("v"), False, "a", '{"n":1}', Reason.FLAG_DISABLED, (), Resolution.DISABLED
    )
    bare = ask_variant(variant(enabled=False))
    assert bare == VariantAnswer(FlagKey("v"), False, "", "", Reason.FLAG_DISABLED, (), Resolution.DISABLED)


def test_one_distribution_takes_everyone() -> None:
    answer = ask_variant(variant(rule("all", to=shares(c=1000)), default="a"), ALL)
    assert answer == VariantAnswer(
        FlagKey("v"), True, "c", '"text"', Reason.MATCH, (SegmentKey("all"),), Resolution.TARGETING_MATCH
    )


@pytest.mark.parametrize(
    ("bounds", "bucket", "chosen"),
    [
        ({"a": 300, "b": 1000}, 0, "a"),
        ({"a": 300, "b": 1000}, 299, "a"),
        ({"a": 300, "b": 1000}, 300, "b"),
        ({"a": 300, "b": 1000}, 999, "b"),
        ({"a": 0, "b": 1000}, 0, "b"),
        ({"a": 333, "b": 666, "c": 1000}, 332, "a"),
        ({"a": 333, "b": 666, "c": 1000}, 333, "b"),
        ({"a": 333, "b": 666, "c": 1000}, 665, "b"),
        ({"a": 333, "b": 666, "c": 1000}, 666, "c"),
        ({"a": 500, "b": 500, "c": 1000}, 500, "c"),
        ({"a": 500, "b": 500, "c": 1000}, 499, "a"),
    ],
)
def test_the_first_bound_above_the_bucket_decides(bounds: dict[str, int], bucket: int, chosen: str) -> None:
    entity = entity_in(bucket, 1000, before="v")
    answer = ask_variant(variant(rule("all", to=shares(**bounds))), ALL, entity=entity)
    assert (answer.variant_key, answer.match, answer.resolution) == (chosen, True, Resolution.SPLIT)


def test_a_match_without_distributions_leaves_the_default_variant_or_none() -> None:
    with_default = ask_variant(variant(rule("all"), default="a"), ALL)
    assert with_default == VariantAnswer(
        FlagKey("v"), True, "a", '{"n":1}', Reason.MATCH, (SegmentKey("all"),), Resolution.TARGETING_MATCH
    )
    without = ask_variant(variant(rule("all")), ALL)
    assert (without.match, without.variant_key, without.reason) == (True, "", Reason.MATCH)


def test_the_first_rule_that_matches_ends_the_evaluation() -> None:
    flag = variant(rule("pro"), rule("all", to=shares(b=1000)), default="a")
    assert ask_variant(flag, *SEGMENTS, plan="pro").variant_key == "a"
    assert ask_variant(flag, *SEGMENTS).variant_key == "b"


def test_every_matching_segment_of_the_rule_is_named() -> None:
    flag = variant(rule("eu", "pro", "all", to=shares(a=300, b=1000)))
    assert ask_variant(flag, *SEGMENTS, plan="pro").segment_keys == ("pro", "all")
    answer = ask_variant(flag, *SEGMENTS, plan="pro", region="eu", entity=entity_in(300, 1000, before="v"))
    assert (answer.segment_keys, answer.variant_key) == (("eu", "pro", "all"), "b")


def test_an_empty_entity_id_is_an_entity() -> None:
    answer = ask_boolean(boolean(ThresholdRollout(50, True)), entity="")
    assert answer.enabled is (crc32(b"b") % 100 < 50)


# Many rules on one property become a look-up, which must not change an answer.


@pytest.mark.parametrize("operator", [Operator.EQ, Operator.ISONEOF])
def test_many_rules_on_one_property_keep_their_order(operator: Operator) -> None:
    def group(number: int, *further: Constraint) -> Segment:
        value = f"g{number % 10}"
        listed = Constraint(
            ConstraintType.STRING, "group", operator, value if operator is Operator.EQ else (value, "")
        )
        return segment(f"s{number}", listed, *further)

    # Ten narrow rules, ten wide ones of the same groups, one on something else, ten more that come too late.
    segments = [group(number, is_("plan", "pro")) for number in range(10)]
    segments += [group(number) for number in range(10, 20)]
    segments += [segment("s20", is_("other", "x")), *(group(number) for number in range(21, 31))]
    rules = [rule(made.key, to=shares(a=1000)) for made in segments]
    flags = compile_flags([*segments, variant(*rules)], {})
    for number in range(10):
        name = f"g{number}"
        assert flags.variant("v", "e", {"group": name, "plan": "pro"}).segment_keys == (f"s{number}",)
        assert flags.variant("v", "e", {"group": name}).segment_keys == (f"s{10 + number}",)
    assert flags.variant("v", "e", {"group": "none", "other": "x"}).segment_keys == ("s20",)
    for context in ({}, {"group": ""}, {"group": "g"}):
        assert flags.variant("v", "e", context).match is False


def test_many_rules_need_one_property_only_where_they_truly_do() -> None:
    either = [
        segment(f"e{number}", is_("group", f"g{number}"), is_("plan", f"p{number}"), match=Match.ANY)
        for number in range(5)
    ]
    flags = compile_flags([*either, variant(*(rule(made.key, to=shares(a=1000)) for made in either))], {})
    assert flags.variant("v", "e", {"plan": "p3"}).segment_keys == ("e3",)

    groups = [segment(f"g{number}", is_("group", f"g{number}")) for number in range(5)]
    plans = [segment(f"p{number}", is_("plan", f"p{number}")) for number in range(5)]
    pairs = [(group.key, plan.key) for group, plan in zip(groups, plans, strict=True)]
    for join, context, keys in (
        (Join.OR, {"plan": "p3"}, ("p3",)),
        (Join.OR, {"group": "g3"}, ("g3",)),
        (Join.AND, {"group": "g3"}, ()),
        (Join.AND, {"group": "g3", "plan": "p3"}, ("g3", "p3")),
    ):
        by_rule = variant(*(rule(*pair, join=join, to=shares(a=1000)) for pair in pairs))
        by_rollout = boolean(*(within(*pair, join=join) for pair in pairs))
        flags = compile_flags([*groups, *plans, by_rule, by_rollout], {})
        assert flags.variant("v", "e", context).segment_keys == keys
        assert flags.boolean("b", "e", context).segment_keys == keys


def test_a_flag_of_thousands_of_rules_is_asked_like_any_other() -> None:
    # Neighbours that alternate between properties, so that no look-up follows from another without end.
    names = [f"p{number // 5 % 2}" for number in range(5_000)]
    segments = [segment(f"s{number}", is_(name, f"x{number}")) for number, name in enumerate(names)]
    rules = [rule(made.key, to=shares(a=1000)) for made in segments]
    flags = compile_flags([*segments, variant(*rules, default="b")], {})
    for number in (0, 4, 5, 249, 250, 251, 2_500, 4_999):
        answer = flags.variant("v", "e", {names[number]: f"x{number}"})
        assert answer.segment_keys == (f"s{number}",)
    assert flags.variant("v", "e", {"p0": "x", "p1": "x"}).variant_key == "b"


# The device


def test_device_attributes_are_part_of_every_context() -> None:
    here = segment("here", is_("device.label.line", "7"), is_("plan", "pro"))
    flags = compile_flags([here, boolean(within("here"))], {"device.label.line": "7"})
    assert flags.boolean("b", "e", {"plan": "pro"}).enabled
    assert flags.boolean("b", "e", {"plan": "pro", "device.label.line": "8"}).enabled
    elsewhere = compile_flags([here, boolean(within("here"))], {"device.label.line": "8"})
    assert not elsewhere.boolean("b", "e", {"plan": "pro", "device.label.line": "7"}).enabled


def test_many_rules_on_a_device_attribute_cannot_be_overridden() -> None:
    segments = [segment(f"s{number}", is_("device.model", f"m{number}")) for number in range(10)]
    flag = variant(*(rule(made.key, to=shares(a=1000)) for made in segments))
    flags = compile_flags([*segments, flag], {"device.model": "m7"})
    assert flags.variant("v", "e", {"device.model": "m1"}).segment_keys == ("s7",)
    # Each asks for a plan as well, so that none is decided by the device alone.
    segments = [
        segment(f"s{number}", is_("device.line", "3"), is_("plan", f"p{number}")) for number in range(10)
    ]
    flags = compile_flags([*segments, flag], {"device.line": "3"})
    assert flags.variant("v", "e", {"plan": "p7"}).segment_keys == ("s7",)
    assert flags.variant("v", "e", {"plan": "p7", "device.line": "4"}).segment_keys == ("s7",)


# What cannot be answered


def test_calls_that_have_no_answer() -> None:
    flags = compile_flags([boolean(), variant()], {})
    with pytest.raises(FlagNotFound, match="nothing"):
        flags.boolean("nothing", "e", {})
    with pytest.raises(FlagNotFound):
        flags.variant("nothing", "e", {})
    with pytest.raises(FlagNotFound):
        flags.explain("nothing", "e", {})
    with pytest.raises(TypeMismatch, match="variant flag"):
        flags.boolean("v", "e", {})
    with pytest.raises(TypeMismatch, match="boolean flag"):
        flags.variant("b", "e", {})


UNUSABLE: dict[str, list[Entry]] = {
    "segment 'gone' is missing": [boolean(within("gone"))],
    "segment 'new': operator 'matches'": [
        boolean(within("new")),
        UnsupportedSegment(SegmentKey("new"), "operator 'matches'"),
    ],
    "flag type 'multi'": [UnsupportedFlag(FlagKey("b"), "flag type 'multi'")],
    "no operator 'lt' for the type 'string'": [
        boolean(within("odd")),
        segment("odd", Constraint(ConstraintType.STRING, "p", Operator.LT, "1")),
    ],
    "variant 'zz' is missing": [variant(rule(to=shares(zz=1000)), key="b")],
    "default variant 'zz' is missing": [variant(default="zz", key="b")],
    "do not share out all buckets": [variant(rule(to=shares(a=300, b=900)), key="b")],
    "rule 1: its distributions do not": [variant(rule(to=shares(a=300, b=200, c=1000)), key="b")],
}


@pytest.mark.parametrize(("why", "entries"), UNUSABLE.items(), ids=UNUSABLE)
def test_a_flag_that_is_not_understood_is_not_usable_and_all_others_are(
    why: str, entries: list[Entry]
) -> None:
    flags = compile_flags([*entries, boolean(ThresholdRollout(100, True), key="other"), *SEGMENTS], {})
    assert not flags.flags[FlagKey("b")].is_usable
    assert why in flags.flags[FlagKey("b")].problem
    ask = flags.variant if flags.flags[FlagKey("b")].type is FlagType.VARIANT else flags.boolean
    for call in (ask, flags.explain):
        with pytest.raises(FlagNotUsable, match="flag 'b'") as caught:
            call("b", "e", {})
        assert why in str(caught.value)
    assert flags.boolean("other", "e", {}).enabled


@pytest.mark.parametrize(
    ("flag", "needs"),
    [
        (boolean(ThresholdRollout(30, True)), True),
        (boolean(ThresholdRollout(0, True)), False),
        (boolean(ThresholdRollout(100, True), ThresholdRollout(30, False)), False),
        (boolean(ThresholdRollout(0, True), ThresholdRollout(30, False)), True),
        (boolean(within("pro"), ThresholdRollout(30, True)), False),
        (boolean(within("eu"), ThresholdRollout(30, True)), True),
        (boolean(within("eu")), False),
        (boolean(enabled=True), False),
        (variant(rule("pro", to=shares(a=300, b=1000))), True),
        (variant(rule("eu", to=shares(a=300, b=1000))), False),
        (variant(rule("eu", to=shares(a=300, b=1000)), rule("all", to=shares(c=1000))), False),
        (variant(rule("pro", to=shares(a=0, b=1000, c=1000))), False),
        (variant(rule("pro", to=shares(a=1000)), rule("all", to=shares(a=300, b=1000))), False),
        (variant(rule("pro", to=()), rule("all", to=shares(a=300, b=1000))), False),
        (variant(rule("pro", to=shares(a=300, b=1000)), enabled=False), False),
        (variant(rule("pro", to=shares(a=300, b=900))), False),
    ],
)
def test_an_entity_is_needed_where_a_percentage_is_reached(
    flag: BooleanFlag | VariantFlag, *, needs: bool
) -> None:
    flags = compile_flags([flag, *SEGMENTS], {})
    for _ in range(2):
        assert flags.needs_entity(flag.key, {"plan": "pro"}) is needs
    assert not flags.needs_entity("nope", {})


def test_an_entity_is_needed_as_the_flag_and_its_segments_change() -> None:
    flags = compile_flags([boolean(within("pro"), ThresholdRollout(30, True)), *SEGMENTS], {})
    context = {"plan": "pro", "region": "eu"}
    assert not flags.needs_entity("b", context)
    other = flags.update([segment("pro", is_("plan", "free"))], ())
    assert other.needs_entity("b", context)
    assert not other.update([boolean(within("eu"), ThresholdRollout(30, True))], ()).needs_entity(
        "b", context
    )
    assert not other.update([], [RecordId("flag", "b")]).needs_entity("b", context)
    assert not flags.needs_entity("b", context)


def test_an_entity_is_needed_wherever_the_explanation_has_a_bucket_that_not_all_are_in() -> None:
    found = set()
    for seed in range(60):
        rng = random.Random(seed)
        snapshot = random_snapshot(rng)
        flags = compile_flags(entries_of(snapshot), {})
        for request in random_requests(rng, snapshot, 40):
            if not flags.flags.get(FlagKey(request.flag), FlagState(FlagType.UNKNOWN, False, "no")).is_usable:
                continue
            steps = flags.explain(request.flag, "", request.context).steps
            buckets = [step.bucket for step in steps if step.bucket]
            expected = any(0 < each.last - each.first + 1 < each.buckets for each in buckets)
            assert flags.needs_entity(request.flag, request.context) is expected, (seed, request)
            found.add(expected)
    assert found == {True, False}


def test_a_flag_of_an_unknown_type_is_not_usable_whatever_is_asked() -> None:
    flags = compile_flags([UnsupportedFlag(FlagKey("x"), "type")], {})
    for call in (flags.boolean, flags.variant, flags.explain):
        with pytest.raises(FlagNotUsable):
            call("x", "e", {})


@pytest.mark.parametrize("ask", ["boolean", "variant", "explain"])
def test_an_entity_id_that_is_no_text_is_the_callers_mistake(ask: str) -> None:
    flags = compile_flags([boolean(ThresholdRollout(50, True), key="b"), *SEGMENTS], {})
    flags = flags.update([variant(rule("all", to=shares(a=500, b=1000)))], [])
    with pytest.raises(InvalidCall, match="not Unicode"):
        getattr(flags, ask)("v" if ask == "variant" else "b", "\ud800", {})


def test_the_listing_says_what_there_is() -> None:
    flags = compile_flags([boolean(within("gone")), variant(), UnsupportedFlag(FlagKey("x"), "why")], {})
    listed = {key: (state.type, state.enabled, state.is_usable) for key, state in flags.flags.items()}
    assert listed == {
        "b": (FlagType.BOOLEAN, False, False),
        "v": (FlagType.VARIANT, True, True),
        "x": (FlagType.UNKNOWN, False, False),
    }


# Updates


def test_an_update_leaves_the_old_form_as_it_was() -> None:
    before = compile_flags([boolean(within("pro")), PRO], {})
    after = before.update([boolean(enabled=True), segment("pro", is_("plan", "free"))], [])
    assert before.boolean("b", "e", {"plan": "pro"}).reason is Reason.MATCH
    assert after.boolean("b", "e", {"plan": "pro"}).resolution is Resolution.STATIC
    assert before.boolean("b", "e", {}).resolution is Resolution.DEFAULT


def test_a_changed_segment_reaches_every_flag_that_refers_to_it_and_no_other() -> None:
    flags = compile_flags(
        [boolean(within("pro")), variant(rule("eu", "pro")), boolean(within("eu"), key="other"), PRO, EU], {}
    )
    changed = flags.update([segment("pro", is_("plan", "gold"))], [])
    assert changed.boolean("b", "e", {"plan": "gold"}).enabled
    assert changed.variant("v", "e", {"plan": "gold"}).match
    assert not changed.boolean("b", "e", {"plan": "pro"}).enabled
    assert changed._booleans["other"] is flags._booleans["other"]
    assert changed._booleans["b"] is not flags._booleans["b"]


def test_a_segment_that_goes_makes_its_flags_unusable_until_it_is_back() -> None:
    flags = compile_flags([boolean(within("pro")), PRO], {})
    gone = flags.update([], [RecordId("segment", "pro")])
    with pytest.raises(FlagNotUsable, match="'pro' is missing"):
        gone.boolean("b", "e", {})
    unknown = gone.update([UnsupportedSegment(SegmentKey("pro"), "operator 'x'")], [])
    with pytest.raises(FlagNotUsable, match="operator 'x'"):
        unknown.boolean("b", "e", {})
    assert unknown.update([PRO], []).boolean("b", "e", {"plan": "pro"}).enabled


def test_a_flag_may_change_its_type_and_go() -> None:
    flags = compile_flags([boolean(key="f")], {})
    changed = flags.update([variant(default="a", key="f")], [])
    assert changed.variant("f", "e", {}).variant_key == "a"
    with pytest.raises(TypeMismatch):
        changed.boolean("f", "e", {})
    gone = changed.update([], [RecordId("flag", "f")])
    assert dict(gone.flags) == {}
    with pytest.raises(FlagNotFound):
        gone.variant("f", "e", {})


def test_a_flag_that_no_longer_refers_to_a_segment_is_not_compiled_with_it() -> None:
    flags = compile_flags([boolean(within("pro")), PRO], {}).update([boolean(enabled=True)], [])
    after = flags.update([], [RecordId("segment", "pro")])
    assert after.boolean("b", "e", {}).enabled
    assert after._booleans["b"] is flags._booleans["b"]


def test_records_of_unknown_kinds_and_removals_of_nothing_change_nothing() -> None:
    flags = compile_flags([boolean(), UnsupportedRecord("experiment", "x")], {})
    same = flags.update([UnsupportedRecord("experiment", "y")], [RecordId("flag", "no"), RecordId("x", "y")])
    assert dict(same.flags) == dict(flags.flags)


def test_many_updates_come_to_what_compiling_anew_gives() -> None:
    entries: dict[RecordId, Entry] = {}
    flags = compile_flags([], {})
    steps: list[tuple[list[Entry], list[RecordId]]] = [
        ([boolean(within("pro")), variant(rule("pro", "eu"))], []),
        ([PRO], []),
        ([EU, boolean(within("eu"), key="c")], [RecordId("flag", "b")]),
        ([boolean(within("eu", "pro"))], [RecordId("segment", "pro")]),
        ([segment("pro", is_("plan", "x")), segment("eu")], []),
        ([variant(rule("eu"))], [RecordId("flag", "v"), RecordId("flag", "c")]),
    ]
    for changed, removed in steps:
        for record in removed:
            entries.pop(record, None)
        for entry in changed:
            entries[RecordId("segment" if isinstance(entry, Segment) else "flag", entry.key)] = entry
        flags = flags.update(changed, removed)
        anew = compile_flags(entries.values(), {})
        assert dict(flags.flags) == dict(anew.flags)
        assert flags._users == anew._users
        for key, state in anew.flags.items():
            if state.is_usable:
                ask, again = (
                    (flags.boolean, anew.boolean)
                    if state.type is FlagType.BOOLEAN
                    else (flags.variant, anew.variant)
                )
                for context in ({}, {"plan": "pro"}, {"plan": "x"}, {"region": "eu", "plan": "pro"}):
                    assert ask(key, "e", context) == again(key, "e", context)


def test_threads_may_ask_while_another_one_activates() -> None:
    forms = [compile_flags([boolean(within("pro")), PRO], {})]
    stop = threading.Event()
    wrong: list[object] = []

    def keep_asking() -> None:
        while not stop.is_set():
            answer = forms[-1].boolean("b", "e", {"plan": "pro"})
            if not answer.enabled:
                wrong.append(answer)

    askers = [threading.Thread(target=keep_asking, name=f"asker-{number}") for number in range(4)]
    for asker in askers:
        asker.start()
    for number in range(300):
        forms.append(forms[-1].update([PRO, boolean(within("pro"), enabled=number % 2 == 0)], []))
    stop.set()
    for asker in askers:
        asker.join()
    assert wrong == []
