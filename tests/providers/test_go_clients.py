"""Flipt's service through grpc-go, which Flipt's SDK for Go is a wrapper around. flagd's provider for Go: see
test_flagd_providers.py. The application of both is built by tools/need-go-application.sh.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from local_server import ENTRIES, running
from provided import go_application, with_go

from flagcast_agent.api.protos import flipt_evaluation_pb2
from flagcast_agent.api.protos.pool import POOL

NORTH = {"targetingKey": "e", "region": "north"}

pytestmark = with_go


@pytest.fixture(scope="module")
def descriptors() -> Iterator[Path]:
    wanted = [
        "google/protobuf/timestamp.proto",
        flipt_evaluation_pb2.DESCRIPTOR.name,
    ]
    files = FileDescriptorSet()
    for name in wanted:
        files.file.append(FileDescriptorProto.FromString(POOL.FindFileByName(name).serialized_pb))
    # A method that a later Flipt may have and the agent has not.
    service = files.file[-1].service[0]
    service.method.append(service.method[0])
    service.method[-1].name = "Later"
    with tempfile.NamedTemporaryFile() as file:
        file.write(files.SerializeToString())
        file.flush()
        yield Path(file.name)


def test_flipts_service_answers_gos_grpc(descriptors: Path) -> None:
    with running(ENTRIES) as server, go_application(server.path, descriptors) as application:

        def ask(method: str, key: str, context: dict[str, Any] | None = None) -> dict[str, Any]:
            return application.ask(method, key, None, context)

        assert ask("Boolean", "on")["enabled"] is True
        north = ask("Boolean", "in-north", NORTH)
        assert (north["enabled"], north["reason"]) == (True, "MATCH_EVALUATION_REASON")
        assert north["segment_keys"] == ["north"]
        assert ask("Boolean", "in-north")["enabled"] is False
        theme = ask("Variant", "theme", NORTH)
        assert (theme["match"], theme["variant_key"], theme["variant_attachment"]) == (
            True,
            "dark",
            '{"ink":"white"}',
        )
        assert theme["request_id"]
        for method, key, code in [
            ("Boolean", "nope", "NotFound"),
            ("Boolean", "theme", "InvalidArgument"),
            ("Variant", "", "NotFound"),
            ("Boolean", "broken", "Internal"),
            ("Later", "on", "Unimplemented"),
        ]:
            assert ask(method, key)["error"] == code, key
        assert ask("Boolean", "on", {"region": "x" * 100_000})["error"] == "InvalidArgument"
        assert ask("Boolean", "on", {"region": "x" * 2_000_000})["error"] == "ResourceExhausted"
        assert ask("Boolean", "on")["enabled"] is True
