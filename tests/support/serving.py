"""`flagcast serve` as a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

PATIENCE_SECONDS = 100.0
"""For a machine whose cores are busy with other tests."""
_POLL_SECONDS = 0.05
_PROGRAM = Path(sys.executable).with_name("flagcast")


class ServeFailed(Exception):
    """It did not do what was waited for; with its log."""


class Serve:
    """A context manager: runs in its block, and leaves no process behind."""

    def __init__(self, folder: Path, log: Path, *arguments: str | Path) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [str(_PROGRAM), "serve", "--project", str(folder), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONWARNINGS": "error"},
                start_new_session=True,  # no terminal to ask at
            )

    @property
    def log(self) -> str:
        """Everything it has said."""
        return self._log.read_text(errors="replace")

    def lines(self, message: str) -> list[str]:
        """The lines of one kind."""
        return [line for line in self.log.splitlines() if f" message={message} " in f"{line} "]

    def wait_for(self, message: str, count: int = 1) -> None:
        """Wait until it has said so many lines of one kind."""
        self.wait_until(lambda: len(self.lines(message)) >= count, f"{count} x {message}")

    def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for a condition, but not for longer than it runs."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            is_over = self._process.poll() is not None
            if is_over or time.monotonic() > deadline:
                raise ServeFailed(f"{what}: not {'before it ended' if is_over else 'in time'}:\n{self.log}")
            time.sleep(_POLL_SECONDS)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it by a signal; the exit code."""
        self._process.send_signal(number)
        return self._process.wait(PATIENCE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
