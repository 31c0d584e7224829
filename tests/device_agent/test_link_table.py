"""The link's table: every row is walked through the core, and the document shows the same rows."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_shell import AgentShell
from publisher_simulator import PublisherSimulator, SigningKey
from releases import OFF, ON
from repository import ROOT

from flagcast_agent.sync import connection, events
from flagcast_agent.sync.connection import BrokerLink
from flagcast_agent.sync.events import (
    Connected,
    ConnectFailed,
    Disconnect,
    Disconnected,
    Fault,
    Received,
    Started,
    Subscribed,
    Ticked,
    Woken,
)
from flagcast_agent.sync.transitions import CONNECTED, TRANSITIONS, WAITING, Cause, LinkState, Waits

Step = Callable[[AgentShell], object]
Row = tuple[LinkState, Cause]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentShell]:
    publisher = PublisherSimulator()
    publisher.release(OFF)
    shell = AgentShell(tmp_path / "agent.db", publisher)
    yield shell
    shell.close()


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Every move that a core makes."""
    made: list[Row] = []
    move = BrokerLink.move

    def noted(link: BrokerLink, cause: Cause, monotonic: float) -> None:
        made.append((link.state, cause))
        move(link, cause, monotonic)

    monkeypatch.setattr(BrokerLink, "move", noted)
    return made


def bring(agent: AgentShell, state: LinkState) -> None:
    """An agent that has got into a state the usual way."""
    if state is LinkState.DISCONNECTED:
        return
    agent.handle(Started())
    match state:
        case LinkState.SUBSCRIBING:
            agent.is_mute = True
            agent.handle(Connected())
            agent.is_mute = False
        case LinkState.SYNCING:
            agent.handle(Connected())
        case LinkState.LIVE:
            agent.handle(Connected())
            agent.settle()
        case LinkState.BACKING_OFF:
            agent.handle(ConnectFailed(Fault.NETWORK, "no route"))
        case LinkState.REFUSED:
            agent.handle(ConnectFailed(Fault.REFUSED, "not authorized"))
        case _:
            pass
    assert agent.sync.connection.state is state


def filters(agent: AgentShell) -> tuple[str, ...]:
    return agent.publisher.root_topic(agent.sync.trusted.root.number + 1), agent.publisher.head_topic


def head(agent: AgentShell) -> Received:
    return Received(agent.publisher.head_topic, agent.publisher.retained[agent.publisher.head_topic])


def news(agent: AgentShell) -> None:
    agent.publisher.release(ON, delta=False)
    agent.handle(head(agent))


def a_new_root(agent: AgentShell) -> None:
    agent.publisher.rotate(publisher_keys=[SigningKey("publisher-b")])
    topic = agent.publisher.root_topic(2)
    agent.is_mute = True
    agent.deliver(topic, agent.publisher.retained[topic])


def asked_for(agent: AgentShell) -> None:
    agent.is_mute = True
    agent.tick(1.0)
    agent.handle(Woken())


def wait_is_over(agent: AgentShell) -> None:
    deadline = agent.sync.next_deadline()
    assert deadline is not None
    agent.tick(deadline - agent.monotonic)


def no_suback(agent: AgentShell) -> None:
    assert Disconnect() in agent.tick(connection.ANSWER_PATIENCE_SECONDS)


def no_connack(agent: AgentShell) -> None:
    assert Disconnect() in agent.tick(connection.TRIAL_PATIENCE_SECONDS)


def all_denied(agent: AgentShell) -> None:
    assert Disconnect() in agent.handle(Subscribed(filters(agent), filters(agent), "Not authorized"))


def full_disk(agent: AgentShell) -> None:
    agent.fail_persisting = True
    agent.publisher.release(ON, inline=True)
    agent.handle(head(agent))


WALKS: list[tuple[LinkState, Cause, Step]] = [
    (LinkState.DISCONNECTED, Cause.STARTED, lambda agent: agent.handle(Started())),
    (LinkState.CONNECTING, Cause.ACCEPTED, lambda agent: agent.handle(Connected())),
    (LinkState.CONNECTING, Cause.FAILED, lambda agent: agent.handle(ConnectFailed(Fault.NETWORK, "x"))),
    (LinkState.CONNECTING, Cause.FAILED, lambda agent: agent.handle(ConnectFailed(Fault.PROTOCOL, "x"))),
    (LinkState.CONNECTING, Cause.FAILED, no_connack),
    (LinkState.CONNECTING, Cause.DENIED, lambda agent: agent.handle(ConnectFailed(Fault.REFUSED, "x"))),
    (LinkState.SUBSCRIBING, Cause.SUBSCRIBED, lambda agent: agent.handle(Subscribed(filters(agent)))),
    (LinkState.SUBSCRIBING, Cause.AGAIN, a_new_root),
    (LinkState.SUBSCRIBING, Cause.DENIED, all_denied),
    (LinkState.SUBSCRIBING, Cause.DENIED, lambda agent: agent.handle(Disconnected("x", Fault.REFUSED))),
    (LinkState.SUBSCRIBING, Cause.LOST, lambda agent: agent.handle(Disconnected("x"))),
    (LinkState.SUBSCRIBING, Cause.LOST, no_suback),
    (LinkState.SYNCING, Cause.SETTLED, lambda agent: agent.settle()),
    (LinkState.SYNCING, Cause.AGAIN, a_new_root),
    (LinkState.SYNCING, Cause.AGAIN, asked_for),
    (LinkState.SYNCING, Cause.DENIED, lambda agent: agent.handle(Disconnected("x", Fault.REFUSED))),
    (LinkState.SYNCING, Cause.LOST, lambda agent: agent.handle(Disconnected("x"))),
    (LinkState.LIVE, Cause.WANTED, news),
    (LinkState.LIVE, Cause.WANTED, full_disk),
    (LinkState.LIVE, Cause.AGAIN, a_new_root),
    (LinkState.LIVE, Cause.AGAIN, asked_for),
    (LinkState.LIVE, Cause.DENIED, lambda agent: agent.handle(Disconnected("x", Fault.REFUSED))),
    (LinkState.LIVE, Cause.LOST, lambda agent: agent.handle(Disconnected("x"))),
    (LinkState.BACKING_OFF, Cause.DUE, wait_is_over),
    (LinkState.BACKING_OFF, Cause.DUE, asked_for),
    (LinkState.REFUSED, Cause.DUE, wait_is_over),
    (LinkState.REFUSED, Cause.DUE, asked_for),
]


@pytest.mark.parametrize(("state", "cause", "step"), WALKS, ids=lambda value: getattr(value, "name", ""))
def test_every_row_is_walked(
    agent: AgentShell, moves: list[Row], state: LinkState, cause: Cause, step: Step
) -> None:
    bring(agent, state)
    moves.clear()
    step(agent)
    assert moves[0] == (state, cause)
    assert all(row in TRANSITIONS for row in moves)


def test_no_row_is_left_out_above() -> None:
    assert {(state, cause) for state, cause, _ in WALKS} == set(TRANSITIONS)


EVENTS: list[events.Event] = [
    Started(),
    Connected(),
    ConnectFailed(Fault.NETWORK, "x"),
    ConnectFailed(Fault.REFUSED, "x"),
    Disconnected("x"),
    Disconnected("x", Fault.REFUSED),
    Subscribed(("other",), ("other",), "x"),
    Ticked(),
    events.Delivered(99, is_kept=True),
    events.UsageFound(0, b""),
    events.Counted(()),
]
HEARD_IN: dict[type[events.Event], frozenset[LinkState]] = {
    Started: frozenset({LinkState.DISCONNECTED}),
    Connected: frozenset({LinkState.CONNECTING}),
    ConnectFailed: frozenset({LinkState.CONNECTING}),
    Disconnected: CONNECTED,
}


@pytest.mark.parametrize("state", LinkState)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_what_has_no_row_in_a_state_moves_nothing(
    agent: AgentShell, moves: list[Row], state: LinkState, event: events.Event
) -> None:
    bring(agent, state)
    moves.clear()
    agent.handle(event)
    if state in HEARD_IN.get(type(event), frozenset()):
        assert moves
    else:
        assert moves == []
        assert agent.sync.connection.state is state


@pytest.mark.parametrize("state", LinkState)
def test_a_message_of_a_connection_that_stands_no_more_is_passed_over(
    agent: AgentShell, state: LinkState
) -> None:
    bring(agent, state)
    held = dict(agent.sync.trusted.holdings)
    effects = agent.handle(Received(agent.publisher.root_topic(2), b"garbage"))
    assert (effects != []) == (state in CONNECTED)
    assert agent.sync.trusted.holdings == held


def test_since_is_when_the_connection_was_made_or_lost(agent: AgentShell) -> None:
    agent.connect()
    made = agent.sync.connection.since
    agent.monotonic += 100
    agent.settle()
    assert agent.sync.connection.state is LinkState.LIVE
    assert agent.sync.connection.since == made == agent.monotonic - 100
    agent.disconnect()
    assert agent.sync.connection.since == agent.monotonic
    lost = agent.monotonic
    wait_is_over(agent)
    assert agent.monotonic > lost
    assert agent.sync.connection.state.value == "connecting"
    assert agent.sync.connection.since == lost


def test_every_state_can_be_reached_and_left() -> None:
    reached = set(TRANSITIONS.values())
    assert reached == set(LinkState) - {LinkState.DISCONNECTED}
    assert {state for state, _ in TRANSITIONS} == set(LinkState)
    assert {cause for _, cause in TRANSITIONS} == set(Cause)
    assert CONNECTED.isdisjoint(WAITING)


def test_a_refusal_does_not_lengthen_the_waits_of_a_weak_network() -> None:
    waits = Waits()
    for _ in range(8):
        waits.after_refusal(0.5)
    assert waits.after_failure(0.5) == Waits().after_failure(0.5)


def test_the_document_shows_the_table() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page[page.index("### The link") :]
    rows = re.findall(r"^\| `([a-z ]+)` \| ([^|]+) \| `([a-z ]+)` \|$", section, re.MULTILINE)
    assert [(state.value, cause.value, after.value) for (state, cause), after in TRANSITIONS.items()] == rows
