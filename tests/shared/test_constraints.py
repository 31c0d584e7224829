"""One row per operator and edge, by the semantics of Flipt's v2 server."""

import pytest

from flagcast_shared.constraints import (
    TAKES,
    Takes,
    always,
    compile_constraint,
    never,
    seen_value,
    value_test,
)
from flagcast_shared.literals import parse_instant
from flagcast_shared.model import Constraint, ConstraintType, ConstraintValue, Operator

STRING, NUMBER, BOOLEAN, DATETIME, ENTITY = (
    ConstraintType.STRING,
    ConstraintType.NUMBER,
    ConstraintType.BOOLEAN,
    ConstraintType.DATETIME,
    ConstraintType.ENTITY,
)

# Operator, its value, what it holds of, what it does not hold of. "" is also a missing property.
TEXT_ROWS: list[tuple[str, ConstraintValue, list[str], list[str]]] = [
    ("eq", "pro", ["pro"], ["", "Pro", " pro", "pro ", "prof", "pr"]),
    ("eq", "", [], ["", "x", " "]),
    ("eq", "größe", ["größe"], ["gro\u0308ße", ""]),  # no normalisation
    ("neq", "pro", ["Pro", " pro", "x", " "], ["", "pro"]),
    ("neq", "", ["x", " "], [""]),
    ("empty", None, ["", " ", "\t\n", "\u3000", "\x85", "\xa0"], ["x", "\x1c", "\u200b", "\ufeff", " x "]),
    ("notempty", None, ["x", " x ", "\x1c", "\u200b"], ["", " ", "\t\n", "\u3000"]),
    ("prefix", "ab", ["ab", "abc", " abc", "\u3000ab"], ["", "xab", "a", "Ab", "\x1cab"]),
    ("prefix", "", ["x", " "], [""]),
    ("prefix", " a", [], ["", " a", "a"]),  # the value is trimmed, the constraint's is not
    ("suffix", "ab", ["ab", "xab", "xab ", "xab\n"], ["", "abx", "b", "xAb", "ab\x1f"]),
    ("suffix", "", ["x", " "], [""]),
    ("contains", "ab", ["ab", "xabx", " ab "], ["", "a b", "Ab"]),
    ("contains", " ", ["a b", " "], ["", "ab"]),  # nothing is trimmed
    ("contains", "", ["x"], [""]),
    ("notcontains", "ab", ["x", "a b", "Ab"], ["", "ab", "xabx"]),
    ("notcontains", "", [], ["", "x"]),
    ("isoneof", ("a", "b c", "🎈"), ["a", "b c", "🎈"], ["", "b", "A", " a"]),
    ("isoneof", (), [], ["", "x"]),
    ("isoneof", ("",), [], ["", " "]),
    ("isnotoneof", ("a", "b c"), ["b", "A", " a", " "], ["", "a", "b c"]),
    ("isnotoneof", (), ["x"], [""]),
    ("isnotoneof", ("",), ["x"], [""]),
]

NUMBER_ROWS: list[tuple[str, ConstraintValue, list[str], list[str]]] = [
    ("eq", "1.5", ["1.5", "1.50", "15e-1", "0x1.8p0", "+1.5"], ["", "1.4", " 1.5", "1,5", "x", "nan"]),
    ("eq", "1000.0", ["1000", "1e3", "1_000"], ["", "1000.1", "1__000"]),
    ("eq", "9007199254740992.0", ["9007199254740993", "9007199254740992"], ["9007199254740994", ""]),
    ("eq", "0.0", ["-0", "0", "1e-400"], ["", "1e-300"]),
    ("eq", "nan", [], ["", "nan", "0"]),
    ("eq", "inf", ["inf", "+Infinity"], ["", "1e309", "-inf", "nan"]),
    ("neq", "1.0", ["2", "-1", "nan", "inf"], ["", "1", "1.0", "x", " 2", "1e309"]),
    ("neq", "nan", ["nan", "0"], ["", "x"]),
    ("lt", "10.0", ["9.999", "-inf", "-1"], ["", "10", "11", "nan", "x", "inf"]),
    ("lte", "10.0", ["10", "9"], ["", "10.0000001", "nan", "x"]),
    ("gt", "10.0", ["10.5", "inf", "1e300"], ["", "10", "9", "nan", "x", "1e309"]),
    ("gte", "10.0", ["10", "11"], ["", "9.9", "nan", "x", " 10"]),
    ("gt", "-inf", ["0", "-1e308"], ["", "-inf", "nan"]),
    ("isoneof", ("1.0", "2.5"), ["1", "2.5", "25e-1"], ["", "2", "x", " 1", "nan"]),
    ("isoneof", ("nan",), [], ["", "nan", "1"]),
    ("isoneof", (), [], ["", "1"]),
    ("isnotoneof", ("1.0", "2.5"), ["2", "nan", "inf"], ["", "1", "2.5", "x", " 2"]),
    ("isnotoneof", ("nan",), ["nan", "1"], ["", "x"]),
    ("present", None, ["1", "x", " 1 ", "\x1c"], ["", " ", "\u3000"]),
    ("notpresent", None, ["", " ", "\n"], ["0", "x", "\x1c"]),
]

BOOLEAN_ROWS: list[tuple[str, ConstraintValue, list[str], list[str]]] = [
    ("true", None, ["1", "t", "T", "TRUE", "true", "True"], ["", "0", "false", "tRUE", "yes", " true"]),
    ("false", None, ["0", "f", "F", "FALSE", "false", "False"], ["", "1", "true", "fALSE", "no", "false "]),
    ("present", None, ["false", "x"], ["", " "]),
    ("notpresent", None, ["", " "], ["false", "x"]),
]

DAY = parse_instant("2024-03-01")
HALF = parse_instant("2024-03-01T00:00:00.5Z")
DATETIME_ROWS: list[tuple[str, ConstraintValue, list[str], list[str]]] = [
    (
        "eq",
        DAY,
        ["2024-03-01", "2024-03-01T00:00:00Z", "2024-03-01T01:00:00+01:00", "2024-03-01T0:00:00.0Z"],
        ["", "2024-03-01T00:00:00.000000001Z", "2024-03-02", "2024-03-01T00:00:00", "x", " 2024-03-01"],
    ),
    ("neq", DAY, ["2024-03-02", "2024-03-01T00:00:00.1Z"], ["", "2024-03-01", "x", "2024-02-30"]),
    ("lt", HALF, ["2024-03-01", "2024-03-01T00:00:00.4Z", "0000-01-01"], ["", "2024-03-01T00:00:00.5Z", "x"]),
    ("lte", HALF, ["2024-03-01T00:00:00.5Z", "2024-03-01"], ["", "2024-03-01T00:00:00.500000001Z", "x"]),
    ("gt", HALF, ["2024-03-01T00:00:00.6Z", "9999-12-31"], ["", "2024-03-01T00:00:00.5Z", "2024-03-01", "x"]),
    ("gte", HALF, ["2024-03-01T00:00:00.5Z", "2024-03-02"], ["", "2024-03-01T00:00:00.499999999Z", "x"]),
    ("present", None, ["x", "2024-03-01"], ["", " "]),
    ("notpresent", None, ["", " "], ["x", "2024-03-01"]),
]

ROWS = [
    (type_, Operator(operator), value, seen, holds)
    for type_, rows in (
        (STRING, TEXT_ROWS),
        (ENTITY, TEXT_ROWS),
        (NUMBER, NUMBER_ROWS),
        (BOOLEAN, BOOLEAN_ROWS),
        (DATETIME, DATETIME_ROWS),
    )
    for operator, value, holding, not_holding in rows
    for holds, listed in ((True, holding), (False, not_holding))
    for seen in listed
]


@pytest.mark.parametrize(("type_", "operator", "value", "seen", "holds"), ROWS)
def test_an_operator_holds_as_on_the_server(
    type_: ConstraintType, operator: Operator, value: ConstraintValue, seen: str, *, holds: bool
) -> None:
    constraint = Constraint(type_, "p", operator, value)
    assert value_test(constraint)(seen) is holds
    predicate = compile_constraint(constraint, {})
    if type_ is ENTITY:
        assert predicate(seen, {"p": "other"}) is holds  # the property is ignored
        assert seen_value(constraint, {}, seen, {"p": "other"}) == seen
    else:
        assert predicate("entity", {"p": seen}) is holds
        assert seen_value(constraint, {}, "entity", {"p": seen}) == seen
        if seen == "":
            assert predicate("entity", {}) is holds  # missing is empty
            assert seen_value(constraint, {}, "entity", {}) == ""


def test_every_operator_has_rows() -> None:
    assert {(type_, operator) for type_, operator, *_ in ROWS} == set(TAKES)


def test_the_table_is_flipts() -> None:
    rows = {(str(type_), str(operator)): takes for (type_, operator), takes in TAKES.items()}
    ordered = ("eq", "neq", "lt", "lte", "gt", "gte")
    texts = ("eq", "neq", "prefix", "suffix", "contains", "notcontains")
    lists = ("isoneof", "isnotoneof")
    expected = {(type_, operator): Takes.TEXT for type_ in ("string", "entity") for operator in texts}
    expected |= {(type_, operator): Takes.TEXTS for type_ in ("string", "entity") for operator in lists}
    expected |= {
        (type_, operator): Takes.NONE for type_ in ("string", "entity") for operator in ("empty", "notempty")
    }
    expected |= {("number", operator): Takes.NUMBER for operator in ordered}
    expected |= {("number", operator): Takes.NUMBERS for operator in lists}
    expected |= {("datetime", operator): Takes.INSTANT for operator in ordered}
    expected |= {("boolean", operator): Takes.NONE for operator in ("true", "false")}
    for type_ in ("number", "boolean", "datetime"):
        expected |= {(type_, operator): Takes.NONE for operator in ("present", "notpresent")}
    assert rows == expected


@pytest.mark.parametrize(
    ("type_", "operator", "value", "seen", "holds"), [row for row in ROWS if row[0] is not ENTITY]
)
def test_a_device_property_is_decided_once_and_cannot_be_overridden(
    type_: ConstraintType, operator: Operator, value: ConstraintValue, seen: str, *, holds: bool
) -> None:
    constraint = Constraint(type_, "device.label.line", operator, value)
    predicate = compile_constraint(constraint, {"device.label.line": seen})
    assert predicate is (always if holds else never)
    for other in ("", "pro", "1", "true"):
        assert predicate("entity", {"device.label.line": other}) is holds
        assert (
            seen_value(constraint, {"device.label.line": seen}, "entity", {"device.label.line": other})
            == seen
        )


def test_a_device_attribute_that_is_not_provisioned_is_missing_whatever_the_caller_says() -> None:
    constraint = Constraint(STRING, "device.model", Operator.EQ, "x")
    assert compile_constraint(constraint, {})("entity", {"device.model": "x"}) is False
    empty = Constraint(STRING, "device.model", Operator.EMPTY)
    assert compile_constraint(empty, {})("entity", {"device.model": "x"}) is True


def test_only_the_prefix_with_its_full_stop_belongs_to_the_device() -> None:
    constraint = Constraint(STRING, "devices", Operator.EQ, "x")
    assert compile_constraint(constraint, {"devices": "y"})("entity", {"devices": "x"}) is True


def test_an_entity_constraint_sees_the_entity_even_under_a_device_property() -> None:
    constraint = Constraint(ENTITY, "device.id", Operator.EQ, "me")
    assert compile_constraint(constraint, {"device.id": "you"})("me", {}) is True
