"""The publisher's folder: `flagcast.toml`, the signing keys, the roots and the ledger.

    flagcast.toml         what is published where
    keys/root.key         signs roots; better kept elsewhere once devices are provisioned
    keys/publisher.key    signs everything else
    roots/1.root          the signed root, which is also the trust anchor of new devices
    ledger.sqlite         every number ever issued
    usage.sqlite          what devices counted, where it is collected

A value that cannot be used raises InvalidConfiguration with the file, the key, what is wrong and what is allowed, in one line.
"""

import difflib
import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import parse_qs, urlsplit

from flagcast_shared.errors import InvalidConfiguration, InvalidIdentifier
from flagcast_shared.ids import DeviceId, Environment, parse_device, parse_environment, parse_prefix
from flagcast_shared.limits import (
    DELTAS_MAX,
    MESSAGE_LIMIT_BYTES,
    MESSAGE_LIMIT_MIN_BYTES,
    MESSAGE_MAX_BYTES,
    ROOT_MAX_BYTES,
    ROOTS_MAX,
)
from flagcast_shared.topics import Topics
from flagcast_shared.transport import contradiction, parse_alpn, parse_broker_url, parse_server_name

from . import files
from .planning.plan import DELTAS, DELTAS_TOTAL_BYTES

CONFIG_NAME: Final = "flagcast.toml"
IGNORE_NAME: Final = ".gitignore"
KEYS_NAME: Final = "keys"
ROOTS_NAME: Final = "roots"
LEDGER_NAME: Final = "ledger.sqlite"
USAGE_NAME: Final = "usage.sqlite"
ROOT_KEY_NAME: Final = "root.key"
PUBLISHER_KEY_NAME: Final = "publisher.key"
PROTOCOLS: Final = ("auto", "5", "3.1.1")

HEAD_LIFETIME_HOURS: Final = 7 * 24
HEAD_LIFETIME_MAX_HOURS: Final = 366 * 24
"""A head that stays fresh for longer lets an attacker withhold news for longer."""
DELTAS_TOTAL_MAX_BYTES: Final = 16 * 1024 * 1024
"""All deltas to one content: a broker keeps them for every namespace."""
GRACE_SECONDS: Final = 3_600
"""A device on the slowest link has fetched a snapshot by then."""
GRACE_MAX_SECONDS: Final = 30 * 86_400
IGNORED_REPORTS_MAX: Final = 1_000
"""A list that a person keeps; of more devices than that it is the accounts on the broker that are to be withdrawn."""
ROOT_LIFETIME_DAYS: Final = 3_653
"""Ten years: devices in the field outlive most plans."""
ROOT_LIFETIME_MAX_DAYS: Final = 36_525
PASSWORD_MAX_BYTES: Final = 65_535
"""MQTT carries no longer one (MQTT 5, 3.1.3.6)."""
_CONFIG_MAX_BYTES: Final = 1_048_576

_SECONDS_PER_HOUR: Final = 3_600
_SECONDS_PER_DAY: Final = 86_400

_IGNORED: Final = """\
# The ledger and the usage book change at every run and are backed up, not versioned; secrets never enter a repository.
ledger.sqlite*
usage.sqlite*
*.key
*password*
*passphrase*
*.pgpass
"""

_LEDGER_FORM: Final = "postgresql://[USER@]HOST[:PORT]/DATABASE"

_Parsed = TypeVar("_Parsed")

_TEMPLATE: Final = """\
# The configuration of a Flagcast publisher. Relative paths start in the folder of this file.

# Signed into every message and root; devices trust only messages of their own environment. It never changes: for another
# environment make another project with flagcast init.
environment = {environment}

# The first level of every topic. It changes only together with prefix in every device's agent.toml and the broker's access rules.
prefix = {prefix}

# Where every number that is issued is written down. Without this line it is the file ledger.sqlite beside this one, for the
# bridges of one machine; those of several share a database of PostgreSQL. The password stands in a file.
#ledger = "postgresql://flagcast@db.example.com/flagcast?sslmode=verify-full&passfile=/etc/flagcast/ledger.pgpass"

[broker]
# mqtt://HOST[:PORT], or mqtts://HOST[:PORT] for TLS; over WebSocket ws://HOST[:PORT][/PATH], or wss:// for TLS.
url = {url}
# "5", "3.1.1", or "auto": MQTT 5 where the broker speaks it.
protocol = "auto"
# A file that holds the password alone, so that this file can be shown and versioned.
#user = "publisher"
#password_file = "broker.password"
# For TLS: who signed the broker's certificate, if this machine does not know; and the publisher's own one.
#ca_file = "ca.pem"
#cert_file = "publisher.pem"
#key_file = "publisher-tls.key"
# The name in the broker's certificate, if it is not the host of url; the protocol to ask for, where a port serves several (ALPN).
#server_name = "mqtt.example.com"
#alpn = "x-amzn-mqtt-ca"

[publish]
# The largest message, {message_low} to {message_high} bytes; larger snapshots travel in parts. The broker must take such
# messages; Azure IoT keeps retained ones of 64 KB, AWS IoT carries 128 KB.
message_limit_bytes = {message_limit}
# How long devices take what they hold for fresh, 1 to {head_high} hours. Publish again within half of it, or run flagcast serve.
head_lifetime_hours = {head_lifetime}
# From how many of the last versions a delta is kept on the broker, 0 to {deltas_high}, and how many bytes all deltas to one
# content may take there, 0 to {deltas_total_high}; the newest first. A small delta from the last version travels in the head
# whatever these say.
deltas = {deltas}
deltas_total_bytes = {deltas_total}
# How long a message that no head names any more stays on the broker, for devices that are just fetching it, 0 to
# {grace_high} seconds.
grace_seconds = {grace}
# Devices whose reports are not compared with the ledger, because they report numbers that nobody published; at most
# {ignored_high}.
#ignored_reports = ["charger-17"]

[root]
# How long a new root is good for, 1 to {root_high} days.
lifetime_days = {root_lifetime}
"""


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """How the broker is reached. `password_file` holds the password alone.

    `path` is that of a WebSocket, "" for MQTT directly on TCP or TLS; `server_name` is "" for the host of the URL.
    """

    url: str
    host: str
    port: int
    uses_tls: bool
    protocol: str
    user: str
    password_file: Path | None
    ca_file: Path | None
    cert_file: Path | None
    key_file: Path | None
    path: str
    server_name: str
    alpn: str


@dataclass(frozen=True, slots=True)
class Project:
    """Everything a publisher is told; all paths are absolute, spans are seconds, sizes bytes.

    `allow_group` is for this run alone: the group of a key file may read it.
    """

    folder: Path
    topics: Topics
    broker: BrokerSettings
    message_limit: int
    head_lifetime: int
    root_lifetime: int
    deltas: int
    deltas_total: int
    grace: int
    ledger_url: str = ""
    ignored_reports: frozenset[DeviceId] = frozenset()
    allow_group: bool = False

    @property
    def environment(self) -> Environment:
        """The environment that is published."""
        return self.topics.environment

    @property
    def root_key(self) -> Path:
        """The file of the key that signs roots."""
        return self.folder / KEYS_NAME / ROOT_KEY_NAME

    @property
    def publisher_key(self) -> Path:
        """The file of the key that signs heads, snapshots and deltas."""
        return self.folder / KEYS_NAME / PUBLISHER_KEY_NAME

    @property
    def usage(self) -> Path:
        """The file of what devices counted."""
        return self.folder / USAGE_NAME

    @property
    def ledger(self) -> Path | str:
        """The ledger's file, or its URL where one is configured."""
        return self.ledger_url or self.folder / LEDGER_NAME

    def root_file(self, number: int) -> Path:
        """The file of a signed root; the newest one is what devices are provisioned with."""
        return self.folder / ROOTS_NAME / f"{number}.root"


def load(folder: Path) -> Project:
    """The project in a folder. Raises InvalidConfiguration."""
    path = folder / CONFIG_NAME
    try:
        with path.open("rb") as file:
            text = file.read(_CONFIG_MAX_BYTES + 1)
    except FileNotFoundError:
        raise InvalidConfiguration(
            f"{path}: there is no such file; make a project with: flagcast init {folder} --environment NAME --broker URL, "
            "or name its folder with --project"
        ) from None
    except OSError as error:
        raise InvalidConfiguration(f"{path}: cannot be read: {error.strerror}") from error
    if len(text) > _CONFIG_MAX_BYTES:
        raise InvalidConfiguration(f"{path}: larger than {_CONFIG_MAX_BYTES} bytes; not a configuration")
    try:
        return parse(text.decode(), folder.resolve(), str(path))
    except UnicodeDecodeError:
        raise InvalidConfiguration(f"{path}: not UTF-8 text") from None


def parse(text: str, folder: Path, where: str) -> Project:
    """The project from the text of its configuration; relative paths stand in `folder`. Raises InvalidConfiguration."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # tomllib nests without end and reads any number
        raise InvalidConfiguration(f"{where}: not valid TOML: {error}") from error
    top = _Table(document, where, "")
    broker, publish, root = top.table("broker"), top.table("publish"), top.table("root")
    project = Project(
        folder,
        Topics(top.parsed("prefix", parse_prefix, "flagcast"), top.parsed("environment", parse_environment)),
        _broker(broker, folder),
        publish.integer(
            "message_limit_bytes", MESSAGE_LIMIT_BYTES, MESSAGE_LIMIT_MIN_BYTES, MESSAGE_MAX_BYTES
        ),
        publish.integer("head_lifetime_hours", HEAD_LIFETIME_HOURS, 1, HEAD_LIFETIME_MAX_HOURS)
        * _SECONDS_PER_HOUR,
        root.integer("lifetime_days", ROOT_LIFETIME_DAYS, 1, ROOT_LIFETIME_MAX_DAYS) * _SECONDS_PER_DAY,
        publish.integer("deltas", DELTAS, 0, DELTAS_MAX),
        publish.integer("deltas_total_bytes", DELTAS_TOTAL_BYTES, 0, DELTAS_TOTAL_MAX_BYTES),
        publish.integer("grace_seconds", GRACE_SECONDS, 0, GRACE_MAX_SECONDS),
        top.parsed("ledger", parse_ledger_url, ""),
        publish.devices("ignored_reports", IGNORED_REPORTS_MAX),
    )
    for table in (top, broker, publish, root):
        table.refuse_unknown()
    return project


def parse_ledger_url(url: str) -> str:
    """A URL of PostgreSQL as libpq reads it, without a password; "" for the file. Raises InvalidIdentifier."""
    if not url:
        return ""
    try:
        split = urlsplit(url)
    except ValueError as error:
        raise InvalidIdentifier(f"{error}; allowed is {_LEDGER_FORM}") from error
    if split.password or "password" in parse_qs(split.query):
        raise InvalidIdentifier(
            "no password belongs in it; name a file with ?passfile=FILE, in the form of PostgreSQL's .pgpass"
        )
    if split.scheme != "postgresql" or not (url.isascii() and url.isprintable()):
        raise InvalidIdentifier(f"{url!r}: allowed is {_LEDGER_FORM}")
    return url


def template(environment: str, broker_url: str, prefix: str) -> str:
    """The text of a new configuration, with every key explained."""
    # A JSON string without \u2028-like surprises is a TOML basic string.
    return _TEMPLATE.format(
        environment=json.dumps(environment),
        prefix=json.dumps(prefix),
        url=json.dumps(broker_url),
        message_low=MESSAGE_LIMIT_MIN_BYTES,
        message_high=MESSAGE_MAX_BYTES,
        message_limit=MESSAGE_LIMIT_BYTES,
        head_high=HEAD_LIFETIME_MAX_HOURS,
        head_lifetime=HEAD_LIFETIME_HOURS,
        deltas_high=DELTAS_MAX,
        deltas=DELTAS,
        deltas_total_high=DELTAS_TOTAL_MAX_BYTES,
        deltas_total=DELTAS_TOTAL_BYTES,
        grace_high=GRACE_MAX_SECONDS,
        grace=GRACE_SECONDS,
        ignored_high=IGNORED_REPORTS_MAX,
        root_high=ROOT_LIFETIME_MAX_DAYS,
        root_lifetime=ROOT_LIFETIME_DAYS,
    )


def not_ignored(folder: Path) -> tuple[str, ...]:
    """The patterns of a project's `.gitignore` that the one in `folder` does not have."""
    try:
        there = (folder / IGNORE_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        there = []
    return tuple(line for line in _IGNORED.splitlines() if line not in there and not line.startswith("#"))


@contextmanager
def founding(folder: Path, text: str) -> Iterator[Project]:
    """Make a project: the block writes keys and roots into the project it is given, which stands in a hidden folder.

    They move to `folder` when the block ends, and `flagcast.toml` with the given text comes last. If anything fails, nothing
    of it is left; what stood there before is never touched.

    Raises:
        InvalidConfiguration: the text is wrong, something of a project is already there, or the folder cannot be written.
    """
    parse(text, folder, "new configuration")
    try:
        was_there = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        _require_free(folder)
        staged = Path(tempfile.mkdtemp(prefix=".flagcast-init-", dir=folder))
    except OSError as error:
        raise InvalidConfiguration(f"{folder}: cannot be made or written: {error.strerror}") from error
    moved: list[Path] = []
    try:
        (staged / KEYS_NAME).mkdir(mode=0o700)
        (staged / ROOTS_NAME).mkdir()
        _write_new(staged / KEYS_NAME / ".gitignore", "*\n")  # keys never enter a repository by accident
        yield parse(text, staged, "new configuration")
        for name in (KEYS_NAME, ROOTS_NAME):
            _sync_folder(staged / name)
            _require_free(folder, name)
            (staged / name).rename(folder / name)
            moved.append(folder / name)
        # A folder that was there before may have one, which is somebody's.
        if not (folder / IGNORE_NAME).exists() and not (folder / IGNORE_NAME).is_symlink():
            _write_new(folder / IGNORE_NAME, _IGNORED)
            moved.append(folder / IGNORE_NAME)
        _write_new(folder / CONFIG_NAME, text)
        _sync_folder(folder)
    except BaseException as error:
        for path in moved:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        shutil.rmtree(staged, ignore_errors=True)
        if not was_there:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise InvalidConfiguration(f"{folder}: cannot be written: {error.strerror}") from error
        raise
    staged.rmdir()


def write_root(project: Project, number: int, data: bytes) -> None:
    """Keep a signed root in a new file. Raises InvalidConfiguration."""
    path = project.root_file(number)
    try:
        files.write_new(path, data)
    except OSError as error:
        raise InvalidConfiguration(f"{path}: cannot be written: {error.strerror}") from error


def read_roots(project: Project) -> tuple[bytes, ...]:
    """The signed roots, from root 1 on without a gap. Raises InvalidConfiguration."""
    roots: list[bytes] = []
    while len(roots) < ROOTS_MAX:
        path = project.root_file(len(roots) + 1)
        if roots and not path.exists():
            break
        roots.append(_read(path, ROOT_MAX_BYTES, "the root"))
    return tuple(roots)


def read_password(settings: BrokerSettings) -> str:
    """The broker's password, "" where none is configured; a line end after it is not part of it. Raises InvalidConfiguration."""
    if settings.password_file is None:
        return ""
    content = _read(settings.password_file, PASSWORD_MAX_BYTES, "the broker's password")
    try:
        return content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise InvalidConfiguration(
            f"{settings.password_file}: the broker's password is not UTF-8 text"
        ) from None


def _broker(table: "_Table", folder: Path) -> BrokerSettings:
    endpoint = table.parsed("url", parse_broker_url)
    settings = BrokerSettings(
        table.text("url"),
        endpoint.host,
        endpoint.port,
        endpoint.uses_tls,
        table.choice("protocol", PROTOCOLS, "auto"),
        table.text("user", ""),
        table.optional_path("password_file", folder),
        table.optional_path("ca_file", folder),
        table.optional_path("cert_file", folder),
        table.optional_path("key_file", folder),
        endpoint.path,
        table.parsed("server_name", parse_server_name, ""),
        table.parsed("alpn", parse_alpn, ""),
    )
    if (found := contradiction(endpoint, table.given())) is not None:
        raise table.wrong(*found)
    return settings


def _require_free(folder: Path, *names: str) -> None:
    for name in names or (CONFIG_NAME, KEYS_NAME, ROOTS_NAME, LEDGER_NAME):
        path = folder / name
        if path.exists() or path.is_symlink():
            raise InvalidConfiguration(
                f"{path}: already there, and nothing is ever overwritten; name another folder"
            )


def _read(path: Path, limit: int, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise InvalidConfiguration(f"{path}: {what} cannot be read: {error.strerror}") from error
    if len(content) > limit:
        raise InvalidConfiguration(f"{path}: larger than {limit} bytes; this is not {what}")
    return content


def _write_new(path: Path, content: str | bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Table:
    # One TOML table; remembers which keys were asked for, so that a misspelt one is found.

    def __init__(self, values: Mapping[str, object], where: str, name: str) -> None:
        self._values = values
        self._where = where
        self._name = name
        self._known: dict[str, None] = {}

    def table(self, key: str) -> "_Table":
        value = self._take(key, {})
        if not isinstance(value, Mapping):
            raise self.wrong(key, f"must be a table: [{key}]")
        return _Table(value, self._where, f"{key}.")

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

    def choice(self, key: str, allowed: tuple[str, ...], default: str) -> str:
        value = self.text(key, default)
        if value not in allowed:
            raise self.wrong(key, f"is {value!r}; allowed: {', '.join(allowed)}")
        return value

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        value = self._take(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(key, f"must be a whole number from {low} to {high}")
        if not low <= value <= high:
            raise self.wrong(key, f"is {value}; allowed is {low} to {high}")
        return value

    def devices(self, key: str, most: int) -> frozenset[DeviceId]:
        value = self._take(key, [])
        if not isinstance(value, list) or len(value) > most:
            raise self.wrong(key, f"must be a list of at most {most} device ids in quotes")
        try:
            return frozenset(parse_device(name if isinstance(name, str) else "") for name in value)
        except InvalidIdentifier as error:
            raise self.wrong(key, f"cannot be used: {error}") from error

    def optional_path(self, key: str, folder: Path) -> Path | None:
        text = self.text(key, "")
        return folder / text if text else None

    def refuse_unknown(self) -> None:
        for key in self._values:
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, 1, 0.4)
                hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(self._known)}"
                raise self.wrong(key, f"is not a known key; {hint}")

    def given(self) -> frozenset[str]:
        return frozenset(key for key, value in self._values.items() if value != "")

    def wrong(self, key: str, what: str) -> InvalidConfiguration:
        return InvalidConfiguration(f"{self._where}: {self._name}{key} {what}")

    def _take(self, key: str, default: object) -> object:
        self._known[key] = None
        value = self._values.get(key, default)
        if value is None:
            raise self.wrong(key, "is missing")
        return value
