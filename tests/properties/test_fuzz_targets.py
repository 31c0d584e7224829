"""The targets of `benchmarks/fuzz.py` hold for their seeds, for what fuzzing found before, and for the first mutations."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_targets import TARGETS, seeds_of
from repository import ROOT

MUTATIONS = 200 * int(os.environ.get("FLAGCAST_TEST_EFFORT", "1"))

FOUND: dict[str, list[bytes]] = {
    # What once broke a promise; each stays.
    "agent.toml": [b"a=" + b"[" * 3000 + b"]" * 3000, b"a=" + b"{b=" * 2000, b"a=" + b"9" * 5000],
    "flagcast.toml": [b"a=" + b"[" * 3000 + b"]" * 3000, b"a=" + b"{b=" * 2000, b"a=" + b"9" * 5000],
}
HOSTILE = {
    "features.yml": [
        b"[" * 3000,
        b"- " * 3000,
        b"&a [*a]",
        b'{"a":' * 3000,
        b'version: "' + b"9" * 5000 + b'"',
        b'{"version":"1.0","flags":[{"key":"a","name":"a","variants":[{"key":"v","attachment":"\\ud800"}]}]}',
    ],
    "literals": [b"0x1p" + b"9" * 20, b"1e" + b"9" * 5000, b"9" * 10_000, b"9999-12-31T23:59:59-23:59"],
    "topics.address": [
        b"flagcast/1/production/root/" + b"9" * 5000,
        b"flagcast/1/production/flags/\xff/head",
    ],
}


@pytest.mark.parametrize("name", TARGETS)
def test_target_holds_for_its_seeds_and_for_what_is_near_them(name: str) -> None:
    chance = random.Random(name)
    seeds = seeds_of(name)
    assert seeds
    for data in (b"", *seeds, *FOUND.get(name, ()), *HOSTILE.get(name, ())):
        TARGETS[name].try_one(data)
    small = [seed for seed in seeds if len(seed) < 2000] or seeds
    for _ in range(MUTATIONS):
        TARGETS[name].try_one(mutated(chance.choice(small), chance))


def mutated(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(4):
            case 0:
                changed[at:at] = chance.randbytes(chance.randint(1, 3))
            case 1:
                del changed[at : at + chance.randint(1, 4)]
            case 2:
                changed[at : at + 1] = bytes([chance.choice((0, 1, 0x18, 0x7F, 0x80, 0x9F, 0xFF))])
            case _:
                changed[at:at] = changed[at : at + chance.randint(1, 8)]
    return bytes(changed)


def test_a_broken_promise_is_found_and_kept(tmp_path: Path) -> None:
    """The fuzzer itself, once, with a target that lies: a run that cannot fail would find nothing either."""
    pytest.importorskip("atheris", reason="atheris has no wheel for this machine")
    (tmp_path / "fuzz_targets.py").write_text(
        "from types import SimpleNamespace\n"
        "def lie(data):\n"
        "    if data[:1] == b'\\x01': raise KeyError('escaped')\n"
        "TARGETS = {'lie': SimpleNamespace(try_one=lie)}\n"
        "def seeds_of(name): return [b'\\x00\\x00']\n"
    )
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['fuzz.py', '--child', 'lie', {str(tmp_path / 'corpus')!r}, '-runs=100000', "
        f"'-artifact_prefix={tmp_path}/found-']\n"
        f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        f"module = runpy.run_path({str(ROOT / 'benchmarks' / 'fuzz.py')!r}, run_name='fuzz')\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "module['main']()\n"
    )
    (tmp_path / "corpus").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=100, cwd=tmp_path
    )
    assert done.returncode != 0
    assert "KeyError: 'escaped'" in done.stdout + done.stderr
    assert [path.name for path in tmp_path.glob("found-crash-*")]
