"""Files of the agent's database: opened, locked, set aside."""

import errno
import fcntl
import os
import sqlite3
from pathlib import Path
from typing import Final

from .errors import (
    LINK,
    NOT_WHAT_WAS_WRITTEN,
    StoreCorrupt,
    StoreInUse,
    StoreTooNew,
    StoreUnreadable,
    StoreUnwritable,
    explain,
)
from .rows import SCHEMA_VERSION

BUSY_TIMEOUT_MS: Final = 5_000
"""How long a reader of the database (a backup, an application in process) may make a commit wait."""


READER_TIMEOUT_MS: Final = 50
"""How long a reader waits for somebody who has locked the whole file; it has an answer without, and asks again."""


DATABASE_MODE: Final = 0o640
"""Of a new database and what SQLite keeps beside it, whatever the umask: applications in process read it by its group."""


_CORRUPT_SUFFIX: Final = ".corrupt"


_HEADER_BYTES: Final = 100  # sqlite.org/fileformat.html, 1.3


def set_aside(path: Path, stamp: int) -> Path | None:
    """Move a database that cannot be used out of the way, with its log, and keep it. Returns where it went."""
    if not path.exists():
        return None
    kept = path.with_name(f"{path.name}{_CORRUPT_SUFFIX}-{stamp}")
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(kept.with_name(kept.name + suffix))
    return kept


def lock_file(path: Path) -> int:
    """A lock: one agent at a time works on a database. Raises StoreInUse, StoreUnwritable."""
    # Two agents on one database would each overwrite what the other believes. The lock file stays: removing it would let a
    # third one lock a new file of the same name.
    lock_path = path.with_name(f"{path.name}.lock")
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreUnwritable(LINK.format(path=lock_path)) from error
        raise StoreUnwritable(
            f"{path}: {error.strerror}; check that the folder exists and is writable for the agent's user"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StoreInUse(f"{path}: another agent works on this database; stop it first") from None
    return lock


def _create(path: Path) -> None:
    # SQLite gives a new file 0644 less the umask, and its log and index the mode of the file.
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, DATABASE_MODE)
    except OSError:
        return  # it is there, or SQLite has the words for what is wrong
    try:
        os.fchmod(descriptor, DATABASE_MODE)
    finally:
        os.close(descriptor)


def open_to_write(path: Path) -> sqlite3.Connection:
    """A connection that creates the file where there is none. Raises StoreError."""
    _require_header(path)
    _create(path)
    try:
        # Transactions are opened explicitly; the thread that persists is not the one that opened.
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise explain(path, error) from error
    try:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    except sqlite3.Error as error:
        connection.close()
        raise explain(path, error) from error
    return connection


def _require_header(path: Path) -> None:
    # SQLite takes a file that is cut off within its header for a new one, and drops the log beside it. A file without a byte is
    # new, unless its log says that it was something once.
    log = side_file_bytes(path, "-wal")  # first, because whoever is creating the file writes its log last
    try:
        size = path.stat().st_size
    except OSError:
        return
    if size < _HEADER_BYTES and (size or log):
        raise StoreCorrupt(NOT_WHAT_WAS_WRITTEN.format(path=path, why=f"cut off after {size} bytes"))


def lock_to_read(path: Path) -> int | None:
    """The same lock on a disk that may be read-only; None where there is no lock file. Raises StoreInUse."""
    # A read-only disk may still hold the lock file; without one, nobody can be writing there either.
    try:
        lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreUnreadable(LINK.format(path=f"{path}.lock")) from error
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StoreInUse(f"{path}: another agent works on this database; stop it first") from None
    return lock


def close_lock(lock: int | None) -> None:
    """Gives a lock back."""
    if lock is not None:
        os.close(lock)


def open_to_read(path: Path) -> tuple[sqlite3.Connection, bool]:
    """A connection for reading, and whether it sees later commits too. Raises StoreUnreadable, OSError."""
    # SQLite reads a log with the help of an index, the `-shm` file, which
    # whoever has the database open keeps up. Only where that is there the log is opened, and `readonly_shm` keeps the index as
    # it is: a reader that may write the folder would otherwise create files of its own user, which the agent cannot use. For the
    # same reason `mode=ro` is there with `immutable` too, which alone makes an empty database where there is none.
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    _require_header(path)
    uri = path.absolute().as_uri()
    is_live = path.with_name(f"{path.name}-shm").exists()
    if not is_live and side_file_bytes(path, "-wal"):
        raise StoreUnreadable(
            f"{path}: its log has lost its index, the file {path.name}-shm; start the agent"
        )
    connection = sqlite3.connect(
        f"{uri}?mode=ro&readonly_shm=1" if is_live else f"{uri}?mode=ro&immutable=1",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.execute(f"PRAGMA busy_timeout = {READER_TIMEOUT_MS}")
    except BaseException:
        connection.close()
        raise
    return connection, is_live


def side_file_bytes(path: Path, suffix: str) -> int:
    """The size of SQLite's `-wal` or `-shm`, 0 where there is none."""
    try:
        return path.with_name(path.name + suffix).stat().st_size
    except FileNotFoundError:
        return 0


def schema_of(path: Path, connection: sqlite3.Connection) -> int:
    """The schema's number. Raises StoreTooNew."""
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    require_known(path, found)
    return found


def require_known(path: Path, schema: int) -> None:
    """Raises StoreTooNew: a later release wrote it."""
    if schema > SCHEMA_VERSION:
        raise StoreTooNew(
            f"{path}: written by a later release (schema {schema}, this one knows {SCHEMA_VERSION}); "
            "update what reads it"
        )


def data_version(connection: sqlite3.Connection) -> int:
    """A number that changes whenever another connection has committed (sqlite.org/pragma.html#pragma_data_version)."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])
