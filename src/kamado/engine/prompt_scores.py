"""Log-probabilities of a prompt's own tokens, as evaluation harnesses ask for them by the thousand.

They ask with one context and many endings, so what was computed for one is kept for the next: the sessions keep the
keys and values, and here are kept the log-probabilities. A row's numbers depend on the tokens up to it alone, so they
are the same bits whether computed or remembered.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from .executor_protocol import ExecutorProtocol
from .sampler import log_probabilities
from .scheduler import NoRoomError, Scheduler
from .session import SessionCache, common_prefix

# (log-probability, the likeliest tokens with theirs) of one token
Score = tuple[float, tuple[tuple[int, float], ...]]

_MAX_KEPT = 16  # prompts
_MAX_KEPT_TOKENS = 65_536  # of all kept prompts; about 200 bytes each with one alternative


class PromptScores:
    """Scores prompts on one model. Thread-safe."""

    def __init__(self, scheduler: Scheduler, *, max_rows: int, vocab_size: int) -> None:
        """`max_rows`: rows of logits that one step may give."""
        self._scheduler = scheduler
        self._max_rows = max_rows
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int, tuple[int, ...]], list[Score]] = OrderedDict()

    def scores(self, tokens: Sequence[int], num_top: int, owner: str = "") -> list[Score]:
        """One score for every token but the first. Results are kept, and shared within one `owner` only.

        Raises what the executor does.
        """
        known = self._known(tokens, num_top, owner)
        if len(known) < len(tokens) - 1:
            known = self._scheduler.call(lambda sessions: self._compute(sessions, list(tokens), num_top, known))
            self._keep(tokens, num_top, owner, known)
        return known

    def _known(self, tokens: Sequence[int], num_top: int, owner: str) -> list[Score]:
        """Scores of the longest beginning that a kept prompt shares."""
        best: list[Score] = []
        with self._lock:
            for (whose, top, kept), scores in self._kept.items():
                if whose != owner or top != num_top:
                    continue
                shared = common_prefix(tokens, kept) - 1
                if shared > len(best):
                    best = scores[:shared]
        return best

    def _keep(self, tokens: Sequence[int], num_top: int, owner: str, scores: list[Score]) -> None:
        with self._lock:
            self._kept[owner, num_top, tuple(tokens)] = scores
            while len(self._kept) > _MAX_KEPT or sum(len(key[2]) for key in self._kept) > _MAX_KEPT_TOKENS:
                if len(self._kept) == 1:
                    break
                self._kept.popitem(last=False)

    def _compute(self, sessions: SessionCache, tokens: list[int], num_top: int, known: list[Score]) -> list[Score]:
        """A job of the scheduler: begins anew when it was aborted."""
        scores = list(known)
        if not sessions.can_admit():
            raise NoRoomError("all sequences are in use")
        session = sessions.acquire(tokens)
        try:
            # Row i says token i + 1: rows before the first unknown one are only needed in the cache.
            sessions.truncate(session, min(session.length, len(scores)))
            if not sessions.reserve(session, len(tokens)):
                raise NoRoomError("too few pages are free")
            while session.length < len(tokens) - 1:
                begin = session.length
                end = min(begin + self._max_rows, len(tokens) - 1)
                logits = self._step(sessions.executor, session.sequence, tokens, begin, end, len(scores))
                session.tokens.extend(tokens[begin:end])
                for row, values in enumerate(logits):
                    position = max(begin, end - len(logits)) + row
                    scores.append(log_probabilities(values, tokens[position + 1], num_top))
        except BaseException:
            sessions.drop(session)
            raise
        sessions.release(session)
        return scores

    def _step(
        self, executor: ExecutorProtocol, sequence: int, tokens: list[int], begin: int, end: int, first: int
    ) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """float32[rows, vocab] of the rows from `first` on."""
        wanted = np.arange(max(0, first - begin), end - begin, dtype=np.int32)
        out: np.ndarray[tuple[int, int], np.dtype[np.float32]] = executor.step(
            np.array([sequence], np.int32),
            np.array([end - begin], np.int32),
            np.array(tokens[begin:end], np.int32),
            wanted,
        )
        return out
