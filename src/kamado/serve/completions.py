"""Text continued without a chat template: one prompt's answer as events."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..engine.answer_check import AnswerCheck
from ..engine.piece import Piece, whole_text
from .backend import Finish, TextDelta, TokenLogprob

if TYPE_CHECKING:
    from ..engine.generation import Generation
    from ..engine.model import Model

# Around what is to be filled in, in the vocabularies that know of it: before the beginning, before the end, in between.
_INSERT_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, Granite
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>"),  # DeepSeek, whose order of parts is this one too
)


class CompletionSource:
    """The events of one answer; bridge.py's Source."""

    def __init__(
        self, model: Model, generation: Generation, *, choice: int, has_logprobs: bool, check: AnswerCheck
    ) -> None:
        self._model = model
        self._generation = generation
        self._choice = choice
        self._has_logprobs = has_logprobs
        self._check = check
        self._ready: deque[TextDelta | Finish] = deque()
        self._is_done = False

    def poll(self) -> TextDelta | Finish | None:
        """The next event if it is there, else None. Raises StopIteration after the last."""
        while not self._ready:
            if self._is_done:
                raise StopIteration
            if not self._generation.is_ready:
                return None
            self._take(next(self._generation))
        return self._ready.popleft()

    def on_news(self, listener: Callable[[], None] | None) -> None:
        """See bridge.py."""
        self._generation.on_news(listener)

    def close(self) -> None:
        """Stops the answer."""
        self._is_done = True
        self._generation.close()

    @property
    def generation(self) -> Generation:
        """What is read here."""
        return self._generation

    def _take(self, piece: Piece) -> None:
        logprobs = (logprob_of(self._model, piece),) if self._has_logprobs else ()
        text = whole_text(piece, self._model.token_bytes)
        if text or logprobs:
            delta = TextDelta(text, logprobs, self._choice)
            self._check.take(delta)
            self._ready.append(delta)
        if piece.finish_reason is not None:
            violations = self._check.violations() if piece.finish_reason == "stop" else ()
            self._ready.append(Finish(piece.finish_reason, None, self._choice, violations))
            self._is_done = True


def logprob_of(model: Model, piece: Piece) -> TokenLogprob:
    """A piece's log-probabilities with the tokens' bytes."""
    bytes_of = model.token_bytes
    top = tuple((token, bytes_of(token), value) for token, value in piece.top_logprobs)
    return TokenLogprob(piece.token, bytes_of(piece.token), piece.logprob or 0.0, top)


def insert_marks(model: Model) -> tuple[int, int, int] | None:
    """The ids around a gap, for models that were taught to fill one; None for others."""
    for literals in _INSERT_MARKS:
        ids = [model.tokenize(literal, special=True, add_bos=False) for literal in literals]
        if all(len(found) == 1 for found in ids) and len({found[0] for found in ids}) == 3:
            plain = model.tokenize(literals[0], special=False, add_bos=False)
            if len(plain) > 1:  # a mark, and no word that happens to be one token
                return ids[0][0], ids[1][0], ids[2][0]
    return None
