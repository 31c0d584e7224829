"""What a constraint compares, and the predicate that one constraint becomes.

`TAKES` is the one table of which operators exist for which type and what value each carries; the publisher's
compiler, the codec and the evaluation read it, so that none of them can know an operator that another does not.
Results are those of Flipt's v2 server; a property that is missing from the context is the empty text.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from operator import eq, ge, gt, le, lt, ne
from types import MappingProxyType
from typing import Any, Final

from .context import DEVICE_PREFIX
from .literals import parse_bool, parse_float, parse_instant, trim_space
from .model import Constraint, ConstraintType, Instant, Operator

Context = Mapping[str, str]
"""The evaluation context of one call: property to text."""

Predicate = Callable[[str, Context], bool]
"""Whether something holds of an entity id and its context."""

ValueTest = Callable[[str], bool]
"""Whether a constraint holds of one value; "" is a missing one."""


class Takes(StrEnum):
    """The form of a compiled constraint's value."""

    NONE = "none"
    """`None`: the operator compares with nothing."""
    TEXT = "text"
    """`str`, compared as it is."""
    NUMBER = "number"
    """`str` that reads back as one float64 (`literals.format_float`)."""
    INSTANT = "instant"
    """`Instant`."""
    TEXTS = "texts"
    """`tuple[str, ...]`, compared as they are."""
    NUMBERS = "numbers"
    """`tuple[str, ...]` of number texts."""


_TEXT_OPERATORS = {
    Operator.EQ: Takes.TEXT,
    Operator.NEQ: Takes.TEXT,
    Operator.EMPTY: Takes.NONE,
    Operator.NOTEMPTY: Takes.NONE,
    Operator.PREFIX: Takes.TEXT,
    Operator.SUFFIX: Takes.TEXT,
    Operator.CONTAINS: Takes.TEXT,
    Operator.NOTCONTAINS: Takes.TEXT,
    Operator.ISONEOF: Takes.TEXTS,
    Operator.ISNOTONEOF: Takes.TEXTS,
}
_ORDER_OPERATORS = (Operator.EQ, Operator.NEQ, Operator.LT, Operator.LTE, Operator.GT, Operator.GTE)
_PRESENCE = {Operator.PRESENT: Takes.NONE, Operator.NOTPRESENT: Takes.NONE}

_BY_TYPE: dict[ConstraintType, dict[Operator, Takes]] = {
    ConstraintType.STRING: _TEXT_OPERATORS,
    ConstraintType.ENTITY: _TEXT_OPERATORS,
    ConstraintType.NUMBER: {
        **dict.fromkeys(_ORDER_OPERATORS, Takes.NUMBER),
        Operator.ISONEOF: Takes.NUMBERS,
        Operator.ISNOTONEOF: Takes.NUMBERS,
        **_PRESENCE,
    },
    ConstraintType.BOOLEAN: {Operator.TRUE: Takes.NONE, Operator.FALSE: Takes.NONE, **_PRESENCE},
    ConstraintType.DATETIME: {**dict.fromkeys(_ORDER_OPERATORS, Takes.INSTANT), **_PRESENCE},
}

TAKES: Mapping[tuple[ConstraintType, Operator], Takes] = MappingProxyType(
    {(type_, operator): takes for type_, row in _BY_TYPE.items() for operator, takes in row.items()}
)
"""Every pair of type and operator that exists, and the form of its value. A pair that is not here is unknown."""


def always(entity_id: str, context: Context) -> bool:  # noqa: ARG001 - the signature of a predicate
    """The predicate that holds of everyone."""
    return True


def never(entity_id: str, context: Context) -> bool:  # noqa: ARG001 - the signature of a predicate
    """The predicate that holds of nobody."""
    return False


def compile_constraint(constraint: Constraint, device: Context) -> Predicate:
    """The predicate of one constraint; `always` or `never` themselves where the context cannot change it.

    A property under `device.` is looked up in `device` and nowhere else, so a caller cannot override it. A pair of
    type and operator that is not in `TAKES`, or a value of another form, is a programming error of the caller.
    """
    test = value_test(constraint)
    if constraint.type is ConstraintType.ENTITY:
        return lambda entity_id, context: test(entity_id)  # noqa: ARG005 - the signature of a predicate
    if constraint.property.startswith(DEVICE_PREFIX):
        return always if test(device.get(constraint.property, "")) else never
    inline = _INLINE.get((constraint.type, constraint.operator))
    if inline is not None:
        return inline(constraint.property, constraint.value)
    name = constraint.property
    return lambda entity_id, context: test(context.get(name, ""))  # noqa: ARG005 - as above


def seen_value(constraint: Constraint, device: Context, entity_id: str, context: Context) -> str:
    """The value that the constraint compares for this entity, "" when there is none."""
    if constraint.type is ConstraintType.ENTITY:
        return entity_id
    source = device if constraint.property.startswith(DEVICE_PREFIX) else context
    return source.get(constraint.property, "")


def value_test(constraint: Constraint) -> ValueTest:
    """Whether the constraint holds of a value: the definition of every operator."""
    return _TESTS[constraint.type, constraint.operator](constraint.value)


def _number(text: str) -> float:
    number = parse_float(text)
    assert number is not None, "a compiled constraint's number reads back"
    return number


# One function per operator: from the constraint's value to the test of a context's value. Apart from `empty` and
# `notpresent`, no operator holds of an empty value, not even a negated one.


def _eq(value: str) -> ValueTest:
    return lambda v: v == value != ""


def _neq(value: str) -> ValueTest:
    return lambda v: v != "" and v != value  # noqa: PLR1714 - two questions, not one of membership


def _blank(_: None) -> ValueTest:
    return lambda v: trim_space(v) == ""


def _not_blank(_: None) -> ValueTest:
    return lambda v: trim_space(v) != ""


def _prefix(value: str) -> ValueTest:
    return lambda v: v != "" and trim_space(v).startswith(value)


def _suffix(value: str) -> ValueTest:
    return lambda v: v != "" and trim_space(v).endswith(value)


def _contains(value: str) -> ValueTest:
    return lambda v: v != "" and value in v


def _not_contains(value: str) -> ValueTest:
    return lambda v: v != "" and value not in v


def _one_of(values: tuple[str, ...]) -> ValueTest:
    listed = frozenset(values) - {""}
    return lambda v: v in listed


def _not_one_of(values: tuple[str, ...]) -> ValueTest:
    listed = frozenset(values) | {""}
    return lambda v: v not in listed


def _true(_: None) -> ValueTest:
    return lambda v: parse_bool(v) is True


def _false(_: None) -> ValueTest:
    return lambda v: parse_bool(v) is False


def _compare_number(compare: Callable[[float, float], bool]) -> Callable[[str], ValueTest]:
    def of(value: str) -> ValueTest:
        bound = _number(value)

        def test(v: str) -> bool:
            number = parse_float(v)
            return number is not None and compare(number, bound)

        return test

    return of


def _number_one_of(values: tuple[str, ...]) -> ValueTest:
    # A tuple is searched by `is` first, which would find a nan; Go compares, and nan equals nothing.
    listed = frozenset(number for number in map(_number, values) if number == number)  # noqa: PLR0124

    def test(v: str) -> bool:
        return parse_float(v) in listed

    return test


def _number_not_one_of(values: tuple[str, ...]) -> ValueTest:
    listed = frozenset(number for number in map(_number, values) if number == number)  # noqa: PLR0124

    def test(v: str) -> bool:
        number = parse_float(v)
        return number is not None and number not in listed

    return test


def _compare_instant(compare: Callable[[Instant, Instant], bool]) -> Callable[[Instant], ValueTest]:
    def of(value: Instant) -> ValueTest:
        def test(v: str) -> bool:
            instant = parse_instant(v)
            return instant is not None and compare(instant, value)

        return test

    return of


_COMPARISONS: Final = {
    Operator.EQ: eq,
    Operator.NEQ: ne,
    Operator.LT: lt,
    Operator.LTE: le,
    Operator.GT: gt,
    Operator.GTE: ge,
}
_TEXT_TESTS: Final[dict[Operator, Callable[[Any], ValueTest]]] = {
    Operator.EQ: _eq,
    Operator.NEQ: _neq,
    Operator.EMPTY: _blank,
    Operator.NOTEMPTY: _not_blank,
    Operator.PREFIX: _prefix,
    Operator.SUFFIX: _suffix,
    Operator.CONTAINS: _contains,
    Operator.NOTCONTAINS: _not_contains,
    Operator.ISONEOF: _one_of,
    Operator.ISNOTONEOF: _not_one_of,
}
_PRESENCE_TESTS: Final[dict[Operator, Callable[[Any], ValueTest]]] = {
    Operator.PRESENT: _not_blank,
    Operator.NOTPRESENT: _blank,
}
_TESTS_BY_TYPE: Final[dict[ConstraintType, dict[Operator, Callable[[Any], ValueTest]]]] = {
    ConstraintType.STRING: _TEXT_TESTS,
    ConstraintType.ENTITY: _TEXT_TESTS,
    ConstraintType.NUMBER: {
        **{operator: _compare_number(compare) for operator, compare in _COMPARISONS.items()},
        Operator.ISONEOF: _number_one_of,
        Operator.ISNOTONEOF: _number_not_one_of,
        **_PRESENCE_TESTS,
    },
    ConstraintType.BOOLEAN: {Operator.TRUE: _true, Operator.FALSE: _false, **_PRESENCE_TESTS},
    ConstraintType.DATETIME: {
        **{operator: _compare_instant(compare) for operator, compare in _COMPARISONS.items()},
        **_PRESENCE_TESTS,
    },
}
_TESTS: Final[dict[tuple[ConstraintType, Operator], Callable[[Any], ValueTest]]] = {
    (type_, operator): test for type_, row in _TESTS_BY_TYPE.items() for operator, test in row.items()
}
assert _TESTS.keys() == TAKES.keys(), "every operator of the table has a test, and no other"


# The most frequent operators once more, with the look-up and the comparison in one function: a call saved is a tenth
# of a microsecond. The tests hold them to the definitions above.


def _inline_eq(name: str, value: str) -> Predicate:
    if value == "":
        return never
    return lambda entity_id, context: context.get(name) == value  # noqa: ARG005 - as above


def _inline_neq(name: str, value: str) -> Predicate:
    return lambda entity_id, context: context.get(name, "") not in ("", value)  # noqa: ARG005 - as above


def _inline_one_of(name: str, values: tuple[str, ...]) -> Predicate:
    listed = frozenset(values) - {""}
    return lambda entity_id, context: context.get(name) in listed  # noqa: ARG005 - as above


def _inline_not_one_of(name: str, values: tuple[str, ...]) -> Predicate:
    listed = frozenset(values) | {""}
    return lambda entity_id, context: context.get(name, "") not in listed  # noqa: ARG005 - as above


def _inline_number(compare: Callable[[float, float], bool]) -> Callable[[str, str], Predicate]:
    def of(name: str, value: str) -> Predicate:
        bound = _number(value)

        def predicate(entity_id: str, context: Context) -> bool:  # noqa: ARG001 - as above
            number = parse_float(context.get(name, ""))
            return number is not None and compare(number, bound)

        return predicate

    return of


_INLINE: Final[dict[tuple[ConstraintType, Operator], Callable[[str, Any], Predicate]]] = {
    (ConstraintType.STRING, Operator.EQ): _inline_eq,
    (ConstraintType.STRING, Operator.NEQ): _inline_neq,
    (ConstraintType.STRING, Operator.ISONEOF): _inline_one_of,
    (ConstraintType.STRING, Operator.ISNOTONEOF): _inline_not_one_of,
    **{
        (ConstraintType.NUMBER, operator): _inline_number(compare)
        for operator, compare in _COMPARISONS.items()
    },
}
