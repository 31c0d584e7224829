"""Who signed: Ed25519 (RFC 8032) signatures of an envelope against a role of a root.

The only module of this distribution that holds key objects.
"""

from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from .envelope import Envelope
from .errors import BadSignature, KeyCountedTwice, ThresholdNotMet, UnknownKey, WrongRole
from .ids import KeyId
from .root import Role, Root


def verify(
    envelope: Envelope, root: Root, role: Role, *, also_known: frozenset[KeyId] = frozenset()
) -> bytes:
    """The payload, once enough distinct keys of the role have signed it.

    1. Every key is one that the root lists, and of this role; keys in `also_known` are passed over, because a root is
       signed by the keys of two roots.
    2. No key stands twice.
    3. Every signature that counts fits.
    4. As many as the role's threshold.

    Raises:
        UnknownKey, WrongRole, KeyCountedTwice, BadSignature, ThresholdNotMet
    """
    quorum = root.roles[role]
    counted: set[KeyId] = set()
    for signature in envelope.signatures:
        if signature.key not in quorum.keys:
            if signature.key in also_known:
                continue
            if signature.key in root.keys:
                raise WrongRole(f"key {signature.key.hex()} has no {role} role in root {root.number}")
            raise UnknownKey(f"key {signature.key.hex()} is not in root {root.number}")
        if signature.key in counted:
            raise KeyCountedTwice(f"key {signature.key.hex()} signed more than once")
        counted.add(signature.key)
    for signature in envelope.signatures:
        if signature.key in counted and not _fits(
            root.keys[signature.key].raw, signature.signature, signature.signed
        ):
            raise BadSignature(f"the signature of key {signature.key.hex()} does not fit")
    if len(counted) < quorum.threshold:
        raise ThresholdNotMet(f"{len(counted)} of {quorum.threshold} {role} keys signed")
    return envelope.payload


def _fits(raw: bytes, signature: bytes, signed: bytes) -> bool:
    try:
        _load(raw).verify(signature, signed)
    except InvalidSignature:
        return False
    return True


@lru_cache(maxsize=64)
def _load(raw: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(raw)
