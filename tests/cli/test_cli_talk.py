"""A person talks in a terminal: Japanese, a window that changes, a full context, Tab, Ctrl-C. A fake model answers."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_model import JAPANESE, MARKDOWN, FakeGeneration
from terminals import PROGRAM, SEQUENCE, Terminal
from tmux import needs_tmux, running

from kamado.cli import waiting
from kamado.cli.answer import Answer
from kamado.cli.cells import text_cells
from kamado.cli.waiting import Waiting
from kamado.engine.piece import Usage

ASK = "please talk japanese\n"


def begin(*arguments: str, **how: object) -> Terminal:
    terminal = Terminal("chat", "m", "--stats", *arguments, **{"term": "xterm", **how})  # type: ignore[arg-type]
    terminal.wait_for(">>> ")
    return terminal


def answer_rows(terminal: Terminal, question: str, answers: int) -> list[str]:
    """The rows between a question and its figures, of which there are so many then. Prompts are no sign of the end:
    readline writes one again when the window changes."""
    terminal.type(question)
    terminal.wait_for("; answer ", answers)
    lines = terminal.lines
    asked = max(i for i, line in enumerate(lines) if line.endswith(question.strip()))
    end = next(i for i, line in enumerate(lines) if i > asked and line.startswith("prompt "))
    return lines[asked + 1 : end]


# --- the answer -------------------------------------------------------------------------------------------------------


def test_japanese_follows_the_window() -> None:
    terminal = begin(columns=60)
    wide = answer_rows(terminal, ASK, 1)
    terminal.resize(31)
    narrow = answer_rows(terminal, ASK, 2)
    assert terminal.exit_code(press="\x04") == 0
    for rows, columns in ((wide, 60), (narrow, 31)):
        assert "".join(rows) == JAPANESE
        assert columns - 8 < max(map(text_cells, rows)) < columns
        assert not any(row[0] in "、。」ーャ" or row[-1] == "「" for row in rows)


@pytest.mark.parametrize(
    ("term", "environment", "is_wrapped", "is_styled"),
    [("xterm", {}, True, True), ("xterm", {"NO_COLOR": "1"}, True, False), ("dumb", {}, False, False)],
)
def test_markdown(term: str, environment: dict[str, str], is_wrapped: bool, is_styled: bool) -> None:
    terminal = begin(term=term, environment=environment, columns=30)
    rows = answer_rows(terminal, "markdown\n", 1)
    assert terminal.exit_code(press="\x04") == 0
    assert ("\x1b[1mbold\x1b[0m" in terminal.output) is is_styled
    assert bool(re.search(r"\x1b\[[\d;]*m", terminal.output)) is is_styled
    assert "x = 1  # a line of code that is longer" in rows
    if is_wrapped:
        assert rows[2:4] == ["- **bold** words that go on", "  until the row is full"]
    else:
        assert rows == MARKDOWN.splitlines()


def test_format_off() -> None:
    terminal = begin(columns=30)
    terminal.type("/set format off\n")
    terminal.wait_for(">>> ", 2)
    assert answer_rows(terminal, "markdown\n", 1) == MARKDOWN.splitlines()
    assert terminal.exit_code(press="\x04") == 0


def test_ctrl_c_ends_a_style_and_the_line() -> None:
    terminal = begin()
    terminal.type("slow\n")
    terminal.wait_for("word ", 3)
    terminal.type("\x03")
    terminal.wait_for("(stopped)")
    assert terminal.exit_code(press="\x04") == 0
    stopped = terminal.lines.index("(stopped)")
    assert terminal.lines[stopped - 1].startswith("word word")


def test_a_server_that_goes_away_in_the_middle() -> None:
    terminal = begin()
    terminal.ask("gone", "went away in the middle of its answer")
    terminal.ask("/continue", "and more")
    lines = terminal.leave()
    assert lines[lines.index("half an answer") + 1].startswith("kamado: error: the server")


def test_hostile_answers_act_on_nothing() -> None:
    terminal = begin(columns=40)
    terminal.type("say \x16\x1b[2J\x16\x1b]0;title\x16\x07 **bold\n")  # Ctrl-V: the next key as it is
    terminal.wait_for(")#1")
    assert terminal.exit_code(press="\x04") == 0
    echoed = terminal.output[terminal.output.index("echo(") :]
    assert "\x1b[2J" not in echoed
    assert "\x1b]" not in echoed
    assert "\x07" not in echoed


# --- banner, Tab, the context -----------------------------------------------------------------------------------------


def test_the_banner() -> None:
    terminal = begin("--context", "2000", columns=200)
    assert terminal.exit_code(press="\x04") == 0
    assert terminal.lines[0] == (
        "m (fake) · context 2,000 tokens · memory 4.00 MiB planned of 6.00 GiB · answered by this process"
    )
    assert "/help lists the commands" in terminal.lines[1]


def test_tab(tmp_path: Path) -> None:
    (tmp_path / "my notes.txt").write_text("a note")
    terminal = begin("--session", "s")
    terminal.type(f"/fi\t{tmp_path}/my\t\n")
    terminal.wait_for("(my notes.txt goes with the next question")
    terminal.type("/set temp\t0.5\n/set temperature\n")
    terminal.wait_for("temperature  0.5")
    terminal.type("no\tcommand\n")
    terminal.wait_for(")#1")
    assert terminal.exit_code(press="\x04") == 0


def test_a_full_context_offers_to_leave_out_the_oldest() -> None:
    terminal = begin("--context", "46", "--session", "s", columns=120)
    for i, question in enumerate(("one two three", "four five six", "seven eight nine")):
        terminal.type(f"{question}\n")
        terminal.wait_for(">>> ", i + 2)
    assert "(the context is filling: 38 of 46 tokens, 83%; /trim leaves out the oldest)" in terminal.output
    terminal.type("ten eleven\n")
    terminal.wait_for("the conversation needs 48 of 46 tokens; leave out the oldest 2 messages? [Y/n] ")
    terminal.type("n\n")
    terminal.wait_for("kamado: error: the prompt has 48 tokens")
    terminal.type("\x10\n")  # the line before: not what was said to the offer
    terminal.wait_for("[Y/n] ", 2)
    terminal.type("\n")
    terminal.wait_for("echo(ten eleven)#5")
    assert terminal.exit_code(press="\x04") == 0


def test_a_question_that_is_too_long_alone() -> None:
    terminal = begin("--context", "20", columns=200)
    terminal.type("word " * 30 + "\n")
    terminal.wait_for("kamado: error: the prompt has 34 tokens")
    terminal.wait_for("(/trim forgets the oldest")
    assert terminal.exit_code(press="\x04") == 0
    assert "[Y/n]" not in terminal.output


# --- while the prompt is read -----------------------------------------------------------------------------------------


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


class Reading:
    """An answer whose prompt is half read; `looks` counts how often that was asked."""

    def __init__(self, total: int, until: Callable[[], None]) -> None:
        self.usage = Usage(total, 0, 0, 0.0, 0.0, 0.0)
        self._until = until

    @property
    def num_computed_tokens(self) -> int:
        self._until()
        return self.usage.num_prompt_tokens // 2


def draw(pieces: Callable[[Callable[[], None]], object], monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    """What stands on `stream` after the sign was drawn three times."""
    import threading

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(waiting, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(waiting, "_INTERVAL_S", 0.001)
    looks = iter(range(10**6))
    enough = threading.Event()
    with Waiting(pieces(lambda: enough.set() if next(looks) > 3 else None), stream) as sign:
        if stream.isatty():
            assert enough.wait(30)
        sign.close()
        sign.close()
        return stream.getvalue()


def test_a_bar_while_a_long_prompt_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw(lambda until: Reading(4096, until), monkeypatch, Tty())
    assert "reading ██████████░░░░░░░░░░  50%  2,048 of 4,096 tokens" in drawn
    assert drawn.split("\r")[-2].strip() == drawn.split("\r")[-1] == "", "it is wiped"


def test_a_sign_while_a_short_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw(lambda until: Reading(40, until), monkeypatch, Tty())
    assert drawn.startswith("⠋\r⠙\r⠹\r")
    assert drawn.endswith(" \r")


def test_nothing_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert draw(lambda until: Reading(4096, until), monkeypatch, io.StringIO()) == ""
    monkeypatch.setenv("TERM", "dumb")
    dumb = Tty()
    with Waiting(FakeGeneration(["a"], 0.0), dumb):
        pass
    assert dumb.getvalue() == ""


def test_the_sign_is_gone_before_the_first_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(waiting, "_PATIENCE_S", 0.0)
    terminal = Tty()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    Answer().stream(FakeGeneration(["one ", "two"], 0.05))
    text = SEQUENCE.sub("", terminal.getvalue())
    assert text.rsplit("\r", 1)[-1] == "one two\n"


# --- what tmux shows --------------------------------------------------------------------------------------------------


@needs_tmux
def test_in_tmux(tmp_path: Path) -> None:
    """Paste, Japanese, a window that changes, Ctrl-C: the rows as a person sees them."""
    with running(tmp_path, sys.executable, PROGRAM, "chat", "m", columns=61) as tmux:
        tmux.wait_for(">>>")
        tmux.paste("please talk\njapanese")
        tmux.keys("Enter")
        tmux.wait_for("記憶している。")
        rows = tmux.wait_for(">>>", 2)
        answer = rows[rows.index("japanese") + 1 :]
        answer = answer[: answer.index(">>>")]
        assert "".join(answer) == JAPANESE
        assert all(text_cells(row) < 61 for row in answer)
        tmux.resize(41)
        tmux.keys("slow", "Enter")
        tmux.wait_for("word word word", 2)
        tmux.keys("C-c")
        rows = tmux.wait_for("(stopped)")
        words = [row for row in rows if row.startswith("word")]
        assert words[0] == "word " * 7 + "word"
        tmux.keys("markdown", "Enter")
        rows = tmux.wait_for("```", 2)
        assert "- **bold** words that go on until the" in rows
        assert "  row is full" in rows
        tmux.leave()
