"""Values as Python's literals: True, False and None as well as JSON's words, texts in either quote with the escapes
that JSON and Python read alike, lists and dictionaries of these."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from . import trees
from .emit import Emitter
from .rules import Literal, Name
from .shapes import Array, Number, Object, Text
from .trees import ANY, Tree, is_nothing

WORDS = {"null": "None", "true": "True", "false": "False"}


class SpelledEmitter(Emitter):
    """Writes values of which some words have a second spelling."""

    words: ClassVar[Mapping[str, str]] = WORDS

    def _anything(self) -> Name:
        if self._any is None:
            self._any = Name(self._rules.new("any"))
            spelled = [*WORDS, *self.words.values()]
            self._rules.add(self._any.name, self._rules.terminal(" | ".join(f'"{word}"' for word in spelled)))
            for atom in (Number(), Text(), Array(), Object()):
                self._atom(self._any.name, atom)
        return self._any

    def _texts(self, value: Any) -> list[str]:
        texts = super()._texts(value)
        return [*texts, *(self.words[text] for text in texts if text in self.words)]

    def _given(self, value: Any) -> Literal | Name:
        return self._spelled(self._texts(value), "")

    def _spelled(self, texts: list[str], after: str) -> Literal | Name:
        if len(texts) == 1:
            return Literal(texts[0] + after)
        return self._rules.terminal(" | ".join(json.dumps(text + after, ensure_ascii=False) for text in texts))


class PythonEmitter(SpelledEmitter):
    """Writes values as Python's literals."""

    def _texts(self, value: Any) -> list[str]:
        texts = super()._texts(value)
        return [*texts, single_quoted(value)] if isinstance(value, str) else texts

    def _key(self, key: str) -> Literal | Name:
        return self._spelled(self._texts(key), self._key_separator)

    def _text(self, tree: Tree, end: str = "") -> Name | None:
        after = f" {json.dumps(end)}" if end else ""
        if tree == ANY:
            double, single = trees.json_string(), trees.json_string("'")
            return self._rules.terminal(f"({double} | {single}){after}")
        if is_nothing(tree):
            return None
        double, single = trees.write(tree, True), trees.write(tree, True, quote="'")
        return self._rules.terminal(f'(("\\"" ({double}) "\\"") | ("\'" ({single}) "\'")){after}')


def single_quoted(text: str) -> str:
    """A text as a Python literal in single quotes."""
    return "'" + json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("'", "\\'") + "'"
