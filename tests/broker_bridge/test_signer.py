import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from flagcast_bridge.signing import signer
from flagcast_shared import envelope, keyring
from flagcast_shared.errors import BadSignature, InvalidConfiguration
from flagcast_shared.ids import Environment, Epoch, Namespace
from flagcast_shared.messages import Place
from flagcast_shared.root import Quorum, Role, Root
from flagcast_shared.topics import Kind

ENVIRONMENT = Environment("test")
HEAD = Place(ENVIRONMENT, Namespace("default"), Kind.HEAD)


def root_of(*signers: signer.FileSigner, threshold: int = 1) -> Root:
    keys = {each.public.id: each.public for each in signers}
    quorum = Quorum(frozenset(keys), threshold)
    return Root(ENVIRONMENT, 1, Epoch(1), 1, 2, keys, {Role.ROOT: quorum, Role.PUBLISHER: quorum})


def test_a_saved_key_is_loaded_as_the_same_key_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    made = signer.create("publisher")
    made.save(tmp_path / "publisher.key")
    assert (tmp_path / "publisher.key").stat().st_mode & 0o777 == 0o600
    loaded = signer.load(tmp_path / "publisher.key", "publisher")
    assert loaded.public == made.public
    assert loaded.sign(b"x") == made.sign(b"x")


def test_a_key_is_written_with_mode_0600_whatever_the_umask(tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib; os.umask(0); from flagcast_bridge.signing import signer;"
        "signer.create('a').save(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script, str(tmp_path / "a.key")], check=True)
    assert (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600


def test_a_key_is_pkcs8_pem_that_other_tools_read(tmp_path: Path) -> None:
    signer.create("publisher").save(tmp_path / "publisher.key")
    assert (tmp_path / "publisher.key").read_text().startswith("-----BEGIN PRIVATE KEY-----\n")


def test_an_existing_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "publisher.key"
    signer.create("publisher").save(path)
    before = path.read_bytes()
    with pytest.raises(InvalidConfiguration, match="never overwritten"):
        signer.create("publisher").save(path)
    assert path.read_bytes() == before


def test_a_key_that_everybody_may_read_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "publisher.key"
    signer.create("publisher").save(path)
    path.chmod(0o644)
    with pytest.raises(InvalidConfiguration, match="chmod 600"):
        signer.load(path, "publisher")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a signing key"),
        (b"not a key", "not a signing key"),
        (b"x" * 20_000, "larger than"),
        (
            ec.generate_private_key(ec.SECP256R1()).private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
            ),
            "another kind",
        ),
        (
            ed25519.Ed25519PrivateKey.generate().private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
            ),
            "protected by a passphrase",
        ),
    ],
)
def test_what_is_no_signing_key_is_refused_in_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "publisher.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InvalidConfiguration, match=says) as caught:
        signer.load(path, "publisher")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match=r"absent\.key.*No such file"):
        signer.load(tmp_path / "absent.key", "publisher")


def test_the_private_half_never_shows() -> None:
    made = signer.create("publisher")
    assert repr(made) == f"FileSigner('publisher', {made.public.id.hex()})"


def test_one_signature_is_a_sign1_that_verifies() -> None:
    made = signer.create("publisher")
    message = signer.sign_message(b"payload", HEAD, [made], 1)
    assert message.startswith(b"\xd2\x84")
    opened = envelope.open_envelope(message, HEAD)
    assert keyring.verify(opened, root_of(made), Role.PUBLISHER) == b"payload"


def test_a_threshold_of_two_takes_two_distinct_signers() -> None:
    first, second, third = (signer.create(name) for name in ("a", "b", "c"))
    message = signer.sign_message(b"payload", HEAD, [first, second, third], 2)
    opened = envelope.open_envelope(message, HEAD)
    assert len(opened.signatures) == 2
    keyring.verify(opened, root_of(first, second, third, threshold=2), Role.PUBLISHER)
    with pytest.raises(InvalidConfiguration, match="2 keys must sign and 1 are here"):
        signer.sign_message(b"payload", HEAD, [first, first], 2)


def test_a_root_carries_every_signature() -> None:
    first, second = signer.create("a"), signer.create("b")
    place = Place(ENVIRONMENT, Namespace(""), Kind.ROOT)
    opened = envelope.open_envelope(signer.sign_message(b"payload", place, [first, second], 1), place)
    assert {each.key for each in opened.signatures} == {first.public.id, second.public.id}


def test_a_signature_counts_at_its_place_only() -> None:
    made = signer.create("publisher")
    message = signer.sign_message(b"payload", HEAD, [made], 1)
    elsewhere = Place(ENVIRONMENT, Namespace("other"), Kind.HEAD)
    with pytest.raises(BadSignature):
        keyring.verify(envelope.open_envelope(message, elsewhere), root_of(made), Role.PUBLISHER)
