"""Signatures that are made one by one, by people on machines of their own. Pure.

A ceremony is a file that holds what is to be signed, the root that says who has a say in it, and the signatures made so far:

    root     the next root; a threshold of the root keys of the root in force and of its own must sign it
    release  everything that one run of the publisher would send; a threshold of the publisher's keys must sign each message

The file is deterministic CBOR and is never published. Nothing in it is believed: the root in it is only what its maker says is
in force, so whoever signs is shown what is signed, and whoever applies the result judges it again by a root of their own.

Also decided here: the next root from the last one and what shall change.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from flagcast_bridge.planning.plan import Draft, percent
from flagcast_shared import trust
from flagcast_shared.codec import Fields, Value, array, decode, encode, inflated, integer, text
from flagcast_shared.envelope import SIGNATURE_BYTES, Envelope, Signature, seal, to_sign
from flagcast_shared.errors import (
    EmptyPayload,
    FlagcastError,
    InvalidIdentifier,
    KeyCountedTwice,
    Malformed,
    Replayed,
    RootSkipped,
    TooLarge,
    UnknownFormat,
    UnknownKey,
    WrongRole,
)
from flagcast_shared.ids import (
    Environment,
    Epoch,
    KeyId,
    Namespace,
    Version,
    parse_environment,
    parse_namespace,
)
from flagcast_shared.ids import Sequence as HeadSequence
from flagcast_shared.keyring import verify
from flagcast_shared.limits import (
    CONTENT_MAX_BYTES,
    KEY_MAX_BYTES,
    MESSAGE_MAX_BYTES,
    PARTS_MAX,
    ROOT_KEYS_MAX,
    ROOT_MAX_BYTES,
    ROOTS_MAX,
)
from flagcast_shared.messages import (
    Delta,
    Head,
    Offering,
    Place,
    SnapshotPart,
    decode_delta_message,
    decode_head,
    decode_part,
    encode_delta_message,
    encode_head,
    encode_part,
)
from flagcast_shared.printing import printable
from flagcast_shared.records import Record, content_digest, decode_record, measure, split_content, split_delta
from flagcast_shared.root import (
    KEY_ID_BYTES,
    PublicKey,
    Quorum,
    Role,
    Root,
    decode_root,
    encode_root,
    root_place,
)
from flagcast_shared.topics import Address, DeltaAddress, HeadAddress, Kind, RootAddress, SnapshotAddress

CEREMONY_MAX_BYTES: Final = 64 * 1024 * 1024
"""A ceremony's file: a release of twice the largest content. A root takes a few kilobytes."""
MESSAGES_MAX: Final = 16 * PARTS_MAX
"""Messages of one release: more than fit into the file."""

CLOCK_AHEAD_MAX_SECONDS: Final = 300
"""Difference that two machines' clocks may have in a ceremony: five minutes, as in Kerberos (RFC 4120, 8.2)."""

_MAGIC: Final = "flagcast ceremony"
_FORMAT: Final = 1
_WORD_MAX_BYTES: Final = 32
_ID_DIGITS: Final = 2 * KEY_ID_BYTES


class CeremonyRefused(FlagcastError):
    """What was asked would leave nobody able to sign, or has nothing to do with this ceremony. Says what to do."""


class Subject(StrEnum):
    """What a ceremony signs."""

    ROOT = "root"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Change:
    """What the next root does to a role: keys that come, keys that go, and how many must sign (None: as many as before)."""

    role: Role
    add: tuple[PublicKey, ...] = ()
    remove: frozenset[KeyId] = frozenset()
    threshold: int | None = None


@dataclass(frozen=True, slots=True)
class Need:
    """A group of keys of which `threshold` must sign. `whose` is for people."""

    whose: str
    keys: Mapping[KeyId, PublicKey]
    threshold: int
    signed: frozenset[KeyId]

    @property
    def missing(self) -> int:
        """How many signatures are still to be made."""
        return max(0, self.threshold - len(self.signed))


@dataclass(frozen=True, slots=True)
class Ceremony:
    """What is to be signed and who has. `signatures` has one signature for each of `drafts`, in their order.

    `in_force` is the root that decides who has a say, `in_force_data` its message. `successor` is what a root ceremony makes;
    `base` is, for a release, the sequence of the head that each namespace was told last when it was prepared (0 for none).
    """

    subject: Subject
    in_force: Root
    in_force_data: bytes
    drafts: tuple[Draft, ...]
    successor: Root | None = None
    base: Mapping[Namespace, HeadSequence] = field(default_factory=dict)
    signatures: Mapping[KeyId, tuple[bytes, ...]] = field(default_factory=dict)

    @property
    def environment(self) -> Environment:
        """The environment that everything in it is for."""
        return self.in_force.environment

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads of a release."""
        return tuple(
            decode_head(draft.payload, draft.place)
            for draft in self.drafts
            if isinstance(draft.address, HeadAddress)
        )


def next_root(old: Root, changes: Iterable[Change], *, now: int, lifetime: int) -> Root:
    """The root that follows: one number higher, in the next epoch if other keys publish. Times in Unix seconds.

    Raises:
        CeremonyRefused: it would not be a root that devices can walk to, or nobody could sign under it.
    """
    if now < old.issued:
        raise CeremonyRefused(
            f"this machine's clock is before root {old.number} was made; set it, because devices take a root's time for a "
            "lower bound"
        )
    if old.number >= ROOTS_MAX:
        raise CeremonyRefused(f"root {old.number} is the last one that devices walk to; provision them anew")
    roles, known = dict(old.roles), dict(old.keys)
    for change in changes:
        known.update((key.id, key) for key in change.add if key.id not in known)
        roles[change.role] = _changed(old, roles[change.role], change)
    listed = {key: known[key] for quorum in roles.values() for key in quorum.keys}
    if len(listed) > ROOT_KEYS_MAX:
        raise CeremonyRefused(f"{len(listed)} keys; a root lists at most {ROOT_KEYS_MAX}")
    same_publishers = old.roles[Role.PUBLISHER].keys == roles[Role.PUBLISHER].keys
    return Root(
        old.environment,
        old.number + 1,
        Epoch(old.epoch if same_publishers else old.epoch + 1),
        now,
        now + lifetime,
        listed,
        roles,
    )


def without_key(old: Root, key: KeyId) -> tuple[Change, ...]:
    """The changes that take a key out of every role that it has. Raises CeremonyRefused where it has none."""
    roles = [role for role in Role if key in old.roles[role].keys]
    if not roles:
        raise CeremonyRefused(f"key {key.hex()} is not in root {old.number}; {_listed(old)}")
    return tuple(Change(role, remove=frozenset({key})) for role in roles)


def find_key(root: Root, named: str) -> KeyId:
    """The id of a key of a root, named by the id's 16 digits, or by its name where only one has it. Raises CeremonyRefused."""
    found = [
        key.id for key in root.keys.values() if key.id.hex() == named.strip().lower() or key.name == named
    ]
    if len(found) != 1:
        why = "several keys have this name" if found else "no such key"
        raise CeremonyRefused(f"{named}: {why} in root {root.number}; name it by its id: {_listed(root)}")
    return found[0]


def of_root(old: Root, old_data: bytes, new: Root) -> Ceremony:
    """The ceremony that signs the next root; nobody has signed yet."""
    draft = Draft(RootAddress(new.number), root_place(new.environment), encode_root(new))
    return Ceremony(Subject.ROOT, old, old_data, (draft,), new)


def of_release(
    root: Root, root_data: bytes, drafts: Iterable[Draft], base: Mapping[Namespace, HeadSequence]
) -> Ceremony:
    """The ceremony that signs a release under the root in force; nobody has signed yet."""
    return Ceremony(Subject.RELEASE, root, root_data, tuple(drafts), base=dict(base))


def needs(ceremony: Ceremony) -> tuple[Need, ...]:
    """Who must sign: all of these groups."""
    old, new = ceremony.in_force, ceremony.successor
    if new is None:
        return (_need(ceremony, old, Role.PUBLISHER),)
    if old.roles[Role.ROOT] == new.roles[Role.ROOT]:
        return (_need(ceremony, old, Role.ROOT),)
    return (_need(ceremony, old, Role.ROOT), _need(ceremony, new, Role.ROOT))


def is_complete(ceremony: Ceremony) -> bool:
    """Whether enough keys have signed."""
    return not any(need.missing for need in needs(ceremony))


def voters(ceremony: Ceremony) -> dict[KeyId, PublicKey]:
    """Every key that has a say."""
    return {key: public for need in needs(ceremony) for key, public in need.keys.items()}


def messages_to_sign(ceremony: Ceremony, key: PublicKey) -> tuple[bytes, ...]:
    """What a key signs, one after another.

    Raises:
        CeremonyRefused: the key has no say, or has signed already.
    """
    if key.id not in voters(ceremony):
        allowed = "; ".join(f"the {need.whose}: {_names(need.keys.values())}" for need in needs(ceremony))
        raise CeremonyRefused(f"key {key.id.hex()} has no say in this; those who have are {allowed}")
    if key.id in ceremony.signatures:
        raise CeremonyRefused(f"key {key.id.hex()} has signed this already; one key counts once")
    several = _several(ceremony)
    return tuple(to_sign(draft.payload, draft.place, key.id, several=several) for draft in ceremony.drafts)


def with_signatures(ceremony: Ceremony, key: KeyId, signatures: Iterable[bytes]) -> Ceremony:
    """The ceremony with a key's signatures, which must fit. Raises Refused."""
    added = replace(ceremony, signatures={**ceremony.signatures, key: tuple(signatures)})
    _require_signatures(added, (key,))
    return added


def sealed(ceremony: Ceremony) -> dict[Address, bytes]:
    """The signed messages, in the order of the drafts.

    Raises:
        CeremonyRefused: signatures are missing.
    """
    for need in needs(ceremony):
        if need.missing:
            raise CeremonyRefused(
                f"{len(need.signed)} of {need.threshold} {need.whose} have signed; still to sign, {need.missing} of: "
                + _names(key for key in need.keys.values() if key.id not in need.signed)
            )
    signers = _signers(ceremony)
    several = _several(ceremony)
    return {
        draft.address: seal(
            draft.payload,
            draft.place,
            [(key, ceremony.signatures[key][place]) for key in signers],
            several=several,
        )
        for place, draft in enumerate(ceremony.drafts)
    }


def require_issued(ceremony: Ceremony, now: int, when: Callable[[int], str]) -> None:
    """Refuse what is issued later than `now` (Unix seconds), which devices would take for a lower bound of the time.

    Raises:
        CeremonyRefused: a root or a head of it is; says what to do.
    """
    times = [(f"root {ceremony.successor.number}", ceremony.successor.issued)] if ceremony.successor else []
    times += [(f"{head.namespace}: head {head.sequence}", head.issued) for head in ceremony.heads]
    for name, issued in times:
        if issued > now + CLOCK_AHEAD_MAX_SECONDS:
            raise CeremonyRefused(
                f"{name} is issued at {when(issued)}, and this machine's clock is at {when(now)}; devices take that for a lower "
                "bound of the time. Set this clock if it is behind; if it is right, the machine that made this is ahead: set "
                "that one, and make this anew"
            )


def encode_ceremony(ceremony: Ceremony) -> bytes:
    """1 "flagcast ceremony", 2 format, 3 subject, 4 environment, 5 the root in force as its message, 6 what is to be signed as
    [kind, namespace, number, second number, payload], 7 signatures as [key id, [signature, ...]], 8 base as [namespace,
    sequence].

    Raises:
        CeremonyRefused: larger than a ceremony may be.
    """
    fields: dict[int, Value] = {
        1: _MAGIC,
        2: _FORMAT,
        3: ceremony.subject.value,
        4: ceremony.environment,
        5: ceremony.in_force_data,
        6: [[*_place_words(draft.address), draft.payload] for draft in ceremony.drafts],
        7: [[key, list(signatures)] for key, signatures in sorted(ceremony.signatures.items())],
    }
    if ceremony.base:
        fields[8] = [[name, sequence] for name, sequence in sorted(ceremony.base.items())]
    data = encode(fields)
    if len(data) > CEREMONY_MAX_BYTES or len(ceremony.drafts) > MESSAGES_MAX:
        raise CeremonyRefused(
            f"{len(ceremony.drafts)} messages, {len(data)} bytes: at most {MESSAGES_MAX} and {CEREMONY_MAX_BYTES}; publish fewer "
            "namespaces at once"
        )
    return data


def decode_ceremony(data: bytes) -> Ceremony:
    """A ceremony from any bytes. Every signature in it fits, every message in it is whole and names its place.

    Raises:
        Refused: one of its leaves.
    """
    if not data:
        raise EmptyPayload("ceremony: the file is empty")
    if len(data) > CEREMONY_MAX_BYTES:
        raise TooLarge(f"ceremony: {len(data)} bytes, at most {CEREMONY_MAX_BYTES}")
    fields = Fields(decode(data, "ceremony"), "ceremony")
    if fields.text(1, _WORD_MAX_BYTES) != _MAGIC:
        raise Malformed("ceremony: another kind of file")
    if (spoken := fields.integer(2)) != _FORMAT:
        raise UnknownFormat(f"ceremony: format {spoken}; this release speaks format {_FORMAT}")
    subject, environment = _subject(fields), _environment(fields)
    root_data = fields.bytes(5, 1, ROOT_MAX_BYTES)
    root = trust.anchor(root_data, environment)
    drafts = tuple(_read_draft(item, environment) for item in fields.array(6, MESSAGES_MAX))
    if not drafts or len({draft.address for draft in drafts}) != len(drafts):
        raise Malformed("ceremony: nothing to sign, or one place twice")
    signatures = _read_signatures(fields, len(drafts))
    if subject is Subject.ROOT:
        ceremony = Ceremony(
            subject, root, root_data, drafts, _read_successor(root, drafts), signatures=signatures
        )
    else:
        ceremony = Ceremony(subject, root, root_data, drafts, base=_read_base(fields), signatures=signatures)
        _require_release(ceremony)
    _require_signatures(ceremony, signatures)
    return ceremony


def describe(ceremony: Ceremony, when: Callable[[int], str]) -> list[str]:
    """What is signed, in lines for people; `when` gives Unix seconds as text. Raises Refused: a release contradicts itself."""
    if ceremony.successor is not None:
        return _describe_root(ceremony.in_force, ceremony.successor, when)
    root = ceremony.in_force
    lines = [
        f"a release for environment {printable(ceremony.environment)}, under root {root.number}, epoch {root.epoch}"
    ]
    for head in ceremony.heads:
        lines += _describe_head(ceremony, head, when)
    return lines


def describe_progress(ceremony: Ceremony) -> list[str]:
    """Who has signed and who may still, in lines for people."""
    return [
        f"signed by {len(need.signed)} of {need.threshold} {need.whose}"
        + (f" ({_names(need.keys[key] for key in sorted(need.signed))})" if need.signed else "")
        + (
            f"; {need.missing} more of: "
            + _names(key for key in need.keys.values() if key.id not in need.signed)
            if need.missing
            else ""
        )
        for need in needs(ceremony)
    ]


def shown_key(key: PublicKey) -> str:
    """A key for people: its id, and its name, which anybody may have chosen."""
    return f"{key.id.hex()} ({printable(key.name)})" if key.name else key.id.hex()


def _changed(old: Root, quorum: Quorum, change: Change) -> Quorum:
    added = {key.id for key in change.add}
    for key in change.add:
        if key.id in quorum.keys:
            raise CeremonyRefused(f"key {shown_key(key)} is a {change.role} key of root {old.number} already")
    for key_id in sorted(change.remove - quorum.keys):
        raise CeremonyRefused(
            f"key {key_id.hex()} is no {change.role} key of root {old.number}; {_listed(old)}"
        )
    keys = (quorum.keys - change.remove) | added
    threshold = quorum.threshold if change.threshold is None else change.threshold
    if threshold < 1:
        raise CeremonyRefused(f"--threshold {threshold}: at least 1 key must sign")
    if threshold > len(keys):
        raise CeremonyRefused(
            f"{threshold} {change.role} keys must sign and {len(keys)} would be left; first put another key in its place with "
            f"flagcast keys rotate {change.role} --add PUBFILE"
            + (
                f", or ask for fewer with flagcast keys rotate {change.role} --remove KEYID --threshold N"
                if keys
                else ""
            )
        )
    return Quorum(keys, threshold)


def _need(ceremony: Ceremony, root: Root, role: Role) -> Need:
    quorum = root.roles[role]
    return Need(
        f"{role} keys of root {root.number}",
        {key: root.keys[key] for key in sorted(quorum.keys)},
        quorum.threshold,
        frozenset(ceremony.signatures) & quorum.keys,
    )


def _signers(ceremony: Ceremony) -> list[KeyId]:
    # A root carries everybody's signature; where those are too many, and in any other message, as few as suffice.
    signers = sorted(ceremony.signatures)
    if ceremony.subject is Subject.ROOT and len(signers) <= ROOT_KEYS_MAX:
        return signers
    enough = {key for need in needs(ceremony) for key in sorted(need.signed)[: need.threshold]}
    if len(enough) > ROOT_KEYS_MAX:
        raise CeremonyRefused(
            f"{len(enough)} signatures are needed, and a message carries at most {ROOT_KEYS_MAX}"
        )
    return sorted(enough)


def _several(ceremony: Ceremony) -> bool:
    return ceremony.subject is Subject.ROOT or ceremony.in_force.roles[Role.PUBLISHER].threshold > 1


def _require_signatures(ceremony: Ceremony, keys: Iterable[KeyId]) -> None:
    # Each key alone, as if it were the whole of its role: who is still missing is no fault here.
    have_say, several = voters(ceremony), _several(ceremony)
    for key in keys:
        if key not in have_say:
            known = key in ceremony.in_force.keys
            raise (WrongRole if known else UnknownKey)(f"ceremony: key {key.hex()} signed and has no say")
        signatures = ceremony.signatures[key]
        if len(signatures) != len(ceremony.drafts):
            raise Malformed(
                f"ceremony: key {key.hex()} made {len(signatures)} signatures for {len(ceremony.drafts)}"
            )
        alone = replace(
            ceremony.in_force,
            keys={key: have_say[key]},
            roles={Role.ROOT: Quorum(frozenset({key}), 1)},
        )
        for draft, signature in zip(ceremony.drafts, signatures, strict=True):
            signed = to_sign(draft.payload, draft.place, key, several=several)
            verify(Envelope(draft.payload, (Signature(key, signed, signature),)), alone, Role.ROOT)


def _subject(fields: Fields) -> Subject:
    word = fields.text(3, _WORD_MAX_BYTES)
    if word not in {subject.value for subject in Subject}:
        raise Malformed(f"ceremony: {word!r} is nothing that is signed this way")
    return Subject(word)


def _environment(fields: Fields) -> Environment:
    try:
        return parse_environment(fields.text(4, KEY_MAX_BYTES))
    except InvalidIdentifier as error:
        raise Malformed(f"ceremony: {error}") from error


def _read_signatures(fields: Fields, count: int) -> dict[KeyId, tuple[bytes, ...]]:
    signatures: dict[KeyId, tuple[bytes, ...]] = {}
    for item in fields.array(7, 2 * ROOT_KEYS_MAX):
        pair = array(item, "ceremony, signer", high=2)
        if len(pair) != 2 or not isinstance(pair[0], bytes) or len(pair[0]) != KEY_ID_BYTES:
            raise Malformed("ceremony, signer: not [key id, signatures]")
        key = KeyId(pair[0])
        if key in signatures:
            raise KeyCountedTwice(f"ceremony: key {key.hex()} signed more than once")
        made = []
        for signature in array(pair[1], "ceremony, signatures", high=count):
            if not isinstance(signature, bytes) or len(signature) != SIGNATURE_BYTES:
                raise Malformed(
                    f"ceremony: a signature of key {key.hex()} that is not {SIGNATURE_BYTES} bytes"
                )
            made.append(signature)
        signatures[key] = tuple(made)
    return signatures


def _read_base(fields: Fields) -> dict[Namespace, HeadSequence]:
    base: dict[Namespace, HeadSequence] = {}
    for item in fields.array(8, MESSAGES_MAX):
        pair = array(item, "ceremony, base", high=2)
        if len(pair) != 2:
            raise Malformed("ceremony, base: not [namespace, sequence]")
        base[_namespace(pair[0])] = HeadSequence(integer(pair[1], "ceremony, base"))
    return base


def _read_draft(item: Value, environment: Environment) -> Draft:
    words = array(item, "ceremony, message", high=5)
    if len(words) != 5 or not isinstance(words[4], bytes):
        raise Malformed("ceremony, message: not [kind, namespace, number, second number, payload]")
    kind = text(words[0], "ceremony, kind", _WORD_MAX_BYTES)
    first = integer(words[2], "ceremony, number")
    second = integer(words[3], "ceremony, second number")
    payload = words[4]
    limit = ROOT_MAX_BYTES if kind == Kind.ROOT else MESSAGE_MAX_BYTES
    if len(payload) > limit:
        raise TooLarge(f"ceremony, message: {len(payload)} bytes, at most {limit}")
    address: Address
    match kind:
        case Kind.ROOT:
            address, place = RootAddress(first), root_place(environment)
            if words[1] != "":
                raise Malformed("ceremony, message: a root of a namespace")
        case Kind.HEAD:
            address = HeadAddress(_namespace(words[1]))
            place = Place(environment, address.namespace, Kind.HEAD)
        case Kind.SNAPSHOT:
            address = SnapshotAddress(_namespace(words[1]), Version(first), second)
            place = Place(environment, address.namespace, Kind.SNAPSHOT)
        case Kind.DELTA:
            address = DeltaAddress(_namespace(words[1]), Version(first), Version(second))
            place = Place(environment, address.namespace, Kind.DELTA)
        case _:
            raise Malformed(f"ceremony: {kind!r} is no kind of message")
    if [first, second] != list(_place_words(address)[2:]):
        raise Malformed(f"ceremony: numbers that a {kind} does not have")
    return Draft(address, place, payload)


def _place_words(address: Address) -> tuple[str, str, int, int]:
    match address:
        case RootAddress(number):
            return Kind.ROOT.value, "", number, 0
        case HeadAddress(namespace):
            return Kind.HEAD.value, namespace, 0, 0
        case SnapshotAddress(namespace, version, part):
            return Kind.SNAPSHOT.value, namespace, version, part
        case DeltaAddress(namespace, version, from_version):
            return Kind.DELTA.value, namespace, version, from_version
        case _:
            raise AssertionError(f"a publisher signs nothing for {address}")


def _namespace(value: Value) -> Namespace:
    try:
        return parse_namespace(text(value, "ceremony, namespace", KEY_MAX_BYTES))
    except InvalidIdentifier as error:
        raise Malformed(f"ceremony: {error}") from error


def _read_successor(old: Root, drafts: tuple[Draft, ...]) -> Root:
    (draft, *more) = drafts
    if more or not isinstance(draft.address, RootAddress):
        raise Malformed("ceremony: it signs a root, and holds something else")
    new = decode_root(draft.payload, old.environment)
    if new.number != draft.address.number:
        raise Replayed(f"ceremony: root {new.number} at the place of root {draft.address.number}")
    if new.number != old.number + 1:
        raise RootSkipped(f"ceremony: root {new.number} does not follow root {old.number}")
    if encode_root(new) != draft.payload:
        # A field that this release does not know could not be shown to whoever signs.
        raise Malformed("ceremony: the root holds more than this release knows")
    same = old.roles[Role.PUBLISHER].keys == new.roles[Role.PUBLISHER].keys
    if new.epoch != (old.epoch if same else old.epoch + 1):
        raise Malformed(f"ceremony: root {new.number} of epoch {new.epoch} does not follow from its keys")
    return new


def _require_release(ceremony: Ceremony) -> None:
    # Every message names the place that it will stand at, and a head names what belongs to it.
    epoch = ceremony.in_force.epoch
    offered: set[tuple[Namespace, Version]] = set()
    heads: set[Namespace] = set()
    for head in ceremony.heads:
        heads.add(head.namespace)
        offered.update((head.namespace, offering.version) for offering in _offerings(head))
    for draft in ceremony.drafts:
        message: Head | SnapshotPart | Delta
        again: bytes
        match draft.address:
            case HeadAddress():
                message = decode_head(draft.payload, draft.place)
                again = encode_head(message)
            case SnapshotAddress(namespace, version, part):
                message = decode_part(draft.payload, draft.place)
                again = encode_part(message)
                if (message.version, message.part) != (version, part):
                    raise Replayed(f"ceremony: {namespace}: a part at the place of another")
            case DeltaAddress(namespace, version, from_version):
                message = decode_delta_message(draft.payload, draft.place)
                again = encode_delta_message(message)
                if (message.version, message.from_version) != (version, from_version):
                    raise Replayed(f"ceremony: {namespace}: a delta at the place of another")
            case _:
                raise Malformed("ceremony: it signs a release, and holds something else")
        if again != draft.payload:
            raise Malformed(
                f"ceremony: {message.namespace}: a message that holds more than this release knows"
            )
        if message.epoch != epoch:
            raise Malformed(
                f"ceremony: {message.namespace}: epoch {message.epoch}, and the root's is {epoch}"
            )
        if not isinstance(message, Head) and (message.namespace, message.version) not in offered:
            raise Malformed(f"ceremony: {message.namespace}: version {message.version} that no head names")
    if ceremony.base.keys() != heads:
        raise Malformed("ceremony: the base is of other namespaces than the heads")


def _offerings(head: Head) -> tuple[Offering, ...]:
    return (head.stable,) if head.candidate is None else (head.stable, head.candidate.offering)


def _describe_root(old: Root, new: Root, when: Callable[[int], str]) -> list[str]:
    lines = [
        f"root {new.number} of environment {printable(new.environment)}, which follows root {old.number}",
        f"  issued {when(new.issued)}, expires {when(new.expires)}",
    ]
    for role in Role:
        was, becomes = old.roles[role], new.roles[role]
        for verb, keys in (
            ("takes in", becomes.keys - was.keys),
            ("takes out", was.keys - becomes.keys),
            ("keeps", was.keys & becomes.keys),
        ):
            lines += [
                f"  {verb} {role} key {shown_key((new.keys if key in new.keys else old.keys)[key])}"
                for key in sorted(keys)
            ]
        count = f"{becomes.threshold} of {len(becomes.keys)} {role} keys must sign"
        if was.threshold != becomes.threshold:
            count += f" (was {was.threshold} of {len(was.keys)})"
        lines.append(f"  {count}")
    if old.epoch == new.epoch:
        lines.append(f"  no new epoch: the same keys publish, and epoch {new.epoch} goes on")
    else:
        lines.append(
            f"  a new epoch, {new.epoch} (was {old.epoch}): other keys publish, and numbers of before count for less"
        )
    return lines


def _describe_head(ceremony: Ceremony, head: Head, when: Callable[[int], str]) -> list[str]:
    told = ceremony.base[head.namespace]
    lines = [
        f"{head.namespace}: head {head.sequence}, after {told or 'none'}",
        f"  issued {when(head.issued)}, expires {when(head.expires)}",
    ]
    lines += [f"  {printable(key)} {printable(value)}" for key, value in sorted(head.provenance.items())]
    lines += _describe_offering(ceremony, head, head.stable, "version")
    if head.candidate is not None:
        labels = " and ".join(
            f"{printable(name)}={printable(value)}" for name, value in sorted(head.candidate.labels.items())
        )
        lines += _describe_offering(ceremony, head, head.candidate.offering, "candidate version")
        lines.append(
            f"    for {percent(head.candidate.share)} of the devices{' with ' if labels else ''}{labels}"
        )
    return lines


def _describe_offering(ceremony: Ceremony, head: Head, offering: Offering, word: str) -> list[str]:
    name = head.namespace
    digest = offering.digest.hex()[:_ID_DIGITS]
    parts = {
        draft.address.part: decode_part(draft.payload, draft.place).body
        for draft in ceremony.drafts
        if isinstance(draft.address, SnapshotAddress)
        and (draft.address.namespace, draft.address.version) == (name, offering.version)
    }
    if not parts:
        return [f"  {word} {offering.version}, as it was published ({digest})"]
    records = _content_of(name, offering, parts)
    lines = [f"  {word} {offering.version}, new: {len(records)} flags and segments ({digest})"]
    changes = _changes_of(ceremony, head, offering)
    if changes is None:
        lines += [f"    holds {record.id.kind} {printable(record.id.key)}" for record in records]
    else:
        base, removed, changed = changes
        lines.append(f"    compared with version {base}:")
        lines += [f"    - {kind} {printable(key)}" for kind, key in removed]
        lines += [f"    ~ {record.id.kind} {printable(record.id.key)}" for record in changed]
        if not removed and not changed:
            lines.append("    nothing differs")
    return lines


def _content_of(name: Namespace, offering: Offering, parts: Mapping[int, bytes]) -> list[Record]:
    if sorted(parts) != list(range(offering.parts)):
        raise Malformed(f"ceremony: {name}: not all parts of version {offering.version}")
    bodies = (parts[part] for part in sorted(parts))
    found = split_content(inflated(bodies, CONTENT_MAX_BYTES, f"{name}, version {offering.version}"))
    measure(found, f"{name}, version {offering.version}")
    records = [decode_record(data) for data in found]
    if content_digest(each.digest for each in records) != offering.digest:
        raise Malformed(
            f"ceremony: {name}: version {offering.version} is not the content that its head names"
        )
    return records


def _changes_of(
    ceremony: Ceremony, head: Head, offering: Offering
) -> tuple[Version, list[tuple[str, str]], list[Record]] | None:
    # From the newest version that a delta leads from; None where there is none.
    bodies: dict[Version, bytes] = {}
    for draft in ceremony.drafts:
        at = draft.address
        if isinstance(at, DeltaAddress) and (at.namespace, at.version) == (head.namespace, offering.version):
            bodies[at.from_version] = decode_delta_message(draft.payload, draft.place).body
    if head.inline is not None and head.inline.version == offering.version:
        bodies[head.inline.from_version] = head.inline.body
    if not bodies:
        return None
    base = max(bodies)
    removed, listed = split_delta(inflated([bodies[base]], CONTENT_MAX_BYTES, f"{head.namespace}, delta"))
    measure(listed, f"{head.namespace}, delta")
    return (
        base,
        [(identity.kind, identity.key) for identity in removed],
        [decode_record(data) for data in listed],
    )


def _listed(root: Root) -> str:
    return f"root {root.number} lists {_names(root.keys.values())}"


def _names(keys: Iterable[PublicKey]) -> str:
    return ", ".join(shown_key(key) for key in sorted(keys, key=lambda key: key.id))
