"""flagd's own providers, as applications install them, against the agent's socket: Python's, Node's, Go's, Java's and Rust's.

Python's stands in .venv/oracles. Node's is installed by tools/need-node-modules.sh; tools/need-go-application.sh and its
neighbours for Java and Rust build the others.
What they do when the agent is killed under them: see test_agent_killed.py.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from admitted import History
from flagd_calls import FLAGS, switch
from local_server import RunningServer
from oracles import ORACLES
from provided import ALL_FLAGD_LANGUAGES, FLAGD_LANGUAGES, flagd_application
from repository import ROOT

NORTH = {"targetingKey": "e", "region": "north"}


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fc-") as name:
        yield Path(name)


@pytest.fixture(params=ALL_FLAGD_LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def serving(folder: Path, history: History, *entries: object, tells_static: bool = True) -> RunningServer:
    server = RunningServer(folder, tells_static=tells_static)
    server.evaluator.activate(history.begin(entries))  # type: ignore[arg-type]  # flags and segments
    return server


def test_flags_answer_as_they_do_in_process(folder: Path, language: str) -> None:
    server = serving(folder, History(), *FLAGS)
    try:
        with flagd_application(language, server.path) as application:
            ask = application.ask
            # Rust's provider writes an object inside an object as a text of its own making.
            depth = {"list": [1, None, "x", True]}
            nested = ask("object", "settings", {})["value"]["depth"] if language == "rust" else depth
            assert (nested == depth) == (language != "rust")
            expected: list[tuple[tuple[Any, ...], object, str, str]] = [
                (("boolean", "on", False), True, "STATIC", "true"),
                (("boolean", "off", True), False, "STATIC", "false"),
                (("boolean", "in-north", False, NORTH), True, "TARGETING_MATCH", "true"),
                (("boolean", "in-north", True), False, "DEFAULT", "false"),
                (("string", "theme", "x", NORTH), "dark", "TARGETING_MATCH", "dark"),
                (("object", "theme", {}, NORTH), {"ink": "white"}, "TARGETING_MATCH", "dark"),
                (("integer", "ten", 3), 10, "DEFAULT", "small"),
                (("float", "ratio", 0.5), 0.25, "DEFAULT", "small"),
                (("string", "settings", "x"), "full", "DEFAULT", "full"),
                (
                    ("object", "settings", {}),
                    {"depth": nested, "n": 2},
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
            found = application.ask_until_kept("boolean", "on", False)
            assert (found["value"], found["variant"], found["error"]) == (True, "true", None)
            found = application.ask_until_kept("boolean", "off", True)
            assert (found["value"], found["variant"], found["error"]) == (False, "false", None)
    finally:
        server.end()


def test_no_value_is_the_applications_default(folder: Path, language: str) -> None:
    # Three providers still ask by version 1, whose answers cannot lack a value: there the agent answers that there is none.
    is_error = language in {"go", "java", "rust"}
    server = serving(folder, History(), *FLAGS)
    try:
        with flagd_application(language, server.path) as application:
            for key, reason in [("bare", "DEFAULT"), ("off-without", "DISABLED"), ("empty-rule", "DEFAULT")]:
                for kind, default in [
                    ("string", "mine"),
                    ("integer", 7),
                    ("float", 0.5),
                    ("object", {"a": 1}),
                ]:
                    found = application.ask(kind, key, default)
                    assert found["value"] == default, (key, kind)
                    assert found["reason"] == ("ERROR" if is_error else reason), (key, kind)
                    assert found["error"] == ("FLAG_NOT_FOUND" if is_error else None), (key, kind)
    finally:
        server.end()


def test_mistakes_have_openfeatures_codes_and_are_not_counted(folder: Path, language: str) -> None:
    # Rust's provider has its own reading of gRPC's INVALID_ARGUMENT.
    mismatch = "INVALID_CONTEXT" if language == "rust" else "TYPE_MISMATCH"
    server = serving(folder, History(), *FLAGS)
    try:
        with flagd_application(language, server.path) as application:
            for kind, key, default, code in [
                ("boolean", "nope", True, "FLAG_NOT_FOUND"),
                ("boolean", "theme", True, mismatch),
                ("integer", "theme", 3, mismatch),
                ("boolean", "broken", True, "GENERAL"),
            ]:
                before = server.evaluator.evaluations
                found = application.ask(kind, key, default, NORTH)
                assert (found["value"], found["reason"], found["error"]) == (default, "ERROR", code)
                assert server.evaluator.evaluations == before
    finally:
        server.end()


def test_a_percentage_without_a_targeting_key_is_answered_and_counted(folder: Path, language: str) -> None:
    # flagd's protocol has no error for it that any provider would read as TARGETING_KEY_MISSING.
    server = serving(folder, History(), *FLAGS)
    try:
        with flagd_application(language, server.path) as application:
            for kind, key, default in (("boolean", "half", False), ("string", "shared-out", "mine")):
                before = server.evaluator.entities_missing
                found = application.ask(kind, key, default)
                assert (found["reason"], found["error"]) in {("SPLIT", None), ("DEFAULT", None)}
                assert server.evaluator.entities_missing == before + 1
                application.ask(kind, key, default, {"targetingKey": "e"})
                assert server.evaluator.entities_missing == before + 1
    finally:
        server.end()


@pytest.mark.parametrize("tells_static", [True, False])
def test_what_a_provider_has_kept_is_not_counted(folder: Path, language: str, *, tells_static: bool) -> None:
    # docs/operations.md, Usage; flagd.caching = false ends it.
    server = serving(folder, History(), switch("a", enabled=True), tells_static=tells_static)
    try:
        with flagd_application(language, server.path) as application:
            for _ in range(50):
                assert application.ask("boolean", "a", False)["value"] is True
            # The two events that a stream begins with may each take back what was kept before they came.
            assert server.evaluator.evaluations in (range(1, 4) if tells_static else {50})
    finally:
        server.end()


@pytest.mark.parametrize("language", [FLAGD_LANGUAGES[1]])
def test_node_keeps_nothing_of_another_namespace(folder: Path, language: str) -> None:
    # It sends its selector with its questions and not with its stream, which names the default namespace's flags.
    other = History("other")
    server = serving(folder, History(), switch("a", enabled=True))
    server.evaluator.activate(other.begin([switch("b", enabled=True)]))
    try:
        with flagd_application(language, server.path, "other") as application:
            for _ in range(10):
                found = application.ask("boolean", "b", False)
                assert (found["value"], found["reason"]) == (True, "DEFAULT")
            server.evaluator.activate(other.change([switch("b", enabled=False)]))
            assert application.ask("boolean", "b", True)["value"] is False
    finally:
        server.end()


def test_python_finds_the_socket_by_an_environment_variable_and_a_link(folder: Path) -> None:
    server = serving(folder, History(), switch("a", enabled=True))
    (folder / "agent.sock:8013").symlink_to("agent.sock")
    try:
        with flagd_application(
            "python", Path("-"), settings={"FLAGD_HOST": f"unix:{folder}/agent.sock"}
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
            [ORACLES, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=100
        )
        assert done.returncode == 0, done.stderr
    finally:
        server.end()
