"""Reads flags files from a file or a folder, and says which git commit they are of.

A folder is read as Flipt reads it. With `.flipt.yml` it is Flipt v1's index of include and exclude globs.
Without one it is Flipt v2's layout, `<namespace>/features.{yaml,yml,json}`, or, where there is no such file,
v1's default globs. A folder that v1 and v2 would read differently is refused: nobody should learn from a
fleet which of them was meant.
"""

import fnmatch
import os
import re
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flagcast_bridge.flags.nodes import SourceFile, read_texts
from flagcast_shared.errors import InvalidDocument

FILE_MAX_BYTES: Final = 16 * 1024 * 1024
"""One flags file: 10,000 rich flags are about 10 MB of YAML."""

FOLDER_MAX_BYTES: Final = 64 * 1024 * 1024
"""All flags files of a folder together; they are held in memory at once."""

FILES_MAX: Final = 1_000
"""Flags files of one folder; a namespace each."""

ENTRIES_MAX: Final = 100_000
"""Folder entries looked at before giving up: somebody named their home folder."""

INDEX_MAX_BYTES: Final = 65_536
"""`.flipt.yml`, a short list of globs."""

GLOB_MAX_CHARACTERS: Final = 256
"""One glob of the index; real ones are a path with a star or two."""

GLOB_MAX_CHOICES: Final = 64
"""Globs that the braces of one stand for; `{a,b}` eight times over would already be 256."""

GIT_TIMEOUT_SECONDS: Final = 10
"""What the commit id may cost; it is worth having, not worth waiting for."""

_SUFFIXES: Final = (".yml", ".yaml", ".json")
_INDEX: Final = ".flipt.yml"
_DEFAULT_INCLUDE: Final = ("**features.yml", "**features.yaml")
_V2_NAMES: Final = ("features.yaml", "features.yml", "features.json")
_V2_CONFIGURATION: Final = ("flipt.yaml", "flipt.yml")
_GLOB_TOKEN: Final = re.compile(
    r"\\(?P<escaped>.)|\{(?P<choices>[^{}\[\]\\]*)\}|\[[^\]]+\]|[^\\{}\[\]]", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class GitState:
    """The commit that is checked out, and whether the files differ from it."""

    commit: str
    is_dirty: bool


def read_path(path: Path) -> tuple[SourceFile, ...]:
    """The flags files at a path, in the order of their names; paths as a person would say them.

    Raises:
        InvalidDocument: missing, unreadable, too large, not a flags file, a folder without flags files or one
            that Flipt's two layouts read differently, a link that leads out of the folder.
    """
    try:
        if path.is_dir():
            return _read_folder(path)
        if path.suffix not in _SUFFIXES and path.exists():
            raise InvalidDocument(f"{path}: not a flags file; its name must end in .yml, .yaml or .json")
        return (SourceFile(str(path), _read(path, path, FILE_MAX_BYTES)),)
    except (OSError, ValueError) as error:
        raise InvalidDocument(f"{path}: cannot be read: {_reason(error)}; {_advice(error)}") from error


def git_state(path: Path) -> GitState | None:
    """The git commit of a path's work tree; None when there is no git, no work tree or no commit yet."""
    folder = path if path.is_dir() else path.parent
    commit = _git(folder, "rev-parse", "--verify", "HEAD^{commit}")
    changes = _git(
        folder,
        "status",
        "--porcelain",
        "--untracked-files=normal",
        "--",
        path.name if folder != path else ".",
    )
    if commit is None or changes is None or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit):
        return None
    return GitState(commit, bool(changes))


def _read_folder(root: Path) -> tuple[SourceFile, ...]:
    names = list(_walk(root))
    index = root / _INDEX
    chosen: list[tuple[str, str | None]]
    if index.is_file():
        include, exclude = _read_index(root, index)
        chosen = [(name, None) for name in names if include.match(name) and not exclude.match(name)]
        missing = f"no file that {index} includes"
    else:
        chosen = _by_layout(root, names)
        missing = "no <namespace>/features.yml and no features.yml"
    if not chosen:
        raise InvalidDocument(
            f"{root}: {missing}; name a flags file, or a folder with features.yml or <namespace>/features.yml"
        )
    if len(chosen) > FILES_MAX:
        raise InvalidDocument(
            f"{root}: {len(chosen)} flags files, at most {FILES_MAX}; name the folder that holds the flags"
        )
    files: list[SourceFile] = []
    left = FOLDER_MAX_BYTES
    for name, folder in chosen:
        if Path(name).suffix not in _SUFFIXES:
            raise InvalidDocument(
                f"{root / name}: {index} includes it, but its name does not end in .yml, .yaml or .json"
            )
        content = _read(root, root / name, min(FILE_MAX_BYTES, left))
        left -= len(content)
        files.append(SourceFile(str(root / name), content, folder))
    return tuple(files)


def _by_layout(root: Path, names: Sequence[str]) -> list[tuple[str, str | None]]:
    v2: list[tuple[str, str | None]] = [
        (name, name.split("/")[0])
        for name in names
        if name.count("/") == 1 and name.split("/")[1] in _V2_NAMES
    ]
    if any((root / name).is_file() for name in _V2_CONFIGURATION):
        return v2
    default = _Globs(_DEFAULT_INCLUDE)
    v1 = [name for name in names if default.match(name)]
    if not v2:
        return [(name, None) for name in v1]
    only_v1 = sorted(set(v1) - {name for name, _ in v2})
    if only_v1:
        raise InvalidDocument(
            f"{root}: Flipt v1 would read {only_v1[0]} and Flipt v2, which reads {v2[0][0]}, would not; "
            f"for v1 write a {_INDEX} with `include`, for v2 a flipt.yml, or move the file"
        )
    return v2


def _walk(root: Path) -> Iterator[str]:
    """Every file's name below the root, with slashes, in order; not what is in hidden or linked folders."""
    seen = 0
    for folder, folders, files in os.walk(root, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        seen += len(folders) + len(files)
        if seen > ENTRIES_MAX:
            raise InvalidDocument(
                f"{root}: more than {ENTRIES_MAX} files; name the folder that holds the flags"
            )
        here = Path(folder)
        for name in folders:
            # os.walk does not follow a linked folder, nor does Flipt; flags must not go missing silently.
            linked = here / name
            if linked.is_symlink() and any((linked / each).exists() for each in _V2_NAMES):
                _inside(root, linked)
        yield from sorted((here / name).relative_to(root).as_posix() for name in files)


def _raise(error: OSError) -> None:
    raise error


def _inside(root: Path, path: Path) -> Path:
    target = path.resolve(strict=True)
    if path != root and not target.is_relative_to(root.resolve(strict=True)):
        raise InvalidDocument(
            f"{path}: a link that leads out of {root}, to {target}; copy the file into the folder"
        )
    return target


def _read(root: Path, path: Path, limit: int) -> bytes:
    target = _inside(root, path)
    # A FIFO or a device would block the open or never end; only regular files hold flags.
    descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidDocument(f"{path}: not a regular file; name a flags file or a folder of them")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise InvalidDocument(f"{path}: larger than {limit} bytes; split the flags into more namespaces")
    return content


def _read_index(root: Path, path: Path) -> tuple["_Globs", "_Globs"]:
    index = read_texts(str(path), _read(root, path, INDEX_MAX_BYTES))
    if index is None or index == "":
        index = {}
    if not isinstance(index, dict) or not set(index) <= {"version", "include", "exclude"}:
        raise InvalidDocument(f"{path}: an index is a mapping of `version`, `include` and `exclude`")
    if index.get("version", "1.0") != "1.0":
        raise InvalidDocument(f'{path}: index version {index["version"]!r}; the only one is "1.0"')
    globs = []
    for field, default in (("include", _DEFAULT_INCLUDE), ("exclude", ())):
        listed = index.get(field, list(default))
        if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
            raise InvalidDocument(f'{path}: `{field}` must be a list of globs, such as ["**features.yml"]')
        try:
            globs.append(_Globs(listed))
        except InvalidDocument as error:
            raise InvalidDocument(f"{path}: `{field}`: {error}") from error
    return globs[0], globs[1]


class _Globs:
    """Globs as Flipt's index has them (gobwas/glob without separators): any star crosses slashes."""

    def __init__(self, globs: Sequence[str]) -> None:
        self._patterns = [
            re.compile(fnmatch.translate(plain)) for glob in globs for plain in _without_braces(glob)
        ]

    def match(self, name: str) -> bool:
        return any(pattern.match(name) for pattern in self._patterns)


def _without_braces(glob: str) -> list[str]:
    """The globs that one with `{a,b}` and backslashes stands for, in the words of `fnmatch`."""
    if len(glob) > GLOB_MAX_CHARACTERS:
        raise InvalidDocument(f"glob {glob[:40]!r}...: longer than {GLOB_MAX_CHARACTERS} characters")
    found = [""]
    rest = glob
    while rest:
        token = _GLOB_TOKEN.match(rest)
        if token is None:
            raise InvalidDocument(
                f"glob {glob!r}: a brace or bracket that is not closed, nested, or a lone backslash"
            )
        rest = rest[token.end() :]
        if token["escaped"]:
            choices = [f"[{token['escaped']}]"]
        elif token["choices"] is not None:
            choices = token["choices"].split(",")
        else:
            choices = [token[0]]
        found = [head + choice for head in found for choice in choices]
        if len(found) > GLOB_MAX_CHOICES:
            raise InvalidDocument(f"glob {glob!r}: its braces stand for more than {GLOB_MAX_CHOICES} globs")
    return found


def _git(folder: Path, *arguments: str) -> str | None:
    # Variables of an outer git (a hook) would point elsewhere; fsmonitor runs what the repository says.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _advice(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "check the path; a link must lead to a file that is there"
    if isinstance(error, PermissionError):
        return "let the user that runs flagcast read it"
    return "name a flags file, or a folder of them"
