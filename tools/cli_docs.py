#!/usr/bin/env python3
"""Writes docs/cli.md from the commands' own help; with --check compares instead, so that the page cannot drift."""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
WIDTH = 100  # columns
INTRODUCTION = """\
# The command line

*What it is:* what a person types. One file a command under `src/kamado/cli/`; each is imported only when it is called.

```mermaid
flowchart LR
  main["main.py: group, errors, exit codes"] --> command["one file a command"]
  command --> loading["loading.py: find, fetch, load"]
  loading --> api["kamado.load(), Model"]
  command --> connection["connection.py: here, or in a server"]
  connection --> loading
  command --> terminal["terminal.py: tables, JSON, progress"]
```

*How to change it:* add a module with a click command called `command`, add its line to `COMMANDS` in `main.py`, run
`python3 tools/cli_docs.py`. This page is generated from `--help`; CI compares it.

## Conventions

- Answers and listings go to stdout; everything else (progress, notes, `--stats`, errors) goes to stderr.
- When stdout is no terminal there is no colour; when stderr is none there are no progress bars. `NO_COLOR` is honoured.
- Every listing takes `--json`.
- A fault prints one sentence, `kamado: error: …`, never a traceback; `KAMADO_DEBUG=1` shows where it came from.
- Nothing is downloaded but by `kamado pull`, `--pull`, or a yes to what `run` and `chat` ask on a terminal.

## Exit codes

| Exit code | Meaning |
|---|---|
| 0 | done |
| 1 | an operating-system fault, `doctor` found something broken, or an answer was cut before its form was complete |
| 2 | the call was wrong |
| 3 | the model file cannot be used, or its template failed |
| 4 | no such model |
| 5 | a download failed; the next try goes on where it stopped |
| 6 | the prompt does not fit the context |
| 7 | the memory budget or the machine is too small |
| 8 | an expert could not be read from disk while the model ran |
| 9 | no server of yours runs here, or the one that was asked is gone, hangs or answers nonsense |
| 70 | a fault of Kamado's own |
| 130 | interrupted by Ctrl-C |
| 141 | the reader of a pipe has gone |

## Variables

| Variable | Effect |
|---|---|
| `KAMADO_HOME` | one folder for models, settings, profile, history; settings and keys of `serve` stay where they are |
| `XDG_CONFIG_HOME` | where your settings lie otherwise ([config.md](config.md)) |
| `VISUAL`, `EDITOR` | what `kamado config edit` opens |
| `XDG_DATA_HOME`, `XDG_CACHE_HOME`, `XDG_STATE_HOME` | where these lie otherwise |
| `KAMADO_ELSEWHERE` | `off`: models that Ollama, LM Studio and the hub's cache keep are not looked at |
| `KAMADO_TIER` | a lower kernel tier than the best (`scalar`, `avx2`, …) |
| `KAMADO_API_KEY` | the key of the server that `--server URL` names |
| `KAMADO_DEBUG` | `1`: tracebacks |
| `NO_COLOR` | no colours |

"""


def render() -> str:
    """The whole page."""
    import click

    from kamado.cli.main import COMMANDS, cli

    top = click.Context(cli, info_name="kamado", terminal_width=WIDTH, **cli.context_settings)
    parts = [INTRODUCTION, "## kamado\n\n```text\n", cli.get_help(top), "\n```\n"]
    for name in COMMANDS:
        command = cli.get_command(top, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=top, terminal_width=WIDTH)
        parts += [f"\n## kamado {name}\n\n```text\n", command.get_help(context), "\n```\n"]
    return "".join(parts)


def main() -> int:
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        os.environ.pop(name, None)
    text = render()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    found = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if found == text:
        return 0
    sys.stdout.writelines(difflib.unified_diff(found.splitlines(True), text.splitlines(True), "docs/cli.md", "--help"))
    print("docs/cli.md is not what --help says: run python3 tools/cli_docs.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
