"""The embedded broker, for development, the demo and tests: amqtt in the foreground, nothing kept on disk.

Anybody who reaches it may read and write, it speaks MQTT 3.1.1 only, and its retained messages die with it. For anything real
there is mosquitto, or a clustered broker. The only module that imports amqtt.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from typing import Final

from amqtt.broker import Broker
from amqtt.contexts import BrokerConfig, ListenerConfig, ListenerType
from amqtt.errors import BrokerError as AmqttError

from flagcast_shared.errors import FlagcastError, InvalidConfiguration

SHUTDOWN_TIMEOUT_SECONDS: Final = 5.0
"""amqtt waits for its clients when it ends; none of them is worth more."""

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
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    asyncio.run(_serve(host, _free_port(host, port), say))


async def _serve(host: str, port: int, say: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    # Without its system topics, which would be the only traffic of an idle broker.
    broker = Broker(
        BrokerConfig(
            listeners={"default": ListenerConfig(type=ListenerType.TCP, bind=f"{host}:{port}")},
            plugins={"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        )
    )
    try:
        await broker.start()
    except AmqttError as error:
        raise CannotListen(f"{host}:{port}: {error}") from error
    say(f"listening on mqtt://{host}:{port}")
    await stop.wait()
    # A second signal ends the process at once.
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)
    try:
        async with asyncio.timeout(SHUTDOWN_TIMEOUT_SECONDS):
            await broker.shutdown()
    except TimeoutError:
        pass


def _parse(bind: str) -> tuple[str, int]:
    host, colon, port = bind.rpartition(":")
    if not colon or not host or ":" in host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise InvalidConfiguration(
            f"--bind {bind!r}: allowed is HOST:PORT with a name or an IPv4 address and a port from 0 to 65535"
        )
    return host, int(port)


def _free_port(host: str, port: int) -> int:
    # Also says in plain words why an address cannot be had, which amqtt does not.
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            found: int = probe.getsockname()[1]
            return found
    except OSError as error:
        raise CannotListen(
            f"{host}:{port}: {error.strerror or error}; choose another address with --bind"
        ) from error
