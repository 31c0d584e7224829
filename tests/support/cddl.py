"""A reader of the part of CDDL (RFC 8610) that docs/flagcast.cddl uses, and a judge of values against it.

What stands outside that part raises ValueError, so that nothing of the grammar is passed over. Values are what cbor2
decodes (tuples for lists below a tag). A map's entries with a literal key are looked up first and are binding (the cut
of RFC 8610, 3.5.4); what is left over goes to the entries whose key is a type.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cbor2

_TOKEN = re.compile(
    r"""(?P<space>\s+|;[^\n]*)
    |(?P<text>"[^"]*")
    |(?P<tag>\#6\.\d+)
    |(?P<number>-?\d+)
    |(?P<control>\.(?:size|cbor))
    |(?P<name>[A-Za-z][-A-Za-z0-9]*)
    |(?P<sign>=>|\.\.|[=/(){}\[\]:,?*])""",
    re.VERBOSE,
)
_ANY_NUMBER = 2**62


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a group: how often, under which key (None in arrays and for groups), what."""

    low: int
    high: int
    key: Any
    type: Any


Judge = Callable[[Any], bool]


class Grammar:
    """The rules of a CDDL text. `later=False` leaves out every rule that begins with "later-"."""

    def __init__(self, text: str, *, later: bool = True) -> None:
        self._later = later
        self.rules: dict[str, Any] = {}
        tokens = list(_tokens(text))
        starts = [at - 1 for at, (_, word) in enumerate(tokens) if word == "="]
        for at, start in enumerate(starts):
            end = starts[at + 1] if at + 1 < len(starts) else len(tokens)
            name = tokens[start][1]
            if name in self.rules:
                raise ValueError(f"{name} is defined twice")
            reader = _Reader(tokens[start + 2 : end])
            self.rules[name] = reader.whole()

    def names(self) -> set[str]:
        """Every name that some rule refers to."""
        return {name for rule in self.rules.values() for name in _named(rule)}

    def fits(self, name: str, value: Any) -> bool:
        """Whether the value is one of the rule's."""
        return self._type(("name", name), value)

    def _type(self, node: Any, value: Any) -> bool:
        match node:
            case ("choice", options):
                return any(self._type(option, value) for option in options)
            case ("literal", wanted):
                return type(value) is type(wanted) and bool(value == wanted)
            case ("range", low, high):
                return type(value) is int and low <= value <= high
            case ("size", inner, low, high):
                return self._type(inner, value) and low <= _size(value) <= high
            case ("cbor", inner):
                return isinstance(value, bytes) and self._type(inner, cbor2.loads(value))
            case ("tag", number, inner):
                return (
                    isinstance(value, cbor2.CBORTag)
                    and value.tag == number
                    and self._type(inner, value.value)
                )
            case ("array", entries):
                return isinstance(value, list | tuple) and len(value) in self._ends(entries, value, 0)
            case ("map", entries):
                return isinstance(value, Mapping) and self._map(self._flat(entries), value)
            case ("name", name):
                return self._named(name, value)
        raise ValueError(f"not a type: {node}")

    def _named(self, name: str, value: Any) -> bool:
        if name in _PRELUDE:
            return _PRELUDE[name](value)
        if not self._later and name.startswith("later-"):
            return False
        return self._type(self.rules[name], value)

    def _flat(self, entries: Sequence[Entry]) -> Iterator[Entry]:
        # A group's name stands for its entries; `* group` is written only around a single entry.
        for entry in entries:
            group = self._group(entry)
            if group is None:
                yield entry
            elif self._later or not entry.type[1].startswith("later-"):
                if (entry.low, entry.high) != (1, 1) and len(group) != 1:
                    raise ValueError(f"an occurrence before a group of many: {entry}")
                for inner in self._flat(group):
                    yield inner if entry.high == 1 else Entry(entry.low, entry.high, inner.key, inner.type)

    def _group(self, entry: Entry) -> Sequence[Entry] | None:
        if entry.key is None and entry.type[0] == "name" and entry.type[1] not in _PRELUDE:
            rule = self.rules[entry.type[1]]
            if rule[0] == "group":
                return list(rule[1])
        return None

    def _map(self, entries: Iterator[Entry], value: Mapping[Any, Any]) -> bool:
        left = dict(value)
        open_entries = []
        for entry in entries:
            if entry.key is None:
                raise ValueError(f"an entry of a map without a key: {entry}")
            if entry.key[0] != "literal":
                open_entries.append(entry)
                continue
            key = entry.key[1]
            if key not in left:
                if entry.low > 0:
                    return False
            elif not self._type(entry.type, left.pop(key)):
                return False
        for entry in open_entries:
            taken = [key for key in left if self._type(entry.key, key)]
            if not entry.low <= len(taken) <= entry.high:
                return False
            if not all(self._type(entry.type, left.pop(key)) for key in taken):
                return False
        return not left

    def _ends(self, entries: Sequence[Entry], value: Sequence[Any], at: int) -> set[int]:
        # Where the entries may end when they begin at `at`.
        if not entries:
            return {at}
        entry, rest = entries[0], entries[1:]
        ends: set[int] = set()
        for count in range(min(entry.high, len(value) - at) + 1):
            if count > 0 and not self._type(entry.type, value[at + count - 1]):
                break
            if count >= entry.low:
                ends |= self._ends(rest, value, at + count)
        return ends


_PRELUDE: Mapping[str, Judge] = {
    "bool": lambda value: isinstance(value, bool),
    "uint": lambda value: type(value) is int and value >= 0,
    "nil": lambda value: value is None,
    "tstr": lambda value: isinstance(value, str),
    "bstr": lambda value: isinstance(value, bytes),
}


def _size(value: Any) -> int:
    return len(value.encode() if isinstance(value, str) else value)


def _named(node: Any) -> Iterator[str]:
    match node:
        case Entry(_, _, key, type_):
            yield from _named(key)
            yield from _named(type_)
        case ("name", name) if name not in _PRELUDE:
            yield name
        case list() | tuple():
            for part in node:
                yield from _named(part)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None or found.lastgroup is None:
            raise ValueError(f"not of the part of CDDL that is read: {text[at : at + 40]!r}")
        at = found.end()
        if found.lastgroup != "space":
            yield found.lastgroup, found.group()


class _Reader:
    # A rule's tokens to a tree of tuples.

    def __init__(self, tokens: Sequence[tuple[str, str]]) -> None:
        self._tokens = [*tokens, ("end", ""), ("end", "")]
        self._at = 0

    def whole(self) -> Any:
        start = self._at
        try:
            node = self._type()
            if self._kind() == "end":
                return node
        except ValueError:
            pass
        self._at = start  # not a type: a group in parentheses
        self._expect("(")
        entries = self._entries(")")
        if self._kind() != "end":
            raise ValueError(f"something after a rule: {self._tokens[self._at :]}")
        return ("group", entries)

    def _type(self) -> Any:
        options = [self._type1()]
        while self._accept("/"):
            options.append(self._type1())
        return options[0] if len(options) == 1 else ("choice", options)

    def _type1(self) -> Any:
        node = self._type2()
        if self._accept(".."):
            high = self._type2()
            return ("range", node[1], high[1])
        if self._kind() == "control":
            control = self._take()
            operand = self._type2()
            if control == ".cbor":
                return ("cbor", operand)
            low, high = (operand[1], operand[1]) if operand[0] == "literal" else operand[1:]
            return ("size", node, low, high)
        return node

    def _type2(self) -> Any:
        kind, word = self._kind(), self._take()
        match kind, word:
            case "text", _:
                return ("literal", word[1:-1])
            case "number", _:
                return ("literal", int(word))
            case "name", _:
                return ("name", word)
            case "tag", _:
                self._expect("(")
                inner = self._type()
                self._expect(")")
                return ("tag", int(word[3:]), inner)
            case "sign", "(":
                inner = self._type()
                self._expect(")")
                return inner
            case "sign", "[":
                return ("array", self._entries("]"))
            case "sign", "{":
                return ("map", self._entries("}"))
        raise ValueError(f"not a type: {word!r}")

    def _entries(self, end: str) -> list[Entry]:
        entries = []
        while not self._accept(end):
            low, high = self._occurrence()
            key, type_ = None, self._type()
            if self._accept("=>"):
                key, type_ = type_, self._type()
            elif self._accept(":"):
                # A bare word before a colon is a text key; in an array it only names the element.
                key, type_ = (("literal", type_[1]) if type_[0] == "name" else type_), self._type()
            entries.append(Entry(low, high, key, type_))
            self._accept(",")
        return entries

    def _occurrence(self) -> tuple[int, int]:
        if self._accept("?"):
            return 0, 1
        if self._accept("*"):
            return 0, self._bound(_ANY_NUMBER)
        if self._kind() == "number" and self._tokens[self._at + 1][1] == "*":
            low = int(self._take())
            self._expect("*")
            return low, self._bound(_ANY_NUMBER)
        return 1, 1

    def _bound(self, default: int) -> int:
        # `* 1` would read as a bound too; the grammar writes a bound next to a lower one only.
        return int(self._take()) if self._kind() == "number" else default

    def _kind(self) -> str:
        return self._tokens[self._at][0]

    def _take(self) -> str:
        word = self._tokens[self._at][1]
        self._at += 1
        return word

    def _accept(self, sign: str) -> bool:
        if self._tokens[self._at] != ("sign", sign):
            return False
        self._at += 1
        return True

    def _expect(self, sign: str) -> None:
        if not self._accept(sign):
            raise ValueError(f"{sign!r} expected, {self._tokens[self._at][1]!r} found")
