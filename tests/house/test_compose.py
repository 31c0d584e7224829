import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from repository import AGENT, BIN, BRIDGE, ROOT, SHARED, Distribution

DEPLOY = ROOT / "deploy"
BUILT_FROM = {"agent.Dockerfile": AGENT, "bridge.Dockerfile": BRIDGE}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return parsed


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions and their arguments, continued lines joined, comments left out."""
    lines = [line for line in dockerfile.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in joined.splitlines() if line]


def test_the_system_is_a_broker_a_bridge_and_two_agents(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"broker", "bridge", "agent-1", "agent-2"}
    assert services["broker"]["image"] == "eclipse-mosquitto:2"
    for name in ("bridge", "agent-1", "agent-2"):
        build = services[name]["build"]
        dockerfile = ROOT / build["context"] / build["dockerfile"]
        assert BUILT_FROM[dockerfile.name] is (BRIDGE if name == "bridge" else AGENT)
        assert dockerfile.is_file()


def test_every_volume_and_every_mounted_path_exists(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for mount in service["volumes"]:
            source = mount.partition(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), mount
            else:
                assert source in compose["volumes"], mount
        for other in service.get("depends_on", ()):
            assert other in compose["services"]


def test_no_device_gets_at_the_keys_or_at_the_state_of_another(compose: dict[str, Any]) -> None:
    mounts = {name: service["volumes"] for name, service in compose["services"].items()}
    assert [name for name, of in mounts.items() if any(mount.startswith("project:") for mount in of)] == [
        "bridge"
    ]
    for name in ("agent-1", "agent-2"):
        assert all(mount.startswith((f"{name}-", "anchor:")) for mount in mounts[name])
        assert "anchor:/anchor:ro" in mounts[name]
        assert f"{name}-socket:/run/flagcast" in mounts[name]


@pytest.mark.parametrize("dockerfile", sorted(BUILT_FROM))
def test_an_image_copies_what_exists_and_what_the_build_context_lets_in(dockerfile: str) -> None:
    let_in = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
        if line.startswith("!")
    }
    copied = [
        source
        for instruction, arguments in instructions(DEPLOY / dockerfile)
        if instruction == "COPY" and "--from" not in arguments
        for source in arguments.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert source in let_in


@pytest.mark.parametrize(("dockerfile", "distribution"), sorted(BUILT_FROM.items()))
def test_an_image_installs_by_hash_only_its_own_distribution(
    dockerfile: str, distribution: Distribution
) -> None:
    folders = {one.folder.name for one in (SHARED, BRIDGE, AGENT)}
    (install,) = [
        arguments
        for instruction, arguments in instructions(DEPLOY / dockerfile)
        if instruction == "RUN" and "uv pip install" in arguments
    ]
    assert {word.removeprefix("./") for word in install.split()} & folders == {
        "shared",
        distribution.folder.name,
    }
    assert "--constraint requirements.lock --build-constraint requirements.lock" in install
    assert all(
        "--require-hashes" in arguments
        for _, arguments in instructions(DEPLOY / dockerfile)
        if "-m pip" in arguments
    )


@pytest.mark.parametrize("dockerfile", sorted(BUILT_FROM))
def test_an_image_does_not_run_as_root(dockerfile: str) -> None:
    after_last_stage = instructions(DEPLOY / dockerfile)
    last = max(index for index, (instruction, _) in enumerate(after_last_stage) if instruction == "FROM")
    users = [arguments for instruction, arguments in after_last_stage[last:] if instruction == "USER"]
    assert users == ["flagcast"]


class Machine:
    """What the compose file describes, as processes of this machine: the same commands, with its volumes as folders."""

    def __init__(self, compose: dict[str, Any], folder: Path) -> None:
        self.compose = compose
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]

    def here(self, service: str, text: str) -> str:
        """A text of the compose file or of the broker's configuration, with paths and addresses of this machine."""
        for mount in self.compose["services"][service]["volumes"]:
            source, target = mount.split(":")[:2]
            place = (ROOT / source).resolve() if source.startswith(".") else self.folder / source
            if not source.startswith("."):
                place.mkdir(exist_ok=True)
            text = text.replace(target, str(place))
        return text.replace("broker:1883", f"127.0.0.1:{self.port}").replace("$$", "$")

    @contextlib.contextmanager
    def running(self, service: str) -> Iterator[subprocess.Popen[bytes]]:
        described = self.compose["services"][service]
        environment = {
            name: self.here(service, value) for name, value in described.get("environment", {}).items()
        }
        if service == "broker":
            text = (DEPLOY / "compose" / "mosquitto.conf").read_text(encoding="utf-8")
            configuration = self.folder / "mosquitto.conf"
            text = self.here("broker", text).replace("listener 1883", f"listener {self.port} 127.0.0.1")
            configuration.write_text(text + f"user {Path.home().owner()}\n", encoding="utf-8")
            command = ["mosquitto", "-c", str(configuration)]
        else:
            command = [*described["entrypoint"], *(self.here(service, line) for line in described["command"])]
        log = (self.folder / f"{service}.log").open("ab")
        with (
            log,
            subprocess.Popen(
                command,
                env={"PATH": f"{BIN}:{os.environ['PATH']}:/usr/sbin:/usr/local/sbin", **environment},
                stdout=log,
                stderr=log,
            ) as process,
        ):
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                process.wait(20)

    def ask(self, service: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """What `docker compose exec SERVICE flagcast-agent …` does."""
        environment = {
            name: self.here(service, value)
            for name, value in self.compose["services"][service]["environment"].items()
        }
        return subprocess.run(
            [BIN / "flagcast-agent", *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def says(self, service: str, text: str) -> bool:
        """Whether a service has printed a text."""
        return text in (self.folder / f"{service}.log").read_text(encoding="utf-8", errors="replace")

    def logs(self) -> str:
        return "\n".join(
            f"== {path.name}\n{path.read_text(encoding='utf-8', errors='replace')}"
            for path in sorted(self.folder.glob("*.log"))
        )


@pytest.fixture
def machine(compose: dict[str, Any]) -> Iterator[Machine]:
    # Not pytest's own folder: the path of a Unix socket has room for about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="fc-") as folder:
        yield Machine(compose, Path(folder))


def wait_for(condition: Callable[[], bool], what: str, machine: Machine, seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen\n{machine.logs()}"
        time.sleep(0.1)


def is_listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.mark.mosquitto
def test_the_commands_of_the_compose_file_make_a_working_system(machine: Machine) -> None:
    question = ("eval", "contactless-payment", "--entity", "charger-17", "--format", "json")
    agents = ("agent-1", "agent-2")

    def answers(agent: str) -> bool:
        return machine.ask(agent, *question).returncode == 0

    with machine.running("broker"):
        wait_for(partial(is_listening, machine.port), "the broker", machine)
        with machine.running("bridge") as bridge:
            wait_for(partial(machine.says, "bridge", "message=checked"), "the first publication", machine)
            bridge.send_signal(signal.SIGTERM)
            assert bridge.wait(20) == 0, machine.logs()
        with machine.running("bridge"), contextlib.ExitStack() as both:  # once more, as after a restart
            for agent in agents:
                both.enter_context(machine.running(agent))
            for agent in agents:
                wait_for(partial(answers, agent), f"an answer of {agent}", machine)
                status = json.loads(machine.ask(agent, "status", "--format", "json").stdout)
                assert {one["namespace"] for one in status["namespaces"]} == {"default", "charging"}
            online = [machine.ask(agent, *question).stdout for agent in agents]
    # The broker is gone, and both devices start again from what they have.
    with machine.running("agent-1"):
        wait_for(partial(answers, "agent-1"), "an answer without a broker", machine)
        assert json.loads(machine.ask("agent-1", *question).stdout)["value"] == json.loads(online[0])["value"]
