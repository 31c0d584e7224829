"""One flag by the socket and in process: the same value, variant, reason and error."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flagd_calls import FLAGS, Failed, calling, switch
from followed import FollowedAgent
from local_server import running
from raw_http1 import HttpClient

from flagcast_agent.client import Client
from flagcast_shared.model import BooleanFlag, VariantFlag
from flagcast_shared.records import Record

KEYS = [str(entry.key) for entry in FLAGS if isinstance(entry, BooleanFlag | VariantFlag)]
CONTEXTS: list[dict[str, object]] = [{}, {"region": "north"}]
DEFAULTS: dict[str, Any] = {
    "ResolveBoolean": False, "ResolveString": "default", "ResolveInt": 5, "ResolveFloat": 0.5, "ResolveObject": {"of": "mine"},
}  # fmt: skip
CODES = {"NOT_FOUND": "FLAG_NOT_FOUND", "INVALID_ARGUMENT": "TYPE_MISMATCH", "INTERNAL": "GENERAL"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    path = tmp_path / "agent.sqlite"
    agent = FollowedAgent(path)
    agent.publish(*(entry for entry in FLAGS if not isinstance(entry, Record)))
    with Client(path) as made:
        yield made
    agent.close()


def test_every_flag_answers_alike_by_flagd_and_in_process(client: Client) -> None:
    with running(FLAGS) as server, calling(server.path) as flagd:
        for key in [*KEYS, "no-such-flag"]:
            if key == "on-this-device":
                continue  # the two are devices of different models
            for context in CONTEXTS:
                for method, default in DEFAULTS.items():
                    ours = client.evaluate(key, default, "entity", context)
                    what = (key, method, context)
                    if (key, method) == ("huge", "ResolveInt"):
                        # Python's whole numbers have no end, those of the protocol 64 bits.
                        assert ours.value == 10**30
                        continue
                    found, error = None, ""
                    try:
                        found = flagd.resolve(method, key, {**context, "targetingKey": "entity"})
                    except Failed as failed:
                        error = CODES[failed.code]
                    if found is None:
                        assert (ours.reason, ours.error) == ("ERROR", error), what
                        continue
                    assert (ours.reason, ours.variant, ours.error) == (found.reason, found.variant, ""), what
                    if not found.HasField("value"):
                        assert ours.value == default, what
                    elif method != "ResolveObject":
                        assert ours.value == found.value, what


def test_a_boolean_flag_that_is_off_for_everybody_has_a_value_by_every_protocol() -> None:
    # DISABLED is OpenFeature's "use the default"; the flag's own false is to be used, and may be kept.
    with running([switch("off", enabled=False)]) as server:
        for version in ("v1", "v2"):
            with calling(server.path, version) as flagd:
                found = flagd.resolve("ResolveBoolean", "off")
                assert (found.value, found.variant, found.reason) == (False, "false", "STATIC")
                every = flagd.call("ResolveAll", flagd.messages.ResolveAllRequest()).flags["off"]
                assert (every.bool_value, every.reason) == (False, "STATIC")
        with HttpClient(server.path) as http:
            asked = [
                http.post_json("/flagd.evaluation.v1.Service/ResolveBoolean", {"flagKey": "off"}).json,
                http.post_json("/ofrep/v1/evaluate/flags/off", {}).json,
                *http.post_json("/ofrep/v1/evaluate/flags", {}).json["flags"],
            ]
    assert [(found["value"], found["variant"], found["reason"]) for found in asked] == [
        (False, "false", "STATIC")
    ] * 3
