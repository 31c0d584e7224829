"""What `flagcast validate` and `flagcast publish` read: a path in, compiled namespaces and findings out."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, TextIO

from flagcast_shared.errors import InvalidDocument
from flagcast_shared.ids import Namespace
from flagcast_shared.model import UnsupportedRecord
from flagcast_shared.records import encode_record

from .flags.compiler import Compilation, compile_documents
from .flags.document import parse
from .flags.findings import (
    DOCUMENTATION,
    Findings,
    Position,
    as_json,
    as_lines,
    count,
    finding,
    unlisted_as_text,
)
from .flags.lint import lint
from .output import echo
from .sources import SourceFile, read_path


def load(path: Path) -> Compilation:
    """Everything that a flags file or folder compiles to, and everything to say about it.

    Raises:
        InvalidDocument: the path cannot be read at all.
    """
    return check(read_path(path))


def check(sources: Iterable[SourceFile]) -> Compilation:
    """Parses, compiles and, where nothing is wrong, lints. Any bytes give a Compilation."""
    found = Findings()
    documents = [document for source in sources for document in parse(source, found)]
    compilation = compile_documents(documents, found)
    if compilation.has_errors:
        # Advice about flags of which a part could not be read would be wrong as often as right.
        return compilation
    lint(documents, found)
    return replace(compilation, findings=found.listed(), unlisted=found.unlisted())


ERRORS_SHOWN_MAX: Final = 20
"""Errors in one exception's message: more scroll out of sight in the output of a test."""

_DICTIONARY: Final = "dictionary.json"
# The name that a dictionary is read under: the rules of JSON are those of its values.
_ODD: Final = re.compile(r"[^\x20-\x7e\ud800-\udfff\U00010000-\U0010ffff]")
# YAML, by whose parser JSON is read, folds or refuses some characters, and takes no escaped pairs of surrogates.


def read_records(flags: Path | Mapping[str, object]) -> Mapping[Namespace, tuple[bytes, ...]]:
    """The records of every namespace, as they travel: the entry point `flagcast.flags_reader`.

    `flags` is a flags file, a folder of them, or one document as a dictionary. The namespaces are in the order of the
    files, and by it `flagcast_agent.testing` reads without importing this distribution.

    Raises:
        InvalidDocument: nothing could be published; the message lists the errors.
    """
    is_file = isinstance(flags, Path)
    compilation = check(read_path(flags) if isinstance(flags, Path) else (_written(flags),))
    if compilation.has_errors:
        errors = [each for each in compilation.findings if each.severity == "error"]
        # An exception's text is one line: breaks would be escaped.
        listed = []
        for each in errors[:ERRORS_SHOWN_MAX]:
            first, *hints = as_lines(each)
            # A place in the text that was written of a dictionary means nothing to its author.
            named_error = first if is_file else first[first.index(each.severity) :]
            listed.append(". ".join([named_error, *(hint.strip() for hint in hints)]))
        hidden = len(errors) + compilation.unlisted.errors - ERRORS_SHOWN_MAX
        if hidden > 0:
            listed.append(_count(hidden, "more error"))
        what = flags if is_file else "the dictionary"
        raise InvalidDocument(f"{what} cannot be published: {' | '.join(listed)}")
    return {
        namespace: tuple(
            encode_record(entry).data for entry in entries if not isinstance(entry, UnsupportedRecord)
        )
        for namespace, entries in compilation.namespaces.items()
    }


def _written(flags: Mapping[str, object]) -> SourceFile:
    if not isinstance(flags, Mapping):
        raise InvalidDocument(
            f"flags are a path or a document of a flags file as a dictionary, not a {type(flags).__name__}"
        )
    try:
        text = json.dumps(dict(flags), allow_nan=False, ensure_ascii=False)
        return SourceFile(_DICTIONARY, _ODD.sub(_escaped, text).encode("utf-8"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidDocument(f"the dictionary holds what JSON has no form for: {error}") from error


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def run(
    path: Path, output_format: Literal["text", "json"], out: TextIO, *, strict: bool = False
) -> Literal[0, 1]:
    """Writes what there is to say about a path; 1 if there is an error or, when strict, a warning that is no leftover, else 0."""
    try:
        compilation = load(path)
    except InvalidDocument as error:
        said = str(error).removeprefix(f"{path}: ")
        hint = "Name a flags file (.yml, .yaml, .json) or a folder of them."
        compilation = Compilation({}, (finding("FC101", str(path), Position(1, 1), said, hint),))
    if output_format == "json":
        echo(*as_json(str(path), compilation.findings, compilation.unlisted).split("\n"), out=out)
    else:
        _write_text(path, compilation, out)
    counts_as_error = any(not each.is_leftover for each in compilation.findings) or any(compilation.unlisted)
    return 1 if compilation.has_errors or (strict and counts_as_error) else 0


def _write_text(path: Path, compilation: Compilation, out: TextIO) -> None:
    for each in compilation.findings:
        echo(*as_lines(each), out=out)
    if any(compilation.unlisted):
        echo(unlisted_as_text(compilation.unlisted), out=out)
    errors, warnings = count(compilation.findings, compilation.unlisted)
    counts = f"{_count(errors, 'error')}, {_count(warnings, 'warning')}"
    if compilation.has_errors:
        echo(f"{path}: {counts}; nothing can be published", out=out)
    else:
        entries = sum(len(each) for each in compilation.namespaces.values())
        held = f"{_count(entries, 'flag or segment', 'flags and segments')} in"
        echo(f"{path}: {held} {_count(len(compilation.namespaces), 'namespace')}; {counts}", out=out)
    if compilation.findings:
        echo(f"Each code is explained in {DOCUMENTATION}", out=out)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
