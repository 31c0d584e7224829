"""Bytes that are no message, are two messages, or are signed otherwise than the profile allows."""

import time
import tracemalloc
import zlib
from dataclasses import replace
from typing import Any

import cbor2
import pytest
from agent_shell import AgentShell, refused
from forgeries import next_payload, signed_payload
from publisher_simulator import NOW, PublisherSimulator, SigningKey, envelope_of
from releases import ON

from flagcast_shared.codec import deflate, encode
from flagcast_shared.envelope import content_type, to_sign
from flagcast_shared.ids import Digest, Sequence, Version
from flagcast_shared.limits import (
    CONTENT_MAX_BYTES,
    DELTAS_MAX,
    DEPTH_MAX,
    INLINE_DELTA_MAX_BYTES,
    LABEL_MAX_BYTES,
    LABELS_MAX,
    MESSAGE_MAX_BYTES,
    PARTS_MAX,
    PROVENANCE_MAX_ENTRIES,
    PROVENANCE_TEXT_MAX_BYTES,
    RECORD_MAX_BYTES,
    WINDOW_BITS,
)
from flagcast_shared.messages import SnapshotPart
from flagcast_shared.topics import Kind

NEVER_SIGNED = bytes(64)


def test_empty_head(agent: AgentShell, publisher: PublisherSimulator) -> None:
    with refused(agent, "empty_payload"):
        agent.deliver(publisher.head_topic, b"")


def test_empty_snapshot_part(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(delta=False)
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    with refused(agent, "empty_payload"):
        agent.deliver(publisher.part_topic(2), b"")


@pytest.mark.parametrize("payload", [b"hello", b"{}", bytes(100), b"\xff" * 100, b"\xd2", b"\xd2\x84"])
def test_garbage_head(agent: AgentShell, publisher: PublisherSimulator, payload: bytes) -> None:
    with refused(agent, "malformed"):
        agent.deliver(publisher.head_topic, payload)


def test_endless_head(agent: AgentShell, publisher: PublisherSimulator) -> None:
    with refused(agent, "too_large"):
        agent.deliver(publisher.head_topic, bytes(MESSAGE_MAX_BYTES + 1))


def test_head_that_is_cut_short(agent: AgentShell, publisher: PublisherSimulator) -> None:
    message = signed_payload(publisher, next_payload(publisher))
    with refused(agent, "malformed"):
        agent.deliver(publisher.head_topic, message[:-1])


def test_head_that_announces_more_than_there_is(agent: AgentShell, publisher: PublisherSimulator) -> None:
    with refused(agent, "malformed"):
        agent.deliver(publisher.head_topic, b"\xd2\x84\x5a\xff\xff\xff\xff")


def test_bytes_after_the_envelope(agent: AgentShell, publisher: PublisherSimulator) -> None:
    with refused(agent, "trailing_bytes"):
        agent.deliver(publisher.head_topic, signed_payload(publisher, next_payload(publisher)) + b"\x00")


def test_bytes_after_the_payload(agent: AgentShell, publisher: PublisherSimulator) -> None:
    with refused(agent, "trailing_bytes"):
        agent.deliver(publisher.head_topic, signed_payload(publisher, next_payload(publisher) + b"\x00"))


def test_payload_that_is_empty(agent: AgentShell, publisher: PublisherSimulator) -> None:
    with refused(agent, "empty_payload"):
        agent.deliver(publisher.head_topic, signed_payload(publisher, b""))


@pytest.mark.parametrize("levels", [DEPTH_MAX, 50_000])
def test_payload_that_is_nested_deep(agent: AgentShell, publisher: PublisherSimulator, levels: int) -> None:
    payload = b"\xa1\x18\x63" + b"\x81" * levels + b"\x00"
    with refused(agent, "too_deep"):
        agent.deliver(publisher.head_topic, signed_payload(publisher, payload))


def test_duplicate_map_keys(agent: AgentShell, publisher: PublisherSimulator) -> None:
    payload = next_payload(publisher)
    count = payload[0]
    doubled = bytes([count + 1]) + b"\x01\x01" + payload[1:]
    with refused(agent, "not_deterministic"):
        agent.deliver(publisher.head_topic, signed_payload(publisher, doubled))


@pytest.mark.parametrize(
    "payload",
    [b"\xff", b"\xa1\x01", b"\xa1\x01\x62\xc3\x28", b"\xa1\x01\x1c", b"\xa1\x01\x3f"],
    ids=bytes.hex,
)
def test_payload_that_is_no_cbor(agent: AgentShell, publisher: PublisherSimulator, payload: bytes) -> None:
    with refused(agent, "malformed"):
        agent.deliver(publisher.head_topic, signed_payload(publisher, payload))


@pytest.mark.parametrize("key", [-1, 2**63, b"x", True, None, [], {}], ids=repr)
def test_map_keys_that_never_travel(agent: AgentShell, publisher: PublisherSimulator, key: object) -> None:
    # The map stands where no release has looked yet, as a field of a later one.
    payload = cbor2.dumps({**cbor2.loads(next_payload(publisher)), 99: {1: 1}}, canonical=True)
    assert payload.endswith(b"\xa1\x01\x01")
    with refused(agent, "malformed"):
        agent.deliver(
            publisher.head_topic, signed_payload(publisher, payload[:-2] + cbor2.dumps(key) + b"\x01")
        )


def test_map_with_both_kinds_of_keys(agent: AgentShell, publisher: PublisherSimulator) -> None:
    fields = {**cbor2.loads(next_payload(publisher)), 99: {1: 1, "a": 1}}
    with refused(agent, "not_deterministic"):
        agent.deliver(publisher.head_topic, signed_payload(publisher, cbor2.dumps(fields, canonical=True)))


def test_map_keys_out_of_order(agent: AgentShell, publisher: PublisherSimulator) -> None:
    fields = cbor2.loads(next_payload(publisher))
    backwards = cbor2.dumps(dict(reversed(list(fields.items()))))
    with refused(agent, "not_deterministic"):
        agent.deliver(publisher.head_topic, signed_payload(publisher, backwards))


def test_integer_longer_than_it_needs_to_be(agent: AgentShell, publisher: PublisherSimulator) -> None:
    payload = next_payload(publisher)
    longer = payload.replace(b"\x01\x01\x02", b"\x01\x18\x01\x02", 1)
    assert longer != payload
    with refused(agent, "not_deterministic"):
        agent.deliver(publisher.head_topic, signed_payload(publisher, longer))


@pytest.mark.parametrize(
    "value",
    [1.5, float("nan"), cbor2.undefined, cbor2.CBORSimpleValue(99), cbor2.CBORTag(4711, 1), 2**64, -(2**64)],
    ids=repr,
)
def test_values_that_never_travel(agent: AgentShell, publisher: PublisherSimulator, value: object) -> None:
    fields = {**cbor2.loads(next_payload(publisher)), 99: value}
    message = signed_payload(publisher, cbor2.dumps(fields, canonical=True))
    with refused(agent, "malformed", "not_deterministic"):
        agent.deliver(publisher.head_topic, message)


def test_indefinite_length(agent: AgentShell, publisher: PublisherSimulator) -> None:
    payload = next_payload(publisher)
    with refused(agent, "not_deterministic"):
        agent.deliver(publisher.head_topic, signed_payload(publisher, b"\xbf" + payload[1:] + b"\xff"))


def test_shared_values_that_unfold_without_end(agent: AgentShell, publisher: PublisherSimulator) -> None:
    # Eight lists of a hundred; each after the first holds the one before it a hundred times (tags 28 and 29).
    levels = [b"\xd8\x1c\x98\x64" + b"\x01" * 100]
    levels += [b"\xd8\x1c\x98\x64" + bytes([0xD8, 0x1D, number]) * 100 for number in range(7)]
    payload = bytes([0x88]) + b"".join(levels)
    began = time.monotonic()
    with refused(agent, "not_deterministic"):
        agent.deliver(publisher.head_topic, signed_payload(publisher, payload))
    assert time.monotonic() - began < 30, "a hundred to the eighth values were counted out"


def test_shared_text_that_unfolds_without_end(agent: AgentShell, publisher: PublisherSimulator) -> None:
    text = encode("x" * 50_000)
    payload = b"\xd9\x01\x00\x82" + text + b"\x99\x4e\x20" + b"\xd8\x19\x00" * 20_000
    with refused(agent, "not_deterministic"):
        agent.deliver(publisher.head_topic, signed_payload(publisher, payload))


def test_later_format(agent: AgentShell, publisher: PublisherSimulator) -> None:
    fields = {**cbor2.loads(next_payload(publisher)), 1: 2}
    with refused(agent, "unknown_format"):
        agent.deliver(publisher.head_topic, signed_payload(publisher, cbor2.dumps(fields, canonical=True)))


@pytest.mark.parametrize(
    ("field", "value"),
    [(5, -1), (6, "1"), (7, None), (8, 0), (9, []), (9, {1: 2}), (10, 1), (11, {"a": 1}), (12, {})],
)
def test_field_of_a_wrong_shape(
    agent: AgentShell, publisher: PublisherSimulator, field: int, value: object
) -> None:
    fields = {**cbor2.loads(next_payload(publisher)), field: value}
    with refused(agent, "malformed"):
        agent.deliver(publisher.head_topic, signed_payload(publisher, cbor2.dumps(fields, canonical=True)))


def bounded(publisher: PublisherSimulator) -> dict[int, Any]:
    """The fields of a next head with a candidate and an inline delta, every one of them within its bounds."""
    fields: dict[int, Any] = cbor2.loads(next_payload(publisher))
    fields[10] = {**fields[9], 6: 10_000, 7: b"salt", 8: {"ring": "canary"}}
    fields[12] = {1: 1, 2: 1, 3: b"x"}
    return fields


def test_head_within_all_bounds_is_admitted(agent: AgentShell, publisher: PublisherSimulator) -> None:
    payload = cbor2.dumps(bounded(publisher), canonical=True)
    agent.deliver(publisher.head_topic, signed_payload(publisher, payload))
    assert agent.sync.reporting.rejections == {}
    assert agent.sync.trusted.holdings[publisher.namespace].head.sequence == Sequence(2)


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        pytest.param((6,), True, id="truth for a sequence"),
        pytest.param((8,), NOW - 1, id="expires before it is issued"),
        pytest.param((9, 2), bytes(31), id="digest of 31 bytes"),
        pytest.param((9, 2), bytes(33), id="digest of 33 bytes"),
        pytest.param((9, 2), "x" * 32, id="digest that is a text"),
        pytest.param((9, 3), 0, id="content of no bytes"),
        pytest.param((9, 3), CONTENT_MAX_BYTES + 1, id="content without end"),
        pytest.param((9, 4), 0, id="no parts"),
        pytest.param((9, 4), PARTS_MAX + 1, id="parts without end"),
        pytest.param((9, 5), {}, id="deltas that are no list"),
        pytest.param((9, 5), [1] * (DELTAS_MAX + 1), id="deltas without end"),
        pytest.param((9, 5), ["1"], id="delta from a text"),
        pytest.param((10, 6), 10_001, id="share of more than all"),
        pytest.param((10, 7), b"", id="salt of no bytes"),
        pytest.param((10, 7), bytes(33), id="salt of 33 bytes"),
        pytest.param((10, 8), [], id="labels that are no map"),
        pytest.param((10, 8), {1: "x"}, id="label whose name is no text"),
        pytest.param(
            (10, 8), {f"l{number:02}": "" for number in range(LABELS_MAX + 1)}, id="labels without end"
        ),
        pytest.param((10, 8), {"ring": "x" * (LABEL_MAX_BYTES + 1)}, id="long label"),
        pytest.param((10, 8), {"ring": "\u00e9" * LABEL_MAX_BYTES}, id="label that is long in UTF-8"),
        pytest.param(
            (11,),
            {f"p{number}": "" for number in range(PROVENANCE_MAX_ENTRIES + 1)},
            id="provenance without end",
        ),
        pytest.param((11,), {"commit": "x" * (PROVENANCE_TEXT_MAX_BYTES + 1)}, id="long provenance"),
        pytest.param((11,), {"commit": 1}, id="provenance that is no text"),
        pytest.param((12, 3), b"", id="inline delta of no bytes"),
        pytest.param((12, 3), bytes(INLINE_DELTA_MAX_BYTES + 1), id="inline delta without end"),
        pytest.param((12, 3), "x", id="inline delta that is a text"),
    ],
)
def test_field_out_of_its_bounds(
    agent: AgentShell, publisher: PublisherSimulator, fields: tuple[int, ...], value: object
) -> None:
    changed = bounded(publisher)
    place = changed
    for field in fields[:-1]:
        place = place[field]
    place[fields[-1]] = value
    payload = cbor2.dumps(changed, canonical=True)
    with refused(agent, "malformed", "too_large"):
        agent.deliver(publisher.head_topic, signed_payload(publisher, payload))


@pytest.mark.parametrize("kind", [Kind.HEAD, Kind.SNAPSHOT, Kind.DELTA])
def test_bytes_that_nobody_signed_are_not_read(
    agent: AgentShell, publisher: PublisherSimulator, kind: Kind
) -> None:
    publisher.release(ON)
    topic = {
        Kind.HEAD: publisher.head_topic, Kind.SNAPSHOT: publisher.part_topic(2), Kind.DELTA: publisher.delta_topic(2, 1)
    }[kind]  # fmt: skip
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    deep = b"\x81" * 50_000 + b"\x00"
    with refused(agent, "unknown_key"):
        agent.deliver(topic, publisher.sign(deep, publisher.place(kind), SigningKey("mallory")))


# Headers (RFC 9052, 3). Each message is signed by the publisher's own key over what the header says, as far as the
# profile lets it, so that nothing but the header is wrong.


def header_of(publisher: PublisherSimulator) -> dict[object, object]:
    return {1: -8, 3: content_type(Kind.HEAD), 4: publisher.publisher_keys[0].id}


def headed(publisher: PublisherSimulator, header: object, unprotected: object) -> bytes:
    payload = next_payload(publisher)
    key = publisher.publisher_keys[0]
    protected = header if isinstance(header, bytes) else encode(header)  # type: ignore[arg-type]  # a lie on purpose
    aad = encode(["flagcast", 1, publisher.environment, publisher.namespace, "head"])
    signature = key.sign(encode(["Signature1", protected, aad, payload]))
    return envelope_of(header, unprotected, payload, signature)


def test_the_header_of_the_profile_is_admitted(agent: AgentShell, publisher: PublisherSimulator) -> None:
    agent.deliver(publisher.head_topic, headed(publisher, header_of(publisher), {}))
    assert agent.sync.reporting.rejections == {}
    assert agent.sync.trusted.holdings[publisher.namespace].head.sequence == Sequence(2)


@pytest.mark.parametrize("algorithm", [-7, -35, -37, 5, -19, 0, "EdDSA", None])
def test_other_algorithm(agent: AgentShell, publisher: PublisherSimulator, algorithm: object) -> None:
    with refused(agent, "header_not_allowed"):
        agent.deliver(publisher.head_topic, headed(publisher, {**header_of(publisher), 1: algorithm}, {}))


def test_algorithm_is_missing(agent: AgentShell, publisher: PublisherSimulator) -> None:
    header = header_of(publisher)
    del header[1]
    with refused(agent, "header_not_allowed"):
        agent.deliver(publisher.head_topic, headed(publisher, header, {}))


def test_algorithm_in_the_unprotected_bucket(agent: AgentShell, publisher: PublisherSimulator) -> None:
    header = header_of(publisher)
    algorithm = header.pop(1)
    with refused(agent, "header_not_allowed"):
        agent.deliver(publisher.head_topic, headed(publisher, header, {1: algorithm}))


def test_algorithm_in_both_buckets(agent: AgentShell, publisher: PublisherSimulator) -> None:
    with refused(agent, "header_not_allowed"):
        agent.deliver(publisher.head_topic, headed(publisher, header_of(publisher), {1: -7}))


@pytest.mark.parametrize("more", [{2: [99], 99: 1}, {2: [1]}, {99: 1}, {"crit": ["x"]}, {5: b"iv"}], ids=repr)
def test_unknown_or_critical_header(
    agent: AgentShell, publisher: PublisherSimulator, more: dict[object, object]
) -> None:
    with refused(agent, "header_not_allowed"):
        agent.deliver(publisher.head_topic, headed(publisher, {**header_of(publisher), **more}, {}))


def test_duplicate_header(agent: AgentShell, publisher: PublisherSimulator) -> None:
    header = encode(header_of(publisher))  # type: ignore[arg-type]  # integer keys all the same
    doubled = bytes([header[0] + 1]) + b"\x01\x26" + header[1:]
    with refused(agent, "header_not_allowed"):
        agent.deliver(publisher.head_topic, headed(publisher, doubled, {}))


def test_header_of_another_kind_of_message(agent: AgentShell, publisher: PublisherSimulator) -> None:
    header = {**header_of(publisher), 3: content_type(Kind.SNAPSHOT)}
    with refused(agent, "header_not_allowed"):
        agent.deliver(publisher.head_topic, headed(publisher, header, {}))


@pytest.mark.parametrize("key", [b"", b"short", bytes(9), bytes(32), "12345678"], ids=repr)
def test_key_id_of_another_length(agent: AgentShell, publisher: PublisherSimulator, key: object) -> None:
    with refused(agent, "header_not_allowed"):
        agent.deliver(publisher.head_topic, headed(publisher, {**header_of(publisher), 4: key}, {}))


@pytest.mark.parametrize("length", [0, 63, 65])
def test_signature_of_another_length(agent: AgentShell, publisher: PublisherSimulator, length: int) -> None:
    message = envelope_of(header_of(publisher), {}, next_payload(publisher), bytes(length))
    with refused(agent, "malformed"):
        agent.deliver(publisher.head_topic, message)


def test_detached_payload(agent: AgentShell, publisher: PublisherSimulator) -> None:
    with refused(agent, "malformed"):
        agent.deliver(publisher.head_topic, envelope_of(header_of(publisher), {}, None, NEVER_SIGNED))


def test_payload_that_is_a_text(agent: AgentShell, publisher: PublisherSimulator) -> None:
    payload = next_payload(publisher)
    message = bytearray(signed_payload(publisher, payload))
    head = message.index(payload) - 2
    assert message[head] == 0x58
    message[head] = 0x78  # the same bytes as a text, which no signature would tell from them
    with refused(agent, "malformed"):
        agent.deliver(publisher.head_topic, bytes(message))


@pytest.mark.parametrize("tag", [17, 16, 96, 97, 61])
def test_other_cose_message(agent: AgentShell, publisher: PublisherSimulator, tag: int) -> None:
    message = signed_payload(publisher, next_payload(publisher))
    with refused(agent, "malformed"):
        agent.deliver(publisher.head_topic, cbor2.dumps(cbor2.CBORTag(tag, cbor2.loads(message).value)))


def test_untagged_cose_message(agent: AgentShell, publisher: PublisherSimulator) -> None:
    with refused(agent, "malformed"):
        agent.deliver(publisher.head_topic, signed_payload(publisher, next_payload(publisher))[1:])


def test_length_spelled_longer_than_needed(agent: AgentShell, publisher: PublisherSimulator) -> None:
    message = signed_payload(publisher, next_payload(publisher))
    assert message[2] == 0x58  # the protected header, with a length of one byte
    longer = message[:2] + b"\x59\x00" + message[3:]
    with refused(agent, "not_deterministic"):
        agent.deliver(publisher.head_topic, longer)


@pytest.mark.parametrize(
    "change", [{1: -7}, {1: None}, {2: [99]}, {5: b"iv"}, {4: bytes(9)}], ids=lambda change: str(list(change))
)
def test_signer_whose_header_is_not_the_profiles(
    agent: AgentShell, publisher: PublisherSimulator, change: dict[object, object]
) -> None:
    # What the signature covers is the profile's header; what the message shows is another one.
    payload, key = next_payload(publisher), publisher.publisher_keys[0]
    signature = key.sign(to_sign(payload, publisher.place(Kind.HEAD), key.id, several=True))
    shown = cbor2.dumps({1: -8, 4: key.id, **change}, canonical=True)
    body = encode([encode({3: content_type(Kind.HEAD)}), {}, payload, [[shown, {}, signature]]])
    with refused(agent, "header_not_allowed"):
        agent.deliver(publisher.head_topic, b"\xd8\x62" + body)


@pytest.mark.parametrize(
    "header", [{3: content_type(Kind.SNAPSHOT)}, {1: -8, 3: content_type(Kind.HEAD)}, {}], ids=repr
)
def test_header_above_several_signers_that_is_not_the_profiles(
    agent: AgentShell, publisher: PublisherSimulator, header: dict[int, object]
) -> None:
    payload, key, place = next_payload(publisher), publisher.publisher_keys[0], publisher.place(Kind.HEAD)
    signer, shown = encode({1: -8, 4: key.id}), cbor2.dumps(header, canonical=True)
    aad = encode(["flagcast", 1, place.environment, place.namespace, place.kind.value])
    for covered in (shown, encode({3: content_type(Kind.HEAD)})):
        signature = key.sign(encode(["Signature", covered, signer, aad, payload]))
        with refused(agent, "header_not_allowed"):
            message = encode([shown, {}, payload, [[signer, {}, signature]]])
            agent.deliver(publisher.head_topic, b"\xd8\x62" + message)
        agent.deliver(publisher.head_topic, publisher.head_message(publisher.sign_again()))


@pytest.mark.parametrize("elements", [2, 4])
def test_signature_that_is_not_three_things(
    agent: AgentShell, publisher: PublisherSimulator, elements: int
) -> None:
    payload, key = next_payload(publisher), publisher.publisher_keys[0]
    signature = key.sign(to_sign(payload, publisher.place(Kind.HEAD), key.id, several=True))
    listed = [encode({1: -8, 4: key.id}), {}, signature, b""][:elements]
    body = encode([encode({3: content_type(Kind.HEAD)}), {}, payload, [listed]])  # type: ignore[list-item]  # a lie on purpose
    with refused(agent, "malformed", "too_large"):
        agent.deliver(publisher.head_topic, b"\xd8\x62" + body)


@pytest.mark.parametrize(
    "length", [b"\x5b" + bytes(7) + b"\x01", b"\x5c", b"\x5d", b"\x5e", b"\x5f\x41x\xff"], ids=bytes.hex
)
def test_length_of_no_message_of_ours(
    agent: AgentShell, publisher: PublisherSimulator, length: bytes
) -> None:
    with refused(agent, "malformed"):
        agent.deliver(publisher.head_topic, b"\xd2\x84" + length + bytes(100))


def test_many_signers_of_nothing(agent: AgentShell, publisher: PublisherSimulator) -> None:
    payload, place = next_payload(publisher), publisher.place(Kind.HEAD)
    key = publisher.publisher_keys[0]
    signature = key.sign(to_sign(payload, place, key.id, several=True))
    signers = [[encode({1: -8, 4: key.id}), {}, signature]] * 33
    body = encode([encode({3: content_type(Kind.HEAD)}), {}, payload, signers])  # type: ignore[list-item]  # a lie on purpose
    with refused(agent, "too_large"):
        agent.deliver(publisher.head_topic, b"\xd8\x62" + body)


def test_no_signers_at_all(agent: AgentShell, publisher: PublisherSimulator) -> None:
    body = encode([encode({3: content_type(Kind.HEAD)}), {}, next_payload(publisher), []])
    with refused(agent, "malformed"):
        agent.deliver(publisher.head_topic, b"\xd8\x62" + body)


def test_compression_bomb(agent: AgentShell, publisher: PublisherSimulator) -> None:
    bomb = pressed(CONTENT_MAX_BYTES + 1)
    assert len(bomb) < MESSAGE_MAX_BYTES
    publisher.release(delta=False)
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    assert publisher.head.stable.size < len(bomb)
    with refused(agent, "too_large"):  # the head bounds what is collected at all
        agent.deliver(publisher.part_topic(2), publisher.part_message(bombed(publisher, bomb)))


def test_compression_bomb_of_the_announced_size(agent: AgentShell, publisher: PublisherSimulator) -> None:
    bomb = pressed(CONTENT_MAX_BYTES + 1)
    content = publisher.make_content([])
    announced = replace_offering(publisher, len(bomb))
    publisher.contents.append(content)
    agent.deliver(publisher.head_topic, announced)
    with refused(agent, "compression_bomb"):
        agent.deliver(publisher.part_topic(2), publisher.part_message(bombed(publisher, bomb)))


def test_compression_bomb_in_a_delta(agent: AgentShell, publisher: PublisherSimulator) -> None:
    before, after = publisher.content, publisher.release(ON)
    bomb = publisher.make_delta(after, before, pressed(CONTENT_MAX_BYTES + 1, before=b"\x82\x80"))
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    with refused(agent, "compression_bomb"):
        agent.deliver(publisher.delta_topic(2, 1), publisher.delta_message(bomb))


def test_compression_bomb_takes_no_more_memory_than_the_limit(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    bomb = pressed(250 * 10**6)  # the most that one message can hold
    assert len(bomb) < MESSAGE_MAX_BYTES - 1024
    publisher.contents.append(publisher.make_content([]))
    agent.deliver(publisher.head_topic, replace_offering(publisher, len(bomb)))
    message = publisher.part_message(bombed(publisher, bomb))
    with refused(agent, "compression_bomb"):
        tracemalloc.start()
        try:
            agent.deliver(publisher.part_topic(2), message)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    # What was taken of it, and a piece; nothing is there twice.
    assert most < CONTENT_MAX_BYTES + 2**21


def test_bytes_after_the_compressed_body(agent: AgentShell, publisher: PublisherSimulator) -> None:
    body = deflate(encode([])) + b"\x00"
    publisher.contents.append(publisher.make_content([]))
    agent.deliver(publisher.head_topic, replace_offering(publisher, len(body)))
    with refused(agent, "trailing_bytes"):
        agent.deliver(publisher.part_topic(2), publisher.part_message(bombed(publisher, body)))


def pressed(size: int, before: bytes = b"") -> bytes:
    """A list of byte strings of zeros, after `before`, in so many bytes, compressed."""
    string = b"\x5a" + RECORD_MAX_BYTES.to_bytes(4, "big") + bytes(RECORD_MAX_BYTES)
    count = -(-size // len(string))
    press = zlib.compressobj(9, zlib.DEFLATED, WINDOW_BITS)
    pieces = [press.compress(before + encode([0] * count)[:-count])]
    pieces += [press.compress(string) for _ in range(count)]
    return b"".join(pieces) + press.flush()


def bombed(publisher: PublisherSimulator, body: bytes) -> SnapshotPart:
    return replace(publisher.make_parts(publisher.content)[0], body=body)


def replace_offering(publisher: PublisherSimulator, size: int) -> bytes:
    """A head that offers version 2 as so many compressed bytes."""
    offering = replace(publisher.content.offering(), version=Version(2), digest=Digest(bytes(32)), size=size)
    return publisher.head_message(publisher.make_head(stable=offering))
