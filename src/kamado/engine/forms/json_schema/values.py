"""JSON values: when two are equal, and whether one matches a schema, keyword by keyword.

The check is what finished answers are held to where a keyword was left open while they were written. Formats are
remarks here, as in JSON Schema. Time is bounded: a check that takes too many steps raises CheckError.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias

from ....errors import KamadoError
from . import trees
from .document import Document, Node, escape
from .pattern import PatternError, language

_MAX_STEPS = 50_000  # some 5 µs each
_MAX_DEPTH = 200


class CheckError(KamadoError):
    """A value could not be checked: too much work, or a pattern that has no meaning here."""


def key_of(value: Any) -> str:
    """Equal for values that JSON Schema calls equal: 1 and 1.0 are, true and 1 are not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list):
        return f"[{','.join(map(key_of, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(sorted(f"{json.dumps(k)}:{key_of(v)}" for k, v in value.items())) + "}"
    return json.dumps(value)


def decimal_of(value: float) -> Decimal:
    """The number that a JSON text meant."""
    return Decimal(repr(value))


def number_of(value: Decimal) -> int | float:
    """A number as JSON has it: whole ones without a fraction."""
    return int(value) if value == value.to_integral_value() else float(value)


def type_of(value: Any) -> str:
    """JSON's name of a value's type."""
    for name, kind in (("null", type(None)), ("boolean", bool), ("string", str), ("array", list), ("object", Mapping)):
        if isinstance(value, kind):
            return name
    return "number"


def is_of_type(value: Any, name: object) -> bool:
    """Whether a value is of a type; "integer" is whole numbers, 1.0 too."""
    own = type_of(value)
    return own == name or (name == "integer" and own == "number" and float(value).is_integer())


# Parts of a value: JSON pointer, the schema that the part must match (None: it is wrong whatever that is), the part.
_Parts: TypeAlias = Iterator[tuple[str, Node | None, Any]]


@dataclass(frozen=True, slots=True)
class _Test:
    """A keyword that holds or not: (checker, node, argument, value). It says nothing of other types than these."""

    holds: Callable[[Checker, Any, Any, Any], bool]
    asks: Any = object  # type of the argument
    of: Any = object  # type of the value


@dataclass(frozen=True, slots=True)
class _Sub:
    """A keyword that has schemas for the value or its parts, likewise."""

    parts: Callable[[Checker, Any, Any, Any], _Parts]
    asks: Any = object
    of: Any = object


class Checker:
    """Checks values against the schemas of a document."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self.num_steps = 0  # of the latest check
        self._depth = 0
        self._enums: dict[int, tuple[list[Any], frozenset[str]]] = {}  # keys of what an enum lists

    def violations(self, node: Node, value: Any) -> list[str]:
        """What a value violates, as texts with the places of keyword and value; empty when it matches.

        Raises CheckError.
        """
        self.num_steps = 0
        return [f"{at or 'the answer'} violates {where}" for at, where in self._check(node, value, "")]

    def is_valid(self, node: Node, value: Any, *, shallow: bool = False) -> bool:
        """Whether a value matches. `shallow`: by what stands in this schema itself, not in what it combines."""
        self.num_steps = 0
        return next(self._check(node, value, "", shallow=shallow), None) is None

    def _ok(self, node: Node, value: Any) -> bool:
        return next(self._check(node, value, ""), None) is None

    def _check(self, node: Node, value: Any, at: str, *, shallow: bool = False) -> Iterator[tuple[str, str]]:
        self.num_steps += 1
        if self.num_steps > _MAX_STEPS:
            raise CheckError("the check of the answer takes too long")
        if isinstance(node, bool):
            if not node:
                yield at, "a schema that is false"
            return
        if self._depth > _MAX_DEPTH:
            raise CheckError("the check of the answer goes too deep")
        self._depth += 1
        try:
            place = self._document.pointer(node)
            reference = node.get("$ref")
            if self._document.is_old and isinstance(reference, str) and not shallow:
                names: Any = ("$ref",)
            else:
                names = node
            for name in names:
                argument = node[name]
                if argument is None and name != "const":
                    continue
                keyword = (_COMBINED.get(name) if not shallow else None) or _OWN.get(name)
                if keyword is None or not (isinstance(argument, keyword.asks) and isinstance(value, keyword.of)):
                    continue
                if isinstance(keyword, _Test):
                    if not keyword.holds(self, node, argument, value):
                        yield at, f"{place}/{escape(name)}"
                    continue
                for more, schema, part in keyword.parts(self, node, argument, value):
                    if schema is None:
                        yield f"{at}{more}", f"{place}/{escape(name)}"
                    else:
                        yield from self._check(schema, part, f"{at}{more}")
        finally:
            self._depth -= 1

    # --- what each keyword asks: of the value itself, or of its parts -------------------------------------------------

    def _referred(self, node: Any, reference: Any, value: Any) -> _Parts:
        target = self._document.resolve(node, reference) if isinstance(reference, str) else None
        if target is None:
            raise CheckError(f"the schema refers to {str(reference)[:80]!r}, which is not in it")
        yield "", target, value

    def _branch(self, node: Any, condition: Any, value: Any) -> _Parts:
        branch = node.get("then" if self._ok(condition, value) else "else")
        if branch is not None:
            yield "", branch, value

    def _dependent(self, node: Any, rules: Any, value: Any) -> _Parts:
        for name, rule in rules.items():
            if name in value and not isinstance(rule, list):
                yield "", rule, value
            elif name in value and any(other not in value for other in rule):
                yield "", None, value

    def _is_listed(self, node: Any, values: Any, value: Any) -> bool:
        if id(values) not in self._enums:
            self._enums[id(values)] = (values, frozenset(map(key_of, values)))
        return key_of(value) in self._enums[id(values)][1]

    def _is_multiple(self, node: Any, step: Any, value: Any) -> bool:
        if not (type_of(value) == type_of(step) == "number" and step > 0):
            return True
        quotient = decimal_of(value) / decimal_of(step)
        return quotient == quotient.to_integral_value()

    def is_found(self, pattern: str, text: str) -> bool:
        """Whether a pattern is found in a text. Raises CheckError."""
        self.num_steps += len(text)
        try:
            return trees.matches(language(pattern), text)
        except PatternError as error:
            raise CheckError(f"the pattern {pattern[:60]!r} cannot be checked: {error}") from None

    def _items(self, node: Any, schema: Any, value: Any) -> _Parts:
        if isinstance(schema, list):
            yield from _each(schema, value)
        else:
            start = len(node["prefixItems"]) if isinstance(node.get("prefixItems"), list) else 0
            yield from ((f"/{i}", schema, item) for i, item in enumerate(value[start:], start))

    def _more_items(self, node: Any, schema: Any, value: Any) -> _Parts:
        if isinstance(node.get("items"), list):
            start = len(node["items"])
            yield from ((f"/{i}", schema, item) for i, item in enumerate(value[start:], start))

    def _contains(self, node: Any, schema: Any, value: Any) -> bool:
        count = sum(self._ok(schema, item) for item in value)
        least, most = node.get("minContains"), node.get("maxContains")
        return count >= (1 if least is None else least) and (most is None or count <= most)

    def _pattern_properties(self, node: Any, patterns: Any, value: Any) -> _Parts:
        for pattern, schema in patterns.items():
            for name in value:
                if self.is_found(pattern, name):
                    yield f"/{escape(name)}", schema, value[name]

    def _more_properties(self, node: Any, schema: Any, value: Any) -> _Parts:
        for name in value:
            if not self._is_declared(node, name):
                yield f"/{escape(name)}", schema, value[name]

    def _is_declared(self, node: Any, name: str) -> bool:
        patterns = node.get("patternProperties")
        return (isinstance(node.get("properties"), Mapping) and name in node["properties"]) or (
            isinstance(patterns, Mapping) and any(self.is_found(pattern, name) for pattern in patterns)
        )

    def _names(self, node: Any, schema: Any, value: Any) -> _Parts:
        for name in value:
            if not self._ok(schema, name):
                yield f"/{escape(name)}", None, name

    def _unevaluated_properties(self, node: Any, schema: Any, value: Any) -> _Parts:
        seen = self._seen_names(node, value)
        yield from ((f"/{escape(name)}", schema, value[name]) for name in value if name not in seen)

    def _unevaluated_items(self, node: Any, schema: Any, value: Any) -> _Parts:
        seen = self._seen_items(node, value)
        yield from ((f"/{i}", schema, item) for i, item in enumerate(value) if i not in seen)

    def _applied(self, node: Any, value: Any) -> Iterator[Any]:
        """Schemas that hold in the same place and were found to match."""
        if isinstance(node.get("$ref"), str) and (target := self._document.resolve(node, node["$ref"])) is not None:
            yield target
        for name in ("allOf", "anyOf", "oneOf"):
            if isinstance(node.get(name), list):
                yield from (item for item in node[name] if self._ok(item, value))
        if node.get("if") is not None:
            holds = self._ok(node["if"], value)
            if holds:
                yield node["if"]
            if (branch := node.get("then" if holds else "else")) is not None:
                yield branch
        if isinstance(node.get("dependentSchemas"), Mapping) and isinstance(value, Mapping):
            yield from (item for name, item in node["dependentSchemas"].items() if name in value)

    def _seen_names(self, node: Any, value: Mapping[str, Any]) -> set[str]:
        if isinstance(node, bool):
            return set()
        if node.get("additionalProperties") is not None or node.get("unevaluatedProperties") is not None:
            own = set(value) if node.get("additionalProperties") is not None else set()
        else:
            own = set()
        own |= {name for name in value if self._is_declared(node, name)}
        for item in self._applied(node, value):
            own |= self._seen_names(item, value)
            if isinstance(item, Mapping) and item.get("unevaluatedProperties") is not None:
                own |= set(value)
        return own

    def _seen_items(self, node: Any, value: list[Any]) -> set[int]:
        if isinstance(node, bool):
            return set()
        if isinstance(node.get("items"), Mapping | bool) or node.get("additionalItems") is not None:
            return set(range(len(value)))
        own: set[int] = set()
        for name in ("prefixItems", "items"):
            if isinstance(node.get(name), list):
                own |= set(range(len(node[name])))
        if node.get("contains") is not None:
            own |= {i for i, item in enumerate(value) if self._ok(node["contains"], item)}
        for item in self._applied(node, value):
            own |= self._seen_items(item, value)
            if isinstance(item, Mapping) and item.get("unevaluatedItems") is not None:
                own |= set(range(len(value)))
        return own


def _each(schemas: Sequence[Node], value: Sequence[Any]) -> _Parts:
    """Items with the schemas in their places."""
    return ((f"/{i}", schema, item) for i, (item, schema) in enumerate(zip(value, schemas, strict=False)))


def _bound(name: str) -> _Test:
    """A limit of numbers; in old drafts `exclusive…` is a flag beside it."""
    is_low = name.lower().endswith("minimum")

    def holds(checker: Checker, node: Any, argument: Any, value: Any) -> bool:
        if type_of(value) != "number" or type_of(argument) != "number":
            return True
        limit, number = decimal_of(argument), decimal_of(value)
        if number == limit:
            return not (name.startswith("exclusive") or node.get("exclusive" + name.capitalize()) is True)
        return number > limit if is_low else number < limit

    return _Test(holds)


def _length(kind: Any, is_most: bool) -> _Test:
    """A limit of characters, items or properties."""

    def holds(checker: Checker, node: Any, argument: Any, value: Any) -> bool:
        if type_of(argument) != "number":
            return True
        return bool(len(value) <= argument if is_most else len(value) >= argument)

    return _Test(holds, of=kind)


# Keywords that combine schemas in one place, and those that speak of the value by themselves.
_COMBINED: dict[str, _Test | _Sub] = {
    "$ref": _Sub(Checker._referred), "$dynamicRef": _Sub(Checker._referred),
    "allOf": _Sub(lambda checker, node, ways, value: (("", way, value) for way in ways), list),
    "anyOf": _Test(lambda checker, node, ways, value: any(checker._ok(way, value) for way in ways), list),
    "oneOf": _Test(lambda checker, node, ways, value: sum(checker._ok(way, value) for way in ways) == 1, list),
    "not": _Test(lambda checker, node, schema, value: not checker._ok(schema, value)),
    "if": _Sub(Checker._branch), "dependentSchemas": _Sub(Checker._dependent, Mapping, Mapping),
    "unevaluatedProperties": _Sub(Checker._unevaluated_properties, of=Mapping),
    "unevaluatedItems": _Sub(Checker._unevaluated_items, of=list),
}  # fmt: skip
_OWN: dict[str, _Test | _Sub] = {
    "dependentRequired": _Sub(Checker._dependent, Mapping, Mapping),
    "dependencies": _Sub(Checker._dependent, Mapping, Mapping),
    "type": _Test(lambda checker, node, names, value: any(
        is_of_type(value, name) for name in (names if isinstance(names, list) else [names]))),
    "enum": _Test(Checker._is_listed, list),
    "const": _Test(lambda checker, node, constant, value: key_of(value) == key_of(constant)),
    "minimum": _bound("minimum"), "maximum": _bound("maximum"),
    "exclusiveMinimum": _bound("exclusiveMinimum"), "exclusiveMaximum": _bound("exclusiveMaximum"),
    "multipleOf": _Test(Checker._is_multiple),
    "pattern": _Test(lambda checker, node, pattern, value: checker.is_found(pattern, value), str, str),
    "minLength": _length(str, False), "maxLength": _length(str, True),
    "minItems": _length(list, False), "maxItems": _length(list, True),
    "minProperties": _length(Mapping, False), "maxProperties": _length(Mapping, True),
    "prefixItems": _Sub(lambda checker, node, schemas, value: _each(schemas, value), list, list),
    "items": _Sub(Checker._items, of=list), "additionalItems": _Sub(Checker._more_items, of=list),
    "uniqueItems": _Test(
        lambda checker, node, is_unique, value: not is_unique or len(set(map(key_of, value))) == len(value),
        bool, list),
    "contains": _Test(Checker._contains, of=list),
    "properties": _Sub(lambda checker, node, named, value: (
        (f"/{escape(name)}", schema, value[name]) for name, schema in named.items() if name in value),
        Mapping, Mapping),
    "patternProperties": _Sub(Checker._pattern_properties, Mapping, Mapping),
    "additionalProperties": _Sub(Checker._more_properties, of=Mapping),
    "propertyNames": _Sub(Checker._names, of=Mapping),
    "required": _Test(lambda checker, node, names, value: all(name in value for name in names), list, Mapping),
}  # fmt: skip
