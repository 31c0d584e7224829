"""Real brokers for tests: mosquitto, and the embedded one, each as a process of its own; `other_brokers` has more.

`start_mosquitto` and `start_amqtt` return when the broker answers. A Broker is a context manager and ends with its block.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

START_SECONDS = 90.0
STOP_SECONDS = 60.0
"""For a machine whose cores are busy with other tests."""
_ATTEMPTS = 5
# Between choosing a free port and taking it, another test may have it.
_POLL_SECONDS = 0.02
_SEARCH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))


class BrokerFailed(Exception):
    """The broker did not start or ended by itself; with its log."""


@dataclass(slots=True)
class Broker:
    """A broker's process, and what it starts. `port` stays the same through a restart.

    It answers when somebody listens on its port, or when `_is_ready` says so.
    """

    kind: str
    port: int
    folder: Path
    _command: Callable[[int], Sequence[str]]
    scheme: str = "mqtt"
    environment: Mapping[str, str] = field(default_factory=dict)
    patience: float = START_SECONDS
    _is_ready: Callable[[], bool] | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def host(self) -> str:
        return "127.0.0.1"

    @property
    def url(self) -> str:
        """What a project or an agent is configured with."""
        return f"{self.scheme}://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything that the broker has printed."""
        path = self.folder / f"{self.kind}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start, and return when it answers."""
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Start, and do not wait: a node of a cluster may wait for another one."""
        assert self._process is None
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{self.kind}.log").open("ab") as out:
            self._process = subprocess.Popen(
                self._command(self.port),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": "1", **self.environment},
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Return when it answers."""
        assert self._process is not None
        deadline = time.monotonic() + self.patience
        while not (self._answers() and (self._is_ready is None or self._is_ready())):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise BrokerFailed(f"{self.kind} on port {self.port} did not start:\n{self.log}")
            time.sleep(_POLL_SECONDS)

    def stop(self) -> int | None:
        """End it by SIGTERM; returns its exit code, None if it was not running."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start it again, on the same port; ends it first by SIGTERM if it runs."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _end(self, number: signal.Signals) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        if process.poll() is None:
            process.send_signal(number)
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise BrokerFailed(f"{self.kind} did not end by {number.name}:\n{self.log}") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it has started and left behind

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=1):
                return True
        except OSError:
            return False


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_mosquitto(
    folder: Path,
    *,
    port: int | None = None,
    persistence: bool = False,
    user: tuple[str, str] | None = None,
    lines: Sequence[str] = (),
) -> Broker:
    """A mosquitto for MQTT 3.1.1 and 5; `folder` takes its configuration, log and store.

    `user` is a name and password, without which it lets nobody in; `lines` are further lines of its configuration.
    """
    program = shutil.which("mosquitto", path=_SEARCH)
    if program is None:
        raise BrokerFailed("mosquitto is not installed; run tools/need-mosquitto.sh")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    settings = ["log_dest stdout", f"persistence {str(persistence).lower()}"]
    if persistence:
        settings += [f"persistence_location {folder}/", "autosave_interval 1", "autosave_on_changes true"]
    if os.geteuid() == 0:
        settings.append("user root")
    if user is None:
        settings.append("allow_anonymous true")
    else:
        passwords = folder / "passwords"
        add_mosquitto_user(passwords, *user)
        settings += ["allow_anonymous false", f"password_file {passwords}"]

    def command(port: int) -> Sequence[str]:
        config = folder / "mosquitto.conf"
        config.write_text("\n".join([f"listener {port} 127.0.0.1", *settings, *lines]) + "\n")
        return [program, "-c", str(config)]

    return _start("mosquitto", folder, port, command)


def start_configured_mosquitto(folder: Path, configuration: Callable[[int], str]) -> Broker:
    """A mosquitto with a configuration of its own; `configuration` is told the port that its first listener takes."""
    program = shutil.which("mosquitto", path=_SEARCH)
    if program is None:
        raise BrokerFailed("mosquitto is not installed; run tools/need-mosquitto.sh")

    def command(port: int) -> Sequence[str]:
        config = folder / "mosquitto.conf"
        config.write_text(configuration(port))
        return [program, "-c", str(config)]

    return _start("mosquitto", folder.resolve(), None, command)


def add_mosquitto_user(passwords: Path, name: str, password: str) -> None:
    """Put a user into a password file, which is made where there is none."""
    passwords.touch(mode=0o600)
    tool = shutil.which("mosquitto_passwd", path=_SEARCH)
    assert tool is not None
    subprocess.run([tool, "-b", str(passwords), name, password], check=True, capture_output=True)


def start_amqtt(folder: Path, *, port: int | None = None) -> Broker:
    """The embedded broker as `flagcast broker` runs it; its warnings are errors."""
    program = Path(sys.executable).with_name("flagcast")

    def command(port: int) -> Sequence[str]:
        return [str(program), "broker", "--bind", f"127.0.0.1:{port}"]

    broker = _start("amqtt", folder.resolve(), port, command)
    deadline = time.monotonic() + START_SECONDS
    while not re.search(rf"listening on mqtt://127\.0\.0\.1:{broker.port}\n", broker.log):
        if time.monotonic() > deadline:
            broker.kill()
            raise BrokerFailed(f"amqtt does not say that it listens:\n{broker.log}")
        time.sleep(_POLL_SECONDS)
    return broker


def _start(kind: str, folder: Path, port: int | None, command: Callable[[int], Sequence[str]]) -> Broker:
    for attempt in range(_ATTEMPTS):
        broker = Broker(kind, port or free_port(), folder, command)
        try:
            broker.start()
        except BrokerFailed:
            if port is not None or attempt == _ATTEMPTS - 1:
                raise
        else:
            return broker
    raise AssertionError
