"""Packets of a lying broker that cost their reader more than their bytes: a real agent's time, memory and connection."""

import threading
from pathlib import Path

import pytest
from devices import Device, provision
from publisher_simulator import PublisherSimulator
from releases import ON
from usage_attacks import HostileBroker, Session, cpu_seconds, packet, resident_bytes, sized

from flagcast_shared.limits import MESSAGE_MAX_BYTES

CPU_MAX_SECONDS = 0.2
"""Of an agent for one packet of the largest size: 50 ms for each 64 KB."""
MEMORY_MAX_BYTES = 16 * 2**20
"""Growth of an agent by such a packet, at most: paho holds it a few times over."""
ROOM = MESSAGE_MAX_BYTES + 1000
TOPIC = b"\x00\x01t"

EMPTY_PAIRS = b"\x26\x00\x00\x00\x00" * (ROOM // 5)
IDENTIFIERS = b"\x0b\x01" * (ROOM // 2)
LONG_PAIRS = (b"\x26\xff\xff" + b"n" * 65_535 + b"\x00\x00") * (ROOM // 65_540)
REASON = b"\x1f\xff\xff" + b"r" * 65_535


def publish(properties: bytes) -> bytes:
    return packet(0x30, TOPIC + properties)


PASSED_OVER = {
    "PUBLISH of 52,000 empty user properties": publish(sized(EMPTY_PAIRS)),
    "PUBLISH of 131,000 subscription identifiers": publish(sized(IDENTIFIERS)),
    "PUBLISH of long user properties": publish(sized(LONG_PAIRS)),
    "PUBLISH of a character that paho refuses": publish(sized(b"\x26\x00\x03\xef\xbb\xbf\x00\x00")),
    "PUBLISH of a property that is none": publish(sized(b"\x7f\x00")),
    "PUBLISH of one property twice": publish(sized(b"\x01\x00\x01\x00")),
    "PUBACK of 800 empty user properties": packet(0x40, b"\x00\x63\x00" + sized(EMPTY_PAIRS[:4_000])),
    "SUBACK of 800 empty user properties": packet(0x90, b"\x7f\xff" + sized(EMPTY_PAIRS[:4_000]) + b"\x01"),
    "SUBACK of 4,000 answers": packet(0x90, b"\x7f\xff\x00" + b"\x01" * 4_000),
    "UNSUBACK of 4,000 answers": packet(0xB0, b"\x7f\xff\x00" + b"\x00" * 4_000),
}
"""The agent goes on reading after them."""
TOO_LONG = "the broker sent an answer of"
ENDING = {
    "CONNACK": (packet(0x20, b"\x00\x00" + sized(EMPTY_PAIRS)), TOO_LONG),
    "PUBACK": (packet(0x40, b"\x00\x63\x00" + sized(EMPTY_PAIRS)), TOO_LONG),
    "PUBREL": (packet(0x62, b"\x00\x63\x00" + sized(EMPTY_PAIRS)), TOO_LONG),
    "SUBACK": (packet(0x90, b"\x7f\xff" + sized(EMPTY_PAIRS) + b"\x01"), TOO_LONG),
    "SUBACK of 262,000 answers": (packet(0x90, b"\x7f\xff\x00" + b"\x01" * (ROOM - 3)), TOO_LONG),
    "UNSUBACK of 262,000 answers": (packet(0xB0, b"\x7f\xff\x00" + b"\x00" * (ROOM - 3)), TOO_LONG),
    "DISCONNECT": (packet(0xE0, b"\x8b" + sized(EMPTY_PAIRS)), TOO_LONG),
    "DISCONNECT of a long reason": (packet(0xE0, b"\x8b" + sized(REASON)), TOO_LONG),
    "a second CONNACK": (packet(0x20, b"\x00\x00\x00"), "the broker sent a second CONNACK"),
    "PUBLISH of properties longer than itself": (publish(b"\xff\xff\xff\x7f"), "connection lost"),
    "PUBLISH of a length that is none": (publish(b"\xff\xff\xff\xff\x01"), "connection lost"),
    "PUBLISH without a length": (publish(b""), "connection lost"),
    "SUBACK of properties longer than itself": (packet(0x90, b"\x7f\xff\x05\x01"), "connection lost"),
    "DISCONNECT of a length that is none": (packet(0xE0, b"\x8b\xff"), "connection lost"),
}
"""The connection ends, for the reason that is logged; the agent connects again."""


@pytest.fixture
def anchor(tmp_path: Path) -> Path:
    publisher = PublisherSimulator()
    publisher.release(ON)
    path = tmp_path / "anchor"
    path.write_bytes(publisher.anchor)
    return path


def cost(device: Device) -> tuple[float, int]:
    """CPU seconds and resident bytes of the agent."""
    assert device._process is not None
    pid = device._process.pid
    return cpu_seconds(pid), resident_bytes(pid)


@pytest.mark.parametrize("name", PASSED_OVER)
def test_properties_and_answers_that_nobody_reads_cost_no_time(
    tmp_path: Path, anchor: Path, name: str
) -> None:
    def attack(session: Session) -> None:
        if not once.acquire(blocking=False):
            return
        session.publish("t", b"", qos=1, number=1)
        device.wait_until(lambda: 1 in session.acknowledged, "the first message")
        before.append(cost(device))
        session.send(PASSED_OVER[name])
        session.publish("t", b"", qos=1, number=2)
        device.wait_until(lambda: 2 in session.acknowledged, "the message after it")
        after.append(cost(device))

    once = threading.Lock()  # an agent sends several SUBSCRIBEs
    before: list[tuple[float, int]] = []
    after: list[tuple[float, int]] = []
    with (
        HostileBroker(attack) as broker,
        provision(tmp_path / "device", anchor, broker.url, "--protocol", "5") as device,
    ):
        device.start()
        device.wait_until(lambda: after, "all that was sent")
        assert after[0][0] - before[0][0] < CPU_MAX_SECONDS
        assert after[0][1] - before[0][1] < MEMORY_MAX_BYTES
        assert "connection lost" not in device.log
        assert device.stop() == 0


@pytest.mark.parametrize("name", ENDING)
def test_answers_without_end_end_the_connection_and_not_the_agent(
    tmp_path: Path, anchor: Path, name: str
) -> None:
    hostile, why = ENDING[name]

    def attack(session: Session) -> None:
        if once.acquire(blocking=False):
            before.append(cost(device))
            session.send(hostile)

    once = threading.Lock()  # an agent sends several SUBSCRIBEs
    before: list[tuple[float, int]] = []
    with (
        HostileBroker(attack) as broker,
        provision(tmp_path / "device", anchor, broker.url, "--protocol", "5") as device,
    ):
        device.start()
        device.wait_for("connection lost")
        seconds, size = cost(device)
        assert why in device.log
        assert seconds - before[0][0] < CPU_MAX_SECONDS
        assert size - before[0][1] < MEMORY_MAX_BYTES
        device.wait_until(lambda: device.log.count("message=connected") >= 2, "it goes on trying")
        assert "Traceback" not in device.log
        assert device.stop() == 0


@pytest.mark.parametrize(
    ("properties", "said"),
    [
        pytest.param(EMPTY_PAIRS[:4_000], "message=connected", id="the most that is read"),
        pytest.param(EMPTY_PAIRS[:5_000], "the broker sent an answer of", id="more"),
    ],
)
def test_connack_of_many_properties(tmp_path: Path, anchor: Path, properties: bytes, said: str) -> None:
    with (
        HostileBroker(lambda _: None, connack_properties=properties) as broker,
        provision(tmp_path / "device", anchor, broker.url, "--protocol", "5") as device,
    ):
        device.start()
        device.wait_for(said)
        assert device.stop() == 0


@pytest.mark.parametrize("first", [0x90, 0xB0])
def test_answers_without_end_of_a_broker_of_mqtt_3(tmp_path: Path, anchor: Path, first: int) -> None:
    def attack(session: Session) -> None:
        if not once.acquire(blocking=False):
            return
        before.append(cost(device))
        session.send(packet(first, b"\x7f\xff" + b"\x01" * (ROOM - 2)))

    once = threading.Lock()  # an agent sends several SUBSCRIBEs
    before: list[tuple[float, int]] = []
    with (
        HostileBroker(attack) as broker,
        provision(tmp_path / "device", anchor, broker.url, "--protocol", "3.1.1") as device,
    ):
        device.start()
        device.wait_for(TOO_LONG)
        seconds, size = cost(device)
        assert seconds - before[0][0] < CPU_MAX_SECONDS
        assert size - before[0][1] < MEMORY_MAX_BYTES
        assert device.stop() == 0
