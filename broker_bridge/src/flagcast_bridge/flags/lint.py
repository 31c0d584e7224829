"""Documents without errors -> warnings: where Flipt's engines disagree, and where a flag does not do what it seems to.

Only what can be proved from the file is said; a rule is called unreachable only if no entity can reach it.
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf, isnan
from typing import Final

from flagcast_shared import model
from flagcast_shared.answers import AGENT_METADATA
from flagcast_shared.bucketing import compile_percentage
from flagcast_shared.constraints import TAKES, Takes, value_test
from flagcast_shared.context import DEVICE_PREFIX, context_text
from flagcast_shared.ids import FlagKey, SegmentKey
from flagcast_shared.literals import trim_space
from flagcast_shared.model import BooleanFlag, ConstraintType, Instant, Join, Match, Operator
from flagcast_shared.model import Constraint as CompiledConstraint

from . import describe
from .compiler import by_namespace, compile_constraint, fused_bounds, json_text, positive, share_bounds
from .document import (
    Constraint,
    Document,
    Flag,
    Rule,
    Segment,
    SegmentRollout,
    Text,
    ThresholdRollout,
    disputed,
)
from .findings import Findings, Position, finding
from .nodes import ListNode, MapNode, Node, Scalar

CONTRADICTIONS_MAX: Final = 100
"""Constraints of a segment that are compared with each other; people write a handful, and pairs are a square."""

_LEFTOVERS: Final = frozenset({"FC231"})
# Variants that nobody gets after a flag was turned off or a test was ended; unused segments are another such warning.

TOGETHER_MAX: Final = 100
"""Rules with several joined segments that a later rule is compared with; as CONTRADICTIONS_MAX."""


def lint(documents: Sequence[Document], found: Findings) -> None:
    """Adds every warning about documents that compile."""
    for merged in by_namespace(documents).values():
        facts: dict[str, _SegmentFacts] = {}
        for document in merged:
            _Linter(document, facts, found).look()
        if not any(document.flags for document in merged):
            first = merged[0]
            said = f"namespace {first.namespace.value!r} has no flags"
            hint = "Published like this, it takes all of its flags away."
            found.add(finding("FC215", first.file, first.at, said, hint))
        _unused_segments(merged, found)


def _compiled(flag: Flag) -> BooleanFlag:
    rollouts = tuple(
        model.SegmentRollout(tuple(SegmentKey(name) for name, _ in each.segments), each.join, each.value)
        if isinstance(each, SegmentRollout)
        else model.ThresholdRollout(compile_percentage(each.percentage.value), each.value)
        for each in flag.rollouts
    )
    return BooleanFlag(FlagKey(flag.key.value), flag.enabled, rollouts)


@dataclass(frozen=True, slots=True)
class _SegmentFacts:
    """What can be said of a segment without knowing any entity."""

    matches_everyone: bool
    matches_nobody: bool


class _Linter:
    """Looks at one document of a namespace; `facts` are those of the documents before it, and get its own."""

    def __init__(self, document: Document, facts: dict[str, _SegmentFacts], found: Findings) -> None:
        self._found = found
        self._document = document
        self._facts = facts
        self._own = {segment.key.value for segment in document.segments}
        # Of the boolean flag that is looked at: it is false for everyone.
        self._is_off = False

    def look(self) -> None:
        document = self._document
        if document.folder is not None and document.folder != document.namespace.value:
            said = f"the folder is {document.folder!r}, the document's namespace {document.namespace.value!r}"
            hint = f"Write namespace: {document.folder}; the document counts, never the folder."
            self._say("FC214", document.namespace.at, said, hint)
        for segment in document.segments:
            self._facts[segment.key.value] = self._segment(segment)
        for flag in document.flags:
            if flag.is_boolean:
                self._is_off = describe.is_off(_compiled(flag), self._everyone())
                self._boolean_flag(flag)
                self._is_off = False
            else:
                self._variant_flag(flag)
            for variant in flag.variants:
                if variant.attachment is not None:
                    self._scalars(variant.attachment, f"flag {flag.key.value!r}, attachment")
            self._metadata(flag)

    def _say(self, code: str, at: Position, message: str, hint: str = "") -> None:
        is_leftover = self._is_off or code in _LEFTOVERS
        self._found.add(finding(code, self._document.file, at, message, hint, is_leftover=is_leftover))

    # Segments

    def _segment(self, segment: Segment) -> _SegmentFacts:
        what = f"segment {segment.key.value!r}"
        pairs: list[_Pair] = []
        never = 0
        for constraint in segment.constraints:
            compiled = compile_constraint(constraint, self._document.file, self._found)
            # Only documents that compile are linted.
            assert isinstance(compiled, CompiledConstraint)
            pairs.append((constraint, compiled))
            never += self._constraint(constraint, compiled, what)
        if segment.match is Match.ANY:
            return _SegmentFacts(not pairs, bool(pairs) and never == len(pairs))
        contradiction = _contradiction(pairs[:CONTRADICTIONS_MAX])
        if contradiction is not None and not never:
            first, second = contradiction
            said = f"{what}: no value fits both {_said(pairs[first][1])} and {_said(pairs[second][1])}"
            hint = "Use ANY_MATCH_TYPE if either shall do, or remove one."
            self._say("FC235", pairs[max(contradiction)][0].at, said, hint)
        return _SegmentFacts(not pairs, bool(never) or contradiction is not None)

    def _constraint(self, constraint: Constraint, compiled: CompiledConstraint, what: str) -> bool:
        """Warns about one constraint; whether it can never match."""
        at = constraint.at if constraint.value is None else constraint.value.at
        if constraint.value is not None:
            self._scalars(constraint.value, f"{what}, constraint value")
        takes = TAKES[compiled.type, compiled.operator]
        if takes is Takes.NONE and isinstance(constraint.value, Scalar) and constraint.value.text:
            said = f"{what}: operator {compiled.operator} uses no value"
            self._say("FC217", at, said, "Remove the value, or use another operator.")
        self._disagreements(constraint, compiled, at, what)
        self._other_forms(compiled, at, what)
        name = constraint.property.value
        is_unknown = compiled.type is not ConstraintType.ENTITY and _is_unknown_attribute(name)
        if is_unknown:
            said = f"{what}: devices have no attribute {name!r}, and an application cannot set one"
            hint = "There are device.id, device.model, device.firmware and device.label.<name>."
            self._say("FC236", constraint.property.at, said, hint)
            return compiled.operator not in (Operator.EMPTY, Operator.NOTPRESENT)
        reason = _why_never(compiled)
        if reason:
            self._say("FC234", at, f"{what}: {_said(compiled)} never matches: {reason}", _NEVER_HINT)
        return bool(reason)

    def _disagreements(
        self, constraint: Constraint, compiled: CompiledConstraint, at: Position, what: str
    ) -> None:
        """What Flipt's engines read differently in one constraint."""
        node = constraint.value
        written = node.text if isinstance(node, Scalar) else ""
        match TAKES[compiled.type, compiled.operator]:
            case Takes.NUMBER:
                if not _WHOLE.fullmatch(written) or not _is_small(written):
                    said = f"{what}: {written!r} is not a plain whole number of 32 bits"
                    self._say("FC201", at, said, _NUMBER_HINT)
            case Takes.NUMBERS:
                odd = [text for text in _texts(compiled) if not _is_small(text)]
                if odd:
                    said = f"{what}: {odd[0]} in the list is not a whole number of 32 bits"
                    self._say("FC201", at, said, _NUMBER_HINT)
            case Takes.INSTANT:
                if not _WHOLE_SECONDS.fullmatch(written):
                    said = f"{what}: {written!r} is not RFC 3339 in whole seconds"
                    hint = 'Write it like "2026-01-31T09:30:00Z"; Flipt\'s SDKs do not read other forms.'
                    self._say("FC202", at, said, hint)
            case Takes.TEXT:
                if trim_space(written) != written:
                    self._say("FC203", at, f"{what}: {written!r} has surrounding spaces", _SPACES_HINT)
            case Takes.TEXTS:
                spaced = [text for text in _texts(compiled) if trim_space(text) != text]
                if spaced:
                    said = f"{what}: {spaced[0]!r} in the list has surrounding spaces"
                    self._say("FC203", at, said, _SPACES_HINT)
                if "\\" in written or any("\\" in json_text(text) for text in _texts(compiled)):
                    said = f"{what}: the list needs JSON escapes, which Flipt's engines read differently"
                    hint = 'Avoid ", \\, <, >, & and control characters in a list.'
                    self._say("FC204", at, said, hint)
            case _:
                pass

    def _other_forms(self, compiled: CompiledConstraint, at: Position, what: str) -> None:
        """Warns about JSON that is compared with an application's value and is not written as that value's text."""
        # An entity id and a device's attributes are texts as they were given.
        if compiled.type is not ConstraintType.STRING or compiled.property.startswith(DEVICE_PREFIX):
            return
        for text in (compiled.value,) if isinstance(compiled.value, str) else _texts(compiled):
            written = _as_context_text(text)
            if written not in (None, text):
                said = f"{what}: {text!r} is JSON in another form than a context's values have"
                self._say("FC237", at, said, f"If the value is an object or list, write {written}")
                return

    def _scalars(self, node: Node, what: str) -> None:
        """Warnings about a value that another reader of YAML or JSON reads otherwise."""
        waiting = [node]
        seen: set[int] = set()
        while waiting:
            each = waiting.pop()
            # An alias is the same node again; what was said of it once is enough.
            if id(each) in seen:
                continue
            seen.add(id(each))
            match each:
                case Scalar():
                    if each.is_disputed:
                        self._found.add(disputed(self._document.file, each, what))
                    self._integer(each, what)
                case ListNode():
                    waiting.extend(each.items)
                case MapNode():
                    self._keys(each, what)
                    for key, value in each.entries:
                        waiting += [key, value]

    def _integer(self, node: Scalar, what: str) -> None:
        if node.is_plain and _WHOLE.fullmatch(node.text) and isinstance(node.value, float):
            said = f"{what}: {node.text[:40]} has more than 64 bits and becomes {node.value!r}"
            self._say("FC244", node.at, said, _NUMBER_TEXT_HINT)
        elif node.is_plain and isinstance(node.value, str) and _BEYOND_FLOAT64.fullmatch(node.text):
            said = f"{what}: {node.text[:40]} has more than 64 bits and is text here"
            self._say("FC244", node.at, said, _NUMBER_TEXT_HINT)

    def _keys(self, node: MapNode, what: str) -> None:
        """Keys that differ in their bytes and are one character by character to a reader that normalizes Unicode."""
        seen: dict[str, str] = {}
        for key, _ in node.entries:
            # Nothing of ASCII changes, and most keys are nothing else.
            plain = key.text if key.text.isascii() else unicodedata.normalize("NFC", key.text)
            if seen.setdefault(plain, key.text) != key.text:
                said = f"{what}: key {key.text[:40]!a} and key {seen[plain][:40]!a} look the same"
                hint = "One is spelled with combining characters; readers that normalize Unicode keep one of them."
                self._say("FC243", key.at, said, hint)

    def _metadata(self, flag: Flag) -> None:
        """Warnings about metadata that applications do not get, or get in another form."""
        for key, value in flag.metadata:
            what = f"flag {flag.key.value!r}, metadata {key.text[:60]!r}"
            if not isinstance(value, Scalar):
                shape = "a list" if isinstance(value, ListNode) else "a mapping"
                said = f"{what}: {shape} stays behind; OpenFeature's metadata are texts, numbers and booleans"
                self._say("FC241", value.at, said, "Write single values, or one text.")
                continue
            if key.text in AGENT_METADATA:
                said = f"{what}: agents answer a value of their own under this name"
                self._say("FC241", key.at, said, "Take another name.")
            if value.is_date:
                said = f"{what}: Flipt v2 loads no flags at all while a date stands here without quotes"
                self._say("FC242", value.at, said, f'Quote it: "{value.text}".')
            elif value.is_disputed:
                self._found.add(disputed(self._document.file, value, what))
            self._integer(value, what)

    # Flags

    def _variant_flag(self, flag: Flag) -> None:
        what = f"flag {flag.key.value!r}"
        defaults = [variant for variant in flag.variants if variant.is_default]
        for variant in defaults[1:]:
            said = f"{what}: a second default variant, {variant.key.value!r}; the last one counts"
            self._say("FC232", variant.at, said, "Leave one default.")
        if not flag.rules and not defaults:
            said = f"{what}: without a rule and a default variant it never answers a variant"
            self._say("FC222", flag.at, said, "Mark one variant with default: true, or add a rule.")
        given = {defaults[-1].key.value} if defaults else set()
        decided = _Decided()
        for rule in flag.rules:
            rule_what = f"{what}, rule"
            if rule.bare_list is not None:
                said = (
                    f"{rule_what}: segments as a bare list, which Flipt's own schema refuses in every version"
                )
                hint = f"Write segment: {{keys: [{', '.join(name for name, _ in rule.segments)}]}}."
                self._say("FC219", rule.bare_list, said, hint)
            if self._place(rule.segments, rule.join, rule.at, rule_what, decided):
                given |= self._distributions(rule, rule_what, has_default=bool(defaults))
        for variant in flag.variants:
            if variant.key.value not in given:
                said = f"{what}: nobody gets variant {variant.key.value!r}"
                hint = "Give it a share in a rule that can be reached, make it the default, or remove it."
                self._say("FC231", variant.key.at, said, hint)
        ranks = [rule.rank for rule in flag.rules if rule.rank is not None]
        for before, rank in pairwise(ranks):
            if rank.value <= before.value:
                said = f"{what}: rank {rank.value:g} stands after rank {before.value:g}; ranks are not read"
                self._say("FC216", rank.at, said, "The order in the file counts; order the rules, drop rank.")

    def _distributions(self, rule: Rule, what: str, *, has_default: bool) -> set[str]:
        """Warns about a rule's distributions; the variants that somebody gets."""
        taking_part = [each for each in rule.distributions if positive(each.rollout.value)]
        if not taking_part:
            if not has_default:
                said = (
                    f"{what}: a match gives no variant: no distribution above 0, and the flag has no default"
                )
                self._say("FC222", rule.at, said, "Add a distribution, or a variant with default: true.")
            return set()
        shares = [each.rollout.value for each in taking_part]
        total = sum(shares)
        if abs(total - 100) > 0.005:
            said = f"{what}: the distributions add up to {total:g}, not 100; they are scaled to 100"
            hint = "Flipt v1 leaves the rest without a variant. Make them add up to 100."
            self._say("FC221", taking_part[0].rollout.at, said, hint)
        bounds = share_bounds(shares)
        covered = 0.0
        for each, bound, fused in zip(taking_part[:-1], bounds, fused_bounds(shares), strict=False):
            covered += each.rollout.value
            # A bucket is a tenth of a percent; Go truncates what lies between two, Rust rounds it.
            exact = covered / total * 1000
            where = f"{what}: the bound at {covered / total * 100:g} %"
            if abs(exact - round(exact)) > 1e-6:
                said = f"{where} lies between two tenths of a percent"
                hint = "Flipt's server rounds it down, its SDKs to the nearest. Use steps of 0.1."
            elif bound != round(exact):
                said = f"{where} falls just short of it in float32: bucket {bound}, not {round(exact)}"
                hint = "Flipt's server truncates, its SDKs round. Move the share by a tenth of a percent."
            elif fused != bound:
                said = f"{where} is bucket {bound} on amd64 and {fused} on arm64, where Flipt's server rounds once less"
                hint = "Flagcast computes as on amd64. Move the share by a tenth of a percent."
            else:
                continue
            self._say("FC205", each.rollout.at, said, hint)
            break
        return {
            each.variant.value
            for each, below, bound in zip(taking_part, (0, *bounds), bounds, strict=False)
            if bound > below
        }

    def _boolean_flag(self, flag: Flag) -> None:
        what = f"flag {flag.key.value!r}"
        for name, ignored in (("rules", flag.rules), ("variants", flag.variants)):
            if ignored:
                said = f"{what}: {name} are ignored on a boolean flag"
                hint = "Use rollouts, or type: VARIANT_FLAG_TYPE."
                self._say("FC218", ignored[0].at, said, hint)
        decided = _Decided()
        effective: list[bool] = []
        for rollout in flag.rollouts:
            rollout_what = f"{what}, rollout"
            if isinstance(rollout, SegmentRollout):
                is_reached = self._place(rollout.segments, rollout.join, rollout.at, rollout_what, decided)
            else:
                is_reached = self._threshold(rollout, rollout_what, decided)
            if is_reached:
                effective.append(rollout.value)
        if effective and all(value is flag.enabled for value in effective):
            word, other = str(flag.enabled).lower(), str(not flag.enabled).lower()
            said = f"{what}: every rollout gives {word}, which is also the answer when none matches"
            hint = (
                f"If the rollouts shall decide, enabled must be {other}; a rollout without value gives false."
            )
            self._say("FC226", flag.at, said, hint)
        elif any(effective) and not flag.enabled and flag.enabled_at is not None:
            whom = describe.still_true(_compiled(flag), self._everyone())
            said = f"{what}: enabled: false does not turn it off, it is still true for {whom}"
            hint = f"{describe.HOW_TO_TURN_OFF.capitalize()}. If they are meant, leave enabled out."
            self._say("FC225", flag.enabled_at, said, hint)

    def _everyone(self) -> frozenset[SegmentKey]:
        return frozenset(SegmentKey(key) for key, facts in self._facts.items() if facts.matches_everyone)

    def _threshold(self, rollout: ThresholdRollout, what: str, decided: "_Decided") -> bool:
        """Warns about a threshold; whether it decides about anybody."""
        value, at = rollout.percentage
        percentage = compile_percentage(value)
        if not 0 <= value <= 100:
            said = f"{what}: {value:g} % is outside 0 to 100"
            self._say("FC229", at, said, f"It works as {min(max(value, 0), 100):g}.")
        elif value in (0, 100):
            whom = "nobody" if value == 0 else "everybody"
            hint = (
                "Remove the rollout." if value == 0 else "What follows is never reached; set enabled instead."
            )
            self._say("FC227", at, f"{what}: {value:g} % is {whom}", hint)
        elif value != int(value):
            said = f"{what}: {value:g} % lies between whole percents and works as {percentage} %"
            self._say("FC228", at, said, "There are 100 buckets; write a whole percentage.")
        if percentage == 0:
            return False
        if decided.everyone or percentage <= decided.percentage:
            said = f"{what}: never reached: what stands above it already decides about these entities"
            self._say(
                "FC223", rollout.at, said, "Thresholds of one flag share their buckets; order or remove."
            )
            return False
        decided.percentage = percentage
        decided.everyone = percentage == 100
        return True

    def _place(
        self, segments: Sequence[Text], join: Join, at: Position, what: str, decided: "_Decided"
    ) -> bool:
        """Warns about the segments of a rule or rollout; whether it decides about anybody."""
        names = [name for name, _ in segments]
        for name, here in segments:
            if name not in self._own:
                said = f"{what}: segment {name!r} stands in another document"
                hint = (
                    "Flipt's SDKs know the segments of the same document only. Bring both into one document."
                )
                self._say("FC206", here, said, hint)
        seen: set[str] = set()
        for name, here in segments:
            if name in seen:
                said = f"{what}: segment {name!r} is named twice"
                self._say("FC233", here, said, "Name it once.")
            seen.add(name)
        matches = _Matches.of(set(names), join, self._facts)
        if matches is None:
            said = f"{what}: no segment is named, so that it never matches"
            if names:
                said = (
                    f"{what}: it never matches, since {_those_without_anyone(names, self._facts)} never does"
                )
            self._say("FC224", at, said, "Correct the segment, or remove what refers to it.")
            return False
        if decided.covers(matches):
            said = f"{what}: never reached: what stands above it already decides about these entities"
            self._say(
                "FC223", at, said, "Move it up, or remove it. The first match in the file's order decides."
            )
            return False
        decided.add(matches)
        return True


def _unused_segments(documents: Sequence[Document], found: Findings) -> None:
    used = {
        name
        for document in documents
        for flag in document.flags
        for place in (flag.rollouts if flag.is_boolean else flag.rules)
        if not isinstance(place, ThresholdRollout)
        for name, _ in place.segments
    }
    for document in documents:
        for segment in document.segments:
            if segment.key.value not in used:
                said = f"segment {segment.key.value!r} is not used by any flag"
                hint = "Remove it, or name it in a rule or rollout."
                found.add(finding("FC230", document.file, segment.key.at, said, hint, is_leftover=True))


@dataclass(frozen=True, slots=True)
class _Matches:
    """The entities of a rule that somebody can match: in any, or in all, of these segments."""

    segments: frozenset[str]
    join: Join

    @classmethod
    def of(cls, names: set[str], join: Join, facts: Mapping[str, _SegmentFacts]) -> "_Matches | None":
        """None when nobody can match. Everyone is AND over no segments."""
        if join is Join.OR:
            if any(facts[name].matches_everyone for name in names):
                return cls(frozenset(), Join.AND)
            left = frozenset(name for name in names if not facts[name].matches_nobody)
            # One segment is the same under both.
            return cls(left, Join.AND if len(left) == 1 else Join.OR) if left else None
        if any(facts[name].matches_nobody for name in names):
            return None
        return cls(frozenset(name for name in names if not facts[name].matches_everyone), Join.AND)


@dataclass(slots=True)
class _Decided:
    """Whom the rules or rollouts so far have decided about."""

    everyone: bool = False
    percentage: int = 0
    alone: set[str] = field(default_factory=set)
    together: list[frozenset[str]] = field(default_factory=list)

    def covers(self, matches: _Matches) -> bool:
        if self.everyone:
            return True
        if matches.join is Join.OR:
            return matches.segments <= self.alone
        return bool(matches.segments & self.alone) or any(each <= matches.segments for each in self.together)

    def add(self, matches: _Matches) -> None:
        if matches.join is Join.OR or len(matches.segments) == 1:
            self.alone |= matches.segments
        elif matches.segments:
            if len(self.together) < TOGETHER_MAX:
                self.together.append(matches.segments)
        else:
            self.everyone = True


def _those_without_anyone(names: Sequence[str], facts: Mapping[str, _SegmentFacts]) -> str:
    return " or ".join(dict.fromkeys(repr(name) for name in names if facts[name].matches_nobody))


def _is_unknown_attribute(name: str) -> bool:
    if not name.startswith(DEVICE_PREFIX):
        return False
    rest = name.removeprefix(DEVICE_PREFIX)
    return rest not in ("id", "model", "firmware") and not (rest.startswith("label.") and rest != "label.")


def _said(constraint: CompiledConstraint) -> str:
    """A constraint in short, for a message."""
    name = constraint.property or "the entity id"
    match constraint.value:
        case None:
            shown = ""
        case Instant():
            shown = " its instant"
        case tuple() as listed:
            shown = f" [{', '.join(str(each) for each in listed)}]"
        case text:
            shown = f" {text!r}" if constraint.type is not ConstraintType.NUMBER else f" {text}"
    return f"{name} {constraint.operator}{shown:.60}"


def _why_never(constraint: CompiledConstraint) -> str:
    """Why no value of the context matches; "" when one may."""
    value, operator = constraint.value, constraint.operator
    if operator is Operator.ISONEOF and not any(_texts(constraint)):
        return "the list holds nothing that a value can be"
    if constraint.type is ConstraintType.NUMBER and isinstance(value, str):
        number = float(value)
        if isnan(number) and operator is not Operator.NEQ:
            return "nothing compares with nan"
        if (operator, number) in ((Operator.LT, -inf), (Operator.GT, inf)):
            return "no number lies beyond infinity"
    if constraint.type in (ConstraintType.STRING, ConstraintType.ENTITY) and isinstance(value, str):
        if operator is Operator.EQ and not value:
            return "a missing or empty value equals nothing; the operator is empty"
        if operator is Operator.PREFIX and trim_space(value + ".") != value + ".":
            return "the value's leading spaces are trimmed before it is compared"
        if operator is Operator.SUFFIX and trim_space("." + value) != "." + value:
            return "the value's trailing spaces are trimmed before it is compared"
    return ""


_LOWER: Final = (Operator.GT, Operator.GTE)
_UPPER: Final = (Operator.LT, Operator.LTE)

_Pair = tuple[Constraint, CompiledConstraint]


def _contradiction(pairs: Sequence[_Pair]) -> tuple[int, int] | None:
    """Two constraints that no value fits at once, by their places."""
    for second, later in enumerate(pairs):
        for first, earlier in enumerate(pairs[:second]):
            is_same = (earlier[1].type, earlier[1].property) == (later[1].type, later[1].property)
            if is_same and (_excludes(earlier, later) or _excludes(later, earlier)):
                return first, second
    return None


def _excludes(one: _Pair, other: _Pair) -> bool:
    """Whether no value fits both, judged from the side of `one`; False when in doubt."""
    operator, against = one[1].operator, other[1].operator
    if (operator, against) in _OPPOSITES:
        return True
    if operator is Operator.NOTPRESENT:
        return against is not Operator.NOTPRESENT
    if operator in _LOWER and against in _UPPER:
        return not _is_between(one[1], other[1])
    wanted = _wanted(*one)
    return wanted is not None and not any(map(value_test(other[1]), wanted))


def _wanted(constraint: Constraint, compiled: CompiledConstraint) -> tuple[str, ...] | None:
    """The only values that can fit, in one spelling each; None when they cannot be listed."""
    if compiled.operator is Operator.ISONEOF:
        return _texts(compiled)
    if compiled.operator is Operator.EQ:
        return (constraint.value.text if isinstance(constraint.value, Scalar) else "",)
    return None


def _texts(constraint: CompiledConstraint) -> tuple[str, ...]:
    """The elements of a list; none for any other value."""
    value = constraint.value
    return value if isinstance(value, tuple) and not isinstance(value, Instant) else ()


def _as_context_text(text: str) -> str | None:
    """A text that is a JSON object or list, in the form in which contexts have it; None for any other text."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return context_text(_JSON.decode(text))
    except (ValueError, RecursionError):
        return None


def _is_between(lower: CompiledConstraint, upper: CompiledConstraint) -> bool:
    """Whether a value can lie above the one and below the other."""
    low, high = _bound(lower), _bound(upper)
    if low == high:
        return lower.operator is Operator.GTE and upper.operator is Operator.LTE
    return low < high


def _bound(constraint: CompiledConstraint) -> tuple[float, int]:
    value = constraint.value
    return (float(value.seconds), value.nanos) if isinstance(value, Instant) else (float(str(value)), 0)


def _refuse_constant(name: str) -> object:
    raise ValueError(name)


_JSON: Final = json.JSONDecoder(parse_constant=_refuse_constant)

_OPPOSITES: Final = {
    (Operator.TRUE, Operator.FALSE),
    (Operator.PRESENT, Operator.NOTPRESENT),
    (Operator.EMPTY, Operator.NOTEMPTY),
}

_WHOLE: Final = re.compile(r"[-+]?[0-9]+")
_BEYOND_FLOAT64: Final = re.compile(r"[-+]?[1-9][0-9]{308,}")
"""Decimal integers that not even a float64 holds; hexadecimal ones are disputed scalars."""

_WHOLE_SECONDS: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:Z|[-+][0-9]{2}:[0-9]{2})"
)
_NUMBER_HINT: Final = "Flipt's SDKs and its server compare it differently; scale it to a whole number."
_NUMBER_TEXT_HINT: Final = "Write it as text, in quotes, or as a number that 64 bits hold."
_SPACES_HINT: Final = "Flipt's engines do not trim alike. Remove the spaces."
_NEVER_HINT: Final = "Correct the value, or remove the constraint."


def _is_small(text: str) -> bool:
    number = float(text)
    return number == number // 1 and -(2**31) <= number < 2**31
