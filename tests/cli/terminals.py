"""`kamado` with the fake model in a child process on a pseudo-terminal."""

from __future__ import annotations

import codecs
import fcntl
import os
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

pty = pytest.importorskip("pty")

SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[=>]")

PROGRAM = str(Path(__file__).with_name("fake_model.py"))


class Terminal:
    """A child process on a pseudo-terminal."""

    def __init__(
        self,
        *arguments: str,
        term: str = "dumb",
        interpreter: str = sys.executable,
        program: Sequence[str] = (PROGRAM,),
        columns: int = 80,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.output = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        command = [interpreter, *program, *arguments]
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = term
            os.environ.pop("NO_COLOR", None)
            for name in ("COLUMNS", "LINES"):
                os.environ.pop(name, None)
            os.environ.update(environment or {})
            _set_size(0, columns)
            os.execv(command[0], command)

    def wait_for(self, text: str, count: int = 1, *, press: str = "") -> None:
        """Reads until `text` has been seen `count` times; `press` is typed, and again when nothing comes.

        A Ctrl-C that arrives just before readline begins to wait is seen by Python at the next key only.
        """
        deadline = time.monotonic() + 30
        self.type(press)
        while self.output.count(text) < count:
            if select.select([self.fd], [], [], 0.5)[0]:
                self._read()
                continue
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.output[-500:]!r}"
            self.type(press)

    def resize(self, columns: int) -> None:
        """The window is that wide now; the program gets SIGWINCH."""
        _set_size(self.fd, columns)

    @property
    def lines(self) -> list[str]:
        """What was written, without styles and other sequences, at its line ends."""
        text = SEQUENCE.sub("", self.output).replace("\r\n", "\n")
        return [line.rsplit("\r", 1)[-1] for line in text.split("\n")]

    def _read(self) -> bool:
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # Linux's end of a pseudo-terminal
            return False
        self.output += self._decoder.decode(data)  # a read may end within a character
        return bool(data)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def ask(self, line: str, sign: str, count: int = 1) -> None:
        """Types a line and waits until `sign` has been seen `count` times."""
        self.type(f"{line}\n")
        self.wait_for(sign, count)

    def leave(self) -> list[str]:
        """Ends the program at its prompt, which must succeed; what `lines` are then, without a traceback."""
        assert self.exit_code(press="\x04") == 0
        assert "Traceback" not in self.output
        return self.lines

    def exit_code(self, *, press: str = "") -> int:
        """Reads to the end; `press` is typed, and again when nothing comes.

        A key typed while the terminal changes its mode between two prompts may be lost.
        """
        deadline = time.monotonic() + 30
        self.type(press)
        while True:
            if select.select([self.fd], [], [], 0.5)[0]:
                if not self._read():
                    break
                continue
            assert time.monotonic() < deadline, f"the program did not end: {self.output[-500:]!r}"
            self.type(press)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def _set_size(fd: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
