"""One schema's keywords, each turned into what it allows (see normal.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from .document import Node
from .formats import OPEN, format_language
from .numbers import Range
from .pattern import PatternError, language
from .shapes import (
    ANYTHING,
    EVERY,
    IMPOSSIBLE,
    Array,
    Atom,
    Conjunction,
    Layer,
    Number,
    Object,
    Shape,
    Text,
    bounded_array,
    constants,
    join,
    kind_of,
    together,
)
from .trees import ANY, Tree, both, is_nothing
from .values import CheckError, decimal_of, type_of

if TYPE_CHECKING:
    from .normal import Normaliser

_TYPES = frozenset(("null", "boolean", "number", "integer", "string", "array", "object"))
_MALFORMED = "its value is of the wrong type"


class Expansion:
    """The work on one schema."""

    def __init__(self, normaliser: Normaliser, node: Mapping[str, Any]) -> None:
        self._all = normaliser
        self._node = node
        # null counts as not given, except where it is data
        self._words = {key: value for key, value in node.items() if value is not None or key == "const"}
        self._is_exact = True

    def shape(self) -> Shape:
        """What the schema allows."""
        words = self._words
        if self._all.document.is_old and isinstance(words.get("$ref"), str):
            words = self._words = {"$ref": words["$ref"]}
        shape = self._own()
        shape = self._referred(shape)
        for item in self._list("allOf"):
            shape = self._with(shape, self._of(item))
        if (ways := self._list("anyOf")) or words.get("anyOf") == []:
            shape = self._with(shape, join(*(self._of(item) for item in ways)))
        if ways := self._list("oneOf"):
            shape = self._with(shape, self._one_of(ways))
        if "not" in words:
            shape = self._with(shape, self._inverse("not", self._schema("not")))
        if "if" in words and ("then" in words or "else" in words):
            shape = self._with(shape, self._if())
        shape = self._dependent(shape)
        shape = self._unevaluated(shape)
        return Shape(shape.atoms, shape.is_exact and self._is_exact)

    # --- help ---------------------------------------------------------------------------------------------------------

    def _open(self, keyword: str, reason: str) -> None:
        self._all.note(self._node, keyword, reason)
        self._is_exact = False

    def _with(self, a: Shape, b: Shape) -> Shape:
        return self._all.meet(a, b)

    def _of(self, *nodes: Node) -> Shape:
        return self._all.shape(self._all.of(*nodes))

    def _schema(self, keyword: str) -> Node:
        value = self._words.get(keyword, True)
        if not isinstance(value, Mapping | bool):
            self._open(keyword, _MALFORMED)
            return True
        return value

    def _list(self, keyword: str) -> list[Node]:
        value = self._words.get(keyword, [])
        if not isinstance(value, list) or not all(isinstance(item, Mapping | bool) for item in value):
            self._open(keyword, _MALFORMED)
            return []
        return value

    def _named(self, keyword: str) -> dict[str, Any]:
        value = self._words.get(keyword, {})
        if not isinstance(value, Mapping):
            self._open(keyword, _MALFORMED)
            return {}
        return dict(value)

    def _count(self, keyword: str) -> int | None:
        value = self._words.get(keyword)
        if value is None:
            return None
        if type_of(value) != "number" or value != int(value) or value < 0:
            self._open(keyword, _MALFORMED)
            return None
        return int(value)

    # --- by type ------------------------------------------------------------------------------------------------------

    def _own(self) -> Shape:
        """Of the keywords that speak of the value itself."""
        words = self._words
        kinds = self._kinds()
        values: list[Any] | None = None
        if "const" in words:
            values = [words["const"]]
        elif isinstance(words.get("enum"), list):
            values = words["enum"]
        elif "enum" in words:
            self._open("enum", _MALFORMED)
        if values is not None:
            return Shape(tuple(constants(value for value in values if self._is_own(value))))
        atoms: list[Atom] = []
        for atom in EVERY:
            kind = kind_of(atom)
            if kind in kinds:
                made: Atom | None = atom
                if isinstance(atom, Number):
                    made = self._number("any" if kinds[kind] else "whole")
                elif isinstance(atom, Text):
                    made = self._text()
                elif isinstance(atom, Array):
                    made = self._array()
                elif isinstance(atom, Object):
                    made = self._object()
                atoms += [] if made is None else [made]
        return Shape(tuple(atoms))

    def _is_own(self, value: Any) -> bool:
        try:
            return self._all.checker.is_valid(self._node, value, shallow=True)
        except CheckError as error:
            self._open("const" if "const" in self._words else "enum", str(error))
            return True

    def _kinds(self) -> dict[str, bool]:
        """Allowed types; of "number" False when only whole ones are."""
        given = self._words.get("type")
        names = given if isinstance(given, list) else [given]
        if given is None:
            names = list(_TYPES)
        if any(not isinstance(name, str) or name not in _TYPES for name in names):
            self._open("type", f"{str(given)[:60]!r} is no type")
            names = list(_TYPES)
        out = {str(name): True for name in names if name != "integer"}
        if "integer" in names:
            out.setdefault("number", False)
        return out

    def _number(self, kind: Any) -> Number | None:
        words = self._words
        bounds = Range()
        for keyword in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
            value = words.get(keyword)
            if value is None or isinstance(value, bool):
                continue
            if type_of(value) != "number":
                self._open(keyword, _MALFORMED)
                continue
            is_open = "exclusive" in keyword or words.get(f"exclusive{keyword.capitalize()}") is True
            bound = decimal_of(value)
            is_low = keyword.lower().endswith("minimum")
            bounds = bounds.meet(Range(bound, None, is_open) if is_low else Range(None, bound, False, is_open))
        multiples: tuple[Decimal, ...] = ()
        step = words.get("multipleOf")
        if step is not None:
            if type_of(step) != "number" or step <= 0:
                self._open("multipleOf", _MALFORMED)
            else:
                exact = decimal_of(step)
                if exact == exact.to_integral_value():
                    kind = "whole"
                multiples = () if exact == 1 else (exact,)
        number = Number(kind, bounds, multiples)
        if bounds.is_empty or (kind == "whole" and bounds.whole()[0] > bounds.whole()[1]):
            return None
        return number

    def _text(self) -> Text | None:
        trees: list[Tree] = []
        pattern = self._words.get("pattern")
        if isinstance(pattern, str):
            self._all.has_patterns = True
            try:
                trees.append(language(pattern))
            except PatternError as error:
                self._open("pattern", str(error))
        elif pattern is not None:
            self._open("pattern", _MALFORMED)
        name = self._words.get("format")
        has_format = isinstance(name, str) and format_language(name) is not None
        if isinstance(name, str) and (tree := format_language(name)) is not None:
            trees.append(tree)
        elif isinstance(name, str) and name in OPEN:
            self._all.remarks[f"{self._all.document.pointer(self._node)}/format"] = name
        text = Text(both(ANY, *trees), self._count("minLength") or 0, self._count("maxLength"), has_format)
        if text.high is not None and text.low > text.high:
            return None
        return None if (trees and is_nothing(text.language())) else text

    def _array(self) -> Array | None:
        words = self._words
        items = words.get("items", True)
        prefix = self._list("prefixItems")
        if isinstance(items, list):  # of older drafts
            prefix = self._list("items")
            rest, has_items = self._schema("additionalItems"), "additionalItems" in words
        else:
            rest, has_items = self._schema("items"), "items" in words
        contains: tuple[tuple[Conjunction, int, int | None], ...] = ()
        if "contains" in words:
            least = self._count("minContains")
            what = self._all.of(self._schema("contains"))
            contains = ((what, 1 if least is None else least, self._count("maxContains")),)
            if what == IMPOSSIBLE and contains[0][1] > 0:
                return None
            contains = () if contains[0][1:] == (0, None) else contains
        if not isinstance(words.get("uniqueItems", False), bool):
            self._open("uniqueItems", _MALFORMED)
        array = Array(
            tuple(self._all.of(item) for item in prefix),
            self._all.of(rest),
            self._count("minItems") or 0,
            self._count("maxItems"),
            words.get("uniqueItems") is True,
            contains,
            has_items,
            len(prefix),
        )
        return bounded_array(array)

    def _object(self) -> Object | None:
        words = self._words
        named = tuple((name, self._schema_of(item, "properties")) for name, item in self._named("properties").items())
        patterns: list[tuple[str, Tree, Conjunction]] = []
        others = self._all.of(self._schema("additionalProperties")) if "additionalProperties" in words else None
        for pattern, item in self._named("patternProperties").items():
            self._all.has_patterns = True
            try:
                patterns.append((pattern, language(pattern), self._schema_of(item, "patternProperties")))
            except PatternError as error:
                self._open("patternProperties", str(error))
                others = None if others is None else ANYTHING
        required = words.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            self._open("required", _MALFORMED)
            required = []
        layers = (Layer(named, tuple(patterns), others),) if named or patterns or others is not None else ()
        low, high = self._count("minProperties") or 0, self._count("maxProperties")
        names = self._all.of(self._schema("propertyNames")) if "propertyNames" in words else ANYTHING
        atom = Object(layers, tuple(dict.fromkeys(required)), low, high, names)
        if high is not None and max(low, len(atom.required)) > high:
            return None
        return None if any(self._all.property_of(atom, name) == IMPOSSIBLE for name in atom.required) else atom

    def _schema_of(self, item: Any, keyword: str) -> Conjunction:
        if not isinstance(item, Mapping | bool):
            self._open(keyword, "a property's schema is none")
            return ANYTHING
        return self._all.of(item)

    # --- combinations -------------------------------------------------------------------------------------------------

    def _referred(self, shape: Shape) -> Shape:
        for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
            reference = self._words.get(keyword)
            if reference is None:
                continue
            target = self._all.document.resolve(self._node, reference) if isinstance(reference, str) else None
            if target is None:
                self._open(keyword, f"{str(reference)[:80]!r} is not in the schema, and nothing is fetched")
                continue
            if keyword != "$ref":
                self._open(keyword, "what it refers to depends on the way to it")
                continue
            shape = self._with(shape, self._of(target))
        return shape

    def _one_of(self, ways: list[Node]) -> Shape:
        shapes = [self._of(way) for way in ways]
        overlaps: dict[int, list[int]] = {}
        for i in range(len(ways)):
            for j in range(i):
                if self._of(ways[i], ways[j]).atoms or (_has_format(shapes[i]) and _has_format(shapes[j])):
                    overlaps.setdefault(i, []).append(j)
                    overlaps.setdefault(j, []).append(i)
        for i, others in overlaps.items():
            for j in others:
                code = self._all.inverse(self._all.of(ways[j]))
                shape = self._all.shape(code)
                if not shape.is_exact:
                    self._open("oneOf", "whether only one of its schemas matches cannot be decided")
                    return join(*(self._of(way) for way in ways))
                shapes[i] = self._with(shapes[i], shape)
        return join(*shapes)

    def _inverse(self, keyword: str, node: Node) -> Shape:
        shape = self._all.shape(self._all.inverse(self._all.of(node)))
        if not shape.is_exact:
            self._open(keyword, "what does not match its schema cannot be enforced")
        return shape

    def _if(self) -> Shape:
        condition = self._schema("if")
        yes = self._with(self._of(condition), self._of(self._schema("then")))
        no = self._with(self._inverse("if", condition), self._of(self._schema("else")))
        return join(yes, no)

    def _dependent(self, shape: Shape) -> Shape:
        rules: list[tuple[str, Any]] = []
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            for name, rule in self._named(keyword).items():
                if not isinstance(rule, Mapping | bool | list):
                    self._open(keyword, _MALFORMED)
                elif rule not in (True, {}, []):
                    rules.append((name, rule))
        others = tuple(atom for atom in EVERY if not isinstance(atom, Object))
        for name, rule in rules:
            without = Object((Layer(((name, IMPOSSIBLE),), is_declared=False),))
            if isinstance(rule, list):
                names = dict.fromkeys((name, *(other for other in rule if isinstance(other, str))))
                shape = self._with(shape, Shape((*others, Object(required=tuple(names)), without)))
            else:
                having = self._with(Shape((*others, Object(required=(name,)))), self._of(rule))
                shape = self._with(shape, join(having, Shape((*others, without))))
        return shape

    def _unevaluated(self, shape: Shape) -> Shape:
        if "unevaluatedProperties" in self._words:
            rest = self._all.of(self._schema("unevaluatedProperties"))
            shape = self._map(shape, lambda atom: _closed(atom, rest) if isinstance(atom, Object) else atom)
        if "unevaluatedItems" in self._words:
            more = self._all.of(self._schema("unevaluatedItems"))
            shape = self._map(shape, lambda atom: _ended(atom, more) if isinstance(atom, Array) else atom)
        return shape

    def _map(self, shape: Shape, change: Callable[[Atom], Atom | None]) -> Shape:
        return Shape(tuple(atom for old in shape.atoms if (atom := change(old)) is not None), shape.is_exact)


def _has_format(shape: Shape) -> bool:
    return any(isinstance(atom, Text) and atom.has_format for atom in shape.atoms)


def _closed(atom: Object, rest: Conjunction) -> Object:
    """With a schema for the properties that nothing has spoken of."""
    layers = [layer for layer in atom.layers if layer.is_declared]
    if any(layer.others is not None for layer in layers):
        return atom
    named = dict.fromkeys(name for layer in layers for name, _ in layer.named)
    patterns = {pattern: tree for layer in layers for pattern, tree, _ in layer.patterns}
    layer = Layer(
        tuple((name, ANYTHING) for name in named),
        tuple((pattern, tree, ANYTHING) for pattern, tree in patterns.items()),
        rest,
    )
    return Object((*atom.layers, layer), atom.required, atom.low, atom.high, atom.names)


def _ended(atom: Array, more: Conjunction) -> Array | None:
    """The same of items."""
    if atom.has_items:
        return atom
    prefix = tuple(own if i < atom.num_seen else together(own, more) for i, own in enumerate(atom.prefix))
    return bounded_array(replace(atom, prefix=prefix, items=together(atom.items, more), has_items=True))
