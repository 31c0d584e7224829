"""flagd's service by the Connect protocol: unary calls in protobuf and JSON, and the event stream, over HTTP/1.1."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from admitted import History
from flagd_calls import FLAGS, MESSAGES, named, switch
from local_server import RunningServer, running
from raw_http1 import HttpClient, Response, enveloped, opened

from flagcast_agent.api import flagd as flagd_module

V2 = "/flagd.evaluation.v2.Service"
SERVICES = ("flagd.evaluation.v2.Service", "flagd.evaluation.v1.Service", "schema.v1.Service")
NORTH = {"targetingKey": "e", "region": "north"}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(FLAGS) as server:
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[HttpClient]:
    with HttpClient(server.path) as client:
        yield client


def resolve_proto(client: HttpClient, method: str, key: str, context: dict[str, Any] | None = None) -> Any:
    request = getattr(MESSAGES["v2"], f"{method}Request")(flag_key=key)
    request.context.update(context or {})
    response = client.ask(
        "POST", f"{V2}/{method}", request.SerializeToString(), {"content-type": "application/proto"}
    )
    assert response.status == 200, response.body
    assert response.headers["content-type"] == "application/proto"
    return getattr(MESSAGES["v2"], f"{method}Response").FromString(response.body)


def test_a_call_in_protobuf(client: HttpClient) -> None:
    found = resolve_proto(client, "ResolveString", "theme", NORTH)
    assert (found.value, found.variant, found.reason) == ("dark", "dark", "TARGETING_MATCH")
    assert found.metadata.fields["namespace"].string_value == "default"
    bare = resolve_proto(client, "ResolveString", "bare")
    assert not bare.HasField("value")
    assert resolve_proto(client, "ResolveBoolean", "on").value is True


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("ResolveBoolean", "in-north", True),
        ("ResolveString", "theme", "dark"),
        ("ResolveInt", "ten", "10"),  # 64 bits are a text in protobuf's JSON
        ("ResolveFloat", "ratio", 0.25),
        ("ResolveObject", "theme", {"ink": "white"}),
    ],
)
def test_a_call_in_json(client: HttpClient, service: str, method: str, key: str, value: object) -> None:
    for name in ("flagKey", "flag_key"):
        response = client.post_json(f"/{service}/{method}", {name: key, "context": NORTH})
        assert response.status == 200
        assert response.headers["content-type"] == "application/json"
        assert response.json["value"] == value
        assert response.json["variant"]
        assert response.json["metadata"]["version"] == 1


def test_json_is_what_protobuf_makes_of_the_same_answer(client: HttpClient) -> None:
    from google.protobuf import json_format

    for method, key in [("ResolveBoolean", "on"), ("ResolveObject", "settings"), ("ResolveInt", "ten")]:
        message = resolve_proto(client, method, key)
        written = client.post_json(f"{V2}/{method}", {"flagKey": key}).json
        assert written == json_format.MessageToDict(message)


def test_no_value_is_left_out_and_in_the_first_version_not_found(client: HttpClient) -> None:
    found = client.post_json(f"{V2}/ResolveString", {"flagKey": "bare"})
    assert (found.status, found.json["reason"]) == (200, "DEFAULT")
    assert not {"value", "variant"} & found.json.keys()
    for service in SERVICES[1:]:
        assert client.post_json(f"/{service}/ResolveString", {"flagKey": "bare"}).status == 404


def test_all_flags_at_once(client: HttpClient) -> None:
    in_json = client.post_json(f"{V2}/ResolveAll", {"context": NORTH}).json["flags"]
    assert in_json["theme"]["objectValue"] == {"ink": "white"}
    assert in_json["ten"]["doubleValue"] == 10
    assert in_json["on"]["boolValue"] is True
    assert in_json["plain"]["stringValue"] == "red"
    response = client.ask("POST", f"{V2}/ResolveAll", b"", {"content-type": "application/proto"})
    assert MESSAGES["v2"].ResolveAllResponse.FromString(response.body).flags.keys() == in_json.keys()


@pytest.mark.parametrize(
    ("method", "key", "status", "code"),
    [
        ("ResolveBoolean", "nope", 404, "not_found"),
        ("ResolveBoolean", "", 404, "not_found"),
        ("ResolveBoolean", "theme", 400, "invalid_argument"),
        ("ResolveObject", "plain", 400, "invalid_argument"),
        ("ResolveBoolean", "broken", 500, "internal"),
    ],
)
def test_an_error_is_a_status_and_an_object(
    client: HttpClient, method: str, key: str, status: int, code: str
) -> None:
    request = getattr(MESSAGES["v2"], f"{method}Request")(flag_key=key)
    proto = client.ask(
        "POST", f"{V2}/{method}", request.SerializeToString(), {"content-type": "application/proto"}
    )
    for response in (proto, client.post_json(f"{V2}/{method}", {"flagKey": key})):
        assert response.status == status
        assert response.headers["content-type"] == "application/json"
        assert response.json["code"] == code
        assert response.json["message"]


def failing(client: HttpClient, body: bytes, **headers: str) -> Response:
    given = {"content-type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return client.ask("POST", f"{V2}/ResolveBoolean", body, given)


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", {}, 500, "data_loss"),
        (b"", {}, 500, "data_loss"),
        (b"[]", {}, 500, "data_loss"),
        (b'{"flagKey":7}', {}, 500, "data_loss"),
        (b"[" * 100_000, {}, 500, "data_loss"),
        (b'{"flagKey":"\xff"}', {}, 500, "data_loss"),
        (b'{"flagKey":"on","context":[]}', {}, 500, "internal"),
        (b'{"flagKey":"on","context":{"targetingKey":[]}}', {}, 500, "internal"),
        (b"\xff\xff", {"content_type": "application/proto"}, 500, "data_loss"),
        (b"{}", {"content_encoding": "gzip"}, 501, "unimplemented"),
        (b"{}", {"connect_protocol_version": "2"}, 400, "invalid_argument"),
        (b'{"flagKey":"on"}', {"flagd_selector": "elsewhere"}, 400, "invalid_argument"),
    ],
)
def test_a_request_that_cannot_be_read_has_connects_error(
    client: HttpClient, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    response = failing(client, body, **headers)
    assert (response.status, response.json["code"]) == (status, code)
    assert client.post_json(f"{V2}/ResolveBoolean", {"flagKey": "on"}).status == 200


def test_another_content_type_is_refused_with_those_that_are_taken(client: HttpClient) -> None:
    for method, kind, taken in [
        ("ResolveBoolean", "text/plain", "application/proto"),
        ("ResolveBoolean", "application/connect+proto", "application/proto"),
        ("EventStream", "application/json", "application/connect+proto"),
        ("EventStream", "", "application/connect+json"),
    ]:
        response = client.ask("POST", f"{V2}/{method}", b"{}", {"content-type": kind})
        assert response.status == 415
        assert taken in response.headers["accept-post"]


# The event stream.


def begin(client: HttpClient, kind: str, body: bytes | None = None, **headers: str) -> Iterator[bytes]:
    client.send(
        "POST",
        f"{V2}/EventStream",
        enveloped(b"{}" if kind == "json" else b"") if body is None else body,
        {"content-type": f"application/connect+{kind}"}
        | {name.replace("_", "-"): value for name, value in headers.items()},
    )
    status, found = client.head()
    assert (status, found["content-type"]) == (200, f"application/connect+{kind}")
    return client.chunks()


@pytest.mark.parametrize("kind", ["json", "proto"])
def test_a_stream_of_a_namespace_that_this_device_never_has_ends_at_once(
    client: HttpClient, kind: str
) -> None:
    (only,) = begin(client, kind, flagd_selector="nope")
    flags, message = opened(only)
    assert (flags, json.loads(message)["error"]["code"]) == (2, "invalid_argument")


def test_events_in_json_and_in_protobuf() -> None:
    history = History()
    with running(None) as server:
        server.evaluator.activate(history.begin([switch("a", enabled=True)]))
        with HttpClient(server.path) as json_client, HttpClient(server.path) as proto_client:
            in_json, in_proto = begin(json_client, "json"), begin(proto_client, "proto")

            def next_json() -> Any:
                flags, message = opened(next(in_json))
                assert flags == 0
                return json.loads(message)

            def next_proto() -> Any:
                flags, message = opened(next(in_proto))
                assert flags == 0
                return MESSAGES["v2"].EventStreamResponse.FromString(message)

            assert next_json() == {"type": "provider_ready"}
            assert next_json() == {
                "type": "configuration_change",
                "data": {"flags": {"a": {"type": "write"}}},
            }
            assert next_proto().type == "provider_ready"
            assert named(next_proto()) == {"a": "write"}
            server.evaluator.activate(history.change([switch("b", enabled=True)]))
            assert next_json()["data"] == {"flags": {"b": {"type": "write"}}}
            assert named(next_proto()) == {"b": "write"}
            server.stop()
            for stream in (in_json, in_proto):
                flags, message = opened(next(stream))
                assert flags == 2
                assert json.loads(message)["error"]["code"] == "unavailable"
                assert list(stream) == []


def test_a_silent_stream_is_kept_alive(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flagd_module, "KEEP_ALIVE_SECONDS", 0.05)
    with HttpClient(server.path) as client:
        events = begin(client, "json")
        kinds = [json.loads(opened(next(events))[1])["type"] for _ in range(4)]
    assert kinds == ["provider_ready", "configuration_change", "keep_alive", "keep_alive"]


def test_a_stream_ends_when_the_clients_time_is_over(client: HttpClient) -> None:
    events = begin(client, "json", connect_timeout_ms="100")
    *_, last = events
    assert opened(last)[0] == 2
    assert json.loads(opened(last)[1])["error"]["code"] == "deadline_exceeded"
    assert client.ask("GET", "/livez").status == 200


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (b"", {}, "invalid_argument"),
        (b"\0\0\0", {}, "invalid_argument"),
        (enveloped(b"{}") * 2, {}, "invalid_argument"),
        (struct.pack(">BI", 0, 2**32 - 1), {}, "invalid_argument"),
        (enveloped(b"{}", flags=1), {}, "unimplemented"),
        (enveloped(b"{}"), {"connect_content_encoding": "gzip"}, "unimplemented"),
        (enveloped(b"{}"), {"connect_timeout_ms": "soon"}, "invalid_argument"),
    ],
)
def test_a_stream_that_cannot_begin_says_so_in_its_last_message(
    client: HttpClient, body: bytes, headers: dict[str, str], code: str
) -> None:
    (only,) = begin(client, "json", body, **headers)
    flags, message = opened(only)
    assert flags == 2
    assert json.loads(message)["error"]["code"] == code


def test_a_client_that_leaves_its_stream_leaves_nothing_behind(server: RunningServer) -> None:
    with HttpClient(server.path) as other:
        while server.open_calls():  # of a test before this one, whose client has just left
            assert other.ask("GET", "/livez").status == 200
    client = HttpClient(server.path)
    next(begin(client, "json"))
    assert server.open_calls() == 1
    assert len(server.server._changes._subscriptions) == 1
    client.close()
    with HttpClient(server.path) as other:
        while server.open_calls():
            assert other.ask("GET", "/livez").status == 200
    assert not server.server._changes._subscriptions
