"""Ollama's Modelfiles: FROM, SYSTEM, TEMPLATE, PARAMETER, MESSAGE, LICENSE. Read into a Recipe, written for `show`.

FROM takes a name of the library, never a path: a client of the server may not make it open files. What
a Modelfile could say besides (ADAPTER, REQUIRES) is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import TemplateError, UsageError
from ...text.template import ChatTemplate
from .contract import Message, ModelInfo, Recipe, TextPart
from .go_template import to_jinja
from .modelfile_options import recipe_parameters

MAX_CHARACTERS = 1 << 20
_INSTRUCTION = re.compile(r"[ \t]*([A-Za-z]+)[ \t]+")
_PATH = re.compile(r"^[./~\\]|^[A-Za-z]:[\\/]|\.(gguf|safetensors|bin|pt|pth)$|\\|\.\.", re.IGNORECASE)
_ROLES = ("system", "user", "assistant")


@dataclass
class Instructions:
    """A Modelfile's content, not yet checked."""

    base: str | None = None
    system: str | None = None
    template: str | None = None
    license: str | None = None
    parameters: list[tuple[str, str]] = field(default_factory=list)
    messages: list[tuple[str, str]] = field(default_factory=list)


def parse_modelfile(text: str) -> Instructions:
    """Reads a Modelfile. Raises UsageError with the line."""
    UsageError.when(
        len(text) > MAX_CHARACTERS, f"the Modelfile has {len(text)} characters, more than the {MAX_CHARACTERS} allowed"
    )
    out = Instructions()
    at, text = 0, text.replace("\r\n", "\n") + "\n"  # so that every line has an end
    while at < len(text):
        end = text.index("\n", at)
        line = text[at:end].strip()
        if not line or line.startswith("#"):
            at = end + 1
            continue
        number = text.count("\n", 0, at) + 1
        match = _INSTRUCTION.match(text, at)
        if match is None or match.end() > end:
            raise UsageError(f"line {number} of the Modelfile is no instruction with a value: {line[:60]!r}")
        value, at = _value(text, match.end(), number)
        _take(out, match[1].upper(), value, number)
    return out


def _value(text: str, at: int, number: int) -> tuple[str, int]:
    """The value that begins at `at`, and where the next line begins. Triple quotes go over lines."""
    head = re.compile(r"(?:\w+[ \t]+)?").match(text, at)  # PARAMETER name, MESSAGE role
    assert head is not None
    for start, prefix in ((at, ""), (head.end(), head[0])):
        if text.startswith('"""', start):
            end = text.find('"""', start + 3)
            UsageError.when(end < 0, f'line {number} of the Modelfile opens """ and nothing closes it')
            line_end = text.index("\n", end)
            UsageError.when(
                text[end + 3 : line_end].strip(), f'line {number} of the Modelfile has something after its closing """'
            )
            return prefix + text[start + 3 : end], line_end + 1
    end = text.index("\n", at)
    return text[at:end].strip(), end + 1


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] == '"' else value


def _take(out: Instructions, name: str, value: str, number: int) -> None:
    if name == "FROM":
        UsageError.when(
            out.base is not None, f"line {number} of the Modelfile is a second FROM: models are made of one"
        )
        out.base = _unquoted(value)
    elif name in ("SYSTEM", "TEMPLATE"):
        setattr(out, name.lower(), _unquoted(value))
    elif name == "LICENSE":
        out.license = f"{out.license}\n\n{_unquoted(value)}" if out.license else _unquoted(value)
    elif name == "PARAMETER":
        key, _, given = value.partition(" ")
        out.parameters.append((key, _unquoted(given.strip())))
    elif name == "MESSAGE":
        role, _, said = value.partition(" ")
        out.messages.append((role.lower(), _unquoted(said.lstrip(" "))))
    elif name == "ADAPTER":
        raise UsageError(f"line {number} of the Modelfile: ADAPTER: adapters are not supported")
    else:
        raise UsageError(f"line {number} of the Modelfile: there is no instruction {name[:40]!r}")


def make_recipe(
    *,
    base: str | None,
    system: str | None,
    template: str | None,
    license_text: str | None,
    parameters: Mapping[str, Any],
    messages: Sequence[tuple[str, str]],
) -> Recipe:
    """A checked recipe. A template may be Go's (Ollama's) or Jinja's; it is kept as Jinja. Raises UsageError."""
    if not base:
        raise UsageError("from: name the model that the new one is made of")
    check_name(base, "from")
    for role, _ in messages:
        UsageError.when(role not in _ROLES, f"messages: a role must be one of {', '.join(_ROLES)}, not {role[:40]!r}")
    return Recipe(
        base=base,
        system=system,
        template=None if template is None else jinja_template(template),
        parameters=recipe_parameters(parameters),
        messages=tuple(Message(role, (TextPart(text),)) for role, text in messages),  # type: ignore[arg-type]
        license=license_text,
    )


def jinja_template(source: str) -> str:
    """A template's Jinja source, translated when it is Go's, and compiled once to know that it can be."""
    jinja = source if "{%" in source else to_jinja(source)
    try:
        ChatTemplate(jinja, bos_token="", eos_token="").check()
    except TemplateError as error:
        raise UsageError(f"template: {error}") from None
    return jinja


def check_name(name: str, what: str) -> None:
    """Raises UsageError when `name` is a path: only names of the library may come over HTTP."""
    UsageError.when(
        _PATH.search(name) or "\0" in name,
        f"{what}: {name[:80]!r} is a path; only names of models that are here may be given",
    )


def parameters_from_lines(lines: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A Modelfile's PARAMETERs as options: words to numbers, several `stop` to a list."""
    out: dict[str, Any] = {}
    for name, text in lines:
        if name == "stop":
            out.setdefault("stop", []).append(text)
        else:
            out[name] = _number(text)
    return out


def _number(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def write_modelfile(info: ModelInfo) -> str:
    """What would make this model again."""
    lines = ["# Modelfile of Kamado; TEMPLATE is Jinja", f"FROM {info.parent or info.name}"]
    if info.template:
        lines.append(f'TEMPLATE """{info.template}"""')
    if info.system:
        lines.append(f'SYSTEM """{info.system}"""')
    lines += [f"PARAMETER {line}" for line in parameter_lines(info.parameters)]
    if info.license:
        lines.append(f'LICENSE """{info.license}"""')
    return "\n".join(lines) + "\n"


def parameter_lines(parameters: Mapping[str, Any]) -> list[str]:
    """Parameters as Ollama lists them: one `name value` a line."""
    return [
        f'{name:<30} "{item}"' if isinstance(item, str) else f"{name:<30} {item}"
        for name, value in parameters.items()
        for item in (value if isinstance(value, (list, tuple)) else (value,))
    ]
