"""Answers far larger than their questions, over HTTP/2: refused by name, and others wait for one turn of them."""

import asyncio
import json

import pytest
from frames import PREFACE_ALONE, headers, parsed, settings, window
from local_server import running
from raw_http2 import RawClient, framed

from flagcast_agent.api.http2.connection import Connection
from flagcast_agent.api.http2.frames import DATA, FRAME_MAX_BYTES, INITIAL_WINDOW
from flagcast_agent.api.http2.headers import block_of
from flagcast_agent.api.load import Slices
from flagcast_agent.api.protos import flipt_evaluation_pb2 as flipt
from flagcast_agent.limits import BATCH_ANSWER_MAX_BYTES, BURST_MAX_BYTES
from flagcast_shared.ids import FlagKey, SegmentKey, VariantKey
from flagcast_shared.model import Flag, Join, Match, Rule, Segment, Variant, VariantFlag

SEGMENTS = tuple(Segment(SegmentKey(f"{number:0>250}"), Match.ALL, ()) for number in range(240))
WITH_SEGMENTS = VariantFlag(
    FlagKey("large"),
    enabled=True,
    rules=(Rule(tuple(segment.key for segment in SEGMENTS), Join.AND, ()),),
)
BEYOND_ASCII = VariantFlag(
    FlagKey("large"),
    enabled=True,
    variants=(Variant(VariantKey("v"), json.dumps("\U0001f600" * 15_000, ensure_ascii=False)),),
    default=VariantKey("v"),
)


@pytest.mark.parametrize("flag", [WITH_SEGMENTS, BEYOND_ASCII], ids=["segments", "beyond-ascii"])
def test_a_batch_is_counted_in_bytes_with_its_segments(flag: Flag) -> None:
    request = flipt.EvaluationRequest(flag_key="large", entity_id="e")
    with running([*SEGMENTS, flag]) as server, RawClient(server.path) as client:
        for number, status in (
            (BATCH_ANSWER_MAX_BYTES // 62_000, "0"),
            (BATCH_ANSWER_MAX_BYTES // 59_000, "8"),
        ):
            batch = flipt.BatchEvaluationRequest(requests=[request] * number)
            stream = client.begin("/flipt.evaluation.EvaluationService/Batch")
            client.http2.increment_flow_control_window(2**24)
            client.http2.increment_flow_control_window(2**24, stream)
            client.send(stream, framed(batch.SerializeToString()), end=True)
            assert client.headers_of(stream)["grpc-status"] == status


def test_a_large_answer_leaves_in_bursts_and_waits_in_one_piece() -> None:
    connection = Connection()
    connection.receive(PREFACE_ALONE + settings((INITIAL_WINDOW, 2**31 - 1)) + window(0, 2**30))
    connection.receive(headers(1, end=True))
    stream = connection.next(0.0)
    assert stream is not None
    connection.take()
    connection.answer(stream, b"", bytes(2**22), block_of(("grpc-status", "0")), 0.0)
    bursts = list(iter(connection.take, b""))
    assert max(map(len, bursts)) < BURST_MAX_BYTES + 2 * FRAME_MAX_BYTES
    frames = parsed(b"".join(bursts))
    assert sum(len(frame.content) for frame in frames if frame.kind == DATA) == 2**22
    assert stream.is_over


def test_what_comes_after_a_slice_was_used_up_waits_for_the_next_round() -> None:
    async def run() -> None:
        slices, taken = Slices(), list[str]()
        assert slices.may_go_on("a flood")
        slices.overran("a flood")
        slices.overran("a flood")
        assert not slices.may_go_on("a flood")
        slices.wait("a flood", lambda: taken.append("its turn"))
        await asyncio.sleep(0)
        assert taken == ["its turn"]
        await asyncio.sleep(0)
        assert slices.may_go_on("a flood")

    asyncio.run(run())


def test_one_process_in_each_round_does_not_wait_for_the_slice_of_a_flood() -> None:
    async def run() -> None:
        slices = Slices()
        slices.wait("a flood", lambda: slices.wait("a flood", lambda: None))
        for _ in range(2):
            assert not slices.may_go_on("a flood")
            assert slices.may_go_on("honest")
            assert not slices.may_go_on("honest"), "once in a round"
            assert not slices.may_go_on("another")
            await asyncio.sleep(0)
        assert slices.may_go_on("a flood"), "nobody waits any more"
        slices.wait("honest", lambda: None)
        assert not slices.may_go_on("honest"), "what it has waiting comes first"
        await asyncio.sleep(0)

    asyncio.run(run())
