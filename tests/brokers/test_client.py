"""Flags in process beside a real agent that is killed and comes back, and with the agent inside the application."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from devices import Device, provision
from flagd_calls import choosing
from followed import wait_until
from publishing import Flagcast, make_project
from scenes import scene

from brokers import Broker, start_mosquitto
from flagcast_agent import clock
from flagcast_agent.client import Change, Client
from flagcast_agent.store.errors import StoreInUse

pytestmark = pytest.mark.mosquitto

SUPPORT = Path(__file__).resolve().parents[1] / "support"
PAUSE_MAX_MS = 500
"""Nobody waits for anything; what is left is the machine's own scheduling, which benchmarks/client.py measures."""
SHORT_LIFE_SECONDS = 6
"""Of a head: the agent admits it well within this, and a test can wait for its end."""


class Site:
    """A broker, a project and a device; `publish` sets the one flag's variant."""

    def __init__(self, broker: Broker, flagcast: Flagcast, device: Device, folder: Path) -> None:
        self.broker, self.device = broker, device
        self._flagcast, self._folder = flagcast, folder

    @property
    def store(self) -> Path:
        return self.device.folder / "agent.sqlite"

    def publish(self, choice: str) -> None:
        file = self._folder / "features.yml"
        file.write_text(
            "namespace: default\nflags:\n- key: theme\n  name: theme\n  enabled: true\n"
            f"  variants:\n  - key: {choice}\n    default: true\n"
        )
        done = self._flagcast.on_project("publish", file)
        assert done.code == 0, done.err


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Site]:
    with start_mosquitto(tmp_path / "broker") as broker:
        project = make_project(tmp_path / "project", broker.url)
        with provision(tmp_path / "device", project.root_file(1), broker.url) as device:
            yield Site(broker, Flagcast(tmp_path / "project", capsys), device, tmp_path)


def test_an_application_notices_nothing_of_its_agents_death_but_that_its_flags_grow_old() -> None:
    with scene() as it, ExitStack() as stack:
        it.publish(choosing("theme", "one"))
        it.device.start()
        it.device.wait_for("message=admitted")
        asking = stack.enter_context(
            subprocess.Popen(
                [
                    sys.executable,
                    str(SUPPORT / "asking_child.py"),
                    str(it.device.folder / "agent.sqlite"),
                    "theme",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(asking.kill)
        assert asking.stdin is not None
        assert asking.stdout is not None

        def says() -> str:
            assert asking.stdout is not None
            return asking.stdout.readline().strip()

        def knowledge() -> Any:
            assert asking.stdin is not None
            asking.stdin.write("\n")
            asking.stdin.flush()
            return json.loads(says())

        assert says() == "one"
        it.device.kill()
        it.publish(choosing("theme", "two"))  # nobody is there to hear it
        it.device.start()
        assert says() == "two"
        it.device.kill()
        it.device.start()
        it.device.wait_for("message=connected")
        it.publisher.head_life_seconds = SHORT_LIFE_SECONDS
        it.publish(choosing("theme", "three"))
        assert says() == "three"
        it.device.kill()
        at_death = knowledge()
        assert not at_death["is_stale"]
        assert 0 <= at_death["age_seconds"] < SHORT_LIFE_SECONDS
        wait_until(lambda: knowledge()["age_seconds"] > at_death["age_seconds"], "its flags grow old")
        wait_until(lambda: knowledge()["is_stale"], "its flags are stale")
        assert knowledge()["age_seconds"] >= SHORT_LIFE_SECONDS
        out, _ = asking.communicate()
    result = json.loads(out)
    assert result["asked"] > 1000
    assert result["defaults"] == 0
    assert result["problem"] == ""
    assert result["longest_ms"] < PAUSE_MAX_MS


def test_the_agent_inside_receives_persists_and_keeps_a_second_one_out(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.publish("one")
    with Client.embedded(site.device.folder) as client:
        assert client.wait_until_ready(20)
        assert client.variant("theme", "none") == "one"
        changes: list[Change] = []
        client.listen(changes.append)
        site.publish("two")
        wait_until(lambda: client.variant("theme", "none") == "two")
        wait_until(lambda: changes)
        assert [(change.version, change.keys) for change in changes] == [(2, frozenset({"theme"}))]
        details = client.evaluate("theme", "none")
        assert (details.version, details.is_stale, details.reason) == (2, False, "STATIC")
        with pytest.raises(StoreInUse, match="another agent"):
            Client.embedded(site.device.folder)
        second = site.device.run("run")
        assert second.returncode == 1
        assert "another agent works on this database" in second.stderr
        # Another process of the device may follow it all the same.
        with Client(site.store) as beside:
            assert beside.variant("theme", "none") == "two"
    # And the next start needs no network.
    site.broker.kill()
    with Client.embedded(site.device.folder) as client:
        assert client.variant("theme", "none") == "two"
        assert client.status().is_ready
        # A device without a clock: what has passed since the publisher's last word is known all the same.
        passed = 8 * 86_400
        monkeypatch.setattr(clock, "now", lambda: 0)
        monotonic = clock.monotonic
        monkeypatch.setattr(clock, "monotonic", lambda: monotonic() + passed)
        details = client.evaluate("theme", "none")
        assert (details.value, details.is_stale, details.clock_is_trusted) == ("two", True, False)
        assert round(details.age_seconds / 86_400) == 8


def test_a_forgotten_client_ends_its_agent(site: Site) -> None:
    site.publish("one")
    client = Client.embedded(site.device.folder)
    assert client.wait_until_ready(20)
    del client

    def is_free() -> bool:
        try:
            Client.embedded(site.device.folder).close()
        except StoreInUse:
            return False
        return True

    wait_until(is_free, "the database is free again")


FORKING = """
import os, sys
sys.path.insert(0, {support!r})
from pathlib import Path
from followed import wait_until
from flagcast_agent.client import Client

client = Client.embedded(Path(sys.argv[1]))
assert client.wait_until_ready(20)
child = os.fork()
if child == 0:
    wait_until(lambda: client.variant("theme", "none") == "two", "the child hears the change")
    client.close()
    os._exit(0)
print("forked", flush=True)
wait_until(lambda: client.variant("theme", "none") == "two", "the parent hears the change")
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
sys.stdin.readline()
wait_until(lambda: client.variant("theme", "none") == "three", "the parent's link has survived")
client.close()
print("closed", flush=True)
"""


def test_a_process_forked_from_an_embedded_client_follows_what_its_parent_persists(site: Site) -> None:
    site.publish("one")
    with subprocess.Popen(
        [sys.executable, "-c", FORKING.format(support=str(SUPPORT)), str(site.device.folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as application:  # fmt: skip
        assert application.stdin is not None
        assert application.stdout is not None
        assert application.stdout.readline() == "forked\n"
        site.publish("two")
        assert application.stdout.readline() == "0\n"
        site.publish("three")
        application.stdin.write("\n")
        application.stdin.flush()
        assert application.stdout.readline() == "closed\n"
    assert application.returncode == 0


def test_a_change_is_seen_by_a_busy_application_soon_after_it_was_admitted(site: Site) -> None:
    """The bound is the machine's; the goal of 100 ms is benchmarks/client.py's."""
    site.publish("one")
    site.device.start()
    site.device.wait_for("message=admitted")
    with Client(site.store) as client:
        site.publish("two")
        site.device.wait_until(lambda: 2 in site.device.logged_versions, "admitted")
        began = time.monotonic()
        wait_until(lambda: client.variant("theme", "none") == "two")
        assert time.monotonic() - began < 20
