"""Text that comes piece by piece, wrapped between words for a terminal of any width, nothing ever taken back.

A word is shown letter by letter where it is sure to fit, and as a whole where the row nears its end, so that the cursor
never goes back and nothing flickers. Japanese and Chinese may be divided between any two characters but for those that
may not begin or end a row (kinsoku). A word longer than a row is left to the terminal, which wraps it and copies it as
one. What is shown and what it stands for are kept together: all `source` of the parts is the text.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntFlag
from typing import NamedTuple

from .cells import TAB_CELLS, Cells, char_cells

_NO_BEGIN = frozenset(
    "、。，．・：；？！）］｝」』】〉》〕〗〙｣､｡々〻ーゝゞヽヾ゛゜〜～…‥ぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶ％‰℃’”"
    ",.;:!?)]}%"
)
_NO_END = frozenset("（［｛「『【〈《〔〖〘｢￥＄＃‘“([{$")
_SPACES = frozenset(" \t\u3000")
# A word that begins so many cells before the end of a row is shown as it comes: few words are longer.
_LONG_WORD = 30
_LEAST_COLUMNS = 8  # on a narrower terminal nothing is wrapped
_MOST_HELD = 1000  # code points: a "word" of marks that take no cells is held no longer


class Style(IntFlag):
    """How a character looks."""

    PLAIN = 0
    BOLD = 1
    ITALIC = 2
    DIM = 4
    CODE = 8


class Part(NamedTuple):
    """What goes to the terminal, and the text that it stands for: the same, but for spaces at which a row ended."""

    shown: str
    source: str
    style: Style = Style.PLAIN


class Wrapper:
    """Takes characters and gives parts (`taken`). `indent`: cells that a row begins with after a wrap."""

    def __init__(self, columns: Callable[[], int]) -> None:
        """`columns`: the width of the terminal now; it is asked again at every word. 0: nothing is wrapped."""
        self._columns = columns
        self.indent = 0
        self._parts: list[Part] = []
        self._cells = Cells()
        self._column = 0  # cells of the row that are taken
        self._spaces = ""  # before the word
        self._word: list[Part] = []
        self._word_cells = 0
        self._is_open = False  # the word is being shown as it comes
        self._last = ""  # the character before, its marks aside
        self._last_binds = False  # what comes next stays with it

    def push(
        self, char: str, style: Style = Style.PLAIN, *, binds_left: bool = False, binds_right: bool = False
    ) -> None:
        """One character of text. `binds_left` and `binds_right`: it stays with what is beside it, as a mark does."""
        if char == "\n":
            self._end_line()
            return
        if char in _SPACES:
            self._place()
            self._spaces += char
            if len(self._spaces) > _MOST_HELD:
                self._show_spaces()
            self._cells = Cells()
            self._last, self._last_binds = "", False
            return
        cells = self._cells.push(char)
        if not self._cells.joined:
            if self._has_word and not (binds_left or self._last_binds) and _divides(self._last, char):
                self._place()
            self._last, self._last_binds = char, binds_right
        self._add(Part(char, char, style), cells)

    def push_as_is(self, char: str, style: Style = Style.PLAIN) -> None:
        """One character that is never moved to the next row: of code, or of a table."""
        if char == "\n":
            self._end_line()
            return
        self._place()
        self._show_spaces()
        self._parts.append(Part(char, char, style))
        self._advance(_tab(self._column) if char == "\t" else self._cells.push(char))

    def finish(self) -> None:
        """Nothing comes any more: what was held is shown."""
        self._place()
        self._drop_spaces()

    def taken(self) -> list[Part]:
        """The parts since the last call."""
        parts, self._parts = self._parts, []
        return parts

    @property
    def _has_word(self) -> bool:
        return self._is_open or bool(self._word)

    def _add(self, part: Part, cells: int) -> None:
        """One more character of the word, or the first."""
        if not self._has_word:
            limit = self._limit()
            near = self._column + self._space_cells() + min(_LONG_WORD, limit // 2)
            if not limit or near <= limit or not self._can_gain():
                self._show_spaces()
                self._is_open = True
        if self._is_open:
            self._parts.append(part)
            self._advance(cells)
            return
        self._word.append(part)
        self._word_cells += cells
        if self._word_cells > self._limit() - self.indent or len(self._word) > _MOST_HELD:
            self._place()
            self._is_open = True

    def _place(self) -> None:
        """Ends the word: shows it if it was held, on this row or on the next."""
        if self._word:
            limit = self._limit()
            needed = self._column + self._space_cells() + self._word_cells
            if limit and needed > limit and self._can_gain():
                self._column = self._indent_cells()
                self._parts.append(Part("\n" + " " * self._column, self._spaces))
                self._spaces = ""
            self._show_spaces()
            self._parts += self._word
            self._advance(self._word_cells)
        self._word, self._word_cells, self._is_open = [], 0, False

    def _end_line(self) -> None:
        self._place()
        self._drop_spaces()
        self._parts.append(Part("\n", "\n"))
        self._column, self._cells = 0, Cells()
        self._last, self._last_binds = "", False

    def _drop_spaces(self) -> None:
        """Spaces at the end of a line, which nobody sees: shown if there is room."""
        if self._spaces:
            limit = self._limit()
            fits = not limit or self._column + self._space_cells() <= limit
            self._parts.append(Part(self._spaces if fits else "", self._spaces))
            self._spaces = ""

    def _show_spaces(self) -> None:
        if self._spaces:
            cells = self._space_cells()
            self._parts.append(Part(self._spaces, self._spaces))
            self._spaces = ""
            self._advance(cells)

    def _indent_cells(self) -> int:
        return min(self.indent, self._limit() // 2)

    def _can_gain(self) -> bool:
        """Whether the word would have more room on the next row."""
        return self._column + self._space_cells() > self._indent_cells()

    def _space_cells(self) -> int:
        column = self._column
        for char in self._spaces:
            column += _tab(column) if char == "\t" else char_cells(char)
        return column - self._column

    def _advance(self, cells: int) -> None:
        self._column += cells
        columns = self._columns()
        if columns > 0 and self._column > columns:  # the terminal went on below
            self._column %= columns

    def _limit(self) -> int:
        """Cells of a row that are used: the last one stays free, where terminals differ. 0: no wrapping."""
        columns = self._columns()
        return columns - 1 if columns > _LEAST_COLUMNS else 0


def _tab(column: int) -> int:
    return TAB_CELLS - column % TAB_CELLS


def _divides(before: str, after: str) -> bool:
    """Whether a row may end between two characters that no space parts."""
    if not before or after in _NO_BEGIN or before in _NO_END:
        return False
    return _is_free(before) or _is_free(after)


def _is_free(char: str) -> bool:
    """Whether rows end beside a character of this script wherever they like. Korean parts its words by spaces."""
    if "\uac00" <= char <= "\ud7a3" or "\u1100" <= char <= "\u115f":
        return False
    return char_cells(char) == 2 or "\uff66" <= char <= "\uff9f" or "\U0001f1e6" <= char <= "\U0001f1ff"  # flags
