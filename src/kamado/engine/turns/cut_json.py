"""The arguments of a call in which an answer was cut: the beginning of a JSON object, made whole in one of two ways.

    whole_members('{"path": "a.py", "text": "de')   {"path": "a.py"}                 what came whole: for clients
    closed('{"path": "a.py", "text": "de')          {"path": "a.py", "text": "de"}   all that came: for prompts

A client must not take half a text for a text, so what it is shown ends with the last whole value; that is also how the
official Anthropic clients read a stream that ends early. In an earlier turn of a conversation the call is rendered with
everything that was generated, so that the prompt shares its beginning with what was computed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')  # of a string
# More than any answer has. A client may send so much of it that reading it would keep others waiting.
_MAX_CUT_CHARACTERS = 1 << 20
_MAX_DEPTH = 400  # brackets in each other; json.loads gives up at about a thousand
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_NUMBER_CHARACTERS = re.compile(r"[-+.0-9eE]*")
_LITERALS = ("true", "false", "null")
_ESCAPES = frozenset('"\\/bfnrt')
_HIGH_SURROGATE = re.compile(r"[dD][89abAB][0-9a-fA-F]{2}")


@dataclass(slots=True)
class _Cut:
    """How far a text is the beginning of JSON: `text[:size] + extra + closers` is whole."""

    size: int
    extra: str
    closers: str


def whole_members(text: str) -> dict[str, Any]:
    """The members of an object that came whole before `text` was cut; {} where there are none.

    A number at the very end counts as whole: nothing says that more digits were to come.
    """
    return _object(text, keeps_half=False) or {}


def closed(text: str) -> dict[str, Any] | None:
    """The object that `text` is, or is the beginning of, with the half value at its end; None for any other text, and
    for a beginning of more than a million characters."""
    return _object(text, keeps_half=True, max_characters=_MAX_CUT_CHARACTERS)


def _object(text: str, *, keeps_half: bool, max_characters: int | None = None) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        cut = None if max_characters is not None and len(text) > max_characters else _scan(text, keeps_half)
        if cut is None:
            return None
        try:
            value = json.loads(text[: cut.size] + cut.extra + cut.closers)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _scan(text: str, keeps_half: bool) -> _Cut | None:
    """Where the object that begins `text` is cut; None when it is no beginning of one.

    One pass, with a stack of closing brackets; `expects` is what the grammar of JSON lets come next.
    """
    at, end = _end(_SPACE, text, 0), len(text)
    if at == end:
        return _Cut(0, "{", "}")
    if text[at] != "{":
        return None
    closers = ""
    expects = "value"  # value, value or end, key, key or end, colon, comma or end
    whole = _Cut(0, "{", "}")
    while True:
        at = _end(_SPACE, text, at)
        if at == end:
            return whole
        c = text[at]
        if c in "{[" and expects in ("value", "value or end") and len(closers) < _MAX_DEPTH:
            closers = ("}" if c == "{" else "]") + closers
            expects = "key or end" if c == "{" else "value or end"
            at += 1
        elif closers and c == closers[0] and expects in ("value or end", "key or end", "comma or end"):
            closers = closers[1:]
            expects = "comma or end"
            at += 1
            if not closers:
                return None  # the object ended and json.loads refused it: more follows, or it is none
        elif c == "," and expects == "comma or end":
            expects = "key" if closers[0] == "}" else "value"
            at += 1
            continue
        elif c == ":" and expects == "colon":
            expects = "value"
            at += 1
            continue
        elif c == '"' and expects in ("key", "key or end"):
            size, is_whole = _string(text, at)
            if size < 0:
                return None
            if not is_whole:
                return whole
            expects, at = "colon", size
            continue
        elif expects in ("value", "value or end"):
            found = _scalar(text, at)
            if found is None:
                return None
            size, extra, is_whole = found
            if not is_whole:
                return _Cut(size, extra, closers) if keeps_half and (size > at or extra) else whole
            expects, at = "comma or end", size
        else:
            return None
        whole = _Cut(at, "", closers)


def _scalar(text: str, at: int) -> tuple[int, str, bool] | None:
    """(where it ends, what would complete it, whether it is whole) of the string, number or word at `at`."""
    c = text[at]
    if c == '"':
        size, is_whole = _string(text, at)
        return None if size < 0 else (size, "" if is_whole else '"', is_whole)
    if c in "-0123456789":
        end = _end(_NUMBER_CHARACTERS, text, at)
        size = _end(_NUMBER, text, at)
        if size == end:
            return size, "", True
        # One digit more makes a number of whatever may become one.
        return (size, "", False) if end == len(text) and _NUMBER.fullmatch(text[at:] + "0") else None
    for word in _LITERALS:
        if text.startswith(word, at):
            return at + len(word), "", True
        if word.startswith(text[at:]):
            return len(text), word[len(text) - at :], False
    return None


def _string(text: str, at: int) -> tuple[int, bool]:
    """Where the string at `at` ends, and True; where its last whole character ends, and False; -1 for none."""
    i = at + 1
    half = -1  # where an escape ends that is the first half of a character
    while i < len(text):
        c = text[i]
        if c == '"':
            return i + 1, True
        if c < " ":
            return -1, False
        if c != "\\":
            i = _end(_PLAIN, text, i)
        elif i + 1 == len(text):
            break
        elif text[i + 1] in _ESCAPES:
            i += 2
        elif text[i + 1] == "u":
            digits = text[i + 2 : i + 6]
            if not all(d in "0123456789abcdefABCDEF" for d in digits):
                return -1, False
            if len(digits) < 4:
                break
            i += 6
            if half != i - 6 and _HIGH_SURROGATE.fullmatch(digits):
                half = i
        else:
            return -1, False
    return (i - 6 if half == i else i), False


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where what `pattern` finds at `at` ends."""
    match = pattern.match(text, at)
    return at if match is None else match.end()
