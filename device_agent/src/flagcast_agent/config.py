"""What a device starts from: `agent.toml` and the trust anchor `root.cbor` in one folder.

`provision` writes them, `load` reads them. A value that cannot be used raises InvalidConfiguration with the file, the key,
what is wrong and what is allowed, in one line.
"""

import json
import os
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from flagcast_shared.context import Device
from flagcast_shared.errors import InvalidConfiguration, InvalidIdentifier
from flagcast_shared.ids import (
    Environment,
    Namespace,
    parse_device,
    parse_environment,
    parse_namespace,
    parse_prefix,
)
from flagcast_shared.limits import LABELS_MAX, ROOT_MAX_BYTES
from flagcast_shared.transport import contradiction, parse_alpn, parse_broker_url, parse_server_name

CONFIG_NAME: Final = "agent.toml"
ANCHOR_NAME: Final = "root.cbor"
STORE_NAME: Final = "agent.sqlite"
SOCKET_NAME: Final = "agent.sock"
FILE_MODE: Final = 0o640
"""Of what is written here: the agent may run as another user of the group than the one that provisions."""

_Parsed = TypeVar("_Parsed")

PROTOCOLS: Final = ("auto", "5", "3.1.1")
LOG_FORMATS: Final = ("logfmt", "json")
HEARTBEAT_SECONDS: Final = 86_400
HEARTBEAT_MAX_SECONDS: Final = 366 * 86_400
USAGE_SECONDS: Final = 3_600
"""A power cut loses the counts of one span, and each span with evaluations in it costs one write to flash."""
USAGE_MAX_SECONDS: Final = 7 * 86_400


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """How the broker is reached. `password_file` holds the password alone, so that the configuration can be shown.

    `path` is that of a WebSocket, "" for MQTT directly on TCP or TLS; `server_name` is "" for the host of the URL.
    """

    host: str
    port: int
    tls: bool
    protocol: str = "auto"
    user: str = ""
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    keepalive_seconds: int = 60
    path: str = ""
    server_name: str = ""
    alpn: str = ""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything an agent is told; all paths are absolute."""

    folder: Path
    environment: Environment
    prefix: str
    device: Device
    namespaces: tuple[Namespace, ...]
    broker: BrokerConfig
    anchor: Path
    store: Path
    socket: Path
    socket_mode: int = 0o660
    socket_group: str = ""
    tcp_port: int = 0
    """Also answer on this port of 127.0.0.1; 0 for the Unix socket alone."""
    flagd_caching: bool = True
    """Whether flagd's providers may keep the answers of flags that no context can change, until they hear of a change."""
    log_format: str = "logfmt"
    heartbeat_seconds: int = HEARTBEAT_SECONDS
    """How often a report is sent without news; 0 for never."""
    usage_seconds: int = USAGE_SECONDS
    """How long evaluations are counted in memory before they are kept and sent; 0 to count none."""


def load(folder: Path) -> AgentConfig:
    """The configuration of a provisioned folder. Raises InvalidConfiguration."""
    path = folder / CONFIG_NAME
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except FileNotFoundError:
        raise InvalidConfiguration(
            f"{path}: there is no such file; write one with: flagcast-agent provision {folder} --anchor FILE --broker URL"
        ) from None
    except (OSError, ValueError, RecursionError) as error:  # tomllib nests without end and reads any number
        raise InvalidConfiguration(f"{path}: cannot be read: {error}") from error
    return parse(document, folder.resolve(), str(path))


def agent_version() -> str:
    """The installed release."""
    # importlib.metadata would stay in the agent's memory with csv and zipfile, almost a mebibyte; of a usual installation it
    # reads no more than this. Still a look at a large folder, so it stands outside of the start.
    for folder in sys.path:
        for metadata in Path(folder).glob("flagcast_agent-*.dist-info/METADATA"):
            for line in metadata.read_text(encoding="utf-8").splitlines():
                if line.startswith("Version: "):
                    return line.removeprefix("Version: ")
    from importlib.metadata import version

    return version("flagcast-agent")


def parse(document: Mapping[str, object], folder: Path, where: str) -> AgentConfig:
    """The configuration from a parsed TOML document; relative paths stand in `folder`. Raises InvalidConfiguration."""
    top = _Table(document, where, "")
    device = top.table("device")
    broker = top.table("broker")
    paths = top.table("paths", required=False)
    flagd = top.table("flagd", required=False)
    log = top.table("log", required=False)
    report = top.table("report", required=False)
    usage = top.table("usage", required=False)
    config = AgentConfig(
        folder=folder,
        environment=top.parsed("environment", parse_environment),
        prefix=top.parsed("prefix", parse_prefix, "flagcast"),
        device=Device(
            device.parsed("id", parse_device),
            device.texts("labels", LABELS_MAX),
            device.text("model", ""),
            device.text("firmware", ""),
        ),
        namespaces=top.names("namespaces", parse_namespace, (Namespace("default"),)),
        broker=_broker(broker, folder),
        anchor=paths.path("anchor", folder, ANCHOR_NAME),
        store=paths.path("store", folder, STORE_NAME),
        socket=paths.path("socket", folder, SOCKET_NAME),
        socket_mode=paths.mode("socket_mode", 0o660),
        socket_group=paths.text("socket_group", ""),
        tcp_port=top.integer("tcp_port", 0, 0, 65_535),
        flagd_caching=flagd.switch("caching", default=True),
        log_format=log.choice("format", LOG_FORMATS, "logfmt"),
        heartbeat_seconds=report.integer("heartbeat_seconds", HEARTBEAT_SECONDS, 0, HEARTBEAT_MAX_SECONDS),
        usage_seconds=usage.integer("interval_seconds", USAGE_SECONDS, 0, USAGE_MAX_SECONDS),
    )
    for table in (top, device, broker, paths, flagd, log, report, usage):
        table.refuse_unknown()
    return config


def write(folder: Path, text: str, anchor: bytes) -> tuple[Path, Path]:
    """Write a new `agent.toml` and anchor into a folder; neither is ever overwritten. Raises InvalidConfiguration."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidConfiguration(f"{folder}: cannot be made: {error.strerror}") from error
    config_path, anchor_path = folder / CONFIG_NAME, folder / ANCHOR_NAME
    for path in (config_path, anchor_path):
        if path.exists():
            raise InvalidConfiguration(
                f"{path}: already there and never overwritten; remove it or name another folder"
            )
    _write_new(anchor_path, anchor)
    _write_new(config_path, text.encode())
    return config_path, anchor_path


def render(document: Mapping[str, object]) -> str:
    """A parsed configuration as the TOML that `load` reads back."""
    lines = ["# What this device starts from. docs/operations.md explains every key.", ""]
    tables: list[tuple[str, Mapping[str, object]]] = [("", document)]
    while tables:
        name, table = tables.pop(0)
        if name:
            lines += ["", f"[{name}]"]
        for key, value in table.items():
            if isinstance(value, Mapping):
                if value:
                    tables.append((f"{name}.{key}".lstrip("."), value))
            elif value != "":
                # JSON's texts and lists of texts are TOML's, but for the escape of DEL.
                lines.append(f"{_toml_key(key)} = {json.dumps(value).replace(chr(0x7F), chr(92) + 'u007f')}")
    return "\n".join(lines) + "\n"


def _toml_key(key: str) -> str:
    is_bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if is_bare else json.dumps(key)


def read_anchor(path: Path) -> bytes:
    """The bytes of a trust anchor. Raises InvalidConfiguration."""
    try:
        with path.open("rb") as file:
            data = file.read(ROOT_MAX_BYTES + 1)
    except OSError as error:
        raise InvalidConfiguration(f"{path}: the trust anchor cannot be read: {error.strerror}") from error
    if len(data) > ROOT_MAX_BYTES:
        raise InvalidConfiguration(
            f"{path}: larger than any root ({ROOT_MAX_BYTES} bytes); this is not a trust anchor"
        )
    return data


def _write_new(path: Path, content: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, FILE_MODE)  # whatever the umask
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InvalidConfiguration(f"{path}: cannot be written: {error.strerror}") from error


def _broker(table: "_Table", folder: Path) -> BrokerConfig:
    endpoint = table.parsed("url", parse_broker_url)
    config = BrokerConfig(
        endpoint.host,
        endpoint.port,
        endpoint.uses_tls,
        table.choice("protocol", PROTOCOLS, "auto"),
        table.text("user", ""),
        table.optional_path("password_file", folder),
        table.optional_path("ca_file", folder),
        table.optional_path("cert_file", folder),
        table.optional_path("key_file", folder),
        table.integer("keepalive_seconds", 60, 5, 3600),
        endpoint.path,
        table.parsed("server_name", parse_server_name, ""),
        table.parsed("alpn", parse_alpn, ""),
    )
    if (found := contradiction(endpoint, table.given())) is not None:
        raise table.wrong(*found)
    return config


class _Table:
    # One TOML table; remembers which keys were asked for, so that a misspelt one is found.

    def __init__(self, values: Mapping[str, object], where: str, name: str) -> None:
        self._values = values
        self._where = where
        self._name = name
        self._known: list[str] = []

    def table(self, key: str, *, required: bool = True) -> "_Table":
        value = self._take(key, None if required else {})
        if not isinstance(value, Mapping):
            raise self.wrong(key, "must be a table")
        return _Table(value, self._where, f"{self._name}{key}.")

    def text(self, key: str, default: str | None = None) -> str:
        value = self._take(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "must be a text in quotes")
        return value

    def parsed(self, key: str, parser: Callable[[str], _Parsed], default: str | None = None) -> _Parsed:
        try:
            return parser(self.text(key, default))
        except InvalidIdentifier as error:
            raise self.wrong(key, f"cannot be used: {error}") from error

    def names(
        self, key: str, parser: Callable[[str], _Parsed], default: tuple[_Parsed, ...]
    ) -> tuple[_Parsed, ...]:
        value = self._take(key, list(default))
        if not isinstance(value, list) or not value or any(not isinstance(name, str) for name in value):
            raise self.wrong(key, "must be a list of at least one text")
        try:
            return tuple(dict.fromkeys(parser(name) for name in value))
        except InvalidIdentifier as error:
            raise self.wrong(key, f"cannot be used: {error}") from error

    def choice(self, key: str, allowed: tuple[str, ...], default: str) -> str:
        value = self.text(key, default)
        if value not in allowed:
            raise self.wrong(key, f"is {value!r}; allowed: {', '.join(allowed)}")
        return value

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        value = self._take(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(key, f"must be a whole number from {low} to {high}")
        return value

    def switch(self, key: str, *, default: bool) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "must be true or false")
        return value

    def mode(self, key: str, default: int) -> int:
        text = self.text(key, f"{default:04o}")
        try:
            mode = int(text, 8)
        except ValueError:
            mode = -1
        if not 0 <= mode <= 0o777:
            raise self.wrong(key, f'is {text!r}; allowed are octal permissions such as "0660"')
        return mode

    def texts(self, key: str, high: int) -> dict[str, str]:
        value = self._take(key, {})
        if not isinstance(value, Mapping) or any(not isinstance(entry, str) for entry in value.values()):
            raise self.wrong(key, "must be a table of texts")
        if len(value) > high:
            raise self.wrong(key, f"has {len(value)} entries; at most {high} are allowed")
        return {str(name): str(entry) for name, entry in value.items()}

    def path(self, key: str, folder: Path, default: str) -> Path:
        return folder / self.text(key, default)

    def optional_path(self, key: str, folder: Path) -> Path | None:
        text = self.text(key, "")
        return folder / text if text else None

    def refuse_unknown(self) -> None:
        for key in self._values:
            if key not in self._known:
                import difflib

                near = difflib.get_close_matches(key, self._known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(self._known)}"
                raise self.wrong(key, f"is not a known key; {hint}")

    def given(self) -> frozenset[str]:
        return frozenset(key for key, value in self._values.items() if value != "")

    def wrong(self, key: str, what: str) -> InvalidConfiguration:
        return InvalidConfiguration(f"{self._where}: {self._name}{key} {what}")

    def _take(self, key: str, default: object) -> object:
        self._known.append(key)
        value = self._values.get(key, default)
        if value is None:
            raise self.wrong(key, "is missing")
        return value
