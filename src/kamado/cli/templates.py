"""Templates of prompts: a text with places for what is asked, `{input}`, and for fields that are named, `{language}`.

A doubled brace stands for itself. What is put in is put in as it is and never read again as a template, and everything
is bounded: the text, the fields, their values, the prompt that comes of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import UsageError

INPUT = "input"
MAX_TEXT = 1 << 18  # characters
MAX_FIELDS = 64
MAX_VALUE = 1 << 20
MAX_PROMPT = 1 << 24
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_MARK = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_KEYS = ("text", "system", "model", "fields")


class Field(NamedTuple):
    """A place that a value goes to."""

    name: str


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt to be filled in. `fields`: values of those that need not be given."""

    name: str
    parts: tuple[str | Field, ...]
    system: str | None = None
    model: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The fields in the order of the text, each once."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Field)))

    @property
    def has_input(self) -> bool:
        """Whether it has a place for what is asked."""
        return INPUT in self.names

    def prompt(self, values: Mapping[str, str]) -> str:
        """The text with `values` put in. Raises UsageError for a field that is missing, unknown or too long."""
        known = {name: f"{name}" for name in self.names}
        for name in values:
            if name not in known:
                listed = ", ".join(other for other in self.names if other != INPUT) or "it has none"
                raise UsageError(f"the template {self.name!r} has no field {name!r}: {listed}")
        chosen = {**self.fields, **values}
        for name in self.names:
            if name not in chosen:
                raise UsageError(f"the template {self.name!r} needs a value for {name}: -p {name}=VALUE")
            if name != INPUT and len(chosen[name]) > MAX_VALUE:
                raise UsageError(f"{name} has {len(chosen[name])} characters: {MAX_VALUE} are allowed")
        length = sum(len(chosen[part.name] if isinstance(part, Field) else part) for part in self.parts)
        if length > MAX_PROMPT:
            raise UsageError(f"the prompt would have {length} characters: {MAX_PROMPT} are allowed")
        return "".join(chosen[part.name] if isinstance(part, Field) else part for part in self.parts)


def parse(text: str) -> tuple[str | Field, ...]:
    """The parts of a template's text. Raises UsageError, which says at which character it is wrong."""
    if len(text) > MAX_TEXT:
        raise UsageError(f"has {len(text)} characters: {MAX_TEXT} are allowed")
    parts: list[str | Field] = []
    plain, at = "", 0
    for mark in _MARK.finditer(text):
        plain += text[at : mark.start()]
        at = mark.end()
        if mark[0] in ("{{", "}}"):
            plain += mark[0][0]
            continue
        if mark[1] is None or not _FIELD.fullmatch(mark[1]):
            raise UsageError(
                f"has {mark[0][:40]!r} at character {mark.start() + 1}, which is no field such as {{input}}: "
                "a brace of the text itself is written twice"
            )
        parts += [plain, Field(mark[1])]
        plain = ""
    parts.append(plain + text[at:])
    found = tuple(part for part in parts if part != "")
    num_fields = len({part for part in found if isinstance(part, Field)})
    if num_fields > MAX_FIELDS:
        raise UsageError(f"has {num_fields} fields: {MAX_FIELDS} are allowed")
    return found


def template_of(name: str, value: Any) -> Template:
    """What the settings say of a template: its text, or a table. Raises UsageError that names it and the key."""
    table = {"text": value} if isinstance(value, str) else value
    if not isinstance(table, dict) or not isinstance(table.get("text"), str):
        raise UsageError(f"the template {name!r} must be a text, or a table with a text")
    for key, inner in table.items():
        if key not in _KEYS:
            raise UsageError(f"the template {name!r} has no key {key!r}: there are {', '.join(_KEYS)}")
        if key != "fields" and not isinstance(inner, str):
            raise UsageError(f"the template {name!r}: {key} must be a text")
    try:
        parts = parse(table["text"])
    except UsageError as error:
        raise UsageError(f"the template {name!r} {error}") from None
    fields = table.get("fields", {})
    if not isinstance(fields, dict):
        raise UsageError(f"the template {name!r}: fields must be a table")
    template = Template(name, parts, table.get("system"), table.get("model"), {k: str(v) for k, v in fields.items()})
    for field_name, inner in fields.items():
        if field_name not in template.names or field_name == INPUT:
            raise UsageError(f"the template {name!r}: its text has no place for the field {field_name!r}")
        if isinstance(inner, dict | list):
            raise UsageError(f"the template {name!r}: the field {field_name!r} must be a text or a number")
    return template


def field_values(given: Sequence[str]) -> dict[str, str]:
    """`-p NAME=VALUE`, as often as it was given. Raises UsageError."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not _FIELD.fullmatch(name):
            raise UsageError(f"{text[:60]!r} is no FIELD=VALUE, such as language=Japanese")
        if name == INPUT:
            raise UsageError(
                "the input is the prompt itself: give it as an argument, with --file, or on standard input"
            )
        if name in found:
            raise UsageError(f"the field {name} is given twice")
        found[name] = value
    return found
