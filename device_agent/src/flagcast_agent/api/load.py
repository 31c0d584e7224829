"""Load of the local sockets: open connections, calls in progress, bytes held."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Protocol

from flagcast_agent.limits import (
    HELD_MAX_BYTES,
    HELD_SHARE_BYTES,
    LARGE_WAITING_MAX,
    LASTING_MAX,
    PENALTY_SECONDS,
    READ_MAX_BYTES,
)

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


class Slices:
    """Turns of connections that have more to do than a slice; waiting processes alternate.

    One slice in each round of the loop, so that whatever came meanwhile waits for one slice, however many connections have more.
    A process that did not have the last one, and has nothing waiting, is let in at once: one in each round.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[Callable[[], None]]] = {}
        self._last: Hashable = None
        self._is_due = False
        self._is_late = False
        self._has_guest = False

    def may_go_on(self, process: Hashable) -> bool:
        """Whether a process's connection may have a slice at once.

        Not while others wait, or somebody has taken as long as a slice lasts in this round of the loop, but for one guest.
        """
        if not self._is_late and not self._waiting:
            return True
        if self._has_guest or process == self._last or process in self._waiting:
            return False
        self._has_guest = True
        asyncio.get_running_loop().call_soon(self._end_visit)
        return True

    def _end_visit(self) -> None:
        self._has_guest = False

    def overran(self, process: Hashable) -> None:
        """A process used up a slice: whatever else comes in this round of the loop waits for its turn."""
        self._last = process
        if not self._is_late:
            self._is_late = True
            asyncio.get_running_loop().call_soon(self._begin_round)

    def _begin_round(self) -> None:
        self._is_late = False

    def wait(self, process: Hashable, take: Callable[[], None]) -> None:
        """Calls `take` in the process's turn."""
        self._waiting.setdefault(process, deque()).append(take)
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        others = (process for process in self._waiting if process != self._last)
        process = self._last = next(others, self._last)
        waiting = self._waiting.pop(process)
        take = waiting.popleft()
        if waiting:
            self._waiting[process] = waiting
        self._is_due = bool(self._waiting)
        if self._is_due:
            asyncio.get_running_loop().call_soon(self._next)
        take()


class Load:
    """Open connections, calls in progress, and bytes held for clients.

    `received` is where all of them receive, one after the other: what arrived is copied out before the next one reads.
    `large` gives their turns to answers of all flags: the time and memory of one, however many are requested at once.
    """

    def __init__(self) -> None:
        self.received = memoryview(bytearray(READ_MAX_BYTES))
        self.held = 0
        self.large = Turns()
        self.slices = Slices()
        self._lasting: dict[Hashable, int] = {}
        self._offended: dict[Hashable, float] = {}
        self._holding: dict[OpenConnection, int] = {}
        self.connections: set[OpenConnection] = set()
        self.peers: dict[OpenConnection, Peer] = {}
        self.calls = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.unconnected = asyncio.Event()
        self.unconnected.set()

    def may_last(self, process: Hashable) -> bool:
        """Whether a process has room for a further call that lasts, which it takes then; `lasted` gives it back."""
        number = self._lasting.get(process, 0)
        if number >= LASTING_MAX:
            return False
        self._lasting[process] = number + 1
        return True

    def lasted(self, process: Hashable) -> None:
        """The end of a call that lasted."""
        self._lasting[process] -= 1
        if not self._lasting[process]:
            del self._lasting[process]

    def offended(self, process: Hashable, now: float) -> None:
        """A connection of this process broke the protocol. `now` is the loop's time."""
        self._offended = {each: until for each, until in self._offended.items() if until > now}
        self._offended[process] = now + PENALTY_SECONDS

    def penalty(self, process: Hashable, now: float) -> float:
        """Seconds for which nothing is to be read from a new connection of this process."""
        return max(0.0, self._offended.get(process, now) - now)

    def opened(self, connection: OpenConnection) -> None:
        """A connection was made."""
        self.connections.add(connection)
        self.unconnected.clear()

    def closed(self, connection: OpenConnection) -> None:
        """It is gone."""
        self.connections.discard(connection)
        self.peers.pop(connection, None)
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
