"""One call or request over HTTP/2 that takes time, or whose answer has several parts."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine, Hashable
from functools import partial
from typing import Any, Final, Protocol

from flagcast_agent.limits import LARGE_WAITING_MAX, UNREAD_MAX_BYTES

from .calls import HEAD, CallFailed, Status, failure_head, failure_tail, first_message, framed_parts
from .http2.connection import Connection
from .http2.frames import Code
from .http2.stream import Stream
from .load import Load

log = logging.getLogger(__name__)

UNREAD: Final = "too many answers of this connection wait to be read"


class Http2Shell(Protocol):
    """The connection that an exchange is a part of.

    `room` is set while the client reads what the socket has for it.
    """

    load: Load
    loop: asyncio.AbstractEventLoop
    room: asyncio.Event

    @property
    def untaken(self) -> int:
        """Bytes of answers that the client has not taken."""

    def flush(self) -> None:
        """Sends whatever is to be sent."""

    def client_process(self) -> Hashable:
        """Who has connected."""


class Exchange:
    """One call or request that is answered in a task."""

    def __init__(self, connection: Http2Shell, http2: Connection, stream: Stream) -> None:
        self.connection = connection
        self.fields = stream.fields
        self.request = b""
        self.stream = stream
        self.task: asyncio.Task[None] | None = None
        self._http2 = http2
        self._is_begun = False
        self._news = asyncio.Event()
        stream.owner = self

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Begins to answer."""
        self.task = asyncio.ensure_future(work)
        # A task that is cancelled before it begins leaves nothing behind it but its stream.
        self.task.add_done_callback(partial(_ended, self))

    def cancel(self) -> None:
        """The client has gone, or may not go on."""
        if self.task is not None:
            self.task.cancel()

    def arrived(self) -> None:
        """More of the request is there."""
        self._news.set()

    def drained(self) -> None:
        """All that waited was sent."""
        self._news.set()
        self.release()

    def release(self) -> None:
        """Lets go of the stream once both have ended, so that no cycle is left to be searched for."""
        if self.task is None and self.stream.is_over:
            self.stream.owner = None

    def begin(self, head: bytes = HEAD) -> None:
        """Sends the headers of the answer, if they were not yet."""
        if not self._is_begun:
            self._is_begun = True
            self._http2.begin(self.stream, head)
            self.connection.flush()

    async def send(self, *parts: bytes) -> None:
        """Sends a message of gRPC's, and waits until the client has room for more. Its parts are not copied into one."""
        if not self._is_begun:
            self._is_begun = True
            self._http2.begin(self.stream, HEAD)
        await self.send_raw(*framed_parts(parts))

    async def send_raw(self, *parts: bytes) -> None:
        """The same of any bytes; the headers were sent."""
        connection = self.connection
        now = connection.loop.time()
        for part in parts:
            self._http2.send(self.stream, part, now)
        connection.flush()
        while self.stream.waiting:
            self._news.clear()
            await self._news.wait()
        await connection.room.wait()

    async def receive(self) -> bytes | None:
        """The next message of the client; None after its last one. Raises CallFailed."""
        stream = self.stream
        while True:
            body = stream.body = bytearray(stream.body)
            message = first_message(body)
            if message is not None:
                self._http2.more(stream)
                self.connection.flush()
                return message
            if stream.is_whole:
                if body:
                    raise CallFailed(Status.INVALID_ARGUMENT, "the call ended in the middle of its request")
                return None
            self._http2.more(stream)
            self.connection.flush()
            self._news.clear()
            await self._news.wait()

    def fail(self, failure: CallFailed) -> None:
        """An end with an error."""
        if self._is_begun:
            self._http2.end(self.stream, failure_tail(failure.status, str(failure)))
        else:
            self._http2.refuse(self.stream, failure_head(failure.status, str(failure)))
        self.connection.flush()

    def end(self, tail: bytes) -> None:
        """An end after all that was sent."""
        self.begin()
        self._http2.end(self.stream, tail)
        self.connection.flush()

    def reset(self) -> None:
        """An end without another word."""
        self._http2.reset(self.stream, Code.CANCEL)
        self.connection.flush()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The time in which a large answer may be made: one at a time for all clients.

        Raises:
            CallFailed: too many requests of this process wait for their turn, or too many answers to be read.
        """
        connection = self.connection
        turns = connection.load.large
        place = turns.enter(connection.client_process())
        if place is None:
            why = f"{LARGE_WAITING_MAX} large requests of this process wait already"
            raise CallFailed(Status.RESOURCE_EXHAUSTED, why)
        try:
            await place.turn.wait()
            if connection.untaken > UNREAD_MAX_BYTES:
                raise CallFailed(Status.RESOURCE_EXHAUSTED, UNREAD)
            yield
        finally:
            turns.leave(place)


def _ended(exchange: Exchange, task: "asyncio.Task[None]") -> None:
    exchange.task = None
    exchange.connection.load.lasted(exchange.connection.client_process())
    if task.cancelled():
        exchange.reset()
    elif (error := task.exception()) is not None:
        log.error("a call failed inside the agent", exc_info=error)
        exchange.reset()
    exchange.release()
