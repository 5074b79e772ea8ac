"""What a caller receives: one piece a token, and the account of a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length"]


class Piece(NamedTuple):
    """One generated token and the text that became certain with it.

    `text` may be empty: characters come when they are whole, and text that may begin a stop string is held back. The
    texts of all pieces together are the answer. The last piece has a `finish_reason`: "stop" (the model ended its turn,
    or a stop string came) or "length" (`max_tokens`, the context is full, or it repeated itself and was to end then).
    """

    text: str
    token: int
    logprob: float | None = None  # natural logarithm; only when `logprobs` was asked for
    top_logprobs: tuple[tuple[int, float], ...] = ()  # (token, logprob), most likely first
    finish_reason: FinishReason | None = None


def whole_text(piece: Piece, token_bytes: Callable[[int], bytes]) -> str:
    """The text of a piece without the U+FFFD that marks half a character where an answer was cut: who goes on from the
    text must not go on from that."""
    if piece.finish_reason == "length" and piece.text.endswith("\ufffd"):
        try:
            token_bytes(piece.token).decode("utf-8")
        except UnicodeDecodeError:
            return piece.text[:-1]
    return piece.text


@dataclass(frozen=True, slots=True)
class Usage:
    """What one request took."""

    num_prompt_tokens: int
    num_reused_tokens: int  # of the prompt, found in the cache
    num_generated_tokens: int
    queue_seconds: float  # from the call to its first step
    prefill_seconds: float  # from its first step to the first token
    decode_seconds: float  # from the first token to the last

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens computed, a second; 0 before the first token."""
        num_computed = self.num_prompt_tokens - self.num_reused_tokens
        return num_computed / self.prefill_seconds if self.prefill_seconds > 0 else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens after the first, a second; 0 with fewer than two."""
        return (self.num_generated_tokens - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0
