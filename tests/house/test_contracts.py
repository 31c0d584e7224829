import os
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from repository import BIN, DISTRIBUTIONS, ROOT


@dataclass(frozen=True, slots=True)
class Violation:
    contract: str
    module: str
    line: str
    also: tuple[tuple[str, str], ...] = ()
    """Further modules of the violation: what it imports, where the tree may not have it yet."""

    @property
    def label(self) -> str:
        return f"{self.contract}-{self.module}-{self.line.split()[-1]}"


def upward(contract: str, package: str, lower: str, upper: str) -> Violation:
    """A lower module imports a higher one."""
    module, _, name = f"{package}.{upper}".rpartition(".")
    return Violation(
        contract, f"{package}.{lower}", f"from {module} import {name}", ((f"{package}.{upper}", ""),)
    )


IMPURE = (
    "os",
    "pathlib",
    "socket",
    "asyncio",
    "threading",
    "sqlite3",
    "time",
    "datetime",
    "random",
    "logging",
)
KEY = "from cryptography.hazmat.primitives.asymmetric import ed25519"

VIOLATIONS = [
    Violation("distributions", "flagcast_bridge.broker.connection", "import flagcast_agent"),
    Violation("distributions", "flagcast_agent.mqtt", "import flagcast_bridge"),
    Violation("distributions", "flagcast_agent.testing", "def late() -> None:\n    import flagcast_bridge"),
    Violation("distributions", "flagcast_shared.topics", "import flagcast_bridge"),
    Violation("distributions", "flagcast_shared.topics", "def late() -> None:\n    import flagcast_agent"),
    *(Violation("shared-is-pure", "flagcast_shared.trust", f"import {name}") for name in IMPURE),
    Violation("shared-is-pure", "flagcast_shared.codec", "from sqlite_utils import Database"),
    upward("shared-layers", "flagcast_shared", "codec", "trust"),
    upward("shared-layers", "flagcast_shared", "model", "evaluation"),
    Violation("shared-layers", "flagcast_shared.unplaced", "import zlib"),  # every module has a layer
    upward("bridge-layers", "flagcast_bridge", "planning.plan", "broker.connection"),
    upward("bridge-layers", "flagcast_bridge", "flags.compiler", "signing.signer"),
    upward("bridge-layers", "flagcast_bridge", "broker.connection", "ledger.ledger"),
    upward("bridge-layers", "flagcast_bridge", "publishing.publish", "serving.daemon"),
    upward("flags-layers", "flagcast_bridge.flags", "document", "compiler"),
    upward("planning-layers", "flagcast_bridge.planning", "plan", "fleet"),
    upward("signing-layers", "flagcast_bridge.signing", "ceremony", "signer"),
    upward("ledger-layers", "flagcast_bridge.ledger", "database", "ledger"),
    upward("broker-layers", "flagcast_bridge.broker", "connection", "embedded"),
    upward("publishing-layers", "flagcast_bridge.publishing", "publish", "rotation"),
    upward("serving-layers", "flagcast_bridge.serving", "upkeep", "daemon"),
    Violation("bridge-layers", "flagcast_bridge.unplaced", "import zlib"),
    upward("agent-layers", "flagcast_agent", "sync", "store"),
    upward("agent-layers", "flagcast_agent", "sync", "evaluator"),
    upward("store-layers", "flagcast_agent.store", "files", "reader"),
    upward("sync-layers", "flagcast_agent.sync", "fetches", "core"),
    upward("agent-layers", "flagcast_agent", "mqtt", "store"),
    upward("agent-layers", "flagcast_agent", "api.late", "store"),
    upward("agent-layers", "flagcast_agent", "store", "daemon"),
    upward("agent-layers", "flagcast_agent", "daemon", "client"),
    upward("agent-layers", "flagcast_agent", "client", "openfeature"),
    upward("agent-layers", "flagcast_agent", "openfeature", "testing"),
    Violation("agent-layers", "flagcast_agent.unplaced", "import zlib"),
    Violation("cores-decide", "flagcast_agent.sync", "import socket"),
    Violation("cores-decide", "flagcast_agent.sync.connection", "import random"),
    Violation("cores-decide", "flagcast_agent.evaluator", "import random"),
    Violation("cores-decide", "flagcast_bridge.planning.plan", "from asyncio import sleep"),
    Violation("cores-decide", "flagcast_bridge.flags.compiler", "import logging"),
    Violation("cores-decide", "flagcast_bridge.serving.upkeep", "import threading"),
    Violation("cores-decide", "flagcast_bridge.signing.ceremony", "import pathlib"),
    Violation("cores-decide", "flagcast_bridge.planning.fleet", "import subprocess"),
    Violation(
        "cores-decide", "flagcast_bridge.planning.plan", "from flagcast_bridge.sources import read_path"
    ),
    Violation("one-mqtt", "flagcast_bridge.publishing.publish", "from paho.mqtt import client"),
    Violation("one-mqtt", "flagcast_agent.daemon", "import paho.mqtt.client"),
    Violation("one-broker", "flagcast_bridge.demo", "from amqtt.broker import Broker"),
    Violation("one-broker", "flagcast_agent.mqtt", "import amqtt"),
    Violation("one-database", "flagcast_bridge.publishing.publish", "import sqlite3"),
    Violation("one-database", "flagcast_bridge.ledger.ledger", "import psycopg"),
    Violation("one-database", "flagcast_agent.daemon", "from sqlite_utils import Database"),
    Violation("one-clock", "flagcast_bridge.publishing.publish", "import time"),
    Violation("one-clock", "flagcast_agent.daemon", "from datetime import datetime"),
    Violation("one-argv", "flagcast_bridge.demo", "import argparse"),
    Violation("one-argv", "flagcast_agent.daemon", "import argparse"),
    Violation("keys-stay-home", "flagcast_bridge.publishing.publish", KEY),
    Violation("keys-stay-home", "flagcast_bridge.signing.keychain", KEY),
    Violation(
        "keys-stay-home", "flagcast_shared.trust", "from cryptography.exceptions import InvalidSignature"
    ),
    Violation("cbor-stays-home", "flagcast_shared.envelope", "import cbor2"),
    Violation("cbor-stays-home", "flagcast_agent.store", "from cbor2 import loads"),
    Violation("grpc-stays-home", "flagcast_agent.daemon", "from hpack import Decoder"),
    Violation("grpc-stays-home", "flagcast_agent.store", "from google.protobuf import message"),
    Violation("one-openfeature", "flagcast_agent.client", "from openfeature import api"),
    Violation("one-yaml", "flagcast_bridge.flags.compiler", "import yaml"),
]


def contract_names() -> dict[str, str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    return {contract["id"]: contract["name"] for contract in settings["contracts"]}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for distribution in DISTRIBUTIONS:
        shutil.copytree(
            distribution.sources,
            tmp_path / distribution.package,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def add(tree: Path, module: str, line: str) -> None:
    path = tree.joinpath(*module.split(".")).with_suffix(".py")
    if not path.exists() and path.with_suffix("").is_dir():
        path = path.with_suffix("") / "__init__.py"
    path.parent.mkdir(exist_ok=True)
    if not (path.parent / "__init__.py").exists():
        (path.parent / "__init__.py").touch()
    with path.open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")


def lint(tree: Path) -> tuple[int, set[str], str]:
    """The exit code, the ids of the broken contracts and what was printed."""
    ran = subprocess.run(
        [BIN / "lint-imports", "--no-logo", "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    verdicts = {}
    for identifier, name in contract_names().items():
        words = [
            line.removeprefix(name).split()[0]
            for line in ran.stdout.splitlines()
            if line.startswith(f"{name} ")
        ]
        assert words in (["KEPT"], ["BROKEN"]), f"no verdict on {identifier}:\n{ran.stdout}{ran.stderr}"
        verdicts[identifier] = words[0]
    return (
        ran.returncode,
        {identifier for identifier, word in verdicts.items() if word == "BROKEN"},
        ran.stdout,
    )


def test_a_clean_copy_keeps_every_contract(tree: Path) -> None:
    code, broken, printed = lint(tree)
    assert (code, broken) == (0, set()), printed


def test_every_contract_is_broken_once_below() -> None:
    assert {violation.contract for violation in VIOLATIONS} == set(contract_names())


@pytest.mark.parametrize(
    "violation", VIOLATIONS, ids=lambda v: f"{v.contract}-{v.module}-{v.line.split()[-1]}"
)
def test_a_violation_breaks_exactly_its_contract(tree: Path, violation: Violation) -> None:
    add(tree, violation.module, violation.line)
    for module, line in violation.also:
        add(tree, module, line)
    code, broken, printed = lint(tree)
    assert code != 0
    assert broken == {violation.contract}, printed
