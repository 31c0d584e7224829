"""Writer of the agent's database: one transaction per update.

WAL and `synchronous=FULL`: an update is on disk whole or not at all, and what was committed survives a power cut. Start-up reads
with the standard library alone; sqlite-utils is loaded when there is something to write.
"""

import os
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flagcast_agent.limits import REMOVED_FLAGS_MAX
from flagcast_agent.sync.time_floor import TimeFloor
from flagcast_agent.sync.transitions import BrokerMemory
from flagcast_shared.errors import Malformed
from flagcast_shared.ids import Digest, Epoch, FlagKey, Namespace, Version
from flagcast_shared.records import FLAG

if TYPE_CHECKING:
    from sqlite_utils import Database

    from flagcast_shared.reports import Usage

    # A reader trusts what was admitted, so it does without the cryptography that this module brings along.
    from flagcast_shared.trust import AdmittedRoot, AdmittedUpdate

from .codecs import (
    decode_broker,
    decode_floor,
    encode_broker,
    encode_profile,
    floor_rows,
    seal_of,
    sealed_rows,
    trust_row,
)
from .errors import StoreError, StoreTooNew, StoreUnwritable, explain, explain_reading
from .files import close_lock, lock_file, lock_to_read, open_to_read, open_to_write, schema_of
from .rows import SCHEMA_OF_REMOVED, SCHEMA_VERSION, Profile, Saved

USAGE_BATCHES_MAX: Final = 1_000
"""Batches of evaluation counts that wait to be sent: six weeks offline at one an hour. The oldest give way."""


USAGE_BYTES_MAX: Final = 1_048_576
"""What they may take together; the flash of the smallest device spares a megabyte."""


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
        lock = lock_file(path)
        try:
            # SQLite would open it all the same, and fail at the first commit.
            if path.exists() and not os.access(path, os.W_OK):
                raise StoreUnwritable(f"{path}: not writable for the agent's user, or on a read-only disk")
            self._connection = open_to_write(path)
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
            raise explain(path, error) from error
        except StoreError:
            self.close()
            raise

    def _open_for_reading(self) -> None:
        lock = lock_to_read(self._path)
        connection: sqlite3.Connection | None = None
        try:
            if self._path.exists():
                connection, _ = open_to_read(self._path)
                schema_of(self._path, connection)
                self._connection = connection
            else:
                connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
                self._connection = connection
                self._migrate(0)
                connection.execute("PRAGMA query_only = ON")
        except (sqlite3.Error, OSError, ValueError, StoreError) as error:
            if connection is not None:
                connection.close()
            close_lock(lock)
            if isinstance(error, StoreError):
                raise
            raise explain_reading(self._path, error) from error
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
            raise explain(self._path, error) from error
        try:
            broker = decode_broker(trust["broker"]) if trust.get("broker") else None
            floor = decode_floor(trust.get("floor", 0), trust.get("boot"))
        except Malformed as error:
            raise explain(self._path, error) from error
        return Saved(trust.get("root"), floor, tuple(namespaces), broker, removed)

    def persist_profile(self, profile: Profile) -> None:
        """Say whose database it is; writes only what is new. Raises StoreError."""
        value = encode_profile(profile)
        try:
            found = self._connection.execute("SELECT value FROM trust WHERE name = 'profile'").fetchone()
            if found is None or found[0] != value:
                self._writer().table("trust").upsert(trust_row("profile", value), pk="name")
        except (sqlite3.DatabaseError, OSError) as error:
            raise explain(self._path, error) from error

    def persist_floor(self, floor: TimeFloor) -> None:
        """What time it is at least, in this boot of the device; writes only what is new. Raises StoreError."""
        rows = floor_rows(floor)
        try:
            found = dict(self._sealed("SELECT name, value, seal FROM trust WHERE name IN ('floor', 'boot')"))
            if any(found.get(row["name"]) != row["value"] for row in rows):
                self._writer().table("trust").upsert_all(rows, pk="name")
        except (sqlite3.DatabaseError, OSError) as error:
            raise explain(self._path, error) from error

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
                        "seal": seal_of(
                            namespace, holding.head_data, holding.epoch, holding.version, holding.digest
                        ),
                    },
                    pk="namespace",
                )
                database.table("trust").upsert_all(floor_rows(floor), pk="name")
                self._note_removed(update)
        except (sqlite3.DatabaseError, OSError) as error:
            raise explain(self._path, error) from error

    def persist_root(self, admitted: "AdmittedRoot", floor: TimeFloor) -> None:
        """A root in one transaction, before the next one is asked for. Raises StoreError."""
        try:
            database = self._writer()
            rows = [trust_row("root", admitted.data), *floor_rows(floor)]
            with database.atomic():
                database.table("trust").upsert_all(rows, pk="name")
        except (sqlite3.DatabaseError, OSError) as error:
            raise explain(self._path, error) from error

    def persist_broker(self, memory: BrokerMemory | None) -> None:
        """What is remembered of the broker, or nothing. Raises StoreError."""
        value = b"" if memory is None else encode_broker(memory)
        try:
            self._writer().table("trust").upsert(trust_row("broker", value), pk="name")
        except (sqlite3.DatabaseError, OSError) as error:
            raise explain(self._path, error) from error

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
            raise explain(self._path, error) from error

    def oldest_usage(self) -> tuple[int, bytes] | None:
        """The number and bytes of the batch that waits longest. Raises StoreError."""
        try:
            found = self._connection.execute(
                "SELECT number, payload FROM usage ORDER BY number LIMIT 1"
            ).fetchone()
        except sqlite3.DatabaseError as error:
            raise explain(self._path, error) from error
        return None if found is None else (int(found[0]), bytes(found[1]))

    def drop_usage(self, number: int) -> None:
        """A batch that was taken. Raises StoreError."""
        try:
            database = self._writer()
            with database.atomic():
                self._connection.execute("DELETE FROM usage WHERE number = ?", [number])
        except (sqlite3.DatabaseError, OSError) as error:
            raise explain(self._path, error) from error

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
        close_lock(self._lock)
        self._lock = None

    def _records(self, namespace: str) -> Iterable[bytes]:
        rows = self._connection.execute(
            "SELECT data FROM record WHERE namespace = ? ORDER BY kind, key", [namespace]
        ).fetchall()
        return [bytes(data) for (data,) in rows]

    def _removed(self) -> Mapping[Namespace, tuple[FlagKey, ...]]:
        # They have no hash: one that a worn flash changes makes a provider ask once more. An older release's file on a disk that
        # takes no writes has none of them.
        if schema_of(self._path, self._connection) < SCHEMA_OF_REMOVED:
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
        return sealed_rows(self._path, self._connection, query)

    def _writer(self) -> "Database":
        if self.why_read_only:
            former, former_lock = self._connection, self._lock
            close_lock(former_lock)
            try:
                self._open_for_writing()
            except StoreError:
                self._connection, self._lock = former, lock_to_read(self._path)
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
            if found < SCHEMA_OF_REMOVED:
                self._connection.execute(
                    "CREATE TABLE removed (namespace TEXT NOT NULL, key TEXT NOT NULL, number INTEGER NOT NULL, "
                    "PRIMARY KEY (namespace, key)) WITHOUT ROWID"
                )
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
