"""A soak of the differential test: Flagcast's answers beside those of Flipt's own engine, for as long as a minute.

FLAGCAST_DIFFERENTIAL_SEED replays a run; FLAGCAST_DIFFERENTIAL_CASES asks for more cases.
"""

import os
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from flipt_comparison import compare
from flipt_oracle import flipt_oracle

from harness import Goal, Options, Row, run


def measure(options: Options) -> Iterator[Row]:
    """One run; the first differences go to standard error."""
    seed = int(os.environ.get("FLAGCAST_DIFFERENTIAL_SEED") or secrets.randbits(32))
    cases = int(os.environ.get("FLAGCAST_DIFFERENTIAL_CASES") or (60_000 if options.quick else 500_000))
    started = time.perf_counter()
    with flipt_oracle() as oracle:
        comparison = compare(oracle, seed, cases)
    seconds = time.perf_counter() - started
    for difference in comparison.differences[:10]:
        print(difference, file=sys.stderr)
    yield Row("evaluations compared, each also explained", comparison.cases, "", note=f"seed {seed}")
    yield Row("differences", len(comparison.differences), "", goal=Goal("<=", 0))
    for reason, times in sorted(comparison.reasons.items()):
        yield Row(f"  answered {reason}", times, "")
    yield Row("comparisons a second", comparison.cases / seconds, "1/s")


if __name__ == "__main__":
    sys.exit(run("Flagcast and Flipt, differentially", measure))
