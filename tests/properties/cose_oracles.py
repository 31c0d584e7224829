"""Our envelopes beside pycose and cwt; run in the environment of the oracles by `test_cose_oracles.py`.

1. Every well-formed message of ours verifies with both.
2. A message that they sign in our profile is opened and verified by ours, byte for byte the same.
3. What they let pass and we refuse: each of these is a named test, and the reason why neither is a dependency.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cbor2
import pytest
from cwt import COSE, COSEKey, Signer
from hypothesis import given, settings
from hypothesis import strategies as st
from publisher_simulator import PublisherSimulator, SigningKey
from pycose.algorithms import EdDSA
from pycose.headers import KID, Algorithm, ContentType
from pycose.keys import OKPKey
from pycose.keys.curves import Ed25519
from pycose.messages import CoseMessage, Sign1Message, SignMessage
from pycose.messages.signer import CoseSignature
from releases import OFF, ON, OTHER
from wire_strategies import ENVIRONMENT, NAMESPACE, deltas, heads, parts

from flagcast_shared.codec import encode
from flagcast_shared.envelope import content_type, open_envelope, seal, sig_structure, to_sign
from flagcast_shared.errors import Refused
from flagcast_shared.keyring import verify
from flagcast_shared.messages import Place, encode_delta_message, encode_head, encode_part
from flagcast_shared.root import Role, root_place
from flagcast_shared.topics import FORMAT, Kind

ALICE, BOB, MALLORY = (SigningKey(name) for name in ("publisher-a", "publisher-b", "mallory"))
HEAD = Place(ENVIRONMENT, NAMESPACE, Kind.HEAD)
PLACES = {kind: Place(ENVIRONMENT, NAMESPACE, kind) for kind in (Kind.HEAD, Kind.SNAPSHOT, Kind.DELTA)}
PAYLOAD = b"\xa0"


def aad_of(place: Place) -> bytes:
    return encode(["flagcast", FORMAT, place.environment, place.namespace, place.kind.value])


# The oracles: which keys' signatures of a message they verify, and what they sign in our profile.


def pycose_key(key: SigningKey, *, private: bool = False) -> OKPKey:
    raw = key._private.private_bytes_raw() if private else b""
    return OKPKey(crv=Ed25519, x=key.public.raw, d=raw)


def cwt_key(key: SigningKey, *, private: bool = False) -> Any:
    fields: dict[int, object] = {1: 1, 2: key.id, 3: -8, -1: 6, -2: key.public.raw}
    return COSEKey.new(fields | {-4: key._private.private_bytes_raw()} if private else fields)


def verifies_with_pycose(message: bytes, place: Place, keys: Sequence[SigningKey]) -> bool:
    decoded = CoseMessage.decode(message)
    one = decoded.signers if isinstance(decoded, SignMessage) else [decoded]
    if len(one) != len(keys):
        return False
    for signature, key in zip(one, sorted(keys, key=lambda key: key.id), strict=True):
        signature.external_aad = aad_of(place)
        signature.key = pycose_key(key)
        if not signature.verify_signature():
            return False
    return True


def verifies_with_cwt(message: bytes, place: Place, keys: Sequence[SigningKey]) -> bool:
    # cwt is content with one signature that fits, so it is asked for each key alone.
    for key in keys:
        try:
            COSE.new(verify_kid=True).decode(message, [cwt_key(key)], external_aad=aad_of(place))
        except Exception:  # noqa: BLE001  # it raises half a dozen kinds; any of them is a refusal
            return False
    return True


def signed_by_pycose(payload: bytes, place: Place, *keys: SigningKey) -> bytes:
    if len(keys) == 1:
        header = {Algorithm: EdDSA, ContentType: content_type(place.kind), KID: keys[0].id}
        message = Sign1Message(phdr=header, payload=payload, external_aad=aad_of(place))
        message.key = pycose_key(keys[0], private=True)
        encoded: bytes = message.encode()
        return encoded
    signers = [
        CoseSignature(
            phdr={Algorithm: EdDSA, KID: key.id},
            external_aad=aad_of(place),
            key=pycose_key(key, private=True),
        )
        for key in sorted(keys, key=lambda key: key.id)
    ]
    header = {ContentType: content_type(place.kind)}
    several: bytes = SignMessage(phdr=header, payload=payload, signers=signers).encode()
    return several


def signed_by_cwt(payload: bytes, place: Place, *keys: SigningKey) -> bytes:
    sender = COSE.new()
    if len(keys) == 1:
        header: dict[int, object] = {1: -8, 3: content_type(place.kind), 4: keys[0].id}
        encoded: bytes = sender.encode(
            payload, cwt_key(keys[0], private=True), protected=header, external_aad=aad_of(place)
        )
        return encoded
    signers = [
        Signer.new(cwt_key(key, private=True), protected={1: -8, 4: key.id})
        for key in sorted(keys, key=lambda key: key.id)
    ]
    several: bytes = sender.encode(
        payload, protected={3: content_type(place.kind)}, signers=signers, external_aad=aad_of(place)
    )
    return several


Verifies = Callable[[bytes, Place, Sequence[SigningKey]], bool]
Signs = Callable[..., bytes]
every_verifier = pytest.mark.parametrize("verifies", [verifies_with_pycose, verifies_with_cwt])
every_signer = pytest.mark.parametrize("signs", [signed_by_pycose, signed_by_cwt])


def sealed(payload: bytes, place: Place, *keys: SigningKey) -> bytes:
    several = len(keys) > 1
    return seal(
        payload,
        place,
        [(key.id, key.sign(to_sign(payload, place, key.id, several=several))) for key in keys],
        several=several,
    )


# 1. Ours verify with them


payloads = (
    heads().map(lambda head: (Kind.HEAD, encode_head(head)))
    | parts().map(lambda part: (Kind.SNAPSHOT, encode_part(part)))
    | deltas.map(lambda delta: (Kind.DELTA, encode_delta_message(delta)))
)


@every_verifier
@pytest.mark.parametrize("keys", [(ALICE,), (ALICE, BOB)], ids=["sign1", "sign"])
def test_every_message_of_ours_verifies(verifies: Verifies, keys: tuple[SigningKey, ...]) -> None:
    @settings(max_examples=40, deadline=None)
    @given(made=payloads)
    def holds(made: tuple[Kind, bytes]) -> None:
        kind, payload = made
        assert verifies(sealed(payload, PLACES[kind], *keys), PLACES[kind], keys)

    holds()


def releases() -> list[tuple[str, Place, bytes, tuple[SigningKey, ...]]]:
    """Everything that an honest publisher has retained after a life of releases and new roots, with one key and with two."""
    listed = []
    for threshold in (1, 2):
        publisher = PublisherSimulator(publisher_keys=(ALICE, BOB), publisher_threshold=threshold)
        publisher.release(OFF)
        publisher.release(ON, OTHER, inline=True)
        publisher.stage(OTHER, share=500)
        root_keys = (SigningKey("root-a"),)
        for topic, message in publisher.retained.items():
            kind = Kind(topic.split("/")[5] if "/flags/" in topic else "root")
            place = root_place(ENVIRONMENT) if kind is Kind.ROOT else PLACES[kind]
            keys = root_keys if kind is Kind.ROOT else (ALICE, BOB)[:threshold]
            listed.append((f"{topic} of {threshold}", place, message, keys))
        publisher.rotate(root_keys=[BOB])
        listed.append(
            (
                f"root 2 of {threshold}",
                root_place(ENVIRONMENT),
                publisher.retained[publisher.root_topic(2)],
                (*root_keys, BOB),
            )
        )
    return listed


@every_verifier
@pytest.mark.parametrize(
    ("place", "message", "keys"), [pytest.param(*row[1:], id=row[0]) for row in releases()]
)
def test_every_message_of_a_publisher_verifies(
    verifies: Verifies, place: Place, message: bytes, keys: tuple[SigningKey, ...]
) -> None:
    assert verifies(message, place, keys)
    elsewhere = Place(
        place.environment, place.namespace, Kind.DELTA if place.kind is Kind.HEAD else Kind.HEAD
    )
    assert not verifies(message, elsewhere, keys), "the place is part of what is signed"
    assert not verifies(message, place, [MALLORY] * len(keys))
    broken = message[:-1] + bytes([message[-1] ^ 1])
    assert not verifies(broken, place, keys)


# 2. Theirs are opened by ours


@every_signer
@pytest.mark.parametrize("keys", [(ALICE,), (ALICE, BOB)], ids=["sign1", "sign"])
def test_what_they_sign_in_our_profile_is_the_same_message(
    signs: Signs, keys: tuple[SigningKey, ...]
) -> None:
    publisher = PublisherSimulator(publisher_keys=(ALICE, BOB), publisher_threshold=len(keys))

    @settings(max_examples=40, deadline=None)
    @given(made=payloads)
    def holds(made: tuple[Kind, bytes]) -> None:
        kind, payload = made
        message = signs(payload, PLACES[kind], *keys)
        assert message == sealed(payload, PLACES[kind], *keys)
        assert verify(open_envelope(message, PLACES[kind]), publisher.root, Role.PUBLISHER) == payload

    holds()


@every_signer
def test_what_they_sign_for_another_place_is_refused(signs: Signs) -> None:
    publisher = PublisherSimulator()
    message = signs(PAYLOAD, Place(ENVIRONMENT, NAMESPACE, Kind.HEAD), ALICE)
    elsewhere = Place(ENVIRONMENT, type(NAMESPACE)("kiosk"), Kind.HEAD)
    with pytest.raises(Refused) as refused:
        verify(open_envelope(message, elsewhere), publisher.root, Role.PUBLISHER)
    assert refused.value.attack == "bad_signature"


# 3. What they let pass and we refuse. Each is truly signed by a key that counts.

HEADER = encode({1: -8, 3: content_type(Kind.HEAD), 4: ALICE.id})


def with_header(header: bytes, unprotected: bytes = b"\xa0") -> bytes:
    """A COSE_Sign1 of any protected header, signed as it stands; `unprotected` is CBOR."""
    signature = ALICE.sign(sig_structure(header, None, aad_of(HEAD), PAYLOAD))
    return b"\xd2\x84" + encode(header) + unprotected + encode(PAYLOAD) + encode(signature)


def map_of(*entries: bytes) -> bytes:
    return bytes([0xA0 | len(entries)]) + b"".join(entries)


ALG, TYPE, KEY = b"\x01\x27", b"\x03" + encode(content_type(Kind.HEAD)), b"\x04" + encode(ALICE.id)
CRITICAL = b"\x02" + encode([-70_000]) + encode(-70_000) + encode(1)
SIGN1 = sealed(PAYLOAD, HEAD, ALICE)

LIES: dict[str, tuple[bytes, str, frozenset[str]]] = {
    # name: the message, our word for it, and who lets it pass
    "unknown critical header": (
        with_header(map_of(ALG, CRITICAL[:-6], TYPE, CRITICAL[-6:], KEY)),
        "header_not_allowed",
        frozenset({"pycose", "cwt"}),
    ),
    "critical header that is not there": (
        with_header(map_of(ALG, b"\x02" + encode([-70_000]), TYPE, KEY)),
        "header_not_allowed",
        frozenset({"pycose", "cwt"}),
    ),
    "unknown header": (
        with_header(encode({1: -8, 3: content_type(Kind.HEAD), 4: ALICE.id, 99: 1})),
        "header_not_allowed",
        frozenset({"pycose", "cwt"}),
    ),
    "duplicate label": (
        with_header(map_of(b"\x01\x26", ALG, TYPE, KEY)),
        "header_not_allowed",
        frozenset({"pycose", "cwt"}),
    ),
    "alg in the wrong bucket": (
        with_header(map_of(TYPE, KEY), map_of(ALG)),
        "header_not_allowed",
        frozenset({"pycose", "cwt"}),
    ),
    "key id in the wrong bucket": (
        with_header(map_of(ALG, TYPE), map_of(KEY)),
        "header_not_allowed",
        frozenset({"pycose", "cwt"}),
    ),
    "no algorithm at all": (with_header(map_of(TYPE, KEY)), "header_not_allowed", frozenset({"cwt"})),
    "another algorithm than the key's": (
        with_header(map_of(b"\x01\x26", TYPE, KEY)),
        "header_not_allowed",
        frozenset({"cwt"}),
    ),
    "no content type": (
        with_header(map_of(ALG, KEY)),
        "header_not_allowed",
        frozenset({"pycose", "cwt"}),
    ),
    "headers in another order": (
        with_header(map_of(KEY, TYPE, ALG)),
        "header_not_allowed",
        frozenset({"pycose", "cwt"}),
    ),
    "trailing bytes": (SIGN1 + b"\x00", "trailing_bytes", frozenset({"pycose", "cwt"})),
    "trailing bytes in the protected header": (
        with_header(HEADER + b"\x00"),
        "header_not_allowed",
        frozenset({"pycose", "cwt"}),
    ),
    "a length longer than needed": (
        SIGN1.replace(encode(PAYLOAD), b"\x58\x01" + PAYLOAD, 1),
        "not_deterministic",
        frozenset({"pycose", "cwt"}),
    ),
    "payload in pieces": (
        SIGN1.replace(encode(PAYLOAD), b"\x5f" + encode(PAYLOAD) + b"\xff", 1),
        "malformed",
        frozenset({"pycose", "cwt"}),
    ),
    "array without a length": (
        b"\xd2\x9f" + SIGN1[2:] + b"\xff",
        "malformed",
        frozenset({"pycose", "cwt"}),
    ),
    "tag longer than needed": (b"\xd8\x12" + SIGN1[1:], "malformed", frozenset({"pycose", "cwt"})),
}


def let_pass(name: str, message: bytes) -> bool:
    verifies = {"pycose": verifies_with_pycose, "cwt": verifies_with_cwt}[name]
    try:
        return verifies(message, HEAD, [ALICE])
    except Exception:  # noqa: BLE001  # as above
        return False


@pytest.mark.parametrize("name", LIES)
def test_refused_by_us(name: str) -> None:
    message, word, _ = LIES[name]
    publisher = PublisherSimulator()
    with pytest.raises(Refused) as refused:
        verify(open_envelope(message, HEAD), publisher.root, Role.PUBLISHER)
    assert refused.value.attack == word


@pytest.mark.parametrize("name", LIES)
def test_let_pass_by_them(name: str) -> None:
    message, _, accepted = LIES[name]
    assert {oracle for oracle in ("pycose", "cwt") if let_pass(oracle, message)} == accepted


def test_the_message_without_a_lie_passes_everywhere() -> None:
    publisher = PublisherSimulator()
    assert let_pass("pycose", SIGN1)
    assert let_pass("cwt", SIGN1)
    assert verify(open_envelope(SIGN1, HEAD), publisher.root, Role.PUBLISHER) == PAYLOAD


def test_one_good_signature_of_two_is_enough_for_cwt_and_not_for_us() -> None:
    publisher = PublisherSimulator(publisher_keys=(ALICE, BOB), publisher_threshold=2)
    message = sealed(PAYLOAD, HEAD, ALICE, BOB)
    last = max(ALICE, BOB, key=lambda key: key.id)
    assert message[:-66].endswith(last.id + b"\xa0"), "the last signature is broken below"
    broken = message[:-1] + bytes([message[-1] ^ 1])
    keys = [cwt_key(ALICE), cwt_key(BOB)]
    decoded = COSE.new(verify_kid=True).decode(broken, keys, external_aad=aad_of(HEAD))
    assert decoded == PAYLOAD
    with pytest.raises(Refused) as refused:
        verify(open_envelope(broken, HEAD), publisher.root, Role.PUBLISHER)
    assert refused.value.attack == "bad_signature"


def test_one_key_twice_is_two_signatures_for_pycose_and_one_for_us() -> None:
    publisher = PublisherSimulator(publisher_keys=(ALICE, BOB), publisher_threshold=2)
    message = sealed(PAYLOAD, HEAD, ALICE, ALICE)
    assert verifies_with_pycose(message, HEAD, [ALICE, ALICE])
    with pytest.raises(Refused) as refused:
        verify(open_envelope(message, HEAD), publisher.root, Role.PUBLISHER)
    assert refused.value.attack == "key_counted_twice"


@settings(max_examples=200)
@given(header=st.dictionaries(st.integers(-10, 10), st.integers() | st.text(max_size=4), max_size=4))
def test_no_other_protected_header_is_opened(header: dict[int, Any]) -> None:
    with pytest.raises(Refused) as refused:
        open_envelope(with_header(cbor2.dumps(header, canonical=True)), HEAD)
    assert refused.value.attack == "header_not_allowed"
