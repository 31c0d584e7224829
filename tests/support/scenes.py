"""The smallest whole fleet: a publisher in memory, a real broker, and a real agent process on a provisioned device."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devices import Device, provision
from publisher_simulator import PublisherSimulator

from brokers import Broker, start_mosquitto
from flagcast_bridge.broker import connection as mqtt
from flagcast_shared.model import AnySegment, Flag


@dataclass
class Scene:
    publisher: PublisherSimulator
    broker: Broker
    device: Device

    def publish(self, *entries: Flag | AnySegment) -> None:
        """The next version, as a bridge would sign it now; the broker has it when this returns."""
        self.publisher.now = int(time.time())  # noqa: TID251  # what a publisher's clock would say
        self.publisher.release(*entries, inline=True)
        self.send()

    def send(self) -> None:
        """All that the publisher retains, honest or not."""
        with mqtt.connect(self.broker.host, self.broker.port, mqtt.Login()) as connection:
            connection.publish([(topic, data) for topic, data in self.publisher.retained.items() if data])


@contextmanager
def scene(*, first: Sequence[str] = (), last: Sequence[str] = ()) -> Iterator[Scene]:
    """A device that is not started yet; `first` and `last` are lines before and after its configuration's own."""
    with tempfile.TemporaryDirectory(prefix="fc-") as name, start_mosquitto(Path(name)) as broker:
        publisher = PublisherSimulator(now=int(time.time()))  # noqa: TID251  # what a publisher's clock would say
        anchor = Path(name) / "anchor"
        anchor.write_bytes(publisher.anchor)
        device = provision(Path(name) / "d", anchor, broker.url)
        configuration = device.folder / "agent.toml"
        written = configuration.read_text(encoding="utf-8")
        configuration.write_text("\n".join([*first, written, *last, ""]), encoding="utf-8")
        with device:
            yield Scene(publisher, broker, device)
