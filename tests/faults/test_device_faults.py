"""A device's disk, database and broker fail: the agent goes on with what it has, says so, and is right again afterwards."""

import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from devices import Device, provision
from publisher_simulator import PublisherSimulator
from updates import FLAGS, generation, generation_of

from brokers import Broker, start_mosquitto
from flagcast_bridge.broker import connection as mqtt

pytestmark = pytest.mark.mosquitto


def release(simulator: PublisherSimulator, broker: Broker, number: int) -> None:
    """The next version, on the broker."""
    simulator.now = int(time.time())  # noqa: TID251  # what a publisher's clock would say
    simulator.release(*generation(number), inline=False)
    with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
        connection.publish(list(simulator.retained.items()))


@contextmanager
def device_in_sync(
    tmp_path: Path, broker: Broker, store: Path | None = None
) -> Iterator[tuple[Device, PublisherSimulator]]:
    """A running device that has admitted version 1."""
    simulator = PublisherSimulator(now=int(time.time()))  # noqa: TID251  # what a publisher's clock would say
    release(simulator, broker, 1)
    anchor = tmp_path / "anchor"
    anchor.write_bytes(simulator.anchor)
    with provision(tmp_path / "device", anchor, broker.url) as device:
        if store is not None:
            with (device.folder / "agent.toml").open("a") as config:
                config.write(f'\n[paths]\nstore = "{store}"\n')
        device.start()
        device.wait_for("message=admitted")
        yield device, simulator


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False)
    if done.returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(file: Path) -> None:
    """Writes until the disk is full, which raises OSError."""
    with file.open("wb", buffering=0) as out:
        while True:
            out.write(bytes(4096))


def test_a_full_disk_leaves_the_old_answers_is_told_and_is_no_harm_once_there_is_room(
    tmp_path: Path, small_disk: Path
) -> None:
    with (
        start_mosquitto(tmp_path / "broker") as broker,
        device_in_sync(tmp_path, broker, small_disk / "agent.sqlite") as (device, simulator),
    ):
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space left"):
            fill(filler)
        # Several, because a write-ahead log that is there already has room for some.
        number = 1
        while "could not be persisted" not in device.log:
            number += 1
            release(simulator, broker, number)
            last = number
            device.wait_until(
                lambda last=last: last in device.logged_versions or "could not be persisted" in device.log,  # type: ignore[misc]  # mypy: a default of a lambda has no type
                "an answer to the update",
            )
        held = max(device.logged_versions)
        assert generation_of(device.variants(FLAGS)) == held < number
        link = device.status()["link"]
        assert isinstance(link, dict)
        assert "full" in str(link["last_error"])
        filler.unlink()
        release(simulator, broker, number + 1)  # sooner than its next try in half a minute
        device.wait_until(lambda: number + 1 in device.logged_versions, "the update, once there is room")
        assert generation_of(device.variants(FLAGS)) == number + 1
        device.kill()
        device.start()
        assert generation_of(device.variants(FLAGS)) == number + 1


def test_a_damaged_database_never_gives_a_wrong_answer_and_recovers_from_the_broker(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    with (
        start_mosquitto(tmp_path / "broker") as broker,
        device_in_sync(tmp_path, broker) as (device, simulator),
    ):
        release(simulator, broker, 2)
        device.wait_until(lambda: 2 in device.logged_versions, "version 2")
        device.stop()
        path = device.folder / "agent.sqlite"
        sound = path.read_bytes()
        refused = 0
        places = [0, len(sound) // 2, chance.randrange(len(sound))]
        for at in places:
            damaged = bytearray(sound)
            damaged[at : at + 64] = bytes(each ^ 0xA5 for each in damaged[at : at + 64])
            path.write_bytes(damaged)
            done = device.run("run", "--once")
            assert "Traceback" not in done.stderr, f"at {at}, seed {seed}:\n{done.stderr}"
            if done.returncode:
                refused += 1
                assert "--recover" in done.stderr, f"at {at}, seed {seed}:\n{done.stderr}"
                done = device.run("run", "--once", "--recover")
                assert done.returncode == 0, f"at {at}, seed {seed}:\n{done.stderr}"
            with closing(sqlite3.connect(path)) as connection:
                assert connection.execute("SELECT version FROM holding").fetchall() == [(2,)]
        assert refused  # the header at least
        device.start()
        assert generation_of(device.variants(FLAGS)) == 2


def test_a_log_that_was_cut_off_gives_a_whole_version_and_the_broker_gives_the_rest(tmp_path: Path) -> None:
    with (
        start_mosquitto(tmp_path / "broker") as broker,
        device_in_sync(tmp_path, broker) as (device, simulator),
    ):
        for number in (2, 3):
            release(simulator, broker, number)
            device.wait_until(lambda last=number: last in device.logged_versions, "the update")  # type: ignore[misc]  # mypy: a default of a lambda has no type
        device.kill()
        log = device.folder / "agent.sqlite-wal"
        whole = log.read_bytes()
        kept = tmp_path / "kept"
        shutil.copytree(device.folder, kept, ignore=shutil.ignore_patterns("*.sock"))
        for share in (0.3, 0.95):
            for name in ("agent.sqlite", "agent.sqlite-shm"):
                shutil.copy(kept / name, device.folder / name)
            log.write_bytes(whole[: int(len(whole) * share)])
            done = device.run("run", "--once")
            assert done.returncode == 0, done.stderr
            with closing(sqlite3.connect(device.folder / "agent.sqlite")) as connection:
                assert connection.execute("SELECT version FROM holding").fetchall() == [(3,)]
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_second_agent_on_one_database_refuses_and_the_first_goes_on(tmp_path: Path) -> None:
    with start_mosquitto(tmp_path / "broker") as broker, device_in_sync(tmp_path, broker) as (device, _):
        second = device.run("run")
        assert second.returncode == 1
        assert "another agent works on this database; stop it first" in second.stderr
        assert "Traceback" not in second.stderr
        assert generation_of(device.variants(FLAGS)) == 1


def test_a_broker_that_comes_back_with_an_old_save_takes_no_device_back(tmp_path: Path) -> None:
    with (
        start_mosquitto(tmp_path / "broker", persistence=True) as broker,
        device_in_sync(tmp_path, broker) as (device, simulator),
    ):
        broker.stop()
        save = tmp_path / "broker" / "mosquitto.db"
        old = save.read_bytes()
        broker.start()
        release(simulator, broker, 2)
        device.wait_until(lambda: 2 in device.logged_versions, "version 2")
        broker.kill()
        save.write_bytes(old)
        broker.start()
        assert device.run("sync", "--timeout", "2").returncode == 1
        device.wait_for("attack=rollback")
        assert generation_of(device.variants(FLAGS)) == 2
        release(simulator, broker, 3)
        device.wait_until(lambda: 3 in device.logged_versions, "version 3")
