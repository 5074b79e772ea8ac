"""What a person set once for all calls: the default model, aliases, defaults of options, templates of prompts.

The file is `config.toml` in the user's folder of settings (below KAMADO_HOME if that is set). `serve` has a file of its
own. Here is what may stand in it and where each value came from; what a default does to an option is in defaults.py.

    model = "qwen3:4b"              # what `kamado ask` uses
    log_prompts = true
    [aliases]
    small = "smollm2:135m"
    [defaults]                      # every command that has the option
    threads = 2
    [commands.chat]                 # one command
    system = "Be brief."
    [models."qwen3:4b"]             # one model
    temperature = 0.2
    [templates]
    summary = "Summarise in {sentences} sentences:\\n\\n{input}"
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from ..files import toml_edit
from ..files.atomic import PRIVATE, user_folder, write_atomically
from ..files.toml_file import MAX_BYTES, read_toml
from .templates import Template, template_of

Key = tuple[str, ...]

TABLES = ("aliases", "defaults", "commands", "models", "templates")
MAX_ENTRIES = 1000  # of a table
MAX_NAME = 200  # characters
_IN_CONTEXT = "kamado.user_config"

# Commands whose options the file may set. Each has a model.
CONFIGURED = ("run", "ask", "chat", "embed", "plan", "bench", "kv", "perplexity")


@dataclass(frozen=True, slots=True)
class Setting:
    """A default of an option, and where it stands."""

    key: Key
    value: Any
    place: str  # "…/config.toml, line 7"


@dataclass(frozen=True, slots=True)
class UserConfig:
    """The file, read and checked, but for the values of options."""

    path: Path
    document: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[Key, int] = field(default_factory=dict)

    @property
    def model(self) -> str | None:
        """The default model."""
        return self.document.get("model")

    @property
    def log_prompts(self) -> bool:
        """Whether prompts and answers are kept."""
        return bool(self.document.get("log_prompts", False))

    @property
    def aliases(self) -> Mapping[str, str]:
        """Name -> what it stands for."""
        found: Mapping[str, str] = self.document.get("aliases", {})
        return found

    @property
    def templates(self) -> Mapping[str, Template]:
        """The templates of prompts, by name."""
        return {name: template_of(name, value) for name, value in self.document.get("templates", {}).items()}

    def template(self, name: str) -> Template:
        """One template. Raises UsageError, which names those that there are."""
        table = self.document.get("templates", {})
        if name not in table:
            known = ", ".join(sorted(table)) or "there is none: write one into [templates] with 'kamado config edit'"
            raise UsageError(f"no template {name!r} in {self.path}; known templates: {known}")
        return template_of(name, table[name])

    def options(self, command: str, model: str | None) -> dict[str, Setting]:
        """Defaults of a command's options, the nearest of each: the model's, the command's, those of all."""
        found: dict[str, Setting] = {}
        for key in (("defaults",), ("commands", command), ("models", self.aliases.get(model or "", model or ""))):
            table: Any = self.document
            for part in key:
                table = table.get(part, {})
            for name, value in table.items():
                found[option_name(name)] = Setting((*key, name), value, self.place((*key, name)))
        return found

    def all_options(self) -> Iterator[tuple[str | None, Setting]]:
        """Every default of an option in the file, with the command that it is for; None: it is not for one alone."""
        for table in ("defaults", "commands", "models"):
            tables = self.document.get(table, {})
            groups = {"": tables} if table == "defaults" else tables
            for name, values in groups.items():
                for option, value in values.items():
                    key = (table, option) if table == "defaults" else (table, name, option)
                    yield name if table == "commands" else None, Setting(key, value, self.place(key))

    def place(self, key: Key) -> str:
        """Where a key stands, for a person: its own line, or that of what it is inside of."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.lines:
                return f"{self.path}, line {self.lines[key[:length]]}"
        return str(self.path)


def config_path() -> Path:
    """The file, whether it is there or not."""
    return user_folder("config", "config.toml")


def option_name(key: str) -> str:
    """`top-p` -> `top_p`: both are understood."""
    return key.replace("-", "_")


def read_config(path: Path | None = None) -> UserConfig:
    """The settings; without a file they are empty. Raises UsageError naming the file, the line and the key."""
    path = config_path() if path is None else path
    if not path.exists():
        return UserConfig(path)
    document = read_toml(path)
    return checked(path, document, path.read_bytes()[:MAX_BYTES].decode("utf-8-sig"))


def user_config() -> UserConfig:
    """The settings, read once a call of the program."""
    context = click.get_current_context(silent=True)
    if context is None:
        return read_config()
    meta = context.find_root().meta
    if _IN_CONTEXT not in meta:
        meta[_IN_CONTEXT] = read_config()
    found: UserConfig = meta[_IN_CONTEXT]
    return found


def checked(path: Path, document: Mapping[str, Any], text: str) -> UserConfig:
    """The settings that a document holds. Raises UsageError for a key that there is not, or is of a wrong kind."""
    config = UserConfig(path, document, toml_edit.lines(text))

    def check(is_right: bool, key: Key, message: str) -> None:
        if not is_right:
            raise UsageError(f"{config.place(key)}: {toml_edit.shown_key(key)} {message}")

    for name, value in document.items():
        check(name in (*TABLES, "model", "log_prompts"), (name,), f"is no setting: there are {_listed()}")
        if name == "model":
            check(isinstance(value, str) and bool(value), (name,), "must be a model's name")
        elif name == "log_prompts":
            check(isinstance(value, bool), (name,), "must be true or false")
        else:
            check(isinstance(value, dict), (name,), "must be a table")
            check(len(value) <= MAX_ENTRIES, (name,), f"has {len(value)} entries: {MAX_ENTRIES} are allowed")
            for inner in value:
                check(0 < len(inner) <= MAX_NAME, (name, inner), f"must have a name of 1 to {MAX_NAME} letters")
    for name, target in document.get("aliases", {}).items():
        check(isinstance(target, str) and bool(target), ("aliases", name), "must be a model's name")
        check(target != name, ("aliases", name), "stands for itself")
    for table in ("commands", "models"):
        for name, values in document.get(table, {}).items():
            check(isinstance(values, dict), (table, name), "must be a table of options")
            if table == "commands":
                which = "is set in serve.toml" if name == "serve" else f"is none of {', '.join(CONFIGURED)}"
                check(name in CONFIGURED, (table, name), which)
    for name, value in document.get("templates", {}).items():
        try:
            template_of(name, value)
        except UsageError as error:
            raise UsageError(f"{config.place(('templates', name))}: {error}") from None
    return config


def changed(path: Path, key: Key, value: Any = None, *, is_removed: bool = False) -> tuple[UserConfig, str]:
    """The settings with a key set or removed, and the file's new text, comments kept. Raises UsageError when that would
    be wrong; a wrong key can be removed."""
    text = ""
    if path.exists():
        read_toml(path)
        text = path.read_bytes().decode("utf-8-sig")
    new = toml_edit.without(text, key) if is_removed else toml_edit.with_value(text, key, value)
    if len(new.encode()) > MAX_BYTES:
        raise UsageError(f"{path} would be larger than {MAX_BYTES >> 20} MiB")
    return checked(path, tomllib.loads(new), new), new


def write(path: Path, text: str) -> None:
    """Brings the file's text to the disk, for the user alone if it is new. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path.resolve(), text, mode=None if path.exists() else PRIVATE)


def _listed() -> str:
    return ", ".join(("model", "log_prompts", *(f"[{name}]" for name in TABLES)))
