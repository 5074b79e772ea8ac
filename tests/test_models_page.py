"""docs/models.md: its tables are the catalog's."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))


def test_the_tables_are_what_the_catalog_says() -> None:
    import models_page

    text = models_page.PAGE.read_text(encoding="utf-8")
    assert models_page.render(text) == text, "run python3 tools/models_page.py"
    assert "`smollm2:135m`" in models_page.tables()
