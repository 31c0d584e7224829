"""Bench: one checkout's programs behind a mosquitto, and the victims that attacks are carried out on."""

import contextlib
import itertools
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from devices import Device, provision
from publisher_simulator import PublisherSimulator
from publishing import features

from brokers import Broker, start_mosquitto
from flagcast_bridge.broker import connection as mqtt
from flagcast_shared.ids import DeviceId, Environment, FlagKey
from flagcast_shared.model import BooleanFlag
from flagcast_shared.topics import DeviceAddress, Topics

from .load import PATIENCE_SECONDS, Sender, until
from .messages import batch, now

CPU_CAP_SECONDS, QUICK_CPU_CAP_SECONDS = 10, 3
"""Processor time of a command or a decoder, after which it is killed."""
COMMAND_CPU_SECONDS = 60
"""Processor time of a command that is not attacked itself."""
SLOW_SECONDS, QUICK_SLOW_SECONDS = 15.0, 4.0
"""Time that another caller, or SIGTERM, waits for a victim that does not answer."""
FLAGS = 1_000
TEST = Environment("test")
GOOD, MALLORY = DeviceId("good"), DeviceId("mallory")


@dataclass(frozen=True, slots=True)
class Done:
    """End of a command. `is_capped`: it was killed for its processor time."""

    code: int
    text: str
    cpu: float
    is_capped: bool


@dataclass(frozen=True, slots=True)
class Agent:
    """A running agent that holds FLAGS flags, and the publisher whose keys it trusts."""

    device: Device
    publisher: PublisherSimulator

    @property
    def pid(self) -> int:
        assert self.device._process is not None
        return self.device._process.pid

    def is_running(self) -> bool:
        return self.device._process is not None and self.device._process.poll() is None

    def refusals(self) -> int:
        """Number of refusals that it has logged."""
        return self.device.log.count("message=refused")


@dataclass(frozen=True, slots=True)
class Collector:
    """A real `flagcast usage collect`."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="surrogateescape")

    def ask(self, question: str, *values: object) -> list[tuple[object, ...]]:
        """A question to its book, read while it writes."""
        book = self.folder / "usage.sqlite"
        if not book.exists():
            return []
        with closing(sqlite3.connect(book, timeout=PATIENCE_SECONDS)) as connection, connection:
            return list(connection.execute(question, values))

    def count(self, question: str, *values: object) -> int:
        """A question whose answer is one number; 0 while it has made no table."""
        with contextlib.suppress(sqlite3.OperationalError):
            for (count,) in self.ask(question, *values):
                assert isinstance(count, int)
                return count
        return 0

    def counted(self, device: DeviceId = GOOD) -> int:
        """Batches of a device in its book."""
        return self.count("SELECT count(*) FROM batch WHERE device = ?", device)


@dataclass(slots=True)
class Bench:
    """One checkout's programs, a mosquitto, and a project that `flagcast init` made.

    One agent and one collector are the victims of all attacks; the next attack gets another one where the last ended it.
    """

    bin: Path
    folder: Path
    broker: Broker
    sender: Sender
    is_quick: bool
    _closing: ExitStack
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _agent: Agent | None = None
    _collector: Collector | None = None

    @property
    def project(self) -> Path:
        return self.folder / "project"

    @property
    def features(self) -> Path:
        return self.folder / "features.yml"

    @property
    def topics(self) -> Topics:
        return Topics("flagcast", TEST)

    @property
    def cpu_cap(self) -> int:
        return QUICK_CPU_CAP_SECONDS if self.is_quick else CPU_CAP_SECONDS

    @property
    def slow_seconds(self) -> float:
        return QUICK_SLOW_SECONDS if self.is_quick else SLOW_SECONDS

    def metrics(self, device: DeviceId) -> str:
        """The topic of a device's batches."""
        return self.topics.of(DeviceAddress(device, "metrics"))

    def report(self, device: DeviceId) -> str:
        """The topic of a device's report."""
        return self.topics.of(DeviceAddress(device, "report"))

    def fresh(self, name: str) -> Path:
        """A path where nothing is yet."""
        return self.folder / f"{next(self._numbers)}-{name}"

    def flagcast(self, *arguments: str | Path, cpu_cap: int = COMMAND_CPU_SECONDS) -> Done:
        """The command `flagcast`, to its end or to the cap of its time."""
        return _run(self.bin / "flagcast", arguments, cpu_cap)

    def ask(self, device: Device, *arguments: str) -> str:
        """The text that a command of `flagcast-agent` prints on a device."""
        arguments = (*arguments, "--dir", str(device.folder))
        return _run(self.bin / "flagcast-agent", arguments, COMMAND_CPU_SECONDS).text

    def python(self, program: str, *arguments: object, lines: str = "") -> "subprocess.CompletedProcess[str]":
        """A program that reads lines, on the checkout's own modules."""
        return subprocess.run(
            [self.bin / "python", "-c", program, *map(str, arguments)],
            input=lines, capture_output=True, text=True, timeout=10 * PATIENCE_SECONDS, check=False,
        )  # fmt: skip

    def put(self, *messages: tuple[str, bytes]) -> None:
        """Retain messages on the broker, as anybody with an account could."""
        with mqtt.connect(self.broker.host, self.broker.port, mqtt.Login()) as connection:
            connection.publish(messages)

    def send(self, *messages: tuple[str, bytes]) -> None:
        """Send messages at QoS 1, one after another, each when the broker has acknowledged the last."""
        with mqtt.connect(self.broker.host, self.broker.port, mqtt.Login()) as connection:
            for topic, payload in messages:
                connection._client.publish(topic, payload, qos=1).wait_for_publish(PATIENCE_SECONDS)

    def agent(self) -> Agent:
        """The agent, running."""
        if self._agent is None or not self._agent.is_running():
            publisher = PublisherSimulator(environment=Environment(self.fresh("all").name), now=now())
            publisher.release(*flags())
            self.put(*publisher.retained.items())
            device = self._closing.enter_context(self.provision(publisher, self.broker.url))
            device.start()
            device.holds(1)
            self._agent = Agent(device, publisher)
        return self._agent

    def collector(self) -> Collector:
        """The collector, running and subscribed."""
        if self._collector is None or self._collector.process.poll() is not None:
            path = self.fresh("collector.log")
            with path.open("wb") as log:
                process = subprocess.Popen(
                    [self.bin / "flagcast", "usage", "collect", "--project", self.project],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                )
            self._closing.callback(process.wait)
            self._closing.callback(process.kill)
            self._collector = Collector(process, self.project, path)
            self._send_until_counted(self._collector)
        return self._collector

    def provision(self, publisher: PublisherSimulator, url: str) -> Device:
        """A new device of this checkout that trusts the publisher."""
        folder = self.fresh("device")
        anchor = folder.with_suffix(".root")
        anchor.write_bytes(publisher.anchor)
        return provision(folder, anchor, url, program=self.bin / "flagcast-agent")

    def _send_until_counted(self, collector: Collector) -> None:
        # Again and again: it may not have subscribed yet.
        first, before = batch(), collector.counted()

        def is_counted() -> bool:
            if collector.process.poll() is None and collector.counted() == before:
                self.send((self.metrics(GOOD), first))
                time.sleep(0.1)
            return collector.process.poll() is not None or collector.counted() > before

        if not until(is_counted, PATIENCE_SECONDS) or collector.process.poll() is not None:
            sys.exit(f"the collector does not collect:\n{collector.log}")


@contextmanager
def prepared(checkout: Path, *, is_quick: bool) -> Iterator[Bench]:
    """The bench of a checkout that has its own .venv."""
    programs = checkout.resolve() / ".venv" / "bin"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fc-")))
        broker = stack.enter_context(start_mosquitto(folder / "broker", lines=["max_queued_messages 100000"]))
        sender = stack.enter_context(Sender(broker.port))
        bench = Bench(programs, folder, broker, sender, is_quick, stack)
        made = bench.flagcast("init", bench.project, "--environment", TEST, "--broker", broker.url)
        if made.code:
            sys.exit(f"{programs}: {made.text}")
        bench.features.write_text(features({"lights": True}))
        if not is_quick:  # nothing of it is needed there
            bench.flagcast("publish", bench.features, "--project", bench.project)
        yield bench


def flag(*, is_on: bool) -> BooleanFlag:
    """The flag that callers ask for."""
    return BooleanFlag(FlagKey("on"), enabled=is_on)


def flags() -> list[BooleanFlag]:
    """All that an agent holds."""
    others = (BooleanFlag(FlagKey(f"flag-{number}"), enabled=False) for number in range(1, FLAGS))
    return [flag(is_on=True), *others]


def _run(program: Path, arguments: Sequence[str | Path], cpu_cap: int) -> Done:
    with (
        tempfile.TemporaryFile() as out,
        subprocess.Popen(
            [program, *arguments], stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT
        ) as process,
    ):
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (cpu_cap, cpu_cap))
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(b"yes\n" * 3)
            process.stdin.close()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read().decode(errors="surrogateescape")
    is_capped = process.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
    return Done(process.returncode, text, used.ru_utime + used.ru_stime, is_capped)
