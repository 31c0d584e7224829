"""A TCP relay between an agent and its broker that can fall silent while both of its connections stay open."""

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Self


class Relay:
    """Listens on `port` of 127.0.0.1 and passes bytes on to `target`, a port there too, for the length of a `with` block."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._out: asyncio.Event | None = None
        self._back: asyncio.Event | None = None
        self._server: asyncio.Server | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self.connections = 0
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def fall_silent(self, *, both_ways: bool = True) -> None:
        """From now on nothing is passed on, of connections old and new; or only nothing that the target says."""
        assert self._out is not None
        assert self._back is not None
        if both_ways:
            self._loop.call_soon_threadsafe(self._out.clear)
        self._loop.call_soon_threadsafe(self._back.clear)

    def speak(self) -> None:
        """Passes on again, also what was held back."""
        assert self._out is not None
        assert self._back is not None
        self._loop.call_soon_threadsafe(self._out.set)
        self._loop.call_soon_threadsafe(self._back.set)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        assert self._server is not None
        self._server.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _start(self) -> None:
        self._out, self._back = asyncio.Event(), asyncio.Event()
        self._out.set()
        self._back.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        try:
            assert self._out is not None
            assert self._back is not None
            with contextlib.suppress(asyncio.CancelledError):  # the end of the block
                await asyncio.gather(
                    self._pass(reader, back, self._out), self._pass(there, writer, self._back)
                )
        finally:
            back.close()
            writer.close()

    @staticmethod
    async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter, passing: asyncio.Event) -> None:
        try:
            while data := await source.read(65_536):
                await passing.wait()
                sink.write(data)
                await sink.drain()
        except (ConnectionError, RuntimeError):
            pass
        finally:
            sink.close()
