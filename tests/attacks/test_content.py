"""Snapshots and deltas that do not hold what the head signed."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
from agent_shell import AgentShell, ignored, refused
from forgeries import deliver_delta, fetches_the_snapshot_instead, offer
from publisher_simulator import Content, PublisherSimulator, SigningKey
from releases import BETA, EVIL, OFF, ON, OTHER

from flagcast_agent.sync.fetches import FETCH_PATIENCE_SECONDS
from flagcast_shared.bucketing import candidate_bucket
from flagcast_shared.codec import deflate, encode
from flagcast_shared.errors import TooLarge
from flagcast_shared.ids import Digest, EntityId, RecordId, SegmentKey
from flagcast_shared.limits import PARTS_MAX, RECORD_MAX_BYTES, RECORDS_MAX
from flagcast_shared.messages import InlineDelta
from flagcast_shared.model import Constraint, ConstraintType, Match, Operator, Segment
from flagcast_shared.records import (
    Record,
    content_digest,
    decode_record,
    encode_content,
    encode_delta,
    encode_record,
)


def begin_fetch(agent: AgentShell, publisher: PublisherSimulator) -> None:
    """The agent has the head and awaits the content; nothing else is delivered."""
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])


def part_of(publisher: PublisherSimulator, version: int, number: int = 0) -> bytes:
    return publisher.retained[publisher.part_topic(version, number)]


def admits_the_release(agent: AgentShell, publisher: PublisherSimulator) -> bool:
    """Whether the agent gets to the publisher's content after all, by itself."""
    agent.tick(FETCH_PATIENCE_SECONDS)
    agent.settle()
    return agent.evaluator.knowledge(publisher.namespace).digest == publisher.content.digest


def other_body(records: Sequence[Record]) -> bytes:
    return deflate(encode_content(records))


def test_snapshot_of_another_content(agent: AgentShell, publisher: PublisherSimulator) -> None:
    content = publisher.release(ON, delta=False)
    body = other_body([encode_record(EVIL)])
    publisher.publish_head(
        publisher.make_head(stable=replace(content.offering(), size=len(body) + len(content.parts[0])))
    )
    begin_fetch(agent, publisher)
    forged = replace(publisher.make_parts(content)[0], body=body)
    with refused(agent, "digest_mismatch"):
        agent.deliver(publisher.part_topic(2), publisher.part_message(forged))
    assert admits_the_release(agent, publisher)


def test_truncated_snapshot(agent: AgentShell, publisher: PublisherSimulator) -> None:
    content = publisher.release(ON, delta=False)
    begin_fetch(agent, publisher)
    cut = replace(publisher.make_parts(content)[0], body=content.parts[0][:-4])
    with refused(agent, "malformed"):
        agent.deliver(publisher.part_topic(2), publisher.part_message(cut))
    assert admits_the_release(agent, publisher)


@pytest.fixture
def in_parts(publisher: PublisherSimulator) -> Content:
    """A release in many parts, and the same version compiled again with another content of as many parts."""
    publisher.part_bytes = 16
    return publisher.release(ON, OTHER, delta=False)


def test_parts_out_of_order(agent: AgentShell, publisher: PublisherSimulator, in_parts: Content) -> None:
    begin_fetch(agent, publisher)
    for number in reversed(range(len(in_parts.parts))):
        agent.deliver(publisher.part_topic(2, number), part_of(publisher, 2, number))
    assert agent.sync.reporting.rejections == {}
    assert agent.evaluator.knowledge(publisher.namespace).version == 2


def test_half_the_parts_are_no_content(
    agent: AgentShell, publisher: PublisherSimulator, in_parts: Content
) -> None:
    begin_fetch(agent, publisher)
    with ignored(agent):
        for number in range(len(in_parts.parts) - 1):
            agent.deliver(publisher.part_topic(2, number), part_of(publisher, 2, number))
            agent.deliver(publisher.part_topic(2, number), part_of(publisher, 2, number))


def test_parts_of_two_contents_of_one_version(
    agent: AgentShell, publisher: PublisherSimulator, in_parts: Content
) -> None:
    begin_fetch(agent, publisher)
    parts = publisher.make_parts(in_parts)
    foreign = replace(parts[0], body=bytes(len(parts[0].body)))
    agent.deliver(publisher.part_topic(2, 0), publisher.part_message(foreign))
    for part in parts[1:-1]:
        agent.deliver(publisher.part_topic(2, part.part), publisher.part_message(part))
    with refused(agent, "malformed"):
        agent.deliver(publisher.part_topic(2, parts[-1].part), publisher.part_message(parts[-1]))
    assert admits_the_release(agent, publisher), "a foreign part is not kept for ever"


def test_two_parts_of_one_number(agent: AgentShell, publisher: PublisherSimulator, in_parts: Content) -> None:
    begin_fetch(agent, publisher)
    first = publisher.make_parts(in_parts)[0]
    agent.deliver(publisher.part_topic(2, 0), publisher.part_message(first))
    twin = replace(first, body=bytes(len(first.body)))
    with refused(agent, "equivocation"):
        agent.deliver(publisher.part_topic(2, 0), publisher.part_message(twin))
    assert admits_the_release(agent, publisher)


def test_strangers_cannot_throw_collected_parts_away(
    agent: AgentShell, publisher: PublisherSimulator, in_parts: Content
) -> None:
    begin_fetch(agent, publisher)
    for number in range(len(in_parts.parts) - 1):
        agent.deliver(publisher.part_topic(2, number), part_of(publisher, 2, number))
    with refused(agent, "unknown_key"):
        forged = publisher.part_message(publisher.make_parts(in_parts)[-1], SigningKey("mallory"))
        agent.deliver(publisher.part_topic(2, len(in_parts.parts) - 1), forged)
    agent.tick(FETCH_PATIENCE_SECONDS)
    last = len(in_parts.parts) - 1
    agent.deliver(publisher.part_topic(2, last), part_of(publisher, 2, last))
    assert agent.evaluator.knowledge(publisher.namespace).version == 2


def test_part_of_another_count(agent: AgentShell, publisher: PublisherSimulator, in_parts: Content) -> None:
    begin_fetch(agent, publisher)
    first = publisher.make_parts(in_parts)[0]
    with refused(agent, "mixed_versions"):
        more = replace(first, parts=first.parts + 1)
        agent.deliver(publisher.part_topic(2, 0), publisher.part_message(more))


def test_part_of_another_epoch(agent: AgentShell, publisher: PublisherSimulator, in_parts: Content) -> None:
    begin_fetch(agent, publisher)
    first = publisher.make_parts(in_parts)[0]
    with refused(agent, "mixed_versions"):
        other = replace(first, epoch=type(first.epoch)(2))
        agent.deliver(publisher.part_topic(2, 0), publisher.part_message(other))


def test_more_bytes_than_the_head_announced(
    agent: AgentShell, publisher: PublisherSimulator, in_parts: Content
) -> None:
    begin_fetch(agent, publisher)
    first = publisher.make_parts(in_parts)[0]
    with refused(agent, "too_large"):
        endless = replace(first, body=bytes(50_000))
        agent.deliver(publisher.part_topic(2, 0), publisher.part_message(endless))


def test_part_number_beyond_the_last(
    agent: AgentShell, publisher: PublisherSimulator, in_parts: Content
) -> None:
    begin_fetch(agent, publisher)
    first = publisher.make_parts(in_parts)[0]
    with refused(agent, "malformed"):
        beyond = replace(first, part=first.parts)
        agent.deliver(publisher.part_topic(2, first.parts), publisher.part_message(beyond))


def test_part_of_parts_without_end(
    agent: AgentShell, publisher: PublisherSimulator, in_parts: Content
) -> None:
    begin_fetch(agent, publisher)
    first = publisher.make_parts(in_parts)[0]
    with refused(agent, "malformed"):
        endless = replace(first, parts=PARTS_MAX + 1)
        agent.deliver(publisher.part_topic(2, 0), publisher.part_message(endless))


def test_snapshot_with_a_record_twice(agent: AgentShell, publisher: PublisherSimulator) -> None:
    record = encode_record(ON)
    body = deflate(encode([record.data, record.data]))
    agent.deliver(
        publisher.head_topic, offer(publisher, body, content_digest([record.digest, record.digest]))
    )
    with refused(agent, "malformed"):
        agent.settle()


def test_snapshot_with_two_records_of_one_key(agent: AgentShell, publisher: PublisherSimulator) -> None:
    records = [encode_record(ON), encode_record(OFF)]
    digest = content_digest(record.digest for record in records)
    agent.deliver(publisher.head_topic, offer(publisher, other_body(records), digest))
    with refused(agent, "malformed"):
        agent.settle()


def test_snapshot_whose_records_do_not_ascend(agent: AgentShell, publisher: PublisherSimulator) -> None:
    records = sorted((encode_record(ON), encode_record(OTHER)), key=lambda one: one.data, reverse=True)
    body = deflate(encode([record.data for record in records]))
    digest = content_digest(record.digest for record in records)
    agent.deliver(publisher.head_topic, offer(publisher, body, digest))
    with refused(agent, "malformed"):
        agent.settle()


def variant_flag(shares: Sequence[Sequence[int]]) -> bytes:
    """The record of a flag with one variant and one rule of these shares."""
    return encode(["flag", "x", {1: "variant", 2: True, 4: [["a"]], 6: [{4: ["s"], 6: shares}]}])


def earlier_than(instant: Sequence[int]) -> bytes:
    """The record of a segment that compares with this instant."""
    return encode(["segment", "x", {1: "all", 2: [{1: "datetime", 2: "p", 3: "lt", 4: instant}]}])


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(b"", id="no bytes"),
        pytest.param(b"\x00", id="no list"),
        pytest.param(encode(["flag", "x"]), id="no body"),
        pytest.param(encode(["flag", 1, {1: "boolean", 2: True}]), id="key that is no text"),
        pytest.param(encode(["flag", "x", {1: "boolean"}]), id="neither on nor off"),
        pytest.param(encode(["flag", "x", {1: "boolean", 2: 1}]), id="one for true"),
        pytest.param(
            encode(["flag", "x", {1: "boolean", 2: True, 3: [{1: "threshold", 2: True, 3: 101}]}]),
            id="percentage above a hundred",
        ),
        pytest.param(encode(["flag", "x", {1: "variant", 2: True, 4: [[]]}]), id="variant without a key"),
        pytest.param(
            encode(["flag", "x", {1: "variant", 2: True, 4: [["a"]], 5: 1}]), id="default that is no variant"
        ),
        pytest.param(variant_flag([[0]]), id="share without a bound"),
        pytest.param(variant_flag([[1, 1000]]), id="share of no variant"),
        pytest.param(variant_flag([[0, 9], [0, 8], [0, 1000]]), id="shares that go down"),
        pytest.param(variant_flag([[0, 999]]), id="shares of less than all"),
        pytest.param(earlier_than([0]), id="instant without nanoseconds"),
        pytest.param(earlier_than([0, 10**9]), id="instant of a billion nanoseconds"),
    ],
)
def test_record_that_is_none(agent: AgentShell, publisher: PublisherSimulator, record: bytes) -> None:
    digest = content_digest([Digest(hashlib.sha256(record).digest())])
    body = deflate(encode([record]))
    agent.deliver(publisher.head_topic, offer(publisher, body, digest))
    with refused(agent, "malformed", "empty_payload"):
        agent.settle()


def test_record_without_end(agent: AgentShell, publisher: PublisherSimulator) -> None:
    long = [[f"v{number}", "x" * 60_000] for number in range(5)]
    record = encode(["flag", "x", {1: "variant", 2: True, 4: long}])
    assert len(record) > RECORD_MAX_BYTES
    with pytest.raises(TooLarge):
        decode_record(record)
    digest = content_digest([Digest(hashlib.sha256(record).digest())])
    agent.deliver(publisher.head_topic, offer(publisher, deflate(encode([record])), digest))
    with refused(agent, "too_large"):
        agent.settle()


def test_records_without_end(agent: AgentShell, publisher: PublisherSimulator) -> None:
    # So many that what each of them is would be asked too late.
    body = deflate(encode([number.to_bytes(3, "big") for number in range(RECORDS_MAX + 1)]))
    agent.deliver(publisher.head_topic, offer(publisher, body, Digest(bytes(32))))
    with refused(agent, "too_large"):
        agent.settle()


def test_number_that_cannot_be_compared_with(agent: AgentShell, publisher: PublisherSimulator) -> None:
    never_compiled = Segment(
        SegmentKey("x"), Match.ALL, (Constraint(ConstraintType.NUMBER, "age", Operator.GT, "ten"),)
    )
    publisher.release(ON, never_compiled, delta=False)
    begin_fetch(agent, publisher)
    with refused(agent, "malformed"):
        agent.settle()


# Deltas: what is wrong with one is refused, and the full snapshot is fetched instead.


def test_delta_with_a_wrong_result(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(ON)
    begin_fetch(agent, publisher)
    with refused(agent, "digest_mismatch"):
        deliver_delta(agent, publisher, deflate(encode_delta([], [encode_record(EVIL)])))
    assert fetches_the_snapshot_instead(agent, publisher)


def test_delta_from_a_version_that_is_not_held(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(ON)
    publisher.release(OTHER)
    begin_fetch(agent, publisher)
    with refused(agent, "delta_mismatch"):
        agent.deliver(publisher.delta_topic(3, 2), publisher.retained[publisher.delta_topic(3, 2)])


def test_delta_from_another_version_than_its_topic_says(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(ON)
    publisher.release(OTHER)
    begin_fetch(agent, publisher)
    with refused(agent, "replayed"):
        agent.deliver(publisher.delta_topic(3, 1), publisher.retained[publisher.delta_topic(3, 2)])


def test_delta_of_another_epoch(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(ON)
    begin_fetch(agent, publisher)
    before, after = publisher.contents[-2:]
    delta = publisher.make_delta(after, before, publisher.delta_body(before, after))
    forged = publisher.delta_message(replace(delta, epoch=type(delta.epoch)(2)))
    with refused(agent, "mixed_versions"):
        agent.deliver(publisher.delta_topic(2, 1), forged)
    assert fetches_the_snapshot_instead(agent, publisher)


def test_delta_that_removes_what_is_not_held(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(ON)
    begin_fetch(agent, publisher)
    with refused(agent, "delta_mismatch"):
        deliver_delta(agent, publisher, deflate(encode_delta([RecordId("flag", "ghost")], [])))
    assert fetches_the_snapshot_instead(agent, publisher)


def test_delta_that_changes_a_record_twice(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(ON)
    begin_fetch(agent, publisher)
    removed = sorted(publisher.contents[-2].records.keys() - publisher.contents[-1].records.keys())
    body = encode_delta(removed, [encode_record(OFF), encode_record(ON)])
    with refused(agent, "malformed"):
        deliver_delta(agent, publisher, deflate(body))
    assert fetches_the_snapshot_instead(agent, publisher)


def test_delta_whose_records_do_not_ascend(agent: AgentShell, publisher: PublisherSimulator) -> None:
    before, after = publisher.content, publisher.release(ON, OTHER)
    begin_fetch(agent, publisher)
    removed = sorted(before.records.keys() - after.records.keys())
    changed = sorted((record.data for record in after.records.values()), reverse=True)
    body = encode([[list(identity) for identity in removed], changed])
    with refused(agent, "malformed"):
        deliver_delta(agent, publisher, deflate(body))
    assert fetches_the_snapshot_instead(agent, publisher)


def test_delta_whose_removals_do_not_ascend(agent: AgentShell, publisher: PublisherSimulator) -> None:
    before, after = publisher.content, publisher.release(ON)
    begin_fetch(agent, publisher)
    removed = sorted(before.records.keys() - after.records.keys(), reverse=True)
    assert len(removed) > 1
    body = encode([[list(identity) for identity in removed], [encode_record(ON).data]])
    with refused(agent, "malformed"):
        deliver_delta(agent, publisher, deflate(body))
    assert fetches_the_snapshot_instead(agent, publisher)


def test_delta_of_endless_removals(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(ON)
    begin_fetch(agent, publisher)
    body = encode([[["flag", f"{number:06}"] for number in range(RECORDS_MAX + 1)], []])
    with refused(agent, "too_large"):
        deliver_delta(agent, publisher, deflate(body))
    assert fetches_the_snapshot_instead(agent, publisher)


def test_delta_that_removes_and_changes_one_record(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(ON)
    begin_fetch(agent, publisher)
    removed = sorted({*publisher.contents[-2].records, RecordId("flag", BETA)})
    with refused(agent, "malformed"):
        deliver_delta(agent, publisher, deflate(encode_delta(removed, [encode_record(ON)])))
    assert fetches_the_snapshot_instead(agent, publisher)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        encode([]),
        encode([[], []]) + b"\x00",
        encode([[["flag"]], []]),
        encode([[], [1]]),
        b"\xa2" + encode_delta([], [encode_record(ON)])[1:],  # a map where the list should be
        b"\x81" + encode_delta([], [encode_record(ON)])[1:],  # the true delta, announced as one item
    ],
    ids=lambda body: body[:8].hex() or "empty",
)
def test_delta_that_is_none(agent: AgentShell, publisher: PublisherSimulator, body: bytes) -> None:
    publisher.release(ON)
    begin_fetch(agent, publisher)
    with refused(agent, "malformed", "trailing_bytes", "empty_payload"):
        deliver_delta(agent, publisher, deflate(body))
    assert fetches_the_snapshot_instead(agent, publisher)


def test_removal_that_announces_one_item(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(ON, OTHER)
    agent.catch_up()
    publisher.release(ON)
    before, after = publisher.contents[-2:]
    (removed,) = {*before.records} - {*after.records}
    body = encode_delta([removed], [])
    assert body[:3] == b"\x82\x81\x82"
    begin_fetch(agent, publisher)
    with refused(agent, "malformed"):
        deliver_delta(agent, publisher, deflate(b"\x82\x81\x81" + body[3:]))
    assert fetches_the_snapshot_instead(agent, publisher)


def test_empty_delta_message(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(ON)
    begin_fetch(agent, publisher)
    with refused(agent, "empty_payload"):
        agent.deliver(publisher.delta_topic(2, 1), b"")
    assert fetches_the_snapshot_instead(agent, publisher)


def with_inline(publisher: PublisherSimulator, body: bytes) -> bytes:
    """A release whose head carries this as its inline delta."""
    before = publisher.content
    after = publisher.release(ON)
    head = publisher.make_head(
        stable=after.offering([before.version]), inline=InlineDelta(before.version, after.version, body)
    )
    return publisher.head_message(head)


def test_inline_delta_with_a_wrong_result(agent: AgentShell, publisher: PublisherSimulator) -> None:
    message = with_inline(publisher, deflate(encode_delta([], [encode_record(EVIL)])))
    with refused(agent, "digest_mismatch"):
        agent.deliver(publisher.head_topic, message)
    assert fetches_the_snapshot_instead(agent, publisher)


def test_inline_delta_that_is_garbage(agent: AgentShell, publisher: PublisherSimulator) -> None:
    message = with_inline(publisher, b"garbage")
    with refused(agent, "malformed"):
        agent.deliver(publisher.head_topic, message)
    assert fetches_the_snapshot_instead(agent, publisher)


def test_inline_delta_that_inflates_a_thousandfold(agent: AgentShell, publisher: PublisherSimulator) -> None:
    bomb = deflate(bytes(4_000_000))
    message = with_inline(publisher, bomb)
    with refused(agent, "malformed"):  # 4 KB cannot inflate beyond 4 MB, and four million zeros are no delta
        agent.deliver(publisher.head_topic, message)
    assert fetches_the_snapshot_instead(agent, publisher)


def test_inline_delta_for_another_version_is_passed_over(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    first = publisher.content
    publisher.release(OTHER)
    publisher.release(ON, inline=True)
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    assert agent.sync.reporting.rejections == {}
    agent.settle()
    assert first.version == 1
    assert agent.evaluator.knowledge(publisher.namespace).version == 3


def test_inline_delta_to_another_version_is_passed_over(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    before = publisher.content
    between = publisher.release(OTHER)
    after = publisher.release(ON)
    inline = InlineDelta(before.version, between.version, publisher.delta_body(before, between))
    publisher.publish_head(publisher.make_head(stable=after.offering(), inline=inline))
    with ignored(agent):
        agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    agent.settle()
    assert agent.evaluator.knowledge(publisher.namespace).version == 3


# Staged rollouts


def test_candidate_is_decided_by_the_device_and_its_content_verified(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    candidate = publisher.stage(EVIL, share=10_000)
    begin_fetch(agent, publisher)
    forged = replace(publisher.make_parts(candidate)[0], body=other_body([encode_record(ON)]))
    fits = len(forged.body) <= candidate.offering().size
    with refused(agent, "digest_mismatch" if fits else "too_large"):
        agent.deliver(publisher.part_topic(2), publisher.part_message(forged))


def test_withdrawn_candidate_takes_nobody_back(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.stage(ON, share=10_000)
    agent.hear()
    assert agent.evaluator.knowledge(publisher.namespace).version == 2
    publisher.publish_head(publisher.make_head(stable=publisher.contents[0].offering()))
    agent.hear()
    knowledge = agent.evaluator.knowledge(publisher.namespace)
    assert knowledge.version == 2
    assert agent.evaluator.boolean(publisher.namespace, BETA, EntityId("x"), {}).enabled
    publisher.release(OFF, version=3)
    agent.hear()
    assert not agent.evaluator.boolean(publisher.namespace, BETA, EntityId("x"), {}).enabled


def test_candidate_for_other_devices_is_not_fetched(agent: AgentShell, publisher: PublisherSimulator) -> None:
    bucket = candidate_bucket(b"salt", agent.sync.trusted.device.id)
    publisher.stage(EVIL, share=bucket)
    agent.hear()
    assert agent.evaluator.knowledge(publisher.namespace).version == 1
    assert not any(publisher.part_topic(2)[:-1] in one for one in agent.filters)
    publisher.stage(ON, share=bucket + 1)
    agent.hear()
    assert agent.evaluator.knowledge(publisher.namespace).version == 3


def test_candidate_for_other_labels_is_not_fetched(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.stage(EVIL, share=10_000, labels={"ring": "canary"})
    agent.hear()
    assert agent.evaluator.knowledge(publisher.namespace).version == 1
    assert not any(publisher.part_topic(2)[:-1] in one for one in agent.filters)
