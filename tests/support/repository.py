"""The repository as its house tests see it: where it is, what it distributes, which files belong to it."""

import fnmatch
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.prefix) / "bin"


@dataclass(frozen=True, slots=True)
class Distribution:
    """One of the three things that are installed."""

    name: str
    """As `pip` names it."""
    package: str
    """As `import` names it."""
    folder: Path

    @property
    def sources(self) -> Path:
        return self.folder / "src" / self.package

    @property
    def project(self) -> dict[str, Any]:
        """The `[project]` table of its pyproject.toml."""
        table: dict[str, Any] = tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))[
            "project"
        ]
        return table


SHARED = Distribution("flagcast-shared", "flagcast_shared", ROOT / "shared")
BRIDGE = Distribution("flagcast-bridge", "flagcast_bridge", ROOT / "broker_bridge")
AGENT = Distribution("flagcast-agent", "flagcast_agent", ROOT / "device_agent")
DISTRIBUTIONS = (SHARED, BRIDGE, AGENT)


def files(pattern: str = "*") -> list[Path]:
    """The files of the repository whose name fits, without what .gitignore names; needs no git."""
    ignored = [
        ".git",
        *(line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split()),
    ]

    def is_ignored(path: Path) -> bool:
        return any(fnmatch.fnmatch(path.name, name) for name in ignored)

    found: list[Path] = []
    folders = [ROOT]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            if is_ignored(path):
                continue
            if path.is_dir():
                folders.append(path)
            elif fnmatch.fnmatch(path.name, pattern):
                found.append(path)
    return found
