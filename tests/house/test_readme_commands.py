"""The README's quick start and its Python example, run as they stand: real broker, publisher, agent and application."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from repository import BIN, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICK_START = README[README.index("## Quick start") : README.index("## How applications ask")]
APPLICATIONS = README[README.index("## How applications ask") : README.index("## Layout")]
PROTO = ROOT / "device_agent" / "src" / "flagcast_agent" / "api" / "protos" / "flipt_evaluation.proto"
PATIENCE_SECONDS = 250


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    printed: str
    errors: str


def block(section: str, language: str, number: int = 0) -> str:
    found: str = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[number]
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(script: str, folder: Path) -> Ran:
    # In a session of its own, so that whatever the script leaves running can be ended with it; into files, because what
    # is left running would hold a pipe open.
    out, err = folder / "out", folder / "err"
    with out.open("wb") as out_file, err.open("wb") as err_file:
        shell = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(folder), "PORT": str(free_port())},
            stdin=subprocess.DEVNULL,
            stdout=out_file,
            stderr=err_file,
            start_new_session=True,
        )
        try:
            code = shell.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    return Ran(code, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))


@pytest.mark.amqtt
def test_the_quick_start_and_the_example_work_as_they_are_written(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("q")  # a short name: the path of a Unix socket is short
    example = folder / "example.py"
    shutil.copy(PROTO, folder)
    example.write_text(block(APPLICATIONS, "python"), encoding="utf-8")
    script = "\n".join(
        [
            # The environment of this run may have another name.
            block(QUICK_START, "sh", 1).replace("$PWD/.venv/bin", str(BIN)),
            f'echo "the application says $({BIN / "python"} {example})"',
            "kill %2",
            "wait",
        ]
    )
    ran = run(script, folder)
    assert ran.code == 0, f"{ran.printed}\n{ran.errors}"
    assert "0 errors" in ran.printed
    assert "published 2 namespaces" in ran.printed
    assert re.search(
        r"^true\tTARGETING_MATCH", ran.printed, re.MULTILINE
    )  # night-mode, because the device is a pilot
    assert "variant flag 'screen-theme' (enabled) for entity 'charger-17'" in ran.printed
    assert re.search(r"^default +fresh: version 1 ", ran.printed, re.MULTILINE)
    assert "~ flag contactless-payment: enabled true -> false" in ran.printed
    assert re.search(r"^false\t", ran.printed, re.MULTILINE)  # without the broker
    assert "the application says True" in ran.printed


def test_what_the_quick_start_starts_is_what_it_says_to_stop() -> None:
    started = re.findall(r"^(flagcast[a-z-]*) (\w+) .*&$", block(QUICK_START, "sh", 1), re.MULTILINE)
    assert started == [("flagcast", "broker"), ("flagcast-agent", "run")]
    assert "`kill %2`" in QUICK_START
