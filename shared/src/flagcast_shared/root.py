"""The root: who may sign what, in numbered documents that hand trust from one to the next.

A root lists public keys, and for each role the keys that count and how many of them must sign. Root n+1 is signed by a
threshold of root n's root role and of its own. Publisher keys belong to an epoch; changing them starts the next one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from .codec import Fields, Value, array, encode, text
from .ed25519 import flaw
from .errors import Malformed
from .ids import Environment, Epoch, KeyId, Namespace
from .limits import KEY_MAX_BYTES, NUMBER_MAX, ROOT_KEYS_MAX
from .messages import Place, open_payload
from .records import digest_of
from .topics import FORMAT, Kind

KEY_ID_BYTES = 8
PUBLIC_KEY_BYTES = 32


class Role(StrEnum):
    """Who signs: `root` signs roots, `publisher` signs heads, snapshots and deltas."""

    ROOT = "root"
    PUBLISHER = "publisher"


@dataclass(frozen=True, slots=True)
class Quorum:
    """The keys that count for a role, and how many distinct ones must sign."""

    keys: frozenset[KeyId]
    threshold: int


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key: 32 raw bytes, and a name for people."""

    raw: bytes
    name: str = ""

    @property
    def id(self) -> KeyId:
        """The first eight bytes of the SHA-256 of the raw key."""
        return key_id(self.raw)


@dataclass(frozen=True, slots=True)
class Root:
    """One root; `issued` and `expires` are Unix seconds. Only the last root's expiry matters."""

    environment: Environment
    number: int
    epoch: Epoch
    issued: int
    expires: int
    keys: Mapping[KeyId, PublicKey]
    roles: Mapping[Role, Quorum]


def key_id(raw: bytes) -> KeyId:
    """The id of a raw public key."""
    return KeyId(digest_of(raw)[:KEY_ID_BYTES])


def root_place(environment: Environment) -> Place:
    """Where a root of the environment is valid."""
    return Place(environment, Namespace(""), Kind.ROOT)


def encode_root(root: Root) -> bytes:
    """1 format, 2 kind, 3 environment, 4 "", 5 epoch, 6 number, 7 issued, 8 expires, 9 keys as [raw, name], 10 roles as a
    map from the role's word to {1 threshold, 2 key ids}.
    """
    keys = sorted(root.keys.values(), key=lambda key: key.raw)
    roles: dict[str, Value] = {
        role.value: {1: quorum.threshold, 2: sorted(quorum.keys)} for role, quorum in root.roles.items()
    }
    return encode(
        {
            1: FORMAT,
            2: Kind.ROOT.value,
            3: root.environment,
            4: "",
            5: root.epoch,
            6: root.number,
            7: root.issued,
            8: root.expires,
            9: [[key.raw, key.name] for key in keys],
            10: roles,
        }
    )


def decode_root(payload: bytes, environment: Environment) -> Root:
    """A root from its payload.

    Raises:
        Malformed: or one of its leaves; also for a threshold that its keys can never meet, and a key that may not count.
        Replayed: made for another environment.
    """
    fields = open_payload(payload, root_place(environment))
    keys = {}
    for item in fields.array(9, ROOT_KEYS_MAX):
        pair = array(item, "root, key", high=2)
        if len(pair) != 2 or not isinstance(pair[0], bytes) or len(pair[0]) != PUBLIC_KEY_BYTES:
            raise Malformed("root, key: not [32 bytes, name]")
        if reason := flaw(pair[0]):
            raise Malformed(f"root, key {pair[0].hex()}: {reason}")
        key = PublicKey(pair[0], text(pair[1], "root, key name", KEY_MAX_BYTES))
        if key.id in keys:
            raise Malformed(f"root: key {key.id.hex()} stands twice")
        keys[key.id] = key
    listed = fields.get(10)
    if not isinstance(listed, Mapping):
        raise Malformed("root, roles: not a map")
    named = {str(word): value for word, value in listed.items()}
    roles = {}
    for role in Role:
        if role not in named:
            raise Malformed(f"root: it names no {role} role")
        roles[role] = _read_quorum(Fields(named[role], f"root, role {role}"), keys, role)
    issued = fields.integer(7)
    return Root(
        environment,
        fields.integer(6, 1, NUMBER_MAX),
        Epoch(fields.integer(5, 1)),
        issued,
        fields.integer(8, issued),
        keys,
        roles,
    )


def _read_quorum(fields: Fields, keys: Mapping[KeyId, PublicKey], role: Role) -> Quorum:
    named = set()
    for item in fields.array(2, ROOT_KEYS_MAX):
        if not isinstance(item, bytes) or KeyId(item) not in keys:
            raise Malformed(f"root, role {role}: a key that the root does not list")
        if KeyId(item) in named:
            raise Malformed(f"root, role {role}: key {item.hex()} stands twice")
        named.add(KeyId(item))
    return Quorum(frozenset(named), fields.integer(1, 1, len(named)))
