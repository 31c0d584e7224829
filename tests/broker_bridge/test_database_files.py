"""The files of ledger and usage book: their modes under any umask, and the lock beside them."""

import subprocess
import sys
from pathlib import Path

import pytest

from flagcast_bridge.ledger.database import DatabaseError, Sqlite

MAKE = """
import os, pathlib, sys
os.umask(int(sys.argv[1]))
from flagcast_bridge.ledger.ledger import Ledger, UsageBook
from flagcast_shared.ids import Environment
made = Ledger(pathlib.Path("ledger.sqlite"), Environment("test")), UsageBook(pathlib.Path("usage.sqlite"), Environment("test"), 0)
for name in sorted(os.listdir(".")):
    print(name, oct(os.stat(name).st_mode & 0o777))
"""


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_ledger_and_usage_book_have_mode_0640_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAKE, str(umask)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = dict(line.split() for line in done.stdout.splitlines())
    expected = {f"{name}.sqlite{suffix}" for name in ("ledger", "usage") for suffix in ("", "-wal", "-shm")}
    assert expected <= found.keys()
    assert {name: found[name] for name in expected} == dict.fromkeys(expected, "0o640")


def test_no_lock_is_taken_through_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "ledger.sqlite.lock").symlink_to(elsewhere)
    database = Sqlite(tmp_path / "ledger.sqlite")
    try:
        with pytest.raises(DatabaseError, match=r"ledger\.sqlite\.lock: a symbolic link.*remove it"):
            database.guard("run")
        assert not elsewhere.exists()
        (tmp_path / "ledger.sqlite.lock").unlink()
        assert database.guard("run")
    finally:
        database.close()
