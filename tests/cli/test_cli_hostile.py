"""Nothing that a file, a store or an argument says can act on the terminal: every command, seen there and in JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serve.stores import put
from terminals import Terminal
from test_cli_commands import kamado

from kamado.cli import terminal
from kamado.cli.prompt_log import Entry, PromptLog
from kamado.cli.terminal import echo, echo_json, one_line, printable, styled
from kamado.cli.user_config import changed, config_path, write
from kamado.engine.turns.conversations import ConversationStore
from kamado.files.gguf_writer import GgufWriter
from kamado.files.types import Layout
from kamado.library.store import Store

# Clears the screen, sets the title, colours by a C1 control, turns letters about, goes back, and begins a line.
HOSTILE = "\x1b[2J\x1b]0;pwned\x07\x9b31m\u202egpj.exe\u2066\r\x08\x7f\ufeff\U000e0041\nkamado: all is well"
ACTS = re.compile("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u206f\ufeff\U000e0000-\U000e007f]")
OUR_STYLE = re.compile(r"\x1b\[(0|1|2|3[1-3])m")


def acting(output: str) -> list[str]:
    """What of an output acts on a terminal, our own colours and the terminal's ends of lines aside."""
    return ACTS.findall(OUR_STYLE.sub("", output.replace("\r\n", "\n"))) + re.findall(r"\r(?!\n)", output)


@pytest.fixture
def hostile(tmp_path: Path, write_tiny: Callable[..., Path]) -> Path:
    """A model that runs, hostile in its name (four bytes are all there is), keys, values and file name."""
    data = write_tiny(**{"note\x1b[2J\u202e": HOSTILE, "list\x07": [HOSTILE, HOSTILE]}).read_bytes()
    name = b"general.name\x08\0\0\0\x04\0\0\0\0\0\0\0"
    assert name + b"tiny" in data
    for key in (b"note", b"list"):  # below the architecture's prefix they would be refused
        data = data.replace(b"llama." + key, b"other." + key)
    path = tmp_path / "m\x1b[2J\u202e\x9b31m.gguf"
    path.write_bytes(data.replace(name + b"tiny", name + b"\x1b[2J"))
    return path


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    """A file of an architecture, tensors and a template that are hostile."""
    writer = GgufWriter(HOSTILE)
    writer.add("general.name", HOSTILE)
    writer.add("tokenizer.chat_template", "{{ messages }}" + HOSTILE)
    writer.add_tensor(f"a{HOSTILE[:20]}", (4, 32), Layout.F32)
    path = tmp_path / "unknown.gguf"
    with writer.open(path) as sink:
        import numpy as np

        sink.write(f"a{HOSTILE[:20]}", np.ones((4, 32), np.float32))
    return path


def damage_store(hostile: Path) -> None:
    """A model of the store, and a session, whose files on disk say hostile things."""
    put(Store().root, "good:1", hostile)
    (entry,) = Store().models_dir.glob("*/entry.json")
    data = json.loads(entry.read_text())
    entry.write_text(json.dumps({**data, "name": f"good:1{HOSTILE}", "source": {"kind": HOSTILE}}))
    ConversationStore().record("talk", HOSTILE, [{"role": "user", "content": HOSTILE}])
    write(config_path(), changed(config_path(), ("aliases", "a"), HOSTILE)[1])
    PromptLog().add(Entry("run", HOSTILE, HOSTILE, HOSTILE, session=HOSTILE))


COMMANDS = [
    ("plan", "M"),
    ("show", "M"),
    ("show", "M", "--tensors"),
    ("show", "M", "--template"),
    ("show", "M", "--program"),
    ("show", "U"),
    ("show", "U", "--tensors"),
    ("show", "U", "--template"),
    ("show", "U", "--program"),
    ("plan", "U"),
    ("run", "U", "hi"),
    ("bench", "M", "--prefill", "4", "--decode", "0", "--repeat", "1"),
    ("run", "M", "hi", "--memory", "10MiB"),
    ("run", "M", "hi", "-n", "40", "--stats"),
    ("embed", "M", "hi"),
    ("list",),
    ("doctor",),
    ("sessions",),
    ("rm", HOSTILE),
    ("rm", "nothing"),
    ("run", HOSTILE, "hi"),
    ("pull", HOSTILE),
    (HOSTILE,),
    ("plan", "M", "--memory", HOSTILE),
    ("plan", "M", "--device", "D"),
    ("plan", "M", "--kv", HOSTILE),
    ("config",),
    ("config", "set", HOSTILE, HOSTILE),
    ("history",),
    ("history", "--full"),
    ("history", HOSTILE),
    ("connect", "aider", "--server", HOSTILE),
    ("run", "M", "-T", HOSTILE, "hi"),
    (),
]


def words_of(command: tuple[str, ...], hostile: Path, unknown: Path) -> list[str]:
    device = unknown.with_name("device.toml")
    escaped = "".join(f"\\U{ord(letter):08x}" for letter in HOSTILE)
    figures = {"memory_bytes": 1 << 33, "threads": 2, "memory_bytes_per_second": 1e10, "f32_ops_per_second": 1e12}
    lines = [f'{name} = {{ value = {value}, source = "{escaped}" }}' for name, value in figures.items()]
    device.write_text("\n".join([f'name = "{escaped}"', *lines]))
    return [{"M": str(hostile), "U": str(unknown), "D": str(device)}.get(word, word) for word in command]


@pytest.mark.parametrize(
    "command", COMMANDS, ids=lambda command: " ".join(command)[:30].encode("unicode_escape").decode()
)
def test_no_command_lets_it_through(command: tuple[str, ...], hostile: Path, unknown: Path) -> None:
    damage_store(hostile)
    child = Terminal(*words_of(command, hostile, unknown), term="xterm", program=("-m", "kamado"))
    child.exit_code()
    assert child.output.strip(), "it says something"
    # The bar that shows how far a load has come begins its line anew: ours, and wiped.
    shown = re.sub(r"\r *\r|\r(?:loading|measuring|scoring)[^\r\n]*", "", child.output)
    assert acting(shown) == []


@pytest.mark.parametrize(
    "command",
    [("plan", "M"), ("plan", "M", "--device", "D"), ("show", "M"), ("show", "U"), ("show", "U", "--tensors"),
     ("show", "U", "--template"), ("list",), ("sessions", "list"), ("doctor",), ("config",), ("history",)],
)  # fmt: skip
def test_json_keeps_every_character_and_shows_none_that_acts(
    command: tuple[str, ...], hostile: Path, unknown: Path
) -> None:
    damage_store(hostile)
    result = kamado(*words_of(command, hostile, unknown), "--json")
    assert acting(result.stdout) == []
    document = json.loads(result.stdout)
    if command == ("show", "U"):
        assert document["name"] == HOSTILE
    if command[0] == "sessions":
        assert document[0]["model"] == HOSTILE


def test_an_answer_cannot_act_either(hostile: Path, tmp_path: Path) -> None:
    """A scripted model that answers with its question; a pipe gets every byte of it."""
    child = Terminal("run", "m", HOSTILE)
    child.exit_code()
    assert acting(child.output) == []
    assert "gpj.exe" in child.output


def test_printable() -> None:
    assert printable("a\x1b[31mb\x07\tc\n\x9b") == "a[31mb\tc\n"
    assert printable(HOSTILE) == "[2J]0;pwned31mgpj.exe\nkamado: all is well"
    assert one_line("two\nlines\tand\u2028one") == "two lines and one"
    kept = "naïve Ünïcödé 漢字 עברית العربية 👩‍👩‍👧 🏳️‍🌈 a\u200fb ½ — “q”"
    assert printable(kept) == kept, "letters, marks and joined emoji of any language stay"


def test_styles_are_ours_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "is_tty", lambda _: True)
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda *_: False)
    echo(styled("bo\x1b[5mld", bold=True) + " and \x1b[31mred")
    assert capsys.readouterr().out == "\x1b[1mbo[5mld\x1b[0m and [31mred\n"
    monkeypatch.setenv("NO_COLOR", "1")
    echo(styled("plain\x1b[5m", bold=True))
    assert capsys.readouterr().out == "plain[5m\n"


def test_json_is_the_same_value(capsys: pytest.CaptureFixture[str]) -> None:
    value: Any = {HOSTILE: [HOSTILE, "漢字 👩‍👩‍👧", 1.5, None]}
    echo_json(value)
    out = capsys.readouterr().out
    assert json.loads(out) == value
    assert acting(out) == []
    assert "漢字" in out


def test_every_command_prints_through_echo() -> None:
    """All but the answers' own stream, whose pipe gets every byte, and the script for a shell."""
    folder = Path(terminal.__file__).parent
    direct = re.compile(r"click\.s?echo\(|\bprint\(|sys\.std\w+\.write")
    found = {path.name for path in folder.glob("*.py") if direct.search(path.read_text())}
    assert {"list_models.py", "plan.py", "show.py", "sessions.py", "doctor.py", "kv.py"}.isdisjoint(found)
