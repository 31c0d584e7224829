"""Encrypted key files: what stands in them, read by OpenSSL's own program, and files that other tools wrote."""

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from flagcast_bridge.signing import pkcs8, signer

OPENSSL = shutil.which("openssl")
PASSPHRASE = b"open sesame"
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="no openssl program on this machine")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "a.key"
    signer.create("a").save(path, PASSPHRASE)
    return path


def openssl(*words: str | Path) -> str:
    assert OPENSSL is not None
    done = subprocess.run(
        [OPENSSL, *(str(word) for word in words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def pem_of(*words: str, folder: Path) -> bytes:
    plain = folder / "plain.pem"
    plain.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return openssl(
        "pkcs8", "-topk8", "-in", plain, "-passout", f"pass:{PASSPHRASE.decode()}", *words
    ).encode()


@needs_openssl
def test_the_file_holds_scrypt_with_its_parameters_and_aes(key: Path) -> None:
    shown = openssl("asn1parse", "-in", key)
    for word in (":PBES2", "scrypt", ":aes-256-cbc"):
        assert word in shown
    assert "PBKDF2" not in shown
    integers = [int(line.rpartition(":")[2], 16) for line in shown.splitlines() if "INTEGER" in line]
    assert integers == [2**14, 8, 5]
    salt, vector, data = (line for line in shown.splitlines() if "OCTET STRING" in line)
    assert ("l=  16" in salt, "l=  16" in vector, "l=  64" in data) == (True, True, True)


@needs_openssl
def test_openssl_reads_the_key_and_no_other_passphrase_opens_it(key: Path) -> None:
    pem = openssl("pkey", "-in", key, "-passin", "pass:open sesame", "-pubout")
    (key.parent / "a.pub").write_text(pem)
    assert (
        signer.load_public(key.parent / "a.pub").raw == signer.load(key, "a", lambda _: PASSPHRASE).public.raw
    )
    assert OPENSSL is not None
    wrong = subprocess.run(
        [OPENSSL, "pkey", "-in", key, "-passin", "pass:open", "-noout"], capture_output=True, check=False
    )
    assert wrong.returncode != 0


def test_the_same_key_under_the_same_passphrase_is_never_the_same_file(tmp_path: Path) -> None:
    made = signer.create("a")
    for name in ("one", "two"):
        made.save(tmp_path / name, PASSPHRASE)
    assert (tmp_path / "one").read_bytes() != (tmp_path / "two").read_bytes()


def test_the_lines_are_those_of_pem(key: Path) -> None:
    first, *lines, last = key.read_text().splitlines()
    assert (first, last) == ("-----BEGIN ENCRYPTED PRIVATE KEY-----", "-----END ENCRYPTED PRIVATE KEY-----")
    assert max(map(len, lines)) == 64
    base64.b64decode("".join(lines), validate=True)


def test_a_key_that_is_written_today_is_not_weak_and_one_of_before_is(key: Path, tmp_path: Path) -> None:
    assert pkcs8.weakness(key.read_bytes()) == ""
    old = Ed25519PrivateKey.generate()
    before = old.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSPHRASE))
    assert pkcs8.weakness(before) == "PBKDF2 with 2048 rounds"
    (tmp_path / "old.key").write_bytes(before)
    (tmp_path / "old.key").chmod(0o600)
    loaded = signer.load(tmp_path / "old.key", "old", lambda _: PASSPHRASE)
    assert loaded.public.raw == old.public_key().public_bytes_raw()


@needs_openssl
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("-v2", "aes256", "-iter", "600000"), ""),
        (("-v2", "aes256", "-iter", "599999"), "PBKDF2 with 599999 rounds"),
        (("-v2", "aes256", "-v2prf", "hmacWithSHA1"), "PBKDF2 with 2048 rounds of HMAC-SHA-1"),
        (
            ("-v2", "aes256", "-v2prf", "hmacWithSHA1", "-iter", "600000"),
            "PBKDF2 with 600000 rounds of HMAC-SHA-1",
        ),
        (("-v2", "aes256", "-v2prf", "hmacWithSHA1", "-iter", "1300000"), ""),
        (("-scrypt", "-scrypt_p", "5"), ""),
        # What openssl writes unless told otherwise: a fifth of the work.
        (("-scrypt",), "scrypt with N = 16384, r = 8, p = 1"),
        (("-scrypt", "-scrypt_N", "1024"), "scrypt with N = 1024, r = 8, p = 1"),
    ],
)
def test_files_of_openssl_are_read_and_the_weak_ones_told(
    tmp_path: Path, words: tuple[str, ...], reason: str
) -> None:
    path = tmp_path / "a.key"
    path.write_bytes(pem_of(*words, folder=tmp_path))
    path.chmod(0o600)
    assert signer.load(path, "a", lambda _: PASSPHRASE).public.name == "a"
    assert pkcs8.weakness(path.read_bytes()) == reason


@pytest.mark.parametrize("content", [b"", b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"\x00" * 40])
def test_no_content_ends_the_look_for_a_weakness(content: bytes) -> None:
    assert pkcs8.weakness(content) == ""
    whole = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n%s\n-----END ENCRYPTED PRIVATE KEY-----\n"
    assert pkcs8.weakness(whole % base64.b64encode(content)) == ""
