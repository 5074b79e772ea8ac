"""What the next step holds: which requests have rows in it, and how many.

A step has one row for every conversation that decodes and fills the rest of its rows with prompts, interactive
requests before background ones, shared out so that a short prompt does not wait behind a long one. While others are
live, prompts get no more rows than about half a second of work. All of this belongs to the scheduler's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..cache.sequences import SequenceCache
from .admission import Admission
from .request import Request
from .stats import Counters

# While others are live, a step's prompt rows are planned to this many seconds, by the speed of earlier ones.
_SHARED_STEP_SECONDS = 0.5
_MIN_SHARED_ROWS = 64

_Ints = NDArray[np.int32]


class Chunk:
    """The rows of one request in a step."""

    __slots__ = ("is_last", "request", "tokens")

    def __init__(self, request: Request, num_rows: int) -> None:
        begin = request.num_cached
        num_rows = request.rows_to_mark(num_rows)
        self.request = request
        self.tokens = request.tokens[begin : begin + num_rows]
        self.is_last = begin + num_rows == len(request.tokens)  # a token is picked after it


def executor_arrays(chunks: Sequence[Chunk]) -> tuple[_Ints, _Ints, _Ints, _Ints]:
    """What `ExecutorProtocol.step` takes: sequences, rows of each, tokens, and the rows whose logits are wanted."""
    sequences, counts, tokens, logit_rows = [], [], [], []
    for chunk in chunks:
        assert chunk.request.sequence is not None
        sequences.append(chunk.request.sequence.id)
        counts.append(len(chunk.tokens))
        tokens += chunk.tokens
        if chunk.is_last:
            logit_rows.append(len(tokens) - 1)
    return (
        np.array(sequences, np.int32),
        np.array(counts, np.int32),
        np.array(tokens, np.int32),
        np.array(logit_rows, np.int32),
    )


class StepPlanner:
    """Chooses the chunks of each step from `waiting` and `live`, which are the scheduler's own lists."""

    def __init__(
        self,
        sequences: SequenceCache,
        admission: Admission,
        *,
        waiting: list[Request],
        live: list[Request],
        leave: Callable[[Request], None],
        max_rows: int,
        max_logit_rows: int,
        counters: Counters,
    ) -> None:
        """`leave`: takes a request out of `live`, and its pages from it."""
        assert min(max_rows, max_logit_rows) >= 2, "a decode row and a prompt's end must fit in one step"
        self._sequences = sequences
        self._admission = admission
        self._waiting = waiting
        self._live = live
        self._max_logit_rows = min(max_logit_rows, max_rows)
        self._max_rows = max_rows
        self._leave = leave
        self._counters = counters
        self._alone: deque[Request] = deque()  # to be run one by one, since a step of several failed
        self._row_seconds = 0.0  # of prompts, lately; 0: none was measured

    def plan(self) -> list[Chunk]:
        """The chunks of the next step, their pages reserved; none when there is nothing to do."""
        while self._alone:
            request = self._alone.popleft()
            if request in self._live and not request.is_cancelled:
                num_rows = min(len(request.tokens) - request.num_cached, self._max_rows)
                chunks = self._with_pages([Chunk(request, num_rows)])
                if chunks:
                    return chunks
        if self._waiting:
            self._admission.admit()
        decoding: list[Request] = []
        prefilling: list[Request] = []
        for request in self._live:
            if len(request.tokens) - request.num_cached > 1 or request.num_generated == 0:
                prefilling.append(request)
            elif self._is_ready(request):
                decoding.append(request)
        limit = self._max_logit_rows - bool(prefilling)  # a prompt's end wants a row of logits too
        if len(decoding) > limit:  # those that have waited longest come first
            decoding.sort(key=lambda r: (r.is_background, r.last_served))
            del decoding[limit:]
        chunks = [Chunk(request, 1) for request in decoding]
        if prefilling:
            self._add_prefill(chunks, prefilling)
        return self._with_pages(chunks)

    def run_alone(self, chunks: Sequence[Chunk]) -> None:
        """A step of several failed and one of them is to blame: each comes again by itself."""
        self._alone.extend(chunk.request for chunk in chunks)

    def note(self, num_prompt_rows: int, num_rows: int, seconds: float) -> None:
        """What a step took."""
        if num_prompt_rows >= _MIN_SHARED_ROWS:  # smaller ones say little about the speed of large ones
            sample = seconds / num_rows
            self._row_seconds = sample if self._row_seconds == 0.0 else 0.75 * self._row_seconds + 0.25 * sample

    def _is_ready(self, request: Request) -> bool:
        """Whether the consumer has room for a piece. It wakes us if it finds `is_paused` set after it has read."""
        if request.has_room:
            request.is_paused = False
            return True
        request.is_paused = True
        return request.has_room

    def _add_prefill(self, chunks: list[Chunk], prefilling: list[Request]) -> None:
        rows_left = self._max_rows - len(chunks)
        logits_left = self._max_logit_rows - len(chunks)
        if len(self._live) > 1 and self._row_seconds > 0:
            rows_left = min(rows_left, max(_MIN_SHARED_ROWS, int(_SHARED_STEP_SECONDS / self._row_seconds)))
        for is_background in (False, True):
            group = [r for r in prefilling if r.is_background == is_background]
            group.sort(key=lambda r: len(r.tokens) - r.num_cached)  # the shortest leave their share to the others
            for i, request in enumerate(group):
                pending = len(request.tokens) - request.num_cached
                num_rows = min(pending, -(-rows_left // (len(group) - i)))
                if num_rows == pending and logits_left == 0:
                    num_rows -= 1
                if num_rows > 0:
                    chunk = Chunk(request, num_rows)
                    logits_left -= chunk.is_last
                    rows_left -= len(chunk.tokens)
                    chunks.append(chunk)

    def _with_pages(self, chunks: list[Chunk]) -> list[Chunk]:
        """Pages for every chunk; when there are too few, the youngest request gives up its own and waits again."""
        if not chunks:
            return chunks
        preempted: set[Request] = set()
        for chunk in chunks:
            request = chunk.request
            while request not in preempted:
                assert request.sequence is not None
                if self._sequences.reserve(request.sequence, request.sequence.length + len(chunk.tokens)):
                    break
                assert len(self._live) > 1, "one request alone always has the pages of a whole context"
                victim = max(self._live, key=lambda r: (r.is_background, r.submitted_at))
                preempted.add(victim)
                self._counters.num_preempted += 1
                self._waiting.insert(0, victim)
                self._leave(victim)
        return [chunk for chunk in chunks if chunk.request not in preempted] if preempted else chunks
