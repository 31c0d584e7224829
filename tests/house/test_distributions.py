import ast
import io
import re
import sys
import tokenize
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from repository import AGENT, BRIDGE, DISTRIBUTIONS, ROOT, Distribution, files

OWN = {distribution.package: distribution.name for distribution in DISTRIBUTIONS}

# Each in two pieces, so that this file does not name an index itself.
INDEX_HOSTS = ("pypi" + ".org", "python" + "hosted", "test." + "pypi", "anaconda" + ".org", "npmjs" + ".org")
INDEX_WORDS = re.compile(
    "|".join(re.escape(host) for host in INDEX_HOSTS)
    + "|(?<!no-emit-)index-"
    + "url"
    + "|find-"
    + "links|trusted-"
    + "host"
)
LOCAL_PATH = re.compile(r"(?:^|[\s\"'`=(])/(?:home|Users|work|mnt|root/\.)/?[\w.]", re.MULTILINE)


def by_name(distribution: Distribution) -> str:
    return distribution.name


def imported_packages(folder: Path) -> set[str]:
    """The top-level packages that the modules of a folder import, anywhere in them."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes(), path)):
            if isinstance(node, ast.Import):
                names.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names


def declared_by(distribution: Distribution) -> set[str]:
    """What a distribution asks for, its extras included."""
    lines = list(distribution.project.get("dependencies", []))
    for extra in distribution.project.get("optional-dependencies", {}).values():
        lines += extra
    return {canonicalize_name(Requirement(line).name) for line in lines}


def plugins_of(distribution: Distribution) -> set[str]:
    """Our distributions whose entry points a distribution's modules name by their group, and so need without an import."""
    texts = {
        node.value
        for path in distribution.sources.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes(), path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return {
        other.name
        for other in DISTRIBUTIONS
        if other is not distribution and texts & set(other.project.get("entry-points", {}))
    }


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=by_name)
def test_a_distribution_declares_exactly_what_it_imports(distribution: Distribution) -> None:
    providers = packages_distributions()
    declared = declared_by(distribution)
    needed: set[str] = set()
    for package in imported_packages(distribution.sources) - {distribution.package}:
        # What an extra brings need not be installed; it is then taken for a distribution of the same name.
        found = providers.get(package, [package])
        provided_by = {OWN[package]} if package in OWN else set(map(canonicalize_name, found))
        # Several distributions may share one namespace of packages, as OpenFeature's do.
        provided_by = provided_by & declared or provided_by
        assert len(provided_by) == 1, f"{package} is provided by {provided_by}"
        needed |= provided_by
    assert needed | plugins_of(distribution) == declared


def test_the_agent_needs_the_bridge_for_the_tests_of_applications_alone() -> None:
    assert plugins_of(AGENT) == {BRIDGE.name}
    extras = AGENT.project["optional-dependencies"]
    assert extras["testing"] == [f"{BRIDGE.name}=={BRIDGE.project['version']}"]
    others = [line for extra, lines in extras.items() if extra != "testing" for line in lines]
    required = {Requirement(line).name for line in (*AGENT.project["dependencies"], *others)}
    assert BRIDGE.name not in required


def test_all_distributions_have_one_version_and_ask_for_each_other_at_it() -> None:
    versions = {distribution.project["version"] for distribution in DISTRIBUTIONS}
    assert len(versions) == 1
    asked = [
        line
        for distribution in DISTRIBUTIONS
        for line in distribution.project["dependencies"]
        if Requirement(line).name in OWN.values()
    ]
    assert asked == [f"flagcast-shared=={versions.pop()}"] * 2


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=by_name)
def test_every_distribution_states_its_license_and_carries_its_text(distribution: Distribution) -> None:
    assert distribution.project["license"] == "Apache-2.0"
    assert (distribution.folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_lock_pins_and_hashes_every_entry_and_names_no_index() -> None:
    for name in ("requirements.lock", "requirements-oracles.lock", "requirements-uv.lock"):
        entries = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
        assert entries
        for entry in entries:
            requirement, *hashes = entry.split(" --hash=")
            assert re.fullmatch(r"[a-z0-9-]+==[\w.!+]+( *;.*)?", requirement.strip()), (
                f"{name}: {requirement}"
            )
            assert hashes, f"{name}: {requirement} has no hash"
            for digest in hashes:
                assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest.strip()), f"{name}: {requirement}"


def test_the_lock_holds_every_declared_dependency() -> None:
    locked = {
        canonicalize_name(line.partition("==")[0])
        for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    for distribution in DISTRIBUTIONS:
        declared = {
            canonicalize_name(Requirement(line).name) for line in distribution.project["dependencies"]
        }
        assert declared - set(OWN.values()) <= locked


def test_no_file_names_a_package_index_or_a_path_of_one_machine() -> None:
    found = []
    for path in files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        where = path.relative_to(ROOT)
        found += [
            f"{where}: {match.group().strip()}"
            for pattern in (INDEX_WORDS, LOCAL_PATH)
            for match in pattern.finditer(text)
        ]
        if str(ROOT) in text:
            found.append(f"{where}: {ROOT}")
    assert found == []


def test_every_suppression_names_what_it_suppresses() -> None:
    found = []
    for path in files("*.py"):
        if path.stem.endswith(("_pb2", "_grpc")):
            continue
        tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
        for token in tokens:
            if token.type != tokenize.COMMENT:
                continue
            if re.search(r"noqa(?!: [A-Z]+[0-9]+)|type: *ignore(?!\[[a-z-]+)", token.string):
                found.append(f"{path.relative_to(ROOT)}:{token.start[0]}: {token.string}")
    assert found == []
