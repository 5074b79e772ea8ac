"""A call's arguments out of pieces of text, as JSON: of an object that is JSON already, or of tags around each value.

A value between tags is a text unless its parameter may be something else and it looks like that (json_schema/tagged.py
keeps answers to the same rule). Texts are passed on as they come; what may be other JSON is held to its end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Literal, Protocol

from ...forms.json_schema import EVERY_KIND
from .syntax import ArgumentTags, CallSyntax, overlap, shown_text

_WORDS = {"null": "null", "true": "true", "false": "false", "None": "null", "True": "true", "False": "false"}
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WHOLE_FRACTION = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0+")
_NO_TEXT = frozenset('-0123456789[{ntfNTF"')  # what a value that is no text may begin with
_MAX_KEY = 4096

Kinds = Mapping[str, Collection[str]]


class ArgumentReader(Protocol):
    """Reads the arguments of one call."""

    is_done: bool
    is_broken: bool  # this is none

    def push(self, text: str) -> tuple[int, str]:
        """How many characters of `text` were taken, and JSON that is certain now. Others are to come again, with more
        behind them."""


class ObjectReader:
    """Arguments that are one JSON object, passed on as they are."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self.is_done = self.is_broken = False

    def push(self, text: str) -> tuple[int, str]:
        """See ArgumentReader."""
        if self._depth == 0 and not text.startswith("{"):
            self.is_broken = bool(text)
            return 0, ""
        for i, c in enumerate(text):
            if self._in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif c == "\\":
                    self._is_escaped = True
                elif c == '"':
                    self._in_string = False
            elif c == '"':
                self._in_string = True
            elif c in "{[":
                self._depth += 1
            elif c in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_done = True
                    return i + 1, text[: i + 1]
        return len(text), text


class TaggedReader:
    """Arguments between tags, up to `tail`, which is left."""

    def __init__(self, syntax: CallSyntax, tail: str, kinds: Kinds) -> None:
        """`kinds`: of which types each parameter may be; any, where it is not in it."""
        assert isinstance(syntax.arguments, ArgumentTags)
        self._tags = syntax.arguments
        self._separators = syntax.separators
        self._tail = tail
        self._kinds = kinds
        self._state: Literal["next", "key", "begin", "text", "held"] = "next"
        self._key = ""
        self._held: list[str] = []  # of a value that may be no text
        self._num_members = 0
        self.is_done = self.is_broken = False

    def push(self, text: str) -> tuple[int, str]:
        """See ArgumentReader."""
        at = 0
        out: list[str] = []
        while not (self.is_done or self.is_broken):
            taken = self._step(text[at:] if at else text, out)
            if taken is None:
                break
            at += taken
        return at, "".join(out)

    def _step(self, text: str, out: list[str]) -> int | None:
        """Characters taken; None when more must come first."""
        if self._state == "next":
            return self._next(text, out)
        if self._state == "key":
            end = text.find(self._tags.middle)
            if end < 0:
                self.is_broken = len(text) > _MAX_KEY
                return None
            self._key, self._state = shown_text(text[:end]), "begin"
            return end + len(self._tags.middle)
        if self._state == "begin":
            return self._begin(text, out)
        return self._value(text, out)

    def _next(self, text: str, out: list[str]) -> int | None:
        if text.startswith(self._tail):
            self.is_done = True
            out.append("}" if self._num_members else "{}")
            return 0
        if text.startswith(self._tags.before):
            self._state = "key"
            return len(self._tags.before)
        self.is_broken = not (self._tail.startswith(text) or self._tags.before.startswith(text))
        return None

    def _begin(self, text: str, out: list[str]) -> int | None:
        """A value begins: its first character tells whether it can be anything but a text."""
        kinds = self._kinds.get(self._key, EVERY_KIND)
        if len(kinds) > 1 or "string" not in kinds:
            if not text:
                return None
            if "string" not in kinds or text[0] in _NO_TEXT:
                self._state = "held"
                return 0
        self._state = "text"
        out.append(self._opened() + '"')
        return 0

    def _value(self, text: str, out: list[str]) -> int | None:
        end = text.find(self._tags.after)
        # What may be the beginning of the end is left until that is known.
        size = end if end >= 0 else len(text) - overlap(text, self._tags.after)
        if end < 0 and size == 0:
            return None
        piece = shown_text(text[:size])
        if self._state == "text":
            out.append(json.dumps(piece, ensure_ascii=False)[1:-1] + ('"' if end >= 0 else ""))
        else:
            self._held.append(piece)
            if end >= 0:
                kinds = self._kinds.get(self._key, EVERY_KIND)
                value = read_value("".join(self._held), kinds, has_python_words=self._tags.has_python_words)
                out.append(self._opened() + value)
                self._held = []
        if end < 0:
            return size
        self._state = "next"
        return size + len(self._tags.after)

    def _opened(self) -> str:
        """What stands before a value."""
        before = self._separators[0] if self._num_members else "{"
        self._num_members += 1
        return before + json.dumps(self._key, ensure_ascii=False) + self._separators[1]


def read_value(text: str, kinds: Collection[str], *, has_python_words: bool) -> str:
    """JSON of a value that was written between tags. Always JSON: what its types do not allow is a text."""
    may_be_text = "string" in kinds
    said = text if may_be_text else text.strip()
    word = _WORDS.get(said)
    if word is not None and (has_python_words or word == said or not may_be_text):
        return word if not may_be_text or ("null" if word == "null" else "boolean") in kinds else _quoted(text)
    number = _NUMBER.fullmatch(said)
    if number is not None:
        if "number" in kinds or ("integer" in kinds and not (number[1] or number[2])):
            return said
        whole = _WHOLE_FRACTION.fullmatch(said)
        if not may_be_text:
            return whole[1] if whole is not None and "integer" in kinds else said  # models write 3.0
        return _quoted(text)
    if not may_be_text or {"{": "object", "[": "array"}.get(said[:1]) in kinds:
        try:
            json.loads(said, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return _quoted(text)
        return said
    return _quoted(text)


def _refuse(name: str) -> object:
    raise ValueError(name)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
