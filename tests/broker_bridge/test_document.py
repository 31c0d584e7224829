"""From bytes to documents: YAML 1.2 scalars, positions, limits, fields, types and versions."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagcast_bridge.check import check
from flagcast_bridge.flags import nodes as nodes_module
from flagcast_bridge.flags.document import Document, parse
from flagcast_bridge.flags.findings import CATALOGUE, Finding, Findings
from flagcast_bridge.flags.nodes import ListNode, MapNode, Node, Scalar, read_nodes
from flagcast_bridge.sources import SourceFile


def one(text: str, name: str = "features.yml") -> Node:
    findings = Findings()
    documents = read_nodes(name, text.encode(), findings)
    assert findings.listed() == ()
    (node,) = documents
    return node


def found(text: str | bytes, name: str = "features.yml") -> list[tuple[str, int, int]]:
    """Code, line and column of everything that is wrong with the form of a file."""
    content = text.encode() if isinstance(text, str) else text
    findings = Findings()
    parse(SourceFile(name, content), findings)
    return [(each.code, each.line, each.column) for each in findings.listed()]


def plain(node: Node) -> Any:
    match node:
        case Scalar():
            return node.value
        case ListNode():
            return [plain(item) for item in node.items]
        case MapNode():
            return {key.value: plain(value) for key, value in node.entries}


class TestScalars:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            *((word, True) for word in ("true", "True", "TRUE")),
            *((word, False) for word in ("false", "False", "FALSE")),
            *((word, None) for word in ("null", "Null", "NULL", "~")),
            *((word, word) for word in ("yes", "no", "on", "off", "y", "tRUE", "nULL", "2026-01-31", "1:30")),
            *(
                (word, word)
                for word in ("0777", "-07", "0b1", "1_000", "-0x1F", "0X1F", "089", "1e", ".", "-a", "+-1")
            ),
            ("0", 0),
            ("-0", 0),
            ("+12", 12),
            ("0o17", 15),
            ("0x1F", 31),
            ("18446744073709551615", 2**64 - 1),
            ("18446744073709551616", 2.0**64),
            ("1.", 1.0),
            (".5", 0.5),
            ("1e3", 1000.0),
            ("-1.5E-2", -0.015),
            ("00.5", 0.5),
            (".inf", float("inf")),
            ("-.INF", float("-inf")),
            ("1e999", "1e999"),
            ("9" * 5000, "9" * 5000),
        ],
    )
    def test_plain_scalars_are_those_of_the_core_schema(self, text: str, value: object) -> None:
        read = plain(one(f"a: {text}"))["a"]
        assert (read, type(read)) == (value, type(value))

    @pytest.mark.parametrize("text", ['"1"', "'true'", '"null"', '""', "!!str 1", "! 1"])
    def test_quoted_scalars_are_text(self, text: str) -> None:
        assert isinstance(plain(one(f"a: {text}"))["a"], str)

    @pytest.mark.parametrize(
        ("text", "value"), [("!!int 5", 5), ('!!bool "true"', True), ("!!float 1.5", 1.5)]
    )
    def test_a_tag_that_fits_is_followed(self, text: str, value: object) -> None:
        assert plain(one(f"a: {text}"))["a"] == value

    @pytest.mark.parametrize(
        "text", ["!!int x", "!!binary YQ==", "!!python/name:os.system a", "!mine [a]", "!!set {a}"]
    )
    def test_any_other_tag_is_refused(self, text: str) -> None:
        assert found(f"a: {text}") == [("FC106", 1, 4)]


class TestStructure:
    def test_every_node_knows_its_place(self) -> None:
        tree = one("# é\nflags:\n  - key: über\n    list: [a, {b: c}]\n")
        assert isinstance(tree, MapNode)
        places = []

        def walk(node: Node) -> None:
            places.append((type(node).__name__, *node.at))
            match node:
                case ListNode():
                    for item in node.items:
                        walk(item)
                case MapNode():
                    for key, value in node.entries:
                        walk(key)
                        walk(value)

        walk(tree)
        assert places == [
            ("MapNode", 2, 1),
            ("Scalar", 2, 1),
            ("ListNode", 3, 3),
            ("MapNode", 3, 5),
            ("Scalar", 3, 5),
            ("Scalar", 3, 10),
            ("Scalar", 4, 5),
            ("ListNode", 4, 11),
            ("Scalar", 4, 12),
            ("MapNode", 4, 15),
            ("Scalar", 4, 16),
            ("Scalar", 4, 19),
        ]

    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("a: 1\n§a: 2\n", "FC105"),
            ('a: 1\n§"a": 2\n', "FC105"),
            ("x: {k: 1, l: 2, §k: 3}", "FC105"),
            ("a: §*x", "FC106"),
            ("a: &x [§*x]", "FC106"),
            ("--- &x a\n--- §*x\n", "FC106"),
            ("? §[a]\n: b", "FC106"),
            ("<<: §5", "FC106"),
            ("<<: [{a: 1}, §5]", "FC106"),
            ("a: 1\nb: §@c", "FC103"),
            ("a:\n§\t- b", "FC103"),
            ("a: b\nc: §\x00", "FC103"),
            ("a: b\nc: §\udcff", "FC102"),
            ("§\udcff\udcfea\x00", "FC102"),
        ],
    )
    def test_what_cannot_be_read_is_found_where_it_stands(self, text: str, code: str) -> None:
        before = text.partition("§")[0]
        content = text.replace("§", "").encode("utf-8", "surrogateescape")
        findings = Findings()
        read_nodes("features.yml", content, findings)
        assert [(each.code, each.line, each.column) for each in findings.listed()] == [
            (code, before.count("\n") + 1, len(before) - before.rfind("\n"))
        ]

    @pytest.mark.parametrize("text", ["a: [1", "a: 'x", "a: {", "a: b: c", "- a\nb: c"])
    def test_broken_syntax_is_one_error(self, text: str) -> None:
        assert [code for code, _, _ in found(text)] == ["FC103"]

    @pytest.mark.parametrize("text", ["", "# nothing\n", "\n\n", "\ufeff"])
    def test_a_file_without_a_document_is_an_error(self, text: str) -> None:
        assert found(text) == [("FC107", 1, 1)]

    def test_a_byte_order_mark_is_accepted(self) -> None:
        assert plain(one("\ufeffa: b")) == {"a": "b"}

    def test_a_stream_holds_several_documents(self) -> None:
        findings = Findings()
        documents = read_nodes("features.yml", b"a: 1\n---\nb: 2\n...\n---\nc: 3\n", findings)
        assert [plain(each) for each in documents] == [{"a": 1}, {"b": 2}, {"c": 3}]
        assert findings.listed() == ()

    def test_aliases_and_merge_keys_are_followed(self) -> None:
        text = "base: &base {a: 1, b: 2}\nx: {<<: *base, b: 3}\ny: {<<: [{a: 0}, *base]}\nz: *base\n"
        tree = plain(one(text))
        assert (tree["x"], tree["y"], tree["z"]) == ({"b": 3, "a": 1}, {"a": 0, "b": 2}, {"a": 1, "b": 2})

    def test_a_quoted_merge_key_is_a_key(self) -> None:
        assert plain(one('"<<": {a: 1}')) == {"<<": {"a": 1}}

    def test_an_alias_bomb_is_stopped(self) -> None:
        lines = ["a0: &a0 [" + ",".join(["x"] * 9) + "]"]
        lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
        assert found("\n".join(lines))[0][0] == "FC104"

    def test_depth_is_counted_through_aliases(self) -> None:
        chain = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 60)]
        assert found("\n".join(chain))[0][0] == "FC104"

    @pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 5_000, "- " * 5_000, "[" * 41 + "]" * 41])
    def test_depth_is_bounded(self, text: str) -> None:
        assert found(text)[0][0] == "FC104"

    def test_the_number_of_values_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nodes_module, "NODES_MAX", 5)
        assert found("a: [1, 2, 3]")[0][0] == "FC104"


class TestJson:
    def test_json_is_read_with_places(self) -> None:
        tree = one('{\n\t"a": [1.5, "\\u00e9", true, null],\n\t"b": {"c": "\\/"}\n}', "features.json")
        assert plain(tree) == {"a": [1.5, "é", True, None], "b": {"c": "/"}}
        assert isinstance(tree, MapNode)
        assert tree.entries[1][0].at == (3, 2)

    @pytest.mark.parametrize(
        "text",
        ["{'a': 1}", '{"a": 1,}', '{"a": 1} // x', "a: 1", "{", '{"a": NaN}', "[" * 100_000, '"\\ud800"'],
    )
    def test_only_strict_json_is_json(self, text: str) -> None:
        assert found(text, "features.json")[0][0] in ("FC102", "FC103", "FC104")

    def test_a_key_twice_is_refused(self) -> None:
        assert found('{"flags": [], "flags": []}', "f.json") == [("FC105", 1, 15)]


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
def test_both_parsers_of_pyyaml_read_the_same(loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    monkeypatch.setattr(nodes_module, "_LOADER", getattr(yaml, loader))
    text = 'a: &x [1, "é", \'b\']\nc: {d: *x, "e": |\n  text\n  }\n'.replace('"e": |\n  text\n  ', '"e": f')
    tree = one(text)
    assert plain(tree) == {"a": [1, "é", "b"], "c": {"d": [1, "é", "b"], "e": "f"}}
    assert one('{\n\t"a": "\\u00e9"\n}', "x.json").at == (1, 1)
    assert found("a: [1")[0][0] == "FC103"
    assert found("a: b\0")[0][0] == "FC103"
    assert found('a: "\\ud800"')[0][0] in ("FC102", "FC103")


FLAG = "flags: [{key: a, name: A, %s}]"
RULE = "flags: [{key: a, name: A, rules: [{%s}]}]"
ROLLOUT = "flags: [{key: a, name: A, type: BOOLEAN_FLAG_TYPE, rollouts: [{%s}]}]"
CONSTRAINT = "segments: [{key: s, name: S, match_type: ALL_MATCH_TYPE, constraints: [{%s}]}]"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        # documents
        ("§[]", "FC113"),
        ("§text", "FC113"),
        ("flags: []\n---\n§", "FC113"),
        ("§flag: []", "FC111"),
        ("§1: []", "FC111"),
        ("flags:§", "FC113"),
        ("flags: §{}", "FC113"),
        ("flags: [§x]", "FC113"),
        ("version: §1.4", "FC113"),
        ("version: §2", "FC113"),
        ('version: §"1.7"', "FC115"),
        ("namespace: §5", "FC113"),
        ("namespace:§", "FC113"),
        ("namespace: §a/b", "FC116"),
        ("namespace: §" + "n" * 101, "FC116"),
        ("namespace: {key: §a b}", "FC116"),
        ("namespace: {§keys: a}", "FC111"),
        ("namespace: {key: a, name: §''}", "FC116"),
        # flags
        ("flags: [§{name: A}]", "FC112"),
        ("flags: [§{key: a}]", "FC112"),
        ("flags: [{key: a, name: §''}]", "FC116"),
        ("flags: [{key: §'', name: A}]", "FC116"),
        ("flags: [{key: §ä, name: A}]", "FC116"),
        ("flags: [{key: §" + "k" * 257 + ", name: A}]", "FC116"),
        ("flags: [{key: §5, name: A}]", "FC113"),
        (FLAG % "enabled: §yes", "FC113"),
        (FLAG % "enabled: §1", "FC113"),
        (FLAG % "enabled: §null", "FC113"),
        (FLAG % "type: §X", "FC117"),
        (FLAG % "description: §5", "FC113"),
        (FLAG % "description: null", ""),
        (FLAG % "metadata: §[]", "FC113"),
        (FLAG % "metadata: {a: §null}", "FC113"),
        (FLAG % "metadata: {§1: a}", "FC113"),
        (FLAG % "metadata: {a: 1, b: [x], c: true}", ""),
        (FLAG % "rollouts: §[]", "FC126"),
        (FLAG % "variants: [§{}]", "FC112"),
        (FLAG % 'variants: [{key: §"a\\nb"}]', "FC116"),
        (FLAG % "variants: [{key: a, default: §'true'}]", "FC113"),
        (FLAG % "variants: [{key: a, attachment: null}]", ""),
        (FLAG % "variants: [{key: a, attachment: §5}]", "FC213"),
        # rules
        ("flags: [{key: a, name: A, rules: [§{rank: 1}]}]", "FC112"),
        (RULE % "segment: §5", "FC113"),
        (RULE % "segment: §a b", "FC116"),
        (RULE % "segment: {§key: s}", "FC111"),
        (RULE % "segment: {keys: §s}", "FC113"),
        (RULE % "segment: {keys: [s, §5]}", "FC113"),
        (RULE % "segment: {keys: [s], operator: §AND}", "FC117"),
        (RULE % "segment: {keys: [s], operator: null}", ""),
        (RULE % "segment: {}", ""),
        (RULE % "segment: [s, t]", ""),
        (RULE % "segment: s, rank: §1.5", "FC113"),
        (RULE % "segment: s, rank: §a", "FC113"),
        (RULE % "segment: s, distributions: [§{variant: a}]", "FC112"),
        (RULE % "segment: s, distributions: [§{rollout: 1}]", "FC112"),
        (RULE % "segment: s, distributions: [{variant: a, rollout: §'5'}]", "FC113"),
        (RULE % "segment: s, distributions: [{variant: a, rollout: §true}]", "FC113"),
        (RULE % "segment: s, distributions: [{variant: a, rollout: §-1}]", "FC118"),
        (RULE % "segment: s, distributions: [{variant: a, rollout: §100.5}]", "FC118"),
        (RULE % "segment: s, distributions: [{variant: a, rollout: §.nan}]", "FC118"),
        # rollouts
        ("flags: [{key: a, name: A, type: BOOLEAN_FLAG_TYPE, rollouts: [§{}]}]", "FC125"),
        (
            "flags: [{key: a, name: A, type: BOOLEAN_FLAG_TYPE, rollouts: [§{segment: {key: s}, threshold: {percentage: 1}}]}]",
            "FC125",
        ),
        (ROLLOUT % "segment: §{}", "FC127"),
        (ROLLOUT % "segment: §{key: s, keys: [t]}", "FC127"),
        (ROLLOUT % "segment: §s", "FC113"),
        (ROLLOUT % "segment: {key: s, value: §'true'}", "FC113"),
        (ROLLOUT % "threshold: §{value: true}", "FC112"),
        (ROLLOUT % "threshold: {percentage: §.inf}", "FC118"),
        (ROLLOUT % "threshold: §50", "FC113"),
        # segments
        ("segments: [§{key: s, match_type: ANY_MATCH_TYPE}]", "FC112"),
        ("segments: [§{key: s, name: S}]", "FC213"),
        ("segments: [{key: s, name: S, match_type: §ALL}]", "FC117"),
        (
            "segments: [{key: s, name: S, match_type: ALL_MATCH_TYPE, constraints: [§{property: a, operator: eq}]}]",
            "FC112",
        ),
        (
            "segments: [{key: s, name: S, match_type: ALL_MATCH_TYPE, constraints: [§{type: A, operator: eq}]}]",
            "FC112",
        ),
        (
            "segments: [{key: s, name: S, match_type: ALL_MATCH_TYPE, constraints: [§{type: A, property: a}]}]",
            "FC112",
        ),
        (CONSTRAINT % "type: A, property: §'', operator: eq", "FC116"),
        (CONSTRAINT % "type: A, property: a, operator: §true", "FC113"),
        (CONSTRAINT % "type: A, property: a, operator: eq, §values: [a]", "FC111"),
    ],
)
def test_the_form_is_judged_as_flipts_schema_does(text: str, code: str) -> None:
    """The place that is found is the one marked with §; without a code there is nothing to find."""
    before = text.partition("§")[0]
    at = (before.count("\n") + 1, len(before) - before.rfind("\n"))
    assert found(text.replace("§", "")) == ([(code, *at)] if code else [])


@pytest.mark.parametrize(
    ("text", "version", "code"),
    [
        (FLAG % "type: VARIANT_FLAG_TYPE", "1.1", "FC114"),
        (ROLLOUT % "threshold: {percentage: 5}", "1.1", "FC114"),
        (FLAG % "metadata: {}", "1.3", "FC114"),
        (FLAG % "variants: [{key: a, default: true}]", "1.3", "FC114"),
        (RULE % "segment: {keys: [a, b]}", "1.2", "FC212"),
        ("namespace: {key: a}", "1.4", "FC212"),
        (RULE % "segment: [a, b]", "1.5", "FC212"),
        (
            CONSTRAINT % "type: STRING_COMPARISON_TYPE, property: a, operator: isoneof, value: [x]",
            "1.6",
            "FC212",
        ),
    ],
)
def test_what_came_with_a_version_is_not_expected_before(text: str, version: str, code: str) -> None:
    before = f"1.{int(version[2]) - 1}"
    assert {each[0] for each in found(f'version: "{before}"\n{text}')} == {code}
    assert found(f'version: "{version}"\n{text}') == []
    assert found(text) == []


def document(text: str) -> Document:
    findings = Findings()
    (read,) = parse(SourceFile("features.yml", text.encode()), findings)
    assert findings.listed() == ()
    return read


def test_a_document_keeps_what_it_says_and_where() -> None:
    read = document(
        "namespace: {key: charging}\n"
        "flags:\n"
        "- key: a\n"
        "  name: A\n"
        "  rules:\n"
        "  - segment: {keys: [s, t], operator: AND_SEGMENT_OPERATOR}\n"
        "    distributions: [{variant: v, rollout: 12.5}]\n"
    )
    assert read.namespace == ("charging", (1, 18))
    (flag,) = read.flags
    assert (flag.key, flag.is_boolean, flag.enabled, flag.enabled_at) == (("a", (3, 8)), False, False, None)
    (rule,) = flag.rules
    assert rule.segments == (("s", (6, 22)), ("t", (6, 25)))
    assert rule.join.value == "and"
    assert rule.distributions[0].rollout == (12.5, (7, 43))


def test_a_document_without_namespace_is_of_the_default() -> None:
    assert document("flags: []").namespace.value == "default"
    assert document("namespace: {name: N}").namespace.value == "default"


def test_all_errors_are_reported_at_once() -> None:
    text = "flagz: []\nflags:\n- name: A\n- key: b\n  name: B\n  enabled: 'on'\nsegments:\n- key: c\n"
    assert sorted(found(text)) == [
        ("FC111", 1, 1),
        ("FC112", 3, 3),
        ("FC112", 8, 3),
        ("FC113", 6, 12),
        ("FC213", 8, 3),
    ]


def test_a_misspelled_field_gets_a_suggestion() -> None:
    findings = Findings()
    parse(SourceFile("features.yml", (FLAG % "enabeld: true").encode()), findings)
    assert [each.hint for each in findings.listed()] == ["Did you mean 'enabled'?"]


def test_a_key_that_yaml_versions_dispute_is_warned_about() -> None:
    assert found(FLAG % "variants: [{key: on}, {key: 'off'}]") == [("FC211", 1, 44)]
    assert found("flags: [{key: 007, name: A}]") == [("FC211", 1, 15)]
    assert found(FLAG % "description: 2026-01-31") == []


# Any bytes

PIECES = st.sampled_from(
    [
        *(
            "flags:",
            "segments:",
            "namespace:",
            "version:",
            "- ",
            "  ",
            "\n",
            ": ",
            "{",
            "}",
            "[",
            "]",
            ",",
            "&a ",
            "*a",
        ),
        *(
            "key: a",
            "name: A",
            "type: BOOLEAN_FLAG_TYPE",
            "rollouts:",
            "threshold: {percentage: 5}",
            "rules:",
            "<<: ",
        ),
        *(
            "constraints:",
            "operator: isoneof",
            "value: '[1e400]'",
            "attachment: ",
            "!!int ",
            "---",
            "\t",
            '"',
            "'",
            "|",
        ),
        *(
            "\ufeff",
            "\x00",
            "\x85",
            "é",
            "\ud7ff",
            "1e999",
            ".nan",
            "0777",
            "? ",
            "#",
            "%YAML 1.1",
            "...",
            "\r",
        ),
    ]
)


def assert_well_formed(findings: tuple[Finding, ...]) -> None:
    for each in findings:
        assert each.code in CATALOGUE
        assert each.line >= 1
        assert each.column >= 1
        assert each.message


@settings(max_examples=300, deadline=None)
@given(
    content=st.binary(max_size=200) | st.lists(PIECES, max_size=40).map(lambda parts: "".join(parts).encode())
)
def test_any_bytes_give_a_compilation(content: bytes) -> None:
    for name in ("features.yml", "features.json"):
        compilation = check([SourceFile(name, content)])
        assert_well_formed(compilation.findings)
        if compilation.has_errors:
            assert not compilation.namespaces


WORDS = st.sampled_from(
    [
        *("a", "s", "", "true", "eq", "isoneof", "gte", "1.0", "1.6", "ALL_MATCH_TYPE", "BOOLEAN_FLAG_TYPE"),
        *(
            "STRING_COMPARISON_TYPE",
            "NUMBER_COMPARISON_TYPE",
            "DATETIME_COMPARISON_TYPE",
            "[1, 2]",
            '["a"]',
            "[" * 2000,
        ),
        *("2026-01-31T00:00:00Z", "1e3", "nan", " x ", "\ud83d\ude00", "device.x", "\u2028"),
    ]
)
FIELDS = st.sampled_from(
    [
        *("version", "namespace", "flags", "segments", "key", "name", "enabled", "type", "variants", "rules"),
        *("rollouts", "segment", "keys", "operator", "distributions", "variant", "rollout", "threshold"),
        *("percentage", "value", "constraints", "property", "match_type", "attachment", "default", "rank"),
    ]
)
TREES = st.recursive(
    WORDS | st.none() | st.booleans() | st.integers(-5, 200) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=6),
    max_leaves=25,
)


@settings(max_examples=300, deadline=None)
@given(tree=st.dictionaries(FIELDS, TREES, max_size=4))
def test_any_tree_gives_a_compilation(tree: dict[str, object]) -> None:
    text = json.dumps(tree, ensure_ascii=False).encode("utf-8", "replace")
    assert_well_formed(check([SourceFile("features.yml", text)]).findings)
    assert_well_formed(check([SourceFile("features.json", text)]).findings)
