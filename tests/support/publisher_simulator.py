"""A publisher in memory, with real keys, that signs what an honest one signs and whatever a lying one would.

`retained` is what a broker would keep: topic to bytes. The honest verbs (`release`, `sign_again`, `stage`, `rotate`) write
to it as a bridge does, the head last. A lie is a message from one of the `*_message` methods, which sign anything with any
keys, or a change of `retained` itself.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flagcast_shared.codec import deflate, encode
from flagcast_shared.envelope import seal, to_sign
from flagcast_shared.ids import Digest, Environment, Epoch, KeyId, Namespace, RecordId, Version
from flagcast_shared.ids import Sequence as HeadSequence
from flagcast_shared.messages import (
    Candidate,
    Delta,
    Head,
    InlineDelta,
    Offering,
    Place,
    SnapshotPart,
    encode_delta_message,
    encode_head,
    encode_part,
)
from flagcast_shared.model import AnySegment, Flag
from flagcast_shared.records import Record, content_digest, encode_content, encode_delta, encode_record
from flagcast_shared.root import PublicKey, Quorum, Role, Root, encode_root, root_place
from flagcast_shared.topics import (
    DeltaAddress,
    HeadAddress,
    Kind,
    RootAddress,
    SnapshotAddress,
    Topics,
)

PRODUCTION = Environment("production")
DEFAULT = Namespace("default")
NOW = 1_750_000_000
"""The publisher's clock when it begins, Unix seconds."""
DAY = 86_400
ROOT_LIFE_SECONDS = 365 * DAY
HEAD_LIFE_SECONDS = 7 * DAY


class SigningKey:
    """An Ed25519 key pair whose seed is made from a name, so that every run signs the same bytes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._private = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
        self.public = PublicKey(self._private.public_key().public_bytes_raw(), name)

    @property
    def id(self) -> KeyId:
        return self.public.id

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)


@dataclass(frozen=True, slots=True)
class Content:
    """The records of one version and what is published of them."""

    epoch: Epoch
    version: Version
    records: Mapping[RecordId, Record]
    parts: tuple[bytes, ...]

    @property
    def digest(self) -> Digest:
        return content_digest(record.digest for record in self.records.values())

    def offering(self, deltas: Sequence[Version] = ()) -> Offering:
        return Offering(
            self.version, self.digest, sum(map(len, self.parts)), len(self.parts), tuple(sorted(deltas))
        )


@dataclass(slots=True)
class PublisherSimulator:
    """One environment, one namespace at a time; `thresholds` are those of the first root."""

    environment: Environment = PRODUCTION
    namespace: Namespace = DEFAULT
    root_keys: tuple[SigningKey, ...] = (SigningKey("root-a"),)
    publisher_keys: tuple[SigningKey, ...] = (SigningKey("publisher-a"),)
    root_threshold: int = 1
    publisher_threshold: int = 1
    part_bytes: int = 60_000
    now: int = NOW
    head_life_seconds: int = HEAD_LIFE_SECONDS
    retained: dict[str, bytes] = field(default_factory=dict)
    roots: list[Root] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    heads: list[Head] = field(default_factory=list)
    _private: dict[KeyId, SigningKey] = field(default_factory=dict)

    def __post_init__(self) -> None:
        root = self.make_root()
        self.roots.append(root)
        self.retained[self.root_topic(1)] = self.root_message(root)

    # Where things stand

    @property
    def topics(self) -> Topics:
        return Topics("flagcast", self.environment)

    @property
    def anchor(self) -> bytes:
        """The first root, as a device is provisioned with it."""
        return self.retained[self.root_topic(1)]

    @property
    def root(self) -> Root:
        return self.roots[-1]

    @property
    def head(self) -> Head:
        return self.heads[-1]

    @property
    def content(self) -> Content:
        return self.contents[-1]

    def root_topic(self, number: int) -> str:
        return self.topics.of(RootAddress(number))

    @property
    def head_topic(self) -> str:
        return self.topics.of(HeadAddress(self.namespace))

    def part_topic(self, version: int, part: int = 0) -> str:
        return self.topics.of(SnapshotAddress(self.namespace, Version(version), part))

    def delta_topic(self, version: int, from_version: int) -> str:
        return self.topics.of(DeltaAddress(self.namespace, Version(version), Version(from_version)))

    def place(self, kind: Kind) -> Place:
        return Place(self.environment, self.namespace, kind)

    # What an honest publisher does

    def release(
        self, *entries: Flag | AnySegment, delta: bool = True, inline: bool = False, version: int = 0
    ) -> Content:
        """The next version: snapshot, a delta from the version before, and the head last."""
        content = self.make_content(entries, version=version)
        before = self.contents[-1] if self.contents else None
        self.publish_snapshot(content)
        deltas: list[Version] = []
        inlined = None
        if before is not None and before.epoch == content.epoch:
            if delta:
                body = self.delta_body(before, content)
                self.retained[self.delta_topic(content.version, before.version)] = self.delta_message(
                    self.make_delta(content, before, body)
                )
                deltas.append(before.version)
            if inline:
                inlined = InlineDelta(before.version, content.version, self.delta_body(before, content))
        self.contents.append(content)
        self.publish_head(self.make_head(stable=content.offering(deltas), inline=inlined))
        return content

    def sign_again(self) -> Head:
        """The same content under a fresh head."""
        head = replace(
            self.head,
            epoch=self.root.epoch,
            sequence=HeadSequence(self.head.sequence + 1),
            issued=self.now,
            expires=self.now + self.head_life_seconds,
        )
        self.publish_head(head)
        return head

    def stage(
        self,
        *entries: Flag | AnySegment,
        share: int,
        salt: bytes = b"salt",
        labels: Mapping[str, str] | None = None,
    ) -> Content:
        """A candidate beside the stable content, for `share` hundredths of a percent."""
        content = self.make_content(entries)
        self.publish_snapshot(content)
        self.contents.append(content)
        candidate = Candidate(content.offering(), share, salt, dict(labels or {}))
        self.publish_head(self.make_head(stable=self.head.stable, candidate=candidate))
        return content

    def rotate(
        self,
        *,
        root_keys: Sequence[SigningKey] | None = None,
        publisher_keys: Sequence[SigningKey] | None = None,
        root_threshold: int | None = None,
        publisher_threshold: int | None = None,
    ) -> Root:
        """The next root, signed by the keys of the last one and its own. New publisher keys start the next epoch."""
        before = self.root
        signers = [self._private[key] for key in sorted(before.roles[Role.ROOT].keys)]
        if root_keys is not None:
            self.root_keys = tuple(root_keys)
        if publisher_keys is not None:
            self.publisher_keys = tuple(publisher_keys)
        self.root_threshold = root_threshold or self.root_threshold
        self.publisher_threshold = publisher_threshold or self.publisher_threshold
        same = before.roles[Role.PUBLISHER].keys == {key.id for key in self.publisher_keys}
        root = self.make_root(before.number + 1, before.epoch if same else before.epoch + 1)
        distinct = {key.id: key for key in (*signers, *self.root_keys)}
        self.retained[self.root_topic(root.number)] = self.root_message(root, signers=distinct.values())
        self.roots.append(root)
        return root

    # The makings: what an honest publisher would say, for a liar to change with dataclasses.replace

    def make_root(self, number: int = 1, epoch: int = 1) -> Root:
        self._private.update((key.id, key) for key in (*self.root_keys, *self.publisher_keys))
        return Root(
            self.environment,
            number,
            Epoch(epoch),
            self.now,
            self.now + ROOT_LIFE_SECONDS,
            {key.id: key.public for key in (*self.root_keys, *self.publisher_keys)},
            {
                Role.ROOT: Quorum(frozenset(key.id for key in self.root_keys), self.root_threshold),
                Role.PUBLISHER: Quorum(
                    frozenset(key.id for key in self.publisher_keys), self.publisher_threshold
                ),
            },
        )

    def make_content(self, entries: Iterable[Flag | AnySegment], version: int = 0) -> Content:
        records = [encode_record(entry) for entry in entries]
        body = deflate(encode_content(records))
        parts = tuple(body[at : at + self.part_bytes] for at in range(0, len(body), self.part_bytes))
        last = self.contents[-1] if self.contents else None
        following = last.version + 1 if last is not None and last.epoch == self.root.epoch else 1
        return Content(
            self.root.epoch, Version(version or following), {record.id: record for record in records}, parts
        )

    def make_head(
        self, *, stable: Offering, candidate: Candidate | None = None, inline: InlineDelta | None = None
    ) -> Head:
        epoch = self.root.epoch
        same_epoch = bool(self.heads) and self.heads[-1].epoch == epoch
        return Head(
            self.environment,
            self.namespace,
            epoch,
            HeadSequence(self.heads[-1].sequence + 1 if same_epoch else 1),
            self.now,
            self.now + self.head_life_seconds,
            stable,
            candidate,
            {"commit": "0" * 40},
            inline,
        )

    def make_parts(self, content: Content) -> list[SnapshotPart]:
        return [
            SnapshotPart(
                self.environment,
                self.namespace,
                content.epoch,
                content.version,
                number,
                len(content.parts),
                body,
            )
            for number, body in enumerate(content.parts)
        ]

    def delta_body(self, before: Content, after: Content) -> bytes:
        removed = [identity for identity in before.records if identity not in after.records]
        changed = [
            record
            for identity, record in after.records.items()
            if identity not in before.records or before.records[identity].digest != record.digest
        ]
        return deflate(encode_delta(removed, changed))

    def make_delta(self, content: Content, before: Content, body: bytes) -> Delta:
        return Delta(self.environment, self.namespace, content.epoch, content.version, before.version, body)

    def publish_snapshot(self, content: Content) -> None:
        for part in self.make_parts(content):
            self.retained[self.part_topic(part.version, part.part)] = self.part_message(part)

    def publish_head(self, head: Head) -> None:
        self.heads.append(head)
        self.retained[self.head_topic] = self.head_message(head)

    # Messages, signed by whom one likes

    def root_message(self, root: Root, *, signers: Iterable[SigningKey] | None = None) -> bytes:
        keys = self.root_keys if signers is None else tuple(signers)
        return self.sign(encode_root(root), root_place(self.environment), *keys, several=True)

    def head_message(self, head: Head, *signers: SigningKey) -> bytes:
        return self.sign(encode_head(head), self.place(Kind.HEAD), *signers)

    def part_message(self, part: SnapshotPart, *signers: SigningKey) -> bytes:
        return self.sign(encode_part(part), self.place(Kind.SNAPSHOT), *signers)

    def delta_message(self, delta: Delta, *signers: SigningKey) -> bytes:
        return self.sign(encode_delta_message(delta), self.place(Kind.DELTA), *signers)

    def sign(self, payload: bytes, place: Place, *signers: SigningKey, several: bool | None = None) -> bytes:
        """The envelope of any payload for any place; as many of the publisher's keys as are needed unless told."""
        keys = signers or self.publisher_keys[: self.publisher_threshold]
        is_several = several if several is not None else len(keys) > 1
        return seal(
            payload,
            place,
            [(key.id, key.sign(to_sign(payload, place, key.id, several=is_several))) for key in keys],
            several=is_several,
        )

    # What a broker between does

    def save(self) -> dict[str, bytes]:
        """What the broker keeps at this moment, for a later `restore`."""
        return dict(self.retained)

    def restore(self, saved: Mapping[str, bytes]) -> None:
        """The broker comes back with an old save."""
        self.retained = dict(saved)


def flip_last_bit(message: bytes) -> bytes:
    """The message with one bit of its last signature changed."""
    return message[:-1] + bytes([message[-1] ^ 1])


def envelope_of(header: object, unprotected: object, payload: object, signature: bytes) -> bytes:
    """A COSE_Sign1 with any headers at all; the protected header is given as a value or as its bytes."""
    protected = header if isinstance(header, bytes) else encode(header)  # type: ignore[arg-type]  # a lie on purpose
    return b"\xd2" + encode([protected, unprotected, payload, signature])  # type: ignore[list-item]  # as above
