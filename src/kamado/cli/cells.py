"""How many cells of a terminal a text takes: two for East Asian wide characters and emoji, none for what joins the one
before.

What is one character to a reader may be several code points: a letter with marks, two letters that make a flag, people
joined to a family by U+200D. The last takes two cells where the terminal knows it; where it does not, the terminal
shows its parts, and a line may be longer than we think: it is the terminal that wraps it then, and nothing is lost.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

TAB_CELLS = 8
JOINER = "\u200d"
EMOJI_STYLE = "\ufe0f"


@lru_cache(maxsize=4096)
def char_cells(char: str) -> int:
    """Cells of one code point that stands alone: 0, 1 or 2."""
    code = ord(char)
    if code < 0x300:
        return 0 if code == 0xAD else 1
    if 0x1160 <= code < 0x1200 or 0xD7B0 <= code < 0xD800:  # vowels and ends of Hangul syllables
        return 0
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


class Cells:
    """Counts cells of characters that come one by one; `push` says what each adds to the line, and `joined` whether it
    belongs to the character before it."""

    def __init__(self) -> None:
        self.joined = False
        self._last = ""  # the code point before
        self._is_half_flag = False
        self._cells = 0  # of the character so far

    def push(self, char: str) -> int:
        """The cells that `char` adds."""
        last, self._last = self._last, char
        is_flag_letter = "\U0001f1e6" <= char <= "\U0001f1ff"
        self.joined = bool(last) and (
            last == JOINER or char_cells(char) == 0 or _is_skin(char, last) or (is_flag_letter and self._is_half_flag)
        )
        self._is_half_flag = is_flag_letter and not (self.joined and self._is_half_flag)
        if not self.joined:
            self._cells = char_cells(char)
            return self._cells
        is_widened = self._cells == 1 and (char == EMOJI_STYLE or _is_skin(char, last))
        added = 1 if is_widened or (is_flag_letter and last != JOINER) else 0
        self._cells += added
        return added


def text_cells(text: str) -> int:
    """Cells of a text without line ends; a tab counts as one."""
    if text.isascii():
        return len(text)
    cells = Cells()
    return sum(map(cells.push, text))


def fitting(text: str, cells: int) -> str:
    """As much of the beginning of `text` as fits into so many cells."""
    if text_cells(text) <= cells:
        return text
    counter, used = Cells(), 0
    for i, char in enumerate(text):
        used += counter.push(char)
        if used > cells:
            return text[:i]
    return text


def padded(text: str, cells: int, *, right: bool = False) -> str:
    """`text` with blanks up to so many cells; `right`: they stand before it."""
    blanks = " " * max(0, cells - text_cells(text))
    return blanks + text if right else text + blanks


def _is_skin(char: str, last: str) -> bool:
    """Whether `char` colours the emoji before it."""
    return "\U0001f3fb" <= char <= "\U0001f3ff" and (char_cells(last) == 2 or last == EMOJI_STYLE or last == "\u261d")
