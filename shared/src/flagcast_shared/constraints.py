"""What a constraint compares, and the predicate that one constraint becomes.

`TAKES` is the one table of which operators exist for which type and what value each carries; the publisher's
compiler, the codec and the evaluation read it, so that none of them can know an operator that another does not.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from .model import ConstraintType, Operator


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
