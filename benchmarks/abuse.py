"""Every attack on Flagcast's walls, carried out on real processes: what it costs the victim, and whether the wall holds.

Victims are an agent, a collector and commands, started from a checkout's `.venv/bin` behind a real mosquitto. `--before DIR`
carries out the same attacks on another checkout that has its own .venv, and shows its figures beside this one's.

Attackers have processes of their own. Those on the broker send at a fixed rate; the one on the socket sends as fast as it is
read. On a small machine its loop alone would slow every other process, so the waits of another caller are compared with its
waits while processes that never talk to the agent burn as much CPU as the attackers, the broker and the collector did. What
the agent itself spends on an attack is not in that: it is what is measured.

No attack takes the machine: a victim is killed above MEMORY_CAP_MEBIBYTES, a command or decoder at CPU_CAP_SECONDS; the row
then says "more than".

`--quick` carries out everything at once for 3 s instead of 60, and all others in fewer and shorter rounds, with fewer
commands. It leaves out the 60,000 rows of one device, the guess of a passphrase and the honest rotation of a fleet.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from attacks.bench import Bench, prepared
from attacks.figures import Figure
from attacks.on_broker import revoked, structure, tags, usage_book, wrong_quality
from attacks.on_files import digits, passphrases, refusals, texts
from attacks.on_socket import http2_floods, unread_answers
from attacks.together import everything
from harness import Options, Row, run

ROOT = Path(__file__).resolve().parent.parent
ATTACKS: tuple[Callable[[Bench], Iterator[Figure]], ...] = (
    unread_answers,
    http2_floods,
    wrong_quality,
    structure,
    texts,
    passphrases,
    usage_book,
    refusals,
    digits,
    revoked,
    everything,
    tags,  # ends its collector
)


def measure(options: Options, before: Path | None) -> Iterator[Row]:
    with ExitStack() as stack:
        here = stack.enter_context(prepared(ROOT, is_quick=options.quick))
        there = stack.enter_context(prepared(before, is_quick=options.quick)) if before is not None else None
        for attack in ATTACKS:
            ours = _carried_out(attack, here)
            theirs = _carried_out(attack, there) if there is not None else {}
            for name, figure in ours.items():
                yield from _rows(figure, theirs.get(name))


def _carried_out(attack: Callable[[Bench], Iterator[Figure]], bench: Bench) -> dict[str, Figure]:
    """The figures of an attack by name."""
    began = time.monotonic()
    found = {figure.name: figure for figure in attack(bench)}
    took = time.monotonic() - began
    print(f"{bench.bin.parent.parent}: {attack.__name__}, {took:.1f} s", file=sys.stderr, flush=True)
    return found


def _rows(figure: Figure, old: Figure | None) -> Iterator[Row]:
    """A row, with the old figure as what it is compared with, or below it where it is compared with another one."""
    peer, peer_value = figure.peer, figure.peer_value
    is_beside = old is not None and not figure.peer
    if old is not None and is_beside:
        peer, peer_value = "before" + (f", {old.note}" if old.note else ""), old.value
    yield Row(figure.name, figure.value, figure.unit, peer, peer_value, goal=figure.goal, note=figure.note)
    if old is not None and not is_beside:
        yield Row("  before", old.value, old.unit, old.peer, old.peer_value, note=old.note)


def main() -> int:
    """Takes the option of its own out of the command line; the others are every benchmark's."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--before", type=Path, metavar="DIR", help="another checkout with its own .venv")
    own, rest = parser.parse_known_args()
    return run(
        "Attacks on Flagcast's walls", lambda options: measure(options, own.before), rest, parents=[parser]
    )


if __name__ == "__main__":
    sys.exit(main())
