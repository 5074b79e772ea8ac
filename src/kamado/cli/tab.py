"""What Tab completes in `kamado chat`: commands, options of /set, and paths."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .chat_settings import DEFAULT, NAMES
from .terminal import printable

PATHS, OPTIONS = "paths", "options"  # what may follow a command
_MOST_SHOWN = 200  # names of a folder


def completions(commands: Mapping[str, str], line: str) -> list[str]:
    """What `line`, up to the cursor, may become: whole lines. `commands`: what may follow each one."""
    if not line.startswith("/") or "\n" in line:
        return []
    name, blank, rest = line[1:].partition(" ")
    if not blank:
        return [f"/{found} " for found in sorted(commands) if found.startswith(name)]
    kind = commands.get(name)
    if kind == PATHS:
        return [f"/{name} {path}" for path in _paths(rest)]
    if kind == OPTIONS:
        return [f"/{name} {setting}" for setting in _settings(rest)]
    return []


def _settings(rest: str) -> list[str]:
    name, blank, value = rest.partition(" ")
    if not blank:
        return [f"{found} " for found in (*NAMES, "format") if found.startswith(name.replace("-", "_"))]
    offered = ("on", "off") if name == "format" else (DEFAULT,)
    return [f"{name} {found}" for found in offered if found.startswith(value)]


def _paths(begun: str) -> list[str]:
    """Names in the folder that begin so; a folder ends with a slash."""
    folder, _, start = begun.rpartition("/")
    folder = f"{folder}/" if "/" in begun else ""
    try:
        with os.scandir(Path(folder or ".").expanduser()) as entries:
            found = [
                f"{folder}{entry.name}{'/' if entry.is_dir() else ''}"
                for entry in entries
                # A name that would act on the terminal is not offered.
                if entry.name.startswith(start) and printable(entry.name) == entry.name and "\n" not in entry.name
                and (start or not entry.name.startswith("."))
            ]  # fmt: skip
    except (OSError, ValueError, RuntimeError):  # no such folder, or no such user
        return []
    return sorted(found)[:_MOST_SHOWN]
