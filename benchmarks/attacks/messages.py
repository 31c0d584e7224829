"""Hostile bytes: what strangers, a thief of a key and a careless device publish. No process and no socket."""

import functools
import hashlib
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace

import cbor2
from publisher_simulator import PublisherSimulator

from flagcast_shared.codec import Value, deflate, encode
from flagcast_shared.ids import Digest, FlagKey, Namespace
from flagcast_shared.limits import DEPTH_MAX, RECORD_MAX_BYTES, WINDOW_BITS
from flagcast_shared.messages import Offering
from flagcast_shared.records import content_digest
from flagcast_shared.reports import Count, Usage, encode_usage

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202egnp.exe\u2066\u200b\u2028\r\nflagcast: all is well"
"""A title, a cleared screen, a C1 control, text from right to left, what has no width, and a line of its own."""
ROWS_OF_BATCH = 1_500
"""As many as fit into the bytes of a batch."""


def now() -> int:
    """The clock that messages are judged by, in Unix seconds."""
    return int(time.time())  # noqa: TID251  # as above


# Batches and reports


def batch(evaluations: int = 1, /, **words: str) -> bytes:
    """A batch of one count, as a device sends it; `words` replace those of the count."""
    row = {"namespace": "default", "flag": "lights", "answer": "true", "reason": "match", **words}
    count = Count(
        Namespace(row["namespace"]), FlagKey(row["flag"]), row["answer"], row["reason"], evaluations
    )
    return encode_usage(Usage(os.urandom(16), now(), now(), (count,)))


def many_rows(count: int, flag: str) -> list[bytes]:
    """Batches with so many counts, no two of the same name, one evaluation each."""
    return [
        encode_usage(Usage(os.urandom(16), now(), now(), tuple(
            Count(Namespace("default"), FlagKey(flag), f"{number:x}", "m", 1)
            for number in range(first, min(count, first + ROWS_OF_BATCH))
        )))
        for first in range(0, count, ROWS_OF_BATCH)
    ]  # fmt: skip


def rows_twice() -> bytes:
    """A batch that names a row twice."""
    row: Value = ["true", "match", 1]
    return encode({1: 1, 2: bytes(16), 3: 1, 4: 2, 6: {"default": {"lights": [row, row]}}})


def report(**given: str) -> bytes:
    """A device's report with words of the sender's choice."""
    rejection: dict[int, Value] = {
        1: given.get("attack", "malformed"),
        2: given.get("namespace", ""),
        3: now(),
    }
    held: dict[str, Value] = {given.get("applied", "default"): {1: 1, 2: 1, 3: 1}}
    agent = given.get("agent", "1.0")
    return encode({1: 1, 2: 1, 3: 1, 4: True, 5: now(), 6: agent, 7: 1, 8: held, 9: rejection})


# A tag in any place


def tagged(size: int) -> dict[str, bytes]:
    """CBOR of at most `size` bytes with a tag, by its kind or its place; the most costly one for cbor2 first."""
    room = size - 200
    sets = "(?i)" + "[\x01-\uffff]" * (room // 7)
    groups = "(" * 90 + sets + ")*" * 90
    inner = {
        "a pattern of sets": cbor2.CBORTag(35, sets),
        "a pattern of nested groups": cbor2.CBORTag(35, groups[: room // 2]),
        "a pattern of repeated groups": cbor2.CBORTag(35, "(a+)+" * (room // 5)),
        "mail": cbor2.CBORTag(36, "A: b\n" * (room // 5)),
        "a date": cbor2.CBORTag(0, "2" * room),
        "a large number": cbor2.CBORTag(2, bytes([255]) * room),
        "a decimal": cbor2.CBORTag(4, [-(2**40), 1]),
        "a fraction": cbor2.CBORTag(30, [2 ** (3 * room), 2 ** (3 * room) - 1]),
        "a shared value": cbor2.CBORTag(28, [cbor2.CBORTag(29, 0)]),
    }
    tag = b"\xd8\x23\x61a"  # 35("a")
    left = size - len(tag) - 16
    places: dict[str, bytes] = {
        "after numbers": _list_of(b"\x00", left, tag),
        "after numbers of two bytes": _list_of(b"\x18\x18", left, tag),
        "after numbers of three bytes": _list_of(b"\x19\x01\x00", left, tag),
        "after numbers of five bytes": _list_of(b"\x1a\x00\x01\x00\x00", left, tag),
        "after empty lists": _list_of(b"\x80", left, tag),
        "after empty maps": _list_of(b"\xa0", left, tag),
        "after lists of one": _list_of(b"\x81\x00", left, tag),
        "after lists of an empty one": _list_of(b"\x81\x80", left, tag),
        "after maps of one": _list_of(b"\xa1\x00\x00", left, tag),
        "after deep lists": _list_of(b"\x81" * (DEPTH_MAX - 2) + b"\x00", left, tag),
        "after empty texts": _list_of(b"\x60", left, tag),
        "after texts": _list_of(b"\x61a", left, tag),
        "after a map of numbers": _map_of([b"\x19" + (256 + at).to_bytes(2, "big") for at in range(left // 4)], tag),
        "after a map of texts": _map_of([bytes([0x62, *divmod(at, 128)]) for at in range(left // 4)], tag),
        "a key": b"\xa1" + tag + b"\x00",
        "a value": b"\xa1\x01" + tag,
        "in an unknown field": b"\xa2\x01\x01\x18\x63" + tag,
        "first in a list": b"\x82" + tag + b"\x00",
        "deep": b"\x81" * DEPTH_MAX + tag,
        "around a tag": b"\xc1" + tag,
    }  # fmt: skip
    found = {name: cbor2.dumps(value) for name, value in inner.items()} | places
    assert all(len(data) <= size for data in found.values()), {
        name: len(data) for name, data in found.items()
    }
    return found


def _list_of(item: bytes, room: int, last: bytes) -> bytes:
    count = (room - 3) // len(item)
    return b"\x99" + (count + 1).to_bytes(2, "big") + item * count + last


def _map_of(keys: Sequence[bytes], last: bytes) -> bytes:
    # The value of the last key is what matters.
    return b"\xb9" + len(keys).to_bytes(2, "big") + b"\x00".join(keys) + last


# Content by a stolen key


@functools.cache
def bombs() -> list[tuple[bytes, Digest]]:
    """Compressed contents that inflate to lists of empty lists without end, and what their digest is."""
    lists = zlib.compress(b"\x9a" + (24_000_000).to_bytes(4, "big") + b"\x80" * 24_000_000, 9, WINDOW_BITS)
    each = RECORD_MAX_BYTES - 100
    ends = b"\x9a" + each.to_bytes(4, "big") + b"\x80" * each  # in place of the one empty list
    records = [
        encode(["flag", f"x{number:03}", {1: "boolean", 2: True, 99: []}])[:-1] + ends for number in range(80)
    ]
    digest = content_digest(Digest(hashlib.sha256(record).digest()) for record in records)
    bodies: list[Value] = list(records)
    return [(lists, Digest(bytes(32))), (deflate(encode(bodies)), digest)]


def offered(publisher: PublisherSimulator, body: bytes, digest: Digest) -> list[tuple[str, bytes]]:
    """The messages of a next version with any body, truly signed; the head last."""
    version = type(publisher.head.stable.version)(publisher.head.stable.version + 1)
    content = replace(publisher.make_content([], version=version), parts=(body,))
    (part,) = publisher.make_parts(content)
    head = publisher.make_head(stable=Offering(version, digest, len(body), 1))
    publisher.heads.append(head)
    return [
        (publisher.part_topic(version), publisher.part_message(part)),
        (publisher.head_topic, publisher.head_message(head)),
    ]
