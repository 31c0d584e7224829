"""Shapes that cost a reader more than their bytes: tags, bombs of empty lists, contents that grow without end."""

import hashlib
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import cbor2
import pytest
from agent_shell import AgentShell, refused
from forgeries import deliver_delta, fetches_the_snapshot_instead, next_payload, offer, signed_payload
from publisher_simulator import PublisherSimulator
from releases import EVIL, OFF, ON, OTHER

from flagcast_shared import records
from flagcast_shared.codec import decode, deflate, encode, inflate, inflated, scan
from flagcast_shared.errors import (
    CompressionBomb,
    Malformed,
    NotDeterministic,
    Refused,
    TooDeep,
    TooLarge,
    TrailingBytes,
)
from flagcast_shared.ids import Digest, FlagKey
from flagcast_shared.limits import CONTENT_ITEMS_MAX, DEPTH_MAX, ITEMS_MAX, RECORD_MAX_BYTES, WINDOW_BITS
from flagcast_shared.model import BooleanFlag
from flagcast_shared.records import (
    content_digest,
    decode_record,
    encode_content,
    encode_delta,
    encode_record,
    split_content,
)
from flagcast_shared.reports import decode_report, decode_usage

EVIL_PATTERN = cbor2.CBORTag(35, "(a+)+" * 40)
"""A regular expression; cbor2 compiles it as it decodes."""
PLACES: dict[str, Callable[[bytes], bytes]] = {
    "alone": lambda tag: tag,
    "first in a list": lambda tag: b"\x82" + tag + b"\x00",
    "last in a list": lambda tag: b"\x82\x00" + tag,
    "a key": lambda tag: b"\xa1" + tag + b"\x00",
    "a value": lambda tag: b"\xa1\x01" + tag,
    "a value of an unknown field": lambda tag: b"\xa2\x01\x01\x18\x63" + tag,
    "deep": lambda tag: b"\x81" * DEPTH_MAX + tag,
    "after a long list": lambda tag: b"\x82" + encode([0] * 5_000) + tag,
    "round another tag": lambda tag: b"\xc1" + tag,
}


@contextmanager
def never_decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, bytes that reach the CBOR library are a failure."""

    def decoded(data: bytes) -> object:
        raise AssertionError(f"cbor2 decodes {data[:20].hex()}")

    with monkeypatch.context() as patch:
        patch.setattr(cbor2, "loads", decoded)
        yield


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("reader", [decode_report, decode_usage, lambda data: decode(data, "x")])
def test_tag_that_makes_the_reader_compile_a_pattern(
    place: str, reader: Callable[[bytes], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = PLACES[place](cbor2.dumps(EVIL_PATTERN))
    with never_decoded(monkeypatch), pytest.raises(Refused, match=r"a tag never travels|report: 5") as error:
        reader(data)
    assert isinstance(error.value, NotDeterministic | TooLarge)


def test_tag_in_a_signed_head_reaches_no_decoder(
    agent: AgentShell, publisher: PublisherSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {**cbor2.loads(next_payload(publisher)), 99: EVIL_PATTERN}
    message = signed_payload(publisher, cbor2.dumps(fields, canonical=True))
    with refused(agent, "not_deterministic"), never_decoded(monkeypatch):
        agent.deliver(publisher.head_topic, message)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(b"\xf9\x3c\x00", NotDeterministic, id="a float"),
        pytest.param(b"\x81\xf7", NotDeterministic, id="undefined"),
        pytest.param(b"\x81\xe0", NotDeterministic, id="a simple value"),
        pytest.param(b"\x9f\x00\xff", NotDeterministic, id="a list without a length"),
        pytest.param(b"\xbf\xff", NotDeterministic, id="a map without a length"),
        pytest.param(b"\x5f\x40\xff", NotDeterministic, id="a byte string without a length"),
        pytest.param(b"\x82\xff\x00", Malformed, id="a break that ends nothing"),
        pytest.param(b"\x1c", Malformed, id="a reserved length"),
        pytest.param(b"\x19\x00\xff", NotDeterministic, id="a number longer than needed"),
        pytest.param(b"\x1b\x80" + bytes(7), Malformed, id="a number of 64 bits"),
        pytest.param(b"\x3b\x7f" + b"\xff" * 7, Malformed, id="the negative number of 64 bits"),
        pytest.param(b"\xa2\x02\x00\x01\x00", NotDeterministic, id="keys that do not ascend"),
        pytest.param(b"\xa2\x61a\x00\x61a\x00", NotDeterministic, id="a key that stands twice"),
        pytest.param(b"\xa2\x62aa\x00\x61b\x00", NotDeterministic, id="a longer key before a shorter one"),
        pytest.param(b"\xa2\x01\x00\x61a\x00", NotDeterministic, id="keys of two kinds"),
        pytest.param(b"\xa1\x40\x00", Malformed, id="a key that is no text and no number"),
        pytest.param(b"\xa1\x80\x00", Malformed, id="a list for a key"),
        pytest.param(b"\x9a\xff\xff\xff\xff", TooLarge, id="a list that announces four billion items"),
        pytest.param(b"\xb9\x80\x00", TooLarge, id="a map that announces too many entries"),
        pytest.param(b"\x81" * DEPTH_MAX + b"\x80", TooDeep, id="an empty list too deep"),
        pytest.param(b"\x81" * DEPTH_MAX + b"\xa0", TooDeep, id="an empty map too deep"),
        pytest.param(b"\x62\x00", Malformed, id="a text cut short"),
        pytest.param(b"\x18", Malformed, id="a head cut short"),
        pytest.param(b"\x1a\x00\x01\x00", Malformed, id="a number cut short"),
        pytest.param(b"\x00\x00", TrailingBytes, id="two values"),
    ],
)
def test_shape_that_never_travels(data: bytes, error: type[Refused], monkeypatch: pytest.MonkeyPatch) -> None:
    with never_decoded(monkeypatch), pytest.raises(error) as raised:
        decode(data, "x")
    assert type(raised.value) is error


@pytest.mark.parametrize("data", [b"\xf9\0\0", b"\xfa\0\0\0\1", b"\xfb" + bytes(8)])
def test_float_that_reads_like_a_number_longer_than_needed(data: bytes) -> None:
    with pytest.raises(NotDeterministic, match="a float or an unknown simple value never travels"):
        decode(data, "x")


def test_deepest_shape_that_travels() -> None:
    assert scan(b"\x81" * (DEPTH_MAX - 1) + b"\x80", "x") == DEPTH_MAX


def test_items_are_counted_as_they_are_announced() -> None:
    most = encode([0] * (ITEMS_MAX - 1))
    assert scan(most, "x") == ITEMS_MAX
    for one_more in ([0] * ITEMS_MAX, [[0] * (ITEMS_MAX // 2), [0] * (ITEMS_MAX // 2)]):
        with pytest.raises(TooLarge):
            scan(encode(one_more), "x")
    assert scan(encode({1: 2, 3: [4, {5: 6}]}), "x") == 9


def content_of(*listed: bytes) -> tuple[bytes, Digest]:
    """A compressed snapshot of these records, and its digest."""
    digest = content_digest(Digest(hashlib.sha256(record).digest()) for record in listed)
    return deflate(encode(sorted(listed))), digest


def bomb_of(item: bytes, count: int) -> bytes:
    return zlib.compress(b"\x9a" + count.to_bytes(4, "big") + item * count, 9, wbits=12)


@pytest.mark.parametrize("item", [b"\x80", b"\xa0", b"\x00", b"\x40", b"\x81\x80"], ids=bytes.hex)
def test_snapshot_of_millions_of_empty_things(
    agent: AgentShell, publisher: PublisherSimulator, item: bytes
) -> None:
    # 30 million empty lists are 30 KB on the wire; as objects they are 2 GB.
    body = bomb_of(item, 30_000_000)
    assert len(body) < 80_000
    agent.deliver(publisher.head_topic, offer(publisher, body, Digest(bytes(32))))
    tracemalloc.start()
    try:
        with refused(agent, "too_large"):
            agent.settle()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**20


@pytest.mark.parametrize("item", [b"\x80", b"\xa0", b"\x00"], ids=bytes.hex)
def test_snapshot_of_empty_things_within_the_number_of_records(
    agent: AgentShell, publisher: PublisherSimulator, item: bytes
) -> None:
    agent.deliver(publisher.head_topic, offer(publisher, bomb_of(item, 100_000), Digest(bytes(32))))
    with refused(agent, "malformed"):
        agent.settle()


def nested(count: int, key: str = "x") -> bytes:
    """A record whose unknown field holds so many empty lists."""
    return encode(["flag", key, {1: "boolean", 2: True, 99: [[]] * count}])


def test_record_of_empty_lists_without_end(agent: AgentShell, publisher: PublisherSimulator) -> None:
    record = nested(ITEMS_MAX)
    assert len(record) < RECORD_MAX_BYTES
    body, digest = content_of(record)
    agent.deliver(publisher.head_topic, offer(publisher, body, digest))
    with refused(agent, "too_large"):
        agent.settle()


def test_snapshot_of_many_records_of_empty_lists(agent: AgentShell, publisher: PublisherSimulator) -> None:
    each = ITEMS_MAX - 100
    count = CONTENT_ITEMS_MAX // each + 1
    body, digest = content_of(*(nested(each, f"x{number:03}") for number in range(count)))
    agent.deliver(publisher.head_topic, offer(publisher, body, digest))
    with refused(agent, "too_large"):
        agent.settle()


def test_delta_of_many_records_of_empty_lists(agent: AgentShell, publisher: PublisherSimulator) -> None:
    # 17 KB of delta were 300 MB of variants before they were counted.
    begin_delta(agent, publisher)
    listed = [
        encode(["flag", f"x{number:03}", {1: "variant", 2: True, 4: [[""]] * 30_000}]) for number in range(40)
    ]
    body = deflate(encode([[], listed]))
    assert len(body) < 20_000
    tracemalloc.start()
    try:
        with refused(agent, "too_large"):
            deliver_delta(agent, publisher, body)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2 * sum(map(len, listed))
    assert fetches_the_snapshot_instead(agent, publisher)


@pytest.mark.parametrize("limit", ["RECORDS_MAX", "CONTENT_MAX_BYTES", "CONTENT_ITEMS_MAX"])
def test_content_that_grows_by_deltas_without_end(
    agent: AgentShell, publisher: PublisherSimulator, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = agent.sync.trusted.holdings[publisher.namespace].extent
    room = {"RECORDS_MAX": held.records, "CONTENT_MAX_BYTES": held.bytes, "CONTENT_ITEMS_MAX": held.items}
    more = [BooleanFlag(FlagKey(f"more-{number}"), enabled=True) for number in range(2)]
    publisher.release(*(record.entry for record in publisher.content.records.values()), *more)  # type: ignore[arg-type]  # flags and segments
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    with monkeypatch.context() as patch:
        patch.setattr(records, limit, room[limit] + 1)
        with refused(agent, "too_large"):
            deliver_delta(agent, publisher, deflate(encode_delta([], [encode_record(each) for each in more])))
    assert fetches_the_snapshot_instead(agent, publisher)


MEASURES = {"RECORDS_MAX": "records", "CONTENT_MAX_BYTES": "bytes", "CONTENT_ITEMS_MAX": "items"}


@pytest.mark.parametrize("limit", MEASURES)
@pytest.mark.parametrize("over", [0, 1])
def test_delta_that_ends_at_a_limit_of_a_namespace_and_one_above(
    agent: AgentShell, publisher: PublisherSimulator, limit: str, over: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = agent.sync.trusted.holdings[publisher.namespace].extent
    result = getattr(held + encode_record(OTHER).extent, MEASURES[limit])
    entries = [record.entry for record in publisher.content.records.values()]
    publisher.release(*entries, OTHER)  # type: ignore[arg-type]  # flags and segments
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    body = deflate(encode_delta([], [encode_record(OTHER)]))
    with monkeypatch.context() as patch:
        patch.setattr(records, limit, result - over)
        if over:
            with refused(agent, "too_large"):
                deliver_delta(agent, publisher, body)
        else:
            deliver_delta(agent, publisher, body)
            assert agent.sync.reporting.rejections == {}
            assert getattr(agent.sync.trusted.holdings[publisher.namespace].extent, MEASURES[limit]) == result
            assert agent.evaluator.knowledge(publisher.namespace).version == 2
    if over:
        assert fetches_the_snapshot_instead(agent, publisher)


@pytest.mark.parametrize("over", [0, 1])
def test_delta_of_a_record_of_the_most_bytes_and_one_above(
    agent: AgentShell, publisher: PublisherSimulator, over: int
) -> None:
    def record(last: int) -> bytes:
        sizes = [60_000] * 4 + [last]
        listed = [[f"v{number}", "x" * size] for number, size in enumerate(sizes)]
        return encode(["flag", "z", {1: "variant", 2: True, 4: listed}])

    last = 20_000 + RECORD_MAX_BYTES - len(record(20_000))
    data = record(last + over)
    assert len(data) == RECORD_MAX_BYTES + over
    entries = [each.entry for each in publisher.content.records.values()]
    publisher.release(*entries, decode_record(record(last)).entry)  # type: ignore[arg-type]  # flags and segments
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    body = deflate(encode([[], [data]]))
    if over:
        with refused(agent, "too_large"):
            deliver_delta(agent, publisher, body)
        assert fetches_the_snapshot_instead(agent, publisher)
    else:
        deliver_delta(agent, publisher, body)
        assert agent.sync.reporting.rejections == {}
        assert agent.evaluator.knowledge(publisher.namespace).version == 2


def test_delta_counts_what_it_replaces_until_a_snapshot_counts_anew(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    before = agent.sync.trusted.holdings[publisher.namespace].extent
    for entry in (ON, OFF, ON):
        publisher.release(entry, inline=True)
        agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    after = agent.sync.trusted.holdings[publisher.namespace].extent
    assert after.records == before.records + 3
    publisher.release(OFF, delta=False)
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    agent.settle()
    assert agent.sync.trusted.holdings[publisher.namespace].extent == encode_record(OFF).extent


def test_compressed_body_of_a_larger_window(agent: AgentShell, publisher: PublisherSimulator) -> None:
    # A reader in a small device has no room for it, and all readers must come to the same verdict.
    content = encode([encode_record(ON).data])
    body = zlib.compress(content, 9, wbits=WINDOW_BITS + 1)
    agent.deliver(publisher.head_topic, offer(publisher, body, content_digest([encode_record(ON).digest])))
    with refused(agent, "malformed"):
        agent.settle()


def test_part_after_the_end_of_the_compressed_body(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.part_bytes = 20
    content = publisher.release(ON, OTHER, EVIL, delta=False)
    whole = deflate(encode_content(content.records.values()))
    bodies = [whole, *(bytes([number]) for number in range(1, len(content.parts)))]
    size = sum(map(len, bodies))
    publisher.publish_head(publisher.make_head(stable=replace(content.offering(), size=size)))
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    *first, last = (
        publisher.part_message(replace(part, body=body))
        for part, body in zip(publisher.make_parts(content), bodies, strict=True)
    )
    for number, message in enumerate(first):
        agent.deliver(publisher.part_topic(content.version, number), message)
    with refused(agent, "trailing_bytes"):
        agent.deliver(publisher.part_topic(content.version, len(first)), last)


def test_record_that_announces_more_than_it_may_have(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    body = deflate(b"\x81\x5a" + (RECORD_MAX_BYTES + 1).to_bytes(4, "big"))
    agent.deliver(publisher.head_topic, offer(publisher, body, Digest(bytes(32))))
    with refused(agent, "too_large"):
        agent.settle()


@pytest.mark.parametrize(
    "body",
    [b"", b"\x81", b"\x82\x41a", b"\x81\x58", b"\x81\x42a", b"\x81\x58\x30aa"],
    ids=lambda body: body.hex() or "empty",
)
def test_content_cut_short(agent: AgentShell, publisher: PublisherSimulator, body: bytes) -> None:
    agent.deliver(publisher.head_topic, offer(publisher, deflate(body), Digest(bytes(32))))
    with refused(agent, "malformed"):
        agent.settle()


def begin_delta(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(ON)
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])


def test_delta_that_removes_a_key_without_end(agent: AgentShell, publisher: PublisherSimulator) -> None:
    begin_delta(agent, publisher)
    with refused(agent, "too_large"):
        deliver_delta(agent, publisher, deflate(encode([[["flag", "x" * 257]], []])))
    assert fetches_the_snapshot_instead(agent, publisher)


def test_delta_that_removes_a_key_that_is_no_text(agent: AgentShell, publisher: PublisherSimulator) -> None:
    begin_delta(agent, publisher)
    with refused(agent, "malformed"):
        deliver_delta(agent, publisher, deflate(b"\x82\x81\x82\x64flag\x61\xff\x80"))
    assert fetches_the_snapshot_instead(agent, publisher)


@pytest.mark.parametrize("size", [0, 1, 2, 65_535, 65_536, 65_537, 200_000])
def test_content_is_the_same_however_it_is_cut(size: int) -> None:
    records = [bytes([number]) * (size + number) for number in range(1, 4)]
    whole = encode(records)
    for piece in (1, 7, 65_536, len(whole)):
        if len(whole) // piece > 1_000:
            continue
        assert split_content(whole[at : at + piece] for at in range(0, len(whole), piece)) == records
    packed = deflate(whole)
    halves = (packed[: len(packed) // 2], b"", packed[len(packed) // 2 :])
    assert b"".join(inflated(halves, len(whole), "x")) == whole
    with pytest.raises(CompressionBomb):
        inflate(packed, len(whole) - 1, "x")
