"""A stored prefix on its way back into memory: threads read and check its files ahead, the scheduler takes them.

No more than a few pages lie in memory twice. What was taken is part of no answer before the last byte of the prefix was
checked: until then the executor has no sequence of it, only pages that are being filled. A file that is damaged,
foreign or gone ends the attempt; the next shorter beginning is tried, and what is left is computed again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import prefix_file
from .prefix_file import DamagedPrefixError
from .prefix_store import PrefixFolder, StoredPoint
from .sequences import PAGE_TOKENS, CachedSequence, SequenceCache

_log = logging.getLogger("kamado.prefixes")

# Two keep both a disk and a checksum busy; the scheduler's thread copies meanwhile.
_NUM_READERS = 2
# What one call between two steps copies: 3 to 8 ms.
_SLICE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Candidate:
    """Files that hold the first `length` tokens: full pages, then a point, or another page where the cache is exact."""

    tokens: bytes  # int32, as long as the beginning
    page_keys: tuple[bytes, ...]  # of the settled pages
    point: StoredPoint | None
    tail_key: bytes = b""  # of the page that is the tail when there is no point

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.tokens) // 4

    @staticmethod
    def of_point(point: StoredPoint, tokens: bytes) -> Candidate:
        """A reuse point with all its tokens."""
        return Candidate(tokens, point.page_keys, point)

    @staticmethod
    def of_pages(keys: Sequence[bytes], tokens: bytes) -> Candidate:
        """Full pages alone: in an exact cache the last of them has the form of a tail. `keys` are at least one."""
        return Candidate(tokens[: 4 * PAGE_TOKENS * len(keys)], tuple(keys[:-1]), None, keys[-1])


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a candidate's payloads, as the executor wants them."""

    page_bytes: int
    tail_bytes: int

    def largest(self, length: int) -> int:
        """Bytes of the largest file of a candidate of that many tokens: what a restore needs at least."""
        files = [prefix_file.file_bytes(length, self.tail_bytes)]
        if prefix_file.settled_pages(length):
            files.append(prefix_file.file_bytes(PAGE_TOKENS, self.page_bytes))
        return max(files)


class _Reader:
    """Reads and checks the files of one candidate, pages first, ahead of who takes them but never more than
    `budget_bytes` at once, a single larger file aside."""

    def __init__(
        self, folder: PrefixFolder, candidate: Candidate, sizes: Sizes, budget_bytes: int, notify: Callable[[], None]
    ) -> None:
        self._folder = folder
        self._candidate = candidate
        self._num_files = len(candidate.page_keys) + 1
        self._sizes = sizes
        self._budget_bytes = budget_bytes
        self._notify = notify
        self._state = threading.Condition()  # guards all below
        self._next = 0  # file that is read next
        self._num_taken = 0
        self._held_bytes = 0  # of files that are being read or were read and not given back
        self._found: dict[int, memoryview | BaseException] = {}
        self._spare: list[bytearray] = []  # page buffers to be used again
        self._is_stopped = False
        for _ in range(min(_NUM_READERS, self._num_files)):
            threading.Thread(target=self._run, name="kamado-restore", daemon=True).start()

    def take(self) -> memoryview | None:
        """The payload of the next file, to be given back before the next call; None while it is being read. Raises
        what reading it did."""
        with self._state:
            found = self._found.pop(self._num_taken, None)
            if found is None:
                return None
            self._num_taken += 1
        if isinstance(found, BaseException):
            self.stop()
            raise found
        return found

    def give_back(self, payload: memoryview) -> None:
        """What `take` gave was used."""
        buffer = payload.obj
        with self._state:
            size = self._file_bytes(self._num_taken - 1)
            self._held_bytes -= size
            if isinstance(buffer, bytearray) and len(buffer) == size:
                self._spare.append(buffer)
            self._state.notify_all()

    def stop(self) -> None:
        """Nothing more is read."""
        with self._state:
            self._is_stopped = True
            self._state.notify_all()

    def _file_bytes(self, index: int) -> int:
        if index < len(self._candidate.page_keys):
            return prefix_file.file_bytes(PAGE_TOKENS, self._sizes.page_bytes)
        return prefix_file.file_bytes(self._candidate.length, self._sizes.tail_bytes)

    def _must_wait(self) -> bool:
        more = self._file_bytes(self._next)
        return self._held_bytes > 0 and self._held_bytes + more > self._budget_bytes

    def _run(self) -> None:
        while True:
            with self._state:
                while not self._is_stopped and self._next < self._num_files and self._must_wait():
                    self._state.wait()
                if self._is_stopped or self._next >= self._num_files:
                    return
                index = self._next
                self._next += 1
                size = self._file_bytes(index)
                self._held_bytes += size
                if index == self._num_files - 1:
                    self._spare.clear()  # pages are over
                buffer = self._spare.pop() if self._spare else None
            found: memoryview | BaseException
            try:
                found = self._read(index, bytearray(size) if buffer is None else buffer)
            except BaseException as error:  # whatever it is, who waits for the file must hear of it
                found = error
            with self._state:
                self._found[index] = found
                if isinstance(found, BaseException):
                    self._is_stopped = True  # files after it are of no use
                is_awaited = index == self._num_taken
            if is_awaited:
                self._notify()

    def _read(self, index: int, buffer: bytearray) -> memoryview:
        candidate, sizes = self._candidate, self._sizes
        is_tail = index == len(candidate.page_keys)
        wanted = sizes.tail_bytes if is_tail else sizes.page_bytes
        if is_tail and candidate.point is not None:
            payload = self._folder.read_point(candidate.point, candidate.tokens, max_payload=wanted, buffer=buffer)
        else:
            key = candidate.tail_key if is_tail else candidate.page_keys[index]
            tokens = candidate.tokens[4 * PAGE_TOKENS * index : 4 * PAGE_TOKENS * (index + 1)]
            payload = self._folder.read_page(key, tokens, max_payload=wanted, buffer=buffer)
        if len(payload) != wanted:
            raise DamagedPrefixError(f"{len(payload)} bytes, where {wanted} make {'a tail' if is_tail else 'a page'}")
        return payload


@dataclass(slots=True)
class RestoreStats:
    """Totals since the model was loaded."""

    num_restored: int = 0
    num_restored_tokens: int = 0
    num_refused: int = 0  # entries that were damaged or foreign, and removed
    restore_seconds: float = 0.0


class Restore:
    """A prefix that is being restored. All methods belong to the scheduler's thread."""

    def __init__(
        self,
        folder: PrefixFolder,
        owner: str,
        candidates: list[Candidate],
        *,
        least_tokens: int,
        budget_bytes: int,
        stats: RestoreStats,
        notify: Callable[[], None],
    ) -> None:
        """`candidates`: what to try, one after another. `least_tokens`: fewer are computed as fast. `notify` is called
        from other threads when `advance` has something to do."""
        self._folder = folder
        self._owner = owner
        self._candidates = candidates
        self._sequence: CachedSequence | None = None
        self._least_tokens = least_tokens
        self._budget_bytes = budget_bytes
        self._stats = stats
        self._notify = notify
        self._reader: _Reader | None = None
        self._num_pages = 0  # taken of the present candidate
        self._started_at = time.perf_counter()

    def advance(self, sequences: SequenceCache) -> bool:
        """Takes what was read; False once it is over, with a new idle sequence or without one."""
        copied_bytes = 0
        while copied_bytes < _SLICE_BYTES:
            if self._reader is None and not self._begin(sequences):
                return False
            assert self._reader is not None
            assert self._sequence is not None
            if not sequences.holds(self._sequence):  # its pages were needed for others
                self._sequence = None
                self.stop(sequences)
                return False
            try:
                payload = self._reader.take()
            except (DamagedPrefixError, OSError) as error:
                self._refuse(error, sequences)
                continue
            if payload is None:
                return True
            copied_bytes += len(payload)
            candidate = self._candidates[0]
            if self._num_pages < len(candidate.page_keys):
                sequences.import_page(self._sequence, self._num_pages, payload)
                self._num_pages += 1
                self._reader.give_back(payload)
                continue
            sequences.finish_import(self._sequence, memoryview(candidate.tokens).cast("i").tolist(), payload)
            if candidate.point is not None:
                self._folder.touch(candidate.point)
            self._stats.num_restored += 1
            self._stats.num_restored_tokens += candidate.length
            self._stats.restore_seconds += time.perf_counter() - self._started_at
            return False
        self._notify()
        return True

    def stop(self, sequences: SequenceCache | None) -> None:
        """Gives up, and what was taken goes; None: the executor is about to be closed."""
        self._candidates.clear()
        if self._reader is not None:
            self._reader.stop()
            self._reader = None
        if self._sequence is not None and sequences is not None and sequences.holds(self._sequence):
            sequences.drop(self._sequence)
        self._sequence = None

    def _begin(self, sequences: SequenceCache) -> bool:
        """Starts to read the next candidate; False when there is none, or no room for it."""
        if not self._candidates:
            return False
        candidate = self._candidates[0]
        self._sequence = sequences.begin_import(candidate.length, self._owner)
        if self._sequence is None:
            return False
        executor = sequences.executor
        sizes = Sizes(executor.page_bytes(), executor.tail_bytes(candidate.length))
        self._num_pages = 0
        self._reader = _Reader(self._folder, candidate, sizes, self._budget_bytes, self._notify)
        return True

    def _refuse(self, error: Exception, sequences: SequenceCache) -> None:
        """The present candidate is not usable, its first pages perhaps."""
        assert self._sequence is not None
        _log.warning("a stored prefix is not usable and is computed again: %s", error)
        self._stats.num_refused += 1
        sequences.drop(self._sequence)
        self._sequence = self._reader = None
        candidate = self._candidates.pop(0)
        if candidate.point is not None:
            self._folder.remove(candidate.point)
        if sequences.is_exact and self._num_pages * PAGE_TOKENS >= self._least_tokens:
            # Longer than what comes next is not certain, but shared with it: nothing more is lost.
            whole = Candidate.of_pages(candidate.page_keys[: self._num_pages], candidate.tokens)
            self._candidates.append(whole)
            self._candidates.sort(key=lambda c: c.length, reverse=True)
