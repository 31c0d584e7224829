"""Text -> trees of values that know their place: YAML 1.2 and JSON, without any meaning of flags.

The parser's events are taken one by one, so that depth and size are bounded before memory is spent, aliases
are counted at their expanded size, and no mapping has a key twice. Plain scalars follow YAML 1.2's core
schema (10.3.2), except that an integer with leading zeros stays text: YAML 1.1 reads another number in it.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import yaml

from flagcast_shared.errors import InvalidDocument
from flagcast_shared.literals import parse_float

from .findings import Findings, Position, finding

NODES_MAX: Final = 2_000_000
"""Scalars, lists and mappings of one file, aliases expanded; 10,000 rich flags are about 600,000."""

CHARACTERS_MAX: Final = 64 * 1024 * 1024
"""Text of one file, aliases expanded: four times the largest file, so that no alias repeats a long text for hours."""

DISPUTED_MAX_CHARACTERS: Final = 256
"""Text that another reader could take for a number or a date: a key has no more (KEY_MAX_BYTES), a number far less."""

DEPTH_MAX: Final = 40
"""Nesting of one file, aliases expanded; flags nest seven levels, the rest is for attachments."""

TAG_DIRECTIVES_MAX: Final = 100
"""Lines of one file that begin with %TAG; libyaml compares each with all before it, and no file of flags needs one."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A flags file as read; in Flipt v2's layout `folder` is the name of its folder, elsewhere None."""

    path: str
    content: bytes
    folder: str | None = None


class Scalar(NamedTuple):
    """One value. `text` is as written, without quotes; `is_plain` says that there were none."""

    at: Position
    value: str | int | float | bool | None
    text: str
    is_plain: bool

    @property
    def is_disputed(self) -> bool:
        """Plain text that YAML 1.1 or Go would read as a number, an instant or a boolean."""
        return self._is_short_plain_text and _DISPUTED.fullmatch(self.text) is not None

    @property
    def is_date(self) -> bool:
        """Plain text that Go's YAML reads as an instant, and writes in a form of its own."""
        return self._is_short_plain_text and _DATE.fullmatch(self.text) is not None

    @property
    def _is_short_plain_text(self) -> bool:
        return self.is_plain and isinstance(self.value, str) and len(self.text) <= DISPUTED_MAX_CHARACTERS


class ListNode(NamedTuple):
    """A list."""

    at: Position
    items: "tuple[Node, ...]"


class MapNode(NamedTuple):
    """A mapping, in file order, merge keys resolved."""

    at: Position
    entries: "tuple[tuple[Scalar, Node], ...]"


Node = Scalar | ListNode | MapNode


def read_texts(file: str, content: bytes) -> object:
    """A small YAML document as lists and mappings of texts; None for an empty one. Raises InvalidDocument."""
    try:
        # The base loader keeps every scalar as text, so that no value can fail to be built.
        return yaml.load(content, Loader=yaml.BaseLoader)  # noqa: S506  # it builds nothing but text, lists and mappings
    except (yaml.YAMLError, RecursionError, UnicodeError) as error:
        raise InvalidDocument(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error


def read_nodes(file: str, content: bytes, found: Findings) -> tuple[Node, ...]:
    """The documents of a file; errors of its text go to `found`. A name in .json must hold strict JSON.

    After an error that leaves the rest unreadable, the documents before it are returned.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        at = Position(before.count("\n") + 1, len(before) - before.rfind("\n"))
        said = f"byte 0x{content[error.start]:02x} is not UTF-8"
        found.add(finding("FC102", file, at, said, "Save the file as UTF-8."))
        return ()
    composer = _Composer(file, found)
    documents: list[Node] = []
    try:
        if file.endswith(".json"):
            _require_json(text)
            # Only white space can be a bare tab in JSON; the pure Python parser of YAML takes none.
            text = text.replace("\t", " ")
        documents.extend(composer.documents(text))
    except _StopError as stop:
        found.add(finding(stop.code, file, stop.at, stop.message, stop.hint))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = Position(mark.line + 1, mark.column + 1) if mark else Position(1, 1)
        said = ", ".join(each for each in (error.context, error.problem) if each)
        found.add(finding("FC103", file, at, f"not valid YAML: {said}", _SYNTAX_HINT))
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        at = Position(before.count("\n") + 1, len(before) - before.rfind("\n"))
        said = f"not valid YAML: {error.reason}"
        found.add(finding("FC103", file, at, said, "Remove the character, or escape it in quotes."))
    return tuple(documents)


_SYNTAX_HINT: Final = (
    "Check the indentation (spaces, never tabs), the quotes and the brackets around this place;"
    " quote text that begins with one of @ ` % & * ! | > { [ or holds ': ' or ' #'."
)

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_TAG: Final = "tag:yaml.org,2002:"
# Behind each line break of YAML 1.1 (5.4), which libyaml goes by, and the byte order mark that it passes over.
_TAG_DIRECTIVE: Final = re.compile("(?:\\A\ufeff?|[\n\r\x85\u2028\u2029])%TAG")
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = {
    **{sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt ].*)?")
_DISPUTED: Final = re.compile(
    r"(?i:yes|no|on|off)"
    r"|[-+]?(?:0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|0[0-9]+"
    # The digits before the first `_` have one reading only, so that a mismatch is found in one pass.
    r"|[0-9]+_[0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?)"
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt ].*)?"
)


class _StopError(Exception):
    """The rest of the file cannot be read."""

    def __init__(self, code: str, at: Position, message: str, hint: str) -> None:
        super().__init__(message)
        self.code, self.at, self.message, self.hint = code, at, message, hint


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not come yet."""

    at: Position
    is_map: bool
    anchor: str | None
    children: list[Node]
    nodes: int = 1
    characters: int = 0
    height: int = 1


class _Composer:
    def __init__(self, file: str, found: Findings) -> None:
        self._found = found
        self._file = file
        self._nodes = 0
        self._characters = 0

    def documents(self, text: str) -> Iterator[Node]:
        """One tree per document of the stream.

        Raises:
            _StopError, yaml.MarkedYAMLError, yaml.reader.ReaderError: the rest cannot be read.
        """
        self._limit_tag_directives(text)
        stack: list[_Open] = []
        anchors: dict[str, tuple[Node, int, int, int]] = {}
        for event in yaml.parse(text, Loader=_LOADER):
            mark = event.start_mark
            assert mark is not None  # the parser marks every event; only events made by hand have none
            at = Position(mark.line + 1, mark.column + 1)
            node: Node
            if isinstance(event, yaml.ScalarEvent):
                node, anchor, nodes, height = self._scalar(event, at), event.anchor, 1, 0
                characters = len(node.text)
                self._count(1, characters, len(stack), at)
            elif isinstance(event, yaml.CollectionStartEvent):
                is_map = isinstance(event, yaml.MappingStartEvent)
                self._check_tag(event.tag, "map" if is_map else "seq", at)
                stack.append(_Open(at, is_map, event.anchor, []))
                self._count(1, 0, len(stack), at)
                continue
            elif isinstance(event, yaml.CollectionEndEvent):
                done = stack.pop()
                node = self._map(done) if done.is_map else ListNode(done.at, tuple(done.children))
                anchor, nodes, height = done.anchor, done.nodes, done.height
                characters = done.characters
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor not in anchors:
                    said = f"alias *{event.anchor} stands before the end of its anchor, or has none"
                    raise _StopError("FC106", at, said, f"Write &{event.anchor} at what it should repeat.")
                node, nodes, characters, height = anchors[event.anchor]
                anchor = None
                self._count(nodes, characters, len(stack) + height, at)
            else:
                # The anchors of one document are not those of the next (YAML 1.2, 9.1).
                anchors = {}
                continue
            if anchor is not None:
                anchors[anchor] = node, nodes, characters, height
            if stack:
                parent = stack[-1]
                parent.children.append(node)
                parent.nodes += nodes
                parent.characters += characters
                parent.height = max(parent.height, height + 1)
            else:
                yield node

    def _limit_tag_directives(self, text: str) -> None:
        for number, each in enumerate(_TAG_DIRECTIVE.finditer(text)):
            if number == TAG_DIRECTIVES_MAX:
                at = Position(text.count("\n", 0, each.end()) + 1, 1)
                said = f"more than {TAG_DIRECTIVES_MAX} %TAG directives"
                raise _StopError("FC104", at, said, "Remove them; flags need no tags.")

    def _count(self, nodes: int, characters: int, depth: int, at: Position) -> None:
        self._nodes += nodes
        self._characters += characters
        if depth > DEPTH_MAX:
            raise _StopError("FC104", at, f"nested deeper than {DEPTH_MAX} levels", "Flatten the attachment.")
        if self._nodes > NODES_MAX or self._characters > CHARACTERS_MAX:
            said = f"more than {NODES_MAX} values, aliases expanded"
            if self._nodes <= NODES_MAX:
                said = f"more than {CHARACTERS_MAX} characters, aliases expanded"
            raise _StopError(
                "FC104", at, said, "Repeat less by aliases, or split the flags into more namespaces."
            )

    def _check_tag(self, tag: str | None, expected: str, at: Position) -> None:
        if tag not in (None, "!", _TAG + expected):
            raise _StopError("FC106", at, f"tag {tag} cannot be read here", "Remove the tag.")

    def _scalar(self, event: yaml.ScalarEvent, at: Position) -> Scalar:
        text: str = event.value
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise _StopError(
                "FC102", at, "half of a surrogate pair", "Write the character itself instead of its escape."
            )
        plain, quoted = event.implicit
        # libyaml calls a scalar with the tag "!" plain; YAML 1.2 (6.9.1) makes it text.
        if plain and event.tag is None:
            return Scalar(at, _resolve(text), text, is_plain=True)
        if quoted or event.tag in ("!", _TAG + "str"):
            return Scalar(at, text, text, is_plain=False)
        value = _resolve(text)
        words = {bool: "bool", int: "int", float: "float", type(None): "null"}
        if event.tag == _TAG + words.get(type(value), "str"):
            return Scalar(at, value, text, is_plain=False)
        raise _StopError("FC106", at, f"tag {event.tag} does not fit {text[:40]!r}", "Remove the tag.")

    def _map(self, done: _Open) -> MapNode:
        seen: dict[tuple[type, object], Position] = {}
        entries: list[tuple[Scalar, Node]] = []
        merges: list[Node] = []
        for key, value in zip(done.children[::2], done.children[1::2], strict=True):
            if not isinstance(key, Scalar):
                raise _StopError("FC106", key.at, "a list or mapping as a key", "Keys are plain text.")
            identity = type(key.value), key.value
            if identity in seen:
                first = seen[identity]
                said = f"key {key.text!r} stands twice in one mapping, first in line {first.line}"
                self._found.add(
                    finding("FC105", self._file, key.at, said, "Remove one; Flipt refuses the file.")
                )
                continue
            seen[identity] = key.at
            if key.is_plain and key.text == "<<":
                merges.append(value)
            else:
                entries.append((key, value))
        # A merge key (YAML 1.1's type library) yields to what stands in the mapping, and to earlier merges.
        for merge in merges:
            for source in merge.items if isinstance(merge, ListNode) else (merge,):
                if not isinstance(source, MapNode):
                    raise _StopError("FC106", source.at, "`<<` merges mappings only", "Write `<<: *anchor`.")
                for key, value in source.entries:
                    if (type(key.value), key.value) not in seen:
                        seen[type(key.value), key.value] = key.at
                        entries.append((key, value))
        return MapNode(done.at, tuple(entries))


def _resolve(text: str) -> str | int | float | bool | None:
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if text[0] not in "-+.0123456789":
        return text
    if text in _NOT_FINITE:
        return _NOT_FINITE[text]
    number: float | None = None
    if _INTEGER.fullmatch(text):
        if text[:2] in ("0o", "0x"):
            integer = int(text[2:], 8 if text[1] == "o" else 16)
            return integer if integer < 2**64 else text
        # Go keeps an integer of 64 bits as it is and reads a larger one as a float.
        if len(text) < 21 and -(2**63) <= int(text) < 2**64:
            return int(text)
        number = parse_float(text)
    elif _FLOAT.fullmatch(text):
        number = parse_float(text)
    return text if number is None else number


def _require_json(text: str) -> None:
    try:
        json.loads(text, parse_int=str, parse_float=str, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        at = Position(error.lineno, error.colno)
        raise _StopError(
            "FC103", at, f"not valid JSON: {error.msg}", "Correct it here or just before."
        ) from error
    except RecursionError as error:
        raise _StopError("FC104", Position(1, 1), "nested too deep", "Flatten the attachment.") from error


def _refuse_constant(name: str) -> str:
    raise _StopError(
        "FC103", Position(1, 1), f"not valid JSON: {name} is not a JSON number", "Write a number."
    )
