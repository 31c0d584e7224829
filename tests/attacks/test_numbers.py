"""What was true once, what is said twice, and clocks that lie."""

from dataclasses import replace
from pathlib import Path

import pytest
from agent_shell import AgentShell, ignored, refused
from publisher_simulator import DAY, HEAD_LIFE_SECONDS, NOW, PublisherSimulator, SigningKey
from releases import BETA, EVIL, OFF, ON, OTHER

from flagcast_shared.context import Device
from flagcast_shared.errors import DigestMismatch, Equivocation
from flagcast_shared.ids import DeviceId, Digest, EntityId, Epoch, Namespace, Sequence, Version
from flagcast_shared.limits import NUMBER_MAX
from flagcast_shared.messages import Candidate, Offering, encode_head
from flagcast_shared.records import content_digest, encode_record
from flagcast_shared.topics import DeviceAddress, Kind
from flagcast_shared.trust import Stored, begin, clock_is_trusted, restore

TEN_YEARS = 3650 * DAY


def test_older_head_is_offered(agent: AgentShell, publisher: PublisherSimulator) -> None:
    older = publisher.retained[publisher.head_topic]
    publisher.sign_again()
    agent.hear()
    with refused(agent, "rollback"):
        agent.deliver(publisher.head_topic, older)


def test_older_release_is_offered(agent: AgentShell, publisher: PublisherSimulator) -> None:
    older = publisher.retained[publisher.head_topic]
    publisher.release(ON)
    agent.hear()
    assert agent.evaluator.boolean(publisher.namespace, BETA, EntityId("x"), {}).enabled
    with refused(agent, "rollback"):
        agent.deliver(publisher.head_topic, older)


def test_broker_restored_from_an_old_save(agent: AgentShell, publisher: PublisherSimulator) -> None:
    saved = publisher.save()
    publisher.release(ON)
    agent.hear()
    agent.disconnect()
    publisher.restore(saved)
    with refused(agent, "rollback"):
        agent.reconnect()
        agent.settle()


def test_older_head_is_offered_after_a_restart(
    publisher: PublisherSimulator, agent: AgentShell, tmp_path: Path
) -> None:
    older = publisher.retained[publisher.head_topic]
    publisher.release(ON)
    agent.hear()
    agent.close()
    reborn = AgentShell(agent.path, publisher)
    reborn.connect()
    with refused(reborn, "rollback"):
        reborn.deliver(publisher.head_topic, older)
    reborn.close()


def test_head_older_than_one_whose_content_is_still_awaited(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(ON)
    between = publisher.retained[publisher.head_topic]
    publisher.release(OTHER)
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    with refused(agent, "rollback"):
        agent.deliver(publisher.head_topic, between)


def test_two_heads_of_one_number(agent: AgentShell, publisher: PublisherSimulator) -> None:
    twin = replace(publisher.head, expires=publisher.head.expires + 1)
    with refused(agent, "equivocation"):
        agent.deliver(publisher.head_topic, publisher.head_message(twin))


def test_two_awaited_heads_of_one_number(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(ON)
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    twin = replace(publisher.head, expires=publisher.head.expires + 1)
    with refused(agent, "equivocation"):
        agent.deliver(publisher.head_topic, publisher.head_message(twin))


def test_two_contents_of_one_version(agent: AgentShell, publisher: PublisherSimulator) -> None:
    evil = publisher.make_content([EVIL], version=1)
    head = publisher.make_head(stable=evil.offering())
    with refused(agent, "equivocation"):
        agent.deliver(publisher.head_topic, publisher.head_message(head))


def test_the_same_head_again_is_no_news(agent: AgentShell, publisher: PublisherSimulator) -> None:
    with ignored(agent):
        effects = agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    assert effects == []


def test_the_same_head_signed_by_another_publisher_is_no_equivocation(tmp_path: Path) -> None:
    alice, bob = SigningKey("publisher-a"), SigningKey("publisher-b")
    publisher = PublisherSimulator(publisher_keys=(alice, bob))
    publisher.release(OFF)
    agent = AgentShell(tmp_path / "agent.db", publisher)
    agent.catch_up()
    with ignored(agent):
        agent.deliver(publisher.head_topic, publisher.head_message(publisher.head, bob))


def test_newer_head_with_an_older_version_takes_nobody_back(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    first = publisher.content
    publisher.release(ON)
    agent.hear()
    publisher.publish_head(publisher.make_head(stable=first.offering()))
    agent.hear()
    assert agent.evaluator.knowledge(publisher.namespace).version == 2
    assert agent.evaluator.boolean(publisher.namespace, BETA, EntityId("x"), {}).enabled


def test_frozen_broker_offers_an_expired_head(publisher: PublisherSimulator, tmp_path: Path) -> None:
    agent = AgentShell(tmp_path / "new.db", publisher)
    agent.now = NOW + HEAD_LIFE_SECONDS
    agent.connect()
    with refused(agent, "freeze"):
        agent.settle()
    agent.close()


def test_expired_successor_is_refused_and_what_is_held_still_answers(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(ON)
    agent.now = publisher.head.expires
    with refused(agent, "freeze"):
        agent.hear()
    knowledge = agent.evaluator.knowledge(publisher.namespace)
    assert knowledge.is_stale(agent.now)
    assert knowledge.version == 1


def test_held_head_that_expires_is_no_attack(agent: AgentShell, publisher: PublisherSimulator) -> None:
    agent.now = publisher.head.expires + DAY
    with ignored(agent):
        agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])


def test_clock_ten_years_ahead(agent: AgentShell, publisher: PublisherSimulator) -> None:
    agent.now += TEN_YEARS
    publisher.release(ON)
    with refused(agent, "freeze"):
        agent.hear()
    agent.tick(60)
    agent.settle()
    assert agent.evaluator.knowledge(publisher.namespace).version == 1
    agent.now -= TEN_YEARS  # the device hears the time
    agent.tick(60)
    agent.settle()
    assert agent.evaluator.knowledge(publisher.namespace).version == 2


def test_clock_ten_years_behind_warns_and_admits(agent: AgentShell, publisher: PublisherSimulator) -> None:
    agent.now -= TEN_YEARS
    publisher.release(ON)
    agent.hear()
    assert agent.sync.reporting.rejections == {}
    assert agent.evaluator.knowledge(publisher.namespace).version == 2
    assert "clock" in agent.activated[-1].warning


def test_clock_behind_does_not_open_the_door_to_rollback(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    older = publisher.retained[publisher.head_topic]
    publisher.release(ON)
    agent.hear()
    agent.now -= TEN_YEARS
    with refused(agent, "rollback"):
        agent.deliver(publisher.head_topic, older)


def test_time_believed_survives_a_restart(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.now += DAY
    publisher.sign_again()
    agent.now += DAY
    agent.hear()
    agent.close()
    reborn = AgentShell(agent.path, publisher)
    assert reborn.sync.trusted.floor == publisher.now
    reborn.close()


def test_time_believed_survives_a_publisher_whose_clock_went_back(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    agent.now += DAY
    for publisher.now in (NOW + DAY, NOW):
        publisher.sign_again()
        agent.hear()
    assert agent.sync.trusted.holdings[publisher.namespace].head.issued == NOW
    agent.close()
    reborn = AgentShell(agent.path, publisher)
    assert reborn.sync.trusted.floor == NOW + DAY
    reborn.close()


def test_head_of_an_epoch_that_no_root_started(agent: AgentShell, publisher: PublisherSimulator) -> None:
    early = replace(publisher.head, epoch=Epoch(2), sequence=Sequence(9))
    with refused(agent, "epoch_mismatch"):
        agent.deliver(publisher.head_topic, publisher.head_message(early))


@pytest.fixture
def fast_forwarded(agent: AgentShell, publisher: PublisherSimulator) -> AgentShell:
    """A thief of the publisher's key has published the highest of all versions, and the device believes it."""
    content = publisher.make_content([EVIL], version=NUMBER_MAX)
    publisher.publish_snapshot(content)
    head = replace(publisher.make_head(stable=content.offering()), sequence=Sequence(NUMBER_MAX))
    publisher.retained[publisher.head_topic] = publisher.head_message(head)
    agent.hear()
    assert agent.evaluator.knowledge(publisher.namespace).version == NUMBER_MAX
    return agent


def test_after_a_fast_forward_the_same_epoch_is_lost(
    fast_forwarded: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(ON)
    with refused(fast_forwarded, "rollback"):
        fast_forwarded.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])


def test_a_new_epoch_recovers_from_a_fast_forward(
    fast_forwarded: AgentShell, publisher: PublisherSimulator
) -> None:
    thief = publisher.publisher_keys[0]
    thiefs = publisher.retained[publisher.head_topic]
    publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
    publisher.release(ON, version=3)
    fast_forwarded.hear()
    fast_forwarded.settle()
    knowledge = fast_forwarded.evaluator.knowledge(publisher.namespace)
    assert (knowledge.epoch, knowledge.version) == (2, 3)
    assert fast_forwarded.evaluator.boolean(publisher.namespace, BETA, EntityId("x"), {}).enabled
    later = replace(publisher.head, sequence=Sequence(NUMBER_MAX))
    with refused(fast_forwarded, "unknown_key"):
        fast_forwarded.deliver(publisher.head_topic, publisher.head_message(later, thief))
        fast_forwarded.deliver(publisher.head_topic, thiefs)


@pytest.fixture
def end_of_time(agent: AgentShell, publisher: PublisherSimulator) -> AgentShell:
    """A thief of the publisher's key has published a head that was issued, and expires, at the end of all time."""
    publisher.publish_head(replace(publisher.sign_again(), issued=NUMBER_MAX, expires=NUMBER_MAX))
    agent.hear()
    assert agent.sync.trusted.floor == NUMBER_MAX
    assert not clock_is_trusted(agent.sync.trusted, agent.now)
    return agent


def hear_expired_head(agent: AgentShell, publisher: PublisherSimulator) -> None:
    """The publisher's next head, a day after its expiry."""
    publisher.now += DAY
    publisher.sign_again()
    before, agent.now = agent.now, publisher.head.expires + DAY
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    agent.now = before


def test_after_the_end_of_time_the_same_epoch_checks_no_expiry(
    end_of_time: AgentShell, publisher: PublisherSimulator
) -> None:
    hear_expired_head(end_of_time, publisher)
    assert end_of_time.activated[-1].holding.head == publisher.head
    assert "the clock is" in end_of_time.activated[-1].warning


@pytest.mark.parametrize("restarts", [False, True], ids=["at once", "with a restart before the first head"])
def test_a_new_epoch_recovers_from_the_end_of_time(
    end_of_time: AgentShell, publisher: PublisherSimulator, *, restarts: bool
) -> None:
    agent, thiefs = end_of_time, publisher.retained[publisher.head_topic]
    publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
    agent.hear()
    assert agent.sync.trusted.floor == publisher.root.issued
    if restarts:
        agent.close()
        agent = AgentShell(agent.path, publisher)
        agent.connect()
        assert (
            agent.evaluator.knowledge(publisher.namespace).expires == NUMBER_MAX
        )  # it holds the thief's still
        assert agent.sync.trusted.floor == publisher.root.issued
    publisher.now += DAY
    publisher.release(ON)
    agent.now = publisher.now
    agent.settle()
    agent.hear()
    assert agent.evaluator.boolean(publisher.namespace, BETA, EntityId("x"), {}).enabled
    assert agent.sync.trusted.floor == publisher.now
    assert clock_is_trusted(agent.sync.trusted, agent.now)
    with refused(agent, "freeze"):
        publisher.sign_again()
        agent.now = publisher.head.expires + DAY
        agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    with refused(agent, "unknown_key"):
        agent.deliver(publisher.head_topic, thiefs)
    agent.close()
    reborn = AgentShell(agent.path, publisher)
    assert reborn.sync.trusted.floor == publisher.now
    reborn.close()


def test_a_new_epoch_takes_back_a_lie_about_the_time_that_has_become_true_since(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.now += 7 * DAY  # the thief is ahead of the time by a week
    publisher.sign_again()
    agent.hear()
    began = agent.now
    agent.monotonic += 10 * DAY
    agent.now += 10 * DAY
    assert agent.sync.floor.now(agent.now, agent.monotonic) > agent.now + 6 * DAY
    publisher.now = began + 10 * DAY
    publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
    agent.hear()
    assert agent.sync.floor.now(agent.now, agent.monotonic) == agent.now
    publisher.release(ON)
    agent.settle()
    agent.hear()
    assert agent.sync.floor.now(agent.now, agent.monotonic) == agent.now


def test_a_root_that_keeps_the_publishers_keys_takes_no_time_back(
    end_of_time: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.now += DAY
    publisher.rotate(root_keys=[SigningKey("root-b")])
    end_of_time.hear()
    assert end_of_time.sync.trusted.root.number == 2
    assert end_of_time.sync.trusted.floor == NUMBER_MAX


def test_a_root_from_the_end_of_time_is_left_behind_by_the_next_epoch(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.now += TEN_YEARS
    publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
    agent.hear()
    assert agent.sync.trusted.floor == publisher.now
    publisher.now -= TEN_YEARS - DAY
    publisher.rotate(publisher_keys=[SigningKey("publisher-c")])
    agent.settle()
    agent.hear()
    assert agent.sync.trusted.root.number == 3
    assert agent.sync.trusted.floor == publisher.now


def test_head_of_the_former_epoch_by_a_key_that_stayed(tmp_path: Path) -> None:
    alice, bob, carol = (SigningKey(f"publisher-{name}") for name in "abc")
    publisher = PublisherSimulator(publisher_keys=(alice, bob))
    publisher.release(OFF)
    agent = AgentShell(tmp_path / "agent.db", publisher)
    agent.catch_up()
    former = replace(publisher.head, sequence=Sequence(NUMBER_MAX))
    publisher.rotate(publisher_keys=[alice, carol])
    publisher.sign_again()
    agent.hear()
    with refused(agent, "epoch_mismatch"):
        agent.deliver(publisher.head_topic, publisher.head_message(former, alice))
    agent.close()


def test_rejections_name_namespace_and_time(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(ON)
    agent.now += 5
    with refused(agent, "empty_payload"):
        agent.deliver(publisher.head_topic, b"")
    rejection = agent.reports[-1].rejection
    assert rejection is not None
    assert (rejection.namespace, rejection.at) == ("default", agent.now)
    assert agent.reports[-1].applied[Namespace("default")].version == Version(1)


@pytest.mark.parametrize("kind", ["report", "metrics", "refresh"])
@pytest.mark.parametrize("device", ["device-1", "another"])
def test_what_devices_publish_is_nothing_to_believe(
    agent: AgentShell, publisher: PublisherSimulator, device: str, kind: str
) -> None:
    publisher.release(ON)
    topic = publisher.topics.of(DeviceAddress(DeviceId(device), kind))
    with ignored(agent):
        agent.deliver(topic, publisher.retained[publisher.head_topic])


def test_what_one_device_received_is_what_another_is_to_have(
    agent: AgentShell, publisher: PublisherSimulator, tmp_path: Path
) -> None:
    # Messages are not addressed to devices: handing them on is what a broker does, and changes nobody's belief.
    other = AgentShell(tmp_path / "other.db", publisher, device="another")
    other.connect()
    for topic in (publisher.head_topic, publisher.part_topic(1)):
        other.deliver(topic, publisher.retained[topic])
    namespace = publisher.namespace
    assert other.sync.trusted.holdings[namespace] == agent.sync.trusted.holdings[namespace]
    other.close()


def test_the_same_head_in_another_envelope_is_no_news(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    # COSE_Sign with one signer is allowed wherever COSE_Sign1 is; what counts is the payload.
    payload, place = encode_head(publisher.head), publisher.place(Kind.HEAD)
    message = publisher.sign(payload, place, several=True)
    assert message != publisher.retained[publisher.head_topic]
    with ignored(agent):
        agent.deliver(publisher.head_topic, message)


def test_head_held_is_no_rollback_while_a_later_one_waits_for_its_content(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    held = publisher.retained[publisher.head_topic]
    other = publisher.sign(encode_head(publisher.head), publisher.place(Kind.HEAD), several=True)
    publisher.release(ON)
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    for message in (held, other):
        with ignored(agent):
            agent.deliver(publisher.head_topic, message)
    agent.settle()
    assert agent.evaluator.knowledge(publisher.namespace).digest == publisher.content.digest


def test_parts_are_kept_for_a_head_that_lists_other_deltas(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.part_bytes = 20
    content = publisher.release(ON, OTHER, EVIL, delta=False)
    assert len(content.parts) > 1
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    first, *others = range(len(content.parts))
    agent.deliver(publisher.part_topic(2, first), publisher.retained[publisher.part_topic(2, first)])
    publisher.publish_head(publisher.make_head(stable=content.offering([Version(1)])))
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    for part in others:
        agent.deliver(publisher.part_topic(2, part), publisher.retained[publisher.part_topic(2, part)])
    assert agent.evaluator.knowledge(publisher.namespace).digest == content.digest


def test_delta_leads_from_a_version_of_an_earlier_epoch(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    # The version alone names the base; the content's digest tells whether it was that one.
    before = publisher.content
    publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
    agent.deliver(publisher.root_topic(2), publisher.retained[publisher.root_topic(2)])
    after = publisher.make_content([ON])
    delta = publisher.make_delta(after, before, publisher.delta_body(before, after))
    publisher.publish_head(publisher.make_head(stable=after.offering([before.version])))
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    agent.deliver(publisher.delta_topic(after.version, before.version), publisher.delta_message(delta))
    assert agent.evaluator.knowledge(publisher.namespace).digest == after.digest


@pytest.mark.parametrize(
    ("held", "offers", "is_sound"),
    [
        pytest.param((1, 3), [(3, "own")], True, id="the one offered"),
        pytest.param((1, 3), [(2, "other"), (3, "own")], True, id="the candidate"),
        pytest.param((1, 3), [(2, "other")], True, id="newer than a narrowed offer"),
        pytest.param((2, 3), [(3, "other")], True, id="of a later epoch than its head"),
        pytest.param((1, 3), [(3, "other")], False, id="the same version with another content"),
        pytest.param((1, 3), [(2, "own"), (3, "other")], False, id="another content than the candidate"),
        pytest.param((1, 3), [(4, "own")], False, id="older than any offer"),
    ],
)
def test_content_on_disk_that_its_head_does_not_offer(
    publisher: PublisherSimulator, held: tuple[int, int], offers: list[tuple[int, str]], *, is_sound: bool
) -> None:
    records = [encode_record(ON)]
    digests = {"own": content_digest(each.digest for each in records), "other": Digest(bytes(32))}
    stable, *candidates = (Offering(Version(version), digests[whose], 1, 1) for version, whose in offers)
    candidate = Candidate(candidates[0], 10_000, b"salt") if candidates else None
    head = replace(publisher.make_head(stable=stable), candidate=candidate)
    stored = Stored(
        publisher.namespace,
        publisher.head_message(head),
        Epoch(held[0]),
        Version(held[1]),
        digests["own"],
        [each.data for each in records],
    )
    trusted = begin(publisher.environment, Device(DeviceId("device-1"), {}), publisher.anchor)
    if is_sound:
        restored, _ = restore(trusted, stored)
        assert restored.holdings[publisher.namespace].digest == digests["own"]
    else:
        with pytest.raises((DigestMismatch, Equivocation)):
            restore(trusted, stored)


@pytest.mark.parametrize("is_held", [True, False], ids=["of the content held", "of the stable content"])
def test_two_contents_of_one_version_where_one_is_for_others(
    agent: AgentShell, publisher: PublisherSimulator, *, is_held: bool
) -> None:
    # What a head offers to other devices is judged as well: what is admitted has to pass at the next boot.
    held = publisher.release(ON)
    agent.hear()
    twin = replace(held.offering(), digest=Digest(bytes(32)))
    older = publisher.contents[-2].offering()
    later = replace(held.offering(), version=Version(3))
    stable, candidate = (older, twin) if is_held else (later, replace(twin, version=Version(3)))
    head = replace(publisher.make_head(stable=stable), candidate=Candidate(candidate, 0, b"salt"))
    with refused(agent, "equivocation"):
        agent.deliver(publisher.head_topic, publisher.head_message(head))
    agent.close()
    reborn = AgentShell(agent.path, publisher)
    assert reborn.evaluator.knowledge(publisher.namespace).digest == held.digest
    reborn.close()
