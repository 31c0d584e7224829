import re
import shlex
import subprocess
from pathlib import Path

import pytest
from repository import BIN, ROOT, files

DOCUMENTS = files("*.md")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = ("flagcast", "flagcast-agent")


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(document: Path) -> set[str]:
    """The fragments of a document's headings, as GitHub makes them."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> list[str]:
    broken = []
    for match in LINK.finditer(FENCE.sub("", document.read_text(encoding="utf-8"))):
        target, _, fragment = (match.group(1) or match.group(2)).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (document.parent / target).resolve() if target else document
        leads_somewhere = path.exists() and path.is_relative_to(ROOT)
        if not leads_somewhere or (fragment and fragment not in anchors(path)):
            broken.append(match.group())
    return broken


def commands(document: Path) -> set[tuple[str, ...]]:
    """The commands of ours that the shell blocks of a document run: ("flagcast", "publish"), ("make", "demo")."""
    found: set[tuple[str, ...]] = set()
    for language, block in FENCE.findall(document.read_text(encoding="utf-8")):
        if language not in ("console", "sh", "shell", "bash"):
            continue
        prompted = any(line.startswith("$ ") for line in block.splitlines())
        for line in block.replace("\\\n", " ").splitlines():
            if prompted and not line.startswith("$ "):
                continue  # what the command printed
            for part in re.split(r"&&|\|\|?|;", line.removeprefix("$ ").partition(" #")[0]):
                try:
                    words = shlex.split(part, comments=True)
                except ValueError:
                    words = part.split()
                while words and re.fullmatch(r"\w+=.*|sudo|exec", words[0]):
                    words.pop(0)
                if not words:
                    continue
                program = words[0].rpartition("/")[2]
                if program in COMMANDS:
                    found.add((program, *(word for word in words[1:2] if not word.startswith("-"))))
                elif program == "make":
                    found.update(("make", word) for word in words[1:] if re.fullmatch(r"[a-z-]+", word))
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=label)
def test_every_link_inside_the_repository_leads_somewhere(document: Path) -> None:
    assert broken_links(document) == []


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if commands(path)], ids=label)
def test_every_command_of_a_document_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for program, *words in sorted(commands(document)):
        if program == "make":
            assert set(words) <= targets, f"make {words}"
            continue
        ran = subprocess.run(
            [BIN / program, *words, "--help"], capture_output=True, text=True, timeout=100, check=False
        )
        assert ran.returncode == 0, f"{program} {words}: {ran.stderr}"


def test_an_installation_from_a_registry_is_named_as_what_a_release_will_offer_beside_what_works_today() -> (
    None
):
    found = 0
    for document in DOCUMENTS:
        for paragraph in re.split(r"\n\s*\n", document.read_text(encoding="utf-8")):
            if re.search(r"pip install [^\n]*flagcast", paragraph):
                found += 1
                assert "release will offer" in " ".join(paragraph.split()), f"{label(document)}: {paragraph}"
                assert "`make install`" in paragraph, f"{label(document)}: {paragraph}"
    assert found > 1


def test_a_device_is_provisioned_with_the_newest_root_in_the_guide() -> None:
    guide = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    blocks = [block for _, block in FENCE.findall(guide) if "flagcast-agent provision" in block]
    assert blocks
    assert [block for block in blocks if "1.root" in block] == []
    assert "--anchor roots/2.root" in guide[: guide.index("### One publisher more, and one less")]


def test_every_decision_record_is_in_the_index_under_its_number_and_has_the_form() -> None:
    folder = ROOT / "docs" / "adr"
    records = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    index = (folder / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(\d{4})\]\((\d{4}-[a-z0-9-]+\.md)\) \|", index, re.MULTILINE)
    assert [name for _, name in listed] == [path.name for path in records]
    for (number, name), path in zip(listed, records, strict=True):
        assert name.startswith(f"{number}-")
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {number}: ")
        assert re.search(r"^Status: (proposed|accepted|rejected|superseded by \[\d{4}\])", text, re.MULTILINE)
        assert [word for word in ("## Context", "## Decision", "## Consequences") if word not in text] == []


def test_the_changelog_has_the_sections_of_its_form() -> None:
    sections = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sections[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", section) for section in sections[1:])


def test_a_broken_link_and_an_unknown_command_are_found(tmp_path: Path) -> None:
    document = tmp_path / "x.md"
    document.write_text(
        "[gone](gone.md) [web](https://example.org/x)\n```console\n$ flagcast publish x && make demo\nflagcast nonsense\n```\n",
        encoding="utf-8",
    )
    assert broken_links(document) == ["[gone](gone.md)"]
    assert commands(document) == {("flagcast", "publish"), ("make", "demo")}
