"""The signed envelope: our strict profile of COSE (RFC 9052), opened without believing any of it.

Publisher messages with a threshold of one are COSE_Sign1 (tag 18). Roots, and publisher messages with a higher threshold, are
COSE_Sign (tag 98). Allowed headers, all protected: algorithm EdDSA (1: -8), content type (3) and key id (4); every
unprotected bucket is empty. The outer structure is read by hand, byte by byte, because it is the only thing that is read before
a signature was checked: fixed shape, shortest lengths, nothing recursive, nothing allocated beyond the message.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .codec import Value, encode
from .errors import EmptyPayload, HeaderNotAllowed, Malformed, NotDeterministic, TooLarge, TrailingBytes
from .ids import KeyId
from .limits import MESSAGE_MAX_BYTES, ROOT_KEYS_MAX, ROOT_MAX_BYTES
from .messages import Place
from .topics import FORMAT, Kind

ALGORITHM_EDDSA: Final = -8
SIGNATURE_BYTES: Final = 64
_KEY_ID_BYTES: Final = 8
_TAG_SIGN1: Final = b"\xd2\x84"  # tag 18, array of 4
_TAG_SIGN: Final = b"\xd8\x62\x84"  # tag 98, array of 4
_NO_HEADERS: Final = b"\xa0"


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature, not yet checked: `signed` are the bytes that it must fit (RFC 9052, 4.4)."""

    key: KeyId
    signed: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """An opened message. Nothing in it is believed before `keyring.verify` has passed."""

    payload: bytes
    signatures: tuple[Signature, ...]


def content_type(kind: Kind) -> str:
    """The media type in the protected header."""
    return f"application/vnd.flagcast.{kind}+cbor"


def to_sign(payload: bytes, place: Place, key: KeyId, *, several: bool) -> bytes:
    """The bytes that a key signs for a place; `several` for COSE_Sign."""
    aad = encode(["flagcast", FORMAT, place.environment, place.namespace, place.kind.value])
    if several:
        return sig_structure(_body_header(place.kind), _signer_header(key), aad, payload)
    return sig_structure(_sign1_header(place.kind, key), None, aad, payload)


def sig_structure(protected: bytes, signer: bytes | None, external_aad: bytes, payload: bytes) -> bytes:
    """The Sig_structure of RFC 9052, 4.4; `signer` is a signer's protected header, None in a COSE_Sign1."""
    if signer is None:
        return encode(["Signature1", protected, external_aad, payload])
    return encode(["Signature", protected, signer, external_aad, payload])


def seal(payload: bytes, place: Place, signatures: Sequence[tuple[KeyId, bytes]], *, several: bool) -> bytes:
    """The message from a payload and signatures over `to_sign`; one signature exactly unless `several`."""
    if several:
        listed: list[Value] = [[_signer_header(key), {}, signature] for key, signature in sorted(signatures)]
        return _TAG_SIGN + _rest(encode([_body_header(place.kind), {}, payload, listed]))
    ((key, signature),) = signatures
    return _TAG_SIGN1 + _rest(encode([_sign1_header(place.kind, key), {}, payload, signature]))


def open_envelope(data: bytes, place: Place) -> Envelope:
    """Take a message apart. The size is checked first, then the shape; no signature is.

    Raises:
        EmptyPayload, TooLarge, Malformed, NotDeterministic, TrailingBytes: not an envelope.
        HeaderNotAllowed: a header outside the profile.
    """
    if not data:
        raise EmptyPayload(f"{place.kind}: the retained message was cleared")
    limit = ROOT_MAX_BYTES if place.kind is Kind.ROOT else MESSAGE_MAX_BYTES
    if len(data) > limit:
        raise TooLarge(f"{place.kind}: {len(data)} bytes, at most {limit}")
    if data.startswith(_TAG_SIGN1) and place.kind is not Kind.ROOT:
        reader = _Reader(data, len(_TAG_SIGN1), place)
        envelope = _open_sign1(reader, place)
    elif data.startswith(_TAG_SIGN):
        reader = _Reader(data, len(_TAG_SIGN), place)
        envelope = _open_sign(reader, place)
    else:
        raise Malformed(f"{place.kind}: not a COSE message of this profile")
    reader.end()
    return envelope


def _open_sign1(reader: "_Reader", place: Place) -> Envelope:
    header = reader.byte_string()
    reader.no_unprotected_headers()
    payload = reader.byte_string()
    signature = reader.signature()
    key = _key_of(header)
    if header != _sign1_header(place.kind, key):
        raise HeaderNotAllowed(
            f"{place.kind}: its protected header is not algorithm EdDSA, content type and key id"
        )
    return Envelope(payload, (Signature(key, to_sign(payload, place, key, several=False), signature),))


def _open_sign(reader: "_Reader", place: Place) -> Envelope:
    header = reader.byte_string()
    reader.no_unprotected_headers()
    payload = reader.byte_string()
    if header != _body_header(place.kind):
        raise HeaderNotAllowed(f"{place.kind}: its protected header is not the content type alone")
    signatures = []
    for _ in range(reader.array(ROOT_KEYS_MAX)):
        if reader.array(3) != 3:
            raise Malformed(f"{place.kind}: a signature that is not [protected, unprotected, signature]")
        signer = reader.byte_string()
        reader.no_unprotected_headers()
        key = _key_of(signer)
        if signer != _signer_header(key):
            raise HeaderNotAllowed(f"{place.kind}: a signer's header is not algorithm EdDSA and key id")
        signatures.append(Signature(key, to_sign(payload, place, key, several=True), reader.signature()))
    if not signatures:
        raise Malformed(f"{place.kind}: it carries no signature")
    return Envelope(payload, tuple(signatures))


def _sign1_header(kind: Kind, key: KeyId) -> bytes:
    return encode({1: ALGORITHM_EDDSA, 3: content_type(kind), 4: key})


def _body_header(kind: Kind) -> bytes:
    return encode({3: content_type(kind)})


def _signer_header(key: KeyId) -> bytes:
    return encode({1: ALGORITHM_EDDSA, 4: key})


def _key_of(header: bytes) -> KeyId:
    # The key id is the last entry of either header. The caller compares the whole header with the one of this key id, so
    # whatever stands there instead is refused.
    return KeyId(header[-_KEY_ID_BYTES:])


def _rest(array_of_four: bytes) -> bytes:
    return array_of_four[1:]  # without the array's own first byte, which the tag constants carry


class _Reader:
    """Reads definite, shortest-form CBOR heads one after another; every fault is a Malformed."""

    __slots__ = ("_at", "_data", "_place")

    def __init__(self, data: bytes, at: int, place: Place) -> None:
        self._data = data
        self._at = at
        self._place = place

    def byte_string(self) -> bytes:
        length = self._head(2)
        taken = self._data[self._at : self._at + length]
        if len(taken) != length:
            raise Malformed(f"{self._place.kind}: cut short")
        self._at += length
        return taken

    def signature(self) -> bytes:
        signature = self.byte_string()
        if len(signature) != SIGNATURE_BYTES:
            raise Malformed(
                f"{self._place.kind}: a signature of {len(signature)} bytes, not {SIGNATURE_BYTES}"
            )
        return signature

    def array(self, high: int) -> int:
        count = self._head(4)
        if count > high:
            raise TooLarge(f"{self._place.kind}: {count} elements, at most {high}")
        return count

    def no_unprotected_headers(self) -> None:
        if self._data[self._at : self._at + 1] != _NO_HEADERS:
            raise HeaderNotAllowed(f"{self._place.kind}: a header stands in the unprotected bucket")
        self._at += 1

    def end(self) -> None:
        if self._at != len(self._data):
            raise TrailingBytes(f"{self._place.kind}: {len(self._data) - self._at} bytes after its end")

    def _head(self, major: int) -> int:
        if self._at >= len(self._data):
            raise Malformed(f"{self._place.kind}: cut short")
        first = self._data[self._at]
        if first >> 5 != major:
            raise Malformed(f"{self._place.kind}: byte {self._at} is not of CBOR major type {major}")
        low = first & 0x1F
        if low < 24:
            self._at += 1
            return low
        if low > 26:
            raise Malformed(f"{self._place.kind}: byte {self._at} announces a length of no message of ours")
        width = 1 << (low - 24)
        value = int.from_bytes(self._data[self._at + 1 : self._at + 1 + width], "big")
        if value < (24, 1 << 8, 1 << 16)[low - 24]:
            raise NotDeterministic(f"{self._place.kind}: byte {self._at} spells a length longer than needed")
        self._at += 1 + width
        return value
