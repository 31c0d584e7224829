"""The process of `flagcast serve`: the shell around `upkeep`. It performs and decides nothing about flags, versions or time.

One thread works: it waits for events, and a turn runs in it from beginning to end. paho's thread of the listening connection only
puts events into the queue; a turn has a connection of its own, and the ledger only for as long as it lasts.
"""

import signal
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

from flagcast_bridge import clock, project
from flagcast_bridge.broker import connection as mqtt
from flagcast_bridge.ledger.ledger import LedgerBusy
from flagcast_bridge.planning.plan import Action
from flagcast_bridge.project import Project
from flagcast_bridge.publishing import publish as publisher
from flagcast_bridge.signing import keychain, signer
from flagcast_bridge.signing.passphrase import Unlock, from_environment
from flagcast_shared.errors import FlagcastError, Malformed
from flagcast_shared.printing import logfmt_value
from flagcast_shared.records import digest_of
from flagcast_shared.reports import decode_refresh
from flagcast_shared.topics import DeviceAddress

from .upkeep import (
    Asked,
    Connect,
    Connected,
    ConnectFailed,
    Disconnected,
    Effect,
    Event,
    LedgerHeld,
    Level,
    Missed,
    Received,
    Say,
    Ticked,
    Turn,
    Turned,
    TurnFailed,
    Unreadable,
    Upkeep,
)

QUEUE_MAX: Final = 1_000
"""Messages that wait for a turn to end; of more than that only the fact is remembered."""
_ERROR: Final = "error: "
_TOPICS_SAID: Final = 3
# Of what was put back, so many topics stand in the line.


def run(settings: Project, log: Callable[[str], None], unlock: Unlock = from_environment) -> None:
    """Look after what was published until SIGTERM or SIGINT; the turn that runs then is finished. `log` takes lines.

    `unlock` gives the passphrase of a signing key that has one, whenever a turn signs; it must not ask a person.

    Raises:
        InvalidConfiguration: the project's roots cannot be read.
    """
    project.read_roots(settings)
    daemon = _Daemon(settings, log, unlock)
    previous = {number: signal.signal(number, daemon.stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        daemon.run()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Daemon:
    def __init__(self, settings: Project, log: Callable[[str], None], unlock: Unlock) -> None:
        self._settings = settings
        self._log = log
        self._unlock = unlock
        self._core = Upkeep()
        self._connection: mqtt.Connection | None = None
        # None ends the process.
        self._queue: SimpleQueue[tuple[mqtt.Connection, Event] | None] = SimpleQueue()
        self._has_missed = False

    def run(self) -> None:
        self._say(
            Say(
                Level.INFO,
                "serving",
                (("environment", self._settings.environment), ("broker", self._settings.broker.url)),
            )
        )
        for key in keychain.held(self._settings):
            if key.weakness:
                self._say(Say(Level.WARNING, signer.weak_file(key.path, key.weakness)))
        while True:
            try:
                found = self._queue.get(timeout=max(0.0, self._core.next_deadline() - clock.monotonic()))
            except Empty:
                self._handle(Ticked())
                continue
            if found is None:
                break
            connection, event = found
            if connection is self._connection:
                self._handle(event)
            if self._has_missed:
                self._has_missed = False
                self._handle(Missed())
        self._close()
        self._say(Say(Level.INFO, "stopped"))

    def stop(self, number: int, frame: object) -> None:
        """End after the turn that runs; a second signal ends at once, which loses nothing that the next run does not find."""
        del frame
        signal.signal(number, signal.SIG_DFL)
        self._queue.put(None)

    def _handle(self, event: Event) -> None:
        effects = self._core.handle(
            event, now=clock.now(), monotonic=clock.monotonic(), jitter=clock.jitter()
        )
        for effect in effects:
            outcome = self._perform(effect)
            if outcome is not None:
                self._handle(outcome)

    def _perform(self, effect: Effect) -> Event | None:
        match effect:
            case Say():
                self._say(effect)
                return None
            case Connect():
                return self._connect()
            case Turn():
                return self._turn(effect)

    def _connect(self) -> Event:
        self._close()
        topics = self._settings.topics
        try:
            connection = publisher.connect(self._settings)
        except FlagcastError as error:
            return ConnectFailed(str(error), isinstance(error, mqtt.AuthenticationRefused | mqtt.TlsFailed))
        self._connection = connection
        try:
            connection.watch(
                [topics.all_roots(), topics.all_heads(), topics.all_devices("refresh")],
                lambda topic, data: self._on_message(connection, topic, data),
                lambda why: self._queue.put((connection, Disconnected(why))),
            )
        except mqtt.BrokerError as error:
            self._close()
            return ConnectFailed(str(error), isinstance(error, mqtt.NotAllowed))
        return Connected()

    def _on_message(self, connection: mqtt.Connection, topic: str, data: bytes) -> None:
        # In paho's thread.
        if self._queue.qsize() >= QUEUE_MAX:
            self._has_missed = True
            return
        self._queue.put((connection, self._event_of(topic, data)))

    def _event_of(self, topic: str, data: bytes) -> Event:
        if not isinstance(self._settings.topics.address(topic), DeviceAddress):
            return Received(topic, digest_of(data))
        try:
            return Asked(frozenset(decode_refresh(data).namespaces))
        except Malformed as error:
            return Unreadable(f"{topic}: {error}")

    def _turn(self, turn: Turn) -> Event:
        lines: list[str] = []
        try:
            done = publisher.keep_up(
                self._settings,
                say=lines.append,
                repeats=turn.repeats,
                unlock=self._unlock,
            )
        except LedgerBusy as error:
            return LedgerHeld(str(error))
        except FlagcastError as error:
            return TurnFailed(str(error))
        self._tell(turn, done)
        standing = {topic: digest_of(data) for topic, data in done.standing.items()}
        errors = tuple(line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR))
        warnings = tuple(line.removeprefix("warning: ") for line in lines if not line.startswith(_ERROR))
        return Turned(standing, done.due, warnings, errors, has_repeated=turn.repeats is not None)

    def _tell(self, turn: Turn, done: publisher.Turn) -> None:
        issued = [plan for plan in done.plans if plan.action is not Action.UNCHANGED]
        if done.put_back:
            topics = ",".join(
                sorted({self._settings.topics.of(address) for address in done.put_back})[:_TOPICS_SAID]
            )
            self._say(
                Say(
                    Level.WARNING,
                    "put back",
                    (("messages", len(done.put_back)), ("topics", topics), ("why", turn.why)),
                )
            )
        for plan in issued:
            self._say(
                Say(
                    Level.INFO,
                    "published",
                    (
                        ("namespace", plan.namespace),
                        ("action", plan.action),
                        ("version", plan.head.stable.version),
                        ("head", plan.head.sequence),
                        ("why", plan.why),
                    ),
                )
            )
        if done.cleared:
            self._say(Say(Level.INFO, "cleared", (("messages", done.cleared),)))
        if not (done.put_back or issued or done.cleared):
            self._say(Say(Level.INFO, "checked", (("namespaces", len(done.plans)), ("why", turn.why))))

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _say(self, line: Say) -> None:
        fields: list[tuple[str, object]] = [
            ("time", clock.as_text(clock.now())),
            ("level", line.level),
            ("message", line.message),
            *line.fields,
        ]
        self._log(" ".join(f"{name}={logfmt_value(value)}" for name, value in fields))
