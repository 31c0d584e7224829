"""The demonstration: a publisher, a broker and a device on this machine, each for real, in under a minute.

Everything runs as its own process from the installed commands and works in a temporary folder. Each step checks what it
shows; the first that is not as it should be ends the demonstration with exit code 1.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from flagcast_shared.envelope import open_envelope
from flagcast_shared.errors import FlagcastError
from flagcast_shared.ids import Namespace, Sequence
from flagcast_shared.messages import Head, Place, decode_head, encode_head
from flagcast_shared.topics import Address, HeadAddress, Kind, Topics

from . import check as validate
from . import clock, project
from .broker import connection as mqtt
from .output import echo
from .publishing import publish as publisher
from .signing import signer

PATIENCE_SECONDS: Final = 20.0
DEVICE: Final = "charger-17"
TOGGLED: Final = "contactless-payment"

_QUESTIONS: Final = (
    ("contactless-payment", "charger-17", "default"),
    ("screen-theme", "charger-17", "default"),
    ("power-curve", "charger-17", "charging"),
    ("solar-surplus", "charger-17", "charging"),
)


class DemoFailed(FlagcastError):
    """A step did not show what it should."""


def run(flags: Path) -> int:
    """Show the main job from beginning to end; 0 when every step was as it should be.

    Raises:
        DemoFailed: a step was not.
    """
    began = clock.monotonic()
    with tempfile.TemporaryDirectory(prefix="flagcast-demo-") as scratch, ExitStack() as stack:
        demo = _Demo(Path(scratch), flags, stack)
        demo.publish_and_receive()
        demo.toggle()
        demo.lose_everything_but_the_disk()
        demo.refuse_lies()
    _say("")
    _say(f"Done in {clock.monotonic() - began:.0f} s. Every step was checked.")
    return 0


class _Demo:
    def __init__(self, scratch: Path, flags: Path, stack: ExitStack) -> None:
        self._stack = stack
        self._fleet = scratch / "fleet"
        self._device = scratch / "device"
        self._flags = scratch / "flags"
        self._answers: dict[str, object] = {}
        shutil.copytree(flags, self._flags)

    def publish_and_receive(self) -> None:
        _title("1. A broker, a publisher with its keys, and the team's flags")
        self._broker, url = self._start_broker("127.0.0.1:0")
        _say(f"the embedded broker listens on {url}")
        _show(_flagcast("init", str(self._fleet), "--environment", "demo", "--broker", url))
        _show(_flagcast("publish", str(self._flags), "--project", str(self._fleet)), most=12)
        self._old_heads = self._heads()

        _title("2. A device: provisioned with the publisher's root, then on its own")
        anchor = self._fleet / "roots" / "1.root"
        provision = [
            "provision",
            str(self._device),
            "--anchor",
            str(anchor),
            "--device",
            DEVICE,
            "--broker",
            url,
        ]
        provision += [
            "--namespace",
            "default",
            "--namespace",
            "charging",
            "--model",
            "C2",
            "--label",
            "site=oslo",
        ]
        # The embedded broker speaks this version alone; "auto" would find that out after a few seconds.
        _show(_agent(*provision, "--protocol", "3.1.1"))
        self._agent = self._start_agent()
        for namespace in ("default", "charging"):
            self._agent.wait_for(f"message=admitted namespace={namespace} ")
        _show(self._status())

        _title("3. Applications ask over the device's Unix socket")
        self._answers = self._ask()
        for question, answer in self._answers.items():
            _say(f"{question:<52} {answer}")

    def toggle(self) -> None:
        _title(f"4. The team turns {TOGGLED} off; the change travels alone")
        before = self._evaluate(TOGGLED, DEVICE, "default")
        file = self._flags / "default" / "features.yml"
        text = file.read_text(encoding="utf-8")
        turned = re.sub(rf"(key: {TOGGLED}\n(?:.*\n)*?\s+enabled: )true", r"\1false", text, count=1)
        _require(turned != text, f"the flag {TOGGLED} is not there to be turned off")
        file.write_text(turned, encoding="utf-8")
        settings = project.load(self._fleet)
        compilation = validate.load(self._flags)
        shown: list[float] = []
        outcome = publisher.publish(
            settings,
            publisher.Wanted(compilation.namespaces, {"why": "demonstration"}),
            say=_say,
            show=lambda _plan: shown.append(clock.monotonic()),
        )
        plans = {plan.namespace: plan for plan in outcome.plans}
        version = plans[Namespace("default")].head.stable.version
        arrived = self._agent.wait_for(f"namespace=default epoch=1 version={version} ")
        after = self._evaluate(TOGGLED, DEVICE, "default")
        _say(f"before: {before}")
        _say(f"after:  {after}")
        _say(
            f"{(arrived - shown[-1]) * 1000:.0f} ms from the decision to publish (signing, two acknowledged publishes) to active"
        )
        _require(before != after, "the answer did not change")
        self._answers = self._ask()

    def lose_everything_but_the_disk(self) -> None:
        _title("5. No broker, no network, and the power goes")
        self._broker.send_signal(signal.SIGTERM)
        self._broker.wait(PATIENCE_SECONDS)
        _say("the broker is gone")
        self._agent.kill()
        _say("the agent was killed with SIGKILL")
        began = clock.monotonic()
        self._agent = self._start_agent()
        self._agent.wait_for("message=answering")
        _say(f"the agent is back after {(clock.monotonic() - began) * 1000:.0f} ms, from its own disk")
        again = self._ask()
        _require(again == self._answers, f"the answers changed: {again}")
        _say(f"all {len(again)} answers are the same as before")

    def refuse_lies(self) -> None:
        _title("6. A broker with a bad memory, and one with bad intentions")
        settings = project.load(self._fleet)
        # On the same port, so that the device finds it; it remembers nothing, and is told lies.
        self._broker, _ = self._start_broker(f"{settings.broker.host}:{settings.broker.port}")
        topics = settings.topics
        here = HeadAddress(Namespace("default"))
        self._lie(settings, topics, here, self._old_heads[here])
        self._agent.wait_for("attack=rollback")
        _say("an older head, honestly signed, was offered: refused as rollback")
        self._lie(settings, topics, here, self._forged(settings))
        self._agent.wait_for("attack=unknown_key")
        _say("a newer head, signed by a stranger's key, was offered: refused as unknown_key")
        self._lie(settings, topics, here, b"\xd2\x84not a message")
        self._agent.wait_for("attack=malformed")
        _say("garbage was offered: refused as malformed")
        again = self._ask()
        _require(again == self._answers, f"the answers changed: {again}")
        _say("nothing changed: all answers are the same")
        _show(self._status())

        _title("7. The publisher puts the truth back")
        _show(_flagcast("publish", str(self._flags), "--project", str(self._fleet)), most=12)
        self._agent.wait_for("message=admitted", after="attack=malformed")
        _show(self._status())
        self._agent.stop()
        _say("the agent ended cleanly")

    def _heads(self) -> dict[Address, bytes]:
        seen = publisher.read_broker(project.load(self._fleet))
        return {address: data for address, data in seen.messages.items() if isinstance(address, HeadAddress)}

    def _lie(self, settings: project.Project, topics: Topics, address: Address, data: bytes) -> None:
        login = mqtt.Login()
        with mqtt.connect(settings.broker.host, settings.broker.port, login) as connection:
            connection.publish([(topics.of(address), data)])

    def _forged(self, settings: project.Project) -> bytes:
        namespace = Namespace("default")
        place = Place(settings.environment, namespace, Kind.HEAD)
        head = _attackers_head(place, self._old_heads[HeadAddress(namespace)])
        return signer.sign_message(encode_head(head), place, [signer.create("stranger")], 1)

    def _start_broker(self, bind: str) -> tuple["subprocess.Popen[str]", str]:
        process = self._stack.enter_context(
            _process([*_command("flagcast"), "broker", "--bind", bind], "stdout")
        )
        assert process.stdout is not None
        for line in process.stdout:
            found = re.search(r"mqtt://[^\s]+:\d+", line)
            if found:
                return process, found.group()
        raise DemoFailed("the embedded broker did not start")

    def _start_agent(self) -> "_Agent":
        arguments = [*_command("flagcast-agent"), "run", "--dir", str(self._device)]
        return _Agent(self._stack.enter_context(_process(arguments, "stderr")))

    def _status(self) -> str:
        return _agent("status", "--dir", str(self._device))

    def _ask(self) -> dict[str, object]:
        return {
            f"{namespace}/{flag} for {entity}": self._evaluate(flag, entity, namespace)
            for flag, entity, namespace in _QUESTIONS
        }

    def _evaluate(self, flag: str, entity: str, namespace: str) -> str:
        arguments = ["eval", flag, "--entity", entity, "--namespace", namespace, "--dir", str(self._device)]
        answer = json.loads(_agent(*arguments, "--format", "json"))
        return f"{json.dumps(answer['value'])} ({answer['reason']})"


class _Agent:
    # A running agent and every line it has logged, with the time at which it was read.

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._lines: list[tuple[float, str]] = []
        self._arrived = threading.Condition()
        threading.Thread(target=self._read, name="agent-log", daemon=True).start()

    def wait_for(self, text: str, *, after: str = "") -> float:
        """The time at which a line with `text` was logged, past the last line with `after`."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: self._find(text, after) is not None, PATIENCE_SECONDS):
                _say("the agent logged:")
                for _, line in self._lines[-20:]:
                    _say(line)
                raise DemoFailed(f"the agent did not log {text!r} within {PATIENCE_SECONDS:.0f} s")
            found = self._find(text, after)
            assert found is not None
            return found

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE_SECONDS)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(PATIENCE_SECONDS)
        _require(code == 0, f"the agent ended with exit code {code}")

    def _find(self, text: str, after: str) -> float | None:
        first = max(
            (place for place, (_, line) in enumerate(self._lines) if after and after in line), default=-1
        )
        return next((at for at, line in self._lines[first + 1 :] if text in line), None)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._arrived:
                self._lines.append((clock.monotonic(), line.rstrip()))
                self._arrived.notify_all()


def _attackers_head(place: Place, data: bytes) -> Head:
    # The old one, under a number far above any in use.
    return replace(decode_head(open_envelope(data, place).payload, place), sequence=Sequence(1_000_000))


@contextmanager
def _process(arguments: list[str], read: str) -> Iterator["subprocess.Popen[str]"]:
    streams: dict[str, int] = {read: subprocess.PIPE}
    process = subprocess.Popen(arguments, text=True, **streams)  # type: ignore[call-overload]  # stdout or stderr
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        stream = process.stdout or process.stderr
        stream.close()


def _command(name: str) -> list[str]:
    # The command of the same installation; the device's agent is another distribution and may not be there.
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise DemoFailed(
            f"the command {name} is not installed; the demonstration needs flagcast-bridge and flagcast-agent"
        )
    return [found]


def _flagcast(*arguments: str) -> str:
    return _run([*_command("flagcast"), *arguments])


def _agent(*arguments: str) -> str:
    return _run([*_command("flagcast-agent"), *arguments])


def _run(arguments: list[str]) -> str:
    if "--format" not in arguments:
        _say("$ " + " ".join([Path(arguments[0]).name, *arguments[1:]]))
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    if done.returncode:
        _show(done.stdout + done.stderr)
        raise DemoFailed(f"{' '.join(arguments)}: exit code {done.returncode}")
    return done.stdout


def _require(holds: bool, otherwise: str) -> None:  # noqa: FBT001  # an assertion reads as one
    if not holds:
        raise DemoFailed(otherwise)


def _title(text: str) -> None:
    echo("", f"== {text}")


def _say(text: str) -> None:
    echo(f"   {text}")


def _show(text: str, most: int = 40) -> None:
    lines = text.rstrip().splitlines()
    for line in lines[:most]:
        _say(line)
    if len(lines) > most:
        _say(f"... and {len(lines) - most} lines more")
