"""tools/dev.py runs steps and commands beside each other: each output whole and in order, every failure counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def dev(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import dev

    monkeypatch.setattr(dev, "install_for_tests", lambda: None)
    monkeypatch.setattr(dev, "COMPATIBILITY_RECORD", tmp_path / "record.json")
    return dev


def says(text: str, code: int = 0, *, after: str = "") -> list[str]:
    """A command that waits for a file `after`, makes one called as its text, and ends with `code`."""
    wait = f"import pathlib, time\nwhile not pathlib.Path({after!r}).exists(): time.sleep(0.005)\n" if after else ""
    return [sys.executable, "-S", "-c", f"{wait}print({text!r})\nopen({text!r}, 'w').close()\nraise SystemExit({code})"]


def test_two_commands_run_at_once_and_are_shown_in_order(
    dev: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev.run_beside([says("first", after="second"), says("second"), says("third")], cwd=tmp_path)
    assert capsys.readouterr().out.split() == ["first", "second", "third"]


def test_every_command_that_failed_is_named(
    dev: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(dev.StepError, match=r"(?s)^exit code 3 from: .*one.*; exit code 5 from: .*three"):
        dev.run_beside([says("one", 3), says("two"), says("three", 5)], cwd=tmp_path)
    assert capsys.readouterr().out.split() == ["one", "two", "three"]


@pytest.mark.parametrize(("code", "summary"), [(0, "2 passed, 0 failed"), (1, "1 passed, 1 failed")])
def test_a_step_that_was_begun_beside_another_is_told_in_its_turn(
    dev: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], code: int,
    summary: str,
) -> None:  # fmt: skip
    def first(_: list[str]) -> None:
        subprocess.run(says("first", after="second"), cwd=tmp_path, check=True)

    monkeypatch.setattr(dev, "CHECKS", {"a": first, "b": lambda _: pytest.fail("it was begun already")})
    monkeypatch.setattr(dev, "BESIDE", {"a": "b"})
    begin = dev.in_background
    words: list[object] = []

    def beside(command: list[object]) -> object:
        words.extend(command)
        return begin(says(str(tmp_path / "second"), code))

    monkeypatch.setattr(dev, "in_background", beside)
    assert dev.test(["a", "b"]) == code
    out = capfd.readouterr().out
    assert out.index("first") < out.index("== a: passed") < out.index("second\n")
    assert f"checks: {summary}, 0 skipped" in out
    assert words[-1] == "b"


def test_what_runs_in_the_background_ends_with_what_it_was_begun_for(dev: ModuleType) -> None:
    sleeps = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    with pytest.raises(RuntimeError), dev.in_background(sleeps) as (process, _):
        raise RuntimeError
    assert process.poll() is not None
