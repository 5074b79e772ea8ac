"""What a page names must exist: files, commands and their options, modules and what is in them, links.

Looked at are README, CONTRIBUTING, SECURITY and the pages of docs/, except those that tell of the past (lab notes, the
changelog, decisions). What counts as a name: text between backticks, file names in drawings, and lines of fenced blocks
that begin with a command. Of such a text these are looked up:

    a/path.py, file.cpp, src/kamado/engine/   below the root or a room of it
    kamado.load, kamado.engine.model          imported, attribute by attribute
    kamado run --seed 1, tools/dev.py lint    the command or step, and its options
    --seed                                    an option of any command, tool or benchmark
    TensorRef, kv_presets, reserve(), A.b     words of the sources or tests; a text is taken for a name of code when it
                                              has a capital inside, an underscore or brackets
"""

from __future__ import annotations

import functools
import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from kamado.cli.main import cli

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
PAST = {"lab-notes.md"}
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name not in PAST),
]
# Files that a walk of adding.md makes, that are made where a program runs, or that stand for any (NAME).
MADE = re.compile(r"toy|test_first|test_blend|test_t3_0|NAME|\.(gguf|safetensors|toml|json|jsonl|log|svg|csv)$")
FIELDS = {"kamado.truncated", "kamado.schema_violations"}  # of answers, not of the package
GENERATED = {"kamado/ops.h"}  # in the build folder
SOURCES = {".py", ".pyi", ".h", ".cpp", ".js", ".css", ".html", ".toml", ".txt"}
SUFFIXES = (".py", ".pyi", ".h", ".cpp", ".md", ".js", ".css", ".html", ".cmake", ".yml")
ROOMS = [ROOT, ROOT / "src" / "kamado", ROOT / "src" / "kamado" / "serve",
         ROOT / "src" / "kamado" / "serve" / "protocols", ROOT / "src" / "kamado" / "engine",
         ROOT / "native", ROOT / "native" / "include", ROOT / "docs", ROOT / "tests"]  # fmt: skip

Problem = tuple[str, int, str]


def tracked() -> frozenset[str]:
    """Names of all files and folders below the root that are not hidden or built."""
    found = set()
    folders = ("src", "native", "tests", "benchmarks", "tools", "docs", "requirements", "packaging", ".github", ".ci")
    for folder in folders:
        found |= {path.name for path in (ROOT / folder).rglob("*")}
    return frozenset(found | {path.name for path in ROOT.iterdir()})


NAMES = tracked()


def quoted(text: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every span between backticks outside fenced blocks."""
    is_fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_fenced = not is_fenced
        elif not is_fenced:
            for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", line):
                yield number, span


def drawn(text: str) -> Iterator[tuple[int, str]]:
    """(line, name) of files that are named in drawings: fenced blocks that are no code."""
    language: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if fence := re.match(r"\s*```(\w*)", line):
            language = None if language is not None else fence[1]
        elif language in ("", "text", "mermaid"):
            for name in re.findall(r"(?<![\w./-])[\w/-]+\.(?:py|h|cpp|js)\b", line):
                yield number, name


def commands(text: str) -> Iterator[tuple[int, str]]:
    """(line, command) of fenced lines and quoted spans that call a program of ours."""
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"\s*(\$ )?(kamado|python3? (tools|benchmarks)/)", line):
            yield number, line.strip().removeprefix("$ ")
    for number, span in quoted(text):
        if re.match(r"(kamado [a-z]|python3? (tools|benchmarks)/|tools/dev\.py )", span):
            yield number, span


def missing_path(span: str) -> str | None:
    """What is wrong with a span that looks like a path below the root or below a room; None: it is none, or exists."""
    path = span.split(":")[0].split("#")[0].rstrip("/")
    if (
        not re.fullmatch(r"[\w.*{},/-]+", path)
        or MADE.search(path)
        or path in GENERATED
        or path.startswith(("/", "http"))
    ):
        return None
    has_suffix = path.endswith(SUFFIXES)
    if "/" not in path:
        return f"no file is called {path}" if has_suffix and path not in NAMES and "*" not in path else None
    folders = ("src", "native", "tests", "benchmarks", "tools", "docs", "packaging")
    if not has_suffix and path.split("/")[0] not in folders:
        return None
    parts = re.findall(r"\{[^{}]*\}", path)
    choices = parts[0][1:-1].split(",") if parts else [""]
    for choice in choices:
        one = path.replace(parts[0], choice) if parts else path
        if not any(list(room.glob(one)) for room in ROOMS):
            return f"there is no {one}"
    return None


def missing_module(span: str) -> str | None:
    """The same for a dotted name below `kamado`."""
    match = re.fullmatch(r"(kamado(?:\.\w+)+)(\(.*\))?", span)
    if match is None or match[1] in FIELDS:
        return None
    parts = match[1].split(".")
    for i in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for name in parts[i:]:
            if not hasattr(found, name):
                return f"{'.'.join(parts[:i])} has no {name}"
            found = getattr(found, name)
        return None
    return f"there is no {span}"


@functools.cache
def words_of_sources() -> frozenset[str]:
    """All words of the code, in any language, tests included; not of the pages."""
    found: set[str] = set()
    for folder in ("src", "native", "tests", "benchmarks", "tools"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in SOURCES and path.name != Path(__file__).name:
                found.update(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    for name in ("pyproject.toml", "CMakeLists.txt"):
        found.update(re.findall(r"\w+", (ROOT / name).read_text(encoding="utf-8")))
    return frozenset(found)


def missing_code(span: str) -> str | None:
    """The same for a name of code: a class, function, field or setting."""
    match = re.fullmatch(r"([A-Za-z_]\w*(?:(?:\.|::)\w+)*)(\(.*\))?", span)
    if match is None or span.endswith(SUFFIXES) or MADE.search(span):
        return None
    words = re.split(r"\.|::", match[1])
    is_code = [bool(re.search(r"\w_\w|[a-z][A-Z]|[A-Z][a-z]+[A-Z]", word)) for word in words]
    is_code[-1] |= match[2] is not None
    missing = [word for word, is_name in zip(words, is_code, strict=True) if is_name and word not in words_of_sources()]
    return f"nothing is called {missing[0]}" if missing else None


@functools.cache
def all_options() -> frozenset[str]:
    """Options of every command, and of what stands in tools/ and benchmarks/."""
    found = {"--help", "--version"}

    def collect(command: click.Command) -> None:
        found.update(name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                sub = command.get_command(click.Context(command), name)
                assert sub is not None
                collect(sub)

    collect(cli)
    for folder in ("tools", "benchmarks", "native"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp"):
                found.update(re.findall(r'"(--[a-z][a-z-]*)"', path.read_text(encoding="utf-8")))
    return frozenset(found)


def missing_option(span: str) -> str | None:
    """The same for options that stand alone (`--seed N`)."""
    options = re.findall(r"(?<![\w-])--[a-z][a-z-]*", span) if span.startswith("--") else []
    missing = [option for option in options if option not in all_options()]
    return f"no command has {missing[0]}" if missing else None


def wrong_command(line: str) -> str | None:
    """What is wrong with a command line of ours: a command, step, program or option that is not there."""
    line = line.split(" #")[0].split("|")[0].split("…")[0].strip()
    try:
        words = shlex.split(line.replace("'", "\\'") if line.count("'") % 2 else line)
    except ValueError:
        return None
    if words[0] == "kamado":
        return _wrong_kamado(words[1:])
    words = words[1:] if words[0].startswith("python") else words
    if words[0] == "tools/dev.py":
        import dev

        known = {*dev.CHECKS, *dev.OTHERS, "run", "stream", "test", "install", "all"}
        step = words[1] if len(words) > 1 else "test"
        return None if step.startswith("-") or step.isupper() or step in known else f"tools/dev.py has no step {step}"
    program = ROOT / words[0]
    if not program.is_file():
        return f"there is no {words[0]}"
    text = program.read_text() + "".join(path.read_text() for path in program.parent.glob("serving.py"))
    unknown = [w for w in words[1:] if w.startswith("--") and f'"{w.partition("=")[0]}"' not in text and w != "--help"]
    return f"{words[0]} has no {unknown[0]}" if unknown else None


def _wrong_kamado(words: list[str]) -> str | None:
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        found = command.get_command(context, words[0])
        if found is None:
            return f"there is no command {words[0]}"
        command, words = found, words[1:]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        name = word.partition("=")[0]
        if re.fullmatch(r"--[a-z][a-z-]*", name) and name not in {*options, "--help", "--version"}:
            return f"{command.name} has no {name}"
    return None


def problems(page: Path) -> list[str]:
    """`file:line: what is missing` of one page."""
    text = page.read_text()
    checks: list[tuple[Iterator[tuple[int, str]], Callable[[str], str | None]]] = [
        (quoted(text), missing_path),
        (drawn(text), missing_path),
        (quoted(text), missing_module),
        (quoted(text), missing_code),
        (quoted(text), missing_option),
        (commands(text), wrong_command),
    ]
    found = [(line, problem) for spans, check in checks for line, span in spans if (problem := check(span))]
    for number, line in enumerate(text.splitlines(), 1):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", line):
            if not target.startswith(("http:", "https:", "mailto:")) and not (page.parent / target).exists():
                found.append((number, f"a link leads to {target}, which is not there"))
    return [f"{page.relative_to(ROOT)}:{line}: {problem}" for line, problem in sorted(set(found))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    assert problems(page) == []


def test_what_is_not_there_is_found() -> None:
    assert missing_path("src/kamado/engine/nothing.py")
    assert missing_path("nothing_like_this.py")
    assert missing_path("src/kamado/engine/model.py") is None
    assert missing_module("kamado.engine.nothing")
    assert missing_module("kamado.load") is None
    assert missing_code("NothingLikeThis.at_all")
    assert missing_code("nothing_like_this()")
    assert missing_code("kamado.Model.chat") is None
    assert missing_code("TensorRef(file, offset, nbytes, shape, layout)") is None
    assert missing_code("false") is None
    assert missing_option("--nothing-like-this N")
    assert missing_option("--seed N") is None
    assert wrong_command("kamado dance")
    assert wrong_command("kamado run smollm2:135m --nothing")
    assert wrong_command("python3 tools/dev.py dance")
    assert wrong_command("python3 benchmarks/serve_load.py --nothing")
    assert wrong_command("kamado run smollm2:135m --temperature 0") is None


def test_the_workflow_runs_every_step_and_pins_every_action() -> None:
    import dev

    texts = [path.read_text() for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))]
    assert len(texts) == 2
    named = {
        word for line in re.findall(r"(?:dev\.py |step: \[)(.*)", texts[0]) for word in re.findall(r"[\w-]+", line)
    }
    assert set(dev.CHECKS) <= named
    actions = [use for text in texts for use in re.findall(r"uses: (\S+)", text)]
    assert actions
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", use) for use in actions)
