"""Objects that are written member by member between tags, as some models write a call's arguments.

A member is `before name middle value after`. A value that is a text stands there as it is, up to the first `after`; any
other is JSON. So a member that may be a text or something else is read by what it looks like: what is the JSON of a
type that its schema allows is that, anything else is a text. Texts that would be read so are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from . import charset
from .charset import DIGIT, of_pairs
from .members import Values
from .normal import Normaliser
from .rules import Literal, Name, Row, Rules, Token
from .shapes import Atom, Conjunction, Const, Number, Text, kind_of
from .trees import (
    ANY,
    ANY_CHARACTER,
    Chars,
    Tree,
    alt,
    both,
    inverse,
    is_nothing,
    is_nullable,
    literal,
    matches,
    repeat,
    seq,
    write,
)

EVERY_KIND = frozenset(("string", "integer", "number", "boolean", "null", "array", "object"))
# What a name may not have: it would end in its own tag.
_NAME_CHARACTERS = charset.complement(charset.of('<>"\n\r'))
_MAX_NAME = 64  # characters of a name that is not declared
_D = Chars(DIGIT)
_WHOLE = seq(repeat(literal("-"), 0, 1), alt(literal("0"), seq(Chars(of_pairs("19")), repeat(_D, 0, None))))
_NUMBER = seq(
    _WHOLE,
    repeat(seq(literal("."), repeat(_D, 1, None)), 0, 1),
    repeat(seq(Chars(charset.of("eE")), repeat(Chars(charset.of("+-")), 0, 1), repeat(_D, 1, None)), 0, 1),
)
_WORDS = {"null": ("null", "None"), "true": ("true", "True"), "false": ("false", "False")}  # JSON's, Python's

# Everything, and not all text alone: so the compiler sees at once that nothing is left of a complement, where it would
# follow a count of thousands to its end.
_ANY_BYTES = "(~/[a&&b]/)"


@dataclass(frozen=True, slots=True)
class Keywords:
    """Members as arguments of a Python call (keywords.py): what stands between them, and whether values are Python's
    literals or JSON."""

    between: str
    is_python: bool
    assign: str = "="


@dataclass(frozen=True, slots=True)
class Bare:
    """Members with bare keys (bare.py): what stands between them and behind a key, and the token around a text."""

    between: str
    assign: str
    quote: int


@dataclass(frozen=True, slots=True)
class Tagged:
    """The tags. `has_python_words`: True, False and None come as well as JSON's words. `tokens`: characters in the tags
    that stand for one token each, and its id."""

    before: str
    middle: str
    after: str
    has_python_words: bool = False
    tokens: tuple[tuple[str, int], ...] = ()


class TaggedMembers:
    """Writes an object's members between tags; see members.Members."""

    opening: Row = ()
    closing: Row = ()
    comma: Row = ()

    def __init__(self, values: Values, rules: Rules, normaliser: Normaliser, tagged: Tagged) -> None:
        self._writer = values
        self._rules = rules
        self._all = normaliser
        self._tagged = tagged
        self._tokens = dict(tagged.tokens)
        after = _runs(tagged.after, self._tokens)
        # What stands at the end of a value's own terminal, and what follows it.
        self._end = after[0] if after and isinstance(after[0], str) else ""
        self._rest = self._row(after[1:] if self._end else after)
        self._values: dict[tuple[Conjunction, bool], Name] = {}
        self.kinds: dict[str, list[str]] = {}  # of named members: what they may be

    def member(self, name: str, conjunction: Conjunction) -> Row | None:
        """See Members. None for a name that its tag cannot hold."""
        if not name or not matches(repeat(Chars(_NAME_CHARACTERS), 1, None), name):
            return None
        if any(c in name for c in self._tokens):
            return None
        kinds = {kind_of_value(atom) for atom in self._all.shape(conjunction).atoms}
        self.kinds[name] = sorted(kinds | ({"integer"} if "number" in kinds else set()))
        head = self._row(_runs(self._tagged.before + name + self._tagged.middle, self._tokens))
        return (*head, self._value(conjunction, is_any=False))

    def other(self, names: Tree, conjunction: Conjunction) -> Row | None:
        """See Members. Of a name that is not declared the reader knows no type: it takes JSON for what it is."""
        before = _runs(self._tagged.before, self._tokens)
        middle = _runs(self._tagged.middle, self._tokens)
        tree = both(names, repeat(Chars(_NAME_CHARACTERS), 1, _MAX_NAME))
        if is_nothing(tree):
            return None
        # One terminal with the text around it, or a declared name that begins alike would hide it.
        if before and isinstance(text := before[-1], str):
            tree, before = seq(literal(text), tree), before[:-1]
        if middle and isinstance(text := middle[0], str):
            tree, middle = seq(tree, literal(text)), middle[1:]
        name = self._rules.terminal(write(tree, False))
        return (*self._row(before), name, *self._row(middle), self._value(conjunction, is_any=True))

    def const(self, value: Mapping[str, Any]) -> Row | None:
        """The members of one given object."""
        out: list[Any] = []
        for name, item in value.items():
            if not matches(repeat(Chars(_NAME_CHARACTERS), 1, None), name):
                return None
            self.kinds.setdefault(name, sorted(EVERY_KIND))
            text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
            if isinstance(item, str) and not self._is_read(item, EVERY_KIND):
                return None
            whole = self._tagged.before + name + self._tagged.middle + text + self._tagged.after
            out += self._row(_runs(whole, self._tokens))
        return tuple(out)

    def _value(self, conjunction: Conjunction, is_any: bool) -> Name:
        """The rule of a value and what follows it. `is_any`: the reader takes it for any type."""
        known = self._values.get((conjunction, is_any))
        if known is not None:
            return known
        rule = self._rules.new("t")
        self._values[conjunction, is_any] = Name(rule)
        atoms = self._all.shape(conjunction).atoms
        kinds = EVERY_KIND if is_any else frozenset(map(kind_of_value, atoms))
        texts = [one for one in atoms if isinstance(one, Text)]
        for text in texts:
            self._text(rule, text, kinds)
        given = [one.value for one in atoms if isinstance(one, Const) and isinstance(one.value, str)]
        given = [json.dumps(one, ensure_ascii=False) for one in given if self._is_read(one, kinds)]
        if '""' in given and not self._end:  # no terminal is empty
            given.remove('""')
            self._rules.add(rule, *self._rest)
        rows: list[Row] = [(self._rules.terminal(" | ".join(given)),)] if given else []
        for atom in atoms:
            if not isinstance(atom, Text) and not (isinstance(atom, Const) and isinstance(atom.value, str)):
                rows += self._json(conjunction, atom)
        for row in rows:
            self._rules.add(rule, *self._rules.joined(row, self._end, is_lazy=bool(texts)), *self._rest)
        return Name(rule)

    def _is_read(self, text: str, kinds: frozenset[str]) -> bool:
        """Whether a text between the tags is read as that text."""
        after = self._tagged.after
        scalars, openers = self._others(kinds)
        is_other = matches(alt(*scalars, *(seq(one, ANY) for one in openers)), text)
        return (text + after).find(after) == len(text) and not is_other

    def _text(self, rule: str, text: Text, kinds: frozenset[str]) -> None:
        """Texts, and their end if it is text too: the first one is theirs."""
        end = literal(self._end)
        scalars, begins = self._others(kinds)  # whatever begins so is left out
        low, language = text.low, text.language()
        if text.tree != ANY:
            language = both(language, inverse(alt(*scalars, *(seq(one, ANY) for one in begins))))
            if is_nothing(language):
                return
            begins = [seq(ANY, end, ANY_CHARACTER)] if self._end else []
            scalars = []
        elif self._end:
            begins += [seq(one, end) for one in scalars]
            begins += [seq(repeat(ANY_CHARACTER, 0, low - 1), end)] if low else []
            scalars = []
        if not self._end and is_nullable(language):  # no terminal is empty
            self._rules.add(rule, *self._rest)
            if text.high == 0:
                return
            nonempty = repeat(ANY_CHARACTER, 1, text.high)
            language = nonempty if text.tree == ANY else both(language, seq(ANY_CHARACTER, ANY))
        body = f"({write(seq(language, end), False)})"
        if scalars:
            body += f" & (~({write(alt(*scalars), False)}))"
        if begins:
            body += f" & (~(({write(alt(*begins), False)}) {_ANY_BYTES}))"
        self._rules.add(rule, self._rules.terminal(body, is_lazy=bool(self._end)), *self._rest)

    def _json(self, conjunction: Conjunction, atom: Atom) -> list[Row]:
        """The ways to write what is no text."""
        if isinstance(atom, Const) and not isinstance(atom.value, list | Mapping):
            word = json.dumps(atom.value)
            words = _WORDS.get(word, (word,))[: 1 + self._tagged.has_python_words]
            return [(self._rules.terminal(" | ".join(f'"{one}"' for one in words)),)]
        return self._writer.rows(conjunction, atom)

    def _others(self, kinds: frozenset[str]) -> tuple[list[Tree], list[Tree]]:
        """What is read as something else than a text, and what that begins with which is read so whole."""
        scalars: list[Tree] = []
        begins: list[Tree] = []
        for kind in sorted(kinds):
            if kind in ("null", "boolean"):
                words = [_WORDS["null"]] if kind == "null" else [_WORDS["true"], _WORDS["false"]]
                spelled = [one for pair in words for one in pair[: 1 + self._tagged.has_python_words]]
                scalars += map(literal, spelled)
            elif kind in ("integer", "number"):
                scalars.append(_WHOLE if kind == "integer" else _NUMBER)
            elif kind != "string":
                begins.append(literal("[" if kind == "array" else "{"))
        return scalars, begins

    def _row(self, runs: list[str | Token]) -> Row:
        return tuple(Literal(run) if isinstance(run, str) else run for run in runs)


def kind_of_value(atom: Atom) -> str:
    """The type that a reader must know of: whole numbers apart from others."""
    if isinstance(atom, Number):
        return "integer" if atom.kind == "whole" else "number"
    if isinstance(atom, Const) and isinstance(atom.value, float):
        return "number"
    return kind_of(atom)


def _runs(text: str, tokens: Mapping[str, int]) -> list[str | Token]:
    """Plain text and tokens, in turn."""
    out: list[str | Token] = []
    for is_token, characters in groupby(text, key=tokens.__contains__):
        run = "".join(characters)
        out += [Token(tokens[c]) for c in run] if is_token else [run]
    return out
