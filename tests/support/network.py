"""Two hosts with a network between them that a test can cut, slow down, and make lose, double and reorder packets.

Each host is a network namespace of Linux with a tunnel as its only interface; a thread passes IP packets from one tunnel to the
other, or does not. So TCP on both sides is the kernel's, and what it meets is what it would meet on a bad link. Needs root on
Linux; `why_not` says what is missing.

    with Network(rtt_seconds=0.1) as network:
        with network.far.inside():      # threads, sockets and processes that are started in this block are on that host
            ...
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

_THREADS_NAMESPACE = "/proc/thread-self/ns/net"
_CLONE_NEWNET = 0x40000000
# linux/if_tun.h, linux/sockios.h, linux/if.h
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_TUNNEL = "wire"
_MASK = "255.255.255.252"
_MTU = 1_500
_SETTINGS = Path("/proc/sys/net/ipv6/conf")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class Counted:
    """What one host has sent that the other one got."""

    packets: int = 0
    bytes: int = 0
    """Whole IP packets."""
    payload: int = 0
    """What was in them for the application, retransmissions included."""


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace. `address` is how the other host reaches it; both also have a loopback of their own."""

    address: str
    _namespace: int
    _tunnel: int
    sent: Counted = field(default_factory=Counted)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is on that host for the length of the block, and so is what it starts there."""
        with _staying_here():
            _call("setns", self._namespace, _CLONE_NEWNET)
            yield

    def set_interface(self, *, is_up: bool) -> None:
        """Takes the interface down, as a modem that has lost its carrier would, or up again."""
        with self.inside():
            _set_flags(_TUNNEL, _IFF_UP | _IFF_RUNNING if is_up else 0)

    def close(self) -> None:
        os.close(self._tunnel)
        os.close(self._namespace)


@dataclass(slots=True)
class Network:
    """Two hosts. Whatever is set here counts from the next packet on; the shares are of all packets, 0 to 1."""

    rtt_seconds: float = 0.0
    loss: float = 0.0
    doubled: float = 0.0
    reordered: float = 0.0
    """These packets are held back by `_SLOW_SECONDS`, so that later ones overtake them."""
    is_cut: bool = False
    """Nothing arrives, and neither side is told."""
    seed: int = 0
    near: Host = field(init=False)
    far: Host = field(init=False)
    _chance: random.Random = field(init=False)
    _thread: threading.Thread = field(init=False)
    _wake: tuple[int, int] = field(init=False)

    def __enter__(self) -> Self:
        self._chance = random.Random(self.seed)
        self.near, self.far = _make_host("10.77.0.1"), _make_host("10.77.0.2")
        self._wake = os.pipe()
        self._thread = threading.Thread(target=self._pass_on, name="network")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.write(self._wake[1], b"!")
        self._thread.join()
        for end in self._wake:
            os.close(end)
        self.near.close()
        self.far.close()

    @property
    def arrived_bytes(self) -> int:
        """All IP packets that arrived, both ways."""
        return self.near.sent.bytes + self.far.sent.bytes

    @property
    def arrived_payload(self) -> int:
        """What was in them for the applications, in bytes."""
        return self.near.sent.payload + self.far.sent.payload

    def _pass_on(self) -> None:
        ways = {self.near._tunnel: (self.near, self.far), self.far._tunnel: (self.far, self.near)}
        due: list[tuple[float, int, int, bytes]] = []
        number = 0
        while True:
            wait = max(0.0, due[0][0] - time.monotonic()) if due else None
            readable, _, _ = select.select([*ways, self._wake[0]], [], [], wait)
            if self._wake[0] in readable:
                return
            for tunnel in readable:
                source, sink = ways[tunnel]
                packet = os.read(tunnel, _MTU)
                for delay in self._delays(packet):
                    number += 1
                    heapq.heappush(due, (time.monotonic() + delay, number, sink._tunnel, packet))
                    source.sent.packets += 1
                    source.sent.bytes += len(packet)
                    source.sent.payload += _payload_bytes(packet)
            while due and due[0][0] <= time.monotonic():
                _, _, tunnel, packet = heapq.heappop(due)
                try:
                    os.write(tunnel, packet)
                except OSError:
                    continue  # its interface is down

    def _delays(self, packet: bytes) -> list[float]:
        # When the packet arrives: not at all, once, or more often.
        if self.is_cut or packet[0] >> 4 != 4 or self._chance.random() < self.loss:
            return []
        delay = self.rtt_seconds / 2
        if self._chance.random() < self.reordered:
            delay += _SLOW_SECONDS
        return [delay, delay] if self._chance.random() < self.doubled else [delay]


_SLOW_SECONDS = 0.02


def why_not() -> str:
    """What keeps this process from making namespaces and tunnels; empty when nothing does."""
    try:
        _make_host("10.77.0.1").close()
    except OSError as error:
        return f"no network namespaces here: {error}"
    return ""


@contextmanager
def no_network() -> Iterator[None]:
    """What is started in the block has no network at all, not even a loopback that is up."""
    with _staying_here():
        _call("unshare", _CLONE_NEWNET)
        yield


@contextmanager
def _staying_here() -> Iterator[None]:
    # Namespaces belong to threads; whatever the block does, this thread comes back.
    here = os.open(_THREADS_NAMESPACE, os.O_RDONLY)
    try:
        yield
    finally:
        _call("setns", here, _CLONE_NEWNET)
        os.close(here)


def _make_host(address: str) -> Host:
    with no_network():
        # No neighbour discovery: what goes over the tunnel is what the applications send.
        for name in ("all", "default"):
            if (_SETTINGS / name).exists():
                (_SETTINGS / name / "disable_ipv6").write_text("1")
        namespace = os.open(_THREADS_NAMESPACE, os.O_RDONLY)
        tunnel = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(tunnel, _TUNSETIFF, struct.pack("16sH22x", _TUNNEL.encode(), _IFF_TUN | _IFF_NO_PI))
        _set_address(_SIOCSIFADDR, address)
        _set_address(_SIOCSIFNETMASK, _MASK)
        for name in ("lo", _TUNNEL):
            _set_flags(name, _IFF_UP | _IFF_RUNNING)
    return Host(address, namespace, tunnel)


def _set_address(what: int, address: str) -> None:
    # struct ifreq with a sockaddr_in: family, port, address.
    request = struct.pack("16sHH4s16x", _TUNNEL.encode(), socket.AF_INET, 0, socket.inet_aton(address))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, what, request)


def _set_flags(name: str, flags: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags))


def _payload_bytes(packet: bytes) -> int:
    # IPv4 (RFC 791) and TCP (RFC 9293) headers say how long they are, in words of four bytes.
    header = (packet[0] & 0x0F) * 4
    if packet[9] != socket.IPPROTO_TCP or len(packet) < header + 20:
        return 0
    return len(packet) - header - (packet[header + 12] >> 4) * 4


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
