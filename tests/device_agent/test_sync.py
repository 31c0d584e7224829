"""The agent's core: the link, what is fetched and how, the disk, and messages in any order."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from agent_shell import AgentShell, Belief, ignored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from publisher_simulator import DAY, NOW, PublisherSimulator, SigningKey
from releases import BETA, EVIL, OFF, ON, OTHER

from flagcast_agent.sync import events, fetches, persistence, transitions
from flagcast_agent.sync.core import Sync
from flagcast_agent.sync.events import (
    Activate,
    Believe,
    Connect,
    Connected,
    ConnectFailed,
    Disconnected,
    Fault,
    Persisted,
    PersistFailed,
    PersistRoot,
    PersistUpdate,
    Publish,
    Received,
    Started,
    Subscribe,
    Subscribed,
    Ticked,
)
from flagcast_agent.sync.transitions import LinkState
from flagcast_shared.context import Device
from flagcast_shared.ids import DeviceId, EntityId, Namespace
from flagcast_shared.limits import REPORT_MAX_BYTES
from flagcast_shared.reports import Usage, decode_report
from flagcast_shared.root import Role
from flagcast_shared.trust import begin


@pytest.fixture
def publisher() -> PublisherSimulator:
    simulator = PublisherSimulator()
    simulator.release(OFF)
    return simulator


@pytest.fixture
def agent(publisher: PublisherSimulator, tmp_path: Path) -> Iterator[AgentShell]:
    shell = AgentShell(tmp_path / "agent.db", publisher)
    yield shell
    shell.close()


@pytest.fixture
def synced(agent: AgentShell) -> AgentShell:
    agent.catch_up()
    assert agent.evaluator.knowledge(agent.publisher.namespace).version == 1
    return agent


def version(agent: AgentShell) -> int:
    return agent.evaluator.knowledge(agent.publisher.namespace).version


def new_filters(agent: AgentShell, since: int) -> list[str]:
    return [
        one for effect in agent.effects[since:] if isinstance(effect, Subscribe) for one in effect.filters
    ]


# The link


def test_starting_connects_with_a_will_that_says_offline(agent: AgentShell) -> None:
    (connect,) = agent.handle(Started())
    assert isinstance(connect, Connect)
    assert agent.sync.connection.state is LinkState.CONNECTING
    will = decode_report(connect.will)
    assert not will.is_online
    assert connect.will_topic == "flagcast/1/production/devices/device-1/report"
    birth = next(effect for effect in agent.handle(Connected()) if isinstance(effect, Publish))
    assert birth.topic == connect.will_topic
    assert decode_report(birth.payload).is_online
    assert decode_report(birth.payload).session == will.session


def test_a_connection_subscribes_to_the_next_root_before_the_heads(agent: AgentShell) -> None:
    agent.handle(Started())
    effects = agent.handle(Connected())
    assert [effect for effect in effects if isinstance(effect, Subscribe)] == [
        Subscribe(("flagcast/1/production/root/2",)),
        Subscribe(("flagcast/1/production/flags/default/head",)),
    ]


def test_the_farewell_is_what_the_will_would_say(agent: AgentShell) -> None:
    (connect,) = agent.handle(Started())
    assert isinstance(connect, Connect)
    agent.handle(Connected())
    farewell = agent.sync.farewell(agent.now)
    said, will = decode_report(farewell.payload), decode_report(connect.will)
    assert farewell.topic == connect.will_topic
    assert not said.is_online
    assert said.session == will.session
    assert said.number > will.number


def fail(agent: AgentShell, fault: Fault = Fault.NETWORK) -> float:
    """One failed attempt; returns the wait in seconds, which has passed, and the agent tries again."""
    agent.handle(ConnectFailed(fault, "no route"))
    assert agent.sync.connection.state is (
        LinkState.REFUSED if fault is Fault.REFUSED else LinkState.BACKING_OFF
    )
    deadline = agent.sync.next_deadline()
    assert deadline is not None
    wait = deadline - agent.monotonic
    assert agent.tick(wait - 0.001) == [], "not before its time"
    effects = agent.tick(0.002)
    assert [type(effect) for effect in effects] == [Connect]
    return wait


@pytest.mark.parametrize("jitter", [0.0, 0.25, 0.5, 0.999])
def test_waits_grow_to_a_cap_and_are_never_below_a_second(agent: AgentShell, jitter: float) -> None:
    agent.handle(Started())
    agent.jitter = jitter
    waits = [fail(agent) for _ in range(30)]
    assert all(
        transitions.RECONNECT_MIN_SECONDS <= wait <= transitions.BACKOFF_CAP_SECONDS + 0.001 for wait in waits
    )
    assert all(later > earlier - 0.001 for earlier, later in pairwise(waits))
    assert waits[-1] == pytest.approx(
        transitions.RECONNECT_MIN_SECONDS + transitions.BACKOFF_CAP_SECONDS * jitter, abs=2
    )


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jitters=st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2, unique=True))
def test_two_devices_that_lost_the_same_broker_come_back_at_different_times(
    publisher: PublisherSimulator, jitters: list[float]
) -> None:
    waits = []
    for jitter in jitters:
        lone = Sync(
            begin(publisher.environment, Device(DeviceId("d")), publisher.anchor),
            publisher.topics,
            (publisher.namespace,),
            1,
            "1.0",
        )
        for event in (Started(), Connected(), Disconnected("broker restarted")):
            lone.handle(event, now=NOW, monotonic=100.0, jitter=jitter)
        deadline = lone.next_deadline()
        assert deadline is not None
        waits.append(deadline - 100.0)
    assert abs((waits[0] - waits[1]) - (jitters[0] - jitters[1])) < 1e-6


def test_a_refused_device_asks_much_more_slowly(agent: AgentShell) -> None:
    agent.handle(Started())
    agent.jitter = 0.0
    waits = [fail(agent, Fault.REFUSED) for _ in range(12)]
    assert waits[0] >= transitions.BACKOFF_REFUSED_FIRST_SECONDS / 2
    assert waits[-1] >= transitions.BACKOFF_REFUSED_CAP_SECONDS / 2
    agent.jitter = 0.999
    assert fail(agent, Fault.REFUSED) <= transitions.BACKOFF_REFUSED_CAP_SECONDS


def test_a_network_failure_ends_the_slow_waits(agent: AgentShell) -> None:
    agent.handle(Started())
    agent.jitter = 0.0
    fail(agent, Fault.REFUSED)
    assert fail(agent, Fault.NETWORK) == transitions.RECONNECT_MIN_SECONDS


def lose(agent: AgentShell, after: float) -> float:
    """A connection that holds for so many seconds; returns the wait that follows it."""
    agent.handle(Connected())
    agent.monotonic += after
    agent.handle(Disconnected("gone"))
    deadline = agent.sync.next_deadline()
    assert deadline is not None
    wait = deadline - agent.monotonic
    agent.tick(wait)
    return wait


def test_only_a_stable_connection_starts_the_waits_afresh(agent: AgentShell) -> None:
    agent.handle(Started())
    agent.jitter = 0.999
    flapping = [lose(agent, after=transitions.STABLE_AFTER_SECONDS - 1) for _ in range(8)]
    assert all(later > earlier for earlier, later in pairwise(flapping))
    afresh = lose(agent, after=transitions.STABLE_AFTER_SECONDS)
    assert afresh == flapping[0]
    assert lose(agent, after=1.0) > afresh


def test_protocol_falls_back_and_returns(agent: AgentShell) -> None:
    (first,) = agent.handle(Started())
    assert isinstance(first, Connect)
    spoken = [first.protocol]
    for _ in range(3):
        agent.handle(ConnectFailed(Fault.PROTOCOL, "unacceptable protocol version"))
        (again,) = agent.tick(transitions.BACKOFF_CAP_SECONDS)
        assert isinstance(again, Connect)
        spoken.append(again.protocol)
    assert spoken == ["5", "3.1.1", "5", "3.1.1"]


@pytest.mark.parametrize("fault", [Fault.NETWORK, Fault.REFUSED])
def test_other_failures_do_not_change_the_protocol(agent: AgentShell, fault: Fault) -> None:
    agent.handle(Started())
    agent.handle(ConnectFailed(fault, "x"))
    (again,) = agent.tick(transitions.BACKOFF_REFUSED_CAP_SECONDS)
    assert isinstance(again, Connect)
    assert again.protocol == "5"


def test_configured_protocol_is_kept(publisher: PublisherSimulator, tmp_path: Path) -> None:
    agent = AgentShell(tmp_path / "agent.db", publisher, protocol="3.1.1")
    agent.handle(Started())
    agent.handle(ConnectFailed(Fault.PROTOCOL, "x"))
    (again,) = agent.tick(transitions.BACKOFF_CAP_SECONDS)
    assert isinstance(again, Connect)
    assert again.protocol == "3.1.1"
    agent.close()


def test_refused_subscription_is_said(agent: AgentShell) -> None:
    agent.is_mute = True
    agent.connect()
    head = agent.publisher.head_topic
    agent.handle(Subscribed((agent.publisher.root_topic(2), head), (head,), "Not authorized"))
    assert "Not authorized" in agent.sync.connection.last_error
    assert agent.sync.connection.state is LinkState.REFUSED
    agent.is_mute = False
    agent.reconnect()
    assert agent.sync.connection.last_error == ""


def test_a_tick_at_rest_does_nothing(synced: AgentShell) -> None:
    assert synced.sync.next_deadline() is None
    assert synced.tick(10_000) == []


def test_answers_of_persisting_that_nobody_waits_for_are_ignored(synced: AgentShell) -> None:
    with ignored(synced):
        assert synced.handle(Persisted()) == []


# What is fetched, and how


def test_no_news_costs_a_head(synced: AgentShell) -> None:
    synced.disconnect()
    since = len(synced.effects)
    synced.reconnect()
    synced.settle()
    assert new_filters(synced, since) == [
        "flagcast/1/production/root/2",
        "flagcast/1/production/flags/default/head",
    ]
    assert len(synced.activated) == 1


def test_inline_delta_needs_no_other_message(synced: AgentShell) -> None:
    since = len(synced.effects)
    synced.publisher.release(ON, inline=True)
    synced.deliver(synced.publisher.head_topic, synced.publisher.retained[synced.publisher.head_topic])
    assert version(synced) == 2
    assert new_filters(synced, since) == []


def test_retained_delta_is_preferred_to_the_snapshot(synced: AgentShell) -> None:
    since = len(synced.effects)
    synced.publisher.release(ON)
    synced.hear()
    assert version(synced) == 2
    delta = "flagcast/1/production/flags/default/delta/2/1"
    assert new_filters(synced, since) == [delta]
    assert delta not in synced.filters, "what was fetched is unsubscribed"


def test_snapshot_where_no_delta_fits(synced: AgentShell) -> None:
    since = len(synced.effects)
    synced.publisher.release(EVIL)
    synced.publisher.release(ON)
    synced.hear()
    assert version(synced) == 3
    assert new_filters(synced, since) == ["flagcast/1/production/flags/default/snapshot/3/0"]
    assert not any("snapshot" in one for one in synced.filters)


def test_first_content_is_a_snapshot_even_beside_an_inline_delta(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(ON, inline=True)
    agent.catch_up()
    assert version(agent) == 2
    assert agent.activated[0].is_complete


def test_unchanged_records_are_not_part_of_an_update(synced: AgentShell) -> None:
    synced.publisher.release(OFF, OTHER, delta=False)
    synced.hear()
    assert [record.id.key for record in synced.activated[-1].changed] == ["other"]
    assert synced.activated[-1].removed == ()


def test_delta_that_does_not_arrive_gives_way_to_the_snapshot(synced: AgentShell) -> None:
    publisher = synced.publisher
    publisher.release(ON)
    del publisher.retained[publisher.delta_topic(2, 1)]
    synced.hear()
    assert version(synced) == 1
    deadline = synced.sync.next_deadline()
    assert deadline == synced.monotonic + fetches.FETCH_PATIENCE_SECONDS
    synced.tick(fetches.FETCH_PATIENCE_SECONDS)
    assert "flagcast/1/production/flags/default/delta/2/1" not in synced.filters
    synced.settle()
    assert version(synced) == 2


def test_snapshot_that_does_not_arrive_is_asked_for_ever_more_slowly(synced: AgentShell) -> None:
    publisher = synced.publisher
    publisher.release(ON, delta=False)
    del publisher.retained[publisher.part_topic(2)]
    synced.hear()
    waits, asked = [], 0
    for _ in range(9):
        deadline = synced.sync.next_deadline()
        assert deadline is not None
        waits.append(deadline - synced.monotonic)
        _, *effects = synced.tick(waits[-1])
        assert isinstance(effects[0], Subscribe), "no broker has to order it after an UNSUBSCRIBE"
        asked += len(effects) - 1
    assert waits[0] == fetches.FETCH_PATIENCE_SECONDS
    assert waits == sorted(waits)
    assert waits[-1] == fetches.FETCH_PATIENCE_CAP_SECONDS
    assert asked == 1 + sum(waits[1:]) // fetches.REFRESH_INTERVAL_SECONDS, (
        "the publisher is not asked each time"
    )
    publisher.publish_snapshot(publisher.content)
    synced.hear()
    assert version(synced) == 2


def test_new_head_supersedes_one_whose_content_is_awaited(synced: AgentShell) -> None:
    publisher = synced.publisher
    publisher.release(EVIL, delta=False)
    synced.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    former = "flagcast/1/production/flags/default/snapshot/2/0"
    assert former in synced.filters
    publisher.release(ON, delta=False)
    synced.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    assert former not in synced.filters
    synced.settle()
    assert version(synced) == 3


def test_new_head_of_the_same_content_keeps_the_parts_collected(synced: AgentShell) -> None:
    publisher = synced.publisher
    publisher.part_bytes = 20
    content = publisher.release(ON, OTHER, delta=False)
    synced.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    for number in range(len(content.parts) - 1):
        topic = publisher.part_topic(2, number)
        synced.deliver(topic, publisher.retained[topic])
    publisher.sign_again()
    synced.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    last = publisher.part_topic(2, len(content.parts) - 1)
    synced.deliver(last, publisher.retained[last])
    assert version(synced) == 2
    assert synced.sync.trusted.holdings[publisher.namespace].head.sequence == 3


def test_new_head_of_the_held_content_ends_a_fetch(synced: AgentShell) -> None:
    publisher = synced.publisher
    publisher.release(EVIL, delta=False)
    synced.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    publisher.release(OFF, delta=False)
    synced.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    assert version(synced) == 3
    assert not any("snapshot" in one for one in synced.filters)
    assert synced.sync.next_deadline() is None


def test_lost_connection_in_the_middle_of_a_fetch(synced: AgentShell) -> None:
    publisher = synced.publisher
    publisher.part_bytes = 20
    publisher.release(ON, OTHER, delta=False)
    synced.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    topic = publisher.part_topic(2, 0)
    synced.deliver(topic, publisher.retained[topic])
    synced.disconnect()
    synced.reconnect()
    synced.settle()
    assert version(synced) == 2
    assert synced.sync.reporting.rejections == {}


def test_re_signed_head_changes_freshness_and_nothing_else(synced: AgentShell) -> None:
    publisher = synced.publisher
    publisher.now += DAY
    synced.now += DAY
    publisher.sign_again()
    synced.hear()
    knowledge = synced.evaluator.knowledge(publisher.namespace)
    assert knowledge.expires == publisher.head.expires
    assert synced.activated[-1].changes_content is False


# The disk


def test_nothing_is_active_that_is_not_on_disk(synced: AgentShell) -> None:
    synced.publisher.release(ON, inline=True)
    effects = synced.sync.handle(
        Received(synced.publisher.head_topic, synced.publisher.retained[synced.publisher.head_topic]),
        now=synced.now,
        monotonic=synced.monotonic,
        jitter=0.5,
    )
    assert [type(effect) for effect in effects] == [PersistUpdate]
    assert synced.sync.trusted.holdings[synced.publisher.namespace].version == 1
    after = synced.sync.handle(Persisted(), now=synced.now, monotonic=synced.monotonic, jitter=0.5)
    assert [type(effect) for effect in after[:2]] == [Believe, Activate]
    assert synced.sync.trusted.holdings[synced.publisher.namespace].version == 2


@pytest.mark.parametrize("inline", [False, True])
def test_full_disk_leaves_the_old_answers_and_is_tried_again(synced: AgentShell, inline: bool) -> None:
    synced.publisher.release(ON, inline=inline)
    before = synced.belief()
    synced.fail_persisting = True
    synced.hear()
    assert synced.belief() == before
    assert "full" in synced.sync.connection.last_error
    assert synced.sync.next_deadline() == synced.monotonic + persistence.PERSIST_RETRY_SECONDS
    synced.tick(persistence.PERSIST_RETRY_SECONDS)
    synced.settle()
    assert synced.belief() == before, "the disk is still full"
    synced.fail_persisting = False
    synced.tick(persistence.PERSIST_RETRY_SECONDS)
    synced.settle()
    assert version(synced) == 2
    assert synced.evaluator.boolean(synced.publisher.namespace, BETA, EntityId("x"), {}).enabled


def test_full_disk_in_the_middle_of_a_snapshot_of_many_parts(synced: AgentShell) -> None:
    synced.publisher.part_bytes = 20
    synced.publisher.release(ON, OTHER, delta=False)
    synced.fail_persisting = True
    synced.hear()
    assert version(synced) == 1
    synced.fail_persisting = False
    synced.tick(persistence.PERSIST_RETRY_SECONDS)
    synced.settle()
    assert version(synced) == 2


def test_full_disk_is_not_tried_again_while_the_broker_is_away(synced: AgentShell) -> None:
    synced.publisher.release(ON)
    synced.fail_persisting = True
    synced.hear()
    synced.disconnect()
    synced.fail_persisting = False
    assert not any(isinstance(effect, Subscribe) for effect in synced.tick(persistence.PERSIST_RETRY_SECONDS))
    synced.reconnect()
    synced.settle()
    assert version(synced) == 2


def test_persist_failure_without_a_proposal_changes_nothing(synced: AgentShell) -> None:
    with ignored(synced):
        synced.handle(PersistFailed("x"))


# Roots


def test_rotation_subscribes_again_and_leaves_no_subscription_behind(synced: AgentShell) -> None:
    publisher = synced.publisher
    publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
    publisher.release(ON)
    since = len(synced.effects)
    synced.hear()
    assert version(synced) == 1
    assert synced.sync.trusted.root.epoch == 2
    assert sum(isinstance(effect, PersistRoot) for effect in synced.effects[since:]) == 1
    assert sorted(synced.filters) == [
        "flagcast/1/production/flags/default/head",
        "flagcast/1/production/root/3",
    ]
    assert synced.evaluator.boolean(publisher.namespace, BETA, EntityId("x"), {}).enabled
    assert synced.reports[-1].root == 2


def test_rotation_in_the_middle_of_a_fetch(synced: AgentShell) -> None:
    publisher = synced.publisher
    publisher.release(EVIL, delta=False)
    synced.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
    topic = publisher.root_topic(2)
    synced.deliver(topic, publisher.retained[topic])
    assert not any("snapshot" in one for one in synced.filters)
    publisher.release(ON)
    synced.hear()
    assert synced.evaluator.boolean(publisher.namespace, BETA, EntityId("x"), {}).enabled


def test_a_walk_over_many_roots(agent: AgentShell, publisher: PublisherSimulator) -> None:
    for number in range(20):
        publisher.rotate(root_keys=[SigningKey(f"root-{number}")])
    agent.catch_up()
    assert agent.sync.trusted.root.number == 21
    assert version(agent) == 1
    assert agent.sync.reporting.rejections == {}


def test_raised_threshold_within_an_epoch_survives_a_restart(
    tmp_path: Path,
) -> None:
    publisher = PublisherSimulator(publisher_keys=(SigningKey("publisher-a"), SigningKey("publisher-b")))
    publisher.release(ON)
    agent = AgentShell(tmp_path / "agent.db", publisher)
    agent.catch_up()
    publisher.rotate(publisher_threshold=2)
    agent.hear()
    assert agent.sync.trusted.root.roles[Role.PUBLISHER].threshold == 2
    agent.close()
    reborn = AgentShell(agent.path, publisher)
    assert version(reborn) == 1
    reborn.close()


# Reports


def test_a_report_says_what_is_held(synced: AgentShell) -> None:
    synced.publisher.release(ON)
    synced.hear()
    report = synced.reports[-1]
    held = report.applied[Namespace("default")]
    assert (held.epoch, held.version, held.sequence) == (1, 2, 2)
    assert report.is_online
    assert report.at == synced.now
    assert [one.number for one in synced.reports] == list(range(1, len(synced.reports) + 1))


def test_what_is_refused_over_and_over_is_reported_once(synced: AgentShell) -> None:
    since = len(synced.reports)
    for _ in range(5):
        synced.deliver(synced.publisher.head_topic, b"garbage")
    assert len(synced.reports) == since + 1
    assert sum(synced.sync.reporting.rejections.values()) == 5
    synced.publisher.release(ON, inline=True)
    synced.hear()
    since = len(synced.reports)
    synced.deliver(synced.publisher.head_topic, b"garbage")
    assert len(synced.reports) == since + 1, "after good news it is news again"


def test_a_device_of_many_namespaces_still_reports(synced: AgentShell) -> None:
    holding = synced.sync.trusted.holdings[synced.publisher.namespace]
    many = {Namespace(f"namespace-{number:0>90}"): holding for number in range(100)}
    synced.sync.trusted = replace(synced.sync.trusted, holdings=many)
    synced.disconnect()
    (report,) = [effect for effect in synced.reconnect() if isinstance(effect, Publish)]
    assert len(report.payload) <= REPORT_MAX_BYTES
    assert 10 < len(decode_report(report.payload).applied) < 100


# Any order


def test_messages_in_any_order_lead_to_the_same_state(tmp_path: Path) -> None:
    publisher = PublisherSimulator(part_bytes=48)
    publisher.release(OFF)
    first = publisher.save()
    publisher.release(OFF, OTHER)
    publisher.rotate(root_keys=[SigningKey("root-b")])
    publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
    publisher.release(ON, OTHER, EVIL)
    last = publisher.save()

    def run(order: list[int], extra: list[str], doubles: int, *, begins_early: bool) -> Belief:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            publisher.restore(first if begins_early else last)
            agent = AgentShell(Path(folder) / "agent.db", publisher)
            if begins_early:
                agent.catch_up()
                agent.disconnect()
                publisher.restore(last)
            agent.connect()
            for topic in extra:
                agent.deliver(topic, last[topic])
            picks = iter(order)
            for _ in range(doubles):
                agent.offer_again()
            agent.settle(lambda waiting: next(picks, 0) % waiting)
            belief = agent.belief()
            agent.close()
        assert isinstance(belief.disk, list)
        # When the device was booted at the earliest depends on when the message came that says so.
        told = [[row for row in rows if row[0] != "boot"] for rows in belief.disk]
        return replace(belief, disk=told)

    expected = run([], [], 0, begins_early=False)
    assert expected.root.number == 3
    assert [held.version for held in expected.holdings.values()] == [1]

    @settings(max_examples=60, deadline=None)
    @given(
        order=st.lists(st.integers(0, 50), max_size=40),
        extra=st.lists(st.sampled_from(sorted(last)), max_size=10),
        doubles=st.integers(0, 2),
        begins_early=st.booleans(),
    )
    def holds(order: list[int], extra: list[str], doubles: int, begins_early: bool) -> None:
        assert run(order, extra, doubles, begins_early=begins_early) == expected

    holds()


TOPICS = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        [
            "flagcast/1/production/flags/default/head",
            "flagcast/1/production/flags/default/snapshot/2/0",
            "flagcast/1/production/flags/default/delta/2/1",
            "flagcast/1/production/root/2",
            "flagcast/1/production/devices/device-1/report",
            "flagcast/1/production/flags/kiosk/head",
        ]
    ),
)


def test_garbage_on_any_topic_changes_nothing(synced: AgentShell) -> None:
    synced.publisher.release(ON)
    synced.deliver(synced.publisher.head_topic, synced.publisher.retained[synced.publisher.head_topic])
    before = synced.belief()

    @settings(max_examples=200, deadline=None)
    @given(messages=st.lists(st.tuples(TOPICS, st.binary(max_size=80)), max_size=4))
    def holds(messages: list[tuple[str, bytes]]) -> None:
        for topic, payload in messages:
            synced.deliver(topic, payload)

    holds()
    assert synced.belief() == before
    synced.tick(fetches.FETCH_PATIENCE_SECONDS)
    synced.settle()
    assert version(synced) == 2, "and news still arrives"


EVENTS = st.one_of(
    st.sampled_from(
        [
            Connected(),
            Disconnected("x"),
            Persisted(),
            PersistFailed("x"),
            Ticked(),
            Subscribed(("x",), ("x",), "no"),
            Subscribed(("flagcast/1/production/root/2", "flagcast/1/production/flags/default/head"), (), ""),
            Disconnected("x", Fault.REFUSED),
            events.Woken(),
            events.Counted((Usage(bytes(16), NOW, NOW, ()),)),
            events.Counted(()),
            events.UsageFound(1, b"x"),
            events.UsageFound(0, b""),
            events.UsageNotKept(1),
            events.Delivered(1, is_kept=True),
            events.Delivered(1, is_kept=False, may_retry=False),
        ]
    ),
    st.builds(ConnectFailed, st.sampled_from(Fault), st.just("x")),
    st.builds(Received, TOPICS, st.binary(max_size=20)),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(st.tuples(EVENTS, st.floats(0, 100)), max_size=30))
def test_any_events_in_any_order_are_taken(
    publisher: PublisherSimulator, events: list[tuple[events.Event, float]]
) -> None:
    trusted = begin(publisher.environment, Device(DeviceId("d")), publisher.anchor)
    lone = Sync(trusted, publisher.topics, (publisher.namespace,), 1, "1.0")
    monotonic = 0.0
    lone.handle(Started(), now=NOW, monotonic=monotonic, jitter=0.5)
    attempts = [monotonic]
    for event, seconds in events:
        monotonic += seconds
        effects = lone.handle(event, now=NOW, monotonic=monotonic, jitter=0.5)
        attempts += [monotonic for effect in effects if isinstance(effect, Connect)]
        deadline = lone.next_deadline()
        assert deadline is None or deadline >= 0
    assert lone.trusted.root == trusted.root
    assert not lone.trusted.holdings
    assert all(later - earlier >= transitions.RECONNECT_MIN_SECONDS for earlier, later in pairwise(attempts))
