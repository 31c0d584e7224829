"""An HTTP/2 client that sends exactly what it is told, for calls that no gRPC library would make."""

import contextlib
import socket
import struct
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import h2.config
import h2.connection
import h2.events

_HEADERS = h2.events.ResponseReceived | h2.events.TrailersReceived
_ENDS = h2.events.StreamEnded | h2.events.StreamReset
_GOAWAY = 7
EVALUATE = "/flipt.evaluation.EvaluationService/Boolean"


class RawClient:
    """One connection to a Unix socket; every wait ends within `timeout` seconds.

    `in_pieces` sends the connection's beginning byte by byte.
    """

    def __init__(self, path: Path, timeout: float = 100.0, *, in_pieces: bool = False) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self._unread = b""
        self.goaways: list[tuple[int, int]] = []
        """Of each GOAWAY, the last stream that is answered, and the reason's code."""
        self.http2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=True,
                header_encoding="ascii",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.http2.initiate_connection()
        for byte in self.http2.data_to_send() if in_pieces else b"":
            self.socket.sendall(bytes([byte]))
            time.sleep(0.001)
        self.flush()

    def begin(
        self,
        path: str = EVALUATE,
        *,
        without: str = "",
        extra: tuple[tuple[str, str], ...] = (),
        end: bool = False,
    ) -> int:
        """Opens a call and returns its stream; `without` leaves a header out."""
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "local"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *extra,
        ]
        stream = self.http2.get_next_available_stream_id()
        self.http2.send_headers(stream, [pair for pair in headers if pair[0] != without], end_stream=end)
        self.flush()
        return stream

    def send(self, stream: int, body: bytes, *, end: bool = False) -> None:
        self.http2.send_data(stream, body, end_stream=end)
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.http2.data_to_send())

    def headers_of(self, stream: int) -> dict[str, str]:
        """All headers and trailers of a call, once it has ended."""
        found: dict[str, str] = {}
        while True:
            for event in self.events():
                if isinstance(event, _HEADERS) and event.stream_id == stream:
                    found.update((str(name), str(value)) for name, value in event.headers)
                if isinstance(event, _ENDS) and event.stream_id == stream:
                    return found

    def until_closed(self) -> None:
        """Returns when the server has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while True:
                self.events()

    def events(self) -> list[h2.events.Event]:
        """What the next bytes say; raises ConnectionError when the server has closed."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("closed by the server")
        events = self._received(data)
        with contextlib.suppress(BrokenPipeError):  # the server's last words need no acknowledgement
            self.flush()
        return events

    def _received(self, data: bytes) -> list[h2.events.Event]:
        # Frame by frame. A GOAWAY is noted here: h2 takes nothing after one, but calls below its number go on (RFC 9113, 6.8).
        self._unread += data
        events: list[h2.events.Event] = []
        while len(self._unread) >= 9:
            size = 9 + int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < size:
                break
            frame, self._unread = self._unread[:size], self._unread[size:]
            if frame[3] == _GOAWAY:
                self.goaways.append((int.from_bytes(frame[9:13], "big"), int.from_bytes(frame[13:17], "big")))
            else:
                events += self.http2.receive_data(frame)
        return events

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def framed(message: bytes, *, announced: int | None = None, compressed: bool = False) -> bytes:
    """A gRPC length-prefixed message; `announced` lies about its size."""
    size = len(message) if announced is None else announced
    return struct.pack(">BI", compressed, size) + message
