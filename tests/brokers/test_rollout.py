"""A staged rollout over a real mosquitto with two real agents, of which the labels put one in and the other not."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from devices import Device, provision
from publishing import Flagcast, features, make_project

from brokers import start_mosquitto
from flagcast_bridge.broker import connection as mqtt

pytestmark = pytest.mark.mosquitto


@dataclass(frozen=True, slots=True)
class Site:
    """A project, the command, and two devices that follow it."""

    folder: Path
    flagcast: Flagcast
    pilot: Device
    other: Device

    def publish(self, *arguments: str, code: int = 0, **flags: bool) -> str:
        path = self.folder / "features.yml"
        path.write_text(features(flags))
        done = self.flagcast.on_project("publish", path, *arguments)
        assert done.code == code, done.err
        return done.out + done.err

    def run(self, command: str, *arguments: str, code: int = 0) -> str:
        done = self.flagcast.on_project(command, *arguments)
        assert done.code == code, done.err
        return done.out + done.err

    def status(self) -> dict[str, object]:
        (found,) = json.loads(self.run("rollout", "status", "--format", "json"))
        assert isinstance(found, dict)
        return found


@pytest.fixture
def site(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    monkeypatch.setattr(mqtt, "QUIET_SECONDS", 0.2)
    with start_mosquitto(tmp_path / "broker") as broker:
        made = make_project(tmp_path / "fleet", broker.url)
        anchor = made.root_file(1)
        with (
            provision(
                tmp_path / "pilot", anchor, broker.url, "--label", "ring=pilot", device="pilot"
            ) as pilot,
            provision(tmp_path / "other", anchor, broker.url, device="other") as other,
        ):
            found = Site(made.folder, Flagcast(made.folder, capsys), pilot, other)
            found.publish(a=False, b=False)
            for device in (pilot, other):
                device.start()
                device.wait_for("version=1 ")
            yield found


def is_on(device: Device, flag: str = "a") -> bool:
    return device.evaluate(flag, "e")["value"] is True


def test_a_candidate_for_a_label_reaches_the_device_that_carries_it_then_all_then_is_stable(
    site: Site,
) -> None:
    said = site.publish("--candidate", "100", "--label", "ring=pilot", a=True, b=False)
    assert "candidate 2" in said
    assert "100 % of the devices with ring=pilot" in said
    site.pilot.wait_for("version=2 ")
    site.other.wait_for("version=1 sequence=2 ")  # it has heard of it too
    assert (is_on(site.pilot), is_on(site.other)) == (True, False)

    status = site.status()
    assert (status["stable"], status["is_paused"]) == (1, False)
    candidate = status["candidate"]
    assert isinstance(candidate, dict)
    assert (candidate["version"], candidate["share"], candidate["labels"]) == (2, 100.0, {"ring": "pilot"})
    assert "version 1, candidate 2 for 100 % with ring=pilot, since 20" in site.run("rollout", "status")
    assert "candidate 2 for 100 % with ring=pilot" in site.run("show")

    assert "a candidate is out, version 2" in site.publish(a=False, b=True, code=1)
    assert "unchanged at version 1" in site.publish(a=False, b=False)
    assert "dry run: nothing was published" in site.run("rollout", "promote", "--dry-run")
    assert site.status()["stable"] == 1

    site.run("rollout", "promote", "--namespace", "default")
    site.other.wait_for("version=2 ")
    assert (is_on(site.pilot), is_on(site.other)) == (True, True)
    assert site.status()["candidate"] is None
    assert "no candidate is out" in site.run("rollout", "promote", code=1)

    actions = [(e["action"], e["version"]) for e in json.loads(site.run("log", "--format", "json"))]
    assert actions == [("promote", 2), ("candidate", 1), ("change", 1)]


def test_an_aborted_candidate_leaves_the_device_that_had_it_with_what_is_stable(site: Site) -> None:
    site.publish("--candidate", "100", "--label", "ring=pilot", a=True, b=False)
    site.pilot.wait_for("version=2 ")
    site.run("rollout", "pause")
    status = site.status()
    assert (status["is_paused"], status["share_before"]) == (True, 100.0)
    assert "PAUSED (was 100 %)" in site.run("rollout", "status")
    site.pilot.wait_for("version=2 sequence=3 ")
    assert is_on(site.pilot)

    said = site.run("rollout", "abort")
    assert "~ flag a: enabled true -> false" in said
    for device in (site.pilot, site.other):
        device.wait_for("version=3 ")
    assert (is_on(site.pilot), is_on(site.other)) == (False, False)
    assert [e["action"] for e in json.loads(site.run("log", "--format", "json"))] == [
        "abort",
        "pause",
        "candidate",
        "change",
    ]


def test_a_rollback_brings_the_content_before_back_to_both(site: Site) -> None:
    site.publish(a=True, b=True)
    for device in (site.pilot, site.other):
        device.wait_for("version=2 ")
    said = site.run("rollback", "--dry-run")
    assert "rollback, version 3 (was 2)" in said
    assert "~ flag a: enabled true -> false" in said
    site.run("rollback")
    for device in (site.pilot, site.other):
        device.wait_for("version=3 ")
    assert (is_on(site.pilot), is_on(site.other)) == (False, False)
    site.run("rollback", "--to", "2", "--namespace", "default")
    site.pilot.wait_for("version=4 ")
    assert is_on(site.pilot)
    assert "was never published" in site.run("rollback", "--to", "99", code=1)
