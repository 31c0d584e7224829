"""A broker that sends a root and the heads in an order of its own, all of it before it answers."""

import re
import time
from pathlib import Path

import pytest
from devices import provision
from publisher_simulator import PublisherSimulator, SigningKey
from releases import BETA, EVIL, ON
from usage_attacks import HostileBroker, Session


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("is_reversed", [False, True], ids=["root first", "head first"])
def test_head_of_a_stolen_key_beside_the_root_that_takes_it_back(
    tmp_path: Path, protocol: str, *, is_reversed: bool
) -> None:
    publisher = PublisherSimulator(now=int(time.time()))  # noqa: TID251  # what a publisher's clock would say
    publisher.release(EVIL)
    stolen = publisher.retained[publisher.head_topic]
    publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
    publisher.release(ON)
    root = publisher.root_topic(2)
    pair = [(root, publisher.retained[root]), (publisher.head_topic, stolen)]

    def send_retained(session: Session) -> None:
        if root in session.filters:
            messages = pair[::-1] if is_reversed else pair
        else:
            # The thief's head once more, and then the honest one.
            messages = [(publisher.head_topic, stolen)] if publisher.head_topic in session.filters else []
            messages += [
                (topic, publisher.retained[topic]) for topic in session.filters if topic in publisher.retained
            ]
        for number, (topic, payload) in enumerate(messages, start=1):
            session.publish(topic, payload, qos=1, number=number)

    anchor = tmp_path / "anchor"
    anchor.write_bytes(publisher.anchor)
    with (
        HostileBroker(lambda _: None, before_suback=send_retained) as broker,
        provision(tmp_path / "d", anchor, broker.url, "--protocol", protocol) as device,
    ):
        device.start()
        device.wait_for("message=answering")
        device.wait_until(lambda: device.run("eval", BETA, "--entity", "x").returncode == 0, "an answer")
        assert device.evaluate(BETA, "x")["value"] is True
        assert re.findall(r"message=admitted .*? epoch=(\d+)", device.log) == ["2"]
        assert "attack=unknown_key" in device.log
        assert device.stop() == 0
