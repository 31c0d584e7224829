"""Documents -> the model that travels: references resolved, numbers, instants and lists parsed, bounds computed.

All errors are collected. If there is one, nothing is compiled: a namespace without the flag that failed would
silently take that flag away from a fleet.
"""

import json
import re
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from types import MappingProxyType
from typing import Final, NamedTuple, TypeVar

from flagcast_shared import model
from flagcast_shared.bucketing import VARIANT_BUCKETS, compile_bounds, compile_percentage
from flagcast_shared.constraints import TAKES, Takes
from flagcast_shared.errors import Refused
from flagcast_shared.ids import FlagKey, Namespace, SegmentKey, VariantKey
from flagcast_shared.limits import KEY_MAX_BYTES, METADATA_MAX_BYTES, TEXT_MAX_BYTES
from flagcast_shared.literals import format_float, parse_float, parse_instant
from flagcast_shared.records import Extent, encode_record

from .document import Constraint, Document, Flag, Rule, Segment, SegmentRollout, Text, Variant
from .findings import ALL_LISTED, Counts, Finding, Findings, Position, finding
from .nodes import ListNode, MapNode, Node, Scalar

CONSTRAINT_TYPES: Final[Mapping[str, model.ConstraintType]] = MappingProxyType(
    {
        "STRING_COMPARISON_TYPE": model.ConstraintType.STRING,
        "NUMBER_COMPARISON_TYPE": model.ConstraintType.NUMBER,
        "BOOLEAN_COMPARISON_TYPE": model.ConstraintType.BOOLEAN,
        "DATETIME_COMPARISON_TYPE": model.ConstraintType.DATETIME,
        "ENTITY_ID_COMPARISON_TYPE": model.ConstraintType.ENTITY,
    }
)
"""The file's words for the constraint types."""


@dataclass(frozen=True, slots=True)
class Compilation:
    """Result of compiling a flags file or folder. With an error among the findings, `namespaces` is empty.

    `findings` are the first FINDINGS_MAX, in order, errors before warnings where not all are listed; `unlisted`
    counts the others. `written_off` are the boolean flags with `enabled: false` in the file, which is more than leaving it out:
    somebody means that they are off.
    """

    namespaces: Mapping[Namespace, tuple[model.Entry, ...]]
    findings: tuple[Finding, ...]
    unlisted: Counts = ALL_LISTED
    written_off: frozenset[tuple[Namespace, FlagKey]] = frozenset()

    @property
    def has_errors(self) -> bool:
        """Whether nothing may be published."""
        return any(each.severity == "error" for each in self.findings)


def compile_documents(documents: Sequence[Document], found: Findings) -> Compilation:
    """The entries of every namespace, by kind, then key; `found` has what parsing found, and gets the rest."""
    namespaces = {
        Namespace(key): _compile_namespace(merged, found) for key, merged in by_namespace(documents).items()
    }
    listed = found.listed()
    if any(each.severity == "error" for each in listed):
        namespaces = {}
    written_off = frozenset(
        (Namespace(document.namespace.value), FlagKey(flag.key.value))
        for document in documents
        for flag in document.flags
        if flag.is_boolean and not flag.enabled and flag.enabled_at is not None
    )
    return Compilation(MappingProxyType(namespaces), listed, found.unlisted(), written_off)


def by_namespace(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """Documents of each namespace, in the order in which they are read."""
    merged: dict[str, list[Document]] = {}
    for document in documents:
        merged.setdefault(document.namespace.value, []).append(document)
    return merged


def compile_constraint(constraint: Constraint, file: str, found: Findings) -> model.Constraint | Finding:
    """A constraint with its value parsed, or the error in it; `found` finds what a word may have meant."""
    try:
        return _compile_constraint(constraint, found)
    except _FaultError as fault:
        return finding(fault.code, file, fault.at, fault.message, fault.hint)


def json_text(text: str) -> str:
    """A string as Go marshals it: also <, >, &, U+2028 and U+2029 are escaped."""
    return _HTML.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def positive(rollout: float) -> bool:
    """Whether a distribution takes part: Flipt drops those that are not above 0 as a float32."""
    return _float32(rollout) > 0


def share_bounds(rollouts: Sequence[float]) -> tuple[int, ...]:
    """The bucket bounds of distributions that take part, in order; none for none."""
    return compile_bounds(rollouts) if rollouts else ()


def fused_bounds(rollouts: Sequence[float]) -> tuple[int, ...]:
    """The bounds that Flipt's server computes on arm64, where Go multiplies and adds in one rounding (FMA)."""
    shares = [_float32(rollout) for rollout in rollouts]
    total = 0.0
    for share in shares:
        total = _float32(total + share)
    cumulative = 0.0
    bounds = []
    for share in shares:
        # A float64 holds the product and, of shares of a rule, the sum too: it is rounded once, here.
        cumulative = _float32(cumulative + _float32(share / total) * 100.0)
        bounds.append(min(int(_float32(cumulative * 10.0)), VARIANT_BUCKETS))
    return (*bounds[:-1], VARIANT_BUCKETS) if bounds else ()


def _float32(number: float) -> float:
    narrowed: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return narrowed


_Keyed = TypeVar("_Keyed", Flag, Segment, Variant)


class _FaultError(Exception):
    """One thing that cannot be compiled."""

    def __init__(self, code: str, at: Position, message: str, hint: str = "") -> None:
        super().__init__(code, at, message, hint)
        self.code, self.at, self.message, self.hint = code, at, message, hint


class _Compiled(NamedTuple):
    """A flag or segment with its place."""

    file: str
    at: Position
    entry: model.Flag | model.Segment


class _FirstSeen(NamedTuple):
    """Keys of a namespace, each with the place where it stands first."""

    flags: dict[str, tuple[str, Position]]
    segments: dict[str, tuple[str, Position]]


def _compile_namespace(documents: Sequence[Document], found: Findings) -> tuple[model.Entry, ...]:
    """The entries of a namespace's documents, merged in their order as Flipt does; a key twice is an error."""
    before = found.added
    first = _FirstSeen({}, {})
    later = {segment.key.value: document for document in documents for segment in document.segments}
    flags: list[_Compiled] = []
    segments: list[_Compiled] = []
    for document in documents:
        compiler = _Compiler(document, first, later, found)
        flags += compiler.flags()
        segments += compiler.segments()
    compiled = [*sorted(flags, key=_key_of), *sorted(segments, key=_key_of)]
    if found.added == before:
        _check_sizes(compiled, documents[0], found)
    return tuple(each.entry for each in compiled)


def _key_of(compiled: _Compiled) -> str:
    return compiled.entry.key


def _check_sizes(compiled: Sequence[_Compiled], document: Document, found: Findings) -> None:
    total = Extent()
    for file, at, entry in compiled:
        try:
            total += encode_record(entry).extent
        except Refused as error:
            hint = "Shorten attachments or lists, or split the flag."
            found.add(finding("FC135", file, at, str(error), hint))
    if fault := total.over_limit():
        said = f"the namespace compiles to {fault}"
        found.add(finding("FC135", document.file, document.at, said, "Split the namespace."))


class _Compiler:
    """Compiles one document of a namespace.

    `first` has the keys of the documents before it, and gets its own; `later` are the segments of all documents.
    """

    def __init__(
        self, document: Document, first: _FirstSeen, later: Mapping[str, Document], found: Findings
    ) -> None:
        self._found = found
        self._document = document
        self._first = first
        self._later = later
        self._own_segments = self._unique("segment", document.segments, first.segments)

    def flags(self) -> list[_Compiled]:
        unique = self._unique("flag", self._document.flags, self._first.flags)
        return [_Compiled(self._document.file, flag.at, self._flag(flag)) for flag in unique]

    def segments(self) -> list[_Compiled]:
        return [
            _Compiled(self._document.file, segment.at, self._segment(segment))
            for segment in self._own_segments
        ]

    def _flag(self, flag: Flag) -> model.Flag:
        what = f"flag {flag.key.value!r}"
        key = FlagKey(flag.key.value)
        variants = tuple(
            self._variant(variant, what) for variant in self._unique(f"{what}: variant", flag.variants, {})
        )
        # Rules of a boolean flag are never evaluated; Flipt refuses a bad reference in them all the same.
        known = dict.fromkeys(sorted(str(variant.key) for variant in variants))
        rules = tuple(self._rule(rule, known, what) for rule in flag.rules)
        if flag.is_boolean:
            rollouts: list[model.Rollout] = []
            for rollout in flag.rollouts:
                if isinstance(rollout, SegmentRollout):
                    keys = self._references(rollout.segments, f"{what}, rollout")
                    rollouts.append(model.SegmentRollout(keys, rollout.join, rollout.value))
                else:
                    rollouts.append(
                        model.ThresholdRollout(compile_percentage(rollout.percentage.value), rollout.value)
                    )
            return model.BooleanFlag(key, flag.enabled, tuple(rollouts), self._metadata(flag, what))
        # As in Flipt, the last variant that calls itself the default is it.
        defaults = [VariantKey(variant.key.value) for variant in flag.variants if variant.is_default]
        default = defaults[-1] if defaults else None
        return model.VariantFlag(key, flag.enabled, variants, default, rules, self._metadata(flag, what))

    def _metadata(self, flag: Flag, what: str) -> str:
        """The metadata that OpenFeature has a type for, as JSON text; the linter warns of the rest."""
        entries = tuple((key, value) for key, value in flag.metadata if isinstance(value, Scalar))
        if not entries:
            return ""
        writer = _JsonWriter("metadata", METADATA_MAX_BYTES, is_json=self._document.is_json)
        try:
            writer.write(MapNode(flag.at, entries))
        except _FaultError as fault:
            self._say(fault.code, fault.at, f"{what}: {fault.message}", fault.hint)
        return "".join(writer.parts)

    def _variant(self, variant: Variant, what: str) -> model.Variant:
        what = f"{what}, variant {variant.key.value[:40]!r}"
        if len(variant.key.value.encode()) > KEY_MAX_BYTES:
            said = f"{what}: its key is {len(variant.key.value.encode())} bytes, at most {KEY_MAX_BYTES}"
            self._say(
                "FC116", variant.key.at, said, "Shorten the key; a longer text belongs in the attachment."
            )
        writer = _JsonWriter("attachment", TEXT_MAX_BYTES, is_json=self._document.is_json)
        try:
            if variant.attachment is not None:
                writer.write(variant.attachment)
        except _FaultError as fault:
            self._say(fault.code, fault.at, f"{what}: {fault.message}", fault.hint)
        return model.Variant(VariantKey(variant.key.value), "".join(writer.parts))

    def _rule(self, rule: Rule, variants: Mapping[str, None], what: str) -> model.Rule:
        what = f"{what}, rule"
        segments = self._references(rule.segments, what)
        for distribution in rule.distributions:
            name, at = distribution.variant
            if name not in variants:
                hint = _did_you_mean(name, variants, self._found)
                self._say("FC124", at, f"{what}: unknown variant {name[:60]!r}", hint)
        taking_part = [each for each in rule.distributions if positive(each.rollout.value)]
        bounds = share_bounds([each.rollout.value for each in taking_part])
        return model.Rule(
            segments,
            rule.join,
            tuple(
                model.Distribution(VariantKey(each.variant.value), bound)
                for each, bound in zip(taking_part, bounds, strict=True)
            ),
        )

    def _references(self, segments: Sequence[Text], what: str) -> tuple[SegmentKey, ...]:
        for name, at in segments:
            if name in self._first.segments:
                continue
            if name in self._later:
                document = self._later[name]
                said = f"{what}: segment {name!r} stands in a later document, in {document.file}, line {document.at.line}"
                hint = "Flipt reads documents in order: move the segment here, or into an earlier document."
            else:
                said = f"{what}: unknown segment {name!r}"
                hint = _did_you_mean(name, self._first.segments, self._found)
            self._say("FC123", at, said, hint)
        return tuple(SegmentKey(name) for name in dict.fromkeys(name for name, _ in segments))

    def _segment(self, segment: Segment) -> model.Segment:
        constraints = []
        for constraint in segment.constraints:
            compiled = compile_constraint(constraint, self._document.file, self._found)
            if isinstance(compiled, Finding):
                self._found.add(compiled)
            else:
                constraints.append(compiled)
        return model.Segment(SegmentKey(segment.key.value), segment.match, tuple(constraints))

    def _unique(
        self, what: str, items: Sequence[_Keyed], first: dict[str, tuple[str, Position]]
    ) -> list[_Keyed]:
        """Those whose key is theirs alone; Flipt would silently take the last."""
        file = self._document.file
        unique: list[_Keyed] = []
        for item in items:
            key, at = item.key
            if key in first:
                before, place = first[key]
                where = f"line {place.line}" if before == file else f"{before}, line {place.line}"
                said = f"{what} {key[:60]!r} stands twice, first in {where}"
                self._say("FC122", at, said, "Rename one, or remove it.")
            else:
                first[key] = file, at
                unique.append(item)
        return unique

    def _say(self, code: str, at: Position, message: str, hint: str = "") -> None:
        self._found.add(finding(code, self._document.file, at, message, hint))


def _compile_constraint(constraint: Constraint, found: Findings) -> model.Constraint:
    kind = CONSTRAINT_TYPES.get(constraint.type.value)
    if kind is None:
        said = f"unknown constraint type {constraint.type.value[:60]!r}"
        raise _FaultError(
            "FC131",
            constraint.type.at,
            said,
            _did_you_mean(constraint.type.value, sorted(CONSTRAINT_TYPES), found),
        )
    operators = [str(operator) for type_, operator in TAKES if type_ is kind]
    word = constraint.operator.value
    if word not in operators:
        said = f"{constraint.type.value} has no operator {word[:60]!r}"
        near = _OPERATOR_HINTS.get(word.lower())
        hint = f"Did you mean {near!r}?" if near in operators else f"It has {', '.join(operators)}."
        raise _FaultError("FC131", constraint.operator.at, said, hint)
    operator = model.Operator(word)
    if len(constraint.property.value.encode()) > TEXT_MAX_BYTES:
        raise _FaultError("FC135", constraint.property.at, f"a property of more than {TEXT_MAX_BYTES} bytes")
    value = _compile_value(constraint, TAKES[kind, operator])
    for text in value if isinstance(value, tuple) and not isinstance(value, model.Instant) else (value,):
        if isinstance(text, str) and len(text.encode()) > TEXT_MAX_BYTES:
            raise _FaultError("FC135", constraint.at, f"a value of more than {TEXT_MAX_BYTES} bytes")
    # On the entity id the property is ignored; it is left out so that nobody reads a meaning into it.
    name = "" if kind is model.ConstraintType.ENTITY else constraint.property.value
    return model.Constraint(kind, name, operator, value)


def _compile_value(constraint: Constraint, takes: Takes) -> model.ConstraintValue:
    node = constraint.value
    at = constraint.at if node is None else node.at
    word = constraint.operator.value
    if isinstance(node, ListNode):
        if takes in (Takes.TEXTS, Takes.NUMBERS):
            return tuple(_element(item, takes) for item in node.items)
        code = "FC113" if takes is Takes.NONE else "FC132"
        hint = "Remove the value." if takes is Takes.NONE else "Use isoneof or isnotoneof for a list."
        raise _FaultError(code, at, f"operator {word} does not take a list", hint)
    if isinstance(node, MapNode) or (node is not None and not isinstance(node.value, str)):
        hint = "Write it as text, in quotes."
        found = "a mapping"
        if isinstance(node, Scalar):
            found = node.text[:40] or "nothing"
            hint = f'Quote it: "{node.text}".' if node.value is not None else 'Write "", or remove the field.'
        if takes is Takes.NONE:
            hint = "Remove the value; the operator uses none."
        raise _FaultError("FC113", at, f"constraint value: expected text, found {found}", hint)
    # Without a value Flipt's operators compare with "".
    text = "" if node is None else node.text
    match takes:
        case Takes.NONE:
            return None
        case Takes.TEXT:
            return text
        case Takes.NUMBER:
            number = parse_float(text)
            if number is None:
                hint = "Write a decimal such as 5, -1.5 or 1e3, without spaces."
                raise _FaultError("FC132", at, f"{text[:60]!r} is not a number", hint)
            return format_float(number)
        case Takes.INSTANT:
            instant = parse_instant(text)
            if instant is None:
                hint = 'Write RFC 3339 with a zone, such as "2026-01-31T09:30:00Z", or a date alone.'
                raise _FaultError("FC132", at, f"{text[:60]!r} is not an instant", hint)
            return instant
        case Takes.TEXTS | Takes.NUMBERS:
            return _json_list(text, at, takes)


def _element(node: Node, takes: Takes) -> str:
    """One element of a YAML list."""
    if takes is Takes.TEXTS:
        if isinstance(node, Scalar) and isinstance(node.value, str):
            return node.value
        hint = f'Quote it: "{node.text}".' if isinstance(node, Scalar) else "Write text."
        raise _FaultError("FC133", node.at, "an element of the list is not text", hint)
    if isinstance(node, Scalar) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        number = parse_float(str(node.value))
        if number is not None and number - number == 0:
            return format_float(number)
    raise _FaultError("FC133", node.at, "an element of the list is not a number", "Write it without quotes.")


def _json_list(text: str, at: Position, takes: Takes) -> tuple[str, ...]:
    """A list as JSON text, as `encoding/json` reads it into a list of strings or of float64."""
    example = '["a", "b"]' if takes is Takes.TEXTS else "[1, 2.5]"
    hint = f"Write JSON in single quotes: '{example}'; from format 1.6 a YAML list."
    try:
        listed = json.loads(text, parse_int=_JsonNumber, parse_float=_JsonNumber, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        said = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep, or not JSON"
        raise _FaultError("FC133", at, f"the list is not valid JSON: {said}", hint) from error
    if not isinstance(listed, list):
        raise _FaultError("FC133", at, "the value is JSON, but not a list", hint)
    elements: list[str] = []
    for element in listed:
        if takes is Takes.TEXTS:
            if not isinstance(element, str) or isinstance(element, _JsonNumber):
                raise _FaultError("FC133", at, f"element {element!r:.40} of the list is not text", hint)
            # Go puts U+FFFD for half of a surrogate pair.
            elements.append(_SURROGATE.sub("\ufffd", element))
            continue
        number = parse_float(element) if isinstance(element, _JsonNumber) else None
        if number is None:
            raise _FaultError("FC133", at, f"element {element!r:.40} of the list is not a number", hint)
        elements.append(format_float(number))
    return tuple(elements)


class _JsonNumber(str):
    """A number of JSON text, as written."""

    __slots__ = ()


def _refuse(name: str) -> str:
    raise ValueError(name)


class _JsonWriter:
    """Writes a tree as compact JSON, as Go's `encoding/json` does.

    It gives up at the size limit: aliases can stand for far more than the file holds.
    """

    def __init__(self, what: str, max_bytes: int, *, is_json: bool) -> None:
        self.parts: list[str] = []
        self._what = what
        self._max_bytes = self._left = max_bytes
        self._is_json = is_json

    def write(self, node: Node) -> None:
        match node:
            case Scalar():
                self._put(self._scalar(node), node.at)
            case ListNode():
                for place, item in enumerate(node.items):
                    self._put("," if place else "[", node.at)
                    self.write(item)
                self._put("]" if node.items else "[]", node.at)
            case MapNode():
                for key, _ in node.entries:
                    if not isinstance(key.value, str):
                        said = f"the {self._what}'s key {key.text[:40]!r} is not text"
                        raise _FaultError("FC134", key.at, said, f'Quote it: "{key.text}".')
                # Go sorts by the bytes of UTF-8, which is the order of code points.
                ordered = sorted(node.entries, key=lambda entry: entry[0].text)
                for place, (key, value) in enumerate(ordered):
                    self._put(("," if place else "{") + json_text(key.text) + ":", key.at)
                    self.write(value)
                self._put("}" if ordered else "{}", node.at)

    def _put(self, text: str, at: Position) -> None:
        self._left -= len(text.encode())
        if self._left < 0:
            said = f"the {self._what} is larger than {self._max_bytes} bytes of JSON"
            raise _FaultError("FC135", at, said, "Shorten it, or ship it with the software and name it here.")
        self.parts.append(text)

    def _scalar(self, node: Scalar) -> str:
        value = node.value
        if isinstance(value, str):
            if node.is_plain and self._is_json:
                raise _FaultError(
                    "FC134", node.at, f"{node.text[:40]} is beyond a float64", "Write it as text."
                )
            return json_text(value)
        if value is None or isinstance(value, bool):
            return {None: "null", True: "true", False: "false"}[value]
        if isinstance(value, int) and not self._is_json:
            return str(value)
        # Go reads every number of a JSON file as a float64.
        number = float(node.text) if self._is_json else float(value)
        if number - number != 0:
            raise _FaultError("FC134", node.at, f"JSON has no {node.text}", 'Write it as text: ".inf".')
        return _go_number(number)


def _go_number(number: float) -> str:
    """A float64 as Go marshals it: ES6's form, so 1e21 but 100000000000000000000."""
    if number != 0 and not 1e-6 <= abs(number) < 1e21:
        return repr(number).replace("e-0", "e-")
    return format(Decimal(repr(number)), "f").removesuffix(".0")


def _did_you_mean(word: str, known: Collection[str], found: Findings) -> str:
    near = found.nearest(word, known)
    if near is not None:
        return f"Did you mean {near!r}?"
    if not known:
        return "There are none."
    return f"There are {', '.join(islice(known, 8))}{' and more' if len(known) > 8 else ''}."


_HTML: Final = re.compile("[<>&\u2028\u2029]")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")

_OPERATOR_HINTS: Final = {
    "equals": "eq",
    "=": "eq",
    "==": "eq",
    "ne": "neq",
    "!=": "neq",
    "le": "lte",
    "<": "lt",
    "<=": "lte",
    "ge": "gte",
    ">": "gt",
    ">=": "gte",
    "in": "isoneof",
    "notin": "isnotoneof",
    "startswith": "prefix",
    "endswith": "suffix",
    "exists": "present",
    **{str(operator): str(operator) for operator in model.Operator},
}
