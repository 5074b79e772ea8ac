"""The log of prompts: only when it is wanted, for the user alone, bounded, and never at an answer's cost."""

from __future__ import annotations

import json
import sqlite3
import stat
from pathlib import Path

import pytest
from fake_model import FakeModel
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli_commands import kamado

from kamado.cli import prompt_log
from kamado.cli.prompt_log import Entry, LogError, PromptLog


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    return FakeModel().install(monkeypatch)


@pytest.fixture
def log(tmp_path: Path) -> PromptLog:
    return PromptLog(tmp_path / "log" / "prompts.sqlite")


def entry(prompt: str, answer: str = "a") -> Entry:
    return Entry("run", "m", prompt, answer)


def prompts(found: list[Entry]) -> list[str]:
    return [item.prompt for item in found]


def test_nothing_is_kept_unless_it_is_wanted(model: FakeModel) -> None:
    assert kamado("run", "m", "one").exit_code == 0
    assert not PromptLog().path.exists()
    assert "nothing was kept yet" in kamado("history").stderr
    assert kamado("run", "m", "two", "--log", "--system", "Be brief.", "-t", "0").exit_code == 0
    assert kamado("config", "set", "log_prompts", "true").exit_code == 0
    assert kamado("ask", "-m", "m", "three").exit_code == 0
    assert kamado("run", "m", "four", "--no-log").exit_code == 0
    assert kamado("chat", "m", stdin="five\nsix\n").exit_code == 0
    assert kamado("run", "m", "--raw", "seven").exit_code == 0
    found = json.loads(kamado("history", "--json").stdout)
    assert [(e["command"], e["prompt"], e["answer"]) for e in found] == [
        ("run", "seven", "raw:seven"),
        ("chat", "six", "echo(six)#3"),
        ("chat", "five", "echo(five)#1"),
        ("ask", "three", "echo(three)#1"),
        ("run", "two", "echo(two)#2"),
    ]
    assert found[-1]["system"] == "Be brief."
    assert found[-1]["options"] == {"temperature": 0}
    assert (found[-1]["finish"], found[-1]["model"]) == ("stop", "fake")
    assert found[-1]["prompt_tokens"] > 0


def test_the_file_is_the_users_alone(model: FakeModel) -> None:
    kamado("run", "m", "one", "--log")
    path = PromptLog().path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA user_version").fetchone() == (prompt_log.VERSION,)


def test_words_are_found_anywhere(log: PromptLog, model: FakeModel) -> None:
    for prompt in ("Why is the sky blue?", "空はなぜ青いのですか", "100% of a_b"):
        log.add(entry(prompt))
    log.add(entry("x", "Because of SCATTERING"))
    for word, expected in [
        ("sky", ["Why is the sky blue?"]), ("SKY", ["Why is the sky blue?"]), ("青い", ["空はなぜ青いのですか"]),
        ("なぜ青い", ["空はなぜ青いのですか"]), ("scatter", ["x"]), ("0% of", ["100% of a_b"]), ("%", ["100% of a_b"]),
        ("_", ["100% of a_b"]), ('"', []), ("sky blue?", ["Why is the sky blue?"]), ("NOT", []),
    ]:  # fmt: skip
        assert prompts(log.find(word)) == expected, word
    assert len(log.find(limit=2)) == 2


def test_without_fts5_the_same_is_found(log: PromptLog, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(prompt_log, "_INDEX", "CREATE VIRTUAL TABLE words USING no_such_module(x)")
        log.add(entry("the sky"))
        assert prompts(log.find("sky")) == ["the sky"]
    with sqlite3.connect(log.path) as database:
        database.execute(prompt_log._INDEX)
    assert prompts(log.find("sky")) == ["the sky"], "an index that lacks it is not asked"
    log.add(entry("sky two"))
    assert prompts(log.find("sky")) == ["sky two", "the sky"], "and is made whole by the next that writes"
    with sqlite3.connect(log.path) as database:
        assert database.execute("SELECT count(*) FROM words_docsize").fetchone() == (2,)


def test_the_oldest_go(tmp_path: Path) -> None:
    few = PromptLog(tmp_path / "few.sqlite", max_entries=3)
    for i in range(5):
        few.add(entry(f"prompt {i}"))
    assert prompts(few.find()) == ["prompt 4", "prompt 3", "prompt 2"]
    assert few.find("prompt 1") == []
    small = PromptLog(tmp_path / "small.sqlite", max_bytes=3000)
    for i in range(5):
        small.add(entry(str(i) * 1000))
    assert [prompt[0] for prompt in prompts(small.find())] == ["4", "3"]
    small.add(entry("x" * 10_000))
    assert prompts(small.find()) == ["x" * 10_000], "the last is kept whatever its size"
    small.add(entry("y" * (prompt_log.MAX_TEXT + 1)))
    assert len(small.find()[0].prompt) == prompt_log.MAX_TEXT


texts = st.text(max_size=30)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(texts, texts), max_size=4), st.text(min_size=1, max_size=4))
def test_any_text_is_kept_and_found(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, str]], word: str
) -> None:
    log = PromptLog(tmp_path_factory.mktemp("log") / "p.sqlite")
    for prompt, answer in said:
        log.add(entry(prompt, answer))
    stored = [(p.encode("utf-8", "replace").decode(), a.encode("utf-8", "replace").decode()) for p, a in said]
    assert [(e.prompt, e.answer) for e in reversed(log.find())] == stored
    found = {(e.prompt, e.answer) for e in log.find(word)}
    if "\0" not in word and not any(0xD800 <= ord(c) < 0xE000 for c in word):
        assert {pair for pair in stored if "\0" not in "".join(pair) and any(word in text for text in pair)} <= found


def test_clearing_leaves_nothing_behind(model: FakeModel) -> None:
    kamado("run", "m", "a very secret question", "--log")
    path = PromptLog().path
    assert kamado("history", "--clear").stdout == "forgot 1 answer\n"
    assert "nothing was kept yet" in kamado("history").stderr
    for file in path.parent.glob(path.name + "*"):
        assert b"secret" not in file.read_bytes()
    assert kamado("run", "m", "two", "--log").exit_code == 0
    assert prompts(PromptLog().find("two")) == ["two"]
    assert kamado("history", "word", "--clear").exit_code == 2


def test_a_damaged_log_costs_a_warning_and_no_answer(model: FakeModel) -> None:
    path = PromptLog().path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"this is no database, and longer than a header of one " * 40)
    result = kamado("chat", "m", "--log", stdin="one\ntwo\n")
    assert (result.exit_code, result.stdout) == (0, "echo(one)#1\necho(two)#3\n")
    assert result.stderr.count("kamado: warning: the answer is not kept") == 1
    assert "kamado history --clear" in result.stderr
    result = kamado("history")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert kamado("history", "--clear").exit_code == 0
    assert kamado("run", "m", "three", "--log").stderr == ""
    assert prompts(PromptLog().find()) == ["three"]


def test_a_log_of_a_later_version_is_left_alone(log: PromptLog) -> None:
    log.add(entry("x"))
    with sqlite3.connect(log.path) as database:
        database.execute("PRAGMA user_version = 99")
    before = log.path.read_bytes()
    for use in (lambda: log.add(entry("y")), log.find, log.clear):
        with pytest.raises(LogError, match="a later Kamado"):
            use()
    assert log.path.read_bytes() == before


def test_a_locked_or_unwritable_log_costs_no_answer(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_log, "_BUSY_SECONDS", 0.01)
    kamado("run", "m", "one", "--log")
    with sqlite3.connect(PromptLog().path) as other:
        other.execute("BEGIN EXCLUSIVE")
        result = kamado("run", "m", "two", "--log")
    assert result.stdout == "echo(two)#1\n"
    assert "database is locked" in result.stderr
    monkeypatch.setattr(prompt_log, "user_folder", lambda *_: Path("/proc/nowhere/prompts.sqlite"))
    result = kamado("run", "m", "three", "--log")
    assert (result.exit_code, result.stdout) == (0, "echo(three)#1\n")
    assert "/proc/nowhere/prompts.sqlite" in result.stderr


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(log: PromptLog) -> None:
    pieces = FakeModel().chat([{"role": "user", "content": "hi"}])
    kept = prompt_log.RecordedPieces(pieces, entry("hi", ""), prompt_log.Recorder(log))  # type: ignore[arg-type]
    assert next(kept).text == "echo("
    kept.close()
    kept.close()
    assert [(e.answer, e.finish) for e in log.find()] == [("echo(", None)]


def test_the_table_shows_no_line_that_acts(model: FakeModel) -> None:
    kamado("run", "m", "two\nlines \x1b[31m" + "x" * 100, "--log")
    table = kamado("history").stdout.splitlines()
    assert len(table) == 2
    assert "\x1b" not in table[1]
    assert "two lines" in table[1]
    assert "…" in table[1]
    full = kamado("history", "--full").stdout
    assert "> two\nlines" in full
    assert "x" * 100 in full
