"""Publishing in tests: flags files written from code, projects, and the command run in this process."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from flagcast_bridge import project
from flagcast_bridge.cli import main
from flagcast_bridge.project import Project
from flagcast_bridge.publishing import publish as publisher


@dataclass(frozen=True, slots=True)
class Result:
    """How one command ended."""

    code: int
    out: str
    err: str


class Flagcast:
    """The command `flagcast` on one project."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capture = capture

    def __call__(self, *arguments: str | Path) -> Result:
        """Run a command of no project."""
        self._capture.readouterr()
        code = main([str(each) for each in arguments])
        captured = self._capture.readouterr()
        return Result(code, captured.out, captured.err)

    def on_project(self, command: str, *arguments: str | Path) -> Result:
        """Run a command of the project."""
        return self(command, *arguments, "--project", self.folder)


def make_project(
    folder: Path, broker_url: str, settings: Mapping[str, str] | None = None, *, environment: str = "test"
) -> Project:
    """A new project; `settings` replaces whole lines of its configuration that begin with the key."""
    publisher.found(folder, environment, broker_url)
    configure(folder, settings or {})
    return project.load(folder)


def configure(folder: Path, settings: Mapping[str, str]) -> None:
    """Set keys in a project's configuration; a key that is commented out there is taken in."""
    path = folder / "flagcast.toml"
    lines = path.read_text().splitlines()
    for key, value in settings.items():
        places = [at for at, line in enumerate(lines) if line.startswith((f"{key} =", f"#{key} ="))]
        assert len(places) == 1, key
        lines[places[0]] = f"{key} = {value}"
    path.write_text("\n".join(lines) + "\n")


def features(flags: Mapping[str, bool], namespace: str = "default") -> str:
    """A flags file of boolean flags and whether they are enabled."""
    listed = "".join(
        f"  - key: {key}\n    name: {key}\n    type: BOOLEAN_FLAG_TYPE\n    enabled: {str(enabled).lower()}\n"
        for key, enabled in flags.items()
    )
    return f'version: "1.2"\nnamespace: {namespace}\nflags:\n{listed or "  []"}\n'


def bulky_features(count: int, *, seed: str = "", namespace: str = "default") -> str:
    """A flags file of variant flags whose attachments do not compress: about 1 KB each."""
    flags = []
    for number in range(count):
        noise = "".join(hashlib.sha256(f"{seed}{number}/{block}".encode()).hexdigest() for block in range(16))
        flags.append(
            f"  - key: bulky-{number}\n    name: bulky-{number}\n    type: VARIANT_FLAG_TYPE\n    enabled: true\n"
            f"    variants:\n      - key: only\n        attachment:\n          noise: {noise}\n"
        )
    return f'version: "1.2"\nnamespace: {namespace}\nflags:\n{"".join(flags)}'
