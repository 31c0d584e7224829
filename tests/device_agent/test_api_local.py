"""The command line's client against a real server, and against everything else that a socket's path may be."""

import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from local_server import STATUS, RunningServer, running

from flagcast_agent import cli
from flagcast_agent.api.local import AgentNotReachable, Evaluation, ListedFlag, LocalClient
from flagcast_agent.api.questions import Question
from flagcast_agent.status import LinkStatus, Rejection, Status
from flagcast_shared.errors import FlagNotFound, InvalidCall


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running() as server:
        yield server


@pytest.fixture
def client(server: RunningServer) -> LocalClient:
    return LocalClient(server.path)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fc-") as name:
        yield Path(name)


def test_a_boolean_flag(client: LocalClient) -> None:
    found = client.evaluate(Question("in-north", "e", {"region": "north"}))
    assert found == Evaluation("in-north", "boolean", "true", "TARGETING_MATCH", True, ("north",))
    assert found.as_json()["value"] is True


def test_a_variant_flag_needs_no_other_command(client: LocalClient) -> None:
    found = client.evaluate(Question("theme", "e", {"region": "north"}))
    assert (found.type, found.value, found.match, found.attachment) == (
        "variant",
        "dark",
        True,
        '{"ink":"white"}',
    )
    assert found.as_json()["value"] == "dark"


def test_a_disabled_flag_says_so(client: LocalClient) -> None:
    found = client.evaluate(Question("off"))
    assert (found.value, found.reason, found.match) == ("false", "STATIC", False)


@pytest.mark.parametrize("question", [Question("nope"), Question("on", namespace="elsewhere")])
def test_what_is_not_found_is_named(client: LocalClient, question: Question) -> None:
    for ask in (client.evaluate, client.explain):
        with pytest.raises(FlagNotFound, match=r"'nope'|'elsewhere'"):
            ask(question)


def test_why_a_flag_cannot_be_used_is_said(client: LocalClient) -> None:
    for ask in (client.evaluate, client.explain):
        with pytest.raises(InvalidCall, match="segment 'nowhere' is missing"):
            ask(Question("broken"))


def test_a_question_over_a_limit_is_refused_by_name(client: LocalClient) -> None:
    for ask in (client.evaluate, client.explain):
        with pytest.raises(InvalidCall, match="at most 65536"):
            ask(Question("theme", context={"k": "x" * 70_000}))


@pytest.mark.parametrize("entries", [34, 340])
def test_a_request_over_the_limit_is_refused_by_name(client: LocalClient, entries: int) -> None:
    context = {f"k{number}": "x" * 60_000 for number in range(entries)}
    with pytest.raises(InvalidCall, match=r"a request of [0-9]+ bytes; at most 1048576"):
        client.explain(Question("on", context=context))


def test_letters_outside_ascii_weigh_what_they_weigh_in_protobuf(client: LocalClient) -> None:
    with pytest.raises(InvalidCall, match="a context of 400001 bytes; at most 65536"):
        client.explain(Question("on", context={"k": "é" * 200_000}))


@pytest.mark.parametrize("question", [Question("on\udc80"), Question("on", context={"k": "\udc80"})])
def test_an_argument_that_is_no_text_is_refused(client: LocalClient, question: Question) -> None:
    with pytest.raises(InvalidCall, match=r"the request is not a flagcast\.agent\.v1\.ExplainRequest"):
        client.explain(question)


def test_the_flags_are_listed_by_key_with_what_is_wrong_with_them(client: LocalClient) -> None:
    listed = client.flags()
    assert (listed.namespace, listed.epoch, listed.version) == ("default", 1, 1)
    assert [flag.key for flag in listed.flags] == sorted(flag.key for flag in listed.flags)
    assert ListedFlag("on", "boolean", enabled=True, problem="") in listed.flags
    assert ListedFlag("theme", "variant", enabled=True, problem="") in listed.flags
    assert (
        ListedFlag("broken", "boolean", enabled=True, problem="segment 'nowhere' is missing") in listed.flags
    )
    with pytest.raises(FlagNotFound, match="'elsewhere'"):
        client.flags("elsewhere")


@pytest.mark.parametrize(
    ("words", "code", "printed"),
    [
        (("on",), 0, "true\tSTATIC\n"),
        (("off",), 0, "false\tSTATIC\n"),
        (("in-north", "--context", "region=north"), 0, "true\tTARGETING_MATCH\n"),
        (("theme", "--context", "region=north"), 0, 'dark\tTARGETING_MATCH\t{"ink":"white"}\n'),
        (("theme",), 0, "light\tDEFAULT\n"),
        (("bare",), 4, "(none)\tDEFAULT\n"),
        (("nope",), 1, ""),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_eval_prints_openfeatures_reason_and_ends_with_4_without_a_value(
    server: RunningServer, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, printed: str
) -> None:
    arguments = ["eval", *words, "--entity", "e", "--socket", str(server.path)]
    assert cli.main(arguments) == code
    assert capsys.readouterr().out == printed
    assert cli.main([*arguments, "--format", "json"]) == code


def test_a_boolean_flag_is_listed_by_what_it_answers_otherwise(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["flags", "--socket", str(server.path)]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert listed["on"] == "boolean  otherwise on"
    assert listed["in-north"] == "boolean  otherwise off"
    assert listed["theme"] == "variant  enabled"


def test_what_the_command_asks_is_not_counted(server: RunningServer, client: LocalClient) -> None:
    before = server.evaluator.evaluations
    client.evaluate(Question("on"))
    client.evaluate(Question("theme"))
    client.explain(Question("on"))
    assert server.evaluator.evaluations == before


def test_an_explanation_has_the_version_and_the_steps(client: LocalClient) -> None:
    explained = client.explain(Question("theme", "e", {"region": "north"}))
    assert (explained.namespace, explained.epoch, explained.version) == ("default", 1, 1)
    assert any("region" in line and "north" in line for line in explained.lines)
    document = json.loads(explained.json)
    assert (document["flag"], document["type"], document["entity"]) == ("theme", "variant", "e")
    assert document["steps"]


def test_the_status_arrives_as_it_was(server: RunningServer, client: LocalClient) -> None:
    assert client.status() == STATUS
    bare = Status("0.1.0", "d", "test", 1, 2, clock_is_trusted=True, link=LinkStatus("disconnected", 1))
    server.status = bare
    try:
        assert client.status() == bare
    finally:
        server.status = STATUS


def test_a_status_whose_numbers_and_texts_are_blank_arrives_as_it_was(
    server: RunningServer, client: LocalClient
) -> None:
    # Protobuf's JSON leaves out whatever is zero.
    blank = replace(STATUS.namespaces[0], last_rejection=Rejection("", "", 0))
    server.status = replace(STATUS, namespaces=(blank,))
    try:
        assert client.status() == server.status
    finally:
        server.status = STATUS


def test_no_agent_at_all(folder: Path) -> None:
    path = folder / "agent.sock"
    with pytest.raises(
        AgentNotReachable, match=f"no agent is listening at {path}; start one with: flagcast-agent run"
    ):
        LocalClient(path).status()


def test_the_socket_of_an_agent_that_died(folder: Path) -> None:
    path = folder / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(AgentNotReachable, match="no agent is listening"):
        LocalClient(path).status()


def test_a_socket_that_this_user_may_not_use() -> None:
    with running() as server:
        folder = server.path.parent
        folder.chmod(0o755)
        server.path.chmod(0o600)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        else:
            server.path.chmod(0)
        try:
            with pytest.raises(AgentNotReachable, match="this user may not connect"):
                LocalClient(server.path).status()
        finally:
            if is_root:
                os.seteuid(0)


def test_an_agent_that_hangs(folder: Path) -> None:
    path = folder / "agent.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(AgentNotReachable, match=r"did not answer within 0.1 s"):
            LocalClient(path, timeout=0.1).status()


@contextmanager
def answering(folder: Path, *parts: bytes, last: bytes = b"") -> Iterator[Path]:
    """The socket of something that sends `parts` to whoever asks, then `last` for as long as that is taken."""
    path = folder / "agent.sock"
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(path))
        stranger.listen()

        def talk() -> None:
            connection, _ = stranger.accept()
            with connection, suppress(ConnectionError):
                connection.recv(65536)
                connection.sendall(b"".join(parts))
                while last:
                    connection.sendall(last)

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            yield path
        finally:
            thread.join()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 64])
def test_something_that_is_not_an_agent(folder: Path, answer: bytes) -> None:
    with answering(folder, answer) as path, pytest.raises(AgentNotReachable):
        LocalClient(path, timeout=2).status()


OK_HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
EXPLAINED = b'{"namespace":"a","epoch":"1","version":"1","json":'
ASKS: dict[str, Callable[[LocalClient], object]] = {
    "status": lambda client: client.status(),
    "sync": lambda client: client.sync(1),
    "flags": lambda client: client.flags(),
    "explain": lambda client: client.explain(Question("a")),
    "eval": lambda client: client.evaluate(Question("a")),
}


@pytest.mark.parametrize(
    ("ask", "body"),
    [
        ("status", b"[" * 200_000),
        ("status", b'{"started":NaN}'),
        ("status", b'{"started":"x"}'),
        ("status", b'{"started":true}'),
        ("status", b'{"started":"' + b"9" * 5_000 + b'"}'),
        ("status", b'{"device":7}'),
        ("status", b'{"clock_is_trusted":"no"}'),
        ("status", b'{"link":[]}'),
        ("status", b'{"namespaces":{}}'),
        ("status", b'{"namespaces":[7]}'),
        ("status", b'{"namespaces":[{"last_rejection":7}]}'),
        ("sync", b"{}"),
        ("sync", b'{"status":[]}'),
        ("sync", b'{"status":{},"why":"x"}'),
        ("sync", b'{"status":{},"why":[7]}'),
        ("flags", b"{}"),
        ("flags", b'{"namespace":"a","epoch":"1","version":null}'),
        ("flags", b'{"namespace":"a","epoch":"1","version":"1","flags":[[]]}'),
        ("explain", b"{}"),
        ("explain", EXPLAINED + b"7}"),
        ("eval", EXPLAINED + b'"{}"}'),
        ("eval", EXPLAINED + b'"nonsense"}'),
        ("eval", EXPLAINED + b'"[]"}'),
        ("eval", EXPLAINED + b'"{\\"flag\\":\\"a\\",\\"type\\":\\"boolean\\",\\"answer\\":{}}"}'),
    ],
)
def test_an_answer_of_another_form_is_no_traceback(folder: Path, ask: str, body: bytes) -> None:
    with answering(folder, OK_HEAD, body) as path, pytest.raises(AgentNotReachable, match="cannot be asked"):
        ASKS[ask](LocalClient(path))


def test_an_agent_of_a_release_without_the_call(folder: Path) -> None:
    head = b"HTTP/1.1 404 Not Found\r\n\r\n"
    body = b'{"errorDetails":"nothing stands under this path"}'
    with answering(folder, head, body) as path, pytest.raises(AgentNotReachable, match="of another release"):
        LocalClient(path).status()


def test_a_refusal_of_http_itself_is_shown(folder: Path) -> None:
    head = b"HTTP/1.1 503 Service Unavailable\r\n\r\n"
    body = b'{"errorDetails":"too many"}'
    with answering(folder, head, body) as path, pytest.raises(AgentNotReachable, match="503: too many"):
        LocalClient(path).status()


def test_an_answer_without_end_ends_in_time(folder: Path) -> None:
    with (
        answering(folder, OK_HEAD, last=b" " * 64) as path,
        pytest.raises(AgentNotReachable, match=r"did not answer within 0.1 s"),
    ):
        LocalClient(path, timeout=0.1).status()


def test_a_stranger_on_the_socket_ends_the_command_with_3(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(folder, OK_HEAD, b"{}") as path:
        assert cli.main(["flags", "--socket", str(path)]) == 3
    assert "flagcast-agent: error: the agent at" in capsys.readouterr().err


def test_a_path_too_long_for_a_socket(folder: Path) -> None:
    with pytest.raises(AgentNotReachable, match="cannot be asked"):
        LocalClient(folder / ("x" * 200)).status()


def test_a_status_for_machines_is_json() -> None:
    document = json.loads(json.dumps(STATUS.as_json()))
    assert document["link"]["state"] == "disconnected"
    assert document["started"] == "2023-11-14T21:56:40Z"
    known, unknown = document["namespaces"]
    assert (known["epoch"], known["version"], known["age_seconds"]) == (2, 41, 86_400)
    assert known["freshness"] == "stale"
    assert known["last_rejection"]["attack"] == "rollback"
    assert (unknown["freshness"], unknown["version"], unknown["issued"]) == ("never synced", None, None)


def test_a_status_for_people_says_how_old_the_knowledge_is() -> None:
    text = "\n".join(STATUS.as_text())
    assert "stale: version 41 of epoch 2, 10 flags, issued 1 d ago, expired 10 min ago" in text
    assert "disconnected for 1 min 40 s; last error 10 s ago: connection refused" in text
    assert "last rejected 50 s ago: rollback: head 3 was offered" in text
    assert "other        never synced" in text
    assert "clock" in text


def test_a_fresh_status_for_people() -> None:
    issued = STATUS.now - 61
    fresh = replace(
        STATUS.namespaces[0],
        freshness="fresh",
        issued=issued,
        age=61,
        expires=STATUS.now + 90_061,
        last_rejection=None,
    )
    status = replace(STATUS, clock_is_trusted=True, link=LinkStatus("live", 0), namespaces=(fresh,))
    text = "\n".join(status.as_text())
    assert "issued 1 min 1 s ago, expires in 1 d 1 h" in text
    assert "clock" not in text
    assert "rejected" not in text
    assert "flags        no namespace is configured" in replace(status, namespaces=()).as_text()


def test_an_expiry_beyond_the_calendar_is_still_shown() -> None:
    far = replace(STATUS.namespaces[0], expires=2**63 - 1)
    document = replace(STATUS, namespaces=(far,)).as_json()
    assert str(2**63 - 1) in json.dumps(document)
