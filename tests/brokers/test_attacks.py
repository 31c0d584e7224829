"""Attacks by way of a real broker on a real agent: nothing that it answers, says it holds or has on disk changes.

One broker serves all of them; each attack has an environment of its own, and with it topics, keys and a device.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cbor2
import pytest
from agent_shell import disk_of
from devices import Device, provision
from publisher_simulator import (
    DAY,
    PRODUCTION,
    ROOT_LIFE_SECONDS,
    PublisherSimulator,
    SigningKey,
    envelope_of,
    flip_last_bit,
)

from brokers import Broker, start_mosquitto
from flagcast_agent import clock
from flagcast_agent.api.local import LocalClient
from flagcast_bridge.broker import connection as mqtt
from flagcast_shared.codec import deflate, encode
from flagcast_shared.envelope import content_type, sig_structure
from flagcast_shared.ids import DeviceId, Environment, FlagKey, Namespace, VariantKey
from flagcast_shared.ids import Sequence as HeadSequence
from flagcast_shared.limits import CONTENT_MAX_BYTES, MESSAGE_MAX_BYTES, NUMBER_MAX, RECORD_MAX_BYTES
from flagcast_shared.messages import Offering, encode_head
from flagcast_shared.model import Variant, VariantFlag
from flagcast_shared.records import encode_delta, encode_record
from flagcast_shared.reports import decode_report
from flagcast_shared.topics import DeviceAddress, Kind

pytestmark = pytest.mark.mosquitto

FLAGS = ("colour", "layout", "greeting")
ENTITIES = ("entity-1", "entity-2")
ALICE, BOB, MALLORY = (SigningKey(name) for name in ("publisher-a", "publisher-b", "mallory"))
_NUMBERS = itertools.count(1)


def content(name: str) -> list[VariantFlag]:
    """Every flag answers the name of the content, so that a mixture of two shows."""
    variant = VariantKey(name)
    return [VariantFlag(FlagKey(key), True, (Variant(variant),), variant) for key in FLAGS]


@dataclass(frozen=True, slots=True)
class Belief:
    """All that an attack must not change: answers over the socket, what `status` says is held, and the database."""

    answers: Mapping[str, Sequence[str]]
    held: Mapping[str, object]
    disk: object


@dataclass(slots=True)
class Scene:
    """A publisher, its broker, and a device that has admitted the release "first" and is up to date."""

    publisher: PublisherSimulator
    broker: Broker
    device: Device
    name: DeviceId

    # What is published

    def publish(self, *topics: str) -> None:
        """Puts what the publisher retains on the broker: these topics, or all of them with the head last."""
        retained, head = self.publisher.retained, self.publisher.head_topic
        listed = topics or (*(topic for topic in retained if topic != head), head)
        self.put(*((topic, retained[topic]) for topic in listed))

    def put(self, *messages: tuple[str, bytes]) -> None:
        """Publishes anything, retained, as whoever may write on the broker can."""
        with mqtt.connect(self.broker.host, self.broker.port, mqtt.Login()) as connection:
            connection.publish(messages)

    # What the device does

    @property
    def answers(self) -> Mapping[str, Sequence[str]]:
        return {entity: self.device.variants(FLAGS, entity) for entity in ENTITIES}

    def wait_for_answers_from(self, name: str) -> None:
        self.device.wait_until(
            lambda: all(set(one) == {name} for one in self.answers.values()), f"answers from {name}"
        )

    @property
    def status(self) -> Mapping[str, Any]:
        return LocalClient(self.device.socket).status().as_json()

    @property
    def namespace(self) -> Mapping[str, Any]:
        """What `status` says of the namespace."""
        (found,) = self.status["namespaces"]
        assert isinstance(found, dict)
        return found

    @property
    def belief(self) -> Belief:
        said = self.namespace
        held = {key: said[key] for key in ("epoch", "version", "digest", "issued", "expires", "flags")}
        return Belief(self.answers, held, disk_of(self.device.folder / "agent.sqlite"))

    def wait_for_report_of(self, attack: str) -> None:
        """Waits until the device's report on the broker says that this is what it refused last."""
        topic = self.publisher.topics.of(DeviceAddress(self.name, "report"))
        heard: dict[str, bytes] = {}

        def is_reported() -> bool:
            rejection = decode_report(heard[topic]).rejection if topic in heard else None
            return rejection is not None and rejection.attack == attack

        with mqtt.connect(self.broker.host, self.broker.port, mqtt.Login()) as connection:
            connection.watch([topic], heard.__setitem__, lambda why: None)
            self.device.wait_until(is_reported, f"reported as {attack}")

    @contextmanager
    def refused(self, attack: str, *, of_namespace: bool = True) -> Iterator[None]:
        """What happens inside is refused by this name, said by this name, and changes nothing.

        `status` tells the refusals of each namespace; a root is of none.
        """
        before, line = self.belief, f"attack={attack} "
        said = self.device.log.count(line)
        yield
        self.device.wait_until(lambda: self.device.log.count(line) > said, f"refused as {attack}")
        assert self.belief == before
        if of_namespace:
            assert self.namespace["last_rejection"]["attack"] == attack
        self.wait_for_report_of(attack)

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """What happens inside never gets as far as being refused, and changes nothing."""
        before, said = self.belief, self.device.log.count("message=refused")
        yield
        # The broker delivers in order: once the device has heard this head, it has had its chance to hear the other.
        self.publisher.now += 1
        self.publisher.sign_again()
        self.publish(self.publisher.head_topic)
        self.device.wait_until(lambda: self.namespace["issued"] != before.held["issued"], "a later head")
        assert self.device.log.count("message=refused") == said
        after = self.belief
        assert after.answers == before.answers
        assert after.held["digest"] == before.held["digest"]
        assert after.held["version"] == before.held["version"]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with start_mosquitto(tmp_path_factory.mktemp("broker"), persistence=True) as started:
        yield started


Begin = Callable[..., Scene]


@pytest.fixture
def begin(broker: Broker, tmp_path: Path) -> Iterator[Begin]:
    """Makes a scene: `options` are those of `provision`, `fields` those of its publisher."""
    scenes: list[Scene] = []

    def make(*options: str, **fields: Any) -> Scene:
        scenes.append(_begin(broker, tmp_path, *options, **fields))
        return scenes[-1]

    yield make
    for scene in scenes:
        scene.device.kill()


@pytest.fixture
def scene(begin: Begin) -> Scene:
    return begin()


@pytest.fixture(scope="module")
def steady_scene(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One scene for all attacks that are a single message: none of them changes anything, so the next finds it as it was."""
    scene = _begin(broker, tmp_path_factory.mktemp("steady"))
    yield scene
    scene.device.kill()


@pytest.fixture
def steady(steady_scene: Scene) -> Iterator[Scene]:
    """The same, after something true, so that a refusal that is like the last one is news again."""
    scene = steady_scene
    publisher = scene.publisher
    publisher.now += 1
    publisher.sign_again()
    scene.publish(publisher.head_topic)
    issued = datetime.fromtimestamp(publisher.now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    scene.device.wait_until(lambda: scene.namespace["issued"] == issued, "a new head")
    scene.wait_for_answers_from("first")
    honest = list(publisher.contents), list(publisher.heads), dict(publisher.retained)
    yield scene
    publisher.contents, publisher.heads, publisher.retained = honest


def _begin(broker: Broker, folder: Path, *options: str, **fields: Any) -> Scene:
    number = next(_NUMBERS)
    simulator = PublisherSimulator(
        environment=Environment(f"attack-{number}"), **({"now": clock.now()} | fields)
    )
    simulator.release(*content("first"))
    anchor = folder / "anchor"
    anchor.write_bytes(simulator.anchor)
    name = DeviceId(f"device-{number}")
    scene = Scene(
        simulator, broker, provision(folder / name, anchor, broker.url, *options, device=name), name
    )
    scene.publish()
    scene.device.start()
    try:
        scene.wait_for_answers_from("first")
        scene.device.wait_for("up to date")
    except BaseException:
        scene.device.kill()
        raise
    return scene


# Who signs


def test_head_forged_by_a_stranger(steady: Scene) -> None:
    publisher = steady.publisher
    publisher.release(*content("evil"), inline=True)
    with steady.refused("unknown_key"):
        steady.put((publisher.head_topic, publisher.head_message(publisher.head, MALLORY)))


def test_head_with_a_broken_signature(steady: Scene) -> None:
    publisher = steady.publisher
    publisher.release(*content("evil"), inline=True)
    with steady.refused("bad_signature"):
        steady.put((publisher.head_topic, flip_last_bit(publisher.retained[publisher.head_topic])))


def test_head_signed_by_a_root_key(steady: Scene) -> None:
    publisher = steady.publisher
    publisher.release(*content("evil"), inline=True)
    with steady.refused("wrong_role"):
        steady.put((publisher.head_topic, publisher.head_message(publisher.head, *publisher.root_keys)))


def test_head_signed_by_a_revoked_key(scene: Scene) -> None:
    publisher = scene.publisher
    publisher.rotate(publisher_keys=[BOB])
    publisher.release(*content("second"))
    scene.publish()
    scene.wait_for_answers_from("second")
    publisher.release(*content("evil"), inline=True)
    with scene.refused("unknown_key"):
        scene.put((publisher.head_topic, publisher.head_message(publisher.head, ALICE)))


@pytest.mark.parametrize(
    ("signers", "attack"), [((ALICE,), "threshold_not_met"), ((ALICE, ALICE), "key_counted_twice")]
)
def test_head_of_one_key_where_two_are_needed(
    begin: Begin, signers: tuple[SigningKey, ...], attack: str
) -> None:
    scene = begin(publisher_keys=(ALICE, BOB), publisher_threshold=2)
    publisher = scene.publisher
    publisher.release(*content("evil"), inline=True)
    message = publisher.sign(
        encode_head(publisher.head), publisher.place(Kind.HEAD), *signers, several=len(signers) > 1
    )
    with scene.refused(attack):
        scene.put((publisher.head_topic, message))


# What is offered when


def test_broker_restored_from_an_old_save(scene: Scene, tmp_path: Path) -> None:
    publisher, broker = scene.publisher, scene.broker
    store, saved = broker.folder / "mosquitto.db", tmp_path / "saved.db"
    broker.stop()
    shutil.copyfile(store, saved)
    broker.start()
    publisher.release(*content("second"))
    scene.publish()
    scene.wait_for_answers_from("second")
    with scene.refused("rollback"):
        broker.stop()
        shutil.copyfile(saved, store)
        broker.start()
    publisher.release(*content("third"))
    scene.publish()
    scene.wait_for_answers_from("third")


def test_older_release_after_a_restart_of_the_agent(scene: Scene) -> None:
    publisher = scene.publisher
    old = publisher.retained[publisher.head_topic]
    publisher.release(*content("second"))
    scene.publish()
    scene.wait_for_answers_from("second")
    before = scene.belief
    assert scene.device.stop() == 0
    scene.put((publisher.head_topic, old))
    scene.device.start()
    scene.device.wait_for("attack=rollback ")
    assert scene.belief == before


def test_newer_head_that_names_an_older_version(scene: Scene) -> None:
    publisher = scene.publisher
    older = publisher.content.offering()
    publisher.release(*content("second"))
    scene.publish()
    scene.wait_for_answers_from("second")
    with scene.ignored():
        publisher.publish_head(publisher.make_head(stable=older))
        scene.publish(publisher.head_topic)


def test_freeze_behind_an_expired_head(steady: Scene) -> None:
    publisher = steady.publisher
    publisher.release(*content("second"), inline=True)
    expired = replace(publisher.head, issued=publisher.now - 8 * DAY, expires=publisher.now - DAY)
    with steady.refused("freeze"):
        steady.put((publisher.head_topic, publisher.head_message(expired)))


def test_freeze_behind_an_expired_root(scene: Scene) -> None:
    publisher = scene.publisher
    publisher.now -= ROOT_LIFE_SECONDS + DAY
    publisher.rotate()
    publisher.now += ROOT_LIFE_SECONDS + DAY
    publisher.release(*content("second"), inline=True)
    scene.publish(publisher.root_topic(2))
    scene.device.wait_for("root admitted")
    with scene.refused("freeze"):
        scene.publish(publisher.head_topic)


def test_two_heads_of_one_number(steady: Scene) -> None:
    publisher = steady.publisher
    twin = replace(publisher.head, stable=publisher.make_content(content("evil")).offering())
    with steady.refused("equivocation"):
        steady.put((publisher.head_topic, publisher.head_message(twin)))


def test_two_contents_of_one_version(steady: Scene) -> None:
    publisher = steady.publisher
    twin = publisher.make_content(content("evil"), version=publisher.content.version)
    with steady.refused("equivocation"):
        steady.put(
            (publisher.head_topic, publisher.head_message(publisher.make_head(stable=twin.offering())))
        )


def test_fast_forward_with_a_stolen_key_and_the_recovery(scene: Scene) -> None:
    publisher = scene.publisher
    publisher.release(*content("evil"), version=NUMBER_MAX)
    last = replace(publisher.head, sequence=HeadSequence(NUMBER_MAX))
    publisher.retained[publisher.head_topic] = publisher.head_message(last)
    scene.publish()
    scene.wait_for_answers_from("evil")
    publisher.rotate(publisher_keys=[BOB])
    publisher.release(*content("recovered"))
    scene.publish()
    scene.wait_for_answers_from("recovered")
    with scene.refused("unknown_key"):
        scene.put((publisher.head_topic, publisher.head_message(last, ALICE)))


def test_fast_forward_of_time_with_a_stolen_key_and_the_recovery(scene: Scene) -> None:
    publisher = scene.publisher
    publisher.release(*content("evil"))
    endless = replace(publisher.head, issued=NUMBER_MAX, expires=NUMBER_MAX)
    publisher.publish_head(replace(endless, sequence=HeadSequence(endless.sequence + 1)))
    scene.publish()
    scene.wait_for_answers_from("evil")
    assert scene.status["clock_is_trusted"] is False
    expired = replace(endless, issued=publisher.now - 8 * DAY, expires=publisher.now - DAY)
    publisher.publish_head(replace(expired, sequence=HeadSequence(endless.sequence + 2)))
    scene.publish(publisher.head_topic)
    scene.device.wait_for("expiry was not checked")

    publisher.rotate(publisher_keys=[BOB])
    publisher.release(*content("recovered"))
    scene.publish()
    scene.wait_for_answers_from("recovered")
    assert scene.status["clock_is_trusted"] is True
    assert scene.namespace["freshness"] == "fresh"
    publisher.release(*content("late"), inline=True)
    expired = replace(publisher.head, issued=expired.issued, expires=expired.expires)
    with scene.refused("freeze"):
        scene.put((publisher.head_topic, publisher.head_message(expired)))
    with scene.refused("unknown_key"):
        scene.put((publisher.head_topic, publisher.head_message(endless, ALICE)))


# Where


def test_head_of_another_namespace(steady: Scene) -> None:
    publisher = steady.publisher
    kiosk = PublisherSimulator(
        environment=publisher.environment, namespace=Namespace("kiosk"), now=publisher.now
    )
    for name in ("first", "evil", "evil again"):
        kiosk.release(*content(name))
    with steady.refused("bad_signature"):
        steady.put((publisher.head_topic, kiosk.retained[kiosk.head_topic]))


def test_head_of_another_environment(steady: Scene) -> None:
    publisher = steady.publisher
    staging = PublisherSimulator(environment=PRODUCTION, now=publisher.now)
    for name in ("first", "evil"):
        staging.release(*content(name))
    with steady.refused("bad_signature"):
        steady.put((publisher.head_topic, staging.retained[staging.head_topic]))


def test_root_is_left_out(scene: Scene) -> None:
    publisher = scene.publisher
    publisher.rotate(root_keys=[SigningKey("root-b")])
    publisher.rotate(publisher_keys=[BOB])
    third = publisher.retained[publisher.root_topic(3)]
    with scene.refused("unknown_key", of_namespace=False):
        scene.put((publisher.root_topic(3), third), (publisher.root_topic(2), third))


def test_root_of_a_later_number_at_the_place_of_the_next(scene: Scene) -> None:
    publisher = scene.publisher
    third = publisher.root_message(replace(publisher.root, number=3))
    with scene.refused("replayed", of_namespace=False):
        scene.put((publisher.root_topic(3), third), (publisher.root_topic(2), third))


def test_empty_retained_head(steady: Scene) -> None:
    with steady.refused("empty_payload"):
        steady.put((steady.publisher.head_topic, b""))


# Content


def begin_fetch(scene: Scene, *without: str) -> None:
    """Publishes the last release but for these topics, so that the device awaits them."""
    retained = scene.publisher.retained
    scene.publish(*(at for at in retained if at not in {*without, scene.publisher.head_topic}))
    scene.publish(scene.publisher.head_topic)


def test_parts_of_two_snapshots(scene: Scene) -> None:
    publisher = scene.publisher
    publisher.part_bytes = 40
    first, *others = publisher.make_parts(publisher.release(*content("second"), delta=False))
    assert others
    topic = publisher.part_topic(first.version, first.part)
    begin_fetch(scene, topic)
    with scene.refused("mixed_versions"):
        scene.put((topic, publisher.part_message(replace(first, parts=first.parts + 1))))
    scene.publish(topic)
    scene.wait_for_answers_from("second")


def test_part_of_the_former_version(scene: Scene) -> None:
    publisher = scene.publisher
    former = publisher.retained[publisher.part_topic(1)]
    publisher.release(*content("second"), delta=False)
    begin_fetch(scene, publisher.part_topic(2))
    with scene.refused("replayed"):
        scene.put((publisher.part_topic(2), former))
    scene.publish(publisher.part_topic(2))
    scene.wait_for_answers_from("second")


def test_truncated_part(scene: Scene) -> None:
    publisher = scene.publisher
    (whole,) = publisher.make_parts(publisher.release(*content("second"), delta=False))
    topic = publisher.part_topic(2)
    begin_fetch(scene, topic)
    with scene.refused("malformed"):
        scene.put((topic, publisher.part_message(replace(whole, body=whole.body[:-4]))))


def test_delta_with_a_wrong_result(scene: Scene) -> None:
    publisher = scene.publisher
    before = publisher.content
    after = publisher.release(*content("second"))
    evil = deflate(encode_delta([], [encode_record(content("evil")[0])]))
    publisher.retained[publisher.delta_topic(2, 1)] = publisher.delta_message(
        publisher.make_delta(after, before, evil)
    )
    with scene.refused("digest_mismatch"):
        begin_fetch(scene, publisher.part_topic(2))
    scene.publish(publisher.part_topic(2))
    scene.wait_for_answers_from("second")


def test_delta_from_another_version(scene: Scene) -> None:
    publisher = scene.publisher
    before = publisher.content
    after = publisher.release(*content("second"))
    body = publisher.delta_body(before, after)
    other = replace(publisher.make_delta(after, before, body), from_version=after.version)
    publisher.retained[publisher.delta_topic(2, 1)] = publisher.delta_message(other)
    with scene.refused("replayed"):
        begin_fetch(scene, publisher.part_topic(2))
    scene.publish(publisher.part_topic(2))
    scene.wait_for_answers_from("second")


def offer(scene: Scene, body: bytes) -> None:
    """A head that truly names a snapshot of these bytes; the part is there."""
    publisher = scene.publisher
    next_content = publisher.make_content(content("second"))
    part = replace(publisher.make_parts(next_content)[0], body=body)
    offering = Offering(next_content.version, next_content.digest, len(body), 1)
    head = publisher.head_message(publisher.make_head(stable=offering))
    scene.put(
        (publisher.part_topic(part.version), publisher.part_message(part)), (publisher.head_topic, head)
    )


def test_compression_bomb(scene: Scene) -> None:
    record = bytes(RECORD_MAX_BYTES)
    bomb = deflate(encode([record] * (CONTENT_MAX_BYTES // len(record) + 1)))
    with scene.refused("compression_bomb"):
        offer(scene, bomb)


def test_snapshot_of_another_content(scene: Scene) -> None:
    publisher = scene.publisher
    evil = publisher.make_content(content("evil"))
    with scene.refused("digest_mismatch"):
        offer(scene, evil.parts[0])


def test_more_bytes_than_the_head_announced(scene: Scene) -> None:
    publisher = scene.publisher
    (whole,) = publisher.make_parts(publisher.release(*content("second"), delta=False))
    topic = publisher.part_topic(2)
    begin_fetch(scene, topic)
    with scene.refused("too_large"):
        scene.put((topic, publisher.part_message(replace(whole, body=bytes(100_000)))))
    scene.publish(topic)
    scene.wait_for_answers_from("second")


def test_endless_message_is_kept_back_by_the_broker(scene: Scene) -> None:
    with scene.ignored():
        scene.put((scene.publisher.head_topic, bytes(10 * MESSAGE_MAX_BYTES)))
    assert "the broker sent a packet of" not in scene.device.log


def test_endless_message_of_a_broker_of_mqtt_3(begin: Begin) -> None:
    scene = begin("--protocol", "3.1.1")
    before = scene.belief
    scene.put((scene.publisher.head_topic, bytes(10 * MESSAGE_MAX_BYTES)))
    scene.device.wait_for("the broker sent a packet of")
    assert scene.belief == before
    scene.publisher.release(*content("second"))
    scene.publish()
    scene.wait_for_answers_from("second")


# Bytes


def payload_of_next_head(publisher: PublisherSimulator) -> bytes:
    return encode_head(publisher.make_head(stable=publisher.content.offering()))


def doubled_key(payload: bytes) -> bytes:
    return bytes([payload[0] + 1]) + b"\x01\x01" + payload[1:]


PAYLOADS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "trailing bytes": (lambda payload: payload + b"\x00", "trailing_bytes"),
    "duplicate map keys": (doubled_key, "not_deterministic"),
    "integer longer than needed": (
        lambda payload: payload.replace(b"\x01\x01\x02", b"\x01\x18\x01\x02", 1),
        "not_deterministic",
    ),
    "nested deep": (lambda payload: b"\xa1\x18\x63" + b"\x81" * 50_000 + b"\x00", "too_deep"),
    "a float": (
        lambda payload: cbor2.dumps({**cbor2.loads(payload), 99: 1.5}, canonical=True),
        "not_deterministic",
    ),
    "cut short": (lambda payload: payload[:-1], "malformed"),
    "a later format": (
        lambda payload: cbor2.dumps({**cbor2.loads(payload), 1: 2}, canonical=True),
        "unknown_format",
    ),
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_payload_that_a_stolen_key_signed(steady: Scene, name: str) -> None:
    publisher = steady.publisher
    lie, attack = PAYLOADS[name]
    honest = payload_of_next_head(publisher)
    assert lie(honest) != honest
    with steady.refused(attack):
        steady.put((publisher.head_topic, publisher.sign(lie(honest), publisher.place(Kind.HEAD))))


_ALG, _TYPE, _KEY = b"\x01\x27", b"\x03" + encode(content_type(Kind.HEAD)), b"\x04" + encode(ALICE.id)
HEADERS: dict[str, tuple[bytes, dict[int, object]]] = {
    "unknown critical header": (b"\xa4" + _ALG + b"\x02\x81\x18\x63" + _TYPE + _KEY, {}),
    "duplicate label": (b"\xa4" + b"\x01\x26" + _ALG + _TYPE + _KEY, {}),
    "another algorithm": (b"\xa3" + b"\x01\x26" + _TYPE + _KEY, {}),
    "alg in the wrong bucket": (b"\xa2" + _TYPE + _KEY, {1: -8}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_header_outside_the_profile_is_refused_though_its_signature_fits(steady: Scene, name: str) -> None:
    publisher = steady.publisher
    header, unprotected = HEADERS[name]
    place, payload = publisher.place(Kind.HEAD), payload_of_next_head(publisher)
    aad = encode(["flagcast", 1, place.environment, place.namespace, place.kind.value])
    signature = ALICE.sign(sig_structure(header, None, aad, payload))
    with steady.refused("header_not_allowed"):
        steady.put((publisher.head_topic, envelope_of(header, unprotected, payload, signature)))


def test_bytes_after_the_message(steady: Scene) -> None:
    publisher = steady.publisher
    publisher.release(*content("evil"), inline=True)
    with steady.refused("trailing_bytes"):
        steady.put((publisher.head_topic, publisher.retained[publisher.head_topic] + b"\x00"))
