"""What is fuzzed: every function that takes bytes or text of others, each as a target.

A target takes any bytes. It returns, or raises `Wrong` or whatever escaped: an error outside the one family that the decoder
promises, or data that decodes and does not encode again to the same. `seeds` are inputs that get far.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cbor2
import frames
import yaml
from frames import opened, parsed, streams_of
from publisher_simulator import NOW, PublisherSimulator, SigningKey
from releases import EVIL, OFF, ON, OTHER
from repository import ROOT

from flagcast_agent import config
from flagcast_agent.api.http2.headers import Decoder, NotHpack, TooManyHeaders, block_of
from flagcast_agent.limits import STREAMS_MAX
from flagcast_bridge import check, project
from flagcast_bridge.sources import SourceFile
from flagcast_shared.codec import Value, decode, deflate, encode, inflate, scan
from flagcast_shared.context import Device
from flagcast_shared.envelope import open_envelope, seal
from flagcast_shared.errors import InvalidInput, Refused
from flagcast_shared.evaluation import compile_flags
from flagcast_shared.ids import DeviceId, Environment, FlagKey, Namespace, Version
from flagcast_shared.limits import CONTENT_MAX_BYTES
from flagcast_shared.literals import format_float, parse_bool, parse_float, parse_instant
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
from flagcast_shared.model import (
    BooleanFlag,
    Segment,
    VariantFlag,
)
from flagcast_shared.records import (
    content_digest,
    decode_record,
    encode_record,
    split_content,
    split_delta,
)
from flagcast_shared.reports import (
    Count,
    Refresh,
    Usage,
    decode_refresh,
    decode_report,
    decode_usage,
    encode_refresh,
    encode_report,
    encode_usage,
)
from flagcast_shared.root import Root, decode_root, encode_root, root_place
from flagcast_shared.topics import (
    Address,
    DeltaAddress,
    HeadAddress,
    Kind,
    RootAddress,
    SnapshotAddress,
    Topics,
)
from flagcast_shared.trust import Stored, Trusted, admit, anchor, anchor_environment, begin, restore

ENVIRONMENT = Environment("production")
NAMESPACE = Namespace("default")
HEAD = Place(ENVIRONMENT, NAMESPACE, Kind.HEAD)
SNAPSHOT = Place(ENVIRONMENT, NAMESPACE, Kind.SNAPSHOT)
DELTA = Place(ENVIRONMENT, NAMESPACE, Kind.DELTA)
ROOT_PLACE = root_place(ENVIRONMENT)
TOPICS = Topics("flagcast", ENVIRONMENT)


class Wrong(Exception):
    """A decoder took bytes that it does not write."""


@dataclass(frozen=True, slots=True)
class Target:
    """One thing to be fuzzed."""

    try_one: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]


# Bytes of the wire


def _codec(data: bytes) -> None:
    with contextlib.suppress(Refused):
        _same(encode(decode(data, "x")), data)


def _scan(data: bytes) -> None:
    # What passes has one spelling, and as many items as were counted; only texts may still be wrong.
    with contextlib.suppress(Refused):
        items = scan(data, "x")
        try:
            value = cbor2.loads(data)
        except Exception as error:
            if isinstance(error, UnicodeDecodeError) or isinstance(error.__cause__, UnicodeDecodeError):
                return
            raise
        _same(encode(value), data)
        if _items_of(value) != items:
            raise Wrong("counted otherwise")


def _items_of(value: object) -> int:
    match value:
        case list():
            return 1 + sum(map(_items_of, value))
        case dict():
            return 1 + sum(map(_items_of, [*value, *value.values()]))
        case _:
            return 1


def _inflate(data: bytes) -> None:
    limit = 1 << 16
    with contextlib.suppress(Refused):
        inflated = inflate(data, limit, "x")
        if len(inflated) > limit or inflate(deflate(inflated), limit, "x") != inflated:
            raise Wrong("inflated otherwise")


def _envelope(data: bytes) -> None:
    for place in (HEAD, ROOT_PLACE):
        with contextlib.suppress(Refused):
            envelope = open_envelope(data, place)
            signatures = [(one.key, one.signature) for one in envelope.signatures]
            if signatures == sorted(signatures):
                several = data.startswith(b"\xd8\x62")
                _same(seal(envelope.payload, place, signatures, several=several), data)


def _record(data: bytes) -> None:
    with contextlib.suppress(Refused):
        record = decode_record(data)
        compile_flags([record.entry], {})
        if isinstance(record.entry, BooleanFlag | VariantFlag | Segment):
            again = encode_record(record.entry)
            if decode_record(again.data) != again or again.entry != record.entry:
                raise Wrong("another record")
            _agrees(decode(again.data, "x"), decode(data, "x"))


def _content(data: bytes) -> None:
    with contextlib.suppress(Refused):
        listed = split_content([data])
        _same(encode(listed), data)
        cut = data[0] % 7 + 1
        if split_content(data[at : at + cut] for at in range(0, len(data), cut)) != listed:
            raise Wrong("taken apart otherwise, in pieces")
        for each in listed:
            decode_record(each)


def _delta_content(data: bytes) -> None:
    with contextlib.suppress(Refused):
        removed, changed = split_delta([data])
        _same(encode([[list(identity) for identity in removed], changed]), data)


def _reads_back(
    decoder: Callable[[bytes], Any], encoder: Callable[[Any], bytes], *, exact: bool = True
) -> Callable[[bytes], None]:
    """Decodes, encodes and decodes again; `exact` where nothing may stand in another order afterwards."""

    def try_one(data: bytes) -> None:
        with contextlib.suppress(Refused):
            value = decoder(data)
            again = encoder(value)
            if decoder(again) != value:
                raise Wrong(f"{value!r} reads back as {decoder(again)!r}")
            _same(encoder(decoder(again)), again)
            if exact:
                _agrees(decode(again, "x"), decode(data, "x"))

    return try_one


def _head(data: bytes) -> Head:
    return decode_head(data, HEAD)


def _part(data: bytes) -> SnapshotPart:
    return decode_part(data, SNAPSHOT)


def _delta(data: bytes) -> Delta:
    return decode_delta_message(data, DELTA)


def _root(data: bytes) -> Root:
    return decode_root(data, ENVIRONMENT)


def _anchor(data: bytes) -> None:
    with contextlib.suppress(Refused):
        anchor(data, anchor_environment(data))


# The door


@cache
def publisher() -> PublisherSimulator:
    """Two releases of which the second is in parts, and one root beyond the anchor; everything is retained."""
    simulator = PublisherSimulator()
    simulator.release(OFF)
    simulator.part_bytes = 40
    simulator.release(OFF, ON.__class__(OTHER.key, enabled=False), EVIL)
    simulator.rotate(root_keys=[SigningKey("root-b")])
    return simulator


@cache
def device() -> Trusted:
    """A device that holds the first release and awaits the second."""
    first = PublisherSimulator()
    first.release(OFF)
    trusted = begin(ENVIRONMENT, Device(DeviceId("device-1")), first.anchor)
    for one, topic in (
        (first, first.head_topic),
        (first, first.part_topic(1)),
        (publisher(), publisher().head_topic),
    ):
        address = TOPICS.address(topic)
        if address is None:
            raise Wrong(topic)
        trusted, _ = admit(trusted, address, one.retained[topic], now=NOW)
    return trusted


ADDRESSES: Sequence[tuple[Address, Place]] = (
    (HeadAddress(NAMESPACE), HEAD),
    (SnapshotAddress(NAMESPACE, Version(2), 0), SNAPSHOT),
    (SnapshotAddress(NAMESPACE, Version(2), 1), SNAPSHOT),
    (DeltaAddress(NAMESPACE, Version(2), Version(1)), DELTA),
    (RootAddress(2), ROOT_PLACE),
)


def _admit_message(data: bytes) -> None:
    """The first byte chooses the address, the rest is the message. No mutation of bytes makes a signature."""
    address, _ = ADDRESSES[data[0] % len(ADDRESSES)] if data else ADDRESSES[0]
    message = data[1:]
    before = device()
    with contextlib.suppress(Refused):
        after, _ = admit(before, address, message, now=NOW)
        if after is not before and message not in publisher().retained.values():
            raise Wrong("believed without a signature")


def _admit_payload(data: bytes) -> None:
    """The same with a payload that is truly signed: whatever a stolen key signs."""
    address, place = ADDRESSES[data[0] % len(ADDRESSES)] if data else ADDRESSES[0]
    is_root = place.kind is Kind.ROOT
    signers = [SigningKey("root-a"), SigningKey("root-b")] if is_root else publisher().publisher_keys
    message = publisher().sign(data[1:], place, *signers, several=is_root)
    before = device()
    with contextlib.suppress(Refused):
        after, _ = admit(before, address, message, now=NOW)
        held, former = after.holdings[NAMESPACE], before.holdings[NAMESPACE]
        if after.root.number < before.root.number:
            raise Wrong("the root went back")
        if (held.epoch, held.version) < (former.epoch, former.version):
            raise Wrong("the content went back")
        if list(held.ascending) != sorted(held.records.values()):
            raise Wrong("the digests do not ascend")


def _admit_delta(data: bytes) -> None:
    """A delta's content before compression, truly signed, under a head that truly names what it leads to."""
    simulator = publisher()
    body = deflate(data)
    before = device()
    with contextlib.suppress(Refused):
        removed, changed = split_delta([data])
        digests = dict(before.holdings[NAMESPACE].records)
        for identity in removed:
            digests.pop(identity, None)
        digests |= {record.id: record.digest for record in map(decode_record, changed)}
        waiting = before.pending[NAMESPACE]
        # As if an honest publisher had made this content and signed its digest.
        offering = replace(waiting.offering, digest=content_digest(digests.values()))
        trusted = replace(before, pending={NAMESPACE: replace(waiting, offering=offering)})
        message = simulator.delta_message(
            Delta(ENVIRONMENT, NAMESPACE, waiting.head.epoch, Version(2), Version(1), body)
        )
        after, _ = admit(trusted, DeltaAddress(NAMESPACE, Version(2), Version(1)), message, now=NOW)
        held = after.holdings[NAMESPACE]
        if held.version == 2 and (
            dict(held.records) != digests or list(held.ascending) != sorted(digests.values())
        ):
            raise Wrong("another content than the delta leads to")


def _restore(data: bytes) -> None:
    """A head that a device's disk gives back."""
    content = publisher().contents[-1]
    records = [record.data for record in content.records.values()]
    trusted = begin(ENVIRONMENT, Device(DeviceId("device-1")), publisher().anchor)
    with contextlib.suppress(Refused):
        restore(trusted, Stored(NAMESPACE, data, content.epoch, content.version, content.digest, records))


# Text


def _topic(data: bytes) -> None:
    topic = data.decode(errors="surrogateescape")
    address = TOPICS.address(topic)
    if address is not None and TOPICS.of(address) != topic:
        raise Wrong(f"{topic!r} is also {TOPICS.of(address)!r}")


def _literals(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    parse_bool(text)
    parse_instant(text)
    number = parse_float(text)
    if number is not None and number == number and parse_float(format_float(number)) != number:  # noqa: PLR0124  # not nan
        raise Wrong(f"{text!r} is written as {format_float(number)!r}")


def _features(data: bytes) -> None:
    for name in ("features.yml", "features.json"):
        compilation = check.check([SourceFile(name, data)])
        if not compilation.has_errors:
            for entries in compilation.namespaces.values():
                compile_flags(entries, {})
                for entry in entries:
                    if isinstance(entry, BooleanFlag | VariantFlag | Segment):
                        encode_record(entry)


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="flagcast-fuzz-"))


def _agent_toml(data: bytes) -> None:
    (_folder() / config.CONFIG_NAME).write_bytes(data)
    with contextlib.suppress(InvalidInput):
        config.load(_folder())


def _flagcast_toml(data: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        project.parse(data.decode(errors="surrogateescape"), Path("/"), "flagcast.toml")


def _same(again: bytes, data: bytes) -> None:
    if again != data:
        raise Wrong(f"{data.hex()} encodes to {again.hex()}")


def _agrees(again: Value, data: Value) -> None:
    # Fields of a later release are passed over, and some that are absent are written as what that means; the others stay.
    match again, data:
        case dict(), dict():
            for key in again.keys() & data.keys():
                _agrees(again[key], data[key])
        case list(), list() if len(again) == len(data):
            for one, other in zip(again, data, strict=True):
                _agrees(one, other)
        case _ if again != data or type(again) is not type(data):
            raise Wrong(f"{data!r} encodes to {again!r}")


# Seeds


@cache
def _wire() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / "tests" / "vectors" / "wire.json").read_text())
    return document


def _column(rows: str, column: str) -> list[bytes]:
    return [bytes.fromhex(row[column]) for row in _wire()[rows]]


def _life(place: Place | None = None) -> list[bytes]:
    """The messages of the life in `wire.json`; with a place, the payloads of those that open there."""
    messages = [bytes.fromhex(step["message"]) for step in _wire()["life"]["steps"]]
    messages.append(bytes.fromhex(_wire()["life"]["anchor"]))
    if place is None:
        return messages
    payloads = []
    for message in messages:
        with contextlib.suppress(Refused):
            payloads.append(open_envelope(message, place).payload)
    return payloads


def _bodies(place: Place) -> list[bytes]:
    """The inflated bodies of the life's parts or deltas."""
    bodies = []
    for payload in _life(place):
        with contextlib.suppress(Refused):
            body = decode(payload, "payload")
            if isinstance(body, dict):
                bodies.append(inflate(body[9], CONTENT_MAX_BYTES, "body"))
    return bodies


def _at_addresses(payloads: Callable[[Place], Iterable[bytes]]) -> list[bytes]:
    return [bytes([number]) + data for number, (_, place) in enumerate(ADDRESSES) for data in payloads(place)]


def _retained_payloads(place: Place) -> list[bytes]:
    opened = []
    for message in publisher().retained.values():
        with contextlib.suppress(Refused):
            opened.append(open_envelope(message, place).payload)
    return opened


def _texts() -> list[bytes]:
    rows = json.loads((ROOT / "tests" / "vectors" / "literals.json").read_text())
    return [row["text"].encode(errors="surrogateescape") for row in rows]


def _flags_files() -> list[bytes]:
    # Whole files, and their flags and segments one by one: a mutation of something small is tried more often.
    corpus = ROOT / "tests" / "broker_bridge" / "fixtures" / "flipt-corpus.features.yml"
    files = [
        path.read_text(encoding="utf-8")
        for path in (corpus, *sorted((ROOT / "examples").rglob("features.*")))
    ]
    small = []
    for text in files:
        for document in yaml.safe_load_all(text):
            head = {key: document[key] for key in ("version", "namespace") if key in document}
            for kind in ("flags", "segments"):
                small += [head | {kind: [each]} for each in document.get(kind) or ()]
    written = [yaml.safe_dump(each, sort_keys=False) for each in small] + [json.dumps(each) for each in small]
    return [text.encode() for text in (*written, *files)]


_AGENT_TOML = b"""environment = "production"
prefix = "flagcast"
namespaces = ["default", "kiosk"]
tcp_port = 8014

[device]
id = "device-1"
model = "m1"
firmware = "1.2"

[device.labels]
ring = "early"

[broker]
url = "mqtts://broker.example:8883"
user = "device-1"
password_file = "password"
ca_file = "ca.pem"
protocol = "auto"
keepalive_seconds = 60

[paths]
anchor = "root.cbor"
store = "agent.sqlite"
socket = "agent.sock"
socket_mode = "0660"

[log]
format = "json"

[report]
heartbeat_seconds = 300

[usage]
interval_seconds = 60
"""


_FLAGCAST_TOML = b"""environment = "production"
prefix = "flagcast"

[broker]
url = "mqtts://broker.example:8883"

[publish]
message_limit_bytes = 60000
head_lifetime_hours = 168
"""


def _usages() -> list[bytes]:
    counts = (
        Count(NAMESPACE, FlagKey("beta"), "true", "match", 7),
        Count(NAMESPACE, FlagKey("beta"), "false", "default", 1),
        Count(Namespace("kiosk"), FlagKey("color"), "", "unknown", 2**40),
    )
    return [encode_usage(Usage(bytes(16), 1, 2, counts, dropped)) for dropped in (0, 3)]


# What applications on the device send

_ANSWER = block_of((":status", "200"))


def _http2(data: bytes) -> None:
    # After the client's beginning, cut anywhere; every request is answered. What is sent has to be whole frames.
    connection = opened()
    cut = data[0] % (len(data) + 1) if data else 0
    for part in (data[:cut], data[cut:]):
        connection.receive(part)
        for stream in streams_of(connection):
            if stream.is_whole:
                connection.answer(stream, _ANSWER, b"answer" * 1000, _ANSWER, 0.0)
            else:
                connection.more(stream)
    for frame in parsed(connection.take()):
        if frame.kind > 8:
            raise Wrong(f"a frame of kind {frame.kind}")
    if len(connection.streams) > STREAMS_MAX or connection.waiting > len(data) * 6_000:
        raise Wrong("more than the input asks for")


def _header_block(data: bytes) -> None:
    # The same block twice means the same both times, unless the first one changed the table.
    decoder = Decoder()
    with contextlib.suppress(NotHpack, TooManyHeaders):
        first = decoder.decode(data)
        if data in decoder._blocks:
            _same(repr(decoder.decode(data)[0].headers).encode(), repr(first[0].headers).encode())
            _same(repr(Decoder().decode(data)[0].headers).encode(), repr(first[0].headers).encode())


def _http2_seeds() -> list[bytes]:
    return [
        frames.headers(1, end=True) + frames.headers(3) + frames.data(3, b"body", end=True) + frames.ping(),
        frames.settings((4, 1)) + frames.headers(1, end=True) + frames.window(1, 5) + frames.window(0, 9),
        frames.headers(1) + frames.data(1, b"x") + frames.reset(1) + frames.headers(5, end=True),
    ]


TARGETS: dict[str, Target] = {
    "codec.decode": Target(
        _codec, lambda: [*_column("values", "bytes"), *_column("not_values", "bytes"), *_life(HEAD)]
    ),
    "codec.scan": Target(
        _scan, lambda: [*_column("values", "bytes"), *_column("not_values", "bytes"), *_life(HEAD)]
    ),
    "codec.inflate": Target(
        _inflate, lambda: [deflate(b""), deflate(b"a" * 500), *map(deflate, _life(HEAD))]
    ),
    "envelope": Target(
        _envelope,
        lambda: [*_column("envelopes", "message"), *_column("not_envelopes", "message"), *_life()],
    ),
    "root": Target(_reads_back(_root, encode_root, exact=False), lambda: _life(ROOT_PLACE)),
    "anchor": Target(_anchor, lambda: [publisher().anchor, *_life()]),
    "head": Target(_reads_back(_head, encode_head), lambda: [*_life(HEAD), *_retained_payloads(HEAD)]),
    "part": Target(_reads_back(_part, encode_part), lambda: _life(SNAPSHOT)),
    "delta": Target(_reads_back(_delta, encode_delta_message), lambda: _life(DELTA)),
    "record": Target(_record, lambda: _column("records", "bytes")),
    "content": Target(_content, lambda: [bytes.fromhex(_wire()["content"]["body"]), *_bodies(SNAPSHOT)]),
    "delta content": Target(
        _delta_content, lambda: [bytes.fromhex(_wire()["delta"]["body"]), *_bodies(DELTA)]
    ),
    "report": Target(_reads_back(decode_report, encode_report), lambda: _column("reports", "bytes")),
    "refresh": Target(
        _reads_back(decode_refresh, encode_refresh),
        lambda: [encode_refresh(Refresh(names)) for names in ((), (NAMESPACE, Namespace("kiosk")))],
    ),
    "usage": Target(_reads_back(decode_usage, encode_usage, exact=False), _usages),
    "trust.admit, messages": Target(
        _admit_message,
        lambda: _at_addresses(lambda _: publisher().retained.values()),
    ),
    "trust.admit, signed payloads": Target(_admit_payload, lambda: _at_addresses(_retained_payloads)),
    "trust.admit, deltas": Target(
        _admit_delta, lambda: [bytes.fromhex(_wire()["delta"]["body"]), *_bodies(DELTA)]
    ),
    "trust.restore": Target(_restore, lambda: [publisher().retained[publisher().head_topic], *_life()]),
    "topics.address": Target(_topic, lambda: [topic.encode() for topic in publisher().retained]),
    "HTTP/2": Target(_http2, _http2_seeds),
    "header block": Target(_header_block, lambda: [frames.CALL, b"\x82\x86\x84\x40\x03x-a\x8abcdefghij\xbe"]),
    "literals": Target(_literals, _texts),
    "features.yml": Target(_features, _flags_files),
    "agent.toml": Target(_agent_toml, lambda: [_AGENT_TOML]),
    "flagcast.toml": Target(_flagcast_toml, lambda: [_FLAGCAST_TOML]),
}


def seeds_of(name: str) -> list[bytes]:
    """The seeds of a target, each once."""
    return list(dict.fromkeys(TARGETS[name].seeds()))
