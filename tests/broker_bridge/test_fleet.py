"""The state of the fleet from the devices' reports, in every order, also late, and the command that shows it."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from publishing import Flagcast, features, make_project

from brokers import Broker, start_amqtt, start_mosquitto
from flagcast_bridge import project
from flagcast_bridge.broker import connection as mqtt
from flagcast_bridge.planning.fleet import (
    RECOVERY_BOUND,
    SILENT_AFTER_SECONDS,
    Numbers,
    Published,
    claims,
    gather,
    hear,
    summarize,
)
from flagcast_shared.ids import DeviceId, Digest, Epoch, Namespace, Version
from flagcast_shared.reports import Applied, Rejection, Report, encode_report
from flagcast_shared.topics import DeviceAddress

NOW = 1_750_000_000
A, B = DeviceId("a"), DeviceId("b")
DEFAULT, KIOSK = Namespace("default"), Namespace("kiosk")
LIVE = {DEFAULT: (Epoch(1), Version(7)), KIOSK: (Epoch(1), Version(2))}


def online(session: int, number: int, version: int = 7, at: int = NOW, attack: str = "") -> Report:
    return Report(
        session,
        number,
        True,
        at,
        "1.0",
        1,
        {DEFAULT: Applied(Epoch(1), Version(version), version)},
        Rejection(attack, "default", at) if attack else None,
    )


def will(session: int, version: int = 1) -> Report:
    return replace(online(session, 0, version), is_online=False)


def test_the_late_will_of_an_old_connection_does_not_mark_a_live_device_dead() -> None:
    (member,) = gather([(A, online(1, 1)), (A, online(2, 1)), (A, will(1))]).values()
    assert member.is_online
    assert member.session == 2


def test_the_will_of_the_connection_that_was_seen_last_does() -> None:
    (member,) = gather([(A, online(1, 1)), (A, online(1, 2, 8)), (A, will(1, 6))]).values()
    assert not member.is_online
    assert member.said.applied[DEFAULT].version == 8, "a will was made before the connection"


def test_a_farewell_is_the_last_word_on_what_is_held() -> None:
    farewell = replace(online(1, 3, 9, NOW + 5), is_online=False)
    (member,) = gather([(A, online(1, 1)), (A, farewell)]).values()
    assert not member.is_online
    assert member.said.applied[DEFAULT].version == 9
    assert member.seen == NOW + 5


def test_a_device_of_which_only_the_will_is_there_is_offline_at_what_it_held() -> None:
    (member,) = gather([(A, will(1, 5))]).values()
    assert not member.is_online
    assert member.behind(LIVE) == (DEFAULT,)


def test_an_older_report_of_the_same_connection_changes_nothing() -> None:
    newer = hear(None, A, online(1, 5, 8))
    assert hear(newer, A, online(1, 4, 7)) is newer


def test_a_device_that_comes_back_is_online_again() -> None:
    (member,) = gather([(A, online(1, 1)), (A, will(1)), (A, online(2, 1))]).values()
    assert member.is_online


@pytest.mark.parametrize(
    ("applied", "behind"),
    [
        ({}, (DEFAULT, KIOSK)),
        ({DEFAULT: Applied(Epoch(1), Version(7), 9)}, ()),
        ({DEFAULT: Applied(Epoch(1), Version(8), 9)}, ()),
        ({DEFAULT: Applied(Epoch(1), Version(6), 9)}, (DEFAULT,)),
        ({KIOSK: Applied(Epoch(0), Version(99), 9)}, (KIOSK,)),
        ({Namespace("own"): Applied(Epoch(1), Version(1), 1)}, ()),
    ],
)
def test_behind_is_whoever_holds_less_than_everybody_is_offered(
    applied: dict[Namespace, Applied], behind: tuple[Namespace, ...]
) -> None:
    assert hear(None, A, replace(online(1, 1), applied=applied)).behind(LIVE) == behind


DIGEST = bytes(range(32))
OFFERED = {
    DEFAULT: Published((Epoch(1), Version(7)), {Version(7): Digest(DIGEST), Version(9): Digest(bytes(32))})
}


@pytest.mark.parametrize(
    ("held", "is_split"),
    [
        (Applied(Epoch(1), Version(7), 9, DIGEST[:8]), False),
        (Applied(Epoch(1), Version(7), 9, bytes(8)), True),
        (Applied(Epoch(1), Version(7), 9), False),  # an agent of before
        (Applied(Epoch(1), Version(9), 9, bytes(8)), False),  # the candidate
        (Applied(Epoch(1), Version(9), 9, DIGEST[:8]), True),
        (Applied(Epoch(1), Version(8), 9, bytes(8)), False),
        (Applied(Epoch(1), Version(10), 9), True),
        (Applied(Epoch(2), Version(1), 1), True),
        (Applied(Epoch(0), Version(10), 9, bytes(8)), False),
    ],
)
def test_split_is_who_holds_other_content_under_a_published_number_or_one_above(
    held: Applied, *, is_split: bool
) -> None:
    member = hear(None, A, replace(online(1, 1), applied={DEFAULT: held}))
    assert bool(member.split(OFFERED)) is is_split
    assert summarize({A: member}, LIVE, NOW, OFFERED).split == is_split


@pytest.mark.parametrize(
    ("held", "found"),
    [
        (Applied(Epoch(1), Version(7), 9), None),
        (Applied(Epoch(1), Version(8), 9), (False, False)),
        (Applied(Epoch(1), Version(7), 10), (False, False)),
        (Applied(Epoch(1), Version(7 + RECOVERY_BOUND), 9), (False, False)),
        (Applied(Epoch(1), Version(8 + RECOVERY_BOUND), 9), (True, False)),
        (Applied(Epoch(1), Version(1), 2**63 - 1), (True, False)),
        (Applied(Epoch(0), Version(2**63 - 1), 9), None),
        (Applied(Epoch(2), Version(1), 1), (False, True)),
    ],
)
def test_claims_are_numbers_above_the_known_ones(held: Applied, found: tuple[bool, bool] | None) -> None:
    fleet = gather([(A, replace(online(1, 1), applied={DEFAULT: held, KIOSK: held}))])
    listed = claims(fleet, Epoch(1), {DEFAULT: Numbers(7, 9)})
    assert [(each.is_beyond, each.is_of_later_epoch) for each in listed] == ([found] if found else [])
    assert all(each.namespace == DEFAULT for each in listed)


def test_a_fleet_in_numbers() -> None:
    fleet = gather(
        [
            (A, online(1, 1, 7, NOW - SILENT_AFTER_SECONDS - 1)),
            (B, online(1, 1, 6, attack="rollback")),
            (DeviceId("c"), will(3, 7)),
            (DeviceId("d"), Report(4, 0, is_online=False)),
        ]
    )
    summary = summarize(fleet, LIVE, NOW)
    assert (summary.devices, summary.online, summary.offline) == (4, 2, 2)
    assert (summary.silent, summary.behind) == (1, 2)
    assert summary.versions == {DEFAULT: {(1, 7): 2, (1, 6): 1}, KIOSK: {}}
    assert summary.rejections == {"rollback": 1}
    assert summary.roots == {1: 3, 0: 1}


@pytest.fixture(
    params=[
        pytest.param(start_mosquitto, id="mosquitto", marks=pytest.mark.mosquitto),
        pytest.param(start_amqtt, id="amqtt", marks=pytest.mark.amqtt),
    ]
)
def site(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[tuple[Broker, Flagcast]]:
    with request.param(tmp_path / "broker") as broker:
        make_project(tmp_path / "project", broker.url)
        flagcast = Flagcast(tmp_path / "project", capsys)
        file = tmp_path / "features.yml"
        file.write_text(features({"lights": True}))
        assert flagcast.on_project("publish", file).code == 0
        yield broker, flagcast


def report(broker: Broker, flagcast: Flagcast, *reports: tuple[str, bytes]) -> None:
    topics = project.load(flagcast.folder).topics
    retained = {topics.of(DeviceAddress(DeviceId(name), "report")): payload for name, payload in reports}
    with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
        connection.publish(list(retained.items()))
        # The embedded broker acknowledges first and retains afterwards, and not at all what it has not read when a client leaves.
        assert connection.read_back(retained) == {}


def test_the_command_shows_who_is_behind_and_who_refuses(site: tuple[Broker, Flagcast]) -> None:
    now = int(time.time())  # noqa: TID251  # what a device's clock would say
    current = {DEFAULT: Applied(Epoch(1), Version(1), 1)}
    report(
        *site,
        ("good", encode_report(replace(online(1, 1), applied=current, at=now))),
        ("empty", encode_report(replace(online(1, 1), applied={}, at=now))),
        ("attacked", encode_report(replace(online(1, 1, attack="bad_signature"), applied=current, at=now))),
        ("gone", encode_report(will(1))),
        ("liar", b"not a report"),
    )
    _, flagcast = site
    shown = flagcast.on_project("fleet")
    assert shown.code == 0
    assert "4 devices: 3 online, 1 offline, 0 silent, 1 behind" in shown.out
    assert "version 1 of epoch 1: 3 devices  <- stable" in shown.out
    assert "bad_signature: 1 device" in shown.out
    assert "devices/liar/report" in shown.out
    lines = [line.split()[0] for line in shown.out.splitlines()]
    assert {"attacked", "empty", "gone"} <= set(lines)
    assert "good" not in lines
    document = json.loads(flagcast.on_project("fleet", "--format", "json").out)
    assert document["summary"]["behind"] == 1
    assert {each["device"] for each in document["devices"]} == {"good", "empty", "attacked", "gone"}
    one = json.loads(flagcast.on_project("fleet", "--device", "empty", "--format", "json").out)
    assert [each["behind"] for each in one["devices"]] == [["default"]]
    assert "refused bad_signature" in flagcast.on_project("fleet", "--device", "attacked").out
    unknown = flagcast.on_project("fleet", "--device", "nobody")
    assert unknown.code == 1
    assert "no report of this device" in unknown.err


@pytest.mark.mosquitto
def test_more_reports_than_a_broker_queues_for_one_client_are_all_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 1500
    with start_mosquitto(tmp_path / "broker") as broker:
        make_project(tmp_path / "project", broker.url)
        flagcast = Flagcast(tmp_path / "project", capsys)
        report(broker, flagcast, *((f"d{number}", encode_report(online(1, 1))) for number in range(count)))
        assert f"{count} devices:" in flagcast.on_project("fleet").out
