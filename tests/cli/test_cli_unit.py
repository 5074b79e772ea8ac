"""`kamado serve --unit`: the service is the server that was asked for, its key and its store included."""

from __future__ import annotations

import json
import plistlib
import shlex
from pathlib import Path

import pytest
from serve.stores import put
from test_cli_commands import kamado

from kamado.library.store import Store
from kamado.serve.http.keys import KeyRing
from kamado.serve.ops.unit import unit_text
from kamado.serve.run import key_file

KEY = "kmd-a-key-for-this-test"
OTHERS = ("--host", "0.0.0.0")


def environment_of(unit: str) -> dict[str, str]:
    """The variables of a systemd unit, read as systemd does."""
    lines = [line.removeprefix("Environment=") for line in unit.splitlines() if line.startswith("Environment=")]
    words = [word.replace("%%", "%") for line in lines for word in shlex.split(line)]
    return dict(word.split("=", 1) for word in words)


def knows(key: str) -> bool:
    ring = KeyRing()
    ring.load(key_file())
    return bool(len(ring)) and ring.find(key) is not None


def test_the_key_is_kept_and_not_in_the_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    result = kamado("serve", *OTHERS, "--api-key", KEY, "--unit")
    assert result.exit_code == 0, result.output
    assert KEY not in result.output
    assert str(key_file()) in result.stderr
    assert knows(KEY)
    monkeypatch.setenv("KAMADO_SERVE_API_KEY", "kmd-another-key-of-the-shell")
    result = kamado("serve", *OTHERS, "--unit")
    assert "kmd-another" not in result.output
    assert knows("kmd-another-key-of-the-shell")
    assert knows(KEY), "the one before is still good"


@pytest.mark.parametrize("settings", ["", 'host = "0.0.0.0"\n[[api_keys]]\nkey = "kmd-one-of-the-settings"\n'])
def test_a_key_that_the_service_would_not_find_is_refused(settings: str, tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(settings)
    result = kamado("serve", "--config", str(path), "--api-key", KEY, "--unit")
    assert result.exit_code == 2
    assert f"put it into {path}" in result.stderr
    assert "sha256" in result.stderr
    assert KEY not in result.output
    assert not knows(KEY)


def test_the_shells_variables_go_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAMADO_HOME", "a 100% home")
    monkeypatch.setenv("KAMADO_SERVE_MEMORY", "6GiB")
    monkeypatch.setenv("SECRET_OF_OTHERS", "no")
    unit = kamado("serve", "--unit").stdout
    found = environment_of(unit)
    assert found["KAMADO_HOME"] == str(tmp_path / "a 100% home")
    assert found["KAMADO_SERVE_MEMORY"] == "6GiB"
    assert "SECRET_OF_OTHERS" not in found
    (writable,) = [line for line in unit.splitlines() if line.startswith("ReadWritePaths=")]
    assert writable == f"ReadWritePaths=%h {tmp_path}/a\\x20100%%\\x20home"


def test_models_and_flags_as_they_were_meant(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(Store().root, "mini:1", tiny_checkpoint)
    monkeypatch.chdir(tiny_checkpoint.parent)
    unit = kamado("serve", "mini", "./tiny.gguf", "--all", "--memory", "2GiB", "--unit").stdout
    (line,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(line.removeprefix("ExecStart="))
    assert words[1:] == ["serve", "mini:1", str(tiny_checkpoint), "--all", "--memory", "2GiB"]


def test_launchd_too() -> None:
    text = unit_text(["m"], environment={"KAMADO_HOME": "/a&b <c>"}, platform="darwin", program="/bin/kamado")
    document = plistlib.loads(text.encode())
    assert document["EnvironmentVariables"] == {"KAMADO_HOME": "/a&b <c>"}
    assert document["ProgramArguments"] == ["/bin/kamado", "serve", "m"]
    assert "EnvironmentVariables" not in plistlib.loads(unit_text(["m"], platform="darwin", program="k").encode())


def test_a_line_break_cannot_add_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAMADO_SERVE_KV", "auto\nExecStartPre=/bin/evil")
    result = kamado("serve", "--unit")
    assert result.exit_code == 2
    assert "ExecStartPre" not in result.stdout


def test_where_the_key_came_from_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second start too: which file has the keys, and what makes a new one."""
    monkeypatch.setattr("kamado.serve.run.run", lambda *_, **__: None)
    words = ("serve", *OTHERS, "--port", "0")
    first = kamado(*words).stderr
    assert "shown this once" in first
    assert str(key_file()) in first
    second = kamado(*words).stderr
    assert f"API keys are those of {key_file()}; a new one is made and shown when that file is removed" in second
    assert json.loads(key_file().read_text())
