"""A device's clock is wrong by years, and is set while its agent runs: it answers, admits what it may, and says what is wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from devices import Device, provision
from publisher_simulator import DAY, PublisherSimulator
from raw_http1 import HttpClient
from updates import FLAGS, generation, generation_of

from brokers import Broker, start_mosquitto
from flagcast_agent.api.local import LocalClient
from flagcast_bridge import clock
from flagcast_bridge.broker import connection as mqtt
from flagcast_shared.ids import DeviceId
from flagcast_shared.reports import Report, Usage, decode_report, decode_usage
from flagcast_shared.topics import DeviceAddress

pytestmark = pytest.mark.mosquitto

CHILD = Path(__file__).resolve().parents[1] / "support" / "shifted_agent.py"
TEN_YEARS = 3650 * DAY
TEST_SECONDS = 300
"""Longer than any of these tests takes, and shorter than anything that a clock ten years off would lead to."""
SETTINGS = "\n[report]\nheartbeat_seconds = 1\n\n[usage]\ninterval_seconds = 1\n"


@dataclass(slots=True)
class Scene:
    """A publisher whose clock is right, its broker, and a device whose clock is not."""

    publisher: PublisherSimulator
    broker: Broker
    device: Device
    clocks: Path
    reports: list[Report] = field(default_factory=list)
    usage: list[Usage] = field(default_factory=list)
    passed: int = 0

    def set_clock(self, *, wall: int = 0, passed: int = 0) -> None:
        """The device's own clock is ahead by `wall` seconds from now on; `passed` seconds more have gone by."""
        self.passed = passed
        # Whole at any instant, because the agent reads it all the time.
        draft = self.clocks.with_suffix(".draft")
        draft.write_text(json.dumps({"wall": wall, "passed": passed}))
        os.replace(draft, self.clocks)  # noqa: PTH105  # one name for what happens

    def start(self) -> None:
        self.device.start(before=[sys.executable, str(CHILD), str(self.clocks)])
        self.device.wait_for("message=answering")

    def release(self, number: int) -> None:
        """The next version, on the broker."""
        self.publisher.now = clock.now()
        self.publisher.release(*generation(number), inline=False)
        self.put(*self.publisher.retained.items())

    def put(self, *messages: tuple[str, bytes]) -> None:
        with mqtt.connect(self.broker.host, self.broker.port, mqtt.Login()) as connection:
            connection.publish(list(messages))

    def wait_for_version(self, number: int) -> None:
        self.device.wait_until(lambda: number in self.device.logged_versions, f"version {number}")
        assert generation_of(self.device.variants(FLAGS)) == number

    # What it says

    @property
    def status(self) -> dict[str, Any]:
        """What the agent says of itself."""
        return LocalClient(self.device.socket).status().as_json()

    @property
    def namespace(self) -> dict[str, Any]:
        status = self.status
        assert isinstance(status["namespaces"], list)
        (found,) = status["namespaces"]
        assert isinstance(found, dict)
        return found

    @property
    def metadata(self) -> dict[str, Any]:
        """What an application is told beside an answer."""
        with HttpClient(self.device.socket) as client:
            found = client.post_json(f"/ofrep/v1/evaluate/flags/{FLAGS[0]}", {}).json["metadata"]
        assert isinstance(found, dict)
        return found

    @property
    def metrics(self) -> dict[str, float]:
        with HttpClient(self.device.socket) as client:
            lines = client.ask("GET", "/metrics").body.decode().splitlines()
        return {
            name.partition("{")[0]: float(value)
            for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
        }

    def doctor(self) -> dict[str, tuple[str, str]]:
        """Each check's verdict, and what was found with what to do; of several lines of one check the last."""
        done = subprocess.run(
            [
                sys.executable, str(CHILD), str(self.clocks), "flagcast-agent", "doctor", "--format", "json",
                "--dir", str(self.device.folder),
            ],
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        assert done.stderr == ""
        return {
            one["check"]: (one["verdict"], f"{one['found']}; {one['do'] or ''}")
            for one in json.loads(done.stdout)["checks"]
        }

    def is_sane(self) -> None:
        """Whatever the clock was set to, no span is years long."""
        said = "\n".join(LocalClient(self.device.socket).status().as_text()[:3])
        assert " d " not in said, said

    def wait_for_signs_of_life(self) -> None:
        """Two more heartbeats, and two more spans of evaluation counts with what is counted now."""
        reports, spans = len(self.reports), len(self.usage)
        self.device.variants(FLAGS)
        self.device.wait_until(lambda: len(self.reports) >= reports + 2, "heartbeats")

        def is_counted() -> bool:
            self.device.variants(FLAGS)
            return len(self.usage) >= spans + 2

        self.device.wait_until(is_counted, "evaluation counts")
        for usage in self.usage:
            assert 0 <= usage.until - usage.since <= self.passed + TEST_SECONDS, usage


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with start_mosquitto(tmp_path / "broker") as started:
        yield started


@contextmanager
def scene_of(tmp_path: Path, broker: Broker, *, wall: int = 0) -> Iterator[Scene]:
    """A device that has been provisioned and not been started; what it reports and counts is heard."""
    publisher = PublisherSimulator(now=clock.now())
    anchor = tmp_path / "anchor"
    anchor.write_bytes(publisher.anchor)
    with provision(tmp_path / "device", anchor, broker.url) as device:
        with (device.folder / "agent.toml").open("a") as config:
            config.write(SETTINGS)
        scene = Scene(publisher, broker, device, tmp_path / "clocks")
        scene.set_clock(wall=wall)
        scene.release(1)
        device_topics = [
            publisher.topics.of(DeviceAddress(DeviceId("device-1"), kind)) for kind in ("report", "metrics")
        ]

        def hear(topic: str, payload: bytes) -> None:
            if topic.endswith("report"):
                scene.reports.append(decode_report(payload))
            else:
                scene.usage.append(decode_usage(payload))

        with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
            connection.watch(device_topics, hear, lambda why: None)
            yield scene


def test_a_clock_that_jumps_ten_years_ahead_and_back(tmp_path: Path, broker: Broker) -> None:
    with scene_of(tmp_path, broker) as scene:
        scene.start()
        scene.wait_for_version(1)
        scene.wait_for_signs_of_life()
        assert "clock_trusted" not in scene.metadata

        scene.set_clock(wall=TEN_YEARS)
        scene.release(2)
        scene.device.wait_for("attack=freeze ")
        # It goes on with what it has, and says how old that looks, and why it takes nothing new.
        assert generation_of(scene.device.variants(FLAGS)) == 1
        said = scene.namespace
        assert (said["version"], said["freshness"], said["age_seconds"] // DAY) == (1, "stale", 3650)
        assert said["last_rejection"]["attack"] == "freeze"
        assert "by this device's clock" in said["last_rejection"]["why"]
        assert scene.status["clock_is_trusted"] is True
        assert (scene.metadata["stale"], scene.metrics["flagcast_namespace_stale"]) == (True, 1)
        scene.is_sane()
        scene.wait_for_signs_of_life()
        checks = scene.doctor()
        for check in ("flags default", "root in force"):
            assert "is the clock" in checks[check][1], checks
        assert checks["clock"][1].startswith(clock.as_text(clock.now() + TEN_YEARS)[:10])

        scene.set_clock()
        # No restart, and nothing new from the publisher.
        scene.wait_for_version(2)
        assert scene.namespace["freshness"] == "fresh"
        assert scene.metadata["stale"] is False
        scene.is_sane()
        scene.wait_for_signs_of_life()
        assert {name for name, (verdict, _) in scene.doctor().items() if verdict == "failed"} == set()
        assert scene.device.stop() == 0


def test_a_clock_that_jumps_ten_years_back_and_is_right_again(tmp_path: Path, broker: Broker) -> None:
    with scene_of(tmp_path, broker) as scene:
        scene.start()
        scene.wait_for_version(1)
        scene.set_clock(wall=-TEN_YEARS)
        scene.release(2)
        scene.wait_for_version(2)
        scene.device.wait_for("expiry was not checked")
        assert scene.status["clock_is_trusted"] is False
        said = scene.namespace
        assert said["freshness"] == "fresh"
        assert 0 <= said["age_seconds"] < TEST_SECONDS
        assert (scene.metadata["stale"], scene.metadata["clock_trusted"]) == (False, False)
        assert scene.metrics["flagcast_clock_trusted"] == 0
        verdict, found = scene.doctor()["clock"]
        assert verdict == "warning"
        assert "set the device's clock" in found
        scene.is_sane()
        scene.wait_for_signs_of_life()

        # Nobody renews the head, and the device still has no clock.
        scene.set_clock(wall=-TEN_YEARS, passed=8 * DAY)
        said = scene.namespace
        assert (said["freshness"], said["age_seconds"] // DAY) == ("stale", 8)
        assert (scene.metadata["stale"], scene.metadata["age_seconds"] // DAY) == (True, 8)
        assert scene.metrics["flagcast_namespace_stale"] == 1
        assert scene.metrics["flagcast_namespace_age_seconds"] // DAY == 8
        assert "expired 1 d" in "\n".join(LocalClient(scene.device.socket).status().as_text())
        assert generation_of(scene.device.variants(FLAGS)) == 2
        # Another agent in the same boot knows it too.
        assert scene.device.stop() == 0
        scene.start()
        assert scene.namespace["age_seconds"] // DAY == 8

        scene.set_clock(passed=8 * DAY)
        scene.release(3)
        scene.wait_for_version(3)
        assert scene.status["clock_is_trusted"] is True
        scene.wait_for_signs_of_life()
        assert scene.device.stop() == 0


@pytest.mark.parametrize("years", [10, 50])
def test_a_device_that_starts_with_a_clock_behind_is_never_refused_anything(
    tmp_path: Path, broker: Broker, years: int
) -> None:
    with scene_of(tmp_path, broker, wall=-years * 365 * DAY) as scene:
        scene.start()
        scene.wait_for_version(1)
        scene.release(2)
        scene.wait_for_version(2)
        assert "message=refused" not in scene.device.log
        assert scene.namespace["freshness"] == "fresh"
        scene.wait_for_signs_of_life()
        scene.set_clock()
        scene.release(3)
        scene.wait_for_version(3)
        scene.is_sane()
        scene.wait_for_signs_of_life()
        assert scene.status["clock_is_trusted"] is True


def test_a_device_that_starts_with_a_clock_ahead_has_flags_once_it_is_right(
    tmp_path: Path, broker: Broker
) -> None:
    with scene_of(tmp_path, broker, wall=TEN_YEARS) as scene:
        scene.start()
        scene.device.wait_for("attack=freeze ")
        assert scene.namespace["freshness"] == "never synced"
        assert "is the clock" in scene.doctor()["flags default"][1]
        scene.device.gives_up("the head was not taken: freeze", "sync")
        scene.set_clock()
        scene.wait_for_version(1)
        assert scene.namespace["freshness"] == "fresh"
        scene.is_sane()


def test_a_flood_of_refusals_fills_no_log_wherever_the_clock_jumps(tmp_path: Path, broker: Broker) -> None:
    with scene_of(tmp_path, broker) as scene:
        scene.start()
        scene.wait_for_version(1)

        def flood() -> None:
            before = scene.metrics.get("flagcast_rejections_total", 0)
            scene.put(*((scene.publisher.head_topic, b"garbage") for _ in range(60)))
            scene.device.wait_until(
                lambda: scene.metrics.get("flagcast_rejections_total", 0) == before + 60, "60 refusals"
            )

        for written, wall in ((20, 0), (40, TEN_YEARS), (60, -TEN_YEARS)):
            scene.set_clock(wall=wall)
            flood()
            # Refusals are counted before they are logged.
            scene.device.wait_until(
                lambda: scene.device.log.count("message=refused") >= written,  # noqa: B023  # called in this turn
                f"{written} refusals in the log",
            )
            assert scene.device.log.count("message=refused") == written
        assert scene.device.log.count("left_out=40") == 2
        scene.set_clock()
        scene.release(2)
        scene.wait_for_version(2)
