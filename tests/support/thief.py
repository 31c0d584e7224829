"""Somebody who has stolen a publisher's key and may write to the broker: signs any flags under any numbers."""

from collections.abc import Mapping
from pathlib import Path

from flagcast_bridge.signing import signer
from flagcast_shared.codec import deflate
from flagcast_shared.ids import Environment, Epoch, FlagKey, Namespace, Version
from flagcast_shared.ids import Sequence as HeadSequence
from flagcast_shared.messages import Head, Offering, Place, SnapshotPart, encode_head, encode_part
from flagcast_shared.model import BooleanFlag
from flagcast_shared.records import content_digest, encode_content, encode_record
from flagcast_shared.topics import HeadAddress, Kind, SnapshotAddress, Topics

DEFAULT = Namespace("default")


def forged(
    key: Path, flags: Mapping[str, bool], *, number: int, epoch: int, now: int, environment: str = "test"
) -> dict[str, bytes]:
    """The messages of a content that a thief signs with a stolen key file, under this version and sequence, by topic."""
    thief = signer.load(key, "thief")
    place = Environment(environment)
    records = [encode_record(BooleanFlag(FlagKey(name), enabled, ())) for name, enabled in flags.items()]
    body = deflate(encode_content(records))
    version = Version(number)
    digest = content_digest(record.digest for record in records)
    part = SnapshotPart(place, DEFAULT, Epoch(epoch), version, 0, 1, body)
    head = Head(
        place,
        DEFAULT,
        Epoch(epoch),
        HeadSequence(number),
        now,
        now + 86_400,
        Offering(version, digest, len(body), 1),
    )
    topics = Topics("flagcast", place)
    messages = (
        (SnapshotAddress(DEFAULT, version, 0), encode_part(part), Kind.SNAPSHOT),
        (HeadAddress(DEFAULT), encode_head(head), Kind.HEAD),
    )
    return {
        topics.of(address): signer.sign_message(payload, Place(place, DEFAULT, kind), [thief], 1)
        for address, payload, kind in messages
    }
