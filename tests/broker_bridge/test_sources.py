"""Reading flags files from the disk: layouts, limits, links, and the git commit."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from flagcast_bridge.sources import folder as folder_module
from flagcast_bridge.sources import git_state, read_path
from flagcast_shared.errors import InvalidDocument


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")


def names(root: Path) -> list[str]:
    return [str(Path(file.path).relative_to(root)) for file in read_path(root)]


@pytest.mark.parametrize("name", ["flags.yml", "flags.yaml", "flags.json"])
def test_one_file_is_read_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\x00")
    (source,) = read_path(tmp_path / name)
    assert (source.path, source.content, source.folder) == (str(tmp_path / name), b"\xff\x00", None)


def test_the_path_is_said_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "flags/charging/features.yml")
    monkeypatch.chdir(tmp_path)
    assert [source.path for source in read_path(Path("flags"))] == ["flags/charging/features.yml"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("missing.yml", "No such file"),
        ("missing", "No such file"),
        ("notes.txt", "must end in .yml"),
        ("empty", "no <namespace>/features.yml"),
        ("with\0zero.yml", "embedded null (byte|character)"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, path: str, said: str) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidDocument, match=said):
        read_path(tmp_path / path)


def test_a_fifo_is_refused_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "features.yml")
    with pytest.raises(InvalidDocument, match="not a regular file"):
        read_path(tmp_path / "features.yml")


def test_v2_reads_one_folder_deep(tmp_path: Path) -> None:
    write(tmp_path, "b/features.json", "a/features.yaml", "a/notes.yml", "c/features.yml", "README.md")
    assert [(Path(each.path).name, each.folder) for each in read_path(tmp_path)] == [
        ("features.yaml", "a"),
        ("features.json", "b"),
        ("features.yml", "c"),
    ]


def test_v1_default_globs_apply_where_v2_finds_nothing(tmp_path: Path) -> None:
    write(
        tmp_path,
        "features.yml",
        "team.features.yaml",
        "deep/er/prod.features.yml",
        "other.yml",
        "features.json",
    )
    assert names(tmp_path) == ["features.yml", "team.features.yaml", "deep/er/prod.features.yml"]
    assert {each.folder for each in read_path(tmp_path)} == {None}


def test_a_folder_that_v1_and_v2_read_differently_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "features.yml", "charging/features.yml")
    with pytest.raises(InvalidDocument, match=r"Flipt v1 would read features\.yml and Flipt v2"):
        read_path(tmp_path)


def test_a_v2_configuration_decides_for_v2(tmp_path: Path) -> None:
    write(tmp_path, "features.yml", "charging/features.yml", "flipt.yml")
    assert names(tmp_path) == ["charging/features.yml"]


def test_an_index_decides_for_v1(tmp_path: Path) -> None:
    write(tmp_path, "features.yml", "charging/features.yml", "charging/old/features.yml", "x.flags.yaml")
    (tmp_path / ".flipt.yml").write_text(
        'version: "1.0"\ninclude: ["**features.yml", "*.{flags,other}.yaml"]\nexclude: ["*/old/*"]\n'
    )
    assert names(tmp_path) == ["features.yml", "x.flags.yaml", "charging/features.yml"]


def test_an_index_without_include_has_the_default(tmp_path: Path) -> None:
    write(tmp_path, "features.yml", "a/b.features.yaml", "c.yml")
    (tmp_path / ".flipt.yml").write_text("exclude: [c.yml]\n")
    assert names(tmp_path) == ["features.yml", "a/b.features.yaml"]


@pytest.mark.parametrize(
    ("glob", "name", "is_match"),
    [
        ("**features.yml", "a/b/features.yml", True),
        ("*features.yml", "a/b/features.yml", True),
        ("a/?.yml", "a/b.yml", True),
        ("a/?.yml", "a/bc.yml", False),
        ("[ab].yml", "a.yml", True),
        ("[!ab].yml", "a.yml", False),
        ("{a,b*}.yml", "bcd.yml", True),
        ("{a,b*}.yml", "c.yml", False),
        ("\\*.yml", "*.yml", True),
        ("\\*.yml", "a.yml", False),
        ("a.yml", "aXyml", False),
    ],
)
def test_globs_match_as_in_flipt(tmp_path: Path, glob: str, name: str, is_match: bool) -> None:
    write(tmp_path, name, "always.yml")
    (tmp_path / ".flipt.yml").write_text(f"include: ['always.yml', '{glob}']\n")
    assert (name in names(tmp_path)) is is_match


@pytest.mark.parametrize(
    "index",
    [
        "include: [",
        "include: features.yml",
        "include: [{a: b}]",
        "- features.yml",
        'version: "2.0"',
        "includes: []",
        "include: ['{a']",
        "include: ['" + "x" * 300 + "']",
        "include: ['" + "{a,b}" * 10 + "']",
        "? [a]\n: b",
        "[" * 5_000,
        "&a [*a]",
        "\ud7ff\ufeff: \x07",
    ],
)
def test_a_broken_index_is_one_error(tmp_path: Path, index: str) -> None:
    write(tmp_path, "features.yml")
    (tmp_path / ".flipt.yml").write_text(index)
    with pytest.raises(InvalidDocument):
        read_path(tmp_path)


def test_an_index_that_is_not_text_is_one_error(tmp_path: Path) -> None:
    (tmp_path / ".flipt.yml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InvalidDocument):
        read_path(tmp_path)


def test_an_index_that_includes_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "flags.toml")
    (tmp_path / ".flipt.yml").write_text("include: ['*.toml']\n")
    with pytest.raises(InvalidDocument, match="does not end in"):
        read_path(tmp_path)


@pytest.mark.parametrize("link", ["charging/features.yml", "charging"])
def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path, link: str) -> None:
    write(tmp_path, "outside/features.yml", "flags/default/features.yml")
    target = tmp_path / "outside" / ("features.yml" if link.endswith("yml") else "")
    (tmp_path / "flags" / link).parent.mkdir(exist_ok=True)
    (tmp_path / "flags" / link).symlink_to(target)
    with pytest.raises(InvalidDocument, match="leads out of"):
        read_path(tmp_path / "flags")


def test_a_link_within_the_folder_is_read(tmp_path: Path) -> None:
    # How Kubernetes mounts a ConfigMap.
    write(tmp_path, "..data/features.yml")
    (tmp_path / "features.yml").symlink_to("..data/features.yml")
    (source,) = read_path(tmp_path)
    assert source.content == b"# ..data/features.yml\n"


def test_a_broken_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "features.yml").symlink_to("nowhere.yml")
    with pytest.raises(InvalidDocument, match="a link must lead to a file"):
        read_path(tmp_path)


def test_hidden_folders_are_not_looked_into(tmp_path: Path) -> None:
    write(tmp_path, ".git/features.yml", "features.yml")
    assert names(tmp_path) == ["features.yml"]


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("FILE_MAX_BYTES", "larger than 4 bytes"),
        ("FOLDER_MAX_BYTES", "larger than 4 bytes"),
        ("FILES_MAX", "at most 4"),
        ("ENTRIES_MAX", "more than 4 files"),
    ],
)
def test_limits_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, said: str) -> None:
    write(tmp_path, *(f"n{number}/features.yml" for number in range(6)))
    assert len(read_path(tmp_path)) == 6
    monkeypatch.setattr(folder_module, limit, 4)
    with pytest.raises(InvalidDocument, match=said):
        read_path(tmp_path)


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *identity, "-C", str(root), *arguments], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not on this machine; it is optional")
class TestGit:
    def test_a_clean_work_tree_gives_its_commit(self, tmp_path: Path) -> None:
        write(tmp_path, "flags/default/features.yml", "other.txt")
        git(tmp_path, "init", "--quiet")
        assert git_state(tmp_path) is None
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "--quiet", "-m", "first")
        state = git_state(tmp_path / "flags")
        assert state is not None
        assert len(state.commit) == 40
        assert not state.is_dirty
        assert git_state(tmp_path / "flags/default/features.yml") == state

    def test_only_what_is_read_makes_it_dirty(self, tmp_path: Path) -> None:
        write(tmp_path, "flags/default/features.yml", "other.txt")
        git(tmp_path, "init", "--quiet")
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "--quiet", "-m", "first")
        (tmp_path / "other.txt").write_text("changed")
        before = git_state(tmp_path / "flags")
        write(tmp_path, "flags/new/features.yml")
        after = git_state(tmp_path / "flags")
        assert before is not None
        assert after is not None
        assert (before.is_dirty, after.is_dirty) == (False, True)


def test_outside_of_a_work_tree_there_is_no_commit(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    assert git_state(tmp_path / "missing" / "features.yml") is None


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(Path(__file__)) is None
