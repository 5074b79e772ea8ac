"""Random schemas, and random walks through grammars."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import llguidance
import numpy as np

from kamado.engine.forms.grammar import Grammar
from kamado.engine.forms.grammar_compile import make_matcher

_KEYS = ("a", "b", "name", "type", "format", "const", "$ref", "required", "properties", "é", "x y", 'q"uote', "enum")
_TEXTS = ("", "a", "red", "pdf", "é", 'say "hi"', "line\nbreak", "\u2028", "🐢")
_PATTERNS = (
    "^a", "b$", "^[a-z]{1,4}$", r"^\d+$", r"^(?!x)[a-z]+$", r"^\S+@\S+\.\w{2,}$", "a|b", r"\bfoo\b", "^$|^x", "[^ab]",
    r"^(?=.*\d)[a-z0-9]{2,6}$", r"^-?\d{1,3}(\.\d+)?$", "é+", r'^"?\\?$', r"^.{2,3}$", "^(?:ab)*$", r"\D", r"^\W",
)  # fmt: skip
_FORMATS = ("date", "date-time", "time", "uuid", "email", "ipv4", "ipv6", "uri", "hostname", "duration", "pdf")
_NUMBERS = (
    0, 1, -1, 2, 5, 10, -7, 100, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63), 1234567890123456789, 2**64 - 1,
    0.5, -0.25, 1.5, 3.14159, 1e-3, 99.99, 1e20,
)  # fmt: skip


def random_value(rng: random.Random, depth: int = 2) -> Any:
    """Plain data, with keys that look like keywords."""
    kind = rng.randrange(7 if depth else 5)
    if kind == 5:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(3))]
    if kind == 6:
        return {rng.choice(_KEYS): random_value(rng, depth - 1) for _ in range(rng.randrange(3))}
    return [None, rng.random() < 0.5, rng.choice(_NUMBERS), rng.choice(_TEXTS), rng.randrange(-9, 9)][kind]


def random_schema(rng: random.Random, depth: int = 3, has_refs: bool = False) -> Any:
    """A schema of a few keywords, sometimes one that nothing matches."""
    kind = rng.randrange(13 if depth else 5)
    again = lambda: random_schema(rng, depth - 1, has_refs)  # noqa: E731
    if kind == 0:
        return {"enum": [random_value(rng) for _ in range(rng.randrange(1, 5))]}
    if kind == 1:
        return {"const": random_value(rng)}
    if kind == 2:
        out: dict[str, Any] = {"type": rng.choice(["integer", "number"])}
        for word in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if rng.random() < 0.3:
                out[word] = rng.choice(_NUMBERS)
        if rng.random() < 0.2:
            out["multipleOf"] = rng.choice([2, 3, 7, 10, 0.5, 0.25])
        return out
    if kind == 3:
        out = {"type": "string"}
        for word, values in (("pattern", _PATTERNS), ("format", _FORMATS), ("minLength", (0, 1, 3)),
                             ("maxLength", (0, 2, 5, 20))):  # fmt: skip
            if rng.random() < 0.3:
                out[word] = rng.choice(values)
        return out
    if kind == 4:
        return rng.choice([True, {}, {"type": "null"}, {"type": "boolean"}, {"type": ["string", "null"]},
                           {"type": ["integer", "array"]}])  # fmt: skip
    if kind in (5, 6):
        return _random_array(rng, again)
    if kind in (7, 8, 9):
        return _random_object(rng, again)
    if kind == 10:
        return {rng.choice(["anyOf", "oneOf", "allOf"]): [again() for _ in range(rng.randrange(1, 4))], **_some(rng)}
    if kind == 11:
        return {"not": again(), **_some(rng)}
    if has_refs and rng.random() < 0.6:
        return {"$ref": rng.choice(["#/$defs/a", "#/$defs/b"])}
    return {"if": again(), "then": again(), "else": again(), **_some(rng)}


def _some(rng: random.Random) -> dict[str, Any]:
    return rng.choice([{}, {"type": "object"}, {"type": "string"}, {"type": ["integer", "string"]}])


def _random_array(rng: random.Random, again: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"type": "array"} if rng.random() < 0.9 else {}
    if rng.random() < 0.8:
        out["items"] = again()
    if rng.random() < 0.3:
        out["prefixItems"] = [again() for _ in range(rng.randrange(1, 3))]
    if rng.random() < 0.4:
        out["minItems"] = rng.randrange(3)
    if rng.random() < 0.4:
        out["maxItems"] = rng.randrange(1, 5)
    if rng.random() < 0.2:
        out["contains"] = again()
        out |= rng.choice([{}, {"minContains": 0}, {"minContains": 2}, {"maxContains": 2}])
    if rng.random() < 0.2:
        out["uniqueItems"] = True
    return out


def _random_object(rng: random.Random, again: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"type": "object"} if rng.random() < 0.9 else {}
    names = rng.sample(_KEYS, rng.randrange(5))
    if names:
        out["properties"] = {name: again() for name in names}
    if rng.random() < 0.6:
        out["required"] = [name for name in names if rng.random() < 0.5] + (["z"] if rng.random() < 0.1 else [])
    for word, chance, value in (
        ("additionalProperties", 0.4, lambda: rng.choice([False, again()])),
        ("patternProperties", 0.15, lambda: {rng.choice(_PATTERNS): again()}),
        ("propertyNames", 0.1, lambda: rng.choice([{"pattern": rng.choice(_PATTERNS)}, {"enum": list(_KEYS[:4])}])),
        ("minProperties", 0.1, lambda: rng.randrange(3)),
        ("maxProperties", 0.1, lambda: rng.randrange(1, 4)),
        ("dependentRequired", 0.1, lambda: {rng.choice(_KEYS): [rng.choice(_KEYS)]}),
        ("unevaluatedProperties", 0.05, lambda: False),
    ):
        if rng.random() < chance:
            out[word] = value()
    return out


def random_root(rng: random.Random) -> Any:
    """A schema with definitions that refer to each other."""
    schema = random_schema(rng, has_refs=True)
    if not isinstance(schema, dict):
        return schema
    return {**schema, "$defs": {name: random_schema(rng, 2, has_refs=True) for name in "ab"}}


def hints_of(schema: Any) -> list[str]:
    """Words of its patterns."""
    found: list[str] = []
    stack = [schema]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if isinstance(value.get("pattern"), str):
                found += re.findall(r"\w+", re.sub(r"\\.|\[[^]]*\]", " ", value["pattern"]))
            stack += value.values()
        elif isinstance(value, list):
            stack += value
    return found


class Walker:
    """Goes through a grammar byte by byte."""

    def __init__(self, trie: Any, lark: str, hints: Sequence[str] = ()) -> None:
        """`hints`: what patterns look for, which chance alone would not find."""
        self._hints = [hint.encode() for hint in hints]
        self._matcher = make_matcher(llguidance, trie, Grammar("json_schema", lark))
        self._mask = np.zeros(9, np.uint32)

    def _allowed(self, matcher: Any) -> list[int]:
        matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        assert not matcher.is_error(), matcher.get_error()
        return np.flatnonzero(np.unpackbits(self._mask.view(np.uint8), count=256, bitorder="little")).tolist()

    def walk(self, rng: random.Random, soft: int = 90, hard: int = 4000) -> str | None:
        """One answer; None when it did not end within `hard` bytes. After `soft` the shortest way on is looked for."""
        matcher = self._matcher.deep_copy()
        out = bytearray()
        hints = list(self._hints)
        while len(out) < hard and not matcher.is_stopped():
            allowed = self._allowed(matcher)
            if matcher.is_accepting() and (not allowed or rng.random() < 0.4 or len(out) > soft):
                break
            assert allowed, out
            if len(out) > soft and hints and rng.random() < 0.3:
                hint = hints.pop(0)
                taken = matcher.try_consume_tokens(list(hint))
                out += hint[:taken]
                if taken:
                    continue
            byte = self._pick(rng, allowed, len(out) > soft)
            assert matcher.consume_token(byte)
            out.append(byte)
        return out.decode() if matcher.is_accepting() or matcher.is_stopped() else None

    def _pick(self, rng: random.Random, allowed: list[int], is_late: bool) -> int:
        if is_late:
            if ord('"') in allowed and rng.random() < 0.7:
                return ord('"')
            closing = [byte for byte in allowed if byte in b"]}"]
            if closing and len(allowed) < 20:
                return closing[0]
            few = [byte for byte in allowed if byte in b"0,:@.-tn"] if len(allowed) > 20 else allowed
            return rng.choice(few or allowed) if rng.random() < 0.5 else rng.choice(allowed)
        if ord('"') in allowed and rng.random() < 0.15:
            return ord('"')
        plain = [byte for byte in allowed if 32 <= byte < 127]
        return rng.choice(plain if plain and rng.random() < 0.97 else allowed)

    def refused_at(self, text: str) -> int | None:
        """The byte at which a text is refused; None when it is an answer, its length when it may not end there."""
        matcher = self._matcher.deep_copy()
        data = text.encode()
        taken = matcher.try_consume_tokens(list(data))
        if taken < len(data):
            return int(taken)
        return None if matcher.is_accepting() or matcher.is_stopped() else len(data)
