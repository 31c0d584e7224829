"""What tests of several folders share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres import Postgres

LEDGERS = [pytest.param("sqlite"), pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One server for all tests of a process."""
    with Postgres() as server:
        yield server


@pytest.fixture(params=LEDGERS)
def ledger_at(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a new ledger can be made: each test runs with a file and with PostgreSQL."""
    if request.param == "sqlite":
        return tmp_path / "ledger.sqlite"
    server: Postgres = request.getfixturevalue("postgres_server")
    return server.emptied()
