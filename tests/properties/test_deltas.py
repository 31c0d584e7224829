"""However a device came to a content, by deltas, inline deltas or snapshots: it holds the same, digest by digest."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from publisher_simulator import NOW, PublisherSimulator
from wire_strategies import entries

from flagcast_shared.context import Device
from flagcast_shared.ids import DeviceId, Digest
from flagcast_shared.model import AnySegment, Flag
from flagcast_shared.records import Record, encode_record, exchange
from flagcast_shared.trust import AdmittedUpdate, admit, begin

contents = st.lists(entries, max_size=8, unique_by=lambda entry: encode_record(entry).id)
ways = st.sampled_from(["delta", "inline", "snapshot"])


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(contents, ways), min_size=1, max_size=6))
def test_every_way_to_a_content_leads_to_the_same_holding(
    steps: list[tuple[list[Flag | AnySegment], str]],
) -> None:
    publisher = PublisherSimulator()
    trusted = begin(publisher.environment, Device(DeviceId("device-1")), publisher.anchor)
    held: dict[object, Record] = {}
    for listed, way in steps:
        content = publisher.release(*listed, delta=way == "delta", inline=way == "inline")
        version = content.version
        topics = [publisher.head_topic]
        if version > 1 and way == "delta":
            topics.append(publisher.delta_topic(version, version - 1))
        elif version == 1 or way == "snapshot":
            topics.append(publisher.part_topic(version))
        for topic in topics:
            address = publisher.topics.address(topic)
            assert address is not None
            trusted, outcome = admit(trusted, address, publisher.retained[topic], now=NOW)
            if isinstance(outcome, AdmittedUpdate):
                for identity in outcome.removed:
                    del held[identity]
                held.update((record.id, record) for record in outcome.changed)
        holding = trusted.holdings[publisher.namespace]
        assert holding.version == version
        assert held == content.records
        assert holding.records == {identity: record.digest for identity, record in content.records.items()}
        assert list(holding.ascending) == sorted(holding.records.values())


digest_sets = st.sets(st.binary(min_size=32, max_size=32).map(Digest), max_size=20)


@given(kept=digest_sets, gone=digest_sets, come=digest_sets)
def test_exchanged_digests_ascend(kept: set[Digest], gone: set[Digest], come: set[Digest]) -> None:
    come -= kept
    before = sorted(kept | gone)
    after = exchange(before, gone - kept, come - gone)
    assert after == sorted(kept | (come - gone))
    assert before == sorted(kept | gone), "what is held is not changed in place"
    assert all(first < second for first, second in pairwise(after))
