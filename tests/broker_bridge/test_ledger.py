import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from postgres import Postgres

from brokers import free_port
from flagcast_bridge import clock
from flagcast_bridge.ledger import database
from flagcast_bridge.ledger import ledger as ledgers
from flagcast_bridge.ledger.ledger import (
    SCHEMA_VERSION,
    Ledger,
    LedgerBusy,
    LedgerCorrupt,
    LedgerError,
    LedgerTooNew,
    NumberUsed,
    existing,
)
from flagcast_bridge.planning.plan import Issued, Past, Plan, Terms, named, plan
from flagcast_shared.ids import Digest, Environment, Epoch, FlagKey, Namespace, Sequence, Version
from flagcast_shared.model import BooleanFlag
from flagcast_shared.topics import Address, DeltaAddress, HeadAddress, SnapshotAddress

ENVIRONMENT = Environment("test")
NAMESPACE = Namespace("default")
NOW = 1_800_000_000

PLACE = """
import os, signal, sys, time
from contextlib import closing
from pathlib import Path
from flagcast_bridge.ledger import ledger as ledgers
from flagcast_bridge.ledger.ledger import Ledger
where = sys.argv[1] if sys.argv[1].startswith("postgresql:") else Path(sys.argv[1])
"""
# A publisher that reserves and is killed before it can publish or confirm.
RESERVE_AND_DIE = (
    PLACE
    + """
sys.path += [sys.argv[2], sys.argv[2] + "/../support"]
from test_ledger import ENVIRONMENT, next_plan
ledger = Ledger(where, ENVIRONMENT)
ledgers.LEASE_SILENCE_SECONDS = 0.1
while True:
    try:
        with ledger.lease("process 1 on a.example"):
            ledger.reserve([next_plan(ledger, on=True)], 1)
            os.kill(os.getpid(), signal.SIGKILL)
    except ledgers.LedgerBusy:
        time.sleep(0.05)
"""
)
# One that holds the lease until its input ends, and then says whether it still has it.
HOLD = (
    PLACE
    + """
ledgers.LEASE_SECONDS, ledgers.LEASE_RENEW_SECONDS = map(float, sys.argv[2:4])
ledger = Ledger(where, "test")
try:
    with closing(ledger), ledger.lease("process 4711 on a.example"):
        print("held", flush=True)
        sys.stdin.read()
        ledger.check_lease()
except ledgers.LeaseLost as error:
    sys.exit(f"lost: {error}")
"""
)


def next_plan(ledger: Ledger, *, on: bool) -> Plan:
    issued = ledger.issued().get(NAMESPACE, Issued())
    terms = Terms(ENVIRONMENT, Epoch(1), NOW, 3600, 60_000, provenance={"commit": "abc"})
    return plan(NAMESPACE, [BooleanFlag(FlagKey("a"), on)], None, issued, terms)


def numbers(done: Plan) -> tuple[int, int]:
    return done.head.stable.version, done.head.sequence


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@contextmanager
def leased(where: Path | str, environment: Environment = ENVIRONMENT) -> Iterator[Ledger]:
    """An open ledger of which we hold the lease."""
    with closing(Ledger(where, environment)) as opened, opened.lease("process 1 on a.example"):
        yield opened


@pytest.fixture
def ledger(ledger_at: Path | str) -> Iterator[Ledger]:
    with leased(ledger_at) as opened:
        yield opened


@contextmanager
def holding(
    where: Path | str, seconds: float = 60.0, renew: float = 10.0
) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lease."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", HOLD, str(where), str(seconds), str(renew)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as rival:
        assert rival.stdout is not None
        assert rival.stdout.readline() == b"held\n"
        try:
            yield rival
        finally:
            rival.kill()


def test_a_reserved_number_is_not_published_until_it_is_confirmed(ledger: Ledger) -> None:
    first = next_plan(ledger, on=True)
    ledger.reserve([first], NOW)
    (entry,) = ledger.entries()
    assert (entry.version, entry.sequence, entry.state, entry.published) == (1, 1, "reserved", None)
    assert ledger.issued()[NAMESPACE].published is None
    ledger.confirm(first.head, NOW + 5, {})
    (entry,) = ledger.entries()
    assert (entry.state, entry.reserved, entry.published) == ("published", NOW, NOW + 5)
    assert entry.provenance == {"commit": "abc"}
    assert ledger.issued()[NAMESPACE] == Issued(
        first.head.stable.version, first.head.sequence, first.contents[0], first.head
    )


def test_confirming_another_content_under_the_same_number_does_nothing(ledger: Ledger) -> None:
    first = next_plan(ledger, on=True)
    ledger.reserve([first], NOW)
    stable = replace(first.head.stable, digest=Digest(bytes(32)))
    ledger.confirm(replace(first.head, stable=stable), NOW, {}, adopts=True)
    assert ledger.entries()[0].state == "reserved"


def test_a_number_cannot_be_reserved_twice_and_nothing_of_the_attempt_stays(ledger: Ledger) -> None:
    first, rival = next_plan(ledger, on=True), next_plan(ledger, on=False)
    ledger.reserve([first], NOW)
    with pytest.raises(NumberUsed):
        ledger.reserve([rival], NOW)
    with pytest.raises(NumberUsed):
        ledger.reserve([first], NOW)
    assert len(ledger.entries()) == 1


def test_a_number_is_never_used_again_when_the_process_is_killed_before_it_publishes(
    ledger_at: Path | str,
) -> None:
    for attempt in (1, 2):
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "error",
                "-c",
                RESERVE_AND_DIE,
                str(ledger_at),
                str(Path(__file__).parent),
            ],
            check=False,
        )
        assert done.returncode == -signal.SIGKILL
        ledger = Ledger(ledger_at, ENVIRONMENT)
        assert [(entry.version, entry.state) for entry in ledger.entries()] == [
            (version, "reserved") for version in range(attempt, 0, -1)
        ]
        assert numbers(next_plan(ledger, on=True)) == (attempt + 1, attempt + 1)
        ledger.close()


def test_environments_share_neither_numbers_nor_the_lease(ledger_at: Path | str, ledger: Ledger) -> None:
    ledger.reserve([next_plan(ledger, on=True)], NOW)
    with leased(ledger_at, Environment("other")) as other:
        assert (other.issued(), other.entries()) == ({}, [])


def test_what_was_published_is_there_after_closing(ledger_at: Path | str) -> None:
    assert existing(ledger_at, ENVIRONMENT) is None
    assert existing(ledger_at, ENVIRONMENT) is None  # nor made by asking
    with leased(ledger_at) as ledger:
        first = next_plan(ledger, on=True)
        ledger.reserve([first], NOW)
        ledger.confirm(first.head, NOW, {})
    again = existing(ledger_at, ENVIRONMENT)
    assert again is not None
    with closing(again):
        assert again.issued()[NAMESPACE].published == first.contents[0]


def messages_of(done: Plan) -> dict[Address, bytes]:
    """What stands for the signed messages of a plan: other bytes for every address, and for every head."""
    return {address: f"{address} of head {done.head.sequence}".encode() for address in named(done.head)}


def publish(ledger: Ledger, done: Plan, now: int = NOW) -> Plan:
    """Reserve and confirm, as if every message had been sent and read back."""
    ledger.reserve([done], now)
    ledger.confirm(done.head, now, messages_of(done))
    return done


def test_the_messages_of_the_last_head_are_kept_until_the_next_one_is_confirmed(ledger: Ledger) -> None:
    first = publish(ledger, next_plan(ledger, on=True))
    assert ledger.kept() == messages_of(first)
    second = next_plan(ledger, on=False)
    ledger.reserve([second], NOW)
    assert ledger.kept() == messages_of(first)
    ledger.confirm(second.head, NOW, {**messages_of(first), **messages_of(second)})
    assert ledger.kept() == messages_of(second)
    # Neither an older head nor other bytes under the same one take its place.
    ledger.confirm(first.head, NOW, messages_of(first))
    forged = {SnapshotAddress(NAMESPACE, Version(2), 0): b"forged"}
    ledger.confirm(second.head, NOW, messages_of(second) | forged)
    assert ledger.kept() == messages_of(second)


def test_messages_are_kept_whole_or_not_at_all(ledger: Ledger) -> None:
    first = next_plan(ledger, on=True)
    ledger.reserve([first], NOW)
    ledger.confirm(first.head, NOW, {HeadAddress(NAMESPACE): b"head"})
    assert (ledger.entries()[0].state, ledger.kept()) == ("published", {})


def test_a_head_of_another_ledger_is_written_down_only_where_that_was_asked_for(
    ledger: Ledger, tmp_path: Path
) -> None:
    with leased(tmp_path / "other.sqlite") as other:
        foreign = publish(other, next_plan(other, on=True))
    messages = messages_of(foreign)
    ledger.confirm(foreign.head, NOW, messages)
    assert (ledger.entries(), ledger.kept()) == ([], {})
    ledger.confirm(foreign.head, NOW, messages, adopts=True)
    (entry,) = ledger.entries()
    assert (entry.action, entry.state, ledger.kept()) == ("adopted", "published", messages)
    assert ledger.issued()[NAMESPACE].head == foreign.head
    assert numbers(next_plan(ledger, on=False)) == (2, 2)


def test_what_no_head_names_is_remembered_since_when_and_forgotten_when_it_is_gone(ledger: Ledger) -> None:
    old, older = (SnapshotAddress(NAMESPACE, Version(number), 0) for number in (2, 1))
    elsewhere = DeltaAddress(Namespace("other"), Version(2), Version(1))
    assert ledger.unnamed([NAMESPACE], [older], 100) == {older: 100}
    assert ledger.unnamed([NAMESPACE], [older, old], 200) == {older: 100, old: 200}
    assert ledger.unnamed([Namespace("other")], [elsewhere], 250) == {elsewhere: 250}
    assert ledger.unnamed([NAMESPACE], [old], 300) == {old: 200}
    assert ledger.unnamed([NAMESPACE], [older], 400) == {older: 400}
    assert ledger.unnamed([Namespace("other")], [elsewhere], 500) == {elsewhere: 250}


def test_what_a_head_no_longer_names_is_to_be_asked_for_by_name_until_it_is_gone(ledger: Ledger) -> None:
    head = HeadAddress(NAMESPACE)
    first, second = (SnapshotAddress(NAMESPACE, Version(version), 0) for version in (1, 2))
    publish(ledger, next_plan(ledger, on=True))
    assert ledger.to_ask_for() == [head]
    publish(ledger, next_plan(ledger, on=False), NOW + 5)
    assert ledger.to_ask_for() == [head, first]
    assert ledger.unnamed([NAMESPACE], [first], NOW + 9) == {first: NOW + 5}
    assert ledger.unnamed([NAMESPACE], [], NOW + 9) == {}
    assert ledger.to_ask_for() == [head]
    publish(ledger, next_plan(ledger, on=True), NOW + 10)
    assert ledger.to_ask_for() == [head, second]


def test_the_last_contents_that_were_published_are_what_deltas_can_begin_from(ledger: Ledger) -> None:
    for number in range(4):
        publish(ledger, next_plan(ledger, on=number % 2 == 0))
    ledger.reserve([next_plan(ledger, on=True)], NOW)  # never published
    issued = ledger.issued(3)[NAMESPACE]
    assert [past.version for past in issued.past] == [4, 3, 2]
    assert issued.past[0].records == {
        record.id: record.digest for record in (issued.published.records if issued.published else ())
    }
    assert ledger.issued()[NAMESPACE].past == ()


def test_a_content_to_roll_back_to_is_one_that_was_published(ledger: Ledger) -> None:
    first = publish(ledger, next_plan(ledger, on=True))
    second = publish(ledger, next_plan(ledger, on=False))
    ledger.reserve([next_plan(ledger, on=True)], NOW)
    assert ledger.content(NAMESPACE, Version(1)) == first.contents[0]
    assert ledger.content(NAMESPACE, Version(3)) is None
    assert ledger.content(NAMESPACE, Version(9)) is None
    assert ledger.content_before(NAMESPACE, second.head.stable.digest) == first.contents[0]
    assert ledger.content_before(NAMESPACE, first.head.stable.digest) == second.contents[0]
    assert ledger.content_before(Namespace("other"), first.head.stable.digest) is None


# What release 0.1.0 wrote: schema version 1, one head published and one reserved.
VERSION_1 = """
CREATE TABLE content (environment TEXT NOT NULL, namespace TEXT NOT NULL,
 version INTEGER NOT NULL CHECK (version > 0), epoch INTEGER NOT NULL, digest BLOB NOT NULL,
 parts INTEGER NOT NULL, body BLOB NOT NULL, reserved INTEGER NOT NULL,
 PRIMARY KEY (environment, namespace, version));
CREATE TABLE head (environment TEXT NOT NULL, namespace TEXT NOT NULL,
 sequence INTEGER NOT NULL CHECK (sequence > 0), epoch INTEGER NOT NULL, version INTEGER NOT NULL,
 digest BLOB NOT NULL, action TEXT NOT NULL, provenance TEXT NOT NULL, reserved INTEGER NOT NULL,
 published INTEGER, PRIMARY KEY (environment, namespace, sequence));
PRAGMA user_version = 1;
"""


def test_a_ledger_of_version_1_is_taken_over_with_everything_in_it(path: Path) -> None:
    made = Ledger(path.with_name("new.sqlite"), ENVIRONMENT)
    first = next_plan(made, on=True)
    made.close()
    (content,) = first.contents
    stable = first.head.stable
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1)
    row = ("test", "default", 1, 1, stable.digest, 1, content.body, NOW)
    connection.execute("INSERT INTO content VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    for sequence, published in ((1, NOW + 5), (2, None)):
        head = (
            "test",
            "default",
            sequence,
            1,
            1,
            stable.digest,
            "change",
            '{"commit": "abc"}',
            NOW,
            published,
        )
        connection.execute("INSERT INTO head VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", head)
    connection.commit()
    connection.close()

    ledger = Ledger(path, ENVIRONMENT)
    assert ledger._database.schema_version() == SCHEMA_VERSION
    assert ledger.issued(8)[NAMESPACE] == Issued(
        Version(1),
        Sequence(2),
        content,
        past=(Past(Version(1), stable.digest, {record.id: record.digest for record in content.records}),),
    )
    entries = [(entry.sequence, entry.state, entry.candidate) for entry in ledger.entries()]
    assert entries == [(2, "reserved", None), (1, "published", None)]
    assert ledger.entries()[0].provenance == {"commit": "abc"}
    assert (ledger.kept(), numbers(next_plan(ledger, on=False))) == ({}, (2, 3))
    # The head that its last run could not note down any more is still recognised, without its bytes.
    with ledger.lease("process 1 on a.example"):
        ledger.confirm(replace(first.head, sequence=Sequence(2)), NOW + 9, {})
    assert ledger.entries()[0].state == "published"
    ledger.close()
    Ledger(path, ENVIRONMENT).close()


def test_the_disk_is_waited_for(ledger: Ledger) -> None:
    opened = ledger._database
    if isinstance(opened, database.Sqlite):
        assert opened.rows("PRAGMA synchronous") == [(2,)]  # FULL
        assert opened.rows("PRAGMA journal_mode") == [("wal",)]
    else:
        assert opened.rows("SHOW synchronous_commit") == [("on",)]


@pytest.mark.postgres
def test_numbers_are_on_the_disk_of_a_database_that_is_set_up_to_be_hasty(postgres_server: Postgres) -> None:
    url = postgres_server.database()
    name = url.rpartition("/")[2]
    for found, used in (("off", "on"), ("remote_apply", "remote_apply")):
        postgres_server.sql(url, f"ALTER DATABASE {name} SET synchronous_commit = {found}")
        with closing(Ledger(url, ENVIRONMENT)) as ledger:
            assert ledger._database.rows("SHOW synchronous_commit") == [(used,)]


def test_a_damaged_ledger_is_refused_with_what_to_do_and_left_as_it_is(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be looked at" * 40)
    before = path.read_bytes()
    with pytest.raises(LedgerCorrupt, match="restore it from a backup"):
        Ledger(path, ENVIRONMENT)
    assert path.read_bytes() == before


def test_a_content_that_the_disk_returns_changed_is_refused(ledger: Ledger) -> None:
    first = next_plan(ledger, on=True)
    ledger.reserve([first], NOW)
    ledger.confirm(first.head, NOW, {})
    (other,) = next_plan(ledger, on=False).contents
    ledger._database.change("UPDATE content SET body = :body", {"body": other.body})
    with pytest.raises(LedgerCorrupt, match="not what was written"):
        ledger.issued()


def test_a_ledger_of_a_later_release_is_refused(ledger_at: Path | str) -> None:
    with closing(Ledger(ledger_at, ENVIRONMENT)) as ledger:
        ledger._database.upgrade(99, {})
    with pytest.raises(LedgerTooNew, match="schema 99"):
        Ledger(ledger_at, ENVIRONMENT)


def test_a_ledger_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="absent"):
        Ledger(tmp_path / "absent" / "ledger.sqlite", ENVIRONMENT)


def test_nothing_is_written_without_the_lease(ledger_at: Path | str) -> None:
    with closing(Ledger(ledger_at, ENVIRONMENT)) as ledger:
        wanted = next_plan(ledger, on=True)
        for write in (
            lambda: ledger.reserve([wanted], NOW),
            lambda: ledger.confirm(wanted.head, NOW, {}, adopts=True),
            lambda: ledger.unnamed([NAMESPACE], [], NOW),
            ledger.check_lease,
        ):
            with pytest.raises(LedgerError, match="without the lease"):
                write()
        assert ledger.entries() == []


def test_a_second_bridge_is_told_who_is_at_work_and_gets_its_turn_soon_when_that_one_is_killed(
    ledger_at: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "LEASE_SILENCE_SECONDS", 0.5)
    with closing(Ledger(ledger_at, ENVIRONMENT)) as ledger, holding(ledger_at) as rival:
        began = ledger.now()
        with (
            pytest.raises(LedgerBusy, match=r"process 4711 on a\.example, since 20") as caught,
            ledger.lease("me"),
        ):
            pytest.fail("two bridges at once")
        assert (caught.value.holder, began - 60 < caught.value.since <= began) == (
            "process 4711 on a.example",
            True,
        )
        rival.kill()
        rival.wait()
        deadline = time.monotonic() + 10  # its lease would last for a minute
        while True:
            try:
                with ledger.lease("me"):
                    ledger.check_lease()
                    break
            except LedgerBusy:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        with ledger.lease("me again"):
            ledger.check_lease()


def test_a_lease_is_renewed_for_as_long_as_its_holder_lives(ledger_at: Path | str) -> None:
    with closing(Ledger(ledger_at, ENVIRONMENT)) as ledger, holding(ledger_at, 3.0, 0.1) as rival:
        until = time.monotonic() + 4.0
        while time.monotonic() < until:
            with pytest.raises(LedgerBusy), ledger.lease("me"):
                pytest.fail("two bridges at once")
            time.sleep(0.05)
        assert rival.communicate(timeout=100) == (b"", b"")
        assert rival.returncode == 0


@pytest.mark.postgres
def test_a_holder_whose_session_the_server_ended_is_not_taken_for_dead(
    postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "LEASE_SILENCE_SECONDS", 3.0)
    url = postgres_server.emptied()
    with closing(Ledger(url, ENVIRONMENT)) as ledger, holding(url, 60.0, 0.1):
        ended = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
        assert postgres_server.sql(url, ended) == "t"
        until = time.monotonic() + 4
        while time.monotonic() < until:
            with pytest.raises(LedgerBusy), ledger.lease("me"):
                pytest.fail("two bridges at once")
            time.sleep(0.05)


def test_a_holder_that_cannot_renew_is_stopped_before_anybody_takes_it_for_dead(
    ledger_at: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ledgers.LEASE_STOP_SECONDS < ledgers.LEASE_SILENCE_SECONDS < ledgers.LEASE_SECONDS
    monkeypatch.setattr(ledgers, "LEASE_STOP_SECONDS", 2.0)
    monkeypatch.setattr(ledgers, "LEASE_RENEW_SECONDS", 60.0)
    stopped = threading.Event()
    with closing(Ledger(ledger_at, ENVIRONMENT)) as ledger, ledger.lease("me", stopped.set):
        ledger.check_lease()
        assert not stopped.is_set()
        assert stopped.wait(100)


def test_a_bridge_that_froze_past_its_lease_writes_nothing_any_more(ledger_at: Path | str) -> None:
    with closing(Ledger(ledger_at, ENVIRONMENT)) as ledger, holding(ledger_at, 3.0, 0.1) as rival:
        os.kill(rival.pid, signal.SIGSTOP)
        waited = take_over(ledger)
        assert waited > 1  # not before it ended, which it renewed up to then every tenth of a second
        os.kill(rival.pid, signal.SIGCONT)
        _, said = rival.communicate(timeout=100)
        assert rival.returncode == 1
        assert b"lost: " in said
        assert b"process 2 on b.example has taken over" in said


def take_over(ledger: Ledger) -> float:
    """Take the lease as soon as it is to be had, and write; returns after how many seconds."""
    began = time.monotonic()
    while True:
        try:
            with ledger.lease("process 2 on b.example"):
                taken = time.monotonic()
                ledger.reserve([next_plan(ledger, on=True)], NOW)
                return taken - began
        except LedgerBusy:
            assert time.monotonic() < began + 100
            time.sleep(0.02)


def test_who_took_over_from_a_frozen_bridge_keeps_the_lease_when_that_one_ends(ledger_at: Path | str) -> None:
    with closing(Ledger(ledger_at, ENVIRONMENT)) as second, closing(Ledger(ledger_at, ENVIRONMENT)) as third:
        with holding(ledger_at, 0.3, 0.1) as rival:
            os.kill(rival.pid, signal.SIGSTOP)
            deadline = time.monotonic() + 100
            while True:
                try:
                    with second.lease("process 2 on b.example"):
                        rival.kill()
                        rival.wait()
                        # The guard is free again, and the second bridge, which lives, never had it.
                        until = time.monotonic() + 0.5
                        while time.monotonic() < until:
                            with pytest.raises(LedgerBusy, match="process 2"), third.lease("me"):
                                pytest.fail("two bridges at once")
                        second.check_lease()
                        break
                except LedgerBusy:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
        with third.lease("me"):
            third.check_lease()


@pytest.mark.postgres
def test_a_frozen_bridge_that_is_in_the_middle_of_a_transaction_is_thrown_out_of_it(
    postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "IDLE_TRANSACTION_MS", 300)
    monkeypatch.setattr(ledgers, "LEASE_SECONDS", 0.2)
    url = postgres_server.emptied()
    with closing(Ledger(url, ENVIRONMENT)) as frozen, closing(Ledger(url, ENVIRONMENT)) as other:
        with pytest.raises(LedgerError), frozen.lease("process 1 on a.example"), frozen._writing():  # noqa: PT012
            assert take_over(other) >= 0.0
            frozen._versions(NAMESPACE)
        assert [entry.version for entry in other.entries()] == [1]


def test_the_lease_goes_by_the_clock_of_the_database(
    ledger_at: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = clock.now
    with closing(Ledger(ledger_at, ENVIRONMENT)) as ledger, holding(ledger_at):
        for ahead in (86_400, -86_400):
            monkeypatch.setattr(clock, "now", lambda ahead=ahead: now() + ahead)
            with pytest.raises(LedgerBusy), ledger.lease("me"):
                pytest.fail("two bridges at once")
            off = ledger.now() - now()
            assert abs(off - (0 if isinstance(ledger_at, str) else ahead)) <= 2


@pytest.mark.postgres
def test_a_server_that_is_not_there_or_lets_nobody_in_says_what_to_check(postgres_server: Postgres) -> None:
    url = f"postgresql://flagcast@127.0.0.1:{free_port()}/flagcast"
    with pytest.raises(LedgerError, match=r"Connection refused; check ledger in flagcast\.toml"):
        Ledger(url, ENVIRONMENT)
    with pytest.raises(LedgerError, match='database "absent" does not exist; check'):
        Ledger(f"{postgres_server.emptied().rpartition('/')[0]}/absent", ENVIRONMENT)
    with pytest.raises(LedgerError, match=r"check ledger in flagcast\.toml"):
        Ledger("postgresql://host/name?nonsense=1", ENVIRONMENT)


@pytest.mark.postgres
def test_a_user_who_may_make_no_tables_is_told_what_an_administrator_has_to_run(
    postgres_server: Postgres,
) -> None:
    url = postgres_server.database()
    role = f"guest_{url.rpartition('/')[2]}"
    postgres_server.sql(url, f"CREATE ROLE {role} LOGIN")
    as_guest = url.replace("flagcast@", f"{role}@")
    with pytest.raises(LedgerError, match="CREATE SCHEMA flagcast AUTHORIZATION"):
        Ledger(as_guest, ENVIRONMENT)
    postgres_server.sql(url, f"CREATE SCHEMA flagcast AUTHORIZATION {role}")
    with leased(as_guest) as ledger:
        ledger.reserve([next_plan(ledger, on=True)], NOW)


def test_bridges_that_make_the_same_ledger_at_once_make_it_once(ledger_at: Path | str) -> None:
    script = f"{PLACE}\nLedger(where, 'test').close()"
    made = [subprocess.Popen([sys.executable, "-c", script, str(ledger_at)]) for _ in range(2)]
    assert [each.wait(30) for each in made] == [0] * 2
    with leased(ledger_at) as ledger:
        assert ledger.entries() == []
