"""One HTTP/2 connection on the agent's sockets: gRPC's calls, and HTTP's requests as over HTTP/1.1.

A call whose answer is there at once is answered in the callback that read it, and all answers of a turn leave in one write. A
turn lasts SLICE_SECONDS; then others have theirs. While a client leaves what was sent unread, nothing more is read from it, and a
call whose client has more than UNREAD_MAX_BYTES waiting is refused before its answer is made.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from flagcast_agent.limits import (
    HTTP2_IDLE_SECONDS,
    LARGE_REFUSAL_SECONDS,
    LASTING_MAX,
    REQUEST_MAX_BYTES,
    REQUEST_TIMEOUT_SECONDS,
    SLICE_SECONDS,
    STARTED_AT_ONCE,
    UNREAD_MAX_BYTES,
    UNREAD_SECONDS,
)

from .calls import (
    CONTENT_TYPE,
    HEAD,
    TAIL,
    CallFailed,
    Lasting,
    Method,
    Status,
    Unary,
    failed,
    failure_head,
    framed,
    missing_bytes,
    only_message,
    seconds_of,
)
from .exchange import UNREAD, Exchange
from .grpc import GrpcMethods
from .http2.connection import Connection
from .http2.frames import Code
from .http2.headers import Fields, block_of
from .http2.stream import Stream
from .load import Load
from .places import Peer, peer_of

if TYPE_CHECKING:
    from .web import Large, Later, Reply, Site
    from .web import Stream as WebStream

log = logging.getLogger(__name__)

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})

_LOOK_SECONDS: Final = 1.0  # how late a limit of time may be noticed
_NOT_MODIFIED: Final = 304
_PAGE: Final = object()  # the route of what is no call of gRPC's
_LATE: Final = failure_head(
    Status.DEADLINE_EXCEEDED, f"the request did not arrive within {REQUEST_TIMEOUT_SECONDS} s"
)


class Http2Connection(asyncio.BufferedProtocol):
    """One client that speaks HTTP/2. `site` makes what answers HTTP's requests, which the first of them needs."""

    def __init__(self, methods: GrpcMethods, load: Load, site: "Callable[[], Site]") -> None:
        self._methods = methods
        self.load = load
        self._site = site
        self.loop = asyncio.get_running_loop()
        self._http2 = Connection()
        self._transport: asyncio.Transport
        self._is_waiting = False
        self._timer: asyncio.TimerHandle | None = None
        self._has_room = True
        self.room = asyncio.Event()
        self.room.set()
        self._unread_since = 0.0
        self._active_at = 0.0
        self._open = 0
        self._is_holding = False
        self._process: Peer | None = None

    # Callbacks of asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio's protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)
        self.load.opened(self)
        self._active_at = self.loop.time()
        self._look_in(HTTP2_IDLE_SECONDS)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's signature
        """Of asyncio's protocol."""
        return self.load.received

    def buffer_updated(self, nbytes: int) -> None:
        """Of asyncio's protocol."""
        self.take(self.load.received[:nbytes])

    def take(self, data: bytes | memoryview) -> None:
        """Bytes from the client; they are copied."""
        if self._http2.is_over:
            return
        self._http2.receive(bytes(data))
        if self._is_waiting or not self._has_room:
            return
        if self.load.slices.may_go_on(self.client_process()):
            self._advance()
        else:
            self._wait_for_turn()

    def eof_received(self) -> bool:
        """Of asyncio's protocol: a client of HTTP/2 that sends nothing more has gone."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """Of asyncio's protocol."""
        self.load.closed(self)
        if self._timer is not None:
            self._timer.cancel()
        self._cancel_all()
        self._http2.lose()
        self.load.count(-self._open)
        self._open = 0

    def pause_writing(self) -> None:
        """Of asyncio's protocol: the client does not read."""
        self._has_room = False
        self.room.clear()
        self._unread_since = self.loop.time()
        self._transport.pause_reading()
        self._look_in(UNREAD_SECONDS)

    def resume_writing(self) -> None:
        """Of asyncio's protocol: it has read all of it."""
        self._has_room = True
        self.room.set()
        if not self._is_waiting:
            self._wait_for_turn()

    # Calls of the server.

    @property
    def silent_since(self) -> float | None:
        """Since when nothing is asked here, in the loop's time; None while something is."""
        return None if self._http2.streams else self._active_at

    def leave(self) -> None:
        """No further call is taken from this client."""
        self._http2.leave()
        self.flush()

    async def finish(self) -> None:
        """Closes it; calls in progress are cut."""
        self._http2.leave()
        tasks = self._cancel_all()
        if tasks:
            await asyncio.wait(tasks)
        self.flush()
        self._http2.is_over = True
        self._transport.close()

    def abort(self) -> None:
        """Closes it at once."""
        self._cancel_all()
        self._http2.lose()  # what it holds goes now: others may fill as much before asyncio tells that it is lost
        self._transport.abort()

    @property
    def untaken(self) -> int:
        """Bytes of answers that the client's windows or its socket have no room for."""
        return self._http2.waiting + self._transport.get_write_buffer_size()

    # Turns.

    def _wait_for_turn(self) -> None:
        self._is_waiting = True
        self._transport.pause_reading()
        self.load.slices.wait(self.client_process(), self._take_turn)

    def _take_turn(self) -> None:
        self._is_waiting = False
        if self._has_room and not self._transport.is_closing():
            self._advance()

    def _advance(self) -> None:
        http2, time = self._http2, self.loop.time
        now = time()
        until = now + SLICE_SECONDS
        started = 0
        try:
            while (stream := http2.next(now)) is not None:
                if stream.is_over:
                    if stream.owner is not None:
                        stream.owner.cancel()
                elif stream.is_whole and stream.owner is None:
                    self._answer(stream, now)
                else:
                    self._on_part(stream, now)
                started += stream.owner is not None
                now = self._active_at = time()
                if now > until or started == STARTED_AT_ONCE:
                    if http2.unread:
                        http2.has_more = True
                    break
        except Exception:
            log.exception("a connection failed inside the agent")
            self.abort()
            return
        self.flush()
        if time() > until or started == STARTED_AT_ONCE:
            self.load.slices.overran(self.client_process())
        if http2.has_more and not http2.is_over:
            self._wait_for_turn()
        elif self._has_room:
            self._transport.resume_reading()

    def flush(self) -> None:
        """Sends whatever is to be sent, in one write."""
        http2 = self._http2
        data = http2.take()
        while data and not self._transport.is_closing():
            self._transport.write(data)
            data = http2.take() if self._has_room else b""
        for stream in http2.drained:
            if stream.owner is not None:
                stream.owner.drained()
        http2.drained.clear()
        if http2.streams or self._open:
            self.load.count(len(http2.streams) - self._open)
            self._open = len(http2.streams)
            self._look_in(
                min(REQUEST_TIMEOUT_SECONDS, UNREAD_SECONDS) if http2.streams else HTTP2_IDLE_SECONDS
            )
        if self._is_holding or http2.streams or not self._has_room:
            self._count_held()
        if http2.is_over and not self._transport.is_closing():
            log.warning("a connection was closed: %s", http2.why)
            self.load.offended(self.client_process(), self.loop.time())
            self._cancel_all()
            self._transport.close()

    def _count_held(self) -> None:
        held = self._http2.unread + self._http2.waiting
        for stream in self._http2.streams.values():
            held += len(stream.body) + stream.fields.memory
        if not self._has_room:
            held += self._transport.get_write_buffer_size()
        if held or self._is_holding:
            self._is_holding = held > 0
            self.load.holds(self, held)

    # Calls.

    def _answer(self, stream: Stream, now: float) -> None:
        fields = stream.fields
        method = fields.route
        if method is None:
            method = fields.route = self._route(fields)
        try:
            if self.untaken > UNREAD_MAX_BYTES:
                raise CallFailed(Status.RESOURCE_EXHAUSTED, UNREAD)
            if isinstance(method, Unary):
                message = method.answer(only_message(stream.body), fields)
                if isinstance(message, bytes):
                    self._http2.answer(stream, HEAD, framed(message), TAIL, now)
                    return
                method = message
            if isinstance(method, Lasting):
                seconds = seconds_of(stream.timeout)
                request = b"" if method.reads_several else only_message(stream.body)
                call = self._lasting(stream)
                call.request = request
                call.start(self._run(call, method, seconds))
                return
        except Exception as error:  # noqa: BLE001  # `failed` logs what is not the client's doing
            self._refuse(stream, failed(error))
            return
        self._answer_page(stream, now)

    def _refuse(self, stream: Stream, failure: CallFailed) -> None:
        # Nowhere a local of whoever caught it: with its traceback that would be a cycle for the collector of garbage.
        self._http2.refuse(stream, failure_head(failure.status, str(failure)))

    def _lasting(self, stream: Stream) -> Exchange:
        if not self.load.may_last(self.client_process()):
            raise CallFailed(Status.RESOURCE_EXHAUSTED, f"{LASTING_MAX} calls of this process last already")
        return Exchange(self, self._http2, stream)

    def _answer_page(self, stream: Stream, now: float) -> None:
        # What HTTP/1.1 has, over HTTP/2.
        from .http1 import Request
        from .web import Large, Later, Reply

        fields = stream.fields
        request = Request(fields.method, fields.path, fields.headers, bytes(stream.body))
        stream.body = b""
        try:
            answer = self._site()(request)
        except Exception as error:  # noqa: BLE001  # `failed` logs it
            failed(error)
            answer = _problem(500, "the agent failed; its log says how")
        is_head = fields.method == "HEAD"
        if isinstance(answer, Reply):
            self._reply(stream, answer, now, is_head=is_head)
            return
        try:
            exchange = self._lasting(stream)
        except CallFailed as failure:
            self._reply(stream, _problem(503, str(failure)), now)
            return
        if isinstance(answer, Large):
            exchange.start(self._make(exchange, answer, is_head=is_head))
        elif isinstance(answer, Later):
            exchange.start(self._answer_later(exchange, answer))
        else:
            exchange.start(self._pump(exchange, answer))

    def _reply(self, stream: Stream, reply: "Reply", now: float, *, is_head: bool = False) -> None:
        headers = {"content-type": reply.content_type, **reply.headers}
        if reply.status != _NOT_MODIFIED:  # RFC 9110, 8.6: no length where there may not be a body
            headers["content-length"] = str(len(reply.body))
        head = block_of((":status", str(reply.status)), *headers.items())
        if is_head or not reply.body:
            self._http2.refuse(stream, head)
        else:
            self._http2.answer(stream, head, reply.body, b"", now)

    async def _pump(self, exchange: "Exchange", answer: "WebStream") -> None:
        exchange.begin(
            block_of((":status", "200"), ("content-type", answer.content_type), ("cache-control", "no-store"))
        )
        async with contextlib.aclosing(answer.parts) as parts:
            async for part in parts:
                await exchange.send_raw(part)
        exchange.end(b"")

    async def _answer_later(self, exchange: Exchange, answer: "Later") -> None:
        self._reply(exchange.stream, await answer.make(), self.loop.time())
        self.flush()

    async def _make(self, exchange: "Exchange", answer: "Large", *, is_head: bool) -> None:
        try:
            async with exchange.turn():
                reply = await answer.make()
        except CallFailed as failure:
            reply = _problem(503, str(failure), {"retry-after": str(LARGE_REFUSAL_SECONDS)})
        self._reply(exchange.stream, reply, self.loop.time(), is_head=is_head)
        self.flush()

    def _on_part(self, stream: Stream, now: float) -> None:
        # More of a request that is not whole, or the end of one that somebody reads already.
        if stream.owner is not None:
            stream.owner.arrived()
            return
        fields = stream.fields
        method = fields.route
        if method is None:
            method = fields.route = self._route(fields)
        if isinstance(method, Lasting) and method.reads_several:
            self._answer(stream, now)
            return
        if method is _PAGE:
            if len(stream.body) > REQUEST_MAX_BYTES:
                self._http2.refuse(stream, block_of((":status", "413")))
                return
        else:
            try:
                missing = missing_bytes(stream.body)
                if missing is not None and missing < 0:
                    raise CallFailed(Status.INVALID_ARGUMENT, "the call has more than one request")
            except CallFailed as failure:
                self._refuse(stream, failure)
                return
            if missing == 0 and isinstance(method, Lasting):
                # Some clients keep their side open for as long as they read.
                self._answer(stream, now)
                return
        self._http2.more(stream)

    def _route(self, fields: Fields) -> "Method | object":
        kind = fields.headers.get("content-type", "")
        if kind.startswith(CONTENT_TYPE) and kind[len(CONTENT_TYPE) : len(CONTENT_TYPE) + 1] in {
            "",
            "+",
            ";",
        }:
            return self._methods.find(fields.path)
        return _PAGE

    async def _run(self, call: "Exchange", method: Lasting, seconds: float | None) -> None:
        try:
            limit = asyncio.timeout(seconds)
            try:
                async with limit:
                    await method.run(call)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise CallFailed(Status.DEADLINE_EXCEEDED, "the time that the client gave is over") from None
            finally:
                # It holds the task, which when cancelled holds this frame: megabytes until garbage is looked for.
                del limit
        except Exception as error:  # noqa: BLE001  # `failed` logs what is not the client's doing
            call.fail(failed(error))
        else:
            call.end(TAIL)

    def _cancel_all(self) -> "list[asyncio.Task[None]]":
        found = [stream.owner for stream in self._http2.streams.values() if stream.owner is not None]
        for owner in found:
            owner.cancel()
        return [owner.task for owner in found if isinstance(owner, Exchange) and owner.task is not None]

    # Limits of time. One timer, which looks at all of them.

    def _look_in(self, seconds: float) -> None:
        at = self.loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= at + _LOOK_SECONDS:
                return
            self._timer.cancel()
        self._timer = self.loop.call_at(at, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self.loop.time()
        if not self._has_room and now - self._unread_since >= UNREAD_SECONDS:
            self.abort()
            return
        following = [] if self._has_room else [self._unread_since + UNREAD_SECONDS]
        for stream in tuple(self._http2.streams.values()):
            if stream.waiting:
                due = stream.waits_since + UNREAD_SECONDS
            elif not stream.is_whole and stream.owner is None:
                due = stream.began + REQUEST_TIMEOUT_SECONDS
            else:
                continue
            if due > now:
                following.append(due)
            elif stream.waiting:
                self._http2.reset(stream, Code.CANCEL)
                if stream.owner is not None:
                    stream.owner.cancel()
            else:
                self._http2.refuse(
                    stream, block_of((":status", "408")) if stream.fields.route is _PAGE else _LATE
                )
        if not self._http2.streams:
            idle_at = self._active_at + HTTP2_IDLE_SECONDS
            if now >= idle_at:
                self._http2.leave()
                self.flush()
                self._transport.close()
                return
            following.append(idle_at)
        self.flush()
        if following and not self._transport.is_closing():
            self._look_in(max(min(following) - now, 0.0))

    # The client.

    def client_process(self) -> Peer:
        """Whoever has connected."""
        if self._process is None:
            self._process = peer_of(self._transport.get_extra_info("socket"))
        return self._process


def _problem(status: int, why: str, headers: Mapping[str, str] = _NO_HEADERS) -> "Reply":
    from .web import JSON, Reply

    return Reply(status, JSON, json.dumps({"errorDetails": why}).encode(), headers)
