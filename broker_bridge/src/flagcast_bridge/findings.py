"""What can be said about a flags file: the catalogue of codes, and how a finding is shown.

FC1xx are errors: nothing is published. Most are what Flipt itself refuses. FC2xx are warnings: something
probably does not do what its author thinks, or Flipt's own engines disagree about it; the file is published.
Every code has an entry in `docs/validation.md`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from flagcast_shared.printing import json_text, printable

Severity = Literal["error", "warning"]

DOCUMENTATION: Final = "docs/validation.md"
"""The page that explains every code, each under a heading of its own."""

_TITLES: Final = {
    # the bytes
    "FC101": "the file cannot be read",
    "FC102": "the file is not UTF-8 text",
    "FC103": "the file is not valid YAML or JSON",
    "FC104": "the file is too large, too deep or expands too far",
    "FC105": "a key stands twice in one mapping",
    "FC106": "an anchor, alias, merge key or tag that cannot be followed",
    "FC107": "the file holds no document",
    # the fields
    "FC111": "unknown field",
    "FC112": "missing field",
    "FC113": "wrong type of value",
    "FC114": "the field is newer than the format version",
    "FC115": "unknown format version",
    "FC116": "a key outside its alphabet or length",
    "FC117": "unknown word",
    "FC118": "a number outside its range",
    # the flags
    "FC121": "two documents for one namespace",
    "FC122": "two flags, segments or variants with one key",
    "FC123": "unknown segment",
    "FC124": "unknown variant",
    "FC125": "a rollout that is not exactly one of segment and threshold",
    "FC126": "rollouts on a variant flag",
    "FC127": "a segment reference with both or neither of key and keys",
    # the constraints and attachments
    "FC131": "unknown constraint type or operator",
    "FC132": "the constraint's value is malformed",
    "FC133": "the constraint's list is malformed",
    "FC134": "the attachment cannot be written as JSON",
    "FC135": "too large to travel to devices",
    # where Flipt's engines disagree
    "FC201": "Flipt's engines disagree about this number",
    "FC202": "Flipt's engines disagree about this instant",
    "FC203": "Flipt's engines disagree about surrounding spaces",
    "FC204": "Flipt's engines disagree about escapes in a list",
    "FC205": "Flipt's engines disagree about these distributions",
    # where the file says something else than it seems to
    "FC211": "YAML versions disagree about this scalar",
    "FC212": "written in a form newer than the format version",
    "FC213": "Flipt's own validation refuses this",
    "FC214": "the document's namespace is not its folder's name",
    "FC215": "a namespace without flags",
    "FC216": "the rank contradicts the order",
    "FC217": "the value is not used by this operator",
    "FC218": "ignored on a boolean flag",
    # where the flag does something else than it seems to
    "FC221": "distributions do not add up to 100",
    "FC222": "a match gives no variant",
    "FC223": "never reached",
    "FC224": "never matches any entity",
    "FC225": "a disabled flag that its rollouts still turn on",
    "FC226": "the rollouts change nothing",
    "FC227": "threshold of nobody or everybody",
    "FC228": "threshold between whole percents",
    "FC229": "threshold outside 0 to 100",
    "FC230": "a segment that nothing uses",
    "FC231": "a variant that nobody gets",
    "FC232": "more than one default variant",
    "FC233": "a segment named twice in one place",
    "FC234": "the constraint can never match",
    "FC235": "constraints that contradict each other",
    "FC236": "unknown device attribute",
}

CATALOGUE: Final[Mapping[str, str]] = MappingProxyType(_TITLES)
"""Every code and its title, in order."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say about one place of one file; `line` and `column` count from 1."""

    code: str
    severity: Severity
    file: str
    line: int
    column: int
    message: str
    hint: str = ""


class Position(NamedTuple):
    """A place in a file; both count from 1, columns in characters."""

    line: int
    column: int


def finding(code: str, file: str, at: Position, message: str, hint: str = "") -> Finding:
    """A finding with the severity that its code implies; the code must stand in the catalogue."""
    assert code in CATALOGUE, code
    return Finding(code, "error" if code < "FC2" else "warning", file, at.line, at.column, message, hint)


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """By file, then as a person reads it; the same thing is said once."""
    return tuple(
        sorted(
            dict.fromkeys(findings),
            key=lambda each: (each.file, each.line, each.column, each.code, each.message),
        )
    )


def as_lines(each: Finding) -> tuple[str, ...]:
    """`file:line:column: error FC111: message`, and the hint on a line of its own, in characters that print."""
    where = f"{each.file}:{each.line}:{each.column}"
    lines = [f"{where}: {each.severity} {each.code}: {each.message}"]
    if each.hint:
        lines.append(f"    {each.hint}")
    return tuple(printable(line) for line in lines)


def as_json(path: str, findings: Iterable[Finding]) -> str:
    """One JSON object: `path`, the counts `errors` and `warnings`, and `findings` in the order given."""
    listed = list(findings)
    return json_text(
        {
            "path": path,
            "errors": sum(each.severity == "error" for each in listed),
            "warnings": sum(each.severity == "warning" for each in listed),
            "findings": [
                {
                    "code": each.code,
                    "severity": each.severity,
                    "title": CATALOGUE[each.code],
                    "file": each.file,
                    "line": each.line,
                    "column": each.column,
                    "message": each.message,
                    "hint": each.hint,
                    "documentation": f"{DOCUMENTATION}#{each.code.lower()}",
                }
                for each in listed
            ],
        },
        indent=2,
        ascii_only=True,
    )
