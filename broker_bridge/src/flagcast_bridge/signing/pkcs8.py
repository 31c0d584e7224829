"""Encrypted private keys as files: PKCS#8 under PBES2 (RFC 5958, RFC 8018), with scrypt (RFC 7914) and AES-256-CBC.

`cryptography` reads every kind of PBES2 and writes only one: PBKDF2 with 2,048 rounds, which is nothing against a passphrase
that a person remembers. So the outer structure is written here, with the DER of `cryptography`. `openssl pkey` reads it.
"""

import base64
import binascii
import os
from typing import Final

from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.x509 import ObjectIdentifier

SCRYPT_N: Final = 2**14
"""With r = 8 it takes 16 MiB; OpenSSL refuses to read a file that takes more than 32 MiB, which N = 2^15 just does."""
SCRYPT_R: Final = 8
"""The block size that RFC 7914, 2, gives."""
SCRYPT_P: Final = 5
"""With that N, OWASP's password storage guidance asks for as much: 0.2 s for each passphrase that is tried."""
PBKDF2_ROUNDS_MIN: Final = 600_000
"""OWASP's password storage guidance for HMAC-SHA-256."""
PBKDF2_SHA1_ROUNDS_MIN: Final = 1_300_000
"""The same for HMAC-SHA-1, which is what a file means that names no function."""
SALT_BYTES: Final = 16
"""RFC 8018, 4.1, asks for 8 at least."""

_BEGIN: Final = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"  # RFC 7468, 11
_END: Final = b"-----END ENCRYPTED PRIVATE KEY-----"
_LINE_CHARACTERS: Final = 64
_KEY_BYTES: Final = 32
_BLOCK_BITS: Final = 128
_PBES2: Final = ObjectIdentifier("1.2.840.113549.1.5.13")
_PBKDF2: Final = ObjectIdentifier("1.2.840.113549.1.5.12")
_HMAC_SHA1: Final = ObjectIdentifier("1.2.840.113549.2.7")
_SCRYPT: Final = ObjectIdentifier("1.3.6.1.4.1.11591.4.11")
_AES_256_CBC: Final = ObjectIdentifier("2.16.840.1.101.3.4.1.42")


@asn1.sequence
class _ScryptParameters:
    # RFC 7914, 7.1
    salt: bytes
    cost: int
    block_size: int
    parallelization: int
    key_length: int | None


@asn1.sequence
class _Algorithm:
    # AlgorithmIdentifier, whatever its parameters are (RFC 5280, 4.1.1.2); all that are read here have some.
    algorithm: ObjectIdentifier
    parameters: asn1.TLV


@asn1.sequence
class _Pbkdf2Parameters:
    # RFC 8018, A.2; the salt as every tool writes it, in place.
    salt: bytes
    rounds: int
    key_length: int | None
    function: _Algorithm | None


@asn1.sequence
class _ScryptAlgorithm:
    algorithm: ObjectIdentifier
    parameters: _ScryptParameters


@asn1.sequence
class _CipherAlgorithm:
    algorithm: ObjectIdentifier
    vector: bytes


@asn1.sequence
class _Pbes2Parameters:
    # RFC 8018, A.4
    derivation: _ScryptAlgorithm
    cipher: _CipherAlgorithm


@asn1.sequence
class _Pbes2Algorithm:
    algorithm: ObjectIdentifier
    parameters: _Pbes2Parameters


@asn1.sequence
class _EncryptedKey:
    # EncryptedPrivateKeyInfo (RFC 5958, 3)
    algorithm: _Pbes2Algorithm
    data: bytes


@asn1.sequence
class _AnyPbes2Parameters:
    derivation: _Algorithm
    cipher: _Algorithm


@asn1.sequence
class _AnyEncryptedKey:
    algorithm: _Algorithm
    data: bytes


def is_encrypted(pem: bytes) -> bool:
    """Whether a private key as PEM takes a passphrase."""
    return _BEGIN in pem


def encrypt(key: bytes, passphrase: bytes) -> bytes:
    """PEM of a private key that is given as DER of PKCS#8, encrypted under a passphrase."""
    salt, vector = os.urandom(SALT_BYTES), os.urandom(_BLOCK_BITS // 8)
    secret = Scrypt(salt=salt, length=_KEY_BYTES, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P).derive(passphrase)
    padder = PKCS7(_BLOCK_BITS).padder()
    encryptor = Cipher(algorithms.AES(secret), modes.CBC(vector)).encryptor()
    data = encryptor.update(padder.update(key) + padder.finalize()) + encryptor.finalize()
    scrypt = _ScryptParameters(
        salt=salt, cost=SCRYPT_N, block_size=SCRYPT_R, parallelization=SCRYPT_P, key_length=None
    )
    parameters = _Pbes2Parameters(
        derivation=_ScryptAlgorithm(algorithm=_SCRYPT, parameters=scrypt),
        cipher=_CipherAlgorithm(algorithm=_AES_256_CBC, vector=vector),
    )
    algorithm = _Pbes2Algorithm(algorithm=_PBES2, parameters=parameters)
    return _armoured(asn1.encode_der(_EncryptedKey(algorithm=algorithm, data=data)))


def weakness(pem: bytes) -> str:
    """Weakness of an encrypted key's derivation, in words; blank for none.

    Blank for a damaged file too: `signer.load` has the words for that.
    """
    try:
        body = pem[pem.index(_BEGIN) + len(_BEGIN) : pem.index(_END)]
        outer = asn1.decode_der(_AnyEncryptedKey, base64.b64decode(b"".join(body.split()), validate=True))
        if outer.algorithm.algorithm != _PBES2:
            return "an encryption older than PBES2"
        derivation = outer.algorithm.parameters.parse(_AnyPbes2Parameters).derivation
        if derivation.algorithm == _PBKDF2:
            return _pbkdf2_weakness(derivation.parameters.parse(_Pbkdf2Parameters))
        if derivation.algorithm == _SCRYPT:
            found = derivation.parameters.parse(_ScryptParameters)
            work = found.cost * found.block_size * found.parallelization
            if work < SCRYPT_N * SCRYPT_R * SCRYPT_P:
                return f"scrypt with N = {found.cost}, r = {found.block_size}, p = {found.parallelization}"
    except (ValueError, binascii.Error):
        return ""
    return ""


def _pbkdf2_weakness(found: _Pbkdf2Parameters) -> str:
    is_sha1 = found.function is None or found.function.algorithm == _HMAC_SHA1
    if found.rounds >= (PBKDF2_SHA1_ROUNDS_MIN if is_sha1 else PBKDF2_ROUNDS_MIN):
        return ""
    return f"PBKDF2 with {found.rounds} rounds" + (" of HMAC-SHA-1" if is_sha1 else "")


def _armoured(der: bytes) -> bytes:
    text = base64.b64encode(der)
    lines = [text[start : start + _LINE_CHARACTERS] for start in range(0, len(text), _LINE_CHARACTERS)]
    return b"\n".join([_BEGIN, *lines, _END, b""])
