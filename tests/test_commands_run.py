"""Every command that README, CONTRIBUTING and docs/ show in a block is run, in both languages.

In this process, in a home of its own, with models of 300 kB in the place of those that are named. What cannot run so
stands in UNRUN with its reason; of that, a `kamado` command is still parsed to the last option, and what is installed
must be a package and an extra of ours. Commands with nothing to end them get the options of SHORTER.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import shell
from click.testing import CliRunner
from pages import ROOT, SHELLS, blocks, commands, pages, pages_with, sections, shell_lines
from serve.stores import put
from shell import Call, Done, NotUnderstood
from test_docs_true import wrong_command

from kamado.cli import loading
from kamado.cli.main import cli
from kamado.library.store import Store
from kamado.plan.machine import DeviceProfile

SHORTER = {  # command -> options that it gets unless it has them: random weights seldom end an answer
    "run": {"--max-tokens": "4"},
    "ask": {"--max-tokens": "4"},
    "chat": {"--max-tokens": "4"},
    "bench": {"--repeat": "1"},
    "kv": {"--tokens": "384", "--presets": "balanced"},
}
FORMS = {"--schema", "--regex", "--json"}  # an answer that was cut before its form was complete ends with exit code 1
QUESTION = "hello\n"  # what is typed into a chat
FILES = {"person.json": '{"type": "object", "properties": {"age": {"type": "integer"}}}'}  # that pages take for granted
SETTINGS_PAGE = "docs/config.md"  # its block of TOML is the file of settings from there on
DEVICE_PAGE = "docs/plan-device.md"  # its block of TOML is the file of its command
INSTALLED_BY_PACK = "needs a package index or root; packaging's own tests install the wheel"
DEVELOPERS = "builds the whole project; CI runs these steps themselves"
NEEDS_A_SERVER = "asks a running server; tests/serve has one"
UNRUN = (  # (what the line begins with, why it is not run here, a page that has it)
    (r"(uv tool|pipx|pip) install ", INSTALLED_BY_PACK, "README.md"),
    (r"python3 tools/dev\.py ", DEVELOPERS, "README.md"),
    (r"python3 -m (venv|pip install) ", INSTALLED_BY_PACK, "docs/install.md"),
    (r"build/native/", "is built by a step of CI", "docs/portability.md"),
    (r"python3? benchmarks/", "measures for minutes, beside another program", "docs/performance.md"),
    (r"source .venv/bin/activate$", "is of the shell itself", "CONTRIBUTING.md"),
    (r"python3 tools/release\.py ", DEVELOPERS, "docs/install.md"),
    (r"rm -rf ~", "takes away what a user has", "docs/install.md"),
    (r"podman ", "needs a container engine; packaging's own tests do the steps", "docs/install.md"),
    (r"kamado search ", "asks the hub; tests/library has one", "docs/models.md"),
    (r"kamado connect ", NEEDS_A_SERVER, "docs/config.md"),
    (r"kamado (ps|load|stop|logs)\b", NEEDS_A_SERVER, "docs/one-server.md"),
)
Tiny = Callable[..., Path]


class Sandbox:
    """The home of a page's commands: a store, a folder, and programs in the place of others'."""

    def __init__(self, folder: Path, tiny: Path) -> None:
        self.folder = folder
        self.tiny = tiny
        listed = json.loads(self.invoke(["pull", "--list", "--json"]).stdout)
        self.known = {name for entry in listed for name in (entry["name"], *entry.get("aliases", ()))}
        for name, text in FILES.items():
            (folder / name).write_text(text, encoding="utf-8")
        self.programs: dict[str, shell.Program] = {
            "kamado": self.kamado,
            "git": lambda call, _: Done(0, "a first change\n"),
            "echo": lambda call, _: Done(0, " ".join(call.words[1:]) + "\n"),
            "cat": lambda call, text: Done(0, "".join(Path(w).read_text() for w in call.words[1:]) or text),
            "mkdir": self._mkdir,
        }

    @staticmethod
    def _mkdir(call: Call, _: str) -> Done:
        for word in call.words[1:]:
            if not word.startswith("-"):
                Path(word).expanduser().mkdir(parents=True, exist_ok=True)
        return Done(0)

    @staticmethod
    def invoke(words: list[str], text: str = "", variables: dict[str, str] | None = None) -> Done:
        """`kamado` with these words."""
        result = CliRunner().invoke(cli, words, input=text, env=variables)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    def kamado(self, call: Call, text: str) -> Done:
        """The same for a line of a page, with models and files of its names in place."""
        words = call.words[1:]
        self.prepare(words)
        name = words[0] if words else ""
        for option, value in SHORTER.get(name, {}).items():
            parameters = {opt: p.opts for p in _command(name).params for opt in p.opts}
            if not set(parameters[option]) & set(words):
                words += [option, value]
        if name == "chat" and not text:
            text = QUESTION
        done = self.invoke(words, text, call.variables)
        if done.code == 1 and name in ("run", "ask") and FORMS & set(words) and done.stdout:
            return Done(0, done.stdout, done.stderr)
        return done

    def prepare(self, words: list[str]) -> None:
        """Puts a model where the words name one: in the store, unless it is to be fetched, or a file."""
        for word in words[1:]:
            if re.fullmatch(r"(hf:\S+|[a-z][\w.-]*:[\w.-]+)", word) and not re.match(r"(https?|unix):", word):
                assert word in self.known or word.startswith("hf:"), f"the catalog has no {word}"
                if words[0] != "pull" and "--pull" not in words and not self.has(word):
                    self.fetched(word, Store())
            elif word.endswith(".gguf") and words[0] != "synth" and not Path(word).exists():
                Path(word).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.tiny, word)

    def settle(self, text: str) -> None:
        """Makes a page's block of TOML the file of settings."""
        for name in set(re.findall(r'"([a-z][\w.-]*:[\w.-]+)"', text)):
            self.prepare(["config", name])
        Path(self.invoke(["config", "path"]).stdout.strip()).write_text(text, encoding="utf-8")

    @staticmethod
    def has(name: str) -> bool:
        return name in {entry.name for entry in Store().list()}

    def fetched(self, name: str, store: Store, **_: Any) -> Path:
        """What a pull leaves, without a network."""
        put(store.root, name, self.tiny)
        return store.resolve(name)


def _command(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"no command {name}"
    return command


@pytest.fixture(scope="module")
def tiny(write_tiny: Tiny) -> Path:
    """Heads that the cache can encode, and room for the contexts that pages ask for."""
    return write_tiny(hidden=128, heads=2, kv_heads=1, context_length=32768)


@pytest.fixture
def sandbox(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in ("VISUAL", "EDITOR"):
        monkeypatch.setenv(name, "true")
    found = Sandbox(tmp_path, tiny)
    monkeypatch.setattr(loading, "fetch", found.fetched)
    monkeypatch.setattr("kamado.plan.machine.measure_device", limits)
    monkeypatch.setattr("kamado.plan.disk.measure_disk", lambda *_: 1e9)
    serving = pytest.importorskip("kamado.serve.run")
    bind = serving.bind
    monkeypatch.setattr(serving, "bind", lambda settings: bind(msgspec.structs.replace(settings, port=0)))
    monkeypatch.setattr(serving, "run", leave)
    return found


def limits(num_threads: int) -> DeviceProfile:
    """In the place of seconds of measuring."""
    from kamado.plan.machine import machine

    here = machine()
    return DeviceProfile(here.cpu_model, num_threads, here.tier or "scalar", 20e9, 300e9, "2026-11-30T00:00:00Z", 100e9)


def leave(*arguments: object, **_: object) -> None:
    """In the place of serving: settings, models and the socket are as they would be."""
    listener = next(argument for argument in arguments if isinstance(argument, socket.socket))
    listener.close()


# --- what is not run --------------------------------------------------------------------------------------------------


def reason(line: str) -> str | None:
    """Why a line is not run, if it is listed."""
    return next((why for pattern, why, _ in UNRUN if re.match(pattern, line)), None)


def wrong_install(line: str) -> str | None:
    """What is wrong with a line that installs us: another package, or an extra that there is not."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = re.findall(r"(?:^|[\s'\"/])(?:kamado|\.)\[([\w,-]+)\]", line)
    unknown = [extra for names in found for extra in names.split(",") if extra not in extras]
    if unknown:
        return f"there is no extra {unknown[0]}"
    files = re.findall(r"(?:-r|--requirement) (\S+)", line)
    if lost := [file for file in files if not (ROOT / file).is_file()]:
        return f"there is no {lost[0]}"
    return None if files or re.search(r"(kamado|\.\[|\.$|\.whl)", line) else f"this installs something else: {line}"


def parsed(words: list[str]) -> str | None:
    """What click's parser says of `kamado` with these words; None: they can be taken. Nothing runs."""
    command: click.Command = cli
    context = click.Context(cli, info_name="kamado")
    try:
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            name, found, words = command.resolve_command(context, words)
            assert found is not None
            command, context = found, click.Context(found, parent=context, info_name=name)
        command.make_context(context.info_name, list(words), parent=context.parent)
    except click.exceptions.Exit:
        return None
    except click.ClickException as error:
        return error.format_message()
    return None


def checked_only(line: str) -> str | None:
    """What is wrong with a line that is not run."""
    if re.match(r"(uv|pip|python3 -m )", line):
        return wrong_install(line)
    for calls in shell.pipelines(line):
        for call in calls:
            if call.words[:1] == ["kamado"] and (problem := parsed(call.words[1:])):
                return problem
    return wrong_command(line) if line.startswith("python") else None


def problem(sandbox: Sandbox, line: str) -> str | None:
    """What went wrong with a line of a page."""
    if reason(line) is not None:
        return checked_only(line)
    try:
        done = shell.run(line, sandbox.programs)
    except NotUnderstood as error:
        return str(error)
    return None if done.code == 0 else f"exit code {done.code}: {done.stderr.strip() or done.stdout.strip()}"


# --- the pages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages_with(*SHELLS))
def test_every_command_of_a_page_runs(page: str, sandbox: Sandbox) -> None:
    problems = []
    found = list(blocks((ROOT / page).read_text(encoding="utf-8")))
    for block in sorted(found, key=lambda block: page == DEVICE_PAGE and block.language != "toml"):
        if block.language == "toml":
            tomllib.loads(block.text)
            if page == SETTINGS_PAGE:
                sandbox.settle(block.text)
            if page == DEVICE_PAGE:
                Path("workstation.toml").write_text(block.text, encoding="utf-8")
        for line, text in shell_lines(block) if block.language in SHELLS else ():
            if said := problem(sandbox, text):
                problems.append(f"{page}:{line}: {text}: {said}")
    assert problems == []


@pytest.mark.parametrize("page", pages())
def test_commands_stand_in_blocks_of_a_shell(page: str) -> None:
    """In a block of another language they would not be run."""
    for block in blocks((ROOT / page).read_text(encoding="utf-8")):
        if block.language not in (*SHELLS, "python"):
            assert not re.search(r"^\s*(\$ )?(kamado|uv|pipx?|python3?) ", block.text, re.MULTILINE), block.line
    prose = [line for section in sections((ROOT / page).read_text(encoding="utf-8")) for line in section.prose]
    assert not [line for line in prose if re.match(r"    (kamado|uv|pipx?|python3?) ", line)]


@pytest.mark.parametrize("page", ["README.md", "README.ja.md"])
def test_every_python_block_of_a_page_runs(page: str, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks((ROOT / page).read_text(encoding="utf-8")):
        if block.language == "python":
            for name in re.findall(r'"([a-z][\w.-]*:[\w.-]+)"', block.text):
                sandbox.prepare(["run", name])
            exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), {})
            assert capsys.readouterr().out.strip(), "it shows something"


def test_every_reason_is_needed() -> None:
    for pattern, why, page in UNRUN:
        if (ROOT / page).is_file():
            assert any(re.match(pattern, text) for _, text in commands(page)), f"{page} has no {pattern} ({why})"


# --- the harness ------------------------------------------------------------------------------------------------------


def outcomes(sandbox: Sandbox, *lines: str) -> Iterator[bool]:
    for line in lines:
        yield problem(sandbox, line) is None


def test_a_command_that_fails_is_found(sandbox: Sandbox) -> None:
    good = (
        "kamado run smollm2:135m hi",
        "echo hi | kamado run smollm2:135m 'Say' - > out.txt && cat out.txt",
        "KAMADO_TIER=scalar kamado plan smollm2:135m",
        "uv tool install 'kamado[serve]'",
        "python3 tools/dev.py run",
    )
    assert list(outcomes(sandbox, *good)) == [True] * len(good)
    bad = (
        "kamado run smollm2:135m hi --no-such-option",
        "kamado run smollm2:135m hi --memory 6",
        "kamado plan ./nothing.safetensors",
        "kamado dance",
        "rm -rf /",
        "echo $(kamado list)",
        "uv tool install 'kamado[dance]'",
        "pip install other",
        "python3 tools/dev.py dance",
    )
    assert list(outcomes(sandbox, *bad)) == [False] * len(bad)


def test_a_name_that_the_catalog_has_not_is_found(sandbox: Sandbox) -> None:
    with pytest.raises(AssertionError, match="no nothing:1b"):
        problem(sandbox, "kamado run nothing:1b hi")


def test_what_is_not_run_is_parsed() -> None:
    assert parsed(["serve", "m", "--port", "8417"]) is None
    assert parsed(["serve", "m", "--port", "842x"]) is not None
    assert parsed(["serve", "m", "--dance"]) is not None
    assert parsed(["sessions", "rm"]) is not None
    assert parsed(["sessions", "rm", "a"]) is None
    assert parsed(["--version"]) is None
    assert parsed(["dance"]) is not None
