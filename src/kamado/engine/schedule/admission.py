"""Which waiting requests become live, and from what beginning each of them starts.

A request becomes live while there are sequences and pages for its tokens so far. Before that it may wait for another
one's prompt that it shares, or for a prefix that is read from disk. All of this belongs to the scheduler's thread.
"""

from __future__ import annotations

import logging
import time

from ...plan.kv_pages import PAGE_TOKENS, pages_for
from ..cache.prefix_saver import PrefixSaver
from ..cache.sequences import CachedSequence, SequenceCache, common_prefix
from .request import Request
from .stats import Counters

_log = logging.getLogger("kamado.scheduler")

# A request waits for another's prompt to be computed when it gives this many tokens more than other sequences have.
_WORTH_WAITING_TOKENS = PAGE_TOKENS


class Admission:
    """Moves requests from `waiting` to `live`, which are the scheduler's own lists."""

    def __init__(
        self,
        sequences: SequenceCache,
        saver: PrefixSaver | None,
        *,
        waiting: list[Request],
        live: list[Request],
        max_live: int,
        counters: Counters,
    ) -> None:
        self._sequences = sequences
        self._num_pages = sequences.executor.num_pages
        self._saver = saver
        self._waiting = waiting
        self._live = live
        self._max_live = max_live
        self._counters = counters

    def admit(self) -> None:
        """Makes waiting requests live while there is room."""
        room = self._num_pages - self._num_pages_promised()
        for request in sorted(self._waiting, key=lambda r: r.is_background):
            if len(self._live) >= self._max_live or not self._sequences.can_admit():
                return
            num_pages = pages_for(len(request.tokens) + 1)
            if self._live and num_pages > room:
                return  # in order: a large one is not starved by small ones behind it
            if self._is_worth_waiting(request) or self._is_restoring(request):
                continue
            shared = 0 if self._sequences.is_exact else self._sequences.num_shared(request.tokens, request.owner)
            try:
                request.sequence = self._sequences.acquire(request.tokens, request.owner, request.sources)
            except Exception as error:
                self._waiting.remove(request)
                request.output.end(error)
                continue
            self._waiting.remove(request)
            request.begun_at = request.num_cached
            self._plan_mark(request, shared)
            if request.num_reused is None:
                request.num_reused = request.num_cached
                request.started_at = time.perf_counter()
                self._counters.num_prompt_tokens += request.num_prompt
                self._counters.num_reused_tokens += request.num_cached
            room -= num_pages
            self._live.append(request)

    def _num_pages_promised(self) -> int:
        """Pages that live requests hold, and will for the rest of their prompts."""
        missing = sum(
            max(0, pages_for(len(r.tokens) + 1) - self._sequences.num_pages_of(r.sequence))
            for r in self._live
            if r.sequence is not None
        )
        return self._sequences.num_pages_of_live + missing

    def _is_worth_waiting(self, request: Request) -> bool:
        """Whether a live request is about to compute a long beginning that this one shares, as n answers do."""
        for other in self._live:
            if other.owner != request.owner or other.num_cached >= other.num_prompt:
                continue
            if other.is_background and not request.is_background:
                continue
            num_shared = min(common_prefix(request.tokens, other.tokens), len(request.tokens) - 1)
            if not self._sequences.is_exact and num_shared < other.num_prompt - 1:
                num_shared = other.place_before(num_shared)  # the other one stops there, if it has no stop yet
                stop = other.mark_at
                if num_shared not in other.marks and stop not in (None, num_shared) and other.num_cached < stop:
                    continue
            gained = num_shared - self._num_reusable(request, but=other.sequence)
            if num_shared > other.num_cached and gained >= _WORTH_WAITING_TOKENS:
                if num_shared < other.num_prompt - 1 and num_shared not in other.marks:
                    other.mark_at = num_shared
                return True
        return False

    def _num_reusable(self, request: Request, but: CachedSequence | None = None) -> int:
        return self._sequences.num_reusable(request.tokens, but=but, owner=request.owner)

    def _is_restoring(self, request: Request) -> bool:
        """Whether a beginning of the request is being read from disk. What was read goes to the executor."""
        if self._saver is None:
            return False
        if not request.has_looked:
            request.has_looked = True
            if self._sequences.num_pages_of_live < self._num_pages:
                request.restore = self._saver.begin_restore(
                    request.tokens[:-1],
                    request.owner,
                    above=self._num_reusable(request),
                    max_tokens=(self._num_pages - self._num_pages_promised()) * PAGE_TOKENS,
                )
        if request.restore is None:
            return False
        try:
            if request.restore.advance(self._sequences):
                return True
        except Exception as error:
            _log.warning("a stored prefix could not be used: %s", error)
            request.restore.stop(self._sequences)
        request.restore = None
        return False

    def _plan_mark(self, request: Request, num_shared: int) -> None:
        """Where other conversations part from this prompt, and nothing could be reused, the next ones may start."""
        if self._sequences.is_exact:
            return
        if self._saver is not None:
            num_shared = max(num_shared, self._saver.num_shared(request.tokens, request.owner))
        # A prompt that comes again needs one token less, which may need exact pages that its end does not.
        if request.num_prompt % PAGE_TOKENS <= 1 and not request.marks:
            request.end_mark_at = request.num_prompt - 1
        place = request.place_before(min(num_shared, request.num_prompt - 1))
        request.mark_at = place if place - request.num_cached >= PAGE_TOKENS else None
