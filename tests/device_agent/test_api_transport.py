"""What a client may do to the socket: its own call or connection ends, everybody else's goes on.

Where no gRPC library would send such a thing, a raw HTTP/2 client does.
"""

import contextlib
import importlib
import logging
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from admitted import History
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from local_server import ENTRIES, RunningServer, running
from raw_http2 import EVALUATE, RawClient, framed

from flagcast_agent.api import server as server_module
from flagcast_agent.api import web2
from flagcast_agent.api.grpc import AGENT_SERVICE, EVALUATION_SERVICE
from flagcast_agent.api.local import AgentNotReachable, LocalClient
from flagcast_agent.api.protos import flipt_evaluation_pb2 as flipt
from flagcast_agent.api.protos import health_pb2, reflection_v1_pb2, reflection_v1alpha_pb2
from flagcast_agent.api.questions import Question
from flagcast_agent.api.resolutions import FLAGD_V1_SERVICE, FLAGD_V2_SERVICE
from flagcast_agent.api.services import OF_GRPC
from flagcast_agent.limits import REQUEST_MAX_BYTES

grpc: Any = importlib.import_module("grpc")  # it ships no types

REQUEST = flipt.EvaluationRequest(flag_key="on").SerializeToString()
OK, INVALID_ARGUMENT, NOT_FOUND, EXHAUSTED, UNIMPLEMENTED, INTERNAL = "0", "3", "5", "8", "12", "13"


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RunningServer]:
    with running() as server:
        yield server


@pytest.fixture
def server(shared_server: RunningServer) -> Iterator[RunningServer]:
    """The server, with another client connected before and still answered after whatever the test does."""
    with RawClient(shared_server.path) as bystander:
        assert ask(bystander)["grpc-status"] == OK
        yield shared_server
        assert ask(bystander)["grpc-status"] == OK


def ask(client: RawClient) -> dict[str, str]:
    stream = client.begin()
    client.send(stream, framed(REQUEST), end=True)
    return client.headers_of(stream)


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.005)


@pytest.mark.parametrize(
    "body",
    [
        b"\x1a\x02\xff\xfe",  # flag_key is not UTF-8
        b"\x2a\x06\x0a\x01k\x12\x01\xff",  # a context value is not UTF-8
        b"\x1a\x05on",  # a text shorter than it announces
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",  # not a field number
    ],
)
def test_bytes_that_are_not_the_message_are_an_invalid_argument(server: RunningServer, body: bytes) -> None:
    with grpc.insecure_channel(f"unix:{server.path}") as channel:
        call = channel.unary_unary("/flipt.evaluation.EvaluationService/Boolean")
        with pytest.raises(grpc.RpcError) as caught:
            call(body, timeout=100)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "flipt.evaluation.EvaluationRequest" in caught.value.details()


def test_an_unknown_field_is_ignored(server: RunningServer) -> None:
    with grpc.insecure_channel(f"unix:{server.path}") as channel:
        call = channel.unary_unary("/flipt.evaluation.EvaluationService/Boolean")
        assert flipt.BooleanEvaluationResponse.FromString(
            call(REQUEST + b"\xa2\x06\x01x", timeout=100)
        ).enabled


@pytest.mark.parametrize(
    "method",
    ["/flipt.evaluation.EvaluationService/Nope", "/flagd.evaluation.v9.Service/ResolveBoolean", "/"],
)
def test_an_unknown_method_is_unimplemented(server: RunningServer, method: str) -> None:
    with RawClient(server.path) as client:
        stream = client.begin(method)
        client.send(stream, framed(REQUEST), end=True)
        assert client.headers_of(stream)["grpc-status"] == UNIMPLEMENTED


def test_a_compressed_request_is_unimplemented(server: RunningServer) -> None:
    with grpc.insecure_channel(f"unix:{server.path}", compression=grpc.Compression.Gzip) as channel:
        call = channel.unary_unary("/flipt.evaluation.EvaluationService/Boolean")
        with pytest.raises(grpc.RpcError) as caught:
            call(flipt.EvaluationRequest(flag_key="x" * 1000).SerializeToString(), timeout=100)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    "body", [b"", b"\0", b"\0\0\0\0", framed(b"", announced=5), framed(REQUEST, announced=100)]
)
def test_a_call_that_ends_in_its_request_is_an_invalid_argument(server: RunningServer, body: bytes) -> None:
    with RawClient(server.path) as client:
        stream = client.begin()
        client.send(stream, body, end=True)
        assert client.headers_of(stream)["grpc-status"] == INVALID_ARGUMENT


def test_a_call_without_a_body_is_an_invalid_argument(server: RunningServer) -> None:
    with RawClient(server.path) as client:
        assert client.headers_of(client.begin(end=True))["grpc-status"] == INVALID_ARGUMENT


@pytest.mark.parametrize("announced", [REQUEST_MAX_BYTES + 1, 2**32 - 1])
def test_an_announced_size_over_the_limit_is_refused_before_a_byte_of_it(
    server: RunningServer, announced: int
) -> None:
    with RawClient(server.path) as client:
        stream = client.begin()
        client.send(stream, framed(b"", announced=announced))
        headers = client.headers_of(stream)
    assert headers["grpc-status"] == EXHAUSTED
    assert str(announced) in headers["grpc-message"]


def test_a_client_that_never_finishes_its_request_is_answered_in_time(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web2, "REQUEST_TIMEOUT_SECONDS", 0.05)
    with RawClient(server.path) as client:
        stream = client.begin()
        client.send(stream, framed(b"", announced=100))
        assert client.headers_of(stream)["grpc-status"] == "4"


def test_a_binary_header_that_does_not_decode_does_not_leave_the_call_without_an_answer(
    server: RunningServer,
) -> None:
    with RawClient(server.path) as client:
        stream = client.begin(extra=(("trace-bin", "A"), ("x-flipt-namespace", "default")))
        client.send(stream, framed(REQUEST), end=True)
        assert client.headers_of(stream)["grpc-status"] == OK


@pytest.mark.parametrize("header", [":method", ":path", ":scheme"])
def test_a_request_without_what_every_request_has_is_reset(server: RunningServer, header: str) -> None:
    with RawClient(server.path) as client:
        assert client.headers_of(client.begin(without=header, end=True)) == {}  # RFC 9113, 8.1.1
        assert ask(client)["grpc-status"] == OK, "the connection itself is fine"


@pytest.mark.parametrize(("header", "status"), [("te", OK), ("content-type", None)])
def test_a_call_without_what_grpc_sends_is_answered(
    server: RunningServer, header: str, status: str | None
) -> None:
    with RawClient(server.path) as client:
        stream = client.begin(without=header)
        client.send(stream, framed(REQUEST), end=True)
        headers = client.headers_of(stream)
        assert headers.get("grpc-status") == status
        assert (headers[":status"] == "200") == (status == OK)
        assert ask(client)["grpc-status"] == OK, "the connection itself is fine"


def test_a_header_that_is_not_ascii_chooses_nothing(server: RunningServer) -> None:
    with RawClient(server.path) as client:
        client.http2.config.header_encoding = "utf-8"
        stream = client.begin(extra=(("x-flipt-namespace", "ж"),))
        client.http2.config.header_encoding = "ascii"
        client.send(stream, framed(REQUEST), end=True)
        assert client.headers_of(stream)["grpc-status"] == NOT_FOUND


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 100,
        bytes(range(256)) * 10,
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200,
    ],
)
def test_garbage_ends_its_connection_alone(server: RunningServer, garbage: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(100)
        client.connect(str(server.path))
        client.sendall(garbage)
        while client.recv(65536):
            pass


@pytest.mark.parametrize(
    "frame",
    [
        (0x1, 0x4, 1, b"\x80\x80\x80\x80\x80\x80\x80"),  # HEADERS that HPACK cannot read
        (0x0, 0x0, 99, b"data"),  # DATA on a stream that never began
        (0x4, 0x0, 0, b"odd"),  # SETTINGS of half an entry
        (0x8, 0x0, 0, b"\0\0\0\0"),  # WINDOW_UPDATE by nothing
        (0x3, 0x0, 7, b"\0\0\0\0"),  # RST_STREAM of a stream that never began
        (0x5, 0x4, 1, b"\0\0\0\2"),  # PUSH_PROMISE from a client
    ],
)
def test_a_frame_against_the_protocol_ends_its_connection_alone(
    server: RunningServer, frame: tuple[int, int, int, bytes]
) -> None:
    kind, flags, stream, body = frame
    with RawClient(server.path) as client:
        client.socket.sendall(_frame(kind, flags, stream, body))
        client.until_closed()


def test_a_frame_of_an_unknown_type_is_ignored(server: RunningServer) -> None:
    with RawClient(server.path) as client:
        client.socket.sendall(_frame(0xFA, 0, 0, b"from a newer protocol"))
        assert ask(client)["grpc-status"] == OK


@pytest.mark.parametrize("sent", [b"", b"\0\0", framed(REQUEST, announced=1000)])
def test_a_client_that_disconnects_in_the_middle_of_a_call_leaves_nothing_behind(
    server: RunningServer, sent: bytes
) -> None:
    client = RawClient(server.path)
    stream = client.begin()
    if sent:
        client.send(stream, sent)
    until(lambda: server.open_calls() == 1)
    client.close()
    until(lambda: server.open_calls() == 0)
    until(lambda: server.open_connections() == 1)  # the bystander's


def test_a_call_that_its_client_cancels_ends(server: RunningServer) -> None:
    with RawClient(server.path) as client:
        stream = client.begin()
        until(lambda: server.open_calls() == 1)
        client.http2.reset_stream(stream)
        client.flush()
        until(lambda: server.open_calls() == 0)
        assert ask(client)["grpc-status"] == OK


def _reset_at_once(client: RawClient, times: int) -> None:
    for _ in range(times):
        stream = client.http2.get_next_available_stream_id()
        headers = [(":method", "POST"), (":scheme", "http"), (":path", EVALUATE)]
        client.http2.send_headers(stream, [*headers, ("content-type", "application/grpc")])
        client.http2.reset_stream(stream)  # in the same write as the call's beginning
    client.flush()


def test_calls_that_are_reset_at_once_leave_nothing_behind(server: RunningServer) -> None:
    with RawClient(server.path) as client:
        _reset_at_once(client, 150)
        assert ask(client)["grpc-status"] == OK
        until(lambda: server.open_calls() == 0)


def test_calls_that_are_begun_and_reset_without_end_are_ended(server: RunningServer) -> None:
    with RawClient(server.path) as client:
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                _reset_at_once(client, 100)
        client.until_closed()
        until(lambda: server.open_calls() == 0)


def test_a_client_that_does_not_read_its_answers_keeps_nobody_waiting(server: RunningServer) -> None:
    with RawClient(server.path) as client:
        for _ in range(90):
            client.send(client.begin(), framed(REQUEST), end=True)
        with RawClient(server.path) as other:
            assert ask(other)["grpc-status"] == OK


def test_a_client_that_pings_and_never_reads_is_disconnected(server: RunningServer) -> None:
    ping = _frame(0x6, 0x0, 0, b"12345678")
    with RawClient(server.path) as client:
        with pytest.raises(ConnectionError):
            _send_without_end(client, ping * 1_000)
        until(lambda: server.open_connections() == 1)  # the bystander's


def test_a_connection_that_says_nothing_is_closed(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REQUEST_TIMEOUT_SECONDS", 0.1)
    for said in (b"", b"P", b"PR"):
        with socket.socket(socket.AF_UNIX) as silent:
            silent.settimeout(100)
            silent.connect(str(server.path))
            silent.sendall(said)
            assert silent.recv(1) == b""


def test_what_a_client_speaks_is_seen_however_its_first_bytes_are_cut(server: RunningServer) -> None:
    with RawClient(server.path, in_pieces=True) as client:
        assert ask(client)["grpc-status"] == OK


def test_a_failure_inside_the_agent_is_internal_and_logged_once(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(server.evaluator, "variant", fail)
    with caplog.at_level(logging.WARNING), RawClient(server.path) as client:
        stream = client.begin("/flipt.evaluation.EvaluationService/Variant")
        client.send(stream, framed(REQUEST), end=True)
        headers = client.headers_of(stream)
    assert headers["grpc-status"] == INTERNAL
    assert "a bug" not in headers["grpc-message"]
    assert [record.message for record in caplog.records] == ["a call failed inside the agent"]


def test_nothing_that_a_client_does_wrong_is_logged_as_an_error(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), RawClient(server.path) as client:
        for body in (b"", b"\0", framed(b"\xff\xff"), framed(REQUEST, announced=10**9)):
            stream = client.begin(extra=(("x-bin", "A"),))
            client.send(stream, body, end=True)
            client.headers_of(stream)
    assert caplog.records == []


# Health (grpc.health.v1) and reflection.


def health(server: RunningServer, service: str) -> str:
    with grpc.insecure_channel(f"unix:{server.path}") as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            response = check(health_pb2.HealthCheckRequest(service=service), timeout=100)
        except grpc.RpcError as error:
            return str(error.code().name)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


def test_the_agent_is_alive_before_it_knows_anything_and_serves_once_it_does() -> None:
    with running(None) as server:
        alive = ("", AGENT_SERVICE, *OF_GRPC)
        evaluating = (EVALUATION_SERVICE, FLAGD_V1_SERVICE, FLAGD_V2_SERVICE)
        assert {health(server, service) for service in alive} == {"SERVING"}
        assert {health(server, service) for service in evaluating} == {"NOT_SERVING"}
        server.evaluator.activate(History().begin(ENTRIES))
        assert {health(server, service) for service in (*alive, *evaluating)} == {"SERVING"}


def test_the_health_of_an_unknown_service_is_not_found(server: RunningServer) -> None:
    assert health(server, "nope") == "NOT_FOUND"


def test_somebody_who_watches_the_health_hears_of_the_first_knowledge() -> None:
    with running(None) as server, grpc.insecure_channel(f"unix:{server.path}") as channel:
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        responses = watch(health_pb2.HealthCheckRequest(service=EVALUATION_SERVICE), timeout=100)
        assert next(responses).status == health_pb2.HealthCheckResponse.NOT_SERVING
        server.evaluator.activate(History().begin(ENTRIES))
        assert next(responses).status == health_pb2.HealthCheckResponse.SERVING
        responses.cancel()


@pytest.mark.parametrize(
    ("version", "messages"), [("v1", reflection_v1_pb2), ("v1alpha", reflection_v1alpha_pb2)]
)
def test_reflection_describes_every_service(server: RunningServer, version: str, messages: Any) -> None:
    with grpc.insecure_channel(f"unix:{server.path}") as channel:
        reflect = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=messages.ServerReflectionRequest.SerializeToString,
            response_deserializer=messages.ServerReflectionResponse.FromString,
        )
        services = [
            EVALUATION_SERVICE,
            FLAGD_V1_SERVICE,
            FLAGD_V2_SERVICE,
            AGENT_SERVICE,
            *OF_GRPC,
        ]
        questions = [
            messages.ServerReflectionRequest(list_services=""),
            *(messages.ServerReflectionRequest(file_containing_symbol=name) for name in services),
            messages.ServerReflectionRequest(file_by_filename="google/protobuf/timestamp.proto"),
            messages.ServerReflectionRequest(file_containing_symbol="no.such.Service"),
        ]
        listed, *files, unknown = reflect(iter(questions), timeout=100)
    assert [service.name for service in listed.list_services_response.service] == services
    for name, answer in zip([*services, "google.protobuf"], files, strict=True):
        described, *_ = answer.file_descriptor_response.file_descriptor_proto  # then what it needs
        assert name.rpartition(".")[0].encode() in described
    assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


@pytest.mark.parametrize(
    ("version", "messages"), [("v1", reflection_v1_pb2), ("v1alpha", reflection_v1alpha_pb2)]
)
def test_reflection_finds_every_method_by_its_symbol(
    server: RunningServer, version: str, messages: Any
) -> None:
    with grpc.insecure_channel(f"unix:{server.path}") as channel:
        reflect = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=messages.ServerReflectionRequest.SerializeToString,
            response_deserializer=messages.ServerReflectionResponse.FromString,
        )

        def found(*symbols: str) -> list[Any]:
            questions = [messages.ServerReflectionRequest(file_containing_symbol=each) for each in symbols]
            return list(reflect(iter(questions), timeout=100))

        health(server, "")  # what is served beside Flipt's service is made by the first call for it
        assert server.server._services is not None
        paths = list(server.server._services.methods)
        assert len(paths) > 20
        for path, answer in zip(paths, found(*(path[1:].replace("/", ".") for path in paths)), strict=True):
            file, *_ = answer.file_descriptor_response.file_descriptor_proto
            service, _, method = path[1:].rpartition("/")
            described = FileDescriptorProto.FromString(file)
            declared = {f"{described.package}.{each.name}": each.method for each in described.service}
            assert method in {each.name for each in declared[service]}, path
        for answer in found(f"{EVALUATION_SERVICE}.Nope", "nope", "", ".", "no.such.Service.Method"):
            assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


# Methods that are not there.


@pytest.mark.parametrize(
    "path",
    [
        f"/{EVALUATION_SERVICE}/Nope",
        "/no.such.Service/Method",
        "/flagd.sync.v1.FlagSyncService/SyncFlags",
        "/",
        "x",
    ],
)
def test_a_method_that_is_not_there_is_unimplemented_in_an_answer_that_is_grpcs(
    server: RunningServer, path: str
) -> None:
    with RawClient(server.path) as client:
        stream = client.begin(path)
        client.send(stream, framed(REQUEST), end=True)
        headers = client.headers_of(stream)
        assert headers[":status"] == "200"
        # Without it Go's clients make UNKNOWN of any status.
        assert headers["content-type"].startswith("application/grpc")
        assert headers["grpc-status"] == str(grpc.StatusCode.UNIMPLEMENTED.value[0])
        assert ask(client)["grpc-status"] == OK


# The end.


def test_stopping_closes_idle_connections_and_accepts_no_more() -> None:
    with running() as server, RawClient(server.path) as client:
        assert ask(client)["grpc-status"] == OK
        server.stop()
        client.until_closed()
        with pytest.raises(AgentNotReachable):
            LocalClient(server.path).evaluate(Question("on"))


def test_a_call_in_progress_may_end_before_the_agent_stops() -> None:
    with running() as server, RawClient(server.path) as client:
        stream = client.begin()
        until(lambda: server.open_calls() == 1)
        stopped = server.begin(server.server.stop(grace=5))
        until(lambda: not any(listening.is_serving() for listening in server.server._listening))
        client.send(stream, framed(REQUEST), end=True)
        assert client.headers_of(stream)["grpc-status"] == OK
        stopped.result(5)
        client.until_closed()
        assert client.goaways == [(stream, 0)], "the client was told at once to ask nothing more here"


def test_a_call_that_does_not_end_is_cut_after_the_grace() -> None:
    with running() as server, RawClient(server.path) as client:
        client.begin()
        until(lambda: server.open_calls() == 1)
        server.call(server.server.stop(grace=0.05))
        assert server.open_calls() == 0
        assert server.open_connections() == 0


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    # RFC 9113, section 4.1.
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def _send_without_end(client: RawClient, data: bytes) -> None:
    for _ in range(1_000):
        client.socket.sendall(data)
