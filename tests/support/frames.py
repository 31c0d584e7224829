"""Frames of HTTP/2 as a client writes them, right or wrong, and those of a server taken apart."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flagcast_agent.api.http2 import frames
from flagcast_agent.api.http2.connection import Connection
from flagcast_agent.api.http2.headers import block_of
from flagcast_agent.api.http2.stream import Stream

CALL = block_of(
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/s/M"),
    (":authority", "localhost"),
    ("content-type", "application/grpc"),
)
PREFACE_ALONE = frames.PREFACE
SETTINGS = frames.frame(frames.SETTINGS, 0, 0, b"")
HELLO = frames.PREFACE + SETTINGS


class Frame(NamedTuple):
    """A frame that a server sent."""

    kind: int
    flags: int
    stream: int
    content: bytes

    @property
    def code(self) -> int:
        """The reason of an RST_STREAM or a GOAWAY."""
        return int.from_bytes(self.content[4:8] if self.kind == frames.GOAWAY else self.content, "big")


def headers(stream: int, block: bytes = CALL, *, end: bool = False, flags: int = frames.END_HEADERS) -> bytes:
    return frames.frame(frames.HEADERS, flags | (frames.END_STREAM if end else 0), stream, block)


def data(stream: int, content: bytes, *, end: bool = False) -> bytes:
    return frames.frame(frames.DATA, frames.END_STREAM if end else 0, stream, content)


def request(path: str) -> bytes:
    """The block of a gRPC call's headers."""
    return block_of(
        (":method", "POST"), (":scheme", "http"), (":path", path), ("content-type", "application/grpc")
    )


def calls(stream: int, block: bytes, message: bytes) -> bytes:
    """A whole call with one message, which is framed already."""
    return headers(stream, block) + data(stream, message, end=True)


def window(stream: int, more: int) -> bytes:
    return frames.frame(frames.WINDOW_UPDATE, 0, stream, more.to_bytes(4, "big"))


def reset(stream: int, code: int = 8) -> bytes:
    return frames.frame(frames.RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def settings(*pairs: tuple[int, int]) -> bytes:
    return frames.frame(frames.SETTINGS, 0, 0, b"".join(frames.SETTING.pack(*pair) for pair in pairs))


def ping(content: bytes = b"12345678") -> bytes:
    return frames.frame(frames.PING, 0, 0, content)


def parsed(sent: bytes) -> list[Frame]:
    """Frames of a server's bytes; every one of them has to be whole."""
    found = []
    while sent:
        size = int.from_bytes(sent[:3], "big")
        assert len(sent) >= 9 + size
        found.append(Frame(sent[3], sent[4], int.from_bytes(sent[5:9], "big"), sent[9 : 9 + size]))
        sent = sent[9 + size :]
    return found


def kinds(found: Sequence[Frame]) -> list[tuple[int, int]]:
    """Kind and stream of each frame."""
    return [(frame.kind, frame.stream) for frame in found]


def streams_of(connection: Connection, now: float = 0.0) -> Iterator[Stream]:
    """Streams from `next`, slice after slice, until all that was received is read."""
    while (stream := connection.next(now)) is not None or connection.has_more:
        if stream is not None:
            yield stream


def opened() -> Connection:
    """A connection whose beginning is over; nothing waits to be sent."""
    made = Connection()
    made.receive(HELLO)
    assert made.next(0.0) is None
    made.take()
    return made
