"""`kamado config`: what a person set once for all calls, where each value came from, and how it is changed."""

from __future__ import annotations

import tomllib
from typing import Any

import click

from ..errors import UsageError
from ..files.toml_edit import parse_key, shown_key
from .defaults import check_options
from .terminal import echo, echo_json, echo_table, note
from .user_config import UserConfig, changed, config_path, read_config, write

_TEMPLATE = """\
# Your settings for kamado (docs/config.md describes them); "kamado config" shows what holds.
# model = "smollm2:135m"
# log_prompts = true

# [aliases]
# small = "smollm2:135m"

# [defaults]
# threads = 2

# [templates]
# summary = "Summarise in one sentence:\\n\\n{input}"
"""
_BUILT_IN = {"model": None, "log_prompts": False}
_MAX_SHOWN = 60


@click.group("config", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Show your settings, each with the place that it comes from, or change them.

    Keys: model, log_prompts, aliases.NAME, defaults.OPTION, commands.COMMAND.OPTION, models."NAME".OPTION,
    templates.NAME. What is typed on a command line goes before the model's, the command's and all commands' defaults.
    """
    if ctx.invoked_subcommand is not None:
        return
    config = read_config()
    check_options(config)
    values = _values(config)
    if as_json:
        echo_json({"path": str(config.path), "values": values})
        return
    rows = [(v["key"], _short(v["value"]), v["origin"] if v["line"] is None else f"line {v['line']}") for v in values]
    echo_table(("key", "value", "from"), rows)
    note(f"{config.path}" + ("" if config.path.exists() else " (not there yet)"))


@command.command("path")
def path_command() -> None:
    """Print where the settings are."""
    echo(config_path())


@command.command("set")
@click.argument("key")
@click.argument("value")
def set_command(key: str, value: str) -> None:
    """Set KEY to VALUE. Comments in the file stay.

    \b
    kamado config set model smollm2:135m
    kamado config set aliases.small smollm2:135m
    kamado config set 'models."smollm2:135m".temperature' 0.2
    """
    path = parse_key(key)
    config, text = changed(config_path(), path, _read(path, value))
    check_options(config)
    write(config.path, text)
    note(f"{shown_key(path)} is set in {config.path}")


@command.command("unset")
@click.argument("key")
def unset_command(key: str) -> None:
    """Remove KEY, or a whole table."""
    path = parse_key(key)
    config, text = changed(config_path(), path, is_removed=True)
    write(config.path, text)
    note(f"{shown_key(path)} is not set any more")


@command.command("edit")
def edit_command() -> None:
    """Open the settings in your editor (VISUAL, EDITOR) and check them afterwards."""
    path = config_path()
    if not path.exists():
        write(path, _TEMPLATE)
    click.edit(filename=str(path))
    check_options(read_config(path))


def _values(config: UserConfig) -> list[dict[str, Any]]:
    """Every value that is set, in the order of the file, and what holds where nothing is."""
    found: list[dict[str, Any]] = [
        {"key": key, "value": value, "origin": "built in", "line": None}
        for key, value in _BUILT_IN.items()
        if key not in config.document
    ]

    def add(key: tuple[str, ...], value: Any) -> None:
        if isinstance(value, dict) and (key[0] != "templates" or len(key) == 1):
            for name, inner in value.items():
                add((*key, name), inner)
            return
        line = next((config.lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in config.lines), None)
        found.append({"key": shown_key(key), "value": value, "origin": str(config.path), "line": line})

    for name, value in config.document.items():
        add((name,), value)
    return found


def _read(path: tuple[str, ...], value: str) -> Any:
    """A typed value: a number, truth value or list as TOML has it where the key may be one, else text."""
    if path[0] in ("model", "aliases", "templates") or path[-1] in ("system", "memory", "kv", "prefix_cache"):
        return value
    try:
        found = tomllib.loads(f"x = {value}")
    except ValueError:
        return value
    if list(found) != ["x"] or isinstance(found["x"], dict):
        raise UsageError(f"{value[:60]!r} is no value: write a number, true, false, a list or a text")
    return found["x"]


def _short(value: Any) -> str:
    text = "-" if value is None else value if isinstance(value, str) else str(value)
    if isinstance(value, bool):
        text = "true" if value else "false"
    if isinstance(value, dict):
        text = str(value.get("text", ""))
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"
