#!/usr/bin/env python3
"""Writes the manual pages, one for `kamado` and one for each command, from the commands' own help:
python3 tools/man_pages.py OUT

Exit codes and variables are those of docs/cli.md. Look at one with `man -l OUT/kamado.1`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from cli_docs import INTRODUCTION  # noqa: E402 (beside this file)

WIDTH = 10_000  # columns: roff fills the lines itself


def escaped(text: str) -> str:
    """A text as roff takes it: its own signs are no commands, and hyphens can be copied."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
    text = text.replace("^", r"\(ha").replace("~", r"\(ti")
    return "\n".join(rf"\&{line}" if line.startswith(".") else line for line in text.splitlines())


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a help text, each in one line; click's mark against filling goes."""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        yield " ".join(paragraph.replace("\b", "").split())


def table(heading: str) -> list[tuple[str, str]]:
    """The rows of the table of docs/cli.md that has this heading, without the signs of Markdown."""
    found: list[tuple[str, str]] = []
    is_inside = False
    for line in INTRODUCTION.splitlines():
        cells = [cell.strip().replace("`", "") for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        if set(line) <= set("|-") and line:
            continue
        if len(cells) != 2:
            is_inside = False
        elif cells[0] == heading:
            is_inside = True
        elif is_inside:
            found.append((cells[0], cells[1]))
    assert found, f"docs/cli.md has no table of {heading}"
    return found


def listed(rows: Sequence[tuple[str, str]], *, font: str = "B") -> list[str]:
    """A list of terms with their explanations."""
    lines = []
    for term, text in rows:
        lines += [".TP", rf"\f{font}{escaped(term)}\fR", escaped(" ".join(text.split())) or r"\&"]
    return lines


def options(command: click.Command, context: click.Context) -> list[tuple[str, str]]:
    """Its options, and what is said of its arguments, as --help prints them."""
    records = (parameter.get_help_record(context) for parameter in command.get_params(context))
    return [record for record in records if record is not None and record[1]]


def synopsis(command: click.Command, context: click.Context) -> str:
    """The line of use: the command in bold, what it takes behind it."""
    pieces = escaped(" ".join(command.collect_usage_pieces(context)))
    return rf"\fB{escaped(context.command_path)}\fR {pieces}"


def described(command: click.Command) -> list[str]:
    """The paragraphs of its help."""
    lines: list[str] = []
    for paragraph in paragraphs(command.help or ""):
        lines += [".PP", escaped(paragraph)]
    return lines[1:]  # none stands before the first


def subcommands(command: click.Group, context: click.Context) -> list[tuple[str, click.Command, click.Context]]:
    """(name, command, its context) of a group."""
    found = []
    for name in command.list_commands(context):
        sub = command.get_command(context, name)
        assert sub is not None
        found.append((name, sub, click.Context(sub, info_name=name, parent=context, terminal_width=WIDTH)))
    return found


def page(command: click.Command, context: click.Context, summary: str, others: Sequence[str]) -> str:
    """The manual page of a command; `others` are the pages that it points to."""
    name = context.command_path.replace(" ", "-")
    first = f'.TH {escaped(name).upper()} 1 "" "Kamado" "Kamado"'
    title = rf"{escaped(name)} \- {escaped(summary.rstrip('.'))}"
    lines = [first, ".SH NAME", title, ".SH SYNOPSIS", synopsis(command, context)]
    lines += [".SH DESCRIPTION", *described(command)]
    if rows := options(command, context):
        lines += [".SH OPTIONS", *listed(rows)]
    if isinstance(command, click.Group):
        lines += [".SH COMMANDS"]
        if context.parent is None:
            from kamado.cli.main import COMMANDS

            lines += listed([(f"kamado-{sub}(1)", text) for sub, (_, text) in COMMANDS.items()])
        else:
            for _, sub, inner in subcommands(command, context):
                lines += [f".SS {escaped(inner.command_path)}", synopsis(sub, inner), ".PP", *described(sub)]
                lines += listed(options(sub, inner))
    lines += [".SH EXIT STATUS", *listed(table("Exit code"))]
    lines += [".SH ENVIRONMENT", *listed(table("Variable"))]
    lines += [".SH SEE ALSO", ",\n".join(rf"\fB{escaped(other)}\fR(1)" for other in others)]
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """File name -> text of every manual page."""
    from kamado.cli.main import COMMANDS, cli

    top = click.Context(cli, info_name="kamado", terminal_width=WIDTH, **cli.context_settings)
    names = [f"kamado-{name}" for name in COMMANDS]
    found = {"kamado.1": page(cli, top, "run open-weight language models on the machine you own", names)}
    for name, command, context in subcommands(cli, top):
        summary = COMMANDS[name][1]
        found[f"kamado-{name}.1"] = page(command, context, summary[0].lower() + summary[1:], ["kamado"])
    return found


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        os.environ.pop(name, None)
    out = Path(arguments[0])
    out.mkdir(parents=True, exist_ok=True)
    written = pages()
    for name, text in written.items():
        (out / name).write_text(text, encoding="utf-8")
    print(f"{len(written)} manual pages in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
