"""Coverage-guided fuzzing of every decoder: any bytes give an object or one family of errors, and nothing else.

`--runs N` tries N inputs on each target (50,000 unless told), `--target NAME` only on some, `--corpus DIR` keeps the inputs
that reached new code and starts from them the next time. Inputs that break a promise stay in `DIR/findings` or, without
`--corpus`, in a folder that is printed. The targets stand in tests/support/fuzz_targets.py.
"""

import argparse
import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from harness import Goal, Options, Row, run

RUNS = 50_000
QUICK_RUNS = 500
LENGTH_MAX = 2_048
HANG_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller asked for beyond the options of every benchmark."""

    runs: int
    targets: tuple[str, ...]
    corpus: Path


def measure(options: Options, wish: Wish) -> Iterator[Row]:
    """One row per target: how many inputs were tried, and how many broke a promise."""
    if importlib.util.find_spec("atheris") is None:
        yield Row(
            "fuzzing", None, "", note="atheris has no wheel for this machine; tests/properties run everywhere"
        )
        return
    runs = wish.runs or (QUICK_RUNS if options.quick else RUNS)
    for name in wish.targets:
        findings = wish.corpus / "findings"
        before = _found(findings)
        began = time.perf_counter()
        tried = _fuzz(name, wish.corpus, findings, runs)
        seconds = time.perf_counter() - began
        new = sorted(_found(findings) - before)
        yield Row(
            name,
            len(new),
            "findings",
            goal=Goal("<=", 0),
            note=" ".join((f"{tried:,} inputs, {tried / seconds:,.0f}/s", *new)),
        )


def _fuzz(name: str, corpus: Path, findings: Path, runs: int) -> int:
    # libFuzzer ends its process at the first finding; whatever is left of the runs goes to the next process.
    own = corpus / re.sub(r"\W+", "-", name)
    own.mkdir(parents=True, exist_ok=True)
    findings.mkdir(exist_ok=True)
    done = subprocess.run(
        [
            sys.executable, __file__, "--child", name, str(own), f"-runs={runs}", f"-max_len={LENGTH_MAX}",
            f"-timeout={HANG_SECONDS}", f"-artifact_prefix={findings}/{own.name}-", "-print_final_stats=1",
            "-verbosity=0",
        ],
        capture_output=True,
        check=False,
    )  # fmt: skip
    said = done.stderr.decode(errors="replace") + done.stdout.decode(errors="replace")
    if done.returncode:
        print(f"{name}:\n{said[-4000:]}", file=sys.stderr)
    tried = re.search(r"stat::number_of_executed_units:\s+(\d+)", said)
    if tried is None:
        sys.exit(f"{name}: the fuzzer says nothing:\n{said[-4000:]}")
    return int(tried[1])


def _child(name: str, corpus: Path, arguments: list[str]) -> None:
    # Only what is imported inside the block tells libFuzzer which code an input reached.
    import atheris

    with atheris.instrument_imports(include=["flagcast_shared", "flagcast_bridge", "flagcast_agent"]):
        import fuzz_targets
    for seed in fuzz_targets.seeds_of(name):
        (corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], fuzz_targets.TARGETS[name].try_one)
    atheris.Fuzz()


def _found(findings: Path) -> set[str]:
    return {path.name for path in findings.iterdir()} if findings.is_dir() else set()


def main() -> int:
    """Takes the options of its own out of the command line; the others are every benchmark's."""
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
        return 0
    from fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--target", action="append", choices=TARGETS)
    parser.add_argument("--corpus", type=Path)
    own, rest = parser.parse_known_args()
    corpus = own.corpus or Path(tempfile.mkdtemp(prefix="flagcast-fuzz-"))
    wish = Wish(own.runs, tuple(own.target or TARGETS), corpus)
    return run(f"Fuzzing, in {corpus}", lambda options: measure(options, wish), rest)


if __name__ == "__main__":
    sys.exit(main())
