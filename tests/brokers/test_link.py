"""The link over real brokers: half-open, restarted, refusing, old; asked to hurry, run once, and asking the publisher."""

import gc
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from queue import SimpleQueue

import paho.mqtt.client as paho
import pytest
from devices import PATIENCE_SECONDS, Device, provision
from halfway import Relay
from publisher_simulator import PublisherSimulator
from publishing import Flagcast, features, make_project

from brokers import Broker, free_port, start_amqtt, start_mosquitto
from flagcast_agent.config import BrokerConfig
from flagcast_agent.mqtt import Link, Puback, Said, Suback
from flagcast_agent.sync.events import Connected, Received
from flagcast_bridge.broker import connection as mqtt
from flagcast_shared.ids import DeviceId, FlagKey
from flagcast_shared.model import BooleanFlag
from flagcast_shared.reports import decode_refresh, decode_usage
from flagcast_shared.topics import DeviceAddress

LIGHTS = BooleanFlag(FlagKey("lights"), enabled=True)
DIMMED = BooleanFlag(FlagKey("lights"), enabled=False)
KEEPALIVE_SECONDS = 5


@pytest.fixture
def simulator() -> PublisherSimulator:
    simulator = PublisherSimulator(now=int(time.time()))  # noqa: TID251  # devices judge it by their clock
    simulator.release(LIGHTS)
    return simulator


@pytest.fixture
def anchor(tmp_path: Path, simulator: PublisherSimulator) -> Path:
    path = tmp_path / "anchor"
    path.write_bytes(simulator.anchor)
    return path


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with start_mosquitto(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def device(tmp_path: Path, anchor: Path, broker: Broker) -> Iterator[Device]:
    with provision(tmp_path / "device", anchor, broker.url) as device:
        yield device


def publish(simulator: PublisherSimulator, broker: Broker) -> None:
    with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
        head = simulator.head_topic
        content = [(topic, data) for topic, data in simulator.retained.items() if topic != head]
        connection.publish([*content, (head, simulator.retained[head])])
        # The embedded broker acknowledges first and retains afterwards, and not at all what it has not read when a client leaves.
        assert connection.read_back({topic: data for topic, data in simulator.retained.items() if data}) == {}


def configure(device: Device, *lines: str, url: str = "") -> None:
    """Adds tables to a device's configuration, and names another broker."""
    path = device.folder / "agent.toml"
    text = path.read_text()
    if url:
        text = "".join(
            f'url = "{url}"\n' if line.startswith("url =") else line for line in text.splitlines(True)
        )
    path.write_text(text + "\n".join(("", *lines, "")))


def state(device: Device) -> str:
    link = device.status()["link"]
    assert isinstance(link, dict)
    return str(link["state"])


@contextmanager
def heard(broker: Broker, topic: str) -> Iterator[list[bytes]]:
    """What is published on a topic while the block lasts."""
    found: list[bytes] = []
    with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
        connection.watch([topic], lambda _, payload: found.append(payload), lambda _: None)
        yield found


def wait_until(holds: object, what: str) -> None:
    assert callable(holds)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


# Half-open, restarted, refusing


@pytest.mark.mosquitto
def test_a_half_open_connection_is_noticed_by_the_keep_alive_and_healed(
    device: Device, broker: Broker, simulator: PublisherSimulator
) -> None:
    publish(simulator, broker)
    with Relay(broker.port) as relay:
        path = device.folder / "agent.toml"
        path.write_text(
            path.read_text().replace("[broker]", f"[broker]\nkeepalive_seconds = {KEEPALIVE_SECONDS}")
        )
        configure(device, url=f"mqtt://127.0.0.1:{relay.port}")
        device.start()
        device.wait_for('message="up to date"')
        relay.fall_silent()
        simulator.release(DIMMED)
        publish(simulator, broker)
        began = time.monotonic()
        device.wait_for("connection lost")
        # It is found out within a keep-alive and a half; with the one of an agent that was told none, after a minute or more.
        assert time.monotonic() - began < 8 * KEEPALIVE_SECONDS
        assert device.evaluate("lights", "e")["value"] is True, "answers go on"
        relay.speak()
        device.wait_for("version=2")
        assert device.evaluate("lights", "e")["value"] is False
    assert device.stop() == 0


@pytest.mark.mosquitto
def test_what_is_said_while_the_connection_is_idle_is_sent_at_once(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long paho would wait for something to read, what another thread says has to wake it.
    wait = paho.Client._loop
    monkeypatch.setattr(paho.Client, "_loop", lambda client, timeout=1.0: wait(client, 10 * PATIENCE_SECONDS))
    heard: SimpleQueue[Said] = SimpleQueue()
    config = BrokerConfig(broker.host, broker.port, tls=False)
    link = Link(config, "flagcast-device-1", lambda said, _: heard.put(said))
    link.connect("5", "will", b"")
    assert heard.get(timeout=PATIENCE_SECONDS) == Connected()
    link.subscribe(["a"])
    assert isinstance(heard.get(timeout=PATIENCE_SECONDS), Suback)
    link.publish("a", b"news")
    assert {type(heard.get(timeout=PATIENCE_SECONDS)) for _ in range(2)} == {Puback, Received}
    link.close()


@pytest.mark.mosquitto
def test_connections_that_are_over_leave_no_socket_behind_without_the_garbage_collector(
    broker: Broker,
) -> None:
    heard: SimpleQueue[Said] = SimpleQueue()
    link = Link(
        BrokerConfig(broker.host, broker.port, tls=False),
        "flagcast-device-1",
        lambda said, _: heard.put(said),
    )

    def connect() -> None:
        link.connect("5", "will", b"")
        assert heard.get(timeout=PATIENCE_SECONDS) == Connected()

    def opened() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    connect()
    before = opened()
    gc.disable()
    try:
        for _ in range(10):
            connect()
        # The last ones may still be ending; each has a socket and two more that wake its thread.
        wait_until(lambda: opened() < before + 10, "no more than a few above those at first")
    finally:
        gc.enable()
        link.close()


@pytest.mark.mosquitto
def test_a_broker_that_is_restarted_is_found_again_without_a_flood_of_attempts(
    device: Device, broker: Broker, simulator: PublisherSimulator
) -> None:
    publish(simulator, broker)
    device.start()
    device.wait_for('message="up to date"')
    broker.stop()
    device.wait_for("connection lost")
    device.wait_for("fault=network")
    broker.start()
    publish(simulator, broker)
    device.wait_until(lambda: device.log.count("message=connected") == 2, "connected again")
    device.wait_until(lambda: state(device) == "live", "live again")
    assert device.log.count("no connection") < 10
    assert device.stop() == 0


@pytest.mark.mosquitto
def test_a_device_that_is_refused_says_so_and_waits_for_long(
    tmp_path: Path, anchor: Path, simulator: PublisherSimulator
) -> None:
    with (
        start_mosquitto(tmp_path / "guarded", user=("fleet", "secret")) as guarded,
        provision(tmp_path / "device", anchor, guarded.url) as device,
    ):
        device.start()
        device.wait_for("fault=refused")
        assert state(device) == "refused"
        again = float(device.log.split("again_in_seconds=")[1].split()[0])
        assert again >= 15
        assert device.log.count("fault=refused") == 1
        assert device.run("sync", "--timeout", "2").returncode == 1
        device.wait_until(lambda: device.log.count("fault=refused") == 2, "asking tries once more")
        assert device.stop() == 0


# What is remembered


@pytest.mark.amqtt
def test_the_older_version_is_remembered_over_a_restart(
    tmp_path: Path, anchor: Path, simulator: PublisherSimulator
) -> None:
    with (
        start_amqtt(tmp_path / "broker") as broker,
        provision(tmp_path / "device", anchor, broker.url) as device,
    ):
        publish(simulator, broker)
        device.start()
        device.wait_for("message=admitted")
        assert "fault=protocol" in device.log
        assert device.stop() == 0
        device.start()
        device.wait_for('message="up to date"')
        assert "fault=protocol" not in device.log
        assert "mqtt=3.1.1" in device.log
        assert device.stop() == 0


@contextmanager
def answering(payload: bytes, *, is_late: bool = False) -> Iterator[int]:
    """A broker that takes the connection, in whatever version, and then says one thing, or says it only when it has heard more.

    Gives its port.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def serve() -> None:
            server.settimeout(0.1)
            while not over.is_set():
                try:
                    client, _ = server.accept()
                except TimeoutError:
                    continue
                with client:
                    client.settimeout(5)
                    try:
                        is_v5 = client.recv(4096)[8] == 5
                        client.sendall(b"\x20\x03\x00\x00\x00" if is_v5 else b"\x20\x02\x00\x00")
                        if is_late:
                            client.recv(4096)
                        client.sendall(payload)
                        while client.recv(4096):
                            pass
                    except OSError:
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            over.set()
            thread.join()


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("packet", "said"),
    [
        pytest.param(b"\x30\xff\xff\xff\x7f" + b"x" * 1000, "a packet of 268435455 bytes", id="huge"),
        pytest.param(b"\x34\x07\x00\x01a\x00\x01xx", "a message of QoS 2", id="qos-2"),
        pytest.param(b"\x32\x01\x00", "connection lost", id="cut"),
        pytest.param(b"\x30\x05\x00\x02\xff\xfex", "the broker sent what is not MQTT", id="topic"),
    ],
)
def test_what_no_broker_of_ours_sends_ends_the_connection_and_not_the_agent(
    tmp_path: Path, anchor: Path, packet: bytes, said: str
) -> None:
    with (
        answering(packet) as port,
        provision(tmp_path / "device", anchor, f"mqtt://127.0.0.1:{port}", "--protocol", "3.1.1") as device,
    ):
        device.start()
        device.wait_for("connection lost")
        assert said in device.log
        assert device._process is not None
        assert rss(device._process.pid) < 120 * 2**20
        device.wait_until(lambda: device.log.count("message=connected") >= 2, "it goes on trying")
        assert device.stop() == 0


def test_another_agent_that_has_this_one_s_name_is_not_fought_for_the_connection(
    tmp_path: Path, anchor: Path
) -> None:
    taken_over = b"\xe0\x02\x8e\x00"  # MQTT 5, 3.14: a broker that says why
    with (
        answering(taken_over) as port,
        provision(tmp_path / "device", anchor, f"mqtt://127.0.0.1:{port}") as device,
    ):
        device.start()
        device.wait_for("connection lost")
        assert "the broker ended the connection: Session taken over" in device.log
        assert float(device.log.split("again_in_seconds=")[1].split()[0]) >= 15
        assert state(device) == "refused"
        assert device.stop() == 0


def test_a_device_that_may_read_no_head_is_refused(tmp_path: Path, anchor: Path) -> None:
    # MQTT 5, 3.9: the next root, and the head.
    not_authorized = b"\x90\x04\x00\x01\x00\x87" + b"\x90\x04\x00\x02\x00\x87"
    with (
        answering(not_authorized, is_late=True) as port,
        provision(tmp_path / "device", anchor, f"mqtt://127.0.0.1:{port}") as device,
    ):
        device.start()
        device.wait_for("the broker refused a subscription")
        device.wait_for("fault=refused")
        assert state(device) == "refused"
        assert device.stop() == 0


# Asking


@pytest.mark.mosquitto
def test_sync_hears_news_and_says_by_its_exit_code_how_far_it_came(
    device: Device, broker: Broker, simulator: PublisherSimulator
) -> None:
    absent = device.run("sync")
    assert absent.returncode == 3
    publish(simulator, broker)
    device.start()
    device.wait_for('message="up to date"')
    done = device.run("sync")
    assert (done.returncode, done.stdout) == (0, "up to date\n  default: version 1 of epoch 1\n")
    broker.stop()
    device.wait_for("connection lost")
    failed = device.run("sync", "--timeout", "3")
    assert failed.returncode == 1
    assert "not up to date" in failed.stdout
    attempts = device.log.count("no connection")
    for _ in range(5):
        device.run("sync", "--timeout", "0.2")
    broker.start()
    publish(simulator, broker)
    began = time.monotonic()
    assert device.run("sync").returncode == 0
    assert time.monotonic() - began < 15
    assert attempts >= 1
    assert device.run("sync", "--timeout", "0").returncode == 2
    assert device.stop() == 0


def test_a_signal_makes_a_waiting_agent_try_now_and_never_more_than_once_a_second(
    tmp_path: Path, anchor: Path, simulator: PublisherSimulator
) -> None:
    with provision(tmp_path / "device", anchor, f"mqtt://127.0.0.1:{free_port()}") as device:
        device.start()
        device.wait_for("fault=network")
        assert device._process is not None
        process, before = device._process, device.log.count("no connection")
        began = time.monotonic()

        def is_tried_at_once() -> bool:
            # By themselves the attempts that were made would have come later than they did.
            process.send_signal(signal.SIGUSR1)
            waits = [float(each.split()[0]) for each in device.log.split("again_in_seconds=")[before + 1 :]]
            return len(waits) >= 5 and sum(waits[:-1]) > 2 * (time.monotonic() - began)

        device.wait_until(is_tried_at_once, "attempts that do not wait for their time")
        assert device.log.count("no connection") - before <= time.monotonic() - began + 2
        assert device.stop() == 0


# Once


@pytest.mark.mosquitto
def test_once_comes_up_to_date_reports_and_leaves(
    device: Device, broker: Broker, simulator: PublisherSimulator
) -> None:
    publish(simulator, broker)
    done = device.run("run", "--once")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "up to date\n  default: version 1 of epoch 1\n"
    simulator.release(DIMMED)
    publish(simulator, broker)
    assert "version 2" in device.run("run", "--once").stdout
    assert not device.socket.exists()
    broker.stop()
    device.start()
    device.wait_for("message=answering")
    assert device.evaluate("lights", "e")["value"] is False
    locked = device.run("run", "--once", "--timeout", "1")
    assert locked.returncode == 1
    assert "another agent works on this database" in locked.stderr
    assert device.stop() == 0


@pytest.mark.mosquitto
def test_once_without_a_broker_or_without_a_head_that_is_believed_ends_with_1(
    device: Device, broker: Broker, simulator: PublisherSimulator
) -> None:
    simulator.retained[simulator.head_topic] = b"garbage"
    publish(simulator, broker)
    device.gives_up("default: the head was not taken: malformed", "run", "--once")
    broker.stop()
    device.gives_up("Connection refused", "run", "--once")


@pytest.mark.mosquitto
def test_once_where_nothing_is_published_ends_with_0_after_a_quiet_time(
    device: Device, broker: Broker
) -> None:
    done = device.run("run", "--once")
    assert done.returncode == 0
    assert "default: nothing is published" in done.stdout


# Asking the publisher, and counting for it


@pytest.mark.mosquitto
def test_a_head_that_is_missing_is_asked_for(device: Device, broker: Broker) -> None:
    with heard(broker, "flagcast/1/production/devices/device-1/refresh") as wishes:
        device.start()
        wait_until(lambda: wishes, "a wish")
        assert decode_refresh(wishes[0]).namespaces == ("default",)
    assert device.stop() == 0


@pytest.mark.mosquitto
def test_counts_are_kept_while_nobody_collects_and_no_word_of_a_caller_is_among_them(
    device: Device, broker: Broker, simulator: PublisherSimulator
) -> None:
    publish(simulator, broker)
    configure(device, "[usage]", "interval_seconds = 1")
    device.start()
    device.wait_for('message="up to date"')
    secrets = {"entity": "entity-secret-4711", "key": "key-secret", "value": "value-secret"}
    device.evaluate("lights", "e")  # whoever looks is not counted
    assert device.run("explain", "lights").returncode == 0
    for _ in range(3):
        device.ask("lights", secrets["entity"], {secrets["key"]: secrets["value"]})
    store = device.folder / "agent.sqlite"

    def kept() -> int:
        with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT coalesce(sum(evaluations), 0) FROM usage").fetchone()[0])

    wait_until(lambda: kept() == 3, "three evaluations on disk")
    device.kill()
    with heard(broker, "flagcast/1/production/devices/device-1/metrics") as batches:
        device.start()
        wait_until(lambda: kept() == 0, "all of them taken")
        counts = [each for payload in batches for each in decode_usage(payload).counts]
    assert sum(each.evaluations for each in counts) == 3
    assert {each[:4] for each in counts} == {("default", "lights", "true", "default")}
    assert device.stop() == 0
    written = b"".join(path.read_bytes() for path in device.folder.glob("agent.sqlite*")) + b"".join(batches)
    for secret in secrets.values():
        assert secret.encode() not in written


@pytest.mark.mosquitto
def test_a_batch_whose_acknowledgement_a_power_cut_took_is_counted_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with start_mosquitto(tmp_path / "broker") as broker, Relay(broker.port) as relay:
        project = make_project(tmp_path / "project", broker.url)
        flagcast = Flagcast(tmp_path / "project", capsys)
        file = tmp_path / "features.yml"
        file.write_text(features({"lights": True}))
        assert flagcast.on_project("publish", file).code == 0
        assert flagcast.on_project("usage", "collect", "--once").code == 0
        url = f"mqtt://127.0.0.1:{relay.port}"
        topic = project.topics.of(DeviceAddress(DeviceId("device-1"), "metrics"))
        with (
            provision(tmp_path / "device", project.root_file(1), url) as device,
            heard(broker, topic) as batches,
        ):
            configure(device, "[usage]", "interval_seconds = 1")
            device.start()
            device.wait_for('message="up to date"')
            relay.fall_silent(both_ways=False)
            for _ in range(3):
                device.ask("lights", "e")
            wait_until(lambda: batches, "the broker has it")
            device.kill()
            relay.speak()
            device.start()
            wait_until(lambda: batches.count(batches[0]) == 2, "and has it again")
            assert device.stop() == 0
        collected = flagcast.on_project("usage", "collect", "--once").out
        document = json.loads(flagcast.on_project("usage", "--format", "json").out)
        assert "known already: 0" not in collected
        distinct = sum(decode_usage(payload).evaluations for payload in set(batches))
        assert sum(each["evaluations"] for each in document["usage"]) == distinct >= 1


@pytest.mark.mosquitto
def test_an_agent_that_is_told_not_to_count_keeps_nothing(
    device: Device, broker: Broker, simulator: PublisherSimulator
) -> None:
    publish(simulator, broker)
    configure(device, "[usage]", "interval_seconds = 0")
    device.start()
    device.wait_for('message="up to date"')
    device.ask("lights", "e")
    assert device.stop() == 0, "the last span is kept when the agent ends"
    with closing(sqlite3.connect(device.folder / "agent.sqlite")) as connection:
        assert connection.execute("SELECT count(*) FROM usage").fetchone() == (0,)
    configure(device)
    text = (device.folder / "agent.toml").read_text()
    (device.folder / "agent.toml").write_text(text.replace("interval_seconds = 0", "interval_seconds = 60"))
    device.start()
    device.wait_for('message="up to date"')
    device.ask("lights", "e")
    assert device.stop() == 0
    with closing(sqlite3.connect(device.folder / "agent.sqlite")) as connection:
        assert connection.execute("SELECT sum(evaluations) FROM usage").fetchone() == (1,)


@pytest.mark.mosquitto
def test_a_heartbeat_is_sent_without_news(
    device: Device, broker: Broker, simulator: PublisherSimulator
) -> None:
    publish(simulator, broker)
    configure(device, "[report]", "heartbeat_seconds = 1")
    device.start()
    device.wait_for('message="up to date"')
    with heard(broker, "flagcast/1/production/devices/device-1/report") as reports:
        wait_until(lambda: len(reports) >= 4, "several reports")
    assert device.stop() == 0


def test_help_says_what_the_exit_codes_mean() -> None:
    for command in (("run",), ("sync",)):
        done = subprocess.run(
            ["flagcast-agent", *command, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )
        assert "Exit codes: 0" in " ".join(done.stdout.split())
