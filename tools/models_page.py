#!/usr/bin/env python3
"""Writes the tables of docs/models.md from the catalog; tests/test_models_page.py compares, so they cannot drift."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- from catalog.toml: python3 tools/models_page.py -->", "<!-- end -->"


def tables() -> str:
    """Models of package indexes, then those of hubs."""
    from kamado.library.catalog import CatalogEntry, shipped
    from kamado.plan.budget import format_size

    def lines(entries: Iterable[CatalogEntry]) -> Iterable[str]:
        yield "| Name | What | Size | Licence | Languages | Good for | Context | Digest |"
        yield "|---|---|--:|---|---|---|--:|---|"
        for entry in entries:
            also = f" ({', '.join(f'`{name}`' for name in entry.aliases)})" if entry.aliases else ""
            size = format_size(entry.nbytes) if entry.nbytes else entry.size or "?"
            if entry.hub is None:
                digest = "pinned"
            else:
                digest = "known" if entry.hub.sha256 else "first pull"
            cells = (
                f"`{entry.name}`{also}", entry.description, size, entry.license or "?", entry.languages or "?",
                ", ".join(entry.good_for), f"{entry.context:,}" if entry.context else "?", digest,
            )  # fmt: skip
            yield "| " + " | ".join(cells) + " |"

    ours = shipped().entries.values()
    wheels = [entry for entry in ours if entry.hub is None]
    hub = [entry for entry in ours if entry.hub is not None]
    return "\n".join(
        [
            f"From a package index ({len(wheels)}):", "", *lines(wheels), "",
            f"From a hub ({len(hub)}):", "", *lines(hub),
        ]
    )  # fmt: skip


def render(text: str) -> str:
    """The page with its tables made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    made = render(text)
    if "--check" in sys.argv[1:]:
        if made != text:
            print("docs/models.md is not what the catalog says: run python3 tools/models_page.py")
        return int(made != text)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
