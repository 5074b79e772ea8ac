"""Bounds of JSON Schemas that clients send, checked before any compiler sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .faults import RequestError
from .http import to_json

MAX_SCHEMA_BYTES = 256 << 10
_MAX_NODES = 20_000


def check_schema(schema: Mapping[str, Any], param: str, max_bytes: int = MAX_SCHEMA_BYTES) -> None:
    """Raises RequestError for a schema that is too large or refers to something outside itself."""
    if not schema:
        return
    num_bytes = len(to_json(schema))
    if num_bytes > max_bytes:
        raise RequestError(f"{param} has {num_bytes} bytes, more than the {max_bytes} that are taken", param=param)
    num_nodes = 0
    stack: list[Any] = [schema]
    while stack:
        node = stack.pop()
        num_nodes += 1
        if num_nodes > _MAX_NODES:
            raise RequestError(f"{param} has more than {_MAX_NODES} parts", param=param)
        if isinstance(node, Mapping):
            reference = node.get("$ref")
            if isinstance(reference, str) and not reference.startswith("#"):
                raise RequestError(
                    f"{param} refers to {reference[:80]!r}: nothing is fetched for a schema", param=param
                )
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
