"""What the README's first and third command do once Kamado is built. CI runs them for real."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pages import ROOT, commands

sys.path.insert(0, str(ROOT / "tools"))
import dev


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Commands that were run beside, without the program's own place; all go well."""
    found: list[list[str]] = []

    def run(words: list[str], **_: object) -> SimpleNamespace:
        found.append(words[1:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(dev, "models_made", lambda: tmp_path / "made")
    monkeypatch.setattr(dev, "say", lambda text: None)
    return found


def terminal(monkeypatch: pytest.MonkeyPatch, is_one: bool) -> None:
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(sys, stream, SimpleNamespace(isatty=lambda: is_one))


def free(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=nbytes))


def test_the_first_chats_with_a_small_model(called: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch, True)
    assert dev.chat_command()[1:] == ["chat", "smollm2:135m"]
    assert called == [["pull", "smollm2:135m"]]


def test_without_a_terminal_one_question_is_answered(called: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch, False)
    assert dev.chat_command()[1:] == ["run", "smollm2:135m", dev.QUESTION]


@pytest.mark.parametrize(("nbytes", "is_made"), [(10**11, True), (10**9, False)])
def test_the_third_makes_its_model_where_there_is_room(
    called: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nbytes: int, is_made: bool
) -> None:
    terminal(monkeypatch, True)
    free(monkeypatch, nbytes)
    model = str(tmp_path / "made" / dev.UPCYCLED) if is_made else "smollm2:135m"
    assert dev.stream_command()[1:] == ["chat", model, *dev.BUDGET, "--stats"]
    made = [["synth", model, "--upcycle", "smollm2:135m", "--experts", "64", "--top-k", "2"]]
    assert called == [["pull", "smollm2:135m"], *(made if is_made else []), ["plan", model, *dev.BUDGET]]


@pytest.mark.parametrize(("code", "error"), [(dev.EXIT_DOWNLOAD, dev.SkipStep), (3, dev.StepError)])
def test_a_model_that_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception]) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=code))
    with pytest.raises(error):
        dev.chat_command()


@pytest.mark.parametrize("page", ["README.md", "README.ja.md"])
def test_the_readme_has_the_three(page: str) -> None:
    steps = [text.split()[2] for _, text in commands(page) if text.startswith("python3 tools/dev.py")]
    assert steps == ["run", "test", "stream"]
