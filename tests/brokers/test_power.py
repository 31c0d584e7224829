"""A device loses its power at any instant of a stream of updates: it comes back complete, and never older."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from devices import provision
from publisher_simulator import PublisherSimulator

from brokers import Broker, start_mosquitto
from flagcast_bridge import mqtt
from flagcast_shared.ids import FlagKey, VariantKey
from flagcast_shared.model import Variant, VariantFlag

KILLS = 50
FLAGS = tuple(f"flag-{number:02d}" for number in range(20))
PAUSE_SECONDS = 0.02


def generation(number: int) -> list[VariantFlag]:
    """Every flag says which version it is from, so that a mixture of versions shows."""
    name = VariantKey(f"v{number}")
    return [VariantFlag(FlagKey(key), True, (Variant(name),), name) for key in FLAGS]


@contextmanager
def stream_of_updates(simulator: PublisherSimulator, broker: Broker) -> Iterator[None]:
    """Publishes version after version, by turns with an inline delta, a retained one and none, until the block ends."""
    over = threading.Event()
    failures: list[Exception] = []

    def publish() -> None:
        try:
            with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
                number = 1
                while not over.wait(PAUSE_SECONDS):
                    number += 1
                    before = dict(simulator.retained)
                    simulator.now = int(time.time())  # noqa: TID251  # what a publisher's clock would say
                    simulator.release(*generation(number), delta=number % 3 != 0, inline=number % 3 == 1)
                    news = {at: data for at, data in simulator.retained.items() if before.get(at) != data}
                    head = news.pop(simulator.head_topic)
                    connection.publish([*news.items(), (simulator.head_topic, head)])
        except Exception as error:  # noqa: BLE001  # a thread's failure is the test's, told when it is joined
            failures.append(error)

    thread = threading.Thread(target=publish, name="publisher")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not failures, failures


@pytest.mark.mosquitto
@pytest.mark.timeout(300)
def test_fifty_power_cuts_in_a_stream_of_updates_leave_a_whole_version_and_never_an_older_one(
    tmp_path: Path,
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    simulator = PublisherSimulator(now=int(time.time()))  # noqa: TID251  # what a publisher's clock would say
    simulator.release(*generation(1))
    anchor = tmp_path / "anchor"
    anchor.write_bytes(simulator.anchor)
    with start_mosquitto(tmp_path / "broker") as broker:
        with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
            connection.publish(list(simulator.retained.items()))
        with (
            provision(tmp_path / "device", anchor, broker.url) as device,
            stream_of_updates(simulator, broker),
        ):
            device.start()
            device.wait_for("message=admitted")
            newest = 0
            steps = 0
            for _ in range(KILLS):
                time.sleep(chance.uniform(0, 0.4))  # the instant of the cut is what varies here
                device.kill()
                said = device.logged_versions
                assert said == sorted(said)
                newest = max([newest, *said])
                device.start()
                answers = device.variants(FLAGS)
                assert len(set(answers)) == 1, f"a mixture: {answers}; seed {seed}"
                version = int(answers[0].removeprefix("v"))
                assert version >= newest, f"version {version} after {newest} was reported; seed {seed}"
                steps += version > newest
                newest = version
            device.wait_until(lambda: max(device.logged_versions, default=0) > newest, "still following")
    assert steps or newest > 1
