"""The commands around keys: what a person is told, what is written where, and in which order.

A rotation may end at any instant and be begun again. The new key is on disk before the root that names it, the root before any
file takes another name; a run that finds such a key and its root finishes what was begun.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from flagcast_bridge import clock, files, project
from flagcast_bridge.project import Project
from flagcast_bridge.signing import ceremony, keychain, signer
from flagcast_bridge.signing.ceremony import CEREMONY_MAX_BYTES, Ceremony, CeremonyRefused, Change, Subject
from flagcast_bridge.signing.keychain import Chain
from flagcast_bridge.signing.passphrase import Unlock, remembered
from flagcast_bridge.signing.signer import Signer, public_file
from flagcast_shared import trust
from flagcast_shared.errors import FlagcastError, InvalidConfiguration, Refused
from flagcast_shared.ids import KeyId
from flagcast_shared.root import PublicKey, Role, Root
from flagcast_shared.topics import RootAddress

Say = Callable[[str], None]
"""Takes one line for people."""

_TAKEN: Final = "sign that one, or remove it, or name another file"
_EXPIRY_UNCHECKED: Final = 0
# A root is judged before its time: whether it is expired is for devices to find.


class NotAgreed(FlagcastError):
    """A person was asked and did not say yes; nothing was changed."""


def make(path: Path, name: str, passphrase: bytes | None, say: Say) -> None:
    """A new key pair for somebody who signs elsewhere. Raises InvalidInput."""
    made = signer.create(signer.parse_name(name))
    for each in (path, public_file(path)):
        if each.exists() or each.is_symlink():
            raise InvalidConfiguration(f"{each}: already there, and keys are never overwritten")
    signer.save_public(made.public, path)
    made.save(path, passphrase)
    for line in signer.encode_public(made.public).decode().splitlines():
        say(line)
    say(f"key {ceremony.shown_key(made.public)}")
    say(f"  {path}    signs; keep it here, and one copy in another place")
    say(f"  {public_file(path)}    goes to whoever makes the next root: flagcast keys rotate ROLE --add")


def shown(settings: Project) -> list[str]:
    """The chain of roots, the one in force and the keys that the project holds, in lines. Raises InvalidConfiguration."""
    chain = keychain.chain(settings)
    root, names = chain.root, chain.names
    lines = [f"environment {settings.environment}, roots of {settings.folder / project.ROOTS_NAME}"]
    for link in chain.links:
        each = link.root
        by = ", ".join(ceremony.shown_key(names[key]) for key in link.signers)
        lines.append(
            f"  root {each.number}  epoch {each.epoch}  issued {clock.as_text(each.issued)}  expires "
            f"{clock.as_text(each.expires)}  signed by {by}"
        )
    expired = "  EXPIRED: devices take nothing new; flagcast keys rotate root"
    lines.append(f"in force: root {root.number}{expired if clock.now() >= root.expires else ''}")
    for role in Role:
        quorum = root.roles[role]
        lines.append(f"  {role}: {quorum.threshold} of {len(quorum.keys)} must sign")
        lines += [f"    {ceremony.shown_key(root.keys[key])}" for key in sorted(quorum.keys)]
    lines.append(f"held in {settings.folder / project.KEYS_NAME}:")
    held = keychain.held(settings)
    for key in held:
        locked = ", protected by a passphrase" if key.is_encrypted else ""
        if key.weakness:
            locked += f", by {key.weakness} alone; write it anew with: flagcast keys passphrase {key.path}"
        if key.public is None:
            lines.append(f"  {key.path.name}: {key.problem}")
            continue
        roles = " and ".join(_roles(root, key.public.id)) or "of no use under this root"
        known = names.get(key.public.id, key.public)
        lines.append(f"  {key.path.name}: {ceremony.shown_key(known)}, {roles}{locked}")
    return lines if held else [*lines, "  none"]


def as_json(settings: Project) -> Mapping[str, object]:
    """The same as `shown` for programs. Raises InvalidConfiguration."""
    chain = keychain.chain(settings)
    root, names = chain.root, chain.names
    return {
        "environment": settings.environment,
        "roots": [
            {
                "number": link.root.number,
                "epoch": link.root.epoch,
                "issued": clock.as_text(link.root.issued),
                "expires": clock.as_text(link.root.expires),
                "signed_by": [{"id": key.hex(), "name": names[key].name} for key in link.signers],
            }
            for link in chain.links
        ],
        "in_force": {
            "number": root.number,
            "epoch": root.epoch,
            "is_expired": clock.now() >= root.expires,
            "roles": {
                role.value: {
                    "threshold": root.roles[role].threshold,
                    "keys": [key.hex() for key in sorted(root.roles[role].keys)],
                }
                for role in Role
            },
            "keys": [
                {"id": key.hex(), "name": root.keys[key].name, "roles": _roles(root, key)}
                for key in sorted(root.keys)
            ],
        },
        "held": [
            {
                "file": str(key.path),
                "id": None if key.public is None else key.public.id.hex(),
                "roles": [] if key.public is None else _roles(root, key.public.id),
                "is_encrypted": key.is_encrypted,
                "problem": key.problem or None,
                "weakness": key.weakness or None,
            }
            for key in keychain.held(settings)
        ],
    }


def rotate(
    settings: Project,
    role: Role,
    *,
    add: Sequence[Path] = (),
    remove: Sequence[str] = (),
    threshold: int | None = None,
    out: Path | None = None,
    key_files: Sequence[Path] = (),
    unlock: Unlock,
    protect: Callable[[], bytes | None],
    say: Say,
) -> None:
    """Make the next root with other keys for a role; without `add`, `remove` and `threshold` a new key replaces the old one.

    It goes to `roots/` where enough keys are at hand, else to a ceremony file. `protect` gives the passphrase of a new key.

    Raises:
        InvalidInput, CeremonyRefused
    """
    chain = keychain.chain(settings)
    replaces = not add and not remove and threshold is None
    if keychain.settle(settings, chain.root, say) and replaces:
        say(f"finished what was begun: root {chain.root.number} is in {project.ROOTS_NAME}/")
        _say_next(settings, chain.root, say)
        return
    if replaces:
        change = _replacement(settings, chain, role, protect)
    else:
        change = Change(
            role,
            tuple(signer.load_public(path) for path in add),
            frozenset(ceremony.find_key(chain.root, named) for named in remove),
            threshold,
        )
    _advance(settings, chain, (change,), out=out, key_files=key_files, unlock=unlock, say=say)


def revoke(
    settings: Project, named: str, *, out: Path | None, key_files: Sequence[Path], unlock: Unlock, say: Say
) -> None:
    """Make the next root without a key. Raises InvalidInput, CeremonyRefused."""
    chain = keychain.chain(settings)
    keychain.settle(settings, chain.root, say)
    gone = [key for key in chain.names.values() if named in (key.id.hex(), key.name)]
    if len(gone) == 1 and gone[0].id not in chain.root.keys:
        raise CeremonyRefused(
            f"key {ceremony.shown_key(gone[0])} is not in root {chain.root.number}: it was taken out before, and what it signs "
            "counts for nothing"
        )
    changes = ceremony.without_key(chain.root, ceremony.find_key(chain.root, named))
    _advance(settings, chain, changes, out=out, key_files=key_files, unlock=unlock, say=say)


def change_passphrase(
    path: Path, *, unlock: Unlock, protect: Callable[[], bytes] | None, allow_group: bool, say: Say
) -> None:
    """Write a key file anew, encrypted as new keys are, under what `protect` gives or else its present passphrase.

    The file has its old content or its new one at any instant. Raises InvalidInput.
    """
    unlock = remembered(unlock)
    key = signer.load(path, path.stem, unlock, allow_group=allow_group)
    if protect is not None:
        new: bytes | None = protect()
    else:
        new = unlock(path) if signer.is_encrypted(path, allow_group=allow_group) else None
    if new is None:
        raise InvalidConfiguration(
            f"{path}: has no passphrase yet; give --new-passphrase to be asked for one, or --new-passphrase-file"
        )
    lost = key.save_again(path, new)
    say(f"{path} is written anew; key {key.public.id.hex()} is the same")
    if lost is not None:
        say(f"  its group may not read it any more; as root, run: chgrp {lost} {path} && chmod g+r {path}")
    say(
        "  copies of the old file still open as they did: replace them, and destroy the ones that you cannot replace"
    )


def sign(
    path: Path,
    key_file: Path,
    *,
    unlock: Unlock,
    agrees: Callable[[str], bool],
    say: Say,
    allow_group: bool = False,
) -> None:
    """Add a key's signatures to a ceremony file, once a person has seen what is signed. Needs no project and no network.

    Raises:
        InvalidInput, CeremonyRefused, NotAgreed
    """
    opened = read(path)
    ceremony.require_issued(opened, clock.now(), clock.as_text)
    key = signer.load(key_file, key_file.stem, unlock, allow_group=allow_group)
    known = ceremony.voters(opened).get(key.public.id, key.public)
    to_sign = ceremony.messages_to_sign(opened, key.public)
    try:
        lines = ceremony.describe(opened, clock.as_text)
    except Refused as error:
        raise InvalidConfiguration(f"{path}: {error}") from error
    for line in lines:
        say(line)
    if not agrees(f"sign this with key {ceremony.shown_key(known)}? [y/N] "):
        raise NotAgreed("not signed; nothing was changed")
    signed = ceremony.with_signatures(opened, key.public.id, (key.sign(each) for each in to_sign))
    try:
        files.replace(path, ceremony.encode_ceremony(signed))
    except OSError as error:
        raise InvalidConfiguration(f"{path}: cannot be written: {error.strerror}") from error
    say_progress(signed, path, say)


def apply(settings: Project, path: Path, say: Say) -> None:
    """Take a root that enough keys have signed into `roots/`, if a device would. Raises InvalidInput, CeremonyRefused."""
    opened = read(path)
    if opened.subject is not Subject.ROOT or opened.successor is None:
        raise CeremonyRefused(f"{path}: a release; publish it with flagcast publish --release {path}")
    if opened.environment != settings.environment:
        raise CeremonyRefused(
            f"{path}: for environment {opened.environment!r}, and this project is {settings.environment!r}"
        )
    ceremony.require_issued(opened, clock.now(), clock.as_text)
    chain, new = keychain.chain(settings), opened.successor
    if new.number <= chain.root.number:
        if chain.links[new.number - 1].root != new:
            raise CeremonyRefused(
                f"{path}: root {new.number} is another one here; this project has moved on, make the change anew"
            )
        keychain.settle(settings, chain.root, say)
        say(f"root {new.number} is in {project.ROOTS_NAME}/ already")
    else:
        _take_in(settings, chain, opened, say)
    _say_next(settings, new, say)


def read(path: Path) -> Ceremony:
    """The ceremony of a file. Raises InvalidConfiguration."""
    try:
        data = files.read(path, CEREMONY_MAX_BYTES)
    except OSError as error:
        raise InvalidConfiguration(f"{path}: the ceremony cannot be read: {error.strerror}") from error
    if data is None:
        raise InvalidConfiguration(f"{path}: larger than {CEREMONY_MAX_BYTES} bytes; not a ceremony")
    try:
        return ceremony.decode_ceremony(data)
    except Refused as error:
        raise InvalidConfiguration(f"{path}: not a ceremony that can be believed: {error}") from error


def require_free(path: Path) -> None:
    """Refuse a name that is taken, before anything is done for the file. Raises InvalidConfiguration."""
    if path.exists() or path.is_symlink():
        raise InvalidConfiguration(f"{path}: already there, and never overwritten; {_TAKEN}")


def write(path: Path, made: Ceremony) -> None:
    """A new ceremony file. Raises InvalidConfiguration, CeremonyRefused."""
    try:
        files.write_new(path, ceremony.encode_ceremony(made))
    except FileExistsError:
        raise InvalidConfiguration(f"{path}: already there, and never overwritten; {_TAKEN}") from None
    except OSError as error:
        raise InvalidConfiguration(f"{path}: cannot be written: {error.strerror}") from error


def _replacement(settings: Project, chain: Chain, role: Role, protect: Callable[[], bytes | None]) -> Change:
    quorum = chain.root.roles[role]
    here = {key.public.id for key in keychain.held(settings) if key.public is not None} & quorum.keys
    going = here or quorum.keys
    if len(going) != 1:
        what = "holds none" if not here else f"holds {len(here)}"
        listed = ", ".join(ceremony.shown_key(chain.root.keys[key]) for key in sorted(quorum.keys))
        raise CeremonyRefused(
            f"which key shall go? Root {chain.root.number} has {len(quorum.keys)} {role} keys, and this project {what} of them; "
            f"name it with --remove, and what comes with --add: {listed}"
        )
    path = keychain.next_key(settings, role)
    if not path.exists():
        passphrase = protect()
        made = signer.create(f"{role}-{chain.root.number + 1}")
        try:
            files.replace(public_file(path), signer.encode_public(made.public))
        except OSError as error:
            raise InvalidConfiguration(f"{path}: the key cannot be written: {error.strerror}") from error
        made.save(path, passphrase)
    return Change(role, (_public_of(path, allow_group=settings.allow_group),), frozenset(going))


def _public_of(path: Path, *, allow_group: bool) -> PublicKey:
    beside = signer.load_public(public_file(path)) if public_file(path).exists() else None
    if beside is not None and signer.is_encrypted(path, allow_group=allow_group):
        return beside
    found = signer.load(path, path.stem, allow_group=allow_group).public
    return beside if beside is not None and beside.id == found.id else found


def _advance(
    settings: Project,
    chain: Chain,
    changes: Iterable[Change],
    *,
    out: Path | None,
    key_files: Sequence[Path],
    unlock: Unlock,
    say: Say,
) -> None:
    new = ceremony.next_root(chain.root, changes, now=clock.now(), lifetime=settings.root_lifetime)
    if new.roles == chain.root.roles:
        raise CeremonyRefused(f"nothing would change: root {chain.root.number} says this already")
    made = ceremony.of_root(chain.root, chain.data, new)
    for key in _at_hand(settings, chain, made, key_files, unlock):
        if key.public.id in made.signatures:
            continue
        to_sign = ceremony.messages_to_sign(made, key.public)
        made = ceremony.with_signatures(made, key.public.id, [key.sign(each) for each in to_sign])
    for line in ceremony.describe(made, clock.as_text):
        say(line)
    if ceremony.is_complete(made):
        _take_in(settings, chain, made, say)
        _say_next(settings, new, say)
        return
    path = out or Path(f"root-{new.number}.ceremony")
    write(path, made)
    say(f"not in force yet; written to {path}")
    say_progress(made, path, say)


def _at_hand(
    settings: Project, chain: Chain, made: Ceremony, key_files: Sequence[Path], unlock: Unlock
) -> list[Signer]:
    have_say = ceremony.voters(made)
    paths = [
        key.path for key in keychain.held(settings) if key.public is not None and key.public.id in have_say
    ]
    return [
        keychain.load(path, chain.root, unlock, allow_group=settings.allow_group)
        for path in dict.fromkeys([*paths, *key_files])
    ]


def _take_in(settings: Project, chain: Chain, made: Ceremony, say: Say) -> None:
    # As a device would, before anything is written.
    ((address, message),) = ceremony.sealed(made).items()
    assert isinstance(address, RootAddress)
    if made.in_force != chain.root:
        raise CeremonyRefused(
            f"root {address.number} was made to follow another root {made.in_force.number} than this project's; make the change "
            "anew"
        )
    try:
        _, outcome = trust.admit(chain.trusted, address, message, now=_EXPIRY_UNCHECKED)
    except Refused as error:
        raise CeremonyRefused(
            f"devices would refuse root {address.number} ({error.attack}): {error}"
        ) from error
    assert isinstance(outcome, trust.AdmittedRoot)
    project.write_root(settings, address.number, message)
    say(f"root {address.number} is in {settings.root_file(address.number)}")
    keychain.settle(settings, outcome.root, say)


def say_progress(made: Ceremony, path: Path, say: Say) -> None:
    """Who has signed, who may still, and what comes next."""
    for line in ceremony.describe_progress(made):
        say(line)
    if not ceremony.is_complete(made):
        say(f"next: flagcast keys sign {path} --key KEYFILE, wherever a missing key is")
    elif made.subject is Subject.ROOT:
        say(f"next: flagcast keys apply {path}, in the project")
    else:
        say(f"next: flagcast publish --release {path}, in the project")


def _say_next(settings: Project, root: Root, say: Say) -> None:
    say(
        f"next: flagcast publish FLAGS --project {settings.folder}: it puts root {root.number} on the broker"
        + (
            f", and every namespace anew under epoch {root.epoch}"
            if root.epoch != _epoch_before(settings, root)
            else ""
        )
    )
    say(
        f"  a device believes the keys of before until it hears of root {root.number}, and then no longer; one that was offline "
        "walks all roots when it is back"
    )


def _epoch_before(settings: Project, root: Root) -> int:
    return keychain.chain(settings).links[root.number - 2].root.epoch if root.number > 1 else root.epoch


def _roles(root: Root, key: KeyId) -> list[str]:
    return [role.value for role in Role if key in root.roles[role].keys]
