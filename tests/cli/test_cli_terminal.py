"""What a person at a terminal sees: a real pseudo-terminal, the fake model behind it."""

from __future__ import annotations

import io
import os
import signal

from terminals import Terminal

from kamado.cli.terminal import Progress, format_seconds, printable


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves() -> None:
    terminal = Terminal("chat", "m")
    terminal.wait_for(">>> ")
    terminal.type("a slow one\n")
    terminal.wait_for("word ", 5)
    terminal.type("\x03")
    terminal.wait_for("(stopped)")
    terminal.wait_for(">>> ", 2)
    terminal.type("next\n")
    terminal.wait_for("echo(next)#3")  # what came of the stopped answer is part of the conversation
    terminal.wait_for(">>> ", 3)
    terminal.wait_for("(Ctrl-D or /bye leaves)", press="\x03")
    assert terminal.exit_code(press="\x04") == 0
    assert "Traceback" not in terminal.output


def test_history_outlives_the_program() -> None:
    for typed in ("remember me\n", "\x10\n"):  # Ctrl-P: the line before
        terminal = Terminal("chat", "m")
        terminal.wait_for(">>> ")
        terminal.type(typed)
        terminal.wait_for("echo(remember me)#1")
        terminal.wait_for(">>> ", 2)
        assert terminal.exit_code(press="\x04") == 0


def test_ctrl_c_ends_run_with_130() -> None:
    terminal = Terminal("run", "m", "slow")
    terminal.wait_for("word ", 3)
    os.kill(terminal.pid, signal.SIGINT)
    assert terminal.exit_code() == 130
    assert "Traceback" not in terminal.output


def test_progress_is_drawn_for_a_person_only() -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, shown in ((Tty(), True), (io.StringIO(), False)):
        with Progress("pulling", clock=iter([0.0, 1.0, 2.0, 3.0, 4.0]).__next__, stream=stream) as progress:
            progress(1 << 20, 4 << 20)
            progress(3 << 20, 4 << 20)
            progress(2 << 20, 4 << 20)  # never goes back
        assert bool(stream.getvalue()) is shown
    drawn = Tty()
    with Progress("pulling", clock=iter([0.0, 1.0, 2.0, 3.0, 4.0]).__next__, stream=drawn) as progress:
        progress(1 << 20, 4 << 20)  # was there already: no part of the rate
        progress(3 << 20, 4 << 20)
        progress(2 << 20, 4 << 20)
    lines = [line.strip() for line in drawn.getvalue().split("\r") if line.strip()]
    assert [line.split("%")[0].split()[-1] for line in lines] == ["25", "75", "75"]
    assert "1.00 MiB/s" in lines[1]
    assert "1.0s left" in lines[1]


def test_printable_and_seconds() -> None:
    assert printable("a\x1b[31mb\x07\tc\n\x9b") == "a[31mb\tc\n"
    assert [format_seconds(s) for s in (0.25, 12.4, 75, 3723)] == ["0.2s", "12s", "1m15s", "1h02m"]
