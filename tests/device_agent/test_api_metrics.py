"""What Prometheus scrapes, and whether the agent lives and is ready."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from admitted import History
from flagd_calls import FLAGS, calling, grpc, switch
from local_server import ENTRIES, STATUS, RunningServer, running
from raw_http1 import HttpClient
from repository import ROOT

from flagcast_agent.api.metrics import render
from flagcast_agent.api.protos import flipt_evaluation_pb2
from flagcast_agent.status import Activity

SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\})? (-?[0-9.]+)')


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running() as server:
        yield server


def samples(text: str) -> dict[tuple[str, str], float]:
    """Every sample by its name and labels; checks the form of every line (Prometheus text format 0.0.4)."""
    found: dict[tuple[str, str], float] = {}
    kinds: dict[str, str] = {}
    explained = ""
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# HELP "):
            explained = line.split(" ")[2]
            assert explained not in kinds, "a family stands in one place"
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == explained
            assert kind in {"gauge", "counter"}
            assert (kind == "counter") == name.endswith("_total")
            kinds[name] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match.group(1) == explained
            key = (match.group(1), match.group(2) or "")
            assert key not in found
            found[key] = float(match.group(3))
    return found


def scrape(client: HttpClient) -> dict[tuple[str, str], float]:
    response = client.ask("GET", "/metrics")
    assert response.status == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return samples(response.body.decode())


def test_a_scrape_says_what_the_status_says(server: RunningServer) -> None:
    with HttpClient(server.path) as client:
        found = scrape(client)
    label = 'namespace="default"'
    assert found["flagcast_agent_info", 'version="0.1.0",environment="test"'] == 1
    assert found["flagcast_namespace_version", label] == 41
    assert found["flagcast_namespace_epoch", label] == 2
    assert found["flagcast_namespace_age_seconds", label] == 86_400
    assert found["flagcast_namespace_stale", label] == 1
    assert found["flagcast_namespace_synced", label] == 1
    assert found["flagcast_namespace_synced", 'namespace="other"'] == 0
    assert ("flagcast_namespace_version", 'namespace="other"') not in found
    assert found["flagcast_clock_trusted", ""] == 0
    assert found["flagcast_link_connected", ""] == 0
    assert found["flagcast_link_state", 'state="disconnected"'] == 1
    assert found["flagcast_link_state", 'state="live"'] == 0


def test_evaluations_activations_and_connections_are_counted() -> None:
    history = History()
    with running(None) as server, HttpClient(server.path) as client, calling(server.path) as flagd:
        server.evaluator.activate(history.begin(ENTRIES))
        flagd.resolve("ResolveBoolean", "on")
        client.ask("POST", "/ofrep/v1/evaluate/flags/on", b"{}")
        client.ask("POST", "/ofrep/v1/evaluate/flags/nope", b"{}")
        client.ask("POST", "/ofrep/v1/evaluate/flags", b"{}")  # nobody asked for a flag
        flagd.call("ResolveAll", flagd.messages.ResolveAllRequest())  # as before
        server.evaluator.activate(history.change([switch("on", enabled=False)]))
        found = scrape(client)
        assert found["flagcast_evaluations_total", ""] == 2
        assert found["flagcast_activations_total", ""] == 2
        assert found["flagcast_local_connections", ""] == 2
        events = flagd.events()
        next(events)
        assert scrape(client)["flagcast_local_calls", ""] == 1
        events.cancel()


def test_questions_without_a_targeting_key_that_reach_a_percentage_are_counted_on_every_protocol() -> None:
    with (
        running(FLAGS) as server,
        HttpClient(server.path) as client,
        calling(server.path) as flagd,
        grpc.insecure_channel(f"unix:{server.path}") as channel,
    ):
        counted = 0

        def flipt(method: str, request: Any) -> None:
            call = channel.unary_unary(
                f"/flipt.evaluation.EvaluationService/{method}",
                request_serializer=type(request).SerializeToString,
            )
            call(request, timeout=100)

        def expect(more: int) -> None:
            nonlocal counted
            counted += more
            assert scrape(client)["flagcast_targeting_key_missing_total", ""] == counted

        expect(0)
        flagd.resolve("ResolveBoolean", "half")
        flagd.resolve("ResolveString", "shared-out", {"targetingKey": ""})
        expect(2)
        flagd.resolve("ResolveBoolean", "half", {"targetingKey": "e"})
        flagd.resolve("ResolveBoolean", "on")
        flagd.resolve("ResolveString", "theme")
        expect(0)
        for body in (b"{}", b'{"context":{"targetingKey":""}}', b'{"context":{"targetingKey":"e"}}'):
            client.ask("POST", "/ofrep/v1/evaluate/flags/half", body)
        client.ask("POST", "/ofrep/v1/evaluate/flags", b"{}")  # nobody asked for a flag
        expect(2)
        for entity in ("", "e"):
            asked = flipt_evaluation_pb2.EvaluationRequest(flag_key="half", entity_id=entity)
            flipt("Boolean", asked)
            flipt("Batch", flipt_evaluation_pb2.BatchEvaluationRequest(requests=[asked, asked]))
        flipt("Variant", flipt_evaluation_pb2.EvaluationRequest(flag_key="shared-out"))
        expect(4)


def test_what_happened_on_the_link_is_told_and_labels_are_escaped() -> None:
    text = render(
        STATUS,
        Activity(7, {"rollback": 2, 'odd"\\\n': 1}, received_bytes=4321, sent_bytes=1234),
        evaluations=0,
        targeting_keys_missing=0,
        activations=0,
        local_connections=0,
        local_calls=0,
    ).decode()
    found = samples(text)
    assert found["flagcast_rejections_total", 'attack="rollback"'] == 2
    assert found["flagcast_rejections_total", r'attack="odd\"\\\n"'] == 1
    assert found["flagcast_link_connections_total", ""] == 7
    assert found["flagcast_link_received_bytes_total", ""] == 4321
    assert found["flagcast_link_sent_bytes_total", ""] == 1234


def test_every_metric_is_documented() -> None:
    page = Path(ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    text = render(
        STATUS,
        Activity(0, {}),
        evaluations=0,
        targeting_keys_missing=0,
        activations=0,
        local_connections=0,
        local_calls=0,
    ).decode()
    names = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    assert {name for name in names if f"`{name}`" not in page} == set()
    assert set(re.findall(r"`(flagcast_[a-z_]+)`", page)) - {"flagcast_agent", "flagcast_shared"} <= names


def test_the_agent_lives_before_it_is_ready() -> None:
    with running(None) as server, HttpClient(server.path) as client:
        assert client.ask("GET", "/livez").status == 200
        assert client.ask("GET", "/readyz").status == 503
        server.evaluator.activate(History().begin(ENTRIES))
        assert client.ask("GET", "/readyz").status == 200
