"""Attacks on the publisher's reading of a broker: by an account that writes to it, and by the broker itself.

All of it goes to 127.0.0.1, is bounded in number and bytes, and ends by itself.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from flagcast_bridge.broker import connection as mqtt

SEND_SECONDS = 60.0
"""How long a packet may wait for a reader that reads nothing."""
_SUBSCRIBE, _UNSUBSCRIBE = 8, 10


def publish_packet(topic: bytes, payload: bytes, *, qos: int, number: int = 0, is_v5: bool) -> bytes:
    """A PUBLISH (MQTT 5, 3.3) with the packet identifier `number`, whether it is allowed or not."""
    body = len(topic).to_bytes(2, "big") + topic
    if qos:
        body += number.to_bytes(2, "big")
    if is_v5:
        body += b"\x00"
    return bytes([0x30 | qos << 1]) + _length(len(body) + len(payload)) + body + payload


def packet(first: int, body: bytes) -> bytes:
    """A packet of MQTT with this first byte."""
    return bytes([first]) + _length(len(body)) + body


def sized(properties: bytes) -> bytes:
    """Properties of MQTT 5 (2.2.2) behind their length."""
    return _length(len(properties)) + properties


@dataclass(slots=True)
class Session:
    """One client's connection to a HostileBroker: what was received on it, by packet type."""

    stream: socket.socket
    is_v5: bool
    acknowledged: list[int] = field(default_factory=list)
    """Packet identifiers of PUBACK, in order."""
    others: list[int] = field(default_factory=list)
    """Types of packets that no reader of QoS 1 has a reason to send."""
    filters: tuple[str, ...] = ()
    """Filters of the last SUBSCRIBE."""
    sent_bytes: int = 0
    is_over: bool = False

    def publish(self, topic: str | bytes, payload: bytes, *, qos: int, number: int = 0) -> None:
        """Send one message. Raises OSError where the client has gone or reads nothing for SEND_SECONDS."""
        name = topic.encode() if isinstance(topic, str) else topic
        self.send(publish_packet(name, payload, qos=qos, number=number, is_v5=self.is_v5))

    def send(self, packet: bytes) -> None:
        """Send bytes as they are."""
        view = memoryview(packet)
        while view:
            count = self.stream.send(view[:65_536])
            self.sent_bytes += count
            view = view[count:]


class HostileBroker:
    """Broker on 127.0.0.1 that answers as it should and sends `attack`'s packets after each SUBACK.

    `attack` runs in a thread for each SUBSCRIBE; it ends when its connection does. `before_suback` sends what a broker has kept.
    The CONNACK of MQTT 5 carries `connack_properties`. Nothing is read after a packet of type `stops_at`.
    """

    def __init__(
        self,
        attack: Callable[[Session], None],
        *,
        before_suback: Callable[[Session], None] = lambda _: None,
        connack_properties: bytes = b"",
        stops_at: int = -1,
    ) -> None:
        self._stops_at = stops_at
        self._over = threading.Event()
        self._attack = attack
        self._connack_properties = connack_properties
        self._before_suback = before_suback
        self._listener = socket.create_server(("127.0.0.1", 0))
        # Small, so that unread packets fill it soon.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        self._threads: list[threading.Thread] = []
        self.sessions: list[Session] = []
        self.host = "127.0.0.1"
        self.port: int = self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        """The address that a project is configured with."""
        return f"mqtt://{self.host}:{self.port}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for session in list(self.sessions):
            with contextlib.suppress(OSError):
                session.stream.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(SEND_SECONDS)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return
            stream.settimeout(SEND_SECONDS)
            self._start(self._serve, stream)

    def _serve(self, stream: socket.socket) -> None:
        session: Session | None = None
        with stream, contextlib.suppress(OSError, EOFError):
            for kind, body in _packets(stream):
                if kind == self._stops_at:
                    self._over.wait()
                number = int.from_bytes(body[:2], "big")
                match kind:
                    case 1:  # CONNECT
                        session = Session(stream, body[6] == 5)
                        self.sessions.append(session)
                        session.send(_connack(self._connack_properties, is_v5=session.is_v5))
                    case 8 | 10 if session is not None:  # SUBSCRIBE, UNSUBSCRIBE
                        if kind == _SUBSCRIBE:
                            session.filters = tuple(_filters(kind, body, is_v5=session.is_v5))
                            self._before_suback(session)
                        session.send(_granted(kind, number, body, is_v5=session.is_v5))
                        if kind == _SUBSCRIBE:
                            self._start(self._run, session)
                    case 12 if session is not None:  # PINGREQ
                        session.send(b"\xd0\x00")
                    case 4 if session is not None:  # PUBACK
                        session.acknowledged.append(number)
                    case 14:  # DISCONNECT
                        break
                    case _ if session is not None:
                        session.others.append(kind)
        if session is not None:
            session.is_over = True

    def _run(self, session: Session) -> None:
        with contextlib.suppress(OSError):
            self._attack(session)


@contextlib.contextmanager
def qos_0_flood(
    broker_port: int, topic: str, *, seconds_between: float, most: int = 10_000
) -> Iterator[None]:
    """An account that publishes to the topic at QoS 0 all the time, for the length of the block."""
    over = threading.Event()

    def write() -> None:
        with mqtt.connect("127.0.0.1", broker_port, mqtt.Login()) as connection:
            for _ in range(most):
                connection._client.publish(topic, b"not acknowledged", qos=0)
                if over.wait(seconds_between):
                    return

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(SEND_SECONDS)


def flood_with_large(broker_port: int, topic: str, *, messages: int, size: int) -> None:
    """An account that publishes so many messages of so many bytes at QoS 1; returns when the broker has them all."""
    with mqtt.connect("127.0.0.1", broker_port, mqtt.Login()) as connection:
        for _ in range(messages):
            connection._client.publish(topic, bytes(size), qos=1).wait_for_publish(SEND_SECONDS)


def resident_bytes(pid: int) -> int:
    """VmRSS of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def _packets(stream: socket.socket) -> Iterator[tuple[int, bytes]]:
    # Type and what comes after the length.
    with stream.makefile("rb") as file:
        while True:
            first = _exactly(file.read, 1)[0]
            size = shift = 0
            while True:
                (byte,) = _exactly(file.read, 1)
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            yield first >> 4, _exactly(file.read, size)


def _exactly(read: Callable[[int], bytes], size: int) -> bytes:
    data = read(size)
    if len(data) != size:
        raise EOFError
    return data


def _connack(properties: bytes, *, is_v5: bool) -> bytes:
    return packet(0x20, b"\x00\x00" + (sized(properties) if is_v5 else b""))


def _granted(kind: int, number: int, body: bytes, *, is_v5: bool) -> bytes:
    # SUBACK or UNSUBACK: every filter is granted, at QoS 1 at most.
    filters = sum(1 for _ in _filters(kind, body, is_v5=is_v5))
    codes = (b"\x01" if kind == _SUBSCRIBE else b"\x00") * filters
    if kind == _UNSUBSCRIBE and not is_v5:
        codes = b""
    answer = number.to_bytes(2, "big") + (b"\x00" if is_v5 else b"") + codes
    return bytes([(kind + 1) << 4]) + _length(len(answer)) + answer


def _filters(kind: int, body: bytes, *, is_v5: bool) -> Iterator[str]:
    place = 3 if is_v5 else 2
    while place < len(body):
        end = place + 2 + int.from_bytes(body[place : place + 2], "big")
        yield body[place + 2 : end].decode()
        place = end + (kind == _SUBSCRIBE)


def _length(size: int) -> bytes:
    out = bytearray()
    while True:
        size, low = size >> 7, size & 127
        out.append(low | (128 if size else 0))
        if not size:
            return bytes(out)
