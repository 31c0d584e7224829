"""What an evaluation answers: Flipt's reasons and fields, and what OpenFeature calls the same."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from .ids import FlagKey, SegmentKey, VariantKey


class Reason(StrEnum):
    """Why a flag has its answer, in Flipt's words; ERROR is for the caller's default."""

    UNKNOWN = "unknown"
    FLAG_DISABLED = "flag_disabled"
    MATCH = "match"
    DEFAULT = "default"
    ERROR = "error"


class Resolution(StrEnum):
    """Why a flag has its answer, in OpenFeature's words.

    STATIC: no context and no entity could change it. DISABLED: a variant flag that is off; a boolean flag's off is a value.
    """

    STATIC = "STATIC"
    DEFAULT = "DEFAULT"
    TARGETING_MATCH = "TARGETING_MATCH"
    SPLIT = "SPLIT"
    DISABLED = "DISABLED"


@dataclass(frozen=True, slots=True)
class BooleanAnswer:
    """The answer of a boolean flag; `segment_keys` are the segments that matched, in the order of the file."""

    flag_key: FlagKey
    enabled: bool
    reason: Reason
    segment_keys: tuple[SegmentKey, ...]
    resolution: Resolution


@dataclass(frozen=True, slots=True)
class VariantAnswer:
    """The answer of a variant flag: `variant_key` and `attachment` (JSON text) are "" when there is none.

    `match` says whether a rule matched. A disabled flag still carries its default variant, with FLAG_DISABLED.
    """

    flag_key: FlagKey
    match: bool
    variant_key: str
    attachment: str
    reason: Reason
    segment_keys: tuple[SegmentKey, ...]
    resolution: Resolution


Answer = BooleanAnswer | VariantAnswer

AGENT_METADATA: Final = frozenset({"namespace", "epoch", "version", "age_seconds", "stale", "clock_trusted"})
"""Names in an answer's metadata that are the agent's: a flag's own metadata under such a name is left out."""

NO_VARIANT = VariantKey("")
"""The variant key of an answer without a variant."""
