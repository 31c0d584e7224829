"""What all connections of the local sockets together are doing, so that the agent can refuse and end them in good order."""

import asyncio
from typing import Protocol


class OpenConnection(Protocol):
    """One client's connection, whatever it speaks."""

    async def finish(self) -> None:
        """Closes it once what was said has been sent; calls in progress are cut."""

    def abort(self) -> None:
        """Closes it at once."""


class Load:
    """The connections that are open, and how many calls are in progress."""

    def __init__(self) -> None:
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
        if not self.connections:
            self.unconnected.set()

    def replaced(self, connection: OpenConnection, by: OpenConnection) -> None:
        """The same client's connection, now that it is known what it speaks."""
        self.connections.discard(connection)
        self.connections.add(by)

    def began(self) -> None:
        """A call is in progress."""
        self.calls += 1
        self.idle.clear()

    def ended(self) -> None:
        """A call has ended."""
        self.calls -= 1
        if not self.calls:
            self.idle.set()
