"""Reader of the agent's database, for everybody else on the device."""

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from flagcast_agent.sync.time_floor import TimeFloor
from flagcast_shared.errors import Malformed
from flagcast_shared.ids import Digest, Epoch, Namespace

from .codecs import decode_floor, decode_profile, held_row, seal_of, sealed_rows
from .errors import NOT_WHAT_WAS_WRITTEN, StoreCorrupt, StoreError, StoreUnreadable, explain_reading
from .files import data_version, open_to_read, require_known, schema_of, side_file_bytes
from .rows import Seen

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


_ABANDONED: Final[list[sqlite3.Connection]] = []
# Connections of a parent process. Were they collected, SQLite would close files under the parent's locks.


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
            raise explain_reading(self._path, error) from error

    def forget(self) -> None:
        """The next look gives everything, whether it is new or not."""
        self._seen = None

    def belief(self) -> tuple[TimeFloor, bytes | None, frozenset[Epoch]]:
        """What time it is at least, to be resumed, the root in force, and the epochs of what is held. Raises StoreError."""
        try:
            connection, _ = open_to_read(self._path)
            try:
                if not schema_of(self._path, connection):
                    return TimeFloor(), None, frozenset()
                trust = dict(sealed_rows(self._path, connection, "SELECT name, value, seal FROM trust"))
                epochs = frozenset(
                    Epoch(epoch) for (epoch,) in connection.execute("SELECT DISTINCT epoch FROM holding")
                )
            finally:
                connection.close()
            floor = decode_floor(trust.get("floor", 0), trust.get("boot"))
        except (sqlite3.Error, OSError, Malformed, ValueError) as error:
            raise explain_reading(self._path, error) from error
        return floor, trust.get("root"), epochs

    def damages(self) -> tuple[str, ...]:
        """What SQLite's own check finds wrong with the file; empty when it is sound. Raises StoreError."""
        try:
            connection, _ = open_to_read(self._path)
            try:
                found = connection.execute("PRAGMA integrity_check(5)").fetchall()
            finally:
                connection.close()
        except (sqlite3.Error, OSError, ValueError) as error:
            raise explain_reading(self._path, error) from error
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
            if (identity, file.st_mtime_ns, file.st_size) == self._seen and not side_file_bytes(
                self._path, "-shm"
            ):
                return None
            self.close()
            connection, self._is_live = open_to_read(self._path)
            # What one connection has seen says nothing about what another one sees.
            self._connection, self._opened, self._seen = connection, identity, None
            again = self._path.stat()
            if (again.st_dev, again.st_ino) != identity:
                raise StoreUnreadable(f"{self._path}: replaced while it was opened; it is read again")
        seen = (identity, file.st_mtime_ns, file.st_size)
        if self._is_live:
            # Taken before the rest is read: what is committed in between is then read again.
            seen = (identity, data_version(connection), 0)
            if seen == self._seen:
                return None
        result = self._read(connection, known)
        if not self._is_live:
            self.close()
            after = self._path.stat()
            if (identity, after.st_mtime_ns, after.st_size) != seen or side_file_bytes(self._path, "-wal"):
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
            if schema_of(self._path, connection):
                raise
            return Seen(None, (), TimeFloor())  # an agent is about to create it
        version, profile, profile_seal, floor, floor_seal, boot, boot_seal = rows[0][:7]
        require_known(self._path, version)
        sealed = (("profile", profile, profile_seal), ("floor", floor, floor_seal), ("boot", boot, boot_seal))
        if any(value is not None and seal_of(name, value) != seal for name, value, seal in sealed):
            raise StoreCorrupt(NOT_WHAT_WAS_WRITTEN.format(path=self._path, why="a row was changed"))
        return Seen(
            None if profile is None else decode_profile(profile),
            tuple(held_row(self._path, row[7:]) for row in rows if row[7] is not None),
            decode_floor(floor or 0, boot),
        )
