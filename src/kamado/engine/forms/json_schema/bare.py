"""Objects whose keys stand bare, `{key:value,key:value}`, at every depth, with texts as they are between two of one
token: as Gemma 4 writes a call's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from . import trees
from .keywords import KeywordMembers
from .normal import Normaliser
from .python import WORDS, SpelledEmitter
from .rules import Literal, Name, Row, Token
from .shapes import Conjunction
from .trees import ANY, ANY_CHARACTER, Tree, both, is_nothing, is_nullable, repeat, seq


class BareEmitter(SpelledEmitter):
    """Writes values so; null as Python and JSON have it, for templates write None."""

    words: ClassVar[Mapping[str, str]] = {"null": WORDS["null"]}

    def __init__(self, normaliser: Normaliser, item_separator: str, key_separator: str, quote: int) -> None:
        """`quote`: the token before and behind each text."""
        super().__init__(normaliser, item_separator, key_separator)
        self._bare = KeywordMembers(self, self._rules, item_separator, key_separator)
        self._quote = Token(quote)
        self._quoted: dict[Tree, Name | None] = {}

    def member(self, name: str, conjunction: Conjunction) -> Row | None:
        """See Members. None for a name that cannot stand bare."""
        return self._bare.member(name, conjunction)

    def other(self, names: Tree, conjunction: Conjunction) -> Row | None:
        """See Members."""
        return self._bare.other(names, conjunction)

    def const(self, value: Any) -> Row:
        """A given value; one with a name that cannot stand bare is a rule that nothing matches."""
        if isinstance(value, str):
            return (self._quote, *([Literal(value)] if value else []), self._quote)
        if isinstance(value, Mapping):
            row = self._bare.const(value)
            return (Name(self._rules.new("x")),) if row is None else (*self.opening, *row, *self.closing)
        return super().const(value)

    def _is_row(self, value: Any) -> bool:
        return isinstance(value, str) or super()._is_row(value)

    def _text(self, tree: Tree, end: str = "") -> Name | None:
        if tree not in self._quoted:
            self._quoted[tree] = self._quoted_text(tree)
        return self._quoted[tree]

    def _quoted_text(self, tree: Tree) -> Name | None:
        if is_nothing(tree):
            return None
        rule = self._rules.new("s")
        if is_nullable(tree):  # no terminal is empty
            self._rules.add(rule, self._quote, self._quote)
        filled = repeat(ANY_CHARACTER, 1, None) if tree == ANY else both(tree, seq(ANY_CHARACTER, ANY))
        if not is_nothing(filled):
            self._rules.add(rule, self._quote, self._rules.terminal(trees.write(filled, False)), self._quote)
        return Name(rule)
