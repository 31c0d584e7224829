"""Resolve every dependency anew.

requirements.lock (all of it), requirements-oracles.lock (the environment with cbor2 5), requirements-uv.lock (the installer).
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OWN = ("flagcast-shared", "flagcast-bridge", "flagcast-agent")


def main() -> int:
    """Compile the lock files with a uv of its own; names no package index in them."""
    with tempfile.TemporaryDirectory() as scratch:
        venv.create(scratch, with_pip=True)
        subprocess.run([f"{scratch}/bin/python", "-m", "pip", "install", "--quiet", "uv"], check=True)
        compiled = [
            f"{scratch}/bin/uv",
            "pip",
            "compile",
            "--quiet",
            "--universal",
            "--python-version",
            "3.11",
        ]
        compiled += ["--generate-hashes", "--no-emit-index-url", "--no-annotate", "--no-header", "--upgrade"]
        for own in OWN:
            compiled += ["--no-emit-package", own]
        sources = [f"{name}/pyproject.toml" for name in ("shared", "broker_bridge", "device_agent")]
        subprocess.run(
            [*compiled, *sources, "--group", "dev", "--output-file", "requirements.lock"],
            cwd=ROOT,
            check=True,
        )
        subprocess.run(
            [*compiled, "--group", "oracles", "--output-file", "requirements-oracles.lock"],
            cwd=ROOT,
            check=True,
        )
        pinned = next(
            line.split()[0]
            for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
            if line.startswith("uv==")
        )
        subprocess.run(
            [*compiled, "-", "--output-file", "requirements-uv.lock"],
            cwd=ROOT,
            check=True,
            input=pinned.encode(),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
