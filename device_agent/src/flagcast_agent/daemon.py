"""The agent as a process: boots from its disk, answers applications, follows the broker.

Boot order: lock and read the database, activate what it holds, bind the socket, answer; only then the broker. Answers are
given by the event loop in the main thread from memory; the link, verification and the disk have a thread of their own, so an
application never waits for any of them.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Final

from flagcast_shared.errors import NamespaceNotFound
from flagcast_shared.ids import Namespace

from . import clock
from .boot import Booted, boot
from .config import AgentConfig
from .evaluator import Evaluator
from .logs import log
from .store.reader import Reader
from .supervisor import Supervisor
from .usage import Tally

if TYPE_CHECKING:
    # Imported when there are answers: an application that waits for its first one does not wait for the link as well.
    from .api.answers import Snapshot
    from .follower import Follower
    from .status import Activity, Caught, Status

_GARBAGE_THRESHOLDS: Final = (700, 4, 10)
# For gc.set_threshold: the middle search looks at some 3,000 objects, a millisecond, where Python's own has 7,000 to look at.

POLL_SECONDS: Final = 0.02
"""How often a single run looks whether it is up to date."""
USAGE_PATIENCE_SECONDS: Final = 5.0
"""How long a single run waits for the broker to take evaluation counts once it is up to date."""

CLOCK_SET_SECONDS: Final = 5
"""How far the clock may be from where it would be had it run on, before a span of evaluation counts is no longer told by it."""


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


def run_once(settings: AgentConfig, timeout: float, *, recover: bool = False) -> "Caught":
    """Connect, become up to date, report, leave; answers no application meanwhile.

    Args:
        settings: what the device was provisioned with.
        timeout: how many seconds it may take to be up to date.
        recover: as for `run`.

    Raises:
        StoreError, InvalidConfiguration, Refused: it cannot start; the message says what to do.
    """
    from .follower import Follower
    from .status import Caught

    began = clock.monotonic()
    deadline = began + timeout
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
            return Caught(follower.why_not_current(), follower.status(began))
        finally:
            follower.stop()
    finally:
        booted.store.close()


async def _serve(settings: AgentConfig, booted: Booted, began: float) -> int:
    from .api.answers import Answers
    from .api.server import LocalServer
    from .api.socket import SocketOptions, UnixSocket, bind_loopback, handed_over

    following = _Following(settings, booted)
    answers = Answers(
        booted.evaluator,
        environment=settings.environment,
        default_namespace=settings.namespaces[0],
        now=clock.now_precise,
        monotonic=clock.monotonic,
        fresh_id=clock.fresh_id,
    )

    def status() -> "Status":
        return following.follower().status(began)

    def activity() -> "Activity":
        return following.follower().activity()

    async def catch_up(seconds: float) -> "Caught":
        from .status import Caught

        return Caught(await following.follower().catch_up(seconds), status())

    server = LocalServer(
        answers,
        booted.evaluator,
        status,
        catch_up,
        activity=activity,
        snapshot=lambda namespace: _snapshot(settings, namespace),
        removed=booted.removed,
        tells_static=settings.flagd_caching,
        namespaces=settings.namespaces,
    )
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, loop, stopping)
    loop.add_signal_handler(signal.SIGUSR1, following.wake)
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
        # What is in memory now stays: looking through it for garbage would be a pause in the first answers.
        gc.freeze()
        gc.set_threshold(*_GARBAGE_THRESHOLDS)
        gc.enable()
        counting = asyncio.create_task(
            _count(following, booted.evaluator, settings.usage_seconds), name="usage"
        )
        async with Supervisor().told(lambda: following.is_alive):
            await asyncio.to_thread(following.start)
            await stopping.wait()
        log(logging.INFO, "stopping")
        await server.stop()
    counting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await counting
    await asyncio.to_thread(following.follower().stop)
    return 0


class _Following:
    # The follower, imported and made by whoever needs it first: once the agent answers, or a question about the link.

    def __init__(self, settings: AgentConfig, booted: Booted) -> None:
        self._settings = settings
        self._booted = booted
        self._making = threading.Lock()
        self._follower: Follower | None = None
        self._has_begun = False

    def follower(self) -> "Follower":
        with self._making:
            if self._follower is None:
                from .follower import Follower

                self._follower = Follower(self._settings, self._booted)
            return self._follower

    def start(self) -> None:
        self.follower().start()
        self._has_begun = True

    def wake(self) -> None:
        # One that has not begun is about to connect.
        if self._has_begun:
            self.follower().wake()

    @property
    def is_alive(self) -> bool:
        # False is a defect of the link that only a restart cures; before it has begun there is none.
        return not self._has_begun or self.follower().is_alive


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


async def _count(following: _Following, evaluator: Evaluator, interval: int) -> None:
    # In the thread that answers, so that no evaluation is counted twice or not at all. The last span ends with the task.
    if not interval:
        return
    evaluator.tally = tally = Tally()
    since, begun = clock.now(), clock.monotonic()
    is_over = False
    while not is_over:
        try:
            await asyncio.sleep(interval)
        except asyncio.CancelledError:
            is_over = True
        from flagcast_shared.reports import Usage, split_counts

        counts, dropped = tally.take()
        until, ended = clock.now(), clock.monotonic()
        if abs(until - since - (ended - begun)) > CLOCK_SET_SECONDS:
            since = until - round(ended - begun)  # the clock was set meanwhile: no hour is ten years long
        groups = split_counts(counts)
        following.follower().count(
            tuple(
                # Said once: whoever adds batches up counts what was dropped once.
                Usage(clock.batch_id(), since, max(since, until), group, 0 if place else dropped)
                for place, group in enumerate(groups)
            )
        )
        since, begun = until, ended


def _stop(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> None:
    stopping.set()
    # From here on a signal does what it does by itself: end the process.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
