"""Flagcast's answers beside Flipt's: random models, the same questions to both, and every difference."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flipt_models import REASONS, entries_of, random_requests, random_snapshot
from flipt_oracle import FliptOracle, Request

from flagcast_shared.errors import FlagNotFound, TypeMismatch
from flagcast_shared.evaluation import Answer, BooleanAnswer, CompiledFlags, compile_flags


@dataclass(slots=True)
class Comparison:
    """How many questions were compared, what differed, and how often each reason was the answer."""

    cases: int = 0
    differences: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)


def compare(oracle: FliptOracle, seed: int, cases: int, requests_per_model: int = 1000) -> Comparison:
    """Compares at least `cases` answers, each also with its explanation; the seed alone decides the cases."""
    rng = random.Random(seed)
    comparison = Comparison()
    while comparison.cases < cases:
        snapshot = random_snapshot(rng)
        requests = list(random_requests(rng, snapshot, requests_per_model))
        flags = compile_flags(entries_of(snapshot), {})
        for request, theirs in zip(requests, oracle.ask(snapshot, requests), strict=True):
            expected = flipt_answer(theirs)
            ours = flagcast_answer(flags, request)
            comparison.cases += 1
            reason = str(ours.get("reason", ours.get("error")))
            comparison.reasons[reason] = comparison.reasons.get(reason, 0) + 1
            if ours != expected:
                comparison.differences.append(f"{request}: Flipt {expected}, Flagcast {ours}")
            elif "reason" in ours and (told := explained_answer(flags, request)) != ours:
                comparison.differences.append(f"{request}: explained {told}, evaluated {ours}")
    return comparison


def flagcast_answer(flags: CompiledFlags, request: Request) -> dict[str, Any]:
    """Flagcast's answer as a plain map; segment keys as a set, because Flipt's come in no order."""
    ask = flags.boolean if request.kind == "boolean" else flags.variant
    try:
        return plain(ask(request.flag, request.entity, request.context))
    except FlagNotFound:
        return {"error": "not found"}
    except TypeMismatch:
        return {"error": "type"}


def explained_answer(flags: CompiledFlags, request: Request) -> dict[str, Any]:
    """What `explain` says the answer is."""
    return plain(flags.explain(request.flag, request.entity, request.context).answer)


def flipt_answer(result: Mapping[str, Any]) -> dict[str, Any]:
    """Flipt's answer in the same form."""
    if "error" in result:
        error = result["error"]
        if "failed to get flag information" in error:
            return {"error": "not found"}
        if " is not a " in error:
            return {"error": "type"}
        return {"error": error}
    shared = {
        "flag": result["flag_key"],
        "reason": REASONS[result["reason"]],
        "segments": set(result["segment_keys"]),
    }
    if "enabled" in result:
        return {"enabled": result["enabled"], **shared}
    return {
        "match": result["match"],
        "variant": result["variant_key"],
        "attachment": result.get("variant_attachment", ""),
        **shared,
    }


def plain(answer: Answer) -> dict[str, Any]:
    """An answer as a plain map."""
    shared = {
        "flag": str(answer.flag_key),
        "reason": str(answer.reason),
        "segments": set(answer.segment_keys),
    }
    if isinstance(answer, BooleanAnswer):
        return {"enabled": answer.enabled, **shared}
    return {
        "match": answer.match,
        "variant": answer.variant_key,
        "attachment": answer.attachment,
        **shared,
    }
