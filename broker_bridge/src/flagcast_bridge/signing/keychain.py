"""The keys and roots of a project's folder: which keys it holds, what the chain of roots says of them, who can sign.

A key's file may have any name that ends in `.key`; what it may sign is decided by the roots alone. `root.key` and `publisher.key`
are those that this project began with or made last. `{role}.next.key` is a key whose root is not in `roots/` yet; once it is,
`settle` gives the key its name.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flagcast_bridge import files, project
from flagcast_bridge.project import Project
from flagcast_shared import trust
from flagcast_shared.context import Device
from flagcast_shared.envelope import open_envelope
from flagcast_shared.errors import InvalidConfiguration, Refused
from flagcast_shared.ids import DeviceId, Environment, KeyId
from flagcast_shared.root import PublicKey, Role, Root, root_place
from flagcast_shared.topics import RootAddress

from . import signer
from .passphrase import Unlock
from .signer import KEY_FILE_MAX_BYTES, Signer, public_file

_KEY_FILES: Final = "*.key"
_NEXT: Final = "{}.next.key"
_DEVICE: Final = Device(DeviceId("publisher"))
_EXPIRY_UNCHECKED: Final = 0
# Roots are walked at any time; only that of the last one would matter, and callers look at it themselves.


@dataclass(frozen=True, slots=True)
class Link:
    """One root of the chain, verified from the one before; `signers` in the order of their ids."""

    root: Root
    data: bytes
    signers: tuple[KeyId, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """The project's roots from the first to the one in force, and what a device believes that has walked them."""

    links: tuple[Link, ...]
    trusted: trust.Trusted

    @property
    def root(self) -> Root:
        """The root in force."""
        return self.links[-1].root

    @property
    def data(self) -> bytes:
        """The message of the root in force."""
        return self.links[-1].data

    @property
    def names(self) -> Mapping[KeyId, PublicKey]:
        """Every key that any of the roots lists."""
        return {key: public for link in self.links for key, public in link.root.keys.items()}


@dataclass(frozen=True, slots=True)
class HeldKey:
    """A key file of the project. `public` is None, with the reason in `problem`, where it is not known without a passphrase.

    `weakness` is the reason why its passphrase is tried too fast, blank where it is not.
    """

    path: Path
    public: PublicKey | None
    is_encrypted: bool = False
    problem: str = ""
    weakness: str = ""


def chain(settings: Project) -> Chain:
    """The project's roots, walked as a device would. Raises InvalidConfiguration."""
    return walk(settings.environment, project.read_roots(settings))


def walk(environment: Environment, roots: Iterable[bytes]) -> Chain:
    """The chain of these roots, the first of which is the anchor. Raises InvalidConfiguration."""
    first, *others = roots
    try:
        trusted = trust.begin(environment, _DEVICE, first)
        links = [_link(trusted)]
        for number, data in enumerate(others, 2):
            trusted, _ = trust.admit(trusted, RootAddress(number), data, now=_EXPIRY_UNCHECKED)
            links.append(_link(trusted))
    except Refused as error:
        raise InvalidConfiguration(
            f"{project.ROOTS_NAME}: the project's own roots do not verify: {error}"
        ) from error
    return Chain(tuple(links), trusted)


def held(settings: Project) -> list[HeldKey]:
    """Every key file of the project, also those that no root lists. Needs no passphrase."""
    return [
        _look_at(path, allow_group=settings.allow_group)
        for path in sorted((settings.folder / project.KEYS_NAME).glob(_KEY_FILES))
    ]


def publishers(settings: Project, root: Root, unlock: Unlock) -> list[Signer]:
    """As many of the project's keys as must sign what is published; fewer where it holds fewer, but at least one.

    Raises:
        InvalidConfiguration: it holds none, or one that is needed cannot be loaded.
    """
    quorum = root.roles[Role.PUBLISHER]
    main = settings.publisher_key
    problem: InvalidConfiguration | None = None
    found: dict[KeyId, Signer] = {}
    for key in sorted(held(settings), key=lambda each: (each.path != main, each.path)):
        if len(found) == quorum.threshold:
            break
        if key.public is not None and key.public.id not in quorum.keys:
            continue
        if key.public is None and not key.is_encrypted and key.path != main:
            continue  # no key of ours
        try:
            loaded = load(key.path, root, unlock, allow_group=settings.allow_group)
        except InvalidConfiguration as error:
            if key.public is not None:
                raise
            problem = problem or error
            continue
        if loaded.public.id in quorum.keys:
            found[loaded.public.id] = loaded
    if not found:
        if problem is not None:
            raise problem
        if not main.exists():
            signer.load(main, main.stem, unlock)  # says so
        raise InvalidConfiguration(
            f"{main}: root {root.number} does not name this key as a publisher's; devices would refuse what it signs"
        )
    return list(found.values())


def load(path: Path, root: Root, unlock: Unlock, *, allow_group: bool = False) -> Signer:
    """The key of a file, under the name that the root gives it. Raises InvalidConfiguration."""
    loaded = signer.load(path, path.stem, unlock, allow_group=allow_group)
    beside = public_file(path)
    is_hint = signer.is_encrypted(path, allow_group=allow_group) and beside.exists()
    if is_hint and signer.load_public(beside).id != loaded.public.id:
        raise InvalidConfiguration(f"{path}: {beside.name} beside it is the public half of another key")
    known = root.keys.get(loaded.public.id)
    return loaded if known is None else _Named(loaded, known)


def next_key(settings: Project, role: Role) -> Path:
    """The file of a key whose root is not in `roots/` yet."""
    return settings.folder / project.KEYS_NAME / _NEXT.format(role)


def settle(settings: Project, root: Root, say: Callable[[str], None]) -> bool:
    """Give keys that the root in force has taken in the names of their roles; whether there was anything to do.

    The key that had the name before keeps its content under a numbered one. Each step leaves every key in a file of its own, so
    this may end anywhere and is then finished by the next call.

    Raises:
        InvalidConfiguration: a file cannot be renamed.
    """
    done = False
    for role in Role:
        coming, main = next_key(settings, role), _main(settings, role)
        try:
            if coming.exists():
                found = _look_at(coming, allow_group=settings.allow_group).public
                if found is None or found.id not in root.roles[role].keys:
                    continue
                if main.exists():
                    aside = _set_aside(main)
                    say(f"{main.name} is now {aside.name}; it is kept, and no longer signs for this project")
                if public_file(coming).exists():
                    files.replace(public_file(main), public_file(coming).read_bytes())
                files.move(coming, main)
                say(f"{main} is the new {role} key; keep a copy of it")
                done = True
            if not coming.exists() and _same(public_file(coming), public_file(main)):
                for path in (coming, public_file(coming), public_file(main), settings.root_file(root.number)):
                    files.tidy(path)
                # Last, because it is what tells the next call that there is something to finish.
                public_file(coming).unlink()
                done = True
        except OSError as error:
            raise InvalidConfiguration(f"{coming}: cannot be renamed: {error.strerror}") from error
    return done


class _Named:
    # A signer under the name that a root gives its key.

    def __init__(self, inner: Signer, public: PublicKey) -> None:
        self._inner = inner
        self.public = public

    def sign(self, data: bytes) -> bytes:
        return self._inner.sign(data)


def _main(settings: Project, role: Role) -> Path:
    return settings.root_key if role is Role.ROOT else settings.publisher_key


def _link(trusted: trust.Trusted) -> Link:
    envelope = open_envelope(trusted.root_data, root_place(trusted.environment))
    return Link(
        trusted.root, trusted.root_data, tuple(sorted(signature.key for signature in envelope.signatures))
    )


def _look_at(path: Path, *, allow_group: bool) -> HeldKey:
    is_encrypted, weakness = False, ""
    try:
        is_encrypted = signer.is_encrypted(path, allow_group=allow_group)
        if not is_encrypted:
            return HeldKey(path, signer.load(path, path.stem, allow_group=allow_group).public)
        weakness = signer.weakness(path, allow_group=allow_group)
        if public_file(path).exists():
            return HeldKey(path, signer.load_public(public_file(path)), is_encrypted=True, weakness=weakness)
    except InvalidConfiguration as error:
        return HeldKey(path, None, is_encrypted, str(error), weakness)
    return HeldKey(
        path,
        None,
        is_encrypted=True,
        problem=f"{path}: protected by a passphrase, and no {public_file(path).name}",
        weakness=weakness,
    )


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.read_bytes() == other.read_bytes()


def _set_aside(main: Path) -> Path:
    number = 1
    while (aside := main.with_name(f"{main.stem}-{number}.key")).exists():
        number += 1
    if public_file(main).exists():
        content = files.read(public_file(main), KEY_FILE_MAX_BYTES)
        files.replace(public_file(aside), content or b"")
    files.move(main, aside)
    return aside
