"""What a fleet needs from its broker, scenario by scenario, on every broker of the matrix.

The publisher is the command, a device is the agent's process, and the broker is a real one. The name of a test here is a row of
the table in docs/brokers.md; what a broker cannot do stands in `matrix.NOTES`, and is tested too.
"""

import json
import time
from collections.abc import Callable
from contextlib import closing

import pytest
from devices import PATIENCE_SECONDS, Device
from publishing import bulky_features
from sites import Fleet

import matrix
from flagcast_bridge.broker import connection as mqtt
from flagcast_bridge.ledger.ledger import Ledger
from flagcast_shared.ids import Namespace, Version
from flagcast_shared.topics import DeltaAddress, HeadAddress, RootAddress, SnapshotAddress

pytestmark = pytest.mark.timeout(300)

DEFAULT = Namespace("default")
HEAD = HeadAddress(DEFAULT)


def snapshot(version: int, part: int = 0) -> SnapshotAddress:
    return SnapshotAddress(DEFAULT, Version(version), part)


def delta(version: int, from_version: int) -> DeltaAddress:
    return DeltaAddress(DEFAULT, Version(version), Version(from_version))


def wait_until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def started(device: Device, version: int) -> Device:
    """The device, which runs and has come to a version."""
    device.start()
    device.holds(version)
    return device


def test_a_device_that_comes_after_the_flags_gets_them(fleet: Fleet) -> None:
    fleet.publish(a=True, b=False)
    device = started(fleet.device("new"), 1)
    assert device.enabled("a", "b") == (True, False)
    assert device.stop() == 0


def test_a_device_that_comes_before_the_flags_gets_them_and_each_change_live(fleet: Fleet) -> None:
    device = fleet.device("early")
    device.start()
    device.wait_for("message=connected")
    fleet.publish(a=True, b=False)
    device.holds(1)
    fleet.publish(a=True, b=True)
    device.holds(2)
    assert device.enabled("a", "b") == (True, True)
    assert device.stop() == 0


def test_a_snapshot_in_parts_arrives_whole(fleet: Fleet) -> None:
    fleet.configure(message_limit_bytes=4096)
    last = "  - {key: last, name: last, type: BOOLEAN_FLAG_TYPE, enabled: true}\n"
    fleet.publish_text(bulky_features(20) + last)
    assert len(fleet.retained(*(snapshot(1, part) for part in range(6)))) >= 3
    device = started(fleet.device("large"), 1)
    assert device.enabled("last") == (True,)
    assert device.stop() == 0


def test_a_device_that_was_away_over_several_versions_catches_up(fleet: Fleet) -> None:
    many = {f"flag-{number}": False for number in range(30)}  # so that a delta is smaller than the whole
    fleet.publish(**many)
    device = started(fleet.device("away"), 1)
    assert device.stop() == 0
    for number in range(3):
        fleet.publish(**many | {f"flag-{number}": True})
    assert fleet.retained(delta(4, 1))
    device.start()
    device.holds(4)
    assert device.enabled("flag-1", "flag-2") == (False, True)
    assert device.stop() == 0


def test_a_staged_rollout_reaches_its_devices_and_its_abort_takes_nobody_down(fleet: Fleet) -> None:
    fleet.publish(a=False)
    pilot, other = fleet.device("pilot", "--label", "ring=pilot"), fleet.device("other")
    for device in (pilot, other):
        device.start()
    for device in (pilot, other):
        device.holds(1)
    fleet.publish("--candidate", "100", "--label", "ring=pilot", a=True)
    pilot.holds(2)
    other.wait_for("version=1 sequence=2 ")
    assert (pilot.enabled("a"), other.enabled("a")) == ((True,), (False,))
    fleet.run("rollout", "abort")
    for device in (pilot, other):
        device.holds(3)
    fleet.publish("--candidate", "100", "--label", "ring=pilot", a=True)
    fleet.run("rollout", "promote")
    for device in (pilot, other):
        device.holds(4)
        assert device.enabled("a") == (True,)
        assert device.logged_versions == sorted(device.logged_versions)
        assert device.stop() == 0


def test_new_keys_reach_devices_that_are_there_and_that_were_away(fleet: Fleet) -> None:
    fleet.publish(a=True)
    here, away = fleet.device("here"), fleet.device("away")
    for device in (here, away):
        device.start()
    for device in (here, away):
        device.holds(1)
    assert away.stop() == 0
    fleet.run("keys", "rotate", "publisher")
    fleet.publish(a=True, b=True)
    away.start()
    for device in (here, away):
        device.wait_for("root=2")
        device.holds(2)
        assert device.enabled("a", "b") == (True, True)
        assert device.stop() == 0


def test_a_broker_that_was_killed_is_found_again_by_both_sides(fleet: Fleet) -> None:
    fleet.publish(a=False)
    device, serve = started(fleet.device("steady"), 1), fleet.serve()
    before = len(serve.lines("connected"))
    fleet.site.crash()
    device.wait_until(lambda: device.log.count("message=connected") == 2, "connected again")
    serve.wait_for("connected", before + 1)
    fleet.publish(a=True)
    device.holds(2)
    assert device.enabled("a") == (True,)
    assert device.stop() == 0


def test_a_broker_that_forgot_everything_has_it_again_from_serve(fleet: Fleet) -> None:
    fleet.publish(a=True)
    whole = fleet.retained(HEAD, snapshot(1), RootAddress(1))
    assert len(whole) == 3
    serve = fleet.serve()
    before = len(serve.lines('"put back"'))
    fleet.site.crash(forgets=True)
    serve.wait_for('"put back"', before + 1)
    assert fleet.retained(*whole) == whole, "the very bytes, so that no device that has them has news"
    assert len(fleet.run("log").splitlines()) == 1
    device = started(fleet.device("new"), 1)
    assert device.enabled("a") == (True,)
    assert device.stop() == 0


def test_birth_reports_and_will_of_a_device_are_seen_by_the_publisher(
    fleet: Fleet, note: matrix.Note | None
) -> None:
    fleet.publish(a=True)
    device = started(fleet.device("mortal"), 1)
    if note is matrix.OTHER_NODE:
        with mqtt.connect(fleet.site.far.host, fleet.site.far.port, fleet.login()) as there:
            topic = fleet.project.topics.of(fleet.report_of(device))
            device.wait_until(lambda: there.read([topic]), "it stands on its own node")
        assert fleet.member(device) == {}, "the publisher's node shows it, and the note is wrong"
        return
    named = ("--device", fleet.id_of(device)) if note is matrix.BY_NAME else ()
    if named:
        assert "shows no retained message to a subscription with wildcards" in fleet.run("fleet")
        assert fleet.member(device) == {}
    device.wait_until(lambda: fleet.member(device, *named).get("is_online"), "its birth")
    device.wait_until(lambda: fleet.member(device, *named).get("applied"), "its report of what it has")
    device.kill()
    wait_until(lambda: fleet.member(device, *named).get("is_online") is False, "its will")


def test_evaluations_are_counted_once(fleet: Fleet) -> None:
    fleet.run("usage", "collect", "--once")  # from now on the broker keeps what comes
    fleet.publish(a=True)
    device = fleet.device("counting")
    device.configure({}, "[usage]", "interval_seconds = 1")
    started(device, 1)
    for _ in range(5):
        assert device.enabled("a") == (True,)

    def counted() -> int:
        assert "known already: 0" in fleet.run("usage", "collect", "--once")
        document = json.loads(fleet.run("usage", "--format", "json"))
        return sum(each["evaluations"] for each in document["usage"])

    device.wait_until(lambda: counted() >= 5, "all of them")
    assert device.stop() == 0
    assert counted() == 5


def test_a_device_that_hears_no_head_asks_and_serve_answers(fleet: Fleet) -> None:
    fleet.publish(a=True)
    serve, device = fleet.serve(), fleet.device("asking")
    with closing(Ledger(fleet.project.ledger, fleet.project.environment)) as ledger, ledger.lease("a test"):
        fleet.put(HEAD, b"")  # serve hears of it, and cannot do anything yet
        device.start()
        device.wait_for("no head was heard; asking for it to be published again")
    device.holds(1)
    serve.wait_until(lambda: 'why="a device asked"' in serve.log, "it has heard the device")
    assert device.stop() == 0


def test_content_that_is_gone_comes_again_when_a_device_asks(fleet: Fleet) -> None:
    fleet.publish(a=True)
    fleet.serve()
    fleet.put(snapshot(1), b"")  # in silence: nobody listens there
    device = started(fleet.device("asking"), 1)
    # In a cluster the head was asked for before, and the next request comes sooner.
    if not fleet.site.is_cluster:
        asked = device.log.count("content did not arrive; asking again")
        assert asked == 1, "it came live, when it was asked for once"
    assert device.enabled("a") == (True,)
    assert device.stop() == 0


def test_old_versions_do_not_stay_on_the_broker(fleet: Fleet) -> None:
    fleet.configure(grace_seconds=2)
    fleet.publish(a=True)
    fleet.publish(a=False)
    assert set(fleet.retained(HEAD, snapshot(1), snapshot(2))) == {HEAD, snapshot(1), snapshot(2)}
    fleet.serve().wait_for("cleared")
    assert set(fleet.retained(HEAD, snapshot(1), snapshot(2))) == {HEAD, snapshot(2)}


def test_one_node_that_is_killed_takes_nobody_else_with_it(fleet: Fleet) -> None:
    near, far = fleet.site.near, fleet.site.far
    fleet.publish(a=False)
    device, serve = started(fleet.device("steady"), 1), fleet.serve()
    before = len(serve.lines("connected"))
    near.kill()
    serve.wait_for('"connection lost"')
    assert device.enabled("a") == (False,)
    near.start()
    serve.wait_for("connected", before + 1)
    fleet.publish(a=True)
    device.holds(2)
    far.kill()
    device.wait_for("connection lost")
    assert device.enabled("a") == (True,)
    fleet.publish(a=False)
    far.start()
    device.holds(3)
    assert device.enabled("a") == (False,)
    assert device.stop() == 0
