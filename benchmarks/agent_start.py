"""How fast a device answers after exec without a network, what memory the agent takes, and what its snapshot weighs."""

import asyncio
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from fleet import Device, make_device, resident_mebibytes, running_agent, until_answered, write_flags
from harness import Goal, Options, Row, run

# What an agent that answers over gRPC cannot do without, in the order in which it would import it.
_FLOOR = (
    "import asyncio, sqlite3, tomllib, cbor2, paho.mqtt.client, grpclib.server, grpclib.health.service, "
    "grpclib.reflection.service; from google.protobuf import message, descriptor_pool, message_factory; "
    "from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey; "
    "print(open('/proc/self/statm').read().split()[1], flush=True)"
)


def measure(options: Options) -> Iterable[Row]:
    rounds = 3 if options.quick else 9
    counts = (1_000,) if options.quick else (25, 1_000, 10_000)
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
    seconds, mebibytes = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        with running_agent(device.folder) as agent:
            answered = asyncio.run(until_answered(device.socket, "contactless-payment-0"))
            seconds.append(answered - began)
            mebibytes.append(resident_mebibytes(agent.pid))
    is_promised = count == 1_000
    yield Row(
        f"exec to first answer, no network, {count:,} flags",
        statistics.median(seconds),
        "s",
        "bare imports",
        floor_seconds,
        goal=Goal("<=", 0.5) if is_promised else None,
    )
    yield Row(
        f"resident after start, {count:,} flags",
        statistics.median(mebibytes),
        "MiB",
        "bare imports",
        floor_mebibytes,
        goal=Goal("<=", 1.25, of="ratio") if is_promised else None,
    )


def _size_row(device: Device, flags: Path, count: int) -> Row:
    import sqlite3

    from flagcast_shared.envelope import open_envelope
    from flagcast_shared.ids import Environment, Namespace
    from flagcast_shared.messages import Place, decode_head
    from flagcast_shared.topics import Kind

    with sqlite3.connect(device.folder / "agent.sqlite") as connection:
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
