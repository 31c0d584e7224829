"""The agent's sockets: accepts connections, sees what each of them speaks, and ends them in good order.

One socket serves every protocol: a connection that begins with HTTP/2's preface is gRPC's, any other HTTP/1.1's, which carries
Connect, OFREP, metrics and liveness.
"""

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from flagcast_agent.evaluator import Evaluator
from flagcast_agent.limits import (
    ACCEPTS_MAX,
    CONNECTIONS_MAX,
    REQUEST_TIMEOUT_SECONDS,
    SHUTDOWN_GRACE_SECONDS,
)
from flagcast_shared.ids import FlagKey, Namespace

from .answers import Answers
from .changes import Changes
from .grpc import GrpcMethods
from .http2.frames import PREFACE
from .load import Load
from .places import NOBODY, Places, peer_of
from .resolutions import Resolutions
from .web2 import Http2Connection

if TYPE_CHECKING:
    from flagcast_agent.status import Activity, Status

    from .calls import Method
    from .flagd import Flagd
    from .services import CatchUp, OtherServices, ReadSnapshot
    from .web import Site, WebConnection

_TELLING: Final = 3
# RFC 9113, section 11.6 reserves the method PRI for the preface, so no request of HTTP/1.1 begins with these bytes.

log = logging.getLogger(__name__)


def no_activity() -> "Activity":
    """Of an agent that follows no broker."""
    from flagcast_agent.status import Activity

    return Activity(0, {})


class LocalServer:
    """Serves the local interfaces on sockets that are bound already; runs in one event loop.

    Args:
        answers: Flipt's questions.
        evaluator: what they are answered from.
        status: the agent at this instant; must not block.
        catch_up: makes the agent try to be up to date and waits so many seconds for it; None for one that follows no broker.
        activity: what happened on the link since the start; must not block.
        snapshot: reads an admitted snapshot from the disk, in a thread; None where there is no disk.
        removed: flags that were removed before the start, the oldest first; a provider may have kept an answer of one.
        tells_static: whether flagd's providers may keep the answers of flags that no context can change.
        namespaces: the configured ones beside the default one; something may be known of them only later.
    """

    def __init__(
        self,
        answers: Answers,
        evaluator: Evaluator,
        status: "Callable[[], Status]",
        catch_up: "CatchUp | None" = None,
        *,
        activity: "Callable[[], Activity]" = no_activity,
        snapshot: "ReadSnapshot | None" = None,
        removed: Mapping[Namespace, Sequence[FlagKey]] = MappingProxyType({}),
        tells_static: bool = True,
        namespaces: Sequence[Namespace] = (),
    ) -> None:
        self._answers = answers
        self._evaluator = evaluator
        self._status = status
        self._activity = activity
        self._load = Load()
        self._places = Places(self._load)
        self._removed = removed
        self._changes: Changes
        self._resolutions = Resolutions(answers, tells_static=tells_static)
        self._namespaces = namespaces
        self._flagd: Flagd | None = None
        self._catch_up = catch_up
        self._snapshot = snapshot
        self._services: OtherServices | None = None
        self._methods = GrpcMethods(answers, self._make_services)
        self._site: Site | None = None
        self._listening: list[asyncio.Server] = []

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Begins to answer on bound stream sockets, Unix or TCP."""
        loop = asyncio.get_running_loop()
        self._changes = Changes(self._evaluator, self._removed)
        self._changes.watch(self._changed)
        for bound in sockets:
            if bound.family == socket.AF_UNIX:
                server = await loop.create_unix_server(self._accept, sock=bound, backlog=ACCEPTS_MAX)
            else:
                server = await loop.create_server(self._accept, sock=bound, backlog=ACCEPTS_MAX)
            # asyncio accepts so many in one round; as many more as there are places wait in the kernel meanwhile.
            bound.listen(CONNECTIONS_MAX)
            self._listening.append(server)

    async def stop(self, grace: float = SHUTDOWN_GRACE_SECONDS) -> None:
        """Accepts no more connections, ends streams, gives calls in progress `grace` seconds to end, closes everything."""
        if self._listening:
            self._changes.close()
        for server in self._listening:
            server.close()
        for connection in tuple(self._load.connections):
            connection.leave()
        await _within(grace, self._load.idle)
        await asyncio.gather(*(connection.finish() for connection in tuple(self._load.connections)))
        await _within(grace, self._load.unconnected)
        for connection in tuple(self._load.connections):
            connection.abort()  # a client that does not read what it asked for
        for server in self._listening:
            await server.wait_closed()
        self._listening.clear()

    def _accept(self) -> asyncio.BaseProtocol:
        return _Door(self._load, self._places, self._http2, self._web)

    def _http2(self) -> Http2Connection:
        return Http2Connection(self._methods, self._load, self._make_site)

    def _changed(self) -> None:
        if self._services is not None:
            self._services.changed()

    def _make_services(self) -> "Mapping[str, Method]":
        # Imported by the first client that asks for one of them.
        from .services import OtherServices

        gc.freeze()  # as at the start: modules stay
        self._services = OtherServices(
            answers=self._answers,
            evaluator=self._evaluator,
            flagd=self._speak_flagd,
            changes=lambda: self._changes,
            status=self._status,
            catch_up=self._catch_up,
            snapshot=self._snapshot,
        )
        return self._services.methods

    def _speak_flagd(self) -> "Flagd":
        # Imported by the first client that asks as flagd's do.
        from .flagd import Flagd

        if self._flagd is None:
            self._flagd = Flagd(self._resolutions, lambda: self._changes, self._namespaces)
        return self._flagd

    def _web(self, *, is_tcp: bool) -> "WebConnection":
        # Imported by the first client that speaks HTTP/1.1: a device whose clients all speak gRPC has no use for it.
        from .web import WebConnection

        return WebConnection(self._make_site(), self._load, is_tcp=is_tcp)

    def _make_site(self) -> "Site":
        if self._site is None:
            from .pages import Pages

            gc.freeze()  # as above
            self._site = Pages(
                evaluator=self._evaluator,
                resolutions=self._resolutions,
                flagd=self._speak_flagd(),
                changes=self._changes,
                load=self._load,
                status=self._status,
                activity=self._activity,
                method=self._methods.find,
                salt=self._answers.fresh_id(),
            ).answer
        return self._site


class _Door(asyncio.BufferedProtocol):
    # A connection of which it is not known yet what it speaks.

    def __init__(
        self,
        load: Load,
        places: Places,
        http2: Callable[[], Http2Connection],
        web: "Callable[..., WebConnection]",
    ) -> None:
        self._load = load
        self._http2 = http2
        self._web = web
        self._places = places
        self._made_at = 0.0
        self._heard = b""
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        loop = asyncio.get_running_loop()
        self._made_at = loop.time()
        peer = peer_of(transport.get_extra_info("socket"))
        if not self._places.enter(self, peer, self._made_at):
            transport.abort()
            return
        self._load.opened(self)
        penalty = self._load.penalty(peer, self._made_at)
        if penalty and peer != NOBODY:  # of the TCP port nobody is told apart
            transport.pause_reading()
            loop.call_later(penalty, transport.resume_reading)
        self._timer = loop.call_later(REQUEST_TIMEOUT_SECONDS, transport.close)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's signature
        return self._load.received

    def buffer_updated(self, nbytes: int) -> None:
        self._heard += self._load.received[:nbytes]
        if len(self._heard) < _TELLING and PREFACE.startswith(self._heard):
            return
        is_tcp = self._transport.get_extra_info("socket").family != socket.AF_UNIX
        is_http2 = self._heard[:_TELLING] == PREFACE[:_TELLING]
        speaks = self._http2() if is_http2 else self._web(is_tcp=is_tcp)
        self._forget_time()
        self._transport.set_protocol(speaks)
        self._load.replaced(self, speaks)
        speaks.connection_made(self._transport)
        speaks.take(self._heard)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self._forget_time()
        self._load.closed(self)

    @property
    def silent_since(self) -> float | None:
        return self._made_at

    def leave(self) -> None:
        pass

    async def finish(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def _forget_time(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def _within(seconds: float, event: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
