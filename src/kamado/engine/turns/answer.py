"""The events of one answer, read from its pieces: what answers of turns and of plain texts have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from ..forms.answer_check import AnswerCheck
from ..forms.json_schema import CompiledSchema
from ..generation import Generation
from ..piece import Piece, Usage
from .chat_types import ContentEvent, Finish, TokenLogprob


class AnswerEvents(Iterator[ContentEvent | Finish]):
    """The events of one answer, as they come; `Finish` is the last. Dropping it or `close()` ends the work for it."""

    def __init__(
        self,
        generation: Generation,
        token_bytes: Callable[[int], bytes],
        *,
        choice: int,
        has_logprobs: bool,
        schemas: Mapping[str, CompiledSchema],
    ) -> None:
        """`choice` marks the events; `schemas` are those that the finished answer is checked against."""
        self._generation = generation
        self._token_bytes = token_bytes
        self._choice = choice
        self._has_logprobs = has_logprobs
        self._check = AnswerCheck(schemas)
        self._ready: deque[ContentEvent | Finish] = deque()
        self._is_done = False

    @abstractmethod
    def _take(self, piece: Piece) -> None:
        """Puts what the piece brings into `_ready`."""

    def __next__(self) -> ContentEvent | Finish:
        while (event := self._next()) is None:
            self._take(next(self._generation))
        return event

    def poll(self) -> ContentEvent | Finish | None:
        """The next event if it is there already, else None. Raises StopIteration after the last."""
        while (event := self._next()) is None and self._generation.is_ready:
            self._take(next(self._generation))
        return event

    def _next(self) -> ContentEvent | Finish | None:
        if not self._ready:
            if self._is_done:
                raise StopIteration
            return None
        event = self._ready.popleft()
        if not isinstance(event, Finish):
            self._check.take(event)
        elif event.reason in ("stop", "tool_calls"):
            event = replace(event, violations=self._check.violations())
        return event

    def _logprob(self, piece: Piece) -> TokenLogprob:
        bytes_of = self._token_bytes
        top = tuple((token, bytes_of(token), value) for token, value in piece.top_logprobs)
        return TokenLogprob(piece.token, bytes_of(piece.token), piece.logprob or 0.0, top)

    def on_news(self, listener: Callable[[], None] | None) -> None:
        """`listener` is called, by the scheduler's thread, when `poll` may have something."""
        self._generation.on_news(listener)

    @property
    def num_computed_tokens(self) -> int:
        """Tokens of the prompt and the answer that were computed so far."""
        return self._generation.num_computed_tokens

    def close(self) -> None:
        """Stops the answer. May be called again, and from another thread."""
        self._is_done = True
        self._generation.close()

    @property
    def usage(self) -> Usage:
        """Tokens and seconds so far."""
        return self._generation.usage
