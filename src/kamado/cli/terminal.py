"""What reaches the terminal: tables, JSON, progress bars, and text that nobody else can steer it with.

Every command prints through `echo`, `note`, `echo_json` and `echo_table`, and `printable` cleans all of it: names and
metadata of model files, templates, answers of models, what servers said, messages of errors. Only `styled` makes escape
sequences that come out.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TextIO

import click

from ..plan.budget import format_size
from .cells import fitting, padded, text_cells

# What acts on a terminal or on the text around it instead of being shown.
_UNSEEN = (
    *(code for code in range(0x20) if chr(code) not in "\n\t"),
    *range(0x7F, 0xA0),  # DEL and the C1 controls
    *range(0x202A, 0x202F),  # bidirectional embeddings and overrides: "exe.txt" can be shown as "txt.exe"
    *range(0x2066, 0x206A),  # bidirectional isolates
    *range(0x206A, 0x2070),  # deprecated format characters
    *range(0xFFF9, 0xFFFC),  # interlinear annotations
    0xFEFF,
    *range(0xE0000, 0xE0080),  # tags: letters that nobody sees
)
_CONTROLS: dict[int, str | None] = {**dict.fromkeys(_UNSEEN), 0x2028: "\n", 0x2029: "\n"}
_ESCAPED_IN_JSON = re.compile(f"[{re.escape(''.join(chr(code) for code in _CONTROLS if code >= 0x7F))}]")

# Stands for the escape character of our own styles until `echo` puts it in; no file can know it.
_STYLE_MARK = f"\0{secrets.token_hex(8)}\0"


def format_seconds(seconds: float) -> str:
    """`75.2` -> `1m15s`; below ten seconds one decimal is kept."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def printable(text: str) -> str:
    """`text` without what could move the cursor, set the title, ring the bell, or turn the order of letters about."""
    return text.translate(_CONTROLS)


def one_line(text: str) -> str:
    """The same for a name or another text that has no lines: what would begin a new one is a blank."""
    return printable(text).replace("\n", " ").replace("\t", " ")


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """A text on stdout, or stderr: cleaned, but for our own styles."""
    parts = (printable(part) for part in str(text).split(_STYLE_MARK))
    click.echo("\x1b".join(parts), err=err, nl=nl)


def is_tty(stream: TextIO) -> bool:
    """True when a person reads `stream`; a closed or replaced stream counts as no terminal."""
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def is_moving(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that can more than letters: TERM=dumb says that it cannot."""
    return is_tty(stream) and os.environ.get("TERM") != "dumb"


def has_styles(stream: TextIO) -> bool:
    """Whether styles are for `stream`: a terminal that has them, and nobody set NO_COLOR."""
    return is_moving(stream) and not os.environ.get("NO_COLOR")


def columns_of(stream: TextIO) -> int:
    """The width of the terminal now, also after it was resized; 0 when it is not known."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return 0


def styled(text: str, stream: TextIO | None = None, **style: Any) -> str:
    """`text` styled by click, for `echo` and `note`; plain where `stream` (stdout) has no styles."""
    if not has_styles(sys.stdout if stream is None else stream):
        return text
    return click.style(printable(text), **style).replace("\x1b", _STYLE_MARK)


def echo_json(value: Any) -> None:
    """One JSON document on stdout, indented; the keys keep their order."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    echo(_ESCAPED_IN_JSON.sub(lambda found: json.dumps(found[0])[1:-1], text))


def echo_table(header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> None:
    """Aligned columns on stdout; the columns in `right` are set flush right. Prints the header alone when empty."""
    first, *others = aligned(header, rows, right)
    echo(styled(first, bold=True))
    for line in others:
        echo(line)


def aligned(header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> list[str]:
    """The lines of a table, the header in capitals first."""
    cells = [[one_line(str(cell)) for cell in row] for row in rows]
    widths = [max(len(name), *(text_cells(row[i]) for row in cells), 0) for i, name in enumerate(header)]

    def line(row: Sequence[str]) -> str:
        columns = (padded(c, w, right=i in right) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        return "  ".join(columns).rstrip()

    return [line([name.upper() for name in header]), *map(line, cells)]


def note(message: str) -> None:
    """One line for a person on stderr; never part of the output."""
    echo(message, err=True)


class Progress:
    """A progress bar on stderr with rate and time left. Shows nothing when stderr is no terminal; never goes back.

    Is called as `progress(done, total)`, in bytes or `unit`; a total of 0 means unknown.
    """

    _INTERVAL_S = 0.1

    def __init__(
        self,
        label: str,
        *,
        unit: str = "bytes",
        clock: Callable[[], float] = time.monotonic,
        stream: TextIO | None = None,
    ) -> None:
        self._label = one_line(label)
        self._unit = unit
        self._clock = clock
        self._stream = sys.stderr if stream is None else stream
        self._shown = is_moving(self._stream)
        self._start = clock()
        self._first: int | None = None  # bytes that were there before the first call: they say nothing of the rate
        self._done = 0
        self._last = float("-inf")
        self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, done: int, total: int) -> None:
        """Redraws when a tenth of a second has gone by, and at the end."""
        if self._first is None:
            self._first = done
        self._done = max(self._done, done)
        now = self._clock()
        if not self._shown or (now - self._last < self._INTERVAL_S and self._done != total):
            return
        self._last = now
        self._draw(self._line(total, now - self._start))

    def _line(self, total: int, elapsed: float) -> str:
        rate = (self._done - (self._first or 0)) / elapsed if elapsed > 0 else 0.0
        speed = f"  {self._amount(rate)}/s" if rate > 0 else ""
        if total <= 0:
            return f"{self._label}  {self._amount(self._done)}{speed}"
        share = min(1.0, self._done / total)
        bar = ("█" * round(20 * share)).ljust(20, "░")
        left = f"  {format_seconds((total - self._done) / rate)} left" if rate > 0 and self._done < total else ""
        amount = self._amount(self._done)
        if self._unit != "bytes":
            amount = f"{self._done:,} of {self._amount(total)}"
        return f"{self._label} {bar} {share:4.0%}  {amount}{speed}{left}"

    def _amount(self, count: float) -> str:
        if self._unit == "bytes":
            return format_size(round(count))
        return f"{count:,.0f} {self._unit}" if count >= 100 else f"{count:.3g} {self._unit}"

    def _draw(self, line: str) -> None:
        columns = columns_of(self._stream)
        if columns > 1:  # a bar of two rows could not be wiped
            line = fitting(line, columns - 1)
            self._width = min(self._width, columns - 1)
        self._stream.write("\r" + padded(line, self._width))
        self._stream.flush()
        self._width = text_cells(line)

    def close(self) -> None:
        """Wipes the bar, so that what follows starts on a clean line. May be called twice."""
        if self._shown and self._width:
            self._draw("")
            self._stream.write("\r")
            self._stream.flush()
            self._width = 0
