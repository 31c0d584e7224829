"""The generated protobuf modules: up to date, Flipt's numbers, and alone in their pool."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.message import Message

from flagcast_agent.api.protos import flagcast_agent_pb2 as agent
from flagcast_agent.api.protos import flipt_evaluation_pb2 as flipt
from flagcast_agent.api.protos.pool import POOL

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "device_agent" / "src" / "flagcast_agent" / "api" / "protos"

FLIPT_FIELDS: dict[type[Message], dict[str, int]] = {
    flipt.EvaluationRequest: {
        "request_id": 1,
        "namespace_key": 2,
        "flag_key": 3,
        "entity_id": 4,
        "context": 5,
        "reference": 6,
        "environment_key": 7,
    },
    flipt.BatchEvaluationRequest: {"request_id": 1, "requests": 3, "reference": 4},
    flipt.BatchEvaluationResponse: {"request_id": 1, "responses": 2, "request_duration_millis": 3},
    flipt.EvaluationResponse: {
        "type": 1,
        "boolean_response": 2,
        "variant_response": 3,
        "error_response": 4,
    },
    flipt.BooleanEvaluationResponse: {
        "enabled": 1,
        "reason": 2,
        "request_id": 3,
        "request_duration_millis": 4,
        "timestamp": 5,
        "flag_key": 6,
        "segment_keys": 7,
    },
    flipt.VariantEvaluationResponse: {
        "match": 1,
        "segment_keys": 2,
        "reason": 3,
        "variant_key": 4,
        "variant_attachment": 5,
        "request_id": 6,
        "request_duration_millis": 7,
        "timestamp": 8,
        "flag_key": 9,
    },
    flipt.ErrorEvaluationResponse: {"flag_key": 1, "namespace_key": 2, "reason": 3},
}


def test_the_generated_modules_are_those_of_the_proto_files() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "tools" / "proto.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_fields_have_flipts_numbers() -> None:
    for message, numbers in FLIPT_FIELDS.items():
        assert {field.name: field.number for field in message.DESCRIPTOR.fields} == numbers


def test_enums_have_flipts_numbers() -> None:
    assert flipt.EvaluationReason.items() == [
        ("UNKNOWN_EVALUATION_REASON", 0),
        ("FLAG_DISABLED_EVALUATION_REASON", 1),
        ("MATCH_EVALUATION_REASON", 2),
        ("DEFAULT_EVALUATION_REASON", 3),
    ]
    assert flipt.EvaluationResponseType.items() == [
        ("VARIANT_EVALUATION_RESPONSE_TYPE", 0),
        ("BOOLEAN_EVALUATION_RESPONSE_TYPE", 1),
        ("ERROR_EVALUATION_RESPONSE_TYPE", 2),
    ]
    assert flipt.ErrorEvaluationReason.items() == [
        ("UNKNOWN_ERROR_EVALUATION_REASON", 0),
        ("NOT_FOUND_ERROR_EVALUATION_REASON", 1),
    ]


def test_nothing_of_ours_is_in_the_default_pool() -> None:
    assert agent.DESCRIPTOR.pool is POOL
    assert flipt.DESCRIPTOR.pool is POOL
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("flagcast.agent.v1.StatusRequest")


ONE_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    __import__(name)
from evaluation import evaluation_pb2 as theirs
theirs_bytes = theirs.EvaluationRequest(flag_key="k", context={"a": "b"}).SerializeToString()
if "flagcast_agent.api.local" in sys.argv:
    from flagcast_agent.api.protos import flipt_evaluation_pb2 as ours
    assert ours.EvaluationRequest is not theirs.EvaluationRequest
    assert dict(ours.EvaluationRequest.FromString(theirs_bytes).context) == {"a": "b"}
print("both")
"""


@pytest.fixture(scope="module")
def other_copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two more copies of Flipt's messages, as protoc itself generates them for an application."""
    folder = tmp_path_factory.mktemp("application")
    for package in ("evaluation", "vendored"):
        (folder / package).mkdir()
        shutil.copy(PROTOS / "flipt_evaluation.proto", folder / package / "evaluation.proto")
        subprocess.run(
            [
                sys.executable,
                "-m",
                "grpc_tools.protoc",
                f"-I{folder}",
                f"--python_out={folder}",
                f"{package}/evaluation.proto",
            ],
            check=True,
        )
    return folder


@pytest.mark.parametrize("runtime", ["upb", "python"])
@pytest.mark.parametrize(
    "modules",
    [
        ("evaluation.evaluation_pb2", "flagcast_agent.api.local"),
        ("flagcast_agent.api.local", "evaluation.evaluation_pb2"),
    ],
)
def test_an_application_may_have_a_copy_of_its_own(
    other_copies: Path, modules: tuple[str, ...], runtime: str
) -> None:
    result = run_together(other_copies, modules, runtime)
    assert result.stdout == "both\n", result.stderr


def test_two_copies_in_the_default_pool_would_not_do(other_copies: Path) -> None:
    result = run_together(other_copies, ("evaluation.evaluation_pb2", "vendored.evaluation_pb2"), "upb")
    assert result.returncode != 0
    assert "duplicate symbol" in result.stderr


def run_together(folder: Path, modules: tuple[str, ...], runtime: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", ONE_PROCESS, str(folder), *modules],
        capture_output=True,
        text=True,
        check=False,
        env={
            "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": runtime,
            "PYTHONPATH": ":".join(sys.path),
        },
    )
