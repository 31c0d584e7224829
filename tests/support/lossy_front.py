"""What stands before a broker and drops packets of one kind that the broker sends, as mosquitto does when a queue is full."""

import contextlib
import socket
import threading
from collections.abc import Iterator

UNSUBACK = 0xB0


@contextlib.contextmanager
def front_that_drops(target: int, kind: int, times: int) -> Iterator[int]:
    """The port of a front before the broker at port `target`; it drops the first `times` packets of `kind`."""
    left = [times]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_serve, args=(listening, target, kind, left), daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert left == [0], "nothing of this kind was sent"


def _serve(listening: socket.socket, target: int, kind: int, left: list[int]) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = listening.accept()
            broker = socket.create_connection(("127.0.0.1", target))
            threading.Thread(target=_pass_on, args=(client, broker), daemon=True).start()
            threading.Thread(target=_pass_packets, args=(broker, client, kind, left), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError), source, target:
        while data := source.recv(65_536):
            target.sendall(data)


def _pass_packets(broker: socket.socket, client: socket.socket, kind: int, left: list[int]) -> None:
    with contextlib.suppress(OSError), broker, client, broker.makefile("rb") as reading:
        while first := reading.read(1):
            length, shift, head = 0, 0, first
            while True:
                byte = reading.read(1)
                head += byte
                length |= (byte[0] & 0x7F) << shift
                shift += 7
                if not byte[0] & 0x80:
                    break
            body = reading.read(length)
            if first[0] == kind and left[0]:
                left[0] -= 1
            else:
                client.sendall(head + body)
