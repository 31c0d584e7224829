"""The publisher's memory: every version and head sequence ever issued. A number is never used twice.

A number is *reserved*, and the disk has it, before anything that carries it is published; it becomes *published* when the broker
has returned what was sent. So a crash in between costs a number and nothing else. The primary keys are what forbids a second
use.

Several bridges may work on one ledger, one at a time: who publishes holds the *lease*, a row with a token that every holder
counts up. Whatever is written checks the token in the same transaction, so a bridge that was frozen and whose lease another one
took can reserve nothing any more; and before anything is sent it asks for the token too. A lease is renewed while its holder
lives, ends by itself LEASE_SECONDS after the last renewal, by the database's clock, and at once where the database's guard says
that the holder is dead.

The ledger also keeps every content, compressed as it travelled: for the next delta, for a broker that lost it, for a rollback;
the messages that stood on the broker when a namespace's last head was confirmed, as they were signed; and since when a message
on the broker has been named by no head.
"""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flagcast_bridge import clock
from flagcast_bridge.planning.plan import Content, Issued, Past, Plan, named, top_version
from flagcast_shared.codec import inflated
from flagcast_shared.errors import FlagcastError, Refused
from flagcast_shared.ids import DeviceId, Digest, Environment, Epoch, Namespace, RecordId, Sequence, Version
from flagcast_shared.limits import CONTENT_MAX_BYTES, NUMBER_MAX
from flagcast_shared.messages import Candidate, Head, Place, decode_head, encode_head
from flagcast_shared.records import content_digest, decode_record, digest_of, split_content
from flagcast_shared.reports import Count, Usage
from flagcast_shared.topics import Address, HeadAddress, Kind, Topics

from . import database
from .database import Damaged, DatabaseError, NotUnique

SCHEMA_VERSION: Final = 3
LEASE_SECONDS: Final = 60.0
"""How long a lease holds after it was last renewed. A broker ends the connection of a client that is silent for one and a half
of its keepalive (MQTT 5, 3.1.2.10), 45 s: so when somebody takes the lease of a bridge that froze, nothing that was on its way
to the broker can arrive there any more."""
LEASE_RENEW_SECONDS: Final = 2.0
"""How often it is renewed; LEASE_SECONDS less this is above those 45 s. A disk that is busy for seconds does not end a run."""
LEASE_STOP_SECONDS: Final = 10.0
"""A holder that could not renew for so long, because it has lost the database and not the broker, stops sending."""
LEASE_SILENCE_SECONDS: Final = 12.0
"""How long a holder must not have renewed before its guard's end says that it is dead, where a guard can end otherwise."""
_WATCH_SECONDS: Final = 0.25
_HOLDER_MAX_CHARACTERS: Final = 255
USAGE_REMEMBERED_SECONDS: Final = 400 * 86_400
"""How long a batch's name is known. A device sends a batch again when its power was cut between sending it and the broker's
answer; it may then have been switched off for a season."""
NEW_ROWS_PER_DAY_MAX: Final = 50_000
"""Rows that one device may add to a day's sums: as many different answers as an agent counts at all in one span."""
BATCHES_PER_DAY_MAX: Final = 100_000
"""Batches of one device in a day: one a second, and all that it has kept while it was offline."""
_SECONDS_PER_DAY: Final = 86_400
_HALF: Final = 2**32
# Sums are made of halves of numbers, so that no sum of SQLite's overflows, which would be an error.
_PREFIX: Final = "flagcast"
# Under which addresses are written down here, whatever prefix the project is configured with.
_ANY_EPOCH: Final = Epoch(0)
_UNCOUNTABLE: Final = 2**62
# No publisher ever gets here by counting.
_ADOPTED: Final = "adopted"
# The action of a head that stood on the broker and was issued from another ledger.
_WITNESSED: Final = "witnessed"
# The action of a row that takes the numbers of another ledger's head; a newer one than all of this ledger.
_RECOVERED: Final = "recovered"
# The action of a row that takes every number up to its own, after the ledger was restored from an older state.
_NO_DIGEST: Final = Digest(bytes(32))
# Of a row that is no head.
RECOVERY_MARGIN: Final = 1_000
"""The step above the highest number that was seen: devices that are away may hold a higher one than any report has."""


class LedgerError(FlagcastError):
    """The ledger cannot be used. Says what to do.

    LedgerError
    ├── LedgerBusy      another bridge is at work; says who
    ├── LeaseLost       another bridge has taken the lease from this one
    ├── NumberUsed      a version or sequence that was issued before
    ├── TooManyBatches  a device sent more in a day than is counted
    ├── LedgerCorrupt   it does not hold what was written
    └── LedgerTooNew    a later release wrote it
    """


class LedgerBusy(LedgerError):
    """Another bridge holds the lease. `holder` says which, `since` (Unix seconds, the ledger's clock) when it began."""

    def __init__(self, message: str, holder: str, since: int) -> None:
        """With what `str` gives."""
        super().__init__(message)
        self.holder = holder
        self.since = since


class LeaseLost(LedgerError):
    """Another bridge has taken the lease; this one publishes nothing more, and its numbers are nobody else's."""


class NumberUsed(LedgerError):
    """A number that was issued before; nothing was reserved."""


class TooManyBatches(LedgerError):
    """A device's batch beyond BATCHES_PER_DAY_MAX of a day; its evaluations are noted as not counted."""


class LedgerCorrupt(LedgerError):
    """It is not the ledger that was written."""


class LedgerTooNew(LedgerError):
    """A later release wrote it."""


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
    """An open ledger of one environment. What writes needs the lease."""

    def __init__(self, where: Path | str, environment: Environment) -> None:
        """Open or create: an SQLite file at a path, or tables on PostgreSQL at a URL. Raises LedgerError."""
        self._where = where
        self._environment = environment
        self._topics = Topics(_PREFIX, environment)
        self._token: int | None = None
        self._renewed_at = 0.0
        self._database = _connected(where)
        try:
            with self._explained():
                found = self._database.schema_version()
                if found > SCHEMA_VERSION:
                    raise LedgerTooNew(
                        f"{self._database.where}: written by a later release (schema {found}, this one knows "
                        f"{SCHEMA_VERSION}); install that release again"
                    )
                if found < SCHEMA_VERSION:
                    self._database.upgrade(SCHEMA_VERSION, _SCHEMA)
        except LedgerError:
            self._database.close()
            raise

    @contextmanager
    def lease(self, holder: str, stop: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Hold the ledger for the length of the block; `holder` is what others are told. A thread renews it meanwhile.

        Where it cannot be renewed, `stop` is called, in another thread: nothing may be sent any more.

        Raises:
            LedgerBusy: somebody else has it; says who.
            LedgerError
        """
        self._renewed_at = clock.monotonic()
        self._token = self._take_lease(holder)
        ended = threading.Event()
        threads = [
            threading.Thread(target=self._renew_lease, args=(self._token, ended), daemon=True),
            threading.Thread(target=self._watch_lease, args=(stop, ended), daemon=True),
        ]
        for each in threads:
            each.start()
        try:
            yield
        finally:
            ended.set()
            for each in threads:
                each.join()
            self._give_back()

    def check_lease(self) -> None:
        """To be called before anything is sent to the broker. Raises LeaseLost, LedgerError."""
        with self._writing():
            pass

    def now(self) -> int:
        """Unix seconds, by the one clock that all bridges of this ledger go by. Raises LedgerError."""
        if isinstance(self._where, Path):
            return clock.now()
        with self._explained():
            return self._database.now_ms() // 1_000

    def issued(self, past: int = 0, *, epoch: Epoch = _ANY_EPOCH) -> dict[Namespace, Issued]:
        """The highest numbers of every namespace, what was published last, and the last `past` contents that were published.

        Numbers of an epoch before `epoch` count only where a publisher can have come to them by counting: those that a thief has
        pushed to the end of the range must not use up the numbers of the epoch that takes the fleet back.

        Raises:
            LedgerError
        """
        with self._explained():
            rows = self._database.rows(
                "SELECT namespace,"
                " max(CASE WHEN epoch >= :epoch OR version < :uncountable THEN version ELSE 0 END),"
                " max(CASE WHEN epoch >= :epoch OR sequence < :uncountable THEN sequence ELSE 0 END) FROM ("
                " SELECT namespace, epoch, version, 0 AS sequence FROM content WHERE environment = :environment"
                " UNION ALL"
                " SELECT namespace, epoch, version, sequence FROM head WHERE environment = :environment"
                " UNION ALL"
                " SELECT namespace, epoch, coalesce(candidate, 0), sequence FROM head WHERE environment = :environment"
                ") AS number GROUP BY namespace ORDER BY namespace",
                {"environment": self._environment, "epoch": epoch, "uncountable": _UNCOUNTABLE},
            )
            return {
                Namespace(name): self._issued(Namespace(name), Version(version), Sequence(sequence), past)
                for name, version, sequence in rows
            }

    def namespaces(self) -> list[Namespace]:
        """Those of which anything was ever issued. Raises LedgerError."""
        with self._explained():
            rows = self._database.rows(
                "SELECT DISTINCT namespace FROM head WHERE environment = :environment ORDER BY namespace",
                self._of(),
            )
        return [Namespace(name) for (name,) in rows]

    def reserve(self, plans: Iterable[Plan], now: int) -> None:
        """Take the numbers of all plans, in one transaction; when this returns, the disk has them.

        Raises:
            NumberUsed: one of them was issued before; none is taken.
            LeaseLost: another bridge has taken over; none is taken.
            LedgerError: the disk does not take it.
        """
        with self._writing():
            for plan in plans:
                if plan.head_draft is None:
                    continue
                known = self._versions(plan.namespace)
                for content in plan.contents:
                    if known.get(content.version, content.digest) != content.digest:
                        raise NumberUsed(
                            f"{self._database.where}: {plan.namespace}: version {content.version} was issued for another content"
                        )
                    if content.version in known:
                        continue
                    self._database.insert(
                        "content",
                        [
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
                        ],
                    )
                self._database.insert("head", [self._head_row(plan.head, plan.action.value, now)])

    def confirm(
        self, head: Head, now: int, messages: Mapping[Address, bytes], *, adopts: bool = False
    ) -> None:
        """A head stands on the broker, with everything that it names; it counts as published from now on.

        The head and what it names, if `messages` hold all of it, are kept until the next one is confirmed. A head that this
        ledger did not issue is left alone, unless `adopts` and its number is above every number known here: then it is written
        down.
        Raises LeaseLost, LedgerError.
        """
        addresses = named(head)
        with self._writing():
            if self.has_issued(head):
                self._database.change(
                    "UPDATE head SET published = :now WHERE published IS NULL"
                    " AND environment = :environment AND namespace = :namespace AND sequence = :sequence",
                    self._of(head.namespace, now=now, sequence=head.sequence),
                )
            elif adopts and head.sequence > self._highest_sequence(head.namespace):
                self._database.insert("head", [{**self._head_row(head, _ADOPTED, now), "published": now}])
            else:
                return
            if addresses <= messages.keys() and not self._is_superseded(head):
                self._keep(head, messages, now)

    def witness(self, head: Head, messages: Mapping[Address, bytes], now: int) -> None:
        """Take the numbers of a valid head on the broker that is newer than all of this ledger, and keep `messages` of it.

        `messages` are those that the head names, or none where they are not whole. A namespace of which nothing was ever issued
        here is left alone. Raises LeaseLost, LedgerError.
        """
        version = top_version(head)
        with self._writing():
            known = self._row(
                "SELECT max(sequence), max(CASE WHEN candidate > version THEN candidate ELSE version END) FROM head"
                " WHERE environment = :environment AND namespace = :namespace",
                self._of(head.namespace),
            )
            if known is None or known[0] is None or max(version, head.sequence) >= _UNCOUNTABLE:
                return
            sequence, highest = known
            if self.has_issued(head):
                return
            if head.sequence > sequence or version > highest:
                taken = (version, max(head.sequence, sequence + 1))
                self._insert_taken(head.namespace, head.epoch, taken, _WITNESSED, now)
            if head.sequence >= sequence and named(head) <= messages.keys():
                self._keep(head, messages, now)

    def recover(
        self, namespace: Namespace, epoch: Epoch, version: Version, sequence: Sequence, now: int
    ) -> None:
        """Take every number up to these, which are above all that was reserved. Raises LeaseLost, LedgerError."""
        with self._writing():
            self._insert_taken(namespace, epoch, (version, sequence), _RECOVERED, now)

    def unissued(self) -> dict[Namespace, Version]:
        """The namespaces in which newer numbers were taken for others than were published from here, with the highest version.

        Raises:
            LedgerError
        """
        with self._explained():
            rows = self._database.rows(
                "SELECT namespace, max(version) FROM head AS taken WHERE environment = :environment"
                " AND action IN (:witnessed, :recovered) AND NOT EXISTS ("
                "  SELECT 1 FROM head WHERE environment = :environment AND namespace = taken.namespace"
                "  AND published IS NOT NULL AND (epoch, sequence) > (taken.epoch, taken.sequence))"
                " GROUP BY namespace ORDER BY namespace",
                self._of(witnessed=_WITNESSED, recovered=_RECOVERED),
            )
        return {Namespace(name): Version(version) for name, version in rows}

    def _insert_taken(
        self, namespace: Namespace, epoch: Epoch, numbers: tuple[int, int], how: str, now: int
    ) -> None:
        version, sequence = numbers
        row = self._of(namespace, sequence=sequence, epoch=epoch, version=version, action=how, reserved=now)
        self._database.insert("head", [{**row, "digest": _NO_DIGEST, "provenance": "{}"}])

    def _keep(self, head: Head, messages: Mapping[Address, bytes], now: int) -> None:
        # Once, when it was published: what stands there later is what somebody made of it.
        at, addresses = HeadAddress(head.namespace), named(head)
        row = self._row(
            "SELECT data FROM kept WHERE environment = :environment AND topic = :topic",
            self._of(topic=self._topics.of(at)),
        )
        if row is not None and bytes(row[0]) == messages[at]:
            return
        self._note_unnamed(head.namespace, {self._topics.of(each) for each in addresses}, now)
        self._database.change(
            "DELETE FROM kept WHERE environment = :environment AND namespace = :namespace",
            self._of(head.namespace),
        )
        self._database.insert(
            "kept",
            (
                self._of(head.namespace, topic=self._topics.of(each), data=messages[each])
                for each in addresses
            ),
        )

    def _note_unnamed(self, namespace: Namespace, named_now: set[str], now: int) -> None:
        # What the head before named and this one does not: not every broker shows it to a subscription with wildcards.
        former = self._database.rows(
            "SELECT topic FROM kept WHERE environment = :environment AND namespace = :namespace"
            " AND topic NOT IN (SELECT topic FROM unnamed WHERE environment = :environment)",
            self._of(namespace),
        )
        self._database.insert(
            "unnamed",
            (self._of(namespace, topic=topic, since=now) for (topic,) in former if topic not in named_now),
        )

    def has_issued(self, head: Head) -> bool:
        """Whether this very head was reserved here, published or not. Raises LedgerError."""
        with self._explained():
            row = self._row(
                "SELECT digest, payload FROM head"
                " WHERE environment = :environment AND namespace = :namespace AND sequence = :sequence",
                self._of(head.namespace, sequence=head.sequence),
            )
        return row is not None and bytes(row[0]) == head.stable.digest and row[1] in (None, encode_head(head))

    def kept(self) -> dict[Address, bytes]:
        """Every message that stood on the broker when its namespace's last head was confirmed. Raises LedgerError."""
        with self._explained():
            rows = self._database.rows(
                "SELECT topic, data FROM kept WHERE environment = :environment ORDER BY topic", self._of()
            )
        found = ((self._topics.address(topic), bytes(data)) for topic, data in rows)
        return {address: data for address, data in found if address is not None}

    def to_ask_for(self) -> list[Address]:
        """What may stand on the broker and may have to be asked for by its name: heads, and what none of them names any more.

        Raises:
            LedgerError
        """
        with self._explained():
            rows = self._database.rows(
                "SELECT topic FROM unnamed WHERE environment = :environment ORDER BY topic", self._of()
            )
        old = (self._topics.address(topic) for (topic,) in rows)
        return [*map(HeadAddress, self.namespaces()), *(each for each in old if each is not None)]

    def unnamed(
        self, namespaces: Iterable[Namespace], addresses: Iterable[Address], now: int
    ) -> dict[Address, int]:
        """Note what of these namespaces stands on the broker and is named by no head; returns since when, in Unix seconds.

        What was noted before and is not among `addresses` any more, is forgotten. Raises LeaseLost, LedgerError.
        """
        topics = {self._topics.of(address): address for address in addresses}
        with self._writing():
            known: dict[str, int] = {}
            for namespace in namespaces:
                known.update(
                    self._database.rows(
                        "SELECT topic, since FROM unnamed"
                        " WHERE environment = :environment AND namespace = :namespace",
                        self._of(namespace),
                    )
                )
            for topic in known.keys() - topics.keys():
                self._database.change(
                    "DELETE FROM unnamed WHERE environment = :environment AND topic = :topic",
                    self._of(topic=topic),
                )
            self._database.insert(
                "unnamed",
                (
                    self._of(Namespace(getattr(topics[topic], "namespace", "")), topic=topic, since=now)
                    for topic in sorted(topics.keys() - known.keys())
                ),
            )
        return {address: known.get(topic, now) for topic, address in topics.items()}

    def content(self, namespace: Namespace, version: Version) -> Content | None:
        """A content that was published; None for a version that never was. Raises LedgerError."""
        with self._explained():
            was_published = self._row(
                "SELECT 1 FROM head WHERE environment = :environment AND namespace = :namespace"
                " AND published IS NOT NULL AND :version IN (version, candidate)",
                self._of(namespace, version=version),
            )
            return self._content(namespace, version) if was_published else None

    def content_before(self, namespace: Namespace, digest: Digest) -> Content | None:
        """The last content of another digest that every device was told to take; None where there is none.

        Raises:
            LedgerError
        """
        with self._explained():
            row = self._row(
                "SELECT version FROM head WHERE environment = :environment AND namespace = :namespace"
                " AND published IS NOT NULL AND digest != :digest ORDER BY epoch DESC, sequence DESC LIMIT 1",
                self._of(namespace, digest=digest),
            )
            return self._content(namespace, Version(row[0])) if row is not None else None

    def entries(self) -> list[Entry]:
        """Every head ever issued, newest first. Raises LedgerError."""
        with self._explained():
            rows = self._database.rows(
                "SELECT namespace, sequence, epoch, version, action, digest, reserved, published, provenance, payload"
                " FROM head WHERE environment = :environment ORDER BY reserved DESC, namespace, sequence DESC",
                self._of(),
            )
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
        """Close."""
        self._database.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        # A transaction that nobody whose lease was taken gets into; who is in it is renewed by it.
        with self._explained(), self._database.atomic():
            if self._token is None:
                raise LedgerError(f"{self._database.where}: nobody writes without the lease")
            if not self._renewed(self._database, self._token):
                holder, since, *_ = self._lease_row()
                raise LeaseLost(
                    f"{self._database.where}: {holder} has taken over at {clock.as_text(since // 1_000)}, because this "
                    f"process gave no sign for too long; nothing more is published from here; run it again"
                )
            yield

    def _take_lease(self, holder: str) -> int:
        # The guard first: where we have it and the holder had it, the holder is dead.
        with self._explained():
            is_guarded = self._database.guard(self._environment)
            try:
                return self._taken(holder[:_HOLDER_MAX_CHARACTERS], is_guarded=is_guarded)
            except BaseException:
                self._database.unguard()
                raise

    def _taken(self, holder: str, *, is_guarded: bool) -> int:
        with self._database.atomic():
            self._database.change(
                "INSERT INTO lease (environment, token, holder, since, renewed, expires, guarded)"
                " VALUES (:environment, 0, '', 0, 0, 0, 0) ON CONFLICT DO NOTHING",
                self._of(),
            )
            # Locks the row, where the database locks rows.
            self._database.change(
                "UPDATE lease SET token = token WHERE environment = :environment", self._of()
            )
            held_by, since, renewed, expires, was_guarded = self._lease_row()
            now = self._database.now_ms()
            silence = 0 if self._database.is_guard_final else int(LEASE_SILENCE_SECONDS * 1_000)
            is_dead = is_guarded and was_guarded and now - renewed >= silence
            if expires > now and not is_dead:
                began = since // 1_000
                raise LedgerBusy(
                    f"{self._database.where}: another publisher is at work: {held_by}, since {clock.as_text(began)}; "
                    "wait until it has ended",
                    held_by,
                    began,
                )
            self._database.change(
                "UPDATE lease SET token = token + 1, holder = :holder, since = :now, renewed = :now, expires = :expires,"
                " guarded = :guarded WHERE environment = :environment",
                self._of(holder=holder, now=now, expires=now + _lease_ms(), guarded=int(is_guarded)),
            )
            (token,) = self._row("SELECT token FROM lease WHERE environment = :environment", self._of()) or (
                0,
            )
            return int(token)

    def _lease_row(self) -> tuple[str, int, int, int, bool]:
        row = self._row(
            "SELECT holder, since, renewed, expires, guarded FROM lease WHERE environment = :environment",
            self._of(),
        )
        holder, since, renewed, expires, guarded = row or ("nobody", 0, 0, 0, 0)
        return holder, since, renewed, expires, bool(guarded)

    def _renewed(self, opened: database.Database, token: int) -> bool:
        began, now = clock.monotonic(), opened.now_ms()
        changed = opened.change(
            "UPDATE lease SET renewed = :now, expires = :expires WHERE environment = :environment AND token = :token",
            self._of(now=now, expires=now + _lease_ms(), token=token),
        )
        if changed == 1:
            self._renewed_at = max(self._renewed_at, began)
        return changed == 1

    def _renew_lease(self, token: int, ended: threading.Event) -> None:
        # In a thread, on a connection of its own. What fails here is found by the next thing that the run writes.
        opened: database.Database | None = None
        while not ended.wait(LEASE_RENEW_SECONDS):
            try:
                opened = opened or database.connect(self._where)
                if not self._renewed(opened, token):
                    break
            except DatabaseError:
                if opened is not None:
                    opened.close()
                opened = None
        if opened is not None:
            opened.close()

    def _watch_lease(self, stop: Callable[[], object], ended: threading.Event) -> None:
        # Beside the thread that renews, which may be waiting for a network that is gone.
        while not ended.wait(_WATCH_SECONDS):
            if clock.monotonic() - self._renewed_at >= LEASE_STOP_SECONDS:
                stop()
                return

    def _give_back(self) -> None:
        # Where this fails the lease ends by itself.
        token, self._token = self._token, None
        with suppress(DatabaseError):
            self._database.change(
                "UPDATE lease SET expires = 0 WHERE environment = :environment AND token = :token",
                self._of(token=token),
            )
        self._database.unguard()

    def _of(self, namespace: Namespace | None = None, **values: object) -> dict[str, object]:
        named_here: dict[str, object] = {} if namespace is None else {"namespace": namespace}
        return {"environment": self._environment, **named_here, **values}

    def _row(self, sql: str, values: Mapping[str, object]) -> Any:  # noqa: ANN401  # a database's row
        return next(iter(self._database.rows(sql, values)), None)

    def _versions(self, namespace: Namespace) -> dict[int, bytes]:
        rows = self._database.rows(
            "SELECT version, digest FROM content WHERE environment = :environment AND namespace = :namespace",
            self._of(namespace),
        )
        return {version: bytes(digest) for version, digest in rows}

    def _issued(self, namespace: Namespace, version: Version, sequence: Sequence, past: int) -> Issued:
        row = self._row(
            "SELECT version, digest, payload FROM head WHERE environment = :environment"
            " AND namespace = :namespace AND published IS NOT NULL ORDER BY epoch DESC, sequence DESC LIMIT 1",
            self._of(namespace),
        )
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
        rows = self._database.rows(
            "SELECT version, digest, body FROM content WHERE environment = :environment AND namespace = :namespace"
            " AND version IN ("
            "  SELECT version FROM head WHERE environment = :environment AND namespace = :namespace"
            "   AND published IS NOT NULL"
            "  UNION"
            "  SELECT candidate FROM head WHERE environment = :environment AND namespace = :namespace"
            "   AND published IS NOT NULL)"
            " ORDER BY epoch DESC, version DESC LIMIT :limit",
            self._of(namespace, limit=limit),
        )
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
        row = self._row(
            "SELECT epoch, digest, parts, body FROM content"
            " WHERE environment = :environment AND namespace = :namespace AND version = :version",
            self._of(namespace, version=version),
        )
        if row is None or digest not in (None, bytes(row[1])):
            return None
        epoch, found, parts, body = row
        records = tuple(decode_record(data) for data in self._split(namespace, version, found, body))
        return Content(Version(version), Epoch(epoch), Digest(bytes(found)), parts, bytes(body), records)

    def _split(self, namespace: Namespace, version: int, digest: bytes, body: bytes) -> list[bytes]:
        # The bytes of every record, compared with the digest that they were issued under.
        listed = list(
            split_content(inflated([bytes(body)], CONTENT_MAX_BYTES, f"{namespace}, version {version}"))
        )
        if content_digest(digest_of(data) for data in listed) != bytes(digest):
            raise LedgerCorrupt(
                _corrupt(self._database.where, f"{namespace}, version {version}: not what was written")
            )
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
        later = self._row(
            "SELECT 1 FROM head WHERE environment = :environment AND namespace = :namespace"
            " AND published IS NOT NULL AND (epoch, sequence) > (:epoch, :sequence)",
            self._of(head.namespace, epoch=head.epoch, sequence=head.sequence),
        )
        return later is not None

    def _highest_sequence(self, namespace: Namespace) -> int:
        (highest,) = self._row(
            "SELECT coalesce(max(sequence), 0) FROM head"
            " WHERE environment = :environment AND namespace = :namespace",
            self._of(namespace),
        )
        return int(highest)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        where = self._database.where
        try:
            yield
        except NotUnique as error:
            raise NumberUsed(
                f"{where}: a number was issued before ({error}); nothing was published"
            ) from error
        except Damaged as error:
            raise LedgerCorrupt(_corrupt(where, str(error))) from error
        except DatabaseError as error:
            raise LedgerError(str(error)) from error
        except Refused as error:
            raise LedgerCorrupt(_corrupt(where, str(error))) from error


def existing(where: Path | str, environment: Environment) -> Ledger | None:
    """The ledger there; None where none was ever made. Raises LedgerError."""
    if isinstance(where, Path):
        return Ledger(where, environment) if where.exists() else None
    opened = _connected(where)
    try:
        is_made = opened.schema_version() > 0
    except DatabaseError as error:
        raise LedgerError(str(error)) from error
    finally:
        opened.close()
    return Ledger(where, environment) if is_made else None


def _connected(where: Path | str) -> database.Database:
    try:
        return database.connect(where)
    except Damaged as error:
        raise LedgerCorrupt(_corrupt(str(where), str(error))) from error
    except DatabaseError as error:
        raise LedgerError(str(error)) from error


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

    A batch is added once, however often it comes: within USAGE_REMEMBERED_SECONDS, after which its name is forgotten. Numbers
    end at NUMBER_MAX and stay there. One device adds NEW_ROWS_PER_DAY_MAX rows and BATCHES_PER_DAY_MAX batches in a day; what
    is beyond is in no sum, and `uncounted` tells how much it was.
    """

    def __init__(self, path: Path, environment: Environment, now: int) -> None:
        """Open or create; `now` in Unix seconds. Raises LedgerError."""
        self._environment = environment
        try:
            self._database = database.Sqlite(path)
        except DatabaseError as error:
            raise _uncounted(path, error) from error
        self._path = path
        try:
            with self._explained():
                self._create()
                self._forget(now)
        except LedgerError:
            self._database.close()
            raise

    def take(self, device: DeviceId, usage: Usage, now: int) -> bool:
        """Add one batch, on the day that `now` (Unix seconds) is in; when this returns, the disk has it.

        The day is never the device's own word: its `since` and `until` are stored nowhere.

        Returns whether it is a new one. Raises TooManyBatches, LedgerError.
        """
        day = now // _SECONDS_PER_DAY
        own = {"environment": self._environment, "device": device, "day": day}
        with self._explained(), self._database.atomic():
            if day != self._day:
                self._forget(now)
            known = self._database.rows(
                "SELECT 1 FROM batch WHERE environment = :environment AND device = :device AND batch = :batch",
                {"environment": self._environment, "device": device, "batch": usage.batch},
            )
            if known:
                return False
            self._database.change(
                "INSERT OR IGNORE INTO device_day VALUES (:environment, :device, :day, 0, 0, 0)", own
            )
            ((batches, rows),) = self._database.rows(
                "SELECT batches, new_rows FROM device_day"
                " WHERE environment = :environment AND device = :device AND day = :day",
                own,
            )
            is_counted = batches < BATCHES_PER_DAY_MAX
            left = NEW_ROWS_PER_DAY_MAX - rows
            uncounted = 0 if is_counted else usage.evaluations
            if is_counted:
                self._remember(device, usage, now)
                for each in usage.counts:
                    if self._add(day, each):
                        continue
                    if left > 0:
                        self._insert(day, each)
                        left -= 1
                    else:
                        uncounted += each.evaluations
            self._database.change(
                "UPDATE device_day SET batches = batches + :batches, new_rows = :rows,"
                " uncounted = CASE WHEN uncounted > :most - :uncounted THEN :most ELSE uncounted + :uncounted END"
                " WHERE environment = :environment AND device = :device AND day = :day",
                {
                    **own,
                    "batches": int(is_counted),
                    "rows": NEW_ROWS_PER_DAY_MAX - left,
                    "uncounted": min(uncounted, NUMBER_MAX),
                    "most": NUMBER_MAX,
                },
            )
        if not is_counted:
            raise TooManyBatches(f"more than {BATCHES_PER_DAY_MAX} batches in a day")
        return True

    def totals(self, since: int, namespace: str = "") -> list[Used]:
        """Sums over all devices from the day of `since` (Unix seconds) on, by name. Raises LedgerError."""
        with self._explained():
            rows = self._database.rows(
                "SELECT namespace, flag, answer, reason, sum(evaluations / :half), sum(evaluations % :half) FROM usage"
                " WHERE environment = :environment AND day >= :day AND :namespace IN ('', namespace)"
                " GROUP BY namespace, flag, answer, reason",
                {
                    "environment": self._environment,
                    "day": since // _SECONDS_PER_DAY,
                    "namespace": namespace,
                    "half": _HALF,
                },
            )
        totals = [
            Used(namespace, flag, answer, reason, _whole(high, low))
            for namespace, flag, answer, reason, high, low in rows
        ]
        return sorted(
            totals, key=lambda each: (each.namespace, each.flag, -each.evaluations, each.answer, each.reason)
        )

    def batches(self, since: int) -> tuple[int, int, int]:
        """How many devices sent how many batches since then, and how many evaluations they had to drop. Raises LedgerError."""
        with self._explained():
            (row,) = self._database.rows(
                "SELECT count(DISTINCT device), count(*), coalesce(sum(dropped / :half), 0), coalesce(sum(dropped % :half), 0)"
                " FROM batch WHERE environment = :environment AND received >= :since",
                {"environment": self._environment, "since": since, "half": _HALF},
            )
        return int(row[0]), int(row[1]), _whole(row[2], row[3])

    def uncounted(self, since: int) -> dict[DeviceId, int]:
        """Evaluations beyond the limits of a day, by device, most first, from the day of `since` on. Raises LedgerError."""
        with self._explained():
            rows = self._database.rows(
                "SELECT device, sum(uncounted / :half), sum(uncounted % :half) FROM device_day"
                " WHERE environment = :environment AND day >= :day AND uncounted > 0 GROUP BY device",
                {"environment": self._environment, "day": since // _SECONDS_PER_DAY, "half": _HALF},
            )
        found = {DeviceId(device): _whole(high, low) for device, high, low in rows}
        return dict(sorted(found.items(), key=lambda each: (-each[1], each[0])))

    def close(self) -> None:
        """Close; the write-ahead log is folded in."""
        self._database.close()

    def _forget(self, now: int) -> None:
        # When it is opened and once a day: a collector has it open for months.
        self._database.change(
            "DELETE FROM batch WHERE received < :since", {"since": now - USAGE_REMEMBERED_SECONDS}
        )
        self._database.change(
            "DELETE FROM device_day WHERE day < :since",
            {"since": (now - USAGE_REMEMBERED_SECONDS) // _SECONDS_PER_DAY},
        )
        self._day = now // _SECONDS_PER_DAY

    def _remember(self, device: DeviceId, usage: Usage, now: int) -> None:
        self._database.change(
            "INSERT INTO batch VALUES (:environment, :device, :batch, :now, :evaluations, :dropped)",
            {
                "environment": self._environment,
                "device": device,
                "batch": usage.batch,
                "now": now,
                "evaluations": min(usage.evaluations, NUMBER_MAX),
                "dropped": min(usage.dropped, NUMBER_MAX),
            },
        )

    def _add(self, day: int, count: Count) -> bool:
        # To a row that is there; whether there is one.
        return bool(
            self._database.change(
                "UPDATE usage SET evaluations ="
                " CASE WHEN evaluations > :most - :evaluations THEN :most ELSE evaluations + :evaluations END"
                " WHERE environment = :environment AND day = :day AND namespace = :namespace AND flag = :flag"
                " AND answer = :answer AND reason = :reason",
                {**self._row(day, count), "most": NUMBER_MAX},
            )
        )

    def _insert(self, day: int, count: Count) -> None:
        self._database.change(
            "INSERT INTO usage VALUES (:environment, :day, :namespace, :flag, :answer, :reason, :evaluations)",
            self._row(day, count),
        )

    def _row(self, day: int, count: Count) -> dict[str, object]:
        row = {**count._asdict(), "evaluations": min(count.evaluations, NUMBER_MAX)}
        return {**row, "environment": self._environment, "day": day}

    def _create(self) -> None:
        with self._database.atomic():
            self._database.change(
                "CREATE TABLE IF NOT EXISTS device_day (environment TEXT NOT NULL, device TEXT NOT NULL,"
                " day INTEGER NOT NULL, batches INTEGER NOT NULL, new_rows INTEGER NOT NULL, uncounted INTEGER NOT NULL,"
                " PRIMARY KEY (environment, device, day)) WITHOUT ROWID"
            )
            self._database.change(
                "CREATE TABLE IF NOT EXISTS batch (environment TEXT NOT NULL, device TEXT NOT NULL, batch BLOB NOT NULL,"
                " received INTEGER NOT NULL, evaluations INTEGER NOT NULL, dropped INTEGER NOT NULL,"
                " PRIMARY KEY (environment, device, batch)) WITHOUT ROWID"
            )
            self._database.change("CREATE INDEX IF NOT EXISTS batch_received ON batch (received)")
            self._database.change(
                "CREATE TABLE IF NOT EXISTS usage (environment TEXT NOT NULL, day INTEGER NOT NULL,"
                " namespace TEXT NOT NULL, flag TEXT NOT NULL, answer TEXT NOT NULL, reason TEXT NOT NULL,"
                " evaluations INTEGER NOT NULL,"
                " PRIMARY KEY (environment, day, namespace, flag, answer, reason)) WITHOUT ROWID"
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            raise _uncounted(self._path, error) from error


# By the version of the schema that they lead to; never changed once released.
_SCHEMA: Final[Mapping[int, tuple[str, ...]]] = {
    1: (
        (
            "CREATE TABLE content (environment {text} NOT NULL, namespace {text} NOT NULL,"
            " version {integer} NOT NULL CHECK (version > 0), epoch {integer} NOT NULL, digest {bytes} NOT NULL,"
            " parts {integer} NOT NULL, body {bytes} NOT NULL, reserved {integer} NOT NULL,"
            " PRIMARY KEY (environment, namespace, version))"
        ),
        (
            "CREATE TABLE head (environment {text} NOT NULL, namespace {text} NOT NULL,"
            " sequence {integer} NOT NULL CHECK (sequence > 0), epoch {integer} NOT NULL, version {integer} NOT NULL,"
            " digest {bytes} NOT NULL, action {text} NOT NULL, provenance {text} NOT NULL, reserved {integer} NOT NULL,"
            " published {integer}, PRIMARY KEY (environment, namespace, sequence))"
        ),
    ),
    # The head as it was issued, with its candidate; what stands on the broker, and what is left there.
    2: (
        "ALTER TABLE head ADD COLUMN candidate {integer}",
        "ALTER TABLE head ADD COLUMN payload {bytes}",
        (
            "CREATE TABLE kept (environment {text} NOT NULL, namespace {text} NOT NULL, topic {text} NOT NULL,"
            " data {bytes} NOT NULL, PRIMARY KEY (environment, topic))"
        ),
        (
            "CREATE TABLE unnamed (environment {text} NOT NULL, namespace {text} NOT NULL, topic {text} NOT NULL,"
            " since {integer} NOT NULL, PRIMARY KEY (environment, topic))"
        ),
    ),
    # Who publishes. Times are Unix milliseconds of the database's clock.
    3: (
        (
            "CREATE TABLE lease (environment {text} NOT NULL PRIMARY KEY, token {integer} NOT NULL, holder {text} NOT NULL,"
            " since {integer} NOT NULL, renewed {integer} NOT NULL, expires {integer} NOT NULL, guarded {integer} NOT NULL)"
        ),
    ),
}


def _whole(high: int, low: int) -> int:
    # Of the sums of halves.
    return min(int(high) * _HALF + int(low), NUMBER_MAX)


def _lease_ms() -> int:
    return int(LEASE_SECONDS * 1_000)


def _corrupt(where: str, why: str) -> str:
    return (
        f"{where}: not the ledger that was written ({why}); restore it from a backup, or move it away: "
        "numbers then go on above what is live on the broker"
    )


def _uncounted(path: Path, error: DatabaseError) -> LedgerError:
    if not isinstance(error, Damaged):
        return LedgerError(str(error))
    return LedgerCorrupt(
        f"{path}: not the counts that were written ({error}); move the file away: counting begins afresh"
    )
