"""The agent's disk: what was admitted, in SQLite, one transaction per update.

WAL and `synchronous=FULL`: an update is on disk whole or not at all, and what was committed survives a power cut. Start-up reads
with the standard library alone; sqlite-utils is loaded when there is something to write. The one module of the agent that
touches the database.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flagcast_shared.codec import encode
from flagcast_shared.errors import FlagcastError
from flagcast_shared.ids import Digest, Epoch, Namespace, Version
from flagcast_shared.records import digest_of
from flagcast_shared.trust import AdmittedRoot, AdmittedUpdate, Stored

if TYPE_CHECKING:
    from sqlite_utils import Database

SCHEMA_VERSION: Final = 1
BUSY_TIMEOUT_MS: Final = 5_000
"""How long a reader of the database (a backup, an application in process) may make a commit wait."""

_CORRUPT_SUFFIX: Final = ".corrupt"


class StoreError(FlagcastError):
    """The agent's database cannot be used. Says what to do.

    StoreError
    ├── StoreInUse       another agent holds it
    ├── StoreCorrupt     it does not hold what was written; `--recover` sets it aside
    ├── StoreTooNew      a later release wrote it
    └── StoreUnwritable  disk full, read-only, no permission
    """


class StoreInUse(StoreError):
    """Another agent works on the file."""


class StoreCorrupt(StoreError):
    """The file is not the database that was written."""


class StoreTooNew(StoreError):
    """A later release wrote the file."""


class StoreUnwritable(StoreError):
    """The disk does not take it; what was admitted before is still there."""


@dataclass(frozen=True, slots=True)
class Saved:
    """Everything a device had admitted when it went down."""

    root_data: bytes | None
    floor: int
    namespaces: tuple[Stored, ...]


class Store:
    """An open database. `persist_*` return only when the disk has it."""

    def __init__(self, path: Path) -> None:
        """Open or create. Raises StoreError."""
        self._path = path
        lock = _lock(path)
        self._lock: int | None = lock
        self._database: Database | None = None
        try:
            self._connection = _open(path)
        except StoreError:
            os.close(lock)
            raise
        try:
            found = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
            if found > SCHEMA_VERSION:
                raise StoreTooNew(
                    f"{path}: written by a later release (schema {found}, this one knows {SCHEMA_VERSION}); "
                    "install that release again, or start afresh with --recover, which keeps the old file beside it"
                )
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            if found < SCHEMA_VERSION:
                self._migrate(found)
        except (
            sqlite3.DatabaseError,
            ValueError,
        ) as error:  # sqlite3 decodes what a damaged file makes it say
            self.close()
            raise _explain(path, error) from error
        except StoreError:
            self.close()
            raise

    def load(self) -> Saved:
        """What was persisted. Raises StoreCorrupt where the file does not give it back."""
        try:
            trust = dict(self._sealed("SELECT name, value, seal FROM trust"))
            namespaces = [
                Stored(
                    Namespace(name), head, Epoch(epoch), Version(version), Digest(digest), self._records(name)
                )
                for name, head, epoch, version, digest in self._sealed(
                    "SELECT namespace, head, epoch, version, digest, seal FROM holding ORDER BY namespace"
                )
            ]
        except (sqlite3.DatabaseError, TypeError, ValueError) as error:
            raise _explain(self._path, error) from error
        return Saved(trust.get("root"), trust.get("floor", 0), tuple(namespaces))

    def persist_update(self, update: AdmittedUpdate, floor: int) -> None:
        """One admitted update in one transaction: the head, and only the records that change. Raises StoreError."""
        holding, namespace = update.holding, update.namespace
        try:
            database = self._writer()
            with database.atomic():
                if update.is_complete:
                    self._connection.execute("DELETE FROM record WHERE namespace = ?", [namespace])
                self._connection.executemany(
                    "DELETE FROM record WHERE namespace = ? AND kind = ? AND key = ?",
                    [(namespace, identity.kind, identity.key) for identity in update.removed],
                )
                database.table("record").upsert_all(
                    (
                        {
                            "namespace": namespace,
                            "kind": record.id.kind,
                            "key": record.id.key,
                            "data": record.data,
                        }
                        for record in update.changed
                    ),
                    pk=("namespace", "kind", "key"),
                )
                database.table("holding").upsert(
                    {
                        "namespace": namespace,
                        "head": holding.head_data,
                        "epoch": holding.epoch,
                        "version": holding.version,
                        "digest": holding.digest,
                        "seal": _seal(
                            namespace, holding.head_data, holding.epoch, holding.version, holding.digest
                        ),
                    },
                    pk="namespace",
                )
                database.table("trust").upsert(_trust_row("floor", floor), pk="name")
        except (sqlite3.DatabaseError, OSError) as error:
            raise _explain(self._path, error) from error

    def persist_root(self, admitted: AdmittedRoot, floor: int) -> None:
        """A root in one transaction, before the next one is asked for. Raises StoreError."""
        try:
            database = self._writer()
            rows = [_trust_row("root", admitted.data), _trust_row("floor", floor)]
            with database.atomic():
                database.table("trust").upsert_all(rows, pk="name")
        except (sqlite3.DatabaseError, OSError) as error:
            raise _explain(self._path, error) from error

    def close(self) -> None:
        """Close; the write-ahead log is folded in. Closing again does nothing."""
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _records(self, namespace: str) -> Iterable[bytes]:
        rows = self._connection.execute(
            "SELECT data FROM record WHERE namespace = ? ORDER BY kind, key", [namespace]
        ).fetchall()
        return [bytes(data) for (data,) in rows]

    def _sealed(self, query: str) -> list[Any]:
        # Records have their digest. A number that a worn flash changes has none: a sequence that is too high would refuse
        # every head to come.
        rows = self._connection.execute(query).fetchall()
        for *values, seal in rows:
            if _seal(*values) != seal:
                raise StoreCorrupt(_NOT_WHAT_WAS_WRITTEN.format(path=self._path, why="a row was changed"))
        return [values for *values, _ in rows]

    def _writer(self) -> "Database":
        if self._database is None:
            from sqlite_utils import Database

            self._database = Database(self._connection)
        return self._database

    def _migrate(self, found: int) -> None:
        # One step per schema version, each in one transaction with its number.
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")  # another process may be creating it at this moment
            if found < 1:
                self._connection.execute(
                    "CREATE TABLE trust (name TEXT PRIMARY KEY, value BLOB NOT NULL, seal BLOB NOT NULL) WITHOUT ROWID"
                )
                self._connection.execute(
                    "CREATE TABLE holding (namespace TEXT PRIMARY KEY, head BLOB NOT NULL, epoch INTEGER NOT NULL, "
                    "version INTEGER NOT NULL, digest BLOB NOT NULL, seal BLOB NOT NULL) WITHOUT ROWID"
                )
                self._connection.execute(
                    "CREATE TABLE record (namespace TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, "
                    "data BLOB NOT NULL, PRIMARY KEY (namespace, kind, key)) WITHOUT ROWID"
                )
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


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


def _lock(path: Path) -> int:
    # Two agents on one database would each overwrite what the other believes. The lock file stays: removing it would let a
    # third one lock a new file of the same name.
    lock_path = path.with_name(f"{path.name}.lock")
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreUnwritable(
            f"{path}: {error.strerror}; check that the folder exists and is writable for the agent's user"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StoreInUse(f"{path}: another agent works on this database; stop it first") from None
    return lock


def _open(path: Path) -> sqlite3.Connection:
    try:
        # Transactions are opened explicitly; the thread that persists is not the one that opened.
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    except sqlite3.Error as error:
        raise _explain(path, error) from error
    return connection


def _seal(*values: str | int | bytes) -> bytes:
    return digest_of(encode(list(values)))


def _trust_row(name: str, value: int | bytes) -> dict[str, object]:
    return {"name": name, "value": value, "seal": _seal(name, value)}


_NOT_WHAT_WAS_WRITTEN: Final = (
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


def _explain(path: Path, error: Exception) -> StoreError:
    if isinstance(error, OSError):
        return StoreUnwritable(f"{path}: {error.strerror}. What was admitted is unharmed")
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _UNWRITABLE:
        return StoreUnwritable(
            f"{path}: {error}; check that the folder exists, is writable and has free space. What was admitted is unharmed"
        )
    return StoreCorrupt(_NOT_WHAT_WAS_WRITTEN.format(path=path, why=error))
