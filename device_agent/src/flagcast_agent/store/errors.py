"""Errors of the agent's database, and what SQLite and the disk mean by theirs."""

import sqlite3
from pathlib import Path
from typing import Final

from flagcast_shared.errors import FlagcastError


class StoreError(FlagcastError):
    """The agent's database cannot be used. Says what to do.

    StoreError
    ├── StoreInUse       another agent holds it
    ├── StoreCorrupt     it does not hold what was written; `--recover` sets it aside
    ├── StoreTooNew      a later release wrote it
    ├── StoreUnwritable  disk full, read-only, no permission
    └── StoreUnreadable  a reader finds no database, may not read it, or finds it locked
    """


class StoreInUse(StoreError):
    """Another agent works on the file."""


class StoreCorrupt(StoreError):
    """The file is not the database that was written."""


class StoreTooNew(StoreError):
    """A later release wrote the file."""


class StoreUnwritable(StoreError):
    """The disk does not take it; what was admitted before is still there."""


class StoreUnreadable(StoreError):
    """There is no database, this user may not read it, or somebody has locked it."""


LINK: Final = "{path}: a symbolic link, and a lock is never taken through one; remove it"


NOT_WHAT_WAS_WRITTEN: Final = (
    "{path}: not the database that was written ({why}); start with --recover to set it aside"
)


_UNWRITABLE: Final = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    }
)
# Primary result codes (sqlite.org/rescode.html) that speak of the surroundings; every other one speaks of the content.


def explain(path: Path, error: Exception) -> StoreError:
    """The error of a writer."""
    if isinstance(error, OSError):
        return StoreUnwritable(f"{path}: {error.strerror}. What was admitted is unharmed")
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _UNWRITABLE:
        return StoreUnwritable(
            f"{path}: {error}; check that the folder exists, is writable and has free space. What was admitted is unharmed"
        )
    return StoreCorrupt(NOT_WHAT_WAS_WRITTEN.format(path=path, why=error))


def explain_reading(path: Path, error: Exception) -> StoreError:
    """The error of a reader."""
    if isinstance(error, FileNotFoundError):
        return StoreUnreadable(f"{path}: there is no database; has the agent been started?")
    if isinstance(error, OSError):
        return StoreUnreadable(f"{path}: {error.strerror}; may this user read it and enter its folder?")
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return StoreUnreadable(f"{path}: another program has locked it; end that program")
    if code in _UNWRITABLE:
        return StoreUnreadable(f"{path}: {error}; may this user read it and the files beside it?")
    return StoreCorrupt(NOT_WHAT_WAS_WRITTEN.format(path=path, why=error))
