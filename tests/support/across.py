"""An agent on one host, its broker and publisher on another, and a network between them that a test holds in its hand."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from devices import Device, provision
from network import Network
from publisher_simulator import PublisherSimulator
from updates import generation

from brokers import Broker, free_port, start_mosquitto
from flagcast_bridge.broker import connection as mqtt


@dataclass(frozen=True, slots=True)
class Across:
    """The device is on the near host, what it depends on is on the far one."""

    network: Network
    simulator: PublisherSimulator
    broker: Broker
    device: Device

    def near(self) -> AbstractContextManager[None]:
        return self.network.near.inside()

    def far(self) -> AbstractContextManager[None]:
        return self.network.far.inside()

    def release(self, number: int) -> None:
        """The next version, on the broker."""
        self.simulator.now = int(time.time())  # noqa: TID251  # what a publisher's clock would say
        self.simulator.release(*generation(number))
        self.publish()

    def publish(self) -> None:
        with self.far(), mqtt.connect(self.broker.host, self.broker.port, mqtt.Login()) as connection:
            connection.publish(list(self.simulator.retained.items()))

    def cut(self, *, is_told: bool = False) -> None:
        """Nothing passes any more; the device's own kernel knows of it if it `is_told`."""
        if is_told:
            self.network.near.set_interface(is_up=False)
        self.network.is_cut = True

    def heal(self, *, is_told: bool = False) -> None:
        self.network.is_cut = False
        if is_told:
            self.network.near.set_interface(is_up=True)


@contextmanager
def device_across(network: Network, folder: Path) -> Iterator[Across]:
    """A running device that has admitted version 1 and is up to date."""
    simulator = PublisherSimulator(now=int(time.time()))  # noqa: TID251  # what a publisher's clock would say
    anchor = folder / "anchor"
    anchor.write_bytes(simulator.anchor)
    port = free_port()
    with network.far.inside():
        broker = start_mosquitto(folder / "broker", lines=[f"listener {port} {network.far.address}"])
    url = f"mqtt://{network.far.address}:{port}"
    with broker, provision(folder / "device", anchor, url) as device:
        across = Across(network, simulator, broker, device)
        across.release(1)
        with network.near.inside():
            device.start()
        device.wait_for('message="up to date"')
        yield across
