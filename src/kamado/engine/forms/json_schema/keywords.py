"""Objects that are written as the arguments of a call: `name=value, name=value`, each value JSON or, with the emitter
of python.py, a Python literal; or `name:value,name:value` with that of bare.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import charset, trees
from .members import Values
from .rules import Literal, Row, Rules
from .shapes import Conjunction
from .trees import Chars, Tree, both, is_nothing, literal, matches, repeat, seq

# What a name may not have, for it would end there or be taken for something else.
_NAME_CHARACTERS = charset.complement(charset.union(((0, 32), (0x7F, 0xA0)), charset.of("=(),:'\"[]{}<>\\")))
_MAX_NAME = 64  # characters of a name that is not declared


class KeywordMembers:
    """Writes an object's members as a call's arguments; see members.Members."""

    opening: Row = ()
    closing: Row = ()

    def __init__(self, values: Values, rules: Rules, between: str, assign: str) -> None:
        self._writer = values
        self._rules = rules
        self._assign = assign
        self.comma: Row = (Literal(between),)

    def member(self, name: str, conjunction: Conjunction) -> Row | None:
        """See Members. None for a name that cannot stand there."""
        if not matches(repeat(Chars(_NAME_CHARACTERS), 1, None), name):
            return None
        return (Literal(name + self._assign), self._writer.value(conjunction))

    def other(self, names: Tree, conjunction: Conjunction) -> Row | None:
        """See Members."""
        tree = both(names, repeat(Chars(_NAME_CHARACTERS), 1, _MAX_NAME))
        if is_nothing(tree):
            return None
        name = self._rules.terminal(trees.write(seq(tree, literal(self._assign)), False))
        return (name, self._writer.value(conjunction))

    def const(self, value: Mapping[str, Any]) -> Row | None:
        """The members of one given object."""
        out: list[Any] = []
        for name, item in value.items():
            if not matches(repeat(Chars(_NAME_CHARACTERS), 1, None), name):
                return None
            out += [*(self.comma if out else ()), Literal(name + self._assign), *self._writer.const(item)]
        return tuple(out)
