"""A real PostgreSQL for tests: a cluster of its own in a temporary folder, run by a user that is not root."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from brokers import free_port

START_SECONDS = 90.0
_FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")
_POLL_SECONDS = 0.05


class PostgresFailed(Exception):
    """It did not start; with its log."""


class Postgres:
    """A server on a port of 127.0.0.1 that lets everybody in. A context manager: runs in its block, and leaves nothing behind."""

    def __init__(self) -> None:
        self.port = free_port()
        self._programs = _programs()
        self._user = _user()
        self._made = 0
        self._shared = ""

    def __enter__(self) -> Self:
        # Not below pytest's folder, which is closed to others.
        self._folder = Path(tempfile.mkdtemp(prefix="flagcast-postgres-"))
        if self._user is not None:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        cluster = self._folder / "cluster"
        self._run("initdb", "-D", cluster, "-U", "flagcast", "-A", "trust", "-E", "UTF8", "--no-sync")
        self._log = self._folder / "log"
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self._folder,
            "fsync": "off",  # processes are killed here, not machines
            "wal_level": "minimal",
            "max_wal_senders": "0",
            "autovacuum": "off",
            "shared_buffers": "16MB",
            "max_connections": 40,
        }
        with self._log.open("wb") as log:
            self._server = subprocess.Popen(
                [
                    self._programs / "postgres",
                    "-D",
                    cluster,
                    *(f"--{key}={value}" for key, value in options.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                start_new_session=True,
                **self._identity(),
            )
        deadline = time.monotonic() + START_SECONDS
        while not (cluster / "postmaster.pid").exists() or "ready" not in (
            cluster / "postmaster.pid"
        ).read_text(errors="replace"):
            if self._server.poll() is not None or time.monotonic() > deadline:
                said = self._log.read_text(errors="replace")
                self.__exit__()
                raise PostgresFailed(said)
            time.sleep(_POLL_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        if self._server.poll() is None:
            self._server.send_signal(signal.SIGQUIT)  # at once: nothing of it is needed
        self._server.wait(START_SECONDS)
        shutil.rmtree(self._folder)

    def emptied(self) -> str:
        """The URL of a database without a ledger, the same at every call: a new one takes its time."""
        self._shared = self._shared or self.database()
        self.sql(self._shared, "DROP SCHEMA IF EXISTS flagcast CASCADE")
        return self._shared

    def database(self) -> str:
        """The URL of a new, empty database."""
        self._made += 1
        name = f"test_{self._made}"
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "flagcast", name)
        return f"postgresql://flagcast@127.0.0.1:{self.port}/{name}"

    def sql(self, url: str, statement: str) -> str:
        """What a statement gives, one row a line, columns parted by `|`."""
        return self._run(
            "psql",
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            url,
            "-c",
            f"SET client_min_messages = warning; {statement}",
        )

    def _run(self, program: str, *arguments: str | Path) -> str:
        done = subprocess.run(
            [self._programs / program, *arguments],
            check=False,
            capture_output=True,
            text=True,
            cwd=self._folder,
            **self._identity(),
        )
        if done.returncode:
            raise PostgresFailed(f"{program}: {done.stderr}")
        return str(done.stdout).strip()

    def _identity(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}


def _programs() -> Path:
    found = sorted(path for pattern in _FOLDERS for path in Path("/").glob(pattern.lstrip("/")))
    found += [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    for folder in found:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise PostgresFailed("PostgreSQL is not installed; run tools/need-postgres.sh")


def _user() -> pwd.struct_passwd | None:
    # PostgreSQL does not run as root.
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PostgresFailed("root cannot run PostgreSQL, and there is no user nobody")
