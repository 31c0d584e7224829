"""Messages signed by nobody, by the wrong ones, or by too few."""

from dataclasses import replace
from pathlib import Path

import pytest
from agent_shell import AgentShell, refused
from publisher_simulator import PublisherSimulator, SigningKey, flip_last_bit
from releases import EVIL, ON

from flagcast_shared.envelope import seal, to_sign
from flagcast_shared.ids import Sequence
from flagcast_shared.messages import Head, encode_head
from flagcast_shared.topics import Kind

MALLORY = SigningKey("mallory")
BOB = SigningKey("publisher-b")


def next_head(publisher: PublisherSimulator) -> Head:
    """What the publisher could sign next: the old content under a new number."""
    return replace(publisher.head, sequence=Sequence(publisher.head.sequence + 1))


def test_head_with_a_broken_signature(agent: AgentShell, publisher: PublisherSimulator) -> None:
    forged = flip_last_bit(publisher.head_message(next_head(publisher)))
    with refused(agent, "bad_signature"):
        agent.deliver(publisher.head_topic, forged)


def test_head_whose_payload_was_changed_after_signing(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    head = next_head(publisher)
    changed = publisher.head_message(head).replace(head.stable.digest, bytes(32))
    with refused(agent, "bad_signature"):
        agent.deliver(publisher.head_topic, changed)


def test_head_signed_by_a_stranger(agent: AgentShell, publisher: PublisherSimulator) -> None:
    with refused(agent, "unknown_key"):
        agent.deliver(publisher.head_topic, publisher.head_message(next_head(publisher), MALLORY))


def test_head_signed_by_a_stranger_under_the_publishers_key_id(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    payload, place = encode_head(next_head(publisher)), publisher.place(Kind.HEAD)
    claimed = publisher.publisher_keys[0].id
    signature = MALLORY.sign(to_sign(payload, place, claimed, several=False))
    with refused(agent, "bad_signature"):
        agent.deliver(publisher.head_topic, seal(payload, place, [(claimed, signature)], several=False))


def test_head_signed_by_a_root_key(agent: AgentShell, publisher: PublisherSimulator) -> None:
    message = publisher.head_message(next_head(publisher), *publisher.root_keys)
    with refused(agent, "wrong_role"):
        agent.deliver(publisher.head_topic, message)


def test_head_signed_by_a_revoked_key(agent: AgentShell, publisher: PublisherSimulator) -> None:
    stolen = publisher.publisher_keys[0]
    publisher.rotate(publisher_keys=[BOB])
    publisher.sign_again()
    agent.hear()
    assert agent.sync.trusted.root.number == 2
    thiefs = replace(publisher.head, sequence=Sequence(publisher.head.sequence + 1))
    with refused(agent, "unknown_key"):
        agent.deliver(publisher.head_topic, publisher.head_message(thiefs, stolen))


def test_head_cosigned_by_a_publisher_and_a_stranger(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    message = publisher.head_message(next_head(publisher), *publisher.publisher_keys, MALLORY)
    with refused(agent, "unknown_key"):
        agent.deliver(publisher.head_topic, message)


def test_snapshot_part_signed_by_a_stranger(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(ON, delta=False)
    topic = publisher.part_topic(2)
    forged = publisher.part_message(publisher.make_parts(publisher.content)[0], MALLORY)
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    with refused(agent, "unknown_key"):
        agent.deliver(topic, forged)


def test_delta_signed_by_a_stranger(agent: AgentShell, publisher: PublisherSimulator) -> None:
    before = publisher.content
    after = publisher.release(ON)
    forged = publisher.delta_message(
        publisher.make_delta(after, before, publisher.delta_body(before, after)), MALLORY
    )
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    with refused(agent, "unknown_key"):
        agent.deliver(publisher.delta_topic(2, 1), forged)


@pytest.fixture
def two_of_two(tmp_path: Path) -> PublisherSimulator:
    publisher = PublisherSimulator(publisher_keys=(SigningKey("publisher-a"), BOB), publisher_threshold=2)
    publisher.release(ON)
    return publisher


@pytest.fixture
def careful(two_of_two: PublisherSimulator, tmp_path: Path) -> AgentShell:
    agent = AgentShell(tmp_path / "careful.db", two_of_two)
    agent.catch_up()
    assert agent.sync.reporting.rejections == {}, "both keys sign: a release of two approvals is admitted"
    assert agent.evaluator.namespaces() == (two_of_two.namespace,)
    return agent


@pytest.mark.parametrize("several", [False, True])
def test_head_of_one_signature_where_two_are_needed(
    careful: AgentShell, two_of_two: PublisherSimulator, several: bool
) -> None:
    alone = two_of_two.sign(
        encode_head(next_head(two_of_two)), two_of_two.place(Kind.HEAD), BOB, several=several
    )
    with refused(careful, "threshold_not_met"):
        careful.deliver(two_of_two.head_topic, alone)


def test_one_key_signs_twice_to_reach_the_threshold(
    careful: AgentShell, two_of_two: PublisherSimulator
) -> None:
    with refused(careful, "key_counted_twice"):
        careful.deliver(two_of_two.head_topic, two_of_two.head_message(next_head(two_of_two), BOB, BOB))


def test_one_of_two_signatures_does_not_fit(careful: AgentShell, two_of_two: PublisherSimulator) -> None:
    message = two_of_two.head_message(next_head(two_of_two))
    with refused(careful, "bad_signature"):
        careful.deliver(two_of_two.head_topic, flip_last_bit(message))


def test_snapshot_of_one_signature_where_two_are_needed(
    careful: AgentShell, two_of_two: PublisherSimulator
) -> None:
    content = two_of_two.release(EVIL, delta=False)
    careful.deliver(two_of_two.head_topic, two_of_two.retained[two_of_two.head_topic])
    with refused(careful, "threshold_not_met"):
        careful.deliver(
            two_of_two.part_topic(2), two_of_two.part_message(two_of_two.make_parts(content)[0], BOB)
        )


def test_signature_made_for_a_single_signer_does_not_count_among_several(
    careful: AgentShell, two_of_two: PublisherSimulator
) -> None:
    payload, place = encode_head(next_head(two_of_two)), two_of_two.place(Kind.HEAD)
    signatures = [
        (key.id, key.sign(to_sign(payload, place, key.id, several=False)))
        for key in two_of_two.publisher_keys
    ]
    with refused(careful, "bad_signature"):
        careful.deliver(two_of_two.head_topic, seal(payload, place, signatures, several=True))
