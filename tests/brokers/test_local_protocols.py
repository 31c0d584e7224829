"""A real agent behind a real broker, asked by every local protocol at once while flags change, are forged, and the agent ends."""

from typing import Any

import pytest
from flagd_calls import calling, grpc, named, switch
from publisher_simulator import flip_last_bit
from raw_http1 import HttpClient
from scenes import Scene, scene

from flagcast_agent.api.protos import flagcast_agent_pb2 as agent
from flagcast_shared.envelope import open_envelope
from flagcast_shared.messages import Place, decode_head
from flagcast_shared.records import content_digest, decode_record
from flagcast_shared.topics import Kind

pytestmark = pytest.mark.mosquitto


def metrics_of(client: HttpClient) -> dict[str, float]:
    lines = client.ask("GET", "/metrics").body.decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}


def test_one_change_reaches_every_protocol_and_the_end_is_told_to_each() -> None:
    with scene() as it:
        it.device.start()
        it.device.wait_for("answering")
        with HttpClient(it.device.socket) as http, calling(it.device.socket) as flagd:
            assert http.ask("GET", "/livez").status == 200
            assert http.ask("GET", "/readyz").status == 503
            events = flagd.events()
            it.publish(switch("a", enabled=True), switch("b", enabled=True))
            assert next(events).type == "provider_ready"
            assert named(next(events)) == {"a": "write", "b": "write"}
            assert http.ask("GET", "/readyz").status == 200
            assert flagd.resolve("ResolveBoolean", "a").reason == "STATIC"
            it.publish(switch("a", enabled=False), switch("b", enabled=True))
            assert named(next(events)) == {"a": "update"}
            assert flagd.resolve("ResolveBoolean", "a").value is False
            assert http.ask("POST", "/ofrep/v1/evaluate/flags/a", b"{}").json["value"] is False
            found = metrics_of(http)
            assert found['flagcast_namespace_version{namespace="default"}'] == 2
            assert found["flagcast_evaluations_total"] == 3
            assert found["flagcast_link_connected"] == 1
            assert found["flagcast_link_connections_total"] == 1
            _check_snapshot(it, flagd._channel)
            assert it.device.stop() == 0
            with pytest.raises(grpc.RpcError) as caught:
                next(events)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_what_is_refused_is_counted_by_its_attack() -> None:
    with scene() as it:
        it.device.start()
        it.publish(switch("a", enabled=True))
        it.device.wait_for("admitted")
        with HttpClient(it.device.socket) as http:
            topic = it.publisher.head_topic
            it.publisher.retained[topic] = flip_last_bit(it.publisher.retained[topic])
            it.send()
            it.device.wait_for("attack=bad_signature")
            assert metrics_of(http)['flagcast_rejections_total{attack="bad_signature"}'] >= 1


def test_the_switch_in_the_configuration_turns_static_off() -> None:
    with scene(last=["[flagd]", "caching = false"]) as it:
        it.device.start()
        it.publish(switch("a", enabled=True))
        it.device.wait_for("admitted")
        with calling(it.device.socket) as flagd:
            assert flagd.resolve("ResolveBoolean", "a").reason == "DEFAULT"


def _check_snapshot(it: Scene, channel: Any) -> None:
    call = channel.unary_stream(
        "/flagcast.agent.v1.Agent/Snapshot", response_deserializer=agent.SnapshotResponse.FromString
    )
    (part,) = call(b"", timeout=100)
    place = Place(it.publisher.environment, it.publisher.namespace, Kind.HEAD)
    head = decode_head(open_envelope(part.head, place).payload, place)
    assert (part.version, part.records_in_all) == (2, 2)
    assert content_digest(decode_record(each).digest for each in part.records) == head.stable.digest
