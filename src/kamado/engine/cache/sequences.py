"""Sessions: sequences of the executor with the tokens they hold, kept for reuse until their pages are needed.

A request starts from the session of its owner that shares the longest usable beginning with its tokens, to the token.
Where the cache is exact any length may be used; else the lengths at which the executor still has exact pages: the end
of a prompt, the end of an answer, a place that was marked because conversations part there; where a step replaces what
the sequence keeps (a record), at marks alone. The session is taken over when little of it would be lost, else forked:
full pages are then shared. When pages run out, what was used longest ago goes first, from its end, after it was handed
to the prefix store.

The executor counts the pages. Those of a step are reserved before it, so that no step finds the cache full. All of this
belongs to the scheduler's thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import NativeError
from ...plan.kv_presets import PAGE_TOKENS, pages_for
from ..schedule.executor_protocol import ExecutorProtocol
from .prefix_tree import PrefixTree, common_prefix

__all__ = ["PAGE_TOKENS", "Keeping", "Session", "SessionCache", "Sources", "common_prefix"]


class NoRoomError(NativeError):
    """A job found no sequence or too few pages. It is tried again when a request ends; alone it fails."""


# A session whose tail past the common beginning is longer than this is kept and forked: it is another conversation.
_DISCARDED_TAIL = PAGE_TOKENS


@dataclass(slots=True, eq=False)
class Session:
    """One sequence. `tokens[i]` is the token at position i of the cache."""

    sequence: int
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
        """Whose sessions these are: those of one owner that read the same sources."""
        state = blake2b(digest_size=16)
        for number, k, v in self.rows:
            state.update(f"{number} {k.shape} {v.shape}".encode())
            state.update(k.tobytes() + v.tobytes())
        return f"{owner}\0{state.hexdigest()}"


class Keeping(Protocol):
    """Who is told what happens to sessions: the prefix store's keeper."""

    def cut(self, session: Session, length: int) -> None:
        """The session is about to be cut to `length`, 0 when it goes: the last moment to save what comes after."""
        ...


class SessionCache:
    """All sessions of one executor, live and idle."""

    def __init__(self, executor: ExecutorProtocol, *, max_sequences: int, keeper: Keeping | None = None) -> None:
        self.executor = executor
        self._max_sequences = max_sequences
        self._keeper = keeper
        self._sessions: list[Session] = []
        self._tree = PrefixTree()
        self._clock = count(1)
        self._is_exact = executor.can_reuse_anywhere

    @property
    def is_exact(self) -> bool:
        """Whether a session may be cut or forked at any length."""
        return self._is_exact

    @property
    def num_sessions(self) -> int:
        """Live and idle sessions."""
        return len(self._sessions)

    @property
    def num_pages_of_live(self) -> int:
        """Pages that live sessions hold, shared ones once: all others can be had."""
        return self.executor.count_pages([session.sequence for session in self._sessions if session.is_live])

    def count_pages(self) -> dict[str, int]:
        """Pages by state: of `live` sessions, `kept` for reuse, `free`, and `lost`: nobody could give them back."""
        executor, live = self.executor, self.num_pages_of_live
        held = executor.count_pages([session.sequence for session in self._sessions])
        free = executor.num_free_pages
        return {"live": live, "kept": held - live, "free": free, "lost": executor.num_pages - free - held}

    def num_pages_of(self, session: Session) -> int:
        """Pages that the session holds, those reserved for its next step included."""
        return self.executor.count_pages([session.sequence])

    def can_admit(self) -> bool:
        """Whether one more session can be live."""
        return len(self._sessions) < self._max_sequences or any(not session.is_live for session in self._sessions)

    def num_reusable(self, tokens: Sequence[int], but: Session | None = None, owner: str = "") -> int:
        """Tokens of the longest usable beginning that sessions hold now, one of them left aside."""
        return self._best(tokens, owner, but)[1]

    def num_shared(self, tokens: Sequence[int], owner: str = "") -> int:
        """Tokens of the longest beginning that any of the owner's sessions shares, usable or not."""
        return max((length for _, length in self._tree.match(owner, tokens)), default=0)

    def acquire(self, tokens: Sequence[int], owner: str = "", sources: Sources | None = None) -> Session:
        """A live session that holds a beginning of `tokens`, the longest there is, but never all of them.

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

    def begin_import(self, num_tokens: int, owner: str) -> Session | None:
        """An idle session without tokens, with pages for `num_tokens` that will be restored; None if there is no room.

        It gives way like any idle one: ask `holds` before each of the following two.
        """
        if not self.can_admit() or not self._make_sequence() or not self._make_room(pages_for(num_tokens)):
            return None
        session = self._add(self.executor.begin_import(num_tokens), [], owner)
        session.is_live = False
        return session

    def import_page(self, session: Session, page: int, payload: memoryview) -> None:
        """The next page of a session that is being restored; ValueError when the executor wants another size."""
        self.executor.import_pages(session.sequence, page, page + 1, payload)

    def finish_import(self, session: Session, tokens: list[int], tail: memoryview) -> None:
        """The last piece: from now on the session holds `tokens`. ValueError as `import_page`."""
        self.executor.import_tail(session.sequence, tail)
        session.last_used = next(self._clock)
        self.extend(session, tokens)

    def holds(self, session: Session) -> bool:
        """Whether the session has not been dropped."""
        return session in self._sessions

    @contextmanager
    def lent(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Sequences without tokens for a job, with pages for so many tokens each; they go when it ends.

        Raises NoRoomError.
        """
        opened: list[Session] = []
        try:
            for length in lengths:
                if not self.can_admit():
                    raise NoRoomError("all sequences are in use")
                opened.append(self._create(""))
                if not self.reserve(opened[-1], length):
                    raise NoRoomError("too few pages are free")
            yield [session.sequence for session in opened]
        finally:
            for session in opened:
                self.drop(session)

    def extend(self, session: Session, tokens: Sequence[int]) -> None:
        """A step has appended `tokens`."""
        session.tokens += tokens
        self._tree.update(session)

    def mark(self, session: Session) -> None:
        """The session's present length is a place that others may start from."""
        if not self._is_exact and session.tokens:
            self.executor.mark_reuse(session.sequence)

    def release(self, session: Session) -> None:
        """The session is idle: kept for reuse until its pages are needed."""
        self.executor.give_back(session.sequence)  # what was reserved for a step that did not run
        session.is_live = False
        session.last_used = next(self._clock)
        if not session.tokens:
            self.drop(session)

    def drop(self, session: Session) -> None:
        """Frees the session and its pages."""
        self._sessions.remove(session)
        self._tree.remove(session)
        self.executor.free_sequence(session.sequence)

    def truncate(self, session: Session, length: int) -> None:
        """Forgets what comes after the first `length` tokens."""
        if length == session.length:
            return
        if self._keeper is not None:
            self._keeper.cut(session, length)
        self.executor.truncate(session.sequence, length)
        del session.tokens[length:]
        self._tree.update(session)

    def reserve(self, session: Session, length: int) -> bool:
        """Takes pages for `length` tokens, dropping idle sessions, oldest first; False if live ones hold too much."""
        executor, sequence = self.executor, session.sequence
        while not executor.reserve(sequence, length):
            # A shared page is copied before it is written to.
            num_copied = executor.shared_pages(sequence, session.length // PAGE_TOKENS)
            num_missing = pages_for(length) - self.num_pages_of(session) + num_copied
            if not self._drop_oldest(num_missing, keep=session):
                return False
        return True

    def usable(self, session: Session, length: int) -> int:
        """The greatest length up to `length` at which the session may be cut, forked or saved."""
        if self._is_exact:
            return min(length, session.length)
        return self.executor.last_reusable(session.sequence, min(length, session.length))

    def _best(self, tokens: Sequence[int], owner: str, but: Session | None = None) -> tuple[Session | None, int]:
        """The session with the longest usable common beginning; at least one token is left to compute."""
        best: Session | None = None
        best_rank = (0, False, 0)
        for session, shared in self._tree.match(owner, tokens):
            assert isinstance(session, Session)
            shared = min(shared, len(tokens) - 1)
            if shared < best_rank[0] or session is but:
                continue
            length = self.usable(session, shared)
            rank = (length, not session.is_live, -session.length)  # an idle one, and one with little to lose
            if length and (best is None or rank > best_rank):
                best, best_rank = session, rank
        return best, best_rank[0]

    def _create(self, owner: str, sources: Sources | None = None) -> Session:
        self._make_sequence()
        session = self._add(self.executor.create_sequence(), [], owner)
        try:
            for state, k, v in () if sources is None else sources.rows:
                self.executor.set_source(session.sequence, state, k, v)
        except Exception:
            self.drop(session)
            raise
        return session

    def _fork(self, source: Session, length: int) -> Session | None:
        was_live, source.is_live = source.is_live, True  # not to be dropped for its own copy
        try:
            if not self._make_sequence() or not self._make_room(int(length % PAGE_TOKENS > 0)):
                return None
        finally:
            source.is_live = was_live
        if self.usable(source, length) != length:
            return None
        source.last_used = next(self._clock)
        sequence = self.executor.fork_sequence(source.sequence, length)
        return self._add(sequence, source.tokens[:length], source.owner)

    def _add(self, sequence: int, tokens: list[int], owner: str) -> Session:
        session = Session(sequence, tokens, owner, last_used=next(self._clock))
        self._sessions.append(session)
        self._tree.add(session)
        return session

    def _make_sequence(self) -> bool:
        """Room for one more sequence, an idle one dropped if need be."""
        if len(self._sessions) < self._max_sequences:
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

    def _drop_oldest(self, num_wanted: int, keep: Session | None) -> bool:
        """Takes pages of the idle session that was used longest ago, so that `num_wanted` are free if it has so many;
        False when there is none."""
        oldest = self._oldest_idle(keep)
        if oldest is not None:
            self._shrink(oldest, num_wanted - self.executor.num_free_pages)
        return oldest is not None

    def _shrink(self, session: Session, num_pages: int) -> None:
        """Gives back an idle session's last pages, so that its beginning can still be reused; all if nothing usable is
        left."""
        num_held = pages_for(session.length)
        length = max(0, num_held - num_pages) * PAGE_TOKENS
        while length > 0:
            length = self.usable(session, length)
            first = pages_for(length)
            if length == 0 or self.executor.shared_pages(session.sequence, first) < num_held - first:
                break
            length = (first - 1) * PAGE_TOKENS  # what came after is shared: nothing would be freed
        if length > 0:
            self.truncate(session, length)
        else:
            self._drop_saved(session)

    def _drop_saved(self, session: Session) -> None:
        if self._keeper is not None:
            self._keeper.cut(session, 0)
        self.drop(session)

    def _oldest_idle(self, keep: Session | None) -> Session | None:
        idle = [session for session in self._sessions if not session.is_live and session is not keep]
        return min(idle, key=lambda session: session.last_used, default=None)
