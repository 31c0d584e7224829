"""Flags files made to keep `flagcast validate` busy: each is read to its end within seconds of processor time."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CPU_SECONDS = 20
"""Processor time of one run. On a slow machine each takes less than a quarter; what it guards against takes minutes."""

MEMORY_BYTES = 2 * 1024**3
"""Address space of one run, most of it libraries."""

BOOLEAN = "- {key: f, name: F, type: BOOLEAN_FLAG_TYPE"
SEGMENTS = "segments:\n"


def attachment(text: str) -> str:
    return f"flags:\n- {{key: f, name: F, variants: [{{key: v, name: V, default: true, attachment: {{a: {text}}}}}]}}\n"


def constraint(kind: str, value: str) -> str:
    made = f"{{type: {kind}, property: p, operator: eq, value: {value}}}"
    return f"segments:\n- {{key: s, name: S, match_type: ALL_MATCH_TYPE, constraints: [{made}]}}\n"


def constraints(operator: str, count: int) -> str:
    lines = (
        f"  - {{type: STRING_COMPARISON_TYPE, property: p, operator: {operator}, value: v{number}}}"
        for number in range(count)
    )
    return "\n".join(
        ("segments:\n- key: s\n  name: S\n  match_type: ALL_MATCH_TYPE\n  constraints:", *lines, "")
    )


def segments(names: list[str]) -> str:
    return "segments:\n" + "".join(
        f"- {{key: {name}, name: S, match_type: ALL_MATCH_TYPE}}\n" for name in names
    )


def flag_with_rules(rules: list[str]) -> str:
    return (
        "flags:\n- key: f\n  name: F\n  variants: [{key: v, name: V, default: true}]\n  rules:\n"
        + "\n".join(rules)
    )


def rules_for(names: list[str]) -> str:
    return flag_with_rules([f"  - {{segment: {{keys: {name}}}}}" for name in names]) + "\n"


def many_references() -> str:
    known = [f"segment-of-the-fleet-{number:05}" for number in range(5_000)]
    return segments(known) + rules_for([f"[segment-of-a-fleet-{number:05}]" for number in range(5_000)])


def one_segment_often() -> str:
    return segments(["s"]) + rules_for([f"[{', '.join(['s'] * 40_000)}]"])


def joined_segments() -> str:
    known = [f"s{number}" for number in range(4_000)]
    # The last segment of each rule is its own, so that none covers another.
    rules = [
        f"  - {{segment: {{keys: [s{number}, s{number + 1}], operator: AND_SEGMENT_OPERATOR}}}}"
        for number in range(3_999)
    ]
    constrained = "".join(
        f"- {{key: {name}, name: S, match_type: ALL_MATCH_TYPE, constraints: "
        "[{type: STRING_COMPARISON_TYPE, property: p, operator: eq, value: v}]}\n"
        for name in known
    )
    return "segments:\n" + constrained + flag_with_rules(rules) + "\n"


def long_text_often() -> str:
    text = "x" * 1_000_000
    flags = "".join("- {key: *long, name: *long}\n" for _ in range(30_000))
    return f"namespace: {{key: default, name: &long {text}}}\nflags:\n{flags}"


def unknown_fields() -> str:
    return "flags:\n- {key: f, name: F}\n" + "".join(f"enabeld{number}: 1\n" for number in range(30_000))


def alike_words() -> str:
    variants = "".join(f"  - {{key: {'ab' * 120}{number:04}, name: V}}\n" for number in range(1_000))
    shares = "".join(f"    - {{variant: {'ba' * 120}{number:04}, rollout: 1}}\n" for number in range(1_000))
    return (
        f"segments:\n- {{key: s, name: S}}\nflags:\n- key: f\n  name: F\n  variants:\n{variants}"
        f"  rules:\n  - segment: s\n    distributions:\n{shares}"
    )


def tag_directives() -> str:
    return "".join(f"%TAG !a{number}! tag:x\n" for number in range(200_000)) + "---\nflags: []\n"


HOSTILE: dict[str, tuple[Callable[[], str], int]] = {
    "underscores in an attachment": (lambda: attachment("1" + "_" * 60_000 + "x"), 0),
    "underscores in a key": (lambda: f"flags: [{{key: 1{'_' * 100_000}x, name: F}}]\n", 1),
    "underscores and points": (lambda: attachment("1" + "_" * 30_000 + "." + "_" * 30_000 + "x"), 0),
    "underscores in a constraint": (
        lambda: constraint("STRING_COMPARISON_TYPE", "1" + "_" * 60_000 + "x"),
        0,
    ),
    "digits in a number": (lambda: constraint("NUMBER_COMPARISON_TYPE", f"'{'9' * 100_000}x'"), 1),
    "hexadecimal digits in a number": (
        lambda: constraint("NUMBER_COMPARISON_TYPE", f"'0x{'f' * 100_000}z'"),
        1,
    ),
    "digits of an instant": (
        lambda: constraint("DATETIME_COMPARISON_TYPE", f"'2026-01-31T09:30:00.{'9' * 100_000}'"),
        1,
    ),
    "digits of a float": (lambda: attachment("1" * 60_000 + "e"), 0),
    "a date and a long text": (lambda: attachment("2026-01-31 " + "x" * 60_000), 0),
    "a long text under many aliases": (long_text_often, 1),
    "unknown segments among many": (many_references, 1),
    "unknown variants that are alike": (alike_words, 1),
    "unknown fields": (unknown_fields, 1),
    "directives of tags": (tag_directives, 1),
    "one segment named often": (one_segment_often, 0),
    "constraints that contradict none": (lambda: constraints("neq", 4_000), 0),
    "rules of joined segments": (joined_segments, 0),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_read_within_seconds(tmp_path: Path, name: str) -> None:
    make, code = HOSTILE[name]
    path = tmp_path / "features.yml"
    path.write_text(make(), encoding="utf-8")
    process = subprocess.Popen(
        [Path(sys.executable).with_name("flagcast"), "validate", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    resource.prlimit(process.pid, resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.prlimit(process.pid, resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    printed, _ = process.communicate(timeout=100)
    assert process.returncode == code, printed[-2_000:]
    assert f"\n{path}: " in f"\n{printed}"
    # A thousand findings of at most a thousand characters, each with its path and its place.
    assert len(printed) < 3_000_000
