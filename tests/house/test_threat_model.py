"""The threat model names every refusal by the word that logs use, and only modules and tests that exist."""

import re
from collections.abc import Iterator

from repository import AGENT, ROOT, SHARED

from flagcast_shared.errors import Refused

PAGE = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\|[^|]+\|[^|]+\| ([^|]+) \| (\w+) \(`(\w+)`\) \| `([^`]+)` \|$", re.MULTILINE)


def leaves(kind: type[Refused] = Refused) -> Iterator[type[Refused]]:
    yield kind
    for lower in kind.__subclasses__():
        yield from leaves(lower)


def raised() -> set[type[Refused]]:
    """The refusals that stand at the end of the tree, and those in its middle that are raised as they are."""
    sources = "".join(path.read_text(encoding="utf-8") for path in SHARED.sources.glob("*.py"))
    return {
        kind
        for kind in leaves()
        if not kind.__subclasses__() or re.search(rf"raise {kind.__name__}\(", sources)
    }


def test_every_refusal_has_a_row_with_its_word() -> None:
    rows = {name: word for _, name, word, _ in ROW.findall(PAGE)}
    assert rows == {kind.__name__: kind.attack for kind in raised()}


def test_every_module_of_a_row_exists() -> None:
    modules = {path.stem for side in (SHARED, AGENT) for path in side.sources.glob("*.py")}
    for names, *_ in ROW.findall(PAGE):
        assert set(re.findall(r"`(\w+)`", names)) <= modules


def test_every_test_that_a_document_names_exists() -> None:
    for document in (ROOT / "docs").rglob("*.md"):
        for name in re.findall(r"`(tests/[\w/.]+)`", document.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{document.name}: {name}"


def test_a_test_of_a_row_speaks_of_its_refusal() -> None:
    for _, name, word, path in ROW.findall(PAGE):
        place = ROOT / path
        files = [place] if place.is_file() else [*place.glob("*.py")]
        assert any(re.search(rf"\b({name}|{word})\b", each.read_text(encoding="utf-8")) for each in files), (
            f"{path} does not mention {name}"
        )
