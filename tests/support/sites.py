"""The brokers of the matrix, each as a site: where its publisher and its devices reach it, and how it is broken.

What one scenario does on a site stays in an environment of its own, so that a broker is started once for all of them.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from certificates import Authority
from devices import Device, provision
from other_brokers import ACCOUNTS, Cluster, start_aedes, start_ejabberd, start_rabbitmq
from publishing import Flagcast, configure, features, make_project
from serving import Serve

from brokers import Broker, start_amqtt, start_mosquitto
from flagcast_bridge.broker import connection as mqtt
from flagcast_bridge.project import Project
from flagcast_bridge.publishing import publish as publisher
from flagcast_shared.ids import DeviceId
from flagcast_shared.topics import Address, DeviceAddress

CLUSTER_PATIENCE_SECONDS = 200.0
"""A device that hears nothing on its node asks for a root, a head and a content, one after the other."""
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Access:
    """How somebody reaches a broker: its address, and the other keys of `[broker]` in a configuration."""

    url: str
    keys: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Site:
    """One broker that is running. Of a cluster the publisher is on the first node, the devices are on the second."""

    name: str
    publisher: Access
    device: Access
    nodes: Sequence[Broker]
    store: str = ""
    """Which files of a node, by a pattern, hold what it retains; none where it keeps that in memory."""
    clear: Callable[[], object] = lambda: None
    """Makes nodes that run forget what they retain, where that is no matter of files."""

    def crash(self, *, forgets: bool = False) -> None:
        """End every node by SIGKILL, and start all of them again; with `forgets` without what was retained."""
        if forgets:
            self.clear()
        for node in self.nodes:
            node.kill()
        if forgets and self.store:
            found = [path for node in self.nodes for path in node.folder.glob(self.store)]
            assert found, self.store
            for path in found:
                path.unlink()
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait_until_ready()

    @property
    def near(self) -> Broker:
        """Where the publisher is."""
        return self.nodes[0]

    @property
    def far(self) -> Broker:
        """Where the devices are."""
        return self.nodes[-1]

    @property
    def is_cluster(self) -> bool:
        return len(self.nodes) > 1


@dataclass(slots=True)
class Fleet:
    """A project on a site, the command, and its devices, which end with it."""

    site: Site
    project: Project
    flagcast: Flagcast
    folder: Path
    _open: ExitStack
    devices: list[Device] = field(default_factory=list)
    _serve: Serve | None = None

    def publish(self, *arguments: str, code: int = 0, **flags: bool) -> str:
        """Publish these flags."""
        return self.publish_text(features(flags), *arguments, code=code)

    def publish_text(self, text: str, *arguments: str, code: int = 0) -> str:
        """Publish a flags file."""
        path = self.folder / "features.yml"
        path.write_text(text)
        return self.run("publish", str(path), *arguments, code=code)

    def run(self, command: str, *arguments: str, code: int = 0) -> str:
        """Run a command on the project; what it says."""
        done = self.flagcast.on_project(command, *arguments)
        assert done.code == code, done.out + done.err
        return done.out + done.err

    def configure(self, **settings: int) -> None:
        """Set keys in the project's configuration."""
        configure(self.project.folder, {key: str(value) for key, value in settings.items()})

    def device(self, name: str, *arguments: str) -> Device:
        """A device that is provisioned and does not run yet."""
        access = self.site.device
        unique = f"{name}-{self.project.environment}"
        made = provision(self.folder / name, self.project.root_file(1), access.url, *arguments, device=unique)
        made.configure(access.keys)
        if self.site.is_cluster:
            made.patience = CLUSTER_PATIENCE_SECONDS
        self.devices.append(self._open.enter_context(made))
        return made

    def serve(self) -> Serve:
        """`flagcast serve`, which has looked at everything at least once; one for the fleet."""
        if self._serve is None:
            started = Serve(self.project.folder, self.folder / "serve.log")
            self._serve = self._open.enter_context(started)
            started.wait_until(lambda: " message=" in started.log.partition("message=connected")[2], "a turn")
        return self._serve

    def connect(self) -> mqtt.Connection:
        """A connection as the publisher."""
        return publisher.connect(self.project)

    def login(self) -> mqtt.Login:
        """What the publisher says when it connects."""
        keys = self.site.publisher.keys
        return mqtt.Login(keys.get("user", ""), ACCOUNTS["publisher"] if "user" in keys else "")

    def retained(self, *addresses: Address) -> dict[Address, bytes]:
        """What of these the broker retains, where the publisher is."""
        topics = {self.project.topics.of(each): each for each in addresses}
        with self.connect() as connection:
            return {topics[topic]: data for topic, data in connection.read(list(topics)).items() if data}

    def put(self, address: Address, data: bytes) -> None:
        """Retain anything, as whoever has the publisher's account could; an empty message clears."""
        with self.connect() as connection:
            connection.publish([(self.project.topics.of(address), data)])

    def member(self, device: Device, *arguments: str) -> dict[str, object]:
        """What `flagcast fleet` says of a device; empty where it knows of no report."""
        done = self.flagcast.on_project("fleet", "--format", "json", *arguments)
        listed = json.loads(done.out or '{"devices": []}')["devices"]
        return next((each for each in listed if each["device"] == self.id_of(device)), {})

    def id_of(self, device: Device) -> DeviceId:
        """The id of a device."""
        return DeviceId(f"{device.folder.name}-{self.project.environment}")

    def report_of(self, device: Device) -> DeviceAddress:
        """Where a device reports."""
        return DeviceAddress(self.id_of(device), "report")


@contextmanager
def fleet(site: Site, folder: Path, flagcast: Flagcast) -> Iterator[Fleet]:
    """A new project on a site."""
    keys = {key: f'"{value}"' for key, value in site.publisher.keys.items()}
    environment = f"matrix-{next(_numbers)}"
    made = make_project(flagcast.folder, site.publisher.url, keys, environment=environment)
    with ExitStack() as stack:
        yield Fleet(site, made, flagcast, folder, stack)


@contextmanager
def _mosquitto(folder: Path, name: str, protocol: str) -> Iterator[Site]:
    with start_mosquitto(folder) as broker:
        access = Access(broker.url, {"protocol": protocol})
        yield Site(name, access, access, [broker])


@contextmanager
def _mosquitto_tls(folder: Path) -> Iterator[Site]:
    folder.mkdir()
    authority = Authority.make()
    (folder / "ca.pem").write_bytes(authority.pem)
    certificate, key = authority.certificate(folder, "localhost")
    lines = [f"certfile {certificate}", f"keyfile {key}"]
    with start_mosquitto(folder / "broker", lines=lines) as broker:
        access = Access(f"mqtts://localhost:{broker.port}", {"ca_file": str(folder / "ca.pem")})
        yield Site("mosquitto-tls", access, access, [broker])


@contextmanager
def _single(name: str, broker: Broker, keys: Mapping[str, str] | None = None) -> Iterator[Site]:
    with broker:
        access = Access(broker.url, keys or {})
        yield Site(name, access, access, [broker])


@contextmanager
def _ejabberd(folder: Path) -> Iterator[Site]:
    with start_ejabberd(folder) as cluster:
        publisher, device = (_account(folder, cluster, at) for at in (0, 1))
        yield Site("ejabberd", publisher, device, cluster.nodes, clear=cluster.forget)


def _account(folder: Path, cluster: Cluster, at: int) -> Access:
    name = list(ACCOUNTS)[at]
    password = folder / f"{name}.password"
    password.write_text(f"{ACCOUNTS[name]}\n")
    return Access(cluster.nodes[at].url, {"user": f"{name}@localhost", "password_file": str(password)})


@contextmanager
def start(name: str, folder: Path) -> Iterator[Site]:
    """The broker of this name, for as long as the block lasts."""
    match name:
        case "mosquitto-5":
            starting = _mosquitto(folder, name, "5")
        case "mosquitto-3.1.1":
            starting = _mosquitto(folder, name, "3.1.1")
        case "mosquitto-tls":
            starting = _mosquitto_tls(folder)
        case "amqtt":
            starting = _single(name, start_amqtt(folder), {"protocol": "3.1.1"})
        case "aedes":
            starting = _single(name, start_aedes(folder))
        case "rabbitmq":
            starting = _rabbitmq(folder)
        case "ejabberd":
            starting = _ejabberd(folder)
        case _:
            raise AssertionError(name)
    with starting as site:
        yield site


@contextmanager
def _rabbitmq(folder: Path) -> Iterator[Site]:
    with start_rabbitmq(folder) as broker:
        access = Access(broker.url)
        yield Site("rabbitmq", access, access, [broker], store="mnesia/*/*retained*")
