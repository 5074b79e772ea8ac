"""Arguments of a Python call out of pieces of text, as JSON: `a="x", n=-1, is_new=True, more={'k': [None]}`.

Values are JSON or Python literals: texts in either quote with the escapes of both, True, False, None and JSON's words,
numbers, lists, and dictionaries whose keys are texts. Not read: tuples, names, operators, prefixed and triple quotes,
texts side by side. What is none of these ends the call as no call.
"""

from __future__ import annotations

import json
import re
from typing import Literal

from .syntax import shown_text

_MAX_DEPTH = 256
_MAX_RUN = 4096  # characters of a name, a number or a word
_SPACE = re.compile(r"[ \t\r\n]*")
_NAME = re.compile(r"[^\x00-\x20\x7f-\xa0=(),:'\"\[\]{}<>\\]*")  # as json_schema/keywords.py has it
_RUN = re.compile(r"[\w.+-]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+(?:_[0-9]+)*)?\.?(?:[0-9]+(?:_[0-9]+)*)?(?:[eE][+-]?[0-9]+)?")
_WORDS = {"null": "null", "true": "true", "false": "false", "None": "null", "True": "true", "False": "false"}
_ESCAPES = {"n": "\\n", "t": "\\t", "r": "\\r", "b": "\\b", "f": "\\f", "a": "\\u0007", "v": "\\u000b",
            '"': '\\"', "'": "'", "\\": "\\\\", "/": "/", "\n": ""}  # fmt: skip
_NUM_DIGITS = {"x": 2, "u": 4, "U": 8}
_OCTAL = re.compile(r"[0-7]{1,3}")
_CLOSERS = {"[": "]", "{": "}"}
_TEXT = {'"': re.compile(r'[^"\\]*'), "'": re.compile(r"[^'\\]*")}

_State = Literal["name", "equals", "value", "key", "colon", "after", "text"]


class KeywordReader:
    """Reads up to the `)` of the call, which is left. See ArgumentReader."""

    _end = ")"
    _assign = "="  # what stands behind an argument's name
    _quotes = "\"'"
    _has_bare_keys = False  # inside of objects

    def __init__(self, item_separator: str, key_separator: str) -> None:
        self._separators = (item_separator, key_separator)
        self._state: _State = "name"
        self._name = ""
        self._closers: list[str] = []  # of what is open
        self._may_close = True  # nothing, or an item, stands before
        self._quote = ""
        self._is_key = False  # the text that is read is a key
        self._before = "{"  # what is written before the next item, once it is certain that one comes
        self.is_done = self.is_broken = False

    def push(self, text: str) -> tuple[int, str]:
        """See ArgumentReader."""
        at = 0
        out: list[str] = []
        while at < len(text) and not (self.is_done or self.is_broken):
            if self._state != "text":
                match = _SPACE.match(text, at)
                at = match.end() if match else at
                if at == len(text):
                    break
            end = self._text(text, at, out) if self._state == "text" else self._step(text, at, out)
            if end is None:
                break
            at = end
        return at, "".join(out)

    # Each step gives the place behind what it took, or None when more must come first.

    def _step(self, text: str, at: int, out: list[str]) -> int | None:
        c = text[at]
        if self._state in ("equals", "colon"):
            if c != (self._assign if self._state == "equals" else ":"):
                return self._break()
            out.append(self._separators[1])
            self._state = "value"
            self._may_close = False
            return at + 1
        if self._state == "after":
            if c == ",":
                self._before = self._separators[0]
                self._state = "value" if self._closers and self._closers[-1] != "}" else "key"
                self._may_close = True  # Python allows a comma after the last item
                if not self._closers:
                    self._state = "name"
                return at + 1
            return self._close(c, at, out)
        if self._may_close and c in ")]}":
            return self._close(c, at, out)
        if self._state == "name" or (self._state == "key" and self._has_bare_keys and c not in self._quotes):
            return self._argument(text, at, out)
        if c in self._quotes:
            self._quote, self._is_key = c, self._state == "key"
            out.append(self._begin() + '"')
            self._state = "text"
            return at + 1
        if self._state == "key":
            return self._break()
        return self._value(text, at, out)

    def _argument(self, text: str, at: int, out: list[str]) -> int | None:
        match = _NAME.match(text, at)
        end = match.end() if match else at
        if end == len(text) and end - at <= _MAX_RUN:
            return None
        name = shown_text(text[at:end])
        if not name or end - at > _MAX_RUN:
            return self._break()
        out.append(self._begin() + json.dumps(name, ensure_ascii=False))
        self._state = "equals"
        return end

    def _value(self, text: str, at: int, out: list[str]) -> int | None:
        c = text[at]
        if c in _CLOSERS:
            if len(self._closers) >= _MAX_DEPTH:
                return self._break()
            out.append(self._begin() + c)
            self._closers.append(_CLOSERS[c])
            self._state = "key" if c == "{" else "value"
            self._may_close = True
            return at + 1
        match = _RUN.match(text, at)
        end = match.end() if match else at
        if end == len(text) and end - at <= _MAX_RUN:
            return None
        value = _scalar(text[at:end]) if end - at <= _MAX_RUN else None
        if value is None:
            return self._break()
        out.append(self._begin() + value)
        self._state = "after"
        return end

    def _text(self, text: str, at: int, out: list[str]) -> int | None:
        if text[at] == self._quote:
            out.append('"')
            self._state = "colon" if self._is_key else "after"
            return at + 1
        if text[at] == "\\":
            return self._escape(text, at, out)
        match = _TEXT[self._quote].match(text, at)
        end = match.end() if match else at
        out.append(json.dumps(shown_text(text[at:end]), ensure_ascii=False)[1:-1])
        return end

    def _escape(self, text: str, at: int, out: list[str]) -> int | None:
        """One escape; what Python does not know as one is the backslash and what follows."""
        if at + 1 == len(text):
            return None
        c = text[at + 1]
        if c in _ESCAPES:
            out.append(_ESCAPES[c])
            return at + 2
        if c in "01234567":
            match = _OCTAL.match(text, at + 1)
            assert match is not None
            if match.end() == len(text) and len(match[0]) < 3:
                return None
            out.append(json.dumps(chr(int(match[0], 8)), ensure_ascii=False)[1:-1])
            return match.end()
        size = _NUM_DIGITS.get(c, 0)
        digits = text[at + 2 : at + 2 + size]
        is_number = all(d in "0123456789abcdefABCDEF" for d in digits)
        if size and is_number and len(digits) < size:
            return None
        if size and is_number and int(digits, 16) <= 0x10FFFF:
            code = int(digits, 16)
            # JSON's readers join the halves of a pair, so each is passed on as it is.
            out.append(f"\\u{code:04x}" if code <= 0xFFFF else chr(code))
            return at + 2 + size
        out.append("\\\\")
        return at + 1

    def _close(self, c: str, at: int, out: list[str]) -> int | None:
        if not self._closers:
            if c != self._end:
                return self._break()
            out.append("}" if self._before != "{" else "{}")
            self.is_done = True
            return at
        if c != self._closers[-1]:
            return self._break()
        self._closers.pop()
        out.append(c)
        self._before = ""
        self._state = "after"
        return at + 1

    def _begin(self) -> str:
        """What stands before an item."""
        before, self._before = self._before, ""
        return before

    def _break(self) -> int | None:
        self.is_broken = True
        return None


def _scalar(text: str) -> str | None:
    """JSON of a word or number; None for anything else."""
    if text in _WORDS:
        return _WORDS[text]
    if _NUMBER.fullmatch(text):
        return text
    plain = text.replace("_", "")
    if any(c in "0123456789" for c in text) and _FLOAT.fullmatch(text) and not re.search(r"^[+-]?0[0-9_]", text):
        sign, digits = ("-", plain[1:]) if plain[0] == "-" else ("", plain.lstrip("+"))
        whole, dot, rest = digits.partition(".")
        if not dot:
            return sign + digits
        fraction, e, exponent = rest.lower().partition("e")
        return f"{sign}{whole or '0'}.{fraction or '0'}{e}{exponent}"
    return None
