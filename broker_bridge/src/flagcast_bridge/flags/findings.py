"""What can be said about a flags file: the catalogue of codes, and how a finding is shown.

FC1xx are errors: nothing is published. Most are what Flipt itself refuses. FC2xx are warnings: something
probably does not do what its author thinks, or Flipt's own engines disagree about it; the file is published.
Every code has an entry in `docs/validation.md`.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from flagcast_shared.printing import json_text, printable

Severity = Literal["error", "warning"]

DOCUMENTATION: Final = "docs/validation.md"
"""The page that explains every code, each under a heading of its own."""

FINDINGS_MAX: Final = 1_000
"""Findings that are listed, errors before warnings: more than a person reads, and a bound on memory."""

FINDING_TEXT_MAX_CHARACTERS: Final = 500
"""One message or hint: a name of the longest kind and a sentence; a scalar of the file can have megabytes."""

SUGGESTION_MAX_CHARACTERS: Final = 256
"""A word that is compared with known ones: a key has no more (KEY_MAX_BYTES); beyond it nothing is a slip of the pen."""

SUGGESTIONS_MAX_PAIRS: Final = 10_000_000
"""Pairs of characters compared for suggestions in one run: some seconds, or one word among 10,000 for 50 findings."""

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
    "FC134": "the attachment or metadata cannot be written as JSON",
    "FC135": "too large to travel to devices",
    # where Flipt's engines disagree
    "FC201": "Flipt's engines disagree about this number",
    "FC202": "Flipt's engines disagree about this instant",
    "FC203": "Flipt's engines disagree about surrounding spaces",
    "FC204": "Flipt's engines disagree about escapes in a list",
    "FC205": "Flipt's engines disagree about these distributions",
    "FC206": "Flipt's engines disagree about a segment of another document",
    # where the file says something else than it seems to
    "FC211": "YAML versions disagree about this scalar",
    "FC212": "written in a form newer than the format version",
    "FC213": "Flipt's own validation refuses this",
    "FC214": "the document's namespace is not its folder's name",
    "FC215": "a namespace without flags",
    "FC216": "the rank contradicts the order",
    "FC217": "the value is not used by this operator",
    "FC218": "ignored on a boolean flag",
    "FC219": "a bare list of segments",
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
    "FC237": "a JSON value in a form that no context has",
    # where metadata and attachments arrive as something else
    "FC241": "metadata that applications do not get",
    "FC242": "a date in metadata",
    "FC243": "keys of an attachment that look the same",
    "FC244": "an integer of more than 64 bits",
}

CATALOGUE: Final[Mapping[str, str]] = MappingProxyType(_TITLES)
"""Every code and its title, in order."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say about one place of one file; `line` and `column` count from 1.

    `is_leftover`: what turning a flag off leaves behind, such as a segment that nothing uses any more. It is no error under
    --strict, which must not keep anybody from turning a flag off.
    """

    code: str
    severity: Severity
    file: str
    line: int
    column: int
    message: str
    hint: str = ""
    is_leftover: bool = False


class Position(NamedTuple):
    """A place in a file; both count from 1, columns in characters."""

    line: int
    column: int


def finding(
    code: str, file: str, at: Position, message: str, hint: str = "", *, is_leftover: bool = False
) -> Finding:
    """A finding with the severity that its code implies; the code must stand in the catalogue."""
    assert code in CATALOGUE, code
    severity: Severity = "error" if code < "FC2" else "warning"
    return Finding(
        code, severity, file, at.line, at.column, _shortened(message), _shortened(hint), is_leftover
    )


class Counts(NamedTuple):
    """Numbers of errors and warnings."""

    errors: int
    warnings: int


ALL_LISTED: Final = Counts(0, 0)
"""Counts of the unlisted where every finding is listed."""


class Findings:
    """Collector of findings: keeps the first FINDINGS_MAX, errors before warnings, and counts the rest.

    A finding that repeats a kept one is dropped; one that repeats a counted one is counted again. `added` counts
    every call.
    """

    def __init__(self) -> None:
        self.added = 0
        self._kept: dict[Finding, None] = {}
        self._unlisted = ALL_LISTED
        self._pairs_left = SUGGESTIONS_MAX_PAIRS

    def add(self, each: Finding) -> None:
        """Keeps or counts a finding."""
        self.added += 1
        self._kept[each] = None
        # Sorting at twice the limit instead of at each finding keeps the cost linear.
        if len(self._kept) >= 2 * FINDINGS_MAX:
            self._cut()

    def listed(self) -> tuple[Finding, ...]:
        """Kept findings, by file and place."""
        self._cut()
        return tuple(sorted(self._kept, key=_place))

    def unlisted(self) -> Counts:
        """Findings beyond those listed."""
        self._cut()
        return self._unlisted

    def nearest(self, word: str, known: Collection[str]) -> str | None:
        """The known word that is most like this one; None if none is, or if comparing would take too long."""
        if len(word) > SUGGESTION_MAX_CHARACTERS or self._pairs_left <= 0:
            return None
        self._pairs_left -= len(word) * sum(map(len, known))
        if self._pairs_left < 0:
            return None
        near = difflib.get_close_matches(word, known, n=1)
        return near[0] if near else None

    def _cut(self) -> None:
        if len(self._kept) <= FINDINGS_MAX:
            return
        ordered = sorted(self._kept, key=lambda each: (each.severity, _place(each)))
        dropped = ordered[FINDINGS_MAX:]
        errors = sum(each.severity == "error" for each in dropped)
        before = self._unlisted
        self._unlisted = Counts(before.errors + errors, before.warnings + len(dropped) - errors)
        self._kept = dict.fromkeys(ordered[:FINDINGS_MAX])


def _place(each: Finding) -> tuple[str, int, int, str, str]:
    return each.file, each.line, each.column, each.code, each.message


def _shortened(text: str) -> str:
    return (
        text
        if len(text) <= FINDING_TEXT_MAX_CHARACTERS
        else text[: FINDING_TEXT_MAX_CHARACTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"
    )


def as_lines(each: Finding, times: int = 1) -> tuple[str, ...]:
    """`file:line:column: error FC111: message`, and the hint on a line of its own, in characters that print.

    One that stands for several has their number behind it.
    """
    where = f"{each.file}:{each.line}:{each.column}"
    number = f" ({times} times)" if times > 1 else ""
    lines = [f"{where}: {each.severity} {each.code}: {each.message}{number}"]
    if each.hint:
        lines.append(f"    {each.hint}")
    return tuple(printable(line) for line in lines)


def once_each(findings: Iterable[Finding]) -> tuple[tuple[Finding, int], ...]:
    """Findings with how often each is there: of warnings with one code and message the first, every error by itself."""
    times: dict[tuple[str, str] | Finding, int] = {}
    first: dict[tuple[str, str] | Finding, Finding] = {}
    for each in findings:
        alike = each if each.severity == "error" else (each.code, each.message)
        first.setdefault(alike, each)
        times[alike] = times.get(alike, 0) + 1
    return tuple((first[alike], number) for alike, number in times.items())


def count(findings: Iterable[Finding], unlisted: Counts) -> Counts:
    """Numbers of all findings, listed or not."""
    errors, warnings = unlisted
    for each in findings:
        if each.severity == "error":
            errors += 1
        else:
            warnings += 1
    return Counts(errors, warnings)


def unlisted_as_text(unlisted: Counts) -> str:
    """The last line of a list that was cut short; "" for one that was not."""
    rest = sum(unlisted)
    if rest == 1:
        return "1 more finding is not listed; correct these first"
    return f"{rest} more findings are not listed; correct these first" if rest else ""


def as_json(path: str, findings: Iterable[Finding], unlisted: Counts) -> str:
    """One JSON object: `path`, the counts `errors` and `warnings`, `findings` in the order given, and `unlisted`."""
    listed = list(findings)
    counts = count(listed, unlisted)
    return json_text(
        {
            "path": path,
            "errors": counts.errors,
            "warnings": counts.warnings,
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
            "unlisted": sum(unlisted),
        },
        indent=2,
        ascii_only=True,
    )
