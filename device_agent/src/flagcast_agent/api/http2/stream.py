"""One request of an HTTP/2 connection, and what is still to be sent of its answer."""

from collections import deque
from typing import Protocol

from .frames import WINDOW_BYTES
from .headers import Fields


class Owner(Protocol):
    """Whoever takes time to answer a stream."""

    def cancel(self) -> None:
        """The stream is over: nothing can be sent any more."""

    def arrived(self) -> None:
        """More of its request is there, or the end of it."""

    def drained(self) -> None:
        """All that waited was sent."""


class Stream:
    """One request, and what is still to be sent of its answer.

    Attributes:
        owner: who answers it, where that takes time.
        fields, timeout: its headers, and grpc-timeout among them ("" without).
        body: the bytes of it that came and that nobody took.
        received: how many came in all.
        is_whole: the client sends nothing more.
        is_over: it was reset, by either side, or its answer was sent: nothing can be sent any more.
        waiting: bytes of its answer that wait for the client's window.
        began, waits_since: instants, as `next` and `send` are given them.
    """

    __slots__ = (
        "began",
        "body",
        "fields",
        "is_over",
        "is_whole",
        "number",
        "owner",
        "parts",
        "received",
        "room",
        "tail",
        "timeout",
        "waiting",
        "waits_since",
        "window",
    )

    def __init__(self, number: int, fields: Fields, timeout: str, window: int, now: float) -> None:
        self.number = number
        self.fields = fields
        self.timeout = timeout
        self.body: bytes | bytearray = b""
        self.received = 0
        self.is_whole = False
        self.is_over = False
        self.window = window  # what may still be sent
        self.room = WINDOW_BYTES  # what may still be received
        self.parts: deque[memoryview] | None = None
        self.tail: bytes | None = None
        self.waiting = 0
        self.began = now
        self.waits_since = now
        self.owner: Owner | None = None
