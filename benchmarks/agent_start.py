"""A device's first answer after exec without a network, the agent's memory and disk, and the size of its snapshot.

Without a network is measured twice: with the broker gone from a network that is there, and with the network itself taken away,
in a namespace that has no interface that is up. Memory is read twice as well: at the first answer, when what follows the broker
is not imported yet, and once the agent has tried to connect, when it has all that the bare imports have.
"""

import asyncio
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from importlib import import_module, metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from network import no_network, why_not

from fleet import (
    Device,
    make_device,
    resident_mebibytes,
    running_agent,
    until_answered,
    wait_for_line,
    write_flags,
)
from harness import Goal, Options, Row, run

_START_GOAL = Goal("<=", 0.3)
_MEMORY_GOAL = Goal("<=", 40.0)
_IMPORTS_GOAL = Goal("<=", 1.15, of="ratio")
_TRIED = "no connection"
"""What the agent's log says once it has tried its broker in vain."""

# What an agent that answers Flipt's clients and follows a broker cannot do without, in the order in which it would import it.
_FLOOR = (
    "import asyncio, sqlite3, tomllib, cbor2, paho.mqtt.client; "
    "from google.protobuf import message, descriptor_pool, message_factory; "
    "from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey; "
    "print(open('/proc/self/statm').read().split()[1], flush=True)"
)


def measure(options: Options) -> Iterable[Row]:
    rounds = 3 if options.quick else 9
    counts = (1_000,) if options.quick else (25, 1_000, 10_000)
    yield _installed_row()
    floor_seconds, floor_mebibytes = _floor(rounds)
    for count in counts:
        with tempfile.TemporaryDirectory() as scratch:
            flags = write_flags(Path(scratch) / "flags", count)
            device = make_device(Path(scratch), flags)
            yield from _start_rows(device, count, rounds, floor_seconds, floor_mebibytes)
            yield _size_row(device, flags, count)


def _start_rows(
    device: Device, count: int, rounds: int, floor_seconds: float, floor_mebibytes: float
) -> Iterable[Row]:
    networks: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "no broker": nullcontext,
        "no network at all": no_network,
    }
    note = why_not()
    if note:
        del networks["no network at all"]
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    at_answer, after_attempt = [], []
    log = device.folder / "log"
    for _ in range(rounds):
        for name, network in networks.items():
            with ExitStack() as stack:
                with network():
                    began = time.perf_counter()
                    agent = stack.enter_context(running_agent(device.folder, log))
                answered = asyncio.run(until_answered(device.socket, "contactless-payment-0"))
                seconds[name].append(answered - began)
                if name == "no broker":
                    at_answer.append(resident_mebibytes(agent.pid))
                    wait_for_line(log, _TRIED)
                    after_attempt.append(resident_mebibytes(agent.pid))
    is_promised = count == 1_000
    for name, found in seconds.items():
        yield Row(
            f"exec to first answer, {name}, {count:,} flags",
            statistics.median(found),
            "s",
            "bare imports",
            floor_seconds,
            goal=_START_GOAL if is_promised else None,
        )
    if note:
        yield Row(f"exec to first answer, no network at all, {count:,} flags", None, "s", note=note)
    for name, goal in (
        (f"resident after the first attempt to connect, {count:,} flags", _MEMORY_GOAL),
        ("  the same, in bare imports", _IMPORTS_GOAL),
    ):
        yield Row(
            name,
            statistics.median(after_attempt),
            "MiB",
            "bare imports",
            floor_mebibytes,
            goal=goal if is_promised else None,
        )
    yield Row(
        f"  at the first answer, {count:,} flags",
        statistics.median(at_answer),
        "MiB",
        "bare imports",
        floor_mebibytes,
    )


def _installed_row() -> Row:
    # The files of the agent's distribution and of all that it needs, as pip installs them; compiled modules are not among them.
    ours = {"flagcast-agent": "flagcast_agent", "flagcast-shared": "flagcast_shared"}
    sizes: dict[str, int] = {}
    waiting = ["flagcast-agent"]
    while waiting:
        name = waiting.pop()
        if name in sizes:
            continue
        distribution = metadata.distribution(name)
        if name in ours:
            root = Path(str(import_module(ours[name]).__file__)).parent
            files = [path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        else:
            files = [Path(str(each.locate())) for each in distribution.files or () if each.suffix != ".pyc"]
        sizes[name] = sum(path.stat().st_size for path in files if path.exists())
        needed = [Requirement(line) for line in distribution.requires or ()]
        waiting += [
            canonicalize_name(each.name)
            for each in needed
            if each.marker is None or each.marker.evaluate({"extra": ""})
        ]
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    return Row(
        f"installed, {len(sizes)} distributions, without Python",
        sum(sizes.values()) / 2**20,
        "MiB",
        note=", ".join(f"{name} {sizes[name] / 2**20:.1f}" for name in largest),
    )


def _size_row(device: Device, flags: Path, count: int) -> Row:
    import sqlite3

    from flagcast_shared.envelope import open_envelope
    from flagcast_shared.ids import Environment, Namespace
    from flagcast_shared.messages import Place, decode_head
    from flagcast_shared.topics import Kind

    with closing(sqlite3.connect(device.folder / "agent.sqlite")) as connection:
        (data,) = connection.execute("SELECT head FROM holding").fetchone()
    place = Place(Environment("bench"), Namespace("default"), Kind.HEAD)
    head = decode_head(open_envelope(data, place).payload, place)
    text = json.dumps(
        json.loads((flags / "default" / "features.json").read_text(encoding="utf-8")), separators=(",", ":")
    )
    return Row(
        f"snapshot, {count:,} flags (in {head.stable.parts} parts)",
        head.stable.size,
        "bytes",
        "the flags file as JSON, gzipped",
        len(gzip.compress(text.encode(), 9)),
    )


def _floor(rounds: int) -> tuple[float, float]:
    seconds, mebibytes = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", _FLOOR], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - began)
        mebibytes.append(int(done.stdout) * 4096 / 2**20)
    return statistics.median(seconds), statistics.median(mebibytes)


if __name__ == "__main__":
    sys.exit(run("The agent's start, memory and snapshot", measure))
