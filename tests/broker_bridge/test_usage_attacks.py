"""Attacks on the collector and on what else the publisher reads: memory stays bounded, and nothing good is lost."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from publishing import make_project
from usage_attacks import (
    HostileBroker,
    Session,
    cpu_seconds,
    flood_with_large,
    qos_0_flood,
    resident_bytes,
)

from brokers import start_mosquitto
from flagcast_bridge import project
from flagcast_bridge.broker import connection as mqtt
from flagcast_bridge.ledger.ledger import UsageBook
from flagcast_shared.ids import DeviceId, Environment, FlagKey, Namespace
from flagcast_shared.limits import MESSAGE_MAX_BYTES, USAGE_MAX_BYTES
from flagcast_shared.reports import Count, Usage, encode_usage
from flagcast_shared.topics import DeviceAddress

TEST = Environment("test")
GOOD, HOSTILE = DeviceId("good"), DeviceId("hostile")
PATIENCE_SECONDS = 60.0
MEMORY_MAX_BYTES = 100 * 2**20
"""A collector takes some 45 MB; what the attacks below send is twice this and more."""
CPU_MAX_SECONDS = 3.0
"""Of a collector for a few messages; each property that is read costs the square of their number."""


def batch(number: int) -> bytes:
    counts = (Count(Namespace("default"), FlagKey("lights"), "true", "match", 1),)
    return encode_usage(Usage(number.to_bytes(16, "big"), 1_750_000_000, 1_750_000_060, counts))


def wait_until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@dataclass
class Collector:
    """A real `flagcast usage collect`, its log, and the most memory that it was seen with."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    most_bytes: int = 0

    @property
    def log(self) -> str:
        return (self.folder / "collector.log").read_text()

    def counted(self) -> int:
        """Evaluations in its book, read while it writes."""
        assert self.process.poll() is None, self.log
        self.most_bytes = max(self.most_bytes, resident_bytes(self.process.pid))
        path = project.load(self.folder).usage
        if not path.exists():
            return 0
        with closing(UsageBook(path, TEST, int(time.time()))) as book:  # noqa: TID251  # the collector's clock
            return sum(each.evaluations for each in book.totals(0))

    def stop(self) -> str:
        """Its last line, after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE_SECONDS) == 0, self.log
        return self.log.splitlines()[-1]


@contextmanager
def collecting(folder: Path) -> Iterator[Collector]:
    with (folder / "collector.log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("flagcast")),
                *("usage", "collect", "--project", str(folder)),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": "1"},
        )
        try:
            yield Collector(process, folder)
        finally:
            process.kill()
            process.wait()


def metrics(folder: Path, device: DeviceId) -> str:
    return project.load(folder).topics.of(DeviceAddress(device, "metrics"))


def send_first(collector: Collector, device: mqtt.Connection, topic: str) -> None:
    """Sends the first batch until it is counted: the collector may not have subscribed yet."""

    def is_counted() -> bool:
        device._client.publish(topic, batch(0), qos=1).wait_for_publish(PATIENCE_SECONDS)
        return collector.counted() == 1

    wait_until(is_counted, "the first batch")


@pytest.fixture(params=["5", "3.1.1"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.mosquitto
def test_messages_of_qos_0_all_the_time_do_not_keep_the_collector_out(tmp_path: Path, protocol: str) -> None:
    folder = tmp_path / "project"
    with start_mosquitto(tmp_path / "broker") as broker:
        make_project(folder, broker.url, {"protocol": f'"{protocol}"'})
        with (
            collecting(folder) as collector,
            mqtt.connect(broker.host, broker.port, mqtt.Login()) as device,
            qos_0_flood(broker.port, metrics(folder, HOSTILE), seconds_between=0.02),
        ):
            send_first(collector, device, metrics(folder, GOOD))
            for number in range(1, 40):
                sent = device._client.publish(metrics(folder, GOOD), batch(number), qos=1)
                sent.wait_for_publish(PATIENCE_SECONDS)
                wait_until(lambda: collector.counted() == number + 1, f"batch {number}")  # noqa: B023  # in this turn
            last = collector.stop()
        broker.stop()  # which writes its log out
        assert broker.log.count("as flagcast-usage-test") == 1, broker.log
    assert collector.log.count("dropped") <= 3
    assert "trying again" not in collector.log
    assert "of another QoS" in last


@pytest.mark.mosquitto
def test_a_flood_of_large_messages_takes_no_memory_and_nothing_from_others(
    tmp_path: Path, protocol: str
) -> None:
    folder = tmp_path / "project"
    with start_mosquitto(tmp_path / "broker") as broker:
        make_project(folder, broker.url, {"protocol": f'"{protocol}"'})
        with collecting(folder) as collector, mqtt.connect(broker.host, broker.port, mqtt.Login()) as device:
            topic = metrics(folder, GOOD)
            send_first(collector, device, topic)
            for number in range(1, 9):
                flood_with_large(broker.port, metrics(folder, HOSTILE), messages=8, size=4 * 2**20)
                device._client.publish(topic, batch(number), qos=1).wait_for_publish(PATIENCE_SECONDS)
                wait_until(lambda: collector.counted() == number + 1, "every good batch")  # noqa: B023  # in this turn
            last = collector.stop()
        broker.stop()  # which writes its log out
        assert broker.log.count("as flagcast-usage-test") == 1, broker.log
    assert collector.most_bytes < MEMORY_MAX_BYTES
    # A broker of MQTT 5 is asked for no packet of such a size, and drops it.
    assert ("64 too large" in last) == (protocol == "3.1.1")


def with_user_properties(*pairs: tuple[str, str]) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho ships no types
    properties.UserProperty = list(pairs)
    return properties


HOSTILE_PROPERTIES = {
    "540 KB in nine": [("name", "v" * 60_000)] * 9,
    "a character that paho refuses": [("name", "\ufeff")],
    "60,000 that are empty": [("", "")] * 60_000,
}


@pytest.mark.mosquitto
@pytest.mark.parametrize("name", HOSTILE_PROPERTIES)
def test_properties_of_one_message_do_not_end_the_collection_of_others(
    tmp_path: Path, protocol: str, name: str
) -> None:
    folder = tmp_path / "project"
    properties = with_user_properties(*HOSTILE_PROPERTIES[name])
    with start_mosquitto(tmp_path / "broker") as broker:
        make_project(folder, broker.url, {"protocol": f'"{protocol}"'})
        with collecting(folder) as collector, mqtt.connect(broker.host, broker.port, mqtt.Login()) as device:
            topic = metrics(folder, GOOD)
            send_first(collector, device, topic)
            before = cpu_seconds(collector.process.pid)
            hostile = metrics(folder, HOSTILE)
            device._client.publish(hostile, b"no batch", qos=1, properties=properties).wait_for_publish(
                PATIENCE_SECONDS
            )
            device._client.publish(topic, batch(1), qos=1).wait_for_publish(PATIENCE_SECONDS)
            wait_until(lambda: collector.counted() == 2, "the good batch")
            assert cpu_seconds(collector.process.pid) - before < CPU_MAX_SECONDS
            collector.stop()
        broker.stop()  # which writes its log out
        assert broker.log.count("as flagcast-usage-test") == 1, broker.log
    assert "trying again" not in collector.log


def test_a_packet_that_is_cut_in_its_properties_is_acknowledged_as_too_large(
    tmp_path: Path, protocol: str
) -> None:
    folder = tmp_path / "project"
    done = threading.Event()

    def attack(session: Session) -> None:
        topic = metrics(folder, GOOD).encode()
        body = len(topic).to_bytes(2, "big") + topic + b"\x00\x05"
        # Of 500,000 bytes and five; of 5 MB whose property length is no length.
        for properties in (b"\xa0\xc2\x1e" + bytes(500_000) + b"batch", b"\xff" * 5_000_000):
            size = len(body) + len(properties)
            length = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21])
            session.send(b"\x32" + length + body + properties)
        session.publish(topic, batch(1), qos=1, number=6)
        done.wait(PATIENCE_SECONDS)

    with HostileBroker(attack) as broker:
        make_project(folder, broker.url, {"protocol": f'"{protocol}"'})
        with collecting(folder) as collector:
            try:
                wait_until(lambda: collector.counted() == 1, "what comes after it")
                (session,) = broker.sessions
                wait_until(lambda: session.acknowledged == [5, 5, 6], "every acknowledgement")
                last = collector.stop()
            finally:
                done.set()
    assert "2 too large" in last


@pytest.mark.mosquitto
def test_properties_of_one_retained_message_do_not_hide_the_others(tmp_path: Path, protocol: str) -> None:
    with start_mosquitto(tmp_path / "broker") as broker:
        with mqtt.connect(broker.host, broker.port, mqtt.Login()) as device:
            for topic, pairs in zip("abc", HOSTILE_PROPERTIES.values(), strict=True):
                device._client.publish(
                    f"x/{topic}", b"1", qos=1, retain=True, properties=with_user_properties(*pairs)
                ).wait_for_publish(PATIENCE_SECONDS)
            device.publish([("x/good", b"1")])
        with mqtt.connect(broker.host, broker.port, mqtt.Login(), protocol=protocol) as connection:
            found = connection.read_all(["x/+"])
    is_cut = protocol == "5"
    assert len(found.pop("x/a")) == (MESSAGE_MAX_BYTES + 1 if is_cut else 1)
    assert found == {"x/b": b"1", "x/c": b"1", "x/good": b"1"}


def test_what_no_honest_broker_sends_is_dropped_and_not_acknowledged(tmp_path: Path, protocol: str) -> None:
    folder = tmp_path / "project"
    done = threading.Event()

    def attack(session: Session) -> None:
        topic = metrics(folder, GOOD)
        session.publish(topic, batch(1), qos=0)
        session.publish(topic, batch(2), qos=2, number=2)
        session.send(b"\x62\x02\x00\x02")  # PUBREL
        session.publish(topic, batch(3), qos=1, number=0)
        session.publish(b"\xff\xfe", batch(4), qos=1, number=4)
        session.publish(topic, bytes(USAGE_MAX_BYTES + 1), qos=1, number=5)
        session.publish(topic, b"no batch", qos=1, number=6)
        session.publish(topic, batch(7), qos=1, number=7)
        done.wait(PATIENCE_SECONDS)

    with HostileBroker(attack) as broker:
        make_project(folder, broker.url, {"protocol": f'"{protocol}"'})
        with collecting(folder) as collector:
            try:
                wait_until(lambda: broker.sessions and 7 in broker.sessions[0].acknowledged, "the good batch")
                assert collector.counted() == 1
                (session,) = broker.sessions
                assert sorted(session.acknowledged) == [4, 5, 6, 7]
                assert session.others == []
                last = collector.stop()
            finally:
                done.set()
    assert "batches added: 1, known already: 0; messages dropped: 6" in last


def test_a_packet_of_256_megabytes_takes_no_memory(tmp_path: Path, protocol: str) -> None:
    folder = tmp_path / "project"
    done = threading.Event()

    def attack(session: Session) -> None:
        topic = metrics(folder, GOOD).encode()
        head = len(topic).to_bytes(2, "big") + topic + b"\x00\x05" + (b"\x00" if session.is_v5 else b"")
        session.send(b"\x32\xff\xff\xff\x7f" + head)
        chunk, left = bytes(2**20), 2**28 - 1 - len(head)
        while left:
            session.send(chunk[:left])
            left -= min(left, len(chunk))
        session.publish(topic, batch(1), qos=1, number=6)
        done.wait(PATIENCE_SECONDS)

    with HostileBroker(attack) as broker:
        make_project(folder, broker.url, {"protocol": f'"{protocol}"'})
        with collecting(folder) as collector:
            try:
                wait_until(lambda: collector.counted() == 1, "what comes after it")
                assert len(broker.sessions) == 1
            finally:
                done.set()
    assert collector.most_bytes < MEMORY_MAX_BYTES


def test_a_reader_that_is_slow_loses_nothing_and_piles_up_nothing(protocol: str) -> None:
    sent, over = threading.Event(), threading.Event()
    messages = 3_000
    first = 40  # bytes of the number at the front

    def attack(session: Session) -> None:
        for number in range(1, messages + 1):
            payload = str(number).encode().ljust(first, b" ") + bytes(USAGE_MAX_BYTES - first)
            session.publish("a/b", payload, qos=1, number=number)
        sent.set()
        over.wait(PATIENCE_SECONDS)

    with HostileBroker(attack) as broker:
        login = mqtt.Login()
        with mqtt.connect(
            broker.host, broker.port, login, protocol=protocol, client_id="c", limit_bytes=USAGE_MAX_BYTES
        ) as connection:
            found = connection.incoming(["a/+"], quiet_seconds=PATIENCE_SECONDS)
            topic, payload = next(each for each in found if each is not None)
            session = broker.sessions[0]
            stalled = -1
            while stalled != session.sent_bytes:  # until the other side can send no more
                stalled = session.sent_bytes
                time.sleep(1.0)
            assert not sent.is_set(), "nothing held the sender back"
            assert stalled < 16 * 2**20
            numbers = [int(payload[:first])]
            for each in found:
                if each is not None:
                    numbers.append(int(each[1][:first]))
                if len(numbers) == messages:
                    break
            assert topic == "a/b"
            assert numbers == list(range(1, messages + 1))
        over.set()


def test_more_than_there_is_room_for_may_come_before_the_answer_to_a_subscribe(protocol: str) -> None:
    messages = 4 * mqtt.INCOMING_MESSAGES_MAX

    def backlog(session: Session) -> None:
        for number in range(1, messages + 1):
            session.publish("a/b", str(number).encode(), qos=1, number=number)

    with HostileBroker(lambda _: None, before_suback=backlog) as broker:
        with mqtt.connect(
            broker.host, broker.port, mqtt.Login(), protocol=protocol, client_id="c"
        ) as connection:
            found = [each for each in connection.incoming(["a/+"], quiet_seconds=0.5) if each is not None]
        assert [int(payload) for _, payload in found] == list(range(1, messages + 1))


def topics_without_end(session: Session) -> None:
    # QoS 0, so that the broker need not wait for anything.
    with suppress(OSError):
        for number in range(2_000):
            session.publish(f"a/{number}", bytes(60_000), qos=0)


@pytest.mark.parametrize("name", ["read", "read_all"])
def test_a_broker_that_shows_topics_without_end_is_one_error(
    monkeypatch: pytest.MonkeyPatch, protocol: str, name: str
) -> None:
    monkeypatch.setattr(mqtt, "RECEIVED_MAX_BYTES", 2_000_000)
    with (
        HostileBroker(topics_without_end) as broker,
        mqtt.connect(broker.host, broker.port, mqtt.Login(), protocol=protocol) as connection,
    ):
        with pytest.raises(mqtt.BrokerError, match="somebody else writes there"):
            getattr(connection, name)(["a/nothing"] if name == "read" else ["a/#"])
        assert sum(map(len, connection._state.received.values())) <= 2_000_000


def test_acknowledgements_of_what_was_not_asked_are_not_kept(protocol: str) -> None:
    def attack(session: Session) -> None:
        for number in range(1_000, 6_000):
            answer = number.to_bytes(2, "big") + (b"\x00" if session.is_v5 else b"") + b"\x00" * 100
            session.send(b"\x90" + bytes([len(answer)]) + answer)
        session.publish("a/last", b"x", qos=0)

    with (
        HostileBroker(attack) as broker,
        mqtt.connect(broker.host, broker.port, mqtt.Login(), protocol=protocol) as connection,
    ):
        with suppress(mqtt.BrokerError):
            connection.read(["a/last"])
        wait_until(lambda: "a/last" in connection._state.received, "all of it was read")
        assert sum(map(len, connection._state.subacks.values())) <= 1_000
