"""A TCP proxy in front of a broker that takes the stream of each connection apart into MQTT packets, counts them, and can hold
them back from any one on.

What TCP, IP and TLS add is not counted.
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
    """One packet as it went over the wire; `size` is all of its bytes. A PUBLISH of MQTT 5 has a topic and a payload."""

    from_client: bool
    kind: Kind
    size: int
    topic: str = ""
    payload: bytes = b""


@dataclass(slots=True)
class Meter:
    """What went over the proxy since `forget`."""

    port: int
    publishes_left: int | None = None
    """So many more PUBLISH packets of clients are handed on; the next one, and what follows it, never arrives. None: all."""
    is_holding: threading.Event = field(default_factory=threading.Event)
    _packets: list[Packet] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def packets(self) -> list[Packet]:
        with self._lock:
            return list(self._packets)

    def forget(self) -> None:
        with self._lock:
            self._packets.clear()

    def take(self, packet: Packet) -> bool:
        """Counts a packet; whether it is to be handed on."""
        with self._lock:
            if self.publishes_left is not None and packet.from_client and packet.kind is Kind.PUBLISH:
                if not self.publishes_left:
                    self.is_holding.set()
                    return False
                self.publishes_left -= 1
            self._packets.append(packet)
            return True

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
        threading.Thread(target=_serve, args=(client, target, meter), daemon=True).start()


def _serve(client: socket.socket, target: tuple[str, int], meter: Meter) -> None:
    with client, socket.create_connection(target) as broker:
        back = threading.Thread(target=_forward, args=(broker, client, False, meter), daemon=True)
        back.start()
        _forward(client, broker, True, meter)
        back.join()


def _forward(source: socket.socket, sink: socket.socket, from_client: bool, meter: Meter) -> None:
    waiting = b""
    with contextlib.suppress(OSError), _closing_way(sink):
        while received := source.recv(65_536):
            waiting += received
            at = 0
            while (end := _end_of_packet(waiting, at)) is not None:
                # Counted first: whoever sees an effect of a packet finds it counted.
                if not meter.take(_packet(waiting[at:end], from_client)):
                    while source.recv(65_536):
                        pass
                    return
                sink.sendall(waiting[at:end])
                at = end
            waiting = waiting[at:]


@contextmanager
def _closing_way(sink: socket.socket) -> Iterator[None]:
    try:
        yield
    finally:
        sink.shutdown(socket.SHUT_WR)


def _end_of_packet(data: bytes, at: int) -> int | None:
    # Where the packet ends that begins there; None while it is not all there.
    head = _remaining_length(data, at + 1)
    if head is None or len(data) < sum(head):
        return None
    return sum(head)


def _packet(data: bytes, from_client: bool) -> Packet:
    kind = Kind(data[0] >> 4)
    head = _remaining_length(data, 1)
    assert head is not None
    has_number = data[0] & 0b0110 != 0  # QoS 1 or 2
    topic, payload = _publish(data[head[1] :], has_number) if kind is Kind.PUBLISH else ("", b"")
    return Packet(from_client, kind, len(data), topic, payload)


def _remaining_length(data: bytes, at: int) -> tuple[int, int] | None:
    # A variable byte integer (MQTT 5, 1.5.5) and where it ends; None while it is not all there.
    value = 0
    for place, byte in enumerate(data[at : at + 4]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    return None


def _publish(body: bytes, has_number: bool) -> tuple[str, bytes]:
    # MQTT 5, 3.3.2: topic, packet identifier above QoS 0, properties, payload.
    end = 2 + int.from_bytes(body[:2], "big")
    properties = _remaining_length(body, end + 2 * has_number)
    assert properties is not None
    length, after = properties
    return body[2:end].decode(), body[after + length :]
