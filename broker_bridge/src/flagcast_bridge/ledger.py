"""The publisher's memory: every version and head sequence ever issued, in SQLite. A number is never used twice.

A number is *reserved*, and the disk has it, before anything that carries it is published; it becomes *published* when the broker
has returned what was sent. So a crash in between costs a number and nothing else. The primary keys are what forbids a second
use; WAL and `synchronous=FULL` are what survives a power cut; a file lock keeps a second publisher away from the same ledger.

The ledger also keeps every content, compressed as it travelled: for the next delta, for a broker that lost it, for a rollback;
the messages that stood on the broker when a namespace's last head was confirmed, as they were signed; and since when a message
on the broker has been named by no head.
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
from flagcast_shared.ids import DeviceId, Digest, Environment, Epoch, Namespace, RecordId, Sequence, Version
from flagcast_shared.limits import CONTENT_MAX_BYTES
from flagcast_shared.messages import Candidate, Head, Place, decode_head, encode_head
from flagcast_shared.records import content_digest, decode_record, digest_of, split_content
from flagcast_shared.reports import Usage
from flagcast_shared.topics import Address, HeadAddress, Kind, Topics

from .planner import Content, Issued, Past, Plan, named

SCHEMA_VERSION: Final = 2
BUSY_TIMEOUT_MS: Final = 5_000
"""How long a reader (a backup, `flagcast log`) may make a commit wait."""
_HOLDER_MAX_BYTES: Final = 512
USAGE_REMEMBERED_SECONDS: Final = 400 * 86_400
"""How long a batch's name is known. A device sends a batch again when its power was cut between sending it and the broker's
answer; it may then have been switched off for a season."""
_SECONDS_PER_DAY: Final = 86_400
_PREFIX: Final = "flagcast"
# Under which addresses are written down here, whatever prefix the project is configured with.
_ANY_EPOCH: Final = Epoch(0)
_UNCOUNTABLE: Final = 2**62
# No publisher ever gets here by counting.
_ADOPTED: Final = "adopted"
# The action of a head that stood on the broker and was issued from another ledger.


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
    """One head that was issued, for people. Times are Unix seconds; `published` is None for a number that stayed reserved.

    `version` and `digest` are the stable content's.
    """

    namespace: Namespace
    sequence: Sequence
    epoch: Epoch
    version: Version
    action: str
    digest: Digest
    reserved: int
    published: int | None
    provenance: Mapping[str, str]
    candidate: Candidate | None = None

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
        self._topics = Topics(_PREFIX, environment)
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
                self._create(found)
        except sqlite3.Error as error:
            connection.close()
            raise _explain(path, error) from error
        except LedgerError:
            connection.close()
            raise

    def issued(self, past: int = 0, *, epoch: Epoch = _ANY_EPOCH) -> dict[Namespace, Issued]:
        """The highest numbers of every namespace, what was published last, and the last `past` contents that were published.

        Numbers of an epoch before `epoch` count only where a publisher can have come to them by counting: those that a thief has
        pushed to the end of the range must not use up the numbers of the epoch that takes the fleet back.

        Raises:
            LedgerError
        """
        with self._explained():
            rows = self._database.execute(
                "SELECT namespace,"
                " max(CASE WHEN epoch >= :epoch OR version < :uncountable THEN version ELSE 0 END),"
                " max(CASE WHEN epoch >= :epoch OR sequence < :uncountable THEN sequence ELSE 0 END) FROM ("
                " SELECT namespace, epoch, version, 0 AS sequence FROM content WHERE environment = :environment"
                " UNION ALL"
                " SELECT namespace, epoch, version, sequence FROM head WHERE environment = :environment"
                " UNION ALL"
                " SELECT namespace, epoch, coalesce(candidate, 0), sequence FROM head WHERE environment = :environment"
                ") GROUP BY namespace ORDER BY namespace",
                {"environment": self._environment, "epoch": epoch, "uncountable": _UNCOUNTABLE},
            ).fetchall()
            return {
                Namespace(name): self._issued(Namespace(name), Version(version), Sequence(sequence), past)
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
                known = self._versions(plan.namespace)
                for content in plan.contents:
                    if known.get(content.version, content.digest) != content.digest:
                        raise NumberUsed(
                            f"{self._path}: {plan.namespace}: version {content.version} was issued for another content"
                        )
                    if content.version in known:
                        continue
                    self._database.table("content").insert(
                        {
                            "environment": self._environment,
                            "namespace": plan.namespace,
                            "version": content.version,
                            "epoch": content.epoch,
                            "digest": content.digest,
                            "parts": content.parts,
                            "body": content.body,
                            "reserved": now,
                        }
                    )
                self._database.table("head").insert(self._head_row(plan.head, plan.action.value, now))

    def confirm(
        self, head: Head, now: int, messages: Mapping[Address, bytes], *, adopts: bool = False
    ) -> None:
        """A head stands on the broker, with everything that it names; it counts as published from now on.

        The head and what it names, if `messages` hold all of it, are kept until the next one is confirmed. A head that this
        ledger did not issue is left alone, unless `adopts` and its number is above every number known here: then it is written
        down.
        Raises LedgerError.
        """
        addresses = named(head)
        with self._explained(), self._database.atomic():
            if self.has_issued(head):
                self._database.execute(
                    "UPDATE head SET published = ? WHERE published IS NULL"
                    " AND environment = ? AND namespace = ? AND sequence = ?",
                    [now, self._environment, head.namespace, head.sequence],
                )
            elif adopts and head.sequence > self._highest_sequence(head.namespace):
                self._database.table("head").insert({**self._head_row(head, _ADOPTED, now), "published": now})
            else:
                return
            at = HeadAddress(head.namespace)
            row = self._database.execute(
                "SELECT data FROM kept WHERE environment = ? AND topic = ?",
                [self._environment, self._topics.of(at)],
            ).fetchone()
            if not addresses <= messages.keys() or self._is_superseded(head):
                return
            # Kept once, when it was published: what stands there later is what somebody made of it.
            if row is not None and bytes(row[0]) == messages[at]:
                return
            self._database.execute(
                "DELETE FROM kept WHERE environment = ? AND namespace = ?",
                [self._environment, head.namespace],
            )
            self._database.table("kept").insert_all(
                {
                    "environment": self._environment,
                    "namespace": head.namespace,
                    "topic": topic,
                    "data": data,
                }
                for topic, data in ((self._topics.of(each), messages[each]) for each in addresses)
            )

    def has_issued(self, head: Head) -> bool:
        """Whether this very head was reserved here, published or not. Raises LedgerError."""
        with self._explained():
            row = self._database.execute(
                "SELECT digest, payload FROM head WHERE environment = ? AND namespace = ? AND sequence = ?",
                [self._environment, head.namespace, head.sequence],
            ).fetchone()
        return row is not None and bytes(row[0]) == head.stable.digest and row[1] in (None, encode_head(head))

    def kept(self) -> dict[Address, bytes]:
        """Every message that stood on the broker when its namespace's last head was confirmed. Raises LedgerError."""
        with self._explained():
            rows = self._database.execute(
                "SELECT topic, data FROM kept WHERE environment = ? ORDER BY topic", [self._environment]
            ).fetchall()
        found = ((self._topics.address(topic), bytes(data)) for topic, data in rows)
        return {address: data for address, data in found if address is not None}

    def unnamed(
        self, namespaces: Iterable[Namespace], addresses: Iterable[Address], now: int
    ) -> dict[Address, int]:
        """Note what of these namespaces stands on the broker and is named by no head; returns since when, in Unix seconds.

        What was noted before and is not among `addresses` any more, is forgotten. Raises LedgerError.
        """
        topics = {self._topics.of(address): address for address in addresses}
        with self._explained(), self._database.atomic():
            known: dict[str, int] = {}
            for namespace in namespaces:
                known.update(
                    self._database.execute(
                        "SELECT topic, since FROM unnamed WHERE environment = ? AND namespace = ?",
                        [self._environment, namespace],
                    ).fetchall()
                )
            for topic in known.keys() - topics.keys():
                self._database.execute(
                    "DELETE FROM unnamed WHERE environment = ? AND topic = ?", [self._environment, topic]
                )
            self._database.table("unnamed").insert_all(
                {
                    "environment": self._environment,
                    "namespace": getattr(topics[topic], "namespace", ""),
                    "topic": topic,
                    "since": now,
                }
                for topic in sorted(topics.keys() - known.keys())
            )
        return {address: known.get(topic, now) for topic, address in topics.items()}

    def content(self, namespace: Namespace, version: Version) -> Content | None:
        """A content that was published; None for a version that never was. Raises LedgerError."""
        with self._explained():
            was_published = self._database.execute(
                "SELECT 1 FROM head WHERE environment = ? AND namespace = ? AND published IS NOT NULL"
                " AND ? IN (version, candidate)",
                [self._environment, namespace, version],
            ).fetchone()
            return self._content(namespace, version) if was_published else None

    def content_before(self, namespace: Namespace, digest: Digest) -> Content | None:
        """The last content of another digest that every device was told to take; None where there is none.

        Raises:
            LedgerError
        """
        with self._explained():
            row = self._database.execute(
                "SELECT version FROM head WHERE environment = ? AND namespace = ? AND published IS NOT NULL"
                " AND digest != ? ORDER BY epoch DESC, sequence DESC LIMIT 1",
                [self._environment, namespace, digest],
            ).fetchone()
            return self._content(namespace, Version(row[0])) if row is not None else None

    def entries(self) -> list[Entry]:
        """Every head ever issued, newest first. Raises LedgerError."""
        with self._explained():
            rows = self._database.execute(
                "SELECT namespace, sequence, epoch, version, action, digest, reserved, published, provenance, payload"
                " FROM head WHERE environment = ? ORDER BY reserved DESC, namespace, sequence DESC",
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
                    head.candidate
                    if (head := self._head(Namespace(namespace), payload)) is not None
                    else None,
                )
                for namespace, sequence, epoch, version, action, digest, reserved, published, provenance, payload in rows
            ]

    def close(self) -> None:
        """Close; the write-ahead log is folded in."""
        self._database.close()

    def _create(self, found: int) -> None:
        # From nothing, or from what an earlier release wrote, in one transaction.
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
            if found < 2:
                # Version 2: the head as it was issued, with its candidate; what stands on the broker, and what is left there.
                self._database.execute("ALTER TABLE head ADD COLUMN candidate INTEGER")
                self._database.execute("ALTER TABLE head ADD COLUMN payload BLOB")
                self._database.execute(
                    "CREATE TABLE kept (environment TEXT NOT NULL, namespace TEXT NOT NULL, topic TEXT NOT NULL,"
                    " data BLOB NOT NULL, PRIMARY KEY (environment, topic))"
                )
                self._database.execute(
                    "CREATE TABLE unnamed (environment TEXT NOT NULL, namespace TEXT NOT NULL, topic TEXT NOT NULL,"
                    " since INTEGER NOT NULL, PRIMARY KEY (environment, topic))"
                )
            self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _versions(self, namespace: Namespace) -> dict[int, bytes]:
        rows = self._database.execute(
            "SELECT version, digest FROM content WHERE environment = ? AND namespace = ?",
            [self._environment, namespace],
        ).fetchall()
        return {version: bytes(digest) for version, digest in rows}

    def _issued(self, namespace: Namespace, version: Version, sequence: Sequence, past: int) -> Issued:
        row = self._database.execute(
            "SELECT version, digest, payload FROM head WHERE environment = ? AND namespace = ?"
            " AND published IS NOT NULL ORDER BY epoch DESC, sequence DESC LIMIT 1",
            [self._environment, namespace],
        ).fetchone()
        if row is None:
            return Issued(version, sequence, past=self._past(namespace, past, {}))
        stable, digest, payload = row
        head = self._head(namespace, payload)
        # None where that content was issued from another ledger.
        published = self._content(namespace, stable, bytes(digest))
        candidate = None
        if head is not None and head.candidate is not None:
            offering = head.candidate.offering
            candidate = self._content(namespace, offering.version, offering.digest)
        contents = [each for each in (published, candidate) if each is not None]
        known = {record.digest: record.id for content in contents for record in content.records}
        return Issued(version, sequence, published, head, candidate, self._past(namespace, past, known))

    def _past(self, namespace: Namespace, limit: int, known: dict[Digest, RecordId]) -> tuple[Past, ...]:
        if not limit:
            return ()
        rows = self._database.execute(
            "SELECT version, digest, body FROM content WHERE environment = :environment AND namespace = :namespace"
            " AND version IN ("
            "  SELECT version FROM head WHERE environment = :environment AND namespace = :namespace"
            "   AND published IS NOT NULL"
            "  UNION"
            "  SELECT candidate FROM head WHERE environment = :environment AND namespace = :namespace"
            "   AND published IS NOT NULL)"
            " ORDER BY epoch DESC, version DESC LIMIT :limit",
            {"environment": self._environment, "namespace": namespace, "limit": limit},
        ).fetchall()
        found = []
        for version, digest, body in rows:
            records: dict[RecordId, Digest] = {}
            for data in self._split(namespace, version, digest, body):
                # Versions differ in few records, so nearly every one has been decoded before.
                of = digest_of(data)
                if of not in known:
                    known[of] = decode_record(data).id
                records[known[of]] = of
            found.append(Past(Version(version), Digest(bytes(digest)), records))
        return tuple(found)

    def _content(self, namespace: Namespace, version: Version, digest: bytes | None = None) -> Content | None:
        row = self._database.execute(
            "SELECT epoch, digest, parts, body FROM content WHERE environment = ? AND namespace = ? AND version = ?",
            [self._environment, namespace, version],
        ).fetchone()
        if row is None or digest not in (None, bytes(row[1])):
            return None
        epoch, found, parts, body = row
        records = tuple(decode_record(data) for data in self._split(namespace, version, found, body))
        return Content(Version(version), Epoch(epoch), Digest(bytes(found)), parts, bytes(body), records)

    def _split(self, namespace: Namespace, version: int, digest: bytes, body: bytes) -> list[bytes]:
        # The bytes of every record, compared with the digest that they were issued under.
        listed = list(
            split_content(inflate(bytes(body), CONTENT_MAX_BYTES, f"{namespace}, version {version}"))
        )
        if content_digest(digest_of(data) for data in listed) != bytes(digest):
            raise LedgerCorrupt(_corrupt(self._path, f"{namespace}, version {version}: not what was written"))
        return listed

    def _head(self, namespace: Namespace, payload: bytes | None) -> Head | None:
        # None for a head that an earlier release wrote down.
        if payload is None:
            return None
        return decode_head(bytes(payload), Place(self._environment, namespace, Kind.HEAD))

    def _head_row(self, head: Head, action: str, now: int) -> dict[str, object]:
        return {
            "environment": self._environment,
            "namespace": head.namespace,
            "sequence": head.sequence,
            "epoch": head.epoch,
            "version": head.stable.version,
            "digest": head.stable.digest,
            "candidate": None if head.candidate is None else head.candidate.offering.version,
            "payload": encode_head(head),
            "action": action,
            "provenance": json.dumps(dict(head.provenance), sort_keys=True),
            "reserved": now,
        }

    def _is_superseded(self, head: Head) -> bool:
        later = self._database.execute(
            "SELECT 1 FROM head WHERE environment = ? AND namespace = ? AND published IS NOT NULL"
            " AND (epoch, sequence) > (?, ?)",
            [self._environment, head.namespace, head.epoch, head.sequence],
        ).fetchone()
        return later is not None

    def _highest_sequence(self, namespace: Namespace) -> int:
        (highest,) = self._database.execute(
            "SELECT coalesce(max(sequence), 0) FROM head WHERE environment = ? AND namespace = ?",
            [self._environment, namespace],
        ).fetchone()
        return int(highest)

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
        except Refused as error:
            raise LedgerCorrupt(_corrupt(self._path, str(error))) from error


@dataclass(frozen=True, slots=True)
class Used:
    """How often a flag gave an answer for a reason, over all devices and the days that were asked for."""

    namespace: str
    flag: str
    answer: str
    reason: str
    evaluations: int


class UsageBook:
    """What devices counted, in a database of its own: sums by day, and which batches they hold.

    A batch is added once, however often it comes: within USAGE_REMEMBERED_SECONDS, after which its name is forgotten.
    """

    def __init__(self, path: Path, environment: Environment, now: int) -> None:
        """Open or create; `now` in Unix seconds. Raises LedgerError."""
        self._path = path
        self._environment = environment
        try:
            connection = sqlite3.connect(path, isolation_level=None)
        except sqlite3.Error as error:
            raise _explain(path, error) from error
        self._database = Database(connection)
        try:
            with self._explained():
                connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                self._create()
                with self._database.atomic():
                    self._database.execute(
                        "DELETE FROM batch WHERE received < ?", [now - USAGE_REMEMBERED_SECONDS]
                    )
        except LedgerError:
            connection.close()
            raise

    def take(self, device: DeviceId, usage: Usage, now: int) -> bool:
        """Add one batch, on the day that `now` (Unix seconds) is in; when this returns, the disk has it.

        Returns whether it is a new one. Raises LedgerError.
        """
        day = now // _SECONDS_PER_DAY
        with self._explained(), self._database.atomic():
            added = self._database.execute(
                "INSERT OR IGNORE INTO batch VALUES (?, ?, ?, ?, ?, ?)",
                [self._environment, device, usage.batch, now, usage.evaluations, usage.dropped],
            )
            if not added.rowcount:
                return False
            self._database.conn.executemany(
                "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT"
                " DO UPDATE SET evaluations = evaluations + excluded.evaluations",
                [(self._environment, day, *each) for each in usage.counts],
            )
            return True

    def totals(self, since: int, namespace: str = "") -> list[Used]:
        """Sums over all devices from the day of `since` (Unix seconds) on, by name. Raises LedgerError."""
        with self._explained():
            rows = self._database.execute(
                "SELECT namespace, flag, answer, reason, sum(evaluations) FROM usage"
                " WHERE environment = ? AND day >= ? AND (? = '' OR namespace = ?)"
                " GROUP BY namespace, flag, answer, reason ORDER BY namespace, flag, sum(evaluations) DESC, answer, reason",
                [self._environment, since // _SECONDS_PER_DAY, namespace, namespace],
            ).fetchall()
        return [Used(*row) for row in rows]

    def batches(self, since: int) -> tuple[int, int, int]:
        """How many devices sent how many batches since then, and how many evaluations they had to drop. Raises LedgerError."""
        with self._explained():
            row = self._database.execute(
                "SELECT count(DISTINCT device), count(*), coalesce(sum(dropped), 0) FROM batch"
                " WHERE environment = ? AND received >= ?",
                [self._environment, since],
            ).fetchone()
        return int(row[0]), int(row[1]), int(row[2])

    def close(self) -> None:
        """Close; the write-ahead log is folded in."""
        self._database.close()

    def _create(self) -> None:
        with self._database.atomic():
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS batch (environment TEXT NOT NULL, device TEXT NOT NULL, batch BLOB NOT NULL,"
                " received INTEGER NOT NULL, evaluations INTEGER NOT NULL, dropped INTEGER NOT NULL,"
                " PRIMARY KEY (environment, device, batch)) WITHOUT ROWID"
            )
            self._database.execute("CREATE INDEX IF NOT EXISTS batch_received ON batch (received)")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS usage (environment TEXT NOT NULL, day INTEGER NOT NULL,"
                " namespace TEXT NOT NULL, flag TEXT NOT NULL, answer TEXT NOT NULL, reason TEXT NOT NULL,"
                " evaluations INTEGER NOT NULL,"
                " PRIMARY KEY (environment, day, namespace, flag, answer, reason)) WITHOUT ROWID"
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            explained = _explain(self._path, error)
            if isinstance(explained, LedgerCorrupt):
                raise LedgerCorrupt(
                    f"{self._path}: not the counts that were written ({error}); move the file away: counting begins afresh"
                ) from error
            raise explained from error


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
