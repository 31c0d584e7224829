"""The page that every code links to: complete, nothing beyond, and its examples show what they claim."""

import re
from pathlib import Path

import pytest

from flagcast_bridge.check import check
from flagcast_bridge.flags.findings import CATALOGUE, DOCUMENTATION
from flagcast_bridge.sources import SourceFile

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / DOCUMENTATION).read_text(encoding="utf-8")
ENTRIES = dict(re.findall(r"^### (FC\d+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
EXAMPLES = {
    code: found[1]
    for code, entry in ENTRIES.items()
    if (found := re.search(r"```yaml\n(.*?)```", entry, re.DOTALL))
}

# What these need is a file of its own name, a broken byte, or megabytes.
WITHOUT_EXAMPLE = {"FC101", "FC102", "FC104", "FC135", "FC214"}


def test_every_code_has_one_entry_and_every_entry_a_code() -> None:
    assert list(ENTRIES) == list(CATALOGUE)
    assert len(re.findall(r"^### ", PAGE, re.MULTILINE)) == len(CATALOGUE)


@pytest.mark.parametrize("code", CATALOGUE)
def test_an_entry_gives_the_title_and_what_to_do(code: str) -> None:
    title = CATALOGUE[code]
    assert f"**{title[0].upper()}{title[1:]}.**" in ENTRIES[code]
    assert "*Do:*" in ENTRIES[code]


def test_every_code_that_a_short_file_can_show_has_an_example() -> None:
    assert set(EXAMPLES) == set(CATALOGUE) - WITHOUT_EXAMPLE


@pytest.mark.parametrize("code", EXAMPLES)
def test_the_example_shows_its_code(code: str) -> None:
    compilation = check([SourceFile("features.yml", EXAMPLES[code].encode())])
    assert code in {each.code for each in compilation.findings}
    # A warning is shown by a file that publishes.
    assert compilation.has_errors is (code < "FC2")
