"""Flags' own metadata: in every answer that has room for it, beside the agent's, and parsed for nobody else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flagd_calls import VERSIONS, calling
from followed import FollowedAgent, wait_until
from google.protobuf.json_format import MessageToDict
from local_server import RunningServer, running
from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from raw_http1 import HttpClient

from flagcast_agent.client import Client
from flagcast_agent.openfeature import FlagcastProvider
from flagcast_agent.values import metadata_of
from flagcast_shared.ids import FlagKey, VariantKey
from flagcast_shared.limits import METADATA_MAX_BYTES
from flagcast_shared.model import BooleanFlag, Flag, Variant, VariantFlag

ALL = "/ofrep/v1/evaluate/flags"
OWN = {"days": 90, "owner": "Größe-Team", "ratio": 0.5, "temporary": True}
TEXT = '{"days":90,"owner":"Größe-Team","ratio":0.5,"temporary":true}'
CLASHING = (
    '{"age_seconds":"old","clock_trusted":"no","namespace":"theirs","owner":"a","stale":"no","version":99}'
)
UNREADABLE = (
    "{",
    "[1]",
    "null",
    '{"a":[1],"b":{},"c":null,"d":1e999,"e":"\\ud800","\\ud800":1}',
    '{"a":NaN}',
    "1" * 4096,
)
FLAGS: tuple[Flag, ...] = (
    BooleanFlag(FlagKey("owned"), enabled=True, metadata=TEXT),
    VariantFlag(
        FlagKey("theme"), True, (Variant(VariantKey("dark")),), default=VariantKey("dark"), metadata=TEXT
    ),
    BooleanFlag(FlagKey("plain"), enabled=True),
    BooleanFlag(FlagKey("clashing"), enabled=True, metadata=CLASHING),
    *(BooleanFlag(FlagKey(f"odd-{number}"), True, metadata=each) for number, each in enumerate(UNREADABLE)),
)
AGENTS = {"namespace", "epoch", "version", "age_seconds", "stale"}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(FLAGS) as server:
        yield server


def own(metadata: Any) -> dict[str, Any]:
    """What is not the agent's; all of the agent's is there."""
    assert metadata.keys() >= AGENTS
    assert (metadata["namespace"], metadata["version"], metadata["stale"]) == ("default", 1, True)
    return {name: value for name, value in metadata.items() if name not in AGENTS}


EXPECTED = {
    "owned": OWN,
    "theme": OWN,
    "plain": {},
    "clashing": {"owner": "a"},
    **{f"odd-{number}": {} for number in range(len(UNREADABLE))},
}


@pytest.mark.parametrize("version", VERSIONS)
def test_flagd_answers_it(server: RunningServer, version: str) -> None:
    with calling(server.path, version) as client:
        for key, expected in EXPECTED.items():
            method = "ResolveString" if key == "theme" else "ResolveBoolean"
            answer = client.resolve(method, key)
            assert own(MessageToDict(answer.metadata)) == expected, key


def test_flagd_answers_it_with_all_flags(server: RunningServer) -> None:
    with calling(server.path, "v1") as client:
        answer = client.call("ResolveAll", client.messages.ResolveAllRequest())
    assert {key: own(MessageToDict(flag.metadata)) for key, flag in answer.flags.items()} == EXPECTED
    assert own(MessageToDict(answer.metadata)) == {}


def test_flagd_answers_it_as_json(server: RunningServer) -> None:
    with HttpClient(server.path) as client:
        for key, expected in EXPECTED.items():
            method = "ResolveString" if key == "theme" else "ResolveBoolean"
            answer = client.post_json(f"/flagd.evaluation.v1.Service/{method}", {"flagKey": key})
            assert own(answer.json["metadata"]) == expected, key
        answer = client.post_json("/flagd.evaluation.v1.Service/ResolveAll", {})
    assert {key: own(flag["metadata"]) for key, flag in answer.json["flags"].items()} == EXPECTED


def test_ofrep_answers_it_with_one_flag_and_with_all(server: RunningServer) -> None:
    with HttpClient(server.path) as client:
        for key, expected in EXPECTED.items():
            assert own(client.post_json(f"{ALL}/{key}", {}).json["metadata"]) == expected, key
        for _ in range(2):  # the second answer is made of what was kept of the first
            answer = client.post_json(ALL, {}).json
            # The agent's own stand once, beside all flags.
            assert {flag["key"]: flag.get("metadata", {}) for flag in answer["flags"]} == EXPECTED
            assert "metadata" not in next(flag for flag in answer["flags"] if flag["key"] == "plain")
            assert own(answer["metadata"]) == {}


def test_ofreps_provider_hands_it_on(server: RunningServer) -> None:
    provider = OFREPProvider(f"http://127.0.0.1:{server.port}")
    api.set_provider_and_wait(provider, "metadata")
    try:
        found = api.get_client("metadata").get_boolean_details("owned", default_value=False)
        assert own(dict(found.flag_metadata)) == OWN
    finally:
        api.clear_providers()
        provider.session.close()


def test_a_client_in_process_and_its_provider_answer_it(tmp_path: Path) -> None:
    path = tmp_path / "agent.sqlite"
    agent = FollowedAgent(path)
    agent.publish(*FLAGS)
    with Client(path) as flagcast:
        wait_until(lambda: flagcast.wait_until_ready(1))
        for key, expected in EXPECTED.items():
            default: Any = "light" if key == "theme" else False
            details = flagcast.evaluate(key, default)
            assert (details.error, details.metadata) == ("", expected), key
        assert flagcast.evaluate("theme", default=False).metadata == {}
        assert flagcast.evaluate("missing", default=False).metadata == {}
        api.set_provider_and_wait(FlagcastProvider(flagcast), "metadata")
        try:
            found = api.get_client("metadata").get_boolean_details("clashing", default_value=False)
            metadata = dict(found.flag_metadata)
            assert (metadata["namespace"], metadata["version"], metadata["owner"]) == ("default", 1, "a")
            assert isinstance(metadata["age_seconds"], int)
            assert "clock_trusted" not in metadata
        finally:
            api.clear_providers()
    agent.close()


def test_a_change_of_metadata_alone_is_a_change_of_the_flag(tmp_path: Path) -> None:
    path = tmp_path / "agent.sqlite"
    agent = FollowedAgent(path)
    agent.publish(BooleanFlag(FlagKey("a"), enabled=True), BooleanFlag(FlagKey("b"), enabled=True))
    with Client(path) as flagcast:
        wait_until(lambda: flagcast.wait_until_ready(1))
        keys: set[str] = set()
        flagcast.listen(lambda change: keys.update(change.keys))
        agent.publish(
            BooleanFlag(FlagKey("a"), enabled=True, metadata=TEXT), BooleanFlag(FlagKey("b"), enabled=True)
        )
        wait_until(lambda: keys == {"a"})
        assert flagcast.evaluate("a", default=False).metadata == OWN
    agent.close()


def test_the_largest_metadata_is_answered() -> None:
    value = "x" * (METADATA_MAX_BYTES - len('{"a":""}'))
    text = f'{{"a":"{value}"}}'
    assert len(text) == METADATA_MAX_BYTES
    assert metadata_of(text) == {"a": value}
