"""The reader of HTTP/1.1: any bytes give requests or one error, however they are cut; and what a connection survives."""

import asyncio
import contextlib
import gc
import json
import logging
import socket
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from local_server import RunningServer, running
from raw_http1 import HttpClient, enveloped

from flagcast_agent.api import flagd, flagd_events, load, ofrep, web
from flagcast_agent.api.changes import ChangeKind
from flagcast_agent.api.http1 import BadRequest, Request, RequestReader
from flagcast_agent.limits import (
    CONNECTIONS_MAX,
    CONTEXT_MAX_BYTES,
    HEAD_MAX_BYTES,
    HEADERS_MAX,
    HELD_MAX_BYTES,
    HELD_SHARE_BYTES,
    LARGE_REFUSAL_SECONDS,
    LARGE_WAITING_MAX,
    PIPELINED_MAX_BYTES,
    READ_MAX_BYTES,
    REQUEST_MAX_BYTES,
    REQUESTS_PER_TURN,
    UNPARSED_MAX_BYTES,
)
from flagcast_shared.ids import FlagKey
from flagcast_shared.model import BooleanFlag

ONE = "/ofrep/v1/evaluate/flags/on"
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def read(*parts: bytes) -> list[Request]:
    reader = RequestReader()
    found: list[Request] = []
    for part in parts:
        reader.feed(part)
        while (request := reader.next()) is not None:
            found.append(request)
    return found


# The reader.


def test_requests_one_after_the_other() -> None:
    first, second = read(
        b"\r\nPOST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nX-Y:  z \r\n\r\nabc" + GET
    )
    assert (first.method, first.target, first.body) == ("POST", "/a?b=c", b"abc")
    assert first.headers == {"host": "x", "content-length": "3", "x-y": "z"}
    assert (second.method, second.body, second.is_last) == ("GET", b"", False)


def test_a_body_in_chunks() -> None:
    (found,) = read(CHUNKED + b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\n")
    assert found.body == b"abc0123456789"


@pytest.mark.parametrize(
    ("line", "is_last", "is_chunking"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", False, True),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: TE, Close\r\n\r\n", True, True),
        (b"GET / HTTP/1.0\r\n\r\n", True, False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", False, False),
    ],
)
def test_whether_the_connection_goes_on(line: bytes, is_last: bool, is_chunking: bool) -> None:
    (found,) = read(line)
    assert (found.is_last, found.is_chunking) == (is_last, is_chunking)


def test_a_target_may_name_the_host() -> None:
    found = read(b"GET http://x:1/a HTTP/1.1\r\nHost: x\r\n\r\n", b"GET HTTP://x HTTP/1.1\r\nHost: x\r\n\r\n")
    assert [each.target for each in found] == ["/a", "/"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01", 400),  # a client that speaks TLS
        (b"GET /\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"G\tT / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # RFC 9112, section 3.2
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),  # section 5.2
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),  # section 5.1
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\nC: d\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: \xb2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (REQUEST_MAX_BYTES + 1), 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999999999999\r\n\r\n", 400),
        (CHUNKED + b"%x\r\n" % (REQUEST_MAX_BYTES + 1), 413),
        (CHUNKED + b"-1\r\n", 400),
        (CHUNKED + b"0x1\r\n", 400),
        (CHUNKED + b"3\r\nabcd\r\n", 400),
        (CHUNKED + b"1" * 2000, 400),
        (CHUNKED + b"0\r\nno trailer\r\n", 400),
        (CHUNKED + b"0\r\n" + b"A: b\r\n" * 10_000, 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * HEAD_MAX_BYTES, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * HEAD_MAX_BYTES + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * HEADERS_MAX + b"\r\n", 431),
        (b"\r\n" * (HEAD_MAX_BYTES // 2 + 1) + GET, 400),
    ],
)
def test_what_is_no_request_is_refused(data: bytes, status: int) -> None:
    with pytest.raises(BadRequest) as caught:
        read(data)
    assert caught.value.status == status


PIECES = st.sampled_from(
    [
        GET,
        CHUNKED,
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        b"\r\n",
        b"Host: x\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(PIECES | st.binary(max_size=30), max_size=6),
    cuts=st.lists(st.integers(0, 300), max_size=6),
)
def test_any_bytes_give_the_same_requests_or_an_error_however_they_are_cut(
    pieces: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(pieces)
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    parts = [data[start:end] for start, end in pairwise(places)]

    def outcome(*given: bytes) -> object:
        found: list[Request] = []
        reader = RequestReader()
        try:
            for part in given:
                reader.feed(part)
                while (request := reader.next()) is not None:
                    found.append(request)
        except BadRequest:
            return found, "refused"
        return found, "waits"

    assert outcome(data) == outcome(*parts) == outcome(*(bytes([byte]) for byte in data))


def pieces_of(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), READ_MAX_BYTES):
        yield data[start : start + READ_MAX_BYTES]


@pytest.mark.parametrize("size", [len(GET), 1000, READ_MAX_BYTES, REQUEST_MAX_BYTES])
@pytest.mark.parametrize("begun", [b"", CHUNKED + b"%x\r\n" % REQUEST_MAX_BYTES])
def test_requests_that_nobody_takes_are_refused_and_not_kept(begun: bytes, size: int) -> None:
    reader = RequestReader()
    reader.feed(begun)
    assert reader.next() is None
    piece = (GET * (size // len(GET) + 1))[:size]
    for _ in range((UNPARSED_MAX_BYTES - reader.waiting) // size):
        reader.feed(piece)
    with pytest.raises(BadRequest) as caught:
        reader.feed(piece)
    assert caught.value.status == 413
    held = reader.waiting
    assert held <= UNPARSED_MAX_BYTES
    for _ in range(100):
        with pytest.raises(BadRequest):
            reader.feed(bytes(UNPARSED_MAX_BYTES))
    assert reader.waiting == held


def test_a_body_in_chunks_counts_as_held() -> None:
    reader = RequestReader()
    for piece in pieces_of(CHUNKED + b"%x\r\n" % REQUEST_MAX_BYTES + bytes(REQUEST_MAX_BYTES - 1)):
        reader.feed(piece)
        assert reader.next() is None
    assert REQUEST_MAX_BYTES - 1 <= reader.waiting <= UNPARSED_MAX_BYTES


@pytest.mark.parametrize(
    "largest",
    [
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % REQUEST_MAX_BYTES
        + bytes(REQUEST_MAX_BYTES),
        CHUNKED + b"%x\r\n" % REQUEST_MAX_BYTES + bytes(REQUEST_MAX_BYTES) + b"\r\n0\r\n\r\n",
    ],
)
def test_the_largest_request_and_those_behind_it_are_read_in_the_pieces_of_a_connection(
    largest: bytes,
) -> None:
    found = read(*pieces_of((largest + GET * 1000) * 3))
    assert [len(each.body) for each in found] == [REQUEST_MAX_BYTES, *[0] * 1000] * 3


def test_empty_lines_without_end_are_refused_however_they_are_cut() -> None:
    lines = b"\r\n" * (HEAD_MAX_BYTES // 2)
    for size in (1, 2, 7, READ_MAX_BYTES):
        reader = RequestReader()
        for start in range(0, len(lines), size):
            reader.feed(lines[start : start + size])
            assert reader.next() is None
        reader.feed(b"\r\n")
        with pytest.raises(BadRequest, match="empty lines"):
            reader.next()


# The connection.


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RunningServer]:
    with running() as server:
        yield server


@pytest.fixture
def server(shared_server: RunningServer) -> Iterator[RunningServer]:
    """The server, with another client connected before and still answered after whatever the test does."""
    with HttpClient(shared_server.path) as bystander:
        assert bystander.ask("GET", "/livez").status == 200
        yield shared_server
        assert bystander.ask("GET", "/livez").body == b"alive\n"


def test_one_connection_carries_many_requests(server: RunningServer) -> None:
    with HttpClient(server.path) as client:
        for _ in range(50):
            assert client.ask("POST", ONE, b"{}").json["value"] is True


def test_requests_that_are_sent_ahead_are_answered_in_order(server: RunningServer) -> None:
    with HttpClient(server.path) as client:
        for target in (ONE, "/ofrep/v1/evaluate/flags", "/ofrep/v1/evaluate/flags/off") * 20:
            client.send("POST", target, b"{}")
        for _ in range(20):
            assert client.response().json["key"] == "on"
            assert len(client.response().json["flags"]) > 5
            assert client.response().json["key"] == "off"


def test_a_client_that_waits_to_be_told_is_told(server: RunningServer) -> None:
    with HttpClient(server.path) as client:
        client.socket.sendall(
            f"POST {ONE} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert client.head() == (100, {})
        client.socket.sendall(b"{}")
        assert client.response().status == 200


def test_an_old_client_is_answered_and_closed(server: RunningServer) -> None:
    with HttpClient(server.path) as client:
        client.socket.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert client.response().body == b"alive\n"
        assert client.until_closed() == b""


def test_a_client_that_says_it_is_done_still_gets_its_answer(server: RunningServer) -> None:
    for target in (ONE, "/ofrep/v1/evaluate/flags"):
        with HttpClient(server.path) as client:
            client.send("POST", target, b"{}")
            client.socket.shutdown(socket.SHUT_WR)
            assert client.response().status == 200
            assert client.until_closed() == b""


def test_a_request_that_is_refused_says_why_and_closes(server: RunningServer) -> None:
    with HttpClient(server.path) as client:
        client.socket.sendall(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n" + GET)
        response = client.response()
        assert (response.status, response.headers["connection"]) == (400, "close")
        assert "header" in response.json["errorDetails"]
        assert client.until_closed() == b""


def test_the_head_alone(server: RunningServer) -> None:
    with HttpClient(server.path) as client:
        response = client.ask("HEAD", "/livez")
        assert (response.status, response.headers["content-length"]) == (200, "6")
        assert client.ask("GET", "/livez").body == b"alive\n"


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/", 404),
        ("GET", "*", 404),
        ("POST", "/metrics", 405),
        ("GET", ONE, 405),
        ("POST", "/ofrep/v1/events", 405),
        ("GET", "/flagd.evaluation.v2.Service/ResolveBoolean", 405),
        ("POST", "/flagd.evaluation.v2.Service/Nope", 404),
        ("POST", "/flipt.evaluation.EvaluationService/Boolean", 404),
    ],
)
def test_what_is_not_there_is_said_so_and_the_connection_goes_on(
    server: RunningServer, method: str, target: str, status: int
) -> None:
    with HttpClient(server.path) as client:
        assert client.ask(method, target).status == status
        assert client.ask("GET", "/livez").status == 200


def test_a_request_that_never_ends_is_ended(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "REQUEST_TIMEOUT_SECONDS", 2.0)
    with HttpClient(server.path) as client:
        client.socket.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        for _ in range(3):  # a byte now and then buys no time
            time.sleep(0.05)
            client.socket.sendall(b"x")
        assert client.response().status == 408
        assert client.until_closed() == b""


def test_an_idle_connection_is_closed(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "IDLE_SECONDS", 0.1)
    with HttpClient(server.path) as client:
        assert client.ask("GET", "/livez").status == 200
        assert client.until_closed() == b""


def test_a_client_that_does_not_read_its_answers_is_disconnected(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "UNREAD_SECONDS", 0.3)
    with HttpClient(server.path) as greedy, HttpClient(server.path) as other:
        greedy.socket.settimeout(0.05)
        with pytest.raises((TimeoutError, ConnectionError)):
            _send_without_end(greedy)
        began = time.monotonic()
        while server.open_connections() > 2:
            assert other.ask("GET", "/livez").status == 200
            assert time.monotonic() - began < 100


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    patience = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < patience
        time.sleep(0.002)


def send_until_stopped(client: HttpClient, data: bytes) -> int:
    """Whole copies of `data` taken from a client that reads nothing; at most 64 MiB.

    It has stopped once it takes nothing for a second.
    """
    client.socket.settimeout(1)
    sent = 0
    many = data * (READ_MAX_BYTES // len(data) + 1)
    try:
        while sent < 64 * 2**20:
            sent += client.socket.send(many[sent % len(data) :])
    except TimeoutError:
        pass
    client.socket.settimeout(10)
    if rest := -sent % len(data):
        # What is cut is sent whole by a thread, once the agent goes on.
        threading.Thread(target=client.socket.sendall, args=(data[-rest:],), daemon=True).start()
        sent += rest
    return sent // len(data)


def test_nothing_more_is_read_from_a_client_that_does_not_read_and_all_is_answered_once_it_does(
    server: RunningServer,
) -> None:
    for request in (GET, f"POST {ONE} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode()):
        with HttpClient(server.path) as client:
            count = send_until_stopped(client, request)
            assert count * len(request) < 2 * 2**20
            for _ in range(count):
                assert client.response().status == 200
            assert client.ask("GET", "/livez").body == b"alive\n"


def test_nothing_more_is_read_from_a_client_that_sends_on_behind_a_stream(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ofrep, "KEEP_ALIVE_SECONDS", 0.05)
    with HttpClient(server.path) as client:
        client.send("GET", "/ofrep/v1/events")
        assert client.head()[0] == 200
        assert server.open_calls() == 1
        assert send_until_stopped(client, GET) * len(GET) < PIPELINED_MAX_BYTES + 2**20
        chunks = client.chunks()
        assert [next(chunks) for _ in range(30)][-1] == b": keep-alive\n\n"
    wait_until(lambda: server.open_calls() == 0)  # that the client has left is noticed


def test_requests_sent_ahead_keep_nobody_waiting(server: RunningServer) -> None:
    async def most_answered_in_one_turn() -> int:
        most, before = 0, server.evaluator.evaluations
        while server.evaluator.evaluations < begin + 2000:
            await asyncio.sleep(0)
            most = max(most, server.evaluator.evaluations - before)
            before = server.evaluator.evaluations
        return most

    request = f"POST {ONE} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    with HttpClient(server.path) as client:
        begin = server.evaluator.evaluations
        counted = server.begin(most_answered_in_one_turn())
        sending = threading.Thread(target=client.socket.sendall, args=(request * 2000,))
        sending.start()
        for _ in range(2000):
            assert client.response().status == 200
        sending.join()
        assert 1 <= counted.result(10) <= REQUESTS_PER_TURN


@pytest.fixture(scope="module")
def large_server() -> Iterator[RunningServer]:
    """A server with an answer to all flags that no socket takes at once."""
    with running([BooleanFlag(FlagKey(f"flag-{number}"), enabled=True) for number in range(6_000)]) as server:
        with HttpClient(server.path) as client:
            assert len(client.ask("POST", "/ofrep/v1/evaluate/flags", b"{}").body) > 400_000
        yield server


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_a_client_that_does_not_read_a_large_answer_is_disconnected_in_time(
    large_server: RunningServer, monkeypatch: pytest.MonkeyPatch, connection: str
) -> None:
    monkeypatch.setattr(web, "UNREAD_SECONDS", 0.3)
    with HttpClient(large_server.path) as slow, HttpClient(large_server.path) as other:
        slow.send("POST", "/ofrep/v1/evaluate/flags", b"{}", {"connection": connection})
        assert other.ask("GET", "/livez").status == 200
        wait_until(lambda: large_server.open_connections() == 1)
        assert other.ask("GET", "/livez").status == 200


def test_many_large_answers_at_once_are_written_in_slices(
    large_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0

    write = flagd.compact

    def counted(document: object) -> bytes:
        nonlocal written
        data = write(document)
        written += len(data)
        return data

    async def most_written_in_one_turn() -> int:
        most = 0
        while written < 16 * 400_000:
            before = written
            await asyncio.sleep(0)
            most = max(most, written - before)
        return most

    monkeypatch.setattr(flagd, "compact", counted)
    counting = large_server.begin(most_written_in_one_turn())
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            client = stack.enter_context(HttpClient(large_server.path))
            client.send(
                "POST",
                "/flagd.evaluation.v2.Service/ResolveAll",
                b"{}",
                {"content-type": "application/json"},
            )
        assert counting.result(30) < 20_000


@pytest.mark.parametrize("kind", ["json", "proto"])
def test_the_flags_of_many_event_streams_are_written_once(
    large_server: RunningServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    sizes: list[int] = []

    write = flagd_events._in_parts

    def counted(flags: flagd_events.Flags, size: int) -> Iterator[Sequence[tuple[FlagKey, ChangeKind]]]:
        sizes.append(len(flags))
        return write(flags, size)

    monkeypatch.setattr(flagd_events, "_in_parts", counted)
    request = enveloped(b"{}" if kind == "json" else b"")

    def subscribed(stack: contextlib.ExitStack) -> HttpClient:
        client = stack.enter_context(HttpClient(large_server.path))
        content_type = f"application/connect+{kind}"
        client.send(
            "POST", "/flagd.evaluation.v2.Service/EventStream", request, {"content-type": content_type}
        )
        return client

    def receive_all_flags(client: HttpClient) -> None:
        assert client.head()[0] == 200
        next(chunk for chunk in client.chunks() if len(chunk) > 100_000)

    with contextlib.ExitStack() as stack:
        for client in [subscribed(stack) for _ in range(16)]:
            receive_all_flags(client)
        assert sizes.count(6_000) == 1, "the streams share what was written"
    wait_until(lambda: large_server.open_connections() == 0)
    with contextlib.ExitStack() as stack:
        receive_all_flags(subscribed(stack))
    assert sizes.count(6_000) == 2, "nothing is kept for nobody"


ALL = "/ofrep/v1/evaluate/flags"
ALL_BY_CONNECT = "/flagd.evaluation.v2.Service/ResolveAll"
BLANKS = b" " * 900_000
AS_JSON = {"content-type": "application/json"}


def test_a_head_whose_body_is_not_whole_is_counted() -> None:
    begun = b"POST / HTTP/1.1\r\nHost: x\r\nA: " + b"v" * 15_000 + b"\r\nContent-Length: 5\r\n\r\n123"
    reader = RequestReader()
    reader.feed(begun)
    assert reader.next() is None
    assert reader.held == len(begun)
    reader.feed(b"45")
    assert reader.next() is not None
    assert reader.held == 0


@pytest.mark.parametrize("target", [ALL, ALL_BY_CONNECT])
def test_a_request_that_waits_for_its_large_answer_keeps_its_context_alone_and_is_counted(
    server: RunningServer, target: str
) -> None:
    body = b'{"context":{"a":"' + b"v" * 60_000 + b'"}' + BLANKS[:60_000] + b"}"
    with HttpClient(server.path) as client:
        with server.large_answers_held_up():
            client.send("POST", target, body, AS_JSON)
            wait_until(lambda: server.open_calls() == 1)
            wait_until(lambda: 60_000 < server.held() < 70_000)
        assert client.response().status == 200
        wait_until(lambda: server.held() == 0)


@pytest.mark.parametrize("target", [ALL, ALL_BY_CONNECT])
def test_a_context_over_the_limits_is_refused_before_it_waits(server: RunningServer, target: str) -> None:
    with server.large_answers_held_up(), HttpClient(server.path) as client:
        body = b'{"context":{"a":"' + b"v" * (CONTEXT_MAX_BYTES + 1) + b'"}}'
        assert client.ask("POST", target, body, AS_JSON).status >= 400
        assert server.open_calls() == 0


def test_a_stream_keeps_nothing_large_of_its_request_and_is_counted(server: RunningServer) -> None:
    with HttpClient(server.path) as events, HttpClient(server.path) as stream:
        events.send("GET", "/ofrep/v1/events", BLANKS, {"last-event-id": "v" * 10_000})
        assert events.head()[0] == 200
        wait_until(lambda: 10_000 < server.held() < 11_000)
        kind = {"content-type": "application/connect+json"}
        message = enveloped(b"{" + BLANKS + b"}")
        stream.send("POST", "/flagd.evaluation.v2.Service/EventStream", message, kind)
        assert stream.head()[0] == 200
        wait_until(lambda: 10_000 < server.held() < 11_000)
    wait_until(lambda: server.held() == 0)


def test_an_answer_is_counted_whole_until_all_of_it_is_read(large_server: RunningServer) -> None:
    with HttpClient(large_server.path) as slow:
        slow.send("POST", ALL, b"{}")
        size = int(slow.head()[1]["content-length"])
        wait_until(lambda: large_server.held() >= size)
    wait_until(lambda: large_server.held() == 0)


def test_requests_for_all_flags_beyond_the_queue_of_one_process_are_refused_and_may_be_repeated(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "LARGE_WAITING_MAX", 2)
    monkeypatch.setattr(web, "LARGE_REFUSAL_SECONDS", 0)
    with contextlib.ExitStack() as stack:
        first, second, third = (stack.enter_context(HttpClient(server.path)) for _ in range(3))
        with server.large_answers_held_up():
            first.send("POST", ALL, b"{}")
            second.send("POST", ALL_BY_CONNECT, b"{}", AS_JSON)
            wait_until(lambda: server.open_calls() == 2)
            for target in (ALL, ALL_BY_CONNECT):
                refused = third.ask("POST", target, b"{}", AS_JSON)
                assert (refused.status, refused.headers["retry-after"]) == (503, "0")
                assert "2 requests" in refused.json["errorDetails"]
        assert [client.response().status for client in (first, second)] == [200, 200]
        assert third.ask("POST", ALL, b"{}").status == 200


def test_a_client_without_patience_is_refused_once_in_a_while(server: RunningServer) -> None:
    with contextlib.ExitStack() as stack, server.large_answers_held_up():
        for _ in range(LARGE_WAITING_MAX):
            stack.enter_context(HttpClient(server.path)).send("POST", ALL, b"{}")
        wait_until(lambda: server.open_calls() == LARGE_WAITING_MAX)
        with HttpClient(server.path) as client:
            began = time.monotonic()
            assert client.ask("POST", ALL, b"{}").status == 503
            assert time.monotonic() - began > 0.9 * LARGE_REFUSAL_SECONDS


def test_processes_that_wait_for_large_answers_alternate() -> None:
    turns = load.Turns()
    current, *waiting = (turns.enter(process) for process in "aaaabbc")
    order = []
    while waiting:
        assert current is not None
        turns.leave(current)
        (current,) = (place for place in waiting if place is not None and place.turn.is_set())
        order.append(current.process)
        waiting.remove(current)
    assert "".join(str(each) for each in order) == "bacbaa"
    assert current is not None
    turns.leave(current)
    assert (turn := turns.enter("b")) is not None
    assert turn.turn.is_set()


def test_no_answer_is_made_for_clients_that_have_hung_up(
    large_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolutions = large_server.server._resolutions
    make, made = resolutions.answer_all, 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal made
        made += 1
        return make(*arguments, **options)

    monkeypatch.setattr(resolutions, "answer_all", counted)
    with HttpClient(large_server.path) as other:
        for _ in range(30):
            with HttpClient(large_server.path) as leaving:
                leaving.send("POST", ALL, b"{}")
        assert other.ask("POST", ALL, b"{}").status == 200
        wait_until(lambda: large_server.open_connections() == 1)
        assert made < 15


def test_a_client_that_is_done_sending_keeps_its_place_until_it_hangs_up(server: RunningServer) -> None:
    before = server.open_connections()
    with HttpClient(server.path) as reading, HttpClient(server.path) as leaving:
        with server.large_answers_held_up():
            for client in (leaving, reading):
                client.send("POST", ALL, b"{}")
                client.socket.shutdown(socket.SHUT_WR)
            wait_until(lambda: server.open_calls() == 2)
            leaving.close()
        assert reading.response().status == 200
        assert reading.until_closed() == b""
        wait_until(lambda: server.open_connections() == before)


@pytest.mark.parametrize("how", ["stopped", "reset"])
def test_a_request_whose_turn_never_comes_leaves_nothing_behind(how: str) -> None:
    flag = BooleanFlag(FlagKey("on"), enabled=True)
    with warnings.catch_warnings(record=True) as caught, running([flag]) as server:
        warnings.simplefilter("always")
        with server.large_answers_held_up(), contextlib.ExitStack() as stack:
            for _ in range(LARGE_WAITING_MAX):
                client = stack.enter_context(HttpClient(server.port))
                client.send("POST", ALL, b"{}")
                # Closing it resets the connection, so that the agent notices at once.
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            wait_until(lambda: server.open_calls() == LARGE_WAITING_MAX)
            if how == "stopped":
                server.call(server.server.stop(0))
            stack.close()
            wait_until(lambda: server.open_calls() == 0 and server.held() == 0)
        gc.collect()
    assert [str(each.message) for each in caught if each.category is RuntimeWarning] == []


def test_a_refusal_that_is_not_read_does_not_keep_its_connection(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "UNREAD_SECONDS", 0.1)
    with HttpClient(server.path) as other:
        assert other.ask("GET", "/livez").status == 200
        before = server.open_connections()
        # For one of them the socket is full at the end, and little waits before it.
        for count in range(200, 800, 30):
            with HttpClient(server.path) as slow:
                slow.socket.settimeout(0.05)
                with contextlib.suppress(TimeoutError, ConnectionError):
                    slow.socket.sendall(GET * count + b"no request\r\n\r\n")
                wait_until(lambda: server.open_connections() == before)


def test_where_too_much_waits_for_all_clients_the_longest_waits_end(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "HELD_MAX_BYTES", 2 * 2**20)
    monkeypatch.setattr(load, "HELD_SHARE_BYTES", 2 * 2**20 // CONNECTIONS_MAX)
    never_whole = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % REQUEST_MAX_BYTES
    with contextlib.ExitStack() as stack:
        small = stack.enter_context(HttpClient(server.path))
        small.socket.sendall(never_whole + b"x")
        slow = [stack.enter_context(HttpClient(server.path)) for _ in range(5)]
        for place, client in enumerate(slow):
            client.socket.sendall(never_whole + bytes(700_000))
            if place >= 2:
                assert slow[place - 2].until_closed() == b""
            arrived = min(place + 1, 2) * (len(never_whole) + 700_000) + len(never_whole) + 1
            wait_until(lambda: server.held() == arrived)  # noqa: B023  # called before the next round
        for client in (*slow[3:], small):
            client.socket.sendall(bytes(REQUEST_MAX_BYTES - (1 if client is small else 700_000)))
            assert client.response().status == 404
        wait_until(lambda: server.held() == 0)


def test_a_wait_begins_when_more_than_the_share_is_held() -> None:
    class Connection:
        is_aborted = False
        silent_since = None

        def leave(self) -> None:
            raise AssertionError

        async def finish(self) -> None:
            raise AssertionError

        def abort(self) -> None:
            self.is_aborted = True

    found = load.Load()
    stream, flood = Connection(), Connection()
    found.holds(stream, 100)  # for days
    found.holds(flood, HELD_MAX_BYTES - HELD_SHARE_BYTES)
    found.holds(stream, 2 * HELD_SHARE_BYTES)  # an event that is being read
    assert (stream.is_aborted, flood.is_aborted) == (False, True)
    assert found.held == 2 * HELD_SHARE_BYTES


def test_a_page_of_another_host_gets_nothing_from_the_loopback_port(server: RunningServer) -> None:
    for host, status in {
        "localhost": 200,
        f"127.0.0.1:{server.port}": 200,
        "[::1]:80": 200,
        "evil.example": 421,
        f"evil.example:{server.port}": 421,
        "localhost.evil.example": 421,
    }.items():
        with HttpClient(server.port) as client:
            assert client.ask("POST", ONE, b"{}", {"host": host}).status == status


def test_a_failure_inside_the_agent_is_an_internal_error_and_logged_once(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(server.server._resolutions, "resolve", fail)
    with caplog.at_level(logging.WARNING), HttpClient(server.path) as client:
        response = client.ask("POST", ONE, b"{}")
        assert response.status == 500
        assert "a bug" not in response.json["errorDetails"]
        assert client.ask("GET", "/livez").status == 200
    assert [record.message for record in caplog.records] == ["a call failed inside the agent"]


@settings(max_examples=50, deadline=None)
@given(body=st.binary(max_size=200) | st.text(max_size=50).map(lambda text: json.dumps(text).encode()))
def test_any_body_has_an_answer(body: bytes) -> None:
    with HttpClient(SHARED[0].path) as client:
        for target in (ONE, "/ofrep/v1/evaluate/flags"):
            assert client.ask("POST", target, body).status in {200, 400}
        for name in ("ResolveBoolean", "ResolveAll"):
            for kind in ("json", "proto"):
                response = client.ask(
                    "POST",
                    f"/flagd.evaluation.v2.Service/{name}",
                    body,
                    {"content-type": f"application/{kind}"},
                )
                assert response.status in {200, 400, 404, 500}


SHARED: list[RunningServer] = []


@pytest.fixture(autouse=True)
def _shared(shared_server: RunningServer) -> None:
    SHARED[:] = [shared_server]


def test_stopping_closes_idle_connections() -> None:
    with running() as server, HttpClient(server.path) as client:
        assert client.ask("GET", "/livez").status == 200
        server.stop()
        assert client.until_closed() == b""


def _send_without_end(client: HttpClient) -> None:
    for _ in range(100_000):
        client.send("GET", "/metrics")
