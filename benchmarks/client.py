"""Evaluation in an application's own process: against a call, while its agent is killed, and how soon a change is seen.

The agent is a real one on 1,000 flags, behind a broker; the application is a process of its own that evaluates as fast as it can.
The agent is killed under it again and again. Of the time after each kill the longest pause between two answers is taken, by the
clock and by the processor time of the thread that asks. So it is, twice, of as long a time just before, when the agent is sent a
signal that does nothing: what there is then is the machine's own scheduling, and by how much these two differ is how well this
machine can tell what a kill adds. Taking down any process costs the machine something: so one of an agent's size that has nothing
to do with the application is killed as well. After every kill the agent is started again and a change published.

How soon a change is seen is measured from the instant at which it is on disk, which no agent says that precisely: it is admitted
there by the agent's core and store in a process of the benchmark's own.
"""

import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fleet import embedded_broker
from harness import Goal, Options, Row, nanoseconds_per_call, run

if TYPE_CHECKING:
    from devices import Device

    from flagcast_agent.client import Client
    from flagcast_shared.model import BooleanFlag

SUPPORT = Path(__file__).parents[1] / "tests" / "support"
sys.path.insert(0, str(SUPPORT))

FLAGS = 1_000
WINDOW_MS = 40
"""How long after a kill the longest pause is looked for: the client looks at the database at least once meanwhile."""
NOTED_NS = 10_000
"""Pauses from here on are kept; one answer takes a fifth of it."""
SHORT_LIFE_SECONDS = 5
PATIENCE_SECONDS = 30.0


def measure(options: Options) -> Iterator[Row]:
    from flagcast_agent.client import POLL_SECONDS, Client

    with tempfile.TemporaryDirectory(prefix="fc-") as folder, ExitStack() as stack:
        site = _Site(Path(folder), stack)
        with Client(site.store) as client:
            if not client.wait_until_ready(30):
                raise SystemExit(client.problem)
            yield _idle(POLL_SECONDS, 2.0 if options.quick else 10.0)
            yield from _against_a_call(client, site.device, options)
        yield from _killed(site, stack, 5 if options.quick else 40)
    with tempfile.TemporaryDirectory(prefix="fc-") as folder, ExitStack() as stack:
        store = Path(folder) / "agent.sqlite"
        agent = _Agent(store)
        stack.callback(agent.kill)
        client = stack.enter_context(Client(store))
        if not client.wait_until_ready(30):
            raise SystemExit(client.problem)
        changes = 10 if options.quick else 40
        for is_busy, name in ((False, "idle"), (True, "busy")):
            delays = _delays(client, agent, changes, is_busy=is_busy)
            ninety_five = sorted(delays)[math.ceil(len(delays) * 0.95) - 1]
            yield Row(
                f"admitted to seen, {name} application, p95 of {changes}", ninety_five, "ms",
                "p50", statistics.median(delays), goal=Goal("<=", 100.0),
            )  # fmt: skip


def _against_a_call(client: "Client", device: "Device", options: Options) -> Iterator[Row]:
    context = {"region": "north"}
    value = nanoseconds_per_call(lambda: client.boolean("flag-7", False, "entity-1", context), options)
    details = nanoseconds_per_call(lambda: client.evaluate("flag-7", False, "entity-1", context), options)
    floor = nanoseconds_per_call(
        lambda: client._known[""].compiled.boolean("flag-7", "entity-1", context), options
    )
    yield Row("one evaluation", value / 1e3, "µs", "compiled flag alone", floor / 1e3)
    yield Row("the same with details", details / 1e3, "µs", "one evaluation", value / 1e3)
    yield Row(
        "one evaluation",
        value / 1e3,
        "µs",
        "gRPC on the socket",
        _call_over_the_socket(device.socket, options) / 1e3,
        goal=Goal("<=", 0.05, "ratio"),
    )


def _killed(site: "_Site", stack: ExitStack, kills: int) -> Iterator[Row]:
    application = _Application(site.store)
    stack.callback(application.end)
    chance = random.Random(7)
    wall: dict[str, list[float]] = {"rest": [], "again": [], "other": [], "kill": []}
    cpu: dict[str, list[float]] = {"rest": [], "again": [], "other": [], "kill": []}
    arrived = 0
    for _ in range(kills):
        other = _a_process_like_an_agent()
        for kind, pauses in wall.items():
            # At another place between two looks at the database each time.
            time.sleep(chance.uniform(0.05, 0.1))
            began = time.monotonic_ns()
            os.kill(
                other.pid if kind == "other" else site.pid, signal.SIGKILL if kind in {"other", "kill"} else 0
            )
            time.sleep(WINDOW_MS / 1000)
            longest = application.ask("pauses", began, began + WINDOW_MS * 1_000_000)
            pauses.append(longest["wall_ms"])
            cpu[kind].append(longest["cpu_ms"])
        other.communicate()
        site.device.kill()
        site.device.start()
        site.publish()
        application.until(lambda said: said["version"] == site.version, "a change after the agent is back")
        arrived += 1
    for name, found in (("by the clock", wall), ("in its thread's processor time", cpu)):
        added, by_other, noise = (
            statistics.median(
                after - before for before, after in zip(found["again"], found[kind], strict=True)
            )
            for kind in ("kill", "other", "rest")
        )
        control = found["rest"] + found["again"]
        yield Row(
            f"longest pause in {WINDOW_MS} ms after a SIGKILL, {name}, median of {kills}",
            statistics.median(found["kill"]), "ms", "no kill", statistics.median(control),
        )  # fmt: skip
        yield Row(
            "  what the kill adds to it, median", added, "ms",
            goal=Goal("<=", 1.0), note=f"where nothing was killed: {noise:.3g} ms",
        )  # fmt: skip
        yield Row("  what killing a process that has nothing to do with it adds, median", by_other, "ms")
        yield Row("  longest of all", max(found["kill"]), "ms", "no kill, twice as many", max(control))
    yield Row(f"changes that arrived after {kills} kills", arrived, "changes", goal=Goal(">=", float(kills)))
    yield _stale(site, application)
    said = application.ask("state")
    yield Row(f"defaults in {said['asked']:,} evaluations", said["failed"], "answers", goal=Goal("<=", 0))


def _stale(site: "_Site", application: "_Application") -> Row:
    # The agent dies for good: the publisher's last word runs out, and the application is told so.
    site.publish(life_seconds=SHORT_LIFE_SECONDS)
    application.until(lambda said: said["version"] == site.version, "the last change")
    site.device.kill()
    expires = site.publisher.head.expires
    application.until(lambda said: said["is_stale"], "that the flags are stale")
    late = time.time() - expires  # noqa: TID251  # what an application's clock would say
    return Row("head expired to evaluations say stale, agent dead", late, "s", goal=Goal("<=", 1.0))


class _Site:
    # A publisher in memory, the embedded broker, and a real agent that has admitted the flags.

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        from devices import provision
        from followed import boolean
        from publisher_simulator import PublisherSimulator

        self._broker = stack.enter_context(embedded_broker())
        self.publisher = PublisherSimulator(now=int(time.time()))  # noqa: TID251  # what a publisher's clock would say
        self._flags: list[BooleanFlag] = [
            boolean(f"flag-{number}", enabled=bool(number % 2)) for number in range(FLAGS)
        ]
        anchor = folder / "anchor"
        anchor.write_bytes(self.publisher.anchor)
        self.device: Device = provision(folder / "device", anchor, self._broker, "--protocol", "3.1.1")
        stack.enter_context(self.device)
        self.publish()
        self.device.start()
        self.device.wait_for("message=admitted")

    @property
    def store(self) -> Path:
        return self.device.folder / "agent.sqlite"

    @property
    def version(self) -> int:
        return self.publisher.content.version

    def publish(self, life_seconds: int = 86_400) -> None:
        """The next version, in which one flag is another."""
        from followed import boolean

        from flagcast_bridge.broker import connection as mqtt

        self.publisher.now = int(time.time())  # noqa: TID251  # what a publisher's clock would say
        self.publisher.head_life_seconds = life_seconds
        self._flags[0] = boolean("flag-0", enabled=not self._flags[0].enabled)
        before = dict(self.publisher.retained) if self.publisher.contents else {}
        self.publisher.release(*self._flags, inline=True)
        # What the broker has is not sent again; the head comes last.
        news = {at: data for at, data in self.publisher.retained.items() if before.get(at) != data}
        news[self.publisher.head_topic] = news.pop(self.publisher.head_topic)
        endpoint = urlsplit(self._broker)
        with mqtt.connect(str(endpoint.hostname), int(endpoint.port or 0), mqtt.Login()) as connection:
            connection.publish(list(news.items()))

    @property
    def pid(self) -> int:
        process = self.device._process
        assert process is not None
        return process.pid


def _a_process_like_an_agent() -> "subprocess.Popen[str]":
    # As much memory to take down as an agent's.
    code = "import flagcast_agent.daemon, flagcast_agent.follower, flagcast_agent.api.server; print(flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


class _Application:
    # The process that evaluates; `ask` is answered between two evaluations.

    def __init__(self, store: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), "--application", str(store)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.ask("state")

    def ask(self, *words: object) -> Any:  # noqa: ANN401  # JSON
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def until(self, holds: Callable[[Any], bool], what: str) -> None:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not holds(said := self.ask("state")):
            if time.monotonic() > give_up:
                raise SystemExit(f"{what}: not seen; {said}")
            time.sleep(0.02)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def _evaluate_for_ever(store: str) -> None:
    from flagcast_agent.client import Client

    questions: list[list[str]] = []
    threading.Thread(
        target=lambda: questions.extend(line.split() for line in sys.stdin), name="questions", daemon=True
    ).start()
    with Client(store) as client:
        client.wait_until_ready(PATIENCE_SECONDS)
        ask, clock, processor = client.boolean, time.monotonic_ns, time.thread_time_ns
        pauses: list[tuple[int, int, int]] = []
        asked = failed = 0
        last, last_cpu = clock(), processor()
        while True:
            # It is on in every version: the default would show. Nothing that is raised is caught.
            is_on = ask("flag-7", False, "entity-1")
            now, now_cpu = clock(), processor()
            if now - last >= NOTED_NS:
                pauses.append((now, now - last, now_cpu - last_cpu))
            asked += 1
            failed += not is_on
            if questions:
                match questions.pop(0):
                    case ["pauses", begin, end]:
                        within = [
                            each for each in pauses if int(begin) < each[0] and each[0] - each[1] < int(end)
                        ]
                        pauses.clear()
                        say(
                            wall_ms=max((wall for _, wall, _ in within), default=NOTED_NS) / 1e6,
                            cpu_ms=max((cpu for _, _, cpu in within), default=NOTED_NS) / 1e6,
                        )
                    case _:
                        found = client.evaluate("flag-7", False, "entity-1")
                        say(version=found.version, is_stale=found.is_stale, asked=asked, failed=failed)
                now, now_cpu = clock(), processor()
            last, last_cpu = now, now_cpu


def say(**document: object) -> None:
    print(json.dumps(document), flush=True)


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
        f"following, a look every {poll_seconds * 1000:.0f} ms", share, "% of a core", goal=Goal("<=", 1.0)
    )


def _call_over_the_socket(path: Path, options: Options) -> float:
    import importlib

    from flagcast_agent.api.protos import flipt_evaluation_pb2 as flipt

    grpc: Any = importlib.import_module("grpc")
    with grpc.insecure_channel(f"unix:{path}") as channel:
        grpc.channel_ready_future(channel).result(timeout=20)
        ask = channel.unary_unary("/flipt.evaluation.EvaluationService/Boolean")
        request = flipt.EvaluationRequest(
            flag_key="flag-7", entity_id="entity-1", context={"region": "north"}
        ).SerializeToString()
        ask(request)
        return nanoseconds_per_call(lambda: ask(request), options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--application"]:
        _evaluate_for_ever(sys.argv[2])
    if sys.argv[1:2] == ["--agent"]:
        _serve_updates(sys.argv[2])
        os._exit(0)
    sys.exit(run("flags in an application's own process", measure))
