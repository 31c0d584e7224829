"""What follows the broker: a thread that feeds events to the core and performs what it decides.

Nothing of it is needed for an answer, so the agent imports it once it answers.
"""

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from flagcast_shared.reports import Usage
from flagcast_shared.topics import Topics

from . import clock
from .boot import Booted
from .config import AgentConfig, agent_version
from .logs import log
from .mqtt import Link, Said
from .status import Activity, Freshness, LinkStatus, NamespaceStatus, Rejection, Status
from .store.errors import StoreError
from .sync.core import Sync
from .sync.events import (
    Activate,
    Believe,
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
    Ticked,
    Unsubscribe,
    UsageFound,
    UsageNotKept,
    Woken,
)

NO_ATTEMPT: Final = 0
"""Of an event that comes from nowhere near the broker."""

QUEUE_MAX_MESSAGES: Final = 256
"""Messages that may wait for verification, at most 64 MB; beyond that the MQTT thread waits, and TCP slows the broker down."""
IDLE_SECONDS: Final = 60.0
"""The longest sleep of the link thread, whatever the deadlines say."""
STOP_PATIENCE_SECONDS: Final = 15.0


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
        self._wishes: dict[int, asyncio.Future[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        topics = Topics(settings.prefix, settings.environment)
        self._sync = Sync(
            booted.trusted,
            topics,
            settings.namespaces,
            clock.session_number(),
            agent_version(),
            protocol=settings.broker.protocol,
            broker=f"{settings.broker.host}:{settings.broker.port}",
            memory=booted.broker,
            heartbeat_seconds=settings.heartbeat_seconds,
            floor=booted.evaluator.floor,
        )
        self._sync.connection.since = clock.monotonic()
        self._link = Link(settings.broker, f"flagcast-{settings.device.id}", self._hear)
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._last_error_at = 0.0  # monotonic

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
        """Wake, and wait until up to date, so many seconds at most; returns why it is not, as `why_not_current`.

        For one event loop. Whoever waits costs it nothing until the link thread says that wishes came true.
        """
        self._loop = asyncio.get_running_loop()
        wish, came_true = self.wake(), self._loop.create_future()
        self._wishes[wish] = came_true
        try:
            async with asyncio.timeout(seconds):
                await came_true
        except TimeoutError:
            if self._sync.answered < wish:
                return self.why_not_current() or ("the broker did not answer in time",)
        finally:
            self._wishes.pop(wish, None)
        return ()

    def count(self, batches: tuple[Usage, ...]) -> None:
        """Keep evaluation counts and send what is kept."""
        self._events.put((Counted(batches), NO_ATTEMPT))

    def abandon(self) -> None:
        """Let go of the connection without a word: all that a process may do that was forked while this was at work."""
        self._link.abandon()

    def status(self, began: float) -> Status:
        """The agent at this instant; reads what the link thread wrote last and waits for nothing.

        `began` is the monotonic time at which it was started.
        """
        sync, now, floor = self._sync, clock.now(), self._booted.evaluator.floor
        believed = floor.now(now, clock.monotonic())
        return Status(
            agent_version=agent_version(),
            device=sync.trusted.device.id,
            environment=sync.trusted.environment,
            started=clock.instant_of(began),
            now=now,
            clock_is_trusted=floor.allows(now),
            link=LinkStatus(
                sync.connection.state.value,
                clock.instant_of(sync.connection.since),
                sync.connection.last_error,
                clock.instant_of(self._last_error_at) if sync.connection.last_error else 0,
                sync.reporting.refused_why,
            ),
            namespaces=tuple(
                self._namespace_status(namespace, believed) for namespace in self._settings.namespaces
            ),
        )

    def activity(self) -> Activity:
        """What happened on the link since the start; waits for nothing."""
        traffic = self._link.traffic
        return Activity(
            self._sync.connection.connections,
            dict(self._sync.reporting.rejections),
            traffic.received,
            traffic.sent,
        )

    def _namespace_status(self, namespace: str, now: int) -> NamespaceStatus:
        refusal = self._sync.reporting.refusal
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
            knowledge.age(now),
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
        # For applications that read it in this boot of the device, and for this agent if it is started again in it.
        floor = self._sync.floor
        with self._guard:
            self._try("what time it is at least", lambda: self._booted.store.persist_floor(floor))
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
        answered = self._sync.answered
        self._handle(event)
        # What came true is told when all of it is done, so that whoever hears it is answered from it.
        if self._sync.answered != answered and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and who waited in it
                self._loop.call_soon_threadsafe(self._grant)

    def _grant(self) -> None:
        # In the loop. Wishes stand in the order of their numbers.
        answered = self._sync.answered
        for wish in tuple(self._wishes):
            if wish > answered:
                break
            came_true = self._wishes.pop(wish)
            if not came_true.done():  # else who waited has left at this moment
                came_true.set_result(None)

    def _handle(self, event: Event) -> None:
        try:
            before = self._sync.connection.last_error
            with self._guard:
                effects = self._sync.handle(
                    event, now=clock.now(), monotonic=clock.monotonic(), jitter=clock.jitter()
                )
                if self._sync.connection.last_error != before:
                    self._last_error_at = clock.monotonic()
                for effect in effects:
                    outcome = self._perform(effect)
                    if outcome is not None:
                        self._handle(outcome)
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
            case Believe(floor):
                self._booted.evaluator.floor = floor
            case Activate(update):
                self._booted.evaluator.activate(update)
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
