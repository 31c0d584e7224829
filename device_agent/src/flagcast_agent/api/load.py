"""What all connections of the local sockets together are doing, so that the agent can refuse and end them in good order."""

import asyncio
import logging
from typing import Protocol

from flagcast_agent.limits import HELD_MAX_BYTES, HELD_SHARE_BYTES, READ_MAX_BYTES

log = logging.getLogger(__name__)


class OpenConnection(Protocol):
    """One client's connection, whatever it speaks."""

    async def finish(self) -> None:
        """Closes it once what was said has been sent; calls in progress are cut."""

    def abort(self) -> None:
        """Closes it at once."""


class Load:
    """The connections that are open, how many calls are in progress, and the bytes that wait for slow clients.

    `received` is where all of them receive, one after the other: what arrived is copied out before the next one reads.
    """

    def __init__(self) -> None:
        self.received = memoryview(bytearray(READ_MAX_BYTES))
        self.held = 0
        self.large = asyncio.Lock()
        """Answers of all flags are made one after the other: the time and memory of one, however many ask at once."""
        self._holding: dict[OpenConnection, int] = {}
        self.connections: set[OpenConnection] = set()
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
        self.holds(connection, 0)
        if not self.connections:
            self.unconnected.set()

    def replaced(self, connection: OpenConnection, by: OpenConnection) -> None:
        """The same client's connection, now that it is known what it speaks."""
        self.connections.discard(connection)
        self.connections.add(by)

    def holds(self, connection: OpenConnection, size: int) -> None:
        """Bytes in memory for one client: a request not yet whole, an answer not yet read.

        Where too many wait for all of them together, the connections over their share are closed, the oldest wait first.
        """
        self.held += size - self._holding.get(connection, 0)
        if size:
            self._holding[connection] = size  # in its former place: the first one has waited longest
        else:
            self._holding.pop(connection, None)
        while self.held > HELD_MAX_BYTES:
            slow = next(each for each, held in self._holding.items() if held > HELD_SHARE_BYTES)
            log.warning(
                "a connection was closed: too much waits for clients that do not read or finish their requests"
            )
            self.held -= self._holding.pop(slow)
            slow.abort()

    def began(self) -> None:
        """A call is in progress."""
        self.calls += 1
        self.idle.clear()

    def ended(self) -> None:
        """A call has ended."""
        self.calls -= 1
        if not self.calls:
            self.idle.set()
