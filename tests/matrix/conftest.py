"""One broker of the matrix for all scenarios on it, a fleet of its own for each, and the table at the end."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sites
from publishing import Flagcast
from sites import Fleet, Site
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # ships none

import matrix
from flagcast_bridge.broker import connection as mqtt

ASKED = ("no head was heard; asking", "content did not arrive; asking")


def param(name: str) -> object:
    """A broker as a parameter of `site`, with its marker."""
    marks = [getattr(pytest.mark, name.partition("-")[0])]
    return pytest.param(name, marks=[*marks, pytest.mark.variant] if name in matrix.VARIANTS else marks)


class ByBroker(LoadScopeScheduling):  # type: ignore[misc]  # without types
    """All scenarios of a broker in one process, which starts it once."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.rpartition("[")[2]


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByBroker | None:
    """For --dist loadscope, whose scopes are modules otherwise."""
    return ByBroker(config, log) if config.getoption("dist") == "loadscope" else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    scenario = metafunc.function.__name__
    if scenario in matrix.SCENARIOS:
        names = [name for name in matrix.SITES if matrix.NOTES.get((scenario, name)) is not matrix.ONE_SERVER]
        metafunc.parametrize("site", [param(name) for name in names], indirect=True, scope="session")


@pytest.fixture(scope="session")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with sites.start(request.param, tmp_path_factory.mktemp("site") / "broker") as started:
        yield started


@pytest.fixture
def note(request: pytest.FixtureRequest, site: Site) -> matrix.Note | None:
    """What the table notes of this scenario on this broker."""
    return matrix.NOTES.get((request.function.__name__, site.name))


@pytest.fixture
def fleet(
    site: Site,
    note: matrix.Note | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Fleet]:
    # On this machine a broker has sent all retained messages long before the time that networks are given.
    monkeypatch.setattr(mqtt, "QUIET_SECONDS", 0.2)
    if site.name == "amqtt":
        site.crash()  # it sends clients what others asked for, so one scenario would hear all that were before
    with sites.fleet(site, tmp_path, Flagcast(tmp_path / "fleet", capsys)) as made:
        if note in (matrix.SERVE, matrix.OTHER_NODE):
            made.serve()
        yield made
    if note is matrix.SERVE:
        logs = [(device.folder / "log").read_text() for device in made.devices]
        assert any(line in log for log in logs for line in ASKED), (
            "it works without help, and the note is wrong"
        )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Every cell that was tested: what the table says where it holds, and FAILED where it does not."""
    failed, passed = set[str](), set[str]()
    for outcome, found in (("failed", failed), ("error", failed), ("passed", passed)):
        found |= {
            each.nodeid.rpartition("::")[2].partition("@")[0]
            for each in terminalreporter.stats.get(outcome, [])
        }
    cells = {
        (scenario, site): "FAILED" if f"{scenario}[{site}]" in failed else matrix.cell(scenario, site)
        for scenario in matrix.SCENARIOS
        for site in matrix.SITES
        if f"{scenario}[{site}]" in failed | passed
    }
    if not cells:
        return
    columns = [site for site in matrix.SITES if any(at == site for _, at in cells)]
    terminalreporter.section("brokers")
    rows = [["", *columns]]
    for scenario, title in matrix.SCENARIOS.items():
        rows.append([title, *(cells.get((scenario, site), "") for site in columns)])
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        terminalreporter.write_line(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        )
    for number, each in enumerate(matrix.notes(), 1):
        terminalreporter.write_line(f"[{number}] {each.text}")
