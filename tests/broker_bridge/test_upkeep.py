"""When `flagcast serve` does what: the whole core, event by event, on a clock of the test's own."""

import pytest

from flagcast_bridge.serving import upkeep
from flagcast_bridge.serving.upkeep import (
    Asked,
    Connect,
    Connected,
    ConnectFailed,
    Disconnected,
    Effect,
    Event,
    LedgerHeld,
    Level,
    Link,
    Missed,
    Received,
    Say,
    Ticked,
    Turn,
    Turned,
    TurnFailed,
    Unreadable,
    Upkeep,
)
from flagcast_shared.ids import Digest, Namespace

NOW = 1_800_000_000
HEAD = "flagcast/1/test/flags/default/head"
GOOD, BAD = Digest(b"g" * 32), Digest(b"b" * 32)


class Clockwork:
    """The core and its clocks. `tell` gives an event and returns what is to be done; `wait` lets time pass until a deadline."""

    def __init__(self) -> None:
        self.core = Upkeep()
        self.monotonic = 1_000.0
        self.jitter = 0.5

    def tell(self, event: Event) -> list[Effect]:
        now = NOW + int(self.monotonic - 1_000)
        return list(self.core.handle(event, now=now, monotonic=self.monotonic, jitter=self.jitter))

    def wait(self) -> tuple[float, list[Effect]]:
        """The seconds until the next deadline, and what is to be done then."""
        seconds = max(0.0, self.core.next_deadline() - self.monotonic)
        self.monotonic += seconds
        return seconds, self.tell(Ticked())

    def pass_over(self, seconds: float) -> None:
        self.monotonic += seconds


@pytest.fixture
def clockwork() -> Clockwork:
    return Clockwork()


@pytest.fixture
def settled(clockwork: Clockwork) -> Clockwork:
    """Connected, and the first turn is over."""
    assert clockwork.wait() == (0.0, [Connect()])
    clockwork.tell(Connected())
    assert clockwork.wait() == (0.0, [Turn("connected")])
    assert clockwork.tell(Turned({HEAD: GOOD}, None)) == []
    return clockwork


def said(effects: list[Effect]) -> list[str]:
    return [effect.message for effect in effects if isinstance(effect, Say)]


def test_it_connects_first_and_looks_on_every_connection(settled: Clockwork) -> None:
    links = [settled.core.link]
    assert said(settled.tell(Disconnected("gone"))) == ["connection lost"]
    links.append(settled.core.link)
    assert links == [Link.HEARING, Link.WAITING]
    _, effects = settled.wait()
    assert effects == [Connect()]
    settled.tell(Connected())
    assert settled.wait() == (0.0, [Turn("connected")])


def test_what_stands_there_as_it_should_wakes_nobody(settled: Clockwork) -> None:
    settled.tell(Received(HEAD, GOOD))
    seconds, effects = settled.wait()
    assert (seconds, effects) == (upkeep.CHECK_SECONDS, [Turn("timer")])


@pytest.mark.parametrize(
    "event", [Received(HEAD, BAD), Received("flagcast/1/test/flags/other/head", GOOD), Missed()]
)
def test_what_is_unexpected_is_looked_at_soon(settled: Clockwork, event: Event) -> None:
    settled.pass_over(100)
    settled.tell(event)
    seconds, effects = settled.wait()
    assert seconds == upkeep.SETTLE_SECONDS
    assert [type(effect) for effect in effects] == [Turn]


def test_somebody_who_writes_without_end_does_not_keep_it_busy_without_end(settled: Clockwork) -> None:
    settled.pass_over(100)
    turns = 0
    for _ in range(600):
        settled.tell(Received(HEAD, BAD))
        settled.pass_over(0.1)
        for effect in settled.tell(Ticked()):
            assert isinstance(effect, Turn)
            turns += 1
            settled.tell(Turned({HEAD: GOOD}, None))
    assert 10 < turns <= 60 / upkeep.TURN_PAUSE_SECONDS + 1


@pytest.mark.parametrize(
    ("due", "seconds"),
    [
        (None, upkeep.CHECK_SECONDS),
        (NOW + 100_000, upkeep.CHECK_SECONDS),
        (NOW + 90, 90.0),
        (NOW - 5, upkeep.TURN_PAUSE_SECONDS),
    ],
)
def test_the_next_turn_is_when_something_is_due_and_at_the_latest_by_the_timer(
    clockwork: Clockwork, due: int | None, seconds: float
) -> None:
    clockwork.wait()
    clockwork.tell(Connected())
    clockwork.wait()
    clockwork.tell(Turned({}, due))
    waited, effects = clockwork.wait()
    assert waited == seconds
    assert effects == [Turn("timer" if seconds == upkeep.CHECK_SECONDS else "due")]


def test_a_whole_fleet_that_asks_is_answered_at_once_and_a_few_times_an_interval(settled: Clockwork) -> None:
    settled.pass_over(100)
    waits = []
    for _ in range(upkeep.REFRESH_BURST + 1):
        for _ in range(1_000):
            settled.tell(Asked())
        seconds, effects = settled.wait()
        assert effects == [Turn("a device asked", repeats=frozenset())]
        waits.append(seconds)
        settled.tell(Turned({HEAD: GOOD}, None, has_repeated=True))
        settled.pass_over(10)
    *first, last = waits
    assert set(first) == {upkeep.SETTLE_SECONDS}
    spent = upkeep.REFRESH_BURST * 10 + (upkeep.REFRESH_BURST - 1) * upkeep.SETTLE_SECONDS
    assert last == upkeep.REFRESH_SECONDS - spent


A, B = Namespace("a"), Namespace("b")
MANY = [Namespace(f"n{number}") for number in range(upkeep.NAMED_MAX + 1)]


@pytest.mark.parametrize(
    ("requests", "repeats"),
    [
        ([{A}], {A}),
        ([{A}, {B}, {A}], {A, B}),
        ([{A}, set()], set()),
        ([set(), {A}], set()),
        ([{name} for name in MANY[:-1]], set(MANY[:-1])),
        ([{name} for name in MANY], set()),
        ([*({name} for name in MANY), {A}], set()),
    ],
    ids=["one", "two", "any at last", "any at first", "many", "too many", "one after too many"],
)
def test_what_devices_name_is_published_again_and_nothing_else(
    settled: Clockwork, requests: list[set[Namespace]], repeats: set[Namespace]
) -> None:
    settled.pass_over(100)
    for names in requests:
        settled.tell(Asked(frozenset(names)))
    assert settled.wait()[1] == [Turn("a device asked", frozenset(repeats))]
    settled.tell(Turned({HEAD: GOOD}, None, has_repeated=True))
    settled.tell(Asked(frozenset({B})))
    assert settled.wait()[1] == [Turn("a device asked", frozenset({B}))], "what was answered is forgotten"


def test_requests_that_cannot_be_read_are_told_once_an_hour_and_cause_nothing(settled: Clockwork) -> None:
    deadline = settled.core.next_deadline()
    assert said(settled.tell(Unreadable("devices/d/refresh: 1 byte"))) == [
        "a device's request cannot be read and is passed over"
    ]
    for _ in range(1_000):
        assert settled.tell(Unreadable("devices/e/refresh: 1 byte")) == []
    assert settled.core.next_deadline() == deadline
    settled.pass_over(upkeep.SAY_AGAIN_SECONDS)
    assert len(settled.tell(Unreadable("devices/d/refresh: 1 byte"))) == 1


def test_a_held_ledger_is_waited_for_and_named_once(settled: Clockwork) -> None:
    settled.pass_over(100)
    settled.tell(Asked())
    settled.wait()
    assert said(settled.tell(LedgerHeld("process 1"))) == ["waiting"]
    for _ in range(3):
        seconds, effects = settled.wait()
        assert (seconds, len(effects)) == (upkeep.LEASE_PAUSE_SECONDS, 1)
        assert said(settled.tell(LedgerHeld("process 1"))) == []
    settled.wait()
    settled.tell(Turned({}, None, has_repeated=True))
    settled.wait()
    assert said(settled.tell(LedgerHeld("process 2"))) == ["waiting"]


def test_a_turn_that_failed_is_tried_again_with_growing_pauses(settled: Clockwork) -> None:
    settled.jitter = 1.0
    pauses = []
    for _ in range(12):
        settled.tell(TurnFailed("disk full"))
        seconds, effects = settled.wait()
        assert [type(effect) for effect in effects] == [Turn]
        pauses.append(seconds)
    assert pauses == [2.0, 3.0, 5.0, 9.0, 17.0, 33.0, 65.0, 129.0, 257.0, 300.0, 300.0, 300.0]
    settled.tell(Turned({}, None))
    settled.tell(TurnFailed("disk full"))
    assert settled.wait()[0] == 2.0


@pytest.mark.parametrize(("is_refused", "longest"), [(False, 2.0), (True, 31.0)])
def test_connecting_is_tried_again_with_full_jitter_and_a_cap(
    clockwork: Clockwork, is_refused: bool, longest: float
) -> None:
    for jitter, expected in ((0.0, 1.0), (1.0, None)):
        fresh = Clockwork()
        fresh.jitter = jitter
        fresh.tell(ConnectFailed("refused", is_refused))
        assert fresh.wait() == (expected or longest, [Connect()])
    clockwork.jitter = 1.0
    waits = []
    for _ in range(40):
        clockwork.tell(ConnectFailed("refused", is_refused))
        waits.append(clockwork.wait()[0])
    assert waits == sorted(waits)
    assert waits[-1] == upkeep.BACKOFF_CAP_SECONDS


def test_only_a_connection_that_held_starts_the_backoff_afresh(clockwork: Clockwork) -> None:
    clockwork.jitter = 1.0

    def drop_after(seconds: float) -> float:
        clockwork.tell(Connected())
        clockwork.pass_over(seconds)
        clockwork.tell(Disconnected("gone"))
        return clockwork.wait()[0]

    assert [drop_after(1) for _ in range(3)] == [2.0, 3.0, 5.0]
    assert drop_after(upkeep.STABLE_AFTER_SECONDS) == 2.0


def test_a_warning_that_still_holds_is_repeated_once_an_hour(settled: Clockwork) -> None:
    line = "default: a new head is due, 2 keys must sign it and 1 is here"

    def turn() -> list[Effect]:
        return settled.tell(Turned({}, None, (line,)))

    assert turn() == [Say(Level.WARNING, line)]
    settled.pass_over(600)
    assert turn() == []
    settled.pass_over(upkeep.SAY_AGAIN_SECONDS)
    assert said(turn()) == [line]
    settled.tell(Turned({}, None))  # it was put right
    assert said(turn()) == [line]


def test_events_of_a_connection_that_is_gone_change_nothing(clockwork: Clockwork) -> None:
    clockwork.tell(ConnectFailed("refused"))
    deadline = clockwork.core.next_deadline()
    assert clockwork.tell(Disconnected("late")) == []
    clockwork.tell(Received(HEAD, BAD))
    clockwork.tell(Asked())
    assert clockwork.core.next_deadline() == deadline
