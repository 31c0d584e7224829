"""What an agent's start may cost: nothing that its first answer does not need."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
from local_server import running

START = """
import json, sys
import flagcast_agent.cli, flagcast_agent.config, flagcast_agent.logs, flagcast_agent.daemon
import flagcast_agent.api.answers, flagcast_agent.api.server, flagcast_agent.api.socket
print(json.dumps(sorted(sys.modules)))
"""
LATER = (
    "flagcast_agent.follower", "flagcast_agent.sync.core", "flagcast_agent.mqtt", "flagcast_agent.status", "paho",
    "flagcast_agent.api.services", "flagcast_agent.api.flagd", "flagcast_agent.api.web", "flagcast_agent.api.ofrep",
    "flagcast_shared.explanation", "flagcast_shared.reports", "sqlite_utils", "flagcast_agent.api.reflection", "h2", "hpack",
    "importlib.metadata",
)  # fmt: skip


@pytest.fixture(scope="module")
def imported() -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", START], capture_output=True, text=True, check=True, timeout=100
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", LATER)
def test_a_start_does_not_import_what_comes_later(imported: set[str], module: str) -> None:
    assert not [name for name in imported if name == module or name.startswith(f"{module}.")]


def test_a_start_imports_what_answers(imported: set[str]) -> None:
    assert {"flagcast_agent.boot", "flagcast_agent.evaluator", "flagcast_agent.api.web2"} <= imported


def test_saying_its_version_does_not_import_what_reads_packages() -> None:
    code = "import sys; from flagcast_agent.config import agent_version; print(agent_version(), 'zipfile' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout.split() == [version("flagcast-agent"), "False"]


COMMAND = """
import json, sys
from flagcast_agent import cli
code = cli.main(sys.argv[1:])
print(json.dumps(sorted(sys.modules)))
sys.exit(code)
"""


@pytest.mark.parametrize(
    "words", [["eval", "on"], ["explain", "on"], ["flags"], ["status"]], ids=lambda words: words[0]
)
def test_a_command_that_asks_imports_no_loop_no_protobuf_and_no_http(words: list[str]) -> None:
    with running() as server:
        command = [sys.executable, "-c", COMMAND, *words, "--socket", str(server.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    found = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert "socket" in found
    assert not found & {
        "asyncio",
        "google",
        "http",
        "ssl",
        "email",
        "sqlite3",
        "sqlite_utils",
        "paho",
        "grpc",
        "h2",
    }
