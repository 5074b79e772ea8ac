"""Files of settings that belong to other programs: some values put in, the rest kept, a copy of the old file put aside.

JSON, TOML, YAML and lists of variables, each as far as these programs need it. A file in a form that cannot be changed
safely (JSON with comments, YAML in flow style) is refused, and the person is told to put in what is printed.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...files.atomic import PRIVATE, write_atomically
from ...files.toml_edit import with_value

MAX_BYTES = 1 << 20
_BACKUP = ".before-kamado"

Values = Mapping[tuple[str, ...], Any]


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """A file and what it must say: `changed` turns its text into the new one."""

    path: Path
    format: str
    changed: Callable[[str], str]

    @property
    def alone(self) -> str:
        """What it would be if it were not there yet."""
        return self.changed("")

    def old_text(self) -> str | None:
        """What is there; None: nothing. Raises UsageError."""
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            UsageError.when(len(data) > MAX_BYTES, f"{self.path} is larger than {MAX_BYTES >> 20} MiB")
            return data.decode("utf-8-sig")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.path} is not UTF-8 text (byte {error.start})") from None

    def new_text(self) -> str:
        """What it will be. Raises UsageError, which says that the printed settings are to be put in by hand."""
        try:
            return self.changed(self.old_text() or "")
        except (UsageError, ValueError, RecursionError) as error:
            raise UsageError(
                f"{self.path} cannot be changed from here ({error}): put in by hand what is shown"
            ) from None

    def difference(self) -> str:
        """What writing changes, as a unified diff; "": nothing."""
        old, new = self.old_text() or "", self.new_text()
        lines = difflib.unified_diff(
            old.splitlines(keepends=True), new.splitlines(keepends=True), str(self.path), f"{self.path} (new)"
        )
        return "".join(line if line.endswith("\n") else line + "\n" for line in lines)

    def write(self) -> Path | None:
        """Brings it to the disk. Returns where the old file's copy is; None: there was none. Raises OSError."""
        old, new = self.old_text(), self.new_text()
        if old == new:
            return None
        target = self.path.resolve()  # a link to a file elsewhere stays one
        target.parent.mkdir(parents=True, exist_ok=True)
        backup = None
        if old is not None:
            backup = self._put_aside(target)
        write_atomically(target, new, mode=PRIVATE if old is None else None)  # there may be a key in it
        return backup

    def _put_aside(self, target: Path) -> Path:
        names = chain([target.name + _BACKUP], (f"{target.name}{_BACKUP}-{n}" for n in count(2)))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        data = target.read_bytes()
        for name in names:
            backup = target.with_name(name)
            try:
                fd = os.open(backup, flags, PRIVATE)
            except FileExistsError:
                continue
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            return backup
        raise AssertionError  # the names do not end


def json_file(path: Path, values: Values) -> SettingsFile:
    """A JSON object in which each value is at its path."""

    def changed(text: str) -> str:
        document = _json(text, {})
        UsageError.when(not isinstance(document, dict), "it is no JSON object")
        for key, value in values.items():
            table = document
            for part in key[:-1]:
                table = table.setdefault(part, {})
                UsageError.when(not isinstance(table, dict), f"its {part} is no object")
            table[key[-1]] = value
        return _json_text(document, text)

    return SettingsFile(path, "json", changed)


def json_list_file(path: Path, entry: Mapping[str, Any], same: Sequence[str]) -> SettingsFile:
    """A JSON array with `entry` in it, in the place of one that has the same values of `same`."""

    def changed(text: str) -> str:
        entries = _json(text, [])
        UsageError.when(not isinstance(entries, list), "it is no JSON array")
        for i, other in enumerate(entries):
            if isinstance(other, dict) and all(other.get(name) == entry[name] for name in same):
                entries[i] = dict(entry)
                break
        else:
            entries.append(dict(entry))
        return _json_text(entries, text)

    return SettingsFile(path, "json", changed)


def toml_file(path: Path, values: Values) -> SettingsFile:
    """A TOML file in which each value is at its path; comments stay."""

    def changed(text: str) -> str:
        for key, value in values.items():
            text = with_value(text, key, value)
        return text

    return SettingsFile(path, "toml", changed)


def yaml_file(path: Path, values: Mapping[str, str]) -> SettingsFile:
    """A YAML file whose outermost keys have these texts; comments stay. Raises UsageError for a text that is none."""
    for key, value in values.items():
        UsageError.when(not value.isprintable(), f"{key} cannot be {value!r}")

    def changed(text: str) -> str:
        lines = text.splitlines()
        said = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        is_plain = all(re.match(r"[A-Za-z_][\w.-]*[ \t]*:(?:[ \t]|$)|[ \t]|-[ \t]", line) for line in said)
        UsageError.when(not is_plain, "it has a form of YAML that is not understood here")
        for key, value in values.items():
            entry = f"{key}: {json.dumps(value, ensure_ascii=False)}"
            at = [i for i, line in enumerate(lines) if re.match(rf"{re.escape(key)}[ \t]*:", line)]
            UsageError.when(len(at) > 1, f"it has {key} twice")
            if not at:
                lines.append(entry)
                continue
            following = lines[at[0] + 1 : at[0] + 2]
            goes_on = bool(following) and bool(re.match(r"[ \t]+[^\s#]|-[ \t]", following[0]))
            UsageError.when(goes_on, f"its {key} has several lines")
            lines[at[0]] = entry
        return "\n".join(lines) + "\n"

    return SettingsFile(path, "yaml", changed)


def env_file(path: Path, values: Mapping[str, str]) -> SettingsFile:
    """A list of variables, NAME=value. Programs disagree about quotation marks there: no value may need them."""
    for name, value in values.items():
        UsageError.when(
            not re.fullmatch(r"[A-Za-z0-9._:/@+~%=-]*", value), f"{name} cannot stand in a list of variables: {value!r}"
        )

    def changed(text: str) -> str:
        lines = text.splitlines()
        for name, value in values.items():
            at = [i for i, line in enumerate(lines) if re.match(rf"(?:export[ \t]+)?{name}[ \t]*=", line)]
            if at:
                lines[at[-1]] = f"{name}={value}"  # the last one counts
            else:
                lines.append(f"{name}={value}")
        return "\n".join(lines) + "\n"

    return SettingsFile(path, "env", changed)


def _json(text: str, empty: Any) -> Any:
    if not text.strip():
        return empty
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"it is no JSON, or has comments: {error}") from None


def _json_text(document: Any, old: str) -> str:
    """With the indentation that the file has."""
    found = re.search(r"\n([ \t]+)\S", old)
    indent: str | int = found[1] if found else 2
    return json.dumps(document, indent=indent, ensure_ascii=False) + "\n"
