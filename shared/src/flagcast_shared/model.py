"""Flags and segments in the form that travels: compiled, immutable, Flipt's words.

Numbers that decide are integers (bucket bounds, percentages, instants), so that a device of any language only
hashes and compares. A word that this release does not know (a type, an operator) makes the whole record
Unsupported: its flag answers ERROR, and the rest of the snapshot works.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from .ids import FlagKey, SegmentKey, VariantKey


class ConstraintType(StrEnum):
    """What a constraint compares; the wire's words."""

    STRING = "string"
    NUMBER = "number"
    BOOLEAN = "boolean"
    DATETIME = "datetime"
    ENTITY = "entity"


class Operator(StrEnum):
    """How a constraint compares; Flipt's words."""

    EQ = "eq"
    NEQ = "neq"
    LT = "lt"
    LTE = "lte"
    GT = "gt"
    GTE = "gte"
    EMPTY = "empty"
    NOTEMPTY = "notempty"
    TRUE = "true"
    FALSE = "false"
    PRESENT = "present"
    NOTPRESENT = "notpresent"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    CONTAINS = "contains"
    NOTCONTAINS = "notcontains"
    ISONEOF = "isoneof"
    ISNOTONEOF = "isnotoneof"


class Match(StrEnum):
    """How a segment joins its constraints; one without constraints matches everyone under both."""

    ALL = "all"
    ANY = "any"


class Join(StrEnum):
    """How a rule or rollout joins its segments: AND over none matches everyone, OR over none nobody."""

    OR = "or"
    AND = "and"


class Instant(NamedTuple):
    """A point in time: whole seconds since 1970-01-01T00:00:00Z (negative before) and nanoseconds, 0 to 999,999,999."""

    seconds: int
    nanos: int


ConstraintValue = None | str | tuple[str, ...] | Instant
"""None: an operator without a value. str: also numbers, as text that reads back as the same float64. tuple: a list."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """One comparison of a property of the context ("" for the entity id) with a value."""

    type: ConstraintType
    property: str
    operator: Operator
    value: ConstraintValue = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A named group of entities."""

    key: SegmentKey
    match: Match
    constraints: tuple[Constraint, ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the answers of a variant flag; the attachment is JSON text, "" when there is none."""

    key: VariantKey
    attachment: str = ""


@dataclass(frozen=True, slots=True)
class Distribution:
    """A share of the buckets 0 to 999: those from the previous distribution's bound up to, not including, this one's."""

    variant: VariantKey
    bound: int


@dataclass(frozen=True, slots=True)
class Rule:
    """A variant flag's rule; without distributions a match leaves the default variant, or none."""

    segments: tuple[SegmentKey, ...]
    join: Join
    distributions: tuple[Distribution, ...]


@dataclass(frozen=True, slots=True)
class ThresholdRollout:
    """Gives `value` to the entities whose bucket (0 to 99) is below `percentage` (an integer, 0 to 100)."""

    percentage: int
    value: bool


@dataclass(frozen=True, slots=True)
class SegmentRollout:
    """Gives `value` to the entities in the segments."""

    segments: tuple[SegmentKey, ...]
    join: Join
    value: bool


Rollout = ThresholdRollout | SegmentRollout


@dataclass(frozen=True, slots=True)
class BooleanFlag:
    """On or off by rollouts in order; `enabled` is the answer when none of them matches.

    `metadata` is a JSON object as text, "" when there is none: it stays text until somebody asks for it.
    """

    key: FlagKey
    enabled: bool
    rollouts: tuple[Rollout, ...] = ()
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class VariantFlag:
    """One of several variants by rules in order; `metadata` as of a BooleanFlag."""

    key: FlagKey
    enabled: bool
    variants: tuple[Variant, ...] = ()
    default: VariantKey | None = None
    rules: tuple[Rule, ...] = ()
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class UnsupportedFlag:
    """A flag of a newer publisher, with the word that this release does not know."""

    key: FlagKey
    why: str


@dataclass(frozen=True, slots=True)
class UnsupportedSegment:
    """A segment of a newer publisher, with the word that this release does not know."""

    key: SegmentKey
    why: str


@dataclass(frozen=True, slots=True)
class UnsupportedRecord:
    """A record of a kind that this release does not know; kept, and part of the digest."""

    kind: str
    key: str


Flag = BooleanFlag | VariantFlag | UnsupportedFlag
AnySegment = Segment | UnsupportedSegment
Entry = Flag | AnySegment | UnsupportedRecord
