"""The operations guide's walk through keys, followed to the letter with real agents, of which one is away meanwhile."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from devices import Device, provision
from publisher_simulator import DAY
from publishing import features, make_project
from repository import BIN, ROOT
from thief import forged

from brokers import Broker, start_mosquitto
from flagcast_bridge import clock, project
from flagcast_bridge.broker import connection as mqtt
from flagcast_bridge.signing import keychain
from flagcast_shared.limits import NUMBER_MAX
from flagcast_shared.root import Role

pytestmark = [pytest.mark.mosquitto, pytest.mark.timeout(300)]

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("\n## Rotating and revoking keys\n") :].partition("\n### The ceremony file\n")[0]
LIST, ROTATE, MAKE, ADD, REVOKE, RELEASE, PASSPHRASE = re.findall(
    r"^```sh\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL
)
GOOD, BETTER, EVIL = {"a": True}, {"a": True, "b": True}, {"a": False}


@dataclass(slots=True)
class Desk:
    """Where the guide's commands are run: `fleet` is the project, `flags/` its flags, `safe/` has the root key."""

    folder: Path
    broker: Broker

    @property
    def fleet(self) -> Path:
        return self.folder / "fleet"

    @property
    def chain(self) -> keychain.Chain:
        return keychain.chain(project.load(self.fleet))

    def write(self, flags: Mapping[str, bool]) -> None:
        (self.folder / "flags" / "features.yml").write_text(features(flags))

    def follow(self, block: str) -> str:
        """Run a block of the guide as it stands; whoever is asked says yes."""
        with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as asked:
            done = self._run(block, asked)
            asked.kill()
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _run(self, block: str, asked: "subprocess.Popen[bytes]") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=self.folder,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("FLAGCAST_")},
                "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            },
            stdin=asked.stdout,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def put(self, messages: Mapping[str, bytes]) -> None:
        """Retain anything, as anybody on the broker's network could."""
        with mqtt.connect("127.0.0.1", self.broker.port, mqtt.Login(), protocol="5") as connection:
            connection.publish(list(messages.items()))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with start_mosquitto(tmp_path / "broker") as broker:
        made = make_project(tmp_path / "fleet", broker.url)
        for name in ("flags", "safe"):
            (tmp_path / name).mkdir()
        made.root_key.rename(tmp_path / "safe" / "root.key")
        yield Desk(tmp_path, broker)


def device_of(desk: Desk, name: str) -> Device:
    return provision(desk.folder / name, desk.fleet / "roots" / "1.root", desk.broker.url, device=name)


def start(device: Device) -> None:
    device.start()
    device.wait_for("message=answering")


def walked(device: Device) -> list[int]:
    """The roots that the device has come to since it was started, in order."""
    return [int(number) for number in re.findall(r'message="root admitted".*? root=(\d+)', device.log)]


def has(device: Device, *, root: int, epoch: int, version: int) -> None:
    """Wait until the device holds a content under a root; root 1 is its anchor."""

    def holds() -> bool:
        namespaces = device.status()["namespaces"]
        assert isinstance(namespaces, list)
        held = [(each.get("epoch"), each.get("version")) for each in namespaces]
        return held == [(epoch, version)] and [1, *walked(device)][-1] == root

    device.wait_until(holds, f"root {root}, version {version} of epoch {epoch}")


def test_the_walk_through_of_the_guide_with_a_device_that_is_away(desk: Desk) -> None:
    with device_of(desk, "one") as one, device_of(desk, "two") as two, device_of(desk, "away") as away:
        desk.write(GOOD)
        desk.follow("flagcast publish flags/ --project fleet")
        for device in (one, two, away):
            start(device)
            has(device, root=1, epoch=1, version=1)
        assert away.stop() == 0
        assert "in force: root 1" in desk.follow(LIST)
        first = (desk.fleet / "keys" / "publisher.key").read_bytes()

        said = desk.follow(ROTATE)
        assert "takes out publisher key" in said
        assert "published root 2" in said
        stolen = desk.fleet / "keys" / "publisher-1.key"
        assert stolen.read_bytes() == first
        for device in (one, two):
            has(device, root=2, epoch=2, version=2)

        desk.follow(MAKE)
        assert "takes in publisher key" in desk.follow(ADD)
        for device in (one, two):
            has(device, root=3, epoch=3, version=3)
        assert {key.name for key in desk.chain.root.keys.values()} == {"root", "publisher-2", "alice"}
        assert "takes out publisher key" in desk.follow(REVOKE)
        for device in (one, two):
            has(device, root=4, epoch=4, version=4)

        # Between the root and the heads that its key signed, a device meets the head that it holds: that is no attack.
        for device in (one, two):
            assert "attack=" not in device.log
        # The first key goes on signing, after its time, on the broker's retained topics.
        desk.put(forged(stolen, EVIL, number=1_000, epoch=1, now=clock.now()))
        for device in (one, two):
            device.wait_for("attack=unknown_key")
            assert device.evaluate("a", "e")["value"] is True
        # Who was away believed that key when it left. It walks the roots, and then no longer does.
        start(away)
        away.wait_for("attack=unknown_key")
        away.wait_until(lambda: walked(away) == [2, 3, 4], "roots 2 to 4, one after another")
        assert away.evaluate("a", "e")["value"] is True
        assert 1_000 not in away.logged_versions

        desk.write(BETTER)
        desk.follow("flagcast publish flags/ --project fleet")
        for device in (one, two, away):
            has(device, root=4, epoch=4, version=5)
            assert device.evaluate("b", "e")["value"] is True

        desk.write({**BETTER, "c": True})
        said = desk.follow(RELEASE)
        assert "2 of 2 publisher keys must sign (was 1 of 1)" in said
        assert "compared with version 5:" in said
        for device in (one, two, away):
            has(device, root=5, epoch=5, version=6)
        # There is no terminal here to ask at.
        secret = desk.folder / "safe" / "secret"
        secret.touch(0o600)
        secret.write_text("correct horse")
        desk.follow(PASSPHRASE.replace("--passphrase", "--new-passphrase-file safe/secret"))
        assert b"ENCRYPTED" in (desk.folder / "safe" / "root.key").read_bytes()
        # What was refused before is no longer reported.
        seen = json.loads(desk.follow("flagcast fleet --project fleet --format json"))
        assert len(seen["devices"]) == 3
        assert [each["rejection"] for each in seen["devices"]] == [None] * 3
        for device in (one, two, away):
            assert device.stop() == 0
        assert desk.chain.root.roles[Role.PUBLISHER].threshold == 2


def test_a_thief_who_used_up_all_numbers_and_all_time_is_left_behind_by_a_rotation(desk: Desk) -> None:
    with device_of(desk, "one") as device:
        desk.write(GOOD)
        desk.follow("flagcast publish flags/ --project fleet")
        start(device)
        has(device, root=1, epoch=1, version=1)
        stolen = desk.fleet / "keys" / "publisher.key"
        desk.put(forged(stolen, EVIL, number=NUMBER_MAX, epoch=1, now=NUMBER_MAX - DAY))
        has(device, root=1, epoch=1, version=NUMBER_MAX)
        assert device.evaluate("a", "e")["value"] is False
        assert device.status()["clock_is_trusted"] is False
        assert device.run("status").returncode == 0
        done = device.run("doctor")
        assert done.returncode == 0, done.stdout
        assert "look at the clock below" in done.stdout

        refused = subprocess.run(
            [BIN / "flagcast", "publish", "flags/", "--project", "fleet"],
            cwd=desk.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode != 0
        assert "begin the next epoch with flagcast keys rotate publisher, then publish" in refused.stderr
        desk.follow(ROTATE)
        has(device, root=2, epoch=2, version=2)
        assert device.evaluate("a", "e")["value"] is True
        assert device.status()["clock_is_trusted"] is True
        # Nothing that the old key signs is news any more, whatever its number.
        desk.put(
            forged(desk.fleet / "keys" / "publisher-1.key", EVIL, number=NUMBER_MAX, epoch=1, now=clock.now())
        )
        device.wait_for("attack=unknown_key")
        assert device.evaluate("a", "e")["value"] is True
        desk.write(BETTER)
        desk.follow("flagcast publish flags/ --project fleet")
        has(device, root=2, epoch=2, version=3)
        assert device.stop() == 0
