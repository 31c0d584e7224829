"""The Python in docs/python.md runs as it stands, on a device that has the flags it names."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from followed import FollowedAgent, boolean, variant
from repository import ROOT

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FIRST, ASKED, EVALUATED, *_ = BLOCKS


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("device") / "agent.sqlite"
    agent = FollowedAgent(path)
    agent.publish(
        boolean("night-mode", enabled=True),
        variant("screen-theme", "dark"),
        variant("current-limit", "high", 32),
        variant("screen-layout", "wide", {"columns": 2}),
    )
    yield path
    agent.close()


def run(program: str, store: Path) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "FLAGCAST_AGENT_STORE": str(store)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_runs(block: str, store: Path) -> None:
    run(block, store)


def test_the_blocks_say_what_the_page_says(store: Path) -> None:
    assert len(BLOCKS) > 4
    printed = run(ASKED + "\nprint(is_dark, theme, limit, layout)\nflags.close()\n", store)
    assert printed == "True dark 32 {'columns': 2}\n"
    (expected,) = re.findall(r"# (False ERROR .*)", EVALUATED)
    assert run(EVALUATED, store).splitlines()[0] == expected


def test_the_first_section_is_a_test_that_passes_as_printed(tmp_path: Path) -> None:
    sections = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert sections[0] == "Test your application"
    (flags,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "features.yml").write_text(flags, encoding="utf-8")
    (tmp_path / "test_application.py").write_text(FIRST, encoding="utf-8")
    # In a folder of its own, with no configuration and no agent of ours anywhere.
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-W",
            "error",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            tmp_path,
            tmp_path,
        ],
        cwd=tmp_path,
        env={**os.environ, "FLAGCAST_AGENT_STORE": str(tmp_path / "none.sqlite")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3 passed" in ran.stdout
    typed = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--config-file",
            os.devnull,
            tmp_path / "test_application.py",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert typed.returncode == 0, typed.stdout


def test_every_method_of_the_table_exists() -> None:
    from flagcast_agent.client import Client

    named = re.findall(r"^\| `(\w+)\(|, `(\w+)\(\.\.\.\)`", PAGE, re.MULTILINE)
    methods = {name for pair in named for name in pair if name}
    assert {"boolean", "variant", "string", "integer", "number", "object", "evaluate"} <= methods
    assert [name for name in methods if not hasattr(Client, name)] == []
