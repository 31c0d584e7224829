"""What an agent says and goes on doing when the broker, the disk or the configuration is not as it should be."""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from devices import Device, provision
from publisher_simulator import PublisherSimulator

from brokers import Broker, add_mosquitto_user, free_port, start_mosquitto
from flagcast_bridge.broker import connection as mqtt
from flagcast_shared.ids import FlagKey
from flagcast_shared.model import BooleanFlag

FLAG = BooleanFlag(FlagKey("lights"), enabled=True)


@pytest.fixture
def simulator() -> PublisherSimulator:
    return PublisherSimulator(now=int(time.time()))  # noqa: TID251  # devices judge its roots by their clock


@pytest.fixture
def anchor(tmp_path: Path, simulator: PublisherSimulator) -> Path:
    path = tmp_path / "anchor"
    path.write_bytes(simulator.anchor)
    return path


@pytest.fixture
def synced(tmp_path: Path, simulator: PublisherSimulator, anchor: Path) -> Iterator[tuple[Broker, Device]]:
    """A device that has admitted a version and was stopped; its broker runs."""
    simulator.release(FLAG)
    with (
        start_mosquitto(tmp_path / "broker") as broker,
        provision(tmp_path / "device", anchor, broker.url) as device,
    ):
        with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
            connection.publish(list(simulator.retained.items()))
        device.start()
        device.wait_for("message=admitted")
        assert device.stop() == 0
        yield broker, device


def last_error(device: Device) -> str:
    link = device.status()["link"]
    assert isinstance(link, dict)
    return str(link["last_error"])


@pytest.mark.mosquitto
def test_a_broker_that_refuses_the_credentials_is_named_and_the_answers_go_on(
    tmp_path: Path, synced: tuple[Broker, Device]
) -> None:
    broker, device = synced
    broker.stop()
    with start_mosquitto(tmp_path / "guarded", port=broker.port, user=("fleet", "secret")):
        device.start()
        device.wait_for("fault=refused")
        assert "Not authorized" in last_error(device)
        assert device.evaluate("lights", "e")["value"] is True
        assert device.stop() == 0


@pytest.mark.mosquitto
def test_a_broker_without_tls_is_named_when_tls_was_asked_for(synced: tuple[Broker, Device]) -> None:
    _, device = synced
    configuration = device.folder / "agent.toml"
    configuration.write_text(configuration.read_text().replace("mqtt://", "mqtts://"))
    device.start()
    device.wait_for("no connection")
    assert "TLS" in last_error(device) or "closed" in last_error(device) or "reset" in last_error(device)
    assert device.evaluate("lights", "e")["value"] is True
    assert device.stop() == 0


def test_no_broker_at_all_is_named_and_the_answers_go_on(synced: tuple[Broker, Device]) -> None:
    broker, device = synced
    broker.kill()
    device.start()
    device.wait_for("fault=network")
    assert f"{broker.host}:{broker.port}" in last_error(device)
    assert device.evaluate("lights", "e")["value"] is True
    assert device.stop() == 0


@pytest.mark.mosquitto
def test_garbage_on_every_subscribed_topic_changes_nothing(
    synced: tuple[Broker, Device], simulator: PublisherSimulator
) -> None:
    broker, device = synced
    device.start()
    device.wait_for('message="up to date"')
    lies = [b"\x00", b"\xd2\x84", b"{}", b"\xff" * 1000, simulator.retained[simulator.head_topic][:-1]]
    with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
        connection.publish([(simulator.head_topic, lie) for lie in lies])
        connection.publish([(simulator.root_topic(2), lie) for lie in lies])
    device.wait_until(lambda: device.log.count("message=refused") >= 2 * len(lies), "every lie is refused")
    assert f"topic={simulator.head_topic}" in device.log
    assert "attack=malformed" in device.log
    assert device.evaluate("lights", "e")["value"] is True
    assert device.stop() == 0


def test_a_corrupt_database_is_left_alone_until_recover_sets_it_aside(synced: tuple[Broker, Device]) -> None:
    _, device = synced
    store = device.folder / "agent.sqlite"
    damaged = b"not a database" * 1000
    store.write_bytes(damaged)
    refused = device.run("run")
    assert refused.returncode == 1
    assert "--recover" in refused.stderr
    assert store.read_bytes() == damaged
    device.start("--recover")
    device.wait_for("message=admitted")
    assert device.evaluate("lights", "e")["value"] is True
    (kept,) = device.folder.glob("agent.sqlite.corrupt-*")
    assert kept.read_bytes() == damaged
    assert device.stop() == 0


def test_a_record_that_was_changed_on_disk_is_not_answered_from(synced: tuple[Broker, Device]) -> None:
    _, device = synced
    with sqlite3.connect(device.folder / "agent.sqlite") as connection:
        connection.execute(
            "UPDATE record SET data = CAST(replace(data, X'6C6967687473', X'6C696768747A') AS BLOB)"
        )
    connection.close()
    refused = device.run("run")
    assert refused.returncode == 1
    assert "not those that were admitted" in refused.stderr
    assert "--recover" in refused.stderr


def test_a_database_of_a_later_release_is_refused(synced: tuple[Broker, Device]) -> None:
    _, device = synced
    with sqlite3.connect(device.folder / "agent.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    refused = device.run("run")
    assert refused.returncode == 1
    assert "later release" in refused.stderr


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('protocol = "auto"', 'protocol = "4"', "broker.protocol is '4'; allowed: auto, 5, 3.1.1"),
        ('protocol = "auto"', 'protocl = "5"', "broker.protocl is not a known key; did you mean 'protocol'?"),
        ("mqtt://", "http://", "broker.url cannot be used"),
        ('environment = "production"', "", "environment is missing"),
        ('id = "device-1"', 'id = "a/b"', "device.id cannot be used"),
        ('namespaces = ["default"]', "namespaces = []", "namespaces must be a list of at least one text"),
        ("[device]", "[device", "cannot be read"),
    ],
)
def test_a_wrong_configuration_is_one_line_that_says_which_key(
    tmp_path: Path, anchor: Path, before: str, after: str, said: str
) -> None:
    device = provision(tmp_path / "device", anchor, f"mqtt://127.0.0.1:{free_port()}")
    path = device.folder / "agent.toml"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    done = device.run("run")
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert str(path) in done.stderr


def test_a_socket_in_a_folder_that_is_not_there_is_one_line(tmp_path: Path, anchor: Path) -> None:
    device = provision(
        tmp_path / "device",
        anchor,
        f"mqtt://127.0.0.1:{free_port()}",
        "--socket",
        str(tmp_path / "no" / "a.sock"),
    )
    done = device.run("run")
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert len(done.stderr.splitlines()) == 1


ACCESS = """user fleet
topic read flagcast/#
pattern write flagcast/1/+/devices/%u/report
user publisher
topic readwrite flagcast/#
"""
# As in deploy/mosquitto/acl: a device writes below its user's name.


def link(device: Device) -> dict[str, object]:
    found = device.status()["link"]
    assert isinstance(found, dict)
    return found


@pytest.mark.mosquitto
def test_a_report_that_the_broker_refuses_is_told_until_one_is_taken(
    tmp_path: Path, simulator: PublisherSimulator, anchor: Path
) -> None:
    rules = tmp_path / "acl"
    rules.write_text(ACCESS)
    simulator.release(FLAG)
    (tmp_path / "password").write_text("secret")
    with (
        start_mosquitto(tmp_path / "broker", user=("fleet", "secret"), lines=[f"acl_file {rules}"]) as broker,
        provision(tmp_path / "device", anchor, broker.url) as device,
    ):
        add_mosquitto_user(tmp_path / "broker" / "passwords", "publisher", "secret")
        os.kill(broker.pid, signal.SIGHUP)
        configuration = device.folder / "agent.toml"
        configuration.write_text(
            configuration.read_text().replace(
                "[broker]", f'[broker]\nuser = "fleet"\npassword_file = "{tmp_path / "password"}"'
            )
        )
        with mqtt.connect(broker.host, broker.port, mqtt.Login("publisher", "secret")) as connection:
            connection.publish(list(simulator.retained.items()))
            device.start()
            device.wait_for("message=admitted")
            device.wait_for("report refused")
            refused = str(link(device)["report_refused"])
            assert "Not authorized" in refused
            assert "(135)" in refused
            assert "is its user device-1?" in device.run("status").stdout
            told = device.run("doctor")
            assert told.returncode == 1
            assert "failed   report         refused by the broker: Not authorized (135)" in told.stdout
            # Flags come and are answered all the same; of every report one would be refused, and one line tells it.
            simulator.release(BooleanFlag(FlagKey("lights"), enabled=False))
            connection.publish(list(simulator.retained.items()))
            device.wait_for("version=2")
            assert device.evaluate("lights", "e")["value"] is False
            assert device.log.count("report refused") == 1
            rules.write_text(ACCESS.replace("%u", "device-1"))
            os.kill(broker.pid, signal.SIGHUP)
            simulator.release(FLAG)
            connection.publish(list(simulator.retained.items()))
            device.wait_for("report taken again")
        assert link(device)["report_refused"] is None
        assert "refused by the broker" not in device.run("status").stdout
        assert device.stop() == 0


@pytest.mark.mosquitto
def test_a_broker_that_goes_away_is_the_last_error(synced: tuple[Broker, Device]) -> None:
    broker, device = synced
    device.start()
    device.wait_for('message="up to date"')
    broker.kill()
    device.wait_for("connection lost")
    (line,) = [line for line in device.log.splitlines() if "connection lost" in line]
    assert "the broker closed the connection" in line or "the connection broke: " in line
    assert "Unspecified" not in device.log
    assert device.stop() == 0
