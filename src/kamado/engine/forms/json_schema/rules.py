"""A grammar as rules, before it is written: so that what can never come is left out, and nothing runs into a wall.

A rule has alternatives, each a row of symbols. A rule from which no text can be made, such as a property of a type
that nothing matches, takes every alternative that needs it with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ....errors import ConstraintError

_MAX_SYMBOLS = 60_000


@dataclass(frozen=True, slots=True)
class Literal:
    """Exactly this text."""

    text: str


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the vocabulary, by its id."""

    token: int


@dataclass(frozen=True, slots=True)
class Name:
    """A rule or a terminal, perhaps with a parameter."""

    name: str
    parameter: str = ""


@dataclass(frozen=True, slots=True)
class Times:
    """A row of symbols, `low` to `high` times."""

    row: tuple[Symbol, ...]
    low: int
    high: int | None


Symbol: TypeAlias = Literal | Token | Name | Times
Row: TypeAlias = tuple[Symbol, ...]


@dataclass(slots=True)
class _Rule:
    rows: list[tuple[Row, str]] = field(default_factory=list)  # with the condition on the rule's parameter
    has_parameter: bool = False


class Rules:
    """Rules and terminals of one grammar. `start` is the first."""

    def __init__(self) -> None:
        self._rules: dict[str, _Rule] = {}
        self._terminals: dict[str, str] = {}
        self._lazy: dict[str, str] = {}
        self._schemas: dict[str, str] = {}
        self._num_symbols = 0

    def new(self, prefix: str, *, has_parameter: bool = False) -> str:
        """A rule's name."""
        name = f"{prefix}{len(self._rules)}"
        self._rules[name] = _Rule(has_parameter=has_parameter)
        return name

    def add(self, rule: str, *symbols: Symbol, condition: str = "") -> None:
        """An alternative of a rule. Raises ConstraintError when there are too many."""
        self._num_symbols += len(symbols) + 1
        if self._num_symbols > _MAX_SYMBOLS:
            raise ConstraintError("the schema makes too large a grammar")
        self._rules[rule].rows.append((symbols, condition))

    def terminal(self, body: str, *, is_lazy: bool = False) -> Name:
        """A terminal of this body. `is_lazy`: it ends at the first place where it can."""
        self._num_symbols += len(body) // 16 + 1
        terminals, letter = (self._lazy, "z") if is_lazy else (self._terminals, "T")
        return Name(terminals.setdefault(body, f"{letter}{len(terminals)}"))

    def joined(self, row: Row, after: str, *, is_lazy: bool) -> Row:
        """`row` and the text `after` behind it, in one terminal if the row is one."""
        if not after:
            return row
        if len(row) == 1 and isinstance(row[0], Name):
            body = next((body for body, name in self._terminals.items() if name == row[0].name), None)
            if body is not None:
                return (self.terminal(f"({body}) {json.dumps(after, ensure_ascii=False)}", is_lazy=is_lazy),)
        return (*row, Literal(after))

    def nested(self, schema: str) -> Name:
        """A rule of the compiler's own form of a schema, its JSON text."""
        for name, body in self._schemas.items():
            if body == schema:
                return Name(name)
        name = f"j{len(self._schemas)}"
        self._schemas[name] = schema
        return Name(name)

    def write(self, start: Name) -> str | None:
        """The grammar in Lark's notation, with a rule `start`; None when nothing matches it."""
        alive = self._alive()
        if start.name in self._rules and start.name not in alive:
            return None
        lines = [f"start: {start.name}"]
        seen = {start.name}
        stack = [start.name]
        while stack:
            name = stack.pop()
            rule = self._rules.get(name)
            if rule is None:
                continue
            rows = []
            for row, condition in rule.rows:
                if not self._can(row, alive):
                    continue
                used: list[str] = []
                text = " ".join(self._written(symbol, alive, used) for symbol in row) or '""'
                rows.append(f"{text} %if {condition}" if condition else text)
                for other in used:
                    if other not in seen:
                        seen.add(other)
                        stack.append(other)
            lines.append(f"{name}{'::_' if rule.has_parameter else ''}: " + "\n  | ".join(rows))
        lines += [f"{name}: {body}" for body, name in self._terminals.items() if name in seen]
        lines += [f"{name}[lazy]: {body}" for body, name in self._lazy.items() if name in seen]
        lines += [f"{name}: %json {body}" for name, body in self._schemas.items() if name in seen]
        return "\n".join(lines)

    def _alive(self) -> set[str]:
        alive: set[str] = set()
        while True:
            before = len(alive)
            for name, rule in self._rules.items():
                if name not in alive and any(self._can(row, alive) for row, _ in rule.rows):
                    alive.add(name)
            if len(alive) == before:
                return alive

    def _can(self, row: Sequence[Symbol], alive: set[str]) -> bool:
        for symbol in row:
            if isinstance(symbol, Name) and symbol.name in self._rules and symbol.name not in alive:
                return False
            if isinstance(symbol, Times) and symbol.low > 0 and not self._can(symbol.row, alive):
                return False
        return True

    def _written(self, symbol: Symbol, alive: set[str], used: list[str]) -> str:
        if isinstance(symbol, Literal):
            return json.dumps(symbol.text, ensure_ascii=False)
        if isinstance(symbol, Token):
            return f"<[{symbol.token}]>"
        if isinstance(symbol, Name):
            used.append(symbol.name)
            return symbol.name + (f"::{symbol.parameter}" if symbol.parameter else "")
        if symbol.high == 0 or not self._can(symbol.row, alive):
            return '""'
        row = " ".join(self._written(part, alive, used) for part in symbol.row)
        known = {(0, None): "*", (1, None): "+", (0, 1): "?", (1, 1): ""}
        times = known.get((symbol.low, symbol.high))
        if times is None:
            times = f"{{{symbol.low},{'' if symbol.high is None else symbol.high}}}"
        return f"({row}){times}"
