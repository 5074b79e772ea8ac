"""What a grammar may have before it reaches the compiler, whose native stack grows with every reference it follows.

A chain of references is refused by name. What is plain and small is compiled at once; all else is tried in the worker
process first (isolated.py), which may die of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ..errors import ConstraintError
from .grammar import Grammar

# The compiler takes 9 kB of stack for a link of a chain of objects, 3 kB for one of Lark's rules: 2.3 and 3 MB.
MAX_REF_DEPTH = 256
MAX_RULE_DEPTH = 1000
MAX_RULES = 4096

# Of a schema that is compiled without being tried first: it follows few references, merges none, and has no expression.
_PLAIN_CHARACTERS = 1 << 16
_PLAIN_VALUES = 5000
_PLAIN_REFS = 64
_PLAIN_CHOICES = 256
_PLAIN_NUMBER = 10_000  # of repetitions and characters
_NOT_PLAIN = frozenset(
    (
        *("allOf", "not", "if", "then", "else", "$dynamicRef", "$recursiveRef", "pattern", "patternProperties"),
        *("propertyNames", "dependentSchemas", "dependencies", "contains", "unevaluatedProperties"),
        *("unevaluatedItems", "multipleOf"),
    )
)

_LARK_TOKEN = re.compile(
    r"""(?P<skip>"(?:[^"\\\n]|\\.)*"i?|/(?![*/])(?:[^/\\\n]|\\.)+/[a-z]*|//[^\n]*|\#[^\n]*|<[^>\n]*>|\[[^\]\n]*\](?=\s*:))"""
    r"""|(?P<name>[?!]?[A-Za-z_]\w*)(?P<attribute>\s*\[[^\]\n]*\])?(?P<weight>\s*\.\s*-?\d+)?(?P<colon>\s*:(?!:))?"""
)


def check_bounds(grammar: Grammar) -> bool:
    """Whether the grammar is so plain that it may be compiled without a trial in the worker.

    Raises ConstraintError for references that go too deep and for too many rules.
    """
    if grammar.kind == "json_schema":
        return _check_schema(json.loads(grammar.text), len(grammar.text))
    if grammar.kind == "lark":
        _check_lark(grammar.text)
        return False
    if grammar.kind == "regex":
        return False  # the compiler stops at 250 levels; what it costs is told by trying
    is_plain = True
    for part in json.loads(grammar.text)["grammars"]:
        if "json_schema" in part:
            is_plain &= _check_schema(part["json_schema"], len(grammar.text))
        elif part.get("name") == "answer":
            _check_lark(part["lark_grammar"])  # our own rules, a few for each tool
        else:
            _check_lark(part["lark_grammar"])
            is_plain = False
    return is_plain


def _check_schema(schema: Any, num_characters: int) -> bool:
    """Walks the schema as the compiler does, into what a reference names, each value once."""
    num_refs = num_values = num_choices = 0
    is_plain = num_characters <= _PLAIN_CHARACTERS
    seen: set[int] = set()
    # One iterator a level: (values that follow, whether a reference led here).
    stack: list[tuple[Iterator[Any], bool]] = [(iter([schema]), False)]
    depth = 0
    while stack:
        children, is_ref = stack[-1]
        value = next(children, stack)
        if value is stack:
            stack.pop()
            depth -= is_ref
            continue
        if isinstance(value, (int, float)) and abs(value) > _PLAIN_NUMBER and not isinstance(value, bool):
            is_plain = False
        if not isinstance(value, (dict, list)) or id(value) in seen:
            continue
        seen.add(id(value))
        num_values += 1
        if isinstance(value, list):
            stack.append((iter(value), False))
            continue
        num_values += len(value)
        is_plain = is_plain and _NOT_PLAIN.isdisjoint(value)
        for name in ("anyOf", "oneOf"):
            choices = value.get(name)
            num_choices += len(choices) if isinstance(choices, list) else 0
        is_plain = is_plain and not ("anyOf" in value and "oneOf" in value)
        stack.append((iter(list(value.values())), False))
        ref = value.get("$ref")
        if isinstance(ref, str):
            num_refs += 1
            is_plain = is_plain and value.keys() <= {
                "$ref",
                "$defs",
                "definitions",
                "description",
                "title",
                "x-guidance",
            }
            target = _target(schema, ref)
            if isinstance(target, dict) and id(target) not in seen:
                depth += 1
                if depth > MAX_REF_DEPTH:
                    raise ConstraintError(
                        f"the schema's references form a chain of more than {MAX_REF_DEPTH} links, at {ref[:80]!r}: "
                        "put schemas in their places, or leave some out"
                    )
                stack.append((iter([target]), True))
    return is_plain and num_values <= _PLAIN_VALUES and num_refs <= _PLAIN_REFS and num_choices <= _PLAIN_CHOICES


def _target(schema: Any, ref: str) -> Any:
    """What a local reference names; None for any other."""
    if not ref.startswith("#"):
        return None
    found = schema
    for step in ref[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(step)
        elif isinstance(found, list) and step.isdigit() and len(step) < 8 and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    return found


def _check_lark(text: str) -> None:
    """Counts rules, and follows them from each to those it names."""
    rules: dict[str, list[str]] = {}
    names: list[str] = []
    for match in _LARK_TOKEN.finditer(text):
        if match["name"] is None:
            continue
        name = match["name"].lstrip("?!")
        if match["colon"] is not None:
            names = rules.setdefault(name, [])
            if len(rules) > MAX_RULES:
                raise ConstraintError(f"the grammar has more than {MAX_RULES} rules")
        else:
            names.append(name)
    seen: set[str] = set()
    for start in ("start", *rules):
        if start in seen or start not in rules:
            continue
        seen.add(start)
        stack = [iter(rules[start])]
        while stack:
            name = next(stack[-1], "")
            if not name:
                stack.pop()
            elif name in rules and name not in seen:
                seen.add(name)
                stack.append(iter(rules[name]))
                if len(stack) > MAX_RULE_DEPTH:
                    raise ConstraintError(
                        f"the grammar's rules form a chain of more than {MAX_RULE_DEPTH} links, at {name[:80]!r}: "
                        "put rules in their places, or leave some out"
                    )
