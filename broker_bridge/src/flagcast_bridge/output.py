"""Output of `flagcast`: the one place that prints. Every character that reaches a terminal here prints."""

import sys
from typing import TextIO

from flagcast_shared.printing import json_text, printable_line


def echo(*lines: str, out: TextIO | None = None, end: str = "\n") -> None:
    r"""Print lines on `out`, standard output unless given. A line break within one is shown as \n: it cannot forge a line."""
    print("\n".join(printable_line(line) for line in lines), file=out or sys.stdout, end=end, flush=True)


def echo_error(*lines: str) -> None:
    """The same on standard error."""
    echo(*lines, out=sys.stderr)


def echo_json(value: object) -> None:
    """Print a value as JSON in ASCII, indented."""
    echo(*json_text(value, indent=2, ascii_only=True).split("\n"))
