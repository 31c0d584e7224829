"""A broker is restarted under its whole fleet: how long until every device is up to date again, and at what rate they ask.

Each device is a real `flagcast_agent.sync.Sync`, which decides when to try and verifies the head that it hears. What is thin is
the shell: a socket that speaks as much of MQTT 3.1.1 as the core's effects need, all in one event loop, and no disk. The broker
is a mosquitto that keeps its retained messages through the restart; the time that it takes is in the numbers.
"""

import asyncio
import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from harness import Goal, Options, Row, run

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from publisher_simulator import PublisherSimulator

from brokers import Broker, start_mosquitto
from flagcast_agent.sync.core import Sync
from flagcast_agent.sync.events import (
    Connect,
    Connected,
    ConnectFailed,
    Delivered,
    Disconnect,
    Disconnected,
    Effect,
    Event,
    Fault,
    FindUsage,
    Persisted,
    PersistRoot,
    PersistUpdate,
    Publish,
    Received,
    Send,
    Started,
    Subscribe,
    Subscribed,
    Ticked,
    Unsubscribe,
    UsageFound,
)
from flagcast_agent.sync.transitions import LinkState
from flagcast_shared.context import Device
from flagcast_shared.ids import DeviceId, FlagKey
from flagcast_shared.model import BooleanFlag
from flagcast_shared.trust import begin

DEVICES, QUICK_DEVICES = 2_000, 500
DOWN_SECONDS = 3.0
PATIENCE_SECONDS = 120.0
FILES_SPARE = 200


def measure(options: Options) -> Iterator[Row]:
    count = QUICK_DEVICES if options.quick else DEVICES
    _allow_files(2 * count + FILES_SPARE)
    with tempfile.TemporaryDirectory() as folder:
        lines = ["max_connections -1", f"max_queued_messages {10 * count}"]
        with start_mosquitto(Path(folder), persistence=True, lines=lines) as broker:
            yield from asyncio.run(_storm(broker, count))


async def _storm(broker: Broker, count: int) -> list[Row]:
    publisher = PublisherSimulator(now=int(time.time()))  # noqa: TID251  # heads are judged by the clock
    publisher.release(BooleanFlag(FlagKey("lights"), enabled=True))
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    devices = [_Thin(broker, publisher, f"device-{number}", chance) for number in range(count)]
    await _retain(broker, publisher)
    began = time.monotonic()
    for device in devices:
        device.feed(Started())
    await _until(lambda: all(device.is_live for device in devices))
    first = time.monotonic() - began
    attempts_before = sum(len(device.attempts) for device in devices)
    stopped = time.monotonic()
    await asyncio.to_thread(broker.stop)
    await asyncio.sleep(DOWN_SECONDS)
    back = time.monotonic()
    await asyncio.to_thread(broker.start)
    await _until(lambda: all(device.is_live and device.live_since > stopped for device in devices))
    times = sorted(device.live_since - back for device in devices)
    attempts = sorted(at for device in devices for at in device.attempts if at > stopped)
    peak = max(Counter(int(at - stopped) for at in attempts).values())
    gap = min(later - earlier for device in devices for earlier, later in pairwise(device.attempts))
    for device in devices:
        device.close()
    return [
        Row("devices, all up to date at first", float(count), "", note=f"after {first:.1f} s"),
        Row("all up to date after a restart", times[-1], "s", goal=Goal("<=", 60.0)),
        Row("half of them", times[len(times) // 2], "s"),
        Row("attempts in the worst second", float(peak), "/s", "devices", float(count)),
        Row(
            "attempts in all", float(len(attempts)), "", "devices", float(count),
            note=f"{attempts_before} before; down for {back - stopped:.1f} s; seed {seed}",
        ),
        Row("shortest time between two attempts of a device", gap, "s", goal=Goal(">=", 1.0)),
    ]  # fmt: skip


class _Thin:
    """A core with a socket."""

    def __init__(
        self, broker: Broker, publisher: PublisherSimulator, name: str, chance: random.Random
    ) -> None:
        trusted = begin(publisher.environment, Device(DeviceId(name)), publisher.anchor)
        session = chance.getrandbits(48)
        self.sync = Sync(trusted, publisher.topics, (publisher.namespace,), session, "1.0", protocol="3.1.1")
        self.attempts: list[float] = []
        self.live_since = 0.0
        self._broker = broker
        self._name = name
        self._chance = chance
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._packet = 0
        self._asked: dict[int, tuple[str, ...]] = {}
        self._sent: dict[int, int] = {}

    @property
    def is_live(self) -> bool:
        return self.sync.connection.state is LinkState.LIVE

    def feed(self, event: Event) -> None:
        was_live = self.is_live
        now = int(time.time())  # noqa: TID251  # what a device's clock says
        for effect in self.sync.handle(
            event, now=now, monotonic=time.monotonic(), jitter=self._chance.random()
        ):
            outcome = self._perform(effect)
            if outcome is not None:
                self.feed(outcome)
        if self.is_live and not was_live:
            self.live_since = time.monotonic()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.sync.next_deadline()
        if deadline is not None:
            wait = max(0.0, deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait, self.feed, Ticked())

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._hang_up()

    def _perform(self, effect: Effect) -> Event | None:
        match effect:
            case Connect(_, topic, will):
                self._hang_up()
                self.attempts.append(time.monotonic())
                self._reading = asyncio.create_task(self._connect(topic, will))
            case Disconnect():
                self._hang_up()
            case Subscribe(filters):
                packet = self._next_packet()
                self._asked[packet] = filters
                self._write(
                    0x82, struct.pack("!H", packet) + b"".join(_text(each) + b"\x01" for each in filters)
                )
            case Unsubscribe(filters):
                self._write(0xA2, struct.pack("!H", self._next_packet()) + b"".join(map(_text, filters)))
            case Publish(topic, payload):
                self._write(0x33, _text(topic) + struct.pack("!H", self._next_packet()) + payload)
            case Send(topic, payload, token):
                packet = self._next_packet()
                self._sent[packet] = token
                self._write(0x32, _text(topic) + struct.pack("!H", packet) + payload)
            case PersistUpdate() | PersistRoot():
                return Persisted()
            case FindUsage():
                return UsageFound(0, b"")
            case _:
                pass
        return None

    def _next_packet(self) -> int:
        self._packet = self._packet % 65_535 + 1
        return self._packet

    def _write(self, first: int, body: bytes) -> None:
        if self._writer is not None:
            self._writer.write(bytes([first]) + _length(len(body)) + body)

    def _hang_up(self) -> None:
        if self._reading is not None and self._reading is not asyncio.current_task():
            self._reading.cancel()
        if self._writer is not None:
            self._writer.close()
        self._reading = self._writer = None

    async def _connect(self, topic: str, will: bytes) -> None:
        try:
            reader, writer = await asyncio.open_connection(self._broker.host, self._broker.port)
        except OSError as error:
            self.feed(ConnectFailed(Fault.NETWORK, str(error)))
            return
        self._writer = writer
        flags = 0x02 | 0x04 | 0x08 | 0x20  # clean session, will, at QoS 1, retained
        keep_alive = int(2 * PATIENCE_SECONDS)  # nobody pings
        body = _text("MQTT") + struct.pack("!BBH", 4, flags, keep_alive)
        body += _text(f"flagcast-{self._name}") + _text(topic)
        self._write(0x10, body + struct.pack("!H", len(will)) + will)
        is_accepted = False
        try:
            while True:
                first, body = await _read_packet(reader)
                is_accepted |= first >> 4 == 2
                self._on_packet(first, body)
        except (OSError, EOFError) as error:
            self._writer = None
            writer.close()
            gone = Disconnected(str(error)) if is_accepted else ConnectFailed(Fault.NETWORK, str(error))
            self.feed(gone)

    def _on_packet(self, first: int, body: bytes) -> None:
        match first >> 4:
            case 2:
                self.feed(Connected() if not body[1] else ConnectFailed(Fault.REFUSED, str(body[1])))
            case 3:
                size = struct.unpack_from("!H", body)[0]
                topic, rest = body[2 : 2 + size].decode(), body[2 + size :]
                if first & 0x06:
                    self._write(0x40, rest[:2])
                    rest = rest[2:]
                self.feed(Received(topic, rest))
            case 4:
                token = self._sent.pop(struct.unpack("!H", body)[0], None)
                if token is not None:
                    self.feed(Delivered(token, is_kept=True))
            case 9:
                self.feed(Subscribed(self._asked.pop(struct.unpack_from("!H", body)[0])))
            case _:
                pass


async def _read_packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    first = (await reader.readexactly(1))[0]
    size = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return first, await reader.readexactly(size)


def _text(text: str) -> bytes:
    return struct.pack("!H", len(text)) + text.encode()


def _length(size: int) -> bytes:
    found = bytearray()
    while True:
        size, low = divmod(size, 128)
        found.append(low | (0x80 if size else 0))
        if not size:
            return bytes(found)


async def _retain(broker: Broker, publisher: PublisherSimulator) -> None:
    from flagcast_bridge.broker import connection as mqtt

    def publish() -> None:
        with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
            connection.publish(list(publisher.retained.items()))

    await asyncio.to_thread(publish)


async def _until(holds: object) -> None:
    assert callable(holds)
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        if time.monotonic() > give_up:
            sys.exit("not every device came back in time")
        await asyncio.sleep(0.05)


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            sys.exit(f"{count} files are needed and the limit is {hard}; raise it with ulimit -n")
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


if __name__ == "__main__":
    sys.exit(run("a fleet and its broker, restarted", measure))
