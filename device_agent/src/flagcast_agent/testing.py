"""Flags for the tests of an application: a client and an OpenFeature provider from a flags file, without an agent.

A file is compiled as `flagcast publish` compiles it, its records are decoded as a device decodes them, and the client is that of
`flagcast_agent.client`: what a test sees is what a device would answer. There is no broker, no signature and no disk.

Needs a reader of flags files, which the extra `testing` of this distribution brings: `flagcast-agent[testing]`.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from flagcast_shared.context import Device, device_attributes
from flagcast_shared.errors import (
    FlagNotFound,
    InvalidCall,
    InvalidConfiguration,
    NamespaceNotFound,
    TypeMismatch,
)
from flagcast_shared.evaluation import BooleanAnswer, CompiledFlags, FlagState, VariantAnswer, compile_flags
from flagcast_shared.ids import Environment, Epoch, FlagKey, Namespace, RecordId, Version, parse_device
from flagcast_shared.model import BooleanFlag, Entry, VariantFlag
from flagcast_shared.records import content_digest, decode_record

from . import clock
from .client import Client, Source, watch_forks
from .evaluator import Knowledge
from .store.rows import Profile

if TYPE_CHECKING:
    from flagcast_shared.explanation import Explanation

    from .openfeature import FlagcastProvider

__all__ = ["Flags", "OverridableClient", "client_of", "provider_of"]

Flags = Path | str | Mapping[str, object]
"""A flags file, a folder of them, or one document of a `features.yml` as a dictionary."""

READERS: Final = "flagcast.flags_reader"
"""The group of the entry point that reads flags files: no import leads from the agent to the bridge."""
DEFAULT_NAMESPACE: Final = Namespace("default")
FRESH_SECONDS: Final = 100 * 365 * 86_400
"""So long the flags are fresh: no test runs until they would be stale."""
_NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})

_Usable = BooleanFlag | VariantFlag
_Reader = Callable[[Path | Mapping[str, object]], Mapping[Namespace, tuple[bytes, ...]]]


def client_of(
    flags: Flags,
    *,
    namespace: str = "",
    device: str = "test-device",
    labels: Mapping[str, str] = _NO_LABELS,
    model: str = "",
    firmware: str = "",
) -> "OverridableClient":
    """A client that answers from `flags`; nothing has to be closed.

    Args:
        flags: a flags file, a folder of them, or one document of a `features.yml` as a dictionary.
        namespace: the namespace of a question without one; unless given, `default` if the flags have it, else their first.
        device: the device's id, `device.id` in every context.
        labels: its labels, `device.label.*` in every context.
        model: its model, `device.model` in every context.
        firmware: its firmware, `device.firmware` in every context.

    Raises:
        InvalidDocument: the flags could not be published; the message lists the errors.
        InvalidConfiguration: no reader of flags files is installed.
        NamespaceNotFound: the flags have no such namespace.
    """
    described = Device(parse_device(device), dict(labels), model, firmware)
    return OverridableClient(_read(flags), described, namespace)


def provider_of(
    flags: "Flags | OverridableClient",
    *,
    namespace: str = "",
    device: str = "test-device",
    labels: Mapping[str, str] = _NO_LABELS,
    model: str = "",
    firmware: str = "",
) -> "FlagcastProvider":
    """An OpenFeature provider from flags, or on a client of `client_of`, whose overrides it then answers.

    Arguments and errors are those of `client_of`; with a client, the device is the client's. Needs the extra `openfeature`.
    """
    from .openfeature import FlagcastProvider

    if isinstance(flags, OverridableClient):
        return FlagcastProvider(flags, namespace=namespace)
    client = client_of(
        flags, namespace=namespace, device=device, labels=labels, model=model, firmware=firmware
    )
    return FlagcastProvider(client)


class OverridableClient(Client):
    """A client of unchanging flags, of which a test may override some; made by `client_of`."""

    def __init__(
        self, contents: Mapping[Namespace, tuple[bytes, ...]], device: Device, namespace: str
    ) -> None:
        names = tuple(sorted(contents, key=lambda name: name != DEFAULT_NAMESPACE))
        if not names or (namespace and namespace not in contents):
            raise NamespaceNotFound(f"the flags have no namespace {namespace or 'at all'!r}")
        self._begin(namespace)
        self._source = _Unchanging(self)
        attributes = device_attributes(device)
        now = clock.now()
        self._contents: dict[Namespace, _Content] = {}
        known: dict[str, Knowledge] = {}
        for name in names:
            records = [decode_record(data) for data in contents[name]]
            content = _Content([record.entry for record in records], attributes)
            self._contents[name] = content
            known[name] = Knowledge(
                name,
                Epoch(1),
                Version(1),
                content_digest(record.digest for record in records),
                now,
                now + FRESH_SECONDS,
                content.compiled(),
            )
        watch_forks(self)
        self._learn(known, "", Profile(Environment("testing"), device, names))

    @contextlib.contextmanager
    def override(
        self,
        flag: str,
        value: bool | str,  # noqa: FBT001  # what the flag answers, not a switch
        entity: str | None = None,
        *,
        namespace: str = "",
    ) -> Iterator[None]:
        """Have a flag answer `value` within a block, for every entity or for one.

        `value` is a boolean for a boolean flag, the key of one of its variants for a variant flag; a disabled flag answers it
        too. All threads get it. Of overrides of one flag, the one that was entered last holds. Listeners hear of an override
        before the block begins, and of its end before the block is left.

        Raises:
            NamespaceNotFound, FlagNotFound: the flags have no such namespace or flag.
            TypeMismatch: the flag is of another type than `value`.
            InvalidCall: the flag has no such variant.
        """
        name = Namespace(namespace or self.default_namespace)
        content = self._contents.get(name)
        if content is None:
            raise NamespaceNotFound(f"the flags have no namespace {name!r}")
        override = content.overriding(FlagKey(flag), value, entity)
        with self._source.working:
            content.overrides.setdefault(override.entry.key, []).append(override)
            self._apply(name, content, override.entry.key)
        try:
            yield
        finally:
            with self._source.working:
                standing = content.overrides[override.entry.key]
                standing[:] = [other for other in standing if other is not override]
                self._apply(name, content, override.entry.key)

    def _apply(self, name: Namespace, content: "_Content", flag: FlagKey) -> None:
        content.apply(flag)
        former = self._known[name]
        # A device hears of other flags as of a later version.
        later = replace(former, version=Version(former.version + 1), compiled=content.compiled())
        self._learn({name: later}, "")


@dataclass(frozen=True, slots=True, eq=False)
class _Override:
    # One block's: the flag as it is within it, for one entity or for all, alone in a compiled form for the former.
    entry: _Usable
    entity: str | None
    alone: CompiledFlags


class _Content:
    # One namespace: its flags as they are in the file, and as they are now.

    def __init__(self, entries: list[Entry], attributes: Mapping[str, str]) -> None:
        self._attributes = attributes
        self._as_read = {
            entry.key: entry for entry in entries if isinstance(entry, BooleanFlag | VariantFlag)
        }
        self._now: dict[FlagKey, _Usable] = dict(self._as_read)
        self._everyone = compile_flags(entries, attributes)
        self._entities: dict[tuple[str, str], CompiledFlags] = {}
        self.overrides: dict[FlagKey, list[_Override]] = {}

    def compiled(self) -> CompiledFlags:
        return _Overridden(self._everyone, dict(self._entities))

    def overriding(self, key: FlagKey, value: bool | str, entity: str | None) -> _Override:  # noqa: FBT001  # as above
        flag = self._as_read.get(key)
        if flag is None:
            raise FlagNotFound(f"the flags have no flag {key!r}")
        entry: _Usable
        match flag, value:
            case BooleanFlag(), bool():
                entry = replace(flag, enabled=value, rollouts=())
            case VariantFlag(), str():
                chosen = next((each.key for each in flag.variants if each.key == value), None)
                if chosen is None:
                    known = ", ".join(repr(str(each.key)) for each in flag.variants) or "none"
                    raise InvalidCall(f"flag {key!r} has no variant {value!r}; its variants: {known}")
                entry = replace(flag, enabled=True, default=chosen, rules=())
            case _:
                kind, takes = (
                    ("boolean", "True or False")
                    if isinstance(flag, BooleanFlag)
                    else ("variant", "a variant's key")
                )
                raise TypeMismatch(f"flag {key!r} is a {kind} flag, which answers {takes}, not {value!r}")
        return _Override(entry, entity, compile_flags([entry], self._attributes))

    def apply(self, key: FlagKey) -> None:
        # Compiles the one flag anew whose overrides changed, so that listeners hear of it alone.
        entry = self._as_read[key]
        entities: dict[tuple[str, str], CompiledFlags] = {}
        for override in self.overrides[key]:
            if override.entity is None:
                entry, entities = override.entry, {}
            else:
                entities[str(key), override.entity] = override.alone
        if entry is not self._now[key]:
            self._now[key] = entry
            self._everyone = self._everyone.update([entry], ())
        others = {pair: alone for pair, alone in self._entities.items() if pair[0] != key}
        self._entities = {**others, **entities}


class _Overridden(CompiledFlags):
    # The compiled flags of everyone, and for some flags and entities others; every answer is that of a compiled flag.

    __slots__ = ("_entities", "_everyone")

    def __init__(self, everyone: CompiledFlags, entities: Mapping[tuple[str, str], CompiledFlags]) -> None:
        super().__init__({})
        self._everyone = everyone
        self._entities = entities

    def boolean(self, flag_key: str, entity_id: str, context: Mapping[str, str]) -> BooleanAnswer:
        asked = self._entities.get((flag_key, entity_id), self._everyone)
        return asked.boolean(flag_key, entity_id, context)

    def variant(self, flag_key: str, entity_id: str, context: Mapping[str, str]) -> VariantAnswer:
        asked = self._entities.get((flag_key, entity_id), self._everyone)
        return asked.variant(flag_key, entity_id, context)

    def explain(self, flag_key: str, entity_id: str, context: Mapping[str, str]) -> "Explanation":
        asked = self._entities.get((flag_key, entity_id), self._everyone)
        return asked.explain(flag_key, entity_id, context)

    def needs_entity(self, flag_key: str, context: Mapping[str, str]) -> bool:
        # Of a question without an entity, which a test may override as well.
        return self._entities.get((flag_key, ""), self._everyone).needs_entity(flag_key, context)

    def metadata(self, flag_key: str) -> str:
        return self._everyone.metadata(flag_key)

    def update(self, changed: Iterable[Entry], removed: Iterable[RecordId]) -> CompiledFlags:
        return _Overridden(self._everyone.update(changed, removed), self._entities)

    @property
    def flags(self) -> Mapping[FlagKey, FlagState]:
        return self._everyone.flags

    def changed_since(self, earlier: CompiledFlags) -> frozenset[FlagKey]:
        assert isinstance(earlier, _Overridden)  # a client of these knows no others
        before, now = earlier._entities, self._entities  # noqa: SLF001  # of this class
        entities = {FlagKey(pair[0]) for pair in {*before, *now} if before.get(pair) is not now.get(pair)}
        return self._everyone.changed_since(earlier._everyone) | entities  # noqa: SLF001  # of this class


class _Unchanging(Source):
    # No thread: what changes is changed by the test. `working` keeps overrides apart, also from a fork.

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def begin_again_in_child(self) -> None:
        self.working = threading.RLock()


def _read(flags: Flags) -> Mapping[Namespace, tuple[bytes, ...]]:
    found = tuple(entry_points(group=READERS))
    if not found:
        raise InvalidConfiguration(
            "no reader of flags files is installed; the tests' environment needs flagcast-agent[testing]"
        )
    read: _Reader = found[0].load()
    return read(Path(flags) if isinstance(flags, str) else flags)
