"""All attacks that can go on at once, beside an honest caller and an honest device."""

import statistics
from collections.abc import Iterator

from publisher_simulator import PublisherSimulator

from flagcast_shared.ids import Environment
from flagcast_shared.limits import USAGE_MAX_BYTES

from .bench import GOOD, MALLORY, Bench
from .figures import ALL, LONGEST, TWICE, Figure, memory
from .load import Stream, Watch, burning, calls_for, spending, unread_requests, until
from .messages import HOSTILE, batch, bombs, many_rows, now, offered, report, tagged
from .on_broker import HONEST_SECONDS, QOS_0_SECONDS


def everything(bench: Bench) -> Iterator[Figure]:
    """Rounds of all at once, each beside as much CPU that is burnt by processes which talk to nobody."""
    rounds, seconds = (3, 1.0) if bench.is_quick else (6, 10.0)
    name = f"everything at once for {rounds * seconds:.0f} s"
    agent, collector = bench.agent(), bench.collector()
    path, patience = agent.device.socket, bench.slow_seconds
    attacked, beside, longest, cores, is_cut = [], [], 0.0, 0.0, False
    before, sent = collector.counted(), 0
    with Watch({"agent": agent.pid, "collector": collector.process.pid}) as watch:
        calls_for(path, patience, 0.3)
        for _ in range(rounds):
            honest = [(bench.metrics(GOOD), batch()) for _ in range(int(2 * seconds / HONEST_SECONDS))]
            streams = [
                Stream(HONEST_SECONDS, honest, repeats=False),
                *_attacks(bench, agent.publisher, seconds),
            ]
            with (
                bench.sender.sending(*streams) as messages,
                unread_requests(path) as flood,
                spending(bench.sender.pid, flood, bench.broker.pid, collector.process.pid) as spent,
            ):
                waits = calls_for(path, patience, seconds)
            attacked.append(waits.p99)
            longest, cores = max(longest, waits.longest), max(cores, spent.cores)
            sent += messages.counts[0]
            until(lambda: collector.counted() - before >= sent, 5.0)  # noqa: B023  # in this turn
            is_cut = waits.is_cut or bool(watch.exceeded)
            if is_cut:
                agent.device.kill()
                break
            with burning(spent.cores):
                beside.append(calls_for(path, patience, seconds / 2).p99)
    yield Figure(
        f"{name}: another caller's p99",
        statistics.median(attacked),
        "ms",
        TWICE,
        "as much CPU burnt beside",
        statistics.median(beside) if beside else None,
        "more than; the agent was killed or silent" if is_cut else f"{cores:.2f} cores",
    )
    yield Figure(f"{name}: another caller's longest wait", longest, "ms", LONGEST)
    yield memory(watch, "agent", name)
    yield memory(watch, "collector", name)
    counted = collector.counted() - before
    yield Figure(f"{name}: honest batches counted", counted, "batches", ALL, "sent", sent)


def _attacks(bench: Bench, publisher: PublisherSimulator, seconds: float) -> list[Stream]:
    """Streams for one round, each at a rate that a broker would let an account have."""
    others = PublisherSimulator(environment=Environment("others"), now=now())
    others.release()
    stranger = [(publisher.head_topic, others.retained[others.head_topic])]
    made = bombs()
    stolen = [
        message
        for number in range(int(seconds) + 1)
        for message in offered(publisher, *made[number % len(made)])
    ]
    metrics = bench.metrics(MALLORY)
    pattern = next(iter(tagged(USAGE_MAX_BYTES).values()))
    return [
        Stream(QOS_0_SECONDS, [(metrics, b"x")], qos=0),
        Stream(0.2, [(metrics, pattern)]),
        Stream(0.2, [(metrics, batch(answer=HOSTILE))]),
        Stream(1.0, [(metrics, bytes(2**20))]),
        Stream(0.5, [(metrics, data) for data in many_rows(int(3_000 * seconds), "crowd")], repeats=False),
        Stream(0.2, [(bench.report(MALLORY), report(agent=HOSTILE))], retain=True),
        Stream(0.2, stranger, retain=True),
        Stream(1.0, stolen, retain=True, repeats=False),
    ]
