"""What a conversation can do beside answering: settings, files, its context, going on, and what a person is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fake_model import CONTEXT, FakeModel
from test_cli_commands import kamado

from kamado import Usage
from kamado.cli.chat_commands import completed as completions
from kamado.cli.chat_context import leave_out, room_wanted, tokens_by_message, why_cut
from kamado.cli.chat_files import MAX_FILE_BYTES, attach, with_files
from kamado.cli.lines import completer
from kamado.engine.turns.conversations import ConversationStore
from kamado.errors import ContextOverflowError, UsageError


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    return FakeModel().install(monkeypatch)


def asked(model: FakeModel) -> list[str]:
    return [call[1][-1]["content"] for call in model.calls]


# --- /set, /show, /help -----------------------------------------------------------------------------------------------


def test_set_alone_shows_values_and_defaults(model: FakeModel) -> None:
    lines = ["/set temperature 0.2", '/set stop "the end" X', "/set max-tokens 9", "/set"]
    table = kamado("chat", "m", stdin="\n".join(lines)).stdout.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in table}
    assert table[0].split() == ["NAME", "VALUE", "DEFAULT"]
    assert rows["temperature"] == ["0.2", "0.6"], "the model file's recommendation is the default"
    assert rows["top_k"] == ["40", "40"]
    assert rows["max_tokens"] == ["9", "to", "the", "end"]
    assert rows["stop"] == ["'the", "end'", "X", "none"]
    assert rows["format"][0] == "on:"


def test_set_one(model: FakeModel) -> None:
    result = kamado(
        "chat", "m", stdin="/set temperature 0.2\n/set temperature\n/set temperature default\nhi\n/set top-p\n"
    )
    assert "temperature  0.2    0.6" in result.stdout
    assert model.calls[-1][2] == {}
    assert "top_p  0.95   0.95" in result.stdout


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("temperature hot", "'hot' is no number"),
        ("top_k 1.5", "'1.5' is no whole number"),
        ("top_p 2", "top_p must be a number above 0 to 1"),
        ("nonsense 1", "/set takes one of"),
        ("nonsense", "/set takes one of"),
        ("logit_bias 1", "--logit-bias"),
        ("format maybe", "format is on or off"),
        ("stop 'open", "no closing quotation"),
    ],
)
def test_a_wrong_setting_is_said_at_once(model: FakeModel, setting: str, words: str) -> None:
    result = kamado("chat", "m", stdin=f"/set {setting}\nhi\n")
    assert words in result.stderr
    assert result.stderr.count("kamado: error:") == 1
    assert model.calls[-1][2] == {}


def test_show_and_help(model: FakeModel) -> None:
    result = kamado("chat", "m", stdin="/show\n/help\n")
    assert "m (fake)" in result.stdout
    assert "4,096 tokens" in result.stdout
    assert "weights  4.00 MiB  3.00 MiB" in result.stdout
    for group in ("Conversation", "Files", "Settings", "Other"):
        assert f"\n{group}\n" in result.stdout
    assert "/file PATH" in result.stdout


# --- /file ------------------------------------------------------------------------------------------------------------


def test_a_file_goes_with_the_next_question(model: FakeModel, tmp_path: Path) -> None:
    path = tmp_path / "my notes.py"
    path.write_text("x = 1\r\n```\n````\n")
    result = kamado("chat", "m", stdin=f"/file {path}\n/file\nwhat is it?\nand now?\n")
    assert asked(model) == ["my notes.py:\n`````py\nx = 1\n```\n````\n`````\n\nwhat is it?", "and now?"]
    assert "my notes.py goes with the next question: " in result.stderr
    assert "files for the next question: my notes.py" in result.stderr


def test_files_stay_when_the_question_failed(model: FakeModel, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    kamado("chat", "m", stdin=f"/file {tmp_path / 'a.txt'}\noverflow\nshort\n")
    assert asked(model)[1] == "a.txt:\n```txt\na text\n```\n\nshort"
    kamado("chat", "m", stdin=f"/file {tmp_path / 'a.txt'}\n/clear\nshort\n")
    assert asked(model)[-1] == "short"


def test_what_is_no_text_file(model: FakeModel, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"ELF\0\1")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "long").write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    (tmp_path / "full").write_text("word " * CONTEXT)
    os.mkfifo(tmp_path / "pipe")
    for name, words in {
        "binary": "is binary", "latin": "is binary or no UTF-8", "empty": "is empty", "long": "is longer than 1 MiB",
        "pipe": "is no file that can be read", "": "is a folder", "missing": "No such file", "full": "tokens and the",
    }.items():  # fmt: skip
        result = kamado("chat", "m", stdin=f"/file {tmp_path / name}\nhi\n")
        assert words in result.stderr
        assert str(tmp_path / name) in result.stderr
        assert asked(model)[-1] == "hi"


def test_several_files(tmp_path: Path) -> None:
    for name in ("a", "b.md"):
        (tmp_path / name).write_text(name)
    files = [attach(str(tmp_path / name)) for name in ("a", "b.md")]
    assert with_files(files, "?") == "a:\n```\na\n```\n\nb.md:\n```md\nb.md\n```\n\n?"
    assert with_files([], "?") == "?"


# --- the context ------------------------------------------------------------------------------------------------------


def count(messages: Sequence[dict[str, str]]) -> int:
    return sum(int(message["content"]) for message in messages)


def talk(*sizes: int) -> list[dict[str, str]]:
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": str(size)} for i, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((10, 10, 10, 10, 80), 4),  # the last question with 20 tokens of room
        ((40, 10, 10, 10, 50), 2),
        ((90, 10, 20), 2),
        ((10, 10, 95), 2),  # less room than wanted, but it fits
        ((10, 10, 100), None),
        ((100,), None),
        ((70, 10, 10, 10, 10, 10), 2),  # the last answer is to be gone on with
    ],
)
def test_the_least_is_left_out(sizes: Sequence[int], expected: int | None) -> None:
    assert leave_out(count, [], talk(*sizes), 100, 20) == expected


def test_the_system_message_stays() -> None:
    system = [{"role": "system", "content": "50"}]
    assert leave_out(count, system, talk(20, 10, 10), 100, 30) == 2
    assert leave_out(count, system, talk(20, 10, 50), 100, 30) is None


def test_a_prompt_that_is_too_long_to_count() -> None:
    def refuse(messages: Sequence[dict[str, str]]) -> int:
        if len(messages) > 1:
            raise ContextOverflowError(9999, 100)
        return 10

    assert leave_out(refuse, [], talk(1, 1, 1, 1, 1), 100, 20) == 4


def test_room() -> None:
    assert room_wanted(4096, None) == 1024
    assert room_wanted(4096, 100) == 100
    assert room_wanted(2, None) == 1


def test_context_by_message(model: FakeModel) -> None:
    lines = kamado("chat", "m", "--system", "be kind", stdin="one two\n/context\n").stdout.splitlines()
    assert lines[1].split() == ["MESSAGE", "ROLE", "TOKENS", "TEXT"]
    assert [line.split()[:3] for line in lines[2:5]] == [
        ["1", "system", "6"],
        ["2", "user", "6"],
        ["3", "assistant", "6"],
    ]
    assert lines[5].startswith("18 of 4,096 tokens, 0%")
    assert lines[6] == "of the last question's 12 tokens, 3 were cached"
    assert "nothing was said yet" in kamado("chat", "m", stdin="/context\n").stderr


def test_many_messages_are_listed_together() -> None:
    found = tokens_by_message(count, talk(*[2] * 100))
    assert found[0] == (60, 122)
    assert len(found) == 40
    assert sum(tokens for _, tokens in found) == 200


def test_which_limit_cut_an_answer(model: FakeModel) -> None:
    def usage(num_prompt: int, num_generated: int) -> Usage:
        return Usage(num_prompt, 0, num_generated, 0.0, 0.0, 0.0)

    assert "after 9 tokens, the limit max_tokens: /continue" in why_cut(usage(10, 9), 100, {"max_tokens": 9})
    assert "the context of 100 tokens is full: /trim" in why_cut(usage(91, 9), 100, {"max_tokens": 50})
    assert "only repeated itself" in why_cut(usage(10, 9), 100, {"stop_on_repeat": 8})
    assert "the limit max_tokens" in kamado("chat", "m", "-n", "2", stdin="hi\n").stderr
    assert "limit" not in kamado("chat", "m", stdin="hi\n").stderr


def test_continue(model: FakeModel) -> None:
    result = kamado("chat", "m", "--session", "s", "-n", "2", stdin="/continue\nhi\n/continue\nnext\n")
    assert "there is no answer to go on with" in result.stderr
    assert result.stdout == "echo(hi\n and more\necho(next\n"
    assert model.calls[1][2]["continue_last"] is True
    assert model.calls[1][1][-1] == {"role": "assistant", "content": "echo(hi"}
    assert [m["content"] for m in model.calls[2][1]] == ["hi", "echo(hi and more", "next"]
    found = ConversationStore().load("s")
    assert found is not None
    assert len(found.messages) == 4


def test_a_session_keeps_what_was_gone_on_with(model: FakeModel) -> None:
    kamado("chat", "m", "--session", "s", "-n", "2", stdin="hi\n")
    kamado("chat", "m", "--session", "s", stdin="/continue\n")
    found = ConversationStore().load("s")
    assert found is not None
    assert [m["content"] for m in found.messages] == ["hi", "echo(hi and more"]


def test_a_server_that_goes_away(model: FakeModel) -> None:
    """What came of the answer stays; a question without one can be asked again."""
    result = kamado("chat", "m", stdin="gone\n/continue\noverflow\n/retry\nhi\n/retry\n")
    assert "error: the server at 127.0.0.1:8417 went away" in result.stderr
    assert model.calls[1][1][-1] == {"role": "assistant", "content": "half an answer"}
    assert asked(model)[2:] == ["overflow", "overflow", "hi", "hi"]
    assert "there is no question" not in result.stderr


def test_a_piped_answer_is_the_answer(model: FakeModel) -> None:
    from fake_model import JAPANESE, MARKDOWN

    assert kamado("run", "m", "markdown").stdout == MARKDOWN
    assert kamado("run", "m", "japanese").stdout == f"{JAPANESE}\n"


# --- Tab --------------------------------------------------------------------------------------------------------------


def test_what_tab_completes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a folder" / "b.txt").touch()
    for name in ("notes.txt", ".hidden", "odd\x1b[2Jname"):
        (tmp_path / name).touch()
    assert completions("/f") == ["/file "]
    assert completions("/s") == ["/save ", "/set ", "/show ", "/stats ", "/system "]
    assert completions("/file n") == ["/file notes.txt"]
    assert completions("/file ") == ["/file a folder/", "/file notes.txt"]
    assert completions("/file .h") == ["/file .hidden"]
    assert completions("/file a folder/") == ["/file a folder/b.txt"]
    assert completions(f"/load {tmp_path}/no") == [f"/load {tmp_path}/notes.txt"]
    assert completions("/save ~/no") == ["/save ~/notes.txt"]
    assert completions("/file missing/") == []
    assert completions("/file ~nobody-there/") == []
    assert completions("/set temp") == ["/set temperature "]
    assert completions("/set max-t") == ["/set max_tokens "]
    assert completions("/set temperature d") == ["/set temperature default"]
    assert completions("/set format o") == ["/set format on", "/set format off"]
    assert completions("/system n") == completions("hello /f") == completions("/nonsense x") == []


def test_readline_gets_what_follows_the_last_blank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b c.txt").touch()

    class Readline:
        line = "/file a b"

        def get_line_buffer(self) -> str:
            return self.line + " after the cursor"

        def get_begidx(self) -> int:
            return self.line.rindex(" ") + 1

        def get_endidx(self) -> int:
            return len(self.line)

    complete: Callable[[str, int], str | None] = completer(Readline(), completions)
    assert [complete("b", n) for n in range(2)] == ["b c.txt", None]


def test_attach_names_what_cannot_be_a_name() -> None:
    with pytest.raises(UsageError, match="no name of a file"):
        attach("a\0b")
