"""The units of deploy/systemd: what systemd itself says of them, and that they start what there is."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from repository import BIN, ROOT

FOLDER = ROOT / "deploy" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
EXPOSURE_MAX = 2.0
"""Of ten, by `systemd-analyze security`; services that nobody hardened have 9.6."""

with_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine"
)


def name_of(path: Path) -> str:
    return path.name


def installed(unit: Path, folder: Path) -> Path:
    """The unit as it would stand on a machine that has our commands where this one has them."""
    text = unit.read_text(encoding="utf-8").replace("/usr/bin/", f"{BIN}/")
    path = folder / unit.name
    path.write_text(text, encoding="utf-8")
    return path


def settings(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


@with_systemd
@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_systemd_finds_nothing_wrong(unit: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        ["systemd-analyze", "verify", installed(unit, tmp_path)], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


@with_systemd
def test_systemd_finds_a_setting_that_is_none(tmp_path: Path) -> None:
    unit = installed(UNITS[0], tmp_path)
    unit.write_text(unit.read_text().replace("NoNewPrivileges=", "NoNewPriviledges="))
    ran = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert "NoNewPriviledges" in ran.stderr


@with_systemd
@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_a_service_may_do_little(unit: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", installed(unit, tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", ran.stdout)
    assert found, ran.stdout + ran.stderr
    assert float(found.group(1)) <= EXPOSURE_MAX


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_a_service_starts_a_command_that_exists(unit: Path) -> None:
    (line,) = settings(unit)["ExecStart"]
    program, command, *options = line.split()
    ran = subprocess.run(
        [BIN / Path(program).name, command, "--help"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    for option in options:
        assert not option.startswith("--") or option in ran.stdout


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_users_and_groups_of_services_are_made(unit: Path) -> None:
    made = set(
        re.findall(r"^u (\S+) ", (FOLDER / "flagcast.sysusers").read_text(encoding="utf-8"), re.MULTILINE)
    )
    found = settings(unit)
    assert {*found["User"], *found["Group"]} <= made


def test_the_agents_group_may_read_what_applications_read_in_process() -> None:
    found = settings(FOLDER / "flagcast-agent.service")
    assert (found["StateDirectoryMode"], found["UMask"]) == (["0750"], ["0027"])
    assert "DynamicUser" not in found


@with_systemd
def test_systemd_finds_nothing_wrong_with_the_agents_socket(tmp_path: Path) -> None:
    units = [installed(FOLDER / f"flagcast-agent.{kind}", tmp_path) for kind in ("socket", "service")]
    ran = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


def test_the_agents_socket_outlives_the_service_that_it_is_for() -> None:
    socket, service = (settings(FOLDER / f"flagcast-agent.{kind}") for kind in ("socket", "service"))
    (path,) = socket["ListenStream"]
    assert path.startswith(f"/run/{service['RuntimeDirectory'][0]}/")
    assert service["RuntimeDirectoryPreserve"] == ["yes"]
    assert socket["SocketGroup"] == service["Group"]
