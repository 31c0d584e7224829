"""The embedded broker, for development, the demo and tests: amqtt in the foreground, nothing kept on disk.

Anybody who reaches it may read and write, it speaks MQTT 3.1.1 only, and its retained messages die with it. For anything real
there is mosquitto, or a clustered broker. The only module that imports amqtt.
"""

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Final

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import BrokerConfig, ListenerConfig, ListenerType

from flagcast_shared.errors import FlagcastError, InvalidConfiguration
from flagcast_shared.printing import printable

SHUTDOWN_TIMEOUT_SECONDS: Final = 5.0
"""amqtt waits for its clients when it ends; none of them is worth more."""

_LISTENER: Final = "default"
_TALKATIVE: Final = ("amqtt", "transitions", "asyncio")


class CannotListen(FlagcastError):
    """The address is taken, or not one of this machine."""


def run(bind: str, say: Callable[[str], None], *, is_verbose: bool = False) -> None:
    """Serve on `HOST:PORT` until SIGINT or SIGTERM; port 0 takes a free one. `say` is told when it listens.

    Raises:
        InvalidConfiguration: not an address.
        CannotListen: the address is taken, or not one of this machine.
    """
    host, port = _parse(bind)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.INFO if is_verbose else logging.CRITICAL)
    if is_verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(_OneLine("%(levelname)s %(name)s: %(message)s"))
        logging.basicConfig(handlers=[handler])
    asyncio.run(_serve(host, port, say))


class _OneLine(logging.Formatter):
    """A log record on one line that prints: topics and names in it are of whoever connects."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


async def _serve(host: str, port: int, say: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    # The connections are accepted here: so port 0 is no gamble, and none of them stays open at the end. Without amqtt's system
    # topics, which would be the only traffic of an idle broker.
    broker = Broker(
        BrokerConfig(
            listeners={_LISTENER: ListenerConfig(type=ListenerType.EXTERNAL)},
            plugins={"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        )
    )
    writers: set[asyncio.StreamWriter] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        try:
            await broker.external_connected(
                StreamReaderAdapter(reader), StreamWriterAdapter(writer), _LISTENER
            )
        finally:
            writers.discard(writer)
            writer.close()

    await broker.start()
    try:
        server = await asyncio.start_server(accept, host, port)
    except OSError as error:
        await broker.shutdown()
        raise CannotListen(
            f"{host}:{port}: {error.strerror or error}; choose another address with --bind"
        ) from error
    say(f"listening on mqtt://{host}:{server.sockets[0].getsockname()[1]}")
    await stop.wait()
    # A second signal ends the process at once.
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)
    server.close()
    try:
        async with asyncio.timeout(SHUTDOWN_TIMEOUT_SECONDS):
            await broker.shutdown()
    except TimeoutError:
        pass
    for writer in writers:
        writer.close()
    await asyncio.sleep(0)  # a closed transport gives its socket back in the next turn of the loop


def _parse(bind: str) -> tuple[str, int]:
    host, colon, port = bind.rpartition(":")
    if not colon or not host or ":" in host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise InvalidConfiguration(
            f"--bind {bind!r}: allowed is HOST:PORT with a name or an IPv4 address and a port from 0 to 65535"
        )
    return host, int(port)
