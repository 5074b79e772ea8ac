"""JSON values: when two are equal, and whether one matches a schema, keyword by keyword.

The check is what finished answers are held to where a keyword was left open while they were written. Formats are
remarks here, as in JSON Schema. Time is bounded: a check that takes too many steps raises CheckError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

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
                if node[name] is None and name != "const":
                    continue
                check = _IN_PLACE.get(name) if not shallow else None
                check = check or _OWN.get(name)
                if check is None:
                    continue
                for more, where in check(self, node, node[name], value):
                    yield (f"{at}{more}", where or f"{place}/{escape(name)}")
        finally:
            self._depth -= 1

    # --- in place -----------------------------------------------------------------------------------------------------

    def _ref(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        target = self._document.resolve(node, argument) if isinstance(argument, str) else None
        if target is None:
            raise CheckError(f"the schema refers to {str(argument)[:80]!r}, which is not in it")
        yield from self._check(target, value, "")

    def _all_of(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        for item in argument if isinstance(argument, list) else ():
            yield from self._check(item, value, "")

    def _any_of(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(argument, list) and not any(self._ok(item, value) for item in argument):
            yield "", ""

    def _one_of(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(argument, list) and sum(self._ok(item, value) for item in argument) != 1:
            yield "", ""

    def _not(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if self._ok(argument, value):
            yield "", ""

    def _if_then(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        branch = node.get("then" if self._ok(argument, value) else "else")
        if branch is not None:
            yield from self._check(branch, value, "")

    def _dependent_schemas(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping) and isinstance(argument, Mapping):
            for name, item in argument.items():
                if name not in value:
                    continue
                if isinstance(item, list):
                    if any(other not in value for other in item):
                        yield "", ""
                else:
                    yield from self._check(item, value, "")

    # --- of every type ------------------------------------------------------------------------------------------------

    def _type(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if not any(is_of_type(value, name) for name in (argument if isinstance(argument, list) else [argument])):
            yield "", ""

    def _enum(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if not isinstance(argument, list):
            return
        if id(argument) not in self._enums:
            self._enums[id(argument)] = (argument, frozenset(map(key_of, argument)))
        if key_of(value) not in self._enums[id(argument)][1]:
            yield "", ""

    def _const(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if key_of(value) != key_of(argument):
            yield "", ""

    # --- numbers and texts --------------------------------------------------------------------------------------------

    def _bound(self, node: Any, argument: Any, value: Any, name: str) -> Iterator[tuple[str, str]]:
        if type_of(value) != "number" or type_of(argument) != "number":
            return
        limit, number = decimal_of(argument), decimal_of(value)
        is_open = name.startswith("exclusive") or node.get("exclusive" + name.capitalize()) is True
        below = number < limit or (is_open and number == limit)
        above = number > limit or (is_open and number == limit)
        if below if name.lower().endswith("minimum") else above:
            yield "", ""

    def _multiple(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if type_of(value) == type_of(argument) == "number" and argument > 0:
            quotient = decimal_of(value) / decimal_of(argument)
            if quotient != quotient.to_integral_value():
                yield "", ""

    def _length(self, node: Any, argument: Any, value: Any, kind: type, is_most: bool) -> Iterator[tuple[str, str]]:
        if not isinstance(value, kind) or type_of(argument) != "number":
            return
        if len(value) > argument if is_most else len(value) < argument:  # type: ignore[arg-type]
            yield "", ""

    def _pattern(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, str) and isinstance(argument, str) and not self.is_found(argument, value):
            yield "", ""

    def is_found(self, pattern: str, text: str) -> bool:
        """Whether a pattern is found in a text. Raises CheckError."""
        self.num_steps += len(text)
        try:
            return trees.matches(language(pattern), text)
        except PatternError as error:
            raise CheckError(f"the pattern {pattern[:60]!r} cannot be checked: {error}") from None

    # --- arrays and objects -------------------------------------------------------------------------------------------

    def _prefix(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, list) and isinstance(argument, list):
            for i, (item, own) in enumerate(zip(value, argument, strict=False)):
                yield from self._check(own, item, f"/{i}")

    def _items(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(argument, list):
            yield from self._prefix(node, argument, value)
        elif isinstance(value, list):
            start = len(node["prefixItems"]) if isinstance(node.get("prefixItems"), list) else 0
            for i, item in enumerate(value[start:], start):
                yield from self._check(argument, item, f"/{i}")

    def _more_items(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, list) and isinstance(node.get("items"), list):
            for i, item in enumerate(value[len(node["items"]) :], len(node["items"])):
                yield from self._check(argument, item, f"/{i}")

    def _unique(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if argument is True and isinstance(value, list) and len(set(map(key_of, value))) < len(value):
            yield "", ""

    def _contains(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, list):
            count = sum(self._ok(argument, item) for item in value)
            least, most = node.get("minContains"), node.get("maxContains")
            if count < (1 if least is None else least) or (most is not None and count > most):
                yield "", ""

    def _properties(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping) and isinstance(argument, Mapping):
            for name, item in argument.items():
                if name in value:
                    yield from self._check(item, value[name], f"/{escape(name)}")

    def _pattern_properties(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping) and isinstance(argument, Mapping):
            for pattern, item in argument.items():
                for name in value:
                    if self.is_found(pattern, name):
                        yield from self._check(item, value[name], f"/{escape(name)}")

    def _more_properties(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping):
            for name in value:
                if not self._is_declared(node, name):
                    yield from self._check(argument, value[name], f"/{escape(name)}")

    def _is_declared(self, node: Any, name: str) -> bool:
        patterns = node.get("patternProperties")
        return (isinstance(node.get("properties"), Mapping) and name in node["properties"]) or (
            isinstance(patterns, Mapping) and any(self.is_found(pattern, name) for pattern in patterns)
        )

    def _names(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        for name in value if isinstance(value, Mapping) else ():
            if not self._ok(argument, name):
                yield f"/{escape(name)}", ""

    def _required(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping) and isinstance(argument, list) and any(name not in value for name in argument):
            yield "", ""

    def _unevaluated_properties(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping):
            seen = self._seen_names(node, value)
            for name in value:
                if name not in seen:
                    yield from self._check(argument, value[name], f"/{escape(name)}")

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

    def _unevaluated_items(self, node: Any, argument: Any, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, list):
            seen = self._seen_items(node, value)
            for i, item in enumerate(value):
                if i not in seen:
                    yield from self._check(argument, item, f"/{i}")

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


def _bound(name: str) -> Any:
    return lambda self, node, argument, value: self._bound(node, argument, value, name)


def _length(kind: Any, is_most: bool) -> Any:
    return lambda self, node, argument, value: self._length(node, argument, value, kind, is_most)


_IN_PLACE: dict[str, Any] = {
    "$ref": Checker._ref, "$dynamicRef": Checker._ref, "allOf": Checker._all_of, "anyOf": Checker._any_of,
    "oneOf": Checker._one_of, "not": Checker._not, "if": Checker._if_then,
    "dependentSchemas": Checker._dependent_schemas,
    "unevaluatedProperties": Checker._unevaluated_properties, "unevaluatedItems": Checker._unevaluated_items,
}  # fmt: skip
_OWN: dict[str, Any] = {
    "dependentRequired": Checker._dependent_schemas, "dependencies": Checker._dependent_schemas,
    "type": Checker._type, "enum": Checker._enum, "const": Checker._const,
    "minimum": _bound("minimum"), "maximum": _bound("maximum"),
    "exclusiveMinimum": _bound("exclusiveMinimum"), "exclusiveMaximum": _bound("exclusiveMaximum"),
    "multipleOf": Checker._multiple, "pattern": Checker._pattern,
    "minLength": _length(str, False), "maxLength": _length(str, True),
    "minItems": _length(list, False), "maxItems": _length(list, True),
    "minProperties": _length(Mapping, False), "maxProperties": _length(Mapping, True),
    "prefixItems": Checker._prefix, "items": Checker._items, "additionalItems": Checker._more_items,
    "uniqueItems": Checker._unique, "contains": Checker._contains, "properties": Checker._properties,
    "patternProperties": Checker._pattern_properties, "additionalProperties": Checker._more_properties,
    "propertyNames": Checker._names, "required": Checker._required,
}  # fmt: skip
