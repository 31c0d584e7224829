"""The publisher's memory: every version and head sequence ever issued, in SQLite. A number is never used twice.

A number is *reserved*, and the disk has it, before anything that carries it is published; it becomes *published* when the broker
has returned what was sent. So a crash in between costs a number and nothing else. The primary keys are what forbids a second
use; WAL and `synchronous=FULL` are what survives a power cut; a file lock keeps a second publisher away from the same ledger.

The ledger also keeps every content, compressed as it travelled: for the next delta, for a broker that lost it, for a rollback.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlite_utils import Database

from flagcast_shared.codec import inflate
from flagcast_shared.errors import FlagcastError, Refused
from flagcast_shared.ids import Digest, Environment, Epoch, Namespace, Sequence, Version
from flagcast_shared.limits import CONTENT_MAX_BYTES
from flagcast_shared.records import content_digest, decode_record, split_content

from .planner import Content, Issued, Plan

SCHEMA_VERSION: Final = 1
BUSY_TIMEOUT_MS: Final = 5_000
"""How long a reader (a backup, `flagcast log`) may make a commit wait."""
_HOLDER_MAX_BYTES: Final = 512


class LedgerError(FlagcastError):
    """The ledger cannot be used. Says what to do.

    LedgerError
    ├── LedgerBusy      another publisher is at work; says who
    ├── NumberUsed      a version or sequence that was issued before
    ├── LedgerCorrupt   it does not hold what was written
    └── LedgerTooNew    a later release wrote it
    """


class LedgerBusy(LedgerError):
    """Another publisher holds the ledger."""


class NumberUsed(LedgerError):
    """A number that was issued before; nothing was reserved."""


class LedgerCorrupt(LedgerError):
    """The file is not the ledger that was written."""


class LedgerTooNew(LedgerError):
    """A later release wrote the file."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One head that was issued, for people. Times are Unix seconds; `published` is None for a number that stayed reserved."""

    namespace: Namespace
    sequence: Sequence
    epoch: Epoch
    version: Version
    action: str
    digest: Digest
    reserved: int
    published: int | None
    provenance: Mapping[str, str]

    @property
    def state(self) -> str:
        """The word `reserved` or `published`."""
        return "reserved" if self.published is None else "published"


class Ledger:
    """An open ledger of one environment."""

    def __init__(self, path: Path, environment: Environment) -> None:
        """Open or create. Raises LedgerError."""
        self._path = path
        self._environment = environment
        try:
            connection = sqlite3.connect(path, isolation_level=None)
        except sqlite3.Error as error:
            raise _explain(path, error) from error
        try:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            found = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if found > SCHEMA_VERSION:
                raise LedgerTooNew(
                    f"{path}: written by a later release (schema {found}, this one knows {SCHEMA_VERSION}); "
                    "install that release again"
                )
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            self._database = Database(connection)
            if found < SCHEMA_VERSION:
                self._create()
        except sqlite3.Error as error:
            connection.close()
            raise _explain(path, error) from error
        except LedgerError:
            connection.close()
            raise

    def issued(self) -> dict[Namespace, Issued]:
        """The highest numbers and the last published content of every namespace. Raises LedgerError."""
        with self._explained():
            rows = self._database.execute(
                "SELECT namespace, max(version), max(sequence) FROM ("
                " SELECT namespace, version, 0 AS sequence FROM content WHERE environment = :environment"
                " UNION ALL"
                " SELECT namespace, version, sequence FROM head WHERE environment = :environment"
                ") GROUP BY namespace ORDER BY namespace",
                {"environment": self._environment},
            ).fetchall()
        return {
            Namespace(name): Issued(Version(version), Sequence(sequence), self._published(Namespace(name)))
            for name, version, sequence in rows
        }

    def reserve(self, plans: Iterable[Plan], now: int) -> None:
        """Take the numbers of all plans, in one transaction; when this returns, the disk has them.

        Raises:
            NumberUsed: one of them was issued before; none is taken.
            LedgerError: the disk does not take it.
        """
        with self._explained(), self._database.atomic():
            for plan in plans:
                if plan.head_draft is None:
                    continue
                head = plan.head
                known = self._versions(plan.namespace)
                if plan.content is not None and plan.content.version not in known:
                    self._database.table("content").insert(
                        {
                            "environment": self._environment,
                            "namespace": plan.namespace,
                            "version": plan.content.version,
                            "epoch": plan.content.epoch,
                            "digest": plan.content.digest,
                            "parts": plan.content.parts,
                            "body": plan.content.body,
                            "reserved": now,
                        }
                    )
                elif plan.content is not None and known[plan.content.version] != plan.content.digest:
                    raise NumberUsed(
                        f"{self._path}: {plan.namespace}: version {plan.content.version} was issued for another content"
                    )
                self._database.table("head").insert(
                    {
                        "environment": self._environment,
                        "namespace": plan.namespace,
                        "sequence": head.sequence,
                        "epoch": head.epoch,
                        "version": head.stable.version,
                        "digest": head.stable.digest,
                        "action": plan.action.value,
                        "provenance": json.dumps(dict(head.provenance), sort_keys=True),
                        "reserved": now,
                    }
                )

    def confirm(self, namespace: Namespace, sequence: Sequence, digest: Digest, now: int) -> None:
        """A head with this sequence and content stands on the broker; it counts as published from now on.

        A sequence that the ledger does not know, or knows for another content, is left alone. Raises LedgerError.
        """
        with self._explained():
            self._database.execute(
                "UPDATE head SET published = :now WHERE published IS NULL AND environment = :environment"
                " AND namespace = :namespace AND sequence = :sequence AND digest = :digest",
                {
                    "now": now,
                    "environment": self._environment,
                    "namespace": namespace,
                    "sequence": sequence,
                    "digest": digest,
                },
            )

    def entries(self) -> list[Entry]:
        """Every head ever issued, newest first. Raises LedgerError."""
        with self._explained():
            rows = self._database.execute(
                "SELECT namespace, sequence, epoch, version, action, digest, reserved, published, provenance FROM head"
                " WHERE environment = ? ORDER BY reserved DESC, namespace, sequence DESC",
                [self._environment],
            ).fetchall()
            return [
                Entry(
                    Namespace(namespace),
                    Sequence(sequence),
                    Epoch(epoch),
                    Version(version),
                    action,
                    Digest(bytes(digest)),
                    reserved,
                    published,
                    json.loads(provenance),
                )
                for namespace, sequence, epoch, version, action, digest, reserved, published, provenance in rows
            ]

    def close(self) -> None:
        """Close; the write-ahead log is folded in."""
        self._database.close()

    def _create(self) -> None:
        with self._database.atomic():
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS content (environment TEXT NOT NULL, namespace TEXT NOT NULL,"
                " version INTEGER NOT NULL CHECK (version > 0), epoch INTEGER NOT NULL, digest BLOB NOT NULL,"
                " parts INTEGER NOT NULL, body BLOB NOT NULL, reserved INTEGER NOT NULL,"
                " PRIMARY KEY (environment, namespace, version))"
            )
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS head (environment TEXT NOT NULL, namespace TEXT NOT NULL,"
                " sequence INTEGER NOT NULL CHECK (sequence > 0), epoch INTEGER NOT NULL, version INTEGER NOT NULL,"
                " digest BLOB NOT NULL, action TEXT NOT NULL, provenance TEXT NOT NULL, reserved INTEGER NOT NULL,"
                " published INTEGER, PRIMARY KEY (environment, namespace, sequence))"
            )
            self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _versions(self, namespace: Namespace) -> dict[int, bytes]:
        rows = self._database.execute(
            "SELECT version, digest FROM content WHERE environment = ? AND namespace = ?",
            [self._environment, namespace],
        ).fetchall()
        return {version: bytes(digest) for version, digest in rows}

    def _published(self, namespace: Namespace) -> Content | None:
        # The content of the last head that was published; none where that content was issued from another ledger.
        with self._explained():
            row = self._database.execute(
                "SELECT content.version, content.epoch, content.digest, content.parts, content.body FROM ("
                " SELECT * FROM head WHERE environment = ? AND namespace = ? AND published IS NOT NULL"
                " ORDER BY sequence DESC LIMIT 1"
                ") AS last JOIN content USING (environment, namespace, version, digest)",
                [self._environment, namespace],
            ).fetchone()
        if row is None:
            return None
        version, epoch, digest, parts, body = row
        try:
            inflated = inflate(bytes(body), CONTENT_MAX_BYTES, "content")
            records = tuple(decode_record(data) for data in split_content(inflated))
        except Refused as error:
            raise LedgerCorrupt(_corrupt(self._path, f"{namespace}, version {version}: {error}")) from error
        if content_digest(record.digest for record in records) != bytes(digest):
            raise LedgerCorrupt(_corrupt(self._path, f"{namespace}, version {version}: not what was written"))
        return Content(Version(version), Epoch(epoch), Digest(bytes(digest)), parts, bytes(body), records)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise NumberUsed(
                f"{self._path}: a number was issued before ({error}); nothing was published"
            ) from error
        except sqlite3.Error as error:
            raise _explain(self._path, error) from error


@contextmanager
def lease(path: Path, holder: str) -> Iterator[None]:
    """Keep other publishers away from the ledger at `path`; `holder` is what they are told.

    A lock on a file beside it, which the operating system gives back when the process ends, however it ends.

    Raises:
        LedgerBusy: somebody else has it; says who.
        LedgerError: the lock cannot be made.
    """
    beside = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LedgerError(f"{beside}: cannot be opened: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = os.read(descriptor, _HOLDER_MAX_BYTES).decode(errors="replace").strip() or "somebody"
            raise LedgerBusy(
                f"{path}: another publisher is at work: {found}; wait until it has ended"
            ) from None
        except OSError as error:
            raise LedgerError(f"{beside}: cannot be locked: {error.strerror}") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode()[:_HOLDER_MAX_BYTES], 0)
        yield
    finally:
        os.close(descriptor)


def _explain(path: Path, error: sqlite3.Error) -> LedgerError:
    text = str(error)
    if isinstance(error, sqlite3.OperationalError) and "malformed" not in text:
        return LedgerError(f"{path}: {text}; check that the folder is there, is writable and has free space")
    return LedgerCorrupt(_corrupt(path, text))


def _corrupt(path: Path, why: str) -> str:
    return (
        f"{path}: not the ledger that was written ({why}); restore it from a backup, or move it away: "
        "numbers then go on above what is live on the broker"
    )
