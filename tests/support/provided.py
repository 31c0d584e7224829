"""An application in a process of its own that asks through a provider of others: questions and answers as lines of JSON."""

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE_SECONDS = 30.0
APPLICATIONS = Path(__file__).parents[1] / "providers" / "applications"


class Application:
    """`command` starts it; it prints "ready" as JSON once its provider is, and then answers a line each."""

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment)
        )
        self.ready = self._read()

    def ask(
        self, kind: str, key: str, default: object, context: Mapping[str, object] | None = None
    ) -> dict[str, Any]:
        """One evaluation's details: value, reason, variant, error."""
        assert self._process.stdin is not None
        question = {"kind": kind, "key": key, "default": default, "context": context or {}}
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        found = self._read()
        assert isinstance(found, dict), found
        return found

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_SECONDS} s"
            time.sleep(0.02)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the application ended"
        return json.loads(line)
