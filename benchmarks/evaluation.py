"""What one evaluation costs, beside a bare function call, Flipt's own client and other evaluators.

Goals in times of a bare Python function call of 50 ns: 0.7 µs for a boolean flag with a threshold, 1.2 µs for one with
a segment of three constraints, 1.5 µs for a variant flag with that segment and two distributions.
"""

import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from flipt_models import entries_of
from flipt_oracle import NAMESPACE, Engine, served

from flagcast_shared.evaluation import CompiledFlags, compile_flags
from flagcast_shared.ids import FlagKey, SegmentKey, VariantKey
from flagcast_shared.model import (
    BooleanFlag,
    Constraint,
    ConstraintType,
    Distribution,
    Entry,
    Join,
    Match,
    Operator,
    Rule,
    Segment,
    SegmentRollout,
    ThresholdRollout,
    Variant,
    VariantFlag,
)
from harness import Goal, Options, Row, median_of_rounds, nanoseconds_per_call, per_call, run
from peers import GROUPS, INSTALL, load

flipt_client = import_module("flipt_client")  # it has no type information

ENTITY = "user-1234"
CONTEXT = {"plan": "pro", "age": "42", "country": "de", "group": f"group-{GROUPS - 1}", f"p{GROUPS - 1}": "x"}
FLOOR_NS = 50.0
LABELS: dict[str, tuple[str, float | None, float | None]] = {
    "threshold": ("boolean, threshold", 700.0, 15.0),
    "segment": ("boolean, three constraints", 1200.0, 15.0),
    "split": ("variant, three constraints, two distributions", 1500.0, 15.0),
    "fifty": ("variant, the last of 50 rules", None, 20.0),
    "mixed": ("variant, the last of 50 rules, each on another property", None, None),
}
FLAGS = 10_000


def measure(options: Options) -> Iterator[Row]:
    """Every row; each flag is first checked to be answered as Flipt answers it."""
    floor = nanoseconds_per_call(_bare, options)
    yield Row("a bare Python function call", floor, "ns")
    snapshot = _snapshot()
    flags = compile_flags(entries_of(snapshot), {})
    with served(snapshot) as url:
        yield from _against_flipt(flags, url, floor, options)
    yield from _against_peers(flags, options)
    yield from _ten_thousand(options)


def _against_flipt(flags: CompiledFlags, url: str, floor: float, options: Options) -> Iterator[Row]:
    options_of_client = flipt_client.models.ClientOptions(
        url=url, namespace=NAMESPACE, update_interval=86_400
    )
    client, engine = flipt_client.FliptClient(options_of_client), Engine(url)
    try:
        for key, (label, goal_ns, times) in LABELS.items():
            ours = _call(flags, key)
            kind = "boolean" if key in ("threshold", "segment") else "variant"
            theirs = partial(getattr(client, f"evaluate_{kind}"), key, ENTITY, CONTEXT)
            _assert_alike(ours(), theirs())
            question = _question(key)
            cost = nanoseconds_per_call(ours, options)
            goal = None if goal_ns is None else Goal("<=", goal_ns / FLOOR_NS, "ratio")
            yield Row(label, cost, "ns", "bare call", floor, goal=goal)
            yield Row(
                "  flipt-client's Python class",
                nanoseconds_per_call(theirs, options),
                "ns",
                "Flagcast",
                cost,
                goal=None if times is None else Goal(">=", times, "ratio"),
            )
            raw = partial(engine.raw, kind, question)
            yield Row(
                "  Flipt's engine, raw call", nanoseconds_per_call(raw, options), "ns", "Flagcast", cost
            )
    finally:
        client.close()
        engine.close()


def _against_peers(flags: CompiledFlags, options: Options) -> Iterator[Row]:
    for distribution in INSTALL:
        calls = load(distribution, ENTITY, CONTEXT)
        if calls is None:
            yield Row(distribution, None, "ns", note=f"not installed: pip install {distribution}")
            continue
        for key, call in calls.items():
            ours = nanoseconds_per_call(_call(flags, key), options)
            theirs = nanoseconds_per_call(call, options)
            yield Row(f"{distribution}: {LABELS[key][0]}", theirs, "ns", "Flagcast", ours)


def _ten_thousand(options: Options) -> Iterator[Row]:
    entries = _many_entries()
    rounds = 3 if options.quick else 7
    compiling = median_of_rounds(partial(per_call, partial(compile_flags, entries, {}), 1), rounds) / 1e6
    yield Row(f"compile and activate {FLAGS:,} flags", compiling, "ms")
    gc.collect()
    tracemalloc.start()
    active = compile_flags(entries, {})
    yield Row("  memory of their compiled form", tracemalloc.get_traced_memory()[0] / 1e6, "MB")
    tracemalloc.stop()
    changed = replace(next(entry for entry in entries if isinstance(entry, VariantFlag)), default=None)
    for label, entry in (("flag", changed), ("segment", entries[0])):
        again = partial(active.update, [entry], [])
        cost = median_of_rounds(partial(per_call, again, 5), rounds) / 1e6
        goal = Goal("<=", 5.0) if label == "flag" else None
        note = "" if label == "flag" else f"{_users(entries)} flags refer to it"
        yield Row(f"  change one {label} of {FLAGS:,} flags", cost, "ms", goal=goal, note=note)


def _bare() -> None:
    pass


def _call(flags: CompiledFlags, key: str) -> Callable[[], Any]:
    ask = flags.boolean if key in ("threshold", "segment") else flags.variant
    return partial(ask, key, ENTITY, CONTEXT)


def _question(key: str) -> bytes:
    question: bytes = flipt_client.serialize_evaluation_request(NAMESPACE, key, ENTITY, CONTEXT)
    return question


def _assert_alike(ours: object, theirs: object) -> None:
    for name in ("enabled", "match", "variant_key"):
        assert getattr(ours, name, None) == getattr(theirs, name, None), (ours, theirs)


def _snapshot() -> dict[str, Any]:
    """The four flags as a Flipt server gives them to its clients."""
    three = {
        "key": "three",
        "matchType": "ALL_SEGMENT_MATCH_TYPE",
        "constraints": [
            _constraint("STRING", "plan", "eq", "pro"),
            _constraint("NUMBER", "age", "gte", "18"),
            _constraint("STRING", "country", "isoneof", '["de","fr","at"]'),
        ],
    }
    groups = [_one_constraint(f"group-{rank}", "group", f"group-{rank}") for rank in range(GROUPS)]
    mixed = [_one_constraint(f"mixed-{rank}", f"p{rank}", "x") for rank in range(GROUPS)]
    on_segment = {"value": True, "segmentOperator": "OR_SEGMENT_OPERATOR", "segments": [three]}
    return {
        "digest": "d",
        "namespace": {"key": NAMESPACE},
        "flags": [
            _flag("threshold", rollouts=[{"rank": 0, "threshold": {"percentage": 50, "value": True}}]),
            _flag("segment", rollouts=[{"rank": 0, "segment": on_segment}]),
            _flag("split", rules=[_rule(0, three)]),
            _flag("fifty", rules=[_rule(rank, segment) for rank, segment in enumerate(groups)]),
            _flag("mixed", rules=[_rule(rank, segment) for rank, segment in enumerate(mixed)]),
        ],
    }


def _flag(key: str, *, rollouts: object = (), rules: object = ()) -> dict[str, Any]:
    type_ = "BOOLEAN_FLAG_TYPE" if rollouts else "VARIANT_FLAG_TYPE"
    return {
        "key": key,
        "name": key,
        "type": type_,
        "enabled": True,
        "rollouts": rollouts or [],
        "rules": rules or [],
    }


def _rule(rank: int, segment: dict[str, Any]) -> dict[str, Any]:
    shares = [
        {"variantKey": variant, "variantAttachment": "", "rollout": rollout}
        for variant, rollout in (("a", 30), ("b", 70))
    ]
    operator = "OR_SEGMENT_OPERATOR"
    return {
        "id": str(rank),
        "rank": rank,
        "segmentOperator": operator,
        "segments": [segment],
        "distributions": shares,
    }


def _one_constraint(key: str, name: str, value: str) -> dict[str, Any]:
    constraints = [_constraint("STRING", name, "eq", value)]
    return {"key": key, "matchType": "ALL_SEGMENT_MATCH_TYPE", "constraints": constraints}


def _constraint(type_: str, name: str, operator: str, value: str) -> dict[str, str]:
    return {
        "type": f"{type_}_CONSTRAINT_COMPARISON_TYPE",
        "property": name,
        "operator": operator,
        "value": value,
    }


def _many_entries() -> list[Entry]:
    """Half boolean, half variant flags, over 200 segments of three constraints."""
    segments = [
        Segment(
            SegmentKey(f"segment-{number}"),
            Match.ALL,
            (
                Constraint(ConstraintType.STRING, "plan", Operator.EQ, f"plan-{number}"),
                Constraint(ConstraintType.NUMBER, "age", Operator.GTE, "18.0"),
                Constraint(ConstraintType.STRING, "country", Operator.ISONEOF, ("de", "fr", f"x{number}")),
            ),
        )
        for number in range(200)
    ]
    flags: list[Entry] = []
    for number in range(FLAGS):
        keys = (segments[number % len(segments)].key,)
        if number % 2:
            rollouts = (SegmentRollout(keys, Join.OR, value=True), ThresholdRollout(number % 101, value=True))
            flags.append(BooleanFlag(FlagKey(f"flag-{number}"), enabled=False, rollouts=rollouts))
        else:
            variants = (Variant(VariantKey("a"), '{"n":1}'), Variant(VariantKey("b")))
            shares = tuple(
                Distribution(variant.key, bound) for variant, bound in zip(variants, (300, 1000), strict=True)
            )
            flags.append(
                VariantFlag(
                    FlagKey(f"flag-{number}"),
                    enabled=True,
                    variants=variants,
                    default=VariantKey("b"),
                    rules=(Rule(keys, Join.OR, shares),),
                )
            )
    return [*segments, *flags]


def _users(entries: list[Entry]) -> int:
    return sum(
        1
        for entry in entries
        if isinstance(entry, VariantFlag) and entry.rules[0].segments == (SegmentKey("segment-0"),)
    )


if __name__ == "__main__":
    sys.exit(run("Evaluation", measure))
