"""Fuzz answers' forms: any schema, grammar or expression compiles or raises ConstraintError, within its limits, and an
answer can be begun; a worker process may die of it, this one never.

The first byte of an input says which: s a JSON Schema, l a Lark grammar, r an expression, c a chain of so many links.
"""

from __future__ import annotations

import functools
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from kamado.engine.forms.constraint import ConstraintCompiler
from kamado.engine.forms.grammar import Grammar, lark_grammar, regex_grammar, schema_grammar
from kamado.errors import ConstraintError

_VOCAB = 260
_MAX_CPU_SECONDS = 5.0  # of this process: compiling has 1 s in the worker, and as much here
_LINKS = (
    '{{"type":"object","properties":{{"a":{0}}},"required":["a"]}}',
    '{{"type":"array","items":{0}}}',
    '{{"allOf":[{0},{{}}]}}',
    '{{"anyOf":[{0},{{"type":"null"}}]}}',
    '{{"type":"object","additionalProperties":{0}}}',
)
_RULES = ('r{0}: "a" r{1}', "r{0}: r{1} | /x/", "r{0}: (r{1} r{1})*", 'R{0}: ("a" R{1})?', "R{0}: R{1} | /b/")


@functools.cache
def _compiler() -> ConstraintCompiler:
    tokens = [bytes((i,)) for i in range(256)] + [b"<s>", b"</s>", b"ab", b'{"']
    tokenizer: Any = SimpleNamespace(
        vocab_size=_VOCAB,
        token_bytes=tokens.__getitem__,
        special_ids=frozenset((256, 257)),
        stop_ids=frozenset((257,)),
        bos_id=256,
        encode=lambda text, **_: list(text.encode()),
    )
    return ConstraintCompiler(tokenizer, _VOCAB)


def fuzz_one(data: bytes) -> None:
    """One grammar. Raises only for a fault of ours."""
    began = time.process_time()
    try:
        for grammar in _grammars(data[:1], data[1:]):
            constraint = _compiler().compile(grammar)
            generator = np.random.default_rng(len(data))
            for _ in range(8):
                constraint.accept(int(generator.choice(constraint.allowed())))
                if constraint.is_complete:
                    break
    except ConstraintError:
        pass
    seconds = time.process_time() - began
    assert seconds < _MAX_CPU_SECONDS, f"{seconds:.1f} s"


def _grammars(kind: bytes, rest: bytes) -> list[Grammar]:
    text = rest.decode("utf-8", "replace")
    if kind == b"l":
        return [lark_grammar(text)]
    if kind == b"r":
        return [regex_grammar(text)]
    if kind == b"c":
        return [_chain(rest)]
    return [schema_grammar(text), schema_grammar(text, lenient=True)]


def _chain(data: bytes) -> Grammar:
    """Two bytes of length; each further one picks the kind of a link."""
    length = int.from_bytes(data[:2], "little") % 4000
    kinds = data[2:] or b"\0"
    if kinds[0] & 1:
        rule = _RULES[kinds[0] // 2 % len(_RULES)]
        letter = rule[0]
        lines = [rule.format(i, i + 1) for i in range(length)]
        return lark_grammar("\n".join([f"start: {letter}0", *lines, f'{letter}{length}: "b"']))
    links = []
    for i in range(length):
        link = _LINKS[kinds[i % len(kinds)] // 2 % len(_LINKS)]
        links.append(f'"d{i}":' + link.format(f'{{"$ref":"#/$defs/d{i + 1}"}}'))
    return schema_grammar('{"$ref":"#/$defs/d0","$defs":{' + ",".join([*links, f'"d{length}":{{}}']) + "}}")


if __name__ == "__main__":
    from _loop import run

    words = (
        '"type": "object" "array" "string" "integer" "properties": "items": "required": "$ref":"#" "$defs": "allOf":['
        ' "anyOf":[ "oneOf":[ "not": "enum":[ "const": "pattern":"(a|b)*" "minLength": "maxItems": 1e9 99999999 null'
        ' {0,9999} (a+)+ [^a] \\p{L} (?: | & ~ start: r: R: /a+/ "a" [lazy] <[1]> <|end|> %json %ignore @r'
    )
    run("grammar", fuzz_one, tuple(map(str.encode, words.split())))
