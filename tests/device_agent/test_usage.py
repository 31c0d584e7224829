"""Evaluation counts on the device: what is counted, how it is kept while nobody takes it, and what is in none of it."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from admitted import History
from agent_shell import AgentShell
from local_server import ENTRIES
from publisher_simulator import NOW, PublisherSimulator
from releases import OFF

from flagcast_agent import usage as tallies
from flagcast_agent.api.answers import Answers
from flagcast_agent.api.questions import Question
from flagcast_agent.evaluator import Evaluator
from flagcast_agent.limits import SLICE_FLAGS
from flagcast_agent.store import writer
from flagcast_agent.store.writer import Store
from flagcast_agent.sync.events import (
    Counted,
    Delivered,
    DropUsage,
    Effect,
    FindUsage,
    KeepUsage,
    Log,
    Send,
    UsageFound,
    UsageNotKept,
)
from flagcast_agent.usage import Tally
from flagcast_shared.answers import BooleanAnswer, Reason, Resolution, VariantAnswer
from flagcast_shared.errors import InvalidCall, Malformed
from flagcast_shared.ids import Environment, FlagKey, Namespace
from flagcast_shared.reports import Count, Usage, decode_usage, encode_usage, split_counts

DEFAULT = Namespace("default")


def boolean(flag: str, *, enabled: bool = True) -> BooleanAnswer:
    return BooleanAnswer(FlagKey(flag), enabled, Reason.MATCH, (), Resolution.SPLIT)


def variant(flag: str, key: str) -> VariantAnswer:
    return VariantAnswer(FlagKey(flag), bool(key), key, '{"x": 1}', Reason.DEFAULT, (), Resolution.DEFAULT)


def batch(number: int, evaluations: int = 1, flag: str = "lights") -> Usage:
    counts = (Count(DEFAULT, FlagKey(flag), "true", "match", evaluations),)
    return Usage(number.to_bytes(16, "big"), NOW, NOW + 60, counts)


# What is counted


def test_a_flag_that_changed_its_kind_within_a_span_is_one_row() -> None:
    tally = Tally()
    tally.count(DEFAULT, boolean("lights"))
    tally.count(DEFAULT, replace(variant("lights", "true"), reason=Reason.MATCH))
    counts, _ = tally.take()
    assert counts == (Count(DEFAULT, FlagKey("lights"), "true", "match", 2),)
    assert decode_usage(encode_usage(Usage(bytes(16), 1, 2, counts))).counts == counts


def test_a_batch_with_equal_rows_is_refused() -> None:
    row = Count(DEFAULT, FlagKey("lights"), "true", "match", 1)
    twice = Usage(bytes(16), 1, 2, (row, row._replace(evaluations=2)))
    with pytest.raises(Malformed, match="the same flag, answer and reason twice"):
        decode_usage(encode_usage(twice))
    others = (row._replace(answer="false"), row._replace(reason="default"), row._replace(flag=FlagKey("x")))
    assert len(decode_usage(encode_usage(replace(twice, counts=(row, *others)))).counts) == 4


def test_answers_are_counted_by_namespace_flag_answer_and_reason() -> None:
    tally = Tally()
    for _ in range(3):
        tally.count(DEFAULT, boolean("lights"))
    tally.count(DEFAULT, boolean("lights", enabled=False))
    tally.count(Namespace("kiosk"), boolean("lights"))
    tally.count(DEFAULT, variant("theme", "dark"))
    tally.count(DEFAULT, variant("theme", ""))
    counts, dropped = tally.take()
    assert dropped == 0
    assert counts == (
        ("default", "lights", "false", "match", 1),
        ("default", "lights", "true", "match", 3),
        ("default", "theme", "", "default", 1),
        ("default", "theme", "dark", "default", 1),
        ("kiosk", "lights", "true", "match", 1),
    )
    assert tally.take() == ((), 0)


def test_a_name_that_no_reader_takes_costs_its_own_counts_and_no_others() -> None:
    tally = Tally()
    tally.count(DEFAULT, boolean("lights"))
    for _ in range(3):
        tally.count(DEFAULT, boolean("lights\x1b[2J"))
        tally.count(DEFAULT, variant("theme", "da\u202erk"))
    counts, dropped = tally.take()
    assert dropped == 6
    assert decode_usage(encode_usage(Usage(bytes(16), NOW, NOW, counts, dropped))).counts == (
        (DEFAULT, "lights", "true", "match", 1),
    )


def test_beyond_its_room_a_tally_counts_what_it_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "TALLY_MAX_COUNTS", 2)
    tally = Tally()
    for name in ("a", "b", "c", "a", "d"):
        tally.count(DEFAULT, boolean(name))
    counts, dropped = tally.take()
    assert [(each.flag, each.evaluations) for each in counts] == [("a", 2), ("b", 1)]
    assert dropped == 2


@pytest.fixture
def answers() -> Answers:
    evaluator = Evaluator({})
    evaluator.activate(History().begin(ENTRIES))
    evaluator.tally = Tally()
    return Answers(
        evaluator,
        environment=Environment("test"),
        default_namespace=DEFAULT,
        now=lambda: float(NOW),
        monotonic=lambda: 0.0,
        fresh_id=lambda: "id",
    )


def counted(answers: Answers) -> dict[tuple[str, str], int]:
    tally = answers._evaluator.tally
    assert tally is not None
    counts, _ = tally.take()
    return {(each.flag, each.answer): each.evaluations for each in counts}


def test_every_call_that_answers_is_counted_and_a_question_without_an_answer_is_not(answers: Answers) -> None:
    theme = answers.variant(Question("theme", "e")).answer.variant_key
    assert counted(answers) == {("theme", theme): 1}
    answers.batch([Question("theme", "e"), Question("theme", "e"), Question("nobody-knows-this-flag", "e")])
    assert counted(answers) == {("theme", theme): 2}
    with pytest.raises(InvalidCall):
        answers.boolean(Question("theme", "e"))
    answers.explain(Question("theme", "e"))
    begun = answers.batch_in_slices([Question("theme", "e")] * (SLICE_FLAGS + 1))
    assert next(begun) == 0, "a batch that is given up before its end"
    assert counted(answers) == {}


def test_no_entity_and_no_context_is_in_any_byte_sent_or_kept(answers: Answers, tmp_path: Path) -> None:
    secrets = ["entity-4711-secret", "property-secret", "value-secret", "flag-of-the-caller-secret"]
    entity, key, value, flag = secrets
    questions = [
        Question("theme", entity, {key: value}),
        Question(flag, entity, {key: value}),
        Question("theme", entity, {key: value}, namespace="namespace-secret"),
    ]
    answers.batch(questions)
    for question in questions[1:]:
        with pytest.raises(InvalidCall):
            answers.variant(question)
    tally = answers._evaluator.tally
    assert tally is not None
    counts, _ = tally.take()
    usage = Usage(bytes(16), NOW, NOW, counts)
    assert usage.evaluations == 1
    with closing(Store(tmp_path / "agent.db")) as store:
        store.keep_usage(usage)
        found = store.oldest_usage()
        assert found is not None
        sent = found[1]
        kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"theme" in sent
    assert b"theme" in kept
    for secret in [*secrets, "namespace-secret"]:
        assert secret.encode() not in sent
        assert secret.encode() not in kept


# On disk


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "agent.db")) as opened:
        yield opened


def drain(store: Store) -> list[Usage]:
    found = []
    while (oldest := store.oldest_usage()) is not None:
        number, payload = oldest
        found.append(decode_usage(payload))
        store.drop_usage(number)
    return found


def test_batches_wait_in_order_and_survive_a_restart(tmp_path: Path) -> None:
    for number in range(3):
        with closing(Store(tmp_path / "agent.db")) as store:
            store.keep_usage(batch(number))
    with closing(Store(tmp_path / "agent.db")) as store:
        assert drain(store) == [batch(number) for number in range(3)]
        assert store.oldest_usage() is None


def test_where_there_is_no_room_the_oldest_give_way_and_are_counted_as_dropped(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "USAGE_BATCHES_MAX", 3)
    for number in range(10):
        store.keep_usage(batch(number, evaluations=10))
    left = drain(store)
    assert [usage.batch[-1] for usage in left] == [7, 8, 9]
    assert sum(usage.evaluations + usage.dropped for usage in left) == 100, "every evaluation is somewhere"


def test_room_is_counted_in_bytes_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(encode_usage(batch(0)))
    monkeypatch.setattr(writer, "USAGE_BYTES_MAX", 4 * size)
    for number in range(9):
        store.keep_usage(batch(number))
    left = drain(store)
    assert 2 <= len(left) <= 4
    assert sum(usage.evaluations + usage.dropped for usage in left) == 9


def test_a_database_of_an_older_release_gets_its_table(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    Store(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE usage")
        connection.execute("DROP TABLE removed")
        connection.execute("PRAGMA user_version = 1")
        connection.commit()
    with closing(Store(path)) as store:
        store.keep_usage(batch(1))
        assert drain(store) == [batch(1)]


# On its way


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentShell]:
    publisher = PublisherSimulator()
    publisher.release(OFF)
    shell = AgentShell(tmp_path / "agent.db", publisher)
    yield shell
    shell.close()


def sent(effects: list[Effect]) -> list[Send]:
    return [each for each in effects if isinstance(each, Send) and each.topic.endswith("/metrics")]


def test_a_batch_is_kept_before_it_is_sent_and_dropped_when_it_was_taken(agent: AgentShell) -> None:
    agent.catch_up()
    effects = agent.handle(Counted((batch(1), batch(2))))
    assert [type(each) for each in effects[:3]] == [KeepUsage, KeepUsage, FindUsage]
    (first,) = sent(effects)
    assert first.topic == "flagcast/1/production/devices/device-1/metrics"
    assert decode_usage(first.payload) == batch(1)
    effects = agent.handle(Delivered(first.token, is_kept=True))
    assert isinstance(effects[0], DropUsage)
    (second,) = sent(effects)
    assert decode_usage(second.payload) == batch(2)
    assert sent(agent.handle(Delivered(second.token, is_kept=True))) == []
    assert agent.store.oldest_usage() is None


def test_what_was_not_acknowledged_is_sent_again_under_the_same_name(agent: AgentShell) -> None:
    agent.catch_up()
    (first,) = sent(agent.handle(Counted((batch(1),))))
    agent.disconnect()
    (again,) = sent(agent.reconnect())
    assert again.payload == first.payload
    assert agent.handle(Delivered(first.token, is_kept=True)) == [], "the answer to another connection's"
    assert agent.store.oldest_usage() is not None
    agent.handle(Delivered(again.token, is_kept=True))
    assert agent.store.oldest_usage() is None


def test_what_nobody_takes_is_kept_and_tried_once_a_span(agent: AgentShell) -> None:
    agent.catch_up()
    (first,) = sent(agent.handle(Counted((batch(1),))))
    assert sent(agent.handle(Delivered(first.token, is_kept=False, why="No matching subscribers"))) == []
    for _ in range(3):
        assert sent(agent.tick(60.0)) == []
    (again,) = sent(agent.handle(Counted(())))
    assert again.payload == first.payload


def test_what_the_broker_forbids_is_not_tried_again_in_this_connection(agent: AgentShell) -> None:
    agent.catch_up()
    (first,) = sent(agent.handle(Counted((batch(1),))))
    effects = agent.handle(Delivered(first.token, is_kept=False, may_retry=False, why="Not authorized"))
    assert [type(each) for each in effects] == [Log]
    assert sent(agent.handle(Counted((batch(2),)))) == []
    agent.disconnect()
    assert len(sent(agent.reconnect())) == 1


def test_nothing_is_sent_without_a_connection(agent: AgentShell) -> None:
    assert sent(agent.handle(Counted((batch(1),)))) == []
    assert sent(agent.connect()) != []


def test_what_the_disk_does_not_take_is_counted_as_dropped(agent: AgentShell) -> None:
    agent.catch_up()
    agent.handle(UsageNotKept(7))
    (keep,) = [each for each in agent.handle(Counted((batch(1),))) if isinstance(each, KeepUsage)]
    assert keep.batch.dropped == 7
    (keep,) = [each for each in agent.handle(Counted((batch(2),))) if isinstance(each, KeepUsage)]
    assert keep.batch.dropped == 0


def test_an_empty_disk_sends_nothing(agent: AgentShell) -> None:
    agent.catch_up()
    assert agent.handle(UsageFound(0, b"")) == []


def test_counts_are_split_so_that_each_batch_fits_a_message() -> None:
    counts = [
        Count(DEFAULT, FlagKey(f"{number:0>200}"), "v" * 200, "match", number + 1) for number in range(200)
    ]
    groups = split_counts(counts)
    assert len(groups) > 1
    assert [each for group in groups for each in group] == counts
    for group in groups:
        encode_usage(Usage(bytes(16), 2**62, 2**62, group, 10**12))
    assert split_counts([]) == []
