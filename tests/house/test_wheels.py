import email
import os
import subprocess
import sys
import zipfile
from importlib.metadata import distribution as installed
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from repository import AGENT, BIN, BRIDGE, DISTRIBUTIONS, ROOT, SHARED, Distribution

HEAVY = {"sqlite_utils", "sqlite3", "paho", "hpack", "google.protobuf", "h2", "cryptography", "asyncio"}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each distribution, built as a release builds it, without a network."""
    built = {}
    for distribution in DISTRIBUTIONS:
        out = tmp_path_factory.mktemp("dist")
        ran = subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out],
            cwd=distribution.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        (built[distribution.name],) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def device(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands on a device: the two wheels and what they declare that they need, nothing else."""
    folder = tmp_path_factory.mktemp("device")
    uv: list[str | Path] = [
        BIN / "uv",
        "pip",
        "install",
        "--quiet",
        "--offline",
        "--no-deps",
        "--target",
        folder,
    ]
    subprocess.run(
        [*uv, wheels[SHARED.name], wheels[AGENT.name]],
        check=True,
        env={**os.environ, "UV_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))},
    )
    own = {one.name for one in DISTRIBUTIONS}
    wanted = [line for one in (SHARED, AGENT) for line in one.project["dependencies"]]
    seen = set(own)
    while wanted:
        requirement = Requirement(wanted.pop())
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        found = installed(name)
        wanted += found.requires or []
        for top in {
            file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")
        }:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))))
    return folder


def python_on(device: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # -S: without the site-packages of this interpreter, and so without the editable installs in them.
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=device,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(device)},
        capture_output=True,
        text=True,
        check=False,
    )


def modules_after(importing: str) -> set[str]:
    ran = subprocess.run(
        [BIN / "python", "-c", f"import {importing}, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda one: one.name)
def test_a_wheel_carries_its_types_its_license_and_every_module(
    wheels: dict[str, Path], distribution: Distribution
) -> None:
    with zipfile.ZipFile(wheels[distribution.name]) as wheel:
        names = set(wheel.namelist())
        (metadata_name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(wheel.read(metadata_name))
        licenses = [name for name in names if name.endswith("/LICENSE")]
        texts = [wheel.read(name) for name in licenses]
    assert f"{distribution.package}/py.typed" in names
    assert metadata["License-Expression"] == "Apache-2.0"
    assert texts == [(ROOT / "LICENSE").read_bytes()]
    sources = {
        path.relative_to(distribution.folder / "src").as_posix()
        for path in distribution.sources.rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == sources


def test_a_device_evaluates_where_the_bridge_is_not_installed(device: Path) -> None:
    assert python_on(device, "-c", "import flagcast_agent.evaluator").returncode == 0
    refused = python_on(device, "-c", "import flagcast_bridge")
    assert refused.returncode != 0
    assert "No module named 'flagcast_bridge'" in refused.stderr


def test_every_module_imports_with_what_the_agent_declares(device: Path) -> None:
    modules = [
        ".".join(path.relative_to(one.folder / "src").with_suffix("").parts).removesuffix(".__init__")
        for one in (SHARED, AGENT)
        for path in sorted(one.sources.rglob("*.py"))
        # The one module that needs an extra.
        if path.name not in {"__main__.py", "openfeature.py"}
    ]
    ran = python_on(device, "-W", "error", "-c", "\n".join(f"import {module}" for module in modules))
    assert ran.returncode == 0, ran.stderr


MAKES_A_CLIENT = """
from flagcast_agent.testing import client_of
from flagcast_shared.errors import InvalidConfiguration
flags = {"flags": [{"key": "x", "name": "X", "type": "BOOLEAN_FLAG_TYPE", "enabled": True}]}
try:
    with client_of(flags) as client:
        print("answers", client.boolean("x", False))
except InvalidConfiguration as error:
    print(error)
"""


def test_flags_for_tests_need_the_extra_and_nothing_more(
    device: Path, wheels: dict[str, Path], tmp_path: Path
) -> None:
    without = python_on(device, "-W", "error", "-c", MAKES_A_CLIENT)
    assert without.returncode == 0, without.stderr
    assert "flagcast-agent[testing]" in without.stdout
    # What the extra brings: the bridge's wheel, with its entry point, and what reads YAML.
    with zipfile.ZipFile(wheels[BRIDGE.name]) as wheel:
        wheel.extractall(tmp_path)
    (tmp_path / "yaml").symlink_to(Path(str(installed("PyYAML").locate_file("yaml"))))
    (tmp_path / "_yaml").symlink_to(Path(str(installed("PyYAML").locate_file("_yaml"))))
    added = f"import sys; sys.path.append({str(tmp_path)!r})\n{MAKES_A_CLIENT}"
    with_extra = python_on(device, "-W", "error", "-c", added)
    assert with_extra.returncode == 0, with_extra.stderr
    assert with_extra.stdout == "answers True\n"


def test_the_agent_command_starts_on_a_device(device: Path) -> None:
    ran = python_on(
        device, "-c", "import sys; from flagcast_agent.cli import main; sys.exit(main(['--help']))"
    )
    assert ran.returncode == 0, ran.stderr
    assert "provision" in ran.stdout


def test_importing_the_agent_command_is_cheap() -> None:
    assert modules_after("flagcast_agent.cli") & HEAVY == set()


def test_importing_the_agent_package_imports_nothing_else() -> None:
    ours = {name for name in modules_after("flagcast_agent") if name.startswith("flagcast_")}
    assert ours == {"flagcast_agent"}
