"""The agent as a process: boots from its disk, answers applications, follows the broker.

Boot order: lock and read the database, activate what it holds, bind the socket, answer; only then the broker. Answers are
given by the event loop in the main thread from memory; the link, verification and the disk have a thread of their own, so an
application never waits for any of them.
"""

import asyncio
import logging
import queue
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as distribution_version
from typing import Final

from flagcast_shared.context import device_attributes
from flagcast_shared.errors import Refused
from flagcast_shared.topics import Topics
from flagcast_shared.trust import Trusted, begin, clock_is_trusted, restore

from . import clock, config
from .config import AgentConfig
from .evaluator import Evaluator
from .logs import log
from .mqtt import Link
from .status import Freshness, LinkStatus, NamespaceStatus, Rejection, Status
from .status import LinkState as ShownLink
from .store import Store, StoreCorrupt, StoreError, StoreTooNew, set_aside
from .sync import (
    Activate,
    Connect,
    Effect,
    Event,
    LinkState,
    Log,
    Persisted,
    PersistFailed,
    PersistRoot,
    PersistUpdate,
    Publish,
    Started,
    Subscribe,
    Sync,
    Ticked,
    Unsubscribe,
)

QUEUE_MAX_EVENTS: Final = 256
"""Messages that may wait for verification, at most 64 MB; beyond that the MQTT thread waits, and TCP slows the broker down."""
IDLE_SECONDS: Final = 60.0
"""The longest sleep of the link thread, whatever the deadlines say."""
STOP_PATIENCE_SECONDS: Final = 15.0

_SHOWN_LINKS: Final[dict[LinkState, ShownLink]] = {
    LinkState.DISCONNECTED: "disconnected",
    LinkState.CONNECTING: "connecting",
    LinkState.CONNECTED: "connected",
    LinkState.BACKING_OFF: "disconnected",
}


@dataclass(frozen=True, slots=True)
class Booted:
    """What the disk gave back: open store, what is trusted, and an evaluator that answers from it."""

    store: Store
    trusted: Trusted
    evaluator: Evaluator


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
    store = Store(settings.store)
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
        return Booted(store, trusted, evaluator)
    except BaseException:
        store.close()
        raise


async def _serve(settings: AgentConfig, booted: Booted, began: float) -> int:
    from .api.answers import Answers
    from .api.grpc import LocalServer
    from .api.socket import SocketOptions, UnixSocket, bind_loopback

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
    server = LocalServer(answers, booted.evaluator, lambda: follower.status(started))
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, loop, stopping)
    options = SocketOptions(settings.socket, settings.socket_mode, settings.socket_group or None)
    with UnixSocket(options) as unix_socket:
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
        await stopping.wait()
        log(logging.INFO, "stopping")
        await server.stop()
    await asyncio.to_thread(follower.stop)
    return 0


def _stop(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> None:
    stopping.set()
    # From here on a signal does what it does by itself: end the process.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)


class Follower:
    """Performs what the core decides, in one thread: the only caller of `Sync.handle`, and the only writer of the store."""

    def __init__(self, settings: AgentConfig, booted: Booted) -> None:
        self._settings = settings
        self._booted = booted
        self._events: queue.Queue[Event | None] = queue.Queue(QUEUE_MAX_EVENTS)
        topics = Topics(settings.prefix, settings.environment)
        self._sync = Sync(
            booted.trusted,
            topics,
            settings.namespaces,
            clock.session_number(),
            agent_version(),
            settings.broker.protocol,
            link_since=clock.now(),
        )
        self._link = Link(settings.broker, f"flagcast-{settings.device.id}", self._events.put)
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._last_error_at = 0

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def stop(self) -> None:
        """Say farewell and end the thread."""
        if self._thread.is_alive():
            self._events.put(None)
            self._thread.join(STOP_PATIENCE_SECONDS)

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
                _SHOWN_LINKS[sync.link],
                sync.link_since,
                sync.last_error,
                self._last_error_at if sync.last_error else 0,
            ),
            namespaces=tuple(
                self._namespace_status(namespace, now) for namespace in self._settings.namespaces
            ),
        )

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

    def _run(self) -> None:
        self._feed(Started())
        while (event := self._next_event()) is not None:
            self._feed(event)
            deadline = self._sync.next_deadline()
            if not isinstance(event, Ticked) and deadline is not None and deadline <= clock.monotonic():
                self._feed(Ticked())
        farewell = self._sync.farewell()
        self._link.close((farewell.topic, farewell.payload))

    def _next_event(self) -> Event | None:
        deadline = self._sync.next_deadline()
        patience = IDLE_SECONDS if deadline is None else deadline - clock.monotonic()
        try:
            return self._events.get(timeout=min(IDLE_SECONDS, max(0.0, patience)))
        except queue.Empty:
            return Ticked()

    def _feed(self, event: Event) -> None:
        try:
            before = self._sync.last_error
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
            case Subscribe(filters):
                self._link.subscribe(filters)
            case Unsubscribe(filters):
                self._link.unsubscribe(filters)
            case Publish(topic, payload):
                self._link.publish(topic, payload)
            case PersistUpdate(update, floor):
                return self._persisted(lambda: self._booted.store.persist_update(update, floor))
            case PersistRoot(root, floor):
                return self._persisted(lambda: self._booted.store.persist_root(root, floor))
            case Activate(update):
                self._booted.evaluator.activate(update, now=clock.now())
            case Log(level, message, fields):
                log(level, message, **dict(fields))
        return None

    @staticmethod
    def _persisted(persist: Callable[[], None]) -> Event:
        try:
            persist()
        except StoreError as error:
            return PersistFailed(str(error))
        return Persisted()
