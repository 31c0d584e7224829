"""Real devices for tests: a provisioned folder, the agent as a process, and questions over its socket."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from grpc_calls import Refused, call

from flagcast_agent.api.protos import flipt_evaluation_pb2 as flipt

PATIENCE_SECONDS = 100.0
"""For a machine whose cores are busy with other tests. Only what fails takes so long."""
_POLL_SECONDS = 0.01
_TIMEOUTS = (2, 10, 50)
_PROGRAM = Path(sys.executable).with_name("flagcast-agent")


class DeviceFailed(Exception):
    """The agent did not do what was waited for; with its log."""


@dataclass(slots=True)
class Device:
    """One provisioned device. A context manager that leaves no process behind."""

    folder: Path
    patience: float = PATIENCE_SECONDS
    program: Path = _PROGRAM
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _log_start: int = field(default=0, init=False)

    @property
    def socket(self) -> Path:
        return self.folder / "agent.sock"

    @property
    def log(self) -> str:
        """Everything that the agent has logged since it was started last."""
        path = self.folder / "log"
        return path.read_bytes()[self._log_start :].decode(errors="replace") if path.exists() else ""

    @property
    def logged_versions(self) -> list[int]:
        """The versions that the agent has said it admitted, since it was started last."""
        return [int(found) for found in re.findall(r"message=admitted .*? version=(\d+) ", self.log)]

    def run(self, command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A command of the agent's on this device, to its end."""
        return subprocess.run(
            [str(self.program), command, *arguments, "--dir", str(self.folder)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    def gives_up(self, why: str, *command: str) -> None:
        """A command that takes --timeout ends with 1 and says why, once it had the time to come so far: it gets more and more."""
        said = ""
        for seconds in _TIMEOUTS:
            done = self.run(*command, "--timeout", str(seconds))
            said = done.stdout + done.stderr
            assert done.returncode == 1, said
            if why in said:
                return
        raise DeviceFailed(f"{' '.join(command)}: {why}: not said within {_TIMEOUTS[-1]} s:\n{said}")

    def start(self, *arguments: str, before: Sequence[str] = ()) -> None:
        """Start the agent; `before` are words before its command line, such as those that take the network away."""
        path = self.folder / "log"
        self._log_start = path.stat().st_size if path.exists() else 0
        with path.open("ab") as log:
            self._process = subprocess.Popen(
                [*before, str(self.program), "run", "--dir", str(self.folder), *arguments], stderr=log
            )

    def wait_for(self, text: str) -> None:
        """Wait until the agent has logged a line with `text`."""
        self.wait_until(lambda: text in self.log, text)

    def wait_until(self, holds: Callable[[], object], what: str) -> None:
        """Wait for a condition, but not for longer than the agent lives."""
        deadline = time.monotonic() + self.patience
        while not holds():
            is_over = self._process is None or self._process.poll() is not None
            if is_over or time.monotonic() > deadline:
                raise DeviceFailed(
                    f"{what}: not {'before the agent ended' if is_over else 'in time'}:\n{self.log}"
                )
            time.sleep(_POLL_SECONDS)

    def send_signal(self, number: signal.Signals) -> None:
        """A signal to the agent."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(PATIENCE_SECONDS)
        self._process = None
        return code

    def status(self) -> dict[str, object]:
        """What the agent says of itself."""
        done = self.run("status", "--format", "json")
        assert done.returncode == 0, done.stderr
        status = json.loads(done.stdout)
        assert isinstance(status, dict)
        return status

    def configure(self, broker: Mapping[str, str], *lines: str) -> None:
        """Put keys into the `[broker]` of its configuration, in place of those that are there, and lines at its end."""
        path = self.folder / "agent.toml"
        kept = [line for line in path.read_text().splitlines() if line.partition(" =")[0] not in broker]
        at = kept.index("[broker]") + 1
        kept[at:at] = [f"{key} = {json.dumps(value)}" for key, value in broker.items()]
        path.write_text("\n".join((*kept, *lines, "")))

    def holds(self, version: int) -> None:
        """Wait until it has admitted this version, or holds it since it was started."""
        self.wait_until(lambda: self.logged_versions[-1:] == [version], f"version {version}")

    def variants(self, flags: Sequence[str], entity: str = "e") -> tuple[str, ...]:
        """The variants of several flags in one batch, so all from one version; waits until the agent answers."""
        return tuple(each.variant_response.variant_key for each in self._batch(flags, entity))

    def _batch(
        self, flags: Sequence[str], entity: str, context: Mapping[str, str] | None = None
    ) -> Sequence[flipt.EvaluationResponse]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return _batch(self.socket, flags, entity, context or {})
            except (OSError, Refused) as error:
                if time.monotonic() > deadline:
                    raise DeviceFailed(f"no answer: {error}:\n{self.log}") from error
                time.sleep(_POLL_SECONDS)

    def enabled(self, *flags: str) -> tuple[bool, ...]:
        """Whether boolean flags are on, in one batch, so all from one version; waits until the agent answers."""
        return tuple(each.boolean_response.enabled for each in self._batch(flags, "e"))

    def ask(self, flag: str, entity: str, context: Mapping[str, str] | None = None) -> bool:
        """Whether a boolean flag is on, asked as an application asks, which is counted as usage."""
        (answer,) = self._batch((flag,), entity, context)
        return answer.boolean_response.enabled

    def evaluate(self, flag: str, entity: str, context: Mapping[str, str] | None = None) -> dict[str, object]:
        """One flag's answer, through the command; not counted as usage."""
        pairs = [word for key, value in (context or {}).items() for word in ("--context", f"{key}={value}")]
        done = self.run("eval", flag, "--entity", entity, *pairs, "--format", "json")
        assert done.returncode in (0, 4), done.stderr
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def provision(
    folder: Path,
    anchor: Path,
    broker_url: str,
    *arguments: str,
    device: str = "device-1",
    program: Path = _PROGRAM,
) -> Device:
    """A new device, as its operator would make it with this `flagcast-agent`."""
    done = subprocess.run(
        [
            str(program), "provision", str(folder), "--anchor", str(anchor), "--device", device, "--broker", broker_url,
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Device(folder, program=program)


def _batch(
    socket: Path, flags: Sequence[str], entity: str, context: Mapping[str, str]
) -> Sequence[flipt.EvaluationResponse]:
    requests = [flipt.EvaluationRequest(flag_key=flag, entity_id=entity, context=context) for flag in flags]
    batch = flipt.BatchEvaluationRequest(requests=requests)
    response = call(
        socket,
        "/flipt.evaluation.EvaluationService/Batch",
        batch,
        flipt.BatchEvaluationResponse,
        PATIENCE_SECONDS,
    )
    return tuple(response.responses)
