"""Staged rollouts and rollbacks over many devices: who holds what, how it came, and that nobody ever steps down."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleets import NAMESPACE, SALT, Follower, Station, followers

from flagcast_bridge.planning.plan import Action, PlanRefused
from flagcast_shared.bucketing import candidate_bucket
from flagcast_shared.ids import DeviceId, FlagKey, Version
from flagcast_shared.model import BooleanFlag, Entry
from flagcast_shared.topics import DeltaAddress, SnapshotAddress

COUNT = 300


def flags(*on: str, size: int = 30) -> list[Entry]:
    """Many flags, of which these are on."""
    return [BooleanFlag(FlagKey(f"flag-{number}"), f"flag-{number}" in on) for number in range(size)]


OLD, STABLE, NEW, NEWER = flags(), flags("flag-1"), flags("flag-1", "flag-2"), flags("flag-3")


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    made = Station(tmp_path)
    made.publish(OLD)
    made.publish(STABLE)
    yield made
    made.close()


def all_catch_up(fleet: list[Follower]) -> None:
    for each in fleet:
        each.catch_up()


def holding(fleet: list[Follower], version: int) -> set[str]:
    return {each.trusted.device.id for each in fleet if each.version == version}


def within(fleet: list[Follower], share: int) -> set[str]:
    """The devices whose bucket is below a share, computed without the code that decides."""
    return {name for name in (each.trusted.device.id for each in fleet) if bucket(name) < share}


def bucket(name: str) -> int:
    return candidate_bucket(SALT, DeviceId(name))


def test_a_rollout_from_5_percent_to_all_and_its_promotion(station: Station) -> None:
    fleet, offline = followers(station, COUNT), Follower(station, "offline")
    all_catch_up([*fleet, offline])
    assert holding(fleet, 2) == {each.trusted.device.id for each in fleet}

    begun = station.candidate(NEW, 500)
    assert (begun.action, begun.head.stable.version, begun.head.sequence) == (Action.CANDIDATE, 2, 3)
    all_catch_up(fleet)
    assert holding(fleet, 3) == within(fleet, 500)
    assert 0 < len(holding(fleet, 3)) < COUNT // 5
    assert {each.took for each in fleet if each.version == 3} == {"delta"}
    assert {each.took for each in fleet if each.version == 2} == {"nothing"}

    grown = station.share(2_000)
    assert (grown.action, grown.body, grown.contents) == (Action.SHARE, (), ())
    all_catch_up(fleet)
    assert holding(fleet, 3) == within(fleet, 2_000)

    paused = station.share(0)
    assert paused.action is Action.PAUSE
    late = followers(station, COUNT, {"late": "yes"})
    all_catch_up([*fleet, *late])
    assert holding(fleet, 3) == within(fleet, 2_000)  # who is in stays in
    assert holding(late, 2) == within(late, 10_000)  # nobody new joins

    station.share(10_000)
    all_catch_up([*fleet, *late])
    assert holding(fleet, 3) == holding(late, 3) == within(fleet, 10_000)

    promoted = station.promote()
    assert (promoted.action, promoted.body, promoted.contents) == (Action.PROMOTE, (), ())
    assert (promoted.head.stable.version, promoted.head.candidate) == (3, None)
    all_catch_up(fleet)
    assert {(each.version, each.took) for each in fleet} == {(3, "nothing")}
    offline.catch_up()
    assert (offline.version, offline.took) == (3, "head")  # the change stands in the head once it is for all
    assert offline.digest == fleet[0].digest
    new = Follower(station, "new")
    new.catch_up()
    assert (new.version, new.took, new.digest) == (3, "snapshot", offline.digest)


def test_an_aborted_rollout_takes_nobody_down(station: Station) -> None:
    fleet, offline = followers(station, COUNT), Follower(station, "offline")
    all_catch_up([*fleet, offline])
    stable = offline.digest
    station.candidate(NEW, 2_000)
    all_catch_up(fleet)
    joined = holding(fleet, 3)
    away = next(each for each in fleet if each.trusted.device.id in joined)
    rest = [each for each in fleet if each is not away]
    station.share(0)

    aborted = station.abort()
    assert (aborted.action, aborted.head.stable.version, aborted.head.candidate) == (Action.ABORT, 4, None)
    assert aborted.head.provenance == {"abort": "version 3"}
    all_catch_up(rest)
    assert holding(rest, 4) == {each.trusted.device.id for each in rest}
    assert {each.digest for each in rest} == {stable}
    assert {each.took for each in rest if each.trusted.device.id in joined} == {"head"}
    assert {each.took for each in rest if each.trusted.device.id not in joined} == {"nothing"}
    for each in (offline, away):
        each.catch_up()
        assert (each.version, each.digest) == (4, stable)

    # What comes next reaches those who were in and those who were not.
    station.publish(NEWER)
    all_catch_up([*fleet, offline])
    assert {each.version for each in (*fleet, offline)} == {5}


def test_a_candidate_that_replaces_one_takes_the_same_devices(station: Station) -> None:
    fleet = followers(station, COUNT)
    all_catch_up(fleet)
    station.candidate(NEW, 1_000)
    all_catch_up(fleet)
    joined = holding(fleet, 3)
    replaced = station.candidate(NEWER, 1_000, salt=b"another salt")
    assert (replaced.action, replaced.head.stable.version) == (Action.CANDIDATE, 2)
    assert replaced.head.candidate is not None
    assert (replaced.head.candidate.offering.version, replaced.head.candidate.salt) == (4, SALT)
    all_catch_up(fleet)
    assert holding(fleet, 4) == joined
    assert {each.took for each in fleet if each.version == 4} == {"delta"}


def test_the_same_candidate_again_is_a_head_only(station: Station) -> None:
    station.candidate(NEW, 1_000, {"ring": "pilot"})
    again = station.candidate(NEW, 1_000)
    assert (again.action, again.head_draft) == (Action.UNCHANGED, None)
    more = station.candidate(NEW, 2_000)  # labels are kept unless others are given
    assert (more.action, more.contents) == (Action.SHARE, ())
    assert more.head.candidate is not None
    assert (more.head.candidate.share, more.head.candidate.labels) == (2_000, {"ring": "pilot"})
    anyone = station.candidate(NEW, 2_000, {})
    assert anyone.head.candidate is not None
    assert (anyone.action, anyone.head.candidate.labels) == (Action.SHARE, {})


def test_labels_decide_before_the_share(station: Station) -> None:
    pilots, others = followers(station, 20, {"ring": "pilot", "site": "oslo"}), followers(station, 20)
    all_catch_up([*pilots, *others])
    station.candidate(NEW, 10_000, {"ring": "pilot"})
    all_catch_up([*pilots, *others])
    assert ({each.version for each in pilots}, {each.version for each in others}) == ({3}, {2})


def test_a_device_that_was_away_for_several_versions_takes_a_delta_to_whatever_it_is_offered(
    station: Station,
) -> None:
    early, late = followers(station, 40), followers(station, 40, {"late": "yes"})
    all_catch_up(early)
    station.publish(flags("flag-7"))
    station.publish(flags("flag-7", "flag-8"))
    station.candidate(flags("flag-7", "flag-8", "flag-9"), 5_000)
    all_catch_up([*early, *late])
    assert {(each.version, each.took) for each in early} == {(4, "delta"), (5, "delta")}
    assert {(each.version, each.took) for each in late} == {(4, "snapshot"), (5, "snapshot")}
    assert holding(early, 5) == within(early, 5_000)


def test_while_a_candidate_is_out_deltas_to_both_contents_stand(station: Station) -> None:
    station.publish(flags("flag-7"))
    station.candidate(NEW, 100)
    deltas = {(a.version, a.from_version) for a in station.retained if isinstance(a, DeltaAddress)}
    assert deltas == {(3, 1), (4, 3), (4, 2), (4, 1)}  # from 2 to 3 it stands in the head


def test_a_plain_publication_never_drops_a_candidate(station: Station) -> None:
    begun = station.candidate(NEW, 1_000)
    with pytest.raises(PlanRefused, match=r"version 3 for 10 % of the devices.*promote.*abort.*--candidate"):
        station.publish(NEWER)
    for content, whose in (
        (STABLE, "these flags are the stable ones"),
        (NEW, "these flags are the candidate's"),
    ):
        same = station.publish(content)
        assert (same.action, same.head) == (Action.UNCHANGED, begun.head)
        assert same.note.startswith("a candidate is out, version 3 for 10 % of the devices; " + whose)


def test_what_makes_no_sense_is_refused_with_what_to_do(tmp_path: Path, station: Station) -> None:
    for step in (station.promote, station.abort, lambda: station.share(100)):
        with pytest.raises(PlanRefused, match="begin with flagcast publish PATH --candidate"):
            step()
    with pytest.raises(PlanRefused, match="nothing is to be rolled back"):
        station.roll_back(2)
    station.candidate(NEW, 1_000)
    with pytest.raises(
        PlanRefused, match=r"these flags are the stable ones; take the candidate, version 3, back"
    ):
        station.candidate(STABLE, 1_000)
    with pytest.raises(PlanRefused, match=r"a candidate is out, version 3; .*abort.*promote"):
        station.roll_back(1)
    (tmp_path / "new").mkdir()
    empty = Station(tmp_path / "new")
    with pytest.raises(PlanRefused, match="publish it without --candidate first"):
        empty.candidate(NEW, 1_000)
    empty.close()


def test_a_rollback_is_an_old_content_under_a_new_version(station: Station) -> None:
    fleet, offline = followers(station, 5), Follower(station, "offline")
    all_catch_up([*fleet, offline])
    station.publish(NEW)
    all_catch_up(fleet)
    back = station.roll_back(2)
    assert (back.action, back.head.stable.version, back.head.provenance) == (
        Action.ROLLBACK,
        4,
        {"rollback": "version 2"},
    )
    assert [each.id.key for each in back.diff.changed] == ["flag-2"]
    all_catch_up([*fleet, offline])
    assert {(each.version, each.took) for each in fleet} == {(4, "head")}
    assert (offline.version, offline.took) == (4, "nothing")  # it never heard of version 3


@pytest.mark.parametrize("step", ["share", "promote", "abort"])
def test_a_step_on_a_broker_that_lost_everything_puts_it_back_too(station: Station, step: str) -> None:
    fleet = followers(station, 40)
    station.candidate(NEW, 5_000)
    all_catch_up(fleet)
    station.retained.clear()
    new = followers(station, 40, {"new": "yes"})
    done = {"share": lambda: station.share(10_000), "promote": station.promote, "abort": station.abort}[
        step
    ]()
    assert done.body
    all_catch_up([*fleet, *new])
    digests = {each.digest for each in (*fleet, *new)}
    assert len(digests) == 1
    assert {each.version for each in fleet} == ({4} if step == "abort" else {3})


def test_after_a_number_that_was_reserved_and_perhaps_seen_both_contents_get_new_versions(
    station: Station,
) -> None:
    fleet = followers(station, 60)
    station.candidate(NEW, 5_000)
    all_catch_up(fleet)
    # A run that died after it had reserved version 4; a device may have seen it.
    died = station.issued
    assert died.version == 3
    content = station.ledger.content(NAMESPACE, Version(3))
    assert content is not None
    station.ledger._database.change(
        "INSERT INTO content SELECT environment, namespace, 4, epoch, digest, parts, body, reserved FROM content"
        " WHERE version = 3"
    )
    again = station.publish(STABLE)
    assert again.head.candidate is not None
    assert (again.action, again.head.stable.version, again.head.candidate.offering.version) == (
        Action.CHANGE,
        5,
        6,
    )
    all_catch_up(fleet)
    assert {(each.version, each.took) for each in fleet} == {(5, "nothing"), (6, "nothing")}
    assert holding(fleet, 6) == within(fleet, 5_000)


def test_a_lost_delta_alone_is_restored(station: Station) -> None:
    station.publish(flags("flag-7"))
    before = dict(station.retained)
    (lost,) = (address for address in station.retained if isinstance(address, DeltaAddress))
    del station.retained[lost]
    restored = station.publish(flags("flag-7"))
    assert restored.action is Action.RESTORE
    assert {a: m for a, m in station.retained.items() if isinstance(a, DeltaAddress | SnapshotAddress)} == {
        a: m for a, m in before.items() if isinstance(a, DeltaAddress | SnapshotAddress)
    }
