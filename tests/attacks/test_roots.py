"""Attacks on who may sign."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import pytest
from agent_shell import AgentShell, ignored, refused
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from publisher_simulator import DAY, NOW, ROOT_LIFE_SECONDS, PublisherSimulator, SigningKey, flip_last_bit
from releases import EVIL, OFF, ON

from flagcast_agent.sync.events import Subscribe, Subscribed
from flagcast_agent.sync.fetches import FETCH_PATIENCE_SECONDS
from flagcast_agent.sync.subscriptions import EARLY_HEADS_MAX, EARLY_HEADS_MAX_BYTES
from flagcast_shared.envelope import seal, to_sign
from flagcast_shared.errors import BadSignature
from flagcast_shared.ids import Environment, Epoch, KeyId
from flagcast_shared.limits import ROOT_MAX_BYTES
from flagcast_shared.messages import InlineDelta, encode_head
from flagcast_shared.root import PublicKey, Quorum, Role, Root, encode_root, root_place
from flagcast_shared.topics import Kind
from flagcast_shared.trust import clock_is_trusted

ALICE = SigningKey("root-a")
CAROL = SigningKey("root-c")
MALLORY = SigningKey("mallory")


KEYS = [[key.raw, key.name] for key in PublisherSimulator().root.keys.values()]


def second_root(publisher: PublisherSimulator) -> Root:
    """A root 2 that differs from root 1 in its number alone."""
    return replace(publisher.root, number=2)


def test_root_signed_by_a_stranger(agent: AgentShell, publisher: PublisherSimulator) -> None:
    mallorys = Quorum(frozenset([MALLORY.id]), 1)
    taken_over = replace(
        second_root(publisher),
        epoch=Epoch(2),
        keys={MALLORY.id: MALLORY.public},
        roles={Role.ROOT: mallorys, Role.PUBLISHER: mallorys},
    )
    with refused(agent, "unknown_key"):
        agent.deliver(publisher.root_topic(2), publisher.root_message(taken_over, signers=[MALLORY]))


def test_root_signed_by_a_publisher(agent: AgentShell, publisher: PublisherSimulator) -> None:
    message = publisher.root_message(second_root(publisher), signers=publisher.publisher_keys)
    with refused(agent, "wrong_role"):
        agent.deliver(publisher.root_topic(2), message)


def test_root_signed_by_the_old_keys_alone(agent: AgentShell, publisher: PublisherSimulator) -> None:
    handed_over = replace(
        second_root(publisher),
        keys={**publisher.root.keys, CAROL.id: CAROL.public},
        roles={**publisher.root.roles, Role.ROOT: Quorum(frozenset([CAROL.id]), 1)},
    )
    with refused(agent, "threshold_not_met"):
        agent.deliver(publisher.root_topic(2), publisher.root_message(handed_over, signers=[ALICE]))


def test_root_signed_by_the_new_keys_alone(agent: AgentShell, publisher: PublisherSimulator) -> None:
    handed_over = replace(
        second_root(publisher),
        keys={**publisher.root.keys, CAROL.id: CAROL.public},
        roles={**publisher.root.roles, Role.ROOT: Quorum(frozenset([CAROL.id]), 1)},
    )
    with refused(agent, "unknown_key"):
        agent.deliver(publisher.root_topic(2), publisher.root_message(handed_over, signers=[CAROL]))


def test_root_signed_by_too_few_of_the_old_keys(tmp_path: Path) -> None:
    publisher = PublisherSimulator(root_keys=(ALICE, SigningKey("root-b")), root_threshold=2)
    publisher.release(OFF)
    agent = AgentShell(tmp_path / "agent.db", publisher)
    agent.catch_up()
    weaker = replace(
        second_root(publisher),
        roles={**publisher.root.roles, Role.ROOT: Quorum(frozenset([ALICE.id]), 1)},
    )
    with refused(agent, "threshold_not_met"):
        agent.deliver(publisher.root_topic(2), publisher.root_message(weaker, signers=[ALICE]))


def test_root_signed_twice_by_one_key(tmp_path: Path) -> None:
    publisher = PublisherSimulator(root_keys=(ALICE, SigningKey("root-b")), root_threshold=2)
    publisher.release(OFF)
    agent = AgentShell(tmp_path / "agent.db", publisher)
    agent.catch_up()
    message = publisher.root_message(second_root(publisher), signers=[ALICE, ALICE])
    with refused(agent, "key_counted_twice"):
        agent.deliver(publisher.root_topic(2), message)


def test_new_root_key_counted_twice(agent: AgentShell, publisher: PublisherSimulator) -> None:
    stronger = replace(
        second_root(publisher),
        keys={**publisher.root.keys, CAROL.id: CAROL.public},
        roles={**publisher.root.roles, Role.ROOT: Quorum(frozenset([ALICE.id, CAROL.id]), 2)},
    )
    message = publisher.root_message(stronger, signers=[ALICE, CAROL, CAROL])
    with refused(agent, "key_counted_twice"):
        agent.deliver(publisher.root_topic(2), message)


def test_root_cosigned_by_a_stranger(agent: AgentShell, publisher: PublisherSimulator) -> None:
    message = publisher.root_message(second_root(publisher), signers=[ALICE, MALLORY])
    with refused(agent, "unknown_key"):
        agent.deliver(publisher.root_topic(2), message)


def test_root_with_a_broken_signature(agent: AgentShell, publisher: PublisherSimulator) -> None:
    message = publisher.root_message(second_root(publisher))
    with refused(agent, "bad_signature"):
        agent.deliver(publisher.root_topic(2), message[:-1] + bytes([message[-1] ^ 1]))


def test_root_is_skipped(agent: AgentShell, publisher: PublisherSimulator) -> None:
    third = replace(publisher.root, number=3)
    with refused(agent, "root_skipped"):
        agent.deliver(publisher.root_topic(3), publisher.root_message(third))


def test_root_of_a_number_beyond_all_bounds(agent: AgentShell, publisher: PublisherSimulator) -> None:
    far = replace(publisher.root, number=2**62)
    with refused(agent, "too_large"):
        agent.deliver(publisher.root_topic(2**62), publisher.root_message(far))


def test_older_root_at_the_place_of_the_next(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.rotate()
    publisher.sign_again()
    agent.hear()
    with refused(agent, "replayed"):
        agent.deliver(publisher.root_topic(3), publisher.retained[publisher.root_topic(1)])


def test_older_root_at_its_own_place(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.rotate()
    agent.hear()
    assert agent.sync.trusted.root.number == 2
    with ignored(agent):
        agent.deliver(publisher.root_topic(1), publisher.anchor)


def test_root_of_another_environment(agent: AgentShell, publisher: PublisherSimulator) -> None:
    staging = PublisherSimulator(environment=Environment("staging"))
    staging.rotate()
    with refused(agent, "bad_signature"):
        agent.deliver(publisher.root_topic(2), staging.retained[staging.root_topic(2)])


def test_root_that_names_another_environment(agent: AgentShell, publisher: PublisherSimulator) -> None:
    lying = replace(second_root(publisher), environment=Environment("staging"))
    message = publisher.sign(encode_root(lying), root_place(publisher.environment), ALICE, several=True)
    with refused(agent, "replayed"):
        agent.deliver(publisher.root_topic(2), message)


@pytest.mark.parametrize("epoch", [2, 7])
def test_root_starts_an_epoch_without_new_publisher_keys(
    agent: AgentShell, publisher: PublisherSimulator, epoch: int
) -> None:
    jumped = replace(second_root(publisher), epoch=Epoch(epoch))
    with refused(agent, "epoch_mismatch"):
        agent.deliver(publisher.root_topic(2), publisher.root_message(jumped))


def test_root_changes_publisher_keys_within_an_epoch(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    slipped = replace(
        second_root(publisher),
        keys={**publisher.root.keys, MALLORY.id: MALLORY.public},
        roles={**publisher.root.roles, Role.PUBLISHER: Quorum(frozenset([MALLORY.id]), 1)},
    )
    with refused(agent, "epoch_mismatch"):
        agent.deliver(publisher.root_topic(2), publisher.root_message(slipped))


@pytest.mark.parametrize("threshold", [0, 2])
def test_root_whose_threshold_is_nothing_or_out_of_reach(
    agent: AgentShell, publisher: PublisherSimulator, threshold: int
) -> None:
    publishers = publisher.root.roles[Role.PUBLISHER].keys
    unreachable = replace(
        second_root(publisher),
        roles={**publisher.root.roles, Role.PUBLISHER: Quorum(publishers, threshold)},
    )
    with refused(agent, "malformed"):
        agent.deliver(publisher.root_topic(2), publisher.root_message(unreachable))


def test_root_role_of_a_key_that_it_does_not_list(agent: AgentShell, publisher: PublisherSimulator) -> None:
    dangling = replace(
        second_root(publisher),
        roles={**publisher.root.roles, Role.PUBLISHER: Quorum(frozenset([KeyId(bytes(8))]), 1)},
    )
    with refused(agent, "malformed"):
        agent.deliver(publisher.root_topic(2), publisher.root_message(dangling))


def test_root_of_endless_keys(agent: AgentShell, publisher: PublisherSimulator) -> None:
    crowd = [PublicKey(number.to_bytes(32, "big"), "n" * 200) for number in range(80)]
    endless = replace(second_root(publisher), keys={key.id: key for key in crowd})
    message = publisher.root_message(endless)
    assert len(message) > 16_384
    with refused(agent, "too_large"):
        agent.deliver(publisher.root_topic(2), message)


def signed_fields(publisher: PublisherSimulator, change: Mapping[int, object]) -> bytes:
    """A root 2 with other fields, signed as it has to be."""
    fields = cbor2.loads(encode_root(second_root(publisher)))
    payload = cbor2.dumps({**fields, **change}, canonical=True)
    return publisher.sign(payload, root_place(publisher.environment), ALICE, several=True)


def test_root_with_a_field_of_a_later_release_is_admitted(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    agent.deliver(publisher.root_topic(2), signed_fields(publisher, {99: b""}))
    assert agent.sync.reporting.rejections == {}
    assert agent.sync.trusted.root.number == 2


def test_root_of_endless_bytes(agent: AgentShell, publisher: PublisherSimulator) -> None:
    with refused(agent, "too_large"):
        agent.deliver(publisher.root_topic(2), signed_fields(publisher, {99: bytes(ROOT_MAX_BYTES)}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(8, NOW - 1, id="expires before it is issued"),
        pytest.param(
            9,
            [*KEYS, *([SigningKey(str(number)).public.raw, ""] for number in range(31))],
            id="keys without end",
        ),
        # With a zero byte more it would be a point of the curve.
        pytest.param(9, [*KEYS, [b"\x03" + bytes(30), ""]], id="key of 31 bytes"),
        pytest.param(9, [[bytes(32)]], id="key without a name"),
        pytest.param(9, [["x" * 32, ""]], id="key that is a text"),
        pytest.param(10, [], id="roles that are no map"),
        pytest.param(10, {}, id="no roles"),
        pytest.param(10, {"root": {1: 1, 2: [ALICE.id]}}, id="nobody publishes"),
        pytest.param(
            10,
            {role: {1: 1, 2: [ALICE.id] * 33} for role in ("root", "publisher")},
            id="a role of endless keys",
        ),
    ],
)
def test_root_of_a_wrong_shape(
    agent: AgentShell, publisher: PublisherSimulator, field: int, value: object
) -> None:
    with refused(agent, "malformed", "too_large"):
        agent.deliver(publisher.root_topic(2), signed_fields(publisher, {field: value}))


ANYBODYS_KEY = b"\x01" + bytes(31)
"""The neutral point of the curve, whose order is 1."""
ANYBODYS_SIGNATURE = ANYBODYS_KEY + bytes(32)
"""Fits every message under that key: R is the neutral point, and S is 0."""


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(ANYBODYS_KEY, id="small order"),
        pytest.param((2**255 - 16).to_bytes(32, "little"), id="not canonical"),
        pytest.param(b"\x02" + bytes(31), id="no point"),
    ],
)
def test_root_with_a_key_that_may_not_count(
    agent: AgentShell, publisher: PublisherSimulator, raw: bytes
) -> None:
    with refused(agent, "malformed"):
        agent.deliver(publisher.root_topic(2), signed_fields(publisher, {9: [*KEYS, [raw, "anybody"]]}))


def test_head_that_nobody_signed_under_a_key_that_is_anybodys(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    anybody = PublicKey(ANYBODYS_KEY, "anybody")
    publishers = Quorum(frozenset([anybody.id]), 1)
    opened_up = replace(
        second_root(publisher),
        epoch=Epoch(2),
        keys={**publisher.root.keys, anybody.id: anybody},
        roles={**publisher.root.roles, Role.PUBLISHER: publishers},
    )
    publisher.release(EVIL)
    place = publisher.place(Kind.HEAD)
    head = encode_head(replace(publisher.head, epoch=Epoch(2)))
    unsigned = seal(head, place, [(anybody.id, ANYBODYS_SIGNATURE)], several=False)
    Ed25519PublicKey.from_public_bytes(ANYBODYS_KEY).verify(
        ANYBODYS_SIGNATURE, to_sign(head, place, anybody.id, several=False)
    )
    with refused(agent, "malformed"):
        agent.deliver(publisher.root_topic(2), publisher.root_message(opened_up))
    with refused(agent, "unknown_key"):
        agent.deliver(publisher.head_topic, unsigned)


def test_root_in_an_envelope_for_one_signer(agent: AgentShell, publisher: PublisherSimulator) -> None:
    payload, place = encode_root(second_root(publisher)), root_place(publisher.environment)
    with refused(agent, "malformed"):
        agent.deliver(publisher.root_topic(2), publisher.sign(payload, place, ALICE, several=False))


def test_root_that_nobody_signed_is_not_read(agent: AgentShell, publisher: PublisherSimulator) -> None:
    message = publisher.sign(
        b"\x81" * 10_000 + b"\x00", root_place(publisher.environment), MALLORY, several=True
    )
    with refused(agent, "unknown_key"):
        agent.deliver(publisher.root_topic(2), message)


def test_anchor_that_was_damaged(publisher: PublisherSimulator, tmp_path: Path) -> None:
    publisher.retained[publisher.root_topic(1)] = flip_last_bit(publisher.anchor)
    with pytest.raises(BadSignature):
        AgentShell(tmp_path / "new.db", publisher)


def test_clock_behind_the_anchor_is_found_out(publisher: PublisherSimulator, tmp_path: Path) -> None:
    agent = AgentShell(tmp_path / "new.db", publisher)
    assert not clock_is_trusted(agent.sync.trusted, publisher.root.issued - 1)
    agent.close()


def test_clock_behind_the_last_root_is_found_out_also_after_a_restart(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.now += DAY
    publisher.rotate()
    agent.hear()
    assert not clock_is_trusted(agent.sync.trusted, publisher.now - 1)
    agent.close()
    reborn = AgentShell(agent.path, publisher)
    assert reborn.store.load().floor.time == publisher.now
    reborn.close()


def test_empty_root(agent: AgentShell, publisher: PublisherSimulator) -> None:
    with refused(agent, "empty_payload"):
        agent.deliver(publisher.root_topic(2), b"")


def test_expired_root_admits_no_more_heads(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.now += ROOT_LIFE_SECONDS
    agent.now = publisher.now + 60
    publisher.sign_again()
    with refused(agent, "freeze"):
        agent.hear()


def test_a_root_may_expire_once_another_one_has_followed(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.now += ROOT_LIFE_SECONDS
    agent.now = publisher.now + 60
    publisher.rotate()
    publisher.release(ON)
    agent.hear()
    assert agent.evaluator.knowledge(publisher.namespace).version == 2


def test_head_by_a_key_that_is_revoked_before_its_content_arrives(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(EVIL, delta=False)
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    assert agent.sync.trusted.pending
    content = publisher.content
    publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
    agent.deliver(publisher.root_topic(2), publisher.retained[publisher.root_topic(2)])
    assert not agent.sync.trusted.pending
    with ignored(agent):  # whoever signs the content now: nobody asked for it
        part = publisher.make_parts(content)[0]
        agent.deliver(publisher.part_topic(2), publisher.part_message(part))


def test_head_by_a_key_that_only_a_root_on_the_way_lists(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    before = publisher.content
    publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
    publisher.rotate(publisher_keys=[SigningKey("stolen")])
    content = publisher.make_content([EVIL])
    inline = InlineDelta(before.version, content.version, publisher.delta_body(before, content))
    stolen = publisher.head_message(publisher.make_head(stable=content.offering(), inline=inline))
    publisher.rotate(publisher_keys=[SigningKey("publisher-c")])
    agent.is_mute = True  # the broker's answers come by hand, in the order of one connection
    agent.reconnect()
    agent.handle(Subscribed((publisher.root_topic(2), publisher.head_topic)))
    for number in (2, 3):
        agent.deliver(publisher.root_topic(number), publisher.retained[publisher.root_topic(number)])
    assert agent.sync.trusted.root.number == 3
    with ignored(agent):
        agent.deliver(publisher.head_topic, stolen)
    agent.deliver(publisher.root_topic(4), publisher.retained[publisher.root_topic(4)])
    with ignored(agent):
        agent.deliver(publisher.head_topic, stolen)
    heads = agent.handle(Subscribed((publisher.root_topic(5),)))
    assert Subscribe((publisher.head_topic,)) in heads
    with refused(agent, "unknown_key"):
        agent.deliver(publisher.head_topic, stolen)


def test_roots_walked_are_persisted_one_by_one(agent: AgentShell, publisher: PublisherSimulator) -> None:
    for name in ("root-c", "root-d", "root-e"):
        publisher.rotate(root_keys=[SigningKey(name)])
    agent.fail_persisting = True
    before = agent.belief()
    agent.hear()
    assert agent.belief() == before, "a root that is not on disk is not in force"
    agent.fail_persisting = False
    agent.reconnect()
    agent.settle()
    assert agent.sync.trusted.root.number == 4
    again = agent.store.load()
    assert again.root_data == publisher.retained[publisher.root_topic(4)]


def revoked_on_the_broker(publisher: PublisherSimulator) -> tuple[bytes, bytes]:
    """The head that a stolen key signs at the last moment, and the head of the epoch that revokes it."""
    stolen = publisher.publisher_keys
    publisher.release(EVIL)
    evil = publisher.head_message(publisher.head, *stolen)
    publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
    publisher.release(ON, version=1)
    return evil, publisher.retained[publisher.head_topic]


def held_digest(agent: AgentShell) -> bytes:
    return agent.sync.trusted.holdings[agent.publisher.namespace].digest


@pytest.mark.parametrize("is_reversed", [False, True], ids=["root first", "head first"])
def test_head_of_a_revoked_key_beside_the_root_that_revokes_it(
    agent: AgentShell, publisher: PublisherSimulator, *, is_reversed: bool
) -> None:
    # The broker still holds the thief's head and sends what it retains in either order, all of it before it answers.
    evil, honest = revoked_on_the_broker(publisher)
    held = held_digest(agent)
    agent.is_mute = True
    agent.reconnect()
    root = publisher.root_topic(2)
    messages = [(root, publisher.retained[root]), (publisher.head_topic, evil)]
    for topic, payload in reversed(messages) if is_reversed else messages:
        agent.deliver(topic, payload)
    assert agent.sync.trusted.root.number == 2
    assert held_digest(agent) == held
    agent.handle(Subscribed((publisher.root_topic(3),)))
    assert Subscribe((publisher.head_topic,)) in agent.effects
    with refused(agent, "unknown_key"):
        agent.deliver(publisher.head_topic, evil)
    agent.deliver(publisher.head_topic, honest)
    agent.deliver(publisher.part_topic(1), publisher.retained[publisher.part_topic(1)])
    assert held_digest(agent) == publisher.content.digest


def test_head_waits_for_the_answer_about_the_next_root(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(ON, inline=True)
    agent.is_mute = True
    agent.reconnect()
    with ignored(agent):
        agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
        agent.handle(Subscribed((publisher.head_topic,)))
    agent.handle(Subscribed((publisher.root_topic(2),)))
    assert held_digest(agent) == publisher.content.digest
    assert not agent.sync.why_not_current()


def test_later_head_of_those_that_wait(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(ON, inline=True)
    older = publisher.retained[publisher.head_topic]
    publisher.sign_again()
    agent.is_mute = True
    agent.reconnect()
    for message in (older, publisher.retained[publisher.head_topic]):
        agent.deliver(publisher.head_topic, message)
    agent.handle(Subscribed((publisher.root_topic(2), publisher.head_topic)))
    assert agent.sync.reporting.rejections == {}
    assert agent.sync.trusted.holdings[publisher.namespace].head == publisher.head


def test_heads_that_wait_without_end(agent: AgentShell, publisher: PublisherSimulator) -> None:
    agent.is_mute = True
    agent.reconnect()
    for size in (EARLY_HEADS_MAX_BYTES, EARLY_HEADS_MAX_BYTES + 1):
        agent.deliver(publisher.head_topic, bytes(size))
        assert sum(len(each.payload) for each in agent.sync.subscriptions.early) <= EARLY_HEADS_MAX_BYTES
    for _ in range(2 * EARLY_HEADS_MAX):
        agent.deliver(publisher.head_topic, b"")
    assert len(agent.sync.subscriptions.early) == EARLY_HEADS_MAX
    # Nothing is lost: the heads are asked for again.
    agent.is_mute = False
    agent.handle(Subscribed((publisher.root_topic(2), publisher.head_topic)))
    publisher.release(ON)
    agent.tick(FETCH_PATIENCE_SECONDS)
    agent.settle()
    assert held_digest(agent) == publisher.content.digest


def test_garbage_does_not_take_the_place_of_a_head_that_waits(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(ON, inline=True)
    agent.is_mute = True
    agent.reconnect()
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    agent.deliver(publisher.head_topic, b"garbage")
    agent.handle(Subscribed((publisher.root_topic(2), publisher.head_topic)))
    assert held_digest(agent) == publisher.content.digest
    assert agent.sync.reporting.rejections == {"malformed": 1}
    assert not agent.sync.why_not_current()


def test_head_held_is_no_refusal_after_its_key_was_revoked(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    # The broker offers the head of the former epoch until the publisher has signed everything anew.
    former = publisher.retained[publisher.head_topic]
    publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
    agent.deliver(publisher.root_topic(2), publisher.retained[publisher.root_topic(2)])
    with ignored(agent):
        agent.deliver(publisher.head_topic, former)
    assert agent.sync.why_not_current() == (
        f"{publisher.namespace}: the head was not taken: it was signed before the publisher's keys were rotated",
    )
    publisher.release(ON, version=1)
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    agent.settle()
    assert not agent.sync.why_not_current()


def test_refusal_leaves_the_report_once_something_was_admitted(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    with refused(agent, "bad_signature"):
        agent.deliver(publisher.head_topic, flip_last_bit(publisher.retained[publisher.head_topic]))
    publisher.release(ON)
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    agent.settle()
    assert agent.reports[-1].rejection is None
    assert sum(agent.sync.reporting.rejections.values()) == 1
    with refused(agent, "malformed"):
        agent.deliver(publisher.root_topic(2), b"garbage")
    publisher.sign_again()
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    rejection = agent.reports[-1].rejection
    assert rejection is not None, "what was refused in another place is still reported"
    assert rejection.namespace == ""
    with refused(agent, "bad_signature"):
        agent.deliver(publisher.head_topic, flip_last_bit(publisher.retained[publisher.head_topic]))


def test_second_root_of_one_number(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.rotate()
    agent.deliver(publisher.root_topic(2), publisher.retained[publisher.root_topic(2)])
    twin = replace(publisher.root, expires=publisher.root.expires + DAY)
    with refused(agent, "equivocation"):
        agent.deliver(publisher.root_topic(2), publisher.root_message(twin, signers=[ALICE]))
    with ignored(agent):
        agent.deliver(publisher.root_topic(2), publisher.retained[publisher.root_topic(2)])


def test_second_root_of_one_number_that_the_root_keys_did_not_sign(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    # Anybody could raise the alarm otherwise.
    publisher.rotate()
    agent.deliver(publisher.root_topic(2), publisher.retained[publisher.root_topic(2)])
    twin = replace(publisher.root, expires=publisher.root.expires + DAY)
    for message in (
        publisher.root_message(twin, signers=[MALLORY]),
        flip_last_bit(publisher.root_message(twin, signers=[ALICE])),
    ):
        with ignored(agent):
            agent.deliver(publisher.root_topic(2), message)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda root: {9: [*root[9], root[9][0]]}, id="a key twice"),
        pytest.param(lambda root: {9: [*root[9], [root[9][0][0], "other name"]]}, id="a key by two names"),
        pytest.param(
            lambda root: {10: root[10] | {"publisher": {1: 1, 2: root[10]["publisher"][2] * 2}}},
            id="a key id twice in a role",
        ),
    ],
)
def test_root_that_names_a_key_twice(
    agent: AgentShell, publisher: PublisherSimulator, change: Callable[[Any], Mapping[int, object]]
) -> None:
    fields = cbor2.loads(encode_root(second_root(publisher)))
    with refused(agent, "malformed"):
        agent.deliver(publisher.root_topic(2), signed_fields(publisher, change(fields)))
