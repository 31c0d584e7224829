"""A TCP proxy in front of a broker that takes the stream of each connection apart into MQTT packets and counts them.

It hands every byte on as it comes. What TCP, IP and TLS add is not counted.
"""

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum


class Kind(IntEnum):
    """The control packet types of MQTT (MQTT 5, 2.1.2)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet as it went over the wire; `size` is all of its bytes. A PUBLISH of QoS 1 has a topic and a payload."""

    from_client: bool
    kind: Kind
    size: int
    topic: str = ""
    payload: bytes = b""


@dataclass(slots=True)
class Meter:
    """What went over the proxy since `forget`."""

    port: int
    _packets: list[Packet] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def packets(self) -> list[Packet]:
        with self._lock:
            return list(self._packets)

    def forget(self) -> None:
        with self._lock:
            self._packets.clear()

    def add(self, packet: Packet) -> None:
        with self._lock:
            self._packets.append(packet)

    @property
    def is_settled(self) -> bool:
        """Whether every packet that wants an answer has one."""
        seen = Counter((packet.from_client, packet.kind) for packet in self.packets)
        return (
            seen[True, Kind.CONNECT] == seen[False, Kind.CONNACK]
            and seen[True, Kind.SUBSCRIBE] == seen[False, Kind.SUBACK]
            and seen[True, Kind.UNSUBSCRIBE] == seen[False, Kind.UNSUBACK]
            and seen[True, Kind.PUBLISH] == seen[False, Kind.PUBACK]
            and seen[False, Kind.PUBLISH] == seen[True, Kind.PUBACK]
        )


@contextmanager
def metered(host: str, port: int) -> Iterator[Meter]:
    """A proxy of the broker at `host:port`, on a free port of 127.0.0.1, for as long as the block lasts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        meter = Meter(listener.getsockname()[1])
        accepting = threading.Thread(target=_accept, args=(listener, (host, port), meter), daemon=True)
        accepting.start()
        yield meter
        # Unlike closing it, this wakes up who waits for a connection.
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()


def _accept(listener: socket.socket, target: tuple[str, int], meter: Meter) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        broker = socket.create_connection(target)
        for source, sink, from_client in ((client, broker, True), (broker, client, False)):
            threading.Thread(target=_forward, args=(source, sink, from_client, meter), daemon=True).start()


def _forward(source: socket.socket, sink: socket.socket, from_client: bool, meter: Meter) -> None:
    waiting = b""
    with contextlib.suppress(OSError):
        while received := source.recv(65_536):
            # Counted first: whoever sees an effect of a packet finds it counted.
            waiting = _take_apart(waiting + received, from_client, meter)
            sink.sendall(received)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _take_apart(data: bytes, from_client: bool, meter: Meter) -> bytes:
    # Counts the whole packets at the beginning and returns the rest.
    at = 0
    while (head := _remaining_length(data, at + 1)) is not None:
        length, body = head
        if len(data) < body + length:
            break
        kind = Kind(data[at] >> 4)
        topic, payload = _publish(data[body : body + length]) if kind is Kind.PUBLISH else ("", b"")
        meter.add(Packet(from_client, kind, body + length - at, topic, payload))
        at = body + length
    return data[at:]


def _remaining_length(data: bytes, at: int) -> tuple[int, int] | None:
    # A variable byte integer (MQTT 5, 1.5.5) and where it ends; None while it is not all there.
    value = 0
    for place, byte in enumerate(data[at : at + 4]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    return None


def _publish(body: bytes) -> tuple[str, bytes]:
    # MQTT 5, 3.3.2: topic, packet identifier (QoS 1 here), properties, payload.
    end = 2 + int.from_bytes(body[:2], "big")
    properties = _remaining_length(body, end + 2)
    assert properties is not None
    length, after = properties
    return body[2:end].decode(), body[after + length :]
