"""`run` and `ask`: answers of a given form, sessions, no prompt on a terminal, and bare `kamado`.

A real model of 300 kB whose weights are random: whatever form its answers have comes of the form that was asked for.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fake_model import FakeModel
from serve.own_server import beside
from serve.stores import put
from terminals import Terminal
from test_cli_commands import kamado

from kamado.cli import loading
from kamado.cli.forms import check_whole, form_of, read_schema
from kamado.cli.main import COMMANDS, cli
from kamado.engine.turns.conversations import ConversationStore
from kamado.errors import KamadoError, UsageError
from kamado.library.store import Store

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["noun", "verb"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 1, "maxItems": 2},
    },
    "required": ["kind", "count", "tags"],
    "additionalProperties": False,
}
SMALL = ("--memory", "1GiB", "--prefix-cache", "off", "-j", "1", "-t", "1")


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_has_the_schema_that_was_given(tiny_checkpoint: Path, tmp_path: Path, seed: int) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    source = str(file) if seed % 2 else json.dumps(SCHEMA)
    result = kamado("run", str(tiny_checkpoint), "hi", "--schema", source, "--seed", str(seed), *SMALL)
    assert result.exit_code == 0, result.output
    jsonschema.validate(json.loads(result.stdout), SCHEMA)


def test_any_json_object(tiny_checkpoint: Path) -> None:
    found = [kamado("run", str(tiny_checkpoint), "hi", "--json", "--seed", str(seed), *SMALL) for seed in range(4)]
    whole = [result for result in found if result.exit_code == 0]
    assert whole, "each was cut"
    for result in whole:
        assert isinstance(json.loads(result.stdout), dict)
    for result in found:
        if result not in whole:
            assert "cut before its form was complete" in result.stderr


def test_an_expression(tiny_checkpoint: Path) -> None:
    result = kamado("run", str(tiny_checkpoint), "hi", "--regex", "[A-C]{3}-[0-9]{2}", "--seed", "1", *SMALL)
    assert re.fullmatch(r"[A-C]{3}-[0-9]{2}\n", result.stdout), result.output


def test_a_prompt_without_a_template_has_a_form_too(tiny_checkpoint: Path) -> None:
    result = kamado("run", str(tiny_checkpoint), "Once", "--raw", "--regex", "(yes|no)", "--seed", "1", *SMALL)
    assert result.stdout in ("yes\n", "no\n")


def test_a_cut_answer_is_no_success(tiny_checkpoint: Path) -> None:
    result = kamado("run", str(tiny_checkpoint), "hi", "--schema", json.dumps(SCHEMA), "-n", "5", "--seed", "1", *SMALL)
    assert result.exit_code == 1
    assert result.stderr.startswith("kamado: error: the answer was cut before its form was complete")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--schema", "{", "hi"], "the schema is no JSON"),
        (["--schema", "/no/such/file", "hi"], "/no/such/file: No such file"),
        (["--schema", "FILE", "hi"], "no JSON"),
        (["--schema", "FOLDER", "hi"], "Is a directory"),
        (["--schema", '{"type": 3}', "hi"], "type"),
        (["--schema", "true", "--json", "hi"], "--schema and --json contradict each other"),
        (["--regex", "(", "hi"], "the regular expression"),
        (["--session", "../x", "hi"], "no name for a session"),
        (["--raw", "--session", "s", "hi"], "--session keeps conversations"),
    ],
)
def test_what_cannot_be_is_one_sentence(tiny_checkpoint: Path, tmp_path: Path, words: list[str], says: str) -> None:
    (tmp_path / "schema").write_text("[1,")
    names = {"FILE": str(tmp_path / "schema"), "FOLDER": str(tmp_path)}
    result = kamado("run", str(tiny_checkpoint), *[names.get(word, word) for word in words], *SMALL)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert says in result.stderr


def test_a_schema_is_read_before_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = FakeModel().install(monkeypatch)
    assert kamado("run", "m", "hi", "--schema", "{").exit_code == 2
    assert model.path is None
    (tmp_path / "large").write_bytes(b" " * ((1 << 20) + 1))
    (tmp_path / "deep").write_text("[" * 100_000)
    for name in ("large", "deep"):
        with pytest.raises(UsageError):
            read_schema(str(tmp_path / name))
    assert form_of("true", None, False) == {"schema": True}
    assert form_of(None, "a+", False) == {"regex": "a+"}
    assert form_of(None, None, False) == {}


def test_without_the_package_the_pip_line_is_said(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    result = kamado("run", str(tiny_checkpoint), "hi", "--json", *SMALL)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "pip install 'kamado[schema]'" in result.stderr


def test_whole_and_cut_answers() -> None:
    check_whole('{"a": 1}', "stop", {"schema": True})
    check_whole("abc", "stop", {"regex": "abc"})
    for text, reason in [('{"a"', "stop"), ("{}", "length")]:
        with pytest.raises(KamadoError, match="was cut"):
            check_whole(text, reason, {"schema": True})


def test_a_server_that_runs_here_keeps_the_form(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(Store().root, "tiny", tiny_checkpoint)
    words = ("run", "tiny", "hi", "--schema", json.dumps(SCHEMA), "--seed", "1", "-t", "1", "--log")
    alone = kamado(*words)
    assert alone.exit_code == 0, alone.output
    with beside() as up:
        with monkeypatch.context() as patch:
            patch.setattr(loading, "load", None)  # it must not be called
            there = kamado(*words)
            assert (there.exit_code, there.stdout, there.stderr) == (0, alone.stdout, "")
        assert "kamado ps" in kamado().stdout
        connected = json.loads(kamado("connect", "aider", "--json").stdout)
        assert (connected["server"], connected["model"], connected["check"]["ok"]) == (up.url, "tiny", True)
    kept = json.loads(kamado("history", "--json").stdout)
    assert [entry["answer"] for entry in kept] == [alone.stdout.strip()] * 2


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_goes_on_between_runs_and_the_chat(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("-n", "4", "--seed", "1", "--memory", "1GiB", "-j", "1")
    assert kamado("run", str(tiny_checkpoint), "one", "--session", "s", "--system", "Be.", *words).exit_code == 0
    assert kamado("run", str(tiny_checkpoint), "two", "--session", "s", *words).exit_code == 0
    kept = ConversationStore().load("s")
    assert kept is not None
    assert [message["role"] for message in kept.messages] == ["system", "user", "assistant", "user", "assistant"]
    schema = ("--schema", '{"enum": [1, 2]}')
    assert kamado("run", str(tiny_checkpoint), "three", "--session", "s", *schema, *words).exit_code == 0
    kept = ConversationStore().load("s")
    assert kept is not None
    assert [m["content"] for m in kept.messages if m["role"] == "user"] == ["one", "two", "three"]
    assert kept.messages[-1]["content"] in ("1", "2")
    model = FakeModel().install(monkeypatch)
    assert kamado("chat", "m", "--session", "s", stdin="four\n").exit_code == 0
    assert len(model.calls[0][1]) == 8


def test_a_typed_system_message_is_the_sessions_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel().install(monkeypatch)
    ConversationStore().record("s", "m", [{"role": "system", "content": "old"}, {"role": "user", "content": "x"}])
    assert kamado("run", "m", "hi", "--session", "s").exit_code == 0
    assert kamado("run", "m", "hi", "--session", "s", "--system", "new").exit_code == 0
    assert [call[1][0]["content"] for call in model.calls] == ["old", "new"]
    assert [len(call[1]) for call in model.calls] == [3, 3]


# --- without a prompt, and without anything ---------------------------------------------------------------------------


def test_run_without_a_prompt_on_a_terminal_is_the_conversation() -> None:
    child = Terminal("run", "m", "--system", "Be brief.")
    child.wait_for(">>> ")
    child.type("one\n")
    child.wait_for("echo(one)#2")  # the system message is there
    child.wait_for(">>> ", 2)
    child.type("/bye\n")
    assert child.exit_code() == 0


def test_run_without_a_prompt_elsewhere_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeModel().install(monkeypatch)
    assert kamado("run", "m", stdin="piped\n").stdout == "echo(piped)#1\n"


def test_a_form_without_a_prompt_is_no_conversation() -> None:
    child = Terminal("run", "m", "--json")
    assert child.exit_code() == 2
    assert "there is no prompt" in child.output


def test_kamado_alone_says_what_to_do_next(tiny_checkpoint: Path) -> None:
    result = kamado()
    assert (result.exit_code, result.stderr) == (0, "")
    assert "kamado run --pull smollm2:135m" in result.stdout
    assert len(result.stdout.splitlines()) < 12
    put(Store().root, "mini:1", tiny_checkpoint)
    result = kamado()
    for line in ("kamado run mini:1", 'kamado run mini:1 "Why', "kamado serve mini:1", "1 model is here"):
        assert line in result.stdout
    assert "--pull" not in result.stdout
    put(Store().root, "second:1", tiny_checkpoint)
    kamado("config", "set", "model", "a second:1")
    result = kamado()
    assert "kamado run 'a second:1'" in result.stdout
    assert "kamado ask" in result.stdout
    assert len(result.stdout.splitlines()) < 12


def test_kamado_alone_with_a_server_and_with_a_damaged_store(monkeypatch: pytest.MonkeyPatch) -> None:
    from kamado.errors import ServerError
    from kamado.local import place

    class Here:
        def close(self) -> None: ...

    monkeypatch.setattr(place, "find", Here)
    assert "kamado ps" in kamado().stdout

    def hangs() -> None:
        raise ServerError("the server here takes no connections: it hangs")

    monkeypatch.setattr(place, "find", hangs)
    assert "it hangs" in kamado().stdout
    Store().root.parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(Store, "list", lambda self: (_ for _ in ()).throw(UsageError("the store is damaged")))
    result = kamado()
    assert result.exit_code == 0
    assert "kamado doctor  # the store cannot be read: the store is damaged" in result.stdout


@pytest.mark.parametrize("name", list(COMMANDS))
def test_no_command_squashes_its_help_into_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, each does something, prints its help as it is, or says in one short line what is missing."""
    FakeModel().install(monkeypatch)
    if name == "serve":
        pytest.skip("alone it serves")
    for words in ([name], [name, "--no-such-option"]):
        result = kamado(*words, stdin="")
        errors = [line for line in result.stderr.splitlines() if "error" in line]
        assert len(errors) <= 1
        assert all(len(line) < 300 and "Usage:" not in line and "Options:" not in line for line in errors)


def test_groups_alone_do_something() -> None:
    import click

    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        if isinstance(command, click.Group):
            assert command.invoke_without_command, f"{name} alone would be an error made of its help"
