"""Nested values of a context: one text, whatever the protocol and the order in which the keys were written."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from flagd_calls import VERSIONS, calling
from followed import FollowedAgent, for_segment, segment
from local_server import RunningServer, running
from raw_http1 import HttpClient

from flagcast_agent.api.protos import flagd_evaluation_v2_pb2
from flagcast_agent.client import Client
from flagcast_shared.context import context_text

NAMES = [f"key-{number:02d}" for number in range(12)]
INNER = {name: number for number, name in enumerate(NAMES)}
NESTED = {"z": 1, "list": [INNER, {"b": None, "a": True}], "half": 0.5, "größe": "ü", "Z": {"y": {}, "x": []}}
WRITTEN = (
    '{"Z":{"x":[],"y":{}},"größe":"ü","half":0.5,"list":[{'
    + ",".join(f'"{name}":{number}' for number, name in enumerate(NAMES))
    + '},{"a":true,"b":null}],"z":1}'
)


def turned(value: Any) -> Any:
    """The same value with the keys of every object the other way round."""
    match value:
        case dict():
            return {key: turned(each) for key, each in reversed(value.items())}
        case list():
            return [turned(each) for each in value]
    return value


ORDERS = [NESTED, turned(NESTED)]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running([for_segment("it", "fits"), segment("fits", "p", WRITTEN)]) as server:
        yield server


@pytest.mark.parametrize("value", ORDERS)
@pytest.mark.parametrize("version", VERSIONS)
def test_by_flagds_grpc(server: RunningServer, version: str, value: object) -> None:
    with calling(server.path, version) as client:
        # Each message has an order of its own, which protobuf draws.
        answers = [client.resolve("ResolveBoolean", "it", {"p": value}).value for _ in range(20)]
        everything = client.messages.ResolveAllRequest()
        everything.context.update({"p": value})
        assert client.call("ResolveAll", everything).flags["it"].bool_value is True
    assert answers == [True] * 20


@pytest.mark.parametrize("value", ORDERS)
def test_by_connect(server: RunningServer, value: Any) -> None:
    path = "/flagd.evaluation.v2.Service/ResolveBoolean"
    request = flagd_evaluation_v2_pb2.ResolveBooleanRequest(flag_key="it")
    request.context.update({"p": value})
    with HttpClient(server.path) as client:
        found = client.post_json(path, {"flagKey": "it", "context": {"p": value}})
        assert found.json["value"] is True
        reply = client.ask("POST", path, request.SerializeToString(), {"content-type": "application/proto"})
    assert flagd_evaluation_v2_pb2.ResolveBooleanResponse.FromString(reply.body).value is True


@pytest.mark.parametrize("value", ORDERS)
def test_by_ofrep(server: RunningServer, value: object) -> None:
    with HttpClient(server.path) as client:
        one = client.post_json("/ofrep/v1/evaluate/flags/it", {"context": {"p": value}})
        assert one.json["value"] is True
        every = client.post_json("/ofrep/v1/evaluate/flags", {"context": {"p": value}})
    assert [flag["value"] for flag in every.json["flags"]] == [True]


@pytest.mark.parametrize("value", [*ORDERS, MappingProxyType(NESTED)])
def test_in_process(tmp_path: Path, value: object) -> None:
    path = tmp_path / "agent.sqlite"
    agent = FollowedAgent(path)
    try:
        agent.publish(for_segment("it", "fits"), segment("fits", "p", WRITTEN))
        with Client(path) as client:
            assert client.boolean("it", False, "e", {"p": value}) is True
            assert client.evaluate("it", False, "e", {"p": value}).reason == "TARGETING_MATCH"
    finally:
        agent.close()


def test_numbers_that_json_and_protobuf_write_differently_are_one_text() -> None:
    # Protobuf's Struct has doubles alone: there 2 and 2.0 are the same, and so are they in JSON.
    written = '{"big":9007199254740992,"n":[2,-0.5,100000]}'
    with running([for_segment("it", "fits"), segment("fits", "p", written)]) as server:
        with calling(server.path) as client:
            for n in ([2, -0.5, 100000], [2.0, -0.5, 1e5]):
                value = {"n": n, "big": 2**53}
                assert client.resolve("ResolveBoolean", "it", {"p": value}).value is True
        with HttpClient(server.path) as http:
            for text in (b"[2,-0.5,100000]", b"[2.0,-0.50,1e5]"):
                body = b'{"context":{"p":{"n":' + text + b',"big":9007199254740992}}}'
                assert http.ask("POST", "/ofrep/v1/evaluate/flags/it", body).json["value"] is True


@pytest.mark.parametrize(("value", "by_grpc"), [(2**53 + 1, False), (str(2**53 + 1), True)])
def test_a_whole_number_beyond_a_double_is_to_be_given_as_a_text(value: object, by_grpc: bool) -> None:
    # docs/evaluation.md: flagd's gRPC has doubles for numbers.
    with running([for_segment("it", "fits"), segment("fits", "p", str(2**53 + 1))]) as server:
        with calling(server.path) as client:
            assert client.resolve("ResolveBoolean", "it", {"p": value}).value is by_grpc
        with HttpClient(server.path) as http:
            for path, body in (
                ("/ofrep/v1/evaluate/flags/it", {"context": {"p": value}}),
                ("/flagd.evaluation.v1.Service/ResolveBoolean", {"flagKey": "it", "context": {"p": value}}),
            ):
                assert http.post_json(path, body).json["value"] is True


def test_numbers_do_not_grow(server: RunningServer) -> None:
    body = b'{"context":{"p":[' + b",".join([b"1e308"] * 5_000) + b"]}}"
    with HttpClient(server.path) as client:
        reply = client.ask("POST", "/ofrep/v1/evaluate/flags/it", body)
    # Within the limit of a context; with 309 digits each it would be 1.5 MB.
    assert (reply.status, reply.json["value"]) == (200, False)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"b": 1, "a": 2}, '{"a":2,"b":1}'),
        ({10: "x", 9: "y", True: "z", None: "n"}, '{"10":"x","9":"y","null":"n","true":"z"}'),
        ({"a": 1.0, "b": 1e21, "c": -3e20}, '{"a":1,"b":1e+21,"c":-300000000000000000000}'),
        (({"b": 1, "a": 2},), '[{"a":2,"b":1}]'),
        ({"of": {"c", "a", "b"}}, '{"of":["a","b","c"]}'),
        ({"at": dt.datetime(2026, 1, 2, tzinfo=dt.UTC)}, '{"at":"2026-01-02T00:00:00+00:00"}'),
        ({"\U0001f600": 1, "\uffff": 2}, '{"\uffff":2,"\U0001f600":1}'),
        ([], "[]"),
        ({}, "{}"),
    ],
)
def test_the_text_of_a_value(value: object, written: str) -> None:
    assert context_text(value) == written


def test_a_value_that_holds_itself_gives_the_default(tmp_path: Path) -> None:
    path = tmp_path / "agent.sqlite"
    agent = FollowedAgent(path)
    endless: dict[str, object] = {}
    endless["self"] = endless
    try:
        agent.publish(for_segment("it", "fits"), segment("fits", "p", "x"))
        with Client(path) as client:
            assert client.boolean("it", True, "e", {"p": endless}) is True
            assert client.evaluate("it", True, "e", {"p": endless}).error == "INVALID_CONTEXT"
    finally:
        agent.close()
