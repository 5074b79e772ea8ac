"""Lines of the log: JSON for programs, text for people. What clients wrote passes for nothing else in either."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

_MAX_LOGGED_CHARACTERS = 1000  # of one value of a log line


class JsonFormatter(logging.Formatter):
    """One line of JSON a record: time, level, event, and whatever `extra` had."""

    _OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        for name, value in record.__dict__.items():
            if name not in self._OWN and value is not None:
                line[name] = value[:_MAX_LOGGED_CHARACTERS] if isinstance(value, str) else value
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=True)


class TextFormatter(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        extra = " ".join(
            f"{name}={value[:_MAX_LOGGED_CHARACTERS]!r}"
            if isinstance(value, str) and (" " in value or len(value) > _MAX_LOGGED_CHARACTERS)
            else f"{name}={value}"
            for name, value in record.__dict__.items()
            if name not in JsonFormatter._OWN and value is not None
        )
        text = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {record.getMessage()} {extra}".rstrip()
        trace = "\n" + self.formatException(record.exc_info) if record.exc_info else ""  # it has what clients wrote
        return _printable(text).replace("\n", "\\n") + _printable(trace)


def _printable(text: str) -> str:
    """What no terminal takes for an order; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
