"""The COSE working group's own examples: the same bytes are signed, the same signatures fit."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flagcast_shared.envelope import Envelope, Signature, open_envelope, sig_structure
from flagcast_shared.errors import BadSignature, HeaderNotAllowed
from flagcast_shared.ids import Environment, Epoch, KeyId, Namespace
from flagcast_shared.keyring import verify
from flagcast_shared.messages import Place
from flagcast_shared.root import PublicKey, Quorum, Role, Root
from flagcast_shared.topics import Kind

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "cose_wg.json").read_text())["vectors"]
every_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])


def signed_by(vector: dict[str, Any]) -> bytes:
    signer = vector["signer"]
    return sig_structure(
        bytes.fromhex(vector["protected"]),
        None if signer is None else bytes.fromhex(signer),
        bytes.fromhex(vector["external_aad"]),
        bytes.fromhex(vector["payload"]),
    )


def root_of(public: bytes) -> tuple[KeyId, Root]:
    key = PublicKey(public)
    quorum = Quorum(frozenset([key.id]), 1)
    roles = {Role.ROOT: quorum, Role.PUBLISHER: quorum}
    return key.id, Root(Environment("test"), 1, Epoch(1), 0, 1, {key.id: key}, roles)


@every_vector
def test_signed_bytes(vector: dict[str, Any]) -> None:
    assert signed_by(vector).hex() == vector["signed"]


@every_vector
def test_signature_by_the_seed(vector: dict[str, Any]) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["seed"]))
    assert key.public_key().public_bytes_raw().hex() == vector["public"]
    assert key.sign(signed_by(vector)).hex() == vector["signature"]


@every_vector
def test_signature_verifies_and_no_other_does(vector: dict[str, Any]) -> None:
    key, root = root_of(bytes.fromhex(vector["public"]))
    signature = bytes.fromhex(vector["signature"])
    signed = signed_by(vector)
    envelope = Envelope(b"payload", (Signature(key, signed, signature),))
    assert verify(envelope, root, Role.PUBLISHER) == b"payload"
    for wrong in (
        Signature(key, signed, signature[:-1] + bytes([signature[-1] ^ 1])),
        Signature(key, signed[:-1] + b"!", signature),
    ):
        with pytest.raises(BadSignature):
            verify(Envelope(b"payload", (wrong,)), root, Role.PUBLISHER)


@every_vector
def test_message_is_not_of_our_profile(vector: dict[str, Any]) -> None:
    message = bytes.fromhex(vector["message"])
    assert bytes.fromhex(vector["payload"]) in message
    assert message.endswith(bytes.fromhex(vector["signature"]))
    with pytest.raises(HeaderNotAllowed):
        open_envelope(message, Place(Environment("test"), Namespace("default"), Kind.HEAD))
