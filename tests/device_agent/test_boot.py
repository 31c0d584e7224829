"""What an agent starts from: the anchor that it is provisioned with, and what its disk gives back."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_shell import AgentShell
from devices import provision
from publisher_simulator import PublisherSimulator, SigningKey
from releases import ON

from flagcast_agent import config
from flagcast_agent.boot import boot
from flagcast_agent.config import AgentConfig
from flagcast_shared.ids import Namespace


@pytest.fixture
def publisher() -> PublisherSimulator:
    simulator = PublisherSimulator()
    simulator.release(ON)
    return simulator


@pytest.fixture
def settings(publisher: PublisherSimulator, tmp_path: Path) -> AgentConfig:
    """A device whose database was filled by an agent before."""
    return provisioned(tmp_path, publisher.anchor)


@pytest.fixture
def held(settings: AgentConfig, publisher: PublisherSimulator) -> Iterator[AgentShell]:
    shell = AgentShell(settings.store, publisher)
    shell.catch_up()
    yield shell
    shell.close()


def provisioned(folder: Path, anchor: bytes, *options: str) -> AgentConfig:
    (folder / "anchor").write_bytes(anchor)
    provision(folder / "device", folder / "anchor", "mqtt://127.0.0.1:1", *options).kill()
    return config.load(folder / "device")


def booted_root(settings: AgentConfig) -> int:
    booted = boot(settings)
    booted.store.close()
    return booted.trusted.root.number


def test_the_root_that_was_walked_to_is_in_force_after_a_restart(
    settings: AgentConfig, held: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
    held.hear()
    held.close()
    assert booted_root(settings) == 2


def test_a_root_on_disk_that_is_older_than_the_anchor_is_not_gone_back_to(
    settings: AgentConfig, held: AgentShell, publisher: PublisherSimulator
) -> None:
    publisher.rotate(root_keys=[SigningKey("root-b")])
    held.hear()
    held.close()
    publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
    settings.anchor.unlink()
    settings.anchor.write_bytes(publisher.retained[publisher.root_topic(3)])
    assert booted_root(settings) == 3


def test_a_namespace_that_is_not_followed_any_more_is_not_answered_from(
    held: AgentShell, publisher: PublisherSimulator, tmp_path: Path
) -> None:
    held.close()
    folder = tmp_path / "again"
    folder.mkdir()
    again = provisioned(folder, publisher.anchor, "--namespace", "kiosk")
    held.path.rename(again.store)
    booted = boot(again)
    booted.store.close()
    assert booted.evaluator.namespaces() == ()
    assert Namespace("default") not in booted.trusted.holdings


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_what_a_device_starts_from_has_mode_0640_whatever_the_umask(
    publisher: PublisherSimulator, tmp_path: Path, umask: int
) -> None:
    (tmp_path / "anchor").write_bytes(publisher.anchor)
    program = Path(sys.executable).with_name("flagcast-agent")
    subprocess.run(
        [
            program,
            "provision",
            "--anchor",
            tmp_path / "anchor",
            "--device",
            "a",
            "--broker",
            "mqtt://127.0.0.1:1",
            "device",
        ],
        cwd=tmp_path,
        check=True,
        umask=umask,
    )
    for name in (config.CONFIG_NAME, config.ANCHOR_NAME):
        assert (tmp_path / "device" / name).stat().st_mode & 0o777 == 0o640
