"""Places for connections: a client that opens them without end keeps nobody out."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from local_server import RunningServer, running
from raw_http1 import HttpClient
from raw_http2 import RawClient, framed

from flagcast_agent.api import places
from flagcast_agent.api.load import Load
from flagcast_agent.api.places import NOBODY, Peer, Places
from flagcast_agent.api.protos import flipt_evaluation_pb2 as flipt
from flagcast_agent.limits import CONNECTIONS_MAX, SILENT_SECONDS, USER_CONNECTIONS_MAX

REQUEST = framed(flipt.EvaluationRequest(flag_key="on").SerializeToString())


class Made:
    """A connection of which nothing but its silence is known."""

    def __init__(self, silent_since: float | None) -> None:
        self.silent_since = silent_since
        self.is_aborted = False

    def leave(self) -> None:
        raise NotImplementedError

    async def finish(self) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        self.is_aborted = True


def filled(
    load: Load, silent_since: Callable[[int], float | None], *, uid: int, number: int, first: int = 0
) -> list[Made]:
    made = [Made(silent_since(at)) for at in range(first, first + number)]
    for each in made:
        load.opened(each)
        load.peers[each] = Peer(7, uid, uid)
    return made


def test_one_user_without_end_leaves_half_of_the_places() -> None:
    load = Load()
    filled(load, lambda at: None, uid=1000, number=USER_CONNECTIONS_MAX)
    entering = Places(load)
    assert not entering.enter(Made(100.0), Peer(8, 1000, 1000), 100.0)
    assert len(load.peers) == USER_CONNECTIONS_MAX
    for _ in range(USER_CONNECTIONS_MAX):
        assert entering.enter(Made(None), Peer(9, 1001, 1001), 100.0)
    assert not entering.enter(Made(None), Peer(10, 1002, 1002), 100.0)
    assert len(load.peers) == CONNECTIONS_MAX


def test_the_one_that_has_been_silent_for_longest_gives_way_to_its_own_user_alone() -> None:
    load = Load()
    others = filled(load, lambda at: 1.0, uid=1, number=10)
    own = filled(load, lambda at: 50.0 - at, uid=1000, number=USER_CONNECTIONS_MAX - 1)
    busy = filled(load, lambda at: None, uid=1000, number=1)
    assert Places(load).enter(Made(60.0), Peer(8, 1000, 1000), 60.0)
    assert [each.is_aborted for each in own] == [False] * (len(own) - 1) + [True]
    assert not any(each.is_aborted for each in others + busy)
    assert own[-1] not in load.peers


def test_where_all_places_are_taken_anybody_who_is_silent_gives_way() -> None:
    load = Load()
    made = [
        each
        for uid in range(4)
        for each in filled(load, lambda at: at + 1.0, uid=uid, number=CONNECTIONS_MAX // 4, first=uid * 64)
    ]
    assert Places(load).enter(Made(500.0), Peer(8, 1000, 1000), 500.0)
    assert [at for at, each in enumerate(made) if each.is_aborted] == [0]


def test_who_has_only_just_asked_does_not_give_way() -> None:
    load = Load()
    made = filled(load, lambda at: 100.0 - SILENT_SECONDS / 2, uid=1000, number=USER_CONNECTIONS_MAX)
    assert not Places(load).enter(Made(100.0), Peer(8, 1000, 1000), 100.0)
    assert not any(each.is_aborted for each in made)


def test_a_flood_of_connections_writes_few_lines_and_they_name_who_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    load = Load()
    filled(load, lambda at: None, uid=1000, number=USER_CONNECTIONS_MAX)
    entering = Places(load)
    with caplog.at_level(logging.WARNING):
        for at in range(5_000):
            assert not entering.enter(Made(None), Peer(8, 1000, 1000), 100.0 + at / 2_500)
    assert [record.getMessage() for record in caplog.records] == [
        f"a connection was refused: of process 8, user 1000; {USER_CONNECTIONS_MAX} of this user are open{more}"
        for more in ("", "; 2499 more since the last such line")
    ]


# On real sockets.


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
def without_end(server: RunningServer, number: int) -> Iterator[list[socket.socket]]:
    """So many connections of this user, of which nothing is ever asked."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(number):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(100)
            client.connect(str(server.path))
            made.append(client)
        yield made


def ask(client: RawClient) -> str:
    stream = client.begin()
    client.send(stream, REQUEST, end=True)
    return client.headers_of(stream)["grpc-status"]


def test_connections_without_end_do_not_keep_out_who_asks(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(places, "SILENT_SECONDS", 0)
    with RawClient(server.path) as kept, caplog.at_level(logging.WARNING):
        assert ask(kept) == "0"
        stream = kept.begin("/grpc.health.v1.Health/Watch")
        kept.send(stream, framed(b""), end=True)
        wait_until(lambda: server.open_calls() == 1)
        with without_end(server, USER_CONNECTIONS_MAX + 50):
            with RawClient(server.path) as late, HttpClient(server.path) as other:
                assert ask(late) == "0"
                assert other.ask("GET", "/livez").status == 200
            assert ask(kept) == "0", "a connection with a call in progress is never silent"
            assert server.open_connections() <= USER_CONNECTIONS_MAX
    assert f"of process {os.getpid()}, user {os.getuid()}" in caplog.records[0].getMessage()
    wait_until(lambda: server.open_connections() == 0)


def test_over_the_limit_a_connection_is_closed_at_once_and_there_is_room_again_later(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "SILENT_SECONDS", 1_000)
    with without_end(server, USER_CONNECTIONS_MAX):
        wait_until(lambda: server.open_connections() == USER_CONNECTIONS_MAX)
        with socket.socket(socket.AF_UNIX) as refused:
            refused.settimeout(100)
            refused.connect(str(server.path))
            with contextlib.suppress(ConnectionResetError):
                assert refused.recv(1) == b""
        with socket.create_connection(("127.0.0.1", server.port)) as by_tcp:
            by_tcp.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"alive" in by_tcp.recv(1_000), "clients of the TCP port have places of their own"
    wait_until(lambda: server.open_connections() == 0)
    with RawClient(server.path) as late:
        assert ask(late) == "0"


def test_clients_of_the_tcp_port_are_one_user() -> None:
    load = Load()
    entering = Places(load)
    assert [entering.enter(Made(None), NOBODY, 1.0) for _ in range(USER_CONNECTIONS_MAX + 1)] == [
        True
    ] * USER_CONNECTIONS_MAX + [False]
