"""From documents to the model that travels: references, values, attachments, bounds, limits."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagcast_bridge.check import check, load
from flagcast_bridge.flags.compiler import Compilation
from flagcast_bridge.sources import SourceFile
from flagcast_shared import model
from flagcast_shared import records as records_module
from flagcast_shared.ids import FlagKey, Namespace, SegmentKey, VariantKey
from flagcast_shared.limits import METADATA_MAX_BYTES
from flagcast_shared.records import decode_record, encode_record

FIXTURES = Path(__file__).parent / "fixtures"


def compiled(text: str, name: str = "features.yml") -> Compilation:
    return check([SourceFile(name, text.encode())])


def entries(text: str, name: str = "features.yml") -> tuple[model.Entry, ...]:
    compilation = compiled(text, name)
    assert [each for each in compilation.findings if each.severity == "error"] == []
    (listed,) = compilation.namespaces.values()
    return listed


def errors(text: str, name: str = "features.yml") -> list[tuple[str, int, int]]:
    """The errors of a file; where there are some, nothing is compiled."""
    compilation = compiled(text, name)
    listed = [
        (each.code, each.line, each.column) for each in compilation.findings if each.severity == "error"
    ]
    assert compilation.has_errors is bool(listed)
    assert bool(compilation.namespaces) is not bool(listed)
    return listed


def test_flipts_own_corpus_compiles_unchanged() -> None:
    compilation = load(FIXTURES / "flipt-corpus.features.yml")
    assert not compilation.has_errors
    assert compilation.namespaces == {
        "default": (
            model.VariantFlag(
                key=FlagKey("flag1"),
                enabled=True,
                variants=(model.Variant(VariantKey("variant1")),),
                rules=(
                    model.Rule(
                        (SegmentKey("segment1"),),
                        model.Join.OR,
                        (model.Distribution(VariantKey("variant1"), 1000),),
                    ),
                ),
            ),
            model.BooleanFlag(
                key=FlagKey("flag_boolean"),
                enabled=True,
                rollouts=(
                    model.SegmentRollout((SegmentKey("segment1"),), model.Join.OR, value=True),
                    model.ThresholdRollout(50, value=True),
                ),
            ),
            model.Segment(
                SegmentKey("segment1"),
                model.Match.ANY,
                (model.Constraint(model.ConstraintType.STRING, "fizz", model.Operator.EQ, "buzz"),),
            ),
        )
    }


def test_entries_are_sorted_by_kind_then_key() -> None:
    text = (
        "flags: [{key: b, name: B}, {key: a, name: A}, {key: B, name: B}]\n"
        "segments: [{key: z, name: Z, match_type: ANY_MATCH_TYPE}, {key: c, name: C, match_type: ANY_MATCH_TYPE}]"
    )
    assert [each.key for each in entries(text)] == ["B", "a", "b", "c", "z"]


def test_every_entry_survives_the_wire() -> None:
    compilation = load(Path(__file__).parents[2] / "examples")
    for listed in compilation.namespaces.values():
        for entry in listed:
            assert isinstance(entry, model.BooleanFlag | model.VariantFlag | model.Segment)
            assert decode_record(encode_record(entry).data).entry == entry


def test_a_stream_and_several_files_give_several_namespaces() -> None:
    one = SourceFile("a.yml", b"flags: []\n---\nnamespace: b\nflags: []\n")
    two = SourceFile("c.json", b'{"namespace": {"key": "c"}, "flags": []}')
    assert list(check([one, two]).namespaces) == ["default", "b", "c"]


def documents(*texts: str) -> Compilation:
    """One file for each document: a.yml, b.yml and so on."""
    return check([SourceFile(f"{chr(97 + n)}.yml", text.encode()) for n, text in enumerate(texts)])


def where(value: str) -> str:
    return f"constraints: [{{type: STRING_COMPARISON_TYPE, property: p, operator: eq, value: {value}}}]"


EUROPE = f"""namespace: fleet
flags: [{{key: z, name: Z, type: BOOLEAN_FLAG_TYPE, rollouts: [{{segment: {{key: eu, value: true}}}}]}}]
segments: [{{key: eu, name: EU, match_type: ALL_MATCH_TYPE, {where("v")}}}]
"""
AFRICA = f"""namespace: {{key: fleet, name: Fleet}}
flags: [{{key: a, name: A, type: BOOLEAN_FLAG_TYPE, rollouts: [{{segment: {{keys: [eu, af], value: true}}}}]}}]
segments: [{{key: af, name: AF, match_type: ANY_MATCH_TYPE, {where("w")}}}]
"""


def test_documents_of_one_namespace_are_one_content_in_one_file_or_in_several() -> None:
    whole = documents(
        "namespace: fleet\n"
        "flags: [{key: a, name: A, type: BOOLEAN_FLAG_TYPE, rollouts: [{segment: {keys: [eu, af], value: true}}]},"
        " {key: z, name: Z, type: BOOLEAN_FLAG_TYPE, rollouts: [{segment: {key: eu, value: true}}]}]\n"
        + EUROPE.splitlines()[2][:-1] + ", " + AFRICA.splitlines()[2].removeprefix("segments: [")
    )  # fmt: skip
    for merged in (documents(EUROPE, AFRICA), documents(f"{EUROPE}---\n{AFRICA}")):
        assert merged.namespaces == whole.namespaces
        assert [each.code for each in merged.findings] == ["FC206"]
    assert [each.key for each in whole.namespaces[Namespace("fleet")]] == ["a", "z", "af", "eu"]


def test_a_segment_of_a_later_document_is_unknown_as_flipt_reads_them_in_order() -> None:
    compilation = documents(AFRICA, EUROPE)
    (finding,) = compilation.findings
    assert (finding.code, finding.file, finding.line) == ("FC123", "a.yml", 2)
    assert "'eu' stands in a later document, in b.yml, line 1" in finding.message


@pytest.mark.parametrize("kind", ["flag", "segment"])
def test_a_key_twice_in_one_namespace_is_refused_across_documents_too(kind: str) -> None:
    text = {
        "flag": "namespace: n\nflags: [{key: k, name: K}]\n",
        "segment": "namespace: n\nsegments: [{key: k, name: K, match_type: ALL_MATCH_TYPE}]\n",
    }[kind]
    other = text.replace("namespace: n", "namespace: m")
    (finding,) = documents(text, other, text).findings
    assert (finding.code, finding.file, finding.line) == ("FC122", "c.yml", 2)
    assert finding.message == f"{kind} 'k' stands twice, first in a.yml, line 2"


def test_only_a_namespace_without_any_flag_is_said_to_have_none() -> None:
    flag = "flags: [{key: k, name: K, type: BOOLEAN_FLAG_TYPE}]"
    assert [each.code for each in documents("flags: []", flag).findings] == []
    (finding,) = documents("namespace: n\nflags: []", flag, "namespace: n\nflags: []").findings
    assert (finding.code, finding.file) == ("FC215", "a.yml")


def test_a_segment_is_used_by_any_document_of_its_namespace() -> None:
    found = documents(EUROPE.replace("key: eu, value", "keys: [], value"), AFRICA).findings
    assert "FC230" not in {each.code for each in found}


# Metadata


def metadata(text: str, name: str = "features.yml") -> str:
    flag, *_ = entries(f'{{"flags": [{{"key": "a", "name": "A", "metadata": {text}}}]}}', name)
    assert isinstance(flag, model.VariantFlag)
    return flag.metadata


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", ""),
        ("{b: [1], c: {d: 1}}", ""),
        ("{b: [1], a: 1}", '{"a":1}'),
        ("{owner: Größe, days: 90, ratio: 0.50}", '{"days":90,"owner":"Größe","ratio":0.5}'),
        ("{on: true, no: no}", '{"no":"no","on":true}'),
        ("{until: 2026-01-31, empty: ''}", '{"empty":"","until":"2026-01-31"}'),
        ("{n: 18446744073709551615}", '{"n":18446744073709551615}'),
        ("{html: <b>}", '{"html":"\\u003cb\\u003e"}'),
    ],
)  # fmt: skip
def test_metadata_are_compact_sorted_json(text: str, expected: str) -> None:
    assert metadata(text) == expected


def test_metadata_of_a_json_file_and_of_a_boolean_flag() -> None:
    assert metadata('{"n": 9007199254740993, "t": "x"}', "features.json") == '{"n":9007199254740992,"t":"x"}'
    flag, *_ = entries("flags: [{key: a, name: A, type: BOOLEAN_FLAG_TYPE, metadata: {owner: me}}]")
    assert isinstance(flag, model.BooleanFlag)
    assert flag.metadata == '{"owner":"me"}'


@pytest.mark.parametrize(
    ("text", "code"),
    [("{a: .inf}", "FC134"), ("{a: " + "x" * METADATA_MAX_BYTES + "}", "FC135")],
)
def test_metadata_that_cannot_travel_is_an_error(text: str, code: str) -> None:
    assert errors(f"flags: [{{key: a, name: A, metadata: {text}}}]") == [(code, 1, 41)]


def test_the_largest_metadata_travels() -> None:
    text = metadata("{a: " + "x" * (METADATA_MAX_BYTES - len('{"a":""}')) + "}")
    assert len(text) == METADATA_MAX_BYTES


def test_one_broken_file_keeps_all_from_being_published() -> None:
    compilation = check([SourceFile("a.yml", b"flags: []"), SourceFile("b.yml", b"namespace: [")])
    assert compilation.has_errors
    assert compilation.namespaces == {}


SEGMENTS = "\nsegments: [{key: s, name: S, match_type: ALL_MATCH_TYPE}, {key: t, name: T, match_type: ALL_MATCH_TYPE}]"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("flags: [{key: a, name: A}, {key: §a, name: B}]", "FC122"),
        ("flags: [{key: a, name: A, variants: [{key: v}, {key: §v}]}]", "FC122"),
        (
            "segments: [{key: s, name: S, match_type: ANY_MATCH_TYPE}, {key: §s, name: S, match_type: ANY_MATCH_TYPE}]",
            "FC122",
        ),
        ("flags: [{key: a, name: A, rules: [{segment: §u}]}]", "FC123"),
        ("flags: [{key: a, name: A, rules: [{segment: {keys: [s, §u]}}]}]", "FC123"),
        ("flags: [{key: a, name: A, type: BOOLEAN_FLAG_TYPE, rollouts: [{segment: {key: §u}}]}]", "FC123"),
        ("flags: [{key: a, name: A, type: BOOLEAN_FLAG_TYPE, rules: [{segment: §u}]}]", "FC123"),
        (
            "flags: [{key: a, name: A, variants: [{key: v}], rules: [{segment: s, distributions: [{variant: §w, rollout: 0}]}]}]",
            "FC124",
        ),
        ("flags: [{key: a, name: A, variants: [{key: §" + "é" * 129 + "}]}]", "FC116"),
    ],
)
def test_references_and_keys_are_resolved(text: str, code: str) -> None:
    if "segments:" not in text:
        text += SEGMENTS
    before = text.partition("§")[0]
    assert errors(text.replace("§", "")) == [(code, before.count("\n") + 1, len(before) - before.rfind("\n"))]


def rule(distributions: str) -> model.Rule:
    flag, *_ = entries(
        "flags: [{key: a, name: A, variants: [{key: v}, {key: w}, {key: x}], "
        f"rules: [{{segment: s, distributions: [{distributions}]}}]}}]{SEGMENTS}"
    )
    assert isinstance(flag, model.VariantFlag)
    return flag.rules[0]


@pytest.mark.parametrize(
    ("distributions", "bounds"),
    [
        ("", []),
        ("{variant: v, rollout: 100}", [("v", 1000)]),
        ("{variant: v, rollout: 16.67}, {variant: w, rollout: 83.33}", [("v", 166), ("w", 1000)]),
        ("{variant: v, rollout: 0}, {variant: w, rollout: 5}", [("w", 1000)]),
        ("{variant: v, rollout: 0}, {variant: w, rollout: 0.0}", []),
        ("{variant: v, rollout: 1e-60}, {variant: w, rollout: 1}", [("w", 1000)]),
        (
            "{variant: v, rollout: 1}, {variant: w, rollout: 1}, {variant: v, rollout: 2}",
            [("v", 250), ("w", 500), ("v", 1000)],
        ),
    ],
)
def test_distributions_become_bounds(distributions: str, bounds: list[tuple[str, int]]) -> None:
    assert [(each.variant, each.bound) for each in rule(distributions).distributions] == bounds


@pytest.mark.parametrize(
    ("percentage", "compiled_percentage"),
    [("0", 0), ("12.5", 13), ("12.0000000001", 12), ("100", 100), ("-5", 0), ("1e300", 100), ("99.5", 100)],
)
def test_thresholds_become_whole_percentages(percentage: str, compiled_percentage: int) -> None:
    (flag,) = entries(
        "flags: [{key: a, name: A, type: BOOLEAN_FLAG_TYPE, "
        f"rollouts: [{{threshold: {{percentage: {percentage}, value: true}}}}]}}]"
    )
    assert isinstance(flag, model.BooleanFlag)
    assert flag.rollouts == (model.ThresholdRollout(compiled_percentage, value=True),)


def test_the_last_default_variant_counts_and_segments_stand_once() -> None:
    flag, *_ = entries(
        "flags: [{key: a, name: A, variants: [{key: v, default: true}, {key: w, default: true}], "
        f"rules: [{{segment: {{keys: [t, s, t], operator: AND_SEGMENT_OPERATOR}}}}]}}]{SEGMENTS}"
    )
    assert isinstance(flag, model.VariantFlag)
    assert flag.default == "w"
    assert flag.rules == (model.Rule((SegmentKey("t"), SegmentKey("s")), model.Join.AND, ()),)


def test_a_rule_over_no_segments_is_kept() -> None:
    flag, *_ = entries(f"flags: [{{key: a, name: A, rules: [{{segment: {{keys: []}}}}]}}]{SEGMENTS}")
    assert isinstance(flag, model.VariantFlag)
    assert flag.rules == (model.Rule((), model.Join.OR, ()),)


def constraint_text(kind: str, operator: str, value: str | None, version: str = "1.6") -> str:
    field = "" if value is None else f", value: {value}"
    return (
        f'version: "{version}"\nsegments:\n- key: s\n  name: S\n  match_type: ALL_MATCH_TYPE\n  constraints:\n'
        f'  - {{type: {kind}_COMPARISON_TYPE, property: p, operator: "{operator}"{field}}}'
    )


def constraint(kind: str, operator: str, value: str | None, version: str = "1.6") -> model.Constraint:
    (segment,) = entries(constraint_text(kind, operator, value, version))
    assert isinstance(segment, model.Segment)
    return segment.constraints[0]


@pytest.mark.parametrize(
    ("kind", "operator", "value", "expected"),
    [
        ("STRING", "eq", "x", "x"),
        ("STRING", "eq", None, ""),
        ("STRING", "eq", "2026-01-31", "2026-01-31"),
        ("STRING", "empty", None, None),
        ("STRING", "notempty", '"ignored"', None),
        (
            "STRING",
            "isoneof",
            """'["a", "\\u00e9", "\\ud800x", "\\ud83d\\ude00", ""]'""",
            ("a", "é", "\ufffdx", "😀", ""),
        ),
        ("STRING", "isoneof", "[a, '1', on]", ("a", "1", "on")),
        ("STRING", "isnotoneof", "[]", ()),
        ("STRING", "isnotoneof", "' [ ] '", ()),
        ("NUMBER", "eq", "'5'", "5.0"),
        ("NUMBER", "gte", "'-1e3'", "-1000.0"),
        ("NUMBER", "lt", "'0x1p-2'", "0.25"),
        ("NUMBER", "neq", "'inf'", "inf"),
        ("NUMBER", "neq", "'0x_1_0p0'", "16.0"),
        ("NUMBER", "present", None, None),
        ("NUMBER", "isoneof", "'[1, 2.50, 1e2]'", ("1.0", "2.5", "100.0")),
        ("NUMBER", "isoneof", "[1, 2.50, 9007199254740993]", ("1.0", "2.5", "9007199254740992.0")),
        ("BOOLEAN", "true", None, None),
        ("BOOLEAN", "notpresent", None, None),
        ("DATETIME", "lt", "'1970-01-02'", model.Instant(86_400, 0)),
        ("DATETIME", "gte", "1970-01-02", model.Instant(86_400, 0)),
        ("DATETIME", "eq", "'1970-01-01T01:00:00.5+01:00'", model.Instant(0, 500_000_000)),
        ("ENTITY_ID", "prefix", "x", "x"),
    ],
)
def test_constraint_values_are_parsed_once(
    kind: str, operator: str, value: str, expected: model.ConstraintValue
) -> None:
    read = constraint(kind, operator, value)
    assert (read.value, read.operator) == (expected, operator)
    assert read.property == ("" if kind == "ENTITY_ID" else "p")


@pytest.mark.parametrize(
    ("kind", "operator", "value", "code"),
    [
        ("SEMVER", "eq", "x", "FC131"),
        ("STRING", "gt", "x", "FC131"),
        ("STRING", "EQ", "x", "FC131"),
        ("STRING", "present", None, "FC131"),
        ("NUMBER", "le", "'5'", "FC131"),
        ("NUMBER", "empty", None, "FC131"),
        ("BOOLEAN", "eq", "'true'", "FC131"),
        ("DATETIME", "isoneof", "'[]'", "FC131"),
        ("STRING", "eq", "5", "FC113"),
        ("STRING", "eq", "true", "FC113"),
        ("STRING", "eq", "null", "FC113"),
        ("STRING", "eq", "{a: b}", "FC113"),
        ("STRING", "empty", "[a]", "FC113"),
        ("BOOLEAN", "true", "true", "FC113"),
        ("NUMBER", "eq", "5", "FC113"),
        ("STRING", "eq", "[a]", "FC132"),
        ("NUMBER", "eq", "[5]", "FC132"),
        ("NUMBER", "eq", None, "FC132"),
        ("NUMBER", "eq", "' 5'", "FC132"),
        ("NUMBER", "eq", "'1e999'", "FC132"),
        ("NUMBER", "eq", "five", "FC132"),
        ("DATETIME", "eq", "'2026-01-31 10:00'", "FC132"),
        ("DATETIME", "eq", "'2026-02-30'", "FC132"),
        ("DATETIME", "eq", None, "FC132"),
        ("STRING", "isoneof", None, "FC133"),
        ("STRING", "isoneof", "'a, b'", "FC133"),
        ("STRING", "isoneof", "'[\"a\"'", "FC133"),
        ("STRING", "isoneof", "'[1]'", "FC133"),
        ("STRING", "isoneof", "'[null]'", "FC133"),
        ("STRING", "isoneof", "'\"a\"'", "FC133"),
        ("STRING", "isoneof", "'{}'", "FC133"),
        ("STRING", "isoneof", "[1]", "FC133"),
        ("STRING", "isoneof", "[[a]]", "FC133"),
        ("STRING", "isoneof", "'" + "[" * 5000 + "'", "FC133"),
        ("NUMBER", "isoneof", "'[\"1\"]'", "FC133"),
        ("NUMBER", "isoneof", "'[NaN]'", "FC133"),
        ("NUMBER", "isoneof", "'[1e999]'", "FC133"),
        ("NUMBER", "isoneof", "'[true]'", "FC133"),
        ("NUMBER", "isoneof", "['1']", "FC133"),
        ("NUMBER", "isoneof", "[.nan]", "FC133"),
        ("NUMBER", "isoneof", "[true]", "FC133"),
        ("STRING", "eq", "x" * 65_537, "FC135"),
        ("STRING", "isoneof", "[" + "x" * 65_537 + "]", "FC135"),
    ],
)
def test_what_a_constraint_cannot_mean_is_an_error(
    kind: str, operator: str, value: str | None, code: str
) -> None:
    assert [(found, line) for found, line, _ in errors(constraint_text(kind, operator, value))] == [(code, 7)]


def test_json_lists_are_read_in_every_version() -> None:
    for version in ("1.0", "1.5", "1.6"):
        assert constraint("STRING", "isoneof", "'[\"a\"]'", version).value == ("a",)


def attachment(text: str, name: str = "features.yml") -> str:
    flag, *_ = entries(
        f'{{"flags": [{{"key": "a", "name": "A", "variants": [{{"key": "v", "attachment": {text}}}]}}]}}',
        name,
    )
    assert isinstance(flag, model.VariantFlag)
    return flag.variants[0].attachment


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("null", ""),
        ("{}", "{}"),
        ("[]", "[]"),
        ("[null, true, false, ~]", "[null,true,false,null]"),
        ('{b: 1, a: {"": x, é: y}}', '{"a":{"":"x","é":"y"},"b":1}'),
        # the order of UTF-8's bytes, which is not that of UTF-16
        ('{"\U00010000": 1, "\ufffd": 2}', '{"\ufffd":2,"\U00010000":1}'),
        ("[1, -0, 18446744073709551615, 0x10, 1_0]", '[1,0,18446744073709551615,16,"1_0"]'),
        (
            "[1.0, 1.50, -0.0, 1e20, 1e21, 1e-6, 1e-7, 1.5e-10, 1e300]",
            "[1,1.5,-0,100000000000000000000,1e+21,0.000001,1e-7,1.5e-10,1e+300]",
        ),
        ("[0.1, 123456789.125, 5e-324]", "[0.1,123456789.125,5e-324]"),
        ("[yes, 2026-01-31, '5']", '["yes","2026-01-31","5"]'),
        (r'["<&>", "\u2028\u2029", "\"\\", "\b\f\n\r\t\u0001\x7f", "😀"]', None),
        ("text", '"text"'),
    ],
)
def test_attachments_are_compact_json_as_go_writes_it(text: str, expected: str | None) -> None:
    if expected is None:
        expected = r'["\u003c\u0026\u003e","\u2028\u2029","\"\\","\b\f\n\r\t\u0001' + "\x7f" + '","😀"]'
    assert attachment(text) == expected


def test_numbers_of_a_json_file_are_float64() -> None:
    text = "[12345678901234567890, 1, 1.0, -0, 1e2]"
    assert attachment(text, "features.json") == "[12345678901234567000,1,1,-0,100]"
    assert attachment(text) == "[12345678901234567890,1,1,0,100]"


@pytest.mark.parametrize(
    ("text", "name", "code"),
    [
        ("[.nan]", "f.yml", "FC134"),
        ("[-.inf]", "f.yml", "FC134"),
        ("{1: a}", "f.yml", "FC134"),
        ("[{true: a}]", "f.yml", "FC134"),
        ("[1e999]", "f.json", "FC134"),
        ("[" + "x" * 65_540 + "]", "f.yml", "FC135"),
        ("[&a " + "x" * 1000 + ", *a" * 70 + "]", "f.yml", "FC135"),
    ],
)
def test_what_json_cannot_hold_is_an_error(text: str, name: str, code: str) -> None:
    whole = f'{{"flags": [{{"key": "a", "name": "A", "variants": [{{"key": "v", "attachment": {text}}}]}}]}}'
    assert [found for found, _, _ in errors(whole, name)] == [code]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(tree=st.lists(JSON, max_size=3) | st.dictionaries(st.text(), JSON, max_size=3))
def test_an_attachment_says_what_the_file_says(tree: object) -> None:
    # Escaped, since YAML takes no raw control characters; beyond the BMP YAML has no surrogate escapes.
    text = json.dumps(tree, ensure_ascii=True)
    if "\\ud" in text.lower():
        return
    assert json.loads(attachment(text), parse_int=float) == json.loads(text, parse_int=float)


def test_a_record_too_large_to_travel_is_an_error() -> None:
    variants = ", ".join(f"{{key: v{number}, attachment: [{'x' * 60_000}]}}" for number in range(5))
    assert errors(f"flags: [{{key: a, name: A, variants: [{variants}]}}]") == [("FC135", 1, 9)]


@pytest.mark.parametrize("limit", ["RECORDS_MAX", "CONTENT_MAX_BYTES", "CONTENT_ITEMS_MAX"])
def test_a_namespace_too_large_to_travel_is_an_error(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "flags: [{key: a, name: A}, {key: b, name: B}]"
    assert errors(text) == []
    monkeypatch.setattr(records_module, limit, 1)
    assert errors(text) == [("FC135", 1, 1)]


PILOTS = """
flags: [{key: a, name: A, rules: [{segment: pilots}]}]
segments: [{key: pilot, name: P, match_type: ANY_MATCH_TYPE}]
"""


def test_a_near_miss_gets_a_suggestion() -> None:
    hints = {
        each.hint
        for text in (
            PILOTS,
            constraint_text("NUMBER", "<=", "'5'"),
            constraint_text("STRIGN", "eq", "x"),
        )
        for each in compiled(text).findings
    }
    assert hints == {"Did you mean 'pilot'?", "Did you mean 'lte'?", "Did you mean 'STRING_COMPARISON_TYPE'?"}


def test_a_compilation_cannot_be_changed() -> None:
    namespaces = compiled("flags: []").namespaces
    with pytest.raises(TypeError):
        namespaces[Namespace("other")] = ()  # type: ignore[index]  # that is what is tested
