"""Agent and publisher over TLS, with certificates and passwords, over WebSocket, and when something of it is wrong."""

import contextlib
import queue
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import Authority
from cryptography.hazmat.primitives import serialization
from devices import Device, provision
from followed import wait_until
from fronts import Front
from mqtt_meter import Meter, metered
from publisher_simulator import PublisherSimulator
from publishing import Flagcast, configure, features, make_project
from raw_http1 import HttpClient
from serving import Serve

from brokers import free_port, start_mosquitto
from flagcast_agent import config
from flagcast_agent.config import BrokerConfig
from flagcast_agent.mqtt import Link, Said, Traffic
from flagcast_agent.sync.events import Connected, ConnectFailed, Disconnected, Fault
from flagcast_bridge import project
from flagcast_bridge.broker import connection as mqtt
from flagcast_shared.errors import InvalidConfiguration
from flagcast_shared.ids import FlagKey
from flagcast_shared.model import BooleanFlag

LIGHTS = BooleanFlag(FlagKey("lights"), enabled=True)
PATIENCE_SECONDS = 100.0


@dataclass(frozen=True, slots=True)
class Held:
    """A device that has admitted a version, to be copied; and what the broker has to retain for it."""

    folder: Path
    publisher: PublisherSimulator


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    folder = tmp_path_factory.mktemp("held")
    publisher = PublisherSimulator(now=int(time.time()))  # noqa: TID251  # devices judge it by their clock
    publisher.release(LIGHTS)
    (folder / "anchor").write_bytes(publisher.anchor)
    with (
        start_mosquitto(folder / "broker") as broker,
        provision(folder / "device", folder / "anchor", broker.url) as device,
    ):
        with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
            connection.publish(list(publisher.retained.items()))
        device.start()
        device.wait_for('message="up to date"')
        assert device.stop() == 0
    (folder / "device" / "log").unlink()
    return Held(folder / "device", publisher)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make()


def device_at(tmp_path: Path, held: Held, url: str, **keys: object) -> Device:
    """A copy of the device that holds a version, on the way to a broker; `keys` go into its `[broker]`."""
    folder = tmp_path / "device"
    shutil.copytree(held.folder, folder)
    path = folder / "agent.toml"
    lines = [f'url = "{url}"', *(f'{key} = "{value}"' for key, value in keys.items())]
    path.write_text(
        "".join(
            "\n".join(lines) + "\n" if line.startswith("url =") else line
            for line in path.read_text().splitlines(keepends=True)
        )
    )
    return Device(folder)


def tls(folder: Path, *, name: str = "broker", lines: Sequence[str] = ()) -> list[str]:
    """Lines that make a mosquitto speak TLS, with the files of a folder."""
    return [
        f"cafile {folder}/ca.pem",
        f"certfile {folder}/{name}.pem",
        f"keyfile {folder}/{name}.key",
        *lines,
    ]


def certified(authority: Authority, folder: Path) -> Path:
    """A new folder with what a broker called localhost needs, and certificates of a device and a publisher."""
    folder.mkdir()
    (folder / "ca.pem").write_bytes(authority.pem)
    authority.certificate(folder, "localhost", file="broker")
    authority.certificate(folder, "device-1", file="device")
    authority.certificate(folder, "publisher")
    return folder


def publish(held: Held, port: int, login: mqtt.Login, path: str = "") -> None:
    with mqtt.connect("localhost", port, login, path=path) as connection:
        retained = list(held.publisher.retained.items())
        connection.publish(retained)
        assert connection.read_back(dict(retained)) == {}


def last_error(device: Device) -> str:
    link = device.status()["link"]
    assert isinstance(link, dict)
    return str(link["last_error"])


# What works


@pytest.mark.mosquitto
def test_tls_of_a_private_authority_with_user_and_password_from_a_file(
    tmp_path: Path, held: Held, authority: Authority
) -> None:
    folder = certified(authority, tmp_path / "tls")
    (folder / "password").write_text("wörd of mouth\n")
    with start_mosquitto(
        tmp_path / "broker", user=("device-1", "wörd of mouth"), lines=tls(folder)
    ) as broker:
        login = mqtt.Login("device-1", "wörd of mouth", uses_tls=True, ca_file=folder / "ca.pem")
        publish(held, broker.port, login)
        keys = {"user": "device-1", "password_file": folder / "password", "ca_file": folder / "ca.pem"}
        with device_at(tmp_path, held, f"mqtts://localhost:{broker.port}", **keys) as device:
            device.start()
            device.wait_for('message="up to date"')
            assert "wörd of mouth" not in device.log + device.run("status").stdout
            assert device.stop() == 0


def link_bytes(device: Device) -> tuple[int, int]:
    """Bytes that the agent says it has received from its broker and sent to it."""
    with HttpClient(device.socket) as client:
        text = client.ask("GET", "/metrics").body.decode()
    found = dict(re.findall(r"^flagcast_link_(received|sent)_bytes_total (\d+)$", text, re.MULTILINE))
    return int(found["received"]), int(found["sent"])


def metered_bytes(meter: Meter) -> tuple[int, int]:
    """The same, as somebody between the two has counted."""
    sizes = [(packet.from_client, packet.size) for packet in meter.packets]
    return sum(size for ours, size in sizes if not ours), sum(size for ours, size in sizes if ours)


@pytest.mark.mosquitto
@pytest.mark.parametrize("scheme", ["mqtt", "mqtts", "ws", "wss"])
def test_the_bytes_of_mqtt_are_counted_whatever_carries_them(
    tmp_path: Path, held: Held, authority: Authority, scheme: str
) -> None:
    folder = certified(authority, tmp_path / "tls")
    certificate = (folder / "broker.pem", folder / "broker.key") if scheme in {"mqtts", "wss"} else None
    path = "/mqtt" if scheme in {"ws", "wss"} else ""
    with (
        start_mosquitto(tmp_path / "broker") as broker,
        metered(broker.host, broker.port) as meter,
        Front(meter.port, certificate=certificate, path=path) as front,
    ):
        publish(held, broker.port, mqtt.Login())
        keys = {"ca_file": folder / "ca.pem"} if certificate else {}
        with device_at(tmp_path, held, f"{scheme}://localhost:{front.port}{path}", **keys) as device:
            device.start()
            device.wait_for('message="up to date"')
            device.wait_until(lambda: meter.is_settled, "every packet has its answer")
            device.wait_until(lambda: link_bytes(device) == metered_bytes(meter), "both count the same")
            received, sent = link_bytes(device)
            assert received > len(held.publisher.retained[held.publisher.head_topic])
            held.publisher.release(BooleanFlag(FlagKey("lights"), enabled=False), inline=True)
            admitted = len(device.logged_versions)
            publish(held, broker.port, mqtt.Login())
            device.wait_until(lambda: len(device.logged_versions) > admitted, "the next version comes live")
            device.wait_until(lambda: meter.is_settled, "every packet has its answer")
            device.wait_until(lambda: link_bytes(device) == metered_bytes(meter), "both count the same")
            now_received, now_sent = link_bytes(device)
            assert now_received > received
            assert now_sent > sent, "it has reported"
            assert device.stop() == 0


@pytest.mark.mosquitto
def test_bytes_are_counted_through_all_connections(tmp_path: Path) -> None:
    events: queue.SimpleQueue[Said] = queue.SimpleQueue()
    with start_mosquitto(tmp_path / "broker") as broker, metered(broker.host, broker.port) as meter:
        link = Link(
            BrokerConfig("127.0.0.1", meter.port, tls=False), "device-1", lambda said, _: events.put(said)
        )
        assert link.traffic == Traffic(0, 0)
        before = 0
        for _ in range(4):
            link.connect("5", "will", b"gone")
            assert events.get(timeout=PATIENCE_SECONDS) == Connected()
            assert link.traffic.sent > before
            before = link.traffic.sent
        link.close()
        wait_until(lambda: link.traffic == Traffic(*metered_bytes(meter)), "both count the same")


@pytest.mark.mosquitto
def test_client_certificates_are_all_that_is_needed_to_log_in(
    tmp_path: Path, held: Held, authority: Authority
) -> None:
    folder = certified(authority, tmp_path / "tls")
    lines = tls(folder, lines=["require_certificate true", "use_identity_as_username true", "log_type all"])
    with start_mosquitto(tmp_path / "broker", user=("nobody", "nothing"), lines=lines) as broker:
        ca_file = folder / "ca.pem"
        ours = (folder / "publisher.pem", folder / "publisher.key")
        publish(held, broker.port, mqtt.Login("", "", True, ca_file, *ours))
        keys = {"ca_file": ca_file, "cert_file": folder / "device.pem", "key_file": folder / "device.key"}
        with device_at(tmp_path, held, f"mqtts://localhost:{broker.port}", **keys) as device:
            device.start()
            device.wait_for('message="up to date"')
            assert device.stop() == 0
    # It writes its log when it ends.
    assert "u'publisher'" in broker.log
    assert "flagcast-device-1 (p5, c1, k60, u'device-1')" in broker.log


@pytest.mark.mosquitto
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_mqtt_over_a_websocket_whose_pings_are_answered(
    tmp_path: Path, held: Held, authority: Authority, scheme: str
) -> None:
    folder = certified(authority, tmp_path / "tls")
    certificate = (folder / "broker.pem", folder / "broker.key") if scheme == "wss" else None
    ca_file = folder / "ca.pem" if scheme == "wss" else None
    with (
        start_mosquitto(tmp_path / "broker") as broker,
        Front(broker.port, certificate=certificate, path="/by/web") as front,
    ):
        publish(held, front.port, mqtt.Login(uses_tls=scheme == "wss", ca_file=ca_file), "/by/web")
        assert set(front.paths) == {"/by/web"}
        keys = {"ca_file": ca_file} if ca_file else {}
        url = f"{scheme}://localhost:{front.port}/by/web"
        with device_at(tmp_path, held, url, **keys) as device:
            device.start()
            device.wait_for('message="up to date"')
            device.wait_until(lambda: front.pongs >= 5, "pings are answered")
            assert set(front.hosts) == {f"localhost:{front.port}"}
            assert "connection lost" not in device.log
            admitted = len(device.logged_versions)
            held.publisher.release(BooleanFlag(FlagKey("lights"), enabled=False))
            publish(held, broker.port, mqtt.Login())
            device.wait_until(lambda: len(device.logged_versions) > admitted, "the next version comes live")
            assert device.stop() == 0


@pytest.mark.mosquitto
def test_the_publisher_serves_over_a_websocket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with start_mosquitto(tmp_path / "broker") as broker, Front(broker.port, path="/mqtt") as front:
        make_project(tmp_path / "fleet", f"ws://127.0.0.1:{front.port}")
        flagcast = Flagcast(tmp_path / "fleet", capsys)
        (tmp_path / "features.yml").write_text(features({"lights": True}))
        published = flagcast.on_project("publish", tmp_path / "features.yml")
        assert published.code == 0, published.err
        with Serve(tmp_path / "fleet", tmp_path / "serve.log") as serve:
            serve.wait_for("checked")
            serve.wait_until(lambda: front.pongs >= 5, "pings are answered")
            assert serve.stop() == 0
            assert "connection lost" not in serve.log


@pytest.mark.mosquitto
@pytest.mark.parametrize("path", ["", "/mqtt"])
def test_the_handshake_names_the_server_and_the_protocol(
    tmp_path: Path, held: Held, authority: Authority, path: str
) -> None:
    folder = certified(authority, tmp_path / "tls")
    certificate = authority.certificate(folder, "mqtt.fleet.example")
    with (
        start_mosquitto(tmp_path / "broker") as broker,
        Front(broker.port, certificate=certificate, alpn="x-amzn-mqtt-ca", path=path) as front,
    ):
        wanted = {"server_name": "mqtt.fleet.example", "alpn": "x-amzn-mqtt-ca"}
        login = mqtt.Login("", "", True, folder / "ca.pem", None, None, *wanted.values())
        publish(held, front.port, login, path)
        url = f"{'wss' if path else 'mqtts'}://127.0.0.1:{front.port}{path}"
        with device_at(tmp_path, held, url, ca_file=folder / "ca.pem", **wanted) as device:
            device.start()
            device.wait_for('message="up to date"')
            assert device.stop() == 0
        assert set(front.names) == {"mqtt.fleet.example"}
        if path:
            assert set(front.hosts) == {f"mqtt.fleet.example:{front.port}"}
        else:
            assert set(front.protocols) == {"x-amzn-mqtt-ca"}


@pytest.mark.mosquitto
def test_the_host_of_the_url_is_named_where_nothing_else_is_said(
    tmp_path: Path, held: Held, authority: Authority
) -> None:
    folder = certified(authority, tmp_path / "tls")
    certificate = (folder / "broker.pem", folder / "broker.key")
    with (
        start_mosquitto(tmp_path / "broker") as broker,
        Front(broker.port, certificate=certificate, alpn="mqtt") as front,
    ):
        publish(held, front.port, mqtt.Login(uses_tls=True, ca_file=folder / "ca.pem"))
        with device_at(
            tmp_path, held, f"mqtts://localhost:{front.port}", ca_file=folder / "ca.pem"
        ) as device:
            device.start()
            device.wait_for('message="up to date"')
            assert device.stop() == 0
        assert set(front.names) == {"localhost"}
        assert set(front.protocols) == {None}


@pytest.mark.mosquitto
def test_certificates_that_are_replaced_on_disk_serve_for_the_next_connection(
    tmp_path: Path, held: Held, authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = certified(authority, tmp_path / "tls")
    lines = tls(folder, lines=["require_certificate true", "use_identity_as_username true"])
    keys = {
        "ca_file": folder / "ca.pem",
        "cert_file": folder / "device.pem",
        "key_file": folder / "device.key",
    }
    with (
        start_mosquitto(tmp_path / "broker", persistence=True, lines=lines) as broker,
        device_at(tmp_path, held, f"mqtts://localhost:{broker.port}", **keys) as device,
    ):
        fleet = tmp_path / "fleet"
        make_project(fleet, f"mqtts://localhost:{broker.port}")
        ours = {"ca_file": "ca.pem", "cert_file": "publisher.pem", "key_file": "publisher.key"}
        configure(fleet, {key: f'"{folder / file}"' for key, file in ours.items()})
        flagcast = Flagcast(fleet, capsys)
        (tmp_path / "features.yml").write_text(features({"lights": True}))
        published = flagcast.on_project("publish", tmp_path / "features.yml")
        assert published.code == 0, published.err
        device.start()
        device.wait_for("message=connected")
        with Serve(fleet, tmp_path / "serve.log") as serve:
            serve.wait_for("checked")
            # Another authority, which knows nobody of before, and nobody of before knows.
            other = Authority.make()
            for file, name in (("device", "device-1"), ("publisher", "publisher"), ("broker", "localhost")):
                other.certificate(folder, name, file=file)
            (folder / "ca.pem").write_bytes(other.pem)
            broker.restart()
            device.wait_until(lambda: device.log.count("message=connected") == 2, "connected again")
            serve.wait_for("checked", 2)
            assert serve.stop() == 0
        assert device.stop() == 0
        assert "TLS" not in device.log


# What does not, and what is said of it

REFUSALS = {
    "stranger's authority": (
        Fault.REFUSED,
        "in certificate chain; set broker.ca_file to the certificate of who issued it",
    ),
    "another host name": (
        Fault.REFUSED,
        "certificate is not valid for 'localhost'.; correct broker.url, or name in broker.server_name what",
    ),
    "expired": (
        Fault.REFUSED,
        "certificate has expired; renew it on the broker, or set this machine's clock",
    ),
    "no client certificate": (
        Fault.REFUSED,
        "the broker asks for a certificate; set broker.cert_file and broker.key_file",
    ),
    "stranger's client certificate": (
        Fault.REFUSED,
        "the broker does not take our certificate; renew broker.cert_file, or tell the broker who issued it",
    ),
    "expired client certificate": (
        Fault.REFUSED,
        "the broker does not take our certificate; renew broker.cert_file, or tell the broker who issued it",
    ),
    "wrong password": (Fault.REFUSED, "Not authorized; check broker.user, broker.password_file"),
    "no TLS there": (Fault.NETWORK, "check that the broker speaks TLS on this port"),
    "certificate file is missing": (
        Fault.REFUSED,
        "broker.cert_file and broker.key_file cannot be used: No such file or directory",
    ),
    "authority file is none": (Fault.REFUSED, "broker.ca_file cannot be used"),
}


@pytest.mark.mosquitto
@pytest.mark.parametrize("what", REFUSALS)
def test_what_is_wrong_is_one_line_that_says_what_to_do_and_answers_go_on(
    tmp_path: Path, held: Held, authority: Authority, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    fault, line = REFUSALS[what]
    folder = certified(authority, tmp_path / "tls")
    keys = {"ca_file": folder / "ca.pem", "user": "device-1", "password_file": folder / "password"}
    (folder / "password").write_text("right")
    lines = tls(folder)
    ours = {"cert_file": folder / "device.pem", "key_file": folder / "device.key"}
    match what:
        case "stranger's authority":
            (folder / "other.pem").write_bytes(Authority.make().pem)
            keys["ca_file"] = folder / "other.pem"
        case "another host name":
            authority.certificate(folder, "elsewhere.example", file="broker")
        case "expired":
            authority.certificate(folder, "localhost", file="broker", is_expired=True)
        case "no client certificate":
            lines.append("require_certificate true")
        case "stranger's client certificate":
            lines.append("require_certificate true")
            Authority.make().certificate(folder, "device-1", file="device")
            keys |= ours
        case "expired client certificate":
            lines.append("require_certificate true")
            authority.certificate(folder, "device-1", file="device", is_expired=True)
            keys |= ours
        case "wrong password":
            (folder / "password").write_text("wrong")
        case "no TLS there":
            lines = []
        case "certificate file is missing":
            (folder / "device.pem").unlink()
            keys |= ours
        case _:
            (folder / "ca.pem").rename(folder / "authority.pem")
            (folder / "ca.pem").write_text("no certificate")
            lines[0] = f"cafile {folder}/authority.pem"
    with start_mosquitto(tmp_path / "broker", user=("device-1", "right"), lines=lines) as broker:
        url = f"mqtts://localhost:{broker.port}"
        with device_at(tmp_path, held, url, **keys) as device:
            device.start()
            device.wait_for("no connection")
            (said,) = [each for each in device.log.splitlines() if "no connection" in each]
            assert f"fault={fault.value}" in said
            assert line in said
            assert device.evaluate("lights", "e")["value"] is True
            assert device.stop() == 0
            assert "Traceback" not in device.log
            assert "unclosed" not in device.log

        make_project(tmp_path / "fleet", url)
        configure(tmp_path / "fleet", {key: f'"{value}"' for key, value in keys.items()})
        shown = Flagcast(tmp_path / "fleet", capsys).on_project("show")
    assert shown.code in {2, 3}
    assert line in shown.err
    assert len(shown.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"url": "mqtt://h", "ca_file": "ca.pem"}, "broker.url is without TLS, so ca_file has no use"),
        ({"url": "ws://h", "alpn": "mqtt"}, "broker.url is without TLS, so alpn has no use"),
        ({"url": "mqtt://h", "server_name": "x"}, "broker.url is without TLS, so server_name has no use"),
        ({"cert_file": "c.pem"}, "broker.key_file is missing; cert_file and key_file come together"),
        ({"key_file": "c.key"}, "broker.cert_file is missing"),
        ({"password_file": "p"}, "broker.password_file needs broker.user beside it"),
        ({"server_name": "a/b"}, "broker.server_name cannot be used: 'a/b': allowed is a host name"),
        ({"alpn": "two words"}, "broker.alpn cannot be used: 'two words'"),
        ({"url": "mqtts://h/path"}, "only ws:// and wss:// have a path"),
        ({"url": "mqtts://me:secret@h"}, "broker.user and broker.password_file"),
    ],
)
def test_keys_that_do_not_go_together_are_one_line_on_both_sides(
    tmp_path: Path, held: Held, keys: dict[str, str], said: str
) -> None:
    keys = {"url": "mqtts://h", **keys}
    device = device_at(tmp_path, held, **keys)
    make_project(tmp_path / "fleet", "mqtt://h")
    configure(tmp_path / "fleet", {key: f'"{value}"' for key, value in keys.items()})
    for load in (lambda: config.load(device.folder), lambda: project.load(tmp_path / "fleet")):
        with pytest.raises(InvalidConfiguration) as caught:
            load()
        assert said in str(caught.value)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_key_with_a_passphrase_is_refused_instead_of_asking_for_it(
    tmp_path: Path, authority: Authority
) -> None:
    certificate, key = authority.certificate(tmp_path, "device-1")
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"guess"),
        )
    )
    said = "the key without a passphrase"
    failed = link_to(BrokerConfig("127.0.0.1", free_port(), tls=True, cert_file=certificate, key_file=key))
    assert isinstance(failed, ConnectFailed)
    assert failed.fault is Fault.REFUSED
    assert said in failed.why
    with pytest.raises(InvalidConfiguration, match=said):
        mqtt.connect("127.0.0.1", free_port(), mqtt.Login("", "", True, None, certificate, key))


@contextlib.contextmanager
def answering(answer: bytes, *, again: bytes = b"") -> Iterator[int]:
    """A server that sends `answer` when something was said to it, and then `again` and again; its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            stream.settimeout(60)
            with stream:
                try:
                    stream.recv(4096)
                    stream.sendall(answer)
                    while again:
                        stream.sendall(again)
                except OSError:
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


@pytest.mark.parametrize(
    ("answer", "again", "said"),
    [
        (b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n", b"", "HTTP/1.1 404 Not Found"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", "HTTP/1.1 200 OK"),
        (
            b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nSec-WebSocket-Accept:none\r\n\r\n",
            b"",
            "HTTP/1.1 101 x",
        ),
        (
            b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nSec-WebSocket-Accept: \xff\r\n\r\n",
            b"",
            "HTTP/1.1 101 x",
        ),
        (b"\x20\x02\x00\x00", b"", "\\x02"),
        pytest.param(b"HTTP/1.1 101 x\r\n", b"X-Endless: 1\r\n", "HTTP/1.1 101 x", id="header without end"),
        (b"", b"", "no answer"),
    ],
)
def test_what_is_no_websocket_is_named(
    monkeypatch: pytest.MonkeyPatch, answer: bytes, again: bytes, said: str
) -> None:
    with answering(answer, again=again) as port:
        failed = link_to(BrokerConfig("127.0.0.1", port, tls=False, path="/mqtt"))
        assert isinstance(failed, ConnectFailed)
        assert failed.fault is Fault.NETWORK
        assert "no WebSocket at /mqtt" in failed.why
        assert said in failed.why
        assert "check the port and path of broker.url" in failed.why
        monkeypatch.setattr(mqtt, "CONNECT_TIMEOUT_SECONDS", 0.5)
        with pytest.raises(
            mqtt.Unreachable, match=r"no WebSocket at /mqtt; check the port and path of broker\.url"
        ):
            mqtt.connect("127.0.0.1", port, mqtt.Login(), path="/mqtt")


def link_to(config: BrokerConfig) -> Said:
    """The first news of one attempt of an agent's to connect."""
    heard: list[Said] = []
    news = threading.Event()

    def hear(said: Said, _attempt: int) -> None:
        heard.append(said)
        news.set()

    link = Link(config, "flagcast-device-1", hear)
    link.connect("5", "flagcast/1/production/devices/device-1/report", b"")
    assert news.wait(PATIENCE_SECONDS)
    link.close()
    return heard[0]


def test_a_frame_without_end_ends_the_connection_before_it_takes_memory(tmp_path: Path) -> None:
    # A server that upgrades as it should and then speaks one frame of 2^62 bytes, full of messages.
    # PUBLISH, 200,000 bytes long, on topic "t", without properties (MQTT 5, 3.3).
    message = b"\x30\xc0\x9a\x0c" + b"\x00\x01t\x00".ljust(200_000, b"x")
    heard: list[Said] = []
    over = threading.Event()

    def hear(said: Said, _attempt: int) -> None:
        heard.append(said)
        if isinstance(said, Disconnected | ConnectFailed):
            over.set()

    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        link = Link(BrokerConfig("127.0.0.1", listener.getsockname()[1], tls=False, path="/mqtt"), "c", hear)
        link.connect("5", "flagcast/1/production/devices/device-1/report", b"")
        stream, _ = listener.accept()
        with stream:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += stream.recv(4096)
            stream.sendall(upgraded(request))
            stream.recv(4096)
            stream.sendall(b"\x82\x7f" + (1 << 62).to_bytes(8, "big") + b"\x20\x03\x00\x00\x00")
            sent = poured(stream, message, 200)
            assert over.wait(PATIENCE_SECONDS)
        link.close()
    assert isinstance(heard[0], Connected)
    assert isinstance(heard[-1], Disconnected)
    assert "the broker sent a frame of more than" in heard[-1].why
    assert sent < 100


def poured(stream: socket.socket, message: bytes, times: int) -> int:
    """How often a message could be sent before the other side had enough."""
    for count in range(times):
        try:
            stream.sendall(message)
        except ConnectionError:
            return count
    return times


def upgraded(request: bytes) -> bytes:
    """The answer that makes a WebSocket of the connection (RFC 6455, 4.2.2)."""
    from websockets.utils import accept_key

    (key,) = [
        line.split(b": ")[1] for line in request.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key")
    ]
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept_key(key.decode()).encode() + b"\r\n\r\n"
    )


def test_a_broker_that_is_gone_is_named_over_a_websocket_too(tmp_path: Path, held: Held) -> None:
    with device_at(tmp_path, held, f"ws://127.0.0.1:{free_port()}") as device:
        device.start()
        device.wait_for("fault=network")
        assert "127.0.0.1:" in last_error(device)
        assert device.stop() == 0


@pytest.mark.mosquitto
def test_doctor_walks_to_a_websocket(tmp_path: Path, held: Held, authority: Authority) -> None:
    folder = certified(authority, tmp_path / "tls")
    with (
        start_mosquitto(tmp_path / "broker") as broker,
        Front(broker.port, certificate=(folder / "broker.pem", folder / "broker.key"), path="/mqtt") as front,
        device_at(tmp_path, held, f"wss://localhost:{front.port}", ca_file=folder / "ca.pem") as device,
    ):
        found = device.run("doctor").stdout
        for step in ("name", "port", "tls", "login"):
            assert f"ok       broker {step}" in found
