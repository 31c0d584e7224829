"""Attacks on the agent's socket, by an application of the device."""

import statistics
from collections.abc import Iterator

from .bench import Bench
from .figures import LONGEST, TWICE, Figure, memory
from .load import Watch, burning, calls_for, flooding, spending, unread_requests


def unread_answers(bench: Bench) -> Iterator[Figure]:
    """Requests are pipelined without end and no answer is read, beside a caller that is honest."""
    rounds, seconds = (3, 0.3) if bench.is_quick else (5, 4.0)
    name = "requests without end, no answer read"
    agent = bench.agent()
    path, patience = agent.device.socket, bench.slow_seconds
    attacked, beside, longest, cores, is_cut = [], [], 0.0, 0.0, False
    with Watch({"agent": agent.pid}) as watch:
        calls_for(path, patience, 0.2)
        for _ in range(rounds):
            with unread_requests(path) as flood, spending(flood) as spent:
                waits = calls_for(path, patience, seconds)
            attacked.append(waits.p99)
            longest, cores = max(longest, waits.longest), max(cores, spent.cores)
            is_cut = waits.is_cut or bool(watch.exceeded)
            if is_cut:
                agent.device.kill()
                break
            with burning(spent.cores):
                beside.append(calls_for(path, patience, seconds).p99)
    yield memory(watch, "agent", name)
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


def http2_floods(bench: Bench) -> Iterator[Figure]:
    """Floods of frames, closed windows and answers that nobody reads, beside a caller that is honest."""
    import http2_floods  # of the tests, which is imported late: another checkout has none

    seconds = 0.3 if bench.is_quick else 3.0
    floods = http2_floods.FLOODS[:3] if bench.is_quick else http2_floods.FLOODS
    agent = bench.agent()
    path, patience = agent.device.socket, bench.slow_seconds
    for flood in floods:
        with Watch({"agent": agent.pid}) as watch:
            calls_for(path, patience, 0.2)
            with flooding(path, flood.name) as process:
                calls_for(path, patience, 0.2)  # it has begun
                with spending(process) as spent:
                    attacked = calls_for(path, patience, seconds)
        if attacked.is_cut or watch.exceeded:
            agent.device.kill()
        with burning(spent.cores):
            beside = calls_for(path, patience, seconds)
        yield memory(watch, "agent", flood.name)
        yield Figure(
            f"{flood.name}: another caller's p99",
            attacked.p99,
            "ms",
            TWICE,
            "as much CPU burnt beside",
            beside.p99,
            "more than; the agent was killed or silent" if attacked.is_cut else f"{spent.cores:.2f} cores",
        )
