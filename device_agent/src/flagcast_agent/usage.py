"""How often which flag answered what: counted in memory, taken away in whole.

Counted are answers alone, by words that the publisher wrote: namespace, flag, variant, reason. No entity id and no context ever
reaches this module, and a flag that does not exist is not counted, because its name would be the caller's word.
"""

from typing import TYPE_CHECKING, Final

from flagcast_shared.answers import Answer, BooleanAnswer
from flagcast_shared.ids import FlagKey, Namespace

if TYPE_CHECKING:
    from flagcast_shared.reports import Count  # imported when there is something to report

TALLY_MAX_COUNTS: Final = 50_000
"""Different answers counted in one span, about 10 MB; 10,000 flags with five each. Further ones only count as dropped."""

_Key = tuple[Namespace, FlagKey, str | bool, str]


class Tally:
    """Counts answers; for one thread."""

    __slots__ = ("_counts", "_dropped")

    def __init__(self) -> None:
        self._counts: dict[_Key, int] = {}
        self._dropped = 0

    def count(self, namespace: Namespace, answer: Answer) -> None:
        """One more evaluation that was answered so."""
        value = answer.enabled if type(answer) is BooleanAnswer else answer.variant_key  # type: ignore[union-attr]  # narrowed by type() for speed
        key = (namespace, answer.flag_key, value, answer.reason)
        counts = self._counts
        seen = counts.get(key)
        if seen is not None:
            counts[key] = seen + 1
        elif len(counts) < TALLY_MAX_COUNTS:
            counts[key] = 1
        else:
            self._dropped += 1

    def take(self) -> "tuple[tuple[Count, ...], int]":
        """The counts since the last call, in order, and how many evaluations are in none of them."""
        from flagcast_shared.reports import Count, may_travel

        counts, dropped = self._counts, self._dropped
        self._counts, self._dropped = {}, 0
        rows: dict[tuple[Namespace, FlagKey, str, str], int] = {}
        for (namespace, flag, value, reason), evaluations in counts.items():
            # A flag that has become one of variants may have answered true, and then a variant called "true".
            row = (namespace, flag, _word(value), str(reason))
            rows[row] = rows.get(row, 0) + evaluations
        merged = [Count(*row, evaluations) for row, evaluations in rows.items()]
        # A collector refuses a batch whole that holds one name outside its alphabet.
        travelling = sorted(row for row in merged if may_travel(row))
        dropped += sum(row.evaluations for row in merged) - sum(row.evaluations for row in travelling)
        return tuple(travelling), dropped


def _word(value: str | bool) -> str:  # noqa: FBT001  # a value to write down, not a switch
    if isinstance(value, bool):
        return "true" if value else "false"
    return value
