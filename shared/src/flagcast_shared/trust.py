"""The one door from bytes to belief.

`admit` is the only function that turns a received message into something trusted. It changes nothing: it returns the next
`Trusted` together with what happened, or raises Refused, and then the caller still holds what it held before. Only an
`AdmittedUpdate` can be activated, and only this module makes one.

The order of checks is fixed (verify first, read later):

0. The address says which kind of message may stand there; anything else is ignored.
1. Size and outer shape (`envelope`).
2. Signatures, against the root in force (`keyring`). The place is part of what is signed.
3. The payload is decoded; it must name the same place (`messages`).
4. Epoch and number against what was admitted: lower is Rollback, the same number with another digest Equivocation. The
   very bytes of the head held are nothing new, whoever may sign by now, and pass none of steps 1 to 4.
5. Expiry of the root in force and of the head against `now`, unless the device's clock is behind what it has reason to
   believe (`floor`).
6. Content: taken as it stands (same digest), from the inline delta, a delta, or the parts of a snapshot.
7. The content's digest must be the one that the head signed.
8. Only then there is a new holding.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .bucketing import candidate_bucket
from .codec import Fields, decode, inflated
from .context import Device
from .envelope import Envelope, open_envelope
from .errors import (
    DeltaMismatch,
    DigestMismatch,
    EpochMismatch,
    Equivocation,
    Freeze,
    Malformed,
    MixedVersions,
    Refused,
    Replayed,
    Rollback,
    RootSkipped,
    TooLarge,
    UnknownKey,
    WrongRole,
)
from .ids import Digest, Environment, Epoch, Namespace, RecordId, Version
from .ids import Sequence as HeadSequence
from .keyring import verify
from .limits import CONTENT_MAX_BYTES, KEY_MAX_BYTES, ROOTS_MAX
from .messages import (
    Head,
    Offering,
    Place,
    decode_delta_message,
    decode_head,
    decode_part,
)
from .records import (
    Extent,
    Record,
    decode_record,
    digest_of,
    digest_of_ascending,
    exchange,
    extent_of,
    measure,
    split_content,
    split_delta,
)
from .root import Role, Root, decode_root, root_place
from .topics import Address, DeltaAddress, HeadAddress, Kind, RootAddress, SnapshotAddress


@dataclass(frozen=True, slots=True)
class Holding:
    """What is admitted of one namespace: the head, and the digests of the content's records.

    `epoch` and `version` are the content's; the head may name an older content when a candidate was narrowed.
    `ascending` are the digests of `records` in the order of the content digest, so that a change costs no sorting.
    `extent` is exact after a snapshot or a restart, and an upper bound after deltas.
    """

    head: Head
    head_data: bytes
    head_digest: Digest
    epoch: Epoch
    version: Version
    digest: Digest
    records: Mapping[RecordId, Digest]
    ascending: Sequence[Digest]
    extent: Extent = field(compare=False)

    def is_stale(self, now: int) -> bool:
        """Whether the head has expired; what is held goes on being evaluated."""
        return now >= self.head.expires


@dataclass(frozen=True, slots=True)
class AdmittedUpdate:
    """The only thing that can be activated: a namespace's next holding and the records that change.

    `is_complete` when nothing was held before, so `changed` is everything. `warning` says what was let pass and why.
    """

    namespace: Namespace
    holding: Holding
    changed: tuple[Record, ...]
    removed: tuple[RecordId, ...]
    is_complete: bool
    warning: str = ""

    @property
    def changes_content(self) -> bool:
        """Whether any record changes; otherwise only the head is new."""
        return self.is_complete or bool(self.changed or self.removed)


@dataclass(frozen=True, slots=True)
class AdmittedRoot:
    """A root that is now in force, with the bytes to persist before the next one is asked for."""

    root: Root
    data: bytes


@dataclass(frozen=True, slots=True)
class Wanted:
    """A verified head offers a content that is not held. `refused` says why its inline delta was of no use."""

    namespace: Namespace
    offering: Offering
    held: Version | None
    refused: Refused | None = None

    @property
    def has_delta(self) -> bool:
        """Whether the broker holds a delta from the version held to the one offered."""
        return self.held is not None and self.held in self.offering.deltas


@dataclass(frozen=True, slots=True)
class Nothing:
    """Nothing new: the same head again, a part already there, a message nobody asked for."""

    why: str


Outcome = AdmittedUpdate | AdmittedRoot | Wanted | Nothing


@dataclass(frozen=True, slots=True)
class _Pending:
    # A verified head whose content is being collected; memory is bounded by what the head signed.
    head: Head
    head_data: bytes
    head_digest: Digest
    offering: Offering
    parts: Mapping[int, bytes] = field(default_factory=dict)
    warning: str = ""


@dataclass(frozen=True, slots=True)
class Trusted:
    """Everything a device believes.

    `floor` is the latest time (Unix seconds) it has had reason to believe: the highest `issued` of the root in force and of the
    roots and heads admitted in its epoch.
    """

    environment: Environment
    device: Device
    root: Root
    root_data: bytes
    floor: int = 0
    holdings: Mapping[Namespace, Holding] = field(default_factory=dict)
    pending: Mapping[Namespace, _Pending] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stored:
    """One namespace as a device's own disk gives it back: the head's message and every record's bytes."""

    namespace: Namespace
    head_data: bytes
    epoch: Epoch
    version: Version
    digest: Digest
    records: Iterable[bytes]


def anchor(data: bytes, environment: Environment) -> Root:
    """The root that a device is provisioned with: believed because its operator put it there, if it is signed by itself.

    Raises:
        Refused: one of its leaves; also for a root of another environment.
    """
    envelope = open_envelope(data, root_place(environment))
    # An anchor names its own keys; this check finds damaged files, not attackers.
    root = decode_root(envelope.payload, environment)
    verify(
        envelope, root, Role.ROOT, also_known=frozenset(signature.key for signature in envelope.signatures)
    )
    return root


def anchor_environment(data: bytes) -> Environment:
    """The environment that an anchor is made for; believed no more than the file it came from. Raises Refused."""
    payload = open_envelope(data, root_place(Environment(""))).payload
    return Environment(Fields(decode(payload, "root"), "root").text(3, KEY_MAX_BYTES))


def begin(environment: Environment, device: Device, anchor_data: bytes, *, floor: int = 0) -> Trusted:
    """What a device believes before it has heard anything: its anchor. Raises Refused."""
    root = anchor(anchor_data, environment)
    return Trusted(environment, device, root, anchor_data, max(floor, root.issued))


def admit(trusted: Trusted, address: Address, data: bytes, *, now: int) -> tuple[Trusted, Outcome]:
    """Judge one received message. `now` is the device's clock in Unix seconds, the same for the whole update.

    Raises:
        Refused: one of its leaves, named after the attack or failure; nothing has changed.
    """
    match address:
        case RootAddress(number):
            return _admit_root(trusted, number, data)
        case HeadAddress(namespace):
            return _admit_head(trusted, namespace, data, now)
        case SnapshotAddress():
            return _admit_part(trusted, address, data)
        case DeltaAddress():
            return _admit_delta(trusted, address, data)
        case _:
            return trusted, Nothing("not a publisher's topic")


def restore(trusted: Trusted, stored: Stored) -> tuple[Trusted, AdmittedUpdate]:
    """Take back what was admitted before the device went down.

    Signatures were checked at admission, perhaps against a root that is no longer in force; here the digests show that
    the disk returns what was written.

    Raises:
        Refused: the disk returns something else.
    """
    place = Place(trusted.environment, stored.namespace, Kind.HEAD)
    payload = open_envelope(stored.head_data, place).payload
    head = decode_head(payload, place)
    _require_offered(head, stored)
    records = tuple(decode_record(data) for data in stored.records)
    digests = {record.id: record.digest for record in records}
    ascending = sorted(digests.values())
    if len(digests) != len(records) or digest_of_ascending(ascending) != stored.digest:
        raise DigestMismatch(f"{stored.namespace}: the records on disk are not those that were admitted")
    holding = Holding(
        head,
        stored.head_data,
        digest_of(payload),
        stored.epoch,
        stored.version,
        stored.digest,
        digests,
        ascending,
        extent_of(records),
    )
    update = AdmittedUpdate(stored.namespace, holding, records, (), is_complete=True)
    return _with_holding(trusted, update), update


def without_parts(trusted: Trusted, namespace: Namespace) -> Trusted:
    """The same belief without the parts of a snapshot collected so far.

    Every part is signed, yet only all of them together are what the head signed: of parts that do not fit together it
    cannot be told which one is wrong.
    """
    pending = trusted.pending.get(namespace)
    if pending is None:
        return trusted
    return replace(trusted, pending={**trusted.pending, namespace: replace(pending, parts={})})


def floor_from_disk(root: Root, floor: int, epochs: Collection[Epoch]) -> int:
    """The time to believe under `root`, where `floor` was persisted with heads of these epochs.

    `root` may be a later anchor, which no update led to.
    """
    return max(floor, root.issued) if root.epoch in epochs else root.issued


def clock_is_trusted(trusted: Trusted, now: int) -> bool:
    """Whether the device's clock is at or after everything it has had reason to believe."""
    return now >= trusted.floor


def offering_for(head: Head, device: Device) -> Offering:
    """Which content a head offers to this device: the candidate's, if its labels and its bucket say so.

    The bucket (0 to 9,999) is a hash of the candidate's salt and the device id, so each device decides alone, and a
    device that was in at 5 % is in at 20 %.
    """
    candidate = head.candidate
    if candidate is None:
        return head.stable
    if any(device.labels.get(name) != value for name, value in candidate.labels.items()):
        return head.stable
    if candidate_bucket(candidate.salt, device.id) < candidate.share:
        return candidate.offering
    return head.stable


def _require_offered(head: Head, stored: Stored) -> None:
    # A head is only ever admitted with a content that it offers, or one that is newer than an offer of it (step 6.1 of Heads
    # in docs/wire-format.md).
    held = (stored.epoch, stored.version)
    _require_one_content_each(head, (*held, stored.digest))
    if all(held < (head.epoch, offering.version) for offering in _offerings(head)):
        raise DigestMismatch(
            f"{stored.namespace}: the content on disk is older than those that its head offers"
        )


def _offerings(head: Head) -> tuple[Offering, ...]:
    return (head.stable,) if head.candidate is None else (head.stable, head.candidate.offering)


def _require_one_content_each(head: Head, held: tuple[Epoch, Version, Digest] | None) -> None:
    # Of all contents that a head offers, to this device or to others, and the one held: no two under one version.
    known = {held[:2]: held[2]} if held is not None else {}
    for offering in _offerings(head):
        if known.setdefault((head.epoch, offering.version), offering.digest) != offering.digest:
            raise Equivocation(
                f"{head.namespace}: two different contents have the version {offering.version}"
            )


def _admit_root(trusted: Trusted, number: int, data: bytes) -> tuple[Trusted, Outcome]:
    place = root_place(trusted.environment)
    envelope = open_envelope(data, place)
    if number == trusted.root.number:
        _require_same_root(trusted, envelope)
    if number <= trusted.root.number:
        return trusted, Nothing(f"root {number} is not above root {trusted.root.number}")
    if number > ROOTS_MAX:
        raise TooLarge(f"root {number}: at most {ROOTS_MAX} roots")
    # The keys of both roots sign; first those of the root in force, before a byte of the payload is read.
    signers = frozenset(signature.key for signature in envelope.signatures)
    if not signers & trusted.root.roles[Role.ROOT].keys:
        if signers & trusted.root.keys.keys():
            raise WrongRole(f"root {number}: only keys without the root role signed it")
        raise UnknownKey(f"root {number}: no root key of root {trusted.root.number} signed it")
    _verify_by_root_in_force(trusted, envelope)
    root = decode_root(envelope.payload, trusted.environment)
    if root.number != number:
        raise Replayed(f"root {root.number} was found at the place of root {number}")
    if number != trusted.root.number + 1:
        raise RootSkipped(f"root {number} does not follow root {trusted.root.number}")
    own = root.roles[Role.ROOT].keys
    verify(envelope, root, Role.ROOT, also_known=(signers & trusted.root.roles[Role.ROOT].keys) - own)
    _require_epoch(trusted.root, root)
    # A head's `issued` is its publisher's word, which is good for an epoch, as its numbers are: a stolen key may have said any
    # time at all. So a new epoch begins with what the root keys say, also where that is earlier.
    floor = root.issued if root.epoch > trusted.root.epoch else max(trusted.floor, root.issued)
    admitted = replace(trusted, root=root, root_data=data, floor=floor, pending={})
    return admitted, AdmittedRoot(root, data)


def _require_same_root(trusted: Trusted, envelope: Envelope) -> None:
    # Two roots of one number that the root keys signed: these are in two hands. Anybody may put another one there, so only
    # what they signed is compared.
    in_force = open_envelope(trusted.root_data, root_place(trusted.environment))
    if envelope.payload == in_force.payload:
        return
    try:
        _verify_by_root_in_force(trusted, envelope)
    except Refused:
        return
    raise Equivocation(f"two different roots have the number {trusted.root.number}")


def _verify_by_root_in_force(trusted: Trusted, envelope: Envelope) -> None:
    # A root is signed by the keys of two roots; those that are not of the one in force are passed over.
    signers = frozenset(signature.key for signature in envelope.signatures)
    verify(envelope, trusted.root, Role.ROOT, also_known=signers - trusted.root.roles[Role.ROOT].keys)


def _require_epoch(old: Root, new: Root) -> None:
    # An epoch is a set of publisher keys: changing them starts the next one, and nothing else does.
    same_keys = old.roles[Role.PUBLISHER].keys == new.roles[Role.PUBLISHER].keys
    expected = old.epoch if same_keys else old.epoch + 1
    if new.epoch != expected:
        raise EpochMismatch(
            f"root {new.number}: epoch {new.epoch}, but its publisher keys make it {expected}"
        )


def _admit_head(trusted: Trusted, namespace: Namespace, data: bytes, now: int) -> tuple[Trusted, Outcome]:
    held = trusted.holdings.get(namespace)
    if held is not None and held.head_data == data:
        # Also where its key has been revoked since: it was admitted, and a broker offers it until it has the next one.
        return trusted, Nothing(f"{namespace}: head {held.head.sequence} is the one held")
    place = Place(trusted.environment, namespace, Kind.HEAD)
    payload = verify(open_envelope(data, place), trusted.root, Role.PUBLISHER)
    head = decode_head(payload, place)
    digest = digest_of(payload)
    if head.epoch != trusted.root.epoch:
        raise EpochMismatch(
            f"{namespace}: a head of epoch {head.epoch}; root {trusted.root.number} is of {trusted.root.epoch}"
        )
    if held is not None and held.head_digest == digest:
        return trusted, Nothing(f"{namespace}: head {head.sequence} is the one held")
    pending = trusted.pending.get(namespace)
    _require_newer_head(namespace, head, digest, held, pending)
    _require_one_content_each(head, (held.epoch, held.version, held.digest) if held is not None else None)
    warning = _check_expiry(trusted, head, now)
    offering = offering_for(head, trusted.device)
    fresh = _Pending(head, data, digest, offering, warning=warning)
    if held is not None:
        settled = _settle_without_content(namespace, held, fresh)
        if settled is not None:
            return _with_holding(trusted, settled), settled
    refused: Refused | None = None
    if head.inline is not None and held is not None and _inline_fits(head, offering, held):
        try:
            update = _apply_delta(namespace, fresh, held, head.inline.body)
        except Refused as error:
            refused = error  # the full snapshot is still there to be asked for
        else:
            return _with_holding(trusted, update), update
    if pending is not None and pending.head_digest == digest:
        fresh = pending
    elif pending is not None and _is_same_content_offered(pending.offering, offering):
        fresh = replace(fresh, parts=pending.parts)
    waiting = replace(trusted, pending={**trusted.pending, namespace: fresh})
    return waiting, Wanted(namespace, offering, held.version if held is not None else None, refused)


def _is_same_content_offered(first: Offering, second: Offering) -> bool:
    # A head that was signed anew may list other deltas; the parts are those of the same snapshot.
    return replace(first, deltas=()) == replace(second, deltas=())


def _require_newer_head(
    namespace: Namespace, head: Head, digest: Digest, held: Holding | None, pending: _Pending | None
) -> None:
    known: list[tuple[tuple[Epoch, HeadSequence], Digest]] = []
    if held is not None:
        known.append(((held.head.epoch, held.head.sequence), held.head_digest))
    if pending is not None:
        known.append(((pending.head.epoch, pending.head.sequence), pending.head_digest))
    for number, known_digest in known:
        if (head.epoch, head.sequence) < number:
            raise Rollback(f"{namespace}: head {head.sequence} was offered, head {number[1]} is known")
        if (head.epoch, head.sequence) == number and digest != known_digest:
            raise Equivocation(f"{namespace}: two different heads have the number {head.sequence}")


def _check_expiry(trusted: Trusted, head: Head, now: int) -> str:
    if now < trusted.floor:
        return f"the clock is {trusted.floor - now} s behind what is known; expiry was not checked"
    if now >= trusted.root.expires:
        # Only the root in force: those on the way to it may have expired long ago.
        raise Freeze(
            f"root {trusted.root.number} expired {now - trusted.root.expires} s ago by this device's clock"
        )
    if now >= head.expires:
        raise Freeze(
            f"{head.namespace}: head {head.sequence} expired {now - head.expires} s ago by this device's clock"
        )
    return ""


def _settle_without_content(namespace: Namespace, held: Holding, fresh: _Pending) -> AdmittedUpdate | None:
    offered = (fresh.head.epoch, fresh.offering.version)
    if offered < (held.epoch, held.version):
        # A narrowed candidate: the head is news, the content never steps down.
        return _same_content(namespace, fresh, held, held.epoch, held.version)
    if fresh.offering.digest == held.digest:
        return _same_content(namespace, fresh, held, *offered)
    return None


def _same_content(
    namespace: Namespace, fresh: _Pending, held: Holding, epoch: Epoch, version: Version
) -> AdmittedUpdate:
    holding = Holding(
        fresh.head,
        fresh.head_data,
        fresh.head_digest,
        epoch,
        version,
        held.digest,
        held.records,
        held.ascending,
        held.extent,
    )
    return AdmittedUpdate(namespace, holding, (), (), is_complete=False, warning=fresh.warning)


def _inline_fits(head: Head, offering: Offering, held: Holding) -> bool:
    inline = head.inline
    return inline is not None and inline.version == offering.version and inline.from_version == held.version


def _admit_part(trusted: Trusted, address: SnapshotAddress, data: bytes) -> tuple[Trusted, Outcome]:
    pending = trusted.pending.get(address.namespace)
    if pending is None or pending.offering.version != address.version:
        return trusted, Nothing(f"{address.namespace}: nobody asked for version {address.version}")
    place = Place(trusted.environment, address.namespace, Kind.SNAPSHOT)
    payload = verify(open_envelope(data, place), trusted.root, Role.PUBLISHER)
    part = decode_part(payload, place)
    if (part.version, part.part) != (address.version, address.part):
        raise Replayed(
            f"part {part.part} of version {part.version} was found at the place of "
            f"part {address.part} of version {address.version}"
        )
    if part.epoch != pending.head.epoch or part.parts != pending.offering.parts:
        raise MixedVersions(
            f"{address.namespace}: a part of {part.parts}, epoch {part.epoch}, is not the head's"
        )
    known = pending.parts.get(part.part)
    if known is not None:
        if known != part.body:
            raise Equivocation(
                f"{address.namespace}: two different parts {part.part} of version {part.version}"
            )
        return trusted, Nothing(f"{address.namespace}: part {part.part} is already there")
    parts = {**pending.parts, part.part: part.body}
    size = sum(len(body) for body in parts.values())
    if size > pending.offering.size:
        raise TooLarge(
            f"{address.namespace}: {size} bytes of parts; the head announced {pending.offering.size}"
        )
    collected = replace(pending, parts=parts)
    if len(parts) < pending.offering.parts:
        waiting = replace(trusted, pending={**trusted.pending, address.namespace: collected})
        return waiting, Nothing(f"{address.namespace}: {len(parts)} of {pending.offering.parts} parts")
    update = _from_snapshot(trusted, address.namespace, collected)
    return _with_holding(trusted, update), update


def _from_snapshot(trusted: Trusted, namespace: Namespace, pending: _Pending) -> AdmittedUpdate:
    bodies = (body for _, body in sorted(pending.parts.items()))
    listed = split_content(inflated(bodies, CONTENT_MAX_BYTES, f"{namespace}, snapshot"))
    hashed = [digest_of(data) for data in listed]
    ascending = sorted(hashed)
    if digest_of_ascending(ascending) != pending.offering.digest:
        raise DigestMismatch(
            f"{namespace}: the snapshot is not the content that head {pending.head.sequence} signed"
        )
    held = trusted.holdings.get(namespace)
    known = held.records if held is not None else {}
    unchanged = {digest: identity for identity, digest in known.items()}
    extent = measure(listed, namespace)
    digests: dict[RecordId, Digest] = {}
    changed = []
    for data, digest in zip(listed, hashed, strict=True):
        identity = unchanged.get(digest)
        if identity is None:
            record = decode_record(data)
            identity = record.id
            changed.append(record)
        if identity in digests:
            raise Malformed(f"{namespace}: {identity.kind} {identity.key} stands twice")
        digests[identity] = digest
    removed = tuple(identity for identity in known if identity not in digests)
    records = (digests, ascending, extent)
    return _content_update(namespace, pending, records, tuple(changed), removed, is_complete=held is None)


def _admit_delta(trusted: Trusted, address: DeltaAddress, data: bytes) -> tuple[Trusted, Outcome]:
    pending = trusted.pending.get(address.namespace)
    held = trusted.holdings.get(address.namespace)
    if pending is None or held is None or pending.offering.version != address.version:
        return trusted, Nothing(f"{address.namespace}: nobody asked for a delta to version {address.version}")
    place = Place(trusted.environment, address.namespace, Kind.DELTA)
    payload = verify(open_envelope(data, place), trusted.root, Role.PUBLISHER)
    delta = decode_delta_message(payload, place)
    if (delta.version, delta.from_version) != (address.version, address.from_version):
        raise Replayed(
            f"the delta {delta.from_version} to {delta.version} was found at the place of "
            f"{address.from_version} to {address.version}"
        )
    if delta.epoch != pending.head.epoch:
        raise MixedVersions(
            f"{address.namespace}: a delta of epoch {delta.epoch}; the head is of {pending.head.epoch}"
        )
    if delta.from_version != held.version:
        raise DeltaMismatch(
            f"{address.namespace}: a delta from version {delta.from_version}; {held.version} is held"
        )
    update = _apply_delta(address.namespace, pending, held, delta.body)
    return _with_holding(trusted, update), update


def _apply_delta(namespace: Namespace, pending: _Pending, held: Holding, body: bytes) -> AdmittedUpdate:
    removed, listed = split_delta(inflated([body], CONTENT_MAX_BYTES, f"{namespace}, delta"))
    for identity in removed:
        if identity not in held.records:
            raise DeltaMismatch(
                f"{namespace}: the delta removes {identity.kind} {identity.key}, which is not held"
            )
    # What the changed records replace is counted as well: a delta that has no room by that count costs a snapshot, whose
    # extent is exact.
    extent = measure(listed, namespace, held.extent)
    changed = tuple(decode_record(data) for data in listed)
    touched = {*removed, *(record.id for record in changed)}
    if len(touched) != len(removed) + len(changed):
        raise Malformed(f"{namespace}: the delta names a record twice")
    ascending = exchange(
        held.ascending,
        gone=[held.records[identity] for identity in touched if identity in held.records],
        come=[record.digest for record in changed],
    )
    if digest_of_ascending(ascending) != pending.offering.digest:
        raise DigestMismatch(
            f"{namespace}: the delta does not lead to the content that head {pending.head.sequence} signed"
        )
    digests = dict(held.records)
    for identity in removed:
        del digests[identity]
    digests.update((record.id, record.digest) for record in changed)
    records = (digests, ascending, extent)
    return _content_update(namespace, pending, records, changed, removed, is_complete=False)


def _content_update(
    namespace: Namespace,
    pending: _Pending,
    records: tuple[Mapping[RecordId, Digest], Sequence[Digest], Extent],
    changed: Sequence[Record],
    removed: Sequence[RecordId],
    *,
    is_complete: bool,
) -> AdmittedUpdate:
    holding = Holding(
        pending.head,
        pending.head_data,
        pending.head_digest,
        pending.head.epoch,
        pending.offering.version,
        pending.offering.digest,
        *records,
    )
    return AdmittedUpdate(
        namespace, holding, tuple(changed), tuple(removed), is_complete=is_complete, warning=pending.warning
    )


def _with_holding(trusted: Trusted, update: AdmittedUpdate) -> Trusted:
    pending = {name: waiting for name, waiting in trusted.pending.items() if name != update.namespace}
    head = update.holding.head
    # A head that is restored may be of an epoch that has ended: its word on the time ended with it.
    floor = max(trusted.floor, head.issued) if head.epoch == trusted.root.epoch else trusted.floor
    return replace(
        trusted,
        floor=floor,
        holdings={**trusted.holdings, update.namespace: update.holding},
        pending=pending,
    )
