"""One request: its tokens, what picks the next one, what turns tokens into text, and the queue to its consumer."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ...options import Sampling
from ...plan.kv_pages import PAGE_TOKENS
from ..cache.sequences import CachedSequence, Sources
from ..cache.turn_starts import ANSWER_MARK_TOKENS, NEAR_TOKENS
from ..forms.stops import StopMatcher
from ..forms.token_rule import TokenRule
from ..piece import FinishReason, Piece, Usage
from .repeats import RepeatWatch
from .sampler import Sampler, log_probabilities

if TYPE_CHECKING:
    from ..cache.prefix_reader import Restore

# Pieces that wait for a slow consumer before its request pauses: a second or two of reading.
MAX_QUEUED_PIECES = 64


class Outbox(SimpleQueue["Piece | BaseException | None"]):
    """Pieces on their way to a consumer; an error or None (cancelled) is the last."""

    listener: Callable[[], None] | None = None  # called by the scheduler's thread after something was put in

    def end(self, item: BaseException | None) -> None:
        """Puts the last item in and says so."""
        self.put(item)
        self.announce()

    def announce(self) -> None:
        """Calls the listener."""
        listener = self.listener
        if listener is not None:
            listener()


class TextStream(Protocol):
    """Turns tokens into text, whole characters only."""

    def push(self, token: int, /) -> str:
        """The text that became certain with `token`."""

    def flush(self) -> str:
        """What is left at the end."""


class NoText:
    """For models without a tokenizer: pieces carry tokens only."""

    def push(self, token: int, /) -> str:
        """Always empty."""
        return ""

    def flush(self) -> str:
        """Always empty."""
        return ""


class Request:
    """State of one request. The scheduler's thread changes it; the consumer reads `output` and sets `is_cancelled`."""

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        sampling: Sampling,
        vocab_size: int,
        suppressed: NDArray[np.bool_] | None = None,
        max_tokens: int,
        text: TextStream | None = None,
        stops: Sequence[str] = (),
        stop_ids: frozenset[int] = frozenset(),
        logprobs: int | None = None,
        constraint: TokenRule | None = None,
        is_background: bool = False,
        owner: str = "",
        label: str = "",
        marks: Sequence[int] = (),
        answer_at: int = 0,
        sources: Sources | None = None,
        stop_on_repeat: int | None = None,
    ) -> None:
        """`owner`: whose cached prefixes it may use and adds to. `label`: the named session it belongs to. `marks`:
        lengths of the prompt at which others may start, ascending, where a step replaces what came before it; the
        last one is that from which the same prompt can be answered again. `answer_at`: the one from which the
        conversation goes on when the template leaves out of it what was thought since; it is stored as well."""
        self.tokens = list(prompt)  # the prompt, then what was picked
        self.num_prompt = len(self.tokens)
        self.end = self.num_prompt + max_tokens  # length of `tokens` at which the answer is cut
        self.sampler = Sampler(sampling, vocab_size, self.tokens, suppressed)
        self.repeats = RepeatWatch(stop_on_repeat)
        self.is_background = is_background
        self.output = Outbox()
        self.is_cancelled = False
        self.is_paused = False  # the consumer is slow; it wakes the scheduler when it has read
        self.owner = owner if sources is None else sources.owner(owner)
        self.sources = sources
        self.label = label
        self.sequence: CachedSequence | None = None
        self.restore: Restore | None = None  # what is read from the prefix store for it
        self.has_looked = False  # in the prefix store
        self.mark_at: int | None = None  # a length at which other conversations part from this one
        self.marks = marks
        self.answer_at = answer_at
        self.answer_mark_at = 0  # the last length of the answer that was marked
        self.is_ended = False  # the model ended its turn
        self.begun_at = 0  # tokens that were cached when it became live: a mark right after them is worth no step
        self.end_mark_at = marks[-1] if marks else self.num_prompt  # from where the same prompt can be answered again
        self.last_served = 0
        self.num_reused: int | None = None  # set at the first admission
        self._text = text or NoText()
        self._stops = StopMatcher(stops)
        self._stop_ids = stop_ids
        self._logprobs = logprobs
        self.has_logprobs = logprobs is not None
        self._constraint = constraint
        self.submitted_at = time.perf_counter()
        self.started_at = self.first_at = self.last_at = 0.0

    @property
    def num_cached(self) -> int:
        """Tokens in the executor's cache."""
        return len(self.sequence.tokens) if self.sequence is not None else 0

    @property
    def num_generated(self) -> int:
        """Tokens picked."""
        return len(self.tokens) - self.num_prompt

    @property
    def has_room(self) -> bool:
        """Whether the consumer keeps up."""
        return self.output.qsize() < MAX_QUEUED_PIECES

    def rows_to_mark(self, num_rows: int) -> int:
        """Of the next `num_rows` rows, those up to the next length at which others may start."""
        begin = self.num_cached
        if begin >= self.num_prompt:
            return num_rows
        marks: list[int | None] = [self.mark_at]
        if self.marks:
            marks += self.marks[bisect_right(self.marks, max(begin, self.begun_at + NEAR_TOKENS - 1)) :][:1]
        else:
            marks.append(self.end_mark_at)
        return min([num_rows, *(mark - begin for mark in marks if mark is not None and mark > begin)])

    def is_marked(self, length: int) -> bool:
        """Whether others may want to start at this length."""
        return length in (self.mark_at, self.end_mark_at) or length in self.marks

    def is_answer_marked(self, length: int) -> bool:
        """Whether this length of the answer is the next to be marked, instead of the one before."""
        return bool(self.marks) and length - max(self.num_prompt, self.answer_mark_at) >= ANSWER_MARK_TOKENS

    def place_before(self, length: int) -> int:
        """The best place to part at, up to `length`: a mark that is wanted anyway, or the end of a page."""
        before = bisect_right(self.marks, length)
        return max(length // PAGE_TOKENS * PAGE_TOKENS, self.marks[before - 1] if before else 0)

    def accept(self, logits: NDArray[np.float32]) -> bool:
        """Picks the next token from float32[vocab] and puts its piece out; True when that was the last.

        `output.announce` is left to the caller.
        """
        constraint = self._constraint
        allowed = None if constraint is None else constraint.allowed()
        token = self.sampler.pick(logits, len(self.tokens), allowed)
        if constraint is not None:
            constraint.accept(token)
        logprob, top = (None, ()) if self._logprobs is None else log_probabilities(logits, token, self._logprobs)
        self.tokens.append(token)
        is_repeating = self.repeats.accept(token, logits)
        finish: FinishReason | None = None
        if token in self._stop_ids:
            self.is_ended = True
            text = self._stops.push(self._text.flush()) + self._stops.flush()
            finish = "stop"
        else:
            text = self._stops.push(self._text.push(token))
            is_complete = constraint is not None and constraint.is_complete
            if not self._stops.is_stopped and (is_complete or is_repeating or len(self.tokens) >= self.end):
                finish = "stop" if is_complete else "length"
                text += self._stops.push(self._text.flush())
                text += self._stops.flush()
            if self._stops.is_stopped:
                finish = "stop"
        self.last_at = time.perf_counter()
        if not self.first_at:
            self.first_at = self.last_at
        self.output.put(Piece(text, token, logprob, top, finish))
        return finish is not None

    def usage(self) -> Usage:
        """The account so far."""
        now = time.perf_counter()
        started = self.started_at or now
        return Usage(
            num_prompt_tokens=self.num_prompt,
            num_reused_tokens=self.num_reused or 0,
            num_generated_tokens=self.num_generated,
            queue_seconds=started - self.submitted_at,
            prefill_seconds=(self.first_at or now) - started,
            decode_seconds=max(0.0, self.last_at - self.first_at),
        )
