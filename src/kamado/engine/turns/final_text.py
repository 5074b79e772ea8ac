"""The text of an answer that is several messages, or reasoning and then what was asked for, for who asked for text
alone: what its final messages say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .chat_types import ContentEvent, TextDelta
from .tool_format import ChatFormat
from .tool_format.syntax import without_marks

if TYPE_CHECKING:
    from ...text.tokenizer import Tokenizer
    from .turn import Turn


class FinalText:
    """Turns tokens into that text; see request.TextStream."""

    def __init__(self, chat: ChatFormat, tokenizer: Tokenizer, turn: Turn) -> None:
        self._marks = chat.marks
        self._parser = chat.parser(has_tools=False, is_reasoning=turn.is_reasoning)
        self._stream = tokenizer.stream(continuation=True)

    def push(self, token: int, /) -> str:
        """The text that became certain with `token`."""
        return _text(self._parser.push(self._marks.of_token(token) or without_marks(self._stream.push(token))))

    def flush(self) -> str:
        """What is left at the end."""
        return _text((*self._parser.push(self._stream.flush()), *self._parser.finish(is_cut=True)))


def _text(events: Iterable[ContentEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))
