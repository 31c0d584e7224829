"""Several bridges on one environment: real processes on one mosquitto, with a ledger in a file and on PostgreSQL."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from postgres import Postgres
from publishing import Flagcast, configure, features, make_project
from serving import Serve

from brokers import Broker, start_mosquitto
from flagcast_bridge import clock, project
from flagcast_bridge.broker import connection as mqtt
from flagcast_bridge.ledger import ledger
from flagcast_bridge.publishing import publish as publisher
from flagcast_shared.ids import Namespace

pytestmark = pytest.mark.mosquitto

HEAD = "flags/default/head"
DONE, HELD = 0, 4
# The command, once for each flags file; with a short lease, another clock, and a signal to itself before or after the n-th call
# of a method.
BRIDGE = """
import os, signal, sys, threading
from pathlib import Path
from flagcast_bridge import cli, clock
from flagcast_bridge.ledger import ledger
from flagcast_bridge.broker import connection as mqtt
method, when, number, name, lease, ahead, folder, *files = sys.argv[1:]
ledger.LEASE_SECONDS, ledger.LEASE_RENEW_SECONDS = float(lease), float(lease) / 5
mqtt.QUIET_SECONDS = 0.2
now = clock.now
clock.now = lambda: now() + int(ahead)
if method:
    owner = {"reserve": ledger.Ledger, "check_lease": ledger.Ledger, "publish": mqtt.Connection}[method]
    original, left = getattr(owner, method), [int(number)]
    # Not while the lease is being renewed: whoever is stopped then has the file locked, which is another story.
    renewing, renew = threading.Lock(), ledger.Ledger._renewed
    def renewed(*arguments):
        with renewing:
            return renew(*arguments)
    ledger.Ledger._renewed = renewed
    def interrupt():
        with renewing:
            os.kill(os.getpid(), getattr(signal, name))
    def interrupted(*arguments):
        left[0] -= 1
        if left[0] == 0 and when == "before":
            interrupt()
        result = original(*arguments)
        if left[0] == 0 and when == "after":
            interrupt()
        return result
    setattr(owner, method, interrupted)
sys.exit(max(cli.main(["publish", path, "--project", folder, "--yes"]) for path in files))
"""


@dataclass(slots=True)
class Site:
    """A broker, and the folders of two bridges: one and the same where the ledger is a file, else two with the same keys."""

    broker: Broker
    folders: tuple[Path, Path]
    capture: pytest.CaptureFixture[str]

    def write(self, name: str, **flags: bool) -> Path:
        path = self.broker.folder / f"{name}.yml"
        path.write_text(features(flags))
        return path

    def start(
        self,
        *files: Path,
        at: tuple[str, str, int] = ("", "", 0),
        name: str = "SIGSTOP",
        lease: float = 60.0,
        ahead: int = 0,
    ) -> subprocess.Popen[bytes]:
        """The first bridge, as a process; interrupted before or after the n-th call of a method."""
        method, when, number = at
        options = (method, when, str(number), name, str(lease), str(ahead), str(self.folders[0]))
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", BRIDGE, *options, *map(str, files)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def publish(self, path: Path, *arguments: str) -> tuple[int, str]:
        """As the second bridge, in this process."""
        done = self.command("publish", path, *arguments)
        return done.code, done.out + done.err

    def command(self, command: str, *arguments: str | Path) -> Any:
        return Flagcast(self.folders[1], self.capture).on_project(command, *arguments)

    def log(self) -> list[dict[str, Any]]:
        """Every number that was issued, the oldest first."""
        listed: list[dict[str, Any]] = json.loads(self.command("log", "--format", "json").out)
        return sorted(listed, key=lambda each: each["sequence"])

    def retained(self) -> dict[str, bytes]:
        with self.connect() as connection:
            found = connection.read_all(["flagcast/#"])
        return {topic.removeprefix("flagcast/1/test/"): data for topic, data in found.items() if data}

    def numbers(self) -> tuple[int, int]:
        """Version and sequence of the head on the broker, which is believed and whole."""
        seen = publisher.read_broker(project.load(self.folders[1]))
        live = seen.live[Namespace("default")]
        assert (dict(seen.refused), live.is_whole) == ({}, True)
        return live.head.stable.version, live.head.sequence

    def connect(self) -> mqtt.Connection:
        return mqtt.connect(self.broker.host, self.broker.port, mqtt.Login())


@pytest.fixture(autouse=True)
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine a broker has sent all retained messages long before the time that networks are given."""
    monkeypatch.setattr(mqtt, "QUIET_SECONDS", 0.2)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with start_mosquitto(tmp_path / "broker") as started:
        yield started


def site_on(broker: Broker, where: Path | str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    first = make_project(tmp_path / "first", broker.url).folder
    if isinstance(where, Path):
        return Site(broker, (first, first), capsys)
    configure(first, {"ledger": json.dumps(where)})
    second = tmp_path / "second"
    shutil.copytree(first, second)
    return Site(broker, (first, second), capsys)


@pytest.fixture
def site(broker: Broker, ledger_at: Path | str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    return site_on(broker, ledger_at, tmp_path, capsys)


@pytest.fixture
def shared_site(
    broker: Broker, postgres_server: Postgres, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Site:
    return site_on(broker, postgres_server.emptied(), tmp_path, capsys)


def wait_until_stopped(process: subprocess.Popen[bytes]) -> None:
    """Until it has stopped itself, as one does whose machine froze."""
    found = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert found is not None
    if found.si_code != os.CLD_STOPPED:
        pytest.fail(f"it has ended instead: {process.communicate()}")


def test_bridges_that_publish_at_once_take_turns_and_use_no_number_twice(site: Site) -> None:
    rounds = 3
    racing = []
    for who in ("left", "right"):
        files = [site.write(f"{who}-{each}", **{f"{who}-{each}": True}) for each in range(rounds)]
        racing.append(site.start(*files))
    ended = [each.communicate(timeout=200) for each in racing]
    assert [each.returncode for each in racing] == [DONE, DONE], ended
    issued = site.log()
    assert [each["sequence"] for each in issued] == list(range(1, 2 * rounds + 1))
    assert [each["version"] for each in issued] == list(range(1, 2 * rounds + 1))
    assert {each["state"] for each in issued} == {"published"}
    assert site.numbers() == (2 * rounds, 2 * rounds)


def test_the_next_bridge_takes_over_from_one_that_was_killed_before_its_lease_ends(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "LEASE_SILENCE_SECONDS", 1.0)
    killed = site.start(site.write("killed", a=True), at=("reserve", "after", 1), name="SIGKILL")
    _, error = killed.communicate(timeout=200)
    assert killed.returncode == -signal.SIGKILL, error
    began = time.monotonic()
    code, said = site.publish(site.write("next", b=True))
    assert code == DONE, said
    assert time.monotonic() - began < ledger.LEASE_SECONDS / 2
    assert [(each["version"], each["state"]) for each in site.log()] == [(1, "reserved"), (2, "published")]
    assert site.numbers() == (2, 2)


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(("reserve", "before", 1), id="before_numbers"),
        pytest.param(("check_lease", "before", 2), id="before_heads"),
    ],
)
def test_a_bridge_that_froze_past_its_lease_publishes_nothing_when_it_thaws(
    site: Site, at: tuple[str, str, int]
) -> None:
    frozen = site.start(site.write("frozen", a=True), at=at, lease=1.0)
    wait_until_stopped(frozen)
    code, said = site.publish(site.write("next", b=True))
    assert code == DONE, said
    before, issued = site.retained(), site.log()
    os.kill(frozen.pid, signal.SIGCONT)
    _, error = frozen.communicate(timeout=200)
    assert (frozen.returncode, b"has taken over at 20" in error) == (HELD, True), error
    assert (site.retained(), site.log()) == (before, issued)
    assert len({(each["version"], each["sequence"]) for each in issued}) == len(issued)


def test_a_head_that_a_frozen_bridge_had_in_its_hand_is_an_older_one_and_does_not_stay(
    broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = site_on(broker, tmp_path, tmp_path, capsys)
    frozen = site.start(site.write("frozen", a=True), at=("publish", "before", 2), lease=1.0)
    wait_until_stopped(frozen)
    flags = site.write("next", b=True)
    assert site.publish(flags)[0] == DONE
    os.kill(frozen.pid, signal.SIGCONT)
    _, error = frozen.communicate(timeout=200)
    assert (frozen.returncode, b"has taken over" in error) == (HELD, True), error
    # The broker closes a connection before the lease ends, which is too short here; then nothing but the number protects.
    assert site.numbers() == (1, 1)
    code, said = site.publish(flags)
    assert (code, "it was restored from an older state" in said) == (DONE, True)
    assert site.numbers() == (2, 3)


def test_a_broker_has_closed_the_connection_of_a_frozen_bridge_before_its_lease_ends() -> None:
    # MQTT 5, 3.1.2.10: within one and a half of the keepalive.
    assert ledger.LEASE_SECONDS - ledger.LEASE_RENEW_SECONDS > 1.5 * mqtt.KEEPALIVE_SECONDS


def test_a_bridge_that_cannot_renew_its_lease_cuts_its_connection_to_the_broker(
    broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = site_on(broker, tmp_path, tmp_path, capsys)
    flags = site.write("flags", a=True)
    with monkeypatch.context() as patched:
        patched.setattr(ledger, "LEASE_STOP_SECONDS", 0.1)
        patched.setattr(mqtt, "QUIET_SECONDS", 60.0)  # it is in the middle of reading when that time is over
        began = time.monotonic()
        code, said = site.publish(flags)
        assert (code, "could not be renewed for" in said) == (1, True)
        assert time.monotonic() - began < 60
    assert site.retained() == {}
    assert site.publish(flags)[0] == DONE


@pytest.mark.postgres
def test_heads_are_dated_by_the_clock_that_all_bridges_share(shared_site: Site) -> None:
    bridge = shared_site.start(shared_site.write("fast", a=True), ahead=7_200)
    _, error = bridge.communicate(timeout=200)
    assert (bridge.returncode, b"warning" in error) == (DONE, False), error
    seen = publisher.read_broker(project.load(shared_site.folders[1]))
    assert abs(seen.live[Namespace("default")].head.issued - clock.now()) < 60


@pytest.mark.postgres
def test_a_second_serve_goes_on_when_the_first_is_killed(shared_site: Site, tmp_path: Path) -> None:
    assert shared_site.publish(shared_site.write("flags", a=True))[0] == DONE
    head = shared_site.retained()[HEAD]
    first, second = (Serve(folder, tmp_path / f"{folder.name}.log") for folder in shared_site.folders)
    with first, second:
        first.wait_for("checked")
        second.wait_for("checked")
        first.stop(signal.SIGKILL)
        with shared_site.connect() as connection:
            connection.publish([(f"flagcast/1/test/{HEAD}", b"")])
        second.wait_for('"put back"')
        assert shared_site.retained()[HEAD] == head
    assert len(shared_site.log()) == 1
