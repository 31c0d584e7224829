"""An application in a process of its own that asks through a provider of others: questions and answers as lines of JSON."""

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from oracles import ORACLES
from repository import AGENT

PATIENCE_SECONDS = 100.0
"""For a machine whose cores are busy with other tests."""
APPLICATIONS = Path(__file__).parents[1] / "providers" / "applications"
_PROTOS = AGENT.sources / "api" / "protos"
_NODE_MODULES = Path(sys.prefix) / "node" / "node_modules"
_NODE = shutil.which("node")
_GO_APPLICATION = Path(sys.prefix) / "go" / "application"
_JAVA = shutil.which("java")
_JAVA_APPLICATION = Path(sys.prefix) / "java"
_RUST_APPLICATION = Path(sys.prefix) / "rust" / "application"
_PATIENT = {"FLAGD_DEADLINE_MS": "30000", "FLAGD_RETRY_GRACE_PERIOD": "60"}
"""A provider waits for a slow machine, and does not forget by itself what it has kept."""

with_go = pytest.mark.skipif(
    not _GO_APPLICATION.is_file(), reason="needs Go, and what tools/need-go-application.sh builds"
)

FLAGD_LANGUAGES = (
    "python",
    pytest.param(
        "node",
        marks=pytest.mark.skipif(
            _NODE is None or not (_NODE_MODULES / "@openfeature" / "flagd-provider").is_dir(),
            reason="needs Node 20 or newer, and what tools/need-node-modules.sh installs",
        ),
    ),
    pytest.param("go", marks=with_go),
    pytest.param(
        "java",
        marks=pytest.mark.skipif(
            _JAVA is None or not (_JAVA_APPLICATION / "built-from").is_file(),
            reason="needs Java 17 and Maven, and what tools/need-java-application.sh builds",
        ),
    ),
)
"""The languages with an application over flagd's provider that has events, as the parameters of a test."""

with_rust = pytest.mark.skipif(
    not _RUST_APPLICATION.is_file(),
    reason="needs Rust, and what `make test-providers` builds with tools/need-rust-application.sh",
)

ALL_FLAGD_LANGUAGES = (*FLAGD_LANGUAGES, pytest.param("rust", marks=with_rust))
"""The same with Rust, whose SDK has no events."""


class Application:
    """`command` starts it; it prints "ready" as JSON once its provider is, and then answers a line each.

    Between its answers it prints what its provider tells it, as {"event": ..., "flags": [...]}: see `hear`.
    """

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment)
        )
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.events: list[tuple[str, tuple[str, ...]]] = []
        """All that its provider has told it: the kind of event and the flags that it names."""
        self._heard = 0
        self._reader = threading.Thread(target=self._read, name="application", daemon=True)
        self._reader.start()
        try:
            self.ready = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(
        self, kind: str, key: str, default: object, context: Mapping[str, object] | None = None
    ) -> dict[str, Any]:
        """One evaluation's details: value, reason, variant, error."""
        assert self._process.stdin is not None
        question = {"kind": kind, "key": key, "default": default, "context": context or {}}
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        found = self._answer()
        assert isinstance(found, dict), found
        return found

    def ask_until_kept(self, kind: str, key: str, default: object) -> dict[str, Any]:
        """The answer that its provider has kept.

        The first event of a provider's stream names every flag, and takes back what was kept before it came.
        """
        found: dict[str, Any] = {}

        def is_kept() -> bool:
            found.update(self.ask(kind, key, default))
            return bool(found["reason"] == "CACHED")

        self.until(is_kept, f"{key} kept")
        return found

    def hear(self, kind: str, *flags: str) -> None:
        """Wait for an event of this kind that names these flags and no others, after the one that was heard last."""

        def is_heard() -> bool:
            for place, event in enumerate(self.events[self._heard :], self._heard):
                if event == (kind, flags):
                    self._heard = place + 1
                    return True
            return False

        self.until(is_heard, f"{kind} {flags}")

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_SECONDS} s; {self.events}"
            time.sleep(0.02)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> Any:
        found = self._answers.get(timeout=PATIENCE_SECONDS)
        assert found is not None, "the application ended"
        return found

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = json.loads(line)
            if "event" in found:
                self.events.append((found["event"], tuple(sorted(found["flags"]))))
            else:
                self._answers.put(found)
        self._answers.put(None)


def flagd_application(
    language: str, socket: Path, *more: str, settings: Mapping[str, str] | None = None
) -> Application:
    """An application with flagd's provider; `settings` are what the provider reads from the environment."""
    environment = {**_PATIENT, **(settings or {})}
    if language == "node":
        environment |= {"PATH": os.environ["PATH"], "NODE_PATH": str(_NODE_MODULES)}
        return Application([str(_NODE), APPLICATIONS / "flagd_application.cjs", socket, *more], environment)
    if language == "go":
        return Application([_GO_APPLICATION, "flagd", socket, *more], environment)
    if language == "rust":
        return Application([_RUST_APPLICATION, socket, *more], environment)
    if language == "java":
        classes = f"{_JAVA_APPLICATION}/target/classes:{_JAVA_APPLICATION}/lib/*"
        return Application(
            [str(_JAVA), "-XX:TieredStopAtLevel=1", "-cp", classes, "Application", socket, *more], environment
        )
    return Application([ORACLES, APPLICATIONS / "flagd_application.py", socket, *more], environment)


def flipt_application(socket: Path) -> Application:
    """An application with a client that is generated from Flipt's service, over grpcio."""
    return Application(
        [sys.executable, APPLICATIONS / "flipt_application.py", socket], {"PYTHONPATH": str(_PROTOS)}
    )


def go_application(socket: Path, descriptors: Path) -> Application:
    """An application in Go that asks Flipt's service; `descriptors` is a FileDescriptorSet of its messages."""
    return Application([_GO_APPLICATION, "flipt", socket, descriptors], {})
