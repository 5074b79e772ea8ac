"""A person talks in a terminal beside a server: one that answers, one that goes away, one of another version."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_model import JAPANESE
from serve.own_server import Asked, beside, scripted, status_of
from serve.stores import put
from terminals import Terminal
from tmux import needs_tmux, running

from kamado import __version__
from kamado.cli import loading
from kamado.cli.cells import text_cells
from kamado.local import documents as d

USAGE = d.write(d.Spent(9, 0, 3, 0.0, 0.1, 0.1))


@pytest.fixture
def tiny(tiny_checkpoint: Path) -> Path:
    """The store's model "tiny"."""
    put(Path(os.environ["KAMADO_HOME"]), "tiny", tiny_checkpoint)
    return loading.locate("tiny")


def begin(*arguments: str, columns: int = 100) -> Terminal:
    terminal = Terminal("chat", "tiny", *arguments, term="xterm", program=("-m", "kamado"), columns=columns)
    terminal.wait_for(">>> ")
    return terminal


def saying(path: Path, *rows: Any, **status: Any) -> Callable[[Asked], None]:
    """A server that fits the model and answers with these rows."""
    state = d.write(d.Told(d.PROTOCOL, __version__, d.ModelState(**status_of(path)["models"][0])))
    told = {"told": state}

    def script(asked: Asked) -> None:
        if asked.path == d.STATUS_PATH:
            asked.give_json(status_of(path, **status))
            return
        asked.begin()
        for row in [told] if asked.path == d.MODEL_PATH else rows:
            asked.line(row)

    return script


def pieces(*texts: str, is_whole: bool = True) -> list[Any]:
    """The rows of an answer."""
    rows: list[Any] = [{"piece": [text, 1, None, [], None]} for text in texts]
    end = [{"piece": ["", 2, None, [], "stop"]}, {"done": USAGE}] if is_whole else []
    return [{"started": [9, 512, 1]}, *rows, *end]


def test_a_real_server_answers(tiny: Path) -> None:
    with beside():
        terminal = begin("-n", "6")
        terminal.ask("hello", "(cut after 6 tokens, the limit max_tokens")
        terminal.ask("/continue", "(cut after 6 tokens, the limit max_tokens", 2)
        terminal.ask("/context", "of 512 tokens")
        terminal.leave()
    assert "answering from the server here" in terminal.output
    assert "answered by the server" in terminal.output
    assert "error" not in terminal.output


def test_what_a_server_says_is_wrapped(tiny: Path) -> None:
    with scripted(saying(tiny, *pieces(*JAPANESE))):
        terminal = begin(columns=40)
        terminal.ask("hello", ">>> ", 2)
        lines = terminal.leave()
    rows = lines[next(i for i, line in enumerate(lines) if line.endswith("hello")) + 1 : -2]
    assert "".join(rows) == JAPANESE
    assert all(text_cells(row) < 40 for row in rows)


def test_a_server_that_goes_away_in_the_middle(tiny: Path) -> None:
    with scripted(saying(tiny, *pieces("half an ", "answer", is_whole=False))):
        terminal = begin()
        terminal.ask("hello", "the answer above is not whole")
        lines = terminal.leave()
    assert lines[lines.index("half an answer") + 1].startswith("kamado: error: ")


def test_a_server_of_another_version(tiny: Path) -> None:
    """It is said, and the model answers here."""
    with scripted(saying(tiny, kamado="0.0.1")):
        terminal = begin("-n", "4")
        terminal.ask("hello", "(cut after 4 tokens")
        terminal.leave()
    assert "the server here is Kamado 0.0.1" in terminal.output
    assert "answered by this process" in terminal.output


def test_a_full_context_of_a_real_model(tiny: Path) -> None:
    # Letters alone, and no end before the limit: the weights are random.
    biases = [f"--logit-bias={token}=-100" for token in range(261) if not 0x61 <= token <= 0x7A]
    terminal = begin("--context", "160", "-n", "24", *biases, columns=200)
    for i in range(2):
        terminal.ask("a question of some length", ">>> ", i + 2)
    terminal.ask("and another question", "leave out the oldest 2 messages? [Y/n] ")
    terminal.ask("", ">>> ", 4)
    terminal.ask("/context", "MESSAGE  ROLE")
    terminal.leave()
    assert "error" not in terminal.output


@needs_tmux
def test_a_server_that_goes_away_in_tmux(tiny: Path, tmp_path: Path) -> None:
    with (
        scripted(saying(tiny, *pieces(*JAPANESE, is_whole=False))),
        running(tmp_path, sys.executable, "-m", "kamado", "chat", "tiny", columns=51) as tmux,
    ):
        tmux.wait_for(">>>")
        tmux.keys("hello", "Enter")
        rows = tmux.wait_for("not whole")
        begin = rows.index(">>> hello") + 1
        answer = rows[begin : next(i for i, row in enumerate(rows) if row.startswith("kamado: error"))]
        assert "".join(answer) == JAPANESE
        tmux.leave()
