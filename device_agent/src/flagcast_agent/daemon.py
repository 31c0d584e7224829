"""The agent as a process: boots from its disk, answers applications, follows the broker.

Boot order: lock and read the database, activate what it holds, bind the socket, answer; only then the broker. Answers are
given by the event loop in the main thread from memory; the link, verification and the disk have a thread of their own, so an
application never waits for any of them.
"""

import asyncio
import contextlib
import logging
import os
import queue
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version as distribution_version
from typing import TYPE_CHECKING, Final

from flagcast_shared.context import device_attributes
from flagcast_shared.errors import NamespaceNotFound, Refused
from flagcast_shared.ids import Namespace
from flagcast_shared.reports import Usage, split_counts
from flagcast_shared.topics import Topics
from flagcast_shared.trust import Trusted, begin, clock_is_trusted, restore

from . import clock, config
from .config import AgentConfig
from .evaluator import Evaluator
from .link import BrokerMemory
from .logs import log
from .mqtt import Link, Said
from .status import Activity, Caught, Freshness, LinkStatus, NamespaceStatus, Rejection, Status
from .store import Profile, Reader, Store, StoreCorrupt, StoreError, StoreTooNew, StoreUnwritable, set_aside
from .supervisor import Supervisor
from .sync import (
    Activate,
    Connect,
    Counted,
    Disconnect,
    DropUsage,
    Effect,
    Event,
    FindUsage,
    KeepUsage,
    Log,
    Persisted,
    PersistFailed,
    PersistRoot,
    PersistUpdate,
    Publish,
    Received,
    Remember,
    Send,
    Started,
    Subscribe,
    Sync,
    Ticked,
    Unsubscribe,
    UsageFound,
    UsageNotKept,
    Woken,
)
from .usage import Tally

NO_ATTEMPT: Final = 0
"""Of an event that comes from nowhere near the broker."""
if TYPE_CHECKING:
    from .api.answers import Snapshot

QUEUE_MAX_MESSAGES: Final = 256
"""Messages that may wait for verification, at most 64 MB; beyond that the MQTT thread waits, and TCP slows the broker down."""
IDLE_SECONDS: Final = 60.0
"""The longest sleep of the link thread, whatever the deadlines say."""
STOP_PATIENCE_SECONDS: Final = 15.0

POLL_SECONDS: Final = 0.02
"""How often whoever waits to be up to date looks whether that is so."""
USAGE_PATIENCE_SECONDS: Final = 5.0
"""How long a single run waits for the broker to take evaluation counts once it is up to date."""


@dataclass(frozen=True, slots=True)
class Booted:
    """What the disk gave back: open store, what is trusted, and an evaluator that answers from it."""

    store: Store
    trusted: Trusted
    evaluator: Evaluator
    broker: BrokerMemory | None = None


def agent_version() -> str:
    """The installed release."""
    return distribution_version("flagcast-agent")


def run(settings: AgentConfig, *, recover: bool = False) -> int:
    """Run until SIGTERM or SIGINT; a second signal ends the process at once.

    Args:
        settings: what the device was provisioned with.
        recover: set a database aside that cannot be used, and start from the network.

    Raises:
        StoreError, InvalidConfiguration, Refused: it cannot start; the message says what to do.
    """
    began = clock.monotonic()
    booted = boot(settings, recover=recover)
    try:
        return asyncio.run(_serve(settings, booted, began))
    finally:
        booted.store.close()


def run_once(settings: AgentConfig, timeout: float, *, recover: bool = False) -> Caught:
    """Connect, become up to date, report, leave; answers no application meanwhile.

    Args:
        settings: what the device was provisioned with.
        timeout: how many seconds it may take to be up to date.
        recover: as for `run`.

    Raises:
        StoreError, InvalidConfiguration, Refused: it cannot start; the message says what to do.
    """
    started, deadline = clock.now(), clock.monotonic() + timeout
    booted = boot(settings, recover=recover)
    try:
        follower = Follower(settings, booted)
        follower.start()
        pause = threading.Event()
        try:
            while follower.why_not_current() and clock.monotonic() < deadline:
                pause.wait(POLL_SECONDS)
            deadline = min(deadline, clock.monotonic() + USAGE_PATIENCE_SECONDS)
            while follower.is_sending and clock.monotonic() < deadline:
                pause.wait(POLL_SECONDS)
            return Caught(follower.why_not_current(), follower.status(started))
        finally:
            follower.stop()
    finally:
        booted.store.close()


def boot(settings: AgentConfig, *, recover: bool = False) -> Booted:
    """Open the disk and activate what was admitted before. Raises StoreError, InvalidConfiguration, Refused."""
    anchor = config.read_anchor(settings.anchor)
    try:
        return _boot(settings, anchor)
    except (StoreCorrupt, StoreTooNew) as error:
        if not recover:
            raise
        kept = set_aside(settings.store, clock.now())
        log(logging.WARNING, "the database was set aside; starting from the network", why=error, kept=kept)
        return _boot(settings, anchor)


def _boot(settings: AgentConfig, anchor: bytes) -> Booted:
    store = Store(settings.store, may_be_read_only=True)
    try:
        saved = store.load()
        trusted = begin(settings.environment, settings.device, anchor, floor=saved.floor)
        if saved.root_data is not None:
            later = begin(settings.environment, settings.device, saved.root_data, floor=saved.floor)
            # A device may be provisioned anew with a later anchor than the root it had walked to.
            trusted = later if later.root.number >= trusted.root.number else trusted
        evaluator = Evaluator(device_attributes(settings.device))
        for stored in saved.namespaces:
            if stored.namespace not in settings.namespaces:
                continue
            try:
                trusted, update = restore(trusted, stored)
            except Refused as error:
                raise StoreCorrupt(
                    f"{settings.store}: {error}; start with --recover to set it aside and fetch everything again"
                ) from error
            evaluator.activate(update, now=clock.now())
        why = store.why_read_only
        try:
            store.persist_profile(Profile(settings.environment, settings.device, settings.namespaces))
        except StoreUnwritable as error:
            why = why or str(error)
        if why:
            log(
                logging.WARNING,
                "the disk takes no writes; answering from what it holds, nothing new is admitted",
                why=why,
            )
        return Booted(store, trusted, evaluator, saved.broker)
    except BaseException:
        store.close()
        raise


async def _serve(settings: AgentConfig, booted: Booted, began: float) -> int:
    from .api.answers import Answers
    from .api.server import LocalServer
    from .api.socket import SocketOptions, UnixSocket, bind_loopback, handed_over

    started = clock.now()
    follower = Follower(settings, booted)
    answers = Answers(
        booted.evaluator,
        environment=settings.environment,
        default_namespace=settings.namespaces[0],
        now=clock.now_precise,
        monotonic=clock.monotonic,
        fresh_id=clock.fresh_id,
    )

    async def catch_up(seconds: float) -> Caught:
        return Caught(await follower.catch_up(seconds), follower.status(started))

    server = LocalServer(
        answers,
        booted.evaluator,
        lambda: follower.status(started),
        catch_up,
        activity=follower.activity,
        snapshot=lambda namespace: _snapshot(settings, namespace),
        tells_static=settings.flagd_caching,
    )
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, loop, stopping)
    options = SocketOptions(settings.socket, settings.socket_mode, settings.socket_group or None)
    with UnixSocket(options, handed_over(os.environ)) as unix_socket:
        sockets = [unix_socket.socket]
        if settings.tcp_port:
            sockets.append(bind_loopback(settings.tcp_port))
        await server.start(sockets)
        log(
            logging.INFO,
            "answering",
            socket=settings.socket,
            device=settings.device.id,
            namespaces=",".join(booted.evaluator.namespaces()) or "none yet",
            milliseconds=round((clock.monotonic() - began) * 1000),
        )
        follower.start()
        loop.add_signal_handler(signal.SIGUSR1, follower.wake)
        counting = asyncio.create_task(
            _count(follower, booted.evaluator, settings.usage_seconds), name="usage"
        )
        async with Supervisor().told(lambda: follower.is_alive):
            await stopping.wait()
        log(logging.INFO, "stopping")
        await server.stop()
    counting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await counting
    await asyncio.to_thread(follower.stop)
    return 0


def _snapshot(settings: AgentConfig, namespace: Namespace) -> "Snapshot":
    # In a thread of its own, by a connection of its own: what is on disk is complete at any instant.
    from .api.answers import Snapshot

    reader = Reader(settings.store)
    try:
        seen = reader.look({})
    finally:
        reader.close()
    for held in seen.holdings if seen is not None else ():
        if held.namespace == namespace and held.records is not None:
            return Snapshot(
                held.namespace, held.epoch, held.version, held.digest, held.head_data, held.records
            )
    raise NamespaceNotFound(f"no namespace {namespace!r} on this device's disk")


async def _count(follower: "Follower", evaluator: Evaluator, interval: int) -> None:
    # In the thread that answers, so that no evaluation is counted twice or not at all. The last span ends with the task.
    if not interval:
        return
    evaluator.tally = tally = Tally()
    since = clock.now()
    is_over = False
    while not is_over:
        try:
            await asyncio.sleep(interval)
        except asyncio.CancelledError:
            is_over = True
        counts, dropped = tally.take()
        until = clock.now()
        groups = split_counts(counts)
        follower.count(
            tuple(
                # Said once: whoever adds batches up counts what was dropped once.
                Usage(clock.batch_id(), since, max(since, until), group, 0 if place else dropped)
                for place, group in enumerate(groups)
            )
        )
        since = until


def _stop(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> None:
    stopping.set()
    # From here on a signal does what it does by itself: end the process.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)


class Follower:
    """Performs what the core decides, in one thread: the only caller of `Sync.handle`, and the only writer of the store.

    `guard` is held while it does.
    """

    def __init__(
        self, settings: AgentConfig, booted: Booted, *, guard: AbstractContextManager[object] | None = None
    ) -> None:
        self._guard = nullcontext() if guard is None else guard
        self._settings = settings
        self._booted = booted
        self._events: queue.SimpleQueue[tuple[Said | None, int]] = queue.SimpleQueue()
        self._room = threading.BoundedSemaphore(QUEUE_MAX_MESSAGES)
        self._asked = 0
        topics = Topics(settings.prefix, settings.environment)
        self._sync = Sync(
            booted.trusted,
            topics,
            settings.namespaces,
            clock.session_number(),
            agent_version(),
            settings.broker.protocol,
            f"{settings.broker.host}:{settings.broker.port}",
            booted.broker,
            settings.heartbeat_seconds,
            link_since=clock.now(),
        )
        self._link = Link(settings.broker, f"flagcast-{settings.device.id}", self._hear)
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._last_error_at = 0

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def stop(self) -> None:
        """Say farewell and end the thread."""
        if self._thread.is_alive():
            self._events.put((None, NO_ATTEMPT))
            self._thread.join(STOP_PATIENCE_SECONDS)

    @property
    def is_alive(self) -> bool:
        """Whether the link is still followed; false is a defect that only a restart cures."""
        return self._thread.is_alive()

    @property
    def is_sending(self) -> bool:
        """Whether evaluation counts are on their way to the broker."""
        return self._sync.is_sending

    def wake(self) -> int:
        """Become up to date now, if that is not being done already; at most one attempt a second. For one thread.

        Returns the number of the wish, which `answered` reaches when it came true.
        """
        self._asked += 1
        self._events.put((Woken(), NO_ATTEMPT))
        return self._asked

    def why_not_current(self) -> tuple[str, ...]:
        """For people: what keeps the agent from being up to date; empty when it is."""
        return self._sync.why_not_current()

    async def catch_up(self, seconds: float) -> tuple[str, ...]:
        """Wake, and wait until up to date, so many seconds at most; returns why it is not, as `why_not_current`."""
        wish, deadline = self.wake(), clock.monotonic() + seconds
        while self._sync.answered < wish and clock.monotonic() < deadline:  # noqa: ASYNC110  # another thread's news
            await asyncio.sleep(POLL_SECONDS)
        if self._sync.answered >= wish:
            return ()
        return self._sync.why_not_current() or ("the broker did not answer in time",)

    def count(self, batches: tuple[Usage, ...]) -> None:
        """Keep evaluation counts and send what is kept."""
        self._events.put((Counted(batches), NO_ATTEMPT))

    def abandon(self) -> None:
        """Let go of the connection without a word: all that a process may do that was forked while this was at work."""
        self._link.abandon()

    def status(self, started: int) -> Status:
        """The agent at this instant; reads what the link thread wrote last and waits for nothing."""
        sync, now = self._sync, clock.now()
        return Status(
            agent_version=sync.agent,
            device=sync.trusted.device.id,
            environment=sync.trusted.environment,
            started=started,
            now=now,
            clock_is_trusted=clock_is_trusted(sync.trusted, now),
            link=LinkStatus(
                sync.link.value,
                sync.link_since,
                sync.last_error,
                self._last_error_at if sync.last_error else 0,
            ),
            namespaces=tuple(
                self._namespace_status(namespace, now) for namespace in self._settings.namespaces
            ),
        )

    def activity(self) -> Activity:
        """What happened on the link since the start; waits for nothing."""
        return Activity(self._sync.connections, dict(self._sync.rejections))

    def _namespace_status(self, namespace: str, now: int) -> NamespaceStatus:
        refusal = self._sync.refusal
        rejection = None
        if refusal is not None and f"/flags/{namespace}/" in refusal.topic:
            rejection = Rejection(refusal.attack, refusal.why, refusal.at)
        known = next((name for name in self._booted.evaluator.namespaces() if name == namespace), None)
        if known is None:
            return NamespaceStatus(namespace, "never synced", last_rejection=rejection)
        knowledge = self._booted.evaluator.knowledge(known)
        freshness: Freshness = "stale" if knowledge.is_stale(now) else "fresh"
        return NamespaceStatus(
            namespace,
            freshness,
            knowledge.epoch,
            knowledge.version,
            knowledge.digest.hex(),
            knowledge.issued,
            knowledge.expires,
            max(0, now - knowledge.issued),
            len(knowledge.compiled.flags),
            rejection,
        )

    def _hear(self, said: Said, attempt: int) -> None:
        # In the MQTT thread, which waits while there is no room for another message, and TCP then slows the broker down. Whatever
        # else is said is small and never waits: paho may hold a lock that this thread needs.
        if isinstance(said, Received):
            self._room.acquire()
        self._events.put((said, attempt))

    def _run(self) -> None:
        self._feed(Started())
        while True:
            said, attempt = self._next()
            if said is None:
                break
            if isinstance(said, Received):
                self._room.release()
            event = self._link.event_of(said, attempt) if attempt != NO_ATTEMPT else said
            # Only the link says anything that is not an event, and always of an attempt.
            if event is not None:
                self._feed(event)  # type: ignore[arg-type]  # see above
            deadline = self._sync.next_deadline()
            if not isinstance(event, Ticked) and deadline is not None and deadline <= clock.monotonic():
                self._feed(Ticked())
        farewell = self._sync.farewell(clock.now())
        self._link.close((farewell.topic, farewell.payload))

    def _next(self) -> tuple[Said | None, int]:
        deadline = self._sync.next_deadline()
        patience = IDLE_SECONDS if deadline is None else deadline - clock.monotonic()
        try:
            return self._events.get(timeout=min(IDLE_SECONDS, max(0.0, patience)))
        except queue.Empty:
            return Ticked(), NO_ATTEMPT

    def _feed(self, event: Event) -> None:
        try:
            before = self._sync.last_error
            with self._guard:
                effects = self._sync.handle(
                    event, now=clock.now(), monotonic=clock.monotonic(), jitter=clock.jitter()
                )
                if self._sync.last_error != before:
                    self._last_error_at = clock.now()
                for effect in effects:
                    outcome = self._perform(effect)
                    if outcome is not None:
                        self._feed(outcome)
        except Exception:
            # A defect of ours must not end the answers; what was admitted stays as it is.
            logging.getLogger(__name__).exception("an event could not be handled: %s", type(event).__name__)

    def _perform(self, effect: Effect) -> Event | None:
        match effect:
            case Connect(protocol, will_topic, will):
                self._link.connect(protocol, will_topic, will)
            case Disconnect():
                self._link.close()
            case Subscribe(filters):
                self._link.subscribe(filters)
            case Unsubscribe(filters):
                self._link.unsubscribe(filters)
            case Publish(topic, payload):
                self._link.publish(topic, payload)
            case Send(topic, payload, token):
                self._link.send(topic, payload, token)
            case Remember(memory):
                self._try("the broker's version of MQTT", lambda: self._booted.store.persist_broker(memory))
            case KeepUsage(batch):
                is_kept = self._try("usage", lambda: self._booted.store.keep_usage(batch))
                return None if is_kept else UsageNotKept(batch.evaluations + batch.dropped)
            case FindUsage():
                return self._oldest_usage()
            case DropUsage(number):
                self._try("usage", lambda: self._booted.store.drop_usage(number))
            case PersistUpdate(update, floor):
                return self._persisted(lambda: self._booted.store.persist_update(update, floor))
            case PersistRoot(root, floor):
                return self._persisted(lambda: self._booted.store.persist_root(root, floor))
            case Activate(update):
                self._booted.evaluator.activate(update, now=clock.now())
            case Log(level, message, fields):
                log(level, message, **dict(fields))
        return None

    def _oldest_usage(self) -> Event:
        found: tuple[int, bytes] | None = None
        try:
            found = self._booted.store.oldest_usage()
        except StoreError as error:
            log(logging.WARNING, "something could not be kept", what="usage", why=error)
        return UsageFound(*(found or (0, b"")))

    @staticmethod
    def _try(what: str, persist: Callable[[], None]) -> bool:
        try:
            persist()
        except StoreError as error:
            log(logging.WARNING, "something could not be kept", what=what, why=error)
            return False
        return True

    @staticmethod
    def _persisted(persist: Callable[[], None]) -> Event:
        try:
            persist()
        except StoreError as error:
            return PersistFailed(str(error))
        return Persisted()
