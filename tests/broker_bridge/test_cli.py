import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from publishing import Flagcast, configure, features, make_project

from brokers import START_SECONDS, Broker, free_port, start_amqtt
from flagcast_bridge import cli
from flagcast_bridge.broker import connection as mqtt
from flagcast_bridge.cli import COMMANDS, main

PROGRAM = str(Path(sys.executable).with_name("flagcast"))


@pytest.fixture
def flagcast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Flagcast:
    return Flagcast(tmp_path / "fleet", capsys)


def test_the_commands_are_these() -> None:
    assert [each.name for each in COMMANDS] == [
        "init",
        "validate",
        "publish",
        "keys",
        "rollout",
        "rollback",
        "serve",
        "show",
        "log",
        "ledger",
        "fleet",
        "usage",
        "broker",
        "demo",
    ]


@pytest.mark.parametrize("command", [each.name for each in COMMANDS])
def test_every_command_has_help_and_an_example_that_it_would_take(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: flagcast {command} " in said
    _, _, examples = said.partition("\nexample")
    lines = [line.strip() for line in examples.splitlines()[1:] if line.strip()]
    assert lines
    assert all(line.startswith(f"flagcast {command} ") for line in lines)
    options = [word for line in lines for word in line.split() if word.startswith("--")]
    assert all(option in said.partition("\nexample")[0] for option in options)


def test_the_program_itself_has_help_with_its_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "exit codes:" in said
    assert all(f"    {each.name} " in said for each in COMMANDS)


def test_the_version_is_that_of_the_distribution() -> None:
    done = subprocess.run([PROGRAM, "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == "flagcast 0.1.0\n"


@pytest.mark.parametrize(
    "arguments", [[], ["absent"], ["init", "x"], ["publish"], ["show", "--format", "xml"]]
)
def test_a_wrong_command_line_is_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: flagcast" in capsys.readouterr().err


def test_init_says_what_it_made_and_does_it_once(flagcast: Flagcast) -> None:
    arguments = ("init", flagcast.folder, "--environment", "production", "--broker", "mqtts://b.example")
    done = flagcast(*arguments)
    assert done.code == 0
    for name in ("flagcast.toml", "roots/1.root", "keys/publisher.key", "keys/root.key"):
        assert str(flagcast.folder / name) in done.out
        assert (flagcast.folder / name).exists()
    again = flagcast(*arguments)
    assert (again.code, again.out) == (2, "")
    assert again.err.startswith("flagcast: error: ")
    assert again.err.count("\n") == 1


def test_a_configuration_error_is_one_line_and_exit_code_2(flagcast: Flagcast, tmp_path: Path) -> None:
    make_project(flagcast.folder, "mqtt://127.0.0.1:1")
    configure(flagcast.folder, {"head_lifetime_hours": "-1"})
    (tmp_path / "features.yml").write_text(features({"a": True}))
    for done in (
        flagcast.on_project("show"),
        flagcast.on_project("log"),
        flagcast.on_project("publish", tmp_path / "features.yml"),
    ):
        assert (done.code, done.out) == (2, "")
        assert done.err == (
            f"flagcast: error: {flagcast.folder / 'flagcast.toml'}: publish.head_lifetime_hours is -1; allowed is 1 to 8784\n"
        )


def test_a_folder_without_a_project_says_how_to_make_one(flagcast: Flagcast) -> None:
    done = flagcast.on_project("show")
    assert (done.code, "flagcast init" in done.err, done.err.count("\n")) == (2, True, 1)


def test_the_project_is_taken_from_the_environment(
    flagcast: Flagcast, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_project(flagcast.folder, "mqtt://127.0.0.1:1")
    monkeypatch.setenv("FLAGCAST_PROJECT", str(flagcast.folder))
    done = flagcast("log")
    assert (done.code, done.out) == (0, "nothing was issued yet\n")
    assert flagcast("log", "--format", "json").out == "[]\n"


@pytest.mark.parametrize("pair", ["commit", "=x", "a=" + "x" * 129])
def test_a_provenance_that_is_too_long_or_no_pair_is_refused(
    flagcast: Flagcast, tmp_path: Path, pair: str
) -> None:
    make_project(flagcast.folder, "mqtt://127.0.0.1:1")
    (tmp_path / "features.yml").write_text(features({"a": True}))
    done = flagcast.on_project("publish", tmp_path / "features.yml", "--provenance", pair)
    assert (done.code, "allowed is NAME=TEXT" in done.err) == (2, True)


def test_flags_that_cannot_be_read_are_exit_code_2_before_the_broker_is_asked(
    flagcast: Flagcast, tmp_path: Path
) -> None:
    make_project(flagcast.folder, f"mqtt://127.0.0.1:{free_port()}")
    done = flagcast.on_project("publish", tmp_path / "absent.yml")
    assert (done.code, "absent.yml" in done.err) == (2, True)


def test_validate_needs_no_project_and_fails_on_errors(flagcast: Flagcast, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yml", tmp_path / "bad.yml"
    good.write_text(features({"a": True}))
    bad.write_text(features({"a": True, "b": True}).replace("key: b", "key: a"))
    assert flagcast("validate", good).code == 0
    done = flagcast("validate", bad)
    assert (done.code, "FC122" in done.out) == (1, True)
    assert '"errors": 1' in flagcast("validate", bad, "--format", "json").out


def test_a_reader_that_has_seen_enough_is_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "features.yml"
    path.write_text(features({f"flag-{number}": True for number in range(3)}))
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [PROGRAM, "validate", str(path), "--format", "json"],
        check=False,
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert b"Traceback" not in done.stderr


@pytest.mark.amqtt
def test_the_embedded_broker_keeps_messages_of_the_default_limit_and_ends_by_sigterm(tmp_path: Path) -> None:
    broker = start_amqtt(tmp_path)
    with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
        assert connection.protocol == "3.1.1"
        connection.publish([("a/b", bytes(250_000)), ("a/c", b"x")])
        assert connection.read_back({"a/b": bytes(250_000), "a/c": b"x"}) == {}
        connection.publish([("a/c", b"")])
        # It acknowledges first and clears afterwards.
        while set(connection.read_all(["a/#"])) != {"a/b"}:
            pass
        # A client that is still connected does not keep it alive.
        assert broker.stop() == 0
    assert broker.log.splitlines() == [
        "flagcast: warning: an open broker without persistence, for development only; use mosquitto for anything real",
        f"listening on {broker.url}",
    ]


@pytest.mark.amqtt
def test_the_embedded_broker_takes_a_free_port_and_says_which(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", PROGRAM, "broker", "--bind", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        assert line.startswith("listening on mqtt://127.0.0.1:")
        with mqtt.connect("127.0.0.1", int(line.rpartition(":")[2]), mqtt.Login()):
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


@pytest.mark.amqtt
def test_an_address_that_is_taken_is_said_to_be(flagcast: Flagcast, tmp_path: Path) -> None:
    with start_amqtt(tmp_path) as broker:
        done = flagcast("broker", "--bind", f"127.0.0.1:{broker.port}")
    assert (done.code, "address already in use" in done.err, "--bind" in done.err) == (1, True, True)


@pytest.mark.parametrize("bind", ["1883", "host", ":1883", "127.0.0.1:x", "127.0.0.1:70000", "[::1]:1883"])
def test_an_address_that_is_none_is_exit_code_2(flagcast: Flagcast, bind: str) -> None:
    done = flagcast("broker", "--bind", bind)
    assert (done.code, "allowed is HOST:PORT" in done.err) == (2, True)


def test_a_stopped_broker_answers_nobody(tmp_path: Path) -> None:
    broker: Broker = start_amqtt(tmp_path)
    broker.kill()
    with pytest.raises(mqtt.Unreachable):
        mqtt.connect(broker.host, broker.port, mqtt.Login())
    started = time.monotonic()
    broker.restart()
    assert time.monotonic() - started < START_SECONDS
    broker.stop()


def test_a_standard_input_that_is_closed_agrees_to_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert not cli._agrees("Sign it? ")
    assert capsys.readouterr().out == "Sign it? "
