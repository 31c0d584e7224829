"""What time it is at least, and that every protocol judges age and staleness by it."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from admitted import History
from agent_shell import AgentShell
from devices import Device, provision
from flagd_calls import VERSIONS, calling
from followed import FollowedAgent, boolean, wait_until
from local_server import ENTRIES, NOW, running
from publisher_simulator import DAY, PublisherSimulator, SigningKey
from raw_http1 import HttpClient
from releases import ON

from flagcast_agent import clock, config
from flagcast_agent.boot import boot
from flagcast_agent.client import Change, Client
from flagcast_agent.doctor import examine
from flagcast_agent.store.reader import Reader
from flagcast_agent.sync.time_floor import TimeFloor

YEAR = 365 * DAY


# The value


def test_time_goes_on_from_the_floor_where_the_clock_is_behind() -> None:
    floor = TimeFloor().learn(1_000_000, 500.0)
    assert floor.now(0, 500.0) == 1_000_000
    assert floor.now(0, 560.9) == 1_000_060
    assert floor.now(1_000_050, 560.9) == 1_000_060
    assert floor.now(2_000_000, 560.9) == 2_000_000


def test_only_the_floor_itself_says_that_the_clock_is_behind() -> None:
    # A monotonic clock is never set right: one that runs fast must not make every other clock look wrong.
    floor = TimeFloor().learn(1_000_000, 500.0)
    assert floor.allows(1_000_000)
    assert floor.allows(1_000_059)
    assert not floor.allows(999_999)


def test_a_later_floor_that_is_older_news_does_not_take_time_back() -> None:
    floor = TimeFloor().learn(1_000_000, 0.0).learn(1_000_010, 100.0)
    assert floor.time == 1_000_010
    assert floor.now(0, 100.0) == 1_000_100


def test_an_earlier_floor_takes_back_what_was_believed() -> None:
    floor = TimeFloor().learn(2**63 - 1, 0.0).learn(1_000_000, 100.0)
    assert floor.now(0, 101.0) == 1_000_001


def test_within_a_boot_another_process_goes_on_and_after_it_none_can_say() -> None:
    persisted = TimeFloor(boot="this one").learn(1_000_000, 100.0)
    assert TimeFloor(boot="this one").resume(persisted, 1_100.0).now(0, 1_100.0) == 1_001_000
    assert TimeFloor(boot="the next").resume(persisted, 5.0).now(0, 6.0) == 1_000_001
    nameless = TimeFloor().learn(1_000_000, 100.0)
    assert TimeFloor().resume(nameless, 1_100.0).now(0, 1_100.0) == 1_000_000


def test_looking_again_at_what_a_former_boot_persisted_does_not_stop_the_time() -> None:
    persisted = TimeFloor(boot="the last").learn(1_000_000, 100.0)
    mine = TimeFloor(boot="this one").resume(persisted, 5.0)
    assert mine.resume(persisted, 65.0).now(0, 65.0) == 1_000_060


def test_it_is_on_disk_with_what_led_to_it(tmp_path: Path) -> None:
    publisher = PublisherSimulator()
    publisher.release(ON)
    agent = AgentShell(tmp_path / "agent.sqlite", publisher)
    agent.catch_up()
    agent.monotonic += 100
    agent.store.persist_floor(agent.sync.floor)
    assert agent.store.load().floor == agent.sync.floor == TimeFloor(publisher.now, publisher.now - 1000)
    assert Reader(agent.path).belief()[0] == agent.sync.floor
    in_this_boot = TimeFloor(publisher.now, publisher.now - 7, "this one")
    agent.store.persist_floor(in_this_boot)
    changes = agent.store._connection.total_changes
    agent.store.persist_floor(in_this_boot)
    assert agent.store._connection.total_changes == changes, "what is there is not written again"
    with closing(Reader(agent.path)) as reader:
        seen = reader.look({})
    assert seen is not None
    assert seen.floor == in_this_boot
    agent.close()


def test_a_later_anchor_of_a_later_epoch_takes_the_time_of_a_stolen_key_back(tmp_path: Path) -> None:
    publisher = PublisherSimulator(now=clock.now())
    publisher.release(ON)
    (tmp_path / "anchor").write_bytes(publisher.anchor)
    with provision(tmp_path / "device", tmp_path / "anchor", "mqtt://127.0.0.1:1883") as device:
        settings = config.load(device.folder)
        agent = AgentShell(settings.store, publisher)
        publisher.now += 100 * YEAR
        publisher.sign_again()
        agent.catch_up()
        agent.close()
        assert examined(device)[0] == "warning"
        publisher.now -= 100 * YEAR
        root = publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
        settings.anchor.write_bytes(publisher.retained[publisher.root_topic(2)])
        booted = boot(settings)
        booted.store.close()
        assert (booted.trusted.root, booted.trusted.floor) == (root, root.issued)
        assert booted.evaluator.floor.time == root.issued
        assert examined(device)[0] == "ok"


def examined(device: Device) -> tuple[str, str]:
    """What `doctor` says of the clock."""
    (found,) = [one for one in examine(device.folder) if one.check == "clock"]
    return found.verdict, found.found


# Every protocol

BEHIND = TimeFloor(int(NOW) + 10 * DAY, int(NOW) + 10 * DAY)
"""What a device believes whose clock says NOW and was ten days behind when it booted a moment ago."""


def by_flagd(version: str) -> Callable[[Path], dict[str, Any]]:
    def ask(path: Path) -> dict[str, Any]:
        with calling(path, version) as client:
            fields = client.resolve("ResolveBoolean", "on").metadata.fields
        return {name: getattr(value, value.WhichOneof("kind")) for name, value in fields.items()}

    return ask


def by_http(target: str) -> Callable[[Path], dict[str, Any]]:
    def ask(path: Path) -> dict[str, Any]:
        body = {"flagKey": "on"} if "flagd" in target else {}
        with HttpClient(path) as client:
            response = client.post_json(target, body)
        assert response.status == 200, response.body
        found = response.json["metadata"]
        assert isinstance(found, dict)
        return found

    return ask


WAYS: dict[str, Callable[[Path], dict[str, Any]]] = {
    **{f"flagd {version} by gRPC": by_flagd(version) for version in VERSIONS},
    "flagd by Connect": by_http("/flagd.evaluation.v2.Service/ResolveBoolean"),
    "all of flagd by Connect": by_http("/flagd.evaluation.v2.Service/ResolveAll"),
    "OFREP": by_http("/ofrep/v1/evaluate/flags/on"),
    "all of OFREP": by_http("/ofrep/v1/evaluate/flags"),
}


@pytest.mark.parametrize("way", WAYS)
def test_answers_on_a_device_whose_clock_is_behind_are_as_old_as_they_are(way: str) -> None:
    with running(None) as server:
        history = History(issued=int(NOW) - DAY, expires=int(NOW) + 6 * DAY)
        server.evaluator.activate(history.begin(ENTRIES))
        found = WAYS[way](server.path)
        assert (found["age_seconds"], found["stale"]) == (DAY, False)
        assert "clock_trusted" not in found
        server.evaluator.floor = BEHIND
        found = WAYS[way](server.path)
        assert 11 * DAY <= found["age_seconds"] < 11 * DAY + 60
        assert (found["stale"], found["clock_trusted"]) == (True, False)


def test_the_etag_is_of_trust_in_the_clock_too() -> None:
    with running(None) as server, HttpClient(server.path) as client:
        server.evaluator.activate(History(issued=1, expires=int(NOW) + YEAR).begin(ENTRIES))
        first = client.post_json("/ofrep/v1/evaluate/flags", {}).headers["etag"]
        server.evaluator.floor = BEHIND
        later = client.post_json("/ofrep/v1/evaluate/flags", {}, {"if-none-match": first})
        assert (later.status, later.json["metadata"]["stale"]) == (200, False)


# In process


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FollowedAgent]:
    followed = FollowedAgent(tmp_path / "agent.sqlite")
    followed.publish(boolean("a", enabled=True))
    yield followed
    followed.close()


class Clocks:
    """This process's clocks: the device's own stands still at `wall`, the monotonic one is ahead by `passed`."""

    def __init__(self) -> None:
        self.wall = 0
        self.passed = 0.0
        self.running = clock.monotonic

    def monotonic(self) -> float:
        return self.running() + self.passed


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch, agent: FollowedAgent) -> Clocks:
    made = Clocks()
    monkeypatch.setattr(clock, "now", lambda: made.wall)
    monkeypatch.setattr(clock, "monotonic", made.monotonic)
    return made


def test_an_application_on_a_device_without_a_clock_is_told_how_old_its_flags_are(
    agent: FollowedAgent, clocks: Clocks
) -> None:
    with Client(agent.path) as client:
        changes: list[Change] = []
        client.listen(changes.append)
        details = client.evaluate("a", False)
        assert (details.value, details.is_stale, details.clock_is_trusted) == (True, False, False)
        assert 0 <= details.age_seconds < 60
        assert client.status().clock_is_trusted is False
        clocks.passed += 8 * DAY
        wait_until(lambda: changes)
        assert changes[0].freshness == "stale"
        details = client.evaluate("a", False)
        assert (details.value, details.is_stale) == (True, True)
        assert 8 * DAY - 1 <= details.age_seconds < 8 * DAY + 60  # rounded down
        (status,) = client.status().namespaces
        assert (status.freshness, round(status.age / DAY)) == ("stale", 8)
        # A new head is news of the time too.
        agent.publisher.now += 20 * DAY
        agent.sign_again(seconds_ago=0)
        wait_until(lambda: not client.evaluate("a", False).is_stale)
        clocks.wall = agent.publisher.now + DAY
        details = client.evaluate("a", False)
        assert (details.clock_is_trusted, details.age_seconds) == (True, DAY)
        assert client.status().clock_is_trusted is True


def test_an_application_that_starts_late_knows_what_time_has_passed_in_this_boot(
    agent: FollowedAgent, clocks: Clocks
) -> None:
    agent.shell.store.persist_floor(
        TimeFloor(boot=clock.boot_id()).learn(agent.publisher.now, clock.monotonic())
    )
    clocks.passed += 8 * DAY
    with Client(agent.path) as client:
        details = client.evaluate("a", False)
        assert (details.is_stale, round(details.age_seconds / DAY)) == (True, 8)


def test_another_boot_begins_again_from_the_floor(agent: FollowedAgent, clocks: Clocks) -> None:
    agent.shell.store.persist_floor(TimeFloor(boot="another").learn(agent.publisher.now, clock.monotonic()))
    clocks.passed += 8 * DAY
    with Client(agent.path) as client:
        assert client.evaluate("a", False).age_seconds < 60


def test_a_new_epoch_takes_the_time_of_a_stolen_key_back(agent: FollowedAgent, clocks: Clocks) -> None:
    agent.publisher.now += 100 * YEAR
    agent.sign_again(seconds_ago=0)
    with Client(agent.path) as client:
        assert client.evaluate("a", False).clock_is_trusted is False
        agent.publisher.now -= 100 * YEAR
        clocks.wall = agent.publisher.now
        agent.publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
        agent.publish(boolean("a", enabled=False))
        wait_until(lambda: client.evaluate("a", True).epoch == 2)
        details = client.evaluate("a", True)
        assert (details.value, details.is_stale, details.clock_is_trusted) == (False, False, True)
