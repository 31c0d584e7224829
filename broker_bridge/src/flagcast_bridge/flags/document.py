"""Flags files -> documents: the fields, types and words of `features.yml` 1.0 to 1.6, each with its place.

What Flipt's schema refuses is an error here. References, constraint values and what takes the whole namespace
into account are the compiler's. After an error the rest is still read: one run shows all of them.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Final, NamedTuple, TypeVar

from flagcast_shared.limits import KEY_MAX_BYTES
from flagcast_shared.model import Join, Match

from .findings import Finding, Findings, Position, finding
from .nodes import ListNode, MapNode, Node, Scalar, SourceFile, read_nodes

DEFAULT_NAMESPACE: Final = "default"

VERSIONS: Final = ("1.0", "1.1", "1.2", "1.3", "1.4", "1.5", "1.6")
"""The format versions that are read; a document without one is of the last."""

NAMESPACE_MAX_CHARACTERS: Final = 100
"""As `flagcast_shared.ids.parse_namespace`: a namespace is a level of MQTT topics."""


class Text(NamedTuple):
    """A text and its place."""

    value: str
    at: Position


class Number(NamedTuple):
    """A finite number and its place."""

    value: float
    at: Position


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant; `attachment` is None when absent or null."""

    at: Position
    key: Text
    is_default: bool
    attachment: Node | None


@dataclass(frozen=True, slots=True)
class Distribution:
    """A share of a rule, in percent."""

    variant: Text
    rollout: Number


@dataclass(frozen=True, slots=True)
class Rule:
    """A variant flag's rule; `rank` is what the file says, which Flipt ignores.

    `bare_list` is the place of its segments where they are a list without `keys`.
    """

    at: Position
    segments: tuple[Text, ...]
    join: Join
    distributions: tuple[Distribution, ...]
    rank: Number | None
    bare_list: Position | None = None


@dataclass(frozen=True, slots=True)
class ThresholdRollout:
    """A share of all entities, in percent."""

    at: Position
    percentage: Number
    value: bool


@dataclass(frozen=True, slots=True)
class SegmentRollout:
    """The entities of segments."""

    at: Position
    segments: tuple[Text, ...]
    join: Join
    value: bool


Rollout = ThresholdRollout | SegmentRollout


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of either type; `enabled_at` is None where the file leaves `enabled` out, which means false.

    `metadata` is empty where there is none that a finding allows.
    """

    at: Position
    key: Text
    is_boolean: bool
    enabled: bool
    enabled_at: Position | None
    variants: tuple[Variant, ...]
    rules: tuple[Rule, ...]
    rollouts: tuple[Rollout, ...]
    metadata: tuple[tuple[Scalar, Node], ...] = ()


@dataclass(frozen=True, slots=True)
class Constraint:
    """A constraint as written; type, operator and value are judged by the compiler."""

    at: Position
    type: Text
    property: Text
    operator: Text
    value: Node | None


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment."""

    at: Position
    key: Text
    match: Match
    constraints: tuple[Constraint, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """One namespace of one file; `folder` is its folder's name in Flipt v2's layout."""

    file: str
    at: Position
    is_json: bool
    folder: str | None
    namespace: Text
    flags: tuple[Flag, ...]
    segments: tuple[Segment, ...]


def parse(source: SourceFile, found: Findings) -> tuple[Document, ...]:
    """The documents of a file, as far as they can be read; everything wrong with their form goes to `found`."""
    before = found.added
    nodes = read_nodes(source.path, source.content, found)
    if not nodes and found.added == before:
        said = "the file holds no document"
        hint = "Write `namespace: default`, `flags: []` and `segments: []`, or remove the file."
        found.add(finding("FC107", source.path, Position(1, 1), said, hint))
    documents = (_Reader(source, found).document(node) for node in nodes)
    return tuple(document for document in documents if document is not None)


def disputed(file: str, node: Scalar, what: str) -> Finding:
    """What to say of a plain scalar that is text here and something else to another reader of YAML."""
    said = f"{what}: {node.text} is text here; other readers of YAML see a number, a date or a boolean"
    if node.is_date:
        said = f"{what}: {node.text} is text here; Flipt rewrites a date that is not quoted"
    return finding("FC211", file, node.at, said, f'Quote it: "{node.text}".')


_Field = Mapping[str, str]
"""The fields of a mapping, each with the version from which Flipt's schema knows it."""

_DOCUMENT: Final[_Field] = {"version": "1.0", "namespace": "1.0", "flags": "1.0", "segments": "1.0"}
_NAMESPACE: Final[_Field] = {"key": "1.0", "name": "1.0", "description": "1.0"}
_FLAG: Final[_Field] = {
    "key": "1.0",
    "name": "1.0",
    "description": "1.0",
    "enabled": "1.0",
    "variants": "1.0",
    "rules": "1.0",
    "type": "1.1",
    "rollouts": "1.1",
    "metadata": "1.3",
}
_VARIANT: Final[_Field] = {
    "key": "1.0",
    "name": "1.0",
    "description": "1.0",
    "attachment": "1.0",
    "default": "1.3",
}
_RULE: Final[_Field] = {"segment": "1.0", "rank": "1.0", "distributions": "1.0"}
_RULE_SEGMENT: Final[_Field] = {"keys": "1.0", "operator": "1.0"}
_DISTRIBUTION: Final[_Field] = {"variant": "1.0", "rollout": "1.0"}
_ROLLOUT: Final[_Field] = {"description": "1.0", "segment": "1.0", "threshold": "1.0"}
_ROLLOUT_SEGMENT: Final[_Field] = {"key": "1.0", "keys": "1.0", "operator": "1.0", "value": "1.0"}
_THRESHOLD: Final[_Field] = {"percentage": "1.0", "value": "1.0"}
_SEGMENT: Final[_Field] = {
    "key": "1.0",
    "name": "1.0",
    "description": "1.0",
    "match_type": "1.0",
    "constraints": "1.0",
}
_CONSTRAINT: Final[_Field] = {
    "type": "1.0",
    "property": "1.0",
    "operator": "1.0",
    "value": "1.0",
    "description": "1.0",
}

_JOINS: Final = {"OR_SEGMENT_OPERATOR": Join.OR, "AND_SEGMENT_OPERATOR": Join.AND}
_MATCHES: Final = {"ALL_MATCH_TYPE": Match.ALL, "ANY_MATCH_TYPE": Match.ANY}
_FLAG_TYPES: Final = {"VARIANT_FLAG_TYPE": False, "BOOLEAN_FLAG_TYPE": True}

_KEY: Final = re.compile(r"[-_,A-Za-z0-9]+")
_T = TypeVar("_T")


class _Reader:
    """Reads one document and collects what is wrong with it. What cannot be read is None or left out."""

    def __init__(self, source: SourceFile, found: Findings) -> None:
        self._found = found
        self._source = source
        self._version = VERSIONS[-1]

    def document(self, node: Node) -> Document | None:
        fields = self._fields(node, _DOCUMENT, "document", version_is_known=False)
        if fields is None:
            return None
        self._read_version(fields.get("version"))
        namespace = self._namespace(fields.get("namespace"), node.at)
        # The rest is read for its findings even where the namespace is unknown.
        segments = tuple(self._each(fields.get("segments"), "segments", self._segment))
        flags = tuple(self._each(fields.get("flags"), "flags", self._flag))
        if namespace is None:
            return None
        source = self._source
        return Document(
            file=source.path,
            at=node.at,
            is_json=source.path.endswith(".json"),
            folder=source.folder,
            namespace=namespace,
            flags=flags,
            segments=segments,
        )

    def _read_version(self, node: Node | None) -> None:
        if node is None:
            return
        known = f"{', '.join(VERSIONS[:-1])} or {VERSIONS[-1]}"
        if isinstance(node, Scalar) and not isinstance(node.value, str) and node.text in VERSIONS:
            self._say("FC113", node.at, f"version {node.text} is a number", f'Write version: "{node.text}".')
            self._version = node.text
            return
        version = self._text(node, "version")
        if version is not None and version.value not in VERSIONS:
            hint = f"Write one of {known}, in quotes."
            self._say("FC115", version.at, f"format version {version.value!r} is not known", hint)
        elif version is not None:
            self._version = version.value

    def _namespace(self, node: Node | None, at: Position) -> Text | None:
        if node is None:
            return Text(DEFAULT_NAMESPACE, at)
        if isinstance(node, MapNode):
            self._newer("1.4", node.at, "a namespace as a mapping")
            fields = self._fields(node, _NAMESPACE, "namespace") or {}
            self._optional_name(fields, "namespace")
            if "key" not in fields:
                return Text(DEFAULT_NAMESPACE, node.at)
            key = self._key(fields["key"], "namespace")
        else:
            key = self._key(node, "namespace")
        if key is not None and len(key.value) > NAMESPACE_MAX_CHARACTERS:
            said = f"namespace {key.value[:20]!r}...: {len(key.value)} characters"
            self._say(
                "FC116", key.at, said, f"At most {NAMESPACE_MAX_CHARACTERS}; it is part of MQTT topics."
            )
            return None
        return key

    def _flag(self, node: Node) -> Flag | None:
        fields = self._fields(node, _FLAG, "flag")
        if fields is None:
            return None
        key = self._required(fields, "key", "flag", node.at, lambda each: self._key(each, "flag key"))
        what = f"flag {key.value!r}" if key else "flag"
        self._required_name(fields, what, node.at)
        is_boolean = self._word(fields.get("type"), _FLAG_TYPES, f"{what}, type", default=False)
        enabled = self._boolean(fields.get("enabled"), f"{what}, enabled")
        metadata = self._metadata(fields.get("metadata"), what)
        variants = tuple(
            self._each(fields.get("variants"), f"{what}, variants", lambda each: self._variant(each, what))
        )
        rules = tuple(self._each(fields.get("rules"), f"{what}, rules", lambda each: self._rule(each, what)))
        rollouts: tuple[Rollout, ...] = ()
        if is_boolean:
            rollouts = tuple(
                self._each(
                    fields.get("rollouts"), f"{what}, rollouts", lambda each: self._rollout(each, what)
                )
            )
        elif "rollouts" in fields and is_boolean is not None:
            said = f"{what}: rollouts on a variant flag"
            hint = "Add type: BOOLEAN_FLAG_TYPE, or give a variant flag rules."
            self._say("FC126", fields["rollouts"].at, said, hint)
        if key is None:
            return None
        enabled_at = fields["enabled"].at if "enabled" in fields else None
        return Flag(
            node.at, key, bool(is_boolean), bool(enabled), enabled_at, variants, rules, rollouts, metadata
        )

    def _metadata(self, node: Node | None, what: str) -> tuple[tuple[Scalar, Node], ...]:
        """The entries of a flag's metadata, of any value but null, as Flipt's schema takes them."""
        if node is None:
            return ()
        if not isinstance(node, MapNode):
            self._wrong(node, f"{what}, metadata", "a mapping")
            return ()
        for key, value in node.entries:
            if not isinstance(key.value, str):
                self._wrong(key, f"{what}, metadata key {key.text!r}", "text", f'Write "{key.text}".')
            if isinstance(value, Scalar) and value.value is None:
                self._wrong(value, f"{what}, metadata {key.text!r}", "a value", "Remove the key.")
        return node.entries

    def _variant(self, node: Node, what: str) -> Variant | None:
        fields = self._fields(node, _VARIANT, f"{what}, variant")
        if fields is None:
            return None
        key = self._required(
            fields,
            "key",
            f"{what}, variant",
            node.at,
            lambda each: self._variant_key(each, f"{what}, variant key"),
        )
        if key is not None:
            what = f"{what}, variant {key.value!r}"
        self._optional_name(fields, what)
        is_default = self._boolean(fields.get("default"), f"{what}, default")
        attachment = fields.get("attachment")
        if isinstance(attachment, Scalar):
            if attachment.value is None:
                attachment = None
            else:
                said = f"{what}: the attachment is a single value; Flipt's schema takes a mapping or a list"
                self._say("FC213", attachment.at, said, "Write a mapping, such as {value: ...}.")
        return None if key is None else Variant(node.at, key, bool(is_default), attachment)

    def _rule(self, node: Node, what: str) -> Rule | None:
        what = f"{what}, rule"
        fields = self._fields(node, _RULE, what)
        if fields is None:
            return None
        segments, join = self._required(
            fields, "segment", what, node.at, lambda each: self._segments(each, what)
        ) or (
            (),
            Join.OR,
        )
        distributions = tuple(
            self._each(
                fields.get("distributions"),
                f"{what}, distributions",
                lambda each: self._distribution(each, what),
            )
        )
        rank = None
        if "rank" in fields:
            rank = self._number(fields["rank"], f"{what}, rank")
            if rank is not None and rank.value != int(rank.value):
                self._wrong(fields["rank"], f"{what}, rank", "a whole number")
        bare = fields.get("segment")
        bare_list = bare.at if isinstance(bare, ListNode) else None
        return Rule(node.at, segments, join, distributions, rank, bare_list)

    def _segments(self, node: Node, what: str) -> tuple[tuple[Text, ...], Join] | None:
        """A rule's `segment`: a key, a list of keys, or a mapping of keys and operator."""
        if isinstance(node, MapNode):
            self._newer("1.2", node.at, f"{what}: several segments")
            fields = self._fields(node, _RULE_SEGMENT, f"{what}, segment")
            if fields is None or (not fields and node.entries):
                return None
            return self._keys(fields.get("keys"), what), self._join(fields.get("operator"), what)
        if isinstance(node, ListNode):
            self._newer("1.5", node.at, f"{what}: a bare list of segments")
            return self._keys(node, what), Join.OR
        key = self._key(node, f"{what}, segment")
        return None if key is None else ((key,), Join.OR)

    def _distribution(self, node: Node, what: str) -> Distribution | None:
        what = f"{what}, distribution"
        fields = self._fields(node, _DISTRIBUTION, what)
        if fields is None:
            return None
        variant = self._required(
            fields, "variant", what, node.at, lambda each: self._variant_key(each, f"{what}, variant")
        )
        rollout = self._required(
            fields, "rollout", what, node.at, lambda each: self._number(each, f"{what}, rollout")
        )
        if rollout is not None and not 0 <= rollout.value <= 100:
            said = f"{what}: rollout {rollout.value:g} is outside 0 to 100"
            self._say(
                "FC118", rollout.at, said, "A rollout is a percentage of the entities that match the rule."
            )
        return Distribution(variant, rollout) if variant is not None and rollout is not None else None

    def _rollout(self, node: Node, what: str) -> Rollout | None:
        what = f"{what}, rollout"
        fields = self._fields(node, _ROLLOUT, what)
        if fields is None:
            return None
        self._description(fields, what)
        segment, threshold = fields.get("segment"), fields.get("threshold")
        if segment is not None and threshold is None:
            return self._segment_rollout(segment, node.at, what)
        if threshold is not None and segment is None:
            return self._threshold_rollout(threshold, node.at, what)
        said = f"{what}: both segment and threshold" if segment else f"{what}: neither segment nor threshold"
        hint = "A rollout has exactly one of them; write two rollouts, in the order of their trial."
        self._say("FC125", node.at, said, hint)
        return None

    def _segment_rollout(self, node: Node, at: Position, what: str) -> SegmentRollout | None:
        fields = self._fields(node, _ROLLOUT_SEGMENT, f"{what}, segment")
        if fields is None:
            return None
        value = self._boolean(fields.get("value"), f"{what}, value")
        join = self._join(fields.get("operator"), what)
        segments: tuple[Text, ...] = ()
        if ("key" in fields) == ("keys" in fields):
            said = f"{what}: {'both' if 'key' in fields else 'neither of'} key and keys"
            self._say("FC127", node.at, said, "Write key for one segment, keys for a list of them.")
        elif "key" in fields:
            key = self._key(fields["key"], f"{what}, segment")
            segments = () if key is None else (key,)
        else:
            segments = self._keys(fields["keys"], what)
        return SegmentRollout(at, segments, join, bool(value))

    def _threshold_rollout(self, node: Node, at: Position, what: str) -> ThresholdRollout | None:
        what = f"{what}, threshold"
        fields = self._fields(node, _THRESHOLD, what)
        if fields is None:
            return None
        value = self._boolean(fields.get("value"), f"{what}, value")
        percentage = self._required(
            fields, "percentage", what, node.at, lambda each: self._number(each, f"{what}, percentage")
        )
        return None if percentage is None else ThresholdRollout(at, percentage, bool(value))

    def _segment(self, node: Node) -> Segment | None:
        fields = self._fields(node, _SEGMENT, "segment")
        if fields is None:
            return None
        key = self._required(fields, "key", "segment", node.at, lambda each: self._key(each, "segment key"))
        what = f"segment {key.value!r}" if key else "segment"
        self._required_name(fields, what, node.at)
        if "match_type" not in fields:
            said = f"{what}: match_type is missing; Flipt's schema demands it, ALL_MATCH_TYPE is assumed"
            self._say("FC213", node.at, said, "Write match_type: ALL_MATCH_TYPE, or ANY_MATCH_TYPE.")
        match = self._word(fields.get("match_type"), _MATCHES, f"{what}, match_type", default=Match.ALL)
        constraints = tuple(
            self._each(
                fields.get("constraints"), f"{what}, constraints", lambda each: self._constraint(each, what)
            )
        )
        return None if key is None else Segment(node.at, key, match or Match.ALL, constraints)

    def _constraint(self, node: Node, what: str) -> Constraint | None:
        what = f"{what}, constraint"
        fields = self._fields(node, _CONSTRAINT, what)
        if fields is None:
            return None
        self._description(fields, what)
        kind, name, operator = (
            self._required(fields, field, what, node.at, partial(self._reference, what=f"{what}, {field}"))
            for field in ("type", "property", "operator")
        )
        value = fields.get("value")
        if isinstance(value, ListNode):
            self._newer("1.6", value.at, f"{what}: a list as a value")
        if kind is None or name is None or operator is None:
            return None
        return Constraint(node.at, kind, name, operator, value)

    def _say(self, code: str, at: Position, message: str, hint: str = "") -> None:
        self._found.add(finding(code, self._source.path, at, message, hint))

    def _newer(self, version: str, at: Position, what: str) -> None:
        """What Flipt's schema takes in every version, and older Flipts do not understand."""
        if self._version < version:
            said = f"{what} is of format {version}, the document of {self._version}"
            self._say(
                "FC212", at, said, f'Write version: "{version}" at the top, so that older tools refuse it.'
            )

    def _fields(
        self, node: Node, known: _Field, what: str, *, version_is_known: bool = True
    ) -> dict[str, Node] | None:
        """The fields of a mapping that its version of the format has; None when it is no mapping."""
        if not isinstance(node, MapNode):
            self._wrong(node, what, "a mapping")
            return None
        fields: dict[str, Node] = {}
        for key, value in node.entries:
            name = key.value
            if not isinstance(name, str) or name not in known:
                near = self._found.nearest(key.text, known)
                hint = f"Did you mean {near!r}?" if near else f"It may have {', '.join(known)}."
                self._say("FC111", key.at, f"{what}: unknown field {key.text[:60]!r}", hint)
            elif version_is_known and known[name] > self._version:
                said = f"{what}: field {name!r} is of format {known[name]}, the document of {self._version}"
                self._say(
                    "FC114", key.at, said, f'Write version: "{known[name]}" at the top of the document.'
                )
                # It is read all the same: its own mistakes are worth hearing in the same run.
                fields[name] = value
            else:
                fields[name] = value
        return fields

    def _each(self, node: Node | None, what: str, read: Callable[[Node], _T | None]) -> Iterator[_T]:
        if node is None:
            return
        if not isinstance(node, ListNode):
            empty = isinstance(node, Scalar) and node.value is None
            self._wrong(node, what, "a list", "Remove the line, or write []." if empty else "")
            return
        for item in node.items:
            result = read(item)
            if result is not None:
                yield result

    def _required(
        self,
        fields: Mapping[str, Node],
        name: str,
        what: str,
        at: Position,
        read: Callable[[Node], _T | None],
    ) -> _T | None:
        if name not in fields:
            self._say(
                "FC112", at, f"{what}: {name} is missing", f"Add {name}; Flipt refuses the file without it."
            )
            return None
        return read(fields[name])

    def _required_name(self, fields: Mapping[str, Node], what: str, at: Position) -> None:
        self._required(fields, "name", what, at, lambda each: self._name(each, f"{what}, name"))
        self._description(fields, what)

    def _optional_name(self, fields: Mapping[str, Node], what: str) -> None:
        if "name" in fields:
            self._name(fields["name"], f"{what}, name")
        self._description(fields, what)

    def _description(self, fields: Mapping[str, Node], what: str) -> None:
        node = fields.get("description")
        if node is not None and not (isinstance(node, Scalar) and node.value is None):
            self._text(node, f"{what}, description")

    def _text(self, node: Node, what: str) -> Text | None:
        if isinstance(node, Scalar) and isinstance(node.value, str):
            return Text(node.value, node.at)
        hint = ""
        if isinstance(node, Scalar) and node.value is not None:
            hint = f'Quote it: "{node.text}".'
        self._wrong(node, what, "text", hint)
        return None

    def _reference(self, node: Node, what: str) -> Text | None:
        """A name that is compared with others."""
        self._dispute(node, what)
        return self._name(node, what)

    def _variant_key(self, node: Node, what: str) -> Text | None:
        """A name in any script that is printed on terminals, in logs and in reports: all of it prints."""
        key = self._reference(node, what)
        if key is not None and not key.value.isprintable():
            said = f"{what} {key.value[:60]!r} has a character that does not print"
            hint = "Use letters of any script, digits, punctuation and plain spaces; no control, mark of direction or joiner."
            self._say("FC116", key.at, said, hint)
            return None
        return key

    def _dispute(self, node: Node, what: str) -> None:
        if isinstance(node, Scalar) and node.is_disputed:
            self._found.add(disputed(self._source.path, node, what))

    def _name(self, node: Node, what: str) -> Text | None:
        """Text of at least one character on one line: Flipt's schema matches it against `^.+$`."""
        text = self._text(node, what)
        if text is None:
            return None
        if not text.value or "\n" in text.value:
            said = f"{what} is empty" if not text.value else f"{what} has more than one line"
            self._say("FC116", text.at, said, "Write at least one character, on one line.")
            return None
        return text

    def _key(self, node: Node, what: str) -> Text | None:
        self._dispute(node, what)
        key = self._text(node, what)
        if key is None:
            return None
        # The characters of more than a key may have are not worth looking at one by one.
        if len(key.value) <= KEY_MAX_BYTES and not _KEY.fullmatch(key.value):
            said = f"{what} {key.value[:60]!r} is outside its alphabet"
            self._say("FC116", key.at, said, "Use one or more of letters, digits, '-', '_' and ','.")
            return None
        if len(key.value) > KEY_MAX_BYTES:
            said = f"{what} {key.value[:20]!r}...: {len(key.value.encode())} bytes"
            self._say(
                "FC116", key.at, said, f"At most {KEY_MAX_BYTES}; keys stand in logs, reports and metrics."
            )
            return None
        return key

    def _keys(self, node: Node | None, what: str) -> tuple[Text, ...]:
        return tuple(self._each(node, f"{what}, keys", lambda each: self._key(each, f"{what}, segment")))

    def _join(self, node: Node | None, what: str) -> Join:
        # Flipt's schema has null as this field's default, so that it may be written.
        if isinstance(node, Scalar) and node.value is None:
            return Join.OR
        return self._word(node, _JOINS, f"{what}, operator", default=Join.OR) or Join.OR

    def _word(self, node: Node | None, words: Mapping[str, _T], what: str, *, default: _T) -> _T | None:
        """One of a few words; the default when absent, None when it is another."""
        if node is None:
            return default
        word = self._text(node, what)
        if word is None:
            return None
        if word.value not in words:
            near = self._found.nearest(word.value.upper(), words)
            hint = f"Did you mean {near}?" if near else f"Write {' or '.join(words)}."
            self._say("FC117", word.at, f"{what}: {word.value[:60]!r} is not known", hint)
            return None
        return words[word.value]

    def _boolean(self, node: Node | None, what: str) -> bool | None:
        if node is None:
            return False
        if isinstance(node, Scalar) and isinstance(node.value, bool):
            return node.value
        hint = ""
        if isinstance(node, Scalar):
            hint = "Write true or false, without quotes; yes, no, on and off are text in YAML 1.2."
        self._wrong(node, what, "true or false", hint)
        return None

    def _number(self, node: Node, what: str) -> Number | None:
        if (
            isinstance(node, Scalar)
            and isinstance(node.value, int | float)
            and not isinstance(node.value, bool)
        ):
            if isfinite(node.value):
                return Number(float(node.value), node.at)
            self._say("FC118", node.at, f"{what}: {node.text} is not a finite number", "Write a number.")
            return None
        hint = "Write it without quotes, as a plain decimal." if isinstance(node, Scalar) else ""
        self._wrong(node, what, "a number", hint)
        return None

    def _wrong(self, node: Node, what: str, expected: str, hint: str = "") -> None:
        match node:
            case MapNode():
                found = "a mapping"
            case ListNode():
                found = "a list"
            case Scalar(value=None):
                found = "nothing"
            case Scalar(value=str()):
                found = f"the text {node.text[:40]!r}"
            case _:
                found = node.text[:40]
        self._say("FC113", node.at, f"{what}: expected {expected}, found {found}", hint)
