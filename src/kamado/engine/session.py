"""Sessions: sequences of the executor with the tokens they hold, kept for reuse until their pages are needed.

A request starts from the session that shares the longest beginning with its tokens, to the token: what the cache
holds is exact, so any point of it may be continued. The session is taken over when little of it would be lost, else
forked: full pages are then shared. Pages are counted here as the executor counts them, so that a step never finds the
cache full.

All of this belongs to the scheduler's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from ..memory.forecast import PAGE_TOKENS
from .executor_protocol import ExecutorProtocol

# A session whose tail past the common beginning is longer than this is kept and forked: it is another conversation.
_DISCARDED_TAIL = PAGE_TOKENS


@dataclass(slots=True, eq=False)
class _Page:
    num_owners: int = 1


@dataclass(slots=True, eq=False)
class Session:
    """One sequence. `tokens[i]` is the token at position i of the cache."""

    sequence: int
    tokens: list[int]
    pages: list[_Page] = field(default_factory=list)
    is_live: bool = True  # a request uses it; otherwise it may be taken over, forked or dropped
    last_used: int = 0

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self.tokens)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common beginning. Slices that grow are compared in C: 1 µs if short, 50 for 10k tokens."""
    low, size = 0, 16
    end = min(len(a), len(b))
    while low < end and a[low : low + size] == b[low : low + size]:
        low += size
        size *= 4
    if low >= end:
        return end
    high = min(low + size, end)
    if high == end and a[low:end] == b[low:end]:  # the longer one's slice went on
        return end
    while high - low > 1:  # equal before low, different before high
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


class SessionCache:
    """All sessions of one executor, live and idle."""

    def __init__(self, executor: ExecutorProtocol, *, kv_tokens: int, max_sequences: int) -> None:
        self.executor = executor
        self.num_pages = kv_tokens // PAGE_TOKENS
        self._max_sequences = max_sequences
        self._num_used_pages = 0
        self._sessions: list[Session] = []
        self._clock = count(1)

    @property
    def num_free_pages(self) -> int:
        """Pages that nobody holds."""
        return self.num_pages - self._num_used_pages

    @property
    def num_sessions(self) -> int:
        """Live and idle sessions."""
        return len(self._sessions)

    @property
    def num_pages_of_live(self) -> int:
        """Pages that live sessions hold, shared ones once: all others can be had."""
        return len({id(page) for session in self._sessions if session.is_live for page in session.pages})

    def can_admit(self) -> bool:
        """Whether one more session can be live."""
        return len(self._sessions) < self._max_sequences or any(not session.is_live for session in self._sessions)

    def num_reusable(self, tokens: Sequence[int], but: Session | None = None) -> int:
        """Tokens of the longest beginning that sessions hold now, one of them left aside."""
        return self._best(tokens, but)[1]

    def acquire(self, tokens: Sequence[int]) -> Session:
        """A live session that holds a beginning of `tokens`, the longest there is, but never all of them.

        The caller has checked `can_admit`.
        """
        source, length = self._best(tokens)
        if source is None:
            return self._create()
        if source.is_live or source.length - length > _DISCARDED_TAIL:
            forked = self._fork(source, length)
            if forked is not None:
                return forked
        if source.is_live:  # no room even for the fork's partial page
            return self._create()
        self.truncate(source, length)
        source.is_live = True
        source.last_used = next(self._clock)
        return source

    def create_empty(self) -> Session | None:
        """A live session without tokens, for a job; None when all sequences are live."""
        return self._create() if self.can_admit() else None

    def release(self, session: Session) -> None:
        """The session is idle: kept for reuse until its pages are needed."""
        session.is_live = False
        session.last_used = next(self._clock)
        if not session.tokens:
            self.drop(session)

    def drop(self, session: Session) -> None:
        """Frees the session and its pages."""
        self._sessions.remove(session)
        self._give_back(session, 0)
        self.executor.free_sequence(session.sequence)

    def drop_all(self) -> None:
        """Frees every session."""
        for session in list(self._sessions):
            self.drop(session)

    def truncate(self, session: Session, length: int) -> None:
        """Forgets what comes after the first `length` tokens."""
        if length == session.length:
            return
        self.executor.truncate(session.sequence, length)
        del session.tokens[length:]
        self._give_back(session, -(-length // PAGE_TOKENS))

    def reserve(self, session: Session, length: int) -> bool:
        """Counts pages for `length` tokens, dropping idle sessions, oldest first; False if live ones hold too much."""
        first_written = session.length // PAGE_TOKENS
        has_shared = first_written < len(session.pages) and session.pages[first_written].num_owners > 1
        num_more = -(-length // PAGE_TOKENS) - len(session.pages)
        if num_more <= 0 and not has_shared:
            return True
        if not self._make_room(max(0, num_more) + has_shared, keep=session):
            return False
        if has_shared and session.pages[first_written].num_owners > 1:
            session.pages[first_written].num_owners -= 1  # the executor copies a shared page before it writes to it
            session.pages[first_written] = _Page()
            self._num_used_pages += 1
        if num_more > 0:
            session.pages.extend(_Page() for _ in range(num_more))
            self._num_used_pages += num_more
        return True

    def _best(self, tokens: Sequence[int], but: Session | None = None) -> tuple[Session | None, int]:
        """The session with the longest usable common beginning; at least one token is left to compute."""
        best: Session | None = None
        best_rank = (0, False, 0)
        for session in self._sessions:
            length = best_rank[0]
            if session is not but and session.length >= length and tokens[:length] == session.tokens[:length]:
                length = min(common_prefix(tokens, session.tokens), len(tokens) - 1)
                rank = (length, not session.is_live, -session.length)  # an idle one, and one with little to lose
                if length and (best is None or rank > best_rank):
                    best, best_rank = session, rank
        return best, best_rank[0]

    def _create(self) -> Session:
        self._make_sequence()
        return self._add(self.executor.create_sequence(), [])

    def _fork(self, source: Session, length: int) -> Session | None:
        num_full = length // PAGE_TOKENS
        has_partial = length % PAGE_TOKENS > 0
        was_live, source.is_live = source.is_live, True  # not to be dropped for its own copy
        try:
            if not self._make_sequence() or not self._make_room(int(has_partial)):
                return None
        finally:
            source.is_live = was_live
        session = self._add(self.executor.fork_sequence(source.sequence, length), source.tokens[:length])
        session.pages = source.pages[:num_full]
        for page in session.pages:
            page.num_owners += 1
        if has_partial:
            session.pages.append(_Page())
            self._num_used_pages += 1
        return session

    def _add(self, sequence: int, tokens: list[int]) -> Session:
        session = Session(sequence, tokens, last_used=next(self._clock))
        self._sessions.append(session)
        return session

    def _make_sequence(self) -> bool:
        """Room for one more sequence, an idle one dropped if need be."""
        return len(self._sessions) < self._max_sequences or self._drop_oldest(None)

    def _make_room(self, num_pages: int, keep: Session | None = None) -> bool:
        while self.num_free_pages < num_pages:
            if not self._drop_oldest(keep):
                return False
        return True

    def _drop_oldest(self, keep: Session | None) -> bool:
        idle = [session for session in self._sessions if not session.is_live and session is not keep]
        if not idle:
            return False
        self.drop(min(idle, key=lambda session: session.last_used))
        return True

    def _give_back(self, session: Session, num_kept: int) -> None:
        for page in session.pages[num_kept:]:
            page.num_owners -= 1
            self._num_used_pages -= page.num_owners == 0
        del session.pages[num_kept:]
