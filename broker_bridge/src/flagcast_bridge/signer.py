"""Signing keys: made, kept in files, and used.

A key is an Ed25519 key (RFC 8032) in a file of its own, PKCS#8 PEM without a password, mode 0600. The only module of the
publisher that holds key objects; what leaves it are signatures and public keys.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from flagcast_shared.envelope import seal, to_sign
from flagcast_shared.errors import InvalidConfiguration
from flagcast_shared.messages import Place
from flagcast_shared.root import PublicKey
from flagcast_shared.topics import Kind

KEY_FILE_MAX_BYTES: Final = 16_384
"""A PEM file of an Ed25519 key is 119 bytes; whatever is larger than this is another file."""

_WORLD: Final = stat.S_IRWXO


class Signer:
    """One signing key."""

    __slots__ = ("_key", "public")

    public: PublicKey
    """What a root lists."""

    def __init__(self, key: Ed25519PrivateKey, name: str) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw), name)

    def __repr__(self) -> str:
        """The public half only, so that no log ever holds the other."""
        return f"Signer({self.public.name!r}, {self.public.id.hex()})"

    def sign(self, data: bytes) -> bytes:
        """The signature, 64 bytes; the same for the same data (RFC 8032, 5.1.6)."""
        return self._key.sign(data)

    def save(self, path: Path) -> None:
        """Write the key into a new file that only its owner may read; an existing file is never touched.

        Raises:
            InvalidConfiguration: the file exists or cannot be written.
        """
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            raise InvalidConfiguration(
                f"{path}: a key is already there, and keys are never overwritten"
            ) from None
        except OSError as error:
            raise InvalidConfiguration(f"{path}: the key cannot be written: {error.strerror}") from error


def create(name: str) -> Signer:
    """A new key; `name` is for people and stands in the root."""
    return Signer(Ed25519PrivateKey.generate(), name)


def load(path: Path, name: str) -> Signer:
    """The key of a file.

    Raises:
        InvalidConfiguration: no such file, not an Ed25519 key, protected by a password, or readable by everybody.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            pem = file.read(KEY_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise InvalidConfiguration(f"{path}: the signing key cannot be read: {error.strerror}") from error
    if mode & _WORLD:
        raise InvalidConfiguration(
            f"{path}: every user of this machine may use this signing key; run: chmod 600 {path}"
        )
    if len(pem) > KEY_FILE_MAX_BYTES:
        raise InvalidConfiguration(f"{path}: larger than {KEY_FILE_MAX_BYTES} bytes; not a signing key")
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise InvalidConfiguration(
            f"{path}: protected by a password; allowed is PKCS#8 PEM without one"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidConfiguration(
            f"{path}: not a signing key; allowed is an Ed25519 key as PKCS#8 PEM"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidConfiguration(f"{path}: a key of another kind; allowed is Ed25519")
    return Signer(key, name)


def sign_message(payload: bytes, place: Place, signers: Sequence[Signer], threshold: int) -> bytes:
    """The message from a payload: COSE_Sign1 where one signature is enough and it is no root, else COSE_Sign.

    Raises:
        InvalidConfiguration: fewer signers than the threshold.
    """
    distinct = {signer.public.id: signer for signer in signers}
    if len(distinct) < threshold:
        raise InvalidConfiguration(f"{place.kind}: {threshold} keys must sign and {len(distinct)} are here")
    # A root carries everybody's signature, because two roots' keys must sign it; other messages as few as suffice.
    chosen = list(distinct.values()) if place.kind is Kind.ROOT else list(distinct.values())[:threshold]
    several = place.kind is Kind.ROOT or threshold > 1
    signatures = [
        (each.public.id, each.sign(to_sign(payload, place, each.public.id, several=several)))
        for each in chosen
    ]
    return seal(payload, place, signatures, several=several)
