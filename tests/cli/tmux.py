"""A tmux of the test's own: what a person sees is what its pane shows."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux: apt-get install tmux")


class Tmux:
    """One window with one program in it."""

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)

    def call(self, *words: str) -> str:
        command = ["tmux", "-u", "-S", self._socket, "-f", "/dev/null", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def keys(self, *keys: str) -> None:
        """Keys by tmux's names, or texts."""
        self.call("send-keys", *keys)

    def paste(self, text: str) -> None:
        """As a person does: with the marks that the program asked for."""
        self.call("set-buffer", text)
        self.call("paste-buffer", "-p")

    def resize(self, columns: int) -> None:
        self.call("resize-window", "-x", str(columns), "-y", "40")

    @property
    def screen(self) -> list[str]:
        """The rows, without blanks at their ends."""
        return [row.rstrip() for row in self.call("capture-pane", "-p").split("\n")]

    def wait_for(self, text: str, count: int = 1) -> list[str]:
        """The rows, once `text` stands in so many of them."""
        deadline = time.monotonic() + 30
        rows = self.screen
        while sum(text in row for row in rows) < count:
            assert time.monotonic() < deadline, "\n".join(rows)
            time.sleep(0.02)
            rows = self.screen
        return rows

    def leave(self) -> None:
        """Ctrl-D, and again: a key that comes while the terminal changes its mode between two prompts may be lost."""
        deadline = time.monotonic() + 30
        keys = ["tmux", "-S", self._socket, "send-keys", "C-d"]
        while not subprocess.run(keys, capture_output=True).returncode:
            assert time.monotonic() < deadline, "the program did not end"
            time.sleep(0.2)


@contextmanager
def running(folder: Path, *command: str, columns: int = 100) -> Iterator[Tmux]:
    """A program in a tmux of so many columns."""
    tmux = Tmux(folder / "tmux")
    tmux.call("new-session", "-d", "-x", str(columns), "-y", "40", *command)
    try:
        yield tmux
    finally:
        subprocess.run(["tmux", "-S", str(folder / "tmux"), "kill-server"], capture_output=True)
