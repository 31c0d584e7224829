"""`flagcast-agent doctor` on devices that are well and on devices that are not."""

import json
import os
import socket
import sqlite3
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from certificates import Authority
from devices import Device, provision
from followed import FollowedAgent, boolean
from publisher_simulator import PublisherSimulator

from brokers import free_port, start_mosquitto
from flagcast_agent import clock
from flagcast_agent.store.errors import StoreUnreadable
from flagcast_agent.store.reader import Reader
from flagcast_agent.store.rows import SCHEMA_VERSION


@pytest.fixture
def publisher() -> PublisherSimulator:
    return PublisherSimulator(now=clock.now())


def device_of(folder: Path, publisher: PublisherSimulator, url: str, *arguments: str) -> Device:
    anchor = folder / "anchor"
    anchor.write_bytes(publisher.anchor)
    return provision(folder / "device", anchor, url, *arguments)


@pytest.fixture
def device(tmp_path: Path, publisher: PublisherSimulator) -> Iterator[Device]:
    with device_of(tmp_path, publisher, f"mqtt://127.0.0.1:{free_port()}") as made:
        yield made


def examined(device: Device) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit code, and each check's verdict and text; of several lines of one check the last."""
    done = device.run("doctor", "--format", "json")
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document["ok"] is (done.returncode == 0)
    checks = {
        one["check"]: (one["verdict"], f"{one['found']}; {one['do'] or ''}") for one in document["checks"]
    }
    return done.returncode, checks


def flags_on(device: Device, publisher: PublisherSimulator) -> None:
    """A database with one namespace, as an agent leaves it."""
    agent = FollowedAgent(device.folder / "agent.sqlite")
    agent.publish(boolean("a", enabled=True))
    agent.close()


@pytest.mark.mosquitto
def test_a_device_that_is_well(tmp_path: Path, publisher: PublisherSimulator) -> None:
    with (
        start_mosquitto(tmp_path / "broker") as broker,
        device_of(tmp_path, publisher, broker.url) as device,
    ):
        flags_on(device, publisher)
        code, dead = examined(device)
        assert code == 1
        assert {name for name, (verdict, _) in dead.items() if verdict == "failed"} == {"agent"}
        assert dead["broker login"] == ("ok", "the broker lets this device in; ")
        device.start()
        device.wait_for("message=connected")
        code, checks = examined(device)
        assert code == 0, checks
        assert {verdict for verdict, _ in checks.values()} == {"ok"}
        assert "1 namespace, 1 records" in checks["database"][1]
        assert "the agent is connected" in checks["broker"][1]
        assert "version 1, fresh until" in checks["flags default"][1]
        text = device.run("doctor")
        assert text.returncode == 0
        assert len(text.stdout.splitlines()) == len(checks)
        assert all(line.startswith("ok ") for line in text.stdout.splitlines())
        assert "connection lost" not in device.log


def test_a_folder_that_is_not_provisioned(tmp_path: Path) -> None:
    code, checks = examined(Device(tmp_path))
    assert code == 1
    assert list(checks) == ["configuration"]
    assert "flagcast-agent provision" in checks["configuration"][1]


def test_a_dead_agent_and_a_dead_broker(device: Device) -> None:
    code, checks = examined(device)
    assert code == 1
    assert checks["agent"][0] == checks["broker port"][0] == "failed"
    assert "flagcast-agent run" in checks["agent"][1]
    assert checks["broker name"][0] == "ok"
    assert "there is none yet" in checks["database"][1]
    assert "broker login" not in checks


def test_an_anchor_that_is_none(device: Device) -> None:
    (device.folder / "root.cbor").write_bytes(b"not a root")
    _, checks = examined(device)
    assert checks["anchor"][0] == "failed"
    (device.folder / "root.cbor").unlink()
    _, checks = examined(device)
    assert "cannot be read" in checks["anchor"][1]


@pytest.mark.parametrize(
    ("days", "verdict", "words"), [(366, "failed", "nothing new is admitted"), (330, "warning", "soon")]
)
def test_a_root_that_has_expired_or_soon_will(tmp_path: Path, days: int, verdict: str, words: str) -> None:
    publisher = PublisherSimulator(now=clock.now() - days * 86_400)
    _, checks = examined(device_of(tmp_path, publisher, "mqtt://127.0.0.1:1"))
    found, text = checks["root in force"]
    assert found == verdict
    assert words in text


def test_a_clock_that_is_behind(tmp_path: Path) -> None:
    publisher = PublisherSimulator(now=clock.now() + 86_400)
    _, checks = examined(device_of(tmp_path, publisher, "mqtt://127.0.0.1:1"))
    verdict, text = checks["clock"]
    assert verdict == "warning"
    assert "set the device's clock" in text


@pytest.mark.parametrize("damage", ["page", "record", "newer"])
def test_a_database_that_cannot_be_used(device: Device, publisher: PublisherSimulator, damage: str) -> None:
    flags_on(device, publisher)
    store = device.folder / "agent.sqlite"
    if damage == "page":
        data = store.read_bytes()
        store.write_bytes(data[:4096] + os.urandom(4096) + data[8192:])
    else:
        with closing(sqlite3.connect(store)) as connection, connection:
            connection.execute(
                "UPDATE holding SET version = 7"
                if damage == "record"
                else f"PRAGMA user_version = {SCHEMA_VERSION + 1}"
            )
    _, checks = examined(device)
    verdict, text = checks["database"]
    assert verdict == "failed"
    assert ("later release" if damage == "newer" else "--recover") in text


def test_what_everybody_may_write_or_read(device: Device) -> None:
    password = device.folder / "password"
    password.write_text("secret\n")
    password.chmod(0o644)
    config = device.folder / "agent.toml"
    config.write_text(
        config.read_text().replace("[broker]\n", '[broker]\nuser = "me"\npassword_file = "password"\n')
    )
    code, checks = examined(device)
    assert (code, checks["permissions"][0]) == (1, "failed")
    assert "chmod o-r" in checks["permissions"][1]
    password.chmod(0o600)
    assert examined(device)[1]["permissions"][0] == "ok"
    (device.folder / "root.cbor").chmod(0o666)
    assert "chmod o-w" in examined(device)[1]["permissions"][1]


def test_a_name_that_nobody_knows(tmp_path: Path, publisher: PublisherSimulator) -> None:
    _, checks = examined(device_of(tmp_path, publisher, "mqtt://broker.invalid"))
    assert checks["broker name"][0] == "failed"
    assert "broker.url" in checks["broker name"][1]
    assert "broker port" not in checks


@pytest.mark.mosquitto
def test_a_broker_that_refuses(tmp_path: Path, publisher: PublisherSimulator) -> None:
    with start_mosquitto(tmp_path / "broker", user=("somebody", "else")) as broker:
        _, checks = examined(device_of(tmp_path, publisher, broker.url))
    verdict, text = checks["broker login"]
    assert verdict == "failed"
    assert "refused" in text
    assert "broker.password_file" in text


@contextmanager
def tls_server(authority: Authority, folder: Path) -> Iterator[int]:
    """Shakes hands and says nothing more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.certificate(folder, "localhost"))
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(stream, server_side=True) as wrapped:
                    wrapped.recv(1)
            except OSError:
                pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_a_certificate_that_is_not_trusted(tmp_path: Path, publisher: PublisherSimulator) -> None:
    authority = Authority.make()
    with tls_server(authority, tmp_path) as port:
        device = device_of(tmp_path, publisher, f"mqtts://localhost:{port}")
        _, checks = examined(device)
        assert checks["broker tls"][0] == "failed"
        assert "not trusted" in checks["broker tls"][1]
        (device.folder / "ca.pem").write_bytes(authority.pem)
        config = device.folder / "agent.toml"
        config.write_text(config.read_text().replace("[broker]\n", '[broker]\nca_file = "ca.pem"\n'))
        assert examined(device)[1]["broker tls"][0] == "ok"


def test_a_handshake_that_fails_leaves_no_socket_open(
    tmp_path: Path, publisher: PublisherSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "always::ResourceWarning")
    with (
        tls_server(Authority.make(), tmp_path) as port,
        device_of(tmp_path, publisher, f"mqtts://localhost:{port}") as device,
    ):
        device.start()
        device.wait_for("fault=refused")
        assert device.stop() == 0
        assert "unclosed" not in device.log


def files_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {
        path.name: (path.stat().st_mode, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.iterdir())
    }


def test_it_creates_nothing_where_there_is_no_database(device: Device) -> None:
    before = files_of(device.folder)
    code, checks = examined(device)
    assert code == 1
    assert checks["database"][0] == "warning"
    assert "there is none yet" in checks["database"][1]
    assert files_of(device.folder) == before
    # Whoever ran it, the agent makes a database of its own.
    device.start()
    device.wait_for("message=answering")
    assert device.stop() == 0


def test_a_database_that_goes_away_while_it_is_read_is_not_made_anew(device: Device) -> None:
    path = device.folder / "agent.sqlite"
    for read in (Reader(path).belief, Reader(path).damages, lambda: Reader(path).look({})):
        with pytest.raises(StoreUnreadable, match="there is no database"):
            read()
    assert not path.exists()
