"""What is said of the schemas of a request: the value of the header `x-kamado-schema`; see protocols/schemas.py."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from ... import CompiledSchema

_MAX_NAMED = 20
_SAFE = "/~!$&'()*+:@-._"


def schema_header(schemas: Mapping[str, CompiledSchema]) -> str:
    """The header's value for the schemas of a request, by tool, "" for the answer's form; "" when there is none."""
    if not schemas:
        return ""
    items = ["declared-keys"] if any(schema.is_narrowed for schema in schemas.values()) else []
    for word in ("open", "remark"):
        places = [
            f"{word}={quote(name or 'answer', safe=_SAFE)}#{quote(place, safe=_SAFE)}"
            for name, schema in schemas.items()
            for place in ([one.place for one in schema.open] if word == "open" else schema.remarks)
        ]
        items += places[:_MAX_NAMED] + ([f"{word}-more={len(places) - _MAX_NAMED}"] if len(places) > _MAX_NAMED else [])
    return ", ".join(items or ["whole"])
