"""Nothing is printed but in one function of each command, which escapes what does not print."""

import ast
from collections.abc import Iterator

import pytest
from repository import DISTRIBUTIONS, Distribution

PRINTERS = {("flagcast_bridge/output.py", "echo"), ("flagcast_agent/cli.py", "_echo")}
"""The two functions that print."""
HOLDERS = {
    ("flagcast_bridge/output.py", "echo"),  # the stream that it prints on
    ("flagcast_bridge/output.py", "echo_error"),
    ("flagcast_bridge/cli.py", "main"),  # the descriptor of a pipe that was closed
    ("flagcast_bridge/cli.py", "_validate"),  # handed on to echo
    ("flagcast_bridge/cli.py", "error"),  # argparse's usage, which holds no argument
    ("flagcast_agent/cli.py", "_echo"),
    ("flagcast_agent/cli.py", "_fail"),
    ("flagcast_agent/cli.py", "main"),
    ("flagcast_agent/cli.py", "error"),
    ("flagcast_agent/logs.py", "set_up"),  # a handler whose formatters escape
}
"""The functions that name standard output or standard error at all."""


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Every node with the name of the innermost function around it, "" for the module itself."""
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        name, node = waiting.pop()
        yield name, node
        inner = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else name
        waiting += [(inner, child) for child in ast.iter_child_nodes(node)]


def is_print(node: ast.AST) -> bool:
    # A name, so that `print` is no callback either.
    return isinstance(node, ast.Name) and node.id in {"print", "pprint"}


def is_stream(node: ast.AST) -> bool:
    names = {"stdout", "stderr", "__stdout__", "__stderr__"}
    of_sys = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sys"
    if of_sys and isinstance(node, ast.Attribute):
        return node.attr in names
    return (
        isinstance(node, ast.ImportFrom) and node.module == "sys" and any(a.name in names for a in node.names)
    )


def found(distribution: Distribution) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    printing, holding = set(), set()
    for path in distribution.sources.rglob("*.py"):
        at = f"{distribution.package}/{path.relative_to(distribution.sources)}"
        for function, node in functions(ast.parse(path.read_text(encoding="utf-8"))):
            if is_print(node):
                printing.add((at, function))
            if is_stream(node):
                holding.add((at, function))
    return printing, holding


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda each: each.name)
def test_one_function_of_each_command_prints(distribution: Distribution) -> None:
    printing, holding = found(distribution)
    mine = distribution.package + "/"
    assert printing == {each for each in PRINTERS if each[0].startswith(mine)}
    assert holding == {each for each in HOLDERS if each[0].startswith(mine)}
