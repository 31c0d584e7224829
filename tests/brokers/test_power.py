"""A device loses its power at any instant of a stream of updates: it comes back complete, and never older."""

import random
import time
from pathlib import Path

import pytest
from devices import provision
from publisher_simulator import PublisherSimulator
from updates import FLAGS, generation, stream_of_updates

from brokers import start_mosquitto
from flagcast_bridge.broker import connection as mqtt

KILLS = 50


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
