"""What a device says of itself on its report topic: birth, what it applied or rejected, and the will that says offline.

A report is a device's own word, not signed and never an acknowledgement of the broker's. It holds no entity id and no
context value.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from .codec import Fields, Value, decode, encode, text
from .errors import Malformed, TooLarge, UnknownFormat
from .ids import Epoch, Namespace, Version
from .limits import KEY_MAX_BYTES, REPORT_MAX_BYTES
from .topics import FORMAT


@dataclass(frozen=True, slots=True)
class Applied:
    """What a device holds of a namespace: the content's epoch and version, and the head's sequence."""

    epoch: Epoch
    version: Version
    sequence: int


@dataclass(frozen=True, slots=True)
class Rejection:
    """The last update that a device refused; `at` is its clock, Unix seconds."""

    attack: str
    namespace: str
    at: int


@dataclass(frozen=True, slots=True)
class Report:
    """A device's state. Birth and will of one connection carry the same `session`; `number` counts within it."""

    session: int
    number: int
    is_online: bool
    at: int = 0
    agent: str = ""
    root: int = 0
    applied: Mapping[Namespace, Applied] = field(default_factory=dict)
    rejection: Rejection | None = None


def encode_report(report: Report) -> bytes:
    """1 format, 2 session, 3 number, 4 online, 5 at, 6 agent release, 7 root, 8 namespace to {1 epoch, 2 version, 3 sequence},
    9 rejection {1 attack, 2 namespace, 3 at}.

    Namespaces that REPORT_MAX_BYTES has no room for are left out, the last by name first: a device of many namespaces
    says less of itself, and goes on.

    Raises:
        TooLarge: there is no room for the rest.
    """
    fields: dict[int, Value] = {1: FORMAT, 2: report.session, 3: report.number, 4: report.is_online}
    if report.is_online:
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
    fields = Fields(decode(data, "report"), "report")
    if (spoken := fields.integer(1)) != FORMAT:
        raise UnknownFormat(f"report: format {spoken}; this release speaks format {FORMAT}")
    applied: dict[Namespace, Applied] = {}
    listed = fields.get(8) if 8 in fields else {}
    if not isinstance(listed, Mapping):
        raise Malformed("report, applied: not a map")
    for namespace, value in listed.items():
        one = Fields(value, "report, applied")
        applied[Namespace(text(namespace, "report, applied", KEY_MAX_BYTES))] = Applied(
            Epoch(one.integer(1)), Version(one.integer(2)), one.integer(3)
        )
    rejection = None
    if 9 in fields:
        last = Fields(fields.get(9), "report, rejection")
        rejection = Rejection(last.text(1, KEY_MAX_BYTES), last.text(2, KEY_MAX_BYTES), last.integer(3))
    return Report(
        fields.integer(2),
        fields.integer(3),
        fields.boolean(4),
        fields.integer(5) if 5 in fields else 0,
        fields.text(6, KEY_MAX_BYTES) if 6 in fields else "",
        fields.integer(7) if 7 in fields else 0,
        applied,
        rejection,
    )


_MAP_ROOM_BYTES: Final = 4
# The field's number and the head of a map of up to 65,535 entries.


def _applied_fields(applied: Mapping[Namespace, Applied], room: int) -> dict[str, Value]:
    fitting: dict[str, Value] = {}
    left = room - _MAP_ROOM_BYTES
    for namespace, one in sorted(applied.items()):
        entry: Value = {1: one.epoch, 2: one.version, 3: one.sequence}
        left -= len(encode(str(namespace))) + len(encode(entry))
        if left < 0:
            break
        fitting[str(namespace)] = entry
    return fitting
