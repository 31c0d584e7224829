"""Flags like those of `examples/` in any number, and real processes to publish them to and to answer from."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import yaml

from flagcast_bridge import check
from flagcast_shared.ids import FlagKey, Namespace
from flagcast_shared.model import AnySegment, BooleanFlag, Flag, Segment, VariantFlag

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 30.0


def write_flags(folder: Path, count: int) -> Path:
    """A folder with one namespace of `count` flags: those of examples/default over and over, under new keys."""
    source = yaml.safe_load((ROOT / "examples" / "default" / "features.yml").read_text(encoding="utf-8"))
    flags = []
    for number in range(count):
        flag = dict(source["flags"][number % len(source["flags"])])
        flag["key"] = f"{flag['key']}-{number}"
        flags.append(flag)
    document = {
        "version": source["version"],
        "namespace": "default",
        "flags": flags,
        "segments": source["segments"],
    }
    target = folder / "default"
    target.mkdir(parents=True, exist_ok=True)
    (target / "features.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def make_entries(count: int) -> list[Flag | AnySegment]:
    """The same flags and their segments as `write_flags` makes them, compiled."""
    entries = check.load(ROOT / "examples" / "default").namespaces[Namespace("default")]
    flags = [entry for entry in entries if isinstance(entry, BooleanFlag | VariantFlag)]
    segments = [entry for entry in entries if isinstance(entry, Segment)]
    renamed = (
        replace(flag, key=FlagKey(f"{flag.key}-{number}"))
        for number, flag in zip(range(count), cycle(flags), strict=False)
    )
    return [*renamed, *segments]


@dataclass(frozen=True, slots=True)
class Device:
    """A provisioned device that is in sync and stopped; its broker is gone."""

    folder: Path
    published: str

    @property
    def socket(self) -> Path:
        return self.folder / "agent.sock"


def make_device(scratch: Path, flags: Path) -> Device:
    """Publish `flags` for real, let an agent admit them, then stop everything."""
    with embedded_broker() as url:
        command("flagcast", "init", str(scratch / "project"), "--environment", "bench", "--broker", url)
        published = command("flagcast", "publish", str(flags), "--project", str(scratch / "project"))
        folder = scratch / "device"
        anchor = next((scratch / "project" / "roots").iterdir())
        command(
            "flagcast-agent",
            "provision",
            str(folder),
            "--anchor",
            str(anchor),
            "--device",
            "bench-1",
            "--broker",
            url,
        )
        with running_agent(folder) as agent:
            asyncio.run(until_answered(folder / "agent.sock", "contactless-payment-0"))
            agent.terminate()
            agent.wait(PATIENCE_SECONDS)
    return Device(folder, published)


def command(name: str, *arguments: str) -> str:
    """Run one of our commands to its end and give its output; an error ends the benchmark."""
    done = subprocess.run([str(BIN / name), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def embedded_broker() -> Iterator[str]:
    """The embedded broker as a process; gives its URL."""
    with subprocess.Popen(
        [str(BIN / "flagcast"), "broker", "--bind", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True
    ) as broker:
        try:
            assert broker.stdout is not None
            for line in broker.stdout:
                if found := re.search(r"mqtt://[\d.]+:\d+", line):
                    yield found.group()
                    break
        finally:
            broker.terminate()


@contextmanager
def running_agent(folder: Path, log: Path | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """An agent as a process, killed at the end unless it ended by itself; `log` takes what it says."""
    # As installed: compiled once, and not anew for every start.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with (log or Path(os.devnull)).open("wb") as out:
        agent = subprocess.Popen(
            [str(BIN / "flagcast-agent"), "run", "--dir", str(folder)], stderr=out, env=environment
        )
    try:
        yield agent
    finally:
        agent.kill()
        agent.wait()


async def until_answered(socket: Path, flag: str) -> float:
    """Ask until there is an answer; gives the time of the first one (perf_counter seconds)."""
    from grpc_calls import Refused, call

    from flagcast_agent.api.protos import flipt_evaluation_pb2 as flipt

    give_up = time.perf_counter() + PATIENCE_SECONDS
    while time.perf_counter() < give_up:
        if os.path.exists(socket):  # noqa: PTH110, ASYNC240  # a poll of one path, too short to matter
            try:
                request = flipt.EvaluationRequest(flag_key=flag, entity_id="e")
                call(
                    socket,
                    "/flipt.evaluation.EvaluationService/Boolean",
                    request,
                    flipt.BooleanEvaluationResponse,
                )
                return time.perf_counter()
            except (Refused, OSError):
                pass
        await asyncio.sleep(0.002)
    sys.exit("the agent gave no answer")


def wait_for_line(log: Path, text: str) -> None:
    """Wait until a line of an agent's log has `text`."""
    give_up = time.perf_counter() + PATIENCE_SECONDS
    while text not in log.read_text(encoding="utf-8"):
        if time.perf_counter() > give_up:
            sys.exit(f"the agent does not say {text!r}: {log.read_text(encoding='utf-8')}")
        time.sleep(0.01)


def resident_mebibytes(process: int) -> float:
    """A process's resident memory, from the kernel."""
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
