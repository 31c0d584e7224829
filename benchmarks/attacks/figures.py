"""Figures of attacks, and the goals that several of them have."""

from dataclasses import dataclass

from harness import Goal

from .load import Watch

MEMORY_MAX_MEBIBYTES = 100.0
"""The goal for an agent and a collector under any attack; without one they take some 45 MiB."""
NOTHING = Goal("<=", 0)
MEMORY = Goal("<=", MEMORY_MAX_MEBIBYTES)
TWICE = Goal("<=", 2.0, "ratio")
ALL = Goal(">=", 1.0, "ratio")
LONGEST = Goal("<=", 500.0)
"""Milliseconds. A caller that waits asks nothing meanwhile, so that a few long waits do not show in a p99."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of one attack; `peer` is what it is compared with in the same run."""

    name: str
    value: float | None
    unit: str = ""
    goal: Goal | None = None
    peer: str = ""
    peer_value: float | None = None
    note: str = ""


def memory(watch: Watch, victim: str, attack: str, note: str = "") -> Figure:
    """The peak memory of a victim of an attack."""
    if victim in watch.exceeded:
        note = "more than; it was killed"
    return Figure(f"{attack}: {victim}'s memory", watch.most[victim], "MiB", MEMORY, note=note)
