"""What a model makes of given tokens, as jobs between the steps of answers: logits, log-probabilities, perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..cache.sequences import SequenceCache
from ..executor_protocol import ExecutorProtocol
from ..generation import public_errors
from ..schedule.scheduler import Scheduler

Visit: TypeAlias = Callable[[int, NDArray[np.float32]], None]  # the first position, its rows and those after it
Look: TypeAlias = Callable[[ExecutorProtocol, int], None]  # at a sequence, between steps


class Perplexity(NamedTuple):
    """How well a text is predicted: exp of the mean negative log-likelihood."""

    value: float
    standard_error: float
    num_tokens: int  # tokens that were scored


class Scoring:
    """Scores tokens that were checked: ids of the vocabulary, one at least, no more than the context.

    What a job is told may be done twice, since a step can be aborted for another's sake. All methods raise KamadoError.
    """

    def __init__(self, scheduler: Scheduler, *, vocab_size: int, max_rows: int, max_logit_rows: int) -> None:
        """`max_rows` and `max_logit_rows` of a step, as planned."""
        self._scheduler = scheduler
        self._vocab_size = vocab_size
        self._max_rows = max_rows
        self._max_logit_rows = max_logit_rows

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """float32[len(tokens), vocab_size]; no more tokens than rows of logits were planned for."""
        out = np.empty((len(tokens), self._vocab_size), np.float32)
        ids = np.array(tokens, np.int32)

        def run(executor: ExecutorProtocol, sequence: int) -> None:
            for begin, end in self._chunks(len(ids)):
                rows = np.arange(end - begin, dtype=np.int32)
                counts = np.array([end - begin], np.int32)
                out[begin:end] = executor.step(np.array([sequence], np.int32), counts, ids[begin:end], rows)

        self._with_sequence(len(ids), run)
        return out

    def visit(self, tokens: list[int], visit: Visit, *, before: Look | None, after: Look | None) -> None:
        """See Model.visit_logits."""
        ids = np.array(tokens, np.int32)
        size = min(self._max_rows, self._max_logit_rows)

        def run(executor: ExecutorProtocol, sequence: int) -> None:
            if before is not None:
                before(executor, sequence)
            for begin in range(0, len(ids), size):
                part = ids[begin : begin + size]
                rows = np.arange(len(part), dtype=np.int32)
                counts = np.array([len(part)], np.int32)
                visit(begin, executor.step(np.array([sequence], np.int32), counts, part, rows))
            if after is not None:
                after(executor, sequence)

        self._with_sequence(len(ids), run)

    def log_probabilities(self, tokens: list[int], first: int) -> NDArray[np.float64]:
        """float64: natural log-probabilities of tokens[first + 1:], each given those before it."""
        ids = np.array(tokens, np.int32)
        targets = np.full(len(ids), -1, np.int32)
        targets[first:-1] = ids[first + 1 :]
        out = np.zeros(len(ids))

        def run(executor: ExecutorProtocol, sequence: int) -> None:
            for begin, end in self._chunks(len(ids)):
                out[begin:end] = executor.score(sequence, ids[begin:end], targets[begin:end])

        self._with_sequence(len(ids), run)
        return out[first:-1]

    def perplexity(
        self, tokens: list[int], window: int, bos: int | None, progress: Callable[[int, int], None] | None
    ) -> Perplexity:
        """See Model.perplexity. `window` from 4 to len(tokens)."""
        total = len(tokens) // window
        scores: list[NDArray[np.float64]] = []
        for i in range(total):
            part = tokens[i * window : (i + 1) * window]
            if bos is not None:
                part[0] = bos
            scores.append(self.log_probabilities(part, window // 2))
            if progress is not None:
                progress(i + 1, total)
        losses = -np.concatenate(scores)
        value = math.exp(min(float(losses.mean()), 700.0))
        spread = float(losses.std()) / math.sqrt(max(1, losses.size - 1))
        return Perplexity(value, value * spread, losses.size)

    def _chunks(self, length: int) -> Iterator[tuple[int, int]]:
        size = self._max_rows
        return ((begin, min(begin + size, length)) for begin in range(0, length, size))

    def _with_sequence(self, num_tokens: int, run: Callable[[ExecutorProtocol, int], None]) -> None:
        """Calls `run(executor, empty sequence)` between steps; it may be called again when it was aborted."""

        def job(sequences: SequenceCache) -> None:
            with sequences.lent([num_tokens]) as (sequence,):
                run(sequences.executor, sequence)

        with public_errors():
            self._scheduler.call(job)
