"""Light Markdown for a terminal: what the model marked looks marked, and the marks stay, dimmed.

Nothing is left out, added or moved, so an answer that is copied is the answer, and a mark that was none costs nothing
but a wrong style up to the end of its paragraph. Known are: bold, italics, code in a line, headings, lists and quotes
(later rows stand below the first word), fenced code and tables (never wrapped). The rest is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from .wrap import Part, Style, Wrapper

_MOST_INDENT = 64  # spaces before a line that are looked at
_MOST_TICKS = 64
# A beginning of a line after which it is still open what the line is.
_UNDECIDED = re.compile(r"[ \t]{0,64}(?:#{1,6}|[-*+]|\d{1,9}[.)]?|`{1,64}|~{1,64})?")
_BULLET = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]")
_HEADING = re.compile(r"[ \t]*#{1,6}[ \t]")
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})")
_QUOTE = re.compile(r"[ \t]*>")
_TABLE = re.compile(r"[ \t]*\|")
_CODES = {Style.BOLD: 1, Style.DIM: 2, Style.ITALIC: 3, Style.CODE: 36}


class Markdown:
    """Styles characters as they come and hands them to a wrapper. Never holds more than a line's first marks."""

    def __init__(self, wrapper: Wrapper) -> None:
        self._wrapper = wrapper
        self._held: str | None = ""  # the beginning of a line that is not decided; None: inside a line
        self._fence = ""  # the mark that opened the code we are in
        self._is_opening = False  # the line is the one that opens it
        self._is_as_is = False  # the line is not wrapped
        self._base = Style.PLAIN  # of the whole line
        self._run = ""  # marks whose meaning the next character decides
        self._before = ""  # the character before them
        self._bold = self._italic = ""  # the marks that opened it
        self._ticks = 0  # of the code in this line

    def push(self, text: str) -> None:
        """More of the text."""
        for char in text:
            if self._held is not None:
                self._begin(char)
            else:
                self._inside(char)

    def finish(self) -> None:
        """The text is over."""
        if self._held:
            self._decide(self._held)
        self._resolve("\n")
        self._wrapper.finish()

    # --- beginnings of lines ------------------------------------------------------------------------------------------

    def _begin(self, char: str) -> None:
        held = self._held or ""
        if char != "\n" and _UNDECIDED.fullmatch(held + char):
            self._held = held + char
            return
        if char == "\n":
            self._decide(held)
            self._inside(char)
        else:
            self._decide(held + char)

    def _decide(self, held: str) -> None:
        """What the line is: sets its style and indent and shows what was held."""
        self._held = None
        self._base, self._is_as_is, self._wrapper.indent = Style.PLAIN, False, len(held) - len(held.lstrip(" \t"))
        fence = _FENCE.match(held)
        if self._fence:
            self._is_as_is, self._base = True, Style.CODE
            if fence and fence[1].startswith(self._fence) and not held[fence.end() :].strip(" \t"):
                self._fence, self._base = "", Style.DIM
            self._feed(held)
            return
        if fence:
            self._reset()
            self._fence, self._is_as_is, self._base = fence[1], True, Style.DIM
            self._feed(held)
            self._is_opening = True
            return
        if _TABLE.match(held):
            self._reset()
            self._is_as_is = True
        elif _HEADING.match(held):
            self._reset()
            self._base = Style.BOLD
        elif mark := _BULLET.match(held) or _QUOTE.match(held):
            self._reset()
            self._wrapper.indent = len(mark[0]) if held[-1] != ">" else len(held) + 1
            for char in mark[0]:
                self._wrapper.push(char, Style.DIM, binds_left=True)
            held = held[mark.end() :]
        elif not held.strip(" \t"):
            self._reset()
        self._before = ""
        self._feed(held)

    def _feed(self, text: str) -> None:
        for char in text:
            self._inside(char)

    def _reset(self) -> None:
        """A new block: what its author forgot to close ends."""
        self._bold = self._italic = ""
        self._ticks = 0

    # --- inside lines -------------------------------------------------------------------------------------------------

    def _inside(self, char: str) -> None:
        if char == "\n":
            self._resolve(char)
            self._end_line()
            return
        if self._is_opening and char == "`" and self._fence[0] == char:  # ```code``` in a line
            self._ticks = len(self._fence)
            self._fence, self._is_as_is, self._is_opening, self._base = "", False, False, Style.PLAIN
        if self._is_as_is:
            self._wrapper.push_as_is(char, self._base)
            return
        if self._run:
            if char == self._run[0] and len(self._run) < (_MOST_TICKS if char == "`" else 3):
                self._run += char
                return
            self._resolve(char)
        can_mark = char == "`" or (char in "*_" and not self._ticks)
        if can_mark and (self._ticks or self._before != "\\"):
            self._run = char
            return
        self._wrapper.push(char, self._style())
        self._before = "" if self._before == "\\" and char == "\\" else char

    def _end_line(self) -> None:
        if self._base == Style.BOLD:
            self._reset()
        self._wrapper.push("\n")
        self._held, self._before, self._is_opening = "", "", False

    def _style(self) -> Style:
        if self._ticks:
            return self._base | Style.CODE
        style = self._base
        if self._bold:
            style |= Style.BOLD
        if self._italic:
            style |= Style.ITALIC
        return style

    def _resolve(self, after: str) -> None:
        """Shows the marks that were held, now that the character after them is known."""
        run, self._run = self._run, ""
        if not run:
            return
        opens, closes = self._ticked(len(run)) if run[0] == "`" else self._emphasised(run, after)
        style = Style.DIM if opens or closes else self._style()
        for char in run:
            self._wrapper.push(char, style, binds_left=closes, binds_right=opens)
        self._before = run[0]

    def _ticked(self, num: int) -> tuple[bool, bool]:
        if not self._ticks:
            self._ticks = num
            return True, False
        if num != self._ticks:
            return False, False
        self._ticks = 0
        return False, True

    def _emphasised(self, run: str, after: str) -> tuple[bool, bool]:
        """Whether `*` or `_` opens or closes, which it then does. Looser than CommonMark beside letters that no space
        parts, as in Japanese, and stricter beside Latin ones: 2**3 and snake_case are no emphasis."""
        char, before = run[0], self._before
        can_close = not before.isspace() and before != "" and not (char == "_" and after.isalnum())
        wants_bold, wants_italic = len(run) >= 2, len(run) != 2
        has_bold, has_italic = self._bold == char and wants_bold, self._italic == char and wants_italic
        if can_close and (has_bold or has_italic):
            self._bold = "" if has_bold else self._bold
            self._italic = "" if has_italic else self._italic
            return False, True
        if after.isspace() or (before.isalnum() and (before.isascii() or char == "_")):
            return False, False
        if (wants_bold and self._bold) or (wants_italic and self._italic):
            return False, False
        self._bold = char if wants_bold else self._bold
        self._italic = char if wants_italic else self._italic
        return True, False


class Page:
    """An answer as it is shown on a terminal of a width that may change: `push` gives what to write for a text."""

    def __init__(self, columns: Callable[[], int], *, has_styles: bool) -> None:
        self._wrapper = Wrapper(columns)
        self._markdown = Markdown(self._wrapper)
        self._has_styles = has_styles
        self._style = Style.PLAIN

    def push(self, text: str) -> str:
        """More of the answer, which has no control characters but tabs and line ends."""
        self._markdown.push(text)
        return self._painted(self._wrapper.taken())

    def finish(self) -> str:
        """What was held, and the end of any style."""
        self._markdown.finish()
        text = self._painted(self._wrapper.taken())
        style, self._style = self._style, Style.PLAIN
        return text + _sequence(style, Style.PLAIN)

    def _painted(self, parts: Iterable[Part]) -> str:
        out: list[str] = []
        for part in parts:
            if self._has_styles and part.style != self._style and part.shown.strip():  # a space shows no style
                out.append(_sequence(self._style, part.style))
                self._style = part.style
            out.append(part.shown)
        return "".join(out)


def _sequence(before: Style, style: Style) -> str:
    """What makes the terminal go over from one style to another."""
    return ("\x1b[0m" if before else "") + "".join(f"\x1b[{code}m" for flag, code in _CODES.items() if flag in style)
