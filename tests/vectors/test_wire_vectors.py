"""The small reader: what an agent in another language would do with wire.json."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from record_json import entry_of

from flagcast_shared.bucketing import candidate_bucket
from flagcast_shared.codec import Value, decode, encode
from flagcast_shared.context import Device
from flagcast_shared.envelope import open_envelope
from flagcast_shared.errors import Refused
from flagcast_shared.ids import DeviceId, Environment, Namespace
from flagcast_shared.messages import Place
from flagcast_shared.model import UnsupportedFlag, UnsupportedRecord, UnsupportedSegment
from flagcast_shared.records import (
    content_digest,
    decode_record,
    digest_of,
    encode_content,
    encode_record,
    split_content,
    split_delta,
)
from flagcast_shared.reports import decode_report, encode_report
from flagcast_shared.root import decode_root, key_id
from flagcast_shared.topics import Kind, Topics
from flagcast_shared.trust import (
    AdmittedRoot,
    AdmittedUpdate,
    Nothing,
    Outcome,
    Trusted,
    Wanted,
    admit,
    begin,
)

DOCUMENT: dict[str, Any] = json.loads((Path(__file__).parent / "wire.json").read_text(encoding="utf-8"))


def rows(name: str) -> list[Any]:
    listed: list[Any] = DOCUMENT[name]
    assert listed, f"{name} is empty"
    return listed


def value_of(shown: Any) -> Value:
    match shown:
        case {"int": number}:
            return int(number)
        case {"bytes": digits}:
            return bytes.fromhex(digits)
        case {"map": pairs}:
            return {value_of(key): value_of(element) for key, element in pairs}  # type: ignore[return-value]  # both kinds of keys
        case list():
            return [value_of(element) for element in shown]
        case _:
            plain: Value = shown
            return plain


def place_of(row: dict[str, Any]) -> Place:
    place = row["place"]
    return Place(Environment(place["environment"]), Namespace(place["namespace"]), Kind(place["kind"]))


def test_keys() -> None:
    for row in rows("keys"):
        public = bytes.fromhex(row["public"])
        seed = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(row["seed"]))
        assert seed.public_key().public_bytes_raw() == public
        assert key_id(public).hex() == row["id"]


@pytest.mark.parametrize("row", rows("not_keys"), ids=lambda row: row["name"])
def test_keys_that_may_not_count(row: dict[str, str]) -> None:
    assert bytes.fromhex(row["public"]) in bytes.fromhex(row["root"])
    with pytest.raises(Refused) as refused:
        decode_root(bytes.fromhex(row["root"]), Environment(DOCUMENT["life"]["environment"]))
    assert refused.value.attack == row["attack"]
    assert row["public"] in str(refused.value)


def test_values_have_one_spelling() -> None:
    for row in rows("values"):
        data = bytes.fromhex(row["bytes"])
        assert encode(value_of(row["value"])) == data
        assert decode(data, "value") == value_of(row["value"])


@pytest.mark.parametrize("row", rows("not_values"), ids=lambda row: row["name"])
def test_bytes_that_are_no_value(row: dict[str, str]) -> None:
    with pytest.raises(Refused) as refused:
        decode(bytes.fromhex(row["bytes"]), "value")
    assert refused.value.attack == row["attack"]


def test_records() -> None:
    for row in rows("records"):
        record = decode_record(bytes.fromhex(row["bytes"]))
        assert record.entry == entry_of(row["record"])
        assert record.digest.hex() == row["digest"]
        assert encode_record(record.entry) == record  # type: ignore[arg-type]  # all of them are of known kinds


def test_content() -> None:
    content = DOCUMENT["content"]
    listed = [bytes.fromhex(record) for record in content["records"]]
    body = bytes.fromhex(content["body"])
    assert encode_content(map(decode_record, listed)) == body
    assert split_content([body]) == sorted(listed)
    assert content_digest(map(digest_of, listed)).hex() == content["digest"]
    assert content_digest([]).hex() == content["empty_digest"]


def test_delta() -> None:
    delta = DOCUMENT["delta"]
    removed, changed = split_delta([bytes.fromhex(delta["body"])])
    assert [list(identity) for identity in removed] == delta["removed"]
    assert [data.hex() for data in changed] == delta["changed"]
    held = {decode_record(bytes.fromhex(data)).id: bytes.fromhex(data) for data in delta["before"]}
    for identity in removed:
        del held[identity]
    held |= {decode_record(data).id: data for data in changed}
    assert content_digest(map(digest_of, held.values())).hex() == delta["after_digest"]


@pytest.mark.parametrize("row", rows("edge_records"), ids=lambda row: row["name"])
def test_records_where_readers_could_differ(row: dict[str, Any]) -> None:
    try:
        entry = decode_record(bytes.fromhex(row["bytes"])).entry
    except Refused as error:
        outcome = error.attack
    else:
        unusable = UnsupportedFlag | UnsupportedSegment | UnsupportedRecord
        outcome = "unusable" if isinstance(entry, unusable) else "usable"
    assert outcome == row["outcome"]


@pytest.mark.parametrize("row", rows("root_payloads"), ids=lambda row: row["name"])
def test_root_payloads(row: dict[str, Any]) -> None:
    payload, environment = bytes.fromhex(row["bytes"]), Environment(row["environment"])
    if row["outcome"] == "root":
        assert decode_root(payload, environment).environment == environment
        return
    with pytest.raises(Refused) as refused:
        decode_root(payload, environment)
    assert refused.value.attack == row["outcome"]


@pytest.mark.parametrize("row", rows("envelopes"), ids=lambda row: row["name"])
def test_envelopes(row: dict[str, Any]) -> None:
    envelope = open_envelope(bytes.fromhex(row["message"]), place_of(row))
    assert envelope.payload.hex() == row["payload"]
    publics = {key["id"]: bytes.fromhex(key["public"]) for key in rows("keys")}
    assert [
        {"key": one.key.hex(), "signed": one.signed.hex(), "signature": one.signature.hex()}
        for one in envelope.signatures
    ] == row["signatures"]
    for one in envelope.signatures:
        Ed25519PublicKey.from_public_bytes(publics[one.key.hex()]).verify(one.signature, one.signed)


@pytest.mark.parametrize("row", rows("not_envelopes"), ids=lambda row: row["name"])
def test_messages_that_are_no_envelope(row: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        open_envelope(bytes.fromhex(row["message"]), place_of(row))
    assert refused.value.attack == row["attack"]


def test_reports() -> None:
    for row in rows("reports"):
        report = decode_report(bytes.fromhex(row["bytes"]))
        assert encode_report(report).hex() == row["bytes"]
        assert (report.is_online, report.session, report.number) == (
            row["online"],
            row["session"],
            row["number"],
        )
        if report.is_online:
            assert (report.at, report.agent, report.root) == (row["at"], row["agent"], row["root"])
            assert {
                name: {"epoch": one.epoch, "version": one.version, "sequence": one.sequence}
                | ({"digest": one.digest.hex()} if one.digest else {})
                for name, one in report.applied.items()
            } == row["applied"]
            assert report.rejection is not None
            assert {
                "attack": report.rejection.attack,
                "namespace": report.rejection.namespace,
                "at": report.rejection.at,
            } == row["rejection"]


def test_candidates() -> None:
    for row in rows("candidate"):
        bucket = candidate_bucket(bytes.fromhex(row["salt"]), DeviceId(row["device"]))
        assert (bucket < row["share"]) is row["is_in"]


def word_of(trusted: Trusted, outcome: Outcome) -> str:
    match outcome:
        case AdmittedRoot(root):
            return f"root {root.number}"
        case AdmittedUpdate(holding=holding):
            return f"admitted {holding.epoch}.{holding.version}"
        case Wanted(offering=offering):
            return f"wanted {trusted.root.epoch}.{offering.version}"
        case Nothing():
            return "nothing"


def test_the_life_of_a_device() -> None:
    life = DOCUMENT["life"]
    environment = Environment(life["environment"])
    topics = Topics("flagcast", environment)
    trusted = begin(environment, Device(DeviceId(life["device"])), bytes.fromhex(life["anchor"]))
    for number, step in enumerate(life["steps"]):
        address = topics.address(step["topic"])
        assert address is not None
        try:
            trusted, outcome = admit(trusted, address, bytes.fromhex(step["message"]), now=step["now"])
        except Refused as error:
            word = error.attack
        else:
            word = word_of(trusted, outcome)
        assert word == step["outcome"], f"step {number}: {step['why']}"
        assert trusted.floor == step.get("floor", trusted.floor), f"step {number}: {step['why']}"
    assert trusted.root.number == 2
    assert trusted.holdings[Namespace("default")].digest.hex() == life["digest"]
