"""Answers far larger than their questions, over HTTP/2: refused by name, and others wait for one turn of them."""

import json

import pytest
from local_server import running
from raw_http2 import RawClient, framed

from flagcast_agent.api.protos import flipt_evaluation_pb2 as flipt
from flagcast_agent.limits import BATCH_ANSWER_MAX_BYTES
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
