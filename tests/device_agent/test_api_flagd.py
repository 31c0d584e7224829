"""flagd's evaluation service by gRPC: what its providers are told, in both versions, and what would trap them."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
from admitted import History
from flagd_calls import (
    EVERYBODY,
    FLAGS,
    VERSIONS,
    Failed,
    FlagdClient,
    calling,
    choosing,
    grpc,
    named,
    switch,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local_server import ENTRIES, NOW, RunningServer, running

from flagcast_agent.api import changes as changes_module
from flagcast_agent.api import flagd as flagd_module
from flagcast_agent.api.resolutions import Asked, Wanted
from flagcast_agent.limits import CONTEXT_MAX_BYTES, EVENT_MAX_FLAGS
from flagcast_shared.answers import BooleanAnswer
from flagcast_shared.errors import InvalidCall
from flagcast_shared.ids import FlagKey, Namespace, RecordId, SegmentKey
from flagcast_shared.model import BooleanFlag, Match, Segment, ThresholdRollout

NORTH: dict[str, object] = {"targetingKey": "e", "region": "north"}
METHODS = ("ResolveBoolean", "ResolveString", "ResolveFloat", "ResolveInt", "ResolveObject")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(FLAGS) as server:
        yield server


@pytest.fixture(params=VERSIONS)
def client(server: RunningServer, request: pytest.FixtureRequest) -> Iterator[FlagdClient]:
    with calling(server.path, request.param) as client:
        yield client


@pytest.fixture
def second(server: RunningServer) -> Iterator[FlagdClient]:
    """A client of the second version."""
    with calling(server.path) as client:
        yield client


# Values, variants and reasons.


@pytest.mark.parametrize(
    ("method", "key", "context", "expected"),
    [
        ("ResolveBoolean", "on", {}, (True, "true", "STATIC")),
        ("ResolveBoolean", "off", {}, (False, "false", "STATIC")),
        ("ResolveBoolean", "in-north", NORTH, (True, "true", "TARGETING_MATCH")),
        ("ResolveBoolean", "in-north", {}, (False, "false", "DEFAULT")),
        ("ResolveBoolean", "half", {"targetingKey": "entity-1"}, (True, "true", "SPLIT")),
        ("ResolveBoolean", "on-this-device", {}, (True, "true", "TARGETING_MATCH")),
        ("ResolveString", "theme", NORTH, ("dark", "dark", "TARGETING_MATCH")),
        ("ResolveString", "theme", {}, ("light", "light", "DEFAULT")),
        ("ResolveString", "plain", {}, ("red", "red", "STATIC")),
        ("ResolveString", "off-with-default", {}, ("red", "red", "DISABLED")),
        ("ResolveString", "settings", {}, ("full", "full", "DEFAULT")),
        ("ResolveInt", "ten", {}, (10, "small", "DEFAULT")),
        ("ResolveInt", "written", {}, (42, "42", "DEFAULT")),
        ("ResolveFloat", "ten", {}, (10.0, "small", "DEFAULT")),
        ("ResolveFloat", "ratio", {}, (0.25, "small", "DEFAULT")),
        ("ResolveFloat", "half-written", {}, (0.5, "0.5", "DEFAULT")),
        ("ResolveFloat", "huge", {}, (1e30, "big", "DEFAULT")),
    ],
)
def test_a_flag_answers(
    client: FlagdClient,
    method: str,
    key: str,
    context: dict[str, object],
    expected: tuple[object, str, str],
) -> None:
    response = client.resolve(method, key, context)
    assert (response.value, response.variant, response.reason) == expected


def test_an_attachment_is_answered_as_an_object(client: FlagdClient) -> None:
    response = client.resolve("ResolveObject", "settings")
    assert response.variant == "full"
    depth = response.value.fields["depth"].struct_value.fields["list"].list_value.values
    assert [each.WhichOneof("kind") for each in depth] == [
        "number_value",
        "null_value",
        "string_value",
        "bool_value",
    ]
    assert response.value.fields["n"].number_value == 2.0


def test_shares_are_said_to_be_split(client: FlagdClient) -> None:
    answers = [client.resolve("ResolveString", "shared-out", {"targetingKey": f"e{n}"}) for n in range(20)]
    assert {each.reason for each in answers} == {"SPLIT"}
    assert {each.value for each in answers} == {"a", "b"}


def test_every_answer_says_what_it_was_given_from(client: FlagdClient) -> None:
    metadata = client.resolve("ResolveBoolean", "on").metadata.fields
    assert metadata["namespace"].string_value == "default"
    assert (metadata["version"].number_value, metadata["epoch"].number_value) == (1, 1)
    assert metadata["age_seconds"].number_value == int(NOW) - 1000
    assert metadata["stale"].bool_value is True


def test_the_entity_is_the_targeting_key(server: RunningServer, client: FlagdClient) -> None:
    for number in range(30):
        entity = f"entity-{number}"
        ours = server.evaluator.knowledge(server.evaluator.namespaces()[0]).compiled.boolean(
            "half", entity, {}
        )
        assert client.resolve("ResolveBoolean", "half", {"targetingKey": entity}).value == ours.enabled
    assert client.resolve("ResolveBoolean", "half", {"targetingKey": None}) == client.resolve(
        "ResolveBoolean", "half"
    )


def test_all_flags_at_once(client: FlagdClient) -> None:
    response = client.call("ResolveAll", client.messages.ResolveAllRequest())
    flags = response.flags
    assert flags["on"].bool_value is True
    assert (flags["plain"].string_value, flags["plain"].variant) == ("red", "red")
    assert flags["ten"].double_value == 10
    assert flags["settings"].object_value.fields["n"].number_value == 2
    assert "broken" not in flags  # it has no answer
    assert "bare" not in flags  # it has no value: the caller's default
    assert response.metadata.fields["version"].number_value == 1


# 1. No value.


@pytest.mark.parametrize(
    ("key", "reason"), [("bare", "DEFAULT"), ("off-without", "DISABLED"), ("empty-rule", "DEFAULT")]
)
@pytest.mark.parametrize("method", METHODS[1:])
def test_no_variant_leaves_value_and_variant_unset(
    second: FlagdClient, method: str, key: str, reason: str
) -> None:
    response = second.resolve(method, key)
    assert not response.HasField("value")
    assert not response.HasField("variant")
    assert response.reason == reason  # with any other reason a provider would take the zero value


@pytest.mark.parametrize("key", ["bare", "off-without"])
def test_no_variant_is_not_found_in_the_first_version(server: RunningServer, key: str) -> None:
    with calling(server.path, "v1") as client, pytest.raises(Failed) as caught:
        client.resolve("ResolveString", key)
    assert caught.value.code == "NOT_FOUND"


@pytest.mark.parametrize(("method", "key"), [("ResolveBoolean", "off"), ("ResolveFloat", "zero")])
def test_a_zero_value_is_there_in_the_second_version(method: str, key: str) -> None:
    with (
        running([switch("off", enabled=False), choosing("zero", "none", "0")]) as server,
        calling(server.path) as client,
    ):
        response = client.resolve(method, key)
    assert response.HasField("value")
    assert not response.value
    assert response.variant


# 2. Errors.


@pytest.mark.parametrize(
    ("method", "key", "code"),
    [
        *((method, "nope", "NOT_FOUND") for method in METHODS),
        *((method, "", "NOT_FOUND") for method in METHODS),
        ("ResolveBoolean", "theme", "INVALID_ARGUMENT"),
        *((method, "on", "INVALID_ARGUMENT") for method in METHODS[1:]),
        *((method, "plain", "INVALID_ARGUMENT") for method in METHODS[2:]),
        ("ResolveInt", "ratio", "INVALID_ARGUMENT"),
        ("ResolveInt", "huge", "INVALID_ARGUMENT"),
        ("ResolveObject", "list", "INVALID_ARGUMENT"),
        ("ResolveObject", "ten", "INVALID_ARGUMENT"),
        ("ResolveBoolean", "broken", "INTERNAL"),
    ],
)
def test_an_error_has_the_code_that_providers_understand(
    client: FlagdClient, method: str, key: str, code: str
) -> None:
    with pytest.raises(Failed) as caught:
        client.resolve(method, key)
    assert caught.value.code == code


def test_a_selector_chooses_the_namespace_and_a_bad_one_is_an_invalid_argument(server: RunningServer) -> None:
    other = History("other")
    server.evaluator.activate(other.begin([switch("only-here", enabled=True)]))
    with calling(server.path) as client:
        for selector in ("other", "flagSetId=other"):
            found = client.resolve("ResolveBoolean", "only-here", selector=selector)
            assert (found.value, found.metadata.fields["namespace"].string_value) == (True, "other")
        for method in METHODS:
            with pytest.raises(Failed) as caught:
                client.resolve(method, "only-here", selector="elsewhere")
            assert caught.value.code == "INVALID_ARGUMENT"


def test_before_anything_was_admitted_every_flag_is_not_found() -> None:
    with running(None) as server, calling(server.path) as client:
        for method in METHODS:
            with pytest.raises(Failed) as caught:
                client.resolve(method, "on")
            assert caught.value.code == "NOT_FOUND"


@pytest.mark.parametrize(
    ("context", "code"),
    [
        ({"targetingKey": 7}, "INTERNAL"),
        ({"targetingKey": {"a": "b"}}, "INTERNAL"),
        ({"k": "x" * (CONTEXT_MAX_BYTES + 1)}, "INTERNAL"),
        ({"k": "x" * 2_000_000}, "RESOURCE_EXHAUSTED"),
        ({f"k{n}": "v" for n in range(300)}, "INTERNAL"),
        ({"targetingKey": "x" * 2000}, "INTERNAL"),
    ],
)
def test_a_context_that_cannot_be_used_is_refused(
    client: FlagdClient, context: dict[str, object], code: str
) -> None:
    with pytest.raises(Failed) as caught:
        client.resolve("ResolveBoolean", "on", context)
    assert caught.value.code == code
    assert len(caught.value.why) < 400


@pytest.mark.parametrize(
    "body", [b"\x0a\x02\xff\xfe", b"\x12\x0a\x0a\x08\x0a\x01k\x12\x03\x1a\x01\xff", b"\x12\xff", b"\xff" * 12]
)
def test_bytes_that_are_not_the_message_are_refused(client: FlagdClient, body: bytes) -> None:
    with pytest.raises(Failed) as caught:
        client.call("ResolveBoolean", body)
    assert caught.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("value", "compared"),
    [
        (3.0, "3"),
        (-0.5, "-0.5"),
        (True, "true"),
        (False, "false"),
        ("north", "north"),
        ([1, "a"], '[1,"a"]'),
        ({"b": {"c": None}}, '{"b":{"c":null}}'),
    ],
)
def test_values_that_are_not_texts_are_compared_as_texts(
    client: FlagdClient, server: RunningServer, value: object, compared: str
) -> None:
    seen: list[object] = []
    compiled = server.evaluator.knowledge(server.evaluator.namespaces()[0]).compiled
    ask = compiled._booleans["on"]

    def look(entity: str, given: Mapping[str, str]) -> BooleanAnswer:
        seen.append(dict(given))
        return ask(entity, given)

    compiled._booleans["on"] = look
    try:
        client.resolve("ResolveBoolean", "on", {"p": value, "gone": None, "targetingKey": "e"})
    finally:
        compiled._booleans["on"] = ask
    assert seen == [{"p": compared}]


# 3. What a provider may keep.


def test_static_is_said_only_where_nothing_could_change_the_answer(second: FlagdClient) -> None:
    assert second.resolve("ResolveBoolean", "on").reason == "STATIC"
    assert second.resolve("ResolveString", "plain").reason == "STATIC"
    for method, key in (
        ("ResolveBoolean", "in-north"),
        ("ResolveBoolean", "half"),
        ("ResolveString", "theme"),
        ("ResolveString", "shared-out"),
    ):
        assert second.resolve(method, key).reason != "STATIC"


@pytest.mark.parametrize("key", ["settings", "ten", "ratio", "written", "huge"])
def test_static_is_not_said_of_a_flag_that_answers_several_types(second: FlagdClient, key: str) -> None:
    # Providers keep by the key alone: a kept object would be the answer to a question for a string.
    assert second.resolve("ResolveString", key).reason == "DEFAULT"


def test_a_switch_turns_static_off_altogether() -> None:
    with running(FLAGS, tells_static=False) as server, calling(server.path) as client:
        assert client.resolve("ResolveBoolean", "on").reason == "DEFAULT"
        assert client.resolve("ResolveString", "plain").reason == "DEFAULT"
        assert client.resolve("ResolveString", "plain").value == "red"


# 4. Events.


def test_a_stream_says_ready_then_all_flags_then_every_change() -> None:
    history = History()
    with running(None) as server:
        server.evaluator.activate(
            history.begin([EVERYBODY, switch("a", enabled=True), switch("b", enabled=True)])
        )
        with calling(server.path) as client:
            events = client.events()
            assert next(events).type == "provider_ready"
            first = next(events)
            assert (first.type, named(first)) == ("configuration_change", {"a": "write", "b": "write"})
            server.evaluator.activate(
                history.change(
                    [switch("a", enabled=False), switch("c", enabled=True)], [RecordId("flag", "b")]
                )
            )
            change = next(events)
            assert (change.type, named(change)) == (
                "configuration_change",
                {"a": "update", "b": "delete", "c": "write"},
            )
            events.cancel()


def test_a_changed_segment_names_the_flags_that_use_it() -> None:
    history = History()
    with running(None) as server:
        server.evaluator.activate(history.begin(ENTRIES))
        with calling(server.path) as client:
            events = client.events()
            next(events), next(events)
            everybody = Segment(SegmentKey("north"), Match.ALL, ())
            server.evaluator.activate(history.change([everybody]))
            assert named(next(events)) == {"in-north": "update", "theme": "update"}
            events.cancel()


def test_a_head_that_is_signed_again_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flagd_module, "KEEP_ALIVE_SECONDS", 0.1)
    history = History()
    with running(None) as server:
        server.evaluator.activate(history.begin(ENTRIES))
        with calling(server.path) as client:
            events = client.events()
            next(events), next(events)
            server.evaluator.activate(history.sign_again(issued=5, expires=10))
            assert next(events).type == "keep_alive"
            events.cancel()


def test_a_silent_stream_is_kept_alive(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flagd_module, "KEEP_ALIVE_SECONDS", 0.05)
    with calling(server.path) as client:
        events = client.events()
        assert [next(events).type for _ in range(5)] == [
            "provider_ready",
            "configuration_change",
            "keep_alive",
            "keep_alive",
            "keep_alive",
        ]
        events.cancel()


def test_a_stream_is_ready_once_anything_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flagd_module, "KEEP_ALIVE_SECONDS", 0.05)
    with running(None) as server, calling(server.path) as client:
        events = client.events()
        assert next(events).type == "keep_alive"
        server.evaluator.activate(History().begin([switch("a", enabled=True)]))
        kinds = []
        while "configuration_change" not in kinds:
            kinds.append(next(events).type)
        assert [kind for kind in kinds if kind != "keep_alive"] == ["provider_ready", "configuration_change"]
        events.cancel()


def test_a_stream_names_the_flags_of_the_namespace_that_it_chose_and_else_of_the_default_one() -> None:
    with running([switch("a", enabled=True)]) as server:
        other = History("other")
        server.evaluator.activate(other.begin([switch("b", enabled=True)]))
        with calling(server.path) as client:
            unselected, one = client.events(), client.events(selector="other")
            next(unselected), next(one)
            assert named(next(unselected)) == {"a": "write"}
            assert named(next(one)) == {"b": "write"}
            server.evaluator.activate(other.change([switch("b", enabled=False)]))
            assert named(next(one)) == {"b": "update"}
            # Nothing of it came before the next change of its own.
            server.evaluator.activate(History().begin([switch("c", enabled=True)]))
            assert named(next(unselected)) == {"a": "delete", "c": "write"}
            unselected.cancel()
            one.cancel()


def test_nothing_of_another_namespace_may_be_kept() -> None:
    # Node's provider sends its selector with its questions and not with its stream, which names the default namespace's flags.
    with running([switch("a", enabled=True)]) as server, calling(server.path) as client:
        server.evaluator.activate(History("other").begin([switch("b", enabled=True)]))
        assert client.resolve("ResolveBoolean", "b", selector="other").reason == "DEFAULT"
        every = client.call("ResolveAll", client.messages.ResolveAllRequest(), selector="other")
        assert every.flags["b"].reason == "DEFAULT"
        for chosen in ("", "default", "flagSetId=default"):
            assert client.resolve("ResolveBoolean", "a", selector=chosen).reason == "STATIC"


@pytest.mark.parametrize("selector", ["nope", "flagSetId=nope"])
def test_a_stream_of_a_namespace_that_this_device_never_has_is_refused_at_once(
    client: FlagdClient, selector: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        next(client.events(selector=selector))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "nope" in caught.value.details()


def test_a_stream_of_a_configured_namespace_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flagd_module, "KEEP_ALIVE_SECONDS", 0.05)
    configured = [Namespace("default"), Namespace("other")]
    with (
        running([switch("a", enabled=True)], namespaces=configured) as server,
        calling(server.path) as client,
    ):
        events = client.events(selector="other")
        assert next(events).type == "keep_alive"
        server.evaluator.activate(History("other").begin([switch("b", enabled=True)]))
        assert next(each for each in events if each.type == "configuration_change").data
        events.cancel()


def test_a_stream_without_a_selector_is_ready_with_another_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    # A provider that chose that one in its questions would never be ready otherwise.
    monkeypatch.setattr(flagd_module, "KEEP_ALIVE_SECONDS", 0.05)
    with running(None) as server, calling(server.path) as client:
        events = client.events()
        assert next(events).type == "keep_alive"
        server.evaluator.activate(History("other").begin([switch("b", enabled=True)]))
        assert next(each for each in events if each.type != "keep_alive").type == "provider_ready"
        server.evaluator.activate(History().begin([switch("a", enabled=True)]))
        changes = (named(each) for each in events if each.type == "configuration_change")
        assert next(each for each in changes if each) == {"a": "write"}
        events.cancel()


def first_named(client: FlagdClient, *, selector: str = "") -> dict[str, str]:
    """The flags that a new stream names at once."""
    events = client.events(selector=selector)
    assert next(events).type == "provider_ready"
    found = named(next(events))
    events.cancel()
    return found


def test_a_flag_that_was_removed_before_the_start_is_named_as_deleted() -> None:
    # Python's provider would go on with the answer that it has kept of it.
    removed = {Namespace("default"): [FlagKey("gone"), FlagKey("back")], Namespace("other"): [FlagKey("b")]}
    with running([switch("a", enabled=True), switch("back", enabled=True)], removed=removed) as server:
        server.evaluator.activate(History("other").begin([switch("c", enabled=True)]))
        with calling(server.path) as client:
            here = {"gone": "delete", "a": "write", "back": "write"}
            there = {"b": "delete", "c": "write"}
            assert first_named(client, selector="default") == here
            assert first_named(client, selector="other") == there
            assert first_named(client) == here


def test_a_flag_that_was_removed_while_a_stream_was_cut_is_named_as_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(changes_module, "REMOVED_FLAGS_MAX", 2)
    history = History()
    flags = [switch(key, enabled=True) for key in "abcde"]
    with running(None) as server, calling(server.path) as client:
        server.evaluator.activate(history.begin(flags))
        assert first_named(client) == dict.fromkeys("abcde", "write")
        for key in "ab":
            server.evaluator.activate(history.change([], [RecordId("flag", key)]))
        server.evaluator.activate(history.sign_again(issued=1001, expires=3000))
        assert first_named(client) == dict.fromkeys("cde", "write") | dict.fromkeys("ab", "delete")
        server.evaluator.activate(history.change(flags[:1]))
        assert first_named(client) == dict.fromkeys("acde", "write") | {"b": "delete"}
        for key in "cd":
            server.evaluator.activate(history.change([], [RecordId("flag", key)]))
        assert first_named(client) == dict.fromkeys("ae", "write") | dict.fromkeys("cd", "delete"), (
            "the oldest is forgotten"
        )


def test_very_many_flags_are_named_in_several_events_that_clients_can_read() -> None:
    flags = [
        switch(f"flag-with-a-long-name-{number:06}", enabled=True) for number in range(EVENT_MAX_FLAGS + 1)
    ]
    with running(flags) as server, calling(server.path) as client:
        events = client.events()
        next(events)
        assert [len(named(next(events))) for _ in range(2)] == [EVENT_MAX_FLAGS, 1]
        events.cancel()


def test_a_client_that_does_not_read_its_stream_hears_all_changes_joined_later() -> None:
    history = History()
    flags = [switch(f"flag-{number}-{'x' * 200}", enabled=True) for number in range(300)]
    with running(None) as server:
        server.evaluator.activate(history.begin(flags))
        with calling(server.path) as slow, calling(server.path) as other:
            events = slow.events()
            assert next(events).type == "provider_ready"
            for number in range(200):  # far more than the stream's window of 64 KiB holds
                server.evaluator.activate(
                    history.change([replace(flag, enabled=number % 2 == 0) for flag in flags])
                )
            waiting = [each._waiting for each in server.server._changes._subscriptions]
            assert all(len(each) <= 1 for each in waiting)
            assert other.resolve("ResolveBoolean", flags[0].key).value is False
            server.evaluator.activate(history.change([switch("last", enabled=True)]))
            events_seen = 0
            while "last" not in named(next(events)):
                events_seen += 1
            assert events_seen < 150
            events.cancel()


# 5. The end.


def test_a_stream_ends_with_unavailable_when_the_agent_stops() -> None:
    with running() as server, calling(server.path) as client:
        events = client.events()
        next(events), next(events)
        began = time.monotonic()
        server.stop()
        with pytest.raises(grpc.RpcError) as caught:
            next(events)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - began < 50


def test_streams_do_not_make_the_agent_wait_when_it_stops() -> None:
    with running() as server, calling(server.path) as client:
        events = client.events()
        next(events)
        began = time.monotonic()
        server.call(server.server.stop(grace=60))
        assert time.monotonic() - began < 30


# Many at once.


def test_a_thousand_calls_at_once_are_all_answered(server: RunningServer) -> None:
    with calling(server.path) as client:
        request = client.messages.ResolveBooleanRequest(flag_key="on").SerializeToString()
        call = client._channel.unary_unary("/flagd.evaluation.v2.Service/ResolveBoolean")
        futures = [call.future(request, timeout=100) for _ in range(1000)]
        answers = {future.result() for future in futures}
    assert len(answers) == 1


def test_all_of_very_many_flags_are_answered() -> None:
    flags = [
        BooleanFlag(FlagKey(f"flag-{number}"), enabled=False, rollouts=(ThresholdRollout(50, value=True),))
        for number in range(5_000)
    ]
    with running(flags) as server, calling(server.path) as client:
        assert len(client.call("ResolveAll", b"").flags) == 5_000


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    context=st.dictionaries(st.text(max_size=10) | st.just("targetingKey"), VALUES, max_size=5),
    key=st.sampled_from(["on", "theme", "half", "settings", "nope", "broken"]) | st.text(max_size=10),
    wanted=st.sampled_from(list(Wanted)),
)
def test_any_question_has_an_answer_or_an_error_of_the_applications(
    server: RunningServer, context: dict[str, object], key: str, wanted: Wanted
) -> None:
    try:
        resolutions = server.server._resolutions
        resolved, knowledge = resolutions.resolve(
            Asked(key, context), wanted, lambda answer, _: resolutions.resolved(answer, wanted)
        )
    except InvalidCall as error:
        code = flagd_module.code_of(error)
    else:
        code = "ok"
        assert resolved.reason in {"STATIC", "DEFAULT", "TARGETING_MATCH", "SPLIT", "DISABLED"}
        assert (resolved.value is None) == (not resolved.variant)
        assert knowledge.version == 1
    assert code in {"ok", "not_found", "invalid_argument", "internal"}
