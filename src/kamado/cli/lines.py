"""Messages as they are typed or pasted: what comes of one paste is one message, of however many lines.

A terminal that is told so (mode 2004) puts marks around what is pasted. GNU readline can ask for that and keeps the
lines together; CPython switches it off. libedit (macOS), a Python without either and dumb terminals cannot: there,
lines that wait behind the one that was just read came with it, commands excepted. Marks in a pipe are understood too.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from .terminal import is_tty, note

BEGIN_PASTE, END_PASTE = "\x1b[200~", "\x1b[201~"
_HISTORY_LINES = 2000
_COMMAND = "/"
# Between two lines of a paste that arrive over a slow line; nobody types a line in that time.
_PASTE_GAP_SECONDS = 0.03


class Lines:
    """Reads standard input; a context manager that keeps the history of what a person typed."""

    def __init__(self, history: Path, completions: Callable[[str], list[str]] | None = None) -> None:
        """`completions`: the whole lines that a line up to the cursor may become, for Tab."""
        self.is_interactive = is_tty(sys.stdin)
        self._completions = completions
        self._history = history
        self._keeps_pastes = False  # readline does it
        self._held: str | None = None  # a line that was read and is the next message

    @contextlib.contextmanager
    def editing(self) -> Iterator[None]:
        """Line editing, and a history that outlives the program, when a person types and the platform has readline."""
        if not self.is_interactive:
            yield
            return
        try:
            import readline
        except ImportError:
            yield
            return
        self._keeps_pastes = _keep_pastes_together(readline.parse_and_bind, readline.__doc__ or "")
        if self._completions is not None:
            readline.set_completer_delims(" \t\n")
            readline.set_completer(completer(readline, self._completions))
            is_libedit = "libedit" in (readline.__doc__ or "")
            readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
        with contextlib.suppress(OSError):
            readline.read_history_file(self._history)
        readline.set_history_length(_HISTORY_LINES)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self._history.parent.mkdir(parents=True, exist_ok=True)
                readline.write_history_file(self._history)
                self._history.chmod(0o600)

    def read(self, prompt: str) -> str | None:
        """One line, or all lines of one paste without the last line end; None at the end of the input."""
        if not self.is_interactive:
            return self._piped()
        if self._held is not None:
            text, self._held = self._held, None
            return text
        try:
            text = input(prompt)
            while not self._keeps_pastes and not text.startswith(_COMMAND) and _is_waiting():
                line = input("")
                if line.startswith(_COMMAND):
                    self._held = line
                    break
                text += "\n" + line
        except EOFError:
            note("")
            return None
        return without_marks(text)

    def agrees(self, question: str) -> bool:
        """Whether a person says yes, which Enter alone does too; not kept in the history. False without a person."""
        if not self.is_interactive:
            return False
        try:
            said = input(question).strip().lower()
        except (EOFError, KeyboardInterrupt):
            note("")
            return False
        with contextlib.suppress(ImportError, ValueError):
            import readline

            if said:
                readline.remove_history_item(readline.get_current_history_length() - 1)
        return said in ("", "y", "yes")

    def _piped(self) -> str | None:
        if sys.stdin is None:
            return None
        line = sys.stdin.readline()
        if not line:
            return None
        begins = line.rfind(BEGIN_PASTE)
        while begins >= 0 and END_PASTE not in line[begins:]:
            more = sys.stdin.readline()
            if not more:
                break
            line += more
        return without_marks(line.removesuffix("\n"))


class Readline(Protocol):
    """What a completer asks of the module."""

    def get_line_buffer(self) -> str:
        """The line."""
        ...

    def get_begidx(self) -> int:
        """Where the word at the cursor begins."""
        ...

    def get_endidx(self) -> int:
        """Where the cursor is."""
        ...


def completer(readline: Readline, completions: Callable[[str], list[str]]) -> Callable[[str, int], str | None]:
    """What readline calls: the n-th way in which the word at the cursor may go on. Readline parts words at blanks, and
    names of files may have some: only what follows the last one is given back."""
    found: list[str] = []

    def complete(_word: str, n: int) -> str | None:
        if n == 0:
            begin = readline.get_begidx()
            found[:] = [line[begin:] for line in completions(readline.get_line_buffer()[: readline.get_endidx()])]
        return found[n] if n < len(found) else None

    return complete


def without_marks(text: str) -> str:
    """`text` without the marks of a paste, and without line ends of a paste at its end."""
    plain = text.replace(BEGIN_PASTE, "").replace(END_PASTE, "").replace("\r\n", "\n").replace("\r", "\n")
    return plain.rstrip("\n") if "\n" in plain else plain


def _keep_pastes_together(parse_and_bind: Callable[[str], None], about: str) -> bool:
    """Tells readline to; False where it cannot: libedit, and terminals that know no marks."""
    if "libedit" in about or os.environ.get("TERM", "dumb") in ("", "dumb"):
        return False
    parse_and_bind("set enable-bracketed-paste on")
    return True


def _is_waiting() -> bool:
    """Whether standard input has more, or gets it within the gap."""
    try:
        return bool(select.select([sys.stdin], [], [], _PASTE_GAP_SECONDS)[0])
    except (OSError, ValueError):  # Windows has no select for a console
        return False
