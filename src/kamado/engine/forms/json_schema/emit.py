"""From shapes to a grammar: JSON without blanks beside its separators, properties in the order in which they stand.

An object with `properties` and without `additionalProperties` gets the declared keys only: a small model would invent
others until its tokens end. That is less than the schema allows, so it is said (`is_narrowed`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from . import numbers, trees
from .keywords import KeywordMembers
from .members import Members
from .normal import Normaliser
from .numbers import Range
from .rules import Literal, Name, Row, Rules, Symbol, Times
from .shapes import ANYTHING, EVERY, IMPOSSIBLE, Array, Atom, Conjunction, Const, Number, Object, Text, together
from .tagged import Bare, Keywords, Tagged, TaggedMembers
from .trees import ANY, Tree, alt, both, inverse, is_nothing, literal
from .values import number_of

_MAX_LISTED = 300  # multiples that are listed one by one
_MAX_STEP = 20_000  # of multipleOf: the automaton has so many states
_MAX_PLACES = 15  # of multipleOf
_MAX_UNIQUE = 60  # values of which each may come once: a bit each
_MAX_COUNTED = 4000  # rules of an object or array whose length is counted
_MAX_KEY_PATTERNS = 4
_EXACT = (1 << 53) - 1


class Emitter:
    """Writes the grammar of one document."""

    opening: Row = (Literal("{"),)
    closing: Row = (Literal("}"),)

    def __init__(self, normaliser: Normaliser, item_separator: str, key_separator: str) -> None:
        self._all = normaliser
        self._comma = Literal(item_separator)
        self.comma: Row = (self._comma,)
        self._key_separator = key_separator
        self._rules = Rules()
        self._values: dict[Conjunction, Name] = {}
        self._any: Name | None = None
        self._now: Conjunction = ANYTHING  # whose rule is written
        self.is_narrowed = False

    def grammar(self, conjunction: Conjunction) -> str | None:
        """Lark's notation of all JSON texts that match; None when there are none."""
        return self._rules.write(self.value(conjunction))

    def tagged(self, conjunction: Conjunction, tagged: Tagged) -> tuple[str | None, Mapping[str, list[str]]]:
        """Lark's notation of all objects that match, their members between tags, and of which types these may be."""
        members = TaggedMembers(self, self._rules, self._all, tagged)
        return self._objects(conjunction, members), members.kinds

    def as_arguments(self, conjunction: Conjunction, keywords: Keywords | Bare) -> str | None:
        """Lark's notation of all objects that match, their members as arguments of a call."""
        return self._objects(conjunction, KeywordMembers(self, self._rules, keywords.between, keywords.assign))

    def _objects(self, conjunction: Conjunction, members: Members) -> str | None:
        rule = self._rules.new("v")
        self._now = conjunction
        for atom in self._all.shape(conjunction).atoms:
            if isinstance(atom, Object):
                self._object(rule, atom, members)
            elif isinstance(atom, Const) and isinstance(atom.value, Mapping):
                row = members.const(atom.value)
                if row is not None:
                    self._rules.add(rule, *row)
        return self._rules.write(Name(rule))

    def rows(self, conjunction: Conjunction, atom: Atom) -> list[Row]:
        """The ways to write what an atom of a schema allows."""
        outer, self._now = self._now, conjunction
        try:
            if isinstance(atom, Const):
                return [self.const(atom.value)]
            if isinstance(atom, Number):
                return self._number(atom)
            rule = self._rules.new("v")
            self._atom(rule, atom)
            return [(Name(rule),)]
        finally:
            self._now = outer

    def value(self, conjunction: Conjunction) -> Name:
        """The rule of values that match."""
        known = self._values.get(conjunction)
        if known is not None:
            return known
        atoms = self._all.shape(conjunction).atoms
        if len(atoms) == len(EVERY) and set(atoms) == set(EVERY):
            self._values[conjunction] = self._anything()
            return self._values[conjunction]
        rule = self._rules.new("v")
        self._values[conjunction] = Name(rule)
        scalars = [
            text for a in atoms if isinstance(a, Const) and not self._is_row(a.value) for text in self._texts(a.value)
        ]
        if len(scalars) == 1:
            self._rules.add(rule, Literal(scalars[0]))
        elif scalars:
            self._rules.add(rule, self._rules.terminal(" | ".join(json.dumps(s, ensure_ascii=False) for s in scalars)))
        for atom in atoms:
            if isinstance(atom, Const):
                if self._is_row(atom.value):
                    self._rules.add(rule, *self.const(atom.value))
            else:
                outer, self._now = self._now, conjunction
                self._atom(rule, atom)
                self._now = outer
        return Name(rule)

    def _open(self, keyword: str, reason: str) -> None:
        self._all.note_in(self._now, keyword, reason)

    def _atom(self, rule: str, atom: Atom) -> None:
        if isinstance(atom, Number):
            for row in self._number(atom):
                self._rules.add(rule, *row)
        elif isinstance(atom, Text):
            name = self._text(atom.language() if atom != Text() else ANY)
            if name is not None:
                self._rules.add(rule, name)
        elif isinstance(atom, Array):
            self._array(rule, atom)
        elif isinstance(atom, Object):
            self._object(rule, atom)

    # --- values -------------------------------------------------------------------------------------------------------

    def _anything(self) -> Name:
        if self._any is None:
            self._any = Name(self._rules.new("any"))
            rule = self._any.name
            self._rules.add(rule, self._rules.terminal('"null" | "true" | "false"'))
            for atom in (Number(), Text(), Array(), Object()):
                self._atom(rule, atom)
        return self._any

    def _is_row(self, value: Any) -> bool:
        """Whether a given value has several symbols, and is in no terminal with others."""
        return isinstance(value, list | Mapping)

    def _scalar(self, value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    def _texts(self, value: Any) -> list[str]:
        """The ways to write it: a number with a fraction of 0 without one too."""
        is_whole = isinstance(value, float) and value.is_integer() and abs(value) < numbers.MAX_UNSIGNED
        return [self._scalar(value), *([str(int(value))] if is_whole else [])]

    def const(self, value: Any) -> Row:
        """A value as the pieces in which any array or object comes, so that both begin alike."""
        if isinstance(value, list):
            row: list[Symbol] = [Literal("[")]
            for i, item in enumerate(value):
                row += [*([self._comma] if i else []), *self.const(item)]
            return (*row, Literal("]"))
        if isinstance(value, Mapping):
            row = [Literal("{")]
            for i, (key, item) in enumerate(value.items()):
                row += [*([self._comma] if i else []), self._key(key), *self.const(item)]
            return (*row, Literal("}"))
        return (self._given(value),)

    def _given(self, value: Any) -> Literal | Name:
        return Literal(self._scalar(value))

    def _key(self, key: str) -> Literal | Name:
        return Literal(json.dumps(key, ensure_ascii=False) + self._key_separator)

    def _text(self, tree: Tree, end: str = "") -> Name | None:
        """The terminal of a JSON string; None when no text is in `tree`."""
        after = f" {json.dumps(end)}" if end else ""
        if tree == ANY:
            return self._rules.terminal(trees.json_string() + after)
        if is_nothing(tree):
            return None
        return self._rules.terminal(f'"\\"" ({trees.write(tree, True)}) "\\""{after}')

    def _number(self, atom: Number) -> list[Row]:
        if atom.kind == "whole":
            low, high = atom.bounds.whole()
            step = _whole_step(atom.multiples)
            if step > 1:
                return self._multiples(atom, low, high, step)
            tree = numbers.whole_between(low, high)
        else:
            tree = numbers.numbers_in(atom.bounds)
            if atom.kind == "fraction":
                tree = both(tree, numbers.WITH_FRACTION)
            if atom.multiples:
                places = _decimal_places(atom.multiples)
                if places is None:
                    return [(self._stepped("number", atom),)]
                tree = both(tree, numbers.with_places(places))
        for value in atom.excluded:
            tree = numbers.without(tree, value)
        is_cut = atom.kind == "fraction" or atom.multiples or atom.excluded
        return [] if is_cut and is_nothing(tree) else [(self._rules.terminal(trees.write(tree, False)),)]

    def _multiples(self, atom: Number, low: int, high: int, step: int) -> list[Row]:
        first = -(-low // step) * step
        count = (high - first) // step + 1 if first <= high else 0
        if count <= _MAX_LISTED:
            excluded = {int(value) for value in atom.excluded if value == value.to_integral_value()}
            values = [value for value in range(first, high + 1, step) if value not in excluded]
            return [(self._rules.terminal(" | ".join(f'"{value}"' for value in values)),)] if values else []
        ends = numbers.ending_in(step)
        if ends is not None:
            tree = both(numbers.whole_between(low, high), ends)
            for value in atom.excluded:
                tree = numbers.without(tree, value)
            return [(self._rules.terminal(trees.write(tree, False)),)]
        return [(self._stepped("integer", atom, step),)]

    def _stepped(self, kind: str, atom: Number, step: int | None = None) -> Name:
        """Multiples, which the compiler counts by an automaton of its own, as many states as the step has units."""
        exact = _common_step(atom.multiples) if step is None else Decimal(step)
        places = max(0, -int(exact.normalize().as_tuple().exponent))
        divisor: Any = float(exact) if step is None else step
        if places > _MAX_PLACES or exact.scaleb(places) > _MAX_STEP:
            self._open("multipleOf", "its step has too many digits")
            return self._rules.terminal(trees.write(numbers.whole_between(*atom.bounds.whole()), False))
        if atom.excluded:
            self._open("multipleOf", "a multiple of it is excluded")
        # So few digits that a double has them all.
        most = _EXACT if kind == "integer" else 10 ** (_MAX_PLACES - places)
        if not Range(Decimal(-most), Decimal(most)).meet(atom.bounds).whole_count():
            self._open("multipleOf", "its numbers have too many digits")
            return self._rules.terminal(trees.write(numbers.whole_between(*atom.bounds.whole()), False))
        schema: dict[str, Any] = {"type": kind, "multipleOf": divisor, "minimum": -most, "maximum": most}
        bounds = atom.bounds
        if bounds.low is not None and bounds.low > -most:
            schema["exclusiveMinimum" if bounds.is_low_open else "minimum"] = number_of(bounds.low)
        if bounds.high is not None and bounds.high < most:
            schema["exclusiveMaximum" if bounds.is_high_open else "maximum"] = number_of(bounds.high)
        return self._rules.nested(json.dumps(schema))

    # --- arrays -------------------------------------------------------------------------------------------------------

    def _array(self, rule: str, atom: Array) -> None:
        if atom.is_unique and atom.high is not None and atom.high <= 1:
            atom = replace(atom, is_unique=False)
        if atom.is_unique:
            values = self._few(atom)
            if values is not None:
                self._unique(rule, atom, values)
                return
            self._open("uniqueItems", "only of few given values can each be made to come once")
        if atom.contains:
            self._counted(rule, atom)
            return
        after = self._list_from(atom, 0)
        self._rules.add(rule, Literal("["), after, Literal("]"))

    def _list_from(self, atom: Array, i: int) -> Symbol:
        """Items from the i-th on, as far as the prefix goes one by one, with what parts them from those before."""
        prefix = len(atom.prefix)
        if i == prefix:
            return self._rest(atom, i)
        rule = self._rules.new("i")
        if atom.low <= i:
            self._rules.add(rule)
        comma = (self._comma,) if i else ()
        if atom.high is None or i < atom.high:
            self._rules.add(rule, *comma, self.value(atom.prefix[i]), self._list_from(atom, i + 1))
        return Name(rule)

    def _rest(self, atom: Array, i: int) -> Symbol:
        low, high = max(atom.low - i, 0), None if atom.high is None else max(atom.high - i, 0)
        if high == 0 or atom.items == IMPOSSIBLE:
            rule = self._rules.new("e")
            if low == 0:
                self._rules.add(rule)
            return Name(rule)
        item = self.value(atom.items)
        if i:
            return Times((self._comma, item), low, high)
        more = Times((self._comma, item), max(low - 1, 0), None if high is None else high - 1)
        return Times((item, more), 1 if low else 0, 1)

    def _few(self, atom: Array) -> list[Any] | None:
        """The values that an item may have, when they are few and without a prefix."""
        if atom.prefix or atom.contains:
            return None
        atoms = self._all.shape(atom.items).atoms
        values = [one.value for one in atoms if isinstance(one, Const)]
        return values if len(values) == len(atoms) <= _MAX_UNIQUE else None

    def _unique(self, rule: str, atom: Array, values: Sequence[Any]) -> None:
        """Each value once at the most: the rules' parameter has a bit for each that has come."""
        high = len(values) if atom.high is None else min(atom.high, len(values))
        if atom.low > high:
            return
        if atom.low == 0:
            self._rules.add(rule, Literal("["), Literal("]"))
        if high == 0:
            return
        first = self._rules.new("u")
        more = self._rules.new("u", has_parameter=True)
        self._rules.add(rule, Literal("["), Name(first), Literal("]"))
        self._rules.add(more, condition=f"bit_count_ge(_, {atom.low})")
        for i, value in enumerate(values):
            row = self.const(value)
            self._rules.add(first, *row, Name(more, hex(1 << i)))
            condition = f"and(bit_clear({i}), bit_count_lt(_, {high}))"
            self._rules.add(more, self._comma, *row, Name(more, f"set_bit({i})"), condition=condition)

    def _counted(self, rule: str, atom: Array) -> None:
        """Arrays that must contain something: one state for each number of items and of those that count."""
        if len(atom.contains) > 1:
            self._open("contains", "of two that hold for one array the second is left open")
        what, least, most = atom.contains[0]
        last_item = max(
            1, least, most or 0, atom.low, len(atom.prefix), atom.high or 0
        )  # the last one stands for all after it
        last_found = max(least, -1 if most is None else most)
        if (last_item + 1) * (last_found + 1) > _MAX_COUNTED:
            self._open("contains", "the array's length has too many cases")
            self._array(rule, replace(atom, contains=()))
            return
        is_known = most is None or self._all.shape(self._all.inverse(what)).is_exact
        if not is_known:
            self._open("maxContains", "what does not count cannot be told from what does")
        states = {
            (i, found): Name(self._rules.new("c"))
            for i in range(last_item + 1)
            for found in range(min(i, last_found) + 1)
        }
        for (i, found), name in states.items():
            if i >= atom.low and found >= least:
                self._rules.add(name.name)
            if atom.high is not None and i >= atom.high:
                continue
            comma = (self._comma,) if i else ()
            item = atom.item(i)
            after = min(i + 1, last_item)
            if most is None or found < most:
                counted = self.value(together(item, what))
                self._rules.add(name.name, *comma, counted, states[after, min(found + 1, last_found)])
            # Without a limit an item that happens to count does no harm.
            other = item if most is None or not is_known else together(item, self._all.inverse(what))
            self._rules.add(name.name, *comma, self.value(other), states[after, found])
        self._rules.add(rule, Literal("["), states[0, 0], Literal("]"))

    # --- objects ------------------------------------------------------------------------------------------------------

    def member(self, name: str, conjunction: Conjunction) -> Row | None:
        """See Members."""
        return (self._key(name), self.value(conjunction))

    def other(self, names: Tree, conjunction: Conjunction) -> Row | None:
        """See Members."""
        key = self._text(names, self._key_separator)
        return None if key is None else (key, self.value(conjunction))

    def _object(self, rule: str, atom: Object, form: Members | None = None) -> None:
        form = form or self
        declared = dict.fromkeys(name for layer in atom.layers if layer.is_declared for name, _ in layer.named)
        known = {**declared, **dict.fromkeys(atom.required)}
        properties: list[tuple[Row, bool]] = []
        for name in known:
            conjunction = self._all.property_of(atom, name)
            if conjunction == IMPOSSIBLE or self._all.is_impossible(conjunction):
                if name in atom.required:
                    return
                continue
            row = form.member(name, conjunction)
            if row is not None:
                properties.append((row, name in atom.required))
            elif name in atom.required:
                return
        others = self._others(atom, bool(declared), [*known], form)
        num_required = sum(is_required for _, is_required in properties)
        num_most = len(properties) if not others else None
        is_counted = atom.low > num_required or (atom.high is not None and (num_most is None or num_most > atom.high))
        high = atom.high if is_counted else None
        if atom.low > max(1, len(properties)) and others:
            # A key may come twice, which counts once.
            self._open("minProperties", "keys that are not declared may repeat")
        last = max(atom.low, high or 0) if is_counted else 1
        if is_counted and (len(properties) + 1) * (last + 1) > _MAX_COUNTED:
            self._open("maxProperties", "the object's length has too many cases")
            is_counted, high, last = False, None, 1
        low = atom.low if is_counted else 0
        states: dict[tuple[int, int], Name] = {}
        # From the last property to the first, so that a long object is no deep recursion.
        for i in range(len(properties), -1, -1):
            for written in range(min(i, last) + 1):
                states[i, written] = self._members(i, written, properties, others, states, low, high, last, form.comma)
        self._rules.add(rule, *form.opening, states[0, 0], *form.closing)

    def _members(
        self,
        i: int,
        written: int,
        properties: Sequence[tuple[Row, bool]],
        others: Sequence[Row],
        states: Mapping[tuple[int, int], Name],
        low: int,
        high: int | None,
        last: int,
        between: Row,
    ) -> Name:
        """Properties from the i-th on when `written` (at most `last`: or more) stand before them."""
        name = self._rules.new("o")
        comma = between if written else ()
        is_full = high is not None and written >= high
        after = min(written + 1, last)
        if i < len(properties):
            row, is_required = properties[i]
            if not is_full:
                self._rules.add(name, *comma, *row, states[i + 1, after])
            if not is_required:
                self._rules.add(name, states[i + 1, written])
            return Name(name)
        if written >= low:
            self._rules.add(name)
        if others and not is_full:
            if written < last and (low or high is not None):
                following = self._members(i, written + 1, properties, others, states, low, high, last, between)
                for row in others:
                    self._rules.add(name, *comma, *row, following)
            else:
                one = self._rules.new("p")
                for row in others:
                    self._rules.add(one, *row)
                if written:
                    self._rules.add(name, Times((*between, Name(one)), 1, None))
                else:
                    self._rules.add(name, Name(one), Times((*between, Name(one)), 0, None))
        return Name(name)

    def _others(self, atom: Object, is_declaring: bool, known: list[str], form: Members) -> list[Row]:
        """Rows of a key that is not named and its value."""
        patterns = {pattern: tree for layer in atom.layers for pattern, tree, _ in layer.patterns}
        says_more = any(layer.others is not None for layer in atom.layers)
        is_narrow = is_declaring and not says_more and atom.low <= len(known)
        if is_narrow and not patterns:
            self.is_narrowed = True
            return []
        names = ANY if atom.names == ANYTHING else self._names(atom.names)
        named = dict.fromkeys([*known, *(name for layer in atom.layers for name, _ in layer.named)])
        keys = both(names, *([inverse(alt(*map(literal, named)))] if named else []))
        if len(patterns) > _MAX_KEY_PATTERNS:
            self._open("patternProperties", f"more than {_MAX_KEY_PATTERNS} patterns of one object")
            patterns = {}
        rows: list[Row] = []
        listed = list(patterns.items())
        for bits in range(1 << len(listed)):
            chosen = {pattern for i, (pattern, _) in enumerate(listed) if bits >> i & 1}
            if is_narrow and not chosen:
                self.is_narrowed = True
                continue
            parts: list[Conjunction] = []
            for layer in atom.layers:
                own = [conjunction for pattern, _, conjunction in layer.patterns if pattern in chosen]
                parts += own if own else [] if layer.others is None else [layer.others]
            conjunction = together(*parts)
            if conjunction == IMPOSSIBLE or self._all.is_impossible(conjunction):
                continue
            tree = both(keys, *(tree if pattern in chosen else inverse(tree) for pattern, tree in listed))
            row = form.other(tree, conjunction)
            if row is not None:
                rows.append(row)
        return rows

    def _names(self, conjunction: Conjunction) -> Tree:
        ways: list[Tree] = []
        for atom in self._all.shape(conjunction).atoms:
            if isinstance(atom, Const) and isinstance(atom.value, str):
                ways.append(literal(atom.value))
            elif isinstance(atom, Text):
                ways.append(atom.language())
        return alt(*ways)


def _common_step(steps: Sequence[Decimal]) -> Decimal:
    """The least number that is a multiple of each."""
    places = max(max(-int(step.as_tuple().exponent), 0) for step in steps)
    whole = math.lcm(*(int(step.scaleb(places)) for step in steps))
    return Decimal(whole).scaleb(-places)


def _whole_step(steps: Sequence[Decimal]) -> int:
    """Of whole numbers: the least whole number that is a multiple of each."""
    return math.lcm(*(step.as_integer_ratio()[0] for step in steps)) if steps else 1


def _decimal_places(steps: Sequence[Decimal]) -> int | None:
    """n when the multiples are the numbers of n decimal places, else None."""
    step = _common_step(steps)
    places = -int(step.normalize().as_tuple().exponent)
    return places if step == Decimal(1).scaleb(-places) and places > 0 else None
