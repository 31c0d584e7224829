"""Messages that hold anything, truly signed: what the thief of a publisher's key can send."""

from dataclasses import replace

from agent_shell import AgentShell
from publisher_simulator import PublisherSimulator

from flagcast_agent.sync.events import Subscribe
from flagcast_shared.ids import Digest
from flagcast_shared.messages import Offering, encode_head
from flagcast_shared.topics import Kind


def signed_payload(publisher: PublisherSimulator, payload: bytes) -> bytes:
    """Any payload, signed by the publisher's own key: what the thief of a key can send."""
    return publisher.sign(payload, publisher.place(Kind.HEAD))


def next_payload(publisher: PublisherSimulator) -> bytes:
    head = publisher.make_head(stable=publisher.content.offering())
    return encode_head(head)


def offer(publisher: PublisherSimulator, body: bytes, digest: Digest) -> bytes:
    """A head that truly names a body, whatever is in it; the part is retained."""
    content = publisher.make_content([])
    offering = Offering(content.version, digest, len(body), 1)
    part = replace(publisher.make_parts(content)[0], body=body)
    publisher.retained[publisher.part_topic(content.version)] = publisher.part_message(part)
    return publisher.head_message(publisher.make_head(stable=offering))


def deliver_delta(agent: AgentShell, publisher: PublisherSimulator, body: bytes) -> None:
    before, after = publisher.contents[-2:]
    forged = publisher.delta_message(publisher.make_delta(after, before, body))
    agent.deliver(publisher.delta_topic(after.version, before.version), forged)


def fetches_the_snapshot_instead(agent: AgentShell, publisher: PublisherSimulator) -> bool:
    asked = Subscribe((publisher.part_topic(publisher.content.version),))
    if asked not in agent.effects:
        return False
    agent.settle()
    return agent.evaluator.knowledge(publisher.namespace).digest == publisher.content.digest
