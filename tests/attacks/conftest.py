"""A publisher with one release out, and an agent that has admitted it and is connected."""

from collections.abc import Iterator
from pathlib import Path

import agent_shell
import pytest
from agent_shell import AgentShell
from publisher_simulator import PublisherSimulator

from flagcast_agent.store.writer import Store
from flagcast_shared.ids import FlagKey, SegmentKey, VariantKey
from flagcast_shared.model import (
    BooleanFlag,
    Constraint,
    ConstraintType,
    Distribution,
    Join,
    Match,
    Operator,
    Rule,
    Segment,
    Variant,
    VariantFlag,
)

OLD = (
    BooleanFlag(FlagKey("beta"), enabled=False),
    Segment(
        SegmentKey("some"),
        Match.ANY,
        (Constraint(ConstraintType.ENTITY, "", Operator.SUFFIX, "1"),),
    ),
    VariantFlag(
        FlagKey("color"),
        enabled=True,
        variants=(Variant(VariantKey("red")), Variant(VariantKey("blue"))),
        rules=(
            Rule(
                (SegmentKey("some"),),
                Join.OR,
                (Distribution(VariantKey("red"), 500), Distribution(VariantKey("blue"), 1000)),
            ),
        ),
    ),
)


@pytest.fixture(autouse=True)
def databases_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes every database of an agent that was begun anew: one left open is a warning in whichever test it is collected."""
    opened: list[Store] = []

    def store(path: Path) -> Store:
        opened.append(Store(path))
        return opened[-1]

    monkeypatch.setattr(agent_shell, "Store", store)
    yield
    for each in opened:
        each.close()


@pytest.fixture
def publisher() -> PublisherSimulator:
    simulator = PublisherSimulator()
    simulator.release(*OLD)
    return simulator


@pytest.fixture
def agent(publisher: PublisherSimulator, tmp_path: Path) -> Iterator[AgentShell]:
    shell = AgentShell(tmp_path / "agent.db", publisher)
    shell.catch_up()
    assert shell.sync.reporting.rejections == {}
    assert shell.evaluator.knowledge(publisher.namespace).version == 1
    yield shell
    shell.close()
