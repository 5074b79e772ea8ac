"""A Go template in pieces: text, actions, and the tokens of an action."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from ...errors import UsageError

_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?\d+(?:\.\d+)?)|(?P<path>\$?\w*(?:\.\w+)+|\$\w*|\.)"""
    r"""|(?P<word>\w+)|(?P<mark>:=|[(),|=]))"""
)
# What stands before an action's `}}`: whole strings, and all else that is not it.
_INSIDE = re.compile(r"""(?:"(?:\\.|[^"\\])*"|`[^`]*`|(?!\}\})[^"`])*+""", re.DOTALL)


@dataclass
class Action:
    """What stands between `{{` and `}}`."""

    text: str


def lex(source: str) -> list[str | Action]:
    """Text and actions, white space trimmed where `{{-` and `-}}` say so."""
    out: list[str | Action] = []
    at, trims = 0, False
    while True:
        begin = source.find("{{", at)
        text = source[at:] if begin < 0 else source[at:begin]
        if trims:
            text = text.lstrip()
        if begin < 0:
            out.append(text)
            return out
        end = _end_of_action(source, begin + 2)
        inner = source[begin + 2 : end]
        if inner[:1] == "-" and inner[1:2].isspace():
            text, inner = text.rstrip(), inner[1:]
        trims = inner[-1:] == "-" and inner[-2:-1].isspace()
        if trims:
            inner = inner[:-1]
        out.append(text)
        inner = inner.strip()
        if not (inner.startswith("/*") and inner.endswith("*/")):
            out.append(Action(inner))
        at = end + 2


def _end_of_action(source: str, at: int) -> int:
    """Where the action's `}}` is: not inside a string or a comment."""
    if source[at:].lstrip("- \t\r\n").startswith("/*"):
        at = source.find("*/", at)
    match = None if at < 0 else _INSIDE.match(source, at)
    if match is None or not source.startswith("}}", match.end()):
        raise UsageError("the template has a {{ without its }}")
    return match.end()


def tokens_of(text: str) -> list[tuple[str, str]]:
    """Kind and text of each token of an action. Raises UsageError."""
    out, at = [], 0
    text = text.strip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise UsageError(f"the template cannot be read at {text[at : at + 20]!r}")
        out.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return out


def string_of(text: str) -> str:
    """A literal as Jinja writes it. Raises UsageError."""
    if text.startswith("`"):
        return json.dumps(text[1:-1])
    try:
        return json.dumps(json.loads(text))
    except ValueError:
        raise UsageError(f"the template's string {text[:40]} cannot be read") from None
