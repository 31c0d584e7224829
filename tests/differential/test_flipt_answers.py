import os
import secrets
import sys
import time

import pytest
from flipt_comparison import compare
from flipt_oracle import flipt_oracle

CASES = 26_000
SEED = "FLAGCAST_DIFFERENTIAL_SEED"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("share", range(4))
def test_flagcast_and_flipt_answer_alike(share: int, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get(SEED) or secrets.randbits(32))
    started = time.perf_counter()
    with flipt_oracle() as oracle:
        comparison = compare(oracle, seed, CASES)
    seconds = time.perf_counter() - started
    with capsys.disabled():
        sys.stdout.write(
            f"\ndifferential {share}: {comparison.cases} cases in {seconds:.1f} s, replay with {SEED}={seed}\n"
        )
    shown = "\n".join(comparison.differences[:5])
    assert not comparison.differences, (
        f"{len(comparison.differences)} differences of {comparison.cases}, {SEED}={seed}:\n{shown}"
    )
    # Every kind of answer occurs often, so that agreement says something.
    for reason in ("match", "default", "unknown", "flag_disabled", "not found", "type"):
        assert comparison.reasons[reason] > 50, (seed, comparison.reasons)
