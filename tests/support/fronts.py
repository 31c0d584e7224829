"""What stands before a broker on the way to it: a TLS terminator or a WebSocket server that notes what clients ask for."""

import asyncio
import contextlib
import ssl
import threading
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

PING_SECONDS = 0.05


class Front:
    """Listens on `port` of 127.0.0.1 and passes on to `target`, a port there, for the length of a `with` block.

    With `certificate` (and its key) it speaks TLS, offering `alpn`; with `path` WebSocket at that path and nowhere else.
    """

    def __init__(
        self,
        target: int,
        *,
        certificate: tuple[Path, Path] | None = None,
        alpn: str = "",
        path: str = "",
    ) -> None:
        self._target = target
        self._path = path
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*certificate)
            self._context.sni_callback = self._note_name
            if alpn:
                self._context.set_alpn_protocols([alpn])
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="front", daemon=True)
        self.port = 0
        self.names: list[str | None] = []
        """What clients have called this server in the handshake."""
        self.protocols: list[str | None] = []
        """What was agreed with them in the handshake."""
        self.paths: list[str] = []
        self.hosts: list[str] = []
        self.pongs = 0
        """Answers to pings, on the connection that is open or was last."""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _note_name(self, _stream: object, name: str | None, _context: object) -> None:
        self.names.append(name)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        if self._path:
            async with serve(
                self._accept_websocket,
                "127.0.0.1",
                0,
                ssl=self._context,
                subprotocols=[Subprotocol("mqtt")],
                process_request=self._look,
                compression=None,
                ping_interval=None,
            ) as server:
                await self._until_over(next(iter(server.sockets)).getsockname()[1])
            return
        plain = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._context)
        await self._until_over(plain.sockets[0].getsockname()[1])
        plain.close()
        open_ones = asyncio.all_tasks() - {asyncio.current_task()}
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)
        await asyncio.sleep(0)  # transports that were aborted close in the loop's next turn

    async def _until_over(self, port: int) -> None:
        self.port = port
        self._ready.set()
        await self._over.wait()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._context is not None:
            self.protocols.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            with contextlib.suppress(asyncio.CancelledError):  # the end of the block
                await asyncio.gather(_pass(reader, back), _pass(there, writer))
        finally:
            back.transport.abort()
            writer.transport.abort()

    def _look(self, connection: ServerConnection, request: Request) -> Response | None:
        self.paths.append(request.path)
        self.hosts.append(request.headers["Host"])
        return None if request.path == self._path else connection.respond(HTTPStatus.NOT_FOUND, "not here\n")

    async def _accept_websocket(self, connection: ServerConnection) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        tasks = [
            asyncio.create_task(each)
            for each in (self._out(connection, back), self._back(there, connection), self._ping(connection))
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            back.transport.abort()

    async def _out(self, connection: ServerConnection, back: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ConnectionClosed):
            async for message in connection:
                assert isinstance(message, bytes)
                back.write(message)
                await back.drain()

    async def _back(self, there: asyncio.StreamReader, connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionError, ConnectionClosed):
            # Frames end where they happen to end: a frame is no packet (MQTT 5, 6).
            while data := await there.read(1000):
                await connection.send(data)

    async def _ping(self, connection: ServerConnection) -> None:
        self.pongs = 0
        with contextlib.suppress(ConnectionClosed):
            while True:
                await (await connection.ping(b"still there?"))
                self.pongs += 1
                await asyncio.sleep(PING_SECONDS)


async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
    sink.close()
