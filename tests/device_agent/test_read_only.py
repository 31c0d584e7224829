"""A disk that takes no writes: the agent starts, answers from what it holds, says so, and admits again once it can."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from devices import provision
from followed import FollowedAgent, boolean, wait_until
from publishing import Flagcast, features, make_project

from brokers import start_mosquitto
from flagcast_agent.client import Client
from flagcast_agent.store.errors import StoreUnwritable
from flagcast_agent.store.writer import Store


class Disk:
    """A file system of its own that can be made read-only and writable again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=False)
        if done.returncode:
            pytest.skip("this user may not mount a file system")

    def make(self, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", self.folder], check=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.getuid() != 0:
        pytest.skip("only root may mount a file system")
    made = Disk(tmp_path / "disk")
    yield made
    made.close()


@pytest.mark.parametrize("state", ["ended", "killed", "new"])
def test_what_the_disk_holds_is_read_and_nothing_is_written(disk: Disk, state: str) -> None:
    path = disk.folder / "agent.sqlite"
    if state != "new":
        agent = FollowedAgent(path)
        agent.publish(boolean("a", enabled=True))
        kept = {file: file.read_bytes() for file in disk.folder.iterdir()}
        agent.close()
        if state == "killed":
            for file, data in kept.items():
                file.write_bytes(data)
    disk.make("ro")
    with pytest.raises(StoreUnwritable):
        Store(path)
    store = Store(path, may_be_read_only=True)
    saved = store.load()
    assert [stored.namespace for stored in saved.namespaces] == ([] if state == "new" else ["default"])
    assert store.why_read_only
    with pytest.raises(StoreUnwritable):
        store._writer()
    disk.make("rw")
    store._writer()
    assert store.why_read_only == ""
    assert [stored.namespace for stored in store.load().namespaces] == [
        stored.namespace for stored in saved.namespaces
    ]
    store.close()


def test_a_folder_that_is_missing_is_no_read_only_disk(tmp_path: Path) -> None:
    with pytest.raises(StoreUnwritable, match="folder"):
        Store(tmp_path / "nowhere" / "agent.sqlite", may_be_read_only=True)


@pytest.mark.mosquitto
def test_the_agent_answers_admits_nothing_and_admits_again(
    disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flagcast, file = Flagcast(tmp_path / "project", capsys), tmp_path / "features.yml"
    with start_mosquitto(tmp_path / "broker") as broker:
        project = make_project(tmp_path / "project", broker.url)
        store = disk.folder / "agent.sqlite"
        with provision(tmp_path / "device", project.root_file(1), broker.url) as device:
            with (device.folder / "agent.toml").open("a") as config:
                config.write(f'\n[paths]\nstore = "{store}"\n')
            file.write_text(features({"a": True}))
            assert flagcast.on_project("publish", file).code == 0
            device.start()
            device.wait_for("message=admitted")
            assert device.stop() == 0
            disk.make("ro")
            device.start()
            device.wait_for("message=answering")
            assert "the disk takes no writes" in device.log
            assert device.evaluate("a", "e")["value"] is True
            with Client(store) as client:
                assert client.boolean("a", False) is True
                file.write_text(features({"a": False}))
                assert flagcast.on_project("publish", file).code == 0
                device.wait_for("could not be persisted")
                assert device.evaluate("a", "e")["value"] is True
                link = device.status()["link"]
                assert isinstance(link, dict)
                assert "Read-only" in str(link["last_error"])
                code = device.run("doctor")
                assert code.returncode == 1
                assert "failed   disk" in code.stdout
                disk.make("rw")
                # A changed head wakes it sooner than its next try in half a minute.
                assert flagcast.on_project("publish", file, "--refresh").code == 0
                device.wait_for("message=admitted")
                assert device.evaluate("a", "e")["value"] is False
                wait_until(lambda: client.boolean("a", True) is False)
                link = device.status()["link"]
                assert isinstance(link, dict)
                assert link["last_error"] is None
