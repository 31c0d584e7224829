import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from repository import AGENT, BRIDGE, ROOT, SHARED, Distribution

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
