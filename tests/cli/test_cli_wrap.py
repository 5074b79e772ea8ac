"""Answers on a terminal: wrapped by cells, marked up, and never another text than the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado.cli.cells import fitting, padded, text_cells
from kamado.cli.markdown import Markdown, Page
from kamado.cli.wrap import Part, Style, Wrapper

FAMILY = "👨‍👩‍👧‍👦"
STYLE = re.compile(r"\x1b\[\d+m")


def parts_of(pieces: Sequence[str], columns: Callable[[], int]) -> list[Part]:
    """What a terminal of so many columns is given."""
    wrapper = Wrapper(columns)
    markdown = Markdown(wrapper)
    for piece in pieces:
        markdown.push(piece)
    markdown.finish()
    return wrapper.taken()


def shown(text: str, columns: int, *, has_styles: bool = False) -> str:
    """What is written for a text that comes letter by letter."""
    page = Page(lambda: columns, has_styles=has_styles)
    return "".join(map(page.push, text)) + page.finish()


def styles(text: str) -> dict[str, Style]:
    """The style of each character that is there once."""
    return {part.source: part.style for part in parts_of([text], lambda: 0)}


# --- cells ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("abc", 3), ("", 0), ("日本語", 6), ("ｱｲｳ", 3), ("é", 1), ("e\u0301", 1), ("か\u3099", 2), ("각", 2),
        ("\u1100\u1161\u11a8", 2), (FAMILY, 2), ("👍🏽", 2), ("🇯🇵", 2), ("🇯🇵🇩🇪", 4), ("❤", 1), ("❤️", 2), ("1️⃣", 2),
        ("\u200b\u00ad", 0), ("Ω±", 2), ("，", 2), ("☝🏻", 2), ("🏽", 2),
    ],
)  # fmt: skip
def test_cells(text: str, cells: int) -> None:
    assert text_cells(text) == cells
    assert text_cells(padded(text, 9)) == 9
    assert fitting(text, cells) == text


def test_what_fits_is_cut_between_characters() -> None:
    assert fitting("日本語", 5) == "日本"
    assert fitting(f"a{FAMILY}b", 3) == f"a{FAMILY}"
    assert fitting(f"a{FAMILY}b", 2) == "a"


# --- nothing is lost --------------------------------------------------------------------------------------------------

PIECES = st.lists(
    st.one_of(
        st.text("ab *_`#->|~1.\\\n\t 、。」（「日本ー語", max_size=12),
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8),
        st.sampled_from(
            [FAMILY, "🇯🇵", "e\u0301", "```py\n", "\n```\n", "**", "word " * 9, "https://" + "x" * 50, "- ", "\u3000"]
        ),
    ),
    max_size=30,
)


@given(pieces=PIECES, widths=st.lists(st.integers(0, 60), min_size=1, max_size=20))
def test_the_text_is_what_was_written(pieces: list[str], widths: list[int]) -> None:
    """Whatever comes in whatever pieces, on a terminal whose width changes all the time."""
    turn = iter(range(10**9))
    parts = parts_of(pieces, lambda: widths[next(turn) % len(widths)])
    assert "".join(part.source for part in parts) == "".join(pieces)
    for part in parts:
        is_wrap = re.fullmatch(r"\n *", part.shown) is not None and part.source != "\n"
        assert part.shown == part.source or (part.source.strip(" \t\u3000") == "" and (is_wrap or not part.shown))


@given(pieces=PIECES, columns=st.integers(0, 60))
def test_how_it_is_cut_into_pieces_changes_nothing(pieces: list[str], columns: int) -> None:
    assert parts_of(pieces, lambda: columns) == parts_of(list("".join(pieces)), lambda: columns)


@given(pieces=PIECES, columns=st.integers(9, 60))
def test_styles_end_and_change_no_letter(pieces: list[str], columns: int) -> None:
    plain = shown("".join(pieces), columns)
    painted = shown("".join(pieces), columns, has_styles=True)
    assert STYLE.sub("", painted) == plain
    assert "\x1b" not in painted or painted.rindex("\x1b[0m") == painted.rindex("\x1b")


@given(text=st.text("ab 日本語", max_size=200), columns=st.integers(9, 60))
def test_no_row_is_too_long(text: str, columns: int) -> None:
    """But for a word that is longer than a row."""
    for row in shown(text, columns).split("\n"):
        words = re.split("[ 日本語]", row)
        assert text_cells(row.rstrip()) < columns or max(map(len, words)) >= columns


# --- where rows end ---------------------------------------------------------------------------------------------------


def test_words_are_not_divided() -> None:
    assert shown("one two three four five", 14) == "one two three\nfour five"
    assert shown("a  b " * 3, 10) == "a  b a  b\na  b "
    assert shown("x" * 30 + " tail", 20) == "x" * 30 + " tail"


def test_a_word_is_shown_as_it_comes_while_there_is_room() -> None:
    page = Page(lambda: 80, has_styles=False)
    assert [page.push(char) for char in "Hello"] == list("Hello")
    page.push(" " + "x" * 20 + " " + "y" * 25)
    assert page.push(" wo") == ""
    assert page.push("rd") == ""
    assert page.push(" ") == " word"


def test_japanese() -> None:
    assert shown("吾輩は猫である名前はまだ無い", 13) == "吾輩は猫であ\nる名前はまだ\n無い"
    # These may not begin a row, or end one.
    assert shown("吾輩は猫です。名前", 13) == "吾輩は猫で\nす。名前"
    assert shown("吾輩は猫「名前」", 11) == "吾輩は猫\n「名前」"
    assert shown("ニャーニャーニャー", 9) == "ニャー\nニャー\nニャー"
    assert shown("吾輩はCatである", 9) == "吾輩は\nCatであ\nる"
    assert shown("吾輩は**猫**である", 11) == "吾輩は\n**猫**であ\nる"
    assert shown("한국어 단어는 공백에서", 12) == "한국어\n단어는\n공백에서"


def test_a_family_is_never_divided() -> None:
    assert shown(FAMILY * 6, 10) == f"{FAMILY * 4}\n{FAMILY * 2}"
    assert shown("🇯🇵" * 6, 10) == f"{'🇯🇵' * 4}\n{'🇯🇵' * 2}"


def test_the_width_is_asked_for_again() -> None:
    width = [40]
    page = Page(lambda: width[0], has_styles=False)
    first = page.push("word " * 10)
    width[0] = 20
    rows = (first + page.push("word " * 10) + page.finish()).split("\n")
    assert len(rows[0]) > 20
    assert all(len(row) < 20 for row in rows[2:])


def test_a_flood_is_not_held() -> None:
    page = Page(lambda: 40, has_styles=False)
    page.push("word " * 6)
    assert len(page.push("\u0301" * 5000)) > 3000
    assert len(Page(lambda: 40, has_styles=False).push(" " * 5000 + "x")) > 4000
    for char in "*`_#~-0":
        assert len(shown(char * 5000, 40)) >= 5000


# --- Markdown ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**b**", Style.BOLD), ("*b*", Style.ITALIC), ("_b_", Style.ITALIC), ("__b__", Style.BOLD), ("`b`", Style.CODE),
        ("***b***", Style.BOLD | Style.ITALIC), ("# b", Style.BOLD), ("a ** b", Style.PLAIN), ("a * b", Style.PLAIN),
        ("a_b_c", Style.PLAIN), ("2**b**3", Style.PLAIN), ("a*b*", Style.PLAIN), (r"\*b*", Style.PLAIN),
        ("これは**b**です", Style.BOLD), ("これは*b*です", Style.ITALIC), ("#b", Style.PLAIN),
        ("####### b", Style.PLAIN),
        ("``b`c``", Style.CODE), ("`*b*`", Style.CODE), ("```\nb\n```", Style.CODE), ("~~~\nb", Style.CODE),
        ("```x``` b", Style.PLAIN), ("```\nx\n```\nb", Style.PLAIN), ("**x**b", Style.PLAIN), ("**x\n\nb", Style.PLAIN),
        ("**x\nb", Style.BOLD), ("**x\n- b", Style.PLAIN), ("# x\nb", Style.PLAIN), ("`x\n\nb", Style.PLAIN),
        ("**注意。**b", Style.PLAIN), ("````\n```\nb", Style.CODE), ("```\n  ```\nb", Style.PLAIN),
        ("- **b**", Style.BOLD),
        ("1. *b*", Style.ITALIC), ("> **b**", Style.BOLD), ("| **b** |", Style.PLAIN), ("***\nb", Style.PLAIN),
    ],
)  # fmt: skip
def test_styles(text: str, expected: Style) -> None:
    assert styles(text)["b"] == expected


def test_marks_stay_and_are_dim() -> None:
    assert shown("a **b** c", 40, has_styles=True) == "a \x1b[2m**\x1b[0m\x1b[1mb\x1b[0m\x1b[2m** \x1b[0mc"


def test_later_rows_of_an_item_stand_below_its_first_word() -> None:
    assert shown("- one two three", 10) == "- one two\n  three"
    assert shown("  10. one two three", 15) == "  10. one two\n      three"
    assert shown("> one two three", 11) == "> one two\n  three"
    assert shown("- " + "x" * 20, 12) == "- " + "x" * 20, "a long word gains nothing below"
    assert shown("- 日本語の文章", 9) == "- 日本語\n  の文章"


def test_code_and_tables_are_never_wrapped() -> None:
    line = "a long line of code that is longer than a row"
    for text in (f"```\n{line}\n```\n", f"| {line} |\n", f"  ~~~\n  {line}\n\n  {line}\n  ~~~\n"):
        assert shown(text, 20) == text
    assert "\n" in shown(line, 20)
    assert shown(f"```\n{line}\n```\n{line}", 20).count("\n") > 4


def test_a_width_that_nobody_knows() -> None:
    text = "word " * 100
    assert shown(text, 0) == text
    assert shown(text, 5) == text
