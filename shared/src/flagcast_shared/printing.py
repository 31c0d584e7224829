"""Printable text: a stranger's words, made safe for terminals and logs.

Escaped is every character that `str.isprintable` denies: controls (C0, DEL, C1), marks of direction, characters without a
width, separators of lines and paragraphs, every space but U+0020, lone surrogates, and what Unicode has not assigned. Letters
of all scripts stay.
"""

import json


def printable(text: str) -> str:
    r"""The text in characters that print, on one line; the others as Python writes them: \n, \x1b, \u202e, \U000e0001."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def printable_line(text: str) -> str:
    """The same, but tabs stay: they are columns of ours, since values of strangers were made printable before."""
    return "\t".join(printable(part) for part in text.split("\t"))


def json_text(value: object, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """A value as JSON that prints, whose only line breaks are those of `indent`."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    if text.isprintable():
        return text
    # Outside its strings JSON has no other character that does not print than the breaks of `indent`.
    return "".join(each if each == "\n" or each.isprintable() else _escape_json(each) for each in text)


def logfmt_value(value: object) -> str:
    """A value of a line of logfmt: bare where it is one plain word, else quoted as JSON."""
    text = str(value)
    if text and text.isprintable() and not any(each in text for each in ' "=\\'):
        return text
    return json_text(text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _escape_json(character: str) -> str:
    return json.dumps(character)[1:-1] if character > "\x7f" else f"\\u{ord(character):04x}"
