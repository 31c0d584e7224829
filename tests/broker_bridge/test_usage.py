"""What devices counted, added up once, whatever the broker or the power does in between."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from publishing import Flagcast, features, make_project

from brokers import Broker, start_mosquitto
from flagcast_bridge import project
from flagcast_bridge.broker import connection as mqtt
from flagcast_bridge.fleet.collector import QUIET_SECONDS
from flagcast_bridge.ledger import ledger
from flagcast_bridge.ledger.ledger import USAGE_REMEMBERED_SECONDS, LedgerError, TooManyBatches, UsageBook
from flagcast_shared.ids import DeviceId, Environment, FlagKey, Namespace
from flagcast_shared.limits import NUMBER_MAX, USAGE_COUNT_MAX
from flagcast_shared.reports import Count, Usage, decode_usage, encode_usage
from flagcast_shared.topics import DeviceAddress

NOW = 1_750_000_000
DAY = 86_400
TEST = Environment("test")
A, B = DeviceId("a"), DeviceId("b")
PATIENCE_SECONDS = 100.0


def batch(number: int, evaluations: int = 1, *, flag: str = "lights", dropped: int = 0) -> Usage:
    counts = (Count(Namespace("default"), FlagKey(flag), "true", "match", evaluations),)
    return Usage(number.to_bytes(16, "big"), NOW, NOW + 60, counts, dropped)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[UsageBook]:
    with closing(UsageBook(tmp_path / "usage.sqlite", TEST, NOW)) as opened:
        yield opened


def total(book: UsageBook, since: int = 0) -> int:
    return sum(each.evaluations for each in book.totals(since))


def test_a_batch_is_added_once_however_often_it_comes(book: UsageBook) -> None:
    assert book.take(A, batch(1, 10), NOW)
    for _ in range(3):
        assert not book.take(A, batch(1, 10), NOW + 1)
    assert total(book) == 10
    assert book.take(B, batch(1, 10), NOW), "the same name of another device is another batch"
    assert total(book) == 20
    assert book.batches(0) == (2, 2, 0)


def test_sums_are_by_day_flag_answer_and_reason(book: UsageBook) -> None:
    book.take(A, batch(1, 10), NOW)
    book.take(A, batch(2, 5, dropped=3), NOW + 2 * DAY)
    book.take(A, batch(3, 7, flag="theme"), NOW + 2 * DAY)
    assert [(each.flag, each.evaluations) for each in book.totals(0)] == [("lights", 15), ("theme", 7)]
    assert [(each.flag, each.evaluations) for each in book.totals(NOW + DAY)] == [("lights", 5), ("theme", 7)]
    assert book.totals(0, "kiosk") == []
    assert book.batches(0) == (1, 3, 3)


def test_names_are_forgotten_after_their_time_and_sums_are_not(tmp_path: Path) -> None:
    path = tmp_path / "usage.sqlite"
    with closing(UsageBook(path, TEST, NOW)) as book:
        book.take(A, batch(1, 10), NOW)
    with closing(UsageBook(path, TEST, NOW + USAGE_REMEMBERED_SECONDS)) as book:
        assert not book.take(A, batch(1, 10), NOW)
    with closing(UsageBook(path, TEST, NOW + USAGE_REMEMBERED_SECONDS + 1)) as book:
        assert total(book) == 10
        assert book.batches(0) == (0, 0, 0)


def test_a_book_that_stays_open_forgets_names_and_days_too(book: UsageBook) -> None:
    for number in range(4):
        book.take(A, batch(number), NOW + number * (USAGE_REMEMBERED_SECONDS + DAY))
        assert book.batches(0) == (1, 1, 0)
        assert book._database.rows("SELECT count(*) FROM device_day", {}) == [(1,)]
    assert total(book) == 4


def test_environments_are_apart(tmp_path: Path) -> None:
    path = tmp_path / "usage.sqlite"
    with closing(UsageBook(path, TEST, NOW)) as book:
        book.take(A, batch(1, 10), NOW)
    with closing(UsageBook(path, Environment("other"), NOW)) as book:
        assert book.totals(0) == []
        assert book.take(A, batch(1, 1), NOW)


def test_the_largest_counts_add_up(book: UsageBook) -> None:
    for number in range(100):
        book.take(A, batch(number, USAGE_COUNT_MAX), NOW)
    assert total(book) == 100 * USAGE_COUNT_MAX


def test_sums_end_at_the_largest_number_and_stay_there(tmp_path: Path) -> None:
    path = tmp_path / "usage.sqlite"
    with closing(UsageBook(path, TEST, NOW)) as book:
        for number in range(4):
            book.take(A, batch(number, NUMBER_MAX - 1, dropped=NUMBER_MAX), NOW)
            book.take(A, batch(number + 10, NUMBER_MAX + 5, flag="theme"), NOW + number * DAY)
        book.take(A, batch(20, USAGE_COUNT_MAX), NOW)
        assert [each.evaluations for each in book.totals(0)] == [NUMBER_MAX, NUMBER_MAX]
        assert book.batches(0) == (1, 9, NUMBER_MAX)
    with closing(sqlite3.connect(path)) as found:
        kinds = found.execute("SELECT DISTINCT typeof(evaluations) FROM usage").fetchall()
        assert kinds == [("integer",)], "SQLite makes a fraction of an integer that overflows"


def named(number: int, first: int, names: int) -> Usage:
    counts = tuple(
        Count(Namespace("default"), FlagKey(f"flag-{name}"), "true", "match", 2)
        for name in range(first, first + names)
    )
    return Usage(number.to_bytes(16, "big"), NOW, NOW + 60, counts)


def test_names_that_a_device_invents_end_and_take_none_from_others(
    book: UsageBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "NEW_ROWS_PER_DAY_MAX", 100)
    book.take(B, named(1, 0, 10), NOW)
    for number in range(20):
        assert book.take(A, named(number, number * 10, 10), NOW)
    assert len(book.totals(0)) == 110, "the ten of the other device, and a hundred of its own"
    assert book.uncounted(0) == {A: 2 * 90}
    assert book.take(A, named(30, 0, 10), NOW), "rows that are there go on counting"
    assert book.uncounted(0) == {A: 2 * 90}
    assert book.take(B, named(31, 5_000, 100), NOW)
    assert book.uncounted(0) == {A: 2 * 90, B: 2 * 10}
    assert not book.take(A, named(19, 190, 10), NOW), "what was not counted is not counted again"
    assert book.take(A, named(40, 9_000, 100), NOW + DAY)
    assert book.uncounted(NOW + DAY) == {}


def test_batches_of_one_device_in_a_day_end(book: UsageBook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "BATCHES_PER_DAY_MAX", 5)
    for number in range(5):
        assert book.take(A, batch(number), NOW)
    for number in range(5, 10):
        with pytest.raises(TooManyBatches, match="more than 5 batches in a day"):
            book.take(A, batch(number, 3), NOW)
    assert not book.take(A, batch(0), NOW), "a known one is known"
    assert (book.batches(0), total(book), book.uncounted(0)) == ((1, 5, 0), 5, {A: 15})
    assert book.take(B, batch(1), NOW)
    assert book.take(A, batch(11), NOW + DAY)


def test_a_device_s_own_dates_make_no_day(tmp_path: Path) -> None:
    path = tmp_path / "usage.sqlite"
    with closing(UsageBook(path, TEST, NOW)) as book:
        for number, at in enumerate((0, 1, NOW + 10**9, NUMBER_MAX)):
            sent = replace(batch(number), since=at, until=NUMBER_MAX - at)
            assert book.take(A, decode_usage(encode_usage(sent)), NOW)
    with closing(sqlite3.connect(path)) as found:
        assert found.execute("SELECT DISTINCT day FROM usage").fetchall() == [(NOW // DAY,)]
        assert found.execute("SELECT DISTINCT received FROM batch").fetchall() == [(NOW,)]


@pytest.mark.mosquitto
def test_what_is_beyond_a_day_s_names_is_shown(
    site: tuple[Broker, Flagcast], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, flagcast = site
    monkeypatch.setattr(ledger, "NEW_ROWS_PER_DAY_MAX", 100)
    flagcast.on_project("usage", "collect", "--once")
    send(broker, flagcast, (A, encode_usage(named(1, 0, 150))))
    flagcast.on_project("usage", "collect", "--once")
    assert "NOT COUNTED: 100 evaluations of 1 device" in flagcast.on_project("usage").out
    assert json.loads(flagcast.on_project("usage", "--format", "json").out)["uncounted"] == {"a": 100}


def test_a_file_that_is_no_database_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "usage.sqlite"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(LedgerError, match="not the counts that were written"):
        UsageBook(path, TEST, NOW)


@pytest.fixture(params=["5", "3.1.1"])
def site(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[tuple[Broker, Flagcast]]:
    with start_mosquitto(tmp_path / "broker") as broker:
        make_project(tmp_path / "project", broker.url, {"protocol": f'"{request.param}"'})
        yield broker, Flagcast(tmp_path / "project", capsys)


def send(broker: Broker, flagcast: Flagcast, *batches: tuple[DeviceId, bytes]) -> None:
    topics = project.load(flagcast.folder).topics
    with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
        for device, payload in batches:
            sent = connection._client.publish(topics.of(DeviceAddress(device, "metrics")), payload, qos=1)
            sent.wait_for_publish(PATIENCE_SECONDS)


def shown(flagcast: Flagcast) -> int:
    document = json.loads(flagcast.on_project("usage", "--format", "json").out)
    return sum(each["evaluations"] for each in document["usage"])


@pytest.mark.mosquitto
def test_published_flags_that_nobody_asked_for_are_listed(
    site: tuple[Broker, Flagcast], tmp_path: Path
) -> None:
    broker, flagcast = site
    assert json.loads(flagcast.on_project("usage", "--format", "json").out)["unused"] is None
    file = tmp_path / "features.yml"
    file.write_text(features({"lights": True, "idle": True}))
    assert flagcast.on_project("publish", file).code == 0
    file.write_text(features({"lights": True, "idle": True, "staged": True}))
    assert flagcast.on_project("publish", file, "--candidate", "5").code == 0
    flagcast.on_project("usage", "collect", "--once")
    send(broker, flagcast, (A, encode_usage(batch(1))))
    flagcast.on_project("usage", "collect", "--once")
    document = json.loads(flagcast.on_project("usage", "--format", "json").out)
    assert document["unused"] == [{"namespace": "default", "flag": name} for name in ("idle", "staged")]
    lines = [line for line in flagcast.on_project("usage").out.splitlines() if "NOT ASKED FOR" in line]
    assert [line.split()[-1] for line in lines] == ["idle", "staged"]
    other = json.loads(flagcast.on_project("usage", "--namespace", "other", "--format", "json").out)
    assert other["unused"] is None


@pytest.mark.mosquitto
def test_what_came_while_nobody_collected_is_collected_once(site: tuple[Broker, Flagcast]) -> None:
    broker, flagcast = site
    assert flagcast.on_project("usage", "collect", "--once").code == 0  # from now on the broker keeps it
    batches = [(A, encode_usage(batch(number))) for number in range(50)]
    send(broker, flagcast, *batches, *batches[:10], (B, b"not a batch"))
    collected = flagcast.on_project("usage", "collect", "--once")
    assert collected.code == 0
    assert "batches added: 50, known already: 10" in collected.out
    assert "devices/b/metrics: not counted" in collected.err
    assert "batches added: 0, known already: 0" in flagcast.on_project("usage", "collect", "--once").out
    assert shown(flagcast) == 50
    assert "lights" in flagcast.on_project("usage").out


@pytest.mark.mosquitto
def test_a_collector_that_is_killed_loses_nothing_and_counts_nothing_twice(
    site: tuple[Broker, Flagcast],
) -> None:
    broker, flagcast = site
    flagcast.on_project("usage", "collect", "--once")
    send(broker, flagcast, *((A, encode_usage(batch(number))) for number in range(300)))
    book_path = project.load(flagcast.folder).usage
    for _ in range(3):
        before = shown(flagcast)
        collector = start(flagcast)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while added(book_path) <= before and added(book_path) < 300 and time.monotonic() < deadline:
            time.sleep(0.005)
        collector.kill()
        collector.wait()
    flagcast.on_project("usage", "collect", "--once")
    assert shown(flagcast) == 300


@pytest.mark.mosquitto
def test_a_long_running_collector_survives_the_broker_and_ends_by_sigterm(
    site: tuple[Broker, Flagcast], tmp_path: Path
) -> None:
    broker, flagcast = site
    collector = start(flagcast)
    try:
        for number in range(2):
            wait_for_collector(flagcast, broker, number)
            broker.restart()
    finally:
        collector.send_signal(signal.SIGTERM)
        assert collector.wait(PATIENCE_SECONDS) == 0
    assert shown(flagcast) >= 2
    assert QUIET_SECONDS < PATIENCE_SECONDS


def wait_for_collector(flagcast: Flagcast, broker: Broker, number: int) -> None:
    """Sends a batch, under new names while nobody is subscribed, until one of it is counted."""
    book_path = project.load(flagcast.folder).usage
    before = added(book_path)
    deadline = time.monotonic() + PATIENCE_SECONDS
    attempt = 0
    while added(book_path) == before:
        assert time.monotonic() < deadline
        attempt += 1
        send(broker, flagcast, (A, encode_usage(batch(number * 1000 + attempt))))
        time.sleep(0.2)


def added(path: Path) -> int:
    """Evaluations in the book, read while the collector writes."""
    if not path.exists():
        return 0
    with closing(UsageBook(path, TEST, int(time.time()))) as book:  # noqa: TID251  # the collector's clock
        return total(book)


def start(flagcast: Flagcast) -> "subprocess.Popen[bytes]":
    program = str(Path(sys.executable).with_name("flagcast"))
    return subprocess.Popen(
        [program, "usage", "collect", "--project", str(flagcast.folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
