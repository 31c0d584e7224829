"""What every benchmark shares: its options, its rows, its one table.

A benchmark is a module with `measure(options) -> Iterable[Row]` that ends in `sys.exit(run("title", measure))`.
Options of every benchmark: `--json` prints the table as one JSON object, `--check` exits 1 when a goal is missed,
`--quick` asks the benchmark to end within 30 s.
"""

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on what was measured or, with `of="ratio"`, on the ratio. `sense` is "<=" or ">="."""

    sense: str
    bound: float
    of: str = "measured"

    def is_met(self, measured: float | None, ratio: float | None) -> bool | None:
        value = ratio if self.of == "ratio" else measured
        if value is None:
            return None
        return value <= self.bound if self.sense == "<=" else value >= self.bound


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what was measured against which floor or peer in the same run.

    `ratio` is measured / reference unless given. `measured` is None for what could not be measured; `note` says why.
    A row without a goal only informs; a goal that could not be measured is neither met nor missed.
    """

    name: str
    measured: float | None
    unit: str
    reference: str = ""
    reference_value: float | None = None
    ratio: float | None = None
    goal: Goal | None = None
    note: str = ""

    @property
    def shown_ratio(self) -> float | None:
        if self.ratio is not None or self.measured is None or not self.reference_value:
            return self.ratio
        return self.measured / self.reference_value

    @property
    def is_met(self) -> bool | None:
        return self.goal.is_met(self.measured, self.shown_ratio) if self.goal else None


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller of a benchmark asked for."""

    json: bool = False
    check: bool = False
    quick: bool = False


def run(
    title: str,
    measure: Callable[[Options], Iterable[Row]],
    arguments: Sequence[str] | None = None,
    parents: Sequence[argparse.ArgumentParser] = (),
) -> int:
    """Reads the options, measures, prints; returns the exit code. `parents` are read before, and only shown by --help."""
    parser = argparse.ArgumentParser(description=title, parents=parents)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: at most 30 s")
    chosen = parser.parse_args(arguments)
    options = Options(json=chosen.json, check=chosen.check, quick=chosen.quick)
    started = time.perf_counter()
    rows = list(measure(options))
    seconds = time.perf_counter() - started
    print(as_json(title, rows, seconds) if options.json else as_table(title, rows, seconds))
    return 1 if options.check and any(row.is_met is False for row in rows) else 0


def median_of_rounds(action: Callable[[], float], rounds: int) -> float:
    """The median of what `action` returns (any unit) over some rounds; the garbage collector rests meanwhile."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        return statistics.median(action() for _ in range(rounds))
    finally:
        if was_enabled:
            gc.enable()


def as_json(title: str, rows: Iterable[Row], seconds: float) -> str:
    """The table as one JSON object."""
    return json.dumps(
        {
            "title": title,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "seconds": round(seconds, 1),
            "rows": [
                {
                    "name": row.name,
                    "measured": row.measured,
                    "unit": row.unit,
                    "reference": row.reference,
                    "reference_value": row.reference_value,
                    "ratio": row.shown_ratio,
                    "goal": None
                    if row.goal is None
                    else {"of": row.goal.of, "sense": row.goal.sense, "bound": row.goal.bound},
                    "met": row.is_met,
                    "note": row.note,
                }
                for row in rows
            ],
        },
        ensure_ascii=False,
    )


def as_table(title: str, rows: Iterable[Row], seconds: float) -> str:
    """The table for people."""
    head = ["measured", "", "floor or peer", "", "ratio", "goal", "met"]
    lines = [[*_cells(row)] for row in rows]
    widths = [max(len(line[column]) for line in [["what", *head], *lines]) for column in range(len(head) + 1)]
    right = {1, 4, 5}

    def text(line: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()

    foot = f"Python {platform.python_version()} on {platform.machine()}, {seconds:.1f} s"
    return "\n".join([title, "", text(["what", *head]), *map(text, lines), "", foot])


def _cells(row: Row) -> tuple[str, ...]:
    met = {True: "yes", False: "NO", None: ""}[row.is_met]
    goal = "" if row.goal is None else f"{row.goal.sense} {_number(row.goal.bound)}"
    if row.goal is not None:
        goal += "×" if row.goal.of == "ratio" else f" {row.unit}"
    return (
        row.name,
        _number(row.measured) or row.note,
        row.unit if row.measured is not None else "",
        row.reference,
        _number(row.reference_value),
        "" if row.shown_ratio is None else f"{_number(row.shown_ratio)}×",
        goal,
        met + (f" ({row.note})" if row.note and row.measured is not None else ""),
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    if value and abs(value) < 10:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"


def nanoseconds_per_call(call: Callable[[], object], options: Options) -> float:
    """The median, over several rounds of some ten milliseconds, of what one call takes, its loop included."""
    calls = 1
    while (spent := per_call(call, calls) * calls) < 1_000_000:
        calls *= 4
    round_ns = 10_000_000 if options.quick else 40_000_000
    calls = max(1, int(calls * round_ns / spent))
    return median_of_rounds(lambda: per_call(call, calls), 5 if options.quick else 11)


def per_call(call: Callable[[], object], calls: int) -> float:
    """Nanoseconds of one call, the loop around it included, over so many calls."""
    start = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - start) / calls
