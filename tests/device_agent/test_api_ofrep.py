"""OFREP: one flag, all flags, ETags, the stream of events, and the errors of the specification."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from admitted import History
from flagd_calls import FLAGS, switch
from local_server import ENTRIES, NOW, RunningServer, running
from raw_http1 import HttpClient, Response

from flagcast_agent.api import ofrep as ofrep_module
from flagcast_agent.limits import SLICE_FLAGS
from flagcast_shared.ids import FlagKey
from flagcast_shared.model import BooleanFlag, ThresholdRollout

ALL = "/ofrep/v1/evaluate/flags"
NORTH = {"targetingKey": "e", "region": "north"}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(FLAGS) as server:
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[HttpClient]:
    with HttpClient(server.path) as client:
        yield client


def evaluate(client: HttpClient, key: str, context: dict[str, Any] | None = None) -> Response:
    return client.post_json(f"{ALL}/{key}", {} if context is None else {"context": context})


@pytest.mark.parametrize(
    ("key", "context", "value", "variant", "reason"),
    [
        ("on", None, True, "true", "STATIC"),
        ("off", None, False, "false", "STATIC"),
        ("in-north", NORTH, True, "true", "TARGETING_MATCH"),
        ("theme", NORTH, {"ink": "white"}, "dark", "TARGETING_MATCH"),
        ("theme", None, "light", "light", "DEFAULT"),
        ("plain", {"targetingKey": None}, "red", "red", "STATIC"),
        ("ten", {}, 10, "small", "DEFAULT"),
        ("ratio", {}, 0.25, "small", "DEFAULT"),
        ("written", {}, "42", "42", "DEFAULT"),
        ("list", {}, "many", "many", "STATIC"),
    ],
)
def test_one_flag(  # noqa: PLR0917  # one column each
    client: HttpClient,
    key: str,
    context: dict[str, Any] | None,
    value: object,
    variant: str,
    reason: str,
) -> None:
    response = evaluate(client, key, context)
    assert response.status == 200
    assert response.json == {
        "key": key,
        "value": value,
        "variant": variant,
        "reason": reason,
        "metadata": {
            "namespace": "default",
            "epoch": 1,
            "version": 1,
            "age_seconds": int(NOW) - 1000,
            "stale": True,
        },
    }
    assert type(response.json["value"]) is type(value)


@pytest.mark.parametrize("key", ["half", "shared-out"])
@pytest.mark.parametrize(
    "context", [None, {}, {"targetingKey": ""}, {"targetingKey": None, "region": "north"}]
)
def test_a_percentage_without_a_targeting_key_is_an_error(
    client: HttpClient, key: str, context: dict[str, Any] | None
) -> None:
    response = evaluate(client, key, context)
    assert response.status == 400
    assert (response.json["key"], response.json["errorCode"]) == (key, "TARGETING_KEY_MISSING")
    assert "targetingKey" in response.json["errorDetails"]
    together = client.post_json(ALL, {} if context is None else {"context": context}).json
    assert {each["key"]: each for each in together["flags"]}[key] == response.json
    assert evaluate(client, key, {"targetingKey": "e"}).json["reason"] == "SPLIT"
    assert key not in {
        each["key"]
        for each in client.post_json(ALL, {"context": {"targetingKey": "e"}}).json["flags"]
        if "errorCode" in each
    }


def test_no_value_is_left_out_and_the_variant_stays(client: HttpClient) -> None:
    found = evaluate(client, "bare").json
    assert "value" not in found
    assert (found["variant"], found["reason"]) == ("", "DEFAULT")


def test_a_request_without_a_context_or_a_body_is_one_without_a_context(client: HttpClient) -> None:
    for body in (None, b"", b"{}", b'{"context":null}', b'{"context":{}}'):
        assert client.ask("POST", f"{ALL}/on", body).json["value"] is True


def test_a_key_may_be_percent_encoded(client: HttpClient) -> None:
    assert client.ask("POST", f"{ALL}/in%2Dnorth", b"{}").json["key"] == "in-north"


@pytest.mark.parametrize(
    ("key", "body", "status", "code"),
    [
        ("nope", b"{}", 404, "FLAG_NOT_FOUND"),
        ("", b"{}", 404, "FLAG_NOT_FOUND"),
        ("a/b", b"{}", 404, "FLAG_NOT_FOUND"),
        ("%ff%00", b"{}", 404, "FLAG_NOT_FOUND"),
        ("x" * 5000, b"{}", 404, "FLAG_NOT_FOUND"),
        ("on", b"{", 400, "PARSE_ERROR"),
        ("on", b"[]", 400, "PARSE_ERROR"),
        ("on", b'{"context":{"a":"\xff"}}', 400, "PARSE_ERROR"),
        ("on", b"[" * 100_000, 400, "PARSE_ERROR"),
        ("on", b'{"context":{"a":' + b"1" * 5000 + b"}}", 400, "PARSE_ERROR"),
        ("on", b'{"context":[]}', 400, "INVALID_CONTEXT"),
        ("on", b'{"context":"x"}', 400, "INVALID_CONTEXT"),
        ("on", b'{"context":{"targetingKey":7}}', 400, "INVALID_CONTEXT"),
        ("on", b'{"context":{"a":"' + b"x" * 70_000 + b'"}}', 400, "INVALID_CONTEXT"),
        ("on", json.dumps({"context": {f"k{n}": 1 for n in range(300)}}).encode(), 400, "INVALID_CONTEXT"),
        ("on", json.dumps({"context": {"targetingKey": "x" * 2000}}).encode(), 400, "INVALID_CONTEXT"),
        ("broken", b"{}", 400, "GENERAL"),
    ],
)
def test_an_error_has_the_code_of_the_specification(
    client: HttpClient, key: str, body: bytes, status: int, code: str
) -> None:
    response = client.ask("POST", f"{ALL}/{key}", body, {"content-type": "application/json"})
    assert response.status == status
    found = response.json
    assert found.keys() == {"key", "errorCode", "errorDetails"}
    assert found["errorCode"] == code
    assert 0 < len(found["errorDetails"]) <= 300
    assert client.ask("POST", f"{ALL}/on", b"{}").status == 200


@pytest.mark.parametrize(
    ("value", "word"),
    [(7, "a number"), (0.5, "a number"), (True, "a boolean"), ([], "a list"), ({}, "an object")],
)
def test_an_error_of_a_type_names_it_in_jsons_words(client: HttpClient, value: object, word: str) -> None:
    found = evaluate(client, "on", {"targetingKey": value}).json
    assert found["errorDetails"] == f"targetingKey is {word}; it must be a text"


def test_a_lone_surrogate_in_an_entity_is_an_error_of_the_context_and_not_ours(client: HttpClient) -> None:
    response = client.ask("POST", f"{ALL}/half", b'{"context":{"targetingKey":"\\ud800"}}')
    assert (response.status, response.json["errorCode"]) == (400, "GENERAL")


def test_values_of_a_context_are_compared_as_texts() -> None:
    from flagd_calls import EVERYBODY

    from flagcast_shared.ids import SegmentKey
    from flagcast_shared.model import (
        Constraint,
        ConstraintType,
        Join,
        Match,
        Operator,
        Segment,
        SegmentRollout,
    )

    def flag_for(name: str, text: str) -> tuple[Segment, BooleanFlag]:
        key = SegmentKey(name)
        constraint = Constraint(ConstraintType.STRING, "p", Operator.EQ, text)
        return (
            Segment(key, Match.ALL, (constraint,)),
            BooleanFlag(
                FlagKey(name), enabled=False, rollouts=(SegmentRollout((key,), Join.OR, value=True),)
            ),
        )

    cases = {"whole": (3.0, "3"), "truth": (True, "true"), "nested": ({"a": [1]}, '{"a":[1]}')}
    entries = [each for name, (_, text) in cases.items() for each in flag_for(name, text)]
    with running([EVERYBODY, *entries]) as server, HttpClient(server.path) as client:
        for name, (value, _) in cases.items():
            assert evaluate(client, name, {"p": value}).json["value"] is True, name


# All flags.


def test_all_flags(client: HttpClient) -> None:
    response = client.post_json(ALL, {"context": NORTH})
    assert response.status == 200
    document = response.json
    flags = {each["key"]: each for each in document["flags"]}
    assert [*flags] == sorted(flags)
    assert flags["theme"] == {
        "key": "theme",
        "value": {"ink": "white"},
        "variant": "dark",
        "reason": "TARGETING_MATCH",
    }
    assert flags["broken"]["errorCode"] == "GENERAL"
    assert flags["broken"]["errorDetails"]
    assert "value" not in flags["bare"]
    assert document["metadata"]["version"] == 1
    (stream,) = document["eventStreams"]
    assert stream == {"type": "sse", "endpoint": {"requestUri": "/ofrep/v1/events?namespace=default"}}


def test_what_has_not_changed_is_not_sent_again(client: HttpClient) -> None:
    etag = client.post_json(ALL, {"context": NORTH}).headers["etag"]
    for header in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        response = client.post_json(ALL, {"context": NORTH}, {"if-none-match": header})
        assert (response.status, response.headers["etag"], response.body) == (304, etag, b"")
    assert client.post_json(ALL, {"context": NORTH}, {"if-none-match": '"other"'}).status == 200
    assert client.ask("GET", "/livez").status == 200


def test_the_etag_is_of_the_context_too(client: HttpClient) -> None:
    seen: set[str] = set()
    for context in ({}, NORTH, {"targetingKey": "f", "region": "north"}, {"region": "south"}):
        response = client.post_json(ALL, {"context": context}, {"if-none-match": ", ".join(seen)})
        assert response.status == 200
        seen.add(response.headers["etag"])
    assert len(seen) == 4
    one = client.ask("POST", ALL, b'{"context":{"a":1,"b":2}}').headers["etag"]
    assert client.ask("POST", ALL, b'{"context": {"b":2, "a":1}}').headers["etag"] == one


def test_the_etag_is_of_the_version_too_and_of_staleness() -> None:
    history = History(issued=1000, expires=int(NOW) + 1000)
    with running(None) as server, HttpClient(server.path) as client:
        server.evaluator.activate(history.begin(ENTRIES))
        first = client.post_json(ALL, {}).headers["etag"]
        assert client.post_json(ALL, {}, {"if-none-match": first}).status == 304
        server.evaluator.activate(history.sign_again(issued=1001, expires=int(NOW) + 2000))
        assert client.post_json(ALL, {}, {"if-none-match": first}).status == 304
        server.evaluator.activate(history.sign_again(issued=1002, expires=int(NOW) - 1))
        stale = client.post_json(ALL, {}, {"if-none-match": first})
        assert stale.status == 200
        assert stale.json["metadata"]["stale"] is True
        server.evaluator.activate(history.change([switch("on", enabled=False)]))
        assert client.post_json(ALL, {}, {"if-none-match": stale.headers["etag"]}).status == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "PARSE_ERROR"),
        (b'{"context":3}', "INVALID_CONTEXT"),
        (b'{"context":{"targetingKey":{}}}', "INVALID_CONTEXT"),
    ],
)
def test_an_error_of_all_flags_has_no_key(client: HttpClient, body: bytes, code: str) -> None:
    response = client.ask("POST", ALL, body)
    assert response.status == 400
    assert response.json.keys() == {"errorCode", "errorDetails"}
    assert response.json["errorCode"] == code


def test_before_anything_was_admitted_the_provider_is_not_ready() -> None:
    with running(None) as server, HttpClient(server.path) as client:
        response = client.post_json(ALL, {})
        assert (response.status, response.json["errorCode"]) == (400, "PROVIDER_NOT_READY")
        assert evaluate(client, "on").status == 404


def test_a_header_chooses_the_namespace(server: RunningServer, client: HttpClient) -> None:
    server.evaluator.activate(History("other").begin([switch("only-here", enabled=True)]))
    for header in ({"flagd-selector": "other"}, {"flagcast-namespace": "other"}):
        assert client.post_json(f"{ALL}/only-here", {}, header).json["metadata"]["namespace"] == "other"
        assert [each["key"] for each in client.post_json(ALL, {}, header).json["flags"]] == ["only-here"]
    assert evaluate(client, "only-here").status == 404


def test_others_have_their_turn_while_very_many_flags_are_evaluated() -> None:
    flags = [
        BooleanFlag(FlagKey(f"flag-{number}"), enabled=False, rollouts=(ThresholdRollout(50, value=True),))
        for number in range(5_000)
    ]

    async def turns_of_others(server: RunningServer) -> int:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        resolutions = server.server._resolutions
        slices, _ = await resolutions.resolve_all(resolutions.question_for_all({}))
        found = [each async for some in slices for each in some]
        counting.cancel()
        assert len(found) == 5_000
        return turns

    with running(flags) as server, HttpClient(server.path) as client:
        assert server.call(turns_of_others(server)) >= 5_000 // SLICE_FLAGS - 1
        assert len(client.ask("POST", ALL, b"{}").json["flags"]) == 5_000


# Events.


def events(client: HttpClient, target: str = "/ofrep/v1/events", **headers: str) -> Iterator[str]:
    client.send("GET", target, headers={name.replace("_", "-"): value for name, value in headers.items()})
    status, found = client.head()
    assert (status, found["content-type"]) == (200, "text/event-stream")
    return (chunk.decode() for chunk in client.chunks())


def data_of(event: str) -> Any:
    lines = dict(line.split(": ", 1) for line in event.strip().splitlines())
    assert lines["event"] == "message"
    assert event.endswith("\n\n")
    return json.loads(lines["data"]) | {"id": lines["id"]}


def test_the_stream_of_all_flags_says_when_to_ask_anew() -> None:
    history = History()
    with running(None) as server, HttpClient(server.path) as client:
        server.evaluator.activate(history.begin(ENTRIES))
        (stream,) = client.post_json(ALL, {}).json["eventStreams"]
        found = events(client, stream["endpoint"]["requestUri"])
        first = data_of(next(found))
        assert first["type"] == "refetchEvaluation"
        assert next(found).startswith(":")
        server.evaluator.activate(history.sign_again(issued=1001, expires=3000))
        server.evaluator.activate(history.change([switch("on", enabled=False)]))
        second = data_of(next(found))
        assert second["type"] == "refetchEvaluation"
        assert second["etag"] != first["etag"]
        with HttpClient(server.path) as again:
            resumed = events(again, stream["endpoint"]["requestUri"], last_event_id=second["id"])
            assert next(resumed).startswith(":")  # nothing was missed
        with HttpClient(server.path) as again:
            resumed = events(again, stream["endpoint"]["requestUri"], last_event_id=first["id"])
            assert data_of(next(resumed)) == second
        server.stop()
        assert list(found) == []


def test_a_silent_stream_is_kept_alive(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ofrep_module, "KEEP_ALIVE_SECONDS", 0.05)
    with HttpClient(server.path) as client:
        found = events(client)
        assert [next(found)[:1] for _ in range(4)] == ["i", ":", ":", ":"]


def test_a_stream_waits_for_the_first_flags() -> None:
    with running(None) as server, HttpClient(server.path) as client:
        found = events(client)
        assert next(found).startswith(":")
        server.evaluator.activate(History().begin(ENTRIES))
        assert data_of(next(found))["type"] == "refetchEvaluation"


def test_a_client_that_does_not_read_its_events_hears_the_last_one() -> None:
    history = History()
    flags = [switch(f"flag-{number}", enabled=True) for number in range(10)]
    with running(None) as server, HttpClient(server.path) as slow, HttpClient(server.path) as other:
        server.evaluator.activate(history.begin(flags))
        found = events(slow)
        for number in range(2000):
            server.evaluator.activate(
                history.change([replace(flag, enabled=number % 2 == 0) for flag in flags])
            )
        assert other.ask("POST", f"{ALL}/flag-1", b"{}").json["value"] is False
        last = ""
        while not last.startswith("default-1-2001"):
            event = next(found)
            last = data_of(event)["id"] if event.startswith("id") else last
