"""The list of defences fits the sources, holds every refusal, and the benchmark that takes them away tells apart what it must."""

import ast
import builtins
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest
from defence_list import CODEC, DEFENCES, ENVELOPE, KEYRING, MESSAGES, RECORDS, TRUST, Defence, check
from defence_list import ROOT as ROOT_MODULE
from repository import ROOT

from flagcast_shared import errors

WAY = (CODEC, ENVELOPE, KEYRING, MESSAGES, ROOT_MODULE, RECORDS, TRUST)
"""The modules between received bytes and belief."""
OF_THE_WRITER = {
    (CODEC, "encode"),
    (RECORDS, "encode_record"),
    (RECORDS, "_variant_body"),
    (RECORDS, "_metadata_field"),
}
"""Functions that refuse what a publisher would write; nothing received gets there."""


def source_of(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def test_every_defence_has_a_name_of_its_own() -> None:
    names = [defence.name for defence in DEFENCES]
    assert sorted(set(names)) == sorted(names)


def test_every_defence_stands_exactly_once_where_the_list_says_and_goes_without_a_trace() -> None:
    for defence in DEFENCES:
        source = source_of(defence.file)
        changed = defence.taken_from(source)
        assert changed != source, defence.name
        compile(changed, defence.file, "exec")


def test_every_test_that_has_to_notice_exists() -> None:
    for defence in DEFENCES:
        file, _, name = defence.test.partition("::")
        assert re.search(rf"^def {name.partition('[')[0]}\(", source_of(f"tests/{file}"), re.MULTILINE), (
            defence.name
        )


def lines_of(source: str, defence: Defence) -> set[int]:
    first = source[: source.index(defence.old)].count("\n") + 1
    return set(range(first, first + defence.old.rstrip("\n").count("\n") + 1))


def refusals(source: str) -> Iterator[tuple[str, int, set[int]]]:
    """Every refusal that is raised: in which function and line, and the lines of it and of the condition above it."""

    def walk(node: ast.AST, function: str, condition: set[int]) -> Iterator[tuple[str, int, set[int]]]:
        match node:
            case ast.FunctionDef(name=name):
                function, condition = name, set()
            case ast.Raise(exc=ast.Call(func=ast.Name(id=name))) if is_refusal(name):
                assert node.end_lineno is not None
                yield function, node.lineno, condition | set(range(node.lineno, node.end_lineno + 1))
        for child in ast.iter_child_nodes(node):
            inner = condition
            if isinstance(node, ast.If):
                assert node.test.end_lineno is not None
                # What stands in the other branch is not held back by this condition.
                inner = set(range(node.lineno, node.test.end_lineno + 1)) if child in node.body else set()
            yield from walk(child, function, inner)

    yield from walk(ast.parse(source), "", set())


def is_refusal(name: str) -> bool:
    kind = getattr(errors, name, None) or getattr(builtins, name, None)
    return isinstance(kind, type) and issubclass(kind, errors.Refused)


@pytest.mark.parametrize("file", WAY)
def test_every_refusal_is_in_the_list(file: str) -> None:
    source = source_of(file)
    listed: set[int] = set()
    for defence in DEFENCES:
        if defence.file == file:
            listed |= lines_of(source, defence)
    found = [each for each in refusals(source) if (file, each[0]) not in OF_THE_WRITER]
    assert found
    missing = [f"{file}:{line} in {function}" for function, line, lines in found if not lines & listed]
    assert missing == []


def test_a_defence_that_is_no_longer_there_is_an_error() -> None:
    gone = replace(DEFENCES[0], old="what nobody ever wrote")
    with pytest.raises(ValueError, match="stands 0 times"):
        gone.taken_from(source_of(gone.file))
    with pytest.raises(ValueError, match="times in"):
        replace(gone, old="return").taken_from(source_of(gone.file))


JUDGE = """
import json, sys
sys.path[:0] = sys.argv[1:3]
from defence_list import Defence
from defences import Workbench, judge
with Workbench() as bench:
    for line in sys.stdin:
        verdict = judge(bench, Defence(**json.loads(line)), wider=())
        print(json.dumps([verdict.caught, verdict.broken]))
"""
ENDLESS = check("x", ENVELOPE, "if len(data) > limit:", "attacks/test_envelopes.py::test_endless_head")
SAMPLES: dict[str, tuple[Defence, str, str]] = {
    "a defence": (ENDLESS, ENDLESS.test, ""),
    "a comment": (replace(ENDLESS, new=f"{ENDLESS.old}  # no more"), "", ""),
    "a name": (replace(ENDLESS, new="if len(data) > ceiling:"), "", "NameError: name 'ceiling'"),
    "an import": (
        replace(ENDLESS, old="ALGORITHM_EDDSA: Final = -8", new="import nowhere"),
        "",
        "No module named",
    ),
    "a whole message": (replace(ENDLESS, new="if len(data) < limit:"), "", "setup"),
}
"""What is changed; which test notices, or why that says nothing."""


def test_a_defence_that_is_gone_is_told_from_a_mistake_in_the_list() -> None:
    asked = "".join(f"{json.dumps(asdict(defence))}\n" for defence, *_ in SAMPLES.values())
    done = subprocess.run(
        [sys.executable, "-c", JUDGE, str(ROOT / "benchmarks"), str(ROOT / "tests" / "support")],
        input=asked,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for (what, (_, caught, broken)), line in zip(SAMPLES.items(), done.stdout.splitlines(), strict=True):
        said_caught, said_broken = json.loads(line)
        assert said_caught == caught, what
        assert broken in said_broken, what
        assert bool(broken) == bool(said_broken), what
