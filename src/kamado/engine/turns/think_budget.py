"""Reasoning that must end: after so many tokens, the closing tag is what comes next, and the answer goes on from it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..forms.token_rule import TokenRule
from .tool_format.reasoning import ReasoningTags

if TYPE_CHECKING:
    from ...text.tokenizer import Tokenizer

_GAP = "\n\n"
# Ids that a header may go on with: where more may come, text does.
_MAX_OF_HEADER = 4096


class ThinkBudget:
    """Counts the tokens of one answer's reasoning. Not thread-safe."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        tags: ReasoningTags,
        max_tokens: int,
        *,
        is_reasoning: bool,
        inner: TokenRule | None = None,
    ) -> None:
        """`inner`: what else binds the answer; it must allow the closing tag at any point of the reasoning."""
        self._tokenizer = tokenizer
        self._open, self._close = tags.open.encode(), tags.close.encode()
        self._recurs = tags.recurs
        self._before_again, self._again = (text.encode() for text in tags.again)
        self._is_reasoning = is_reasoning
        self._may_begin = not is_reasoning
        self._num_left = max_tokens
        self._inner = inner
        self._tail = b""  # of the answer's text, in which the tags are looked for
        close = tokenizer.token_to_id(tags.close)
        text = tokenizer.encode(
            tags.close if tags.again[1] else f"\n{tags.close}{'' if tags.recurs else _GAP}",
            special=close in tokenizer.special_ids,
            add_bos=False,
            add_eos=False,
            after="text",
        )
        self._closing = text
        self._forced: deque[int] = deque()

    def allowed(self) -> NDArray[np.int64] | None:
        """See TokenRule."""
        if not self._forced and self._is_reasoning and self._num_left <= 0:
            self._forced.extend(self._closing)
        if self._forced:
            return np.array([self._forced[0]])
        allowed = None if self._inner is None else self._inner.allowed()
        if self._num_left > 0 or allowed is None or not self._again or allowed.size > _MAX_OF_HEADER:
            return allowed
        if not self._tail.endswith(self._before_again):
            return allowed
        others = [token for token in allowed if not self._begins_again(int(token))]
        return np.array(others) if others else allowed

    def _begins_again(self, token: int) -> bool:
        """Whether a token goes on as reasoning would that begins once more."""
        said = self._tokenizer.token_bytes(token)
        return bool(said) and (self._again.startswith(said) or said.startswith(self._again))

    def accept(self, token: int) -> None:
        """See TokenRule."""
        if self._inner is not None:
            if self._forced:
                self._inner.allowed()  # it works out what may follow before it is told what did
            self._inner.accept(token)
        if self._forced:
            self._forced.popleft()
            self._is_reasoning = False
            self._may_begin = self._recurs
            self._tail = b""
            return
        self._tail += self._tokenizer.token_bytes(token)
        if self._recurs and not self._is_reasoning:
            self._is_reasoning = self._tail.endswith(self._open)
            self._tail = self._tail[-len(self._open) - 64 :]
            self._num_left += self._is_reasoning  # the token that opens it is none of it
        elif self._may_begin:
            text = self._tail.lstrip()
            if text.startswith(self._open):
                self._is_reasoning, self._may_begin = True, False
            elif not self._open.startswith(text):
                self._may_begin = False
        if self._is_reasoning:
            self._num_left -= 1
            if self._close in self._tail:
                self._is_reasoning = False
            self._tail = self._tail[-len(self._close) - 64 :]
        elif not self._may_begin and not self._recurs:
            self._tail = b""

    @property
    def is_complete(self) -> bool:
        """See TokenRule."""
        return self._inner is not None and self._inner.is_complete
