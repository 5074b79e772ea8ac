"""Several lines pasted into `kamado chat` are one message: in a pseudo-terminal, in tmux, and through a pipe."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fake_model import FakeModel
from terminals import PROGRAM, Terminal
from test_cli_commands import kamado
from tmux import needs_tmux, running

from kamado.cli.lines import _keep_pastes_together, without_marks
from kamado.engine.turns.conversations import ConversationStore

BEGIN, END = "\x1b[200~", "\x1b[201~"
SNIPPET = "def f(x):\n\treturn x + 1\n\nprint(f(1))  # ends"


def questions(session: str = "s") -> list[str]:
    """What the user said, as the session has it."""
    found = ConversationStore().load(session)
    assert found is not None
    return [message["content"] for message in found.messages if message["role"] == "user"]


def talk(*typed: str, term: str = "xterm-256color", answers: int = 1) -> list[str]:
    """Types, each text when the one before was answered, and leaves; returns the questions that the model got."""
    terminal = Terminal("chat", "m", "--session", "s", term=term)
    terminal.wait_for(">>> ")
    for i, text in enumerate(typed):
        terminal.type(text)
        terminal.wait_for(f")#{2 * i + 1}")
    terminal.wait_for(f")#{2 * answers - 1}")
    assert terminal.exit_code(press="\x04") == 0
    return questions()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (f"{BEGIN}{SNIPPET}{END}\n", SNIPPET),
        (f"{BEGIN}{SNIPPET}\n{END}\n", SNIPPET),
        (f"{BEGIN}{SNIPPET}{END}\n".replace("\n", "\r"), SNIPPET),  # as terminals send the ends of lines
        (f"what is this: {BEGIN}a\nb{END} ?\n", "what is this: a\nb ?"),
        (f"{BEGIN}one{END} {BEGIN}two\nthree{END}\n", "one two\nthree"),
        (f"{BEGIN}/usr/bin/env\n/bin/sh{END}\n", "/usr/bin/env\n/bin/sh"),
        (f'{BEGIN}"""Doc."""\nimport os{END}\n', '"""Doc."""\nimport os'),
        (f'{BEGIN}"""\nfenced\ntext\n"""{END}\n', "fenced\ntext"),
        (f"{BEGIN}# émoji 🎉\nжук{END}\n", "# émoji 🎉\nжук"),
        (f"{BEGIN}{'x' * 70}\n{'y' * 5000}{END}\n", f"{'x' * 70}\n{'y' * 5000}"),
    ],
)
def test_a_paste_is_one_message(typed: str, expected: str) -> None:
    assert talk(typed) == [expected]


def test_after_a_paste_comes_the_next_message() -> None:
    assert talk(f"{BEGIN}a\nb{END}\n", "c\n", f"{BEGIN}d\ne{END}\n", answers=3) == ["a\nb", "c", "d\ne"]


def test_lines_that_are_typed_ahead_stay_messages_of_their_own() -> None:
    assert talk("one\ntwo\n", answers=2) == ["one", "two"]


def test_a_paste_of_a_command_with_lines() -> None:
    terminal = Terminal("chat", "m", "--session", "s", term="xterm")
    terminal.wait_for(">>> ")
    terminal.type(f"{BEGIN}/system Be brief.\nBe kind.{END}\n")
    terminal.wait_for("(system message set)")
    terminal.type("hello\n")
    terminal.wait_for(")#2")
    assert terminal.exit_code(press="\x04") == 0
    found = ConversationStore().load("s")
    assert found is not None
    assert found.messages[0] == {"role": "system", "content": "Be brief.\nBe kind."}


def test_a_terminal_without_marks() -> None:
    """What waits behind a line came with it; commands are commands all the same."""
    assert talk("a\nb\nc\n", term="dumb") == ["a\nb\nc"]
    terminal = Terminal("chat", "m", "--session", "t", term="dumb")
    terminal.wait_for(">>> ")
    terminal.type("/stats\nfirst\nsecond\n/bye\n")
    assert terminal.exit_code() == 0
    assert questions("t") == ["first\nsecond"]


def test_libedit_is_not_told_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setenv("TERM", "xterm")
    assert not _keep_pastes_together(told.append, "Importing this module enables … libedit readline.")
    assert told == []
    assert _keep_pastes_together(told.append, "GNU readline")
    assert told == ["set enable-bracketed-paste on"]


def test_marks_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel().install(monkeypatch)
    assert kamado("chat", "m", stdin=f"before\n{BEGIN}{SNIPPET}\n{END}\nafter\n").exit_code == 0
    assert [call[1][-1]["content"] for call in model.calls] == ["before", SNIPPET, "after"]
    assert kamado("chat", "m", stdin=f"{BEGIN}a\nno end").exit_code == 0
    assert model.calls[-1][1][-1]["content"] == "a\nno end"


def test_without_marks() -> None:
    assert without_marks(f"{BEGIN}a\r\nb\rc\n\n{END}") == "a\nb\nc"
    assert without_marks("plain  ") == "plain  "


@needs_tmux
def test_tmux(tmp_path: Path) -> None:
    with running(tmp_path, sys.executable, PROGRAM, "chat", "m", "--session", "s") as tmux:
        tmux.wait_for(">>>")
        tmux.paste(SNIPPET)
        tmux.keys("Enter")
        tmux.wait_for(")#1")
        tmux.leave()
    assert questions() == [SNIPPET]
