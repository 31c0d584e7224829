"""Structured logs on standard error: one line an event, as logfmt or JSON."""

import json
import logging
import sys
from typing import Final

LOGGER: Final = logging.getLogger("flagcast.agent")

_FIELDS: Final = "flagcast_fields"


def set_up(log_format: str, *, verbose: bool = False) -> None:
    """Send every log line to standard error as "logfmt" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Logfmt())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    for talkative in ("asyncio", "grpclib", "hpack", "h2"):
        logging.getLogger(talkative).setLevel(logging.WARNING)


def log(level: int, message: str, **fields: object) -> None:
    """One event with its fields."""
    LOGGER.log(level, message, extra={_FIELDS: fields})


class _Logfmt(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{name}={_quoted(value)}" for name, value in _event(self, record).items())


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_event(self, record), default=str, ensure_ascii=False)


def _event(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, object]:
    event: dict[str, object] = {
        "time": formatter.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
        "level": record.levelname.lower(),
        "message": record.getMessage(),
    }
    event.update(getattr(record, _FIELDS, {}))
    if record.exc_info:
        event["error"] = formatter.formatException(record.exc_info)
    return event


def _quoted(value: object) -> str:
    text = str(value)
    if text and all(character.isprintable() and character not in ' "=\\' for character in text):
        return text
    return json.dumps(text, ensure_ascii=False)
