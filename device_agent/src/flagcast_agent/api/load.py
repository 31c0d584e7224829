"""Load of the local sockets: open connections, calls in progress, bytes held."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Protocol

from flagcast_agent.limits import HELD_MAX_BYTES, HELD_SHARE_BYTES, LARGE_WAITING_MAX, READ_MAX_BYTES

if TYPE_CHECKING:
    from .places import Peer

log = logging.getLogger(__name__)


class OpenConnection(Protocol):
    """One client's connection, whatever it speaks."""

    @property
    def silent_since(self) -> float | None:
        """Since when nothing is asked on it, in the loop's time; None while something is."""

    def leave(self) -> None:
        """Takes no further request, as far as the protocol has a word for that."""

    async def finish(self) -> None:
        """Closes it once what was said has been sent; calls in progress are cut."""

    def abort(self) -> None:
        """Closes it at once."""


class Place:
    """A request's place in the queue for large answers.

    `turn` is set when its answer is to be made.
    """

    def __init__(self, process: Hashable) -> None:
        self.process = process
        self.turn = asyncio.Event()


class Turns:
    """Turns for large answers, one at a time; waiting processes alternate.

    So one process with a hundred connections keeps another waiting for one of its answers, not for a hundred.
    """

    def __init__(self) -> None:
        self._current: Place | None = None
        # Of every process in the order in which they came; the process that had a turn last is the last one.
        self._waiting: dict[Hashable, deque[Place]] = {}

    def enter(self, process: Hashable) -> Place | None:
        """A place for one more request, which `leave` gives back.

        None where LARGE_WAITING_MAX of this process wait already.
        """
        place = Place(process)
        if self._current is None:
            self._give(place)
            return place
        waiting = self._waiting.get(process, ())
        if len(waiting) >= LARGE_WAITING_MAX:
            return None
        self._waiting.setdefault(process, deque()).append(place)
        return place

    def leave(self, place: Place) -> None:
        """End of a place: answered or given up."""
        if place is not self._current:
            self._remove(place)
            return
        self._current = None
        if self._waiting:
            following = (process for process in self._waiting if process != place.process)
            chosen = self._waiting[next(following, place.process)][0]
            self._remove(chosen)
            if chosen.process in self._waiting:
                self._waiting[chosen.process] = self._waiting.pop(chosen.process)
            self._give(chosen)

    def _give(self, place: Place) -> None:
        self._current = place
        place.turn.set()

    def _remove(self, place: Place) -> None:
        waiting = self._waiting[place.process]
        waiting.remove(place)
        if not waiting:
            del self._waiting[place.process]


class Load:
    """Open connections, calls in progress, and bytes held for clients.

    `received` is where all of them receive, one after the other: what arrived is copied out before the next one reads.
    `large` gives their turns to answers of all flags: the time and memory of one, however many are requested at once.
    """

    def __init__(self) -> None:
        self.received = memoryview(bytearray(READ_MAX_BYTES))
        self.held = 0
        self.large = Turns()
        self._holding: dict[OpenConnection, int] = {}
        # Of every process, in the order in which their turns come.
        self._turns: dict[int, dict[OpenConnection, Callable[[], None]]] = {}
        self._next: asyncio.Handle | None = None
        self.is_late = False
        self.connections: set[OpenConnection] = set()
        self.peers: dict[OpenConnection, Peer] = {}
        self.calls = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.unconnected = asyncio.Event()
        self.unconnected.set()

    def opened(self, connection: OpenConnection) -> None:
        """A connection was made."""
        self.connections.add(connection)
        self.unconnected.clear()

    def closed(self, connection: OpenConnection) -> None:
        """It is gone."""
        self.connections.discard(connection)
        self.peers.pop(connection, None)
        self._forget_turn(connection)
        self.holds(connection, 0)
        if not self.connections:
            self.unconnected.set()

    def replaced(self, connection: OpenConnection, by: OpenConnection) -> None:
        """The same client's connection, now that it is known what it speaks."""
        self.connections.discard(connection)
        self.connections.add(by)
        self.peers[by] = self.peers.pop(connection)

    def holds(self, connection: OpenConnection, size: int) -> None:
        """Bytes in memory for one client, in place of the former figure.

        They are of requests not yet whole or answered, and of answers not yet read. Where the sum is over HELD_MAX_BYTES, the
        connections over their share are closed, the longest waits first.
        """
        before = self._holding.get(connection, 0)
        self.held += size - before
        if size > HELD_SHARE_BYTES >= before:
            self._holding.pop(connection, None)  # its wait begins now: a stream holds its little for days
        if size:
            self._holding[connection] = (
                size  # in its former place: the first one over its share has waited longest
            )
        else:
            self._holding.pop(connection, None)
        while self.held > HELD_MAX_BYTES:
            slow = next(each for each, held in self._holding.items() if held > HELD_SHARE_BYTES)
            log.warning(
                "a connection was closed: too much is held for clients that do not read or finish their requests"
            )
            self.held -= self._holding.pop(slow)
            slow.abort()

    def overran(self) -> None:
        """A turn took as long as one may, or longer: whoever comes to one in the same round of the loop waits in the queue."""
        self.is_late = True
        self._go_on()

    def wait_for_turn(self, connection: OpenConnection, turn: Callable[[], None]) -> None:
        """The next turn of a connection that has more to be answered than fits into one, or comes when others have overrun.

        One such turn is taken in a round of the loop, and processes alternate. So others wait for one turn of a flood, and not
        for one of each of its connections.
        """
        process = self.peers[connection].pid if connection in self.peers else 0
        self._turns.setdefault(process, {})[connection] = turn
        self._go_on()

    def _go_on(self) -> None:
        if self._next is None:
            self._next = asyncio.get_running_loop().call_soon(self._give_turn)

    def _give_turn(self) -> None:
        self._next = None
        self.is_late = False
        if not self._turns:
            return
        process = next(iter(self._turns))
        waiting = self._turns.pop(process)
        turn = waiting.pop(next(iter(waiting)))
        if waiting:
            self._turns[process] = waiting  # behind all others
        if self._turns:
            self._go_on()
        turn()

    def _forget_turn(self, connection: OpenConnection) -> None:
        for process, waiting in self._turns.items():
            if waiting.pop(connection, None) is not None:
                if not waiting:
                    del self._turns[process]
                return

    def began(self) -> None:
        """A call is in progress."""
        self.calls += 1
        self.idle.clear()

    def count(self, change: int) -> None:
        """So many more calls are in progress, or fewer."""
        for _ in range(change):
            self.began()
        for _ in range(-change):
            self.ended()

    def ended(self) -> None:
        """A call has ended."""
        self.calls -= 1
        if not self.calls:
            self.idle.set()
