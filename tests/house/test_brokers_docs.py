"""docs/brokers.md says what the suite checks: the table with its notes, and the configurations that the brokers run with."""

from other_brokers import EJABBERD_YML, RABBITMQ_CONF
from repository import ROOT

import matrix

PAGE = (ROOT / "docs" / "brokers.md").read_text(encoding="utf-8")
AEDES = (ROOT / "tests" / "matrix" / "aedes" / "broker.mjs").read_text(encoding="utf-8")


def test_the_table_is_the_one_that_the_suite_checks() -> None:
    assert matrix.table() in PAGE


def test_every_scenario_is_a_test_and_every_test_a_scenario() -> None:
    suite = (ROOT / "tests" / "matrix" / "test_scenarios.py").read_text(encoding="utf-8")
    tests = [
        line.removeprefix("def ").partition("(")[0]
        for line in suite.splitlines()
        if line.startswith("def test_")
    ]
    assert tests == list(matrix.SCENARIOS)


def test_every_note_belongs_to_a_cell_of_the_table() -> None:
    assert {at for at in matrix.NOTES if at[0] not in matrix.SCENARIOS or at[1] not in matrix.SITES} == set()


def test_the_configurations_are_those_of_the_brokers_that_are_tested() -> None:
    assert RABBITMQ_CONF.format(port=1883) in PAGE
    assert EJABBERD_YML.format(port=1883).replace('"127.0.0.1"', '"::"') in PAGE
    assert AEDES.partition("\n")[2] in PAGE


def test_what_npm_installs_is_pinned_by_hashes_and_names_no_registry() -> None:
    lock = (ROOT / "tests" / "matrix" / "aedes" / "package-lock.json").read_text(encoding="utf-8")
    assert '"integrity"' in lock
    assert '"resolved"' not in lock
