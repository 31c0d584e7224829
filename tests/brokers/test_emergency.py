"""Work in a hurry on a real mosquitto: turning off, publishing on a schedule, removing by mistake, rolling back."""

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from devices import provision
from publishing import Flagcast, Result, configure, features, make_project
from repository import ROOT
from serving import Serve

from brokers import Broker, start_mosquitto
from flagcast_bridge import clock
from flagcast_bridge.broker import connection as mqtt
from flagcast_bridge.project import Project
from flagcast_bridge.publishing import publish as publisher
from flagcast_shared.evaluation import compile_flags
from flagcast_shared.ids import Namespace
from flagcast_shared.messages import Head

pytestmark = pytest.mark.mosquitto

DEFAULT = Namespace("default")
SEGMENT = """\
segments:
  - key: pilots
    name: Pilots
    match_type: ALL_MATCH_TYPE
    constraints: [{type: STRING_COMPARISON_TYPE, property: site, operator: eq, value: oslo}]
"""
ROLLOUTS = """\
    rollouts:
      - segment: {key: pilots, value: true}
      - threshold: {percentage: 25, value: true}
"""
STILL = (
    "default: flag lights is still true for 25 % and segment pilots; to turn it off for everybody: remove its rollouts and set "
    "enabled: false"
)
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Site:
    """A broker, a project on it, and the command."""

    broker: Broker
    project: Project
    flagcast: Flagcast

    @property
    def path(self) -> Path:
        return self.project.folder / "features.yml"

    def publish(self, text: str, *arguments: str, code: int = 0) -> Result:
        self.path.write_text(text)
        done = self.flagcast.on_project("publish", self.path, *arguments)
        assert done.code == code, done.out + done.err
        return done

    def document(self, text: str, *arguments: str) -> dict[str, Any]:
        done = self.publish(text, "--format", "json", *arguments)
        document: dict[str, Any] = json.loads(done.out)
        return document

    def head(self) -> Head:
        return publisher.read_broker(self.project).live[DEFAULT].head

    def answers(self, flag: str) -> set[bool]:
        """What the live flag answers to 200 entities at two sites."""
        records = publisher.read_broker(self.project).live[DEFAULT].records
        assert records is not None
        compiled = compile_flags((record.entry for record in records), {})
        contexts: list[dict[str, str]] = [{}, {"site": "oslo"}]
        return {
            compiled.boolean(flag, str(number), context).enabled
            for number in range(200)
            for context in contexts
        }


@pytest.fixture(autouse=True)
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine a broker has sent all retained messages long before the time that networks are given."""
    monkeypatch.setattr(mqtt, "QUIET_SECONDS", 0.2)


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Site]:
    with start_mosquitto(tmp_path / "broker") as broker:
        made = make_project(tmp_path / "fleet", broker.url)
        yield Site(broker, made, Flagcast(made.folder, capsys))


def lights(enabled: str, rollouts: str = ROLLOUTS) -> str:
    line = f"    enabled: {enabled}\n" if enabled else ""
    head = 'version: "1.2"\nnamespace: default\nflags:\n  - key: lights\n    name: Lights\n    type: BOOLEAN_FLAG_TYPE\n'
    return f"{head}{line}{rollouts}{SEGMENT}"


# Turning a flag off


@pytest.mark.parametrize("before", ["", "true"])
def test_an_edit_that_turns_nothing_off_is_told_so_and_the_right_one_reaches_a_device(
    site: Site, tmp_path: Path, before: str
) -> None:
    site.publish(lights(before))
    with provision(tmp_path / "device", site.project.root_file(1), site.broker.url) as device:
        device.start()
        device.wait_for("version=1")
        for arguments in (("--dry-run",), (), ()):
            done = site.publish(lights("false"), *arguments)
            assert STILL in done.out
            assert "is up to date" not in done.out
        assert site.answers("lights") == {False, True}
        document = site.document(lights("false"), "--dry-run")
        assert document["still_true"] == [
            {"namespace": "default", "flag": "lights", "whom": "25 % and segment pilots"}
        ]

        now = "was true for 25 % and segment pilots, otherwise false"
        said = site.publish(lights("false", ""), "--dry-run").out
        removed = "rollout segment pilots removed, rollout 25 % removed"
        assert f"  ~ flag lights: {removed}; off for everyone ({now})" in said
        path = site.path
        assert site.flagcast("validate", path, "--strict").code == 0
        said = site.publish(lights("false", "")).out
        assert f"off for everyone ({now})" in said
        assert "still true" not in said
        assert site.answers("lights") == {False}
        device.wait_for(f"version={site.head().stable.version} ")
        assert {device.evaluate("lights", str(number))["value"] for number in range(20)} == {False}


def test_the_difference_names_what_changed_in_a_rollout_and_what_the_answers_become(site: Site) -> None:
    said = site.publish(lights("")).out
    assert "  + flag lights: true for 25 % and segment pilots, otherwise false" in said
    more = lights("").replace("percentage: 25", "percentage: 26")
    expected = {
        "kind": "flag",
        "key": "lights",
        "what": "rollout 25 % -> 26 %",
        "answers": {
            "before": "true for 25 % and segment pilots, otherwise false",
            "after": "true for 26 % and segment pilots, otherwise false",
        },
    }
    (namespace,) = site.document(more, "--dry-run")["namespaces"]
    assert (namespace["action"], namespace["changed"]) == ("change", [expected])
    said = site.publish(more).out
    assert (
        "~ flag lights: rollout 25 % -> 26 %; now true for 26 % and segment pilots, otherwise false (was true for 25 %"
        in said
    )
    # A segment without constraints is everyone: the flag stays as it is, and its answers do not.
    constraints = SEGMENT[SEGMENT.index("    constraints:") :]
    said = site.publish(more.replace(constraints, "")).out
    assert "~ flag lights: by its segments; now true for everyone (was true for 26 %" in said
    assert site.answers("lights") == {True}
    (namespace,) = site.document("version: '1.2'\nflags: []\n", "--yes")["namespaces"]
    (removed,) = (each for each in namespace["removed"] if each["kind"] == "flag")
    assert removed["answers"] == {"before": "true for everyone", "after": ""}


def test_the_edits_that_the_example_speaks_of_do_what_it_says(site: Site) -> None:
    text = (ROOT / "examples" / "default" / "features.yml").read_text()
    site.publish(text)
    switch = text[text.index("  - key: advertising") :].split("\n\n")[0]
    assert "kill switch" not in text
    off = text.replace(switch, switch.replace("enabled: true", "enabled: false"))
    said = site.publish(off)
    assert "~ flag advertising: enabled true -> false; off for everyone" in said.out
    assert "still true" not in said.out
    assert site.answers("advertising") == {False}
    assert site.flagcast("validate", site.path, "--strict").code == 0
    mode = off[off.index("  - key: night-mode") :].split("\n\n")[0]
    kept = mode.replace("    rollouts:", "    enabled: false\n    rollouts:")
    said = site.publish(off.replace(mode, kept))
    assert "flag night-mode is still true for 10 % and segment pilot-sites" in said.out
    gone = kept[: kept.index("    rollouts:")].rstrip()
    said = site.publish(off.replace(mode, gone))
    assert (
        "~ flag night-mode: rollout segment pilot-sites removed, rollout 10 % removed; off for everyone"
        in said.out
    )
    assert site.answers("night-mode") == {False}
    assert site.flagcast("validate", site.path, "--strict").code == 0


@pytest.mark.parametrize(
    "rollouts",
    [
        "",  # leaves a segment that nothing uses
        ROLLOUTS.replace("true", "false"),
        "    rollouts: [{threshold: {percentage: 0, value: true}}]\n",
        "    rollouts:\n      - threshold: {percentage: 100, value: false}\n"
        + ROLLOUTS.removeprefix("    rollouts:\n"),
    ],
)
def test_strict_does_not_block_turning_a_flag_off(site: Site, rollouts: str) -> None:
    site.publish(lights("false", rollouts))
    assert site.answers("lights") == {False}
    done = site.flagcast("validate", site.path, "--strict")
    assert (done.code, "warning FC" in done.out) == (0, True)
    site.path.write_text(lights("false"))  # but what turns nothing off is an error
    assert site.flagcast("validate", site.path, "--strict").code == 1


# On a schedule, while a candidate is out


def test_a_scheduled_publish_renews_heads_while_a_candidate_is_out(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(site.project.folder, {"head_lifetime_hours": "1"})
    stable, candidate, other = features({"a": False}), features({"a": True}), features({"a": True, "b": True})
    now = clock.now
    with monkeypatch.context() as patched:
        patched.setattr(clock, "now", lambda: now() - 2_000)  # more than half of a head's life
        site.publish(stable)
        site.publish(candidate, "--candidate", "25")
    begun = site.head()
    for number, (text, whose) in enumerate(
        ((candidate, "these flags are the candidate's"), (stable, "these flags are the stable ones")), 1
    ):
        arguments = () if number == 1 else ("--refresh",)
        done = site.publish(text, *arguments)
        assert "refresh, version 1 (was 1), candidate 2" in done.out
        assert (
            f"a candidate is out, version 2 for 25 % of the devices; {whose}; both contents stay" in done.out
        )
        head = site.head()
        assert (head.sequence, head.stable, head.candidate) == (
            begun.sequence + number,
            begun.stable,
            begun.candidate,
        )
        assert head.expires > now() + 3_000
    fresh = site.head()
    for text in (candidate, stable):  # nothing is due
        assert "unchanged at version 1" in site.publish(text).out
    done = site.publish(other, code=1)
    assert "neither the stable ones nor the candidate's" in done.err
    assert site.head() == fresh
    done = site.publish(other, "--refresh")
    assert "were NOT published; both contents stay as they are" in done.out
    head = site.head()
    assert (head.sequence, head.stable, head.candidate) == (fresh.sequence + 1, begun.stable, begun.candidate)


# Looking before a rollback, and what serve logs


def test_a_dry_run_of_a_rollback_shows_every_namespace_and_a_rollback_asks_which(site: Site) -> None:
    def both(value: bool) -> str:
        return features({"a": value}) + "---\n" + features({"b": value}, "charging")

    site.publish(both(True))
    site.publish(both(False) + "---\n" + features({"c": True}, "third"))
    done = site.flagcast.on_project("rollback", "--dry-run")
    assert done.code == 0, done.err
    assert "charging: rollback, version 3 (was 2)" in done.out
    assert "default: rollback, version 3 (was 2)" in done.out
    assert "~ flag a: enabled false -> true; now true for everyone" in done.out
    assert "third: nothing else was published before what is published now" in done.err
    assert "dry run: nothing was published" in done.out
    done = site.flagcast.on_project("rollback")
    assert (done.code, "name the one to roll back: charging, default, third" in done.err) == (2, True)
    assert site.head().stable.version == 2


def test_serve_warns_of_a_foreign_head_as_an_error_and_not_of_its_own_operators_publication(
    site: Site, tmp_path: Path
) -> None:
    site.publish(features({"a": True}))
    with Serve(site.project.folder, tmp_path / "serve.log") as serve:
        serve.wait_for("checked")
        site.publish(features({"a": False}))
        serve.wait_for("checked", 2)
        assert {line for line in serve.log.splitlines() if " level=info " not in line} == set()
        assert "is not what was published" not in serve.log
        thief = tmp_path / "thief"
        shutil.copytree(site.project.folder, thief, ignore=shutil.ignore_patterns("ledger.sqlite*"))
        site.path.write_text(features({"a": True, "evil": True}))
        done = site.flagcast("publish", site.path, "--project", thief, "--without-ledger")
        assert done.code == 0, done.err
        serve.wait_until(lambda: " level=error " in serve.log, "an error")
        (line,) = (line for line in serve.log.splitlines() if " level=error " in line)
        assert "default: head 3 is live, and the ledger knows of 2" in line


# Removing by mistake


def test_a_publication_that_removes_much_is_refused_without_a_terminal_unless_yes_is_given(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some(count: int) -> str:
        return features({f"flag-{number}": True for number in range(count)})

    site.publish(some(9))
    site.publish(some(6))  # a third is no more than a third
    before = site.head()
    for text, count in ((some(3), 3), (some(0), 6), (features({"other": True}), 6)):
        done = site.publish(text, code=1)
        assert f"default: this removes {count} of 6 flags" in done.err
        assert "give --yes if that is meant" in done.err
        assert site.head() == before
    with monkeypatch.context() as closed:
        closed.setattr(sys, "stdin", None)  # what Python makes of a standard input that a script has closed
        assert "give --yes if that is meant" in site.publish(some(3), code=1).err
    assert "flagcast publish asks before it does so" in site.publish(some(3), "--dry-run").out
    release = site.project.folder / "x.release"
    assert "give --yes" in site.publish(some(3), "--prepare", str(release), code=1).err
    assert not release.exists()
    assert site.document(some(3), "--yes")["namespaces"][0]["removes_much"] is True
    assert site.head().stable.version == before.stable.version + 1
    # An explicit word for it is one: a namespace that is named, and a step back.
    assert site.flagcast.on_project("rollback").code == 0
    site.publish(some(6))
    assert site.flagcast.on_project("rollback", "--to", "3").code == 0
    site.publish(features({"a": True}, "charging"), "--remove", "default")


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("y", 0)])
def test_at_a_terminal_it_asks(site: Site, answer: str, code: int) -> None:
    site.publish(features({"a": True, "b": True}))
    site.path.write_text(features({"a": True}))
    ours, theirs = pty.openpty()
    program = Path(sys.executable).with_name("flagcast")
    with subprocess.Popen(
        [program, "publish", site.path, "--project", site.project.folder],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        said = b""
        while b"[y/N] " not in said and (read := os.read(process.stdout.fileno(), 4_096)):
            said += read
        assert b"default: this removes 1 of 2 flags" in said
        # Nobody waits for the person: the ledger is free.
        assert site.flagcast.on_project("publish", site.path, "--dry-run", "--wait", "0").code == 0
        site.path.write_text(features({"a": True, "b": True}))
        assert site.flagcast.on_project("publish", site.path, "--refresh", "--wait", "0").code == 0
        os.write(ours, f"{answer}\n".encode())
        rest, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == code, said + rest
    os.close(ours)
    os.close(theirs)
    assert site.head().stable.version == (2 if code == 0 else 1)


class Checkout:
    """A git repository with a flags file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "features.yml"
        folder.mkdir()
        self.git("init", "--quiet")

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.com")
        command = ["git", "-C", str(self.folder), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, text: str) -> str:
        self.path.write_text(text)
        self.git("add", "features.yml")
        self.git("commit", "--quiet", "--message", "Change flags")
        return self.git("rev-parse", "HEAD")


def test_a_head_names_the_commit_that_it_was_published_from(site: Site, tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout")

    def provenance(*arguments: str) -> dict[str, str]:
        done = site.flagcast.on_project("publish", checkout.folder, *arguments)
        assert (done.code, done.err) == (0, "")
        return dict(site.head().provenance)

    old = checkout.commit(features({"a": True}))
    assert provenance() == {"commit": old}
    checkout.commit(features({"a": False}))
    assert provenance("--provenance", "build=417") == {"build": "417"}
    checkout.path.write_text(features({"a": False, "b": True}))
    assert provenance() == {"source": "checkout"}, "the commit does not have it"
    new = checkout.commit(features({"a": False, "b": False}))
    assert provenance() == {"commit": new}
    checkout.git("checkout", "--quiet", old)
    done = site.flagcast.on_project("publish", checkout.path, "--dry-run")
    assert f"warning: default: commit {old} is an ancestor of {new}, which is published" in done.err


def test_a_commit_that_is_an_ancestor_of_the_published_one_warns(site: Site, tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout")
    folder = checkout.folder
    old, new = (checkout.commit(features({"a": value})) for value in (True, False))

    def publish(commit: str, path: Path) -> str:
        done = site.flagcast.on_project("publish", path, "--provenance", f"commit={commit}", "--dry-run")
        assert done.code == 0, done.err
        return done.err

    path = folder / "features.yml"
    assert "ancestor" not in publish(old, path)  # nothing is published
    done = site.flagcast.on_project("publish", path, "--provenance", f"commit={new}")
    assert (done.code, "ancestor" in done.err) == (0, False)
    for where in (path, folder):
        assert f"warning: default: commit {old} is an ancestor of {new}, which is published" in publish(
            old, where
        )
    assert f"commit {old.upper()} is an ancestor of {new}" in publish(old.upper(), path)
    for commit in (new, new[:12], "0" * 40, "--help", "HEAD~1"):
        assert "ancestor" not in publish(commit, path)
    shutil.copy(path, tmp_path / "elsewhere.yml")
    assert "ancestor" not in publish(old, tmp_path / "elsewhere.yml")
    shutil.rmtree(folder / ".git")
    assert "ancestor" not in publish(old, path)


# After a rotation


def test_a_device_that_is_provisioned_with_the_newest_root_never_trusts_the_old_key(
    site: Site, tmp_path: Path
) -> None:
    site.publish(features({"a": True}))
    assert site.flagcast.on_project("keys", "list").code == 0
    done = site.flagcast("keys", "rotate", "publisher", "--project", site.project.folder)
    assert done.code == 0, done.err
    with provision(tmp_path / "device", site.project.root_file(2), site.broker.url) as device:
        device.start()
        # What the old key signed is still all that is there.
        device.wait_for("attack=")
        site.publish(features({"a": True}))
        device.wait_for("version=2 ")
        assert device.evaluate("a", "e")["value"] is True
