"""Flagcast's own service: what changes, and the admitted snapshot as a stream."""

import asyncio
import contextlib
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from admitted import History
from flagd_calls import switch
from followed import FollowedAgent, wait_until
from local_server import ENTRIES, STATUS, RunningServer, running
from raw_http2 import RawClient, framed

from flagcast_agent.api import services
from flagcast_agent.api.answers import Snapshot
from flagcast_agent.api.protos import flagcast_agent_pb2 as agent
from flagcast_agent.limits import SNAPSHOT_PART_BYTES, SNAPSHOTS_MAX, SYNCS_MAX
from flagcast_agent.status import Caught
from flagcast_agent.store.errors import StoreUnreadable
from flagcast_agent.store.reader import Reader
from flagcast_shared.envelope import open_envelope
from flagcast_shared.errors import NamespaceNotFound
from flagcast_shared.ids import Namespace, RecordId
from flagcast_shared.messages import Place, decode_head
from flagcast_shared.records import content_digest, decode_record
from flagcast_shared.topics import Kind

grpc: Any = importlib.import_module("grpc")  # it ships no types


@contextmanager
def streaming(server: RunningServer, method: str, request: Any, kind: Any) -> Iterator[Any]:
    with grpc.insecure_channel(
        f"unix:{server.path}", options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        call = channel.unary_stream(
            f"/flagcast.agent.v1.Agent/{method}", response_deserializer=kind.FromString
        )
        stream = call(request.SerializeToString(), timeout=100)
        yield stream
        stream.cancel()


def watching(server: RunningServer, namespace: str = "") -> Any:
    return streaming(server, "Watch", agent.WatchRequest(namespace=namespace), agent.WatchResponse)


def test_a_watcher_hears_the_version_in_force_and_then_what_changes() -> None:
    history = History()
    with running(None) as server:
        server.evaluator.activate(history.begin([switch("a", enabled=True), switch("b", enabled=True)]))
        with watching(server) as changes:
            assert next(changes) == agent.WatchResponse(namespace="default", epoch=1, version=1)
            server.evaluator.activate(history.sign_again(issued=1001, expires=3000))
            server.evaluator.activate(history.change([switch("a", enabled=False)], [RecordId("flag", "b")]))
            assert next(changes) == agent.WatchResponse(
                namespace="default", epoch=1, version=2, changed=["a"], removed=["b"]
            )


def test_a_watcher_waits_for_what_is_not_there_yet_and_hears_of_what_it_asked_for_alone() -> None:
    with running(ENTRIES) as server, watching(server, "other") as other, watching(server) as every:
        assert next(every).namespace == "default"
        wait_until(lambda: len(server.server._changes._subscriptions) == 2, "both watch")
        server.evaluator.activate(History("other").begin([switch("a", enabled=True)]))
        for changes in (other, every):
            found = next(changes)
            assert (found.namespace, found.version, list(found.changed)) == ("other", 1, ["a"])


def test_a_watcher_is_told_when_the_agent_stops() -> None:
    with running(ENTRIES) as server, watching(server) as changes:
        next(changes)
        server.stop()
        with pytest.raises(grpc.RpcError) as caught:
            next(changes)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def asking_for(server: RunningServer, namespace: str = "") -> Any:
    return streaming(server, "Snapshot", agent.SnapshotRequest(namespace=namespace), agent.SnapshotResponse)


def snapshot_of(path: Path, namespace: Namespace) -> Snapshot:
    reader = Reader(path)
    try:
        seen = reader.look({})
    finally:
        reader.close()
    assert seen is not None
    for held in seen.holdings:
        if held.namespace == namespace and held.records is not None:
            return Snapshot(
                held.namespace, held.epoch, held.version, held.digest, held.head_data, held.records
            )
    raise NamespaceNotFound("none")


def test_a_snapshot_is_what_was_admitted_and_can_be_verified(tmp_path: Path) -> None:
    followed = FollowedAgent(tmp_path / "agent.sqlite")
    try:
        flags = [switch(f"flag-{number}", enabled=True) for number in range(50)]
        followed.publish(*flags)
        place = Place(followed.publisher.environment, followed.publisher.namespace, Kind.HEAD)
        with running(flags) as server:
            server.snapshot = lambda name: snapshot_of(followed.path, name)
            with asking_for(server) as stream:
                first, *rest = stream
        records = [*first.records, *(each for part in rest for each in part.records)]
        assert first.records_in_all == len(records) == 50
        assert content_digest(decode_record(each).digest for each in records) == first.digest
        head = decode_head(open_envelope(first.head, place).payload, place)
        assert (head.stable.digest, head.stable.version) == (first.digest, first.version)
    finally:
        followed.close()


def test_a_large_snapshot_comes_in_parts() -> None:
    records = tuple(bytes([number]) * (SNAPSHOT_PART_BYTES // 3) for number in range(10))
    found = Snapshot(Namespace("default"), 1, 1, b"d", b"h", records)
    with running(ENTRIES) as server:
        server.snapshot = lambda _: found
        with asking_for(server) as stream:
            parts = list(stream)
    assert len(parts) == 4
    assert [each for part in parts for each in part.records] == [*records]
    assert [part.head for part in parts] == [b"h", b"", b"", b""]


@pytest.mark.parametrize(("namespace", "code"), [("elsewhere", "NOT_FOUND"), ("", "INTERNAL")])
def test_a_snapshot_that_cannot_be_read_says_so(namespace: str, code: str) -> None:
    def fail(_: Namespace) -> Snapshot:
        raise StoreUnreadable("there is no database")

    with running(ENTRIES) as server:
        server.snapshot = fail
        with asking_for(server, namespace) as stream, pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code().name == code


def test_snapshots_are_read_from_the_disk_one_at_a_time() -> None:
    at_once, most = [], []
    lock = threading.Lock()

    def read(name: Namespace) -> Snapshot:
        with lock:
            at_once.append(1)
            most.append(len(at_once))
        threading.Event().wait(0.02)
        with lock:
            at_once.pop()
        return Snapshot(name, 1, 1, b"d", b"h", ())

    with running(ENTRIES) as server:
        server.snapshot = read
        with asking_for(server) as one, asking_for(server) as two, asking_for(server) as three:
            assert [len(list(each)) for each in (one, two, three)] == [1, 1, 1]
    assert max(most) == 1


def test_readers_that_do_not_read_their_snapshot_cost_the_others_no_wait() -> None:
    # More than the window of an HTTP/2 stream and the socket take.
    records = tuple(bytes(SNAPSHOT_PART_BYTES) for _ in range(8))
    reads = []

    def read(name: Namespace) -> Snapshot:
        reads.append(name)
        return Snapshot(name, 1, 1, b"d", b"h", records)

    def unread(server: RunningServer) -> RawClient:
        client = RawClient(server.path)
        client.send(client.begin("/flagcast.agent.v1.Agent/Snapshot"), framed(b""))
        return client

    with running(ENTRIES) as server, contextlib.ExitStack() as stack:
        server.snapshot = read
        idle = [stack.enter_context(unread(server)) for _ in range(SNAPSHOTS_MAX - 1)]
        wait_until(lambda: len(reads) == SNAPSHOTS_MAX - 1, "all of them are being sent to")
        for _ in range(3):
            with asking_for(server) as stream:
                assert sum(len(part.records) for part in stream) == len(records)
        idle.append(stack.enter_context(unread(server)))
        wait_until(lambda: len(reads) == SNAPSHOTS_MAX + 3, "there is no room left")
        with asking_for(server) as stream, pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "4 snapshots are being read already; ask again later"
        assert len(reads) == SNAPSHOTS_MAX + 3, "who is refused costs no read"
        idle.pop().close()
        wait_until(lambda: server.open_calls() < SNAPSHOTS_MAX, "one has left")
        with asking_for(server) as stream:
            assert sum(len(part.records) for part in stream) == len(records)


@pytest.mark.parametrize("waits_for", ["the disk", "its client"])
def test_a_snapshot_that_takes_too_long_gives_its_place_back(
    monkeypatch: pytest.MonkeyPatch, waits_for: str
) -> None:
    monkeypatch.setattr(services, "UNREAD_SECONDS", 0.2)
    monkeypatch.setattr(services, "SNAPSHOTS_MAX", 1)
    may_end, reads = threading.Event(), []

    def read(name: Namespace) -> Snapshot:
        reads.append(name)
        if waits_for == "the disk":
            may_end.wait(10)
        return Snapshot(name, 1, 1, b"d", b"h", tuple(bytes(SNAPSHOT_PART_BYTES) for _ in range(8)))

    with running(ENTRIES) as server, RawClient(server.path) as client:
        server.snapshot = read
        client.send(client.begin("/flagcast.agent.v1.Agent/Snapshot"), framed(b""))
        wait_until(lambda: bool(reads), "it is asked")
        wait_until(lambda: server.open_calls() == 0, "it is given up")
        may_end.set()
        monkeypatch.setattr(services, "UNREAD_SECONDS", 30)
        with asking_for(server) as stream:
            assert sum(len(part.records) for part in stream) == 8


def test_a_reader_that_leaves_while_the_disk_is_read_starts_no_second_read() -> None:
    may_end, at_once, most = threading.Event(), [], []

    def read(name: Namespace) -> Snapshot:
        at_once.append(name)
        most.append(len(at_once))
        may_end.wait(10)
        at_once.pop()
        return Snapshot(name, 1, 1, b"d", b"h", ())

    with running(ENTRIES) as server:
        server.snapshot = read
        for _ in range(3):
            with asking_for(server):
                wait_until(lambda: server.open_calls() == 1, "it is asked")
            wait_until(lambda: server.open_calls() == 0, "it has left")
        with asking_for(server) as stream:
            wait_until(lambda: server.open_calls() == 1, "another one asks")
            may_end.set()
            assert len(list(stream)) == 1
    assert most == [1, 1]


def test_calls_of_sync_that_wait_are_limited_and_nobody_else_notices() -> None:
    waiting = 0
    forever = asyncio.Event()

    async def wait(_: float) -> Caught:
        nonlocal waiting
        waiting += 1
        await forever.wait()
        return Caught((), STATUS)

    async def end() -> None:
        forever.set()

    with running(ENTRIES) as server, contextlib.ExitStack() as stack:
        server.catch_up = wait
        channels = [
            stack.enter_context(
                grpc.insecure_channel(f"unix:{server.path}", options=[("grpc.use_local_subchannel_pool", 1)])
            )
            for _ in range(SYNCS_MAX // 64)  # a connection has up to 100 calls
        ]
        syncs = [
            channel.unary_unary(
                "/flagcast.agent.v1.Agent/Sync", response_deserializer=agent.SyncResponse.FromString
            )
            for channel in channels
        ]
        calls = [sync.future(b"", timeout=100) for sync in syncs for _ in range(64)]
        wait_until(lambda: waiting == SYNCS_MAX, "all of them wait")
        with pytest.raises(grpc.RpcError) as caught:
            syncs[0](b"", timeout=100)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "256 calls of Sync wait already; ask again later"
        server.call(end())
        assert [list(call.result().why) for call in calls] == [[]] * SYNCS_MAX
        assert list(syncs[0](b"", timeout=100).why) == []
