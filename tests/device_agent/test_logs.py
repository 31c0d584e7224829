"""Log lines: their form, and that nobody else can fill the disk with them."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from flagcast_agent import logs


@pytest.fixture(params=["logfmt", "json"])
def out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.set_up(request.param)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


def lines(out: io.StringIO) -> list[dict[str, str]]:
    found = []
    for line in out.getvalue().splitlines():
        if line.startswith("{"):
            found.append({name: str(value) for name, value in json.loads(line).items()})
        else:
            pairs, rest = {}, line
            while rest:
                name, _, rest = rest.partition("=")
                if rest.startswith('"'):
                    value, end = json.JSONDecoder().raw_decode(rest)
                    rest = rest[end:]
                else:
                    value, _, rest = rest.partition(" ")
                    rest = f" {rest}"
                pairs[name.strip()] = str(value)
                rest = rest.lstrip()
            found.append(pairs)
    return found


def test_a_line_has_its_fields(out: io.StringIO) -> None:
    logs.log(logging.INFO, "admitted", namespace="default", version=3, why='a "quoted" text')
    (line,) = lines(out)
    assert line["message"] == "admitted"
    assert (line["level"], line["namespace"], line["version"], line["why"]) == (
        "info", "default", "3", 'a "quoted" text',
    )  # fmt: skip


def test_a_flood_of_refusals_is_counted_and_not_written(out: io.StringIO) -> None:
    for number in range(5000):
        logs.log(logging.WARNING, "refused", attack="bad_signature", why=f"for the {number}th time")
    logs.log(logging.WARNING, "refused", attack="rollback")
    for number in range(100):
        logs.log(logging.INFO, "admitted", version=number)
    found = lines(out)
    assert len([line for line in found if line.get("attack") == "bad_signature"]) == logs.LINES_PER_SPAN
    assert len([line for line in found if line.get("attack") == "rollback"]) == 1
    assert len([line for line in found if line["message"] == "admitted"]) == 100
    logging.getLogger().handlers[0].close()
    summary = lines(out)[-1]
    assert summary["message"] == "more lines of this kind were left out"
    assert (summary["of"], summary["attack"]) == ("refused", "bad_signature")
    assert int(summary["left_out"]) == 5000 - logs.LINES_PER_SPAN


def test_after_a_while_the_kind_is_written_again_with_what_was_left_out(
    out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(logs.LINES_PER_SPAN + 7):
        logs.log(logging.WARNING, "no connection")
    made = logging.getLogRecordFactory()

    def later(*arguments: object, **keywords: object) -> logging.LogRecord:
        record = made(*arguments, **keywords)
        record.created += logs.SPAN_SECONDS
        return record

    logging.setLogRecordFactory(later)
    try:
        logs.log(logging.WARNING, "no connection", fault="network")
    finally:
        logging.setLogRecordFactory(made)
    summary, line = lines(out)[-2:]
    assert (summary["left_out"], summary["of"]) == ("7", "no connection")
    assert line["fault"] == "network"


def test_kinds_that_a_peer_makes_up_are_counted_together(out: io.StringIO) -> None:
    for number in range(5000):
        logging.getLogger("somebody.else").warning(f"made up {number}")  # noqa: G004  # a text of a peer's
    logging.getLogger().handlers[0].close()
    assert len(lines(out)) <= logs.KINDS_MAX + logs.LINES_PER_SPAN + 1
    assert int(lines(out)[-1]["left_out"]) >= 5000 - logs.KINDS_MAX - logs.LINES_PER_SPAN


def test_a_field_of_a_peers_is_cut(out: io.StringIO) -> None:
    logs.log(logging.WARNING, "a message on a topic that is not ours", topic="x" * 65_000)
    (line,) = lines(out)
    assert len(line["topic"]) == logs.FIELD_MAX_CHARACTERS + 1
