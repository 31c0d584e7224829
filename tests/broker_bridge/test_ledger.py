import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flagcast_bridge.ledger import (
    SCHEMA_VERSION,
    Ledger,
    LedgerBusy,
    LedgerCorrupt,
    LedgerError,
    LedgerTooNew,
    NumberUsed,
    lease,
)
from flagcast_bridge.planner import Issued, Past, Plan, Terms, named, plan
from flagcast_shared.ids import Digest, Environment, Epoch, FlagKey, Namespace, Sequence, Version
from flagcast_shared.model import BooleanFlag
from flagcast_shared.topics import Address, DeltaAddress, HeadAddress, SnapshotAddress

ENVIRONMENT = Environment("test")
NAMESPACE = Namespace("default")
NOW = 1_800_000_000

# A publisher that reserves, says so, and is killed before it can publish or confirm.
RESERVE_AND_DIE = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_ledger import ENVIRONMENT, next_plan
from flagcast_bridge.ledger import Ledger
ledger = Ledger(Path(sys.argv[2]), ENVIRONMENT)
ledger.reserve([next_plan(ledger, on=True)], 1)
os.kill(os.getpid(), signal.SIGKILL)
"""
HOLD = """
import sys
from pathlib import Path
from flagcast_bridge.ledger import lease
with lease(Path(sys.argv[1]), "process 4711 on a.example, since noon"):
    print("held", flush=True)
    sys.stdin.read()
"""


def next_plan(ledger: Ledger, *, on: bool) -> Plan:
    issued = ledger.issued().get(NAMESPACE, Issued())
    terms = Terms(ENVIRONMENT, Epoch(1), NOW, 3600, 60_000, provenance={"commit": "abc"})
    return plan(NAMESPACE, [BooleanFlag(FlagKey("a"), on)], None, issued, terms)


def numbers(done: Plan) -> tuple[int, int]:
    return done.head.stable.version, done.head.sequence


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = Ledger(path, ENVIRONMENT)
    yield opened
    opened.close()


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


def test_a_number_is_never_used_again_when_the_process_is_killed_before_it_publishes(path: Path) -> None:
    for attempt in (1, 2):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", RESERVE_AND_DIE, str(Path(__file__).parent), str(path)],
            check=False,
        )
        assert done.returncode == -signal.SIGKILL
        ledger = Ledger(path, ENVIRONMENT)
        assert [(entry.version, entry.state) for entry in ledger.entries()] == [
            (version, "reserved") for version in range(attempt, 0, -1)
        ]
        assert numbers(next_plan(ledger, on=True)) == (attempt + 1, attempt + 1)
        ledger.close()


def test_environments_do_not_share_numbers(path: Path, ledger: Ledger) -> None:
    ledger.reserve([next_plan(ledger, on=True)], NOW)
    other = Ledger(path, Environment("other"))
    assert (other.issued(), other.entries()) == ({}, [])
    other.close()


def test_what_was_published_is_there_after_closing(path: Path) -> None:
    ledger = Ledger(path, ENVIRONMENT)
    first = next_plan(ledger, on=True)
    ledger.reserve([first], NOW)
    ledger.confirm(first.head, NOW, {})
    ledger.close()
    again = Ledger(path, ENVIRONMENT)
    assert again.issued()[NAMESPACE].published == first.contents[0]
    again.close()


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
    other = Ledger(tmp_path / "other.sqlite", ENVIRONMENT)
    foreign = publish(other, next_plan(other, on=True))
    other.close()
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
    assert ledger._database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
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
    ledger.confirm(replace(first.head, sequence=Sequence(2)), NOW + 9, {})
    assert ledger.entries()[0].state == "published"
    ledger.close()
    Ledger(path, ENVIRONMENT).close()


def test_the_disk_is_waited_for(ledger: Ledger, path: Path) -> None:
    database = ledger._database
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_damaged_ledger_is_refused_with_what_to_do_and_left_as_it_is(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be looked at" * 40)
    before = path.read_bytes()
    with pytest.raises(LedgerCorrupt, match="restore it from a backup"):
        Ledger(path, ENVIRONMENT)
    assert path.read_bytes() == before


def test_a_content_that_the_disk_returns_changed_is_refused(path: Path, ledger: Ledger) -> None:
    first = next_plan(ledger, on=True)
    ledger.reserve([first], NOW)
    ledger.confirm(first.head, NOW, {})
    (other,) = next_plan(ledger, on=False).contents
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE content SET body = ?", [other.body])
    connection.close()
    with pytest.raises(LedgerCorrupt, match="not what was written"):
        ledger.issued()


def test_a_ledger_of_a_later_release_is_refused(path: Path) -> None:
    Ledger(path, ENVIRONMENT).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(LedgerTooNew, match="schema 99"):
        Ledger(path, ENVIRONMENT)


def test_a_ledger_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="absent"):
        Ledger(tmp_path / "absent" / "ledger.sqlite", ENVIRONMENT)
    with pytest.raises(LedgerError, match="absent"), lease(tmp_path / "absent" / "ledger.sqlite", "me"):
        pass


def test_a_second_publisher_is_told_who_is_at_work_and_gets_its_turn_when_that_one_is_killed(
    path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as rival:
        assert rival.stdout is not None
        assert rival.stdout.readline() == b"held\n"
        with (
            pytest.raises(LedgerBusy, match=r"process 4711 on a\.example, since noon"),
            lease(path, "a longer text than the other one had, so that a rest of it would show"),
        ):
            pytest.fail("two publishers at once")
        rival.kill()
        rival.wait()
    with lease(path, "me"):
        assert path.with_name("ledger.sqlite.lock").read_text() == "me"
    with lease(path, "me"):
        pass
