"""Sequences of the executor with the tokens they hold, kept for reuse until their pages are needed.

A request starts from the sequence of its owner that shares the longest usable beginning with its tokens, to the token.
Where the cache is exact any length may be used; else the lengths at which the executor still has exact pages: the end
of a prompt, the end of an answer, a place that was marked because conversations part there; where a step replaces what
the sequence keeps (a record), at marks alone. The sequence is taken over when little of it would be lost, else forked:
full pages are then shared. When pages run out, what was used longest ago goes first, from its end, after it was handed
to the prefix store.

The executor counts the pages. Those of a step are reserved before it, so that no step finds the cache full. All of this
belongs to the scheduler's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count

import numpy as np
from numpy.typing import NDArray

from ...errors import NativeError
from ...plan.kv_pages import PAGE_TOKENS, pages_for
from ..executor_protocol import ExecutorProtocol
from .prefix_tree import PrefixTree, common_prefix

__all__ = ["PAGE_TOKENS", "CachedSequence", "SequenceCache", "Sources", "common_prefix"]


class NoRoomError(NativeError):
    """A job found no sequence or too few pages. It is tried again when a request ends; alone it fails."""


# A sequence whose tail past the common beginning is longer than this is kept and forked: it is another conversation.
_DISCARDED_TAIL = PAGE_TOKENS


@dataclass(slots=True, eq=False)
class CachedSequence:
    """One sequence. `tokens[i]` is the token at position i of the cache."""

    id: int
    tokens: list[int]
    owner: str = ""  # who may reuse it: an API key's name; "" is the local user
    is_live: bool = True  # a request uses it; otherwise it may be taken over, forked or dropped
    last_used: int = 0

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Sources:
    """Keys and values that are made once, from an encoder's rows, and read by every step."""

    # The number of the program's state, float32[n, kv_heads · head_dim], float32[n, kv_heads · v_dim].
    rows: tuple[tuple[int, NDArray[np.float32], NDArray[np.float32]], ...]

    def owner(self, owner: str) -> str:
        """Whose sequences these are: those of one owner that read the same sources."""
        state = blake2b(digest_size=16)
        for number, k, v in self.rows:
            state.update(f"{number} {k.shape} {v.shape}".encode())
            state.update(k.tobytes() + v.tobytes())
        return f"{owner}\0{state.hexdigest()}"


class SequenceCache:
    """All sequences of one executor, live and idle."""

    def __init__(
        self,
        executor: ExecutorProtocol,
        *,
        max_sequences: int,
        before_cut: Callable[[CachedSequence, int], None] | None = None,
    ) -> None:
        """`before_cut(sequence, length)`: it is about to be cut to `length`, 0 when it goes. That is the last moment to
        save what comes after."""
        self.executor = executor
        self._max_sequences = max_sequences
        self._before_cut = before_cut or (lambda sequence, length: None)
        self._sequences: list[CachedSequence] = []
        self._tree = PrefixTree()
        self._clock = count(1)
        self._is_exact = executor.can_reuse_anywhere

    @property
    def is_exact(self) -> bool:
        """Whether a sequence may be cut or forked at any length."""
        return self._is_exact

    @property
    def num_sequences(self) -> int:
        """Live and idle sequences."""
        return len(self._sequences)

    @property
    def num_pages_of_live(self) -> int:
        """Pages that live sequences hold, shared ones once: all others can be had."""
        return self.executor.count_pages([sequence.id for sequence in self._sequences if sequence.is_live])

    def count_pages(self) -> dict[str, int]:
        """Pages by state: of `live` sequences, `kept` for reuse, `free`, and `lost`: nobody could give them back."""
        executor, live = self.executor, self.num_pages_of_live
        held = executor.count_pages([sequence.id for sequence in self._sequences])
        free = executor.num_free_pages
        return {"live": live, "kept": held - live, "free": free, "lost": executor.num_pages - free - held}

    def num_pages_of(self, sequence: CachedSequence) -> int:
        """Pages that the sequence holds, those reserved for its next step included."""
        return self.executor.count_pages([sequence.id])

    def can_admit(self) -> bool:
        """Whether one more sequence can be live."""
        return len(self._sequences) < self._max_sequences or any(not sequence.is_live for sequence in self._sequences)

    def num_reusable(self, tokens: Sequence[int], but: CachedSequence | None = None, owner: str = "") -> int:
        """Tokens of the longest usable beginning that sequences hold now, one of them left aside."""
        return self._best(tokens, owner, but)[1]

    def num_shared(self, tokens: Sequence[int], owner: str = "") -> int:
        """Tokens of the longest beginning that any of the owner's sequences shares, usable or not."""
        return max((length for _, length in self._tree.match(owner, tokens)), default=0)

    def acquire(self, tokens: Sequence[int], owner: str = "", sources: Sources | None = None) -> CachedSequence:
        """A live sequence that holds a beginning of `tokens`, the longest there is, but never all of them.

        The caller has checked `can_admit`. `owner` is of those who read the same `sources`.
        """
        source, length = self._best(tokens, owner)
        if source is None:
            return self._create(owner, sources)
        if source.is_live or source.length - length > _DISCARDED_TAIL:
            forked = self._fork(source, length)
            if forked is not None:
                return forked
        length = self.usable(source, length)  # making room may have cost exact pages
        if source.is_live or not length:  # no room even for the fork's partial page
            return self._create(owner, sources)
        self.truncate(source, length)
        source.is_live = True
        source.last_used = next(self._clock)
        return source

    def begin_import(self, num_tokens: int, owner: str) -> CachedSequence | None:
        """An idle sequence without tokens, with pages for `num_tokens` that will be restored; None if there is no room.

        It gives way like any idle one: ask `holds` before each of the following two.
        """
        if not self.can_admit() or not self._make_sequence() or not self._make_room(pages_for(num_tokens)):
            return None
        sequence = self._add(self.executor.begin_import(num_tokens), [], owner)
        sequence.is_live = False
        return sequence

    def import_page(self, sequence: CachedSequence, page: int, payload: memoryview) -> None:
        """The next page of a sequence that is being restored; ValueError when the executor wants another size."""
        self.executor.import_pages(sequence.id, page, page + 1, payload)

    def finish_import(self, sequence: CachedSequence, tokens: list[int], tail: memoryview) -> None:
        """The last piece: from now on the sequence holds `tokens`. ValueError as `import_page`."""
        self.executor.import_tail(sequence.id, tail)
        sequence.last_used = next(self._clock)
        self.extend(sequence, tokens)

    def holds(self, sequence: CachedSequence) -> bool:
        """Whether the sequence has not been dropped."""
        return sequence in self._sequences

    @contextmanager
    def lent(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Sequences without tokens for a job, with pages for so many tokens each; they go when it ends.

        Raises NoRoomError.
        """
        opened: list[CachedSequence] = []
        try:
            for length in lengths:
                if not self.can_admit():
                    raise NoRoomError("all sequences are in use")
                opened.append(self._create(""))
                if not self.reserve(opened[-1], length):
                    raise NoRoomError("too few pages are free")
            yield [sequence.id for sequence in opened]
        finally:
            for sequence in opened:
                self.drop(sequence)

    def extend(self, sequence: CachedSequence, tokens: Sequence[int]) -> None:
        """A step has appended `tokens`."""
        sequence.tokens += tokens
        self._tree.update(sequence)

    def mark(self, sequence: CachedSequence) -> None:
        """The sequence's present length is a place that others may start from."""
        if not self._is_exact and sequence.tokens:
            self.executor.mark_reuse(sequence.id)

    def unmark(self, sequence: CachedSequence, length: int) -> None:
        """That length need not be kept any longer; it may have been given up."""
        with suppress(ValueError):
            self.executor.unmark_reuse(sequence.id, length)

    def release(self, sequence: CachedSequence) -> None:
        """The sequence is idle: kept for reuse until its pages are needed."""
        self.executor.give_back(sequence.id)  # what was reserved for a step that did not run
        sequence.is_live = False
        sequence.last_used = next(self._clock)
        if not sequence.tokens:
            self.drop(sequence)

    def drop(self, sequence: CachedSequence) -> None:
        """Frees the sequence and its pages."""
        self._sequences.remove(sequence)
        self._tree.remove(sequence)
        self.executor.free_sequence(sequence.id)

    def truncate(self, sequence: CachedSequence, length: int) -> None:
        """Forgets what comes after the first `length` tokens."""
        if length == sequence.length:
            return
        self._before_cut(sequence, length)
        self.executor.truncate(sequence.id, length)
        del sequence.tokens[length:]
        self._tree.update(sequence)

    def reserve(self, sequence: CachedSequence, length: int) -> bool:
        """Takes pages for `length` tokens, dropping idle sequences, oldest first; False if live ones hold too much."""
        executor, sequence_id = self.executor, sequence.id
        while not executor.reserve(sequence_id, length):
            # A shared page is copied before it is written to.
            num_copied = executor.shared_pages(sequence_id, sequence.length // PAGE_TOKENS)
            num_missing = pages_for(length) - self.num_pages_of(sequence) + num_copied
            if not self._drop_oldest(num_missing, keep=sequence):
                return False
        return True

    def usable(self, sequence: CachedSequence, length: int) -> int:
        """The greatest length up to `length` at which the sequence may be cut, forked or saved."""
        if self._is_exact:
            return min(length, sequence.length)
        return self.executor.last_reusable(sequence.id, min(length, sequence.length))

    def _best(
        self, tokens: Sequence[int], owner: str, but: CachedSequence | None = None
    ) -> tuple[CachedSequence | None, int]:
        """The sequence with the longest usable common beginning; at least one token is left to compute."""
        best: CachedSequence | None = None
        best_rank = (0, False, 0)
        for sequence, shared in self._tree.match(owner, tokens):
            assert isinstance(sequence, CachedSequence)
            shared = min(shared, len(tokens) - 1)
            if shared < best_rank[0] or sequence is but:
                continue
            length = self.usable(sequence, shared)
            rank = (length, not sequence.is_live, -sequence.length)  # an idle one, and one with little to lose
            if length and (best is None or rank > best_rank):
                best, best_rank = sequence, rank
        return best, best_rank[0]

    def _create(self, owner: str, sources: Sources | None = None) -> CachedSequence:
        self._make_sequence()
        sequence = self._add(self.executor.create_sequence(), [], owner)
        try:
            for state, k, v in () if sources is None else sources.rows:
                self.executor.set_source(sequence.id, state, k, v)
        except Exception:
            self.drop(sequence)
            raise
        return sequence

    def _fork(self, source: CachedSequence, length: int) -> CachedSequence | None:
        was_live, source.is_live = source.is_live, True  # not to be dropped for its own copy
        try:
            if not self._make_sequence() or not self._make_room(int(length % PAGE_TOKENS > 0)):
                return None
        finally:
            source.is_live = was_live
        if self.usable(source, length) != length:
            return None
        source.last_used = next(self._clock)
        sequence_id = self.executor.fork_sequence(source.id, length)
        return self._add(sequence_id, source.tokens[:length], source.owner)

    def _add(self, sequence_id: int, tokens: list[int], owner: str) -> CachedSequence:
        sequence = CachedSequence(sequence_id, tokens, owner, last_used=next(self._clock))
        self._sequences.append(sequence)
        self._tree.add(sequence)
        return sequence

    def _make_sequence(self) -> bool:
        """Room for one more sequence, an idle one dropped if need be."""
        if len(self._sequences) < self._max_sequences:
            return True
        oldest = self._oldest_idle(None)
        if oldest is not None:
            self._drop_saved(oldest)
        return oldest is not None

    def _make_room(self, num_pages: int) -> bool:
        while self.executor.num_free_pages < num_pages:
            if not self._drop_oldest(num_pages, keep=None):
                return False
        return True

    def _drop_oldest(self, num_wanted: int, keep: CachedSequence | None) -> bool:
        """Takes pages of the idle sequence that was used longest ago, so that `num_wanted` are free if it has so many;
        False when there is none."""
        oldest = self._oldest_idle(keep)
        if oldest is not None:
            self._shrink(oldest, num_wanted - self.executor.num_free_pages)
        return oldest is not None

    def _shrink(self, sequence: CachedSequence, num_pages: int) -> None:
        """Gives back an idle sequence's last pages, so that its beginning can still be reused; all if nothing usable is
        left."""
        num_held = pages_for(sequence.length)
        length = max(0, num_held - num_pages) * PAGE_TOKENS
        while length > 0:
            length = self.usable(sequence, length)
            first = pages_for(length)
            if length == 0 or self.executor.shared_pages(sequence.id, first) < num_held - first:
                break
            length = (first - 1) * PAGE_TOKENS  # what came after is shared: nothing would be freed
        if length > 0:
            self.truncate(sequence, length)
        else:
            self._drop_saved(sequence)

    def _drop_saved(self, sequence: CachedSequence) -> None:
        self._before_cut(sequence, 0)
        self.drop(sequence)

    def _oldest_idle(self, keep: CachedSequence | None) -> CachedSequence | None:
        idle = [sequence for sequence in self._sequences if not sequence.is_live and sequence is not keep]
        return min(idle, key=lambda sequence: sequence.last_used, default=None)
