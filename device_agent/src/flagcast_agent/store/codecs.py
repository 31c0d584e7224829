"""Encodings of values in the agent's database, and the seals of its rows."""

import sqlite3
from pathlib import Path
from typing import Any

from flagcast_agent.sync.time_floor import TimeFloor
from flagcast_agent.sync.transitions import BrokerMemory
from flagcast_shared.codec import Fields, array, decode, encode, text
from flagcast_shared.context import Device
from flagcast_shared.ids import DeviceId, Digest, Environment, Epoch, Namespace, Version
from flagcast_shared.limits import KEY_MAX_BYTES, LABELS_MAX, NUMBER_MAX, TEXT_MAX_BYTES
from flagcast_shared.records import digest_of

from .errors import NOT_WHAT_WAS_WRITTEN, StoreCorrupt
from .rows import NAMESPACES_MAX, Held, Profile


def encode_profile(profile: Profile) -> bytes:
    """A profile's bytes."""
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


def decode_profile(data: bytes) -> Profile:
    """The profile of its bytes. Raises Malformed."""
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


def floor_rows(floor: TimeFloor) -> list[dict[str, Any]]:
    """Rows of a time floor."""
    return [
        trust_row("floor", floor.time),
        trust_row("boot", encode({1: floor.boot, 2: floor.booted})),
    ]


def decode_floor(time: int, data: bytes | None) -> TimeFloor:
    """The time floor of its rows. Raises Malformed."""
    # A database of a release that wrote no boot: of none that is known.
    if data is None:
        return TimeFloor(time)
    body = Fields(decode(data, "boot"), "boot")
    return TimeFloor(time, body.integer(2, -NUMBER_MAX), body.text(1, KEY_MAX_BYTES))


def encode_broker(memory: BrokerMemory) -> bytes:
    """Bytes of what is remembered of a broker."""
    return encode({1: memory.broker, 2: memory.protocol, 3: memory.since})


def decode_broker(data: bytes) -> BrokerMemory:
    """What is remembered of a broker. Raises Malformed."""
    body = Fields(decode(data, "broker"), "broker")
    return BrokerMemory(body.text(1, TEXT_MAX_BYTES), body.text(2, KEY_MAX_BYTES), body.integer(3))


def seal_of(*values: str | int | bytes) -> bytes:
    """The digest that a row's values are sealed with."""
    return digest_of(encode(list(values)))


def trust_row(name: str, value: int | bytes) -> dict[str, object]:
    """A row of the table `trust`."""
    return {"name": name, "value": value, "seal": seal_of(name, value)}


def sealed_rows(path: Path, connection: sqlite3.Connection, query: str) -> list[Any]:
    """Rows without their seals. Raises StoreCorrupt."""
    # Records have their digest. A number that a worn flash changes has none: a sequence that is too high would refuse
    # every head to come.
    rows = connection.execute(query).fetchall()
    for *values, seal in rows:
        if seal_of(*values) != seal:
            raise StoreCorrupt(NOT_WHAT_WAS_WRITTEN.format(path=path, why="a row was changed"))
    return [values for *values, _ in rows]


def held_row(path: Path, row: tuple[str, bytes, int, int, bytes, bytes, str | None]) -> Held:
    """A namespace of its row. Raises StoreCorrupt."""
    name, head, epoch, version, digest, seal, joined = row
    if seal_of(name, head, epoch, version, digest) != seal:
        raise StoreCorrupt(NOT_WHAT_WAS_WRITTEN.format(path=path, why="a row was changed"))
    records = None
    if joined is not None:
        records = tuple(map(bytes.fromhex, joined.split(","))) if joined else ()
    return Held(Namespace(name), head, Epoch(epoch), Version(version), Digest(digest), records)
