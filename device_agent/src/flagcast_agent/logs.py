"""Structured logs on standard error: one line an event, as logfmt or JSON, in characters that print.

Whoever holds the broker can make an agent refuse as often as they like, and an application can make it fail as often; neither
may fill its disk. Warnings and errors of one kind are written so many times a minute and counted beyond that; the count stands
in a line of its own once the minute is over.
"""

import logging
import sys
from dataclasses import dataclass
from typing import Final, TextIO

from flagcast_shared.printing import json_text, logfmt_value

LOGGER: Final = logging.getLogger("flagcast.agent")

LINES_PER_SPAN: Final = 20
"""Warnings of one kind within SPAN_SECONDS; what operators read of a flood are its first lines and its size."""
SPAN_SECONDS: Final = 60.0
KINDS_MAX: Final = 256
"""Kinds that are counted apart. Ours are a few dozen; a library's may come from texts of a peer's."""
FIELD_MAX_CHARACTERS: Final = 500
"""A field may repeat what a peer sent, such as a topic of 64 KB."""

_FIELDS: Final = "flagcast_fields"


def set_up(log_format: str, *, verbose: bool = False) -> None:
    """Send every log line to standard error as "logfmt" or "json"."""
    handler = _LimitedHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Logfmt())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)  # it is talkative


def log(level: int, message: str, **fields: object) -> None:
    """One event with its fields."""
    LOGGER.log(level, message, extra={_FIELDS: fields})


@dataclass(slots=True)
class _Span:
    # One kind's lines since `began`, Unix seconds of the records themselves.
    began: float
    written: int = 0
    left_out: int = 0


class _LimitedHandler(logging.StreamHandler[TextIO]):
    # Called with logging's own lock held.

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._spans: dict[tuple[object, ...], _Span] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self._close_spans(record.created)
        if record.levelno < logging.WARNING:
            super().emit(record)
            return
        fields = getattr(record, _FIELDS, {})
        kind: tuple[object, ...] = (record.name, record.levelno, record.msg, fields.get("attack"))
        if kind not in self._spans and len(self._spans) >= KINDS_MAX:
            kind = ()
        span = self._spans.setdefault(kind, _Span(record.created))
        if span.written < LINES_PER_SPAN:
            span.written += 1
            super().emit(record)
        else:
            span.left_out += 1

    def close(self) -> None:
        self._close_spans(float("inf"))
        super().close()

    def _close_spans(self, now: float) -> None:
        # A clock that was set back ends a span too; it would otherwise last for years.
        over = [kind for kind, span in self._spans.items() if not 0 <= now - span.began < SPAN_SECONDS]
        for kind in over:
            span = self._spans.pop(kind)
            if span.left_out:
                name, level, message, attack = kind or ("flagcast.agent", logging.WARNING, "many kinds", None)
                fields: dict[str, object] = {"of": message, "left_out": span.left_out}
                if attack is not None:
                    fields["attack"] = attack
                summary = {"name": name, "levelno": level, "levelname": logging.getLevelName(int(str(level)))}
                super().emit(
                    logging.makeLogRecord(
                        {**summary, "msg": "more lines of this kind were left out", _FIELDS: fields}
                    )
                )


class _Logfmt(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{name}={logfmt_value(value)}" for name, value in _event(self, record).items())


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json_text(_event(self, record))


def _event(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, object]:
    event: dict[str, object] = {
        "time": formatter.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
        "level": record.levelname.lower(),
        "message": record.getMessage(),
    }
    event.update((name, _short(value)) for name, value in getattr(record, _FIELDS, {}).items())
    if record.exc_info:
        event["error"] = formatter.formatException(record.exc_info)
    return event


def _short(value: object) -> object:
    if isinstance(value, int | float):
        return value
    written = str(value)
    return written if len(written) <= FIELD_MAX_CHARACTERS else f"{written[:FIELD_MAX_CHARACTERS]}…"
