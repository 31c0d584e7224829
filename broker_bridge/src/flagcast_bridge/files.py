"""Files that are complete or absent at any instant: a temporary file, fsync, one step to its name, fsync of the folder.

The temporary file has a name of its own beside each file, so that what a killed process left is replaced by the next one.
"""

import os
import stat
from pathlib import Path

from flagcast_shared.errors import InvalidConfiguration

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644


def write_new(path: Path, content: bytes, mode: int = PUBLIC_MODE) -> None:
    """A new file with exactly this mode. Raises FileExistsError where something has that name, else OSError."""
    temporary, _ = _write_beside(path, content, mode)
    try:
        os.link(temporary, path)  # unlike a rename, it never takes the place of a file that is there
    finally:
        temporary.unlink()
    sync_folder(path.parent)


def replace(path: Path, content: bytes, mode: int = PUBLIC_MODE, group: int | None = None) -> int:
    """Put a file in the place of one that may be there, for a `group` where one is given. Raises OSError.

    Returns its mode, which lacks all rights of the group where this user may not give a file to it.
    """
    temporary, mode = _write_beside(path, content, mode, group)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return mode


def move(path: Path, target: Path) -> None:
    """Give a file another name in the same folder. Raises OSError."""
    path.rename(target)
    sync_folder(target.parent)


def tidy(path: Path) -> None:
    """Remove the temporary file that a process may have left which was killed while it wrote this one. Raises OSError."""
    _temporary(path).unlink(missing_ok=True)


def read(path: Path, limit: int) -> bytes | None:
    """The content; None where it is larger than `limit` bytes. Raises OSError."""
    with path.open("rb") as file:
        content = file.read(limit + 1)
    return None if len(content) > limit else content


def read_secret(path: Path, limit: int, what: str, *, allow_group: bool = False) -> bytes | None:
    """The content of a file that its owner alone may read; with `allow_group` its group may too, and may not write.

    A terminal is everybody's who may write to it, and no file. None where the content is larger than `limit` bytes.

    Raises:
        OSError: the file cannot be read.
        InvalidConfiguration: others may read it.
    """
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISCHR(mode):
            _require_private(path, mode, what, allow_group=allow_group)
        content = file.read(limit + 1)
    return None if len(content) > limit else content


def _require_private(path: Path, mode: int, what: str, *, allow_group: bool) -> None:
    if mode & stat.S_IRWXO:
        raise InvalidConfiguration(
            f"{path}: every user of this machine may use this {what}; run: chmod 600 {path}"
        )
    if mode & stat.S_IRWXG and not allow_group:
        raise InvalidConfiguration(
            f"{path}: its group may use this {what}; run: chmod 600 {path}, or give --allow-group where that is meant"
        )
    if mode & stat.S_IWGRP:
        raise InvalidConfiguration(
            f"{path}: its group may write this {what}, which --allow-group does not cover; run: chmod g-w {path}"
        )


def sync_folder(folder: Path) -> None:
    """Have the disk take the names of a folder's files. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_beside(path: Path, content: bytes, mode: int, group: int | None = None) -> tuple[Path, int]:
    temporary = _temporary(path)
    tidy(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if group is not None:
                try:
                    os.fchown(descriptor, -1, group)
                except OSError:
                    mode &= ~stat.S_IRWXG  # they would be another group's
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary, mode


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")
