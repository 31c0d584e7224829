"""What a device says: its state (birth, what it applied or rejected, the will), that it misses heads, how its flags are used.

All of it is a device's own word, not signed and never an acknowledgement of the broker's. None of it holds an entity id or a
context value.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from .codec import Fields, Value, array, decode, encode, integer, text
from .errors import InvalidIdentifier, Malformed, TooLarge, UnknownFormat
from .ids import Epoch, FlagKey, Namespace, Version, parse_flag_key, parse_namespace
from .limits import (
    KEY_MAX_BYTES,
    REFRESH_NAMESPACES_MAX,
    REPORT_DIGEST_BYTES,
    REPORT_MAX_BYTES,
    USAGE_BATCH_ID_BYTES,
    USAGE_COUNT_MAX,
    USAGE_COUNTS_MAX,
    USAGE_MAX_BYTES,
    WORD_MAX_CHARACTERS,
)
from .topics import FORMAT


@dataclass(frozen=True, slots=True)
class Applied:
    """Content of one namespace on a device: its epoch and version, and the head's sequence.

    `digest` is the first REPORT_DIGEST_BYTES of the content's digest; empty from an agent that reports none.
    """

    epoch: Epoch
    version: Version
    sequence: int
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Rejection:
    """The last update that a device refused: the attack's word, the namespace ("" for a root), its clock in Unix seconds."""

    attack: str
    namespace: str
    at: int


@dataclass(frozen=True, slots=True)
class Report:
    """A device's state. Birth and will of one connection carry the same `session`; `number` counts within it.

    An offline report says what was held when it was made: a will that is when its connection was asked for.
    """

    session: int
    number: int
    is_online: bool
    at: int = 0
    agent: str = ""
    root: int = 0
    applied: Mapping[Namespace, Applied] = field(default_factory=dict)
    rejection: Rejection | None = None


@dataclass(frozen=True, slots=True)
class Refresh:
    """A device found no head of these namespaces; none means any."""

    namespaces: tuple[Namespace, ...] = ()


class Count(NamedTuple):
    """How often a flag gave an answer ("true", "false" or a variant's key, "" for none) for a reason of Flipt's."""

    namespace: Namespace
    flag: FlagKey
    answer: str
    reason: str
    evaluations: int


@dataclass(frozen=True, slots=True)
class Usage:
    """The evaluations that a device answered between two instants of its clock (Unix seconds).

    `batch` is drawn by chance, once for every batch: whoever has counted it does not count it again. `dropped` evaluations,
    of this span or earlier ones, were not kept.
    """

    batch: bytes
    since: int
    until: int
    counts: tuple[Count, ...]
    dropped: int = 0

    @property
    def evaluations(self) -> int:
        """All that are counted in it."""
        return sum(each.evaluations for each in self.counts)


def encode_report(report: Report) -> bytes:
    """1 format, 2 session, 3 number, 4 online, 5 at, 6 agent release, 7 root, 8 namespace to {1 epoch, 2 version, 3 sequence,
    4 digest}, 9 rejection {1 attack, 2 namespace, 3 at}. An offline report that says no time has the first four alone.

    Where REPORT_MAX_BYTES has no room for all namespaces with their digests, all digests are left out; then namespaces, the last
    by name first: a device of many namespaces says less of itself, and goes on.

    Raises:
        TooLarge: there is no room for the rest.
    """
    fields: dict[int, Value] = {1: FORMAT, 2: report.session, 3: report.number, 4: report.is_online}
    if report.is_online or report.at:
        fields |= {5: report.at, 6: report.agent, 7: report.root}
        if report.rejection is not None:
            fields[9] = {1: report.rejection.attack, 2: report.rejection.namespace, 3: report.rejection.at}
        if applied := _applied_fields(report.applied, REPORT_MAX_BYTES - len(encode(fields))):
            fields[8] = applied
    encoded = encode(fields)
    if len(encoded) > REPORT_MAX_BYTES:
        raise TooLarge(f"report: {len(encoded)} bytes, at most {REPORT_MAX_BYTES}")
    return encoded


def decode_report(data: bytes) -> Report:
    """A report from its bytes. Raises Malformed or one of its leaves."""
    if len(data) > REPORT_MAX_BYTES:
        raise TooLarge(f"report: {len(data)} bytes, at most {REPORT_MAX_BYTES}")
    fields = _open(data, "report")
    applied: dict[Namespace, Applied] = {}
    listed = fields.get(8) if 8 in fields else {}
    if not isinstance(listed, Mapping):
        raise Malformed("report, applied: not a map")
    for namespace, value in listed.items():
        one = Fields(value, "report, applied")
        applied[_named(parse_namespace, namespace, "report, applied")] = Applied(
            Epoch(one.integer(1)),
            Version(one.integer(2)),
            one.integer(3),
            one.bytes(4, REPORT_DIGEST_BYTES, REPORT_DIGEST_BYTES) if 4 in one else b"",
        )
    release = fields.get(6) if 6 in fields else ""
    rejection = None
    if 9 in fields:
        last = Fields(fields.get(9), "report, rejection")
        at = last.get(2)
        rejection = Rejection(
            _matching(_WORD, last.get(1), "report, rejection: the word"),
            "" if at == "" else _named(parse_namespace, at, "report, rejection"),
            last.integer(3),
        )
    return Report(
        fields.integer(2),
        fields.integer(3),
        fields.boolean(4),
        fields.integer(5) if 5 in fields else 0,
        "" if release == "" else _matching(_RELEASE, release, "report: the agent's release"),
        fields.integer(7) if 7 in fields else 0,
        applied,
        rejection,
    )


def encode_refresh(refresh: Refresh) -> bytes:
    """1 format, 2 namespaces; none, which means any, where there are more than REFRESH_NAMESPACES_MAX."""
    names: list[Value] = [str(name) for name in refresh.namespaces]
    return encode({1: FORMAT, 2: names if len(names) <= REFRESH_NAMESPACES_MAX else []})


def decode_refresh(data: bytes) -> Refresh:
    """A device's request from its bytes. Raises Malformed or one of its leaves."""
    if len(data) > REPORT_MAX_BYTES:
        raise TooLarge(f"refresh: {len(data)} bytes, at most {REPORT_MAX_BYTES}")
    fields = _open(data, "refresh")
    return Refresh(
        tuple(_named(parse_namespace, name, "refresh") for name in fields.array(2, REFRESH_NAMESPACES_MAX))
    )


def encode_usage(usage: Usage) -> bytes:
    """1 format, 2 batch, 3 since, 4 until, 5 dropped, 6 namespace to flag to a list of [answer, reason, evaluations].

    The same flag, answer and reason may not be in `counts` twice: no reader takes such a batch.

    Raises:
        TooLarge: more than one message takes; `split_counts` keeps below that.
    """
    spaces: dict[str, dict[str, list[Value]]] = {}
    for namespace, flag, answer, reason, evaluations in usage.counts:
        rows = spaces.setdefault(str(namespace), {}).setdefault(str(flag), [])
        rows.append([answer, reason, min(evaluations, USAGE_COUNT_MAX)])
    fields: dict[int, Value] = {1: FORMAT, 2: usage.batch, 3: usage.since, 4: usage.until, 6: spaces}
    if usage.dropped:
        fields[5] = min(usage.dropped, USAGE_COUNT_MAX)
    encoded = encode(fields)
    if len(encoded) > USAGE_MAX_BYTES:
        raise TooLarge(f"usage: {len(encoded)} bytes, at most {USAGE_MAX_BYTES}")
    return encoded


def decode_usage(data: bytes) -> Usage:
    """Counts from their bytes, each flag, answer and reason at most once. Raises Malformed or one of its leaves."""
    if len(data) > USAGE_MAX_BYTES:
        raise TooLarge(f"usage: {len(data)} bytes, at most {USAGE_MAX_BYTES}")
    fields = _open(data, "usage")
    counts: list[Count] = []
    for namespace, flags in _by_name(parse_namespace, fields.get(6), "usage, namespaces"):
        for flag, rows in _by_name(parse_flag_key, flags, "usage, flags"):
            for row in array(rows, "usage, counts", USAGE_COUNTS_MAX):
                cells = array(row, "usage, count", 3)
                if len(cells) != 3:
                    raise Malformed(f"usage, count: {len(cells)} elements, not 3")
                counts.append(
                    Count(
                        namespace,
                        flag,
                        _answer(cells[0]),
                        _matching(_WORD, cells[1], "usage: the reason"),
                        integer(cells[2], "usage, evaluations", 1, USAGE_COUNT_MAX),
                    )
                )
    if len({each[:4] for each in counts}) != len(counts):
        raise Malformed("usage, counts: the same flag, answer and reason twice")
    return Usage(
        fields.bytes(2, USAGE_BATCH_ID_BYTES, USAGE_BATCH_ID_BYTES),
        fields.integer(3),
        fields.integer(4),
        tuple(counts),
        fields.integer(5, 0, USAGE_COUNT_MAX) if 5 in fields else 0,
    )


def may_travel(count: Count) -> bool:
    """Whether a reader takes this count: flag key, answer and reason are within their alphabets."""
    try:
        parse_flag_key(count.flag)
        _answer(count.answer)
        _matching(_WORD, count.reason, "reason")
    except (InvalidIdentifier, Malformed):
        return False
    return True


def split_counts(counts: Sequence[Count]) -> list[tuple[Count, ...]]:
    """The same counts in groups that one message each takes, in order."""
    groups: list[list[Count]] = []
    room = 0
    for each in counts:
        size = _COUNT_ROOM_BYTES + sum(len(word.encode()) for word in each[:4])
        if size > room or len(groups[-1]) == USAGE_COUNTS_MAX:
            groups.append([])
            room = USAGE_MAX_BYTES - _USAGE_ROOM_BYTES
        groups[-1].append(each)
        room -= size
    return [tuple(group) for group in groups]


_Name = TypeVar("_Name", Namespace, FlagKey)

# An alphabet, not a list: an agent of a later release may know more attacks and more reasons.
_WORD: Final = re.compile(rf"[a-z][a-z0-9_]{{0,{WORD_MAX_CHARACTERS - 1}}}")
_RELEASE: Final = re.compile(rf"[A-Za-z0-9][-A-Za-z0-9.+_!~]{{0,{WORD_MAX_CHARACTERS - 1}}}")

_MAP_ROOM_BYTES: Final = 4
# The field's number and the head of a map of up to 65,535 entries.
_USAGE_ROOM_BYTES: Final = 96
# The fields of a batch besides its counts, each number in its longest form.
_COUNT_ROOM_BYTES: Final = 32
# The heads of four texts, of two maps and two lists, and a number in its longest form.


def _open(data: bytes, what: str) -> Fields:
    fields = Fields(decode(data, what), what)
    if (spoken := fields.integer(1)) != FORMAT:
        raise UnknownFormat(f"{what}: format {spoken}; this release speaks format {FORMAT}")
    return fields


def _by_name(parse: Callable[[str], _Name], value: Value, what: str) -> list[tuple[_Name, Value]]:
    if not isinstance(value, Mapping):
        raise Malformed(f"{what}: not a map")
    return [(_named(parse, name, what), entry) for name, entry in value.items()]


def _named(parse: Callable[[str], _Name], value: Value, what: str) -> _Name:
    try:
        return parse(text(value, what, KEY_MAX_BYTES))
    except InvalidIdentifier as error:
        raise Malformed(f"{what}: {error}") from error


def _matching(alphabet: re.Pattern[str], value: Value, what: str) -> str:
    word = text(value, what, KEY_MAX_BYTES)
    if not alphabet.fullmatch(word):
        raise Malformed(f"{what} {word!r} is outside its alphabet or length")
    return word


def _answer(value: Value) -> str:
    # A variant's key may be in any script, but a publisher takes none that does not print.
    answer = text(value, "usage, answer", KEY_MAX_BYTES)
    if not answer.isprintable():
        raise Malformed(f"usage: the answer {answer!r} does not print")
    return answer


def _applied_fields(applied: Mapping[Namespace, Applied], room: int) -> dict[str, Value]:
    fitting = _fitting(applied, room, has_digests=True)
    return fitting if len(fitting) == len(applied) else _fitting(applied, room, has_digests=False)


def _fitting(applied: Mapping[Namespace, Applied], room: int, *, has_digests: bool) -> dict[str, Value]:
    fitting: dict[str, Value] = {}
    left = room - _MAP_ROOM_BYTES
    for namespace, one in sorted(applied.items()):
        entry: dict[int, Value] = {1: one.epoch, 2: one.version, 3: one.sequence}
        if has_digests and one.digest:
            entry[4] = one.digest[:REPORT_DIGEST_BYTES]
        left -= len(encode(str(namespace))) + len(encode(entry))
        if left < 0:
            break
        fitting[str(namespace)] = entry
    return fitting
