"""What applications get wrong, protocol by protocol: each has an answer of its own, and the next question is answered too."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from admitted import History
from flagd_calls import FLAGS, MESSAGES, grpc, switch
from local_server import ENTRIES, RunningServer, running
from raw_http1 import HttpClient, enveloped
from raw_http2 import EVALUATE, RawClient, framed

from flagcast_agent.api.answers import Snapshot
from flagcast_agent.api.protos import flagcast_agent_pb2 as agent
from flagcast_agent.api.protos import flipt_evaluation_pb2 as flipt
from flagcast_agent.limits import SNAPSHOT_PART_BYTES
from flagcast_shared.ids import Digest, Epoch, Version

ANSWERED = "answered"
NOT_UNICODE = b"\xff\xfe"
MEGABYTE = "x" * (1 << 20)


@dataclass(frozen=True)
class Protocol:
    """One way to ask for a boolean flag: the request's bytes, and what becomes of them on a connection of its own."""

    request: Callable[[str, dict[str, object]], bytes]
    ask: Callable[["RunningServer", list[tuple[str, bytes]]], list[str]]
    not_unicode: bytes


def flipt_request(key: str, context: dict[str, object]) -> bytes:
    texts = {name: str(value) for name, value in context.items()}
    return flipt.EvaluationRequest(flag_key=key, context=texts).SerializeToString()


def flagd_request(key: str, context: dict[str, object]) -> bytes:
    request = MESSAGES["v2"].ResolveBooleanRequest(flag_key=key)
    request.context.update(context)
    return bytes(request.SerializeToString())


def json_request(key: str, context: dict[str, object]) -> bytes:
    return json.dumps({"flagKey": key, "context": context}).encode()


def by_grpc(path: str) -> Callable[[RunningServer, list[tuple[str, bytes]]], list[str]]:
    def ask(server: RunningServer, requests: list[tuple[str, bytes]]) -> list[str]:
        found = []
        with grpc.insecure_channel(
            f"unix:{server.path}", options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            call = channel.unary_unary(path)
            for _, request in requests:
                try:
                    call(request, timeout=100)
                    found.append(ANSWERED)
                except grpc.RpcError as error:
                    found.append(error.code().name.lower())
        return found

    return ask


def by_http(target: str, kind: str) -> Callable[[RunningServer, list[tuple[str, bytes]]], list[str]]:
    def ask(server: RunningServer, requests: list[tuple[str, bytes]]) -> list[str]:
        found = []
        with HttpClient(server.path) as client:
            for key, request in requests:
                response = client.ask("POST", target + key, request, {"content-type": kind})
                told = response.json if response.status != 200 else {}
                found.append(told.get("code") or told.get("errorCode") or ANSWERED)
        return found

    return ask


def by_ofrep(server: RunningServer, requests: list[tuple[str, bytes]]) -> list[str]:
    return by_http("/ofrep/v1/evaluate/flags/", "application/json")(server, requests)


def without_key(
    ask: Callable[[RunningServer, list[tuple[str, bytes]]], list[str]],
) -> Callable[[RunningServer, list[tuple[str, bytes]]], list[str]]:
    return lambda server, requests: ask(server, [("", request) for _, request in requests])


CONNECT = "/flagd.evaluation.v2.Service/ResolveBoolean"
PROTOCOLS = {
    "flipt": Protocol(flipt_request, by_grpc(EVALUATE), b"\x1a\x02" + NOT_UNICODE),
    "flagd v1": Protocol(
        flagd_request, by_grpc("/flagd.evaluation.v1.Service/ResolveBoolean"), b"\x0a\x02" + NOT_UNICODE
    ),
    "flagd v2": Protocol(flagd_request, by_grpc(CONNECT), b"\x0a\x02" + NOT_UNICODE),
    "connect, protobuf": Protocol(
        flagd_request, without_key(by_http(CONNECT, "application/proto")), b"\x0a\x02" + NOT_UNICODE
    ),
    "connect, JSON": Protocol(
        json_request,
        without_key(by_http(CONNECT, "application/json")),
        b'{"flagKey": "' + NOT_UNICODE + b'"}',
    ),
    "OFREP": Protocol(
        lambda _, context: json.dumps({"context": context}).encode(),
        by_ofrep,
        b'{"context": {"a": "' + NOT_UNICODE + b'"}}',
    ),
}
UNKNOWN = {"OFREP": "FLAG_NOT_FOUND"}
# flagd's providers take INVALID_ARGUMENT for a flag of another type.
REFUSED = {"flipt": "invalid_argument", "OFREP": "INVALID_CONTEXT"}
UNREADABLE = {"connect, protobuf": "data_loss", "connect, JSON": "data_loss", "OFREP": "PARSE_ERROR"}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(FLAGS) as server:
        yield server


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_mistake_has_its_answer_and_the_next_question_is_answered(
    server: RunningServer, name: str
) -> None:
    protocol = PROTOCOLS[name]
    unknown, refused = UNKNOWN.get(name, "not_found"), REFUSED.get(name, "internal")
    # Only a question with a type in it can have the wrong one.
    wrong_type = ANSWERED if name == "OFREP" else "invalid_argument"
    asked: list[tuple[str, str, dict[str, object], str]] = [
        ("an unknown flag", "nope", {}, unknown),
        ("the wrong type", "theme", {}, wrong_type),
        ("an empty key", "", {}, unknown),
        ("a key of control characters", "%00%0a" if name == "OFREP" else "\0\n", {}, unknown),
        ("values that are no texts", "on", {"n": 3, "f": 0.5, "b": True, "nested": {"a": [None, 1]}}, ANSWERED),
        ("a context over its limit", "on", {"a": "x" * 70_000}, refused),
        ("a context of very many entries", "on", {f"k{number}": "" for number in range(300)}, refused),
        ("a question over its limit", "on", {f"k{number}": "" for number in range(30_000)}, refused),
    ]  # fmt: skip
    requests = []
    for _, key, context, _ in asked:
        requests += [(key, protocol.request(key, context)), ("on", protocol.request("on", {}))]
    found = protocol.ask(server, requests)
    assert found[1::2] == [ANSWERED] * len(asked)
    assert dict(zip([what for what, *_ in asked], found[::2], strict=True)) == {
        what: code for what, *_, code in asked
    }


@pytest.mark.parametrize("name", PROTOCOLS)
def test_bytes_that_are_no_unicode_are_refused(server: RunningServer, name: str) -> None:
    protocol = PROTOCOLS[name]
    refused = UNREADABLE.get(name, "invalid_argument")
    found = protocol.ask(server, [("on", protocol.not_unicode), ("on", protocol.request("on", {}))])
    assert found == [refused, ANSWERED]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_context_of_a_megabyte_is_refused_unread_and_nobody_else_notices(
    server: RunningServer, name: str
) -> None:
    protocol = PROTOCOLS[name]
    large = protocol.request("on", {"a": MEGABYTE})
    if name in {"flipt", "flagd v1", "flagd v2"}:
        assert protocol.ask(server, [("on", large)]) == ["resource_exhausted"]
    else:
        target = "/ofrep/v1/evaluate/flags/on" if name == "OFREP" else CONNECT
        kind = "application/proto" if name == "connect, protobuf" else "application/json"
        with HttpClient(server.path) as client:
            # The answer comes without the body being read, and the connection ends with it.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.send("POST", target, large, {"content-type": kind})
            assert client.response().status == 413
    assert protocol.ask(server, [("on", protocol.request("on", {}))]) == [ANSWERED]


def test_ten_thousand_calls_by_grpc_at_once_are_all_answered(server: RunningServer) -> None:
    connections, calls = 100, 100  # as many as one connection may have
    request = flipt_request("on", {})
    with contextlib.ExitStack() as stack:
        futures = []
        for _ in range(connections):
            channel = stack.enter_context(
                grpc.insecure_channel(f"unix:{server.path}", options=[("grpc.use_local_subchannel_pool", 1)])
            )
            call = channel.unary_unary(EVALUATE)
            futures += [call.future(request, timeout=100, wait_for_ready=True) for _ in range(calls)]
        answers = [flipt.BooleanEvaluationResponse.FromString(future.result()) for future in futures]
    assert sum(answer.enabled for answer in answers) == connections * calls


@pytest.mark.parametrize("name", ["connect, JSON", "OFREP"])
def test_ten_thousand_calls_by_http_at_once_are_all_answered(server: RunningServer, name: str) -> None:
    connections, calls = 100, 100
    target = "/ofrep/v1/evaluate/flags/on" if name == "OFREP" else CONNECT
    body = PROTOCOLS[name].request("on", {})
    clients = [HttpClient(server.path, timeout=100) for _ in range(connections)]
    try:
        for client in clients:
            for _ in range(calls):
                client.send("POST", target, body, {"content-type": "application/json"})
        right = sum(client.response().json["value"] is True for client in clients for _ in range(calls))
        assert right == connections * calls
    finally:
        for client in clients:
            client.close()


def watching(server: RunningServer) -> Callable[[], None]:
    client = RawClient(server.path)
    client.send(
        client.begin("/flagcast.agent.v1.Agent/Watch"), framed(agent.WatchRequest().SerializeToString())
    )
    return client.close


def connected_events(server: RunningServer) -> Callable[[], None]:
    client = HttpClient(server.path)
    target = "/flagd.evaluation.v2.Service/EventStream"
    client.send("POST", target, enveloped(b"{}"), {"content-type": "application/connect+json"})
    return client.close


def copying(server: RunningServer) -> Callable[[], None]:
    # More than the window of an HTTP/2 stream and the socket take.
    records = tuple(bytes(SNAPSHOT_PART_BYTES) for _ in range(8))
    server.snapshot = lambda name: Snapshot(name, Epoch(1), Version(1), Digest(b"d"), b"h", records)
    client = RawClient(server.path)
    client.send(client.begin("/flagcast.agent.v1.Agent/Snapshot"), framed(b""))
    return client.close


@pytest.mark.parametrize("begin", [watching, connected_events, copying])
def test_a_client_that_never_reads_its_stream_costs_nobody_an_answer(
    begin: Callable[[RunningServer], Callable[[], None]],
) -> None:
    # Those of flagd by gRPC and of OFREP are in their protocols' own tests.
    history = History()
    flags = [switch(f"flag-{number}", enabled=True) for number in range(50)]
    with running(None) as server:
        server.evaluator.activate(history.begin(flags))
        close = begin(server)
        for number in range(1, 500):
            changed = [switch(f"flag-{each}", enabled=number % 2 == 0) for each in range(50)]
            server.evaluator.activate(history.change(changed))
        found = by_ofrep(server, [("flag-1", b"{}")] * 20)
        assert found == [ANSWERED] * 20
        close()
        deadline = time.monotonic() + 10
        while server.open_connections():
            assert time.monotonic() < deadline
            time.sleep(0.01)


class UnixConnection(http.client.HTTPConnection):
    """The standard library's HTTP client, on a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=100)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def asked_for_all(server: RunningServer, etag: str = "", query: str = "") -> tuple[int, str, Any]:
    """OFREP's bulk answer: status, ETag and document."""
    headers = {"content-type": "application/json", **({"if-none-match": etag} if etag else {})}
    body = b'{"context": {"targetingKey": "e"}}'
    with contextlib.closing(UnixConnection(server.path)) as connection:
        connection.request("POST", f"/ofrep/v1/evaluate/flags{query}", body, headers)
        with connection.getresponse() as response:
            found = response.read()
            return response.status, response.getheader("etag", ""), json.loads(found) if found else None


def test_an_ordinary_http_client_hears_ofreps_events_and_asks_again() -> None:
    history = History()
    with running(None) as server, contextlib.closing(UnixConnection(server.path)) as listening:
        server.evaluator.activate(history.begin(ENTRIES))
        _, etag, first = asked_for_all(server)
        (stream,) = first["eventStreams"]
        listening.request("GET", stream["endpoint"]["requestUri"], headers={"accept": "text/event-stream"})
        with listening.getresponse() as response:
            heard = (json.loads(line[6:]) for line in response if line.startswith(b"data: "))
            assert next(heard)["type"] == "refetchEvaluation"
            assert asked_for_all(server, etag)[0] == 304
            server.evaluator.activate(history.change([switch("on", enabled=False)]))
            # As the specification has it, what was told goes along in the query.
            query = "?" + urlencode({"flagConfigEtag": next(heard)["etag"]})
            status, _, second = asked_for_all(server, etag, query)
            assert status == 200
            assert {each["key"]: each.get("value") for each in second["flags"]}["on"] is False
