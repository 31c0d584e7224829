"""Signing keys: made, kept in files, and used.

A `Signer` is whatever holds an Ed25519 key (RFC 8032) and signs with it. Here it is a file of its own: PKCS#8 PEM, mode 0600,
with a passphrase or without, and its public half in a file beside it. This is the only module of the publisher that holds key
objects; what leaves it are signatures and public keys.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from flagcast_bridge import files
from flagcast_shared.ed25519 import flaw
from flagcast_shared.envelope import seal, to_sign
from flagcast_shared.errors import InvalidConfiguration, InvalidIdentifier
from flagcast_shared.limits import KEY_MAX_BYTES
from flagcast_shared.messages import Place
from flagcast_shared.root import PublicKey
from flagcast_shared.topics import Kind

from . import pkcs8
from .passphrase import VARIABLE, Unlock, from_environment

KEY_FILE_MAX_BYTES: Final = 16_384
"""A PEM file of an Ed25519 key is 119 bytes; whatever is larger than this is another file."""
PUBLIC_SUFFIX: Final = ".pub"
"""What the name of a key's file gets for that of its public half."""

_PEM: Final = b"-----BEGIN "
_NAME: Final = b"name: "


class Signer(Protocol):
    """One signing key, wherever it is kept: in a file, in a token, in a service."""

    @property
    def public(self) -> PublicKey:
        """What a root lists."""
        ...

    def sign(self, data: bytes) -> bytes:
        """The Ed25519 signature (RFC 8032, 5.1.6), 64 bytes; the same for the same data."""
        ...


class FileSigner:
    """A signing key that is kept in a file."""

    __slots__ = ("_key", "public")

    public: PublicKey
    """What a root lists."""

    def __init__(self, key: Ed25519PrivateKey, name: str) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw), name)

    def __repr__(self) -> str:
        """The public half only, so that no log ever holds the other."""
        return f"FileSigner({self.public.name!r}, {self.public.id.hex()})"

    def sign(self, data: bytes) -> bytes:
        """The signature, 64 bytes; the same for the same data (RFC 8032, 5.1.6)."""
        return self._key.sign(data)

    def save(self, path: Path, passphrase: bytes | None = None) -> None:
        """Write the key into a new file that only its owner may read; an existing file is never touched.

        Raises:
            InvalidConfiguration: the file exists or cannot be written.
        """
        _write_new(path, self._encoded(passphrase), files.PRIVATE_MODE)

    def save_again(self, path: Path, passphrase: bytes) -> int | None:
        """Replace the key's file by one under this passphrase; a link stays one.

        Returns the number of the group that lost its right to read the file, because this user may give it none of that group.

        Raises:
            InvalidConfiguration: the file cannot be written.
        """
        try:
            place = path.resolve()
            found = place.stat()
            if found.st_uid != os.geteuid():
                raise InvalidConfiguration(
                    f"{path}: belongs to another user, who could not read the new file; run this as that user"
                )
            mode = files.PRIVATE_MODE | found.st_mode & stat.S_IRGRP
            given = files.replace(place, self._encoded(passphrase), mode, found.st_gid)
        except OSError as error:
            raise InvalidConfiguration(f"{path}: the key cannot be written: {error.strerror}") from error
        return None if given == mode else found.st_gid

    def _encoded(self, passphrase: bytes | None) -> bytes:
        if passphrase is None:
            return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        der = self._key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        return pkcs8.encrypt(der, passphrase)


def create(name: str) -> FileSigner:
    """A new key; `name` is for people and stands in the root."""
    return FileSigner(Ed25519PrivateKey.generate(), name)


def load(
    path: Path, name: str, unlock: Unlock = from_environment, *, allow_group: bool = False
) -> FileSigner:
    """The key of a file. `unlock` is asked for the passphrase of one that is encrypted.

    Raises:
        InvalidConfiguration: no such file, not an Ed25519 key, readable by others than its owner (and its group, with
            `allow_group`), or the passphrase is missing or wrong.
    """
    pem = _read_private(path, allow_group=allow_group)
    passphrase = None
    if pkcs8.is_encrypted(pem):
        passphrase = unlock(path)
        if passphrase is None:
            raise InvalidConfiguration(
                f"{path}: protected by a passphrase; give --passphrase to be asked for it, or name a file that holds it with "
                f"--passphrase-file or {VARIABLE}"
            )
    try:
        key = load_pem_private_key(pem, password=passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if passphrase is not None:
            raise InvalidConfiguration(f"{path}: the passphrase is wrong, or the file is damaged") from None
        raise InvalidConfiguration(
            f"{path}: not a signing key; allowed is an Ed25519 key as PKCS#8 PEM"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidConfiguration(f"{path}: a key of another kind; allowed is Ed25519")
    return FileSigner(key, name)


def is_encrypted(path: Path, *, allow_group: bool = False) -> bool:
    """Whether a key file takes a passphrase. Raises InvalidConfiguration."""
    return pkcs8.is_encrypted(_read_private(path, allow_group=allow_group))


def weakness(path: Path, *, allow_group: bool = False) -> str:
    """The reason why passphrases of a key file are tried too fast; blank where it has none. Raises InvalidConfiguration."""
    pem = _read_private(path, allow_group=allow_group)
    return pkcs8.weakness(pem) if pkcs8.is_encrypted(pem) else ""


def weak_file(path: Path, reason: str) -> str:
    """The line about a key file with a weakness, and the command that writes it anew."""
    return f"{path}: its passphrase is protected by {reason} alone; write it anew with: flagcast keys passphrase {path}"


def public_file(path: Path) -> Path:
    """Where the public half of a key file stands."""
    return path.with_name(path.name + PUBLIC_SUFFIX)


def encode_public(key: PublicKey) -> bytes:
    """A public key as a file: its name in a line of its own, and PEM SubjectPublicKeyInfo (RFC 8410, RFC 7468)."""
    pem = Ed25519PublicKey.from_public_bytes(key.raw).public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    return _NAME + key.name.encode() + b"\n" + pem


def save_public(key: PublicKey, path: Path) -> None:
    """Write the public half that belongs to the key file `path` into a new file beside it. Raises InvalidConfiguration."""
    _write_new(public_file(path), encode_public(key), files.PUBLIC_MODE)


def load_public(path: Path) -> PublicKey:
    """The public key of a file; one without a name gets that of the file.

    Raises:
        InvalidConfiguration: no such file, not an Ed25519 key, or one that devices refuse.
    """
    try:
        content = files.read(path, KEY_FILE_MAX_BYTES)
    except OSError as error:
        raise InvalidConfiguration(f"{path}: the public key cannot be read: {error.strerror}") from error
    wrong = InvalidConfiguration(f"{path}: not a public key; allowed is an Ed25519 key as PEM")
    if content is None or _PEM not in content:
        raise wrong
    if b"PRIVATE KEY-----" in content:
        raise InvalidConfiguration(
            f"{path}: a private key, which stays where it is; take {public_file(path).name}"
        )
    before = content[: content.index(_PEM)]
    try:
        key = load_pem_public_key(content[len(before) :])
        named = [line[len(_NAME) :].decode() for line in before.splitlines() if line.startswith(_NAME)]
    except (ValueError, UnsupportedAlgorithm):
        raise wrong from None
    if not isinstance(key, Ed25519PublicKey):
        raise wrong
    try:
        name = parse_name(named[0] if named else path.name.removesuffix(PUBLIC_SUFFIX))
    except InvalidIdentifier as error:
        raise InvalidConfiguration(f"{path}: {error}") from error
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    if reason := flaw(raw):
        raise InvalidConfiguration(f"{path}: no key that may sign: {reason}; devices would refuse its root")
    return PublicKey(raw, name)


def parse_name(text: str) -> str:
    """The name of a key, for people: what prints in one line, 1 to 256 bytes. Raises InvalidIdentifier."""
    if not text.strip() or not text.isprintable() or len(text.encode(errors="replace")) > KEY_MAX_BYTES:
        raise InvalidIdentifier(f"name {text!r}: 1 to {KEY_MAX_BYTES} bytes that print, in one line")
    return text


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


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        files.write_new(path, content, mode)
    except FileExistsError:
        raise InvalidConfiguration(
            f"{path}: a key is already there, and keys are never overwritten"
        ) from None
    except OSError as error:
        raise InvalidConfiguration(f"{path}: the key cannot be written: {error.strerror}") from error


def _read_private(path: Path, *, allow_group: bool) -> bytes:
    try:
        pem = files.read_secret(path, KEY_FILE_MAX_BYTES, "signing key", allow_group=allow_group)
    except OSError as error:
        raise InvalidConfiguration(f"{path}: the signing key cannot be read: {error.strerror}") from error
    if pem is None:
        raise InvalidConfiguration(f"{path}: larger than {KEY_FILE_MAX_BYTES} bytes; not a signing key")
    return pem
