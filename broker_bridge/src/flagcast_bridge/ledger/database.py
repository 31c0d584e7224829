"""Where the publisher's rows are: an SQLite file for the bridges of one host, or PostgreSQL for those of several.

What differs between the two stands here, so that one set of SQL serves both: parameters are written `:name`, column types
`{text}`, `{integer}` and `{bytes}`, and whoever is interested in the time asks the database, because clocks of hosts differ.

The *guard* is a lock that vanishes with the process that took it, however that ends: of the operating system on a file, of
PostgreSQL with the session. It says that a holder is dead; it cannot say that one is well.
"""

import errno
import fcntl
import os
import re
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

from sqlite_utils import Database as Tables

from flagcast_bridge import clock

FILE_MODE: Final = 0o640
"""Of a new database and what SQLite keeps beside it, whatever the umask: backups may read it by its group."""
BUSY_TIMEOUT_MS: Final = 5_000
"""How long a reader (a backup, `flagcast log`) may make a commit of SQLite wait."""
CONNECT_TIMEOUT_SECONDS: Final = 10
LOCK_TIMEOUT_MS: Final = 10_000
"""How long a statement of PostgreSQL waits for another bridge's transaction."""
IDLE_TRANSACTION_MS: Final = 20_000
"""After so long PostgreSQL ends a transaction of a bridge that was frozen in the middle of it; ours take milliseconds."""
_SCHEMA: Final = "flagcast"
_GUARD_CLASS: Final = 0x666C6167
_SCHEMA_CLASS: Final = 0x666C6168
# Of PostgreSQL's advisory locks, which all applications of a database share.
_RETRY_SECONDS: Final = 0.05
_NONE: Final[Mapping[str, object]] = {}


class DatabaseError(Exception):
    """The database does not do what was asked; the text names it and says what to do.

    DatabaseError
    ├── NotUnique   a key that is there already
    └── Damaged     it does not hold what was written
    """


class NotUnique(DatabaseError):
    """A row with this key is there already; nothing of the transaction stays."""


class Damaged(DatabaseError):
    """What is there is not what was written; the text says how that was found."""


class Database(Protocol):
    """An open database. Not for several threads. Every method raises DatabaseError."""

    where: str
    """Its name for people; holds no password."""
    is_guard_final: ClassVar[bool]
    """Whether a guard that is free means that its process is dead. A server's restart ends sessions of processes that live."""
    types: ClassVar[Mapping[str, str]]
    """The names of its column types, by ours: text, integer (64 bits), bytes."""

    def rows(self, sql: str, values: Mapping[str, object] = ...) -> list[Any]:
        """The rows of a query, each a tuple; values of `bytes` columns are bytes."""

    def change(self, sql: str, values: Mapping[str, object] = ...) -> int:
        """Run a statement; how many rows it concerned."""

    def insert(self, table: str, rows: Iterable[Mapping[str, object]]) -> None:
        """Add rows, all with the same columns. Raises NotUnique."""

    def atomic(self) -> AbstractContextManager[None]:
        """A block that is one transaction, which no other writer's interrupts; on the disk when it has ended."""

    def now_ms(self) -> int:
        """Unix milliseconds of the database's clock, which is the same for all its clients."""

    def schema_version(self) -> int:
        """What `upgrade` has noted; 0 in an empty database."""

    def upgrade(self, version: int, steps: Mapping[int, Iterable[str]]) -> None:
        """Run the steps above the version that is found, in order and in one transaction, and note `version`."""

    def guard(self, name: str) -> bool:
        """Take the lock that ends with this process; False while another process has it."""

    def unguard(self) -> None:
        """Give it back; nothing where it was not taken."""

    def close(self) -> None:
        """Close; locks end."""


def connect(where: Path | str) -> Database:
    """Open the SQLite file at a path, which is made where it is missing, or PostgreSQL at a URL. Raises DatabaseError."""
    return Sqlite(where) if isinstance(where, Path) else Postgres(where)


def _create(path: Path) -> None:
    # SQLite gives a new file 0644 less the umask, and its log and index the mode of the file.
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    except OSError:
        return  # it is there, or SQLite has the words for what is wrong
    try:
        os.fchmod(descriptor, FILE_MODE)
    finally:
        os.close(descriptor)


class Sqlite:
    """A file; its clock is this machine's. The guard is a lock on a file beside it."""

    is_guard_final: ClassVar[bool] = True
    types: ClassVar[Mapping[str, str]] = {"text": "TEXT", "integer": "INTEGER", "bytes": "BLOB"}

    def __init__(self, path: Path) -> None:
        """Open or create. Raises DatabaseError."""
        self.where = str(path)
        self._path = path
        self._guard: int | None = None
        _create(path)
        with self._explained():
            self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            with self._explained():
                self._connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
                self._connection.execute(
                    "PRAGMA schema_version"
                ).fetchone()  # reads the file for the first time
                self._use_write_ahead_log()
                self._connection.execute("PRAGMA synchronous = FULL")
                self._tables = Tables(self._connection)
        except DatabaseError:
            self._connection.close()
            raise

    def rows(self, sql: str, values: Mapping[str, object] = _NONE) -> list[Any]:
        """The rows of a query."""
        with self._explained():
            return self._connection.execute(sql, values).fetchall()

    def change(self, sql: str, values: Mapping[str, object] = _NONE) -> int:
        """How many rows a statement concerned."""
        with self._explained():
            return self._connection.execute(sql, values).rowcount

    def insert(self, table: str, rows: Iterable[Mapping[str, object]]) -> None:
        """Add rows."""
        with self._explained():
            self._tables.table(table).insert_all(dict(row) for row in rows)

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """IMMEDIATE, so that what is read in it still holds when it writes."""
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            with self._explained():
                self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def now_ms(self) -> int:
        """This machine's."""
        ((found,),) = self.rows("SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)")
        return int(found)

    def schema_version(self) -> int:
        """What the file's header says."""
        ((found,),) = self.rows("PRAGMA user_version")
        return int(found)

    def upgrade(self, version: int, steps: Mapping[int, Iterable[str]]) -> None:
        """In one transaction; another process may have done it meanwhile."""
        with self.atomic():
            found = self.schema_version()
            for number in sorted(each for each in steps if each > found):
                for statement in steps[number]:
                    self.change(statement.format_map(self.types))
            if found < version:
                self.change(f"PRAGMA user_version = {version}")

    def guard(self, name: str) -> bool:
        """A lock on the file; `name` makes no difference."""
        del name
        beside = self._path.with_name(self._path.name + ".lock")
        try:
            descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise DatabaseError(
                    f"{beside}: a symbolic link, and a lock is never taken through one; remove it"
                ) from error
            raise DatabaseError(f"{beside}: cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError as error:
            os.close(descriptor)
            raise DatabaseError(f"{beside}: cannot be locked: {error.strerror}") from error
        self._guard = descriptor
        return True

    def unguard(self) -> None:
        """The file stays."""
        descriptor, self._guard = self._guard, None
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """The write-ahead log is folded in."""
        self.unguard()
        self._connection.close()

    def _use_write_ahead_log(self) -> None:
        # SQLite does not wait here for a process that makes the same file at this moment.
        until = clock.monotonic() + BUSY_TIMEOUT_MS / 1_000
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or clock.monotonic() >= until:
                    raise
                clock.pause(_RETRY_SECONDS)
            else:
                return

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise NotUnique(str(error)) from error
        except sqlite3.Error as error:
            text = str(error)
            if not isinstance(error, sqlite3.OperationalError) or "malformed" in text:
                raise Damaged(text) from error
            hint = "check that the folder is there, is writable and has free space"
            if "locked" in text:
                hint = "another process is in the middle of writing to it; if that one is stopped, end it"
            raise DatabaseError(f"{self.where}: {text}; {hint}") from error


class Postgres:
    """A database on a server, tables in the schema `flagcast`. The guard is an advisory lock of the session."""

    is_guard_final: ClassVar[bool] = False
    # "C" orders texts by their bytes, as SQLite does, whatever the database's language.
    types: ClassVar[Mapping[str, str]] = {"text": 'TEXT COLLATE "C"', "integer": "BIGINT", "bytes": "BYTEA"}

    def __init__(self, url: str) -> None:
        """Connect. Raises DatabaseError."""
        try:
            import psycopg
            from psycopg.conninfo import conninfo_to_dict
        except ImportError as error:
            raise DatabaseError(
                "a ledger on PostgreSQL needs psycopg: make install brings it in a checkout, a release as "
                f"flagcast-bridge[postgres] ({error})"
            ) from error
        self._errors = psycopg
        self.where = "the ledger on PostgreSQL"
        self._guarded: int | None = None
        with self._explained():
            # What the URL says goes before these.
            told: dict[str, Any] = {
                "connect_timeout": CONNECT_TIMEOUT_SECONDS,
                "application_name": "flagcast",
                "tcp_user_timeout": IDLE_TRANSACTION_MS,
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                **conninfo_to_dict(url),
            }
            self.where = f"postgresql://{told.get('host') or 'localhost'}/{told.get('dbname') or told.get('user') or ''}"
            self._connection: psycopg.Connection[Any] = psycopg.connect(**told, autocommit=True)
        try:
            with self._explained():
                self._connection.execute(
                    "SELECT set_config('search_path', %(schema)s, false),"
                    " set_config('lock_timeout', %(lock)s, false),"
                    " set_config('idle_in_transaction_session_timeout', %(idle)s, false),"
                    # A number counts as taken when the disk has it, also where the database is set up to be hasty.
                    " set_config('synchronous_commit', CASE current_setting('synchronous_commit')"
                    "  WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false)",
                    {"schema": _SCHEMA, "lock": str(LOCK_TIMEOUT_MS), "idle": str(IDLE_TRANSACTION_MS)},
                )
        except DatabaseError:
            self.close()
            raise

    def rows(self, sql: str, values: Mapping[str, object] = _NONE) -> list[Any]:
        """The rows of a query."""
        with self._explained():
            found: list[Any] = self._connection.execute(_spelled(sql), values).fetchall()
            return found

    def change(self, sql: str, values: Mapping[str, object] = _NONE) -> int:
        """How many rows a statement concerned."""
        with self._explained():
            return int(self._connection.execute(_spelled(sql), values).rowcount)

    def insert(self, table: str, rows: Iterable[Mapping[str, object]]) -> None:
        """Add rows."""
        listed = list(rows)
        if not listed:
            return
        columns = list(listed[0])
        places = ", ".join(f"%({column})s" for column in columns)
        with self._explained(), self._connection.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})",  # noqa: S608  # names of our own
                listed,
            )

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """READ COMMITTED: who must not be interrupted changes the lease's row first, which keeps others waiting."""
        with self._explained(), self._connection.transaction():
            yield

    def now_ms(self) -> int:
        """The server's, at this moment."""
        ((found,),) = self.rows("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)")
        return int(found)

    def schema_version(self) -> int:
        """The row of the table `schema_version`."""
        if self.rows("SELECT to_regclass('schema_version')") == [(None,)]:
            return 0
        ((found,),) = self.rows("SELECT max(version) FROM schema_version")
        return int(found)

    def upgrade(self, version: int, steps: Mapping[int, Iterable[str]]) -> None:
        """In one transaction, one bridge at a time."""
        with self.atomic():
            self.rows("SELECT pg_advisory_xact_lock(:class, 0)", {"class": _SCHEMA_CLASS})
            # Even with IF NOT EXISTS only somebody who may make schemas may ask for one.
            if self.rows("SELECT to_regnamespace(:schema)", {"schema": _SCHEMA}) == [(None,)]:
                self.change(f"CREATE SCHEMA {_SCHEMA}")
            found = self.schema_version()
            for number in sorted(each for each in steps if each > found):
                for statement in steps[number]:
                    self.change(statement.format_map(self.types))
            if not found:
                self.change("CREATE TABLE schema_version (version BIGINT NOT NULL PRIMARY KEY)")
            if found < version:
                self.change("INSERT INTO schema_version VALUES (:version)", {"version": version})

    def guard(self, name: str) -> bool:
        """An advisory lock; two names share one in a few cases, which makes a takeover slower and nothing worse."""
        number = zlib.crc32(name.encode()) - 2**31
        ((is_ours,),) = self.rows(
            "SELECT pg_try_advisory_lock(:class, :number)", {"class": _GUARD_CLASS, "number": number}
        )
        if is_ours:
            self._guarded = number
        return bool(is_ours)

    def unguard(self) -> None:
        """Unlock; a session that has ended holds no lock."""
        number, self._guarded = self._guarded, None
        if number is not None:
            with suppress(DatabaseError):
                self.rows(
                    "SELECT pg_advisory_unlock(:class, :number)", {"class": _GUARD_CLASS, "number": number}
                )

    def close(self) -> None:
        """End the session, and with it its locks."""
        with suppress(self._errors.Error):
            self._connection.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._errors.IntegrityError as error:
            raise NotUnique(_said(error)) from error
        except self._errors.errors.InsufficientPrivilege as error:
            raise DatabaseError(
                f"{self.where}: {_said(error)}; let an administrator run: CREATE SCHEMA {_SCHEMA} AUTHORIZATION this user"
            ) from error
        except self._errors.ProgrammingError as error:
            raise DatabaseError(f"{self.where}: {_said(error)}; check ledger in flagcast.toml") from error
        except self._errors.Error as error:
            raise DatabaseError(
                f"{self.where}: {_said(error)}; check ledger in flagcast.toml, and that the database runs and lets us in"
            ) from error


@cache
def _spelled(sql: str) -> str:
    # Parameters as psycopg writes them. There are few statements, all written in this distribution.
    return re.sub(r"(?<![:\w]):(\w+)", r"%(\1)s", sql)


def _said(error: Exception) -> str:
    # In one line, without libpq's own advice.
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith("Is the server running")]
    return " ".join(kept) or type(error).__name__
