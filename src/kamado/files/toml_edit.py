"""Changes one key of a TOML text and leaves the rest as a person wrote it, comments and order included.

The text is walked statement by statement (tomllib has checked it before, so that the walk meets valid TOML only). After
a change the new text is read again and compared with what it should say: a form that the walk does not understand, such
as a key inside an inline table, is refused and never damaged.
"""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError

KeyPath = tuple[str, ...]

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_KEY = re.compile(rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*")
_PARTS = re.compile(_PART)
_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
# A quotation mark or two may stand before the three that end a text of several lines.
_TOKEN = re.compile(
    r'''"""(?:\\.|(?!""").)*"""(?:"{0,2})|\'\'\'(?:(?!\'\'\').)*\'\'\'(?:\'{0,2})|"(?:[^"\\\n]|\\.)*"|'[^'\n]*\''''
    r"""|\#[^\n]*|[\[\]{}\n]|[^"'\#\[\]{}\n]+""",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Statement:
    """A header, or a key with its value. Offsets are characters of the text."""

    path: KeyPath
    is_header: bool
    is_list: bool  # [[header]]
    start: int
    value_start: int  # of a header: where it begins
    value_end: int
    end: int  # behind the line's end
    line: int  # counted from 1


def statements(text: str) -> list[Statement]:
    """The statements of a text that tomllib reads, in their order."""
    return list(_walk(text))


def lines(text: str) -> dict[KeyPath, int]:
    """Where each key stands; of a table its first header."""
    found: dict[KeyPath, int] = {}
    for statement in _walk(text):
        found.setdefault(statement.path, statement.line)
    return found


def parse_key(key: str) -> KeyPath:
    """`models."a.b".top_p` -> its parts. A part without quotation marks may have more letters than TOML's, no dot.

    Raises UsageError.
    """
    parts = re.findall(r"""(?:^|\.)("(?:[^"\\]|\\.)*"|'[^']*'|[^."'\s]+)(?=\.|$)""", key)
    if not parts or ".".join(parts) != key or len(key) > 1000:
        raise UsageError(f"{key[:100]!r} is no key: write parts with dots between them, and names with dots in quotes")
    return tuple(_plain(part) for part in parts)


def with_value(text: str, path: KeyPath, value: Any) -> str:
    """`text` with `value` at `path`. Raises UsageError where that takes a person."""
    expected = copy.deepcopy(tomllib.loads(text))
    table = expected
    for part in path[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UsageError(f"{shown_key(path)} cannot be set: {part} is no table")
    table[path[-1]] = value
    for candidate in _with_value(text, path, toml_value(value)):
        try:
            if tomllib.loads(candidate) == expected:
                return candidate
        except ValueError:
            continue
    raise UsageError(f"{shown_key(path)} stands in a form that cannot be changed from here: change it by hand")


def without(text: str, path: KeyPath) -> str:
    """`text` without the key or the table at `path`. Raises UsageError when it is not there, or takes a person."""
    document = tomllib.loads(text)
    expected = copy.deepcopy(document)
    table: Any = expected
    for part in path[:-1]:
        table = table.get(part) if isinstance(table, dict) else None
    if not isinstance(table, dict) or path[-1] not in table:
        raise UsageError(f"{shown_key(path)} is not set")
    del table[path[-1]]
    kept, at = [], 0
    for statement in statements(text):
        if statement.path[: len(path)] == path:
            kept.append(text[at : statement.start])
            at = statement.end
    candidate = "".join([*kept, text[at:]])
    try:
        if _pruned(tomllib.loads(candidate)) == _pruned(expected):
            return candidate
    except ValueError:
        pass
    raise UsageError(f"{shown_key(path)} stands in a form that cannot be changed from here: change it by hand")


def toml_value(value: Any) -> str:
    """A text, number, truth value, list or table as TOML writes it on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        if any(0xD800 <= ord(letter) < 0xE000 for letter in value):
            raise UsageError("the text has half a character in it")
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{shown_key((name,))} = {toml_value(item)}" for name, item in value.items()) + " }"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    raise UsageError(f"a {type(value).__name__} cannot be written as TOML")


def shown_key(path: KeyPath) -> str:
    """A path as TOML writes it."""
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else toml_value(part) for part in path)


def _plain(part: str) -> str:
    if part[0] not in "\"'":
        return part
    try:
        return str(tomllib.loads(f"x = {part}")["x"])
    except ValueError:
        raise UsageError(f"{part[:100]} is no key") from None


def _walk(text: str) -> Iterator[Statement]:
    at, line, counted = 0, 1, 0
    table: KeyPath = ()
    while True:
        blank = _BLANK.match(text, at)
        at = blank.end() if blank else at
        if at >= len(text):
            return
        line += text.count("\n", counted, at)
        counted = at
        start = text.rfind("\n", 0, at) + 1
        brackets = len(text[at : at + 2]) - len(text[at : at + 2].lstrip("["))
        key_at = at + brackets
        while text[key_at : key_at + 1] in (" ", "\t"):
            key_at += 1
        key = _KEY.match(text, key_at)
        if key is None:  # not what tomllib takes
            return
        path: KeyPath = tuple(_plain(part) for part in _PARTS.findall(key[0]))
        if brackets:
            end = text.find("\n", key.end())
            end = len(text) if end < 0 else end + 1
            table = path
            yield Statement(path, True, brackets == 2, start, at, key.end(), end, line)
        else:
            value = text.index("=", key.end()) + 1
            value_end, end = _value_end(text, value)
            value += len(text[value:value_end]) - len(text[value:value_end].lstrip(" \t"))
            yield Statement((*table, *path), False, False, start, value, value_end, end, line)
        at = end


def _value_end(text: str, at: int) -> tuple[int, int]:
    """Where a value ends, and where the line behind it does."""
    depth, value_end = 0, None
    for token in _TOKEN.finditer(text, at):
        first = token[0][0]
        if first in "[{":
            depth += 1
        elif first in "]}":
            depth -= 1
        elif depth == 0 and first in "#\n":
            value_end = token.start() if value_end is None else value_end
            if first == "\n":
                return _trimmed(text, at, value_end), token.end()
    return _trimmed(text, at, len(text) if value_end is None else value_end), len(text)


def _trimmed(text: str, start: int, end: int) -> int:
    while end > start and text[end - 1] in " \t\r":
        end -= 1
    return end


def _with_value(text: str, path: KeyPath, value: str) -> Iterator[str]:
    """Texts that may say it, the best first."""
    found = statements(text)
    for statement in found:
        if statement.path == path and not statement.is_header:
            yield text[: statement.value_start] + value + text[statement.value_end :]
            return
    first_header = next((s.start for s in found if s.is_header), len(text))
    top = f"{shown_key(path)} = {value}\n"
    if len(path) > 1:
        entry = f"{shown_key(path[-1:])} = {value}\n"
        for i, statement in enumerate(found):
            if statement.is_header and statement.path == path[:-1] and not statement.is_list:
                last = i
                while last + 1 < len(found) and not found[last + 1].is_header:
                    last += 1
                yield _inserted(text, found[last].end, entry)
                return
        yield _ended(text) + ("\n" if text.strip() else "") + f"[{shown_key(path[:-1])}]\n{entry}"
    before = [s.end for s in found if s.start < first_header]
    yield _inserted(text, before[-1] if before else _top(text, first_header), top)


def _top(text: str, first_header: int) -> int:
    """Where the first key goes in a text that has none before its first header: behind the comment that it begins with,
    unless that belongs to the header."""
    gap = text.rfind("\n\n", 0, first_header)
    return 0 if gap < 0 else gap + 1


def _inserted(text: str, at: int, entry: str) -> str:
    before = _ended(text[:at])
    return before + entry + text[at:]


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"


def _pruned(value: Any) -> Any:
    """Without empty tables: a removed key may leave one."""
    if not isinstance(value, dict):
        return value
    inner = {name: _pruned(item) for name, item in value.items()}
    return {name: item for name, item in inner.items() if item != {}}
