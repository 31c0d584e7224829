"""What the agent says to its service manager, over a real datagram socket."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from devices import Device, provision
from publisher_simulator import PublisherSimulator

from flagcast_agent.supervisor import Supervisor


class Manager:
    """The service manager's end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(100)

    def hear(self) -> str:
        return self.socket.recv(4096).decode()

    def hears_nothing(self, seconds: float) -> bool:
        self.socket.settimeout(seconds)
        try:
            self.socket.recv(4096)
        except TimeoutError:
            return True
        return False


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.socket.close()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    anchor = tmp_path / "anchor"
    anchor.write_bytes(PublisherSimulator().anchor)
    # Nobody listens on port 1: the agent is ready without a broker.
    with provision(tmp_path / "device", anchor, "mqtt://127.0.0.1:1") as made:
        yield made


def test_the_agent_says_ready_alive_and_stopping(
    device: Device, manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    device.start()
    assert manager.hear() == "READY=1"
    assert device.run("status").returncode == 0, "ready means that it answers"
    for _ in range(3):
        assert manager.hear() == "WATCHDOG=1"
    assert device.stop() == 0
    while (said := manager.hear()) == "WATCHDOG=1":
        pass
    assert said == "STOPPING=1"


def test_a_stopped_process_gives_no_sign_of_life(
    device: Device, manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    device.start()
    assert manager.hear() == "READY=1"
    assert manager.hear() == "WATCHDOG=1"
    device.kill()
    while not manager.hears_nothing(1):
        pass


def test_an_abstract_address_and_a_rest_that_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"flagcast-test-{os.getpid()}"
    manager = Manager(f"\0{name}")
    supervisor = Supervisor({"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "60000"})

    async def run() -> None:
        alive = True
        async with supervisor.told(lambda: alive):
            assert await asyncio.to_thread(manager.hear) == "READY=1"
            assert await asyncio.to_thread(manager.hear) == "WATCHDOG=1"
            alive = False
            while not await asyncio.to_thread(manager.hears_nothing, 0.5):
                pass

    asyncio.run(run())
    manager.socket.settimeout(100)
    assert manager.hear() == "STOPPING=1"
    manager.socket.close()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "3000000"}, 1.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_how_often_signs_of_life_are_due(environment: dict[str, str], seconds: float) -> None:
    assert Supervisor(environment).ping_seconds == seconds


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/notify", "/" + "x" * 200])
def test_a_manager_that_cannot_be_reached_harms_nobody(address: str) -> None:
    Supervisor({"NOTIFY_SOCKET": address}).say("READY=1")
