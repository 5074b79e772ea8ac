"""Answers that only repeat themselves: seen while they come, told in the log when they end, ended if that was asked.

Any model may come to that. Some such answers are no fault of the model's: what is looked at when it is seen is in
engine/repeat_causes.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Tokens that must say the same again and again before it is told, where nothing else was asked for.
TOLD_TOKENS = 256
# What is repeated is a quarter of them at most, so it has come four times.
_TIMES = 4
# The most likely token of a row that says nothing is so many times as likely as any other would be by chance.
_FLAT_TIMES = 16.0


@dataclass(frozen=True, slots=True)
class Repeat:
    """What is repeated, and the row of logits at that time."""

    num_tokens: int  # of what is repeated
    is_finite: bool
    best_share: float  # of the most likely token
    num_choices: int  # tokens of the vocabulary

    @property
    def is_flat(self) -> bool:
        """Whether the row hardly prefers any token."""
        return self.best_share * self.num_choices < _FLAT_TIMES


class RepeatWatch:
    """Follows the tokens of one answer. Not thread-safe."""

    def __init__(self, stop_tokens: int | None) -> None:
        """`stop_tokens`: the answer ends when so many tokens only repeated; None: it does not."""
        self._window = stop_tokens or TOLD_TOKENS
        self._stops = stop_tokens is not None
        self._size = max(1, self._window // _TIMES)
        self._latest = np.full(2 * self._size, -1, np.int64)  # twice over, so that the latest lie in one piece
        self._at = 0
        self._runs = np.zeros(self._size, np.int64)  # tokens that equal the one so many places before
        self._distances = np.arange(self._size, 0, -1)
        self.found: Repeat | None = None

    def accept(self, token: int, logits: NDArray[np.float32]) -> bool:
        """A token was picked from `logits` float32[vocab]; True when the answer has to end."""
        if self.found is None:
            before = self._latest[self._at : self._at + self._size]
            self._runs += 1
            self._runs[before != token] = 0
            self._latest[[self._at, self._at + self._size]] = token
            self._at = (self._at + 1) % self._size
            lengths = np.where(self._runs > 0, self._runs + self._distances, 0)
            best = int(lengths.argmax())
            if lengths[best] >= self._window:
                self.found = _repeat(int(self._distances[lengths >= self._window].min()), logits)
        return self._stops and self.found is not None


def _repeat(num_tokens: int, logits: NDArray[np.float32]) -> Repeat:
    is_finite = bool(np.isfinite(logits).all())
    peak = float(np.nanmax(logits))
    share = 0.0
    if math.isfinite(peak):
        with np.errstate(over="ignore"):
            share = 1.0 / float(np.exp(np.nan_to_num(logits, nan=-math.inf) - np.float32(peak)).sum(dtype=np.float64))
    return Repeat(num_tokens, is_finite, share, int(logits.size))
