"""Writes tests/vectors/wire.json: bytes, digests, signatures and a device's whole life, from fixed keys.

Canonical bytes are spelled here by hand after RFC 8949, 4.2.1, and compared with what Flagcast writes; digests come straight
from SHA-256. Ed25519 (RFC 8032) is deterministic, so the same keys give the same messages.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import cbor2
from publisher_simulator import HEAD_LIFE_SECONDS, PublisherSimulator, SigningKey, flip_last_bit
from record_json import json_of
from releases import EVIL, OFF, ON, OTHER

from flagcast_shared.bucketing import candidate_bucket
from flagcast_shared.codec import deflate, encode
from flagcast_shared.envelope import to_sign
from flagcast_shared.ids import DeviceId, Epoch, FlagKey, Namespace, SegmentKey, Sequence, VariantKey, Version
from flagcast_shared.limits import MESSAGE_MAX_BYTES, NUMBER_MAX
from flagcast_shared.messages import Place, encode_head
from flagcast_shared.model import (
    BooleanFlag,
    Constraint,
    ConstraintType,
    Distribution,
    Instant,
    Join,
    Match,
    Operator,
    Rule,
    Segment,
    SegmentRollout,
    ThresholdRollout,
    Variant,
    VariantFlag,
)
from flagcast_shared.records import content_digest, encode_content, encode_delta, encode_record
from flagcast_shared.reports import Applied, Rejection, Report, encode_report
from flagcast_shared.root import PublicKey, encode_root, root_place
from flagcast_shared.topics import Kind

FILE = Path(__file__).resolve().parent.parent / "tests" / "vectors" / "wire.json"
DEVICE = "device-1"
CENTURY_SECONDS = 100 * 365 * 86_400

RECORDS = (
    OFF,
    BooleanFlag(
        FlagKey("ramp"),
        enabled=False,
        rollouts=(
            SegmentRollout((SegmentKey("north"), SegmentKey("grown")), Join.AND, value=True),
            ThresholdRollout(25, value=True),
        ),
    ),
    VariantFlag(
        FlagKey("größe"),
        enabled=True,
        variants=(Variant(VariantKey("s")), Variant(VariantKey("l"), '{"width": 3}')),
        default=VariantKey("s"),
        rules=(
            Rule(
                (SegmentKey("north"),),
                Join.OR,
                (Distribution(VariantKey("s"), 333), Distribution(VariantKey("l"), 1000)),
            ),
            Rule((), Join.AND, ()),
        ),
    ),
    BooleanFlag(
        FlagKey("owned"),
        enabled=True,
        metadata='{"days":90,"owner":"Größe-Team","ratio":0.5,"temporary":true}',
    ),
    VariantFlag(
        FlagKey("owned-too"),
        enabled=True,
        variants=(Variant(VariantKey("s")),),
        default=VariantKey("s"),
        metadata='{"owner":"screen-team"}',
    ),
    Segment(
        SegmentKey("north"),
        Match.ALL,
        (Constraint(ConstraintType.STRING, "region", Operator.ISONEOF, ("n", "nw")),),
    ),
    Segment(
        SegmentKey("grown"),
        Match.ANY,
        (
            Constraint(ConstraintType.NUMBER, "age", Operator.GTE, "18.0"),
            Constraint(ConstraintType.DATETIME, "born", Operator.LT, Instant(-1, 500_000_000)),
            Constraint(ConstraintType.BOOLEAN, "device.label.shop", Operator.PRESENT),
        ),
    ),
)


def main() -> None:
    """Writes the file."""
    publisher = PublisherSimulator()
    document = {
        "keys": [_key(name) for name in ("root-a", "root-b", "publisher-a", "publisher-b", "mallory")],
        "not_keys": _not_keys(),
        "values": _values(),
        "not_values": _not_values(),
        "records": [
            {"record": json_of(entry), "bytes": record.data.hex(), "digest": _sha256(record.data)}
            for entry in RECORDS
            for record in [encode_record(entry)]
        ],
        "edge_records": _edge_records(),
        "root_payloads": _root_payloads(publisher),
        "content": _content(),
        "delta": _delta(),
        "envelopes": _envelopes(publisher),
        "not_envelopes": _not_envelopes(),
        "reports": _reports(),
        "candidate": _candidate(),
        "life": _life(),
    }
    text = json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True)
    FILE.write_text(text + "\n", encoding="utf-8")
    print(FILE.name, len(text))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _key(name: str) -> dict[str, str]:
    key = SigningKey(name)
    raw = key.public.raw
    return {
        "name": name,
        "seed": _sha256(name.encode()),
        "public": raw.hex(),
        "id": hashlib.sha256(raw).hexdigest()[:16],
    }


# The eight points of small order as "Taming the Many EdDSAs" and libsodium list them, and their other encodings.
_SMALL_ORDER = (
    ("order 1", "01" + 31 * "00"),
    ("order 2", "ec" + 30 * "ff" + "7f"),
    ("order 4", 32 * "00"),
    ("order 4, other sign", 31 * "00" + "80"),
    ("order 8", "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    ("order 8, other sign", "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85"),
    ("order 8, other y", "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    ("order 8, other y and sign", "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"),
    ("order 1, sign of x = 0", "01" + 30 * "00" + "80"),
    ("order 2, sign of x = 0", "ec" + 31 * "ff"),
    ("order 4, y = p", "ed" + 30 * "ff" + "7f"),
    ("order 4, y = p, other sign", "ed" + 31 * "ff"),
    ("order 1, y = p + 1", "ee" + 30 * "ff" + "7f"),
    ("order 1, y = p + 1, sign of x = 0", "ee" + 31 * "ff"),
)


def _not_keys() -> list[dict[str, str]]:
    # What a root may not list, each in a root that is right otherwise.
    rows = [(f"small order: {name}", digits) for name, digits in _SMALL_ORDER]
    for number in range(2, 19):  # 2^255 - 1 is p + 18
        low = f"{0xED + number:02x}"
        rows += [
            (f"not canonical: y = p + {number}", low + 30 * "ff" + "7f"),
            (f"not canonical: y = p + {number}, other sign", low + 31 * "ff"),
        ]
    rows += [("no point: y = 2", "02" + 31 * "00"), ("no point: y = 2, other sign", "02" + 30 * "00" + "80")]
    publisher = PublisherSimulator()
    made = []
    for name, digits in rows:
        key = PublicKey(bytes.fromhex(digits))
        root = replace(publisher.root, keys={**publisher.root.keys, key.id: key})
        made.append({"name": name, "public": digits, "root": encode_root(root).hex(), "attack": "malformed"})
    return made


# Values: null, true and false, texts and lists as in JSON; {"int": "-1"}, {"bytes": HEX}, {"map": [[KEY, VALUE]]}.


def _values() -> list[dict[str, Any]]:
    integers = (
        0,
        1,
        23,
        24,
        255,
        256,
        65_535,
        65_536,
        2**32 - 1,
        2**32,
        NUMBER_MAX,
        -1,
        -24,
        -25,
        -NUMBER_MAX,
    )
    values: list[Any] = [
        *integers,
        None,
        True,
        False,
        "",
        "a",
        "größe 🎈",
        "x" * 24,
        b"",
        bytes(24),
        [],
        [1, [2, []]],
        {},
        {10: 1, 1: 2, 100: 3, 24: 4, 256: 5},
        {"b": 1, "a": 2, "aa": 3, "": 4},
    ]
    rows = []
    for value in values:
        spelled = _spelled(value)
        assert encode(value) == spelled
        rows.append({"value": _shown(value), "bytes": spelled.hex()})
    return rows


def _shown(value: object) -> object:
    match value:
        case None | bool() | str():
            return value
        case int():
            return {"int": str(value)}
        case bytes():
            return {"bytes": value.hex()}
        case list():
            return [_shown(element) for element in value]
        case dict():
            return {"map": [[_shown(key), _shown(element)] for key, element in value.items()]}
    raise AssertionError(value)


def _spelled(value: object) -> bytes:
    match value:
        case None:
            return b"\xf6"
        case bool():
            return b"\xf5" if value else b"\xf4"
        case int():
            return _head(0, value) if value >= 0 else _head(1, -1 - value)
        case bytes():
            return _head(2, len(value)) + value
        case str():
            return _head(3, len(value.encode())) + value.encode()
        case list():
            return _head(4, len(value)) + b"".join(map(_spelled, value))
        case dict():
            pairs = sorted((_spelled(key), _spelled(element)) for key, element in value.items())
            return _head(5, len(pairs)) + b"".join(key + element for key, element in pairs)
    raise AssertionError(value)


def _head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    width = next(width for width in (1, 2, 4, 8) if argument < 1 << 8 * width)
    return bytes([major << 5 | {1: 24, 2: 25, 4: 26, 8: 27}[width]]) + argument.to_bytes(width, "big")


def _not_values() -> list[dict[str, str]]:
    rows = {
        "no bytes": (b"", "empty_payload"),
        "two values": (b"\x01\x02", "trailing_bytes"),
        "integer longer than needed": (b"\x18\x01", "not_deterministic"),
        "length longer than needed": (b"\x78\x01a", "not_deterministic"),
        "map out of order": (b"\xa2\x02\x00\x01\x00", "not_deterministic"),
        "duplicate key": (b"\xa2\x01\x00\x01\x00", "not_deterministic"),
        "mixed keys": (b"\xa2\x01\x00\x61a\x00", "not_deterministic"),
        "negative key": (b"\xa1\x20\x00", "malformed"),
        "indefinite list": (b"\x9f\x01\xff", "not_deterministic"),
        "indefinite text": (b"\x7f\x61a\xff", "not_deterministic"),
        "float": (b"\xf9\x3c\x00", "not_deterministic"),
        "undefined": (b"\xf7", "not_deterministic"),
        "simple value": (b"\xf8\x63", "not_deterministic"),
        "date": (b"\xc1\x00", "not_deterministic"),
        "unknown tag": (b"\xd9\x12\x67\x00", "not_deterministic"),
        "integer of 64 bits": (b"\x1b" + b"\xff" * 8, "malformed"),
        "cut short": (b"\x82\x01", "malformed"),
        "text that is not UTF-8": (b"\x61\xff", "malformed"),
        "announces more than there is": (b"\x5b\x00\x00\x00\xff\xff\xff\xff\xff", "malformed"),
        "thirteen levels": (b"\x81" * 13 + b"\x00", "too_deep"),
        "thirteen levels, the last an empty list": (b"\x81" * 12 + b"\x80", "too_deep"),
        "thirteen levels, the last an empty map": (b"\x81" * 12 + b"\xa0", "too_deep"),
        "regular expression": (b"\xd8\x23\x64(a+)", "not_deterministic"),
        "tag in a list": (b"\x82\x00\xc1\x00", "not_deterministic"),
        "tag as a value": (b"\xa1\x01\xc1\x00", "not_deterministic"),
        "tag as a key": (b"\xa1\xc1\x00\x00", "not_deterministic"),
        "break alone": (b"\xff", "malformed"),
        "reserved length": (b"\x1c", "malformed"),
        "list that announces four billion items": (b"\x9a\xff\xff\xff\xff", "too_large"),
        "map that announces too many entries": (b"\xb9\x80\x00", "too_large"),
    }
    return [{"name": name, "bytes": data.hex(), "attack": attack} for name, (data, attack) in rows.items()]


def _edge_records() -> list[dict[str, str]]:
    # Where two readers could differ: "usable", "unusable" (kept, without an answer), or the word of a refusal.
    def flag(body: Mapping[int, object]) -> list[object]:
        return ["flag", "x", {**body}]

    def segment(*constraints: Mapping[int, object]) -> list[object]:
        return ["segment", "x", {1: "all", 2: list(constraints)}]

    def variant(change: Mapping[int, object]) -> list[object]:
        body: dict[int, object] = {1: "variant", 2: True, 4: [["a"]]}
        return flag(body | dict(change))

    def number(text: str) -> list[object]:
        return segment({1: "number", 2: "p", 3: "eq", 4: text})

    deep: list[object] = []
    for _ in range(10):
        deep = [deep]
    later_rollout = {1: "later"}
    rows: dict[str, tuple[list[object], str]] = {
        "unknown flag type, then a wrong shape": (flag({1: "later", 2: 1}), "unusable"),
        "wrong shape, then an unknown rollout type": (
            flag({1: "boolean", 2: 1, 3: [later_rollout]}),
            "malformed",
        ),
        "unknown rollout type, then a wrong shape": (
            flag({1: "boolean", 2: True, 3: [later_rollout, 7]}),
            "unusable",
        ),
        "wrong rollout, then an unknown rollout type": (
            flag({1: "boolean", 2: True, 3: [{1: "threshold", 2: True, 3: 101}, later_rollout]}),
            "malformed",
        ),
        "unknown join, then a distribution of no variant": (
            variant({6: [{4: [], 5: "xor", 6: [[9, 1000]]}]}),
            "unusable",
        ),
        "default of no variant, then an unknown join": (variant({5: 9, 6: [{4: [], 5: "xor"}]}), "malformed"),
        "unknown match, then a wrong shape": (["segment", "x", {1: "most", 2: 7}], "unusable"),
        "unknown constraint type, then a wrong shape": (segment({1: "later", 2: 7, 3: 7}), "unusable"),
        "property of a wrong shape, then an unknown operator": (
            segment({1: "string", 2: 7, 3: "like"}),
            "malformed",
        ),
        "unknown operator, then a wrong value": (segment({1: "string", 2: "p", 3: "like", 4: 7}), "unusable"),
        "operator of another type": (segment({1: "boolean", 2: "p", 3: "prefix", 4: "x"}), "unusable"),
        "unknown word of 256 bytes": (flag({1: "x" * 256, 2: True}), "unusable"),
        "unknown word of 257 bytes": (flag({1: "x" * 257, 2: True}), "too_large"),
        "word that is no text": (flag({1: 7, 2: True}), "malformed"),
        "record of another kind": (["later", "x", [1, 2, 3]], "unusable"),
        "distribution of a variant that is not there": (variant({6: [{4: [], 6: [[1, 1000]]}]}), "malformed"),
        "default variant that is not there": (variant({5: 1}), "malformed"),
        "isoneof without a list": (segment({1: "string", 2: "p", 3: "isoneof"}), "usable"),
        "isnotoneof of numbers without a list": (segment({1: "number", 2: "p", 3: "isnotoneof"}), "usable"),
        "eq without a value": (segment({1: "string", 2: "p", 3: "eq"}), "malformed"),
        "rollout without a list of segments": (
            flag({1: "boolean", 2: True, 3: [{1: "segment", 2: True}]}),
            "usable",
        ),
        "metadata of a flag": (flag({1: "boolean", 2: True, 7: '{"a":1}'}), "usable"),
        "metadata that is no JSON": (variant({7: "{"}), "usable"),
        "metadata of 4096 bytes": (flag({1: "boolean", 2: True, 7: "x" * 4096}), "usable"),
        "metadata of 4097 bytes": (variant({7: "x" * 4097}), "too_large"),
        "metadata that is a map": (flag({1: "boolean", 2: True, 7: {"a": 1}}), "malformed"),
        "unknown rollout type, then metadata that is a map": (
            flag({1: "boolean", 2: True, 3: [later_rollout], 7: {"a": 1}}),
            "unusable",
        ),
        "hexadecimal number": (number("0x1p4"), "usable"),
        "hexadecimal number without an exponent": (number("0x1"), "malformed"),
        "number with an underscore": (number("1_000"), "usable"),
        "number with two underscores": (number("1__0"), "malformed"),
        "infinity with a sign": (number("+Inf"), "usable"),
        "nan with a sign": (number("+nan"), "malformed"),
        "number after a space": (number(" 1"), "malformed"),
        "number beyond a float64": (number("1e309"), "malformed"),
        "field of a later release": (flag({1: "boolean", 2: True, 99: [[], {}]}), "usable"),
        "later field at twelve levels": (flag({1: "boolean", 2: True, 99: deep[0]}), "usable"),
        "later field at thirteen levels": (flag({1: "boolean", 2: True, 99: deep}), "too_deep"),
    }
    return [
        {"name": name, "bytes": _spelled(record).hex(), "outcome": outcome}
        for name, (record, outcome) in rows.items()
    ]


def _root_payloads(publisher: PublisherSimulator) -> list[dict[str, str]]:
    fields: dict[int, Any] = cbor2.loads(encode_root(publisher.root))
    key, roles = fields[9][0], fields[10]
    quorum = roles["publisher"]
    rows: dict[str, tuple[dict[int, Any], str]] = {
        "a root": (fields, "root"),
        "later fields and roles": ({**fields, 99: [], 10: {**roles, "later": 7}}, "root"),
        "a key twice": ({**fields, 9: [*fields[9], key]}, "malformed"),
        "a key twice under two names": ({**fields, 9: [*fields[9], [key[0], "other"]]}, "malformed"),
    }
    for name, changed in (
        ("a key id twice in a role", {**quorum, 2: quorum[2] * 2}),
        ("a key that is not listed", {1: 1, 2: [bytes(8)]}),
        ("a threshold out of reach", {**quorum, 1: 2}),
        ("a threshold of nothing", {**quorum, 1: 0}),
    ):
        rows[name] = ({**fields, 10: {**roles, "publisher": changed}}, "malformed")
    return [
        {
            "name": name,
            "environment": publisher.environment,
            "bytes": _spelled(payload).hex(),
            "outcome": outcome,
        }
        for name, (payload, outcome) in rows.items()
    ]


def _content() -> dict[str, Any]:
    records = [encode_record(entry) for entry in RECORDS]
    digests = sorted(hashlib.sha256(record.data).digest() for record in records)
    digest = hashlib.sha256(b"".join(digests)).hexdigest()
    assert content_digest(record.digest for record in records).hex() == digest
    return {
        "records": [record.data.hex() for record in records],
        "digest": digest,
        "empty_digest": _sha256(b""),
        "body": encode_content(records).hex(),
    }


def _delta() -> dict[str, Any]:
    before = [encode_record(OFF), encode_record(OTHER)]
    after = [encode_record(ON), encode_record(EVIL)]
    return {
        "before": [record.data.hex() for record in before],
        "removed": [["flag", "other"]],
        "changed": sorted(record.data.hex() for record in after),
        "body": encode_delta([before[1].id], after).hex(),
        "after_digest": content_digest(record.digest for record in after).hex(),
    }


def _place(place: Place) -> dict[str, str]:
    return {"environment": place.environment, "namespace": place.namespace, "kind": place.kind.value}


def _envelopes(publisher: PublisherSimulator) -> list[dict[str, Any]]:
    publisher.release(OFF)
    single = (encode_head(publisher.head), publisher.place(Kind.HEAD), [publisher.publisher_keys[0]], False)
    both = [SigningKey("publisher-a"), SigningKey("publisher-b")]
    several = (encode_head(publisher.head), publisher.place(Kind.HEAD), both, True)
    root = (encode_root(publisher.root), root_place(publisher.environment), [SigningKey("root-a")], True)
    return [
        {
            "name": name,
            "place": _place(place),
            "payload": payload.hex(),
            "signatures": [
                {
                    "key": key.id.hex(),
                    "signed": (signed := to_sign(payload, place, key.id, several=is_several)).hex(),
                    "signature": key.sign(signed).hex(),
                }
                for key in sorted(keys, key=lambda key: key.id)
            ],
            "message": publisher.sign(payload, place, *keys, several=is_several).hex(),
        }
        for name, (payload, place, keys, is_several) in (
            ("head of one signer", single),
            ("head of two signers", several),
            ("root", root),
        )
    ]


def _not_envelopes() -> list[dict[str, Any]]:
    # Shapes and headers only: none of these gets as far as a signature.
    place = Place(PublisherSimulator().environment, Namespace("default"), Kind.HEAD)
    key, none = SigningKey("publisher-a").id, bytes(64)
    kind = "application/vnd.flagcast.head+cbor"
    profile = {1: -8, 3: kind, 4: key}
    payload = encode({1: 1})

    def sign1(protected: Mapping[int, object], unprotected: Mapping[int, object] | None = None) -> bytes:
        return b"\xd2" + _spelled([_spelled(protected), dict(unprotected or {}), payload, none])

    whole = sign1(profile)
    rows = {
        "cleared": (b"", "empty_payload"),
        "garbage": (b"hello", "malformed"),
        "one byte too many": (whole + b"\x00", "trailing_bytes"),
        "one byte too few": (whole[:-1], "malformed"),
        "without its tag": (whole[1:], "malformed"),
        "a length longer than needed": (whole[:2] + b"\x59\x00" + whole[3:], "not_deterministic"),
        "algorithm ES256": (sign1({**profile, 1: -7}), "header_not_allowed"),
        "algorithm Ed25519 (-19)": (sign1({**profile, 1: -19}), "header_not_allowed"),
        "no algorithm": (sign1({3: kind, 4: key}), "header_not_allowed"),
        "algorithm unprotected": (sign1({3: kind, 4: key}, {1: -8}), "header_not_allowed"),
        "key id unprotected": (sign1({1: -8, 3: kind}, {4: key}), "header_not_allowed"),
        "critical header": (sign1({**profile, 2: [99], 99: 1}), "header_not_allowed"),
        "content type of another kind": (
            sign1({**profile, 3: kind.replace("head", "delta")}),
            "header_not_allowed",
        ),
        "key id of another length": (sign1({**profile, 4: bytes(9)}), "header_not_allowed"),
        "signature of another length": (
            b"\xd2" + _spelled([_spelled(profile), {}, payload, bytes(63)]),
            "malformed",
        ),
        "no payload": (b"\xd2" + _spelled([_spelled(profile), {}, None, none]), "malformed"),
    }
    return [
        {"name": name, "place": _place(place), "message": data.hex(), "attack": attack}
        for name, (data, attack) in rows.items()
    ]


def _reports() -> list[dict[str, Any]]:
    offline = Report(7, 0, is_online=False)
    online = Report(
        session=7,
        number=3,
        is_online=True,
        at=1_750_000_060,
        agent="1.0",
        root=2,
        applied={
            Namespace("default"): Applied(Epoch(1), Version(4), 5),
            Namespace("kiosk"): Applied(Epoch(1), Version(2), 6, bytes(range(8))),
        },
        rejection=Rejection("rollback", "default", 1_750_000_050),
    )
    return [
        {"online": False, "session": 7, "number": 0, "bytes": encode_report(offline).hex()},
        {
            "online": True,
            "session": 7,
            "number": 3,
            "at": 1_750_000_060,
            "agent": "1.0",
            "root": 2,
            "applied": {
                "default": {"epoch": 1, "version": 4, "sequence": 5},
                "kiosk": {"epoch": 1, "version": 2, "sequence": 6, "digest": bytes(range(8)).hex()},
            },
            "rejection": {"attack": "rollback", "namespace": "default", "at": 1_750_000_050},
            "bytes": encode_report(online).hex(),
        },
    ]


def _candidate() -> list[dict[str, Any]]:
    rows = []
    for share in (0, 2_500, 5_000, 10_000):
        for number in range(8):
            device = f"device-{number}"
            digest = hashlib.sha256(b"salt" + device.encode()).digest()
            bucket = int.from_bytes(digest[:8], "big") % 10_000
            assert bucket == candidate_bucket(b"salt", DeviceId(device))
            rows.append({"device": device, "salt": b"salt".hex(), "share": share, "is_in": bucket < share})
    return rows


@dataclass(slots=True)
class _Life:
    # Messages as a device receives them, one after the other, and what comes of each.
    publisher: PublisherSimulator
    steps: list[dict[str, Any]]

    def hears(
        self, why: str, topic: str, outcome: str, *, message: bytes | None = None, floor: int | None = None
    ) -> None:
        data = self.publisher.retained[topic] if message is None else message
        self.steps.append(
            {
                "why": why,
                "topic": topic,
                "message": data.hex(),
                "now": self.publisher.now + 60,
                "outcome": outcome,
                **({} if floor is None else {"floor": floor}),
            }
        )


def _life() -> dict[str, Any]:
    publisher = PublisherSimulator()
    life = _Life(publisher, [])
    head, stolen = publisher.head_topic, publisher.publisher_keys[0]
    publisher.release(OFF, OTHER)
    first_head = publisher.retained[head]
    life.hears("the first head", head, "wanted 1.1")
    life.hears("its content", publisher.part_topic(1), "admitted 1.1")
    life.hears("the same head again", head, "nothing")
    publisher.release(ON, OTHER, inline=True)
    life.hears("an inline delta", head, "admitted 1.2")
    life.hears("a broker with an old save", head, "rollback", message=first_head)
    held, several = (
        publisher.retained[head],
        publisher.sign(encode_head(publisher.head), publisher.place(Kind.HEAD), several=True),
    )
    life.hears("the head held, as COSE_Sign of one signer", head, "nothing", message=several)
    publisher.release(ON)
    life.hears("a head with a retained delta", head, "wanted 1.3")
    life.hears("the head held, while a later one waits", head, "nothing", message=held)
    wrong = publisher.make_delta(
        publisher.content, publisher.contents[-2], deflate(encode_delta([], [encode_record(EVIL)]))
    )
    delta = publisher.delta_topic(3, 2)
    life.hears("a delta to something else", delta, "digest_mismatch", message=publisher.delta_message(wrong))
    life.hears("the delta", delta, "admitted 1.3")
    publisher.part_bytes = 64
    publisher.release(ON, OTHER, EVIL, *RECORDS[1:], delta=False)
    life.hears("a snapshot in parts", head, "wanted 1.4")
    count = len(publisher.content.parts)
    assert count > 2
    for part in reversed(range(1, count)):
        life.hears("a part", publisher.part_topic(4, part), "nothing")
    again = publisher.part_message(replace(publisher.make_parts(publisher.content)[1], body=b"other"))
    life.hears("two parts of one number", publisher.part_topic(4, 1), "equivocation", message=again)
    life.hears("the last part", publisher.part_topic(4, 0), "admitted 1.4")
    twin = replace(publisher.head, expires=publisher.head.expires + 1)
    life.hears("a second head of one number", head, "equivocation", message=publisher.head_message(twin))
    publisher.now += HEAD_LIFE_SECONDS
    late = replace(publisher.head, sequence=Sequence(publisher.head.sequence + 1))
    life.hears("a head that expired", head, "freeze", message=publisher.head_message(late))
    publisher.sign_again()
    life.hears("the same content, fresh", head, "admitted 1.4")
    for name, message, attack in (
        ("a forged head", flip_last_bit(publisher.retained[head]), "bad_signature"),
        ("a stranger's head", publisher.head_message(publisher.head, SigningKey("mallory")), "unknown_key"),
        ("a root key's head", publisher.head_message(publisher.head, *publisher.root_keys), "wrong_role"),
        ("a cleared head", b"", "empty_payload"),
        ("endless data", bytes(1), "malformed"),
        ("a head at a root's place", publisher.anchor, "header_not_allowed"),
    ):
        life.hears(name, head, attack, message=message)
    publisher.stage(EVIL, share=10_000)
    life.hears("a candidate for everybody", head, "wanted 1.5")
    life.hears(
        "its content, one part of it",
        publisher.part_topic(5),
        "nothing" if len(publisher.content.parts) > 1 else "admitted 1.5",
    )
    for part in range(1, len(publisher.content.parts)):
        is_last = part == len(publisher.content.parts) - 1
        life.hears("another part", publisher.part_topic(5, part), "admitted 1.5" if is_last else "nothing")
    publisher.publish_head(publisher.make_head(stable=publisher.contents[-2].offering()))
    life.hears(
        "the candidate is withdrawn; nobody steps down", head, "admitted 1.5", floor=publisher.head.issued
    )
    expired = replace(publisher.head, issued=publisher.now - HEAD_LIFE_SECONDS, expires=publisher.now)
    third = replace(publisher.root, number=3)
    life.hears(
        "a root is skipped", publisher.root_topic(3), "root_skipped", message=publisher.root_message(third)
    )
    century = publisher.now + CENTURY_SECONDS
    publisher.publish_head(replace(publisher.sign_again(), issued=century, expires=century))
    life.hears("a stolen key says that it is a century later", head, "admitted 1.5", floor=century)
    sequence = Sequence(publisher.head.sequence + 1)
    publisher.publish_head(replace(expired, epoch=Epoch(1), sequence=sequence))
    life.hears("every clock is before that: expiry is not checked", head, "admitted 1.5", floor=century)
    publisher.rotate(root_keys=[SigningKey("root-b")], publisher_keys=[SigningKey("publisher-b")])
    only_new = publisher.root_message(publisher.root, signers=[SigningKey("root-b")])
    only_old = publisher.root_message(publisher.root, signers=[SigningKey("root-a")])
    life.hears("signed by the new key alone", publisher.root_topic(2), "unknown_key", message=only_new)
    life.hears("signed by the old key alone", publisher.root_topic(2), "threshold_not_met", message=only_old)
    life.hears("signed by both", publisher.root_topic(2), "root 2", floor=publisher.now)
    other = publisher.root_message(replace(publisher.root, expires=publisher.root.expires + 1))
    life.hears("two roots of one number", publisher.root_topic(2), "equivocation", message=other)
    stranger = publisher.root_message(publisher.root, signers=[SigningKey("mallory")])
    life.hears("the root in force again", publisher.root_topic(2), "nothing", message=stranger)
    life.hears("the old root again", publisher.root_topic(1), "nothing")
    life.hears("the head held, whose key has been revoked since", head, "nothing")
    forged = replace(publisher.head, sequence=Sequence(publisher.head.sequence + 1))
    life.hears("a revoked key", head, "unknown_key", message=publisher.head_message(forged, stolen))
    publisher.release(OFF, version=1)
    life.hears("a new epoch begins with version 1", head, "wanted 2.1")
    for part in range(len(publisher.content.parts)):
        is_last = part == len(publisher.content.parts) - 1
        life.hears("its content", publisher.part_topic(1, part), "admitted 2.1" if is_last else "nothing")
    late = replace(expired, epoch=Epoch(2), sequence=Sequence(publisher.head.sequence + 1))
    life.hears(
        "in the new epoch expiry is checked again", head, "freeze", message=publisher.head_message(late)
    )
    life.hears("another namespace's head", publisher.head_topic, "bad_signature", message=_foreign())
    assert all(len(step["message"]) < 2 * MESSAGE_MAX_BYTES for step in life.steps)
    return {
        "environment": publisher.environment,
        "device": DEVICE,
        "anchor": publisher.anchor.hex(),
        "steps": life.steps,
        "digest": publisher.content.digest.hex(),
    }


def _foreign() -> bytes:
    other = PublisherSimulator(namespace=Namespace("kiosk"), publisher_keys=(SigningKey("publisher-b"),))
    other.release(EVIL)
    return other.retained[other.head_topic]


if __name__ == "__main__":
    main()
