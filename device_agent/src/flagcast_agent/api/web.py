"""One HTTP/1.1 connection on the agent's sockets: its requests and answers.

Requests of a connection are answered one after the other, a few of them in one turn. While a client leaves an answer unread,
nothing more is answered to it and nothing more is read from it; nor is anything read while more than PIPELINED_MAX_BYTES wait for
their turn. A stream that its client does not read waits, and what changes meanwhile is joined; a client that has not read what
waits for it within UNREAD_SECONDS is disconnected, and so is one that stops in the middle of a request. Nobody else notices.
"""

import asyncio
import json
import logging
import select
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Final, NamedTuple

from flagcast_agent.limits import (
    IDLE_SECONDS,
    LARGE_REFUSAL_SECONDS,
    LARGE_WAITING_MAX,
    PIPELINED_MAX_BYTES,
    REQUEST_TIMEOUT_SECONDS,
    REQUESTS_PER_TURN,
    UNREAD_SECONDS,
)

from .http1 import CONTINUE, LAST_CHUNK, BadRequest, Request, RequestReader, chunk_of, head_of
from .load import Load, Place
from .places import Peer, peer_of

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"
_LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})

log = logging.getLogger(__name__)


class Reply(NamedTuple):
    """An answer that is there."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = _NO_HEADERS


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer in parts, until they end or the client leaves.

    No part is empty. `keeps` are the bytes of the request that it keeps in memory: never the request itself.
    """

    content_type: str
    parts: AsyncGenerator[bytes, None]
    keeps: int


@dataclass(frozen=True, slots=True)
class Large:
    """A large answer, made by `make` in its turn; `keeps` as a Stream's."""

    make: Callable[[], Awaitable[Reply]]
    keeps: int


@dataclass(frozen=True, slots=True)
class Later:
    """An answer that is waited for, made by `make`; `keeps` as a Stream's."""

    make: Callable[[], Awaitable[Reply]]
    keeps: int


Answer = Reply | Stream | Large | Later
Site = Callable[[Request], Answer]
"""The answer to a request, which is read and checked at once: no answer that waits keeps it."""


class WebConnection(asyncio.BufferedProtocol):
    """One client that speaks HTTP/1.1. `is_tcp`: it came through a port of the machine's own address."""

    def __init__(self, site: Site, load: Load, *, is_tcp: bool) -> None:
        self._site = site
        self._load = load
        self._is_tcp = is_tcp
        self._loop = asyncio.get_running_loop()
        self._reader = RequestReader()
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None] | None = None
        self._place: Place | None = None
        self._process: Peer | None = None
        self._kept = 0
        self._written = 0
        self._is_streaming = False
        self._is_over = False
        self._turn: asyncio.Handle | None = None
        self._is_holding = False
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # Callbacks of asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio's protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # What the socket does not take at once waits here: the client does not read, or not as fast as it asks.
        transport.set_write_buffer_limits(high=0)
        self._load.opened(self)
        self._wait_at_most(IDLE_SECONDS)
        self._watch_time()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's signature
        """Of asyncio's protocol."""
        return self._load.received

    def buffer_updated(self, nbytes: int) -> None:
        """Of asyncio's protocol."""
        self.take(self._load.received[:nbytes])

    def take(self, data: bytes | memoryview) -> None:
        """Bytes from the client; they are copied."""
        if self._is_over:
            return
        try:
            self._reader.feed(data)
        except BadRequest:
            self.abort()  # reading stopped long before; what may come in spite of it is not kept
            return
        self._advance()

    def eof_received(self) -> bool:
        """Of asyncio's protocol: the client sends nothing more.

        It may still read the answers to its requests, unless it has hung up.
        """
        is_answering = self._is_busy and not self._is_streaming
        self._is_over = True
        if self._has_hung_up():
            self.abort()
            return False
        return is_answering or self._turn is not None or not self._has_room.is_set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """Of asyncio's protocol."""
        self._load.closed(self)
        self._is_over = True
        self._reader = RequestReader()
        self._has_room.set()
        for later in (self._timer, self._turn):
            if later is not None:
                later.cancel()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """Of asyncio's protocol: the client does not read."""
        self._has_room.clear()
        self._transport.pause_reading()
        self._wait_at_most(UNREAD_SECONDS)
        self._watch_time()
        self._count_held()

    def resume_writing(self) -> None:
        """Of asyncio's protocol: it has read all of it."""
        self._has_room.set()
        self._written = 0
        self._wait_at_most(IDLE_SECONDS)
        self._advance()

    # Calls of the server.

    @property
    def silent_since(self) -> float | None:
        """Since when nothing is asked here, in the loop's time; None while something is."""
        is_asked = self._is_busy or self._turn is not None or not self._has_room.is_set()
        return None if is_asked or self._reader.is_in_request else self._deadline - IDLE_SECONDS

    def leave(self) -> None:
        """HTTP/1.1 has no word for it."""

    async def finish(self) -> None:
        """Closes it once what was said has been sent; a call in progress is cut."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._is_over = True
        self._close()

    def abort(self) -> None:
        """Closes it at once."""
        self._is_over = True
        self._reader = RequestReader()
        self._written = 0
        self._transport.abort()

    # Requests, one after the other.

    @property
    def _is_busy(self) -> bool:
        return self._task is not None

    @property
    def _may_answer(self) -> bool:
        return self._task is None and self._has_room.is_set() and not self._transport.is_closing()

    def _advance(self) -> None:
        if self._turn is None:
            self._answer_some()
        self._mind_reading()
        self._count_held()

    def _take_turn(self) -> None:
        self._turn = None
        self._advance()

    def _answer_some(self) -> None:
        for _ in range(REQUESTS_PER_TURN):
            if not self._may_answer:
                return
            try:
                request = self._reader.next()
            except BadRequest as error:
                self._refuse(error)
                return
            if request is None:
                self._wait_for_more()
                return
            self._answer(request)
        if self._may_answer:
            self._turn = self._loop.call_soon(self._take_turn)

    def _mind_reading(self) -> None:
        # A request that is not whole yet is read to its end, within the reader's limits. What comes after it can wait.
        is_answering = self._task is not None or self._turn is not None
        if not self._has_room.is_set() or (is_answering and self._reader.waiting > PIPELINED_MAX_BYTES):
            self._transport.pause_reading()
        elif not self._is_over:
            self._transport.resume_reading()

    def _count_held(self) -> None:
        held = self._reader.held + self._kept
        if not self._has_room.is_set():
            # All that was written: some releases of Python keep the whole answer until its last byte has gone.
            held += self._written
        if held or self._is_holding:
            self._is_holding = held > 0
            self._load.holds(self, held)

    def _wait_for_more(self) -> None:
        if self._reader.owes_continue:
            self._reader.owes_continue = False
            self._send(CONTINUE)
            if not self._has_room.is_set():
                return
        if self._is_over:
            self._close()
        elif self._reader.is_in_request:
            # From its first byte on, a request may take so long; every further byte buys no more time.
            if self._deadline > self._loop.time() + REQUEST_TIMEOUT_SECONDS:
                self._wait_at_most(REQUEST_TIMEOUT_SECONDS)
                self._watch_time()
        else:
            self._wait_at_most(IDLE_SECONDS)

    def _answer(self, request: Request) -> None:
        self._deadline = self._loop.time() + IDLE_SECONDS
        if self._is_tcp and _host_of(request) not in _LOOPBACK_HOSTS:
            # A page in a browser on this device whose host name was made to point here must not read flags.
            self._write(request, _problem(421, "this port answers for localhost alone"))
            return
        try:
            answer = self._site(request)
        except Exception:
            log.exception("a call failed inside the agent")
            answer = _problem(500, "the agent failed; its log says how")
        if isinstance(answer, Reply):
            self._write(request, answer)
            return
        form = request.without_content()
        if isinstance(answer, Stream):
            calling = partial(self._pump, form, answer)
            self._kept = answer.keeps
        elif isinstance(answer, Later):
            calling = partial(self._answer_later, form, answer)
            self._kept = answer.keeps
        elif place := self._load.large.enter(self._client_process()):
            calling = partial(self._answer_in_turn, form, answer, place)
            self._place, self._kept = place, answer.keeps
        else:
            calling = partial(self._refuse_large, form)
        self._load.began()
        self._task = asyncio.ensure_future(self._call(calling))
        self._task.add_done_callback(self._answered)

    async def _call(self, calling: Callable[[], Awaitable[None]]) -> None:
        # Called here, not before: a task that is cancelled before it begins would leave a coroutine that was never awaited.
        try:
            await calling()
        except Exception:
            log.exception("a call failed inside the agent")
            self.abort()

    async def _answer_in_turn(self, request: Request, answer: Large, place: Place) -> None:
        await place.turn.wait()
        if self._transport.is_closing() or self._has_hung_up():
            self.abort()
            return
        self._write(request, await answer.make())

    async def _answer_later(self, request: Request, answer: Later) -> None:
        self._write(request, await answer.make())

    async def _refuse_large(self, request: Request) -> None:
        await asyncio.sleep(LARGE_REFUSAL_SECONDS)
        refusal = _problem(503, f"{LARGE_WAITING_MAX} requests of this process for all flags wait already")
        self._write(
            request,
            Reply(503, refusal.content_type, refusal.body, {"retry-after": str(LARGE_REFUSAL_SECONDS)}),
        )

    async def _pump(self, request: Request, stream: Stream) -> None:
        self._is_streaming = True
        headers = {"content-type": stream.content_type, "cache-control": "no-store"}
        is_chunking = request.is_chunking
        self._send(
            head_of(
                200, headers, length=None, is_last=request.is_last or not is_chunking, is_chunking=is_chunking
            )
        )
        try:
            await self._has_room.wait()
            async for part in stream.parts:
                self._send(chunk_of(part) if is_chunking else part)
                await self._has_room.wait()
        finally:
            await stream.parts.aclose()
        if is_chunking:
            self._send(LAST_CHUNK)
        if request.is_last or not is_chunking:
            self._close()

    def _answered(self, task: "asyncio.Task[None]") -> None:
        self._load.ended()
        if self._place is not None:
            self._load.large.leave(self._place)
            self._place = None
        self._task = None
        self._kept = 0
        self._is_streaming = False
        if self._transport.is_closing():
            self._count_held()
            return
        if task.cancelled():
            self.abort()  # in the middle of an answer nothing else can be said
            return
        if self._has_room.is_set():
            self._wait_at_most(IDLE_SECONDS)
        self._advance()

    def _write(self, request: Request, reply: Reply) -> None:
        status, content_type, body, headers = reply
        is_last = request.is_last
        if body and headers is _NO_HEADERS and not is_last:
            head = b"%b%d\r\n\r\n" % (_begun(status, content_type), len(body))
        else:
            head = head_of(
                status,
                {"content-type": content_type, **headers} if body else headers,
                length=len(body),
                is_last=is_last,
            )
        self._send(head if request.method == "HEAD" else head + body)
        if is_last:
            self._close()

    def _send(self, data: bytes) -> None:
        self._written += len(data)
        self._transport.write(data)
        if self._has_room.is_set():
            self._written = 0

    def _close(self) -> None:
        # Once the client has read what was written. What it has sent ahead will not be answered any more.
        self._reader = RequestReader()
        self._transport.close()

    def _refuse(self, error: BadRequest) -> None:
        self._is_over = True
        body = _problem(error.status, str(error)).body
        headers = {"content-type": JSON}
        self._send(head_of(error.status, headers, length=len(body), is_last=True) + body)
        self._close()

    # Time. One timer, which looks again when it is early: setting it anew for every request would cost more than the answer.

    def _wait_at_most(self, seconds: float) -> None:
        self._deadline = self._loop.time() + seconds

    def _watch_time(self) -> None:
        if self._timer is not None:
            if self._timer.when() <= self._deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._look_at_time)

    def _look_at_time(self) -> None:
        self._timer = None
        is_unread = not self._has_room.is_set()  # also of an answer after which the connection is closed
        if self._is_busy and not is_unread:
            self._wait_at_most(IDLE_SECONDS)
        if self._loop.time() >= self._deadline:
            if is_unread:
                self.abort()
            elif self._reader.is_in_request:
                self._refuse(
                    BadRequest(408, f"the request did not arrive within {REQUEST_TIMEOUT_SECONDS} s")
                )
            else:
                self._close()
            return
        self._watch_time()

    # The client.

    def _client_process(self) -> Peer:
        if self._process is None:
            self._process = peer_of(self._transport.get_extra_info("socket"))
        return self._process

    def _has_hung_up(self) -> bool:
        # Whether nobody is left to read. A client of the TCP port that has closed looks like one that still reads.
        looking = select.poll()
        looking.register(self._transport.get_extra_info("socket"), 0)
        return bool(looking.poll(0))


@lru_cache(32)
def _begun(status: int, content_type: str) -> bytes:
    # The head of an answer up to the number of its content-length: a few, which most answers have.
    return head_of(status, {"content-type": content_type}, length=0, is_last=False).removesuffix(b"0\r\n\r\n")


def _host_of(request: Request) -> str:
    host = request.headers.get("host", "").lower()
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _problem(status: int, why: str) -> Reply:
    return Reply(status, JSON, json.dumps({"errorDetails": why}).encode())
