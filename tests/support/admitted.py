"""Admitted updates with real records and digests, for tests that begin where the door ends."""

from collections.abc import Iterable

from flagcast_shared.ids import Digest, Environment, Epoch, Namespace, RecordId, Sequence, Version
from flagcast_shared.messages import Head, Offering
from flagcast_shared.model import AnySegment, Flag
from flagcast_shared.records import Record, content_digest, encode_record, extent_of
from flagcast_shared.trust import AdmittedUpdate, Holding

Content = Iterable[Flag | AnySegment | Record]


class History:
    """One namespace's admitted versions, one after the other."""

    def __init__(self, namespace: str = "default", *, issued: int = 1000, expires: int = 2000) -> None:
        self.namespace = Namespace(namespace)
        self.issued = issued
        self.expires = expires
        self._records: dict[RecordId, Record] = {}
        self._version = 0
        self._sequence = 0

    def begin(self, entries: Content) -> AdmittedUpdate:
        """The first content: complete."""
        return self._update(_records(entries), (), is_complete=True)

    def change(self, entries: Content, removed: Iterable[RecordId] = ()) -> AdmittedUpdate:
        """The next version, as a delta gives it."""
        return self._update(_records(entries), tuple(removed), is_complete=False)

    def sign_again(self, *, issued: int, expires: int) -> AdmittedUpdate:
        """A new head over the same content."""
        self.issued, self.expires = issued, expires
        self._sequence += 1
        return AdmittedUpdate(self.namespace, self._holding(), (), (), is_complete=False)

    def _update(
        self, changed: list[Record], removed: tuple[RecordId, ...], *, is_complete: bool
    ) -> AdmittedUpdate:
        for identity in removed:
            del self._records[identity]
        self._records.update((record.id, record) for record in changed)
        self._version += 1
        self._sequence += 1
        return AdmittedUpdate(
            self.namespace, self._holding(), tuple(changed), removed, is_complete=is_complete
        )

    def _holding(self) -> Holding:
        digests = {identity: record.digest for identity, record in self._records.items()}
        digest = content_digest(digests.values())
        head = Head(
            Environment("test"),
            self.namespace,
            Epoch(1),
            Sequence(self._sequence),
            self.issued,
            self.expires,
            Offering(Version(self._version), digest, 1, 1),
        )
        return Holding(
            head,
            b"",
            Digest(bytes(32)),
            Epoch(1),
            Version(self._version),
            digest,
            digests,
            sorted(digests.values()),
            extent_of(self._records.values()),
        )


def _records(entries: Content) -> list[Record]:
    return [entry if isinstance(entry, Record) else encode_record(entry) for entry in entries]
