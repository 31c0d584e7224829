"""Publishing against real brokers: mosquitto over MQTT 5 and 3.1.1, and the embedded one."""

import datetime as dt
import json
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from lossy_front import UNSUBACK, front_that_drops
from publishing import Flagcast, bulky_features, configure, features, make_project

from brokers import Broker, free_port, start_amqtt, start_mosquitto
from flagcast_bridge import clock, project
from flagcast_bridge.broker import connection as mqtt
from flagcast_bridge.ledger.ledger import Ledger
from flagcast_bridge.publishing import publish as publisher
from flagcast_bridge.signing import signer
from flagcast_shared.ids import Namespace
from flagcast_shared.messages import Place, encode_head
from flagcast_shared.topics import HeadAddress, Kind, SnapshotAddress

KINDS = [
    pytest.param(("mosquitto", "5"), id="mosquitto-5", marks=pytest.mark.mosquitto),
    pytest.param(("mosquitto", "3.1.1"), id="mosquitto-3.1.1", marks=pytest.mark.mosquitto),
    pytest.param(("amqtt", "auto"), id="amqtt", marks=pytest.mark.amqtt),
]
DIE_AT = """
import os, signal, sys
from flagcast_bridge import cli
from flagcast_bridge.broker import connection as mqtt
publish, left = mqtt.Connection.publish, [int(sys.argv[1])]
def publish_or_die(self, messages):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    publish(self, messages)
mqtt.Connection.publish = publish_or_die
cli.main(sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class Site:
    """A broker, a project on it, and the command."""

    broker: Broker
    folder: Path
    flagcast: Flagcast

    def publish(self, text: str, *arguments: str) -> tuple[int, str]:
        """Publish a flags file of this text; the exit code and everything printed."""
        path = self.folder / "features.yml"
        path.write_text(text)
        done = self.flagcast.on_project("publish", path, *arguments)
        return done.code, done.out + done.err

    def show(self) -> Mapping[str, dict[str, object]]:
        """What is live, by namespace; nothing may be refused."""
        done = self.flagcast.on_project("show", "--format", "json")
        document = json.loads(done.out)
        assert (done.code, document["refused"]) == (0, [])
        return {each["namespace"]: each for each in document["namespaces"]}

    def retained(self) -> dict[str, bytes]:
        """Every retained message on the broker, without the topics' common beginning."""
        with self.connect() as connection:
            found = connection.read_all(["flagcast/#"])
        return {topic.removeprefix("flagcast/1/test/"): data for topic, data in found.items()}

    def put(self, topic: str, data: bytes) -> None:
        """Retain anything, as anybody on the broker's network could; returns when the broker shows it."""
        place = f"flagcast/1/test/{topic}"
        with self.connect() as connection:
            connection.publish([(place, data)])
            # The embedded broker acknowledges first and retains afterwards.
            while connection.read_all([place]).get(place, b"") != data:
                pass

    def connect(self) -> mqtt.Connection:
        return mqtt.connect(self.broker.host, self.broker.port, mqtt.Login())


@pytest.fixture(autouse=True)
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine a broker has sent all retained messages long before the time that networks are given."""
    monkeypatch.setattr(mqtt, "QUIET_SECONDS", 0.2)


@pytest.fixture(params=KINDS)
def site(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Site]:
    kind, protocol = request.param
    start = start_mosquitto if kind == "mosquitto" else start_amqtt
    with start(tmp_path / "broker") as broker:
        settings = {"protocol": f'"{protocol}"', "grace_seconds": "0"}
        made = make_project(tmp_path / "fleet", broker.url, settings)
        yield Site(broker, made.folder, Flagcast(made.folder, capsys))


@pytest.fixture
def on_mosquitto(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Site]:
    with start_mosquitto(tmp_path / "broker") as broker:
        made = make_project(tmp_path / "fleet", broker.url)
        yield Site(broker, made.folder, Flagcast(made.folder, capsys))


def test_flags_are_published_shown_changed_and_old_versions_cleared(site: Site) -> None:
    code, said = site.publish(features({"a": True, "b": False}))
    assert code == 0, said
    assert "+ flag a" in said
    assert set(site.retained()) == {"root/1", "flags/default/head", "flags/default/snapshot/1/0"}
    shown = site.show()["default"]
    assert (shown["version"], shown["sequence"], shown["epoch"], shown["records"]) == (1, 1, 1, 2)
    assert (shown["is_fresh"], shown["is_whole"]) == (True, True)
    assert shown["provenance"] == {"source": "features.yml"}

    before = site.retained()
    code, said = site.publish(features({"b": False, "a": True}))
    assert (code, "unchanged at version 1" in said, "up to date" in said) == (0, True, True)
    assert site.retained() == before

    code, said = site.publish(features({"a": False, "b": False}), "--provenance", "commit=1a2b")
    assert (code, "~ flag a: enabled true -> false" in said) == (0, True)
    assert set(site.retained()) == {"root/1", "flags/default/head", "flags/default/snapshot/2/0"}
    shown = site.show()["default"]
    assert (shown["version"], shown["sequence"], shown["provenance"]) == (2, 2, {"commit": "1a2b"})


def test_a_large_snapshot_travels_in_parts_below_the_limit(site: Site) -> None:
    configure(site.folder, {"message_limit_bytes": "4096"})
    code, said = site.publish(bulky_features(40))
    assert code == 0, said
    messages = {topic: data for topic, data in site.retained().items() if topic.startswith("flags/")}
    assert len(messages) > 5
    assert max(len(data) for data in messages.values()) <= 4_096
    shown = site.show()["default"]
    assert (shown["parts"], shown["is_whole"]) == (len(messages) - 1, True)


def test_messages_of_the_default_limit_pass(site: Site) -> None:
    code, said = site.publish(bulky_features(160))
    assert code == 0, said
    sizes = [len(data) for topic, data in site.retained().items() if "snapshot" in topic]
    assert len(sizes) == 2
    assert max(sizes) > 40_000


def test_a_dry_run_shows_the_difference_and_changes_nothing(site: Site) -> None:
    site.publish(features({"a": True}))
    before, log = site.retained(), site.flagcast.on_project("log").out
    code, said = site.publish(features({"a": False}), "--dry-run")
    assert (code, "~ flag a" in said, "nothing was published" in said) == (0, True, True)
    assert site.retained() == before
    assert site.flagcast.on_project("log").out == log


def test_a_dry_run_needs_neither_a_key_nor_a_ledger_and_leaves_none(on_mosquitto: Site) -> None:
    project.load(on_mosquitto.folder).publisher_key.unlink()
    before = set(on_mosquitto.folder.rglob("*"))
    code, said = on_mosquitto.publish(features({"a": True}), "--dry-run")
    assert (code, "+ flag a" in said) == (0, True)
    assert set(on_mosquitto.folder.rglob("*")) - before == {on_mosquitto.folder / "features.yml"}


def test_a_broken_file_publishes_nothing(site: Site) -> None:
    site.publish(features({"a": True}))
    before = site.retained()
    code, said = site.publish(features({"a": False, "b": True}).replace("key: b", "key: a"))
    assert (code, "error FC122" in said, "nothing was published" in said) == (1, True, True)
    assert site.retained() == before


TWICE = """
flags:
  - {key: lights, name: Lights, type: BOOLEAN_FLAG_TYPE, enabled: true}
segments:
  - key: s
    name: S
    match_type: ANY_MATCH_TYPE
    constraints:
      - {type: STRING_COMPARISON_TYPE, property: device.lable, operator: eq, value: a}
      - {type: STRING_COMPARISON_TYPE, property: device.lable, operator: eq, value: b}
      - {type: STRING_COMPARISON_TYPE, property: device.model, operator: eq, value: c}
      - {type: STRING_COMPARISON_TYPE, property: device.lable, operator: eq, value: d}
"""


def test_a_warning_is_printed_once_with_its_number(on_mosquitto: Site) -> None:
    code, said = on_mosquitto.publish(TWICE)
    assert code == 0
    lines = [line for line in said.splitlines() if "warning FC236" in line]
    assert len(lines) == 1
    assert lines[0].endswith("(3 times)")
    assert "features.yml:9:" in lines[0], "the first of them"
    assert all(not line.endswith("times)") for line in said.splitlines() if "FC236" not in line)


def test_namespaces_that_are_not_named_are_left_alone_unless_removed(site: Site) -> None:
    site.publish(features({"a": True}) + "---\n" + features({"b": True}, "mobile"))
    code, said = site.publish(features({"a": False}))
    assert (code, "mobile: not in" in said, "--remove mobile" in said) == (0, True, True)
    assert (site.show()["mobile"]["version"], site.show()["default"]["version"]) == (1, 2)
    code, said = site.publish(features({"a": False}), "--remove", "mobile")
    assert (code, "- flag b" in said) == (0, True)
    shown = site.show()["mobile"]
    assert (shown["version"], shown["records"]) == (2, 0)
    assert site.publish(features({"a": False}), "--remove", "absent")[0] == 2
    assert site.publish(features({"a": False}), "--remove", "default")[0] == 2


def test_the_log_holds_every_number(site: Site) -> None:
    site.publish(features({"a": True}))
    site.publish(features({"a": True}), "--refresh")
    site.publish(features({"a": False}))
    entries = json.loads(site.flagcast.on_project("log", "--format", "json").out)
    assert [(each["sequence"], each["version"], each["action"], each["state"]) for each in entries] == [
        (3, 2, "change", "published"),
        (2, 1, "refresh", "published"),
        (1, 1, "change", "published"),
    ]
    lines = site.flagcast.on_project("log").out.splitlines()
    assert len(lines) == 3
    assert "head 3  version 2  change  published" in lines[0]


def test_a_broker_that_lost_everything_gets_the_same_versions_under_new_heads(site: Site) -> None:
    site.publish(features({"a": True}))
    snapshot = site.retained()["flags/default/snapshot/1/0"]
    site.broker.restart()
    assert site.retained() == {}
    code, said = site.publish(features({"a": True}))
    assert (code, "restore" in said) == (0, True)
    assert site.retained()["flags/default/snapshot/1/0"] == snapshot
    shown = site.show()["default"]
    assert (shown["version"], shown["sequence"]) == (1, 2)


def test_a_lost_part_is_published_again(site: Site) -> None:
    site.publish(features({"a": True}))
    snapshot = site.retained()["flags/default/snapshot/1/0"]
    site.put("flags/default/snapshot/1/0", b"")
    done = site.flagcast.on_project("show")
    assert (done.code, "NOT WHOLE" in done.out) == (1, True)
    assert site.publish(features({"a": True}))[0] == 0
    assert site.retained()["flags/default/snapshot/1/0"] == snapshot


def test_what_others_put_on_the_broker_is_named_not_believed_and_replaced(site: Site) -> None:
    site.publish(features({"a": True}))
    site.put("flags/default/head", b"forged")
    site.put("flags/other/head", b"")
    site.put("root/1", b"forged root")
    site.put("flags/strange", b"x")
    done = site.flagcast.on_project("show")
    assert (done.code, "REFUSED flagcast/1/test/flags/default/head: malformed" in done.out) == (1, True)
    code, said = site.publish(features({"a": True}))
    assert code == 0, said
    assert "flags/default/head on the broker is not believed (malformed)" in said
    assert "'flagcast/1/test/flags/strange' on the broker is no topic of ours" in said
    shown = site.show()["default"]
    assert (shown["version"], shown["sequence"]) == (1, 2)
    made = project.load(site.folder)
    assert site.retained()["root/1"] == made.root_file(1).read_bytes()


def test_numbers_go_on_above_a_newer_head_when_the_ledger_was_lost(site: Site) -> None:
    site.publish(features({"a": True}))
    site.publish(features({"a": False}))
    for path in site.folder.glob("ledger.sqlite*"):
        path.unlink()
    code, said = site.publish(features({"a": True}))
    assert (code, "--without-ledger goes on above what is live" in said) == (1, True)
    assert site.show()["default"]["version"] == 2
    code, said = site.publish(features({"a": True}), "--without-ledger")
    assert (code, "head 2 is live, and the ledger knows of none" in said) == (0, True)
    shown = site.show()["default"]
    assert (shown["version"], shown["sequence"]) == (3, 3)


@pytest.mark.parametrize("published_before", [0, 1])
def test_a_publisher_that_is_killed_between_any_two_steps_never_uses_a_number_again(
    site: Site, published_before: int
) -> None:
    site.publish(features({"a": True}))
    before = site.retained()
    path = site.folder / "next.yml"
    path.write_text(features({"a": False}))
    command = [sys.executable, "-c", DIE_AT, str(published_before)]
    command += ["publish", str(path), "--project", str(site.folder)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    # Devices still see the whole old version: only the head moves them.
    assert site.retained().items() >= before.items()
    code, said = site.publish(features({"a": False}))
    assert code == 0, said
    shown = site.show()["default"]
    assert (shown["version"], shown["sequence"]) == (3, 3)
    assert set(site.retained()) == {"root/1", "flags/default/head", "flags/default/snapshot/3/0"}
    entries = json.loads(site.flagcast.on_project("log", "--format", "json").out)
    assert [(each["version"], each["state"]) for each in entries] == [
        (3, "published"),
        (2, "reserved"),
        (1, "published"),
    ]


def test_a_head_that_was_published_but_not_noted_is_noted_by_the_next_run(site: Site) -> None:
    site.publish(features({"a": True}))
    path = site.folder / "next.yml"
    path.write_text(features({"a": False}))
    # Dies when it wants to clear; the head is out. Undone in the ledger: the run ended just before noting it.
    command = [sys.executable, "-c", DIE_AT, "2", "publish", str(path), "--project", str(site.folder)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    with sqlite3.connect(site.folder / "ledger.sqlite") as connection:
        connection.execute("UPDATE head SET published = NULL WHERE sequence = 2")
    connection.close()
    code, said = site.publish(features({"a": False}))
    assert (code, "unchanged at version 2" in said) == (0, True)
    entries = json.loads(site.flagcast.on_project("log", "--format", "json").out)
    assert [each["state"] for each in entries] == ["published", "published"]
    assert set(site.retained()) == {"root/1", "flags/default/head", "flags/default/snapshot/2/0"}


def test_what_no_head_names_stays_for_the_grace_period(
    on_mosquitto: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = clock.now()

    def publish_at(seconds: int, **flags: bool) -> set[str]:
        with monkeypatch.context() as patched:
            patched.setattr(clock, "now", lambda: now + seconds)
            code, said = on_mosquitto.publish(features(flags))
        assert code == 0, said
        return {topic for topic in on_mosquitto.retained() if "snapshot" in topic}

    first, second, third = (f"flags/default/snapshot/{version}/0" for version in (1, 2, 3))
    assert publish_at(0, a=True) == {first}
    assert publish_at(10, a=False) == {first, second}
    assert publish_at(1_000, a=True, b=True) == {first, second, third}
    assert publish_at(3_609, a=True, b=True) == {first, second, third}
    assert publish_at(3_610, a=True, b=True) == {second, third}  # an hour after version 2 took its place
    assert publish_at(4_600, a=True, b=True) == {third}


@pytest.mark.parametrize("published_before", [0, 1, 2])
def test_what_a_killed_publisher_left_goes_after_the_grace_period_and_no_device_sees_a_mixture(
    on_mosquitto: Site, monkeypatch: pytest.MonkeyPatch, published_before: int
) -> None:
    configure(on_mosquitto.folder, {"message_limit_bytes": "4096"})
    on_mosquitto.publish(bulky_features(12))
    path = on_mosquitto.folder / "next.yml"
    path.write_text(bulky_features(12, seed="new"))
    command = [sys.executable, "-c", DIE_AT, str(published_before)]
    command += ["publish", str(path), "--project", str(on_mosquitto.folder)]
    killed = subprocess.run(command, check=False, capture_output=True)
    is_published = published_before == 2
    assert killed.returncode == (0 if is_published else -signal.SIGKILL)  # there is nothing to be cleared yet
    seen = publisher.read_broker(project.load(on_mosquitto.folder))
    live = seen.live[Namespace("default")]
    # Whatever the head names is there, whole and of one version.
    assert (live.head.stable.version, live.is_whole, seen.refused) == (2 if is_published else 1, True, {})
    orphans = {at for at in on_mosquitto.retained() if "snapshot/2" in at}
    assert bool(orphans) == (published_before > 0)

    code, said = on_mosquitto.publish(bulky_features(12, seed="newer"))
    assert code == 0, said
    assert orphans <= on_mosquitto.retained().keys()
    later = clock.now() + 3_601
    monkeypatch.setattr(clock, "now", lambda: later)
    code, said = on_mosquitto.publish(bulky_features(12, seed="newer"))
    assert (code, "nothing to publish" in said) == (0, True)
    assert not orphans & on_mosquitto.retained().keys()
    shown = on_mosquitto.show()["default"]
    assert shown["is_whole"] is True


def test_nothing_of_a_namespace_that_this_project_does_not_know_is_ever_cleared(site: Site) -> None:
    site.put("flags/other/snapshot/1/0", b"theirs")
    site.put("flags/other/delta/2/1", b"theirs")
    site.put("root/7", b"theirs")
    site.publish(features({"a": True}))
    site.publish(features({"a": False}))
    assert {"flags/other/snapshot/1/0", "flags/other/delta/2/1", "root/7"} <= site.retained().keys()


def test_deltas_from_the_last_versions_stand_on_the_broker_and_a_lost_one_comes_back(site: Site) -> None:
    flags = {f"flag-{number}": False for number in range(40)}
    said = [site.publish(features(flags | {f"flag-{number}": True}))[1] for number in range(4)]
    assert "deltas for devices at version 2, 1" in said[-1]
    before = site.retained()
    deltas = {topic for topic in before if "delta" in topic}
    assert deltas == {"flags/default/delta/4/2", "flags/default/delta/4/1"}
    assert site.show()["default"]["is_whole"] is True

    site.put("flags/default/delta/4/1", b"")
    done = site.flagcast.on_project("show")
    assert (done.code, "LOST flagcast/1/test/flags/default/delta/4/1" in done.out) == (1, True)
    code, again = site.publish(features(flags | {"flag-3": True}))
    assert (code, "restore, version 4" in again) == (0, True)
    assert site.retained().items() >= {(topic, before[topic]) for topic in deltas}

    site.put("flags/default/delta/4/1", b"forged")
    assert site.publish(features(flags | {"flag-3": True}))[0] == 0
    assert site.retained()["flags/default/delta/4/1"] == before["flags/default/delta/4/1"]


def test_a_root_that_has_expired_publishes_nothing_and_says_what_to_do(
    on_mosquitto: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_mosquitto.publish(features({"a": True}))
    before = on_mosquitto.retained()
    expires = publisher.read_broker(project.load(on_mosquitto.folder)).root.expires
    for now, exit_code, words in (
        (expires - 86_400, 0, "root 1 expires at"),
        (expires, 1, "make the next root with flagcast keys rotate root"),
    ):
        monkeypatch.setattr(clock, "now", lambda: now)  # noqa: B023  # read in this turn
        code, said = on_mosquitto.publish(features({"a": True}), "--dry-run")
        assert (code, words in said) == (exit_code, True), said
    code, said = on_mosquitto.publish(features({"a": False}))
    assert (code, "devices take nothing new under it" in said) == (1, True)
    assert on_mosquitto.retained() == before


def test_a_candidate_is_published_steered_and_promoted_on_every_broker(site: Site) -> None:
    site.publish(features({"a": False}))
    code, said = site.publish(features({"a": True}), "--candidate", "12.5", "--label", "ring=pilot")
    assert code == 0, said
    assert "candidate, version 1 (was 1), candidate 2" in said
    assert "12.5 % of the devices with ring=pilot" in said
    shown = site.show()["default"]
    assert shown["is_whole"] is True
    candidate = shown["candidate"]
    assert isinstance(candidate, dict)
    assert (candidate["version"], candidate["share"], candidate["labels"]) == (2, 12.5, {"ring": "pilot"})

    salts = []
    for arguments in (("set", "20"), ("set", "0.29"), ("pause",), ("promote",)):
        head = publisher.read_broker(project.load(site.folder)).live[Namespace("default")].head
        salts.append(head.candidate.salt if head.candidate else b"")
        done = site.flagcast.on_project("rollout", *arguments)
        assert done.code == 0, done.err
    assert len(set(salts)) == 1
    assert len(salts[0]) == 16
    (status,) = json.loads(site.flagcast.on_project("rollout", "status", "--format", "json").out)
    assert (status["stable"], status["candidate"]) == (2, None)
    log = json.loads(site.flagcast.on_project("log", "--format", "json").out)
    told = [(e["action"], e["candidate"] and e["candidate"]["share"]) for e in log]
    assert told == [
        ("promote", None),
        ("pause", 0.0),
        ("share", 0.29),
        ("share", 20.0),
        ("candidate", 12.5),
        ("change", None),
    ]
    assert "candidate 2 for 0.29 % with ring=pilot" in site.flagcast.on_project("log").out


def test_a_lost_part_of_a_candidate_is_seen_and_restored(site: Site) -> None:
    site.publish(features({"a": False}))
    site.publish(features({"a": True}), "--candidate", "5")
    before = site.retained()["flags/default/snapshot/2/0"]
    site.put("flags/default/snapshot/2/0", b"")
    done = site.flagcast.on_project("show")
    assert (done.code, "candidate 2 for 5 %, NOT WHOLE" in done.out) == (1, True)
    code, said = site.publish(features({"a": False}))
    assert (code, "restore" in said) == (0, True)
    assert site.retained()["flags/default/snapshot/2/0"] == before
    assert site.show()["default"]["is_whole"] is True


def test_a_rollback_needs_a_namespace_where_there_are_several(site: Site) -> None:
    site.publish(features({"a": True}) + "---\n" + features({"b": True}, "mobile"))
    site.publish(features({"a": False}) + "---\n" + features({"b": True}, "mobile"))
    done = site.flagcast.on_project("rollback")
    assert (done.code, "name the one to roll back: default, mobile" in done.err) == (2, True)
    done = site.flagcast.on_project("rollback", "--namespace", "mobile")
    assert (done.code, "nothing else was published before" in done.err) == (1, True)
    done = site.flagcast.on_project("rollback", "--namespace", "default")
    assert (done.code, "rollback, version 3 (was 2)" in done.out) == (0, True)
    assert site.show()["default"]["provenance"] == {"rollback": "version 1"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--candidate", "101"), "'101' is no share: allowed is 0 to 100"),
        (("--candidate", "1.234"), "at most two decimals"),
        (("--candidate", "-1"), "is no share"),
        (("--candidate", "1e1"), "is no share"),
        (("--label", "a=b"), "belong to --candidate"),
        (("--candidate", "5", "--label", "ab"), "allowed is NAME=VALUE"),
        (("--candidate", "5", "--remove", "x"), "not together with --candidate"),
    ],
)
def test_a_candidate_that_is_badly_asked_for_is_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    made = make_project(tmp_path / "fleet", "mqtt://127.0.0.1:1")
    (tmp_path / "features.yml").write_text(features({"a": True}))
    done = Flagcast(made.folder, capsys).on_project("publish", tmp_path / "features.yml", *arguments)
    assert (done.code, says in done.err) == (2, True), done.err


def test_a_head_that_a_stranger_signed_is_refused_by_name(on_mosquitto: Site, tmp_path: Path) -> None:
    on_mosquitto.publish(features({"a": True}))
    made = project.load(on_mosquitto.folder)
    head = publisher.read_broker(made).live[Namespace("default")].head
    stranger = signer.create("publisher")
    place = Place(made.environment, Namespace("default"), Kind.HEAD)
    forged = signer.sign_message(encode_head(head), place, [stranger], 1)
    on_mosquitto.put("flags/default/head", forged)
    seen = publisher.read_broker(made)
    assert seen.refused[HeadAddress(Namespace("default"))].attack == "unknown_key"
    assert seen.live == {}


def test_a_part_of_another_snapshot_is_refused_and_replaced(on_mosquitto: Site) -> None:
    on_mosquitto.publish(features({"a": True}))
    old = on_mosquitto.retained()["flags/default/snapshot/1/0"]
    on_mosquitto.publish(features({"a": False}))
    on_mosquitto.put("flags/default/snapshot/2/0", old)
    seen = publisher.read_broker(project.load(on_mosquitto.folder))
    (refused,) = seen.refused.items()
    assert refused[0] == SnapshotAddress(
        Namespace("default"), seen.live[Namespace("default")].head.stable.version, 0
    )
    assert refused[1].attack == "replayed"
    code, said = on_mosquitto.publish(features({"a": False}))
    assert (code, "restore" in said) == (0, True)
    assert on_mosquitto.show()["default"]["version"] == 2


def test_a_key_that_the_root_does_not_name_publishes_nothing(on_mosquitto: Site) -> None:
    made = project.load(on_mosquitto.folder)
    made.publisher_key.unlink()
    signer.create("publisher").save(made.publisher_key)
    code, said = on_mosquitto.publish(features({"a": True}))
    assert (code, "does not name this key" in said) == (2, True)
    assert on_mosquitto.retained() == {}


def test_a_bridge_does_not_wait_longer_than_it_was_told_to_and_says_who_is_at_work(
    on_mosquitto: Site,
) -> None:
    made = project.load(on_mosquitto.folder)
    with closing(Ledger(made.ledger, made.environment)) as ledger, ledger.lease("process 1 on elsewhere"):
        code, said = on_mosquitto.publish(features({"a": True}), "--wait", "0")
        assert (code, "another publisher is at work: process 1 on elsewhere, since 20" in said) == (4, True)
        code, said = on_mosquitto.publish(features({"a": True}), "--wait", "1")
        assert (code, "waiting for process 1 on elsewhere, at work since 20" in said) == (4, True)
        assert on_mosquitto.publish(features({"a": True}), "--wait", "-1")[0] == 2
        assert on_mosquitto.publish(features({"a": True}), "--dry-run")[0] == 0
    assert on_mosquitto.retained() == {}


@pytest.mark.mosquitto
def test_what_a_broker_drops_of_a_long_answer_is_asked_for_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # It drops what is beyond this and does not fit into the connection; first comes what was there first. The messages are
    # several times as much as what sockets keep.
    with start_mosquitto(tmp_path / "broker", lines=["max_queued_messages 100"]) as broker:
        read_after_the_broker_has_sent(monkeypatch, broker)
        site = site_on(broker, tmp_path, capsys)
        rest = [(f"flagcast/1/test/flags/rest/snapshot/{each}/0", bytes(100_000)) for each in range(1, 601)]
        with site.connect() as connection:
            for first in range(0, len(rest), 10):
                connection.publish(rest[first : first + 10])
            assert len(connection.read_all(["flagcast/#"])) < len(rest)
        names = [f"n{number}" for number in range(30)]
        code, said = site.publish("---\n".join(features({"a": True}, name) for name in names))
        assert code == 0, said
        shown = site.show()
        assert [shown[name]["is_whole"] for name in names] == [True] * len(names)
        code, said = site.publish("---\n".join(features({"a": True}, name) for name in names))
        assert (code, said.count("unchanged at version 1, head 1\n")) == (0, len(names))


@pytest.mark.mosquitto
def test_an_answer_that_a_broker_drops_with_its_queue_full_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "UNSUBSCRIBE_SECONDS", 0.5)
    with (
        start_mosquitto(tmp_path) as broker,
        front_that_drops(broker.port, UNSUBACK, 2) as port,
        mqtt.connect("127.0.0.1", port, mqtt.Login()) as connection,
    ):
        connection.publish([("a", b"1")])
        assert connection.read_all(["#"]) == {"a": b"1"}
        assert connection.read(["a"]) == {"a": b"1"}


def read_after_the_broker_has_sent(monkeypatch: pytest.MonkeyPatch, broker: Broker) -> None:
    """Whoever reads all takes the first message, and the next one once the broker has sent or dropped every other.

    mosquitto has one thread, so it answers a later client when it has done with the subscription.
    """
    take, read_all = mqtt.Connection._on_message, mqtt.Connection.read_all
    begun = set[mqtt.Connection]()

    def take_late(self: mqtt.Connection, *arguments: Any) -> None:
        if self in begun:
            begun.remove(self)
            mqtt.connect(broker.host, broker.port, mqtt.Login()).close()
        take(self, *arguments)

    def read_late(self: mqtt.Connection, filters: Sequence[str]) -> dict[str, bytes]:
        begun.add(self)
        return read_all(self, filters)

    monkeypatch.setattr(mqtt.Connection, "_on_message", take_late)
    monkeypatch.setattr(mqtt.Connection, "read_all", read_late)


def site_on(broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    made = make_project(tmp_path / "fleet", broker.url)
    return Site(broker, made.folder, Flagcast(made.folder, capsys))


def test_no_broker_is_exit_code_3_with_what_to_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_project(tmp_path / "fleet", f"mqtt://127.0.0.1:{free_port()}")
    flagcast = Flagcast(tmp_path / "fleet", capsys)
    (tmp_path / "features.yml").write_text(features({"a": True}))
    for done in (flagcast.on_project("publish", tmp_path / "features.yml"), flagcast.on_project("show")):
        assert done.code == 3
        assert "Connection refused; check broker.url" in done.err
        assert done.err.count("\n") == 1


def test_what_is_no_mqtt_broker_is_said_to_be_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "CONNECT_TIMEOUT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        make_project(tmp_path / "fleet", f"mqtt://127.0.0.1:{silent.getsockname()[1]}")
        done = Flagcast(tmp_path / "fleet", capsys).on_project("show")
    assert (done.code, "no MQTT answer" in done.err) == (3, True)


@pytest.mark.mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1", "auto"])
def test_a_broker_that_refuses_the_user_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: str
) -> None:
    with start_mosquitto(tmp_path / "broker", user=("publisher", "secret")) as broker:
        site = site_on(broker, tmp_path, capsys)
        configure(site.folder, {"protocol": f'"{protocol}"'})
        code, said = site.publish(features({"a": True}))
        assert (code, "refused us: Not authorized" in said, "broker.password_file" in said) == (3, True, True)
        (site.folder / "p").write_text("wrong\n")
        configure(site.folder, {"user": '"publisher"', "password_file": '"p"'})
        assert site.publish(features({"a": True}))[0] == 3
        (site.folder / "p").write_text("secret\n")
        code, said = site.publish(features({"a": True}))
        assert code == 0, said
        assert "secret" not in said


@pytest.mark.mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_takes_only_small_messages_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: str
) -> None:
    with start_mosquitto(tmp_path / "broker", lines=["max_packet_size 6000"]) as broker:
        site = site_on(broker, tmp_path, capsys)
        configure(site.folder, {"protocol": f'"{protocol}"'})
        code, said = site.publish(bulky_features(40))
        assert (code, "message_limit_bytes" in said) == (3, True)
        assert not any("head" in topic for topic in site.retained())
        configure(site.folder, {"message_limit_bytes": "5500"})
        code, said = site.publish(bulky_features(40))
        assert code == 0, said


@pytest.mark.mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_swallows_what_it_acknowledges_is_found_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "READ_BACK_TIMEOUT_SECONDS", 1.0)
    rules = tmp_path / "acl"
    # Anybody may read everything and write nothing but snapshots.
    rules.write_text(
        "topic read #\ntopic readwrite flagcast/1/test/root/+\ntopic readwrite flagcast/1/test/flags/+/snapshot/#\n"
    )
    rules.chmod(0o600)
    with start_mosquitto(tmp_path / "broker", lines=[f"acl_file {rules}"]) as broker:
        site = site_on(broker, tmp_path, capsys)
        configure(site.folder, {"protocol": f'"{protocol}"'})
        code, said = site.publish(features({"a": True}))
        assert code == 3
        assert ("does not let this user publish" if protocol == "5" else "returns nothing") in said
        assert "flags/default/head" in said
        assert json.loads(site.flagcast.on_project("log", "--format", "json").out)[0]["state"] == "reserved"


@pytest.mark.mosquitto
def test_a_broker_without_retained_messages_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with start_mosquitto(tmp_path / "broker", lines=["retain_available false"]) as broker:
        code, said = site_on(broker, tmp_path, capsys).publish(features({"a": True}))
        assert (code, "keeps no retained messages" in said) == (3, True)


@pytest.mark.mosquitto
def test_tls_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_certificate(tmp_path)
    port = free_port()
    lines = [f"certfile {tmp_path / 'server.pem'}", f"keyfile {tmp_path / 'server.key'}"]
    with start_mosquitto(tmp_path / "broker", port=port, lines=lines):
        made = make_project(tmp_path / "fleet", f"mqtts://localhost:{port}")
        flagcast = Flagcast(made.folder, capsys)
        done = flagcast.on_project("show")
        assert (done.code, "is not trusted: " in done.err) == (3, True)
        configure(made.folder, {"ca_file": f'"{tmp_path / "server.pem"}"'})
        done = flagcast.on_project("show")
        assert (done.code, done.out.splitlines()[-1]) == (0, "nothing is published")
        configure(made.folder, {"url": f'"mqtts://127.0.0.1:{port}"'})
        done = flagcast.on_project("show")
        assert (done.code, "is not trusted: " in done.err) == (3, True)
        configure(made.folder, {"ca_file": '"absent.pem"'})
        done = flagcast.on_project("show")
        assert (done.code, "broker.ca_file cannot be used" in done.err) == (2, True)
    with start_mosquitto(tmp_path / "plain") as broker:
        configure(made.folder, {"url": f'"mqtts://localhost:{broker.port}"', "ca_file": '""'})
        done = flagcast.on_project("show")
        assert (done.code, "TLS" in done.err) == (3, True)


def make_certificate(folder: Path) -> None:
    """A self-signed certificate of `localhost`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    start = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=36_500))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "server.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "server.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
