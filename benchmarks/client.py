"""Evaluation in an application's own process: against a call, while the agent is killed, and how soon a change is seen.

The agent is a process of its own on a database of 1,000 flags; a publisher in memory admits updates through the agent's real core
and store in a second process, which is what is killed. What the pause is compared with is the same loop at times at which nothing
happens: the machine's own scheduling.
"""

import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import Goal, Options, Row, nanoseconds_per_call, run

if TYPE_CHECKING:
    from flagcast_agent.client import Client

SUPPORT = Path(__file__).parents[1] / "tests" / "support"
sys.path.insert(0, str(SUPPORT))

FLAGS = 1_000
WINDOW_MS = 40
"""How long around a kill the longest pause is looked for."""


def measure(options: Options) -> Iterator[Row]:
    from flagcast_agent.client import POLL_SECONDS, Client

    with tempfile.TemporaryDirectory(prefix="fc-") as folder, ExitStack() as stack:
        store = Path(folder) / "agent.sqlite"
        agent = _Agent(store)
        stack.callback(agent.kill)
        client = stack.enter_context(Client(store))
        if not client.wait_until_ready(30):
            raise SystemExit(client.problem)
        yield _idle(POLL_SECONDS, 2.0 if options.quick else 10.0)
        context = {"region": "north"}
        value = nanoseconds_per_call(lambda: client.boolean("flag-7", False, "entity-1", context), options)
        details = nanoseconds_per_call(lambda: client.evaluate("flag-7", False, "entity-1", context), options)
        floor = nanoseconds_per_call(
            lambda: client._known[""].compiled.boolean("flag-7", "entity-1", context), options
        )
        yield Row("one evaluation", value / 1e3, "µs", "compiled flag alone", floor / 1e3)
        yield Row("the same with details", details / 1e3, "µs", "one evaluation", value / 1e3)
        call = _call_over_the_socket(stack, store, options)
        yield Row(
            "one evaluation",
            value / 1e3,
            "µs",
            "gRPC on the socket",
            call / 1e3,
            goal=Goal("<=", 0.05, "ratio"),
        )
        kills = 5 if options.quick else 20
        at_kill, at_rest = _pauses(client, agent, kills)
        # Of the quieter quarter of each: on a busy machine the rest is other programs' turns.
        added = statistics.quantiles(at_kill, n=4)[0] - statistics.quantiles(at_rest, n=4)[0]
        yield Row(
            f"longest pause within {WINDOW_MS} ms of a SIGKILL, median of {kills}",
            statistics.median(at_kill), "ms", "nothing happens", statistics.median(at_rest),
        )  # fmt: skip
        yield Row("what the SIGKILL adds to it", max(0.0, added), "ms", goal=Goal("<=", 1.0))
        yield Row("longest of all", max(at_kill), "ms", "nothing happens", max(at_rest))
        changes = 10 if options.quick else 40
        for is_busy, name in ((False, "idle"), (True, "busy")):
            delays = _delays(client, agent, changes, is_busy=is_busy)
            ninety_five = sorted(delays)[math.ceil(len(delays) * 0.95) - 1]
            yield Row(
                f"admitted to seen, {name} application, p95 of {changes}", ninety_five, "ms",
                "p50", statistics.median(delays), goal=Goal("<=", 100.0),
            )  # fmt: skip


class _Agent:
    # The agent's core, store and a publisher in a process; `admit` returns when an update is on disk, with the time of that.

    def __init__(self, store: Path) -> None:
        self._store = store
        self._process: Any = None
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), "--agent", str(self._store)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._process.stdout.readline()

    def admit(self) -> float:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def end(self) -> None:
        # Nothing more than this, because it takes the turn from the loop that is measured.
        os.kill(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def _serve_updates(store: str) -> None:
    from followed import FollowedAgent, boolean

    agent = FollowedAgent(Path(store))
    held = agent.shell.sync.trusted.holdings.get(agent.publisher.namespace)
    flags = [boolean(f"flag-{number}", enabled=bool(number % 2)) for number in range(FLAGS)]
    if held is None:
        agent.publish(*flags)
    else:
        agent.go_on_from(flags)
    print("ready", flush=True)
    for _ in sys.stdin:
        flags[0] = boolean("flag-0", enabled=not flags[0].enabled)
        agent.publish(*flags, inline=True)
        # CLOCK_MONOTONIC is one clock for all processes of a machine.
        print(time.monotonic(), flush=True)


def _pauses(client: "Client", agent: _Agent, kills: int) -> tuple[list[float], list[float]]:
    found: dict[str, list[float]] = {"kill": [], "rest": []}
    for _ in range(kills):
        for kind in ("rest", "kill"):
            timer = threading.Timer(WINDOW_MS / 2000, agent.end if kind == "kill" else _nothing)
            timer.start()
            found[kind].append(_longest_pause(client, WINDOW_MS / 1000))
            timer.join()
        agent.kill()
        agent.start()
    return found["kill"], found["rest"]


def _nothing() -> None:
    pass


def _longest_pause(client: "Client", seconds: float) -> float:
    ask, clock = client.boolean, time.perf_counter_ns
    longest, last = 0, clock()
    end = last + int(seconds * 1e9)
    while last < end:
        ask("flag-7", False, "entity-1")
        now = clock()
        longest = max(longest, now - last)
        last = now
    return longest / 1e6


def _delays(client: "Client", agent: _Agent, changes: int, *, is_busy: bool) -> list[float]:
    seen: list[float] = []
    forget = client.listen(lambda change: seen.append(time.monotonic()) if change.keys else None)
    is_over = threading.Event()
    busy = threading.Thread(target=_ask_until, args=(client, is_over), daemon=True)
    if is_busy:
        busy.start()
    delays = []
    for number in range(changes):
        time.sleep(0.05 + number % 7 / 100)  # at another place between two looks each time
        admitted = agent.admit()
        while len(seen) <= number:
            time.sleep(0.001)
        delays.append(max(0.0, seen[-1] - admitted) * 1000)
    is_over.set()
    forget()
    if is_busy:
        busy.join()
    return delays


def _ask_until(client: "Client", is_over: threading.Event) -> None:
    while not is_over.is_set():
        client.boolean("flag-7", False, "entity-1")


def _idle(poll_seconds: float, seconds: float) -> Row:
    began = time.process_time()
    time.sleep(seconds)
    share = (time.process_time() - began) / seconds * 100
    return Row(
        f"following, a look every {poll_seconds * 1000:.0f} ms", share, "% of a core", goal=Goal("<=", 2.0)
    )


def _call_over_the_socket(stack: ExitStack, store: Path, options: Options) -> float:
    import importlib

    from publisher_simulator import PublisherSimulator

    from flagcast_agent import clock
    from flagcast_agent.api.protos import flipt_evaluation_pb2 as flipt

    folder = store.parent / "device"
    anchor = store.parent / "anchor"
    anchor.write_bytes(PublisherSimulator(now=clock.now()).anchor)
    program = Path(sys.executable).with_name("flagcast-agent")
    command: list[str | Path] = [
        program,
        "provision",
        folder,
        "--anchor",
        anchor,
        "--device",
        "device-1",
        "--broker",
        "mqtt://127.0.0.1:1",
    ]
    subprocess.run(command, check=True, capture_output=True)
    # A copy of the database, because two agents share none.
    import sqlite3

    with sqlite3.connect(store) as source, sqlite3.connect(folder / "agent.sqlite") as target:
        source.backup(target)
    process = subprocess.Popen([program, "run", "--dir", folder], stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)
    grpc: Any = importlib.import_module("grpc")
    channel = stack.enter_context(grpc.insecure_channel(f"unix:{folder / 'agent.sock'}"))
    grpc.channel_ready_future(channel).result(timeout=20)
    ask = channel.unary_unary("/flipt.evaluation.EvaluationService/Boolean")
    request = flipt.EvaluationRequest(
        flag_key="flag-7", entity_id="entity-1", context={"region": "north"}
    ).SerializeToString()
    ask(request)
    return nanoseconds_per_call(lambda: ask(request), options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--agent"]:
        _serve_updates(sys.argv[2])
        os._exit(0)
    sys.exit(run("flags in an application's own process", measure))
