"""The README's picture is of the page as it is: it names the sources it was taken of."""

from __future__ import annotations

import re
import sys

import pytest
from pages import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import page_picture


def test_the_picture_is_of_the_page_as_it_is() -> None:
    png = page_picture.PICTURE.read_bytes()
    assert page_picture.text_of(png, page_picture.KEYWORD) == page_picture.sources_digest(), (
        "the page has changed since the picture was taken: run tools/page_picture.py, look at docs/page.png, commit it"
    )
    assert len(png) < 300_000


@pytest.mark.parametrize("page", ["README.md", "README.ja.md"])
def test_both_readmes_show_it_with_words_for_those_who_cannot_see_it(page: str) -> None:
    found = re.findall(r"!\[([^\]]+)\]\(docs/page\.png\)", (ROOT / page).read_text(encoding="utf-8"))
    assert len(found) == 1
    assert "kamado serve" in found[0]


def test_other_sources_and_damage_are_found() -> None:
    png = page_picture.PICTURE.read_bytes()
    assert page_picture.text_of(page_picture.with_text(png, b"else", "abc"), b"else") == "abc"
    assert page_picture.text_of(png, b"else") is None
    with pytest.raises(ValueError, match="damaged"):
        page_picture.chunks(png[:-8] + b"12345678")
    with pytest.raises(ValueError, match="no PNG"):
        page_picture.chunks(b"GIF89a")
