"""What somebody new meets: help, names that can be typed again, sizes, limits of the machine, models that do not chat.

Real model files of 300 kB; nothing is scripted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY_TEMPLATE
from serve.stores import put
from test_cli_commands import kamado

from kamado.cli import loading
from kamado.engine.turns.conversations import ConversationStore
from kamado.errors import UsageError
from kamado.library.store import Store
from kamado.plan.budget import format_size, given_size, parse_size
from kamado.plan.machine import DeviceProfile, machine, save_device_profile

NAME = "mini:1"


@pytest.fixture
def stored(tiny_checkpoint: Path) -> Path:
    """The tiny model, which calls itself "tiny", in the store as "mini:1"."""
    put(Store().root, NAME, tiny_checkpoint)
    return Store().resolve(NAME)


@pytest.fixture
def base_model(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny model without a chat template: its key is another one, of the same length."""
    data = tiny_checkpoint.read_bytes()
    assert data.count(b"tokenizer.chat_template") == 1
    path = tmp_path / "base.gguf"
    path.write_bytes(data.replace(b"tokenizer.chat_template", b"tokenizer.chat_templaXe"))
    return path


# --- the help ---------------------------------------------------------------------------------------------------------


def test_kamado_alone_says_what_to_do_next() -> None:
    done = subprocess.run([sys.executable, "-m", "kamado"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "kamado run --pull smollm2:135m" in done.stdout
    assert "kamado --help" in done.stdout


def test_a_group_alone_does_something() -> None:
    assert "no session was kept yet" in kamado("sessions").stderr


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", [NAME, "mini"])
@pytest.mark.parametrize(
    "command", [("run", "--memory", "10MiB"), ("chat", "--memory", "10MiB"), ("embed", "--memory", "10MiB")]
)
def test_errors_name_the_model_as_commands_take_it(stored: Path, command: tuple[str, ...], typed: str) -> None:
    name, *options = command
    result = kamado(name, typed, *(() if name == "chat" else ("hi",)), *options)
    assert result.exit_code != 0
    assert f"error: {NAME} needs" in result.stderr or f"error: {NAME} generates" in result.stderr


def test_plan_and_bench_too(stored: Path) -> None:
    for typed in (NAME, "mini"):
        assert kamado("plan", typed).stdout.startswith(f"{NAME}: fits")
        assert json.loads(kamado("plan", typed, "--json").stdout)["model"] == NAME
    result = kamado("bench", "mini", "--prefill", "8", "--decode", "2", "--repeat", "1", "--json")
    assert json.loads(result.stdout)["model"] == NAME


def test_a_session_has_a_name_that_commands_take(stored: Path, tiny_checkpoint: Path) -> None:
    for session, typed, expected in (("a", "mini", NAME), ("b", str(tiny_checkpoint), str(tiny_checkpoint))):
        assert kamado("chat", typed, "--session", session, "-n", "2", stdin="hi\n").exit_code == 0
        found = ConversationStore().load(session)
        assert found is not None
        assert found.model == expected
        assert kamado("plan", found.model).exit_code == 0
    assert NAME in kamado("sessions").stdout
    listed = json.loads(kamado("sessions", "list", "--json").stdout)
    assert {entry["model"] for entry in listed} == {NAME, str(tiny_checkpoint)}


def test_a_file_is_named_by_its_path(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_checkpoint.parent)
    assert f"{tiny_checkpoint} needs" in kamado("run", "./tiny.gguf", "hi", "--memory", "10MiB").stderr


# --- models that do not chat ------------------------------------------------------------------------------------------


def test_a_base_model_says_so_before_it_is_loaded(base_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("the weights were loaded"))
    result = kamado("chat", str(base_model))
    assert result.exit_code == 2
    assert "no chat template" in result.stderr
    assert "kamado run --raw" in result.stderr
    assert TINY_TEMPLATE not in result.stderr


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [("6", "6GiB"), (6, "6GiB"), ("6.5", "6.5GiB"), (" 6 ", "6GiB"), ("0.5", "0.5GiB"), ("1023", "1023GiB"),
     ("6000", "6000MiB"), ("1048575", "1048575MiB"), (1, "1GiB")],
)  # fmt: skip
def test_a_bare_small_number_is_refused(text: str | int, meant: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean {meant}[?]"):
        given_size(text)


@pytest.mark.parametrize("text", ["6B", "6KiB", "6k", "6GiB", "1048576", 1 << 20, "6442450944"])
def test_what_is_meant_as_it_stands(text: str | int) -> None:
    assert given_size(text) == parse_size(text)


@pytest.mark.parametrize(
    "words",
    [
        ("run", "m", "hi", "--memory", "6"),
        ("run", "m", "hi", "--prefix-cache", "2"),
        ("chat", "m", "--memory", "6"),
        ("chat", "m", "--prefix-cache", "2"),
        ("plan", "m", "--memory", "6"),
        ("bench", "m", "--memory", "6"),
        ("perplexity", "m", "--memory", "6"),
        ("embed", "m", "hi", "--memory", "6"),
        ("kv", "m", "--memory", "6"),
        ("serve", "m", "--memory", "6"),
        ("serve", "m", "--prefix-cache", "2"),
    ],
)
def test_every_size_option(words: tuple[str, ...], stored: Path) -> None:
    words = tuple(str(stored) if word == "m" else word for word in words)
    result = kamado(*words, stdin="some text to score " * 200 if words[0] == "perplexity" else "hi\n")
    assert result.exit_code == 2, result.output
    assert f"did you mean {words[-1]}GiB?" in result.stderr


@pytest.mark.parametrize("name", ["memory", "prefix_cache"])
def test_sizes_of_the_servers_settings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in ("6", '"6"'):
        (tmp_path / "serve.toml").write_text(f"{name} = {number}\n")
        result = kamado("serve", "--config", str(tmp_path / "serve.toml"))
        assert result.exit_code == 2
        assert f"error: {name}: 6 without a unit is 6 bytes: did you mean 6GiB?" in result.stderr
    monkeypatch.setenv(f"KAMADO_SERVE_{name.upper()}", "6")
    assert f"error: {name}: 6 without a unit" in kamado("serve").stderr


# --- limits of the machine --------------------------------------------------------------------------------------------


def measured(num_threads: int, **others: str) -> None:
    """As `kamado bench --limits` does, without the time."""
    here = machine()
    values = {"cpu_model": here.cpu_model, "tier": here.tier or "scalar", **others}
    save_device_profile(
        DeviceProfile(**values, num_threads=num_threads, read_bytes_per_second=1e10, int8_ops_per_second=1e12)
    )


def limits() -> str:
    return next(line for line in kamado("doctor").stdout.splitlines() if "  limits " in line)


def test_limits_of_another_thread_count(stored: Path) -> None:
    """What doctor and plan say leads out: what it names is what plan then uses."""
    cpus = machine().cpus
    assert "not measured yet: kamado bench --limits" in limits()
    other = cpus + 1
    measured(other)
    wanted = f"{cpus} thread{'' if cpus == 1 else 's'}"
    assert f"measured with {other} threads, not with {wanted}: kamado bench --limits (" in limits()
    assert f"measured with {other} threads, not with {wanted}: kamado bench --limits\n" in kamado("plan", NAME).stdout
    assert "speed at most" in kamado("plan", NAME, "-j", str(other)).stdout
    assert f"not with {cpus + 2} threads: kamado bench --limits -j {cpus + 2}\n" in (
        kamado("plan", NAME, "-j", str(cpus + 2)).stdout
    )
    note = kamado("bench", NAME, "--prefill", "8", "--decode", "0", "--repeat", "1").stderr
    assert f"measured with {other} threads, not with {wanted}: kamado bench --limits {NAME}" in note
    measured(cpus)
    assert f"with {cpus} threads" in limits()
    assert "speed at most" in kamado("plan", NAME).stdout


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"cpu_model": "Another CPU"}, "measured on another processor (Another CPU): kamado bench --limits"),
        ({"tier": "other"}, "measured with the tier other, not with"),
    ],
)
def test_limits_of_another_machine(stored: Path, others: dict[str, str], words: str) -> None:
    measured(machine().cpus, **others)
    assert words in limits()
    assert words in kamado("plan", NAME).stdout


def test_sizes_that_are_shown_can_be_given() -> None:
    for size in (6, 1000, 5 << 20, 6 << 30):
        given_size(format_size(size))
