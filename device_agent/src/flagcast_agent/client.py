"""Flags for a Python application, evaluated in its own process: no call, no socket, no wait.

`Client` reads what the device's agent has admitted and persisted, follows it, and goes on with what it has when the agent is
gone. `Client.embedded` is for a device with one application and no agent: it is the agent. Once made, a client never raises
into the application: a question without an answer gets its default, and `evaluate` says why.
"""

import contextlib
import logging
import os
import queue
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Self, TypeVar

from flagcast_shared.answers import VariantAnswer
from flagcast_shared.context import device_attributes
from flagcast_shared.envelope import open_envelope
from flagcast_shared.errors import (
    DigestMismatch,
    FlagcastError,
    FlagNotFound,
    InvalidCall,
    NamespaceNotFound,
    Refused,
    TypeMismatch,
)
from flagcast_shared.evaluation import CompiledFlags, FlagType, compile_flags
from flagcast_shared.ids import Digest, Namespace, RecordId
from flagcast_shared.messages import Place, decode_head
from flagcast_shared.records import content_digest, decode_record, digest_of
from flagcast_shared.topics import Kind

from . import clock
from .evaluator import Knowledge
from .status import Freshness, NamespaceStatus
from .store.errors import StoreCorrupt, StoreError, StoreUnreadable
from .store.reader import Reader
from .store.rows import Held, Profile, Seen
from .sync.time_floor import TimeFloor
from .values import (
    NO_CONTEXT,
    NO_METADATA,
    integer_of,
    metadata_of,
    number_of,
    object_of,
    reason_of,
    texts,
)

if TYPE_CHECKING:
    from .boot import Booted
    from .config import AgentConfig

__all__ = ["Change", "Client", "ClientStatus", "Details"]

DEFAULT_STORE: Final = "/var/lib/flagcast/agent.sqlite"
STORE_VARIABLE: Final = "FLAGCAST_AGENT_STORE"
POLL_SECONDS: Final = 0.03
"""How often the database is looked at. Waking up for it costs more than the look; both together one percent of a slow core."""
PROBLEM_SECONDS: Final = 0.5
"""The same while the database cannot be read: a damaged one is read whole each time."""
EXPIRY_SECONDS: Final = 1.0
"""How soon a head that expires is noticed."""
STOP_SECONDS: Final = 5.0
TOLD_MAX: Final = 256
"""Questions without an answer that the log names, each once."""

LOGGER: Final = logging.getLogger("flagcast.client")

_T = TypeVar("_T")
_Object = Mapping[str, object]
_Context = Mapping[str, object]


class Details(NamedTuple, Generic[_T]):
    """One evaluation with what led to it.

    `value` is the flag's, or the caller's default. `reason` is OpenFeature's word (STATIC, DEFAULT, TARGETING_MATCH, SPLIT,
    DISABLED), or ERROR; then `error` is OpenFeature's code (FLAG_NOT_FOUND, TYPE_MISMATCH, PROVIDER_NOT_READY, GENERAL) and
    `message` says why. `variant` is "true" or "false" of a boolean flag, and blank where the default was given.
    `version` and `epoch` are the admitted content's, zero when nothing was ever admitted. `age_seconds` have passed since the
    publisher last said that this is the truth; `is_stale` when it has let that expire. While `clock_is_trusted` is false, the
    device's clock is behind what the agent has had reason to believe, and both are what they are at least.
    `lacks_entity`: a percentage decided, and the question named no entity; all such questions get one bucket's answer.
    `metadata` is the flag's own, as its file has it; empty where there is none, and of an answer that is an error.
    """

    flag: str
    value: _T
    reason: str
    variant: str = ""
    segments: tuple[str, ...] = ()
    namespace: str = ""
    epoch: int = 0
    version: int = 0
    age_seconds: int = 0
    is_stale: bool = False
    error: str = ""
    message: str = ""
    clock_is_trusted: bool = True
    lacks_entity: bool = False
    metadata: Mapping[str, str | int | float | bool] = NO_METADATA


@dataclass(frozen=True, slots=True)
class Change:
    """Something is new in one namespace: its flags, how fresh they are, or whether more can be heard.

    The namespace is blank for news from before the agent's database could be read at all.

    `keys` are the flags that may answer otherwise than before; with none, only the rest has changed. `problem` says why
    nothing more is heard, blank while all is well.
    """

    namespace: str
    version: int
    keys: frozenset[str]
    freshness: Freshness
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ClientStatus:
    """A client at one instant: what it knows of each namespace, and why it hears no more (blank while it does).

    While `clock_is_trusted` is false, the device's clock is behind what the agent has had reason to believe.
    """

    namespaces: tuple[NamespaceStatus, ...]
    problem: str = ""
    clock_is_trusted: bool = True

    @property
    def is_ready(self) -> bool:
        """Whether every namespace of the agent's has flags."""
        return bool(self.namespaces) and all(each.freshness != "never synced" for each in self.namespaces)


@dataclass(frozen=True, slots=True)
class _Content:
    # One namespace and its records by their digests, by which what changed is found.
    knowledge: Knowledge
    records: Mapping[Digest, RecordId] = field(default_factory=dict)


class Client:
    """Answers from the flags that the agent on this device has admitted. For any number of threads, and for asyncio.

    `store` is the agent's database: unless given, what FLAGCAST_AGENT_STORE names, else /var/lib/flagcast/agent.sqlite. Its
    user needs to read the file and its folder, and nothing else. `namespace` is what a question without one means; unless
    given, the agent's first. A database that is not there yet, locked, damaged or of a later release is waited for.

    A process that was forked goes on by itself. Close it, or use it as a context manager, to end its thread.
    """

    def __init__(
        self, store: Path | str | None = None, *, namespace: str = "", poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._begin(namespace)
        path = Path(store if store is not None else os.environ.get(STORE_VARIABLE) or DEFAULT_STORE)
        self._follow(path, poll_seconds)

    def _begin(self, namespace: str) -> None:
        self._namespace = namespace
        self._known: Mapping[str, Knowledge] = {}
        # The same, and under "" what a question without a namespace means: all that the answers look at.
        self._listeners: tuple[Callable[[Change], None], ...] = ()
        self._told: set[tuple[str, str]] = set()
        self._freshness: dict[str, Freshness] = {}
        self._profile: Profile | None = None
        self._problem = ""
        self._floor = TimeFloor()
        self._is_closed = False
        self._changing = threading.Lock()
        self._ready = threading.Event()
        self._source: Source

    def _follow(self, path: Path, poll_seconds: float) -> None:
        following = _Following(self, Reader(path), poll_seconds)
        self._source = following
        watch_forks(self)
        following.look_or_log()
        following.start()

    @classmethod
    def embedded(
        cls, settings: "AgentConfig | Path | str", *, recover: bool = False, namespace: str = ""
    ) -> Self:
        """A client with the agent inside: link, verification and disk in threads of this process.

        Args:
            settings: the device's configuration, or the folder it was provisioned with.
            recover: set a database aside that cannot be used, and start from the network.
            namespace: what a question without one means; unless given, the first that is configured.

        Raises:
            InvalidConfiguration: the folder's configuration cannot be used.
            StoreInUse: an agent, or another embedded client, works on this database.
            StoreError, Refused: as the agent would refuse to start; the message says what to do.
        """
        from . import boot, config

        if not isinstance(settings, config.AgentConfig):
            settings = config.load(Path(settings))
        booted = boot.boot(settings, recover=recover)
        client = cls.__new__(cls)
        client._embed(settings, booted, namespace)  # noqa: SLF001  # of this class
        return client

    # Answers. None of them waits, takes a lock or raises.

    def boolean(
        self,
        flag: str,
        default: bool,  # noqa: FBT001  # what is returned, not a switch
        entity: str = "",
        context: _Context = NO_CONTEXT,
        *,
        namespace: str = "",
    ) -> bool:
        """Whether a boolean flag is on for an entity; `default` where there is no answer."""
        try:
            return self._known[namespace].compiled.boolean(flag, entity, texts(context)).enabled
        except Exception as error:  # noqa: BLE001  # the promise: no question ends an application
            self._tell_once(flag, error)
            return default

    def variant(
        self,
        flag: str,
        default: str,
        entity: str = "",
        context: _Context = NO_CONTEXT,
        *,
        namespace: str = "",
    ) -> str:
        """The key of a variant flag's variant for an entity; `default` where there is none, or no answer."""
        try:
            return (
                self._known[namespace].compiled.variant(flag, entity, texts(context)).variant_key or default
            )
        except Exception as error:  # noqa: BLE001  # as above
            self._tell_once(flag, error)
            return default

    def string(
        self,
        flag: str,
        default: str,
        entity: str = "",
        context: _Context = NO_CONTEXT,
        *,
        namespace: str = "",
    ) -> str:
        """What OpenFeature calls a variant flag's string value: its variant's key. The same as `variant`."""
        return self.variant(flag, default, entity, context, namespace=namespace)

    def integer(
        self,
        flag: str,
        default: int,
        entity: str = "",
        context: _Context = NO_CONTEXT,
        *,
        namespace: str = "",
    ) -> int:
        """A variant's attachment as a whole number, else its key where it is written as one; else `default`."""
        return self._attached(integer_of, flag, default, entity, context, namespace=namespace)

    def number(
        self,
        flag: str,
        default: float,
        entity: str = "",
        context: _Context = NO_CONTEXT,
        *,
        namespace: str = "",
    ) -> float:
        """A variant's attachment as a number, else its key where it reads as one; else `default`."""
        return self._attached(number_of, flag, default, entity, context, namespace=namespace)

    def object(
        self,
        flag: str,
        default: _Object,
        entity: str = "",
        context: _Context = NO_CONTEXT,
        *,
        namespace: str = "",
    ) -> _Object:
        """A variant's attachment, if it is a JSON object, as a fresh dictionary; else `default`."""
        return self._attached(object_of, flag, default, entity, context, namespace=namespace)

    def evaluate(
        self,
        flag: str,
        default: _T,
        entity: str = "",
        context: _Context = NO_CONTEXT,
        *,
        namespace: str = "",
    ) -> Details[_T]:
        """The same with its reason, version and age. The type of `default` says which value is wanted.

        bool: a boolean flag. str: a variant's key. int, float and dict: its attachment, as `integer`, `number` and `object` do.
        """
        knowledge = self._known.get(namespace)
        if knowledge is None:
            name = namespace or self._default_namespace()
            return Details(
                flag,
                default,
                "ERROR",
                namespace=name,
                error="PROVIDER_NOT_READY",
                message=self._why_not_ready(name),
            )
        try:
            attributes = texts(context)
            value, reason, variant, segments = _resolve(knowledge, flag, default, entity, attributes)
            metadata = metadata_of(knowledge.compiled.metadata(flag))
            error, message = "", ""
            lacks_entity = not entity and knowledge.compiled.needs_entity(flag, attributes)
        except Exception as failure:  # noqa: BLE001  # as above
            value, reason, variant, segments = default, "ERROR", "", ()
            lacks_entity = False
            error, message, metadata = _error_code(failure), str(failure), {}
        wall, floor = clock.now(), self._floor
        now = floor.now(wall, clock.monotonic())
        return Details(
            flag,
            value,
            reason,
            variant,
            segments,
            knowledge.namespace,
            knowledge.epoch,
            knowledge.version,
            knowledge.age(now),
            knowledge.is_stale(now),
            error,
            message,
            floor.allows(wall),
            lacks_entity,
            metadata,
        )

    # What it knows, and what is new

    def flags(self, namespace: str = "") -> Mapping[str, FlagType]:
        """The flags of a namespace with their types; empty while nothing is known of it."""
        knowledge = self._known.get(namespace)
        if knowledge is None:
            return {}
        return {key: state.type for key, state in knowledge.compiled.flags.items()}

    def status(self) -> ClientStatus:
        """What is known of every namespace, how old that is, and why nothing more is heard, if so."""
        wall, floor, known, profile = clock.now(), self._floor, self._known, self._profile
        now = floor.now(wall, clock.monotonic())
        names = dict.fromkeys((*(profile.namespaces if profile else ()), *(name for name in known if name)))
        return ClientStatus(
            tuple(_namespace_status(str(name), known.get(name), now) for name in names),
            self._problem,
            floor.allows(wall),
        )

    @property
    def default_namespace(self) -> str:
        """What a question without a namespace means; blank until the agent's database has said so."""
        return self._default_namespace()

    @property
    def problem(self) -> str:
        """Why nothing more is heard, with what to do; blank while all is well. Answers go on from what is known."""
        return self._problem

    def wait_until_ready(self, timeout: float) -> bool:
        """Wait until the namespace that questions mean has flags, at most so many seconds; whether it has."""
        return self._ready.wait(timeout)

    def listen(self, listener: Callable[[Change], None]) -> Callable[[], None]:
        """Calls `listener` with every Change, from a thread of the client's; returns what ends that.

        An exception of a listener is logged and harms nobody else.
        """
        with self._changing:
            self._listeners = (*self._listeners, listener)

        def forget() -> None:
            with self._changing:
                self._listeners = tuple(other for other in self._listeners if other is not listener)

        return forget

    async def changes(self) -> AsyncGenerator[Change, None]:
        """Every Change, for `async for`; what arrives faster than it is taken is joined, namespace by namespace.

        Ends when the client is closed.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        waiting: dict[str, Change] = {}

        def take(change: Change) -> None:
            former = waiting.pop(change.namespace, None)
            waiting[change.namespace] = change if former is None else _joined(former, change)
            arrived.set()

        def hand_over(change: Change) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(take, change)

        def wake() -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(arrived.set)

        forget = self.listen(hand_over)
        self._source.on_close.append(wake)
        try:
            while not self._is_closed:
                await arrived.wait()
                arrived.clear()
                while waiting:
                    yield waiting.pop(next(iter(waiting)))
        finally:
            forget()
            with contextlib.suppress(ValueError):
                self._source.on_close.remove(wake)

    def close(self) -> None:
        """End the thread, and the link of an embedded client. Questions are answered from what is known all the same."""
        if self._is_closed:
            return
        self._is_closed = True
        self._source.stop()
        with _clients_lock:
            _CLIENTS.discard(self)
        for wake in tuple(self._source.on_close):
            wake()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # The thread holds no client, so that one that is forgotten ends.
        source = getattr(self, "_source", None)
        if source is not None:
            source.is_over.set()

    # Inside

    def _embed(self, settings: "AgentConfig", booted: "Booted", namespace: str) -> None:
        self._begin(namespace)
        source = _Embedded(self, settings, booted)
        self._source = source
        self._profile = Profile(settings.environment, settings.device, settings.namespaces)
        evaluator = booted.evaluator
        self._floor = evaluator.floor
        self._learn(
            {name: evaluator.knowledge(name) for name in evaluator.namespaces()}, booted.store.why_read_only
        )
        watch_forks(self)
        source.start()

    def _begin_again_in_child(self) -> None:
        self._changing = threading.Lock()
        was_ready, self._ready = self._ready.is_set(), threading.Event()
        if was_ready:
            self._ready.set()
        self._source.begin_again_in_child()

    def _attached(
        self,
        value_of: Callable[[VariantAnswer], _T],
        flag: str,
        default: _T,
        entity: str,
        context: _Context,
        *,
        namespace: str,
    ) -> _T:
        try:
            answer = self._known[namespace].compiled.variant(flag, entity, texts(context))
            return value_of(answer) if answer.variant_key else default
        except Exception as error:  # noqa: BLE001  # as above
            self._tell_once(flag, error)
            return default

    def _default_namespace(self) -> str:
        if self._namespace or self._profile is None:
            return self._namespace
        return next(iter(self._profile.namespaces), "")

    def _why_not_ready(self, namespace: str) -> str:
        if self._problem:
            return self._problem
        if self._profile is None:
            return "no agent has booted from this database yet"
        if namespace not in self._profile.namespaces:
            return f"the agent does not follow a namespace {namespace!r}"
        return f"nothing was ever admitted for namespace {namespace!r}"

    def _tell_once(self, flag: str, error: Exception) -> None:
        # An application that asks at full speed for what is not there must not fill its log, nor be left without a word.
        kind = type(error).__name__
        try:
            if (flag, kind) in self._told or len(self._told) >= TOLD_MAX:
                return
            self._told.add((flag, kind))
            why = (
                error if isinstance(error, FlagcastError) else self._why_not_ready(self._default_namespace())
            )
            if not isinstance(error, FlagcastError | KeyError):
                why = f"{kind}: {error}"
            LOGGER.warning("flag %r answers its caller's default: %s", flag, why)
        except Exception:  # noqa: BLE001, S110  # a flag that cannot be hashed, a log that cannot be written
            pass

    def _set_known(self, known: Mapping[str, Knowledge]) -> None:
        mine = {str(name): knowledge for name, knowledge in known.items()}
        default = mine.get(self._default_namespace())
        if default is not None:
            mine[""] = default
            self._ready.set()
        self._known = mine
        self._told.clear()

    def _learn(self, known: Mapping[str, Knowledge], problem: str, profile: Profile | None = None) -> None:
        # The one place where what a client knows changes, and where that is said; called by its source's thread alone.
        former, problem_is_new = self._known, problem != self._problem
        if profile is not None and profile != self._profile:
            self._profile = profile
            followed = {name: each for name, each in former.items() if name in profile.namespaces}
            self._set_known(followed)
        if problem_is_new:
            self._problem = problem
            if problem:
                LOGGER.warning(
                    "flags are not followed any more; answers go on from what is known: %s", problem
                )
            elif former or known:
                LOGGER.info("flags are followed again")
        if known:
            self._set_known({**{name: each for name, each in self._known.items() if name}, **known})
        now = self._floor.now(clock.now(), clock.monotonic())
        names = [str(name) for name in self._profile.namespaces] if self._profile else [self._namespace]
        for name in dict.fromkeys((*names, *known)):
            knowledge = self._known.get(name)
            keys: frozenset[str] = frozenset()
            if name in known and knowledge is not None:
                before = former.get(name)
                keys = frozenset(
                    knowledge.compiled.flags
                    if before is None
                    else knowledge.compiled.changed_since(before.compiled)
                    if knowledge.compiled is not before.compiled
                    else ()
                )
            freshness = _freshness(knowledge, now)
            is_news = keys or problem_is_new or freshness != self._freshness.get(name, "never synced")
            self._freshness[name] = freshness
            if is_news:
                version = 0 if knowledge is None else knowledge.version
                self._say(Change(name, version, keys, freshness, problem))

    def _say(self, change: Change) -> None:
        for listener in self._listeners:
            try:
                listener(change)
            except Exception:
                LOGGER.exception("a listener for changes failed")


def _resolve(
    knowledge: Knowledge, flag: str, default: _T, entity: str, context: Mapping[str, str]
) -> tuple[_T, str, str, tuple[str, ...]]:
    compiled = knowledge.compiled
    segments: tuple[str, ...]
    value: Any
    if isinstance(default, bool):
        boolean = compiled.boolean(flag, entity, context)
        value, segments = boolean.enabled, tuple(map(str, boolean.segment_keys))
        return value, str(reason_of(boolean)), "true" if value else "false", segments
    answer = compiled.variant(flag, entity, context)
    segments = tuple(map(str, answer.segment_keys))
    if not answer.variant_key:
        # No variant at all is no value: the caller's default, for the reason that the flag gives.
        return default, str(reason_of(answer)), "", segments
    if isinstance(default, str):
        value = str(answer.variant_key)
    elif isinstance(default, int):
        value = integer_of(answer)
    elif isinstance(default, float):
        value = number_of(answer)
    elif isinstance(default, Mapping):
        value = object_of(answer)
    else:
        raise TypeMismatch(f"no flag answers a {type(default).__name__}")
    return value, str(reason_of(answer)), str(answer.variant_key), segments


def _error_code(error: Exception) -> str:
    match error:
        case FlagNotFound():
            return "FLAG_NOT_FOUND"
        case TypeMismatch():
            return "TYPE_MISMATCH"
        case NamespaceNotFound():
            return "PROVIDER_NOT_READY"
        case InvalidCall():
            return "GENERAL"
        case _:
            return "INVALID_CONTEXT"


def _freshness(knowledge: Knowledge | None, now: int) -> Freshness:
    if knowledge is None:
        return "never synced"
    return "stale" if knowledge.is_stale(now) else "fresh"


def _namespace_status(name: str, knowledge: Knowledge | None, now: int) -> NamespaceStatus:
    if knowledge is None:
        return NamespaceStatus(name, "never synced")
    return NamespaceStatus(
        name,
        _freshness(knowledge, now),
        knowledge.epoch,
        knowledge.version,
        knowledge.digest.hex(),
        knowledge.issued,
        knowledge.expires,
        knowledge.age(now),
        len(knowledge.compiled.flags),
    )


def _joined(former: Change, later: Change) -> Change:
    return Change(later.namespace, later.version, former.keys | later.keys, later.freshness, later.problem)


class Source:
    """The origin of a client's flags: a thread of its own that keeps no client alive."""

    def __init__(self, client: Client) -> None:
        self.client = weakref.ref(client)
        self.is_over = threading.Event()
        self.on_close: list[Callable[[], None]] = []
        # Held while SQLite works, so that no fork happens inside it: the child would inherit SQLite's own locks, taken.
        self.working = threading.RLock()

    def start(self) -> None:
        """Begin to follow."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the thread, if there is one."""
        raise NotImplementedError

    def begin_again_in_child(self) -> None:
        """Go on in a forked process, where the parent's threads and locks are gone."""
        raise NotImplementedError


class _Following(Source):
    def __init__(self, client: Client, reader: Reader, poll_seconds: float) -> None:
        super().__init__(client)
        self._reader = reader
        self._poll_seconds = poll_seconds
        self._contents: dict[Namespace, _Content] = {}
        self._profile: Profile | None = None
        self._floor = TimeFloor(boot=clock.boot_id())
        self._problem = ""
        self._retry_at = 0.0
        self._was_unreadable = False
        self._expiry_at = 0.0
        self._thread: threading.Thread | None = None
        self.parent: object = None
        # What must not be collected in a forked process, because its files are the parent's.

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="flagcast-client", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.is_over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_SECONDS)
        with self.working:
            self._reader.close()

    def begin_again_in_child(self) -> None:
        self.working = threading.RLock()
        self._reader.abandon()
        if not self.is_over.is_set():
            # A copy of the parent's event may be locked by a thread that does not exist here.
            self.is_over = threading.Event()
            self.start()

    def look(self) -> None:
        """Look once, and tell the client what is new."""
        with self.working:
            known, is_new = self._look()
        client = self.client()
        if client is None:
            return
        now = clock.monotonic()
        if is_new or now >= self._expiry_at:
            self._expiry_at = now + EXPIRY_SECONDS
            client._floor = self._floor  # noqa: SLF001  # as below
            client._learn(known, self._problem, self._profile)  # noqa: SLF001  # sources are a part of the client

    def look_or_log(self) -> bool:
        """The same; a defect of ours neither raises nor ends what the application can hear."""
        try:
            self.look()
        except Exception:
            LOGGER.exception("the agent's database could not be looked at")
            return False
        return True

    def _run(self) -> None:
        is_over = self.is_over
        while not is_over.wait(self._poll_seconds):
            if not self.look_or_log():
                is_over.wait(PROBLEM_SECONDS)
        if self.client() is None:
            with self.working:
                self._reader.close()

    def _look(self) -> tuple[Mapping[str, Knowledge], bool]:
        # What is new, and whether there is anything to say.
        if self._problem and clock.monotonic() < self._retry_at:
            return {}, False
        known: dict[str, Knowledge] = {}
        try:
            seen = self._reader.look({name: held.knowledge.digest for name, held in self._contents.items()})
            if seen is None:
                return {}, False
            if seen.profile is not None and seen.profile != self._profile:
                seen = self._begin_anew(seen.profile, seen)
            if seen.floor.time:
                self._floor = self._floor.resume(seen.floor, clock.monotonic())
            if seen.profile is not None:
                for held in seen.holdings:
                    if held.namespace in seen.profile.namespaces:
                        content = self._content(held, seen.profile)
                        if content is not None:
                            self._contents[held.namespace] = content
                            known[held.namespace] = content.knowledge
            self._set_problem("")
            self._was_unreadable = False
        except (StoreError, Refused) as error:
            self._reader.close()
            self._reader.forget()
            # An agent that starts at this very moment makes the database unreadable for an instant: that is no news.
            is_passing = (
                isinstance(error, StoreUnreadable) and not self._was_unreadable and bool(self._contents)
            )
            self._was_unreadable = True
            if is_passing:
                return {}, False
            self._set_problem(str(error))
        return known, True

    def _begin_anew(self, profile: Profile, seen: Seen) -> Seen:
        # The device's attributes are compiled in.
        self._profile = profile
        self._contents.clear()
        if any(held.records is None for held in seen.holdings):
            self._reader.forget()
            return self._reader.look({}) or seen
        return seen

    def _set_problem(self, problem: str) -> None:
        self._problem = problem
        self._retry_at = clock.monotonic() + PROBLEM_SECONDS

    def _content(self, held: Held, profile: Profile) -> _Content | None:
        # None where nothing changed.
        former = self._contents.get(held.namespace)
        place = Place(profile.environment, held.namespace, Kind.HEAD)
        head = decode_head(open_envelope(held.head_data, place).payload, place)
        if held.records is None and former is None:
            raise StoreCorrupt(f"{held.namespace}: its records were not read")
        if former is not None and (held.records is None or held.digest == former.knowledge.digest):
            compiled, records = former.knowledge.compiled, former.records
        else:
            compiled, records = _updated(held, former, device_attributes(profile.device))
        knowledge = Knowledge(
            held.namespace,
            held.epoch,
            held.version,
            held.digest,
            head.issued,
            head.expires,
            compiled,
        )
        if former is not None and _same(former.knowledge, knowledge):
            return None
        return _Content(knowledge, records)


def _updated(
    held: Held, former: _Content | None, device: Mapping[str, str]
) -> tuple[CompiledFlags, Mapping[Digest, RecordId]]:
    # Compiles what is not there yet, and drops what is gone. What the disk gives must be what the agent admitted.
    listed = {digest_of(data): data for data in held.records or ()}
    if content_digest(listed) != held.digest:
        raise DigestMismatch(
            f"{held.namespace}: the records in the database are not those that were admitted"
        )
    before = former.records if former is not None else {}
    changed = [(digest, decode_record(data)) for digest, data in listed.items() if digest not in before]
    records = {digest: identity for digest, identity in before.items() if digest in listed}
    records.update((digest, record.id) for digest, record in changed)
    entries = [record.entry for _, record in changed]
    if former is None:
        return compile_flags(entries, device), records
    left = set(records.values())
    removed = [identity for identity in before.values() if identity not in left]
    return former.knowledge.compiled.update(entries, removed), records


def _same(one: Knowledge, other: Knowledge) -> bool:
    return (one.compiled, one.epoch, one.version, one.issued, one.expires) == (
        other.compiled,
        other.epoch,
        other.version,
        other.issued,
        other.expires,
    )


class _Embedded(Source):
    # The agent's link thread, and one that tells the client.

    def __init__(self, client: Client, settings: "AgentConfig", booted: "Booted") -> None:
        from .follower import Follower

        super().__init__(client)
        self._settings = settings
        self._booted = booted
        self._follower = Follower(settings, booted, guard=self.working)
        self._news: queue.SimpleQueue[Knowledge | None] = queue.SimpleQueue()
        self._forget = booted.evaluator.listen(self._news.put)
        self._thread = threading.Thread(target=self._run, name="flagcast-client", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._follower.start()

    def stop(self) -> None:
        self.is_over.set()
        self._forget()
        self._follower.stop()
        self._news.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join(STOP_SECONDS)
        with self.working:
            self._booted.store.close()

    def begin_again_in_child(self) -> None:
        # The link and the right to write stay with the parent; this process follows what the parent persists.
        self._booted.store.abandon()
        self._follower.abandon()
        client = self.client()
        if client is not None and not self.is_over.is_set():
            following = _Following(client, Reader(self._settings.store), POLL_SECONDS)
            following.on_close = self.on_close
            following.parent = self
            client._source = following  # noqa: SLF001  # sources are a part of the client
            following.start()

    def _run(self) -> None:
        while not self.is_over.is_set():
            known: dict[str, Knowledge] = {}
            with contextlib.suppress(queue.Empty):
                knowledge = self._news.get(timeout=EXPIRY_SECONDS)
                if knowledge is not None:
                    known[knowledge.namespace] = knowledge
            client = self.client()
            if client is None:
                break
            client._floor = self._booted.evaluator.floor  # noqa: SLF001  # as below
            client._learn(known, self._booted.store.why_read_only)  # noqa: SLF001  # sources are a part of the client
            del client
        if self.client() is None:
            self._forget()
            self._follower.stop()
            self._booted.store.close()


# A fork copies locks that are taken and not the threads that would give them back. So nothing of ours is inside SQLite while a
# process is forked, and in the child every client begins again.

_CLIENTS: "weakref.WeakSet[Client]" = weakref.WeakSet()
_clients_lock = threading.Lock()
_forking: list[Source] = []
_fork_is_watched = False


def watch_forks(client: Client) -> None:
    """Have a client begin again in every child of this process."""
    global _fork_is_watched
    with _clients_lock:
        _CLIENTS.add(client)
        if not _fork_is_watched and hasattr(os, "register_at_fork"):
            _fork_is_watched = True
            os.register_at_fork(
                before=_before_fork,
                after_in_parent=_after_fork_in_parent,
                after_in_child=_after_fork_in_child,
            )


def _before_fork() -> None:
    _clients_lock.acquire()
    for client in tuple(_CLIENTS):
        source = client._source  # noqa: SLF001  # forks are the client's own business
        source.working.acquire()
        _forking.append(source)


def _after_fork_in_parent() -> None:
    while _forking:
        _forking.pop().working.release()
    _clients_lock.release()


def _after_fork_in_child() -> None:
    global _clients_lock
    _clients_lock = threading.Lock()
    _forking.clear()
    for client in tuple(_CLIENTS):
        client._begin_again_in_child()  # noqa: SLF001  # as above
