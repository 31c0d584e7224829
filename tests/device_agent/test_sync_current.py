"""Being up to date, asking for it, asking the publisher, signs of life, and what is remembered of a broker."""

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from agent_shell import AgentShell
from publisher_simulator import NOW, PublisherSimulator, SigningKey
from releases import BETA, OFF, ON, OTHER

from flagcast_agent.sync import connection, events, fetches, reporting, subscriptions
from flagcast_agent.sync.core import Sync
from flagcast_agent.sync.events import (
    Connect,
    Connected,
    ConnectFailed,
    Disconnected,
    Fault,
    Publish,
    Remember,
    Send,
    Started,
    Subscribe,
    Subscribed,
    Ticked,
    Woken,
)
from flagcast_agent.sync.subscriptions import Subscriptions
from flagcast_agent.sync.transitions import RECONNECT_MIN_SECONDS, REMEMBER_SECONDS, BrokerMemory, LinkState
from flagcast_shared.context import Device
from flagcast_shared.ids import DeviceId, EntityId, FlagKey, Namespace, Version
from flagcast_shared.model import BooleanFlag
from flagcast_shared.reports import decode_refresh, decode_report
from flagcast_shared.trust import begin

KIOSK = Namespace("kiosk")


@pytest.fixture
def publisher() -> PublisherSimulator:
    return PublisherSimulator()


@pytest.fixture
def agent(publisher: PublisherSimulator, tmp_path: Path) -> Iterator[AgentShell]:
    shell = AgentShell(tmp_path / "agent.db", publisher)
    yield shell
    shell.close()


def wishes(agent: AgentShell) -> list[Send]:
    return [each for each in agent.effects if isinstance(each, Send) and each.topic.endswith("/refresh")]


def subscriptions_of(agent: AgentShell) -> int:
    return sum(isinstance(each, Subscribe) for each in agent.effects)


def state(agent: AgentShell) -> LinkState:
    return agent.sync.connection.state


# Up to date


def test_up_to_date_is_whoever_holds_what_the_head_names(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.connect()
    assert agent.sync.why_not_current() == ("default: no head was heard",)
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    assert agent.sync.why_not_current() == ("default: content of version 1 is awaited",)
    agent.settle()
    assert state(agent) is LinkState.LIVE
    assert agent.sync.why_not_current() == ()


def test_a_namespace_of_which_nothing_is_known_counts_after_a_quiet_time(agent: AgentShell) -> None:
    agent.connect()
    agent.tick(subscriptions.HEADLESS_PATIENCE_SECONDS - 0.1)
    assert state(agent) is LinkState.SYNCING
    agent.tick(0.2)
    assert state(agent) is LinkState.LIVE


def test_the_loss_of_a_head_that_was_there_is_not_being_up_to_date(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.catch_up()
    publisher.retained.clear()
    agent.reconnect()
    for _ in range(5):
        agent.tick(1000.0)
        assert state(agent) is LinkState.SYNCING
    assert agent.sync.why_not_current() == ("default: no head was heard",)


@pytest.mark.parametrize("lie", ["garbage", "old"])
def test_a_head_that_is_refused_is_not_being_up_to_date(
    agent: AgentShell, publisher: PublisherSimulator, lie: str
) -> None:
    publisher.release(OFF)
    old = publisher.retained[publisher.head_topic]
    publisher.release(ON)
    agent.catch_up()
    publisher.retained[publisher.head_topic] = old if lie == "old" else b"garbage"
    agent.reconnect()
    agent.settle()
    agent.tick(subscriptions.HEADLESS_PATIENCE_SECONDS)
    assert state(agent) is LinkState.SYNCING
    (why,) = agent.sync.why_not_current()
    assert ("rollback" if lie == "old" else "malformed") in why
    publisher.release(ON)
    agent.hear()
    assert state(agent) is LinkState.LIVE


def test_garbage_after_a_head_that_was_believed_takes_nothing_back(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.catch_up()
    agent.deliver(publisher.head_topic, b"garbage")
    assert state(agent) is LinkState.LIVE


def test_one_namespace_of_two_is_not_enough(tmp_path: Path, publisher: PublisherSimulator) -> None:
    publisher.release(OFF)
    agent = AgentShell(tmp_path / "two.db", publisher)
    agent.sync.subscriptions = Subscriptions(publisher.topics, (publisher.namespace, KIOSK))
    agent.catch_up()
    assert agent.sync.why_not_current() == ("kiosk: no head was heard",)
    agent.deliver(publisher.head_topic, b"garbage")
    assert agent.sync.why_not_current() == ("kiosk: no head was heard",), "what was believed stands"
    agent.tick(subscriptions.HEADLESS_PATIENCE_SECONDS)
    assert state(agent) is LinkState.LIVE
    agent.close()


def test_a_namespace_that_may_not_be_read_is_not_up_to_date_and_the_other_goes_on(
    tmp_path: Path, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent = AgentShell(tmp_path / "two.db", publisher)
    agent.sync.subscriptions = Subscriptions(publisher.topics, (publisher.namespace, KIOSK))
    agent.is_mute = True
    agent.connect()
    kiosk = "flagcast/1/production/flags/kiosk/head"
    agent.handle(
        Subscribed((publisher.root_topic(2), publisher.head_topic, kiosk), (kiosk,), "Not authorized")
    )
    agent.is_mute = False
    for _ in range(3):
        agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
        agent.settle()
        agent.tick(subscriptions.HEADLESS_PATIENCE_SECONDS)
    assert state(agent) is LinkState.SYNCING
    assert agent.sync.why_not_current() == ("kiosk: the broker refused the subscription of its head",)
    assert agent.evaluator.knowledge(publisher.namespace).version == 1
    assert wishes(agent) == []
    agent.close()


# Asking


def test_asking_while_waiting_connects_now(agent: AgentShell) -> None:
    agent.handle(Started())
    for _ in range(6):
        agent.handle(ConnectFailed(Fault.REFUSED, "no"))
        agent.tick(1_000_000.0)
    agent.handle(ConnectFailed(Fault.REFUSED, "no"))
    agent.monotonic += 5
    assert any(isinstance(each, Connect) for each in agent.handle(Woken()))


def test_whoever_asks_and_however_often_there_is_one_attempt_a_second(agent: AgentShell) -> None:
    agent.handle(Started())
    attempts = [agent.monotonic]
    for _ in range(300):
        agent.monotonic += 0.01
        effects = [*agent.handle(Woken()), *agent.handle(Ticked())]
        if any(isinstance(each, Connect) for each in effects):
            attempts.append(agent.monotonic)
        agent.handle(ConnectFailed(Fault.NETWORK, "no"))
    assert len(attempts) == 3
    assert all(later - earlier >= RECONNECT_MIN_SECONDS - 1e-6 for earlier, later in pairwise(attempts))


def test_asking_a_connected_agent_hears_the_heads_again(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.catch_up()
    agent.tick(RECONNECT_MIN_SECONDS)
    before = subscriptions_of(agent)
    agent.handle(Woken())
    assert subscriptions_of(agent) == before + 2  # the next root, and the heads
    assert (agent.sync.asked, agent.sync.answered) == (1, 0)
    agent.settle()
    assert (agent.sync.asked, agent.sync.answered) == (1, 1)
    for _ in range(50):
        agent.handle(Woken())
    assert subscriptions_of(agent) == before + 2, "asked within the same second"
    assert agent.sync.answered == 1, "what was heard before is no answer"
    agent.tick(RECONNECT_MIN_SECONDS)
    assert subscriptions_of(agent) == before + 4
    agent.settle()
    assert agent.sync.answered == agent.sync.asked == 51


def test_asking_a_link_that_is_dead_finds_it_dead_and_tries_at_once(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.catch_up()
    agent.tick(RECONNECT_MIN_SECONDS)
    agent.is_mute = True
    agent.handle(Woken())
    assert events.Disconnect() in agent.tick(connection.HURRIED_PATIENCE_SECONDS)
    assert any(isinstance(each, Connect) for each in agent.tick(0.0))
    # The next one has all the time and all the wait that there is without anybody's asking.
    agent.handle(Connected())
    assert events.Disconnect() not in agent.tick(connection.HURRIED_PATIENCE_SECONDS)
    assert events.Disconnect() in agent.tick(connection.ANSWER_PATIENCE_SECONDS)
    assert agent.tick(RECONNECT_MIN_SECONDS) == []


def test_asking_gives_a_slow_link_the_time_that_it_takes(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.handle(Started())
    agent.monotonic += 2.5
    agent.handle(Connected())
    agent.settle()
    agent.tick(RECONNECT_MIN_SECONDS)
    agent.is_mute = True
    agent.handle(Woken())
    assert events.Disconnect() not in agent.tick(9.9)
    assert events.Disconnect() in agent.tick(0.1)


def test_asking_during_an_attempt_that_hangs_begins_another_and_says_nothing_of_the_version(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.catch_up()
    agent.disconnect()
    agent.tick(10.0)
    assert state(agent) is LinkState.CONNECTING
    agent.monotonic += 1.0
    agent.handle(Woken())
    assert agent.tick(0.5) == [], "it may still succeed"
    assert events.Disconnect() in agent.tick(0.5)
    (again,) = [each for each in agent.tick(0.0) if isinstance(each, Connect)]
    assert again.protocol == "5"


def test_whoever_asks_without_end_leaves_every_other_attempt_its_time(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.catch_up()
    agent.disconnect()
    agent.tick(10.0)
    ends: list[float] = []
    began = agent.monotonic
    while len(ends) < 4:
        effects = [*agent.handle(Woken()), *agent.tick(0.25)]
        if any(isinstance(each, Connect) for each in effects):
            began = agent.monotonic
        if events.Disconnect() in effects:
            ends.append(agent.monotonic - began)
    assert ends[0] == connection.HURRIED_PATIENCE_SECONDS
    assert max(ends[1:]) >= connection.TRIAL_PATIENCE_SECONDS


def test_whoever_asks_without_end_over_a_slow_link_is_answered(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.catch_up()
    agent.tick(RECONNECT_MIN_SECONDS)
    connections = agent.sync.connection.connections
    for _ in range(10):
        agent.is_mute = True
        agent.handle(Woken())
        # The head comes first, and the answer to the subscription after more time than a silent link is given.
        agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
        assert events.Disconnect() not in agent.tick(connection.HURRIED_PATIENCE_SECONDS + 0.5)
        agent.handle(Subscribed((agent.sync._root_filter(), *agent.sync.subscriptions.head_filters)))
        assert state(agent) is LinkState.LIVE
        assert agent.sync.answered == agent.sync.asked
    assert agent.sync.connection.connections == connections


def test_a_connection_made_in_a_hurry_has_all_its_time_until_it_is_subscribed(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.catch_up()
    agent.tick(RECONNECT_MIN_SECONDS)
    agent.is_mute = True
    agent.handle(Woken())
    agent.tick(connection.HURRIED_PATIENCE_SECONDS)
    assert any(isinstance(each, Connect) for each in agent.tick(0.0))
    agent.handle(Connected())
    for _ in range(9):
        agent.handle(Woken())
        assert events.Disconnect() not in agent.tick(2.0)
    agent.handle(Subscribed((agent.sync._root_filter(), *agent.sync.subscriptions.head_filters)))
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    assert agent.sync.answered == agent.sync.asked


def test_a_loss_long_after_somebody_asked_waits_like_any_other(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.catch_up()
    publisher.retained[publisher.head_topic] = b"garbage"
    agent.tick(RECONNECT_MIN_SECONDS)
    agent.handle(Woken())
    agent.settle()
    assert state(agent) is LinkState.SYNCING
    agent.tick(10_800.0)
    agent.disconnect()
    deadline = agent.sync.next_deadline()
    assert deadline is not None
    assert deadline - agent.monotonic >= RECONNECT_MIN_SECONDS


def test_asking_during_the_first_attempt_does_not_put_off_the_older_version(agent: AgentShell) -> None:
    agent.handle(Started())
    agent.monotonic += 1.0
    agent.handle(Woken())
    assert events.Disconnect() in agent.tick(connection.TRIAL_PATIENCE_SECONDS - 1.0)
    (again,) = [each for each in agent.tick(RECONNECT_MIN_SECONDS) if isinstance(each, Connect)]
    assert again.protocol == "3.1.1"


def test_an_attempt_that_hangs_is_not_cut_short_over_and_over_where_nobody_ever_answered(
    agent: AgentShell,
) -> None:
    agent.sync.connection.protocol = "3.1.1"  # whose patience is the long one
    agent.handle(Started())
    for _ in range(19):
        agent.handle(Woken())
        assert agent.tick(1.0) == []


# Asking the publisher


def test_a_head_that_is_missing_is_asked_for(agent: AgentShell) -> None:
    agent.connect()
    agent.tick(fetches.REFRESH_PATIENCE_SECONDS - 0.1)
    assert wishes(agent) == []
    agent.tick(0.2)
    (wish,) = wishes(agent)
    assert wish.topic == "flagcast/1/production/devices/device-1/refresh"
    assert decode_refresh(wish.payload).namespaces == ("default",)


def test_a_head_that_is_there_is_not_asked_for(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(OFF)
    agent.catch_up()
    for _ in range(10):
        agent.tick(fetches.REFRESH_INTERVAL_SECONDS)
    assert wishes(agent) == []


def test_one_connection_asks_only_so_often(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(OFF)
    agent.catch_up()
    publisher.retained.clear()
    agent.reconnect()
    began = agent.monotonic
    while agent.monotonic < began + 1.5 * fetches.REFRESH_INTERVAL_SECONDS:
        deadline = agent.sync.next_deadline()
        assert deadline is not None
        agent.tick(max(0.5, deadline - agent.monotonic))
        agent.handle(Woken())
    assert len(wishes(agent)) == 2
    agent.reconnect()
    agent.tick(fetches.REFRESH_PATIENCE_SECONDS)
    assert len(wishes(agent)) == 3, "another connection may be to another broker"


def test_content_that_is_missing_is_asked_for_once_and_the_next_one_again(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.catch_up()
    for version, flag in ((2, ON), (3, OTHER)):
        publisher.release(flag, delta=False)
        del publisher.retained[publisher.part_topic(version)]
        agent.hear()
        agent.tick(fetches.FETCH_PATIENCE_SECONDS - 0.1)
        assert len(wishes(agent)) == version - 2
        agent.tick(0.2)
        agent.tick(fetches.FETCH_PATIENCE_SECONDS * 2)
        assert len(wishes(agent)) == version - 1


def test_whoever_asks_without_end_has_the_publisher_asked_no_more_often(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.catch_up()
    publisher.release(ON, delta=False)
    del publisher.retained[publisher.part_topic(2)]
    agent.hear()
    for _ in range(20):
        agent.tick(fetches.FETCH_PATIENCE_SECONDS + 1.0)
        agent.handle(Woken())
        agent.settle()
    assert len(wishes(agent)) == 1


def test_a_namespace_that_is_not_published_makes_nobody_ask_for_the_content_of_another(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.sync.subscriptions = Subscriptions(publisher.topics, (publisher.namespace, KIOSK))
    agent.catch_up()
    agent.tick(subscriptions.HEADLESS_PATIENCE_SECONDS)
    assert [decode_refresh(each.payload).namespaces for each in wishes(agent)] == [(KIOSK,)]
    publisher.release(ON, delta=False)
    slow = publisher.retained.pop(publisher.part_topic(2))
    agent.hear()
    agent.tick(fetches.FETCH_PATIENCE_SECONDS - 0.1)
    assert len(wishes(agent)) == 1
    agent.deliver(publisher.part_topic(2), slow)
    assert state(agent) is LinkState.LIVE


def test_a_snapshot_that_comes_slowly_is_neither_begun_anew_nor_asked_for(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.catch_up()
    publisher.part_bytes = 8
    content = publisher.release(ON, delta=False)
    parts = [publisher.part_topic(2, number) for number in range(len(content.parts))]
    assert len(parts) > 3
    slow = {topic: publisher.retained.pop(topic) for topic in parts}
    agent.hear()
    asked = subscriptions_of(agent)
    for topic in parts:
        agent.tick(fetches.FETCH_PATIENCE_SECONDS - 0.1)
        agent.deliver(topic, slow[topic])
        agent.deliver(topic, slow[topic])
    assert state(agent) is LinkState.LIVE
    assert subscriptions_of(agent) == asked
    assert not wishes(agent)


def test_one_large_part_has_the_time_that_a_slow_link_takes_for_it(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.catch_up()
    keys = (hashlib.sha256(bytes([number % 256, number // 256])).hexdigest() for number in range(1_000))
    content = publisher.release(*(BooleanFlag(FlagKey(key), enabled=True) for key in keys), delta=False)
    seconds = sum(map(len, content.parts)) / fetches.FETCH_BYTES_PER_SECOND
    assert len(content.parts) == 1
    assert fetches.FETCH_PATIENCE_SECONDS < seconds < fetches.FETCH_PATIENCE_CAP_SECONDS
    slow = publisher.retained.pop(publisher.part_topic(2))
    agent.hear()
    asked = subscriptions_of(agent)
    agent.tick(seconds - 0.1)
    assert (subscriptions_of(agent), len(wishes(agent))) == (asked, 0)
    agent.deliver(publisher.part_topic(2), slow)
    assert state(agent) is LinkState.LIVE


def test_two_large_namespaces_at_once_stay_within_what_a_connection_may_subscribe_to(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    many = fetches.PARTS_BY_NAME_MAX - 1
    first = agent.sync.fetches.snapshot_filters(publisher.namespace, Version(1), many)
    assert len(first) == many
    agent.sync.fetches._awaited[publisher.namespace] = fetches.Fetch(
        Version(1), many, first, 0.0, 1.0, is_delta=False
    )
    assert len(agent.sync.fetches.snapshot_filters(KIOSK, Version(1), many)) == 1
    assert len(agent.sync.fetches.snapshot_filters(KIOSK, Version(1), 1)) == 1


def test_a_device_that_hears_nothing_on_its_own_comes_to_root_head_and_content_by_asking(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.catch_up()
    publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
    publisher.release(ON)
    hidden, publisher.retained = publisher.retained, {}
    agent.reconnect()
    for asked in (1, 2, 3):
        agent.tick(fetches.REFRESH_PATIENCE_SECONDS)
        assert len(wishes(agent)) == asked
        for topic, payload in hidden.items():
            if topic in agent.filters:  # live, to who is subscribed at this moment
                agent.deliver(topic, payload)
    assert agent.sync.trusted.root.number == 2
    assert agent.evaluator.boolean(publisher.namespace, BETA, EntityId("x"), {}).enabled


def test_parts_are_asked_for_by_name_as_long_as_they_are_few(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.part_bytes = 1
    publisher.release(OFF)
    agent.connect()
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    assert publisher.head.stable.parts > fetches.PARTS_BY_NAME_MAX
    wildcard = publisher.topics.snapshot_filter(publisher.namespace, publisher.content.version)
    assert agent.effects[-1] == Subscribe((wildcard,))
    publisher.part_bytes = 30
    publisher.release(ON, delta=False)
    agent.deliver(publisher.head_topic, publisher.retained[publisher.head_topic])
    parts = publisher.head.stable.parts
    assert 1 < parts <= fetches.PARTS_BY_NAME_MAX
    assert agent.effects[-1] == Subscribe(tuple(publisher.part_topic(2, part) for part in range(parts)))


# Signs of life


def lone(device: str, heartbeat: int) -> Sync:
    publisher = PublisherSimulator()
    trusted = begin(publisher.environment, Device(DeviceId(device)), publisher.anchor)
    return Sync(trusted, publisher.topics, (publisher.namespace,), 1, "1.0", heartbeat_seconds=heartbeat)


def beats(sync: Sync, seconds: float) -> list[float]:
    """When reports are sent in a connection without news, in seconds from the start."""
    found: list[float] = []
    sync.handle(Started(), now=NOW, monotonic=0.0, jitter=0.5)
    sync.handle(Connected(), now=NOW, monotonic=0.0, jitter=0.5)
    sync.handle(Subscribed(tuple(sync.subscriptions.unconfirmed)), now=NOW, monotonic=0.0, jitter=0.5)
    at = 0.0
    while at < seconds:
        deadline = sync.next_deadline()
        at = seconds if deadline is None else max(at, deadline)
        effects = sync.handle(Ticked(), now=NOW, monotonic=at, jitter=0.5)
        found += [at for each in effects if isinstance(each, Publish) and at <= seconds]
    return found


def test_a_device_without_news_reports_once_in_every_interval() -> None:
    found = beats(lone("device-1", 3600), 10 * 3600.0)
    assert len(found) == 10
    assert all(later - earlier == pytest.approx(3600) for earlier, later in pairwise(found))


def test_a_fleet_that_is_switched_on_at_once_does_not_beat_at_once() -> None:
    first = sorted(beats(lone(f"device-{number}", 3600), 3600.0)[0] for number in range(100))
    assert first[0] < 360
    assert first[-1] > 3240
    assert max(later - earlier for earlier, later in pairwise(first)) < 360


def test_zero_turns_the_heartbeat_off() -> None:
    assert beats(lone("device-1", 0), 1_000_000.0) == []


def test_beats_that_fell_into_a_time_without_a_connection_are_not_made_up_for() -> None:
    sync = lone("device-1", 60)
    beats(sync, 100.0)
    sync.handle(Disconnected("x"), now=NOW, monotonic=101.0, jitter=0.5)
    sync.handle(Ticked(), now=NOW, monotonic=10_000.0, jitter=0.5)
    effects = sync.handle(Connected(), now=NOW, monotonic=10_000.0, jitter=0.5)
    assert sum(isinstance(each, Publish) for each in effects) == 1, "the birth"
    assert not any(
        isinstance(each, Publish) for each in sync.handle(Ticked(), now=NOW, monotonic=10_000.1, jitter=0.5)
    )


# Reports


def test_every_connection_has_a_session_of_its_own_which_birth_and_will_share(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.catch_up()
    agent.disconnect()
    agent.reconnect()
    wills = [decode_report(each.will) for each in agent.effects if isinstance(each, Connect)]
    births = [report for report in agent.reports if report.number == 1]
    assert [will.session for will in wills] == [birth.session for birth in births]
    assert len({will.session for will in wills}) == 2
    assert all(will.number == 0 and not will.is_online for will in wills)


def test_the_will_says_what_was_held_when_the_connection_was_asked_for(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.catch_up()
    agent.disconnect()
    agent.reconnect()
    first, second = [decode_report(each.will) for each in agent.effects if isinstance(each, Connect)]
    assert first.applied == {}
    assert second.applied[publisher.namespace].version == 1


def test_a_broker_that_lies_all_the_time_does_not_make_its_devices_write_all_the_time(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.release(OFF)
    agent.catch_up()
    since = len(agent.reports)
    for number in range(200):
        agent.deliver(publisher.head_topic if number % 2 else publisher.root_topic(2), b"garbage")
    assert sum(agent.sync.reporting.rejections.values()) == 200
    assert len(agent.reports) - since == reporting.REJECTIONS_TOLD_MAX


# What is remembered of a broker


def remembering(
    publisher: PublisherSimulator, memory: BrokerMemory | None, broker: str = "here:1883"
) -> Sync:
    trusted = begin(publisher.environment, Device(DeviceId("d")), publisher.anchor)
    return Sync(trusted, publisher.topics, (publisher.namespace,), 1, "1.0", broker=broker, memory=memory)


def spoken(sync: Sync, *told: events.Event, now: int = NOW) -> tuple[list[str], list[Remember]]:
    """The versions that were tried and what was remembered; the time that is waited for passes in between."""
    effects: list[events.Effect] = []
    monotonic = 0.0
    for event in told:
        effects += sync.handle(event, now=now, monotonic=monotonic, jitter=0.5)
        deadline = sync.next_deadline()
        if deadline is not None and sync.connection.state in {LinkState.BACKING_OFF, LinkState.REFUSED}:
            monotonic = deadline
            effects += sync.handle(Ticked(), now=now, monotonic=monotonic, jitter=0.5)
    return (
        [each.protocol for each in effects if isinstance(each, Connect)],
        [each for each in effects if isinstance(each, Remember)],
    )


OLD_BROKER = ConnectFailed(Fault.PROTOCOL, "unacceptable protocol version")


def test_a_broker_that_took_the_older_version_is_remembered(publisher: PublisherSimulator) -> None:
    tried, remembered = spoken(remembering(publisher, None), Started(), OLD_BROKER, Connected())
    assert tried == ["5", "3.1.1"]
    assert remembered == [Remember(BrokerMemory("here:1883", "3.1.1", NOW))]


def test_a_restart_needs_no_trial(publisher: PublisherSimulator) -> None:
    memory = BrokerMemory("here:1883", "3.1.1", NOW)
    tried, remembered = spoken(remembering(publisher, memory), Started(), Connected(), now=NOW + 1000)
    assert tried == ["3.1.1"]
    assert remembered == []


@pytest.mark.parametrize(
    ("broker", "now"),
    [("there:1883", NOW), ("here:1883", NOW + REMEMBER_SECONDS), ("here:1883", NOW - 1)],
    ids=["other", "later", "what a clock ahead wrote"],
)
def test_another_broker_another_week_and_a_clock_that_was_wrong_are_tried_anew(
    publisher: PublisherSimulator, broker: str, now: int
) -> None:
    memory = BrokerMemory("here:1883", "3.1.1", NOW)
    tried, remembered = spoken(remembering(publisher, memory, broker), Started(), Connected(), now=now)
    assert tried == ["5"]
    assert remembered == [Remember(None)]
    tried, remembered = spoken(
        remembering(publisher, memory, broker), Started(), OLD_BROKER, Connected(), now=now
    )
    assert tried == ["5", "3.1.1"]
    assert remembered == [Remember(None), Remember(BrokerMemory(broker, "3.1.1", now))]


def test_a_broker_that_was_replaced_by_one_that_wants_5_is_found_out(publisher: PublisherSimulator) -> None:
    memory = BrokerMemory("here:1883", "3.1.1", NOW)
    tried, remembered = spoken(remembering(publisher, memory), Started(), OLD_BROKER, Connected())
    assert tried == ["3.1.1", "5"]
    assert remembered == [Remember(None)]


def test_a_configured_version_is_not_remembered(publisher: PublisherSimulator) -> None:
    sync = remembering(publisher, None)
    sync.connection.protocol = "3.1.1"
    assert spoken(sync, Started(), Connected()) == (["3.1.1"], [])
