"""What the process says to systemd, or to whoever else speaks sd_notify(3): ready, alive, stopping.

Without NOTIFY_SOCKET nobody is told anything. A sign of life is sent from the event loop that answers applications, and only
while the caller says that the rest is alive too: a process that hangs falls silent and is started anew.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

SOCKET_VARIABLE: Final = "NOTIFY_SOCKET"
INTERVAL_VARIABLE: Final = "WATCHDOG_USEC"
PID_VARIABLE: Final = "WATCHDOG_PID"
PINGS_PER_INTERVAL: Final = 3
"""sd_watchdog_enabled(3) asks for two; one more, so that a slow minute costs nothing."""


class Supervisor:
    """The service manager, as the environment names it."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._address = environment.get(SOCKET_VARIABLE, "")
        self.ping_seconds = _ping_seconds(environment)

    def say(self, state: str) -> None:
        """One message, such as "READY=1". A service manager that cannot be reached is none of our business."""
        if self._address[:1] not in {"/", "@"}:
            return
        # A leading @ stands for the NUL of Linux's abstract names.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stream:
            stream.setblocking(False)  # noqa: FBT003  # the socket module's own switch
            stream.sendto(state.encode(), address)

    @asynccontextmanager
    async def told(self, is_alive: Callable[[], bool]) -> AsyncIterator[None]:
        """Ready from here on, stopping at the end, and in between a sign of life while `is_alive` says so."""
        self.say("READY=1")
        pinging = asyncio.create_task(self._ping(is_alive), name="watchdog") if self.ping_seconds else None
        try:
            yield
        finally:
            if pinging is not None:
                pinging.cancel()
            self.say("STOPPING=1")

    async def _ping(self, is_alive: Callable[[], bool]) -> None:
        while True:
            if is_alive():
                self.say("WATCHDOG=1")
            await asyncio.sleep(self.ping_seconds)


def _ping_seconds(environment: Mapping[str, str]) -> float:
    # Zero when nobody waits for signs of life, or they are waited for from another process.
    if environment.get(PID_VARIABLE, str(os.getpid())) != str(os.getpid()):
        return 0.0
    interval = environment.get(INTERVAL_VARIABLE, "")
    return int(interval) / 1e6 / PINGS_PER_INTERVAL if interval.isascii() and interval.isdigit() else 0.0
