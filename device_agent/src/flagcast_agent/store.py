"""The agent's disk: what was admitted, in SQLite, one transaction per update.

WAL and `synchronous=FULL`: an update is on disk whole or not at all, and what was committed survives a power cut. Start-up reads
with the standard library alone; sqlite-utils is loaded when there is something to write. The one module of the agent that
touches the database: `Store` for the agent that owns it, `Reader` for everybody else on the device.
"""

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flagcast_shared.codec import Fields, array, decode, encode, text
from flagcast_shared.context import Device
from flagcast_shared.errors import FlagcastError, Malformed
from flagcast_shared.ids import DeviceId, Digest, Environment, Epoch, FlagKey, Namespace, Version
from flagcast_shared.limits import KEY_MAX_BYTES, LABELS_MAX, NUMBER_MAX, TEXT_MAX_BYTES
from flagcast_shared.records import FLAG, digest_of

from .limits import REMOVED_FLAGS_MAX
from .sync.time_floor import TimeFloor
from .sync.transitions import BrokerMemory

if TYPE_CHECKING:
    from sqlite_utils import Database

    from flagcast_shared.reports import Usage

    # A reader trusts what was admitted, so it does without the cryptography that this module brings along.
    from flagcast_shared.trust import AdmittedRoot, AdmittedUpdate, Stored

SCHEMA_VERSION: Final = 3
BUSY_TIMEOUT_MS: Final = 5_000
"""How long a reader of the database (a backup, an application in process) may make a commit wait."""
READER_TIMEOUT_MS: Final = 50
"""How long a reader waits for somebody who has locked the whole file; it has an answer without, and asks again."""
DATABASE_MODE: Final = 0o640
"""Of a new database and what SQLite keeps beside it, whatever the umask: applications in process read it by its group."""
NAMESPACES_MAX: Final = 1_000
"""Namespaces that one agent follows: each is a subscription."""

USAGE_BATCHES_MAX: Final = 1_000
"""Batches of evaluation counts that wait to be sent: six weeks offline at one an hour. The oldest give way."""
USAGE_BYTES_MAX: Final = 1_048_576
"""What they may take together; the flash of the smallest device spares a megabyte."""

_SCHEMA_OF_REMOVED: Final = 3
_CORRUPT_SUFFIX: Final = ".corrupt"
_HEADER_BYTES: Final = 100  # sqlite.org/fileformat.html, 1.3


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


@dataclass(frozen=True, slots=True)
class Profile:
    """Whose database it is, for readers that may not read the agent's configuration.

    `namespaces` are those that the agent answers for; the first is what a question without a namespace means.
    """

    environment: Environment
    device: Device
    namespaces: tuple[Namespace, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """One namespace in the database. `records` is None where the reader said that it knows this content."""

    namespace: Namespace
    head_data: bytes
    epoch: Epoch
    version: Version
    digest: Digest
    records: tuple[bytes, ...] | None


@dataclass(frozen=True, slots=True)
class Seen:
    """What a reader saw in one instant. `profile` is None until an agent has booted from this database.

    `floor` is to be resumed before it says what time it is.
    """

    profile: Profile | None
    holdings: tuple[Held, ...]
    floor: TimeFloor


@dataclass(frozen=True, slots=True)
class Saved:
    """Everything a device had admitted when it went down. `floor` is to be resumed before it says what time it is.

    `removed` are the keys of flags that are gone since, the oldest first, REMOVED_FLAGS_MAX of a namespace at most.
    """

    root_data: bytes | None
    floor: TimeFloor
    namespaces: "tuple[Stored, ...]"
    broker: BrokerMemory | None = None
    removed: Mapping[Namespace, tuple[FlagKey, ...]] = field(default_factory=dict)


class Store:
    """An open database. `persist_*` return only when the disk has it.

    `why_read_only` says why nothing can be persisted; blank on a disk that takes writes.
    """

    def __init__(self, path: Path, *, may_be_read_only: bool = False) -> None:
        """Open or create. Raises StoreError.

        With `may_be_read_only`, a disk that takes no writes gives what it holds instead of StoreUnwritable. Persisting then
        tries to open for writing again, so a disk that has become writable needs no restart.
        """
        self._path = path
        self._lock: int | None = None
        self._database: Database | None = None
        self.why_read_only = ""
        try:
            self._open_for_writing()
        except StoreUnwritable as error:
            if not may_be_read_only or not path.parent.is_dir():
                raise
            self.why_read_only = str(error)
            self._open_for_reading()

    def _open_for_writing(self) -> None:
        path = self._path
        lock = _lock(path)
        try:
            # SQLite would open it all the same, and fail at the first commit.
            if path.exists() and not os.access(path, os.W_OK):
                raise StoreUnwritable(f"{path}: not writable for the agent's user, or on a read-only disk")
            self._connection = _open(path)
        except StoreError:
            os.close(lock)
            raise
        self._lock = lock
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

    def _open_for_reading(self) -> None:
        lock = _lock_to_read(self._path)
        connection: sqlite3.Connection | None = None
        try:
            if self._path.exists():
                connection, _ = _open_to_read(self._path)
                _schema(self._path, connection)
                self._connection = connection
            else:
                connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
                self._connection = connection
                self._migrate(0)
                connection.execute("PRAGMA query_only = ON")
        except (sqlite3.Error, OSError, ValueError, StoreError) as error:
            if connection is not None:
                connection.close()
            _close_lock(lock)
            if isinstance(error, StoreError):
                raise
            raise _explain_reading(self._path, error) from error
        self._lock = lock

    def load(self) -> Saved:
        """What was persisted. Raises StoreCorrupt where the file does not give it back."""
        from flagcast_shared.trust import Stored

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
            removed = self._removed()
        except (sqlite3.DatabaseError, TypeError, ValueError) as error:
            raise _explain(self._path, error) from error
        try:
            broker = _decode_broker(trust["broker"]) if trust.get("broker") else None
            floor = _decode_floor(trust.get("floor", 0), trust.get("boot"))
        except Malformed as error:
            raise _explain(self._path, error) from error
        return Saved(trust.get("root"), floor, tuple(namespaces), broker, removed)

    def persist_profile(self, profile: Profile) -> None:
        """Say whose database it is; writes only what is new. Raises StoreError."""
        value = _encode_profile(profile)
        try:
            found = self._connection.execute("SELECT value FROM trust WHERE name = 'profile'").fetchone()
            if found is None or found[0] != value:
                self._writer().table("trust").upsert(_trust_row("profile", value), pk="name")
        except (sqlite3.DatabaseError, OSError) as error:
            raise _explain(self._path, error) from error

    def persist_floor(self, floor: TimeFloor) -> None:
        """What time it is at least, in this boot of the device; writes only what is new. Raises StoreError."""
        rows = _floor_rows(floor)
        try:
            found = dict(self._sealed("SELECT name, value, seal FROM trust WHERE name IN ('floor', 'boot')"))
            if any(found.get(row["name"]) != row["value"] for row in rows):
                self._writer().table("trust").upsert_all(rows, pk="name")
        except (sqlite3.DatabaseError, OSError) as error:
            raise _explain(self._path, error) from error

    def persist_update(self, update: "AdmittedUpdate", floor: TimeFloor) -> None:
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
                database.table("trust").upsert_all(_floor_rows(floor), pk="name")
                self._note_removed(update)
        except (sqlite3.DatabaseError, OSError) as error:
            raise _explain(self._path, error) from error

    def persist_root(self, admitted: "AdmittedRoot", floor: TimeFloor) -> None:
        """A root in one transaction, before the next one is asked for. Raises StoreError."""
        try:
            database = self._writer()
            rows = [_trust_row("root", admitted.data), *_floor_rows(floor)]
            with database.atomic():
                database.table("trust").upsert_all(rows, pk="name")
        except (sqlite3.DatabaseError, OSError) as error:
            raise _explain(self._path, error) from error

    def persist_broker(self, memory: BrokerMemory | None) -> None:
        """What is remembered of the broker, or nothing. Raises StoreError."""
        value = b"" if memory is None else _encode_broker(memory)
        try:
            self._writer().table("trust").upsert(_trust_row("broker", value), pk="name")
        except (sqlite3.DatabaseError, OSError) as error:
            raise _explain(self._path, error) from error

    def keep_usage(self, batch: "Usage") -> None:
        """Put a batch behind those that wait. Where there is no room the oldest give way, and the batch says how many
        evaluations went with them. In one transaction. Raises StoreError.
        """
        from flagcast_shared.reports import encode_usage

        try:
            database = self._writer()
            with database.atomic():
                dropped = self._make_room_for_usage(len(encode_usage(batch)))
                payload = encode_usage(replace(batch, dropped=batch.dropped + dropped))
                database.table("usage").insert(
                    {"payload": payload, "evaluations": batch.evaluations + batch.dropped + dropped}
                )
        except (sqlite3.DatabaseError, OSError) as error:
            raise _explain(self._path, error) from error

    def oldest_usage(self) -> tuple[int, bytes] | None:
        """The number and bytes of the batch that waits longest. Raises StoreError."""
        try:
            found = self._connection.execute(
                "SELECT number, payload FROM usage ORDER BY number LIMIT 1"
            ).fetchone()
        except sqlite3.DatabaseError as error:
            raise _explain(self._path, error) from error
        return None if found is None else (int(found[0]), bytes(found[1]))

    def drop_usage(self, number: int) -> None:
        """A batch that was taken. Raises StoreError."""
        try:
            database = self._writer()
            with database.atomic():
                self._connection.execute("DELETE FROM usage WHERE number = ?", [number])
        except (sqlite3.DatabaseError, OSError) as error:
            raise _explain(self._path, error) from error

    def _make_room_for_usage(self, size: int) -> int:
        # Newest first, until what is kept with the new batch is as much as is allowed. Returns the evaluations given up.
        rows = self._connection.execute(
            "SELECT number, length(payload), evaluations FROM usage ORDER BY number DESC"
        ).fetchall()
        kept, total, given_up = 1, size, 0
        for number, length, evaluations in rows:
            kept += 1
            total += length
            if kept > USAGE_BATCHES_MAX or total > USAGE_BYTES_MAX:
                given_up += evaluations
                self._connection.execute("DELETE FROM usage WHERE number = ?", [number])
        return given_up

    def close(self) -> None:
        """Close; the write-ahead log is folded in. Closing again does nothing."""
        self._connection.close()
        self.abandon()

    def abandon(self) -> None:
        """Give the lock back and leave the rest alone: all that a process may do that was forked while this was open."""
        _close_lock(self._lock)
        self._lock = None

    def _records(self, namespace: str) -> Iterable[bytes]:
        rows = self._connection.execute(
            "SELECT data FROM record WHERE namespace = ? ORDER BY kind, key", [namespace]
        ).fetchall()
        return [bytes(data) for (data,) in rows]

    def _removed(self) -> Mapping[Namespace, tuple[FlagKey, ...]]:
        # They have no hash: one that a worn flash changes makes a provider ask once more. An older release's file on a disk that
        # takes no writes has none of them.
        if _schema(self._path, self._connection) < _SCHEMA_OF_REMOVED:
            return {}
        rows = self._connection.execute(
            "SELECT namespace, key FROM removed WHERE typeof(key) = 'text' ORDER BY number, key"
        ).fetchall()
        found: dict[Namespace, list[FlagKey]] = {}
        for namespace, key in rows:
            found.setdefault(Namespace(namespace), []).append(FlagKey(key))
        return {namespace: tuple(keys) for namespace, keys in found.items()}

    def _note_removed(self, update: "AdmittedUpdate") -> None:
        # Within the update's transaction. Where no flag goes and none comes back, nothing is written.
        namespace = update.namespace
        execute, execute_each = self._connection.execute, self._connection.executemany
        execute_each(
            "DELETE FROM removed WHERE namespace = ? AND key = ?",
            [(namespace, record.id.key) for record in update.changed if record.id.kind == FLAG],
        )
        gone = [identity.key for identity in update.removed if identity.kind == FLAG]
        if not gone:
            return
        (number,) = execute(
            "SELECT ifnull(max(number), 0) + 1 FROM removed WHERE namespace = ?", [namespace]
        ).fetchone()
        execute_each(
            "INSERT OR REPLACE INTO removed (namespace, key, number) VALUES (?, ?, ?)",
            [(namespace, key, number) for key in gone],
        )
        execute(
            "DELETE FROM removed WHERE namespace = ? AND key IN "
            "(SELECT key FROM removed WHERE namespace = ? ORDER BY number DESC, key DESC LIMIT -1 OFFSET ?)",
            [namespace, namespace, REMOVED_FLAGS_MAX],
        )

    def _sealed(self, query: str) -> list[Any]:
        return _sealed(self._path, self._connection, query)

    def _writer(self) -> "Database":
        if self.why_read_only:
            former, former_lock = self._connection, self._lock
            _close_lock(former_lock)
            try:
                self._open_for_writing()
            except StoreError:
                self._connection, self._lock = former, _lock_to_read(self._path)
                raise
            former.close()
            self.why_read_only = ""
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
            if found < 2:
                # Numbers are never used twice: a batch that is taken late is not another one.
                self._connection.execute(
                    "CREATE TABLE usage (number INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB NOT NULL, "
                    "evaluations INTEGER NOT NULL)"
                )
            if found < _SCHEMA_OF_REMOVED:
                self._connection.execute(
                    "CREATE TABLE removed (namespace TEXT NOT NULL, key TEXT NOT NULL, number INTEGER NOT NULL, "
                    "PRIMARY KEY (namespace, key)) WITHOUT ROWID"
                )
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


class Reader:
    """The database for those who do not own it: applications in process, and `doctor`. For one thread at a time.

    It creates nothing, writes nothing and holds no lock beyond one short read transaction. While an agent has the database
    open, or was killed with it open, SQLite needs the `-shm` file to be readable and nothing to be writable. After a clean end
    there is no such file; the database is then complete in itself and read without locks, and what was read is believed
    only if nobody changed the file meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        self._is_live = False
        self._seen: object = None

    def look(self, known: Mapping[Namespace, Digest]) -> Seen | None:
        """What the database holds; None if that is what was seen last. Content whose digest is `known` is left out.

        A database that was put in the place of the one seen last is found too. Raises StoreError; the next call begins afresh.
        """
        try:
            return self._look(known)
        except StoreError:
            self.close()
            raise
        except (sqlite3.Error, OSError, Malformed, TypeError, ValueError) as error:
            self.close()
            raise _explain_reading(self._path, error) from error

    def forget(self) -> None:
        """The next look gives everything, whether it is new or not."""
        self._seen = None

    def belief(self) -> tuple[TimeFloor, bytes | None, frozenset[Epoch]]:
        """What time it is at least, to be resumed, the root in force, and the epochs of what is held. Raises StoreError."""
        try:
            connection, _ = _open_to_read(self._path)
            try:
                if not _schema(self._path, connection):
                    return TimeFloor(), None, frozenset()
                trust = dict(_sealed(self._path, connection, "SELECT name, value, seal FROM trust"))
                epochs = frozenset(
                    Epoch(epoch) for (epoch,) in connection.execute("SELECT DISTINCT epoch FROM holding")
                )
            finally:
                connection.close()
            floor = _decode_floor(trust.get("floor", 0), trust.get("boot"))
        except (sqlite3.Error, OSError, Malformed, ValueError) as error:
            raise _explain_reading(self._path, error) from error
        return floor, trust.get("root"), epochs

    def damages(self) -> tuple[str, ...]:
        """What SQLite's own check finds wrong with the file; empty when it is sound. Raises StoreError."""
        try:
            connection, _ = _open_to_read(self._path)
            try:
                found = connection.execute("PRAGMA integrity_check(5)").fetchall()
            finally:
                connection.close()
        except (sqlite3.Error, OSError, ValueError) as error:
            raise _explain_reading(self._path, error) from error
        return tuple(str(line) for (line,) in found if line != "ok")

    def close(self) -> None:
        """Close. The next look opens again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def abandon(self) -> None:
        """After a fork: the connection is the parent's, so this process neither uses nor closes it."""
        if self._connection is not None:
            _ABANDONED.append(self._connection)
            self._connection = None

    def _look(self, known: Mapping[Namespace, Digest]) -> Seen | None:
        # Python lets other threads run whenever it calls the system or SQLite, and an application that evaluates at full speed
        # gives the turn back only after 5 ms each time. So this makes as few calls as it can.
        file = self._path.stat()
        identity = (file.st_dev, file.st_ino)
        connection = self._connection if identity == self._opened else None
        if connection is None:
            if (identity, file.st_mtime_ns, file.st_size) == self._seen and not _side_file(
                self._path, "-shm"
            ):
                return None
            self.close()
            connection, self._is_live = _open_to_read(self._path)
            # What one connection has seen says nothing about what another one sees.
            self._connection, self._opened, self._seen = connection, identity, None
            again = self._path.stat()
            if (again.st_dev, again.st_ino) != identity:
                raise StoreUnreadable(f"{self._path}: replaced while it was opened; it is read again")
        seen = (identity, file.st_mtime_ns, file.st_size)
        if self._is_live:
            # Taken before the rest is read: what is committed in between is then read again.
            seen = (identity, _data_version(connection), 0)
            if seen == self._seen:
                return None
        result = self._read(connection, known)
        if not self._is_live:
            self.close()
            after = self._path.stat()
            if (identity, after.st_mtime_ns, after.st_size) != seen or _side_file(self._path, "-wal"):
                raise StoreUnreadable(f"{self._path}: changed while it was read; it is read again")
        self._seen = seen
        return result

    def _read(self, connection: sqlite3.Connection, known: Mapping[Namespace, Digest]) -> Seen:
        try:
            # One statement sees one instant. All records of a namespace come in one row, and only where they are news.
            rows = connection.execute(
                _SEEN, ["".join(f" {name}:{digest.hex().upper()} " for name, digest in known.items())]
            ).fetchall()
        except sqlite3.OperationalError:
            if _schema(self._path, connection):
                raise
            return Seen(None, (), TimeFloor())  # an agent is about to create it
        version, profile, profile_seal, floor, floor_seal, boot, boot_seal = rows[0][:7]
        _require_known(self._path, version)
        sealed = (("profile", profile, profile_seal), ("floor", floor, floor_seal), ("boot", boot, boot_seal))
        if any(value is not None and _seal(name, value) != seal for name, value, seal in sealed):
            raise StoreCorrupt(_NOT_WHAT_WAS_WRITTEN.format(path=self._path, why="a row was changed"))
        return Seen(
            None if profile is None else _decode_profile(profile),
            tuple(_held(self._path, row[7:]) for row in rows if row[7] is not None),
            _decode_floor(floor or 0, boot),
        )


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
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreUnwritable(_LINK.format(path=lock_path)) from error
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


def _open(path: Path) -> sqlite3.Connection:
    _require_header(path)
    _create(path)
    try:
        # Transactions are opened explicitly; the thread that persists is not the one that opened.
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise _explain(path, error) from error
    try:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    except sqlite3.Error as error:
        connection.close()
        raise _explain(path, error) from error
    return connection


def _require_header(path: Path) -> None:
    # SQLite takes a file that is cut off within its header for a new one, and drops the log beside it. A file without a byte is
    # new, unless its log says that it was something once.
    log = _side_file(path, "-wal")  # first, because whoever is creating the file writes its log last
    try:
        size = path.stat().st_size
    except OSError:
        return
    if size < _HEADER_BYTES and (size or log):
        raise StoreCorrupt(_NOT_WHAT_WAS_WRITTEN.format(path=path, why=f"cut off after {size} bytes"))


def _lock_to_read(path: Path) -> int | None:
    # A read-only disk may still hold the lock file; without one, nobody can be writing there either.
    try:
        lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreUnreadable(_LINK.format(path=f"{path}.lock")) from error
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StoreInUse(f"{path}: another agent works on this database; stop it first") from None
    return lock


def _close_lock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


_ABANDONED: Final[list[sqlite3.Connection]] = []
# Connections of a parent process. Were they collected, SQLite would close files under the parent's locks.


def _open_to_read(path: Path) -> tuple[sqlite3.Connection, bool]:
    # Returns whether the connection sees later commits too. SQLite reads a log with the help of an index, the `-shm` file, which
    # whoever has the database open keeps up. Only where that is there the log is opened, and `readonly_shm` keeps the index as
    # it is: a reader that may write the folder would otherwise create files of its own user, which the agent cannot use. For the
    # same reason `mode=ro` is there with `immutable` too, which alone makes an empty database where there is none.
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    _require_header(path)
    uri = path.absolute().as_uri()
    is_live = path.with_name(f"{path.name}-shm").exists()
    if not is_live and _side_file(path, "-wal"):
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


def _side_file(path: Path, suffix: str) -> int:
    # The size of SQLite's `-wal` or `-shm`, 0 when there is none.
    try:
        return path.with_name(path.name + suffix).stat().st_size
    except FileNotFoundError:
        return 0


def _schema(path: Path, connection: sqlite3.Connection) -> int:
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    _require_known(path, found)
    return found


def _require_known(path: Path, schema: int) -> None:
    if schema > SCHEMA_VERSION:
        raise StoreTooNew(
            f"{path}: written by a later release (schema {schema}, this one knows {SCHEMA_VERSION}); "
            "update what reads it"
        )


_SEEN: Final = """
SELECT user_version, profile.value, profile.seal, floor.value, floor.seal, boot.value, boot.seal,
    holding.namespace, head, epoch, version, digest, holding.seal,
    CASE WHEN instr(?, ' ' || holding.namespace || ':' || hex(digest) || ' ') THEN NULL ELSE
        (SELECT ifnull(group_concat(hex(data)), '') FROM record WHERE record.namespace = holding.namespace)
    END
FROM pragma_user_version
LEFT JOIN (SELECT value, seal FROM trust WHERE name = 'profile') AS profile
LEFT JOIN (SELECT value, seal FROM trust WHERE name = 'floor') AS floor
LEFT JOIN (SELECT value, seal FROM trust WHERE name = 'boot') AS boot
LEFT JOIN holding
ORDER BY holding.namespace
"""
# At least one row, whatever is there.


def _data_version(connection: sqlite3.Connection) -> int:
    # Changes whenever another connection has committed (sqlite.org/pragma.html#pragma_data_version).
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


def _held(path: Path, row: tuple[str, bytes, int, int, bytes, bytes, str | None]) -> Held:
    name, head, epoch, version, digest, seal, joined = row
    if _seal(name, head, epoch, version, digest) != seal:
        raise StoreCorrupt(_NOT_WHAT_WAS_WRITTEN.format(path=path, why="a row was changed"))
    records = None
    if joined is not None:
        records = tuple(map(bytes.fromhex, joined.split(","))) if joined else ()
    return Held(Namespace(name), head, Epoch(epoch), Version(version), Digest(digest), records)


def _sealed(path: Path, connection: sqlite3.Connection, query: str) -> list[Any]:
    # Records have their digest. A number that a worn flash changes has none: a sequence that is too high would refuse
    # every head to come.
    rows = connection.execute(query).fetchall()
    for *values, seal in rows:
        if _seal(*values) != seal:
            raise StoreCorrupt(_NOT_WHAT_WAS_WRITTEN.format(path=path, why="a row was changed"))
    return [values for *values, _ in rows]


def _encode_profile(profile: Profile) -> bytes:
    device = profile.device
    return encode(
        {
            1: profile.environment,
            2: device.id,
            3: dict(device.labels),
            4: device.model,
            5: device.firmware,
            6: list(profile.namespaces),
        }
    )


def _decode_profile(data: bytes) -> Profile:
    body = Fields(decode(data, "profile"), "profile")
    return Profile(
        Environment(body.text(1, KEY_MAX_BYTES)),
        Device(
            DeviceId(body.text(2, KEY_MAX_BYTES)),
            body.texts(3, LABELS_MAX),
            body.text(4, TEXT_MAX_BYTES),
            body.text(5, TEXT_MAX_BYTES),
        ),
        tuple(
            Namespace(text(name, "profile, namespace", KEY_MAX_BYTES))
            for name in array(body.get(6), "profile, namespaces", NAMESPACES_MAX)
        ),
    )


def _floor_rows(floor: TimeFloor) -> list[dict[str, Any]]:
    return [
        _trust_row("floor", floor.time),
        _trust_row("boot", encode({1: floor.boot, 2: floor.booted})),
    ]


def _decode_floor(time: int, data: bytes | None) -> TimeFloor:
    # A database of a release that wrote no boot: of none that is known.
    if data is None:
        return TimeFloor(time)
    body = Fields(decode(data, "boot"), "boot")
    return TimeFloor(time, body.integer(2, -NUMBER_MAX), body.text(1, KEY_MAX_BYTES))


def _encode_broker(memory: BrokerMemory) -> bytes:
    return encode({1: memory.broker, 2: memory.protocol, 3: memory.since})


def _decode_broker(data: bytes) -> BrokerMemory:
    body = Fields(decode(data, "broker"), "broker")
    return BrokerMemory(body.text(1, TEXT_MAX_BYTES), body.text(2, KEY_MAX_BYTES), body.integer(3))


def _seal(*values: str | int | bytes) -> bytes:
    return digest_of(encode(list(values)))


def _trust_row(name: str, value: int | bytes) -> dict[str, object]:
    return {"name": name, "value": value, "seal": _seal(name, value)}


_LINK: Final = "{path}: a symbolic link, and a lock is never taken through one; remove it"
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


def _explain_reading(path: Path, error: Exception) -> StoreError:
    if isinstance(error, FileNotFoundError):
        return StoreUnreadable(f"{path}: there is no database; has the agent been started?")
    if isinstance(error, OSError):
        return StoreUnreadable(f"{path}: {error.strerror}; may this user read it and enter its folder?")
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return StoreUnreadable(f"{path}: another program has locked it; end that program")
    if code in _UNWRITABLE:
        return StoreUnreadable(f"{path}: {error}; may this user read it and the files beside it?")
    return StoreCorrupt(_NOT_WHAT_WAS_WRITTEN.format(path=path, why=error))
