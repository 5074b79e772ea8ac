"""Instances of schemas, drawn by hypothesis-jsonschema, in the form in which an answer has them."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

import hypothesis_jsonschema._from_schema as drawing
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.internal.conjecture import utils

from kamado.engine.forms.json_schema import Checker
from kamado.engine.forms.json_schema.document import Document, plain


class _Many:
    """hypothesis' `many` as hypothesis-jsonschema 0.23 knows it, which newer ones let be used in a with-block only."""

    def __init__(self, *args: Any, **more: Any) -> None:
        self._many = utils.many(*args, **more)
        self._many.__enter__()
        self._items = iter(self._many)

    def more(self) -> bool:
        """Whether another element is wanted."""
        for _ in self._items:
            return True
        self._many.__exit__(None, None, None)
        return False

    def reject(self, why: str | None = None) -> None:
        """The last one does not count."""
        self._many.reject(why)


class _Utils:
    many = _Many if not hasattr(utils.many, "more") else utils.many

    def __getattr__(self, name: str) -> Any:
        return getattr(utils, name)


def draw(schema: Any, count: int, number: int) -> list[Any]:
    """Up to `count` instances; fewer, or none, of schemas that hypothesis-jsonschema cannot draw from."""
    found: list[Any] = []
    for name in ("cu", "utils"):
        if hasattr(drawing, name):
            setattr(drawing, name, _Utils())
    if hasattr(drawing, "many"):
        drawing.many = _Many

    @seed(number)
    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(drawing.from_schema(schema))
    def take(value: Any) -> None:
        found.append(value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            take()
        except Exception:
            return found[:count]
    return found[:count]


def ordered(schema: Any, value: Any) -> Any:
    """The instance with declared keys in their order, and without others where the schema does not speak of them."""
    root = plain(schema)
    return _ordered(Document(root), [root], value, 0)


def _in_place(document: Document, schemas: list[Any], value: Any) -> list[Mapping[str, Any]]:
    """The schemas that speak of a value: of alternatives those that it matches."""
    checker = Checker(document)
    out: list[Mapping[str, Any]] = []
    queue = [schema for schema in schemas if isinstance(schema, Mapping)]
    while queue:
        node = queue.pop(0)
        if any(node is other for other in out):
            continue
        out.append(node)
        more: list[Any] = []
        if isinstance(node.get("$ref"), str):
            more.append(document.resolve(node, node["$ref"]))
        more += node.get("allOf") or []
        for word in ("anyOf", "oneOf"):
            more += [item for item in node.get(word) or [] if checker.is_valid(item, value)]
        more += [node.get(word) for word in ("if", "then", "else")]
        more += list((node.get("dependentSchemas") or {}).values())
        queue += [schema for schema in more if isinstance(schema, Mapping)]
    return out


def _ordered(document: Document, schemas: list[Any], value: Any, depth: int) -> Any:
    if depth > 30:
        return value
    nodes = _in_place(document, schemas, value)
    if isinstance(value, list):
        out = []
        for i, item in enumerate(value):
            own: list[Any] = []
            for node in nodes:
                prefix = node.get("prefixItems") or (node["items"] if isinstance(node.get("items"), list) else [])
                own.append(prefix[i] if i < len(prefix) else node.get("items"))
                own.append(node.get("contains"))
            out.append(_ordered(document, own, item, depth + 1))
        return out
    if not isinstance(value, dict):
        return value
    names = dict.fromkeys(name for node in nodes for name in node.get("properties") or {})
    required = dict.fromkeys(name for node in nodes for name in node.get("required") or [])
    words = ("additionalProperties", "unevaluatedProperties", "minProperties")
    is_open = not names or any(word in node for node in nodes for word in words)
    keys = [name for name in {**names, **required} if name in value]
    patterns = [pattern for node in nodes for pattern in node.get("patternProperties") or {}]
    is_matching = lambda name: any(re.search(pattern, name) for pattern in patterns)  # noqa: E731
    keys += [name for name in value if name not in keys and (is_open or is_matching(name))]
    out_object = {}
    for name in keys:
        own = []
        for node in nodes:
            named = (node.get("properties") or {}).get(name)
            matching = [s for pattern, s in (node.get("patternProperties") or {}).items() if re.search(pattern, name)]
            own += [named, *matching] if named is not None or matching else [node.get("additionalProperties")]
        out_object[name] = _ordered(document, own, value[name], depth + 1)
    return out_object


def past_bounds(text: str) -> str:
    """Why an answer has no such number, "" when it has none: the bounds that keep numbers from going on for ever."""
    outside = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
    for number in re.findall(r"-?\d[\d.eE+-]*", outside):
        if re.fullmatch(r"-?\d+", number) and not -(1 << 63) <= int(number) < 1 << 63:
            return "a whole number past 64 bits"
        if re.search(r"\.\d{18,}", number):
            return "a fraction of more than 17 digits"
        if number.endswith("308"):
            return "a number above 1.7e308"
    return ""


def has_other_digits(text: str) -> bool:
    """Whether it has letters or digits that Python's \\d and \\w take and ECMAScript's do not."""
    return any(not c.isascii() and re.match(r"\w", c) for c in text)


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e18:
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return {key: _whole(item) for key, item in value.items()} if isinstance(value, dict) else value


def compact(value: Any) -> str | None:
    """Compact JSON, whole numbers without a fraction of 0, as JavaScript writes them; None for half a character."""
    text = json.dumps(_whole(value), separators=(",", ":"), ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return text
