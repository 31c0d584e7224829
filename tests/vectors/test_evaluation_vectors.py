"""The small reader: what an agent in another language would do with the vectors of evaluation."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from record_json import entry_of, value_of

from flagcast_shared.bucketing import (
    boolean_bucket,
    candidate_bucket,
    compile_bounds,
    compile_percentage,
    variant_bucket,
)
from flagcast_shared.constraints import TAKES, compile_constraint
from flagcast_shared.errors import FlagNotFound, FlagNotUsable, InvalidCall, TypeMismatch
from flagcast_shared.evaluation import BooleanAnswer, CompiledFlags, compile_flags
from flagcast_shared.ids import DeviceId
from flagcast_shared.literals import parse_bool, parse_float, parse_instant, trim_space
from flagcast_shared.model import Constraint, ConstraintType, Operator

ERRORS: dict[type[InvalidCall], str] = {
    FlagNotFound: "not_found",
    TypeMismatch: "type",
    FlagNotUsable: "not_usable",
}


def rows(name: str) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))
    assert listed, f"{name} is empty"
    return listed


def test_buckets() -> None:
    for row in rows("bucketing.json"):
        assert variant_bucket(row["flag"], row["entity"]) == row["variant_bucket"], row
        assert boolean_bucket(row["flag"], row["entity"]) == row["boolean_bucket"], row


def test_candidate_buckets() -> None:
    for row in rows("candidate_buckets.json"):
        assert candidate_bucket(bytes.fromhex(row["salt"]), DeviceId(row["device"])) == row["bucket"], row


def test_bounds() -> None:
    for row in rows("bounds.json"):
        assert list(compile_bounds(row["rollouts"])) == row["bounds"], row


def test_percentages() -> None:
    for row in rows("percentages.json"):
        assert compile_percentage(row["percentage"]) == row["buckets"], row


def test_literals() -> None:
    for row in rows("literals.json"):
        text = row["text"]
        assert trim_space(text) == row["trimmed"], row
        assert parse_bool(text) is row["boolean"], row
        instant = parse_instant(text)
        assert (None if instant is None else list(instant)) == row["instant"], row
        assert bits(parse_float(text)) == row["number"], row


def test_operators() -> None:
    texts = [row["text"] for row in rows("literals.json")]
    seen = set()
    for row in rows("operators.json"):
        type_, operator = ConstraintType(row["type"]), Operator(row["operator"])
        seen.add((type_, operator))
        constraint = Constraint(type_, "p", operator, value_of(row["type"], row["value"]))
        holds = compile_constraint(constraint, {})
        if type_ is ConstraintType.ENTITY:
            assert [text for text in texts if holds(text, {})] == row["holds_for"], row
        else:
            assert [text for text in texts if holds("e", {"p": text})] == row["holds_for"], row
            assert holds("e", {}) is ("" in row["holds_for"]), row
    assert seen == set(TAKES)


@pytest.mark.parametrize("name", ["evaluations.json", "special_evaluations.json"])
def test_evaluations(name: str) -> None:
    for group in rows(name):
        flags = compile_flags(map(entry_of, group["records"]), group["device"])
        for case in group["cases"]:
            assert answer(flags, case) == case["answer"], (group["name"], case)


def answer(flags: CompiledFlags, case: dict[str, Any]) -> dict[str, Any]:
    ask = flags.boolean if case["call"] == "boolean" else flags.variant
    try:
        given = ask(case["flag"], case["entity"], case["context"])
    except InvalidCall as error:
        return {"error": ERRORS[type(error)]}
    shared = {"reason": str(given.reason), "segments": sorted(given.segment_keys)}
    if isinstance(given, BooleanAnswer):
        return {"enabled": given.enabled, **shared}
    return {
        "match": given.match,
        "variant": given.variant_key,
        "attachment": given.attachment,
        **shared,
    }


def bits(number: float | None) -> str | None:
    if number is None:
        return None
    return "nan" if math.isnan(number) else struct.pack(">d", number).hex()
