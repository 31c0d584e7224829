"""The commands in docs/applications.md print what the page says, and its tables name what there is."""

import os
import re
import subprocess
from collections.abc import Iterator

import pytest
from admitted import History
from flagd_calls import choosing, switch
from local_server import NOW, RunningServer, running
from repository import AGENT, ROOT

from flagcast_agent import limits
from flagcast_shared.answers import Reason, Resolution
from flagcast_shared.model import Flag

PAGE = (ROOT / "docs" / "applications.md").read_text(encoding="utf-8")
CONSOLE = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    (command, printed)
    for block in CONSOLE
    for command, printed in re.findall(r"^\$ (.*?)\n(.*?)(?=^\$ |\Z)", block, re.MULTILINE | re.DOTALL)
]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(None) as server:
        history = History(issued=int(NOW) - 120, expires=int(NOW) + 1000)
        flags: list[Flag] = [switch("night-mode", enabled=True), choosing("current-limit", "high", "32")]
        server.evaluator.activate(history.begin(flags))
        yield server


@pytest.mark.parametrize(("command", "printed"), COMMANDS, ids=range(len(COMMANDS)))
def test_a_command_prints_what_the_page_says(server: RunningServer, command: str, printed: str) -> None:
    ran = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "FLAGCAST_AGENT_SOCKET": str(server.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.rstrip("\n") == printed.rstrip("\n")


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) >= 5


def test_the_limits_of_the_page_are_those_of_the_code() -> None:
    table = PAGE[PAGE.index("## Limits") :]
    for number in (
        f"{limits.REQUEST_MAX_BYTES // 2**20} MiB; it has {limits.REQUEST_TIMEOUT_SECONDS} s",
        f"or about all | {limits.QUESTION_MAX_BYTES // 1024} KiB |",
        f"{limits.CONTEXT_MAX_ENTRIES} entries, {limits.CONTEXT_MAX_BYTES // 1024} KiB",
        f"{limits.ENTITY_ID_MAX_BYTES:,} bytes",
        f"{limits.BATCH_MAX_REQUESTS:,} |",
        f"{limits.CONNECTIONS_MAX}, of one user {limits.USER_CONNECTIONS_MAX}; where",
        f"for {limits.SILENT_SECONDS} s, is closed; calls at once on one: {limits.STREAMS_MAX}",
        f"{limits.HTTP2_IDLE_SECONDS} s |",
        f"{limits.UNREAD_MAX_BYTES // 2**20} MiB, then its calls",
        f"{limits.BATCH_ANSWER_MAX_BYTES // 2**20} MiB |",
        f"{limits.LASTING_MAX:,}; one more",
        f"for {limits.PENALTY_SECONDS} s |",
        f"{limits.FREE_FRAMES_MAX:,} more than the answers make up for, and {limits.FREE_FRAMES_PER_SECOND} a second",
        f"{limits.HEAD_MAX_BYTES // 1024} KiB, {limits.HEADERS_MAX} headers",
        f"{limits.IDLE_SECONDS} s |",
        f"{limits.UNREAD_SECONDS} s; changes",
        f"{limits.EVENT_MAX_FLAGS:,}; more",
    ):
        assert number in table, number


def test_every_service_of_the_page_is_served() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (AGENT.sources / "api").glob("*.py"))
    for service in re.findall(r"`((?:flagd|flipt|flagcast)\.[a-z0-9.]+\.[A-Z]\w+)`", PAGE):
        assert f'"{service}"' in source, service


def test_every_reason_is_in_the_table_of_reasons() -> None:
    table = PAGE[PAGE.index("## Reasons") : PAGE.index("## A missing targeting key")]
    words = {word.upper() for word in (*Resolution, *Reason)}
    assert {word for word in words if f"`{word}`" not in table} == set()
    source = (AGENT.sources / "api" / "resolutions.py").read_text(encoding="utf-8")
    codes = set(re.findall(r'return "([A-Z_]+)"', source))
    assert "TARGETING_KEY_MISSING" in codes
    assert {code for code in codes if f"`{code}`" not in table} == set()


def test_the_versions_that_the_page_calls_tested_are_those_that_are_installed() -> None:
    providers = ROOT / "tests" / "providers"
    installed = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (
            providers / "java" / "pom.xml",
            providers / "node" / "package.json",
            providers / "rust" / "Cargo.toml",
            ROOT / "requirements-oracles.lock",
        )
    )
    tested = re.findall(r"^\| \| tested(?: by `make test-providers`)?: (.*) \|$", PAGE, re.MULTILINE)
    versions = re.findall(r"\b\d+\.\d+\.\d+(?:\.Final)?", " ".join(tested))
    assert len(tested) == 5
    assert len(versions) >= 7
    assert [version for version in versions if version not in installed] == []
