"""The thread that follows the broker: what may wait for it."""

import threading
from pathlib import Path

from devices import provision
from publisher_simulator import PublisherSimulator

from flagcast_agent import config
from flagcast_agent.boot import boot
from flagcast_agent.follower import QUEUE_MAX_MESSAGES, Follower
from flagcast_agent.mqtt import Link
from flagcast_agent.sync.events import Connected, Received

PATIENCE_SECONDS = 100


def test_a_broker_that_sends_faster_than_is_verified_waits(tmp_path: Path) -> None:
    anchor = tmp_path / "anchor"
    anchor.write_bytes(PublisherSimulator().anchor)
    provision(tmp_path / "device", anchor, "mqtt://127.0.0.1:1")
    settings = config.load(tmp_path / "device")
    booted = boot(settings)
    follower = Follower(settings, booted)
    attempt = follower._link.attempt
    for _ in range(QUEUE_MAX_MESSAGES):
        follower._hear(Received("topic", b"x"), attempt)
    assert not follower._room.acquire(blocking=False), "there is room for more"
    # What is said beyond that waits, and is taken once there is somebody to take it.
    saying = threading.Thread(target=follower._hear, args=(Received("topic", b"x"), attempt))
    saying.start()
    assert saying.is_alive()
    follower.start()
    saying.join(PATIENCE_SECONDS)
    assert not saying.is_alive()
    follower.stop()
    booted.store.close()


def test_news_of_an_attempt_that_was_given_up_is_no_news() -> None:
    link = Link(
        config.BrokerConfig("127.0.0.1", 1, tls=False), "flagcast-device-1", lambda said, attempt: None
    )
    link.connect("5", "flagcast/1/production/devices/device-1/report", b"")
    former = link.attempt
    link.connect("5", "flagcast/1/production/devices/device-1/report", b"")
    assert link.event_of(Connected(), former) is None
    assert link.event_of(Connected(), link.attempt) == Connected()
    link.close()
