import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flagcast_bridge.ledger import (
    Ledger,
    LedgerBusy,
    LedgerCorrupt,
    LedgerError,
    LedgerTooNew,
    NumberUsed,
    lease,
)
from flagcast_bridge.planner import Issued, Plan, Terms, plan
from flagcast_shared.ids import Digest, Environment, Epoch, FlagKey, Namespace
from flagcast_shared.model import BooleanFlag

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
    ledger.confirm(NAMESPACE, first.head.sequence, first.head.stable.digest, NOW + 5)
    (entry,) = ledger.entries()
    assert (entry.state, entry.reserved, entry.published) == ("published", NOW, NOW + 5)
    assert entry.provenance == {"commit": "abc"}
    assert ledger.issued()[NAMESPACE] == Issued(first.head.stable.version, first.head.sequence, first.content)


def test_confirming_another_content_under_the_same_number_does_nothing(ledger: Ledger) -> None:
    first = next_plan(ledger, on=True)
    ledger.reserve([first], NOW)
    ledger.confirm(NAMESPACE, first.head.sequence, Digest(bytes(32)), NOW)
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
    ledger.confirm(NAMESPACE, first.head.sequence, first.head.stable.digest, NOW)
    ledger.close()
    again = Ledger(path, ENVIRONMENT)
    assert again.issued()[NAMESPACE].published == first.content
    again.close()


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
    ledger.confirm(NAMESPACE, first.head.sequence, first.head.stable.digest, NOW)
    other = next_plan(ledger, on=False).content
    assert other is not None
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
