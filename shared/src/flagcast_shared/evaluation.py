"""The flags of one namespace, compiled: every answer of Flipt's v2 server, at the price of a function call.

Each flag becomes one closure over predicates and prepared answers; nothing is copied, and an entity is hashed only
where a threshold or a distribution is reached. A compiled form never changes: `update` makes another one that
shares all that did not change, so any number of threads may ask while another one activates.

A flag that uses a word this release does not know, or refers to a segment or variant that is not there, is not
usable: asking for it raises FlagNotUsable, and all other flags work.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby, pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Generic, NamedTuple, Self, TypeVar
from zlib import crc32

from .answers import NO_VARIANT, Answer, BooleanAnswer, Reason, Resolution, VariantAnswer
from .bucketing import BOOLEAN_BUCKETS, VARIANT_BUCKETS
from .constraints import TAKES, Context, Predicate, always, compile_constraint, never
from .context import DEVICE_PREFIX
from .errors import FlagNotFound, FlagNotUsable, InvalidCall, TypeMismatch
from .ids import FlagKey, RecordId, SegmentKey, VariantKey
from .model import (
    AnySegment,
    BooleanFlag,
    Constraint,
    ConstraintType,
    Entry,
    Flag,
    Join,
    Match,
    Operator,
    Rule,
    Segment,
    ThresholdRollout,
    UnsupportedFlag,
    UnsupportedRecord,
    UnsupportedSegment,
    VariantFlag,
)

if TYPE_CHECKING:
    # Imported when there is something to explain: an agent and an application start without it.
    from .explanation import Explanation

__all__ = [
    "Answer",
    "BooleanAnswer",
    "CompiledFlags",
    "FlagState",
    "FlagType",
    "Reason",
    "Resolution",
    "VariantAnswer",
    "compile_flags",
]


class FlagType(StrEnum):
    """What a flag answers; UNKNOWN for one that uses a word this release does not know."""

    BOOLEAN = "boolean"
    VARIANT = "variant"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class FlagState:
    """One line of the listing; `problem` says why a flag is not usable, "" for one that is."""

    type: FlagType
    enabled: bool
    problem: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether asking for the flag gives an answer."""
        return not self.problem


class CompiledFlags:
    """One namespace, ready to be asked; immutable. Made by `compile_flags` and `update`."""

    __slots__ = (
        "_booleans",
        "_conditions",
        "_device",
        "_flags",
        "_segments",
        "_splits",
        "_states",
        "_users",
        "_variants",
    )

    def __init__(self, device: Context) -> None:
        self._device: Context = MappingProxyType(dict(device))
        self._flags: dict[FlagKey, Flag] = {}
        self._segments: dict[SegmentKey, AnySegment] = {}
        self._conditions: dict[SegmentKey, _Condition] = {}
        self._users: dict[SegmentKey, frozenset[FlagKey]] = {}
        self._states: dict[FlagKey, FlagState] = {}
        self._booleans: dict[str, _Boolean] = {}
        self._variants: dict[str, _Variant] = {}
        # Filled as questions without an entity come; most flags and most applications never need an entry.
        self._splits: dict[str, Predicate] = {}

    def boolean(self, flag_key: str, entity_id: str, context: Context) -> BooleanAnswer:
        """The answer of a boolean flag for an entity (which may be "") and its context.

        Raises:
            FlagNotFound: no flag of this key.
            TypeMismatch: it is a variant flag.
            FlagNotUsable: it, or a segment of it, cannot be evaluated by this release.
            InvalidCall: the entity id is not Unicode text (it holds a lone surrogate).
        """
        ask = self._booleans.get(flag_key)
        if ask is None:
            raise self._refusal(flag_key, FlagType.BOOLEAN)
        try:
            return ask(entity_id, context)
        except UnicodeEncodeError as error:
            raise InvalidCall(f"entity id {entity_id!r} is not Unicode text") from error

    def variant(self, flag_key: str, entity_id: str, context: Context) -> VariantAnswer:
        """The answer of a variant flag; arguments and errors as of `boolean`."""
        ask = self._variants.get(flag_key)
        if ask is None:
            raise self._refusal(flag_key, FlagType.VARIANT)
        try:
            return ask(entity_id, context)
        except UnicodeEncodeError as error:
            raise InvalidCall(f"entity id {entity_id!r} is not Unicode text") from error

    def needs_entity(self, flag_key: str, context: Context) -> bool:
        """Whether a question without an entity reaches a percentage: a split that the entity would decide.

        That is a threshold between 0 and 100, or a rule with more than one variant whose share is above zero. False for a
        flag that has no answer. The answer itself stays Flipt's: an empty entity id has a bucket like any other.
        """
        reaches = self._splits.get(flag_key)
        if reaches is None:
            flag = self._flags.get(FlagKey(flag_key))
            if flag is None or not self._states[flag.key].is_usable:
                return False
            reaches = self._splits[flag_key] = _compile_split(flag, self._conditions)
        return reaches("", context)

    def explain(self, flag_key: str, entity_id: str, context: Context) -> "Explanation":
        """Step by step why the entity gets its answer, for a flag of either type; errors as of `boolean`."""
        from .explanation import explain_boolean, explain_variant

        flag = self._flags.get(FlagKey(flag_key))
        if not isinstance(flag, BooleanFlag | VariantFlag) or not self._states[flag.key].is_usable:
            raise self._refusal(flag_key, None)
        segments = {
            key: segment for key in _segments_of(flag) if isinstance(segment := self._segments[key], Segment)
        }
        try:
            if isinstance(flag, BooleanFlag):
                return explain_boolean(flag, segments, self._device, entity_id, context)
            return explain_variant(flag, segments, self._device, entity_id, context)
        except UnicodeEncodeError as error:
            raise InvalidCall(f"entity id {entity_id!r} is not Unicode text") from error

    @property
    def flags(self) -> Mapping[FlagKey, FlagState]:
        """Every flag with its type, whether it is enabled, and whether it is usable."""
        return MappingProxyType(self._states)

    def metadata(self, flag_key: str) -> str:
        """A flag's own metadata, a JSON object as text; "" for none, and for a flag that is not there."""
        flag = self._flags.get(FlagKey(flag_key))
        return flag.metadata if isinstance(flag, BooleanFlag | VariantFlag) else ""

    def update(self, changed: Iterable[Entry], removed: Iterable[RecordId]) -> "CompiledFlags":
        """Another compiled form, in which these records are other ones or gone; this one stays as it is.

        Compiled anew are the changed records and the flags that refer to a changed or removed segment. A record
        that is both removed and changed is there afterwards.
        """
        return self._copy()._with(changed, removed)  # noqa: SLF001 - of this class

    def changed_since(self, earlier: "CompiledFlags") -> frozenset[FlagKey]:
        """The flags that came, went or were compiled anew between an earlier form of these flags and this one.

        A flag that refers to a changed segment is among them. Of two forms that share nothing, all flags are.
        """
        before = earlier._states  # noqa: SLF001 - of this class
        # Compiling a flag makes a new state.
        changed = {key for key, state in self._states.items() if before.get(key) is not state}
        return frozenset(changed | (before.keys() - self._states.keys()))

    def _copy(self) -> "CompiledFlags":
        copy = CompiledFlags(self._device)
        for name in self.__slots__:
            if name != "_device":
                setattr(copy, name, getattr(self, name).copy())
        return copy

    def _with(self, changed: Iterable[Entry], removed: Iterable[RecordId]) -> Self:
        # Only ever called on a form that nobody else has seen yet.
        stale_flags: set[FlagKey] = set()
        stale_segments: set[SegmentKey] = set()
        for kind, key in removed:
            if kind == "flag":
                stale_flags.add(FlagKey(key))
                self._set_flag(FlagKey(key), None)
            elif kind == "segment":
                stale_segments.add(SegmentKey(key))
                self._segments.pop(SegmentKey(key), None)
        for entry in changed:
            match entry:
                case BooleanFlag() | VariantFlag() | UnsupportedFlag():
                    stale_flags.add(entry.key)
                    self._set_flag(entry.key, entry)
                case Segment() | UnsupportedSegment():
                    stale_segments.add(entry.key)
                    self._segments[entry.key] = entry
                case UnsupportedRecord():
                    pass
        for segment_key in stale_segments:
            self._compile_segment(segment_key)
            stale_flags.update(self._users.get(segment_key, ()))
        for flag_key in stale_flags:
            self._compile_flag(flag_key)
        return self

    def _set_flag(self, key: FlagKey, flag: Flag | None) -> None:
        before = _segments_of(self._flags.get(key))
        after = _segments_of(flag)
        for segment_key in before - after:
            users = self._users[segment_key] - {key}
            if users:
                self._users[segment_key] = users
            else:
                del self._users[segment_key]
        for segment_key in after - before:
            self._users[segment_key] = self._users.get(segment_key, frozenset()) | {key}
        if flag is None:
            self._flags.pop(key, None)
        else:
            self._flags[key] = flag

    def _compile_segment(self, key: SegmentKey) -> None:
        self._conditions.pop(key, None)
        segment = self._segments.get(key)
        if isinstance(segment, Segment) and not _unknown_operators(segment):
            predicate = _segment_predicate(segment, self._device)
            self._conditions[key] = _Condition(predicate, _need_of(segment))

    def _compile_flag(self, key: FlagKey) -> None:
        self._booleans.pop(key, None)
        self._variants.pop(key, None)
        self._splits.pop(key, None)
        flag = self._flags.get(key)
        if flag is None:
            self._states.pop(key, None)
            return
        if isinstance(flag, UnsupportedFlag):
            self._states[key] = FlagState(FlagType.UNKNOWN, enabled=False, problem=flag.why)
            return
        problem = self._problem_of(flag)
        if isinstance(flag, BooleanFlag):
            self._states[key] = FlagState(FlagType.BOOLEAN, flag.enabled, problem)
            if not problem:
                self._booleans[key] = _compile_boolean(flag, self._conditions)
        else:
            self._states[key] = FlagState(FlagType.VARIANT, flag.enabled, problem)
            if not problem:
                self._variants[key] = _compile_variant(flag, self._conditions)

    def _problem_of(self, flag: BooleanFlag | VariantFlag) -> str:
        for key in sorted(_segments_of(flag)):
            match self._segments.get(key):
                case None:
                    return f"segment {key!r} is missing"
                case UnsupportedSegment(why=why):
                    return f"segment {key!r}: {why}"
                case Segment() as segment:
                    if unknown := _unknown_operators(segment):
                        return f"segment {key!r}: {unknown}"
        return _variant_problem(flag) if isinstance(flag, VariantFlag) else ""

    def _refusal(self, flag_key: str, asked: FlagType | None) -> InvalidCall:
        state = self._states.get(FlagKey(flag_key))
        if state is None:
            return FlagNotFound(f"no flag {flag_key!r}")
        if asked is not None and state.type not in (asked, FlagType.UNKNOWN):
            return TypeMismatch(f"flag {flag_key!r} is a {state.type} flag, not a {asked} flag")
        return FlagNotUsable(f"flag {flag_key!r}: {state.problem}")


def compile_flags(entries: Iterable[Entry], device: Mapping[str, str]) -> CompiledFlags:
    """The compiled form of the records of one namespace on a device with these `device.*` attributes."""
    return CompiledFlags(device)._with(entries, ())  # noqa: SLF001 - nobody else makes one


_A = TypeVar("_A")
_Boolean = Callable[[str, Context], BooleanAnswer]
_Variant = Callable[[str, Context], VariantAnswer]


class _Lookup(NamedTuple):
    """What a condition needs at least: that a property has one of some values, none of them empty."""

    name: str
    values: frozenset[str]


class _Condition(NamedTuple):
    """A segment, or several joined, as a predicate; and what it needs at least, where that can be looked up."""

    holds: Predicate
    needs: _Lookup | None


_Conditions = Mapping[SegmentKey, _Condition]


class _Step(NamedTuple, Generic[_A]):
    """A rule or rollout: what it asks for and what it gives."""

    condition: _Condition
    give: Callable[[str, Context], _A]


def _segments_of(flag: Flag | None) -> frozenset[SegmentKey]:
    match flag:
        case BooleanFlag():
            return frozenset(
                key
                for rollout in flag.rollouts
                if not isinstance(rollout, ThresholdRollout)
                for key in rollout.segments
            )
        case VariantFlag():
            return frozenset(key for rule in flag.rules for key in rule.segments)
        case _:
            return frozenset()


def _unknown_operators(segment: Segment) -> str:
    for constraint in segment.constraints:
        if (constraint.type, constraint.operator) not in TAKES:
            return f"no operator {str(constraint.operator)!r} for the type {str(constraint.type)!r}"
    return ""


def _variant_problem(flag: VariantFlag) -> str:
    known = {variant.key for variant in flag.variants}
    if flag.default is not None and flag.default not in known:
        return f"default variant {flag.default!r} is missing"
    for number, rule in enumerate(flag.rules, 1):
        for share in rule.distributions:
            if share.variant not in known:
                return f"rule {number}: variant {share.variant!r} is missing"
        bounds = [0, *(share.bound for share in rule.distributions)]
        if rule.distributions and (
            bounds[-1] != VARIANT_BUCKETS or any(low > high for low, high in pairwise(bounds))
        ):
            return f"rule {number}: its distributions do not share out all buckets"
    return ""


# Segments and joins become one predicate. `always` and `never` are folded away wherever they meet.


def _segment_predicate(segment: Segment, device: Context) -> Predicate:
    predicates = [compile_constraint(constraint, device) for constraint in segment.constraints]
    if not predicates:
        return always  # under both match types
    return _all_of(predicates) if segment.match is Match.ALL else _any_of(predicates)


def _need_of(segment: Segment) -> _Lookup | None:
    if segment.match is Match.ANY and len(segment.constraints) > 1:
        return None
    for constraint in segment.constraints:
        match constraint:
            case Constraint(type=ConstraintType.STRING, property=name) if name.startswith(DEVICE_PREFIX):
                pass
            case Constraint(ConstraintType.STRING, name, Operator.EQ, str(value)):
                return _Lookup(name, frozenset((value,)) - {""})
            case Constraint(ConstraintType.STRING, name, Operator.ISONEOF, tuple(values)):
                return _Lookup(name, frozenset(map(str, values)) - {""})
    return None


def _joined(join: Join, conditions: Sequence[_Condition]) -> _Condition:
    predicates = [condition.holds for condition in conditions]
    if join is Join.OR and len(conditions) > 1:
        return _Condition(_any_of(predicates), None)
    holds = _all_of(predicates) if join is Join.AND else _any_of(predicates)
    return _Condition(holds, next((condition.needs for condition in conditions if condition.needs), None))


def _all_of(predicates: Sequence[Predicate]) -> Predicate:
    if never in predicates:
        return never
    match [predicate for predicate in predicates if predicate is not always]:
        case []:
            return always
        case [only]:
            return only
        case [first, second]:
            return lambda entity_id, context: first(entity_id, context) and second(entity_id, context)
        case [first, second, third]:
            return lambda entity_id, context: (
                first(entity_id, context) and second(entity_id, context) and third(entity_id, context)
            )
        case several:
            every = tuple(several)

    def all_hold(entity_id: str, context: Context) -> bool:
        for holds in every:  # noqa: SIM110 - a generator costs more than the loop
            if not holds(entity_id, context):
                return False
        return True

    return all_hold


def _any_of(predicates: Sequence[Predicate]) -> Predicate:
    if always in predicates:
        return always
    match [predicate for predicate in predicates if predicate is not never]:
        case []:
            return never
        case [only]:
            return only
        case [first, second]:
            return lambda entity_id, context: first(entity_id, context) or second(entity_id, context)
        case several:
            each = tuple(several)

    def any_holds(entity_id: str, context: Context) -> bool:
        for holds in each:  # noqa: SIM110 - a generator costs more than the loop
            if holds(entity_id, context):
                return True
        return False

    return any_holds


def _matching(
    keys: Sequence[SegmentKey], conditions: _Conditions
) -> Callable[[str, Context], tuple[SegmentKey, ...]]:
    pairs = tuple((key, conditions[key].holds) for key in keys)
    return lambda entity_id, context: tuple(key for key, matches in pairs if matches(entity_id, context))


def _distinct(keys: Sequence[SegmentKey]) -> tuple[SegmentKey, ...]:
    # Flipt keeps a rule's segments in a map, so that a segment named twice counts once.
    return tuple(dict.fromkeys(keys))


def _compile_boolean(flag: BooleanFlag, conditions: _Conditions) -> _Boolean:
    if flag.rollouts:
        otherwise = BooleanAnswer(flag.key, flag.enabled, Reason.DEFAULT, (), Resolution.DEFAULT)
    else:
        # Off for everybody is a value like on. OpenFeature's DISABLED would tell a caller to use its default instead.
        reason = Reason.DEFAULT if flag.enabled else Reason.FLAG_DISABLED
        otherwise = BooleanAnswer(flag.key, flag.enabled, reason, (), Resolution.STATIC)
    steps: list[_Step[BooleanAnswer]] = []
    for rollout in flag.rollouts:
        if isinstance(rollout, ThresholdRollout):
            yes = BooleanAnswer(flag.key, rollout.value, Reason.MATCH, (), Resolution.SPLIT)
            if len(flag.rollouts) == 1:
                return _threshold(flag.key, rollout.percentage, yes, otherwise)
            steps.append(_Step(_Condition(_below(flag.key, rollout.percentage), None), _constant(yes)))
            continue
        keys = _distinct(rollout.segments)
        condition = _joined(rollout.join, [conditions[key] for key in keys])
        yes = BooleanAnswer(flag.key, rollout.value, Reason.MATCH, keys, Resolution.TARGETING_MATCH)
        if len(keys) < 2 or rollout.join is Join.AND:
            if len(flag.rollouts) == 1:
                return _either(condition.holds, yes, otherwise)
            steps.append(_Step(condition, _constant(yes)))
        else:
            steps.append(_Step(condition, _with_keys(yes, _matching(keys, conditions))))
    return _first_step(steps, _constant(otherwise))


def _threshold(key: str, percentage: int, yes: BooleanAnswer, no: BooleanAnswer) -> _Boolean:
    return lambda entity_id, context: (  # noqa: ARG005 - the signature of a compiled flag
        yes if crc32((entity_id + key).encode()) % BOOLEAN_BUCKETS < percentage else no
    )


def _below(key: str, percentage: int) -> Predicate:
    return lambda entity_id, context: (  # noqa: ARG005 - the signature of a predicate
        crc32((entity_id + key).encode()) % BOOLEAN_BUCKETS < percentage
    )


def _either(condition: Predicate, yes: BooleanAnswer, no: BooleanAnswer) -> _Boolean:
    return lambda entity_id, context: yes if condition(entity_id, context) else no


def _with_keys(answer: BooleanAnswer, matching: Callable[[str, Context], tuple[SegmentKey, ...]]) -> _Boolean:
    key, value = answer.flag_key, answer.enabled
    return lambda entity_id, context: BooleanAnswer(
        key, value, Reason.MATCH, matching(entity_id, context), Resolution.TARGETING_MATCH
    )


def _compile_variant(flag: VariantFlag, conditions: _Conditions) -> _Variant:
    attachments = {variant.key: variant.attachment for variant in flag.variants}
    otherwise = VariantAnswer(
        flag_key=flag.key,
        match=False,
        variant_key=NO_VARIANT if flag.default is None else flag.default,
        attachment="" if flag.default is None else attachments[flag.default],
        reason=Reason.UNKNOWN if flag.default is None else Reason.DEFAULT,
        segment_keys=(),
        resolution=Resolution.DEFAULT if flag.rules else Resolution.STATIC,
    )
    if not flag.enabled:
        # Step 2 of Flipt's order comes after step 1: the default variant is already in the answer.
        return _constant(replace(otherwise, reason=Reason.FLAG_DISABLED, resolution=Resolution.DISABLED))
    steps: list[_Step[VariantAnswer]] = []
    for rule in flag.rules:
        keys = _distinct(rule.segments)
        condition = _joined(rule.join, [conditions[key] for key in keys])
        shares = _shares(rule, keys, otherwise, attachments)
        choose = _choose(flag.key, shares, [share.bound for share in rule.distributions])
        if len(keys) >= 2 and rule.join is Join.OR:
            choose = _chosen_with_keys(choose, _matching(keys, conditions))
        steps.append(_Step(condition, choose))
    return _first_step(steps, _constant(otherwise))


def _shares(
    rule: Rule, keys: tuple[SegmentKey, ...], otherwise: VariantAnswer, attachments: Mapping[VariantKey, str]
) -> tuple[VariantAnswer, ...]:
    """The answers a matching rule chooses from: one for each distribution, or the default variant's."""
    split = Resolution.SPLIT if len(rule.distributions) > 1 else Resolution.TARGETING_MATCH

    def matched(variant: str, attachment: str) -> VariantAnswer:
        return VariantAnswer(otherwise.flag_key, True, variant, attachment, Reason.MATCH, keys, split)  # noqa: FBT003  # a field

    return tuple(matched(share.variant, attachments[share.variant]) for share in rule.distributions) or (
        matched(otherwise.variant_key, otherwise.attachment),
    )


def _choose(flag_key: str, answers: tuple[VariantAnswer, ...], bounds: Sequence[int]) -> _Variant:
    if len(answers) == 1:
        return _constant(answers[0])
    # CRC-32 goes on from where the flag's key left it: the same as of both texts together.
    begun = crc32(flag_key.encode())
    if len(answers) == 2:
        low, high = answers
        bound = bounds[0]
        return lambda entity_id, context: (  # noqa: ARG005 - the signature of a compiled flag
            low if crc32(entity_id.encode(), begun) % VARIANT_BUCKETS < bound else high
        )
    ascending = tuple(bounds)
    return lambda entity_id, context: (  # noqa: ARG005 - as above
        answers[bisect_right(ascending, crc32(entity_id.encode(), begun) % VARIANT_BUCKETS)]
    )


def _compile_split(flag: Flag, conditions: _Conditions) -> Predicate:
    """Whether an evaluation reaches a percentage: the flag's own steps, each giving whether the entity decides it."""
    steps: list[_Step[bool]] = []
    otherwise = False
    match flag:
        case BooleanFlag():
            for rollout in flag.rollouts:
                if isinstance(rollout, ThresholdRollout):
                    if rollout.percentage > 0:
                        otherwise = rollout.percentage < BOOLEAN_BUCKETS
                        break
                else:
                    steps.append(_step_of(rollout.segments, rollout.join, conditions, decided=False))
        case VariantFlag(enabled=True):
            for rule in flag.rules:
                bounds = [0, *(share.bound for share in rule.distributions)]
                shares = sum(low < high for low, high in pairwise(bounds))
                steps.append(_step_of(rule.segments, rule.join, conditions, decided=shares > 1))
    if not otherwise and not any(step.give("", {}) for step in steps):
        return never
    return _first_step(steps, _constant(otherwise))


def _step_of(
    segments: Sequence[SegmentKey], join: Join, conditions: _Conditions, *, decided: bool
) -> _Step[bool]:
    return _Step(_joined(join, [conditions[key] for key in _distinct(segments)]), _constant(decided))


def _chosen_with_keys(
    choose: _Variant, matching: Callable[[str, Context], tuple[SegmentKey, ...]]
) -> _Variant:
    def chosen(entity_id: str, context: Context) -> VariantAnswer:
        answer = choose(entity_id, context)
        return VariantAnswer(
            flag_key=answer.flag_key,
            match=True,
            variant_key=answer.variant_key,
            attachment=answer.attachment,
            reason=Reason.MATCH,
            segment_keys=matching(entity_id, context),
            resolution=answer.resolution,
        )

    return chosen


def _constant(answer: _A) -> Callable[[str, Context], _A]:
    return lambda entity_id, context: answer  # noqa: ARG005 - the signature of a compiled flag


# Neighbouring steps that all need a certain value of one property (a tenant, a group, a country) become one look-up
# of those that the value leaves over. From this many on it pays; up to this many look-ups follow one another, each a
# call inside the other.
_TABLE_MIN_STEPS = 4
_TABLES_MAX = 50


def _first_step(
    steps: Sequence[_Step[_A]], otherwise: Callable[[str, Context], _A]
) -> Callable[[str, Context], _A]:
    """The flag whose first matching step answers. Steps nobody reaches are left out."""
    reached = []
    for step in steps:
        if step.condition.holds is always:
            otherwise = step.give
            break
        if step.condition.holds is not never:
            reached.append(step)
    runs: list[tuple[str | None, list[_Step[_A]]]] = []
    for name, neighbours in groupby(reached, key=_needed_name):
        run = list(neighbours)
        if name is not None and len(run) >= _TABLE_MIN_STEPS and len(runs) < _TABLES_MAX:
            runs.append((name, run))
        elif runs and runs[-1][0] is None:
            runs[-1][1].extend(run)
        else:
            runs.append((None, run))
    for name, run in reversed(runs):
        otherwise = _in_order(run, otherwise) if name is None else _by_value(name, run, otherwise)
    return otherwise


def _needed_name(step: _Step[_A]) -> str | None:
    return step.condition.needs.name if step.condition.needs else None


def _in_order(
    steps: Sequence[_Step[_A]], otherwise: Callable[[str, Context], _A]
) -> Callable[[str, Context], _A]:
    pairs = tuple((step.condition.holds, step.give) for step in steps)
    if len(pairs) == 1:
        ((only, gives),) = pairs
        return lambda entity_id, context: (
            gives(entity_id, context) if only(entity_id, context) else otherwise(entity_id, context)
        )

    def evaluate(entity_id: str, context: Context) -> _A:
        for holds, give in pairs:
            if holds(entity_id, context):
                return give(entity_id, context)
        return otherwise(entity_id, context)

    return evaluate


def _by_value(
    name: str, steps: Sequence[_Step[_A]], otherwise: Callable[[str, Context], _A]
) -> Callable[[str, Context], _A]:
    listed: dict[str, list[tuple[Predicate, Callable[[str, Context], _A]]]] = {}
    for step in steps:
        for value in step.condition.needs.values if step.condition.needs else ():
            listed.setdefault(value, []).append((step.condition.holds, step.give))
    table = {value: tuple(pairs) for value, pairs in listed.items()}

    def evaluate(entity_id: str, context: Context) -> _A:
        for holds, give in table.get(context.get(name, ""), ()):
            if holds(entity_id, context):
                return give(entity_id, context)
        return otherwise(entity_id, context)

    return evaluate
