"""Flags in process: what an application is told, and what it hears, over a database that an agent writes."""

import asyncio
import datetime as dt
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from followed import FollowedAgent, boolean, for_segment, segment, split, variant, wait_until

from flagcast_agent.client import Change, Client
from flagcast_agent.evaluator import Evaluator
from flagcast_agent.store.errors import StoreUnreadable
from flagcast_agent.store.files import set_aside
from flagcast_agent.store.reader import Reader
from flagcast_agent.store.rows import SCHEMA_VERSION
from flagcast_shared.context import context_text
from flagcast_shared.ids import EntityId, FlagKey

NOBODY = 65_534
SUPPORT = Path(__file__).resolve().parents[1] / "support"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sqlite"


@pytest.fixture
def agent(path: Path) -> Iterator[FollowedAgent]:
    followed = FollowedAgent(path, labels={"ring": "pilot"})
    yield followed
    followed.close()


@pytest.fixture
def client(agent: FollowedAgent, path: Path) -> Iterator[Client]:
    with Client(path) as made:
        yield made


def heard(client: Client) -> list[Change]:
    changes: list[Change] = []
    client.listen(changes.append)
    return changes


# Answers


def test_every_getter_gives_the_flags_value(agent: FollowedAgent, path: Path) -> None:
    agent.publish(
        boolean("on", enabled=True),
        variant("theme", "dark"),
        variant("limit", "high", 16),
        variant("share", "some", 0.25),
        variant("box", "wide", {"width": 3, "tags": ["a"]}),
        variant("ten", "10"),
    )
    with Client(path) as client:
        assert client.boolean("on", False, "e") is True
        assert client.variant("theme", "light", "e") == client.string("theme", "light", "e") == "dark"
        assert client.integer("limit", 1, "e") == 16
        assert client.number("limit", 1.0, "e") == 16.0
        assert client.number("share", 1.0, "e") == 0.25
        assert client.object("box", {}, "e") == {"width": 3, "tags": ["a"]}
        assert client.integer("ten", 1) == 10
        assert client.number("ten", 1.0) == 10.0
        assert dict(client.flags()) == {
            "on": "boolean", "theme": "variant", "limit": "variant", "share": "variant", "box": "variant", "ten": "variant"
        }  # fmt: skip


def test_an_object_belongs_to_its_caller(agent: FollowedAgent, path: Path) -> None:
    agent.publish(variant("box", "wide", {"tags": []}))
    with Client(path) as client:
        first = client.object("box", {})
        assert isinstance(first, dict)
        first["tags"].append("mine")
        assert client.object("box", {}) == {"tags": []}


@pytest.mark.parametrize(
    ("flag", "default", "error"),
    [
        ("missing", True, "FLAG_NOT_FOUND"),
        ("theme", True, "TYPE_MISMATCH"),
        ("on", "text", "TYPE_MISMATCH"),
        ("on", 5, "TYPE_MISMATCH"),
        ("theme", 5, "TYPE_MISMATCH"),
        ("theme", 5.0, "TYPE_MISMATCH"),
        ("theme", {"a": 1}, "TYPE_MISMATCH"),
        ("share", 5, "TYPE_MISMATCH"),
        ("theme", None, "TYPE_MISMATCH"),
        ("", True, "FLAG_NOT_FOUND"),
    ],
)
def test_a_question_without_an_answer_gives_the_default_and_why(
    agent: FollowedAgent, path: Path, flag: str, default: object, error: str
) -> None:
    agent.publish(boolean("on", enabled=True), variant("theme", "dark"), variant("share", "some", 0.5))
    with Client(path) as client:
        details = client.evaluate(flag, default)
    assert (details.value, details.reason, details.error) == (default, "ERROR", error)
    assert details.message
    assert details.version == 1


def test_a_question_without_the_entity_that_a_percentage_needs_is_marked(
    agent: FollowedAgent, path: Path
) -> None:
    agent.publish(
        split("theme", "a", "b"), segment("everybody", "zone", "north"), boolean("on", enabled=True)
    )
    north = {"zone": "north"}
    with Client(path) as client:
        nameless = client.evaluate("theme", "none", context=north)
        assert nameless.lacks_entity
        assert (nameless.value, nameless.reason) == (client.variant("theme", "none", "", north), "SPLIT")
        assert not client.evaluate("theme", "none", "e", north).lacks_entity
        assert not client.evaluate("theme", "none").lacks_entity
        assert not client.evaluate("on", False).lacks_entity
        assert not client.evaluate("missing", False).lacks_entity
        assert not client.evaluate("on", False, namespace="elsewhere").lacks_entity


def test_the_getters_give_their_default_for_the_same(agent: FollowedAgent, path: Path) -> None:
    agent.publish(boolean("on", enabled=True), variant("theme", "dark"))
    with Client(path) as client:
        assert client.boolean("theme", True) is True
        assert client.boolean("missing", True) is True
        assert client.variant("on", "light") == "light"
        assert client.string("missing", "light") == "light"
        assert client.integer("theme", 7) == 7
        assert client.number("theme", 7.5) == 7.5
        assert client.object("theme", {"a": 1}) == {"a": 1}
        assert client.boolean("on", False, namespace="elsewhere") is False
        assert client.evaluate("on", False, namespace="elsewhere").error == "PROVIDER_NOT_READY"


@pytest.mark.parametrize("entity", [None, 5, b"e", "\ud800", object()])
def test_what_is_no_entity_never_raises(agent: FollowedAgent, path: Path, entity: object) -> None:
    agent.publish(split("theme", "dark", "light"), segment("everybody", "missing", "x"))
    with Client(path) as client:
        agent.publish(
            split("theme", "dark", "light"),
            segment("everybody", "zone", "north"),
        )
        wait_until(lambda: client.evaluate("theme", "none").version == 2)
        zone = {"zone": "north"}
        assert client.variant("theme", "none", entity, zone) == "none"  # type: ignore[arg-type]  # on purpose
        details = client.evaluate("theme", "none", entity, zone)  # type: ignore[arg-type]  # on purpose
        assert (details.value, details.reason) == ("none", "ERROR")


@pytest.mark.parametrize("context", [None, 5, [("a", "b")], {5: 5}, {"a": object()}, {"a": float("nan")}])
def test_what_is_no_context_never_raises(agent: FollowedAgent, path: Path, context: object) -> None:
    agent.publish(boolean("on", enabled=True))
    with Client(path) as client:
        assert isinstance(client.boolean("on", False, "e", context), bool)  # type: ignore[arg-type]  # on purpose
        assert isinstance(client.evaluate("on", False, "e", context).value, bool)  # type: ignore[arg-type]  # on purpose


def test_a_flag_that_this_release_does_not_understand_gives_the_default(
    agent: FollowedAgent, path: Path
) -> None:
    agent.publish(for_segment("lost", "nowhere"), boolean("on", enabled=True))
    with Client(path) as client:
        assert client.boolean("lost", True) is True
        assert client.evaluate("lost", True).error == "GENERAL"
        assert client.boolean("on", False) is True


def test_a_disabled_or_unmatched_flag_without_a_variant_gives_the_default(
    agent: FollowedAgent, path: Path
) -> None:
    flag = split("theme", "dark", "light")
    agent.publish(flag, segment("everybody", "zone", "north"))
    with Client(path) as client:
        details = client.evaluate("theme", "none", "e")
        assert (details.value, details.reason, details.variant, details.error) == ("none", "DEFAULT", "", "")
        assert client.variant("theme", "none", "e") == "none"
        assert client.variant("theme", "none", "e", {"zone": "north"}) in {"dark", "light"}
        assert client.evaluate("theme", "none", "e", {"zone": "north"}).reason == "SPLIT"
        assert client.evaluate("theme", "none", "e", {"zone": "north"}).segments == ("everybody",)


def test_the_devices_attributes_are_in_every_context_and_cannot_be_overridden(
    agent: FollowedAgent, path: Path
) -> None:
    agent.publish(for_segment("pilot", "ring"), segment("ring", "device.label.ring", "pilot"))
    with Client(path) as client:
        assert client.boolean("pilot", False, "e", {"device.label.ring": "other"}) is True


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (True, "true"),
        (False, "false"),
        (3, "3"),
        (3.0, "3"),
        (0.5, "0.5"),
        ("x", "x"),
        ({"a": [1, "ä"]}, '{"a":[1,"ä"]}'),
        (dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC), "2026-01-02T03:04:05+00:00"),
        (dt.datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05Z"),  # noqa: DTZ001  # without a zone
        (dt.date(2026, 1, 2), "2026-01-02"),
    ],
)
def test_values_become_the_texts_that_flipt_compares(
    agent: FollowedAgent, path: Path, value: object, written: str
) -> None:
    assert context_text(value) == written
    agent.publish(for_segment("it", "fits"), segment("fits", "property", written))
    with Client(path) as client:
        assert client.boolean("it", False, "e", {"property": value, "left out": None}) is True


def test_answers_are_those_of_the_agent_itself(agent: FollowedAgent, path: Path) -> None:
    agent.publish(
        for_segment("north", "n"), segment("n", "zone", "north"), split("theme", "a", "b", "c"),
        segment("everybody", "zone", "north"),
    )  # fmt: skip
    evaluator: Evaluator = agent.shell.evaluator
    with Client(path) as client:
        for number in range(300):
            entity, context = EntityId(f"e{number}"), {"zone": ["north", "south"][number % 2]}
            theirs = evaluator.variant(
                agent.publisher.namespace, FlagKey("theme"), entity, context
            ).variant_key
            assert client.variant("theme", "", entity, context) == theirs
            is_on = evaluator.boolean(agent.publisher.namespace, FlagKey("north"), entity, context).enabled
            assert client.boolean("north", not is_on, entity, context) is is_on


def test_a_mistake_is_logged_once_and_not_at_full_speed(
    agent: FollowedAgent, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent.publish(boolean("on", enabled=True))
    with Client(path) as client, caplog.at_level(logging.WARNING, "flagcast.client"):
        for _ in range(1000):
            client.boolean("missing", False)
    assert len([record for record in caplog.records if "missing" in record.getMessage()]) == 1


# Following


def test_a_change_is_seen_and_only_what_changed_is_compiled(agent: FollowedAgent, path: Path) -> None:
    agent.publish(boolean("a", enabled=True), boolean("b", enabled=True))
    with Client(path) as client:
        before = client._known[""].compiled
        agent.publish(boolean("a", enabled=False), boolean("b", enabled=True))
        wait_until(lambda: client.boolean("a", True) is False)
        after = client._known[""].compiled
        assert after.changed_since(before) == {"a"}
        assert after._booleans["b"] is before._booleans["b"]
        details = client.evaluate("a", True)
        assert (details.version, details.is_stale, details.reason) == (2, False, "STATIC")
        assert details.age_seconds < 60


def test_listeners_hear_the_keys_and_one_that_fails_harms_nobody(
    agent: FollowedAgent, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent.publish(for_segment("pilot", "ring"), segment("ring", "zone", "x"), boolean("b", enabled=True))
    with Client(path) as client:

        def fail(change: Change) -> None:
            raise RuntimeError(f"no use for {change.namespace}")

        client.listen(fail)
        changes: list[Change] = []
        forget = client.listen(changes.append)
        agent.publish(
            for_segment("pilot", "ring"), segment("ring", "zone", "y"), boolean("new", enabled=True)
        )
        wait_until(lambda: changes)
        assert [(change.namespace, change.version, change.keys, change.freshness) for change in changes] == [
            ("default", 2, frozenset({"pilot", "b", "new"}), "fresh")
        ]
        assert "a listener for changes failed" in caplog.text
        forget()
        agent.publish(boolean("b", enabled=False))
        wait_until(lambda: client.evaluate("b", True).version == 3)
        assert len(changes) == 1


def test_a_new_head_over_the_same_flags_changes_the_age_and_nothing_else(
    agent: FollowedAgent, path: Path
) -> None:
    agent.publish(boolean("a", enabled=True))
    with Client(path) as client:
        compiled, changes = client._known[""].compiled, heard(client)
        agent.sign_again(seconds_ago=3600)
        wait_until(lambda: client.evaluate("a", False).age_seconds >= 3600)
        assert client._known[""].compiled is compiled
        assert changes == []


def test_flags_that_expired_are_evaluated_and_said_to_be_stale(agent: FollowedAgent, path: Path) -> None:
    agent.publish(boolean("a", enabled=True))
    with Client(path) as client:
        changes = heard(client)
        agent.sign_again(seconds_ago=8 * 86_400)
        wait_until(lambda: client.evaluate("a", False).is_stale)
        assert client.boolean("a", False) is True
        wait_until(lambda: changes)
        assert [(change.freshness, change.keys) for change in changes] == [("stale", frozenset())]
        (status,) = client.status().namespaces
        assert (status.freshness, status.version) == ("stale", 1)
        agent.sign_again(seconds_ago=0)
        wait_until(lambda: len(changes) == 2)
        assert changes[-1].freshness == "fresh"


def test_labels_of_a_device_that_was_provisioned_anew_are_compiled_in(path: Path) -> None:
    agent = FollowedAgent(path, labels={"ring": "pilot"})
    agent.publish(for_segment("pilot", "ring"), segment("ring", "device.label.ring", "pilot"))
    with Client(path) as client:
        assert client.boolean("pilot", False) is True
        agent._labels = {"ring": "late"}
        agent.restart()
        wait_until(lambda: client.boolean("pilot", True) is False)
    agent.close()


def test_asyncio_hears_changes_and_joins_what_it_was_too_slow_for(agent: FollowedAgent, path: Path) -> None:
    agent.publish(boolean("a", enabled=True))

    async def follow() -> list[Change]:
        found = []
        with Client(path) as client:
            stream = client.changes()
            first = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)  # let it subscribe
            for version in range(2, 5):
                agent.publish(boolean("a", enabled=True), boolean(f"b{version}", enabled=True))
                await asyncio.to_thread(wait_until, lambda: client.evaluate("a", False).version == version)  # noqa: B023
                if version == 2:
                    found.append(await first)
            found.append(await anext(stream))
            ended = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            client.close()
            with pytest.raises(StopAsyncIteration):
                await ended
        return found

    first, second = asyncio.run(follow())
    assert (first.version, first.keys) == (2, frozenset({"b2"}))
    assert (second.version, second.keys) == (4, frozenset({"b2", "b3", "b4"}))


# Databases that are not as one would wish


def test_a_database_that_comes_later_is_found(path: Path) -> None:
    with Client(path) as client:
        assert client.boolean("on", True) is True
        details = client.evaluate("on", False)
        assert (details.error, details.version) == ("PROVIDER_NOT_READY", 0)
        assert "there is no database" in details.message
        assert "there is no database" in client.problem
        assert not client.status().is_ready
        assert client.wait_until_ready(0) is False
        agent = FollowedAgent(path)
        wait_until(lambda: client.problem == "")
        assert "nothing was ever admitted" in client.evaluate("on", False).message
        agent.publish(boolean("on", enabled=True))
        assert client.wait_until_ready(10)
        assert client.boolean("on", False) is True
        assert client.status().is_ready
        agent.close()


def test_the_agent_ends_cleanly_and_comes_back(agent: FollowedAgent, path: Path) -> None:
    agent.publish(boolean("a", enabled=True))
    with Client(path) as client:
        agent.shell.close()
        with Client(path) as late:  # one that finds no agent at all
            assert late.boolean("a", False) is True
            assert client.boolean("a", False) is True
            agent.shell = agent._boot()
            agent.publish(boolean("a", enabled=False))
            wait_until(lambda: client.boolean("a", True) is False)
            wait_until(lambda: late.boolean("a", True) is False)


def test_a_removed_database_is_said_and_answers_go_on(agent: FollowedAgent, path: Path) -> None:
    agent.publish(boolean("a", enabled=True))
    with Client(path) as client:
        agent.close()
        path.unlink()
        wait_until(lambda: client.problem)
        assert "there is no database" in client.problem
        assert client.boolean("a", False) is True


def test_a_database_that_was_set_aside_is_replaced_by_the_new_one(agent: FollowedAgent, path: Path) -> None:
    agent.publish(boolean("a", enabled=True), boolean("b", enabled=True))
    with Client(path) as client:
        agent.close()
        set_aside(path, 1)
        agent.shell = agent._boot()  # as --recover does
        agent.publish(boolean("a", enabled=False))
        wait_until(lambda: client.boolean("a", True) is False)
        assert client.evaluate("b", True).error == "FLAG_NOT_FOUND"
        assert client.problem == ""


@pytest.mark.parametrize("damage", ["header", "cut", "record", "number"])
def test_a_damaged_database_never_raises_and_is_followed_again_once_it_is_whole(
    agent: FollowedAgent, path: Path, damage: str
) -> None:
    agent.publish(boolean("a", enabled=True))
    agent.close()
    whole, damaged = path.with_name("whole"), path.with_name("damaged")
    shutil.copy(path, whole)
    shutil.copy(path, damaged)
    data = damaged.read_bytes()
    if damage == "header":
        damaged.write_bytes(os.urandom(4096) + data[4096:])
    elif damage == "cut":
        damaged.write_bytes(data[: len(data) // 2])
    else:
        with closing(sqlite3.connect(damaged)) as connection, connection:
            table, change = (
                ("record", "data = data || x'00'") if damage == "record" else ("holding", "version = 99")
            )
            connection.execute(f"UPDATE {table} SET {change}")
    with Client(path) as client:
        damaged.replace(path)
        with Client(path) as late:
            assert late.boolean("a", False) is False
            assert late.problem
            assert late.evaluate("a", False).error == "PROVIDER_NOT_READY"
            # Content that is known already is not read again, so its damage is nobody's harm.
            wait_until(lambda: client.problem or damage == "record")
            assert client.boolean("a", False) is True
            whole.replace(path)
            wait_until(lambda: late.boolean("a", False), "the new client recovers")
            wait_until(lambda: late.problem == "" and client.problem == "")
        assert client.boolean("a", False) is True


def test_a_database_of_a_later_release_is_left_alone(agent: FollowedAgent, path: Path) -> None:
    agent.publish(boolean("a", enabled=True))
    with Client(path) as client, closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        wait_until(lambda: "later release" in client.problem)
        assert client.boolean("a", False) is True
        with Client(path) as late:
            assert late.boolean("a", False) is False
            assert "later release" in late.evaluate("a", False).message
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        wait_until(lambda: client.problem == "")


def kill(agent: FollowedAgent) -> None:
    """What is left after SIGKILL: the log, its index, and no process that holds them."""
    folder = agent.path.parent
    kept = {file: file.read_bytes() for file in folder.iterdir()}
    agent.close()
    for file, data in kept.items():
        file.write_bytes(data)


LOCKING = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA locking_mode = EXCLUSIVE")
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
"""


def test_a_locked_database_is_waited_for(agent: FollowedAgent, path: Path) -> None:
    agent.publish(boolean("a", enabled=True))
    kill(agent)
    # A process of its own: locks of files do not keep a process from itself.
    with subprocess.Popen(
        [sys.executable, "-c", LOCKING, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as locking:
        assert locking.stdin is not None
        assert locking.stdout is not None
        assert locking.stdout.readline() == "locked\n"
        with Client(path) as client:
            assert "another program has locked it" in client.problem
            assert client.boolean("a", False) is False
            locking.communicate("\n")
            assert client.wait_until_ready(10)
            assert client.boolean("a", False) is True


def test_a_reader_creates_nothing_writes_nothing_and_lets_the_log_be_folded_in(
    agent: FollowedAgent, path: Path
) -> None:
    agent.publish(boolean("a", enabled=True))
    with Client(path) as client:
        agent.publish(boolean("a", enabled=False))
        wait_until(lambda: client.boolean("a", True) is False)
        busy, pages, folded = agent.shell.store._connection.execute(
            "PRAGMA wal_checkpoint(TRUNCATE)"
        ).fetchone()
        assert (busy, pages, folded) == (0, 0, 0)
    agent.close()
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with Client(path) as client:
        assert client.boolean("a", True) is False
        time.sleep(3 * 0.025)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


OTHER_USER = """
import os, sys, time
from flagcast_agent.client import Client
# The interpreter may stand in a folder that the other user cannot read; what it imports late is imported before.
with Client(sys.argv[1]) as client:
    client.boolean("a", False)
os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
os.chdir("/")
with Client(sys.argv[1]) as client:
    print(client.boolean("a", False), client.problem or "-", flush=True)
    sys.stdin.readline()
    deadline = time.monotonic() + 100
    while client.boolean("a", True) and time.monotonic() < deadline:
        time.sleep(0.001)
    print("changed" if not client.boolean("a", True) else client.problem or client.status(), flush=True)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize("state", ["running", "killed", "ended"])
def test_a_user_who_may_only_read_is_told_the_flags(state: str) -> None:
    folder = Path("/tmp") / f"flagcast-reader-{os.getpid()}-{state}"
    folder.mkdir()
    # Files in it get the reader's group; the reader has no other right to them.
    os.chown(folder, -1, NOBODY)
    folder.chmod(0o2750)
    try:
        path = folder / "agent.sqlite"
        agent = FollowedAgent(path)
        agent.publish(boolean("a", enabled=True))
        if state == "ended":
            agent.close()
        elif state == "killed":
            kill(agent)
        before = sorted(file.name for file in folder.iterdir())
        with subprocess.Popen(
            [sys.executable, "-c", OTHER_USER.format(nobody=NOBODY), str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as child:  # fmt: skip
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stdout.readline() == "True -\n"
            assert sorted(file.name for file in folder.iterdir()) == before
            if state != "running":
                agent.shell = agent._boot()
            agent.publish(boolean("a", enabled=False))
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "changed\n"
        agent.close()
    finally:
        shutil.rmtree(folder)


# Threads and forks


def test_eight_threads_ask_while_versions_come(agent: FollowedAgent, path: Path) -> None:
    """Every answer is of one version: both flags of a version say the same, and no thread sees versions go back."""
    agent.publish(variant("v", "1"), variant("w", "1"))
    failures: list[object] = []
    with Client(path) as client:
        is_over = threading.Event()

        def ask() -> None:
            last = 0
            try:
                while not is_over.is_set():
                    details = client.evaluate("v", "none", "e")
                    number = int(client.variant("w", "none", "e"))
                    if details.error or int(details.value) != details.version or number < last:
                        failures.append((details, number, last))
                    last = number
            except BaseException as error:  # noqa: BLE001  # what a thread raises is what is looked for
                failures.append(error)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for version in range(2, 12):
            agent.publish(variant("v", str(version)), variant("w", str(version)), inline=version % 2 == 0)
        wait_until(lambda: client.evaluate("v", "").version == 11)
        is_over.set()
        for thread in threads:
            thread.join()
    assert failures == []


FORKING = """
import os, sys, threading
sys.path.insert(0, {support!r})
from pathlib import Path
from followed import FollowedAgent, boolean, wait_until
from flagcast_agent.client import Client

path = Path(sys.argv[1])
agent = FollowedAgent(path)
agent.publish(boolean("a", enabled=True))
client = Client(path)
assert client.boolean("a", False)
stop = threading.Event()
threading.Thread(target=lambda: [client.boolean("a", False) for _ in iter(stop.is_set, True)], daemon=True).start()
children = []
for number in range(20):
    child = os.fork()
    if child == 0:
        # Here only this thread goes on; the change is made by the parent, after the fork.
        wait_until(lambda: client.boolean("a", True) is False, "the child hears the change")
        os._exit(0)
    children.append(child)
agent.publish(boolean("a", enabled=False))
wait_until(lambda: client.boolean("a", True) is False, "the parent hears the change")
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
stop.set()
# The agent's own locks have survived its children's ends.
agent.publish(boolean("a", enabled=True))
wait_until(lambda: client.boolean("a", False))
client.close()
print(codes)
"""


def test_a_forked_process_follows_by_itself(path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FORKING.format(support=str(SUPPORT)), str(path)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert ran.stdout == f"{[0] * 20}\n", ran.stderr


def test_importing_the_client_is_cheap(path: Path) -> None:
    program = (
        "import sys, flagcast_agent.client\nprint(sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(ast_list(ran.stdout))
    heavy = {
        "paho",
        "google",
        "hpack",
        "h2",
        "sqlite_utils",
        "cryptography",
        "asyncio",
        "openfeature",
        "ssl",
    }
    assert loaded & heavy == set()


def ast_list(printed: str) -> list[str]:
    return [str(name) for name in json.loads(printed.replace("'", '"'))]


def test_a_forgotten_client_ends_its_thread(agent: FollowedAgent, path: Path) -> None:
    agent.publish(boolean("a", enabled=True))
    before = threading.active_count()
    client = Client(path)
    assert threading.active_count() == before + 1
    del client
    wait_until(lambda: threading.active_count() == before)


def test_a_closed_client_answers_from_what_it_knows(agent: FollowedAgent, path: Path) -> None:
    agent.publish(boolean("a", enabled=True))
    client = Client(path)
    client.close()
    client.close()
    assert client.boolean("a", False) is True


# The reader alone


def test_content_that_is_known_is_not_read_again(agent: FollowedAgent, path: Path) -> None:
    agent.publish(boolean("a", enabled=True))
    reader = Reader(path)
    first = reader.look({})
    assert first is not None
    (held,) = first.holdings
    assert held.records is not None
    assert reader.look({}) is None
    reader.forget()
    again = reader.look({held.namespace: held.digest})
    assert again is not None
    assert again.holdings[0].records is None
    assert reader.damages() == ()
    reader.close()
    with pytest.raises(StoreUnreadable):
        Reader(path.with_name("nothing")).look({})


def test_a_log_that_has_lost_its_index_cannot_be_read(agent: FollowedAgent, path: Path) -> None:
    agent.publish(boolean("a", enabled=True))
    kill(agent)
    path.with_name("agent.sqlite-shm").unlink()
    before = sorted(file.name for file in path.parent.iterdir())
    with Client(path) as client:
        assert "start the agent" in client.problem
        assert sorted(file.name for file in path.parent.iterdir()) == before
        agent.shell = agent._boot()
        assert client.wait_until_ready(10)
        assert client.boolean("a", False) is True


def test_a_profile_is_written_once(path: Path) -> None:
    agent = FollowedAgent(path)
    before = agent.shell.store._connection.total_changes
    with closing(Reader(path)) as reader:
        agent.shell.store.persist_profile(reader.look({}).profile)  # type: ignore[union-attr,arg-type]  # it is there
    assert agent.shell.store._connection.total_changes == before
    agent.close()
