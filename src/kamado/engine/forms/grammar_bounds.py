"""What a grammar may have before it reaches the compiler, whose native stack grows with every reference it follows.

A chain of references is refused by name. What is plain and small is compiled at once; all else is tried in the worker
process first (isolated.py), which may die of it.
"""

from __future__ import annotations

import json
import re

from ...errors import ConstraintError
from .grammar import Grammar

# The compiler takes 3 kB of stack for a link of a chain of rules: 3 MB.
MAX_RULE_DEPTH = 1000
MAX_RULES = 4096

# Of schemas: our own grammars have three rules a property, and are compiled without being tried first when they are
# small and have no expression of the schema's author.
_MAX_OWN_RULES = 60_000
_PLAIN_CHARACTERS = 1 << 17
_LONG_COUNT = re.compile(r"[{,]\d{5,}")  # of repetitions and characters

_LARK_TOKEN = re.compile(
    r"""(?P<skip>"(?:[^"\\\n]|\\.)*"i?|/(?![*/])(?:[^/\\\n]|\\.)+/[a-z]*|//[^\n]*|\#[^\n]*|<[^>\n]*>|\[[^\]\n]*\](?=\s*:))"""
    r"""|(?P<name>[?!]?[A-Za-z_]\w*)(?P<attribute>\s*\[[^\]\n]*\])?(?P<weight>\s*\.\s*-?\d+)?(?P<colon>\s*:(?!:))?"""
)


def check_bounds(grammar: Grammar) -> bool:
    """Whether the grammar is so plain that it may be compiled without a trial in the worker.

    Raises ConstraintError for references that go too deep and for too many rules.
    """
    if grammar.kind == "json_schema":
        return _check_own(grammar.text, grammar.is_plain)
    if grammar.kind == "lark":
        _check_lark(grammar.text, MAX_RULES)
        return False
    if grammar.kind == "regex":
        return False  # the compiler stops at 250 levels; what it costs is found by trying
    is_plain = len(grammar.text) <= _PLAIN_CHARACTERS
    for part in json.loads(grammar.text)["grammars"]:
        if part["name"] in grammar.own_parts:
            is_plain &= _check_own(part["lark_grammar"], grammar.is_plain)
        else:
            _check_lark(part["lark_grammar"], MAX_RULES)
            is_plain = False
    return is_plain


def _check_own(text: str, is_plain: bool) -> bool:
    _check_lark(text, _MAX_OWN_RULES)
    return is_plain and len(text) <= _PLAIN_CHARACTERS and _LONG_COUNT.search(text) is None


def _check_lark(text: str, max_rules: int) -> None:
    """Counts rules, and follows them from each to those it names."""
    rules: dict[str, list[str]] = {}
    names: list[str] = []
    for match in _LARK_TOKEN.finditer(text):
        if match["name"] is None:
            continue
        name = match["name"].lstrip("?!")
        if match["colon"] is not None:
            names = rules.setdefault(name, [])
            if len(rules) > max_rules:
                raise ConstraintError(f"the grammar has more than {max_rules} rules")
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
