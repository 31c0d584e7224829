"""Attacks on the terminals of operators and devices: control sequences in strangers' texts, through the real commands.

Each ends by looking at every character of standard output and standard error: all of them print.
"""

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from devices import Device, provision
from publisher_simulator import PublisherSimulator
from publishing import features, make_project

from brokers import Broker, start_mosquitto
from flagcast_agent import clock
from flagcast_bridge import check
from flagcast_bridge.broker import connection as mqtt
from flagcast_bridge.ledger.ledger import UsageBook
from flagcast_bridge.project import Project
from flagcast_bridge.publishing import publish as publisher
from flagcast_shared.codec import Value, encode
from flagcast_shared.ids import DeviceId, FlagKey, Namespace, SegmentKey, VariantKey
from flagcast_shared.model import (
    BooleanFlag,
    Constraint,
    ConstraintType,
    Join,
    Match,
    Operator,
    Segment,
    SegmentRollout,
    Variant,
    VariantFlag,
)
from flagcast_shared.reports import Count, Report, Usage, encode_report, encode_usage
from flagcast_shared.topics import DeviceAddress

pytestmark = pytest.mark.mosquitto

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202egnp.exe\u2066\u200b\u2028\r\nflagcast: all is well"
"""A title, a cleared screen, a C1 control, text from right to left, what has no width, and a line of its own."""
FORGED = "flagcast: all is well"
MALLORY, GOOD = DeviceId("mallory"), DeviceId("good")
PATIENCE_SECONDS = 30.0
_FLAGCAST = Path(sys.executable).with_name("flagcast")

Done = subprocess.CompletedProcess[bytes]


def flagcast(*arguments: str | Path, code: int = 0) -> str:
    """The command `flagcast`, to its end; everything that it printed, which prints."""
    return printed(
        subprocess.run([_FLAGCAST, *arguments], capture_output=True, timeout=PATIENCE_SECONDS, check=False),
        code,
    )


def agent(device: Device, command: str, *arguments: str, code: int = 0) -> str:
    """A command of the agent's on a device, to its end; everything that it printed, which prints."""
    program = _FLAGCAST.with_name("flagcast-agent")
    words: list[str | Path] = [program, command, *arguments, "--dir", str(device.folder)]
    return printed(subprocess.run(words, capture_output=True, timeout=PATIENCE_SECONDS, check=False), code)


def printed(done: Done, code: int) -> str:
    text = (done.stdout + done.stderr).decode()
    assert done.returncode == code, text
    assert_prints(text)
    return text


def assert_prints(text: str) -> None:
    # Our own tab stands between the columns of `eval`; a stranger's is escaped before.
    for line in text.split("\n"):
        assert line.replace("\t", " ").isprintable(), ascii(line)
        assert not line.startswith(FORGED), "a line of a stranger's"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Broker, Project]]:
    with start_mosquitto(tmp_path / "broker") as broker:
        settings = make_project(tmp_path / "project", broker.url)
        (tmp_path / "features.yml").write_text(features({"lights": True}))
        flagcast("publish", tmp_path / "features.yml", "--project", settings.folder)
        yield broker, settings


def put(broker: Broker, *messages: tuple[str, bytes]) -> None:
    with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
        connection.publish(messages)


def hostile_report(**texts: str) -> bytes:
    """A report, one or more of whose texts are these: agent, applied, attack, namespace."""
    rejection: dict[int, Value] = {
        1: texts.get("attack", "malformed"),
        2: texts.get("namespace", ""),
        3: clock.now(),
    }
    held: dict[str, Value] = {texts.get("applied", "default"): {1: 1, 2: 1, 3: 1}}
    fields: Mapping[int, Value] = {
        1: 1, 2: 1, 3: 1, 4: True, 5: clock.now(), 6: texts.get("agent", "1.0"), 7: 1, 8: held, 9: rejection,
    }  # fmt: skip
    return encode(fields)


@pytest.mark.parametrize("field", ["agent", "applied", "attack", "namespace"])
def test_a_report_that_clears_the_operators_screen(site: tuple[Broker, Project], field: str) -> None:
    broker, settings = site
    good = Report(1, 1, True, clock.now(), "1.0", 1, {})
    put(
        broker,
        (settings.topics.of(DeviceAddress(MALLORY, "report")), hostile_report(**{field: HOSTILE})),
        (settings.topics.of(DeviceAddress(GOOD, "report")), encode_report(good)),
    )
    shown = flagcast("fleet", "--project", settings.folder)
    assert "1 device:" in shown
    assert "NOT A REPORT flagcast/1/test/devices/mallory/report" in shown
    document = json.loads(flagcast("fleet", "--project", settings.folder, "--format", "json"))
    assert [each["device"] for each in document["devices"]] == [GOOD]
    assert list(document["unreadable"]) == ["flagcast/1/test/devices/mallory/report"]
    flagcast("fleet", "--project", settings.folder, "--device", MALLORY, code=1)


def counted(**texts: str) -> Usage:
    """A batch, one of whose words are these: namespace, flag, answer, reason."""
    count = Count(
        Namespace(texts.get("namespace", "default")),
        FlagKey(texts.get("flag", "lights")),
        texts.get("answer", "true"),
        texts.get("reason", "match"),
        1,
    )
    return Usage(bytes(16), clock.now(), clock.now(), (count,))


@pytest.mark.parametrize("field", ["namespace", "flag", "answer", "reason"])
def test_a_batch_of_counts_that_clears_the_operators_screen(site: tuple[Broker, Project], field: str) -> None:
    broker, settings = site
    flagcast("usage", "collect", "--once", "--project", settings.folder)
    topic = settings.topics.of(DeviceAddress(MALLORY, "metrics"))
    with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
        sent = connection._client.publish(topic, encode_usage(counted(**{field: HOSTILE})), qos=1)
        sent.wait_for_publish(PATIENCE_SECONDS)
    collected = flagcast("usage", "collect", "--once", "--project", settings.folder)
    assert "devices/mallory/metrics: not counted" in collected
    assert "batches added: 0" in collected
    assert json.loads(flagcast("usage", "--project", settings.folder, "--format", "json"))["usage"] == []


@pytest.mark.parametrize("field", ["namespace", "flag", "answer", "reason"])
def test_counts_of_a_stranger_that_are_in_the_book_since_an_earlier_release(
    site: tuple[Broker, Project], field: str
) -> None:
    _, settings = site
    with closing(UsageBook(settings.usage, settings.environment, clock.now())) as book:
        book.take(MALLORY, counted(**{field: HOSTILE}), clock.now())
    assert r"\x1b[2J" in flagcast("usage", "--project", settings.folder)
    (row,) = json.loads(flagcast("usage", "--project", settings.folder, "--format", "json"))["usage"]
    assert row[field] == HOSTILE


def test_provenance_and_labels_that_clear_the_operators_screen_are_not_published(
    site: tuple[Broker, Project], tmp_path: Path
) -> None:
    _, settings = site
    publish = ("publish", tmp_path / "features.yml", "--project", settings.folder)
    for words in (
        ("--provenance", f"source={HOSTILE}"),
        ("--provenance", f"{HOSTILE}=x"),
        ("--candidate", "5", "--label", f"ring={HOSTILE}"),
    ):
        assert "that print" in flagcast(*publish, *words, code=2)
    odd = tmp_path / "flags\x1b[2J\u202e.yml"
    odd.write_text(features({"lights": False}))
    flagcast("publish", odd, "--project", settings.folder)
    shown = json.loads(flagcast("show", "--project", settings.folder, "--format", "json"))
    assert shown["namespaces"][0]["provenance"] == {"source": r"flags\x1b[2J\u202e.yml"}


def test_provenance_of_an_earlier_release_clears_no_screen(
    site: tuple[Broker, Project], tmp_path: Path
) -> None:
    _, settings = site
    (tmp_path / "features.yml").write_text(features({"lights": False}))
    compiled = check.load(tmp_path / "features.yml").namespaces
    publisher.publish(
        settings,
        publisher.Wanted(compiled, {"source": HOSTILE}),
        say=lambda line: None,
        show=lambda plan: None,
    )
    assert r"\x1b[2J" in flagcast("show", "--project", settings.folder)
    assert r"\x1b[2J" in flagcast("log", "--project", settings.folder)
    for command in ("show", "log"):
        json.loads(flagcast(command, "--project", settings.folder, "--format", "json"))


def test_a_variant_that_clears_the_devices_screen_is_not_published(
    site: tuple[Broker, Project], tmp_path: Path
) -> None:
    _, settings = site
    file = tmp_path / "variants.yml"
    for key in (r"\e[2J", r"\u009b31m", r"\u202egnp", r"\u200b", r"\u2028", r"a\tb"):
        file.write_text(
            f'flags:\n- {{key: f, name: f, type: VARIANT_FLAG_TYPE, enabled: true, variants: [{{key: "{key}"}}]}}\n'
        )
        assert "FC116" in flagcast("validate", file, code=1)
        assert "has errors" in flagcast("publish", file, "--project", settings.folder, code=1)
    file.write_text(
        "flags:\n- {key: f, name: f, type: VARIANT_FLAG_TYPE, enabled: true, variants: [{key: größer 日本 شب}]}\n"
    )
    assert "FC116" not in flagcast("validate", file)


def hostile_content() -> list[VariantFlag | BooleanFlag | Segment]:
    variant = VariantKey(f"v{HOSTILE}")
    segment = SegmentKey(f"s{HOSTILE}")
    return [
        VariantFlag(FlagKey("plain"), True, (Variant(variant, json.dumps({"a": HOSTILE})),), variant),
        VariantFlag(FlagKey(f"f{HOSTILE}"), True, (Variant(variant),), variant),
        BooleanFlag(FlagKey("lit"), False, (SegmentRollout((segment,), Join.OR, True),)),
        BooleanFlag(FlagKey("lost"), False, (SegmentRollout((SegmentKey(f"n{HOSTILE}"),), Join.OR, True),)),
        Segment(
            segment,
            Match.ALL,
            (Constraint(ConstraintType.STRING, f"p{HOSTILE}", Operator.EQ, f"c{HOSTILE}"),),
        ),
    ]


def test_signed_flags_that_clear_the_devices_screen(tmp_path: Path) -> None:
    signed = PublisherSimulator(now=clock.now())
    signed.release(*hostile_content())
    with start_mosquitto(tmp_path / "broker") as broker:
        put(broker, *signed.retained.items())
        (tmp_path / "root.cbor").write_bytes(signed.anchor)
        with provision(tmp_path / "device", tmp_path / "root.cbor", broker.url) as device:
            device.start()
            device.holds(1)
            for how in ("text", "json"):
                for command in ("status", "flags", "doctor", "sync"):
                    agent(device, command, "--format", how)
                for flag in ("plain", f"f{HOSTILE}", "lit"):
                    for command in ("eval", "explain"):
                        agent(device, command, flag, "--context", f"p{HOSTILE}=c{HOSTILE}", "--format", how)
                for command in ("eval", "explain"):
                    assert "is missing" in agent(device, command, "lost", "--format", how, code=1)
                    assert "nowhere" in agent(device, command, f"nowhere{HOSTILE}", "--format", how, code=1)
            listed = json.loads(agent(device, "flags", "--format", "json"))["flags"]
            assert f"f{HOSTILE}" in [each["key"] for each in listed], "admitted all the same"
            answer = json.loads(agent(device, "eval", "plain", "--format", "json"))
            assert answer["value"] == f"v{HOSTILE}", "an application gets what was signed"
            shown = agent(device, "eval", "plain").split("\t")
            assert len(shown) == 3
            assert shown[0].startswith(r"v\x1b]0;owned\x07")
            # Refusals that repeat what was signed: a head of another environment, content that is not sound.
            others = PublisherSimulator(environment=type(signed.environment)(f"e{HOSTILE}"), now=clock.now())
            others.release(*hostile_content())
            put(broker, (signed.head_topic, others.retained[others.head_topic]))
            device.wait_for("message=refused")
            for how in ("text", "json"):
                for command in ("status", "doctor"):
                    agent(device, command, "--format", how)
            assert_prints(device.log)
            assert device.stop() == 0
            assert_prints(device.log)


def test_arguments_that_a_script_passed_on_clear_no_screen(tmp_path: Path) -> None:
    assert r"unrecognized arguments: \x1b]0" in flagcast("log", HOSTILE, code=2)
    assert r"unrecognized arguments: \x1b]0" in agent(Device(tmp_path), "status", HOSTILE, code=2)


@contextmanager
def lying_broker(*topics: str) -> Iterator[int]:
    """The port of a broker of MQTT 3.1.1 that takes every subscription and publishes on these topics at once."""
    over = threading.Event()

    def field(text: str) -> bytes:
        data = text.encode()
        return len(data).to_bytes(2, "big") + data

    def serve(client: socket.socket) -> None:
        with client, client.makefile("rb") as stream:
            while kind := stream.read(1):
                length, shift = 0, 0
                while (byte := stream.read(1)[0]) & 0x80:
                    length, shift = length | (byte & 0x7F) << shift, shift + 7
                body = stream.read(length | byte << shift)
                match kind[0] >> 4:
                    case 1:
                        client.sendall(b"\x20\x02\x00\x00")
                    case 8:
                        filters, at = 0, 2
                        while at < len(body):
                            at += 3 + int.from_bytes(body[at : at + 2], "big")
                            filters += 1
                        client.sendall(bytes((0x90, 2 + filters)) + body[:2] + bytes(filters))
                        for topic in topics:
                            message = field(topic) + b"x"
                            assert len(message) < 128
                            client.sendall(bytes((0x30, len(message))) + message)
                    case 3 if kind[0] & 6:
                        at = 2 + int.from_bytes(body[:2], "big")
                        client.sendall(b"\x40\x02" + body[at : at + 2])

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                if over.is_set():
                    client.close()
                    return
                threading.Thread(target=serve, args=(client,), daemon=True).start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        port = listening.getsockname()[1]
        try:
            yield port
        finally:
            over.set()
            socket.create_connection(("127.0.0.1", port)).close()
            accepting.join()


@pytest.mark.parametrize("form", ["logfmt", "json"])
def test_topics_that_clear_the_screen_of_whoever_reads_the_log(tmp_path: Path, form: str) -> None:
    topics = ("\x1b[2J\x9b31m", "a\u202e\u2066b", "one\nlevel=info message=admitted", "x\u2028y\x7f\u200b")
    (tmp_path / "root.cbor").write_bytes(PublisherSimulator(now=clock.now()).anchor)
    with lying_broker(*topics) as port:
        device = provision(
            tmp_path / "device", tmp_path / "root.cbor", f"mqtt://127.0.0.1:{port}", "--protocol", "3.1.1"
        )
        device.configure({}, "[log]", f'format = "{form}"')
        with device:
            device.start()
            device.wait_until(
                lambda: device.log.count("not ours") >= len(topics), "a line for each of the topics"
            )
            for how in ("text", "json"):
                agent(device, "status", "--format", how)
            device.stop()
            assert_prints(device.log)
            for line in device.log.splitlines():
                assert re.match(r'time=|\{"time"', line), "every record is one line"
