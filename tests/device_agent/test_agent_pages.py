"""Flagcast's own service by Connect: what has no library for gRPC asks like this."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from grpc_calls import Refused, call
from local_server import STATUS, RunningServer, running
from raw_http1 import HttpClient, Response
from raw_http2 import RawClient, framed

from flagcast_agent.api import services
from flagcast_agent.api.protos import flagcast_agent_pb2 as agent
from flagcast_agent.status import Caught

SERVICE = "/flagcast.agent.v1.Agent"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running() as server:
        yield server


def ask(server: RunningServer, call: str, body: bytes = b"{}", kind: str = "application/json") -> Response:
    with HttpClient(server.path) as client:
        client.send("POST", f"{SERVICE}/{call}", body, {"Content-Type": kind})
        return client.response()


def wait_until(holds: Callable[[], bool]) -> None:
    patience = time.monotonic() + 100
    while not holds():
        assert time.monotonic() < patience
        time.sleep(0.002)


def test_status_in_json(server: RunningServer) -> None:
    found = ask(server, "Status")
    assert (found.status, found.headers["content-type"]) == (200, "application/json")
    assert found.json["device"] == STATUS.device
    assert found.json["namespaces"][0]["last_rejection"]["attack"] == "rollback"


def test_status_in_protobuf(server: RunningServer) -> None:
    found = ask(server, "Status", b"", "application/proto")
    assert found.headers["content-type"] == "application/proto"
    assert agent.StatusResponse.FromString(found.body).device == STATUS.device


@pytest.mark.parametrize(
    ("name", "request_", "response"),
    [
        ("Status", agent.StatusRequest(), agent.StatusResponse),
        ("Sync", agent.SyncRequest(timeout_milliseconds=50), agent.SyncResponse),
        ("ListFlags", agent.ListFlagsRequest(namespace="default"), agent.ListFlagsResponse),
        (
            "Explain",
            agent.ExplainRequest(flag_key="theme", context={"region": "north"}),
            agent.ExplainResponse,
        ),
    ],
)
def test_in_protobuf_the_answer_is_grpcs(
    server: RunningServer, name: str, request_: Any, response: Any
) -> None:
    async def wait(_: float) -> Caught:
        return Caught(("no head",), STATUS)

    server.catch_up = wait
    found = ask(server, name, request_.SerializeToString(), "application/proto")
    assert (found.status, found.headers["content-type"]) == (200, "application/proto")
    assert response.FromString(found.body) == call(server.path, f"{SERVICE}/{name}", request_, response)


@pytest.mark.parametrize("name", ["flag_key", "flagKey"])
def test_both_spellings_of_protobufs_json_are_read(server: RunningServer, name: str) -> None:
    request = {name: "in-north", "context": {"region": "north"}, "of_a_later_release": 1}
    found = ask(server, "Explain", json.dumps(request).encode())
    assert json.loads(found.json["json"])["answer"]["enabled"] is True


def test_flags(server: RunningServer) -> None:
    listed = ask(server, "ListFlags").json
    assert listed["namespace"] == "default"
    assert [flag["key"] for flag in listed["flags"]] == sorted(flag["key"] for flag in listed["flags"])


@pytest.mark.parametrize(
    ("call", "body", "kind", "refusal"),
    [
        ("Explain", b'{"flag_key":"nope"}', "application/json", (404, "not_found")),
        ("Explain", b'{"flag_key":"broken"}', "application/json", (500, "internal")),
        ("Explain", b"nonsense", "application/json", (400, "invalid_argument")),
        ("Explain", b'{"flag_key":1}', "application/json", (400, "invalid_argument")),
        ("Explain", b"[" * 5_000, "application/json", (400, "invalid_argument")),
        ("Explain", b"\xff", "application/json", (400, "invalid_argument")),
        ("Explain", b"\xff", "application/proto", (400, "invalid_argument")),
        ("Sync", b'{"timeout_milliseconds":-1}', "application/json", (400, "invalid_argument")),
        ("Sync", b'{"timeout_milliseconds":"x"}', "application/json", (400, "invalid_argument")),
    ],
)
def test_what_has_no_answer_says_why(
    server: RunningServer, call: str, body: bytes, kind: str, refusal: tuple[int, str]
) -> None:
    found = ask(server, call, body, kind)
    assert (found.status, found.json["code"]) == refusal
    assert found.json["message"]


@pytest.mark.parametrize("call", ["Watch", "Snapshot", "Nope"])
def test_what_is_no_call_of_one_answer_is_not_there(server: RunningServer, call: str) -> None:
    assert ask(server, call).status == 404


def test_another_method_or_type_is_refused(server: RunningServer) -> None:
    with HttpClient(server.path) as client:
        assert client.ask("GET", f"{SERVICE}/Status").status == 405
    assert ask(server, "Status", b"{}", "text/plain").status == 415


def test_a_wait_for_the_broker_keeps_nobody_else_waiting_and_has_grpcs_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def wait(seconds: float) -> Caught:
        await asyncio.sleep(seconds)
        return Caught((), STATUS)

    monkeypatch.setattr(services, "SYNCS_MAX", 1)
    with running() as server:
        server.catch_up = wait
        with HttpClient(server.path) as waiting:
            body = b'{"timeout_milliseconds":60000}'
            waiting.send("POST", f"{SERVICE}/Sync", body, {"Content-Type": "application/json"})
            wait_until(lambda: server.open_calls() == 1)
            refused = ask(server, "Sync")
            assert (refused.status, refused.json["code"]) == (429, "resource_exhausted")
            assert ask(server, "Status").status == 200
        wait_until(lambda: server.open_calls() == 0)
        assert ask(server, "Sync", b'{"timeout_milliseconds":"1"}').json["status"]["device"] == STATUS.device


def test_the_places_of_sync_are_those_of_grpc_and_connect_together(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(seconds: float) -> Caught:
        await asyncio.sleep(seconds)
        return Caught((), STATUS)

    monkeypatch.setattr(services, "SYNCS_MAX", 1)
    long = agent.SyncRequest(timeout_milliseconds=60_000)
    with running() as server:
        server.catch_up = wait
        with RawClient(server.path) as waiting:
            stream = waiting.begin(f"{SERVICE}/Sync")
            waiting.send(stream, framed(long.SerializeToString()), end=True)
            wait_until(lambda: server.open_calls() == 1)
            assert ask(server, "Sync").json["code"] == "resource_exhausted"
        wait_until(lambda: server.open_calls() == 0)
        with HttpClient(server.path) as client:
            kind = {"Content-Type": "application/proto"}
            client.send("POST", f"{SERVICE}/Sync", long.SerializeToString(), kind)
            wait_until(lambda: server.open_calls() == 1)
            with pytest.raises(Refused, match="8: 1 calls of Sync wait already"):
                call(server.path, f"{SERVICE}/Sync", long, agent.SyncResponse)


def test_a_wait_for_the_broker_takes_no_turn_of_large_answers(server: RunningServer) -> None:
    async def wait(_: float) -> Caught:
        return Caught((), STATUS)

    server.catch_up = wait
    with server.large_answers_held_up():
        assert ask(server, "Sync").status == 200


def test_over_http2_it_is_the_same(server: RunningServer) -> None:
    with RawClient(server.path) as client:
        stream = client.http2.get_next_available_stream_id()
        path = (":path", f"{SERVICE}/Status")
        kind = ("content-type", "application/json")
        client.http2.send_headers(stream, [(":method", "POST"), (":scheme", "http"), path, kind])
        client.send(stream, b"{}", end=True)
        assert client.headers_of(stream)[":status"] == "200"


def test_numbers_of_64_bits_are_texts(server: RunningServer) -> None:
    status = ask(server, "Status").json
    assert status["started"] == str(STATUS.started)
