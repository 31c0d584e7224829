"""Brokers that teams have already, for tests: RabbitMQ with its MQTT plugin, aedes, and two ejabberd nodes as one cluster.

Each is started from what the package of its system brings, in a folder and on ports of its own: the system's service is neither
needed nor touched. Erlang's nodes find one another through an epmd that ends with them. What is missing is installed by
tools/need-brokers.sh. Their configurations are those that docs/brokers.md shows.
"""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from repository import ROOT

from brokers import Broker, BrokerFailed, free_port
from flagcast_bridge.broker import connection as mqtt

ERLANG_START_SECONDS = 90.0
"""A machine whose cores are busy with other tests starts an Erlang node slowly."""
ACCOUNTS = {"publisher": "correct", "devices": "horse"}
"""Who may log in at ejabberd, with which password."""
_ATTEMPTS = 3
_POLL_SECONDS = 0.05
_RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_AEDES = ROOT / "tests" / "matrix" / "aedes" / "broker.mjs"
_AEDES_MODULES = ROOT / ".venv" / "aedes" / "node_modules"

RABBITMQ_CONF = """\
listeners.tcp = none
mqtt.listeners.tcp.1 = 127.0.0.1:{port}
mqtt.allow_anonymous = true
mqtt.default_user = guest
mqtt.default_pass = guest
"""
EJABBERD_YML = """\
hosts:
  - localhost
auth_method: internal
listen:
  - port: {port}
    ip: "127.0.0.1"
    module: mod_mqtt
modules:
  mod_mqtt:
    db_type: mnesia
    match_retained_limit: infinity
"""


def start_aedes(folder: Path) -> Broker:
    """aedes, in memory, on Node."""
    node = _program("node")
    if not _AEDES_MODULES.is_dir():
        raise BrokerFailed("aedes is not installed; run tools/need-brokers.sh")
    return _started(
        lambda port: Broker(
            "aedes",
            port,
            folder.resolve(),
            lambda port: [node, str(_AEDES), str(_AEDES_MODULES), str(port)],
            _is_ready=lambda: speaks(port),
        )
    )


@contextmanager
def start_rabbitmq(folder: Path) -> Iterator[Broker]:
    """One RabbitMQ node with its MQTT plugin."""
    if not _RABBITMQ.exists():
        raise BrokerFailed("RabbitMQ is not installed; run tools/need-brokers.sh")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    plugins, config = folder / "enabled_plugins", folder / "rabbitmq.conf"
    plugins.write_text("[rabbitmq_mqtt].\n")
    name = f"rabbit-{secrets.token_hex(4)}@localhost"
    with _epmd(folder) as erlang:

        def make(port: int) -> Broker:
            config.write_text(RABBITMQ_CONF.format(port=port))
            return Broker(
                "rabbitmq",
                port,
                folder,
                lambda _: [str(_RABBITMQ)],
                environment={
                    **erlang,
                    "RABBITMQ_NODENAME": name,
                    "RABBITMQ_CONFIG_FILE": str(config),
                    "RABBITMQ_CONF_ENV_FILE": str(folder / "none.conf"),
                    "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
                    "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
                    "RABBITMQ_LOG_BASE": str(folder / "log"),
                    "RABBITMQ_LOGS": "-",
                    "RABBITMQ_DIST_PORT": str(free_port()),
                    "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
                    # Its script then becomes the node, instead of staying beside it.
                    "RUNNING_UNDER_SYSTEMD": "true",
                },
                patience=ERLANG_START_SECONDS,
                _is_ready=lambda: speaks(port),
            )

        with _started(make) as broker:
            yield broker


class Cluster:
    """Two nodes of ejabberd that join one another. A context manager: runs in its block."""

    def __init__(self, folder: Path, erlang: Mapping[str, str]) -> None:
        self._folder = folder
        self._erlang = erlang
        self._cookie = secrets.token_hex(8)
        self._libraries = next(Path("/usr/lib").glob("*/ejabberd-*"), Path("/nowhere")).parent
        token = secrets.token_hex(4)
        self._names = [f"first-{token}@127.0.0.1", f"second-{token}@127.0.0.1"]
        self.nodes: list[Broker] = []

    def __enter__(self) -> Self:
        try:
            self.nodes.append(_started(lambda port: self._node(0, port)))
            self.nodes.append(_started(lambda port: self._node(1, port)))
            self.control(1, "join_cluster", self._names[0])
            # A node that joins starts its applications anew.
            _wait_until(lambda: speaks(self.nodes[1].port) and self._is_whole(), "the nodes have not joined")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for node in self.nodes:
            node.kill()

    def control(self, node: int, *arguments: str) -> str:
        """A command of `ejabberdctl` on one of the nodes, and what it says."""
        return self._run(node, "-s", "ejabberd_ctl", "-extra", self._names[node], *arguments)

    def forget(self) -> None:
        """Both nodes lose everything that is retained."""
        call = f"rpc:call('{self._names[0]}', mnesia, clear_table, [mqtt_pub])"
        self._run(0, "-eval", f"{{atomic, ok}} = {call}, halt().")

    def _run(self, node: int, *arguments: str) -> str:
        name = f"control-{secrets.token_hex(4)}@127.0.0.1"
        done = subprocess.run(
            [*self._erl(name), "-hidden", "-noinput", *arguments],
            env=self._environment(node),
            capture_output=True,
            text=True,
            timeout=ERLANG_START_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise BrokerFailed(f"{' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def _is_whole(self) -> bool:
        return set(self.control(0, "list_cluster").replace("'", "").split()) == set(self._names)

    def _node(self, at: int, port: int) -> Broker:
        folder = self._folder / f"node-{at + 1}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ejabberd.yml").write_text(EJABBERD_YML.format(port=port))
        return Broker(
            "ejabberd",
            port,
            folder,
            lambda _: [
                *self._erl(self._names[at]), "-noinput",
                "-mnesia", "dir", f'"{folder}/mnesia"', "-s", "ejabberd",
            ],
            environment=self._environment(at),
            patience=ERLANG_START_SECONDS,
            _is_ready=lambda: speaks(port),
        )  # fmt: skip

    def _erl(self, name: str) -> list[str]:
        own = ["-start_epmd", "false", "-name", name, "-setcookie", self._cookie]
        return ["erl", *own, "-kernel", "inet_dist_use_interface", "{127,0,0,1}"]

    def _environment(self, at: int) -> dict[str, str]:
        folder = self._folder / f"node-{at + 1}"
        return {
            **os.environ,
            **self._erlang,
            "ERL_LIBS": str(self._libraries),
            "EJABBERD_CONFIG_PATH": str(folder / "ejabberd.yml"),
            "EJABBERD_LOG_PATH": str(folder / "log" / "ejabberd.log"),
            "ERL_CRASH_DUMP": str(folder / "crash.dump"),
        }


@contextmanager
def start_ejabberd(folder: Path) -> Iterator[Cluster]:
    """Two nodes in one cluster; what is retained is in Mnesia."""
    folder = folder.resolve()
    with _epmd(folder) as erlang, Cluster(folder, erlang) as cluster:
        for user, password in ACCOUNTS.items():
            cluster.control(0, "register", user, "localhost", password)
        yield cluster


def speaks(port: int) -> bool:
    """Whether a broker takes an MQTT connection on this port."""
    try:
        mqtt.connect("127.0.0.1", port, mqtt.Login()).close()
    except mqtt.AuthenticationRefused:
        return True
    except mqtt.BrokerError:
        return False
    return True


@contextmanager
def _epmd(folder: Path) -> Iterator[dict[str, str]]:
    # What Erlang's nodes are told, so that they find this one and no other.
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "home").mkdir(exist_ok=True)
    port = free_port()
    program = _program("epmd")
    process = subprocess.Popen(
        [program, "-port", str(port), "-address", "127.0.0.1"], stdin=subprocess.DEVNULL
    )
    try:
        yield {
            "ERL_EPMD_PORT": str(port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "HOME": str(folder / "home"),  # where a cookie is made
        }
    finally:
        process.kill()
        process.wait()


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise BrokerFailed(f"{name} is not installed; run tools/need-brokers.sh")
    return found


def _started(make: Callable[[int], Broker]) -> Broker:
    for attempt in range(_ATTEMPTS):
        broker = make(free_port())
        try:
            broker.start()
        except BrokerFailed:
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            return broker
    raise AssertionError


def _wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + ERLANG_START_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise BrokerFailed(what)
        time.sleep(_POLL_SECONDS)
