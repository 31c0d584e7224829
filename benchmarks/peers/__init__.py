"""Other evaluators, asked for the same flags: those that can be imported.

Each peer takes its own form of the four flags of `evaluation.py`, and gives one callable for each. None of them hashes
as Flipt does, so that a split falls otherwise; the work is the same.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

INSTALL = {
    "openfeature-flagd-core": "openfeature.contrib.tools.flagd.core",
    "yggdrasil-engine": "yggdrasil_engine.engine",
    "growthbook": "growthbook",
    "launchdarkly-server-sdk": "ldclient",
}
"""The distribution of each peer, and what is imported of it."""

GROUPS = 50
Calls = Mapping[str, Callable[[], object]]
"""By the flag's key: "threshold", "segment", "split", "fifty"."""


def load(distribution: str, entity: str, context: Mapping[str, str]) -> Calls | None:
    """The calls of one peer; None where it is not installed."""
    try:
        module = import_module(INSTALL[distribution])
    except ImportError:
        return None
    build: dict[str, Callable[[ModuleType, str, Mapping[str, Any]], Calls]] = {
        "openfeature-flagd-core": _flagd,
        "yggdrasil-engine": _yggdrasil,
        "growthbook": _growthbook,
        "launchdarkly-server-sdk": _launchdarkly,
    }
    numbers = {name: int(text) if text.isdigit() else text for name, text in context.items()}
    return build[distribution](module, entity, numbers)


def _flagd(module: ModuleType, entity: str, context: Mapping[str, Any]) -> Calls:
    condition = {
        "and": [
            {"==": [{"var": "plan"}, "pro"]},
            {">=": [{"var": "age"}, 18]},
            {"in": [{"var": "country"}, ["de", "fr", "at"]]},
        ]
    }

    def flag(targeting: object) -> dict[str, Any]:
        return {
            "state": "ENABLED",
            "variants": {"on": True, "off": False},
            "defaultVariant": "off",
            "targeting": targeting,
        }

    def share(first: int) -> dict[str, Any]:
        return {"fractional": [{"var": "targetingKey"}, ["on", first], ["off", 100 - first]]}

    chain: list[object] = []
    for group in range(GROUPS):
        chain += [{"==": [{"var": "group"}, f"group-{group}"]}, share(30)]
    core = module.FlagdCore()
    core.set_flags(
        {
            "flags": {
                "threshold": flag(share(50)),
                "segment": flag({"if": [condition, "on", "off"]}),
                "split": flag({"if": [condition, share(30), "off"]}),
                "fifty": flag({"if": [*chain, "off"]}),
            }
        }
    )
    contexts = import_module("openfeature.evaluation_context")
    asked = contexts.EvaluationContext(entity, dict(context))
    return {key: partial(core.resolve_boolean_value, key, False, asked) for key in _KEYS}


def _yggdrasil(module: ModuleType, entity: str, context: Mapping[str, Any]) -> Calls:
    constraints = [
        {"contextName": "plan", "operator": "IN", "values": ["pro"]},
        {"contextName": "age", "operator": "NUM_GTE", "value": "18"},
        {"contextName": "country", "operator": "IN", "values": ["de", "fr", "at"]},
    ]
    variants = [
        {"name": name, "weight": weight, "stickiness": "userId", "payload": {"type": "string", "value": name}}
        for name, weight in (("a", 300), ("b", 700))
    ]

    def strategy(rollout: int, among: object, variants: object) -> dict[str, Any]:
        parameters = {"rollout": str(rollout), "stickiness": "userId", "groupId": "g"}
        return {
            "name": "flexibleRollout",
            "parameters": parameters,
            "constraints": among,
            "variants": variants,
        }

    by_group = [
        strategy(100, [{"contextName": "group", "operator": "IN", "values": [f"group-{group}"]}], variants)
        for group in range(GROUPS)
    ]
    features = {
        "threshold": [strategy(50, [], [])],
        "segment": [strategy(100, constraints, [])],
        "split": [strategy(100, constraints, variants)],
        "fifty": by_group,
    }
    engine = module.UnleashEngine()
    engine.take_state(
        json.dumps(
            {
                "version": 2,
                "features": [
                    {"name": key, "type": "release", "enabled": True, "strategies": strategies}
                    for key, strategies in features.items()
                ],
            }
        )
    )
    asked = {"userId": entity, "properties": {name: str(value) for name, value in context.items()}}
    return {
        key: partial(engine.get_variant if key in ("split", "fifty") else engine.is_enabled, key, asked)
        for key in _KEYS
    }


def _growthbook(module: ModuleType, entity: str, context: Mapping[str, Any]) -> Calls:
    condition = {"plan": "pro", "age": {"$gte": 18}, "country": {"$in": ["de", "fr", "at"]}}
    split = {"variations": ["a", "b"], "weights": [0.3, 0.7], "hashAttribute": "id", "coverage": 1}
    features = {
        "threshold": {
            "defaultValue": False,
            "rules": [{"force": True, "coverage": 0.5, "hashAttribute": "id"}],
        },
        "segment": {"defaultValue": False, "rules": [{"force": True, "condition": condition}]},
        "split": {"defaultValue": "", "rules": [{**split, "key": "split", "condition": condition}]},
        "fifty": {
            "defaultValue": "",
            "rules": [
                {**split, "key": f"rule-{group}", "condition": {"group": f"group-{group}"}}
                for group in range(GROUPS)
            ],
        },
    }
    book = module.GrowthBook(attributes={"id": entity, **context}, features=features)
    return {key: partial(book.eval_feature, key) for key in _KEYS}


def _launchdarkly(module: ModuleType, entity: str, context: Mapping[str, Any]) -> Calls:
    clauses = [
        {"attribute": "plan", "op": "in", "values": ["pro"], "negate": False},
        {"attribute": "age", "op": "greaterThanOrEqual", "values": [18], "negate": False},
        {"attribute": "country", "op": "in", "values": ["de", "fr", "at"], "negate": False},
    ]

    def share(first: int) -> dict[str, Any]:
        weights = [
            {"variation": 0, "weight": first * 1000},
            {"variation": 1, "weight": 100_000 - first * 1000},
        ]
        return {"rollout": {"variations": weights}}

    def flag(key: str, rules: list[dict[str, Any]], fallthrough: object) -> dict[str, Any]:
        return {
            "key": key,
            "version": 1,
            "on": True,
            "salt": "s",
            "variations": [True, False],
            "offVariation": 1,
            "targets": [],
            "prerequisites": [],
            "rules": rules,
            "fallthrough": fallthrough,
        }

    by_group = [
        {"id": str(group), "clauses": [{**clauses[0], "attribute": "group", "values": [f"group-{group}"]}]}
        | share(30)
        for group in range(GROUPS)
    ]
    flags = [
        flag("threshold", [], share(50)),
        flag("segment", [{"id": "r", "clauses": clauses, "variation": 0}], {"variation": 1}),
        flag("split", [{"id": "r", "clauses": clauses, **share(30)}], {"variation": 1}),
        flag("fifty", by_group, {"variation": 1}),
    ]
    files = import_module("ldclient.integrations").Files
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flags.json"
        path.write_text(json.dumps({"flags": {made["key"]: made for made in flags}}))
        source = files.new_data_source(paths=[str(path)])
        config = import_module("ldclient.config").Config(
            "sdk", update_processor_class=source, send_events=False
        )
        client = module.LDClient(config=config, start_wait=5)
    builder = module.Context.builder(entity)
    for name, value in context.items():
        builder.set(name, value)
    asked = builder.build()
    return {key: partial(client.variation, key, asked, None) for key in _KEYS}


_KEYS = ("threshold", "segment", "split", "fifty")
