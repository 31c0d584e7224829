"""The agent's disk: real SQLite, real processes, real signals, real full disks."""

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from agent_shell import AgentShell, disk_of, stored_on
from publisher_simulator import PublisherSimulator, SigningKey
from releases import EVIL, OFF, ON, OTHER
from updating_child import content_of

from flagcast_agent.store import writer
from flagcast_agent.store.errors import StoreCorrupt, StoreError, StoreInUse, StoreTooNew, StoreUnwritable
from flagcast_agent.store.files import set_aside
from flagcast_agent.store.reader import Reader
from flagcast_agent.store.rows import SCHEMA_VERSION, Profile, Saved, Seen
from flagcast_agent.store.writer import Store
from flagcast_agent.sync.time_floor import TimeFloor
from flagcast_shared.context import Device
from flagcast_shared.errors import Refused
from flagcast_shared.ids import DeviceId, FlagKey, Namespace, RecordId, SegmentKey
from flagcast_shared.model import BooleanFlag, Match, Segment
from flagcast_shared.records import encode_record
from flagcast_shared.topics import RootAddress
from flagcast_shared.trust import AdmittedRoot, admit, begin, restore

SUPPORT = Path(__file__).resolve().parents[1] / "support"
NOBODY = 65_534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


@pytest.fixture
def publisher() -> PublisherSimulator:
    simulator = PublisherSimulator()
    simulator.release(OFF, OTHER)
    return simulator


@pytest.fixture
def agent(path: Path, publisher: PublisherSimulator) -> Iterator[AgentShell]:
    shell = AgentShell(path, publisher)
    shell.catch_up()
    assert shell.evaluator.knowledge(publisher.namespace).version == 1
    yield shell
    shell.close()


def looked_at(path: Path) -> Seen | None:
    with closing(Reader(path)) as reader:
        return reader.look({})


def loaded(path: Path) -> Saved:
    with closing(Store(path)) as store:
        return store.load()


def test_a_new_database_holds_nothing(path: Path) -> None:
    store = Store(path)
    assert store.load().root_data is None
    assert store.load().namespaces == ()
    assert store.load().floor == TimeFloor()
    store.close()
    store.close()


def test_what_was_admitted_comes_back(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.rotate(root_keys=[SigningKey("root-b")])
    publisher.release(ON)
    agent.hear()
    before = agent.belief()
    agent.close()
    reborn = AgentShell(agent.path, publisher)
    assert reborn.belief() == before
    reborn.close()


def test_write_ahead_log_with_full_synchronisation(agent: AgentShell) -> None:
    connection = agent.store._connection
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_an_update_is_one_transaction(agent: AgentShell, publisher: PublisherSimulator) -> None:
    statements: list[str] = []
    agent.store._connection.set_trace_callback(statements.append)
    publisher.release(ON, EVIL)
    agent.hear()
    agent.store._connection.set_trace_callback(None)
    verbs = [statement.split()[0].upper() for statement in statements]
    assert verbs.count("BEGIN") == verbs.count("COMMIT") == 1
    writes = [at for at, verb in enumerate(verbs) if verb in {"INSERT", "UPDATE", "DELETE", "REPLACE"}]
    assert writes
    assert verbs.index("BEGIN") < min(writes)
    assert max(writes) < verbs.index("COMMIT")


def test_nobody_sees_half_an_update(agent: AgentShell, publisher: PublisherSimulator) -> None:
    before, seen = disk_of(agent.path), []
    publisher.release(ON, EVIL)
    agent.store._connection.set_trace_callback(lambda _: seen.append(disk_of(agent.path)))
    agent.hear()
    agent.store._connection.set_trace_callback(None)
    assert len(seen) > 3
    assert all(one == before for one in seen), (
        "until the commit, a second reader sees the former version whole"
    )
    assert disk_of(agent.path) != before


def test_a_root_is_one_transaction(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.now += 1
    publisher.rotate()
    _, admitted = admit(
        agent.sync.trusted, RootAddress(2), publisher.retained[publisher.root_topic(2)], now=agent.now
    )
    assert isinstance(admitted, AdmittedRoot)
    before, seen = disk_of(agent.path), []
    agent.store._connection.set_trace_callback(lambda _: seen.append(disk_of(agent.path)))
    agent.store.persist_root(admitted, TimeFloor(publisher.now))
    agent.store._connection.set_trace_callback(None)
    assert len(seen) > 3
    assert all(one == before for one in seen), "until the commit, neither the root nor its time is there"
    assert disk_of(agent.path) != before


def test_a_complete_content_leaves_nothing_of_a_former_one(
    agent: AgentShell, publisher: PublisherSimulator
) -> None:
    # What an agent writes that had not followed the namespace for a while, and so began anew.
    publisher.release(EVIL)
    other = AgentShell(agent.path.with_name("other.db"), publisher)
    other.catch_up()
    assert other.activated[0].is_complete
    agent.store.persist_update(other.activated[0], TimeFloor(1))
    other.close()
    assert list(stored_on(agent.store, publisher.namespace).records) == [encode_record(EVIL).data]


def test_records_that_do_not_change_are_not_written(path: Path) -> None:
    publisher = PublisherSimulator()
    many = [BooleanFlag(FlagKey(f"flag-{number}"), enabled=False) for number in range(500)]
    publisher.release(*many)
    agent = AgentShell(path, publisher)
    agent.catch_up()
    for delta in (True, False):  # a snapshot writes no more than a delta does
        before = agent.store._connection.total_changes
        many[7 if delta else 9] = BooleanFlag(many[7 if delta else 9].key, enabled=True)
        publisher.release(*many, delta=delta)
        agent.hear()
        assert agent.evaluator.knowledge(publisher.namespace).version == len(publisher.contents)
        assert agent.store._connection.total_changes - before == 4, (
            "one record, the head and the floor's two rows"
        )
    publisher.sign_again()
    before = agent.store._connection.total_changes
    agent.hear()
    assert agent.store._connection.total_changes - before == 3, "the head and the floor's two rows"
    agent.close()


def test_removed_records_leave_the_disk(agent: AgentShell, publisher: PublisherSimulator) -> None:
    publisher.release(ON)
    agent.hear()
    stored = stored_on(agent.store, publisher.namespace)
    assert list(stored.records) == [encode_record(ON).data]


def removed_on(path: Path) -> dict[str, tuple[str, ...]]:
    store = Store(path, may_be_read_only=True)
    try:
        return {name: tuple(map(str, keys)) for name, keys in store.load().removed.items()}
    finally:
        store.close()


def flags(*keys: str) -> list[BooleanFlag]:
    return [BooleanFlag(FlagKey(key), enabled=True) for key in keys]


def test_removed_flags_are_remembered_until_they_come_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "REMOVED_FLAGS_MAX", 3)
    publisher = PublisherSimulator()
    publisher.release(*flags("a", "b", "c", "d", "e", "f"))
    agent = AgentShell(path, publisher)
    agent.catch_up()
    for left, delta, writes, removed in (
        ("acdef", True, 5, ("b",)),  # the record, its key, the head and the floor's two rows
        ("cdef", False, 5, ("b", "a")),
        ("bcdef", True, 5, ("a",)),
        ("f", True, 13, ("c", "d", "e")),  # four of each, and the two oldest keys give way
        ("af", True, 4, ("c", "d", "e")),
    ):
        before = agent.store._connection.total_changes
        publisher.release(*flags(*left), delta=delta)
        agent.hear()
        assert agent.store._connection.total_changes - before == writes, left
        assert agent.store.load().removed == {publisher.namespace: removed}
    agent.close()
    assert removed_on(path) == {publisher.namespace: ("c", "d", "e")}


def test_segments_are_not_remembered(path: Path) -> None:
    publisher = PublisherSimulator()
    publisher.release(*flags("a"), Segment(SegmentKey("s"), Match.ALL, ()))
    agent = AgentShell(path, publisher)
    agent.catch_up()
    publisher.release(*flags("a"))
    agent.hear()
    assert RecordId("segment", "s") not in agent.sync.trusted.holdings[publisher.namespace].records
    assert agent.store.load().removed == {}
    agent.close()


def make_old(path: Path) -> None:
    """Takes a database back to what the release before wrote."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE removed")
        connection.execute("PRAGMA user_version = 2")
        connection.commit()


def test_a_database_of_the_release_before_goes_on(agent: AgentShell, publisher: PublisherSimulator) -> None:
    before = agent.belief()
    agent.close()
    make_old(agent.path)
    reborn = AgentShell(agent.path, publisher)
    assert reborn.belief() == before
    publisher.release(ON)
    reborn.catch_up()
    assert reborn.store.load().removed == {publisher.namespace: (OTHER.key,)}
    reborn.close()


def test_a_database_of_the_release_before_is_read_where_it_cannot_be_written(
    agent: AgentShell, publisher: PublisherSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.close()
    make_old(agent.path)

    def refuse(_: object) -> int:
        raise StoreUnwritable("on a read-only disk")

    with monkeypatch.context() as disk:
        disk.setattr(writer, "lock_file", refuse)
        store = Store(agent.path, may_be_read_only=True)
        assert store.why_read_only
    saved = store.load()
    assert [one.namespace for one in saved.namespaces] == [publisher.namespace]
    assert saved.removed == {}
    store.close()


def test_namespaces_do_not_touch_each_other(agent: AgentShell, publisher: PublisherSimulator) -> None:
    before = stored_on(agent.store, publisher.namespace)
    other = PublisherSimulator(namespace=Namespace("kiosk"))
    other.release(EVIL)
    kiosk = AgentShell(agent.path.with_name("kiosk.db"), other)
    kiosk.catch_up()
    agent.store.persist_update(kiosk.activated[0], TimeFloor(1))
    kiosk.close()
    assert stored_on(agent.store, publisher.namespace) == before
    assert list(stored_on(agent.store, Namespace("kiosk")).records) == [encode_record(EVIL).data]


def test_second_agent_on_one_database_is_refused(agent: AgentShell) -> None:
    with pytest.raises(StoreInUse, match="another agent"):
        Store(agent.path)
    agent.close()
    Store(agent.path).close()


def test_second_process_on_one_database_is_refused(agent: AgentShell) -> None:
    code = "import sys; from pathlib import Path; from flagcast_agent.store.writer import Store; Store(Path(sys.argv[1]))"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(agent.path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 1
    assert "StoreInUse" in ran.stderr


def test_second_agent_on_a_disk_that_takes_no_writes_is_refused(small_disk: Path) -> None:
    path = small_disk / "agent.db"
    Store(path).close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    first = Store(path, may_be_read_only=True)
    with pytest.raises(StoreInUse, match="another agent"):
        Store(path, may_be_read_only=True)
    first.close()
    Store(path, may_be_read_only=True).close()


def run_child(path: Path, *, updates: int, seconds: float) -> tuple[int, int]:
    """Lets a process admit so many updates and kills it a little later; the version it began with, and the last it printed."""
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    with subprocess.Popen(
        [sys.executable, str(SUPPORT / "updating_child.py"), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        assert first.startswith("held "), child.communicate()[1]
        # However long it takes until then, the kill comes in the middle of a stream of updates.
        lines = [child.stdout.readline() for _ in range(updates)]
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
        child.send_signal(signal.SIGKILL)
        out, err = child.communicate()
        assert child.returncode == -signal.SIGKILL, err
    # A line that the kill cut off was not said.
    said = [line for line in ("".join(lines) + out).splitlines(keepends=True) if line.endswith("\n")]
    return int(first.split()[1]), int(said[-1])


def test_kill_at_any_instant_loses_nothing_that_was_admitted(path: Path) -> None:
    chance = random.Random(20240229)
    publisher = PublisherSimulator()
    last = 0
    for _ in range(7):
        began, said = run_child(path, updates=chance.randint(1, 8), seconds=chance.uniform(0.0, 0.02))
        assert began >= last, "a version that was on disk is gone"
        store = Store(path)
        assert store._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        trusted = begin(publisher.environment, Device(DeviceId("device-1")), publisher.anchor)
        _, update = restore(trusted, stored_on(store, publisher.namespace))
        store.close()
        version = update.holding.version
        assert said <= version <= said + 1, "at most one update was on its way"
        assert update.holding.digest == content_of(publisher, version).digest, "one version, whole"
        last = version
    assert last > 7, "each kill came after at least one update"


# Files that are not what was written


def test_file_that_is_no_database(path: Path) -> None:
    path.write_bytes(b"this was a photograph" * 400)
    with pytest.raises(StoreCorrupt, match="--recover"):
        loaded(path)


def test_database_without_its_tables(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    store = Store(path)
    with pytest.raises(StoreCorrupt):
        store.load()
    store.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE holding SET version = version + 1",
        "UPDATE holding SET epoch = 'many'",
        "UPDATE holding SET digest = zeroblob(32)",
        "UPDATE holding SET head = NULL",
        "UPDATE holding SET head = substr(head, 1, 100)",
        "UPDATE holding SET namespace = 'kiosk'",
        "UPDATE record SET data = zeroblob(9)",
        "DELETE FROM record WHERE key = 'beta'",
        "INSERT INTO record VALUES ('default', 'flag', 'more', zeroblob(3))",
        "INSERT INTO record SELECT namespace, kind, 'again', data FROM record WHERE key = 'beta'",
        "UPDATE trust SET value = value + 315360000 WHERE name = 'floor'",
        "UPDATE trust SET value = 'soon' WHERE name = 'floor'",
    ],
)
def test_content_that_was_changed_is_not_believed(
    agent: AgentShell, publisher: PublisherSimulator, change: str
) -> None:
    agent.close()
    with closing(sqlite3.connect(agent.path)) as connection, contextlib.suppress(sqlite3.IntegrityError):
        connection.execute("PRAGMA ignore_check_constraints = ON")
        changed = connection.execute(change).rowcount
        connection.commit()
        assert changed > 0
        with pytest.raises((StoreCorrupt, Refused)):
            AgentShell(agent.path, publisher)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE holding SET version = version + 1",
        "UPDATE holding SET digest = zeroblob(32)",
        "UPDATE trust SET value = CAST(replace(value, 'default', 'another') AS BLOB) WHERE name = 'profile'",
    ],
)
def test_content_that_was_changed_is_not_read_by_others(agent: AgentShell, change: str) -> None:
    device = Device(DeviceId("device-1"))
    agent.store.persist_profile(Profile(agent.publisher.environment, device, (agent.publisher.namespace,)))
    agent.close()
    assert looked_at(agent.path) is not None
    with closing(sqlite3.connect(agent.path)) as connection:
        assert connection.execute(change).rowcount == 1
        connection.commit()
    with pytest.raises(StoreCorrupt, match="a row was changed"):
        looked_at(agent.path)


def test_any_byte_of_the_file_may_change(agent: AgentShell, publisher: PublisherSimulator) -> None:
    """A flipped byte is found, or it stood where nothing was written; it never changes what is believed."""
    publisher.rotate(root_keys=[SigningKey("root-b")])
    agent.hear()
    agent.close()
    whole = agent.path.read_bytes()
    expected = AgentShell(agent.path, publisher)
    trusted, answers = expected.sync.trusted, expected.answers()
    expected.close()
    chance = random.Random(7)
    found = 0
    for at in [*range(100), *chance.sample(range(100, len(whole)), 300)]:
        damaged = bytearray(whole)
        damaged[at] ^= chance.randrange(1, 256)
        copy = agent.path.with_name("damaged.db")
        for old in copy.parent.glob("damaged.db*"):
            old.unlink()
        copy.write_bytes(damaged)
        try:
            reborn = AgentShell(copy, publisher)
        except (StoreError, Refused):
            found += 1
            continue
        assert reborn.sync.trusted.holdings in (trusted.holdings, {}), f"byte {at}"
        if reborn.sync.trusted.holdings:
            assert reborn.answers() == answers
        reborn.close()
    assert found > 30


def test_truncated_file(agent: AgentShell, publisher: PublisherSimulator) -> None:
    agent.close()
    whole = agent.path.read_bytes()
    for size in (1, 2, 16, 99, 100, 4096, len(whole) // 2):
        agent.path.write_bytes(whole[:size])
        with pytest.raises(StoreCorrupt):
            AgentShell(agent.path, publisher)
        with pytest.raises(StoreCorrupt):
            looked_at(agent.path)


def test_file_of_no_bytes_is_new_unless_its_log_is_not(
    agent: AgentShell, publisher: PublisherSimulator, path: Path
) -> None:
    log = path.with_name(f"{path.name}-wal")
    kept = log.read_bytes()
    agent.close()
    path.write_bytes(b"")
    reborn = AgentShell(path, publisher)
    assert not reborn.sync.trusted.holdings
    reborn.close()
    path.write_bytes(b"")
    log.write_bytes(kept)
    with pytest.raises(StoreCorrupt):
        AgentShell(path, publisher)
    assert log.read_bytes() == kept


def test_database_of_a_later_release(agent: AgentShell) -> None:
    agent.close()
    with closing(sqlite3.connect(agent.path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = agent.path.read_bytes()
    with pytest.raises(StoreTooNew, match="later release"):
        Store(agent.path)
    with pytest.raises(StoreTooNew, match="later release"):
        looked_at(agent.path)
    assert agent.path.read_bytes() == before


def test_what_is_set_aside_is_kept(agent: AgentShell) -> None:
    agent.close()
    content = agent.path.read_bytes()
    agent.path.with_name("agent.db-wal").write_bytes(b"log")
    kept = set_aside(agent.path, 1234)
    assert kept == agent.path.with_name("agent.db.corrupt-1234")
    assert kept.read_bytes() == content
    assert kept.with_name("agent.db.corrupt-1234-wal").read_bytes() == b"log"
    assert not agent.path.exists()
    assert set_aside(agent.path, 1235) is None
    fresh = Store(agent.path)
    assert fresh.load().namespaces == ()
    fresh.close()


# Disks that do not take it


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreUnwritable, match="folder"):
        Store(tmp_path / "nowhere" / "agent.db")


READ_ONLY = """
import os, sys
from pathlib import Path
import sqlite_utils
from flagcast_agent.store.errors import StoreUnwritable
from flagcast_agent.store.writer import Store
if os.getuid() == 0:
    os.setgroups([])
    os.setgid({nobody})
    os.setuid({nobody})
os.chdir("/")
try:
    Store(Path(sys.argv[1])).load()
except StoreUnwritable as error:
    print("unwritable:", error)
"""


@pytest.mark.parametrize("exists", [False, True])
def test_read_only_folder(
    tmp_path_factory: pytest.TempPathFactory, publisher: PublisherSimulator, exists: bool
) -> None:
    # Every folder above must let another user through; pytest's own are closed.
    folder = Path("/tmp") / f"flagcast-read-only-{os.getpid()}-{exists}"
    folder.mkdir(mode=0o755)
    try:
        path = folder / "agent.db"
        if exists:
            agent = AgentShell(path, publisher)
            agent.catch_up()
            agent.close()
            for file in folder.iterdir():
                os.chown(file, NOBODY if os.getuid() == 0 else -1, -1)
        folder.chmod(0o555)
        ran = subprocess.run(
            [sys.executable, "-c", READ_ONLY.format(nobody=NOBODY), str(path)],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.startswith("unwritable:"), ran.stdout
        assert "writable" in ran.stdout
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk(small_disk: Path, publisher: PublisherSimulator) -> None:
    agent = AgentShell(small_disk / "agent.db", publisher)
    agent.catch_up()
    before = agent.belief()
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    publisher.release(
        *(BooleanFlag(FlagKey(f"flag-{number}"), enabled=True) for number in range(3000)), delta=False
    )
    agent.hear()
    assert "full" in agent.sync.connection.last_error or "disk" in agent.sync.connection.last_error
    assert agent.belief() == before
    agent.close()
    reborn = AgentShell(small_disk / "agent.db", publisher)
    assert reborn.sync.trusted.holdings == before.holdings
    filler.unlink()
    reborn.catch_up()
    assert reborn.evaluator.knowledge(publisher.namespace).version == 2
    assert len(reborn.sync.trusted.holdings[publisher.namespace].records) == 3000
    assert RecordId("flag", "flag-7") in reborn.sync.trusted.holdings[publisher.namespace].records
    reborn.close()


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_database_has_mode_0640_whatever_the_umask(path: Path, umask: int) -> None:
    script = (
        "import os, pathlib, sys; os.umask(int(sys.argv[2])); from flagcast_agent.store.writer import Store;"
        "store = Store(pathlib.Path(sys.argv[1])); store.persist_broker(None);"
        "[print(name, oct(os.stat(name).st_mode & 0o777)) for name in sorted(os.listdir('.'))]"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path, str(umask)],
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [
        *("agent.db", "0o640"),
        *("agent.db-shm", "0o640"),
        *("agent.db-wal", "0o640"),
        *("agent.db.lock", "0o600"),
    ]


def test_a_database_that_is_there_keeps_its_mode(path: Path) -> None:
    Store(path).close()
    path.chmod(0o600)
    Store(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("read_only", [False, True])
def test_no_lock_is_taken_through_a_link(path: Path, tmp_path: Path, read_only: bool) -> None:
    Store(path).close()
    elsewhere = tmp_path / "elsewhere"
    lock = path.with_name(f"{path.name}.lock")
    lock.unlink()
    lock.symlink_to(elsewhere)
    with pytest.raises(StoreError, match=r"agent\.db\.lock: a symbolic link.*remove it"):
        Store(path, may_be_read_only=read_only)
    assert not elsewhere.exists()
    lock.unlink()
    Store(path).close()
