"""Flipt's evaluation service on a real Unix socket, asked by grpcio with stubs that protoc generates from the .proto."""

import asyncio
import contextlib
import importlib
import itertools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from admitted import History
from followed import wait_until
from local_server import NOW, RunningServer, flag_from_the_future, running

from flagcast_agent.limits import (
    BATCH_AT_ONCE_BYTES,
    BATCH_MAX_REQUESTS,
    CONTEXT_MAX_BYTES,
    CONTEXT_MAX_ENTRIES,
    QUESTION_MAX_BYTES,
    SLICE_FLAGS,
)
from flagcast_shared.ids import FlagKey, RecordId, VariantKey
from flagcast_shared.model import BooleanFlag, Flag, Variant, VariantFlag
from flagcast_shared.records import Record

grpc: Any = importlib.import_module("grpc")  # it ships no types
PROTOS = Path(__file__).parents[2] / "device_agent" / "src" / "flagcast_agent" / "api" / "protos"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """The messages and the stubs of an application that has never heard of Flagcast."""
    folder = tmp_path_factory.mktemp("application")
    shutil.copy(PROTOS / "flipt_evaluation.proto", folder / "application_evaluation.proto")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{folder}",
            f"--python_out={folder}",
            f"--grpc_python_out={folder}",
            "application_evaluation.proto",
        ],
        check=True,
    )
    sys.path.insert(0, str(folder))
    try:
        yield (
            importlib.import_module("application_evaluation_pb2"),
            importlib.import_module("application_evaluation_pb2_grpc"),
        )
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running() as server:
        other: list[Flag | Record] = [
            BooleanFlag(FlagKey("on"), enabled=False),
            flag_from_the_future("from-the-future"),
        ]
        server.evaluator.activate(History("other").begin(other))
        yield server


class Application:
    """A Flipt client over one gRPC channel."""

    def close(self) -> None:
        self.channel.close()

    def __init__(self, target: str, generated: tuple[Any, Any]) -> None:
        self.messages, stubs = generated
        self.channel = grpc.insecure_channel(target)
        self.service = stubs.EvaluationServiceStub(self.channel)

    def ask(self, call: str, flag: str, *, headers: tuple[tuple[str, str], ...] = (), **fields: Any) -> Any:
        request = self.messages.EvaluationRequest(flag_key=flag, **fields)
        return getattr(self.service, call)(request, timeout=100, metadata=headers)

    def refusal(self, call: str, flag: str, **fields: Any) -> tuple[Any, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self.ask(call, flag, **fields)
        return caught.value.code(), caught.value.details()

    def batch(
        self, *requests: dict[str, Any], headers: tuple[tuple[str, str], ...] = (), **fields: Any
    ) -> Any:
        request = self.messages.BatchEvaluationRequest(
            requests=[self.messages.EvaluationRequest(**fields) for fields in requests], **fields
        )
        return self.service.Batch(request, timeout=100, metadata=headers)


@pytest.fixture(scope="module")
def application(server: RunningServer, generated: tuple[Any, Any]) -> Iterator[Application]:
    application = Application(f"unix:{server.path}", generated)
    yield application
    application.close()


def test_a_boolean_flag_without_rollouts(application: Application) -> None:
    on = application.ask("Boolean", "on")
    assert (on.flag_key, on.enabled, on.reason) == (
        "on",
        True,
        application.messages.DEFAULT_EVALUATION_REASON,
    )
    off = application.ask("Boolean", "off")
    assert (off.enabled, off.reason) == (False, application.messages.FLAG_DISABLED_EVALUATION_REASON)


def test_a_segment_decides_by_the_context(application: Application) -> None:
    matched = application.ask("Boolean", "in-north", context={"region": "north"})
    assert matched.enabled
    assert matched.reason == application.messages.MATCH_EVALUATION_REASON
    assert list(matched.segment_keys) == ["north"]
    assert not application.ask("Boolean", "in-north", context={"region": "south"}).enabled


def test_a_threshold_decides_by_the_entity(application: Application) -> None:
    answers = {application.ask("Boolean", "half", entity_id=f"e{number}").enabled for number in range(20)}
    assert answers == {True, False}


def test_the_devices_attributes_count_and_cannot_be_overridden(application: Application) -> None:
    assert application.ask("Boolean", "on-this-device").enabled
    assert application.ask("Boolean", "on-this-device", context={"device.model": "cam-9"}).enabled


def test_a_variant_flag(application: Application) -> None:
    dark = application.ask("Variant", "theme", entity_id="e", context={"region": "north"})
    assert (dark.flag_key, dark.match, dark.variant_key) == ("theme", True, "dark")
    assert dark.variant_attachment == '{"ink":"white"}'
    assert dark.reason == application.messages.MATCH_EVALUATION_REASON
    assert list(dark.segment_keys) == ["north"]
    light = application.ask("Variant", "theme", entity_id="e")
    assert (light.match, light.variant_key, light.variant_attachment) == (False, "light", "")
    assert light.reason == application.messages.DEFAULT_EVALUATION_REASON
    bare = application.ask("Variant", "bare")
    assert (bare.match, bare.variant_key) == (False, "")
    assert bare.reason == application.messages.UNKNOWN_EVALUATION_REASON


def test_an_empty_entity_id_is_allowed(application: Application) -> None:
    assert application.ask("Boolean", "half", entity_id="").flag_key == "half"


@pytest.mark.parametrize("flag", ["nope", "", "ключ", "nul\0byte"])
@pytest.mark.parametrize("call", ["Boolean", "Variant"])
def test_an_unknown_flag_is_not_found(application: Application, call: str, flag: str) -> None:
    code, why = application.refusal(call, flag)
    assert code is grpc.StatusCode.NOT_FOUND
    assert repr(flag) in why


def test_the_wrong_type_is_an_invalid_argument(application: Application) -> None:
    assert application.refusal("Boolean", "theme")[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert application.refusal("Variant", "on")[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("call", ["Boolean", "Variant"])
@pytest.mark.parametrize(("flag", "namespace"), [("broken", "default"), ("from-the-future", "other")])
def test_a_flag_that_cannot_be_used_is_an_error_that_nobody_retries(
    application: Application, call: str, flag: str, namespace: str
) -> None:
    code, why = application.refusal(call, flag, namespace_key=namespace)
    # A broken flag still has its type, and a call for another type says so.
    expected = grpc.StatusCode.INTERNAL
    if (call, flag) == ("Variant", "broken"):
        expected = grpc.StatusCode.INVALID_ARGUMENT
    assert code is expected
    assert flag in why


def test_a_given_request_id_comes_back(application: Application) -> None:
    assert application.ask("Boolean", "on", request_id="mine").request_id == "mine"
    assert application.ask("Variant", "theme", request_id="mine").request_id == "mine"


def test_a_blank_request_id_gets_a_fresh_one(application: Application) -> None:
    ids = [
        application.ask(call, flag).request_id for call, flag in [("Boolean", "on"), ("Variant", "theme")] * 2
    ]
    assert all(ids)
    assert len(set(ids)) == 4


def test_a_reply_says_when_it_was_made_and_how_long_that_took(application: Application) -> None:
    for call, flag in (("Boolean", "on"), ("Variant", "theme")):
        reply = application.ask(call, flag)
        assert reply.timestamp.seconds + reply.timestamp.nanos / 1e9 == NOW
        assert reply.request_duration_millis == pytest.approx(1.0)  # one tick of the server's clock


def test_the_namespace_comes_from_the_request_then_the_header_then_the_configuration(
    application: Application,
) -> None:
    header = (("x-flipt-namespace", "other"),)
    assert application.ask("Boolean", "on").enabled
    assert not application.ask("Boolean", "on", headers=header).enabled
    assert application.ask("Boolean", "on", namespace_key="default", headers=header).enabled
    assert not application.ask("Boolean", "on", namespace_key="other").enabled


def test_an_unknown_namespace_is_not_found(application: Application) -> None:
    code, why = application.refusal("Boolean", "on", namespace_key="elsewhere")
    assert code is grpc.StatusCode.NOT_FOUND
    assert "'elsewhere'" in why


@pytest.mark.parametrize("name", ["test", "default"])
def test_its_own_environment_may_be_named(application: Application, name: str) -> None:
    assert application.ask("Boolean", "on", environment_key=name).enabled
    assert application.ask("Boolean", "on", headers=(("x-flipt-environment", name),)).enabled


def test_flags_of_another_environment_are_not_answered_with_these(application: Application) -> None:
    header = (("x-flipt-environment", "production"),)
    assert application.refusal("Boolean", "on", environment_key="production")[0] is grpc.StatusCode.NOT_FOUND
    assert application.refusal("Boolean", "on", headers=header)[0] is grpc.StatusCode.NOT_FOUND
    assert application.ask("Boolean", "on", environment_key="test", headers=header).enabled


def test_a_batch_answers_in_order_and_goes_on_after_errors(application: Application) -> None:
    messages = application.messages
    batch = application.batch(
        {"flag_key": "theme", "context": {"region": "north"}},
        {"flag_key": "nope"},
        {"flag_key": "broken"},
        {"flag_key": "on", "namespace_key": "elsewhere"},
        {"flag_key": "on", "environment_key": "production"},
        {"flag_key": "on", "context": {"k": "x" * (CONTEXT_MAX_BYTES + 1)}},
        {"flag_key": "on"},
        request_id="mine",
    )
    assert [response.type for response in batch.responses] == [
        messages.VARIANT_EVALUATION_RESPONSE_TYPE,
        *[messages.ERROR_EVALUATION_RESPONSE_TYPE] * 5,
        messages.BOOLEAN_EVALUATION_RESPONSE_TYPE,
    ]
    assert batch.responses[0].variant_response.variant_key == "dark"
    errors = [response.error_response for response in batch.responses[1:6]]
    not_found, unknown = (
        messages.NOT_FOUND_ERROR_EVALUATION_REASON,
        messages.UNKNOWN_ERROR_EVALUATION_REASON,
    )
    assert [error.reason for error in errors] == [not_found, unknown, not_found, not_found, unknown]
    assert [(error.flag_key, error.namespace_key) for error in errors[:3]] == [
        ("nope", "default"),
        ("broken", "default"),
        ("on", "elsewhere"),
    ]
    assert batch.responses[6].boolean_response.enabled
    assert batch.request_id == "mine"
    assert batch.request_duration_millis == pytest.approx(1.0)


def test_a_batchs_entries_keep_their_ids_or_share_the_batchs(application: Application) -> None:
    batch = application.batch(
        {"flag_key": "on", "request_id": "own"}, {"flag_key": "theme"}, request_id="all"
    )
    assert batch.responses[0].boolean_response.request_id == "own"
    assert batch.responses[1].variant_response.request_id == "all"
    assert batch.responses[1].variant_response.timestamp.seconds == int(NOW)
    assert application.batch({"flag_key": "on"}).request_id.startswith("fresh-")


def test_a_batchs_entries_are_filled_from_the_header(application: Application) -> None:
    batch = application.batch(
        {"flag_key": "on"},
        {"flag_key": "on", "namespace_key": "default"},
        headers=(("x-flipt-namespace", "other"),),
    )
    assert [response.boolean_response.enabled for response in batch.responses] == [False, True]


def test_an_empty_batch_is_answered(application: Application) -> None:
    assert list(application.batch().responses) == []


def test_a_batch_over_the_limit_is_refused_whole(application: Application) -> None:
    full = application.batch(*itertools.repeat({"flag_key": "on"}, BATCH_MAX_REQUESTS))
    assert len(full.responses) == BATCH_MAX_REQUESTS
    with pytest.raises(grpc.RpcError) as caught:
        application.batch(*itertools.repeat({"flag_key": "on"}, BATCH_MAX_REQUESTS + 1))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(BATCH_MAX_REQUESTS) in caught.value.details()


def test_a_batch_of_any_size_has_the_same_answers_in_their_order(application: Application) -> None:
    keys = ["on", "off", "theme", "nope", "half", "broken", "in-north"]
    north = {"region": "north"}
    asked = [
        {
            "flag_key": keys[number % len(keys)],
            "entity_id": f"e{number}",
            "context": north,
            "request_id": str(number),
        }
        for number in range(BATCH_MAX_REQUESTS)
    ]
    large = application.batch(*asked, request_id="all")
    assert (
        application.messages.BatchEvaluationRequest(
            requests=[application.messages.EvaluationRequest(**each) for each in asked]
        ).ByteSize()
        > BATCH_AT_ONCE_BYTES
    )
    small = [
        response
        for start in range(0, len(asked), 50)
        for response in application.batch(*asked[start : start + 50]).responses
    ]
    assert [_without_time(each) for each in large.responses] == [_without_time(each) for each in small]
    assert large.request_id == "all"
    assert large.request_duration_millis > 0


def test_a_batch_of_few_questions_and_large_answers_waits_for_its_turn(generated: tuple[Any, Any]) -> None:
    text = '"' + "a" * 30_000 + '"'
    large = VariantFlag(
        FlagKey("large"),
        enabled=True,
        variants=(Variant(VariantKey("a"), text),),
        default=VariantKey("a"),
    )
    with (
        running([large]) as server,
        contextlib.closing(Application(f"unix:{server.path}", generated)) as application,
    ):
        with server.large_answers_held_up():
            small = application.batch({"flag_key": "large"}, {"flag_key": "large"})
            assert [each.variant_response.variant_attachment for each in small.responses] == [text] * 2
            asked = [application.messages.EvaluationRequest(flag_key="large") for _ in range(100)]
            waiting = application.service.Batch.future(
                application.messages.BatchEvaluationRequest(requests=asked, request_id="all"), timeout=100
            )
            wait_until(lambda: server.open_calls() == 1, "the batch waits for its turn")
        found = waiting.result(100)
        assert [each.variant_response.variant_attachment for each in found.responses] == [text] * 100
        assert found.request_id == "all"


def test_others_have_their_turn_while_a_large_batch_is_answered(
    server: RunningServer, application: Application
) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def begin() -> "asyncio.Task[None]":
        return asyncio.create_task(count())

    with server.large_answers_held_up():
        request = application.messages.BatchEvaluationRequest(
            requests=[
                application.messages.EvaluationRequest(flag_key="half", entity_id=f"entity-{number}")
                for number in range(BATCH_MAX_REQUESTS)
            ]
        )
        waiting = application.service.Batch.future(request, timeout=100)
        wait_until(lambda: server.open_calls() == 1, "the batch waits for its turn")
        counting = server.call(begin())
        before = turns
    assert len(waiting.result().responses) == BATCH_MAX_REQUESTS
    passed = turns - before
    counting.get_loop().call_soon_threadsafe(counting.cancel)
    # Questions are read, answered and encoded in slices of their own.
    assert passed >= 3 * BATCH_MAX_REQUESTS // SLICE_FLAGS


def _without_time(response: Any) -> Any:
    copied = type(response)()
    copied.CopyFrom(response)
    for kind in ("boolean_response", "variant_response"):
        if copied.HasField(kind):
            getattr(copied, kind).ClearField("timestamp")
            getattr(copied, kind).ClearField("request_duration_millis")
    return copied


@pytest.mark.parametrize("call", ["Boolean", "Variant"])
def test_a_question_too_large_is_refused_before_it_is_decoded(application: Application, call: str) -> None:
    code, why = application.refusal(call, "on", context={f"k{n}": "v" for n in range(20_000)})
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"at most {QUESTION_MAX_BYTES} about one flag" in why


@pytest.mark.parametrize(
    "fields",
    [
        {"context": {"k": "x" * CONTEXT_MAX_BYTES}},
        {"context": {"k": "ж" * (CONTEXT_MAX_BYTES // 2)}},
        {"context": {str(number): "" for number in range(CONTEXT_MAX_ENTRIES + 1)}},
        {"entity_id": "e" * 1025},
        {"entity_id": "ж" * 513},
    ],
)
def test_what_is_over_a_limit_is_refused_by_name(application: Application, fields: dict[str, Any]) -> None:
    code, why = application.refusal("Boolean", "on", **fields)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "at most" in why


def test_what_is_just_within_the_limits_is_answered(application: Application) -> None:
    for context in (
        {"k": "x" * (CONTEXT_MAX_BYTES - 1)},
        {"k": "ж" * ((CONTEXT_MAX_BYTES - 1) // 2)},
        {str(number): "" for number in range(CONTEXT_MAX_ENTRIES)},
    ):
        assert application.ask("Boolean", "on", context=context, entity_id="ж" * 512).enabled


def test_a_request_of_many_megabytes_is_refused_unread_and_the_next_is_answered(
    application: Application,
) -> None:
    code, why = application.refusal("Boolean", "on", context={"k": "x" * 20_000_000})
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "at most 1048576" in why
    assert application.ask("Boolean", "on").enabled


def test_an_error_repeats_only_the_beginning_of_a_long_key(application: Application) -> None:
    code, why = application.refusal("Boolean", "ж" * 50_000)
    assert code is grpc.StatusCode.NOT_FOUND
    assert len(why) < 400


def test_calls_over_loopback_say_the_same(server: RunningServer, generated: tuple[Any, Any]) -> None:
    application = Application(f"127.0.0.1:{server.port}", generated)
    try:
        assert application.ask("Boolean", "on").enabled
        assert application.refusal("Boolean", "nope")[0] is grpc.StatusCode.NOT_FOUND
    finally:
        application.channel.close()


def test_a_change_is_answered_from_the_next_call_on(generated: tuple[Any, Any]) -> None:
    history = History()
    with running(None) as server:
        application = Application(f"unix:{server.path}", generated)
        try:
            assert application.refusal("Boolean", "on")[0] is grpc.StatusCode.NOT_FOUND
            server.evaluator.activate(history.begin([BooleanFlag(FlagKey("on"), enabled=True)]))
            assert application.ask("Boolean", "on").enabled
            server.evaluator.activate(history.change([BooleanFlag(FlagKey("on"), enabled=False)]))
            assert not application.ask("Boolean", "on").enabled
            server.evaluator.activate(history.change([], [RecordId("flag", "on")]))
            assert application.refusal("Boolean", "on")[0] is grpc.StatusCode.NOT_FOUND
        finally:
            application.channel.close()


def test_many_callers_at_once_all_get_their_own_answer(
    server: RunningServer, generated: tuple[Any, Any]
) -> None:
    applications = [Application(f"unix:{server.path}", generated) for _ in range(4)]
    try:
        asked = [
            application.service.Boolean.future(
                application.messages.EvaluationRequest(
                    flag_key="in-north",
                    request_id=f"{index}-{number}",
                    context={"region": "north" if number % 2 else "south"},
                ),
                timeout=100,
            )
            for number in range(500)
            for index, application in enumerate(applications)
        ]
        replies = [future.result() for future in asked]
    finally:
        for application in applications:
            application.channel.close()
    assert all(reply.enabled == bool(int(reply.request_id.split("-")[1]) % 2) for reply in replies)
    assert len({reply.request_id for reply in replies}) == 2000
