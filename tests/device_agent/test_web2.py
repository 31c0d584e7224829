"""An HTTP/2 connection on a real socket: what it leaves behind, its limits of time, and HTTP's requests on it."""

import asyncio
import contextlib
import gc
import json
import logging
import time
from collections.abc import Callable, Iterator

import h2.events
import pytest
from frames import ping
from local_server import RunningServer, running
from raw_http2 import EVALUATE, RawClient, framed

from flagcast_agent.api import load, pages, web2
from flagcast_agent.api.exchange import Exchange
from flagcast_agent.api.http1 import Request
from flagcast_agent.api.http2.connection import Connection
from flagcast_agent.api.http2.stream import Stream
from flagcast_agent.api.load import Slices
from flagcast_agent.api.protos import flipt_evaluation_pb2 as flipt
from flagcast_agent.limits import BATCH_ANSWER_MAX_BYTES, PENALTY_SECONDS, UNREAD_MAX_BYTES
from flagcast_shared.ids import FlagKey, VariantKey
from flagcast_shared.model import BooleanFlag, Variant, VariantFlag

REQUEST = framed(flipt.EvaluationRequest(flag_key="on").SerializeToString())
WATCH = "/grpc.health.v1.Health/Watch"
ALL = "/flagd.evaluation.v2.Service/ResolveAll"


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with running() as server:
        yield server


def wait_until(holds: Callable[[], bool]) -> None:
    patience = time.monotonic() + 100
    while not holds():
        assert time.monotonic() < patience
        time.sleep(0.002)


@contextlib.contextmanager
def no_search_for_garbage() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def left_of(*kinds: type) -> int:
    return sum(isinstance(each, kinds) for each in gc.get_objects())


def ask(client: RawClient) -> str:
    stream = client.begin()
    client.send(stream, REQUEST, end=True)
    return client.headers_of(stream)["grpc-status"]


def test_a_client_that_leaves_amid_streams_and_requests_leaves_nothing_behind(server: RunningServer) -> None:
    with RawClient(server.path) as client:
        for _ in range(3):
            client.send(client.begin(WATCH), framed(b""), end=True)
            client.begin()
            client.send(client.begin(), REQUEST[:4])
        wait_until(lambda: server.open_calls() == 9)
    wait_until(lambda: server.open_calls() == 0 and server.open_connections() == 0 and server.held() == 0)
    with RawClient(server.path) as late:
        assert ask(late) == "0"
        wait_until(lambda: server.open_calls() == 0)


def test_what_is_cut_or_refused_is_freed_at_once_without_a_search_for_garbage() -> None:
    flags = [BooleanFlag(FlagKey(f"flag-{number:04}"), enabled=True) for number in range(3_000)]
    with running([*flags, BooleanFlag(FlagKey("on"), enabled=True)]) as server, no_search_for_garbage():
        with RawClient(server.path) as client:
            for _ in range(3):
                stream = client.begin()
                client.send(stream, framed(b"\x1a\7unknown"), end=True)
                assert client.headers_of(stream)["grpc-status"] == "5"
                stream = client.begin(WATCH, extra=(("grpc-timeout", "10m"),))
                client.send(stream, framed(b""), end=True)
                assert client.headers_of(stream)["grpc-status"] == "4"
                cancelled = client.begin(WATCH)
                client.send(cancelled, framed(b""), end=True)
                wait_until(lambda: server.open_calls() == 1)
                client.http2.reset_stream(cancelled)
                client.flush()
                wait_until(lambda: server.open_calls() == 0)
        for _ in range(3):
            with RawClient(server.path) as client:
                client.send(client.begin(ALL), framed(b""), end=True)
                wait_until(lambda: server.held() > 100_000)
        wait_until(lambda: server.open_calls() == 0 and server.open_connections() == 0)
        server.call(asyncio.sleep(0))
        assert left_of(Exchange, Stream, web2.Http2Connection, Connection) == 0


def test_an_idle_connection_is_told_and_closed_also_after_a_stream(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web2, "HTTP2_IDLE_SECONDS", 0.3)
    monkeypatch.setattr(web2, "_LOOK_SECONDS", 0.0)
    with RawClient(server.path) as watching:
        stream = watching.begin(WATCH)
        watching.send(stream, framed(b""), end=True)
        wait_until(lambda: server.open_calls() == 1)
        with RawClient(server.path) as asking:
            assert ask(asking) == "0"
            asking.until_closed()
            assert asking.goaways == [(1, 0)]
        assert server.open_connections() == 1, "a stream is not idle"
        watching.http2.reset_stream(stream)
        watching.flush()
        watching.until_closed()
        assert watching.goaways == [(stream, 0)]


def test_an_answer_that_nobody_makes_room_for_is_cut_and_the_connection_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web2, "UNREAD_SECONDS", 0.3)
    monkeypatch.setattr(web2, "_LOOK_SECONDS", 0.0)
    flags = [BooleanFlag(FlagKey(f"flag-{number}"), enabled=True) for number in range(3_000)]
    with (
        running([*flags, BooleanFlag(FlagKey("on"), enabled=True)]) as server,
        RawClient(server.path) as client,
    ):
        client.send(client.begin(ALL), framed(b""), end=True)
        is_cut = False
        while not is_cut:
            is_cut = any(isinstance(event, h2.events.StreamReset) for event in client.events())
        wait_until(lambda: server.held() == 0)
        client.http2.increment_flow_control_window(60_000)
        client.flush()
        assert ask(client) == "0"


def test_a_client_with_too_much_waiting_is_refused_before_an_answer_is_made() -> None:
    flags = [BooleanFlag(FlagKey(f"flag-{number:05}"), enabled=True) for number in range(20_000)]
    with running(flags) as server, RawClient(server.path) as client:
        client.send(client.begin(ALL), framed(b""), end=True)
        wait_until(lambda: server.held() > UNREAD_MAX_BYTES)
        held = server.held()
        stream = client.begin(ALL)
        client.send(stream, framed(b""), end=True)
        headers = client.headers_of(stream)
        assert (headers["grpc-status"], "wait to be read" in headers["grpc-message"]) == ("8", True)
        assert server.held() <= held
        with RawClient(server.path) as other:
            stream = other.begin("/grpc.health.v1.Health/Check")
            other.send(stream, framed(b""), end=True)
            assert other.headers_of(stream)["grpc-status"] == "0"


def test_headers_of_calls_in_progress_count_as_held(server: RunningServer) -> None:
    with RawClient(server.path) as client:
        streams = []
        for number in range(50):
            streams.append(client.begin(WATCH, extra=(("x", f"{number:05}" * 2_000),)))
            client.send(streams[-1], framed(b""), end=True)
        wait_until(lambda: server.held() > 50 * 10_000)
        for stream in streams:
            client.http2.reset_stream(stream)
        client.flush()
        wait_until(lambda: server.held() == 0)
        assert ask(client) == "0"


def test_a_batch_whose_answer_would_be_too_large_is_refused() -> None:
    attachment = json.dumps("x" * 60_000)
    large = VariantFlag(
        FlagKey("large"),
        enabled=True,
        variants=(Variant(VariantKey("v"), attachment),),
        default=VariantKey("v"),
    )
    most = BATCH_ANSWER_MAX_BYTES // len(attachment)
    with running([large]) as server, RawClient(server.path) as client:
        for number, status in ((most, "0"), (most + 1, "8")):
            one = flipt.EvaluationRequest(flag_key="large", entity_id="e")
            batch = flipt.BatchEvaluationRequest(requests=[one] * number)
            stream = client.begin("/flipt.evaluation.EvaluationService/Batch")
            client.http2.increment_flow_control_window(2**24)
            client.http2.increment_flow_control_window(2**24, stream)
            client.send(stream, framed(batch.SerializeToString()), end=True)
            assert client.headers_of(stream)["grpc-status"] == status


@pytest.mark.parametrize("timeout", ["10m", "1n", "0S"])
def test_a_stream_ends_with_the_deadline_of_its_client(server: RunningServer, timeout: str) -> None:
    with RawClient(server.path) as client:
        stream = client.begin(WATCH, extra=(("grpc-timeout", timeout),))
        client.send(stream, framed(b""), end=True)
        assert client.headers_of(stream)["grpc-status"] == "4"
        assert ask(client) == "0"


@pytest.mark.parametrize("timeout", ["1", "1x", "-1S", "123456789S", "1.5S", "\u0661S"])
def test_a_deadline_that_is_none_is_an_invalid_argument(server: RunningServer, timeout: str) -> None:
    with RawClient(server.path) as client:
        client.http2.config.header_encoding = "utf-8"
        stream = client.begin(WATCH, extra=(("grpc-timeout", timeout),))
        client.http2.config.header_encoding = "ascii"
        client.send(stream, framed(b""), end=True)
        assert client.headers_of(stream)["grpc-status"] == "3"
        assert ask(client) == "0"


def test_a_page_that_fails_is_500_and_logged_and_the_connection_goes_on(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object, __: Request) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pages.Pages, "answer", fail)
    with caplog.at_level(logging.WARNING), RawClient(server.path) as client:
        stream = client.begin("/livez", without="content-type", end=True)
        assert client.headers_of(stream)[":status"] == "500"
        assert ask(client) == "0"
    assert [record.message for record in caplog.records] == ["a call failed inside the agent"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/livez", "200"),
        ("HEAD", "/livez", "200"),
        ("GET", "/nope", "404"),
        ("GET", EVALUATE, "404"),
        ("POST", "/ofrep/v1/evaluate/flags/on", "200"),
        ("POST", "/ofrep/v1/evaluate/flags", "200"),
        ("POST", "/flagd.evaluation.v1.Service/ResolveAll", "200"),
    ],
)
def test_pages_connect_and_ofrep_are_answered_over_http2_too(
    server: RunningServer, method: str, path: str, status: str
) -> None:
    with RawClient(server.path) as client:
        stream = client.http2.get_next_available_stream_id()
        pairs = [(":method", method), (":scheme", "http"), (":path", path)]
        if method == "POST":
            client.http2.send_headers(stream, [*pairs, ("content-type", "application/json")])
            client.send(stream, b"{}", end=True)
        else:
            client.http2.send_headers(stream, pairs, end_stream=True)
            client.flush()
        assert client.headers_of(stream)[":status"] == status
        assert ask(client) == "0"


# Walls between processes.


def test_processes_that_have_more_to_do_alternate_one_slice_a_round() -> None:
    taken: list[str] = []

    async def run() -> None:
        slices = Slices()

        def flood(left: int) -> None:
            taken.append("flood")
            if left:
                slices.wait("a", lambda: flood(left - 1))

        for _ in range(3):
            slices.wait("a", lambda: flood(2))
        await asyncio.sleep(0)
        slices.wait("b", lambda: taken.append("honest"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert slices.may_go_on("a")

    asyncio.run(run())
    assert taken.count("flood") == 9
    assert taken.index("honest") <= 2, "it waits for one slice, however many of the flood's wait"


def test_streams_of_one_process_without_end_are_refused_and_calls_go_on(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "LASTING_MAX", 5)
    with RawClient(server.path) as client:
        held = [client.begin(WATCH) for _ in range(5)]
        for stream in held:
            client.send(stream, framed(b""), end=True)
        wait_until(lambda: server.open_calls() == 5)
        refused = client.begin(WATCH)
        client.send(refused, framed(b""), end=True)
        assert client.headers_of(refused)["grpc-status"] == "8"
        assert ask(client) == "0"
        client.http2.reset_stream(held[0])
        client.flush()
        wait_until(lambda: server.open_calls() == 4)
        again = client.begin(WATCH)
        client.send(again, framed(b""), end=True)
        wait_until(lambda: server.open_calls() == 5)


def test_who_broke_the_protocol_and_connects_again_is_read_later(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "PENALTY_SECONDS", 0.5)
    with RawClient(server.path) as kept:
        assert ask(kept) == "0"
        with RawClient(server.path) as wrong:
            wrong.socket.sendall(ping(b"short"))
            wrong.until_closed()
        began = time.monotonic()
        assert ask(kept) == "0", "an open connection is not punished"
        with RawClient(server.path) as again:
            assert ask(again) == "0"
        assert time.monotonic() - began > 0.3


def test_penalties_end_and_are_forgotten() -> None:
    async def run() -> None:
        found = load.Load()
        for number in range(1_000):
            found.offended(number, float(number))
        assert len(found._offended) <= 2
        assert found.penalty(999, 999.25) == pytest.approx(PENALTY_SECONDS - 0.25)
        assert found.penalty(999, 1_000.0) == 0.0
        assert found.penalty("another", 999.0) == 0.0

    asyncio.run(run())
