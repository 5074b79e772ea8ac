"""Lists in pages, by a limit and the id of an item before or after the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..faults import RequestError

_DEFAULT_LIMIT = "20"


def page_of(
    items: Sequence[Mapping[str, Any]],
    query: Mapping[str, str],
    *,
    most: int,
    after: str = "after",
    before: str | None = None,
) -> dict[str, Any]:
    """A page of items that each have an `id`. `after` and `before` are the names of those parameters. Raises
    RequestError naming a parameter that is wrong."""
    text = query.get("limit", _DEFAULT_LIMIT)
    RequestError.when(
        not (text.isascii() and text.isdecimal() and len(text) <= 9 and 1 <= int(text) <= most),
        f"limit must be 1 to {most}",
        param="limit",
    )
    limit = int(text)
    RequestError.when(after in query and before in query, f"{after} and {before} exclude each other", param=before)
    for name in (after, before):
        if name is not None and name in query:
            at = next((i for i, item in enumerate(items) if item["id"] == query[name]), None)
            if at is None:
                raise RequestError(f"{name}: there is nothing with this id", param=name)
            items = items[at + 1 :] if name == after else items[:at]
    shown = items[-limit:] if before in query else items[:limit]
    return {
        "data": list(shown),
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(items) > len(shown),
    }
