"""Regular expressions of schemas (ECMA 262, and what Python's writers use besides) as languages of whole texts.

A pattern is searched for, so the language is: anything, the pattern, anything. Look-ahead becomes an intersection with
the language of all that follows, and `^`, `$`, `\\b` are decided where they stand. What has no such meaning, such as a
back-reference or look-ahead inside a loop, raises PatternError. Where the dialects differ (`\\d`, `\\w`, `\\s`, `.`),
what both take is in the language and what either takes is out of its complement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

from . import charset
from .charset import Ranges
from .trees import ANY, EMPTY, NOTHING, Chars, Tree, alt, both, inverse, is_nullable, repeat, seq

MAX_CHARACTERS = 4096
_MAX_DEPTH = 40
_MAX_COUNT = 10_000
_MAX_NODES = 20_000


class PatternError(ValueError):
    """The text is no pattern, or its pattern is no regular language."""


@dataclass(frozen=True, slots=True)
class _Look:
    """Look-ahead."""

    part: _Node
    is_negative: bool


@dataclass(frozen=True, slots=True)
class _Place:
    """An assertion about where one is."""

    kind: Literal["begin", "end", "word", "no word"]


@dataclass(frozen=True, slots=True)
class _Cat:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Or:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Loop:
    part: _Node
    low: int
    high: int | None


_Node: TypeAlias = Chars | _Cat | _Or | _Loop | _Look | _Place
# What came before: nothing, a character of a word, another one, one of which the dialects say different things; "some":
# one of which it does not matter.
_Before = Literal["start", "word", "other", "unclear", "some"]


@lru_cache(512)
def language(pattern: str) -> Tree:
    """Texts in which the pattern is found. Raises PatternError."""
    if len(pattern) > MAX_CHARACTERS:
        raise PatternError(f"a pattern of {len(pattern)} characters is too long")
    try:
        node = _Parser(pattern).parse()
        return _Builder(node).build()
    except RecursionError:
        raise PatternError("the pattern is nested too deeply") from None


class _Builder:
    """From the parsed pattern to a language, from left to right, each part told what follows it."""

    def __init__(self, node: _Node) -> None:
        self._node = node
        self._has_begin = _contains(node, "begin")
        self._has_words = _contains(node, "word") or _contains(node, "no word")
        self._num_nodes = 0

    def build(self) -> Tree:
        anything = _Loop(Chars(charset.ALL), 0, None)
        return self._walk(_Cat((anything, self._node)), lambda _: ANY, "start")

    def _walk(self, node: _Node, rest: Callable[[_Before], Tree], before: _Before) -> Tree:
        self._num_nodes += 1
        if self._num_nodes > _MAX_NODES:
            raise PatternError("its assertions are too many")
        tree = _plain(node)
        if tree is not None:
            return self._take(tree, rest, before)
        match node:
            case _Cat(parts):
                known: dict[tuple[int, _Before], Tree] = {}

                def tail(i: int, now: _Before) -> Tree:
                    if i == len(parts):
                        return rest(now)
                    if (i, now) not in known:
                        known[i, now] = self._walk(parts[i], lambda after: tail(i + 1, after), now)
                    return known[i, now]

                return tail(0, before)
            case _Or(parts):
                return alt(*(self._walk(part, rest, before) for part in parts))
            case _Look(part, is_negative):
                seen = self._walk(part, lambda _: ANY, before)
                return both(rest(before), inverse(seen) if is_negative else seen)
            case _Place("begin"):
                return rest(before) if before == "start" else NOTHING
            case _Place("end"):
                return EMPTY if is_nullable(rest(before)) else NOTHING
            case _Place(kind):
                if before == "unclear":
                    return NOTHING
                is_word_wanted = (before == "word") != (kind == "word")
                other = alt(EMPTY, seq(Chars(charset.complement(charset.any_word())), ANY))
                return both(rest(before), seq(Chars(charset.WORD), ANY) if is_word_wanted else other)
            case _Loop(part, low, high) if high is not None and high <= 4:
                ways = [_Cat((part,) * n) for n in range(low, high + 1)]
                return alt(*(self._walk(way, rest, before) for way in ways))
            case _:
                raise PatternError("an assertion stands inside a loop")

    def _take(self, tree: Tree, rest: Callable[[_Before], Tree], before: _Before) -> Tree:
        """A part without assertions, and the rest for each way in which it may leave things."""
        if tree == EMPTY:
            return rest(before)
        nothing_taken = rest(before) if is_nullable(tree) else NOTHING
        if not self._has_words:
            after = rest("some")
            if before == "some" or (not self._has_begin) or nothing_taken in (NOTHING, after):
                return seq(tree, after)
            return alt(seq(both(tree, inverse(EMPTY)), after), nothing_taken)
        afters: list[tuple[_Before, Ranges]] = [
            ("word", charset.WORD),
            ("other", charset.complement(charset.any_word())),
            ("unclear", charset.minus(charset.any_word(), charset.WORD)),
        ]
        ways = [nothing_taken]
        for name, ranges in afters:
            if isinstance(tree, Chars):
                ways.append(seq(both(tree, Chars(ranges)), rest(name)))
            else:
                ways.append(seq(both(tree, seq(ANY, Chars(ranges))), rest(name)))
        return alt(*ways)


def _plain(node: _Node) -> Tree | None:
    """The language of a part without assertions, else None."""
    match node:
        case Chars():
            return node
        case _Cat(parts) | _Or(parts):
            trees = [_plain(part) for part in parts]
            known = [tree for tree in trees if tree is not None]
            if len(known) < len(trees):
                return None
            return seq(*known) if isinstance(node, _Cat) else alt(*known)
        case _Loop(part, low, high):
            tree = _plain(part)
            return None if tree is None else repeat(tree, low, high)
        case _:
            return None


def _contains(node: _Node, kind: str) -> bool:
    match node:
        case _Place(own):
            return own == kind
        case _Cat(parts) | _Or(parts):
            return any(_contains(part, kind) for part in parts)
        case _Loop(part, _, _) | _Look(part, _):
            return _contains(part, kind)
        case _:
            return False


# --- parsing ----------------------------------------------------------------------------------------------------------

_CONTROL = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._depth = 0
        self._is_caseless = False
        self._is_dot_all = False

    def parse(self) -> _Node:
        if self._text.startswith("(?") and (end := self._text.find(")")) > 0:
            flags = self._text[2:end]
            if flags and set(flags) <= set("isu"):
                self._is_caseless, self._is_dot_all = "i" in flags, "s" in flags
                self._at = end + 1
        node = self._either()
        if self._at < len(self._text):
            raise PatternError("a ')' closes nothing")
        return node

    def _peek(self, text: str) -> bool:
        return self._text.startswith(text, self._at)

    def _skip(self, text: str) -> bool:
        """Whether `text` came, which is passed over."""
        found = self._peek(text)
        self._at += len(text) * found
        return found

    def _next(self) -> str:
        if self._at >= len(self._text):
            raise PatternError("the pattern breaks off")
        self._at += 1
        return self._text[self._at - 1]

    def _either(self) -> _Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise PatternError(f"the pattern is nested deeper than {_MAX_DEPTH} groups")
        parts = [self._cat()]
        while self._skip("|"):
            parts.append(self._cat())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else _Or(tuple(parts))

    def _cat(self) -> _Node:
        parts: list[_Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._looped(self._atom()))
        return parts[0] if len(parts) == 1 else _Cat(tuple(parts))

    def _looped(self, node: _Node) -> _Node:
        while self._at < len(self._text):
            c = self._text[self._at]
            if c in "*+?":
                self._at += 1
                low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[c]
            elif c == "{":
                found = self._counts()
                if found is None:
                    return node  # a brace that is only a brace
                low, high = found
            else:
                return node
            if not self._skip("?") and self._peek("+"):  # as few as possible: of the same texts
                raise PatternError("loops that give nothing back cannot be enforced")
            node = _Loop(node, low, high)
        return node

    def _counts(self) -> tuple[int, int | None] | None:
        end = self._text.find("}", self._at)
        low, comma, high = self._text[self._at + 1 : end].partition(",")
        if end < 0 or not (low.isascii() and low.isdigit()) or (high and not (high.isascii() and high.isdigit())):
            if end >= 0 and not low and comma and high.isdigit():
                raise PatternError("{,n} means different things in different programs")
            return None
        self._at = end + 1
        most = int(high) if high else None if comma else int(low)
        if int(low) > _MAX_COUNT or (most is not None and (most > _MAX_COUNT or most < int(low))):
            raise PatternError(f"a loop of {self._text[self._at : end]} times")
        return int(low), most

    def _atom(self) -> _Node:
        c = self._next()
        if c == "(":
            return self._group()
        if c == "[":
            return Chars(self._set())
        if c == ".":
            return Chars(charset.ALL if self._is_dot_all else charset.complement(charset.LINE_ENDS))
        if c in "^$":
            return _Place("begin" if c == "^" else "end")
        if c == "\\":
            return self._escape()
        if c in "*+?":
            raise PatternError(f"{c!r} repeats nothing")
        return self._chars(charset.of(c))

    def _chars(self, ranges: Ranges) -> Chars:
        return Chars(charset.with_case(ranges) if self._is_caseless else ranges)

    def _group(self) -> _Node:
        node: _Node
        if self._skip("?"):
            if self._peek("=") or self._peek("!"):
                is_negative = self._next() == "!"
                node = _Look(self._either(), is_negative)
            elif self._skip(":"):
                node = self._either()
            elif self._peek("<=") or self._peek("<!"):
                raise PatternError("look-behind cannot be enforced")
            elif self._peek("<") or self._peek("P<"):
                end = self._text.find(">", self._at)
                if end < 0:
                    raise PatternError("a group's name has no end")
                self._at = end + 1
                node = self._either()
            else:
                raise PatternError(f"(?{self._text[self._at : self._at + 1]} cannot be enforced")
        else:
            node = self._either()
        if not self._skip(")"):
            raise PatternError("a group has no end")
        return node

    def _escape(self) -> _Node:
        c = self._next()
        if c in "bB":
            return _Place("word" if c == "b" else "no word")
        if c in "AZz":
            return _Place("begin" if c == "A" else "end")
        if c in "123456789k":
            raise PatternError("references back cannot be enforced")
        return self._chars(self._class(c, is_large=False))

    def _class(self, c: str, is_large: bool) -> Ranges:
        """What an escape stands for: in every dialect, or (`is_large`) in any."""
        if c in "dDwWsS":
            if is_large == c.islower():
                name = c.lower()
                ranges = (
                    charset.any_digit() if name == "d" else charset.any_word() if name == "w" else charset.ANY_SPACE
                )
            else:
                ranges = {"d": charset.DIGIT, "w": charset.WORD, "s": charset.SPACE}[c.lower()]
            return ranges if c.islower() else charset.complement(ranges)
        if c in "pP":
            if not self._peek("{") or (end := self._text.find("}", self._at)) < 0:
                raise PatternError("\\p needs a name in braces")
            name = self._text[self._at + 1 : end].removeprefix("General_Category=").removeprefix("gc=")
            self._at = end + 1
            if c == "p" and not is_large and name in charset.EMOJI:
                return charset.EMOJI[name]
            ranges = charset.category(name) or ()
            if not ranges:
                raise PatternError(f"\\p{{{name[:40]}}} is not known here")
            return charset.complement(ranges) if c == "P" else ranges
        code = self._code(c)
        return ((code, code),)

    def _code(self, c: str) -> int:
        if c == "x":
            return self._hex(2)
        if c == "u":
            if self._peek("{"):
                end = self._text.find("}", self._at)
                digits = self._text[self._at + 1 : end]
                self._at = end + 1
                return self._checked(digits if end > 0 else "")
            code = self._hex(4)
            if 0xD800 <= code < 0xDC00 and self._skip("\\u"):
                return 0x10000 + ((code - 0xD800) << 10) + (self._hex(4) - 0xDC00 & 0x3FF)
            return code
        if c == "c":
            return ord(self._next()) % 32
        if c in _CONTROL:
            return ord(_CONTROL[c])
        if c.isascii() and c.isalnum():
            raise PatternError(f"\\{c} has no meaning")
        return ord(c)

    def _hex(self, count: int) -> int:
        digits = self._text[self._at : self._at + count]
        self._at += count
        return self._checked(digits if len(digits) == count else "")

    def _checked(self, digits: str) -> int:
        try:
            code = int(digits, 16)
        except ValueError:
            code = -1
        if not 0 <= code <= 0x10FFFF:
            raise PatternError("a character's number is wrong")
        return code

    def _set(self) -> Ranges:
        is_negative = self._skip("^")
        members: list[Ranges] = []
        while True:
            c = self._next()
            if c == "]" and members:
                break
            if c == "]":  # ECMAScript: an empty set; Python: the character. Neither is what anybody means.
                raise PatternError("an empty set of characters means different things in different programs")
            member = self._member(c, is_negative)
            if self._peek("-") and not self._peek("-]") and _is_single(member):
                self._at += 1
                last = self._member(self._next(), is_negative)
                if not _is_single(last) or last[0][1] < member[0][0]:
                    raise PatternError("a range of characters is upside down")
                member = ((member[0][0], last[0][1]),)
            members.append(member)
        ranges = charset.intersect(charset.union(*members), charset.ALL)
        ranges = charset.with_case(ranges) if self._is_caseless else ranges
        return charset.complement(ranges) if is_negative else ranges

    def _member(self, c: str, is_large: bool) -> Ranges:
        if c != "\\":
            return charset.of(c)
        c = self._next()
        return charset.of("\b") if c == "b" else self._class(c, is_large)


def _is_single(ranges: Ranges) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]
