"""Warnings: where Flipt's engines disagree, and where a flag does not do what it seems to."""

import random
from collections.abc import Sequence

import pytest

from flagcast_bridge.check import check
from flagcast_bridge.flags.compiler import fused_bounds, share_bounds
from flagcast_bridge.flags.findings import Finding
from flagcast_bridge.sources import SourceFile
from flagcast_shared.evaluation import CompiledFlags, compile_flags
from flagcast_shared.ids import Namespace


def findings(text: str, name: str = "features.yml", folder: str | None = None) -> tuple[Finding, ...]:
    compilation = check([SourceFile(name, text.encode(), folder)])
    assert not compilation.has_errors, compilation.findings
    return compilation.findings


def codes(text: str) -> list[str]:
    return [each.code for each in findings(text)]


SEGMENTS = """
segments:
- {key: all, name: All, match_type: ALL_MATCH_TYPE}
- key: a
  name: A
  match_type: ALL_MATCH_TYPE
  constraints: [{type: STRING_COMPARISON_TYPE, property: site, operator: eq, value: a}]
- key: b
  name: B
  match_type: ALL_MATCH_TYPE
  constraints: [{type: STRING_COMPARISON_TYPE, property: site, operator: eq, value: b}]
- key: none
  name: None
  match_type: ALL_MATCH_TYPE
  constraints: [{type: STRING_COMPARISON_TYPE, property: site, operator: eq, value: ""}]
"""


def boolean(rollouts: Sequence[str], enabled: str = "") -> str:
    """A boolean flag over the segments a, b (somebody), all (everybody) and none (nobody)."""
    listed = "".join(f"\n  - {rollout}" for rollout in rollouts)
    state = f"  enabled: {enabled}\n" if enabled else ""
    return f"flags:\n- key: f\n  name: F\n  type: BOOLEAN_FLAG_TYPE\n{state}  rollouts:{listed}\n{SEGMENTS}"


def variant(rules: Sequence[str], fields: str = "variants: [{key: v, default: true}, {key: w}]") -> str:
    listed = "".join(f"\n  - {rule}" for rule in rules)
    return f"flags:\n- key: f\n  name: F\n  enabled: true\n  {fields}\n  rules:{listed}\n{SEGMENTS}"


NOISE = {"FC230", "FC234"}
"""The segments that a case does not use, and the constraint that makes `none` match nobody."""


@pytest.mark.parametrize(
    ("rollouts", "expected"),
    [
        (["segment: {key: a, value: true}", "segment: {key: a, value: false}"], ["FC223"]),
        (["segment: {key: a, value: true}", "segment: {key: b, value: false}"], []),
        (["segment: {key: all, value: true}", "segment: {key: b, value: false}"], ["FC223"]),
        (["segment: {keys: [a, b], value: true}", "segment: {key: b, value: false}"], ["FC223"]),
        (["segment: {key: b, value: true}", "segment: {keys: [a, b], value: false}"], []),
        (
            [
                "segment: {key: a, value: true}",
                "segment: {key: b, value: true}",
                "segment: {keys: [a, b], value: false}",
            ],
            ["FC223"],
        ),
        (
            [
                "segment: {key: b, value: true}",
                "segment: {keys: [a, b], operator: AND_SEGMENT_OPERATOR, value: false}",
            ],
            ["FC223"],
        ),
        (
            [
                "segment: {keys: [a, b], operator: AND_SEGMENT_OPERATOR, value: true}",
                "segment: {key: b, value: false}",
            ],
            [],
        ),
        (
            [
                "segment: {keys: [a, b], operator: AND_SEGMENT_OPERATOR, value: true}",
                "segment: {keys: [b, all, a], operator: AND_SEGMENT_OPERATOR, value: false}",
            ],
            ["FC223"],
        ),
        (["segment: {keys: [a, none], value: true}", "segment: {key: a, value: false}"], ["FC223"]),
        (["segment: {key: none, value: true}"], ["FC224"]),
        (["segment: {keys: [none, a], operator: AND_SEGMENT_OPERATOR, value: true}"], ["FC224"]),
        (["segment: {keys: [], value: true}"], ["FC224"]),
        (
            [
                "segment: {keys: [], operator: AND_SEGMENT_OPERATOR, value: true}",
                "segment: {key: a, value: true}",
            ],
            ["FC223"],
        ),
        (["segment: {keys: [a, a], value: true}"], ["FC233"]),
        (["threshold: {percentage: 10, value: true}", "threshold: {percentage: 20, value: false}"], []),
        (
            ["threshold: {percentage: 20, value: true}", "threshold: {percentage: 20, value: false}"],
            ["FC223"],
        ),
        (
            ["threshold: {percentage: 100, value: true}", "segment: {key: a, value: false}"],
            ["FC223", "FC227"],
        ),
        (["segment: {key: all, value: true}", "threshold: {percentage: 5, value: false}"], ["FC223"]),
        (["threshold: {percentage: 0, value: true}"], ["FC227"]),
        (["threshold: {percentage: 12.5, value: true}"], ["FC228"]),
        (["threshold: {percentage: -1, value: true}"], ["FC229"]),
        (["threshold: {percentage: 101, value: true}"], ["FC229"]),
        (["threshold: {percentage: 10}"], ["FC226"]),
    ],
)
def test_rollouts(rollouts: list[str], expected: list[str]) -> None:
    assert sorted(set(codes(boolean(rollouts))) - NOISE) == expected


@pytest.mark.parametrize(
    ("enabled", "value", "expected"),
    [
        ("", "true", []),
        ("false", "true", ["FC225"]),
        ("true", "true", ["FC226"]),
        ("true", "false", []),
        ("false", "false", ["FC226"]),
        ("", "false", ["FC226"]),
    ],
)
def test_enabled_and_rollouts(enabled: str, value: str, expected: list[str]) -> None:
    text = boolean([f"threshold: {{percentage: 10, value: {value}}}"], enabled)
    assert sorted(set(codes(text)) - NOISE) == expected


def test_the_disabled_flag_is_found_where_it_is_disabled() -> None:
    text = boolean(["threshold: {percentage: 10, value: true}"], "false")
    (finding,) = (each for each in findings(text) if each.code == "FC225")
    assert (finding.line, finding.column, finding.severity) == (5, 12, "warning")


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["segment: a"], ["FC231"]),
        (["{segment: a, distributions: [{variant: v, rollout: 50}, {variant: w, rollout: 50}]}"], []),
        (
            ["{segment: a, distributions: [{variant: v, rollout: 50}, {variant: w, rollout: 49.9}]}"],
            ["FC205", "FC221"],
        ),
        (["{segment: a, distributions: [{variant: v, rollout: 10}, {variant: w, rollout: 10}]}"], ["FC221"]),
        (
            ["{segment: a, distributions: [{variant: v, rollout: 33.33}, {variant: w, rollout: 66.67}]}"],
            ["FC205"],
        ),
        (["{segment: a, distributions: [{variant: v, rollout: 33.3}, {variant: w, rollout: 66.7}]}"], []),
        (
            ["{segment: a, distributions: [{variant: w, rollout: 0.01}, {variant: v, rollout: 99.99}]}"],
            ["FC205", "FC231"],
        ),
        (["segment: all", "{segment: a, distributions: [{variant: w, rollout: 100}]}"], ["FC223", "FC231"]),
        (["{segment: none, distributions: [{variant: w, rollout: 100}]}"], ["FC224", "FC231"]),
        (["{segment: a, rank: 1, distributions: [{variant: w, rollout: 100}]}", "{segment: b, rank: 2}"], []),
        (
            ["{segment: a, rank: 2, distributions: [{variant: w, rollout: 100}]}", "{segment: b, rank: 2}"],
            ["FC216"],
        ),
    ],
)
def test_rules(rules: list[str], expected: list[str]) -> None:
    assert sorted(set(codes(variant(rules))) - NOISE) == expected


@pytest.mark.parametrize(
    ("fields", "rules", "expected"),
    [
        ("variants: [{key: v}]", ["segment: a"], ["FC222", "FC231"]),
        (
            "variants: [{key: v}]",
            ["{segment: a, distributions: [{variant: v, rollout: 0}]}"],
            ["FC222", "FC231"],
        ),
        ("variants: [{key: v, default: true}]", ["segment: a"], []),
        ("variants: [{key: v, default: true}, {key: w, default: true}]", ["segment: a"], ["FC231", "FC232"]),
    ],
)
def test_variants(fields: str, rules: list[str], expected: list[str]) -> None:
    assert sorted(set(codes(variant(rules, fields))) - NOISE) == expected


def constraints(*listed: str, match: str = "ALL") -> str:
    lines = "".join(f"\n  - {{{each}}}" for each in listed)
    return (
        "flags: [{key: f, name: F, type: BOOLEAN_FLAG_TYPE, rollouts: [{segment: {key: s, value: true}}]}]\n"
        f"segments:\n- key: s\n  name: S\n  match_type: {match}_MATCH_TYPE\n  constraints:{lines}"
    )


def one(kind: str, operator: str, value: str | None = None, name: str = "p") -> str:
    field = "" if value is None else f", value: {value}"
    return f'type: {kind}_COMPARISON_TYPE, property: {name}, operator: "{operator}"{field}'


@pytest.mark.parametrize(
    ("kind", "operator", "value", "expected"),
    [
        *(("NUMBER", "gt", value, []) for value in ("'0'", "'-2147483648'", "'2147483647'", "'+7'")),
        *(
            ("NUMBER", "gt", value, ["FC201"])
            for value in ("'1.5'", "'2147483648'", "'1e3'", "'0x1p4'", "'-inf'", "'1.0'")
        ),
        ("NUMBER", "isoneof", "'[1, 2]'", []),
        ("NUMBER", "isoneof", "[1, 2.5]", ["FC201"]),
        ("DATETIME", "gt", "'2026-01-31T10:00:00Z'", []),
        ("DATETIME", "gt", "'2026-01-31T10:00:00+01:00'", []),
        *(("DATETIME", "gt", value, ["FC202"]) for value in ("'2026-01-31'", "'2026-01-31T10:00:00.5Z'")),
        ("DATETIME", "gt", "2026-01-31", ["FC202", "FC211"]),
        ("STRING", "eq", "'a b'", []),
        ("STRING", "eq", "'a '", ["FC203"]),
        ("STRING", "neq", '"\\u00a0a"', ["FC203"]),
        ("STRING", "isoneof", "[a, ' b']", ["FC203"]),
        ("STRING", "isoneof", '\'["a", "b c"]\'', []),
        ("STRING", "isoneof", '\'["a\\""]\'', ["FC204"]),
        ("STRING", "isoneof", "[a, 'b&c']", ["FC204"]),
        ("STRING", "eq", "'b&c'", []),
        ("STRING", "eq", "on", ["FC211"]),
        ("STRING", "isoneof", "[SE, NO]", ["FC211"]),
        ("BOOLEAN", "true", "'true'", ["FC217"]),
        ("STRING", "empty", "''", []),
        ("STRING", "eq", "''", ["FC224", "FC234"]),
        ("STRING", "eq", None, ["FC224", "FC234"]),
        ("STRING", "neq", "''", []),
        ("STRING", "prefix", "' a'", ["FC203", "FC224", "FC234"]),
        ("STRING", "suffix", "'a '", ["FC203", "FC224", "FC234"]),
        ("STRING", "prefix", "'a '", ["FC203"]),
        ("STRING", "isoneof", "[]", ["FC224", "FC234"]),
        ("STRING", "isoneof", "['']", ["FC224", "FC234"]),
        ("STRING", "isnotoneof", "[]", []),
        ("NUMBER", "isoneof", "[]", ["FC224", "FC234"]),
        ("NUMBER", "eq", "'nan'", ["FC201", "FC224", "FC234"]),
        ("NUMBER", "neq", "'nan'", ["FC201"]),
        ("NUMBER", "gt", "'inf'", ["FC201", "FC224", "FC234"]),
        ("NUMBER", "gte", "'inf'", ["FC201"]),
        ("NUMBER", "lt", "'-inf'", ["FC201", "FC224", "FC234"]),
    ],
)
def test_one_constraint(kind: str, operator: str, value: str | None, expected: list[str]) -> None:
    assert sorted(codes(constraints(one(kind, operator, value)))) == expected


@pytest.mark.parametrize(
    ("operator", "value", "written"),
    [
        ("eq", '{"a": 1}', '{"a":1}'),
        ("eq", '{"b":1,"a":{"d":1.0,"c":[]}}', '{"a":{"c":[],"d":1},"b":1}'),
        ("neq", "[1, 2]", "[1,2]"),
        ("prefix", '{"gr\\u00f6\\u00dfe":1}', '{"größe":1}'),
        ("contains", '{"a":1,"a":2}', '{"a":2}'),
        ("isoneof", '["x", "{\\"a\\": 1}"]', '{"a":1}'),
    ],
)
def test_json_that_no_context_has_is_given_in_the_form_that_contexts_have(
    operator: str, value: str, written: str
) -> None:
    (found,) = (
        each for each in findings(constraints(one("STRING", operator, f"'{value}'"))) if each.code == "FC237"
    )
    assert found.severity == "warning"
    assert found.hint == f"If the value is an object or list, write {written}"


@pytest.mark.parametrize(
    ("kind", "operator", "value", "name"),
    [
        ("STRING", "eq", '{"a":1,"b":[true,null,"x y"]}', "p"),
        ("STRING", "eq", "[1,2]", "p"),
        ("STRING", "isoneof", '["a", "b"]', "p"),  # a list of texts, not a text that is a list
        ("STRING", "prefix", '{"a": ', "p"),  # no JSON
        ("STRING", "eq", '{"a": NaN}', "p"),
        ("STRING", "eq", "{" * 20_000, "p"),
        ("STRING", "eq", "[" * 20_000 + "]" * 20_000, "p"),
        ("STRING", "eq", '"a"', "p"),
        ("ENTITY_ID", "eq", '{"a": 1}', "p"),  # a text as it was given
        ("STRING", "eq", '{"a": 1}', "device.label.site"),
    ],
)
def test_other_texts_are_compared_as_they_are_written(
    kind: str, operator: str, value: str, name: str
) -> None:
    assert "FC237" not in codes(constraints(one(kind, operator, f"'{value}'", name)))


@pytest.mark.parametrize(
    ("name", "operator", "expected"),
    [
        ("device.id", "notempty", []),
        ("device.model", "notempty", []),
        ("device.firmware", "notempty", []),
        ("device.label.site", "notempty", []),
        ("device.site", "notempty", ["FC224", "FC236"]),
        ("device.label.", "notempty", ["FC224", "FC236"]),
        ("device.site", "empty", ["FC236"]),
        ("devices.site", "notempty", []),
    ],
)
def test_device_attributes(name: str, operator: str, expected: list[str]) -> None:
    assert sorted(codes(constraints(one("STRING", operator, None, name)))) == expected


@pytest.mark.parametrize(
    ("first", "second", "is_contradiction"),
    [
        (("STRING", "eq", "a"), ("STRING", "eq", "b"), True),
        (("STRING", "eq", "a"), ("STRING", "eq", "a"), False),
        (("STRING", "neq", "a"), ("STRING", "eq", "a"), True),
        (("STRING", "isoneof", "[a, b]"), ("STRING", "isoneof", "[c]"), True),
        (("STRING", "isoneof", "[a, b]"), ("STRING", "isnotoneof", "[a]"), False),
        (("STRING", "isoneof", "[a, b]"), ("STRING", "isnotoneof", "[b, a]"), True),
        (("STRING", "eq", "ab"), ("STRING", "prefix", "b"), True),
        (("STRING", "suffix", "b"), ("STRING", "eq", "ab"), False),
        (("STRING", "eq", "ab"), ("STRING", "contains", "c"), True),
        (("STRING", "empty", None), ("STRING", "notempty", None), True),
        (("STRING", "empty", None), ("STRING", "eq", "a"), True),
        (("STRING", "empty", None), ("STRING", "neq", "a"), False),
        (("NUMBER", "eq", "'1'"), ("NUMBER", "eq", "'1'"), False),
        (("NUMBER", "eq", "'1'"), ("NUMBER", "gt", "'1'"), True),
        (("NUMBER", "gt", "'5'"), ("NUMBER", "lt", "'5'"), True),
        (("NUMBER", "lte", "'5'"), ("NUMBER", "gte", "'5'"), False),
        (("NUMBER", "gte", "'6'"), ("NUMBER", "lte", "'5'"), True),
        (("NUMBER", "present", None), ("NUMBER", "notpresent", None), True),
        (("NUMBER", "lt", "'5'"), ("NUMBER", "notpresent", None), True),
        (("BOOLEAN", "true", None), ("BOOLEAN", "false", None), True),
        (("DATETIME", "gt", "'2027-01-01T00:00:00Z'"), ("DATETIME", "lt", "'2026-01-01T00:00:00Z'"), True),
        (("DATETIME", "gt", "'2026-01-01T00:00:00Z'"), ("DATETIME", "lt", "'2027-01-01T00:00:00Z'"), False),
        (
            ("DATETIME", "eq", "'2026-01-01T01:00:00+01:00'"),
            ("DATETIME", "eq", "'2026-01-01T00:00:00Z'"),
            False,
        ),
        (("ENTITY_ID", "eq", "a"), ("ENTITY_ID", "eq", "b"), True),
        (("STRING", "eq", "a"), ("NUMBER", "eq", "'5'"), False),
    ],
)
def test_contradictions(
    first: tuple[str, str, str | None], second: tuple[str, str, str | None], is_contradiction: bool
) -> None:
    pair = (one(*first), one(*second))
    found = [each for each in findings(constraints(*pair)) if each.code == "FC235"]
    assert len(found) == is_contradiction
    # It stands at the later of the two.
    assert [each.line for each in found] == [8] * is_contradiction
    assert ("FC224" in codes(constraints(*pair))) is is_contradiction
    assert "FC235" not in codes(constraints(*pair, match="ANY"))
    if first[0] != "ENTITY_ID":
        assert "FC235" not in codes(constraints(pair[0], one(*second, name="q")))


def test_a_segment_is_used_only_by_what_is_evaluated() -> None:
    text = "flags: [{key: f, name: F, type: BOOLEAN_FLAG_TYPE, rules: [{segment: all}]}]\n" + SEGMENTS
    assert codes(text).count("FC230") == 4
    assert "FC218" in codes(text)


def test_a_folder_and_its_namespace_should_agree() -> None:
    flags = "flags: [{key: f, name: F, type: BOOLEAN_FLAG_TYPE}]"
    for text, folder, expected in (
        (flags, "charging", ["FC214"]),
        (flags, "default", []),
        (flags, None, []),
        (f"namespace: charging\n{flags}", "charging", []),
        (f"namespace: charging\n{flags}", "default", ["FC214"]),
    ):
        assert [each.code for each in findings(text, folder=folder)] == expected


def test_a_disputed_scalar_behind_an_alias_is_said_once() -> None:
    text = "flags:\n- key: f\n  name: F\n  variants:\n  - {key: v, default: true, attachment: [&a [0777], *a, *a, yes, {no: 1}]}"
    assert [(each.code, each.line, each.column) for each in findings(text)] == [
        ("FC211", 5, 46),
        ("FC211", 5, 61),
        ("FC211", 5, 67),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{owner: me, days: 90, ratio: 0.5, on: true}", []),
        ("{owner: '2026-01-31', n: '18446744073709551616'}", []),
        ("{owners: §[me]}", ["FC241"]),
        ("{owner: §{a: b}}", ["FC241"]),
        *((f"{{§{name}: 1}}", ["FC241"]) for name in ("namespace", "epoch", "version", "age_seconds", "stale", "clock_trusted")),
        ("{until: §2026-01-31}", ["FC242"]),
        ("{until: §2026-1-5}", ["FC242"]),
        ("{on: §yes}", ["FC211"]),
        ("{n: §18446744073709551616}", ["FC244"]),
        ("{n: 18446744073709551615}", []),
    ],
)  # fmt: skip
def test_metadata(text: str, expected: list[str]) -> None:
    before = f"flags: [{{key: f, name: F, type: BOOLEAN_FLAG_TYPE, metadata: {text}}}]".partition("§")[0]
    found = findings(
        f"flags: [{{key: f, name: F, type: BOOLEAN_FLAG_TYPE, metadata: {text.replace('§', '')}}}]"
    )
    assert [(each.code, each.column) for each in found] == [(code, len(before) + 1) for code in expected]


@pytest.mark.parametrize(
    ("attachment", "expected"),
    [
        ("{a: 1, A: 2}", []),
        ('{"caf\\u00e9": 1, "cafe": 2}', []),
        ('{"caf\\u00e9": 1, "cafe\\u0301": 2}', ["FC243"]),
        ('[{x: {"\\u212b": 1, "\\u00c5": 2, "A\\u030a": 3}}]', ["FC243", "FC243"]),
        ("[18446744073709551615, -9223372036854775808, 1e30, '18446744073709551616']", []),
        ("[18446744073709551616, -9223372036854775809]", ["FC244", "FC244"]),
        ("[" + "9" * 400 + "]", ["FC244"]),
    ],
)
def test_what_an_attachment_loses_on_its_way(attachment: str, expected: list[str]) -> None:
    text = f"flags: [{{key: f, name: F, variants: [{{key: v, default: true, attachment: {attachment}}}]}}]"
    assert codes(text) == expected


def test_a_number_beyond_64_bits_in_a_constraints_list() -> None:
    text = constraints(one("NUMBER", "isoneof", "[1, 36893488147419103232]"))
    assert sorted(codes(text)) == ["FC201", "FC244"]


@pytest.mark.parametrize(
    ("segment", "expected"),
    [("a", []), ("{keys: [a, b]}", []), ("[a, b]", ["FC219"]), ("[a]", ["FC219"])],
)
def test_a_bare_list_of_segments(segment: str, expected: list[str]) -> None:
    text = variant([f"{{segment: {segment}, distributions: [{{variant: w, rollout: 100}}]}}"])
    assert [code for code in codes(text) if code not in NOISE] == expected


@pytest.mark.parametrize(
    ("rollouts", "where"),
    [
        ([50, 50], ""),
        ([16.7, 83.3], ""),
        ([16.67, 83.33], "between two tenths"),
        ([14.9, 85.1], "bucket 148, not 149"),
        ([25, 25, 25, 25], ""),
        ([39.1, 31.2, 20.0, 9.7], "bucket 703 on amd64 and 702 on arm64"),
        ([16.6, 0.01, 83.39], "between two tenths"),
    ],
)
def test_splits_that_flipts_engines_do_not_share_out_alike(rollouts: list[float], where: str) -> None:
    variants = ", ".join(f"{{key: v{n}}}" for n in range(len(rollouts)))
    shares = ", ".join(f"{{variant: v{n}, rollout: {share}}}" for n, share in enumerate(rollouts))
    text = variant([f"{{segment: all, distributions: [{shares}]}}"], f"variants: [{variants}]")
    found = [each.message for each in findings(text) if each.code == "FC205"]
    assert len(found) == bool(where)
    assert all(where in message for message in found)


def test_fused_arithmetic_moves_seven_of_a_thousand_four_way_splits_of_whole_percents() -> None:
    # All of them: 1 to 97 percent each, 156,849 in number. An arm64 server was found to differ in 0.7 % of them.
    differ = total = 0
    for first in range(1, 98):
        for second in range(first + 1, 99):
            for third in range(second + 1, 100):
                shares = [float(each) for each in (first, second - first, third - second, 100 - third)]
                total += 1
                differ += fused_bounds(shares) != share_bounds(shares)
    assert total == 156_849
    assert 0.006 < differ / total < 0.008


def test_warnings_wait_until_there_are_no_errors() -> None:
    text = "flags: [{key: f, name: F, enabeld: 1}]\n" + SEGMENTS
    assert {each.code for each in check([SourceFile("features.yml", text.encode())]).findings} == {"FC111"}


# What is called unreachable, unmatched or without effect must be so for every entity.

CONTEXTS = [{"site": site, "n": n} for site in ("", "a", "b", " ") for n in ("", "1", "5", "x")]
ENTITIES = [f"entity-{number}" for number in range(60)]


def _random_constraint(rng: random.Random) -> str:
    kind = rng.choice(["STRING", "NUMBER"])
    name = "site" if kind == "STRING" else "n"
    if kind == "STRING":
        operator = rng.choice(
            ["eq", "neq", "empty", "notempty", "prefix", "isoneof", "isnotoneof", "contains"]
        )
        value: str | None = rng.choice(["a", "b", "''", "' a'"])
        if operator.endswith("oneof"):
            value = rng.choice(["[]", "[a]", "[a, b]", "['']"])
    else:
        operator = rng.choice(["eq", "neq", "lt", "lte", "gt", "gte", "present", "notpresent"])
        value = rng.choice(["'1'", "'5'", "'nan'", "'inf'"])
    if operator in ("empty", "notempty", "present", "notpresent"):
        value = None
    return one(kind, operator, value, name)


def _random_document(rng: random.Random) -> list[str]:
    """Lines, so that a rule or rollout is one line that can be taken out."""
    names = ["s0", "s1", "s2", "s3"]

    def keys() -> str:
        listed = ", ".join(rng.choices(names, k=rng.randint(0, 3)))
        return f"keys: [{listed}], operator: {rng.choice(['OR', 'AND'])}_SEGMENT_OPERATOR"

    lines = [
        "flags:",
        "- key: b",
        "  name: B",
        "  type: BOOLEAN_FLAG_TYPE",
        f"  enabled: {rng.choice(['true', 'false'])}",
    ]
    lines.append("  rollouts:" if (count := rng.randint(0, 4)) else "  rollouts: []")
    for _ in range(count):
        value = f"value: {rng.choice(['true', 'false'])}"
        if rng.random() < 0.3:
            lines.append(f"  - threshold: {{percentage: {rng.choice([0, 20, 50, 99.5, 100])}, {value}}}")
        else:
            lines.append(f"  - segment: {{{keys()}, {value}}}")
    lines += ["- key: v", "  name: V", "  enabled: true"]
    lines.append(
        f"  variants: [{{key: x, default: {rng.choice(['true', 'false'])}}}, {{key: y}}, {{key: z}}]"
    )
    lines.append("  rules:" if (count := rng.randint(0, 4)) else "  rules: []")
    for _ in range(count):
        shares = ", ".join(
            f"{{variant: {rng.choice('xyz')}, rollout: {rng.choice([0, 0.01, 30, 70, 100])}}}"
            for _ in range(rng.randint(0, 2))
        )
        lines.append(f"  - {{segment: {{{keys()}}}, distributions: [{shares}]}}")
    lines.append("segments:")
    for name in names:
        listed = ", ".join(f"{{{_random_constraint(rng)}}}" for _ in range(rng.randint(0, 2)))
        lines.append(
            f"- {{key: {name}, name: N, match_type: {rng.choice(['ALL', 'ANY'])}_MATCH_TYPE, constraints: [{listed}]}}"
        )
    return lines


def _answers(lines: Sequence[str]) -> list[tuple[bool, str]]:
    compilation = check([SourceFile("features.yml", "\n".join(lines).encode())])
    flags: CompiledFlags = compile_flags(compilation.namespaces[Namespace("default")], {})
    return [
        (flags.boolean("b", entity, context).enabled, flags.variant("v", entity, context).variant_key)
        for entity in ENTITIES
        for context in CONTEXTS
    ]


def test_what_is_said_of_reach_holds_for_every_entity() -> None:
    rng = random.Random(20260131)
    taken_out = 0
    for _ in range(150):
        lines = _random_document(rng)
        found = findings("\n".join(lines))
        answers = _answers(lines)
        without = {each.line - 1 for each in found if each.code in ("FC223", "FC224")}
        if without:
            taken_out += len(without)
            kept = [line for number, line in enumerate(lines) if number not in without]
            for number, line in enumerate(kept):
                is_bare = line in ("  rollouts:", "  rules:") and not kept[number + 1].startswith("  - ")
                kept[number] = f"{line} []" if is_bare else line
            assert _answers(kept) == answers
        if any(each.code == "FC226" for each in found):
            assert len({enabled for enabled, _ in answers}) == 1
        nobody_gets = {each.message.split("'")[-2] for each in found if each.code == "FC231"}
        assert not nobody_gets & {key for _, key in answers}
    assert taken_out > 50
