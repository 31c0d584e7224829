"""The whole thread: a team's file, published, received, verified, persisted, answered, also offline."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from devices import Device, provision
from publishing import Flagcast, make_project

from brokers import Broker, start_amqtt, start_mosquitto

# Flipt's own test corpus (MIT licence), unchanged.
CORPUS = Path(__file__).parent.parent / "broker_bridge" / "fixtures" / "flipt-corpus.features.yml"

MOSQUITTO = pytest.param(("mosquitto", "5"), id="mosquitto-5", marks=pytest.mark.mosquitto)
FOUND_OUT = pytest.param(("amqtt", "auto"), id="amqtt-found-out", marks=pytest.mark.amqtt)
# What needs no more than one broker; the scenarios for every broker stand in tests/matrix.
on_mosquitto = pytest.mark.parametrize("site", [MOSQUITTO], indirect=True)


@pytest.fixture(params=[MOSQUITTO, FOUND_OUT])
def site(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[tuple[Broker, Flagcast, Device]]:
    kind, protocol = request.param
    with (start_mosquitto if kind == "mosquitto" else start_amqtt)(tmp_path / "broker") as broker:
        project = make_project(tmp_path / "project", broker.url)
        with provision(
            tmp_path / "device", project.root_file(1), broker.url, "--protocol", protocol
        ) as device:
            yield broker, Flagcast(tmp_path / "project", capsys), device


def test_flipts_corpus_publishes_and_evaluates_unchanged(
    site: tuple[Broker, Flagcast, Device], tmp_path: Path
) -> None:
    broker, flagcast, device = site
    file = tmp_path / "features.yml"
    shutil.copy(CORPUS, file)
    assert flagcast.on_project("publish", file).code == 0
    device.start()
    device.wait_for("message=admitted")

    def answers() -> list[object]:
        matched = device.evaluate("flag1", "e1", {"fizz": "buzz"})
        unmatched = device.evaluate("flag1", "e1", {"fizz": "other"})
        by_segment = device.evaluate("flag_boolean", "e1", {"fizz": "buzz"})
        # Bucket of entity and flag: crc32("e1flag_boolean") % 100 is 57, crc32("e3flag_boolean") % 100 is 1.
        above, below = device.evaluate("flag_boolean", "e1"), device.evaluate("flag_boolean", "e3")
        every = (matched, unmatched, by_segment, above, below)
        return [(each["value"], each["reason"], each["segments"]) for each in every]

    expected = [
        ("variant1", "TARGETING_MATCH", ["segment1"]),
        ("", "DEFAULT", []),
        (True, "TARGETING_MATCH", ["segment1"]),
        (True, "DEFAULT", []),
        (True, "SPLIT", []),
    ]
    assert answers() == expected
    # The same after the broker is gone and the device has lost its power.
    broker.kill()
    device.kill()
    device.start()
    device.wait_for("message=answering")
    assert answers() == expected
    assert device.stop() == 0


@on_mosquitto
def test_a_change_arrives_and_a_restarted_broker_is_found_again(
    site: tuple[Broker, Flagcast, Device], tmp_path: Path
) -> None:
    broker, flagcast, device = site
    file = tmp_path / "features.yml"
    flag = "namespace: default\nflags:\n- key: a\n  name: a\n  type: BOOLEAN_FLAG_TYPE\n  enabled: {}\n"
    file.write_text(flag.format("true"))
    assert flagcast.on_project("publish", file).code == 0
    device.start()
    device.wait_for("message=admitted")
    assert device.evaluate("a", "e")["value"] is True
    broker.restart()  # without persistence: it has forgotten everything
    file.write_text(flag.format("false"))
    assert flagcast.on_project("publish", file).code == 0
    device.wait_for("version=2")
    assert device.evaluate("a", "e")["value"] is False
    assert device.stop() == 0


@on_mosquitto
def test_a_second_agent_on_the_same_device_is_refused(
    site: tuple[Broker, Flagcast, Device], tmp_path: Path
) -> None:
    _, _, device = site
    device.start()
    device.wait_for("message=answering")
    second = device.run("run")
    assert second.returncode == 1
    assert "another agent works on this database" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    assert device.stop() == 0
