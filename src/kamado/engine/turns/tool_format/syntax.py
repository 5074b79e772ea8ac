"""How a family of models writes a tool call: the fixed text around its name and its arguments.

    begin · open · call · between · call … close         with    call = head · name · middle · arguments · tail

Parts may have special tokens in them, written as the vocabulary spells them. In a stream of text such a token is one
character that text cannot hold (a Unicode noncharacter), so what is a mark and what only looks like one never mix.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ....text.tokenizer.special import SpecialMatcher

if TYPE_CHECKING:
    from ....text.tokenizer import Tokenizer

MARK_BASE = 0xFDD0  # the 32 noncharacters U+FDD0 to U+FDEF
MAX_MARKS = 32


@dataclass(frozen=True, slots=True)
class Call:
    """A whole call."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """See the module. `begin` "" means that a call is the whole message."""

    head: str
    middle: str
    tail: str
    begin: str = ""
    open: str = ""
    between: str | None = None  # None: one call a message
    close: str = ""
    id_key: str = ""  # what stands between arguments and tail before an id, in what templates render; never asked for
    item_separator: str = ", "
    key_separator: str = ": "

    @property
    def is_whole_message(self) -> bool:
        """Whether text and calls exclude each other."""
        return not self.begin

    def render(self, calls: Sequence[Call]) -> str:
        """The text of `calls`, as a template writes an earlier turn."""
        return self.begin + self.open + (self.between or "").join(map(self._render_one, calls)) + self.close

    def _render_one(self, call: Call) -> str:
        text = json.dumps(call.arguments, ensure_ascii=False, separators=(self.item_separator, self.key_separator))
        id_text = f'{self.id_key}"{call.id}"' if self.id_key and call.id else ""
        return self.head + call.name + self.middle + text + id_text + self.tail

    def texts(self) -> tuple[str, ...]:
        """Every fixed part."""
        return (self.begin, self.open, self.head, self.middle, self.tail, self.between or "", self.close, self.id_key)

    def bind(self, marks: Marks) -> CallSyntax:
        """The same with special tokens as marks."""
        return replace(
            self,
            begin=marks.encode(self.begin),
            open=marks.encode(self.open),
            head=marks.encode(self.head),
            middle=marks.encode(self.middle),
            tail=marks.encode(self.tail),
            between=None if self.between is None else marks.encode(self.between),
            close=marks.encode(self.close),
        )


class Marks:
    """Special tokens as noncharacters: what the parser reads instead of text that only looks like them."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        """`texts`: in which special tokens may occur."""
        special = {tokenizer.decode([i], skip_special=False): i for i in sorted(tokenizer.special_ids, reverse=True)}
        found = [text for text in special if len(text) > 1 and any(text in part for part in texts)]
        self._texts = found[:MAX_MARKS]
        self._ids = [special[text] for text in self._texts]
        self._matcher = SpecialMatcher({text: i for i, text in enumerate(self._texts)})
        self._of_token = {token: chr(MARK_BASE + i) for i, token in enumerate(self._ids)}

    def encode(self, text: str) -> str:
        """`text` with marks in the places of special tokens."""
        pieces = self._matcher.split(text)
        return "".join(chr(MARK_BASE + piece) if isinstance(piece, int) else piece for piece in pieces)

    def decode(self, text: str) -> str:
        """Marks back to the text of their tokens."""
        return "".join(self._texts[i] if 0 <= (i := ord(c) - MARK_BASE) < len(self._texts) else c for c in text)

    def of_token(self, token: int) -> str:
        """The mark of a token, "" for any other."""
        return self._of_token.get(token, "")

    def token(self, mark: str) -> int:
        """The token of a mark."""
        return self._ids[ord(mark) - MARK_BASE]


def is_mark(character: str) -> bool:
    """Whether a character is a mark, or would be mistaken for one."""
    return MARK_BASE <= ord(character) < MARK_BASE + MAX_MARKS


def shown_text(text: str) -> str:
    """Text without the marks in it: a special token that is neither tag nor call says nothing."""
    if text.isascii():
        return text
    return "".join(c for c in text if not is_mark(c))


def without_marks(text: str) -> str:
    """Text of a model in which noncharacters, which nobody can show, are U+FFFD."""
    if text.isascii():
        return text
    return "".join("\ufffd" if is_mark(c) else c for c in text)
