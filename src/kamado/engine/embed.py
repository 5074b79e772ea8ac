"""Texts to vectors: several in a step, their rows pooled, every vector of length 1.

A vector depends on its own text alone: rows do not depend on the batch (the executor's rule), and a mean adds a text's
rows in their order, in double precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import NativeError, UsageError
from ..plan.kv_pages import PAGE_TOKENS
from ..program import Pooling
from .cache.sequences import SequenceCache
from .executor_protocol import ExecutorProtocol
from .generation import public_errors
from .schedule.scheduler import Scheduler

# Texts of one step: others wait no longer for it than for a step of a prompt.
_MAX_TEXTS = 32


class Embedded(NamedTuple):
    """float32[n, d], a row a text, and how many tokens each text had."""

    vectors: NDArray[np.float32]
    num_tokens: tuple[int, ...]


class Embedder:
    """Embeds texts on one model. Thread-safe."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        pooling: Pooling,
        width: int,
        max_rows: int,
        max_pooled_rows: int,
        kv_tokens: int,
    ) -> None:
        """`max_rows`: of a step; `max_pooled_rows`: rows that a step can return."""
        self._scheduler = scheduler
        self._pooling: Pooling = pooling
        self.width = width
        self._max_rows = max_rows
        self._max_pooled_rows = max_pooled_rows
        self._max_pages = kv_tokens // PAGE_TOKENS

    def embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """float32[len(texts), width], rows of length 1, of texts as token ids, none empty.

        Raises NativeError for vectors that are no numbers, ClosedError, and what streamed experts raise.
        """
        out = np.empty((len(texts), self.width), np.float32)
        for begin, end in self._batches(texts):
            batch = texts[begin:end]
            with public_errors():
                pooled = self._scheduler.call(lambda cache, batch=batch: self._run(cache, batch))  # type: ignore[misc]
            out[begin:end] = normalised(pooled)
        return out

    def _batches(self, texts: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
        """Ranges of texts that one step can take; a text that is longer than a step is alone."""
        begin = num_rows = num_pages = 0
        rows_a_step = min(self._max_rows, self._max_pooled_rows) if self._pooling == "mean" else self._max_rows
        texts_a_step = min(_MAX_TEXTS, self._max_pooled_rows)
        for i, tokens in enumerate(texts):
            rows, pages = len(tokens), -(-len(tokens) // PAGE_TOKENS)
            is_full = num_rows + rows > rows_a_step or num_pages + pages > self._max_pages or i - begin >= texts_a_step
            if i > begin and is_full:
                yield begin, i
                begin, num_rows, num_pages = i, 0, 0
            num_rows += rows
            num_pages += pages
        if begin < len(texts):
            yield begin, len(texts)

    def _run(self, cache: SequenceCache, texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """float64[len(texts), width]: pooled rows. Runs on the scheduler's thread, from the start when aborted."""
        with cache.lent([len(tokens) for tokens in texts]) as sequences:
            if len(texts) == 1:
                return self._pool_one(cache.executor, sequences[0], np.array(texts[0], np.int32))[None]
            return self._pool_all(cache.executor, sequences, texts)

    def _pool_all(
        self, executor: ExecutorProtocol, sequences: list[int], texts: Sequence[Sequence[int]]
    ) -> NDArray[np.float64]:
        counts = np.array([len(tokens) for tokens in texts], np.int32)
        ends = np.cumsum(counts)
        wanted = [self._wanted(int(end) - int(count), int(end)) for count, end in zip(counts, ends, strict=True)]
        ids = np.concatenate([np.array(tokens, np.int32) for tokens in texts])
        rows = executor.step(np.array(sequences, np.int32), counts, ids, np.concatenate(wanted), hidden=True)
        parts = np.split(rows, np.cumsum([len(part) for part in wanted])[:-1])
        return np.stack([_sum(part) / len(part) for part in parts])

    def _pool_one(self, executor: ExecutorProtocol, sequence: int, tokens: NDArray[np.int32]) -> NDArray[np.float64]:
        """One text, in as many steps as it takes."""
        size = min(self._max_rows, self._max_pooled_rows) if self._pooling == "mean" else self._max_rows
        total = np.zeros(self.width)
        num_rows = 0
        for begin in range(0, len(tokens), size):
            end = min(begin + size, len(tokens))
            wanted = self._wanted(0, len(tokens)) - begin
            wanted = wanted[(wanted >= 0) & (wanted < end - begin)]
            rows = executor.step(
                np.array([sequence], np.int32),
                np.array([end - begin], np.int32),
                tokens[begin:end],
                wanted,
                hidden=True,
            )
            total += _sum(rows)
            num_rows += len(rows)
        return total / num_rows

    def _wanted(self, begin: int, end: int) -> NDArray[np.int32]:
        """Rows that the vector of the text in rows [begin, end) is made of."""
        if self._pooling == "mean":
            return np.arange(begin, end, dtype=np.int32)
        return np.array([begin if self._pooling == "first" else end - 1], np.int32)


def _sum(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """The sum of the rows, in their order and in double precision."""
    total: NDArray[np.float64] = np.add.reduce(rows.astype(np.float64), axis=0)
    return total


def normalised(vectors: NDArray[np.float64] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows divided by their length. Raises NativeError for rows that are no numbers or all zero."""
    wide = vectors.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    if not np.isfinite(lengths).all() or not (lengths > 0).all():
        raise NativeError("a vector has no direction (its values are zero or not finite): the file is probably damaged")
    unit: NDArray[np.float32] = (wide / lengths).astype(np.float32)
    return unit


def shortened(vectors: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """The first `dimensions` values of every row, of length 1 again. Raises UsageError when there are fewer."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    if isinstance(dimensions, bool) or not 1 <= dimensions <= vectors.shape[1]:
        raise UsageError(f"dimensions must be a whole number from 1 to {vectors.shape[1]}, not {dimensions!r}")
    return normalised(vectors[:, :dimensions])
