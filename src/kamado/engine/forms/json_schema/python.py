"""Values as Python's literals: True, False and None as well as JSON's words, texts in either quote with the escapes
that JSON and Python read alike, lists and dictionaries of these."""

from __future__ import annotations

import json
from typing import Any

from . import trees
from .emit import Emitter
from .rules import Literal, Name
from .shapes import Array, Number, Object, Text
from .trees import ANY, Tree, is_nothing

_WORDS = {"null": "None", "true": "True", "false": "False"}


class PythonEmitter(Emitter):
    """Writes values as Python's literals."""

    def _anything(self) -> Name:
        if self._any is None:
            self._any = Name(self._rules.new("any"))
            words = " | ".join(f'"{word}" | "{python}"' for word, python in _WORDS.items())
            self._rules.add(self._any.name, self._rules.terminal(words))
            for atom in (Number(), Text(), Array(), Object()):
                self._atom(self._any.name, atom)
        return self._any

    def _texts(self, value: Any) -> list[str]:
        texts = super()._texts(value)
        if isinstance(value, str):
            return [*texts, single_quoted(value)]
        return [*texts, *(_WORDS[text] for text in texts if text in _WORDS)]

    def _given(self, value: Any) -> Literal | Name:
        return self._spelled(self._texts(value), "")

    def _key(self, key: str) -> Literal | Name:
        return self._spelled(self._texts(key), self._key_separator)

    def _spelled(self, texts: list[str], after: str) -> Literal | Name:
        if len(texts) == 1:
            return Literal(texts[0] + after)
        return self._rules.terminal(" | ".join(json.dumps(text + after, ensure_ascii=False) for text in texts))

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
