"""What a schema allows, sorted by type: a shape is a list of alternatives, each of one type or one value.

Schemas are sets of values; keywords beside each other, `allOf` and `$ref` intersect them, `anyOf` joins them, `not`,
`oneOf` and `if` take complements. All of that is worked out here, in place: what stands below (a property, an item)
stays a conjunction of schemas, positive or negated, that is looked at when it is needed. So recursion through
references ends by itself, for a document has finitely many conjunctions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from .numbers import EVERYWHERE, Range
from .trees import ANY, ANY_CHARACTER, Tree, both, inverse, is_nothing, literal, repeat
from .values import decimal_of, key_of, type_of

# Codes of schemas (2 n, or 2 n + 1 for what does not match schema n), sorted; all of them hold.
Conjunction: TypeAlias = tuple[int, ...]
ANYTHING: Conjunction = ()
IMPOSSIBLE: Conjunction = (0,)


def together(*parts: Conjunction) -> Conjunction:
    """All that any of them asks."""
    codes = {code for part in parts for code in part}
    if 0 in codes or any(code & 1 and code ^ 1 in codes for code in codes):
        return IMPOSSIBLE
    return tuple(sorted(codes - {1}))


@dataclass(frozen=True, slots=True)
class Const:
    """One value."""

    key: str
    value: Any = field(compare=False)


@dataclass(frozen=True, slots=True)
class Number:
    """Numbers. `excluded` are left out; of `multiples` a number is a multiple of each."""

    kind: Literal["any", "whole", "fraction"] = "any"
    bounds: Range = EVERYWHERE
    multiples: tuple[Any, ...] = ()  # Decimal
    excluded: tuple[Any, ...] = ()  # Decimal


@dataclass(frozen=True, slots=True)
class Text:
    """Texts of a language, `low` to `high` characters long. `has_format`: by a format, which is kept to, though by the
    specification it is a remark: what does not have it is still valid."""

    tree: Tree = ANY
    low: int = 0
    high: int | None = None
    has_format: bool = False

    def language(self) -> Tree:
        """With the lengths."""
        return both(self.tree, repeat(ANY_CHARACTER, self.low, self.high))


@dataclass(frozen=True, slots=True)
class Array:
    """Arrays. `contains`: (what, at least, at most)."""

    prefix: tuple[Conjunction, ...] = ()
    items: Conjunction = ANYTHING
    low: int = 0
    high: int | None = None
    is_unique: bool = False
    contains: tuple[tuple[Conjunction, int, int | None], ...] = ()
    has_items: bool = False  # a schema spoke of items behind the prefix
    num_seen: int = 0  # so many items of the prefix a schema spoke of, and no complement

    def item(self, i: int) -> Conjunction:
        """What holds for one item."""
        return self.prefix[i] if i < len(self.prefix) else self.items


@dataclass(frozen=True, slots=True)
class Layer:
    """What one schema says of an object's properties. `others` None: it says nothing of those that it does not name."""

    named: tuple[tuple[str, Conjunction], ...] = ()
    patterns: tuple[tuple[str, Tree, Conjunction], ...] = ()
    others: Conjunction | None = None
    is_declared: bool = True  # False: of a complement, which names properties without declaring them


@dataclass(frozen=True, slots=True)
class Object:
    """Objects. `names`: what every name matches."""

    layers: tuple[Layer, ...] = ()
    required: tuple[str, ...] = ()
    low: int = 0
    high: int | None = None
    names: Conjunction = ANYTHING


Atom: TypeAlias = Const | Number | Text | Array | Object
EVERY: tuple[Atom, ...] = (
    Const("null", None), Const("true", True), Const("false", False), Number(), Text(), Array(), Object(),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """Alternatives. `is_exact` False: something was left open, so there may be more in it than the schema allows."""

    atoms: tuple[Atom, ...]
    is_exact: bool = True


def kind_of(atom: Atom) -> str:
    """JSON's name of its type."""
    if isinstance(atom, Const):
        return type_of(atom.value)
    return {Number: "number", Text: "string", Array: "array", Object: "object"}[type(atom)]


def join(*shapes: Shape) -> Shape:
    """What any of them allows."""
    atoms = dict.fromkeys(atom for shape in shapes for atom in shape.atoms)
    full = {kind_of(atom) for atom in atoms if atom in EVERY and not isinstance(atom, Const)}
    kept = tuple(atom for atom in atoms if atom in EVERY or kind_of(atom) not in full)
    return Shape(kept, all(shape.is_exact for shape in shapes))


def meet_atoms(a: Atom, b: Atom) -> Atom | None:
    """What both allow; None when that is nothing. A value against a type is kept: values are checked as a whole."""
    if isinstance(a, Const) or isinstance(b, Const):
        if isinstance(a, Const) and isinstance(b, Const):
            return a if a.key == b.key else None
        if kind_of(a) != kind_of(b):
            return None
        return a if isinstance(a, Const) else b
    if isinstance(a, Number) and isinstance(b, Number):
        return _meet_numbers(a, b)
    if isinstance(a, Text) and isinstance(b, Text):
        text = Text(both(a.tree, b.tree), max(a.low, b.low), _least(a.high, b.high), a.has_format or b.has_format)
        if (text.high is not None and text.low > text.high) or (text not in (a, b) and is_nothing(text.language())):
            return None
        return text
    if isinstance(a, Array) and isinstance(b, Array):
        return _meet_arrays(a, b)
    if isinstance(a, Object) and isinstance(b, Object):
        high = _least(a.high, b.high)
        low = max(a.low, b.low)
        if high is not None and low > high:
            return None
        return Object(
            tuple(dict.fromkeys((*a.layers, *b.layers))),
            tuple(dict.fromkeys((*a.required, *b.required))),
            low,
            high,
            together(a.names, b.names),
        )
    return None


def _least(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


def _meet_numbers(a: Number, b: Number) -> Number | None:
    if {a.kind, b.kind} == {"whole", "fraction"}:
        return None
    number = Number(
        a.kind if a.kind != "any" else b.kind,
        a.bounds.meet(b.bounds),
        tuple(dict.fromkeys((*a.multiples, *b.multiples))),
        tuple(dict.fromkeys((*a.excluded, *b.excluded))),
    )
    if number.bounds.is_empty:
        return None
    if number.kind == "whole":
        low, high = number.bounds.whole()
        if low > high:
            return None
    return number


def _meet_arrays(a: Array, b: Array) -> Array | None:
    length = max(len(a.prefix), len(b.prefix))
    return bounded_array(
        Array(
            tuple(together(a.item(i), b.item(i)) for i in range(length)),
            together(a.items, b.items),
            max(a.low, b.low),
            _least(a.high, b.high),
            a.is_unique or b.is_unique,
            tuple(dict.fromkeys((*a.contains, *b.contains))),
            a.has_items or b.has_items,
            max(a.num_seen, b.num_seen),
        )
    )


def bounded_array(array: Array) -> Array | None:
    """The same, without places that no item can take; None when it cannot be long enough."""
    high = array.high
    for i, item in enumerate(array.prefix):
        if item == IMPOSSIBLE:
            high = _least(high, i)
            break
    if array.items == IMPOSSIBLE:
        high = _least(high, len(array.prefix))
    low = max([array.low, *(1 for _, least, _ in array.contains if least > 0)])
    if high is not None and low > high:
        return None
    prefix = array.prefix if high is None else array.prefix[:high]
    return replace(array, prefix=prefix, low=low, high=high)


def without_const(const: Const) -> tuple[list[Atom], bool]:
    """Every other value, and whether that is exact."""
    kind = kind_of(const)
    out: list[Atom] = [atom for atom in EVERY if kind_of(atom) != kind]
    value = const.value
    if kind == "boolean":
        out.append(Const("false", False) if value else Const("true", True))
    elif kind == "number":
        out.append(Number(excluded=(decimal_of(value),)))
    elif kind == "string":
        out.append(Text(inverse(literal(value))))
    elif kind in ("array", "object"):
        if value:
            return list(EVERY), False
        out.append(Array(low=1) if kind == "array" else Object(low=1))
    return out, True


def constants(values: Iterable[Any]) -> list[Atom]:
    """One alternative a value, equal ones once."""
    return list({(key := key_of(value)): Const(key, value) for value in values}.values())
