"""A schema as a document: bounded, in plain data, and with its references known.

What is a schema and what is data is decided by where it stands: the values of `const`, `enum`, `default` and
`examples` are never looked into, and a property may be called like any keyword.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias
from urllib.parse import unquote, urldefrag, urljoin

from ....errors import ConstraintError

MAX_CHARACTERS = 1 << 18
MAX_DEPTH = 48
MAX_VALUES = 20_000
MAX_PROPERTIES = 512  # of one object
MAX_ALL_PROPERTIES = 4096
MAX_INTEGER_BITS = 1000  # as many as a double's range has

Node: TypeAlias = Mapping[str, Any] | bool

_ONE = (
    "additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not",
    "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_MANY = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_NAMED = ("$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties")


def escape(key: str) -> str:
    """A key as a JSON pointer has it."""
    return key.replace("~", "~0").replace("/", "~1")


def schemas_in(node: Mapping[str, Any]) -> Iterator[tuple[str, Node]]:
    """The schemas that stand directly in one, each with its pointer from there."""
    for name in _ONE:
        if isinstance(node.get(name), Mapping | bool):
            yield f"/{name}", node[name]
    for name in _MANY:
        if isinstance(items := node.get(name), list):
            yield from ((f"/{name}/{i}", item) for i, item in enumerate(items) if isinstance(item, Mapping | bool))
    for name in _NAMED:
        if isinstance(named := node.get(name), Mapping):
            yield from (
                (f"/{name}/{escape(key)}", item) for key, item in named.items() if isinstance(item, Mapping | bool)
            )


class Document:
    """A schema and the places of everything in it."""

    def __init__(self, root: Node) -> None:
        """`root`: as `plain` made it."""
        self.root = root
        self._pointers: dict[int, str] = {}
        self._bases: dict[int, str] = {}  # of schemas: the name of the resource that they belong to
        self._resources: dict[str, Node] = {"": root}
        self._anchors: dict[tuple[str, str], Node] = {}
        self._walk(root, "", "")
        self.is_old = isinstance(root, Mapping) and any(f"draft-0{n}" in str(root.get("$schema")) for n in (3, 4, 6, 7))

    def _walk(self, root: Node, pointer: str, base: str) -> None:
        stack: list[tuple[Node, str, str]] = [(root, pointer, base)]
        while stack:
            node, pointer, base = stack.pop()
            if not isinstance(node, Mapping) or id(node) in self._pointers:
                continue
            name = node.get("$id", node.get("id") if isinstance(node.get("id"), str) and "$schema" in node else None)
            if isinstance(name, str) and not name.startswith("#"):
                base = urldefrag(urljoin(base, name))[0]
                self._resources.setdefault(base, node)
            elif isinstance(name, str):
                self._anchors[base, name[1:]] = node
            for key in ("$anchor", "$dynamicAnchor"):
                if isinstance(node.get(key), str):
                    self._anchors.setdefault((base, node[key]), node)
            self._pointers[id(node)] = pointer
            self._bases[id(node)] = base
            stack += [(item, pointer + path, base) for path, item in schemas_in(node)]

    def pointer(self, node: Node) -> str:
        """Where a schema stands, "" for the whole and for what stands nowhere."""
        return self._pointers.get(id(node), "")

    def resolve(self, node: Mapping[str, Any], reference: str) -> Node | None:
        """The schema that a reference in `node` names; None when it is not here."""
        base = self._bases.get(id(node), "")
        name, fragment = urldefrag(urljoin(base, reference) if not reference.startswith("#") else base + reference)
        found: Any = self._resources.get(name)
        if found is None:
            return None
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            return self._anchors.get((name, fragment))
        for part in fragment.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdigit() and int(key) < len(found):
                found = found[int(key)]
            else:
                return None
        if isinstance(found, Mapping) and id(found) not in self._pointers:
            self._walk(found, fragment, name)
        return found if isinstance(found, Mapping | bool) else None


class _Counts:
    def __init__(self) -> None:
        self.values = 0
        self.properties = 0


def plain(schema: object) -> Any:
    """A copy in plain types. Raises ConstraintError when it is no schema, or larger or deeper than the bounds."""
    if not isinstance(schema, Mapping | bool):
        raise ConstraintError(f"a schema must be a JSON object, not {type(schema).__name__}")
    copy = _copy(schema, _Counts(), 0)
    try:
        text = json.dumps(copy, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        text.encode()
    except UnicodeEncodeError:
        raise ConstraintError("the schema has half a character (a lone surrogate)") from None
    if len(text) > MAX_CHARACTERS:
        raise ConstraintError(f"the schema has {len(text)} characters: {MAX_CHARACTERS} are allowed")
    return copy


def _copy(value: object, counts: _Counts, depth: int) -> Any:
    counts.values += 1
    if counts.values > MAX_VALUES:
        raise ConstraintError(f"the schema has more than {MAX_VALUES} values")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if value.bit_length() > MAX_INTEGER_BITS:
            raise ConstraintError(f"the schema has a whole number of more than {MAX_INTEGER_BITS} bits")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConstraintError("the schema has a number that is not finite")
        return value
    if depth >= MAX_DEPTH:
        raise ConstraintError(f"the schema is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        _count_properties(value, counts)
        for key in value:
            if not isinstance(key, str):
                raise ConstraintError(f"the schema has a key of type {type(key).__name__}, not text")
        return {key: _copy(item, counts, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item, counts, depth + 1) for item in value]
    raise ConstraintError(f"the schema has a {type(value).__name__}, which is no JSON")


def _count_properties(value: Mapping[Any, Any], counts: _Counts) -> None:
    properties = value.get("properties")
    if not isinstance(properties, Mapping):
        return
    counts.properties += len(properties)
    if len(properties) > MAX_PROPERTIES:
        raise ConstraintError(f"an object of the schema has {len(properties)} properties: {MAX_PROPERTIES} are allowed")
    if counts.properties > MAX_ALL_PROPERTIES:
        raise ConstraintError(f"the schema has more than {MAX_ALL_PROPERTIES} properties")
