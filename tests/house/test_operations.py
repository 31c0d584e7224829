"""The operations guide quotes lines that the code really says, and leaves out no log message of the agent."""

import ast
import re
from collections.abc import Iterator

from repository import AGENT, BRIDGE, ROOT, SHARED

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
TROUBLES = PAGE[PAGE.index("## Troubleshooting") :]


def texts() -> Iterator[str]:
    """Every text of the three distributions, with … where a value is put in."""
    for side in (SHARED, BRIDGE, AGENT):
        for path in side.sources.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield re.sub(r"%[sd]", "…", node.value)


def warnings_of_the_agent() -> set[str]:
    """The first text of every call of Log or log above INFO in the agent."""
    found: set[str] = set()
    for path in AGENT.sources.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or len(node.args) < 2:
                continue
            level, message = node.args[:2]
            if node.func.id in ("Log", "log") and isinstance(level, ast.Attribute) and level.attr != "INFO":
                found.update([str(message.value)] if isinstance(message, ast.Constant) else [])
    return found


def test_every_line_of_the_troubleshooting_tables_is_said_by_the_code() -> None:
    said = set(texts())
    quoted = re.findall(r"^\| `([^`]+)`", TROUBLES, re.MULTILINE)
    assert len(quoted) > 40
    missing = [line for line in quoted if not any(line.rstrip("…").strip() in text for text in said)]
    assert missing == []


def test_every_attack_of_the_troubleshooting_tables_is_one() -> None:
    words = {text for text in texts() if re.fullmatch(r"[a-z_]+", text)}
    assert set(re.findall(r"`attack=(\w+)`", TROUBLES)) <= words


def test_every_warning_of_the_agent_is_explained() -> None:
    warnings = warnings_of_the_agent()
    assert len(warnings) > 5
    assert {line for line in warnings if line not in PAGE} == set()


def test_every_key_of_the_agents_configuration_is_explained() -> None:
    source = (AGENT.sources / "config.py").read_text(encoding="utf-8")
    keys = re.findall(
        r"(top|device|broker|paths|log|report|usage|table)\.(?:parsed|text|texts|names|path|optional_path|"
        r'mode|choice|integer)\(\s*"(\w+)"',
        source,
    )
    assert len(keys) > 15
    for table, key in keys:
        name = {"top": key, "table": f"broker.{key}"}.get(table, f"{table}.{key}")
        assert f"`{name}`" in PAGE, name
