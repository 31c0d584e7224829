"""A mosquitto that runs from the very files of deploy/mosquitto: the whole job, and devices that try more than their own."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import pytest
from certificates import Authority
from devices import PATIENCE_SECONDS, Device, provision
from publishing import Flagcast, configure, features
from repository import ROOT

from brokers import Broker, add_mosquitto_user, free_port, start_configured_mosquitto
from flagcast_agent.config import BrokerConfig
from flagcast_agent.mqtt import Link, Said
from flagcast_bridge.broker import connection as mqtt
from flagcast_shared.ids import DeviceId, Environment, Namespace, Version
from flagcast_shared.topics import (
    DeltaAddress,
    DeviceAddress,
    HeadAddress,
    RootAddress,
    SnapshotAddress,
    Topics,
)

pytestmark = pytest.mark.mosquitto

FILES = ROOT / "deploy" / "mosquitto"
OWN, OTHER = DeviceId("charger-17"), DeviceId("charger-18")
TOPICS = Topics("flagcast", Environment("production"))
NAMESPACE = Namespace("default")
HEAD = TOPICS.of(HeadAddress(NAMESPACE))
LIE = b"a lie"


@dataclass(frozen=True, slots=True)
class Deployed:
    """The broker and what its users need to log in; `certified_port` asks for certificates."""

    broker: Broker
    certified_port: int
    folder: Path

    def connect(self, user: str, protocol: str = "5") -> mqtt.Connection:
        login = mqtt.Login(user, f"{user}'s secret", uses_tls=True, ca_file=self.folder / "ca.pem")
        return mqtt.connect("localhost", self.broker.port, login, protocol=protocol)

    def connect_certified(self, user: str) -> mqtt.Connection:
        login = mqtt.Login(
            uses_tls=True,
            ca_file=self.folder / "ca.pem",
            cert_file=self.folder / f"{user}.pem",
            key_file=self.folder / f"{user}.key",
        )
        return mqtt.connect("localhost", self.certified_port, login, protocol="5")


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployed]:
    etc, var = tmp_path / "etc", tmp_path / "var"
    etc.mkdir()
    var.mkdir()
    authority = Authority.make()
    (etc / "ca.pem").write_bytes(authority.pem)
    authority.certificate(etc, "localhost", file="broker")
    shutil.copy(FILES / "acl", etc / "acl")
    for user in ("publisher", OWN, OTHER):
        authority.certificate(etc, user)
        add_mosquitto_user(etc / "passwords", user, f"{user}'s secret")
    certified_port = free_port()

    def configuration(port: int) -> str:
        # What the first lines of the file say may be replaced, and the line that they say may be added.
        text = (FILES / "mosquitto.conf").read_text()
        for ours, theirs in (
            ("/etc/mosquitto", etc),
            ("/var/lib/mosquitto", var),
            ("8883", port),
            ("8884", certified_port),
        ):
            assert ours in text
            text = text.replace(ours, str(theirs))
        return f"{text}user root\n" if os.geteuid() == 0 else text

    with start_configured_mosquitto(tmp_path, configuration) as broker:
        yield Deployed(broker, certified_port, etc)


@pytest.fixture
def flagcast(tmp_path: Path, capsys: pytest.CaptureFixture[str], deployed: Deployed) -> Flagcast:
    """The publisher of `production`, who has published one flag."""
    folder = tmp_path / "fleet"
    command = Flagcast(folder, capsys)
    url = f"mqtts://localhost:{deployed.broker.port}"
    assert command("init", folder, "--environment", "production", "--broker", url).code == 0
    secret = tmp_path / "publisher.password"
    secret.write_text("publisher's secret\n")
    settings = {"user": "publisher", "password_file": str(secret), "ca_file": str(deployed.folder / "ca.pem")}
    configure(folder, {key: f'"{value}"' for key, value in settings.items()})
    flags = tmp_path / "flags"
    flags.mkdir()
    (flags / "features.yml").write_text(features({"lights": True}))
    published = command.on_project("publish", flags)
    assert published.code == 0, published.err
    return command


def certified_device(folder: Path, anchor: Path, deployed: Deployed, name: DeviceId) -> Device:
    device = provision(
        folder, anchor, f"mqtts://localhost:{deployed.certified_port}", "--namespace", "default", device=name
    )
    lines = [
        f'{key} = "{deployed.folder / file}"'
        for key, file in (("ca_file", "ca.pem"), ("cert_file", f"{name}.pem"), ("key_file", f"{name}.key"))
    ]
    path = folder / "agent.toml"
    path.write_text(path.read_text().replace("[broker]\n", "[broker]\n" + "\n".join(lines) + "\n"))
    return device


def test_the_whole_job_runs_under_these_rights(
    tmp_path: Path, deployed: Deployed, flagcast: Flagcast
) -> None:
    anchor = flagcast.folder / "roots" / "1.root"
    with certified_device(tmp_path / "device", anchor, deployed, OWN) as device:
        device.start()
        device.wait_for('message="up to date"')
        assert device.evaluate("lights", "e")["value"] is True
        device.wait_until(
            lambda: "1 device: 1 online" in flagcast.on_project("fleet").out, "the publisher reads its report"
        )
        assert device.stop() == 0
    assert "ERROR" not in device.log
    assert "refused" not in device.log


@pytest.mark.parametrize("way", ["password", "certificate"])
def test_a_device_that_writes_more_than_its_own_is_refused(
    deployed: Deployed, flagcast: Flagcast, way: str
) -> None:
    with deployed.connect("publisher") as publisher:
        before = publisher.read_all([f"{TOPICS.base}/#"])
    targets = [
        TOPICS.of(RootAddress(2)),
        HEAD,
        TOPICS.of(SnapshotAddress(NAMESPACE, Version(1), 0)),
        TOPICS.of(DeltaAddress(NAMESPACE, Version(2), Version(1))),
        *(TOPICS.of(DeviceAddress(OTHER, what)) for what in ("report", "metrics", "refresh")),
        "anything",
    ]
    with deployed.connect(OWN) if way == "password" else deployed.connect_certified(OWN) as device:
        for topic in targets:
            for payload in (LIE, b""):
                with pytest.raises(mqtt.NotAllowed, match=topic):
                    device.publish([(topic, payload)])
        device.publish([(TOPICS.of(DeviceAddress(OWN, what)), b"mine") for what in ("metrics", "refresh")])
    with deployed.connect("publisher") as publisher:
        found = publisher.read_all([f"{TOPICS.base}/#", "anything"])
    assert {
        topic: data for topic, data in found.items() if not topic.startswith(f"{TOPICS.base}/devices/")
    } == before


def test_a_will_reaches_no_further_than_its_device(
    tmp_path: Path, deployed: Deployed, flagcast: Flagcast
) -> None:
    own = TOPICS.of(DeviceAddress(OWN, "report"))
    with deployed.connect("publisher") as publisher:
        before = publisher.read_all([HEAD])
    # The broker sends wills in the order in which connections break.
    for topic in (HEAD, own):
        break_off(deployed, tmp_path, topic)
    with deployed.connect("publisher") as publisher:
        assert publisher.read_back({own: LIE}) == {}
        assert publisher.read_all([HEAD]) == before


def break_off(deployed: Deployed, folder: Path, topic: str) -> None:
    """Connect as the device with a will on a topic, and drop the connection without a word, if there is one."""
    secret = folder / "secret"
    secret.write_text(f"{OWN}'s secret")
    config = BrokerConfig(
        "localhost",
        deployed.broker.port,
        tls=True,
        user=OWN,
        password_file=secret,
        ca_file=deployed.folder / "ca.pem",
    )
    news: SimpleQueue[Said] = SimpleQueue()
    link = Link(config, f"flagcast-{OWN}", lambda said, _: news.put(said))
    link.connect("5", topic, LIE)
    news.get(timeout=PATIENCE_SECONDS)
    link.abandon()


def test_a_device_of_mqtt_3_1_1_gets_no_error_and_no_further(deployed: Deployed, flagcast: Flagcast) -> None:
    with deployed.connect("publisher") as publisher:
        before = publisher.read_all([HEAD])
    with deployed.connect(OWN, "3.1.1") as device:
        device.publish([(HEAD, LIE), (TOPICS.of(DeviceAddress(OTHER, "report")), LIE)])
    with deployed.connect("publisher") as publisher:
        assert publisher.read_all([HEAD, TOPICS.all_devices("report")]) == before


def test_a_device_reads_flags_and_roots_and_nothing_of_others(deployed: Deployed, flagcast: Flagcast) -> None:
    report = TOPICS.of(DeviceAddress(OTHER, "report"))
    with deployed.connect(OTHER) as other:
        other.publish([(report, b"private")])
    with deployed.connect("publisher") as publisher:
        assert publisher.read_all([TOPICS.all_devices("report")]) == {report: b"private"}
    with deployed.connect(OWN) as device:
        assert device.read_all([report, TOPICS.all_devices("report")]) == {}
        found = device.read_all(["#"])
        assert HEAD in found
        assert {topic.split("/")[3] for topic in found} == {"root", "flags"}


def test_nobody_is_let_in_without_a_name(deployed: Deployed) -> None:
    plain = mqtt.Login(uses_tls=True, ca_file=deployed.folder / "ca.pem")
    with pytest.raises(mqtt.AuthenticationRefused, match=r"broker\.user, broker\.password_file"):
        mqtt.connect("localhost", deployed.broker.port, plain)
    with pytest.raises(mqtt.BrokerError, match=r"broker\.cert_file"):
        mqtt.connect("localhost", deployed.certified_port, plain)
