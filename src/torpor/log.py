"""The log: events with fields, one line each on standard error, from a level on. Standard output belongs to results.

structlog writes the lines. It is imported with the first line that is written: it brings rich along, which takes longer than a sandbox takes to start, and
most runs of a command write none.
"""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import Any, TextIO


class Level(IntEnum):
    """How important an event is; the names are those of the setting `log_level`, in capitals."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


_least = Level.WARNING


def configure(level: str) -> None:
    """The least important events that are written, as `warning`. Before the first call it is warnings."""
    global _least
    _least = Level[level.upper()]


class Log:
    """A module's log. Each method takes the event's name and its fields; `exc_info` may be an exception."""

    def debug(self, event: str, **fields: Any) -> None:
        self._write(Level.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write(Level.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write(Level.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._write(Level.ERROR, event, fields)

    def _write(self, level: Level, event: str, fields: dict[str, Any]) -> None:
        if level >= _least:
            getattr(_writer(), level.name.lower())(event, **fields)


_made: tuple[TextIO, Any] | None = None
"""The writer, and the standard error it writes to: made once, for there is a line for each request."""


def _writer() -> Any:
    global _made
    if _made is None or _made[0] is not sys.stderr:
        _made = (sys.stderr, _make(sys.stderr))
    return _made[1]


def _make(file: TextIO) -> Any:
    import structlog  # noqa: PLC0415 - see above

    return structlog.wrap_logger(
        structlog.WriteLogger(file),  # a line in one piece; its neighbour writes the line's end by itself
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=file.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(0),
    ).bind()
