"""However a call ends: one sentence, the right exit code, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_model import FakeModel

from kamado.cli import loading
from kamado.cli.main import cli
from kamado.errors import (
    CorruptFileError,
    DownloadError,
    KamadoError,
    MemoryBudgetError,
    ModelNotFoundError,
    NativeError,
    TemplateError,
    UsageError,
)


def kamado(*arguments: str, **options: object) -> Result:
    return CliRunner().invoke(cli, list(arguments), **options)  # type: ignore[arg-type]


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Result:
    def locate(name: str, pull: bool = False) -> Path:
        raise error

    monkeypatch.setattr(loading, "locate", locate)
    return kamado("run", "m", "hi")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KamadoError("x"), 1),
        (CorruptFileError("x"), 3),
        (TemplateError("x"), 3),
        (ModelNotFoundError("x"), 4),
        (DownloadError("x"), 5),
        (MemoryBudgetError("x"), 7),
        (NativeError("x"), 70),
        (MemoryError(), 7),
        (PermissionError(13, "Permission denied", "/some/file"), 1),
        (RuntimeError("surprise"), 70),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
    ],
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    result = fail_with(monkeypatch, error)
    assert result.exit_code == code
    assert "Traceback" not in result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == (0 if code in (130, 141) else 1)
    assert all(line.startswith("kamado: error: ") for line in lines)


def test_a_fault_of_several_lines_becomes_one_without_escape_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    result = fail_with(monkeypatch, CorruptFileError("bad\nname \x1b]0;owned\x07 in tensor"))
    assert result.stderr == "kamado: error: bad name ]0;owned in tensor\n"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAMADO_DEBUG", "1")
    result = fail_with(monkeypatch, CorruptFileError("x"))
    assert isinstance(result.exception, CorruptFileError)


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["runn", "m"],
        ["--no-such-option"],
        ["run"],
        ["run", "m", "hi", "--temperature", "-1"],
        ["run", "m", "hi", "--temperature", "nan-ish"],
        ["run", "m", "hi", "--top-p", "2"],
        ["run", "m", "hi", "--seed", "-1"],
        ["run", "m", "hi", "--logit-bias", "five"],
        ["run", "m", "hi", "--file", "/no/such/file"],
        ["run", "m", "hi", "--threads", "0"],
        ["run", "m", ""],
        ["run", "m", "hi", "--raw", "--system", "x"],
        ["bench"],
        ["bench", "m", "--depth", "1,x"],
        ["bench", "m", "--depth", "-5"],
        ["bench", "m", "--prefill", "0"],
        ["show", "m", "--all"],
        ["pull"],
        ["rm"],
        ["completion", "tcsh"],
        ["synth", "out.gguf"],
        ["perplexity", "m", "/no/such/file"],
    ],
)
def test_wrong_calls(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    FakeModel().install(monkeypatch)
    result = kamado(*arguments, input="")
    assert result.exit_code == 2
    assert result.stderr.startswith("kamado: error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output


def test_an_unknown_command_is_answered_with_the_nearest() -> None:
    assert "'bench'" in kamado("bensh").stderr


def test_stdin_that_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeModel().install(monkeypatch)
    result = kamado("run", "m", "-", input=b"\xff\xfe\x00")
    assert result.exit_code == 2
    assert "standard input is not UTF-8 text (byte 0)" in result.stderr


@pytest.mark.parametrize("command", [["run", "{}", "hi"], ["show", "{}"], ["plan", "{}"], ["bench", "{}"]])
@pytest.mark.parametrize(
    ("content", "code"), [(b"", 3), (b"GGUF", 3), (b"no model at all" * 10, 3), (b"GGUF\x03" + b"\xff" * 64, 3)]
)
def test_files_that_are_no_models(tmp_path: Path, command: list[str], content: bytes, code: int) -> None:
    path = tmp_path / "strange\x1b[2J.gguf"
    path.write_bytes(content)
    result = kamado(*(word.format(path) for word in command))
    assert result.exit_code == code
    assert result.stderr.count("\n") == 1
    assert "\x1b" not in result.stderr


def test_directories_that_are_no_models(tmp_path: Path) -> None:
    result = kamado("show", str(tmp_path))
    assert result.exit_code == 3
    assert kamado("show", str(tmp_path / "missing.gguf")).exit_code == 4


def run_process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).with_name("fake_model.py")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)  # type: ignore[call-overload,no-any-return]


def test_a_reader_that_leaves_is_no_fault() -> None:
    fake = Path(__file__).with_name("fake_model.py")
    # `head` takes one byte and goes while the model still talks.
    script = f"'{sys.executable}' '{fake}' run m slow | head -c 1; echo \"${{PIPESTATUS[0]}}\""
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert result.stdout == "w141\n"
    assert result.stderr == ""


def test_closed_streams() -> None:
    fake = Path(__file__).with_name("fake_model.py")
    for redirection, code in (("<&-", 0), (">&-", 0), ("<&- >&- 2>&-", 0)):
        script = f"'{sys.executable}' '{fake}' run m hi {redirection}"
        assert subprocess.run(["bash", "-c", script], capture_output=True, check=False, timeout=60).returncode == code
    no_prompt = subprocess.run(
        ["bash", "-c", f"'{sys.executable}' '{fake}' run m <&-"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert no_prompt.returncode == 2
    assert "there is no prompt" in no_prompt.stderr


def test_output_is_utf8_whatever_the_locale() -> None:
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = run_process("run", "m", "竈 👋", env=ascii_only, encoding="utf-8")
    assert result.stdout == "echo(竈 👋)#1\n"
    assert result.stderr == ""


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from kamado.cli.main import cli\n"
        "assert CliRunner().invoke(cli, ['--help']).exit_code == 0\n"
        "heavy = {'numpy', 'tokenizers', 'huggingface_hub', 'jinja2', 'httpx2', 'kamado.engine.model'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "[]\n"


def test_python_dash_m() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "kamado", "nonsense"], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 2
    assert result.stderr.startswith("kamado: error: no command 'nonsense'")


def test_a_port_that_is_taken_is_one_sentence() -> None:
    from kamado.serve.config import ServeConfig
    from kamado.serve.run import bind

    with bind(ServeConfig(port=0)) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(UsageError) as refused:
            bind(ServeConfig(port=port))
    assert str(refused.value) == f"cannot listen on 127.0.0.1:{port}: Address already in use"
