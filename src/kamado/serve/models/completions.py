"""Text continued without a chat template: one prompt's answer as events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...engine.piece import Piece, whole_text
from ...engine.turns.answer import AnswerEvents
from .contract import Finish, TextDelta

if TYPE_CHECKING:
    from ...engine.model import Model

# Around what is to be filled in, in the vocabularies that know of it: before the beginning, before the end, in between.
_INSERT_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, Granite
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>"),  # DeepSeek, whose order of parts is this one too
)


class CompletionSource(AnswerEvents):
    """The events of one prompt's answer; bridge.py's Source."""

    def _take(self, piece: Piece) -> None:
        logprobs = (self._logprob(piece),) if self._has_logprobs else ()
        text = whole_text(piece, self._token_bytes)
        if text or logprobs:
            self._ready.append(TextDelta(text, logprobs, self._choice))
        if piece.finish_reason is not None:
            self._ready.append(Finish(piece.finish_reason, None, self._choice))
            self._is_done = True


def insert_marks(model: Model) -> tuple[int, int, int] | None:
    """The ids around a gap, for models that were taught to fill one; None for others."""
    for literals in _INSERT_MARKS:
        ids = [model.tokenize(literal, special=True, add_bos=False) for literal in literals]
        if all(len(found) == 1 for found in ids) and len({found[0] for found in ids}) == 3:
            plain = model.tokenize(literals[0], special=False, add_bos=False)
            if len(plain) > 1:  # a mark, and no word that happens to be one token
                return ids[0][0], ids[1][0], ids[2][0]
    return None
