"""The environment of the oracles: packages that need cbor2 5, which the main environment does not have."""

import os
import subprocess
import sys
from pathlib import Path

from repository import ROOT

ORACLES = Path(sys.prefix) / "oracles" / "bin" / "python"
PATIENCE_SECONDS = 500
"""A child that runs tests takes 10 s where cores are idle, and minutes where they are not."""


def run_on_oracles(*arguments: str) -> str:
    """What the environment's Python prints with these arguments, beside our shared distribution; an error fails the test."""
    assert ORACLES.exists(), "run: make install"
    paths = [ROOT / "shared" / "src", ROOT / "tests" / "support"]
    done = subprocess.run(
        [ORACLES, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
