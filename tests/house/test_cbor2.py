"""Devices without a wheel of cbor2 6, as on 32-bit ARM, run cbor2 5: the wire is the same with both."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from repository import ROOT

ORACLES = Path(sys.prefix) / "oracles" / "bin" / "python"


def run(*arguments: str) -> str:
    assert ORACLES.exists(), "run: make install"
    paths = [ROOT / "shared" / "src", ROOT / "tests" / "support"]
    done = subprocess.run(
        [ORACLES, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_both_versions_of_cbor2_are_at_hand() -> None:
    other = run("-c", "from importlib.metadata import version; print(version('cbor2'))")
    assert version("cbor2").startswith("6.")
    assert other.startswith("5.")


def test_the_wire_is_the_same_with_cbor2_5() -> None:
    said = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/vectors", "tests/properties/test_bytes.py"
    )
    assert "passed" in said
