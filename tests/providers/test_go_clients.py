"""Go's own clients against the agent's socket: Flipt's service through grpc-go, flagd's through connect-go.

Flipt's SDK for Go is a wrapper around the first, flagd's provider for Go around the second. The application is built by
tools/need-go-application.sh, which `make test-providers` runs.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flagd_calls import FLAGS
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from local_server import ENTRIES, RunningServer, running
from provided import Application

from flagcast_agent.api.protos import flagd_evaluation_v2_pb2, flipt_evaluation_pb2
from flagcast_agent.api.protos.pool import POOL

APPLICATION = Path(sys.prefix) / "go" / "application"
NORTH = {"targetingKey": "e", "region": "north"}

pytestmark = pytest.mark.skipif(
    not APPLICATION.is_file(), reason="`make test-providers` builds the application in Go, where there is Go"
)


@pytest.fixture(scope="module")
def descriptors() -> Iterator[Path]:
    wanted = [
        "google/protobuf/timestamp.proto",
        "google/protobuf/struct.proto",
        flipt_evaluation_pb2.DESCRIPTOR.name,
        flagd_evaluation_v2_pb2.DESCRIPTOR.name,
    ]
    files = FileDescriptorSet()
    for name in wanted:
        files.file.append(FileDescriptorProto.FromString(POOL.FindFileByName(name).serialized_pb))
    with tempfile.NamedTemporaryFile() as file:
        file.write(files.SerializeToString())
        file.flush()
        yield Path(file.name)


def asking(protocol: str, server: RunningServer, descriptors: Path) -> Application:
    return Application([APPLICATION, protocol, server.path, descriptors], {})


def test_flipts_service_answers_gos_grpc(descriptors: Path) -> None:
    with running(ENTRIES) as server, asking("grpc", server, descriptors) as application:

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
        ]:
            assert ask(method, key)["error"] == code, key
        assert ask("Boolean", "on", {"region": "x" * 100_000})["error"] == "InvalidArgument"
        assert ask("Boolean", "on", {"region": "x" * 2_000_000})["error"] == "ResourceExhausted"
        assert ask("Boolean", "on")["enabled"] is True


def test_flagds_service_answers_gos_connect(descriptors: Path) -> None:
    with running(FLAGS) as server, asking("connect", server, descriptors) as application:

        def ask(method: str, key: str, context: dict[str, Any] | None = None) -> dict[str, Any]:
            return application.ask(method, key, None, context)

        on = ask("ResolveBoolean", "on")
        assert (on["value"], on["variant"], on["reason"]) == (True, "true", "STATIC")
        assert on["metadata"]["namespace"] == "default"
        theme = ask("ResolveObject", "theme", NORTH)
        assert (theme["value"], theme["reason"]) == ({"ink": "white"}, "TARGETING_MATCH")
        assert ask("ResolveInt", "ten")["value"] == "10"
        assert ask("ResolveFloat", "ratio")["value"] == 0.25
        bare = ask("ResolveString", "bare")
        assert bare["reason"] == "DEFAULT"
        assert not bare.get("value")
        for method, key, code in [
            ("ResolveBoolean", "nope", "not_found"),
            ("ResolveBoolean", "theme", "invalid_argument"),
            ("ResolveBoolean", "broken", "internal"),
        ]:
            assert ask(method, key)["error"] == code, key
