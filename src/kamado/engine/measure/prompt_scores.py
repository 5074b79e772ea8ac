"""Log-probabilities of a prompt's own tokens, as evaluation harnesses ask for them by the thousand.

They ask with one context and many endings, so what was computed for one is kept for the next: the sequences keep the
keys and values, and here are kept the log-probabilities. A row's numbers depend on the tokens up to it alone, so they
are the same bits whether computed or remembered.

Prompts that come together are computed together: what they all begin with once, then their ends in common steps. Jobs
are short, so that other requests run between them.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ...plan.kv_pages import PAGE_TOKENS
from ..cache.sequences import CachedSequence, NoRoomError, SequenceCache, common_prefix
from ..generation import public_errors
from ..schedule.sampler import log_probabilities
from ..schedule.scheduler import Scheduler
from ..turns.chat_types import TokenLogprob

# (log-probability, the likeliest tokens with theirs) of one token
Score = tuple[float, tuple[tuple[int, float], ...]]

_MAX_KEPT = 16  # prompts
_MAX_KEPT_TOKENS = 65_536  # of all kept prompts; about 200 bytes each with one alternative
_MAX_TOGETHER = 16  # prompts of one job: sequences that others cannot have meanwhile
_JOB_ROWS = 1024  # rows of one job, and no less than a step


class ScoredPrompt(NamedTuple):
    """One of several prompts, by its place among them. `scores`: one for every token but the first."""

    number: int
    scores: list[Score]
    num_computed: int  # rows that were computed for it, and not for a prompt before it


class PromptLogprobs(NamedTuple):
    """One of several prompts that were scored, by its place among them."""

    number: int
    tokens: tuple[TokenLogprob, ...]
    num_reused: int  # tokens that were not computed for it; the last one never is


class _Lane:
    """A prompt in a job."""

    def __init__(self, tokens: list[int], scores: list[Score], sequence: CachedSequence) -> None:
        self.tokens = tokens
        self.scores = scores  # of its first tokens; row i says token i + 1
        self.sequence = sequence
        self.num_computed = 0
        self.mark_at: int | None = None


class PromptScores:
    """Scores prompts on one model. Thread-safe."""

    def __init__(self, scheduler: Scheduler, *, max_rows: int, max_logit_rows: int) -> None:
        """`max_rows`, `max_logit_rows`: rows of one step, and those of them that may give logits."""
        self._scheduler = scheduler
        self._max_rows = max_rows
        self._max_logit_rows = min(max_rows, max_logit_rows)
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int, tuple[int, ...]], list[Score]] = OrderedDict()

    def score_all(self, prompts: Sequence[Sequence[int]], num_top: int, owner: str = "") -> Iterator[ScoredPrompt]:
        """The scores of every prompt, each as soon as it is done, in an order that shares most.

        Results are kept, and shared within one `owner` only. Raises what the executor does.
        """
        todo = sorted(range(len(prompts)), key=lambda i: list(prompts[i]))
        partial: dict[int, list[Score]] = {}
        computed = dict.fromkeys(todo, 0)
        while todo:
            group: list[int] = []
            known: list[list[Score]] = []
            while todo and len(group) < _MAX_TOGETHER:
                i = todo[0]
                scores = max(partial.get(i, []), self._known(prompts[i], num_top, owner), key=len)
                if len(scores) < len(prompts[i]) - 1:
                    group.append(i)
                    known.append(scores)
                else:
                    partial.pop(i, None)
                    yield ScoredPrompt(i, scores[: len(prompts[i]) - 1], computed[i])
                todo.pop(0)
            if not group:
                continue
            tokens = [list(prompts[i]) for i in group]
            found = self._scheduler.call(
                lambda sequences, tokens=tokens, known=known: self._compute(  # type: ignore[misc]
                    sequences, tokens, known, num_top, owner
                )
            )
            left: list[int] = []
            for i, (scores, num_computed) in zip(group, found, strict=True):
                computed[i] += num_computed
                if len(scores) < len(prompts[i]) - 1:
                    partial[i] = scores
                    left.append(i)
                else:
                    self._keep(prompts[i], num_top, owner, scores)
                    partial.pop(i, None)
                    yield ScoredPrompt(i, scores, computed[i])
            todo[:0] = left

    def logprobs(
        self, prompts: Sequence[Sequence[int]], num_top: int, bytes_of: Callable[[int], bytes], owner: str
    ) -> Iterator[PromptLogprobs]:
        """As `score_all`, in the words of protocols; the first token's log-probability is NaN. Raises KamadoError."""
        with public_errors():
            for number, scores, num_computed in self.score_all(prompts, num_top, owner):
                tokens = prompts[number]
                out = [TokenLogprob(tokens[0], bytes_of(tokens[0]), math.nan)]
                for token, (value, best) in zip(tokens[1:], scores, strict=True):
                    alternatives = tuple((other, bytes_of(other), logprob) for other, logprob in best)
                    out.append(TokenLogprob(token, bytes_of(token), value, alternatives))
                yield PromptLogprobs(number, tuple(out), max(0, len(tokens) - 1 - num_computed))

    def _known(self, tokens: Sequence[int], num_top: int, owner: str) -> list[Score]:
        """Scores of the longest beginning that a kept prompt shares."""
        best: list[Score] = []
        wanted = tuple(tokens)
        with self._lock:
            for (whose, top, kept), scores in self._kept.items():
                if whose != owner or top != num_top:
                    continue
                shared = common_prefix(wanted, kept) - 1
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

    def _compute(
        self,
        sequences: SequenceCache,
        prompts: Sequence[list[int]],
        known: Sequence[list[Score]],
        num_top: int,
        owner: str,
    ) -> list[tuple[list[Score], int]]:
        """A job of the scheduler, which begins anew when it was aborted: of each prompt more scores than were known, or
        the same if there was no room, and the rows computed for it."""
        rows_left = max(_JOB_ROWS, self._max_rows)
        lanes: list[_Lane] = []
        try:
            first = self._open(sequences, prompts[0], known[0], owner)
            if first is None:
                raise NoRoomError("too few sequences or pages are free")
            lanes.append(first)
            if len(prompts) > 1:
                shared = min(common_prefix(prompts[0], tokens) for tokens in prompts[1:])
                rows_left = self._advance(sequences, lanes, num_top, rows_left, until=shared - 1)
                if first.sequence.length == shared - 1:
                    sequences.mark(first.sequence)  # the others start here
                for tokens, scores in zip(prompts[1:], known[1:], strict=True):
                    borrowed = first.scores[: common_prefix(prompts[0], tokens) - 1]
                    lane = self._open(sequences, tokens, max(borrowed, scores, key=len), owner) if rows_left else None
                    if lane is None:
                        break
                    lanes.append(lane)
            self._advance(sequences, lanes, num_top, rows_left)
        except BaseException:
            for lane in lanes:
                sequences.drop(lane.sequence)
            raise
        for lane in lanes:
            sequences.mark(lane.sequence)
            sequences.release(lane.sequence)
        done = [(lane.scores, lane.num_computed) for lane in lanes]
        return done + [(scores, 0) for scores in known[len(lanes) :]]

    def _open(self, sequences: SequenceCache, tokens: list[int], known: list[Score], owner: str) -> _Lane | None:
        """A prompt with what is cached of it, as far as its scores are known; None when there is no room."""
        if not sequences.can_admit():
            return None
        shared = min(sequences.num_shared(tokens, owner), len(known))
        sequence = sequences.acquire(tokens[: len(known) + 1], owner)
        if not sequences.reserve(sequence, len(tokens)):
            sequences.release(sequence)
            return None
        lane = _Lane(tokens, list(known), sequence)
        place = shared // PAGE_TOKENS * PAGE_TOKENS
        if not sequences.is_exact and place - sequence.length >= PAGE_TOKENS:
            lane.mark_at = place  # others part here too: the next may start from it
        return lane

    def _advance(
        self, sequences: SequenceCache, lanes: list[_Lane], num_top: int, rows_left: int, until: int | None = None
    ) -> int:
        """Steps until every lane has its scores (those of the first `until` rows), or `rows_left` are used up.

        Returns the rows that are left.
        """
        while rows_left > 0:
            step: list[tuple[_Lane, int, int]] = []  # with its first row and the number of its rows
            rows, logits = min(self._max_rows, rows_left), self._max_logit_rows
            for lane in lanes:
                begin = lane.sequence.length
                end = len(lane.tokens) - 1 if until is None else min(until, len(lane.tokens) - 1)
                if lane.mark_at is not None and begin < lane.mark_at:
                    end = min(end, lane.mark_at)
                # Rows before the first unknown one are only needed in the cache.
                num_unneeded = max(0, len(lane.scores) - begin)
                size = min(end - begin, rows, num_unneeded + logits)
                if size > 0:
                    step.append((lane, begin, size))
                    rows -= size
                    logits -= max(0, size - num_unneeded)
            if not step:
                break
            self._step(sequences, step, num_top)
            rows_left -= sum(size for _, _, size in step)
        return rows_left

    def _step(self, sequences: SequenceCache, step: Sequence[tuple[_Lane, int, int]], num_top: int) -> None:
        tokens: list[int] = []
        wanted: list[int] = []
        for lane, begin, size in step:
            skipped = min(size, max(0, len(lane.scores) - begin))
            wanted += range(len(tokens) + skipped, len(tokens) + size)
            tokens += lane.tokens[begin : begin + size]
        logits = sequences.executor.step(
            np.array([lane.sequence.id for lane, _, _ in step], np.int32),
            np.array([size for _, _, size in step], np.int32),
            np.array(tokens, np.int32),
            np.array(wanted, np.int32),
        )
        row = 0
        for lane, begin, size in step:
            sequences.extend(lane.sequence, lane.tokens[begin : begin + size])
            lane.num_computed += size
            if lane.sequence.length == lane.mark_at:
                sequences.mark(lane.sequence)
            for position in range(max(begin, len(lane.scores)), begin + size):
                lane.scores.append(log_probabilities(logits[row], lane.tokens[position + 1], num_top))
                row += 1
