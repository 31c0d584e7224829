"""Load by ghz, a gRPC client in Go: what the agent answers to one, 16 and 64 clients, beside the servers that users know.

`make bench` and `benchmarks/local_api.py` run it where ghz is found: GHZ_BIN, or ghz on the PATH
(go install github.com/bojand/ghz/cmd/ghz). FLIPT_BIN names Flipt's server, FLAGD_BIN flagd's; both get the same flags as a file.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PATIENCE_SECONDS = 60
CONNECTIONS_MAX = 8
PROTOS = Path(__file__).parents[1] / "device_agent" / "src" / "flagcast_agent" / "api" / "protos"
FEATURES = """\
version: "1.2"
namespace: default
flags:
  - key: in-north
    name: in-north
    type: BOOLEAN_FLAG_TYPE
    enabled: false
    rollouts:
      - segment: {key: north, value: true}
segments:
  - key: north
    name: north
    match_type: ALL_MATCH_TYPE
    constraints:
      - {type: STRING_COMPARISON_TYPE, property: region, operator: eq, value: north}
"""
FLAGD_FLAGS = {
    "flags": {
        "in-north": {
            "state": "ENABLED",
            "variants": {"on": True, "off": False},
            "defaultVariant": "off",
            "targeting": {"if": [{"==": [{"var": "region"}, "north"]}, "on", "off"]},
        }
    }
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A call as ghz makes it."""

    proto: str
    method: str
    request: dict[str, object]


FLIPT = Asked(
    "flipt_evaluation.proto",
    "flipt.evaluation.EvaluationService.Boolean",
    {"flag_key": "in-north", "entity_id": "e", "context": {"region": "north", "firmware": "2.1.0"}},
)
FLAGD = Asked(
    "flagd_evaluation_v1.proto",
    "flagd.evaluation.v1.Service.ResolveBoolean",
    {"flag_key": "in-north", "context": {"targetingKey": "e", "region": "north", "firmware": "2.1.0"}},
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What one run gave: calls per second, times in ms, the server's CPU per call in µs."""

    rate: float
    p50: float
    p99: float
    cpu: float


def find() -> str | None:
    """The program, if there is one."""
    return os.environ.get("GHZ_BIN") or shutil.which("ghz")


@dataclass(frozen=True, slots=True)
class Server:
    """What is asked, where, and which process answers."""

    target: str
    process: int
    asked: Asked


def load(ghz: str, server: Server, clients: int, seconds: float, *, deadline: bool) -> Loaded:
    """One run of so many clients, each asking all the time."""
    asked = server.asked
    before, began = _cpu(server.process), time.perf_counter()
    done = subprocess.run(
        [
            ghz, "--insecure", "--format", "json", "--proto", str(PROTOS / asked.proto), "--call", asked.method,
            "--data", json.dumps(asked.request), "--concurrency", str(clients),
            "--connections", str(min(clients, CONNECTIONS_MAX)), "--duration", f"{seconds}s", "--duration-stop", "wait",
            "--timeout", "20s" if deadline else "0s", server.target,
        ],
        capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS + seconds,
    )  # fmt: skip
    spent = _cpu(server.process) - before
    found = json.loads(done.stdout)
    wrong = {code: count for code, count in found["statusCodeDistribution"].items() if code != "OK"}
    if wrong:
        raise SystemExit(f"{server.target} answered {wrong}")
    times = {each["percentage"]: each["latency"] / 1e6 for each in found["latencyDistribution"]}
    assert time.perf_counter() - began > seconds * 0.9
    return Loaded(found["rps"], times[50], times[99], spent * 1e6 / found["count"])


def _cpu(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def flipt(program: str, folder: Path) -> Iterator[Server]:
    """Flipt v2's server on the flags of a file, in the repository of its own that it asks for."""
    flags = folder / "flags"
    (flags / "default").mkdir(parents=True)
    (flags / "default" / "features.yaml").write_text(FEATURES, encoding="utf-8")
    author = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
    for step in (
        ("init", "--initial-branch", "main"),
        ("add", "."),
        (*author, "commit", "--message", "flags"),
    ):
        subprocess.run(["git", "-C", flags, *step], check=True, capture_output=True)
    port, web = _free_port(), _free_port()
    settings = {
        "log": {"level": "ERROR"},
        "server": {"host": "127.0.0.1", "http_port": web, "grpc_port": port},
        "meta": {"check_for_updates": False, "telemetry_enabled": False},
        "storage": {"default": {"branch": "main", "backend": {"type": "local", "path": str(flags)}}},
        "environments": {"default": {"name": "default", "storage": "default", "default": True}},
    }
    config = folder / "flipt.yml"
    config.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    environment = {**os.environ, "HOME": str(folder)}
    command = [program, "server", "--config", str(config)]
    with _running(command, environment, folder, lambda: _accepts(port)) as process:
        yield Server(f"127.0.0.1:{port}", process, FLIPT)


@contextlib.contextmanager
def flagd(program: str, folder: Path) -> Iterator[Server]:
    """flagd on the flags of a file."""
    flags, path = folder / "flagd.json", folder / "flagd.sock"
    flags.write_text(json.dumps(FLAGD_FLAGS), encoding="utf-8")
    command = [
        program, "start", "--uri", f"file:{flags}", "--socket-path", str(path),
        "--management-port", str(_free_port()), "--sync-port", str(_free_port()), "--ofrep-port", str(_free_port()),
    ]  # fmt: skip
    with _running(command, dict(os.environ), folder, path.exists) as process:
        yield Server(f"unix://{path}", process, FLAGD)


@contextlib.contextmanager
def _running(
    command: list[str], environment: dict[str, str], folder: Path, is_ready: Callable[[], bool]
) -> Iterator[int]:
    log = folder / f"{Path(command[0]).name}.log"
    with (
        log.open("w") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process,
    ):
        try:
            give_up = time.perf_counter() + PATIENCE_SECONDS
            while not is_ready():
                if process.poll() is not None or time.perf_counter() > give_up:
                    sys.exit(f"{command[0]} does not start: {log.read_text(encoding='utf-8')[-2000:]}")
                time.sleep(0.05)
            yield process.pid
        finally:
            process.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
