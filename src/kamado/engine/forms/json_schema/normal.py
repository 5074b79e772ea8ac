"""From schemas to shapes (shapes.py): which values a schema, a conjunction of schemas or a complement allows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ....errors import ConstraintError
from .document import Document, Node, escape
from .expand import Expansion
from .numbers import Range
from .shapes import (
    ANYTHING,
    EVERY,
    IMPOSSIBLE,
    Array,
    Atom,
    Conjunction,
    Const,
    Layer,
    Number,
    Object,
    Shape,
    Text,
    kind_of,
    meet_atoms,
    together,
    without_const,
)
from .trees import inverse, is_nothing, matches
from .values import Checker, CheckError, key_of, number_of

_MAX_ATOMS = 256  # alternatives of one shape
_MAX_WORK = 20_000  # meetings of alternatives, of a whole schema
_MAX_CHECK_STEPS = 100_000  # of checking its constants against it, some 5 µs each
_ALL = Shape(EVERY)


class TooLongError(Exception):
    """The work took more than the processor time that it was given."""


class Normaliser:
    """Works out shapes of one document; `notes` collects the keywords that were left open, each with the reason."""

    def __init__(self, document: Document, most_seconds: float | None = None) -> None:
        """Past `most_seconds` of this thread's processor time, if given, the work ends with TooLongError."""
        self._end = math.inf if most_seconds is None else time.thread_time() + most_seconds
        self.document = document
        self.notes: dict[str, str] = {}
        self.remarks: dict[str, str] = {}  # formats that are remarks here: they refuse nothing
        self.has_patterns = False  # expressions of the schema's author
        self.checker = Checker(document)
        self._nodes: list[Node] = [False]
        self._codes: dict[int, int] = {}
        self._inverses: dict[Conjunction, Conjunction] = {}
        self._shapes: dict[Conjunction, Shape] = {}
        self._by_code: dict[int, Shape] = {}
        self._busy: set[int] = set()
        self._asked: set[Conjunction] = set()
        self._work = 0
        self._num_check_steps = 0

    def of(self, *nodes: Node) -> Conjunction:
        """The conjunction of schemas."""
        return together(*((self._code(node),) for node in nodes if node is not True))

    def _code(self, node: Node) -> int:
        if node is False:
            return 0
        if node is True or not node:
            return 1
        if id(node) not in self._codes:
            self._codes[id(node)] = len(self._nodes)
            self._nodes.append(node)  # kept, so that its id stays its own
        return 2 * self._codes[id(node)]

    def note(self, node: Node, keyword: str, reason: str) -> None:
        """A keyword of a schema is left open."""
        place = self.document.pointer(node)
        self.notes.setdefault(f"{place}/{escape(keyword)}" if keyword else place or "/", reason)

    def note_in(self, conjunction: Conjunction, keyword: str, reason: str) -> None:
        """The same, of whichever of these schemas, or of those that they are made of, has the keyword."""
        stack = [self._nodes[code >> 1] for code in conjunction]
        seen: set[int] = set()
        while stack:
            node = stack.pop()
            if not isinstance(node, Mapping) or id(node) in seen:
                continue
            seen.add(id(node))
            if keyword in node:
                self.note(node, keyword, reason)
                return
            for name in ("allOf", "anyOf", "oneOf"):
                stack += node[name] if isinstance(node.get(name), list) else []
            stack += [node[name] for name in ("if", "then", "else", "not") if name in node]
            if isinstance(node.get("$ref"), str) and (target := self.document.resolve(node, node["$ref"])) is not None:
                stack.append(target)
        self.note(self.document.root, keyword, reason)

    def shape(self, conjunction: Conjunction) -> Shape:
        """What all of these schemas allow together."""
        known = self._shapes.get(conjunction)
        if known is None:
            known = _ALL
            for code in conjunction:
                known = self.meet(known, self._of_code(code))
            if len(conjunction) > 1:
                known = self.checked(known, lambda value: all(self._holds(code, value) for code in conjunction))
            self._shapes[conjunction] = known
        return known

    def holds(self, conjunction: Conjunction, value: Any) -> bool:
        """Whether a value matches all of these schemas; True when that cannot be told."""
        return all(self._holds(code, value) for code in conjunction)

    def inverse(self, conjunction: Conjunction) -> Conjunction:
        """What does not match all of these schemas."""
        if conjunction == ANYTHING:
            return IMPOSSIBLE
        if len(conjunction) == 1:
            return together((conjunction[0] ^ 1,))
        if conjunction in self._inverses:
            return self._inverses[conjunction]
        parts = [{"not": self._nodes[c >> 1]} if c & 1 else self._nodes[c >> 1] for c in conjunction]
        self._inverses[conjunction] = self.of({"not": {"allOf": parts}})
        return self._inverses[conjunction]

    def is_impossible(self, conjunction: Conjunction) -> bool:
        """Whether nothing matches, as far as that is seen without going in circles."""
        if conjunction in self._asked:
            return False
        self._asked.add(conjunction)
        try:
            return not self.shape(conjunction).atoms
        finally:
            self._asked.discard(conjunction)

    def _holds(self, code: int, value: Any) -> bool:
        self._look_at_the_clock()
        try:
            return self.checker.is_valid(self._nodes[code >> 1], value) != bool(code & 1)
        except CheckError:
            return True
        finally:
            self._num_check_steps += self.checker.num_steps
            if self._num_check_steps > _MAX_CHECK_STEPS:
                raise ConstraintError("the schema's references meet in too many ways to check its values")

    def _of_code(self, code: int) -> Shape:
        known = self._by_code.get(code)
        if known is not None:
            return known
        self._look_at_the_clock()
        node = self._nodes[code >> 1]
        if code in self._busy:
            self.note(node, "$ref", "it refers to itself in the same place")
            return Shape(EVERY, is_exact=False)
        self._busy.add(code)
        try:
            known = self._complement(self._of_code(code ^ 1)) if code & 1 else self._expand(node)
            known = self.checked(known, lambda value: self._holds(code, value))
        finally:
            self._busy.discard(code)
        self._by_code[code] = known
        return known

    def checked(self, shape: Shape, holds: Callable[[Any], bool]) -> Shape:
        """Without the values for which `holds` is false."""
        return replace(shape, atoms=tuple(a for a in shape.atoms if not isinstance(a, Const) or holds(a.value)))

    # --- operations ---------------------------------------------------------------------------------------------------

    def meet(self, a: Shape, b: Shape) -> Shape:
        """What both allow."""
        if a is _ALL or b is _ALL:
            return b if a is _ALL else a
        out: dict[Atom, None] = {}
        self._spend(len(a.atoms) * len(b.atoms))
        for one in a.atoms:
            for other in b.atoms:
                atom = meet_atoms(one, other)
                if atom is not None and not (isinstance(atom, Object) and self._is_dead(atom)):
                    out[atom] = None
        if len(out) > _MAX_ATOMS:
            raise ConstraintError(f"the schema has a place with more than {_MAX_ATOMS} alternatives")
        return Shape(tuple(out), a.is_exact and b.is_exact)

    def _spend(self, work: int) -> None:
        self._look_at_the_clock()
        self._work += work + 1
        if self._work > _MAX_WORK:
            raise ConstraintError("the schema combines too many alternatives")

    def _look_at_the_clock(self) -> None:
        if time.thread_time() > self._end:
            raise TooLongError

    def _is_dead(self, atom: Object) -> bool:
        """Whether a property must come and cannot."""
        for name in atom.required:
            num_named = sum(name == own for layer in atom.layers for own, _ in layer.named)
            conjunction = self.property_of(atom, name)
            if conjunction == IMPOSSIBLE or (num_named > 1 and self.is_impossible(conjunction)):
                return True
        return False

    def property_of(self, atom: Object, name: str) -> Conjunction:
        """What holds for one property of an object."""
        parts: list[Conjunction] = []
        for layer in atom.layers:
            own = [conjunction for key, conjunction in layer.named if key == name]
            own += [conjunction for _, tree, conjunction in layer.patterns if matches(tree, name)]
            parts += own if own else [] if layer.others is None else [layer.others]
        if atom.names != ANYTHING and not self.holds(atom.names, name):
            return IMPOSSIBLE
        return together(*parts)

    def _complement(self, shape: Shape) -> Shape:
        """Every value that the shape does not have. Of one that is not exact nothing is known, so anything may be."""
        if not shape.is_exact:
            return Shape(EVERY, is_exact=False)
        out = _ALL
        for atom in shape.atoms:
            others, is_exact = self._without(atom)
            out = self.meet(out, Shape(tuple(others), is_exact))
        return out

    def _without(self, atom: Atom) -> tuple[list[Atom], bool]:
        if isinstance(atom, Const):
            return without_const(atom)
        out: list[Atom] = [other for other in EVERY if kind_of(other) != kind_of(atom)]
        is_exact = True
        if isinstance(atom, Number):
            if atom.kind != "any":
                out.append(Number("fraction" if atom.kind == "whole" else "whole"))
            bounds = atom.bounds
            if bounds.low is not None:
                out.append(Number(bounds=Range(high=bounds.low, is_high_open=not bounds.is_low_open)))
            if bounds.high is not None:
                out.append(Number(bounds=Range(low=bounds.high, is_low_open=not bounds.is_high_open)))
            out += [Const(key_of(number_of(value)), number_of(value)) for value in atom.excluded]
            is_exact = not atom.multiples
        elif isinstance(atom, Text):
            rest = inverse(atom.language())
            out += [] if is_nothing(rest) else [Text(rest)]
            is_exact = not atom.has_format
        elif isinstance(atom, Array):
            is_exact = self._without_array(atom, out)
        else:
            is_exact = self._without_object(atom, out)
        return (out, True) if is_exact else (list(EVERY), False)

    def _without_array(self, atom: Array, out: list[Atom]) -> bool:
        if atom.low > 0:
            out.append(Array(high=atom.low - 1))
        if atom.high is not None:
            out.append(Array(low=atom.high + 1))
        for i, item in enumerate(atom.prefix):
            if item != ANYTHING:
                out.append(Array(prefix=(ANYTHING,) * i + (self.inverse(item),), low=i + 1))
        if atom.items != ANYTHING and not (atom.items == IMPOSSIBLE and atom.high is not None):
            if atom.prefix:
                return False
            out.append(Array(contains=((self.inverse(atom.items), 1, None),)))
        for what, least, most in atom.contains:
            if most is not None or least > 1:
                return False
            out += [Array(items=self.inverse(what))] if least else []
        return not atom.is_unique

    def _without_object(self, atom: Object, out: list[Atom]) -> bool:
        for name in atom.required:
            out.append(Object((Layer(((name, IMPOSSIBLE),), is_declared=False),)))
        if atom.low > 0:
            out.append(Object(high=atom.low - 1))
        if atom.high is not None:
            out.append(Object(low=atom.high + 1))
        for layer in atom.layers:
            if layer.patterns or layer.others not in (None, ANYTHING):
                return False
            for name, conjunction in layer.named:
                if conjunction != ANYTHING:
                    wrong = Layer(((name, self.inverse(conjunction)),), is_declared=False)
                    out.append(Object((wrong,), required=(name,)))
        return atom.names == ANYTHING

    def _expand(self, node: Node) -> Shape:
        if not isinstance(node, Mapping):
            return Shape(EVERY if node else ())
        return Expansion(self, node).shape()
