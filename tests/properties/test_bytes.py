"""Any bytes at all give an object or one family of errors; what is written reads back, in one spelling only."""

import contextlib
import os
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from publisher_simulator import NOW, PublisherSimulator, SigningKey
from releases import EVIL, OFF, ON, OTHER
from wire_strategies import (
    ENVIRONMENT,
    NAMESPACE,
    damaged,
    deltas,
    entries,
    heads,
    identities,
    keys,
    numbers,
    parts,
    plain,
    reports,
    texts,
)

from flagcast_shared import codec
from flagcast_shared.codec import Value, decode, deflate, encode, inflate
from flagcast_shared.context import Device
from flagcast_shared.envelope import open_envelope
from flagcast_shared.errors import (
    CompressionBomb,
    InvalidIdentifier,
    NotDeterministic,
    Refused,
)
from flagcast_shared.evaluation import compile_flags
from flagcast_shared.ids import (
    DeviceId,
    Environment,
    FlagKey,
    Namespace,
    Version,
    parse_device,
    parse_environment,
    parse_namespace,
    parse_prefix,
)
from flagcast_shared.messages import (
    Delta,
    Head,
    Place,
    SnapshotPart,
    decode_delta_message,
    decode_head,
    decode_part,
    encode_delta_message,
    encode_head,
    encode_part,
)
from flagcast_shared.model import AnySegment, Flag
from flagcast_shared.records import (
    decode_record,
    encode_content,
    encode_delta,
    encode_record,
    split_content,
    split_delta,
)
from flagcast_shared.reports import (
    Count,
    Refresh,
    Report,
    Usage,
    decode_refresh,
    decode_report,
    decode_usage,
    encode_refresh,
    encode_report,
    encode_usage,
)
from flagcast_shared.root import decode_root, encode_root
from flagcast_shared.topics import (
    Address,
    DeltaAddress,
    DeviceAddress,
    HeadAddress,
    Kind,
    RootAddress,
    SnapshotAddress,
    Topics,
)
from flagcast_shared.trust import Stored, Trusted, admit, anchor, anchor_environment, begin, restore

EFFORT = int(os.environ.get("FLAGCAST_TEST_EFFORT", "1"))
"""Multiplies the examples of every property here; a nightly run sets it higher."""
QUICK = settings(max_examples=60 * EFFORT, deadline=None)
THOROUGH = settings(max_examples=250 * EFFORT, deadline=None)
HEAD = Place(ENVIRONMENT, NAMESPACE, Kind.HEAD)
SNAPSHOT = Place(ENVIRONMENT, NAMESPACE, Kind.SNAPSHOT)
DELTA = Place(ENVIRONMENT, NAMESPACE, Kind.DELTA)
TOPICS = Topics("flagcast", ENVIRONMENT)


@cache
def release() -> PublisherSimulator:
    """A publisher with two releases of which the second is in parts, and one root beyond the anchor."""
    publisher = PublisherSimulator()
    publisher.release(OFF)
    publisher.part_bytes = 40
    publisher.release(OFF, ON.__class__(OTHER.key, enabled=False), EVIL)
    publisher.rotate(root_keys=[SigningKey("root-b")])
    return publisher


# What decodes bytes: each with something that it accepts, for bytes that are nearly right.

DECODERS: dict[str, tuple[Callable[[bytes], object], Callable[[], list[bytes]]]] = {
    "codec.decode": (lambda data: decode(data, "x"), lambda: [encode({1: [1, "a", b"b", None, {}]})]),
    "inflate": (lambda data: inflate(data, 1000, "x"), lambda: [deflate(b"a" * 500)]),
    "decode_record": (decode_record, lambda: [encode_record(one).data for one in (OFF, ON)]),
    "split_content": (
        lambda data: split_content([data]),
        lambda: [encode_content([encode_record(OFF), encode_record(OTHER)])],
    ),
    "split_delta": (
        lambda data: split_delta([data]),
        lambda: [encode_delta([encode_record(ON).id], [encode_record(EVIL)])],
    ),
    "open_envelope": (
        lambda data: open_envelope(data, HEAD),
        lambda: [release().retained[release().head_topic]],
    ),
    "decode_head": (lambda data: decode_head(data, HEAD), lambda: [encode_head(release().head)]),
    "decode_part": (
        lambda data: decode_part(data, SNAPSHOT),
        lambda: [encode_part(release().make_parts(release().content)[0])],
    ),
    "decode_delta_message": (
        lambda data: decode_delta_message(data, DELTA),
        lambda: [encode_delta_message(release().make_delta(release().content, release().contents[0], b"x"))],
    ),
    "decode_root": (
        lambda data: decode_root(data, ENVIRONMENT),
        lambda: [encode_root(root) for root in release().roots],
    ),
    "decode_report": (decode_report, lambda: [encode_report(Report(1, 2, is_online=True))]),
    "decode_refresh": (decode_refresh, lambda: [encode_refresh(Refresh((NAMESPACE,)))]),
    "decode_usage": (
        decode_usage,
        lambda: [encode_usage(Usage(bytes(16), 1, 2, (Count(NAMESPACE, FlagKey("f"), "true", "match", 3),)))],
    ),
    "anchor": (lambda data: anchor(data, ENVIRONMENT), lambda: [release().anchor]),
    "anchor_environment": (anchor_environment, lambda: [release().anchor]),
    "restore": (
        lambda data: restore(fresh(), stored(data)),
        lambda: [release().retained[release().head_topic]],
    ),
}


def stored(head: bytes) -> Stored:
    content = release().content
    return Stored(
        NAMESPACE,
        head,
        content.epoch,
        content.version,
        content.digest,
        [record.data for record in content.records.values()],
    )


def fresh() -> Trusted:
    return begin(ENVIRONMENT, Device(DeviceId("device-1")), release().anchor)


@pytest.mark.parametrize("name", DECODERS)
def test_valid_bytes_are_taken(name: str) -> None:
    decoder, valid = DECODERS[name]
    assert [decoder(data) for data in valid()]


@pytest.mark.parametrize("name", DECODERS)
def test_any_bytes_give_an_object_or_a_refusal(name: str) -> None:
    decoder, valid = DECODERS[name]
    nearly = damaged(st.sampled_from(valid()))

    @QUICK
    @given(data=st.binary(max_size=200) | nearly | plain.map(encode))
    @example(b"")
    @example(b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff")
    @example(b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff")
    @example(b"\xbb\x00\x00\x00\x01\x00\x00\x00\x00")
    @example(b"\xd8\x1c\x81\xd8\x1d\x00")
    @example(b"\xd8\x1d\x00")
    @example(b"\xff")
    @example(b"\xf8\x00")
    @example(b"\x81" * 5000)
    @example(b"\xc0\x61\x30")
    @example(b"\xd8\x23\x61\x28")
    @example(b"\xc4\x82\x1b\x7f\xff\xff\xff\xff\xff\xff\xff\x01")
    @example(b"\xc5\x82\x1a\x00\x0f\xff\xff\x01")
    @example(b"\xd8\x1e\x82\x01\x00")
    @example(b"\x62\xff\xff")
    def holds(data: bytes) -> None:
        with contextlib.suppress(Refused):
            decoder(data)

    holds()


CBOR_HEADS = [
    bytes([major << 5 | low]) + last.to_bytes(width, "big")
    for major in range(8)
    for low, width in (
        (0, 0),
        (1, 0),
        (2, 0),
        (5, 0),
        (23, 0),
        (24, 1),
        (25, 2),
        (26, 4),
        (27, 8),
        (28, 0),
        (31, 0),
    )
    for last in ((0, 1, 23, 24, 25, 28, 29, 255) if width else (0,))
]
"""The first bytes of values of every major type, with lengths of every width, also longer than needed."""
cbor_like = st.lists(st.sampled_from(CBOR_HEADS) | st.binary(max_size=4), max_size=12).map(b"".join)


@THOROUGH
@given(data=cbor_like)
def test_any_cbor_gives_a_value_of_one_spelling_or_a_refusal(data: bytes) -> None:
    try:
        value = decode(data, "x")
    except Refused:
        return
    assert encode(value) == data


# The door


def addresses() -> list[Address]:
    return [
        HeadAddress(NAMESPACE),
        HeadAddress(Namespace("kiosk")),
        *(SnapshotAddress(NAMESPACE, Version(2), part) for part in (0, 1, 7)),
        DeltaAddress(NAMESPACE, Version(2), Version(1)),
        DeltaAddress(NAMESPACE, Version(2), Version(0)),
        *(RootAddress(number) for number in (0, 1, 2, 3, 2**63 - 1)),
        DeviceAddress(DeviceId("device-1"), "report"),
    ]


@cache
def holding_one_and_awaiting_two() -> Trusted:
    publisher = release()
    first = PublisherSimulator()
    first.release(OFF)
    trusted = fresh()
    for one, topic in (
        (first, first.head_topic),
        (first, first.part_topic(1)),
        (publisher, publisher.head_topic),
    ):
        address = TOPICS.address(topic)
        assert address is not None
        trusted, _ = admit(trusted, address, one.retained[topic], now=NOW)
    assert trusted.holdings[NAMESPACE].version == 1
    assert trusted.pending[NAMESPACE].offering.version == 2
    return trusted


@THOROUGH
@given(
    address=st.sampled_from(addresses()),
    data=st.binary(max_size=100) | damaged(st.sampled_from(sorted(release().retained.values()))),
    now=numbers,
)
def test_bytes_that_nobody_signed_change_nothing(address: Address, data: bytes, now: int) -> None:
    if data in release().retained.values():
        return  # the damage undid itself
    trusted = holding_one_and_awaiting_two()
    before = repr(trusted)
    try:
        after, _ = admit(trusted, address, data, now=now)
    except Refused:
        after = trusted
    assert after is trusted
    assert repr(trusted) == before


@THOROUGH
@given(
    address=st.sampled_from(addresses()),
    payload=damaged(
        st.sampled_from(
            [
                encode_head(release().head),
                encode_part(release().make_parts(release().content)[0]),
                *(encode_root(root) for root in release().roots),
            ]
        )
    )
    | heads().map(encode_head)
    | parts().map(encode_part)
    | deltas.map(encode_delta_message)
    | plain.map(encode),
    now=numbers,
)
def test_whatever_a_stolen_key_signs_gives_an_outcome_or_a_refusal(
    address: Address, payload: bytes, now: int
) -> None:
    kinds = {SnapshotAddress: Kind.SNAPSHOT, DeltaAddress: Kind.DELTA, RootAddress: Kind.ROOT}
    kind = kinds.get(type(address), Kind.HEAD)
    place = Place(ENVIRONMENT, Namespace("") if kind is Kind.ROOT else NAMESPACE, kind)
    publisher = release()
    signers = [SigningKey("root-a"), SigningKey("root-b")] if kind is Kind.ROOT else publisher.publisher_keys
    message = publisher.sign(payload, place, *signers, several=kind is Kind.ROOT)
    trusted = holding_one_and_awaiting_two()
    before = repr(trusted)
    try:
        after, _ = admit(trusted, address, message, now=now)
    except Refused:
        after = trusted
    assert repr(trusted) == before, "what was believed is never changed in place"
    assert after.root.number >= trusted.root.number
    held = after.holdings[NAMESPACE]
    assert (held.epoch, held.version) >= (1, 1)


# Round trips


@QUICK
@given(value=plain)
def test_values_read_back(value: Value) -> None:
    assert decode(encode(value), "x") == value


@QUICK
@given(data=st.binary(max_size=2000))
def test_compressed_bytes_read_back(data: bytes) -> None:
    assert inflate(deflate(data), len(data), "x") == data
    if data:
        with pytest.raises(CompressionBomb):
            inflate(deflate(data), len(data) - 1, "x")


@QUICK
@given(entry=entries)
def test_records_read_back_and_can_be_activated(entry: Flag | AnySegment) -> None:
    record = encode_record(entry)
    again = decode_record(record.data)
    assert again == record
    compile_flags([again.entry], {})


@QUICK
@given(data=damaged(entries.map(lambda entry: encode_record(entry).data)))
def test_whatever_decodes_as_a_record_can_be_activated(data: bytes) -> None:
    try:
        record = decode_record(data)
    except Refused:
        return
    compiled = compile_flags([record.entry], {})
    assert compiled.update([record.entry], [record.id]).flags == compiled.flags


@QUICK
@given(head=heads())
def test_heads_read_back(head: Head) -> None:
    assert decode_head(encode_head(head), HEAD) == head


@QUICK
@given(part=parts())
def test_parts_read_back(part: SnapshotPart) -> None:
    assert decode_part(encode_part(part), SNAPSHOT) == part


@QUICK
@given(delta=deltas)
def test_deltas_read_back(delta: Delta) -> None:
    assert decode_delta_message(encode_delta_message(delta), DELTA) == delta


@QUICK
@given(report=reports)
def test_reports_read_back(report: Report) -> None:
    assert decode_report(encode_report(report)) == report


@QUICK
@given(
    changed=st.lists(entries, max_size=5, unique_by=lambda entry: encode_record(entry).id),
    removed=st.lists(identities, max_size=4, unique=True),
)
def test_contents_and_deltas_read_back(changed: list[Flag | AnySegment], removed: list[object]) -> None:
    records = [encode_record(entry) for entry in changed]
    assert split_content([encode_content(records)]) == sorted(record.data for record in records)
    gone, listed = split_delta([encode_delta(removed, records)])  # type: ignore[arg-type]  # a strategy of RecordId
    assert list(gone) == sorted(removed)  # type: ignore[type-var]  # as above
    assert listed == sorted(record.data for record in records)


@pytest.mark.parametrize("root", release().roots, ids=lambda root: root.number)
def test_roots_read_back(root: object) -> None:
    (same,) = [one for one in release().roots if one is root]
    assert decode_root(encode_root(same), ENVIRONMENT) == same


# Deterministic bytes (RFC 8949, 4.2.1)


def spelled(value: Value) -> bytes:
    """The deterministic encoding, written down a second time and by hand."""
    match value:
        case None:
            return b"\xf6"
        case bool():
            return b"\xf5" if value else b"\xf4"
        case int():
            return head_of(0, value) if value >= 0 else head_of(1, -1 - value)
        case bytes():
            return head_of(2, len(value)) + value
        case str():
            written = value.encode()
            return head_of(3, len(written)) + written
        case list():
            return head_of(4, len(value)) + b"".join(spelled(element) for element in value)
        case dict():
            pairs = sorted((spelled(key), spelled(element)) for key, element in value.items())
            return head_of(5, len(pairs)) + b"".join(key + element for key, element in pairs)
    raise AssertionError(value)


def head_of(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    for low, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << 8 * width:
            return bytes([major << 5 | low]) + argument.to_bytes(width, "big")
    raise AssertionError(argument)


@THOROUGH
@given(value=plain)
def test_every_value_has_the_spelling_of_the_rfc(value: Value) -> None:
    assert encode(value) == spelled(value)


@QUICK
@given(mixed=st.dictionaries(texts | numbers, numbers, min_size=2))
def test_maps_of_mixed_keys_never_travel(mixed: dict[object, int]) -> None:
    if len({type(key) for key in mixed}) == 2:
        with pytest.raises(NotDeterministic):
            decode(encode(mixed), "x")  # type: ignore[arg-type]  # a lie on purpose


def test_the_longest_walk_is_bounded_by_the_message() -> None:
    cyclic = b"\xd8\x1c\x82\x01\xd8\x1d\x00"
    with pytest.raises(Refused):
        codec.decode(cyclic, "x")


# Topics


@QUICK
@given(
    topic=st.text(max_size=80)
    | st.lists(texts, max_size=6).map(lambda parts: TOPICS.base + "/" + "/".join(parts))
)
def test_any_topic_is_an_address_or_none(topic: str) -> None:
    address = TOPICS.address(topic)
    if address is not None:
        assert TOPICS.of(address) == topic, "an address has one topic"


@pytest.mark.parametrize("address", addresses(), ids=repr)
def test_addresses_read_back(address: Address) -> None:
    topic = TOPICS.of(address)
    assert TOPICS.address(topic) == address
    assert topic.count("/") <= 7
    assert Topics("flagcast", Environment("staging")).address(topic) is None


@QUICK
@given(text=keys | st.text(max_size=120))
def test_names_are_parsed_or_refused(text: str) -> None:
    for parse in (parse_environment, parse_namespace, parse_device, parse_prefix):
        try:
            name = parse(text)
        except InvalidIdentifier:
            continue
        assert name == text
        assert not set(name) & set("/+#$\x00\n ")
