"""The latest lines of the log in memory, for `kamado logs`."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable

MOST_LINES = 2000
MOST_BYTES = 1 << 20  # of all lines together
MOST_LINE_CHARACTERS = 4000  # of one; a traceback is longer
_WAKE_SECONDS = 0.2  # between looks for news: no thread has to wake a loop for every line


class LogRing(logging.Handler):
    """Keeps lines as its formatter makes them, from any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque()
        self._num_bytes = 0
        self._num_seen = 0  # lines that ever came
        self._guard = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        """See logging."""
        try:
            line = self.format(record)[:MOST_LINE_CHARACTERS]
        except Exception:  # as logging's own handlers do; the stream's handler says what is wrong
            return
        with self._guard:
            self._lines.append(line)
            self._num_seen += 1
            self._num_bytes += _bytes_of(line)
            while len(self._lines) > MOST_LINES or self._num_bytes > MOST_BYTES:
                self._num_bytes -= _bytes_of(self._lines.popleft())

    def since(self, number: int) -> tuple[list[str], int, int]:
        """Lines after the first `number` that ever came, how many of them are gone, and how many ever came."""
        with self._guard:
            first = self._num_seen - len(self._lines)
            skipped = max(0, first - number)
            return list(self._lines)[max(0, number - first) :], skipped, self._num_seen

    async def follow(self, last: int, is_over: Callable[[], bool]) -> AsyncGenerator[str, None]:
        """The last so many lines, and those that come, until `is_over` says so or it is closed."""
        lines, _, seen = self.since(0)
        for line in lines[len(lines) - min(last, len(lines)) :]:
            yield line
        while not is_over():
            await asyncio.sleep(_WAKE_SECONDS)
            lines, skipped, seen = self.since(seen)
            if skipped:
                yield f"({skipped} lines came too fast and are left out)"
            for line in lines:
                yield line


def _bytes_of(line: str) -> int:
    return len(line.encode("utf-8", "replace"))
