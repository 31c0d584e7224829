"""flagd's own providers, as applications install them, against the agent's socket: Python's and Node's.

Python's stands in .venv/oracles. Node's is installed by tools/need-node-modules.sh, which `make test` runs.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from admitted import History
from devices import provision
from flagd_calls import FLAGS, choosing, switch
from local_server import RunningServer
from provided import APPLICATIONS, Application
from publisher_simulator import PublisherSimulator
from repository import ROOT

from brokers import start_mosquitto
from flagcast_bridge import mqtt

ORACLES = Path(sys.prefix) / "oracles" / "bin" / "python"
NODE_MODULES = Path(sys.prefix) / "node" / "node_modules"
NODE = shutil.which("node")
NORTH = {"targetingKey": "e", "region": "north"}


def has_node_provider() -> bool:
    return NODE is not None and (NODE_MODULES / "@openfeature" / "flagd-provider").is_dir()


with_node = pytest.mark.skipif(
    not has_node_provider(),
    reason="needs Node 20 or newer, and what tools/need-node-modules.sh installs",
)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fc-") as name:
        yield Path(name)


@pytest.fixture(params=["python", pytest.param("node", marks=with_node)])
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def start(language: str, path: Path, *more: str) -> Application:
    if language == "node":
        return Application(
            [str(NODE), APPLICATIONS / "flagd_application.cjs", path, *more],
            {"PATH": os.environ["PATH"], "NODE_PATH": str(NODE_MODULES)},
        )
    return Application([ORACLES, APPLICATIONS / "flagd_application.py", path, *more], {})


def serving(folder: Path, history: History, *entries: object) -> RunningServer:
    server = RunningServer(folder)
    server.evaluator.activate(history.begin(entries), now=1)  # type: ignore[arg-type]  # flags and segments
    return server


def test_flags_answer_as_they_do_in_process(folder: Path, language: str) -> None:
    server = serving(folder, History(), *FLAGS)
    try:
        with start(language, server.path) as application:
            ask = application.ask
            expected: list[tuple[tuple[Any, ...], object, str, str]] = [
                (("boolean", "on", False), True, "STATIC", "true"),
                (("boolean", "on", False), True, "CACHED", "true"),
                (("boolean", "off", True), False, "DISABLED", "false"),
                (("boolean", "in-north", False, NORTH), True, "TARGETING_MATCH", "true"),
                (("boolean", "in-north", True), False, "DEFAULT", "false"),
                (("string", "theme", "x", NORTH), "dark", "TARGETING_MATCH", "dark"),
                (("object", "theme", {}, NORTH), {"ink": "white"}, "TARGETING_MATCH", "dark"),
                (("integer", "ten", 3), 10, "DEFAULT", "small"),
                (("float", "ratio", 0.5), 0.25, "DEFAULT", "small"),
                (("string", "settings", "x"), "full", "DEFAULT", "full"),
                (
                    ("object", "settings", {}),
                    {"depth": {"list": [1, None, "x", True]}, "n": 2},
                    "DEFAULT",
                    "full",
                ),
            ]
            for question, value, reason, variant in expected:
                found = ask(*question)
                assert (found["value"], found["reason"], found["variant"]) == (value, reason, variant), (
                    question
                )
                assert found["error"] is None
    finally:
        server.end()


def test_no_value_is_the_applications_default(folder: Path, language: str) -> None:
    server = serving(folder, History(), *FLAGS)
    try:
        with start(language, server.path) as application:
            for key, reason in [("bare", "DEFAULT"), ("off-without", "DISABLED"), ("empty-rule", "DEFAULT")]:
                for kind, default in [
                    ("string", "mine"),
                    ("integer", 7),
                    ("float", 0.5),
                    ("object", {"a": 1}),
                ]:
                    found = application.ask(kind, key, default)
                    assert (found["value"], found["reason"]) == (default, reason), (key, kind)
    finally:
        server.end()


def test_mistakes_have_openfeatures_codes_and_are_not_counted(folder: Path, language: str) -> None:
    server = serving(folder, History(), *FLAGS)
    try:
        with start(language, server.path) as application:
            for kind, key, default, code in [
                ("boolean", "nope", True, "FLAG_NOT_FOUND"),
                ("boolean", "theme", True, "TYPE_MISMATCH"),
                ("integer", "theme", 3, "TYPE_MISMATCH"),
                ("boolean", "broken", True, "GENERAL"),
            ]:
                before = server.evaluator.evaluations
                found = application.ask(kind, key, default, NORTH)
                assert (found["value"], found["reason"], found["error"]) == (default, "ERROR", code)
                assert server.evaluator.evaluations == before
    finally:
        server.end()


def test_a_kept_answer_is_forgotten_when_its_flag_changes(folder: Path, language: str) -> None:
    history = History()
    server = serving(folder, history, switch("a", enabled=True), choosing("c", "red"))
    try:
        with start(language, server.path) as application:
            for _ in range(2):
                application.ask("boolean", "a", False)
                application.ask("string", "c", "x")
            assert application.ask("boolean", "a", False)["reason"] == "CACHED"
            server.evaluator.activate(
                history.change([switch("a", enabled=False), choosing("c", "blue")]), now=2
            )
            application.until(lambda: application.ask("boolean", "a", True)["value"] is False, "the change")
            application.until(lambda: application.ask("string", "c", "x")["value"] == "blue", "the change")
    finally:
        server.end()


def test_a_kept_answer_does_not_outlive_a_restart_of_the_agent(folder: Path, language: str) -> None:
    server = serving(folder, History(), switch("a", enabled=True))
    try:
        with start(language, server.path) as application:
            application.ask("boolean", "a", False)
            assert application.ask("boolean", "a", False)["reason"] == "CACHED"
            server.end()
            server = serving(folder, History(), switch("a", enabled=False))
            application.until(
                lambda: application.ask("boolean", "a", True)["reason"] == "DISABLED",
                "what the new agent says",
            )
    finally:
        server.end()


@pytest.mark.mosquitto
def test_a_kept_answer_of_a_flag_that_was_removed_does_not_outlive_a_restart_of_the_agent(
    folder: Path, language: str
) -> None:
    publisher = PublisherSimulator(now=int(time.time()))  # noqa: TID251  # devices judge it by their clock
    (folder / "anchor").write_bytes(publisher.anchor)
    with (
        start_mosquitto(folder / "broker") as broker,
        provision(folder / "device", folder / "anchor", broker.url) as device,
    ):

        def publish(*keys: str) -> None:
            publisher.release(*(switch(key, enabled=True) for key in keys))
            with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
                connection.publish([(topic, data) for topic, data in publisher.retained.items() if data])

        publish("a", "b")
        device.start()
        device.wait_for('message="up to date"')
        with start(language, device.socket) as application:
            for key in ("a", "b"):
                application.ask("boolean", key, False)
                assert application.ask("boolean", key, False)["reason"] == "CACHED"
            assert device.stop() == 0
            publish("a")
            # It hears of the removal while nobody listens to it.
            assert device.run("run", "--once").returncode == 0
            device.start()
            application.until(
                lambda: application.ask("boolean", "b", False)["error"] == "FLAG_NOT_FOUND",
                "what the new agent says",
            )
            assert application.ask("boolean", "a", False)["value"] is True


def test_what_a_provider_has_kept_is_not_counted(folder: Path, language: str) -> None:
    # What docs/operations.md says under Usage.
    server = serving(folder, History(), switch("a", enabled=True))
    try:
        with start(language, server.path) as application:
            for _ in range(50):
                assert application.ask("boolean", "a", False)["value"] is True
            assert server.evaluator.evaluations == 1
            server.server._resolutions._tells_static = False  # flagd.caching = false
            server.evaluator.evaluations = 0
        with start(language, server.path) as application:
            for _ in range(50):
                assert application.ask("boolean", "a", False)["value"] is True
            assert server.evaluator.evaluations == 50
    finally:
        server.end()


@with_node
def test_node_forgets_what_it_kept_of_another_namespace(folder: Path) -> None:
    # It sends its selector with its questions and not with its stream.
    other = History("other")
    server = serving(folder, History(), switch("a", enabled=True))
    server.evaluator.activate(other.begin([switch("b", enabled=True)]), now=1)
    try:
        with start("node", server.path, "other") as application:
            application.ask("boolean", "b", False)
            assert application.ask("boolean", "b", False)["reason"] == "CACHED"
            server.evaluator.activate(other.change([switch("b", enabled=False)]), now=2)
            application.until(lambda: application.ask("boolean", "b", True)["value"] is False, "the change")
    finally:
        server.end()


def test_python_finds_the_socket_by_an_environment_variable_and_a_link(folder: Path) -> None:
    server = serving(folder, History(), switch("a", enabled=True))
    (folder / "agent.sock:8013").symlink_to("agent.sock")
    try:
        with Application(
            [ORACLES, APPLICATIONS / "flagd_application.py", "-"], {"FLAGD_HOST": f"unix:{folder}/agent.sock"}
        ) as application:
            assert application.ask("boolean", "a", False)["value"] is True
    finally:
        server.end()


@pytest.mark.parametrize("runtime", ["upb", "python"])
def test_flagds_messages_and_ours_live_in_one_process(folder: Path, runtime: str) -> None:
    server = serving(folder, History(), switch("a", enabled=True))
    paths = [ROOT / "device_agent" / "src", ROOT / "shared" / "src"]
    code = (
        "import openfeature.schemas.protobuf.flagd.evaluation.v2.evaluation_pb2 as theirs\n"
        "from flagcast_agent.api.protos import flagd_evaluation_v1_pb2, flagd_evaluation_v2_pb2 as ours\n"
        "assert ours.ResolveBooleanRequest is not theirs.ResolveBooleanRequest\n"
        "sent = theirs.ResolveBooleanRequest(flag_key='a').SerializeToString()\n"
        "assert ours.ResolveBooleanRequest.FromString(sent).flag_key == 'a'\n"
    )
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": runtime,
    }
    try:
        done = subprocess.run(
            [ORACLES, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
    finally:
        server.end()
