"""The agent, then the publisher, is killed at random instants of updates: what is lost, torn or older than before.

The agent is a real process with its database on disk, behind a real mosquitto. `flagcast publish` is a real process with its
ledger. Every flag says which version it is from, so one answer of all flags shows a mixture. Counted are

- lost: an update that the agent had logged as admitted, or that the publisher had ended well with, and that was not there after;
- torn: an answer, or a boot, that mixes two versions or gives nothing;
- backwards: an answer from an older version than one that was given before.
"""

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from harness import Goal, Options, Row, run

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from devices import Device, DeviceFailed, provision
from publisher_simulator import PublisherSimulator
from publishing import make_project
from updates import FLAGS, generation, stream_of_updates

from brokers import Broker, start_mosquitto
from flagcast_bridge.broker import connection as mqtt

AGENT_KILLS, QUICK_AGENT_KILLS = 1_000, 8
BRIDGE_KILLS, QUICK_BRIDGE_KILLS = 200, 4
WHOLE_EVERY = 10
"""After so many killed publishers one may end, and the device has to follow it."""
FOLLOW_SECONDS = 30.0
_PROGRAM = Path(sys.executable).with_name("flagcast")
_EARLY = 0.3
# The share of agents that are killed at any instant from their start on, most of them before they have met the broker.
_START_SECONDS = 0.8
# Within this an agent has started and reached the broker.
_UPDATES_SECONDS = 0.1
# A few updates long: the others are killed within this after the first update that they admit.
_SHARE_WITH_NEWS = 0.25
# A series in which fewer kills than this brought a newer version did not kill during updates.


@dataclass(slots=True)
class Tally:
    """What one series of kills has shown."""

    kills: int = 0
    steps: int = 0
    lost: int = 0
    torn: int = 0
    backwards: int = 0
    newest: int = 0
    seconds: float = 0.0

    def take(self, answers: tuple[str, ...]) -> None:
        """One answer of all flags."""
        if len(set(answers)) != 1 or not answers[0]:
            self.torn += 1
            return
        version = int(answers[0].removeprefix("v"))
        self.backwards += version < self.newest
        self.steps += version > self.newest
        self.newest = max(self.newest, version)


def measure(options: Options) -> Iterator[Row]:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    kills = QUICK_AGENT_KILLS if options.quick else AGENT_KILLS
    yield from _rows("agent", _kill_agents(kills, chance), kills, seed)
    kills = QUICK_BRIDGE_KILLS if options.quick else BRIDGE_KILLS
    yield from _rows("publisher", _kill_publishers(kills, chance), kills, seed)


def _rows(who: str, tally: Tally, kills: int, seed: int) -> Iterator[Row]:
    none = Goal("<=", 0)
    yield Row(
        f"{who}: SIGKILLs during updates", tally.kills, "kills", goal=Goal(">=", kills), note=f"seed {seed}"
    )
    yield Row(f"{who}: updates lost", tally.lost, "updates", goal=none)
    yield Row(f"{who}: answers or boots torn", tally.torn, "answers", goal=none)
    yield Row(f"{who}: answers that went backwards", tally.backwards, "answers", goal=none)
    yield Row(
        f"{who}: newer versions admitted on the way",
        tally.steps,
        "versions",
        goal=Goal(">=", kills * _SHARE_WITH_NEWS),
    )
    yield Row(f"{who}: time", tally.seconds, "s")


def _kill_agents(kills: int, chance: random.Random) -> Tally:
    tally = Tally()
    began = time.monotonic()
    simulator = PublisherSimulator(now=int(time.time()))  # noqa: TID251  # what a publisher's clock would say
    simulator.release(*generation(1))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(start_mosquitto(folder / "broker"))
        anchor = folder / "anchor"
        anchor.write_bytes(simulator.anchor)
        with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
            connection.publish(list(simulator.retained.items()))
        device = stack.enter_context(provision(folder / "device", anchor, broker.url))
        device.start()
        device.wait_for("message=admitted")  # from here on the device has something that it may not lose
        device.kill()
        with stream_of_updates(simulator, broker):
            for _ in range(kills):
                device.start()
                if chance.random() < _EARLY:
                    time.sleep(chance.uniform(0, _START_SECONDS))  # the instant of the kill is what varies
                else:
                    _ask(device, tally)
                    device.wait_for("message=admitted")
                    time.sleep(chance.uniform(0, _UPDATES_SECONDS))  # here too
                _kill(device, tally)
                _tell("agent", tally, kills)
            device.start()
            _ask(device, tally)
        last = simulator.heads[-1].stable.version
        _require_version(device, tally, last)
    tally.seconds = time.monotonic() - began
    return tally


def _kill(device: Device, tally: Tally) -> None:
    device.kill()
    tally.kills += 1
    # What was logged as admitted was on disk before; the next answer may not be older.
    admitted = [version for version in device.logged_versions if version > tally.newest]
    tally.steps += len(admitted)
    tally.newest = max([tally.newest, *admitted])


def _ask(device: Device, tally: Tally) -> None:
    before = tally.backwards
    try:
        tally.take(device.variants(FLAGS))
    except DeviceFailed:
        tally.torn += 1
    tally.lost += tally.backwards - before


def _require_version(device: Device, tally: Tally, version: int) -> None:
    try:
        device.wait_until(
            lambda: device.variants(FLAGS) == (f"v{version}",) * len(FLAGS), f"version {version}"
        )
    except DeviceFailed:
        tally.lost += 1
    _ask(device, tally)


def _kill_publishers(kills: int, chance: random.Random) -> Tally:
    tally = Tally()
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(start_mosquitto(folder / "broker"))
        project = make_project(folder / "project", broker.url)
        took = _publish_whole(project.folder, 1)
        device = stack.enter_context(_device(folder, project.root_file(1), broker))
        _require_version(device, tally, 1)
        number = 1
        while tally.kills < kills:
            number += 1
            process = _publish(project.folder, number)
            time.sleep(chance.uniform(0, took * 1.1))  # the instant of the kill is what varies
            if process.poll() is None:
                process.kill()
                tally.kills += 1
                process.wait()
            elif process.returncode == 0:
                _require_version(device, tally, number)
            _ask(device, tally)
            if number % WHOLE_EVERY == 0:
                number += 1
                took = _publish_whole(project.folder, number)
                _require_version(device, tally, number)
            _tell("publisher", tally, kills)
        number += 1
        _publish_whole(project.folder, number)
        _require_version(device, tally, number)
    tally.seconds = time.monotonic() - began
    return tally


def _device(folder: Path, anchor: Path, broker: Broker) -> Device:
    device = provision(folder / "device", anchor, broker.url)
    device.start()
    return device


def _publish(project: Path, number: int) -> "subprocess.Popen[bytes]":
    listed = "".join(
        f"  - key: {key}\n    name: {key}\n    type: VARIANT_FLAG_TYPE\n    enabled: true\n"
        f"    variants:\n      - key: v{number}\n        default: true\n"
        for key in FLAGS
    )
    file = project / "features.yml"
    file.write_text(f'version: "1.3"\nnamespace: default\nflags:\n{listed}')
    return subprocess.Popen(
        [str(_PROGRAM), "publish", str(file), "--project", str(project)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _publish_whole(project: Path, number: int) -> float:
    """Seconds that one publication takes that nobody kills."""
    began = time.monotonic()
    process = _publish(project, number)
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"flagcast publish ended with {process.returncode}: {said.decode(errors='replace')}")
    return time.monotonic() - began


def _tell(who: str, tally: Tally, kills: int) -> None:
    if tally.kills % 50 == 0:
        sys.stderr.write(f"{who}: {tally.kills} of {kills} kills, version {tally.newest}\n")


if __name__ == "__main__":
    sys.exit(run("Killed again and again, on mosquitto", measure))
