"""True messages in places that they were not made for."""

from dataclasses import replace

from agent_shell import AgentShell, ignored, refused
from publisher_simulator import PublisherSimulator
from releases import EVIL, OFF, ON, OTHER

from flagcast_shared.ids import Environment, Namespace, Sequence
from flagcast_shared.messages import encode_head, encode_part
from flagcast_shared.topics import HeadAddress, Kind


def begin_fetch(agent: AgentShell, publisher: PublisherSimulator) -> None:
    """The agent has the head and awaits the content."""
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])


def test_head_of_another_namespace(agent: AgentShell, publisher: PublisherSimulator) -> None:
    other = PublisherSimulator(namespace=Namespace("kiosk"))
    other.release(OFF)
    other.release(EVIL)
    with refused(agent, "bad_signature"):
        agent.deliver(publisher.head_topic, other.retained[other.head_topic])


def test_head_of_another_environment(agent: AgentShell, publisher: PublisherSimulator) -> None:
    staging = PublisherSimulator(environment=Environment("staging"))
    staging.release(OFF)
    staging.release(EVIL)
    with refused(agent, "bad_signature"):
        agent.deliver(publisher.head_topic, staging.retained[staging.head_topic])


def test_head_that_names_another_namespace_than_it_was_signed_for(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    lying = replace(publisher.head, namespace=Namespace("kiosk"), sequence=Sequence(9))
    message = publisher.sign(encode_head(lying), publisher.place(Kind.HEAD))
    with refused(agent, "replayed"):
        agent.deliver(publisher.head_topic, message)


def test_head_that_names_another_environment_than_it_was_signed_for(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    lying = replace(publisher.head, environment=Environment("staging"), sequence=Sequence(9))
    message = publisher.sign(encode_head(lying), publisher.place(Kind.HEAD))
    with refused(agent, "replayed"):
        agent.deliver(publisher.head_topic, message)


def test_head_at_the_place_of_a_snapshot(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(ON, delta=False)
    begin_fetch(agent, publisher)
    with refused(agent, "header_not_allowed"):
        agent.deliver(publisher.part_topic(2), publisher.retained[publisher.head_topic])


def test_snapshot_at_the_place_of_a_head(agent: AgentShell, publisher: PublisherSimulator) -> None:
    with refused(agent, "header_not_allowed"):
        agent.deliver(publisher.head_topic, publisher.retained[publisher.part_topic(1)])


def test_delta_at_the_place_of_a_snapshot(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(ON)
    begin_fetch(agent, publisher)
    with refused(agent, "header_not_allowed"):
        agent.deliver(publisher.part_topic(2), publisher.retained[publisher.delta_topic(2, 1)])


def test_snapshot_payload_signed_as_a_head(agent: AgentShell, publisher: PublisherSimulator) -> None:
    part = publisher.make_parts(publisher.content)[0]
    message = publisher.sign(encode_part(part), publisher.place(Kind.HEAD))
    with refused(agent, "replayed"):
        agent.deliver(publisher.head_topic, message)


def test_head_at_the_place_of_a_root(agent: AgentShell, publisher: PublisherSimulator) -> None:
    with refused(agent, "malformed"):
        agent.deliver(publisher.root_topic(2), publisher.retained[publisher.head_topic])


def test_root_at_the_place_of_a_head(agent: AgentShell, publisher: PublisherSimulator) -> None:
    with refused(agent, "header_not_allowed"):
        agent.deliver(publisher.head_topic, publisher.anchor)


def test_older_snapshot_at_the_place_of_the_new_one(agent: AgentShell, publisher: PublisherSimulator) -> None:
    older = publisher.retained[publisher.part_topic(1)]
    publisher.release(ON, delta=False)
    begin_fetch(agent, publisher)
    with refused(agent, "replayed"):
        agent.deliver(publisher.part_topic(2), older)


def test_part_at_the_place_of_another_part(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.part_bytes = 16
    publisher.release(ON, OTHER, delta=False)
    begin_fetch(agent, publisher)
    with refused(agent, "replayed"):
        agent.deliver(publisher.part_topic(2, 0), publisher.retained[publisher.part_topic(2, 1)])


def test_delta_at_the_place_of_another_delta(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(ON)
    older = publisher.retained[publisher.delta_topic(2, 1)]
    publisher.release(OTHER)
    begin_fetch(agent, publisher)
    with refused(agent, "replayed"):
        agent.deliver(publisher.delta_topic(3, 1), older)


def test_namespace_that_is_not_followed(agent: AgentShell, publisher: PublisherSimulator) -> None:
    other = PublisherSimulator(namespace=Namespace("kiosk"))
    other.release(EVIL)
    with ignored(agent):
        for topic, message in other.retained.items():
            agent.deliver(topic, message)
    assert not agent.sync.trusted.pending


def test_topics_of_another_environment_or_format(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(EVIL)
    message = publisher.retained[publisher.head_topic]
    base = publisher.topics.base
    with ignored(agent):
        for topic in (
            "flagcast/1/staging/flags/default/head",
            "flagcast/2/production/flags/default/head",
            "other/1/production/flags/default/head",
            f"{base}/flags/default/head/",
            f"{base}/flags//head",
            f"{base}/root/02",
            f"{base}/root/-1",
            f"{base}/root/\u0662",
            f"{base}/root/99999999999999999999",
            f"{base}/root/9999999999999999999",
            f"{base}/flags/default/snapshot/9223372036854775808/0",
            base,
            "",
        ):
            agent.deliver(topic, message)
    assert not agent.sync.trusted.pending, "the head counts nowhere but in its own place"


def test_snapshot_that_nobody_asked_for(agent: AgentShell, publisher: PublisherSimulator) -> None:
    head = publisher.topics.of(HeadAddress(publisher.namespace))
    before = publisher.retained[head]
    publisher.release(EVIL)
    publisher.retained[head] = before
    with ignored(agent):
        agent.deliver(publisher.part_topic(2), publisher.retained[publisher.part_topic(2)])
        agent.deliver(publisher.delta_topic(2, 1), publisher.retained[publisher.delta_topic(2, 1)])


def test_message_of_a_connection_that_is_over(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(EVIL, inline=True)
    agent.disconnect()
    with ignored(agent):
        assert agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic]) == []
