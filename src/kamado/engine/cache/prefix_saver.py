"""Between the scheduler and the prefix store: what is saved when, and what is restored, without holding up answers.

Saving: when an answer ends, or a place is reached where conversations part, the sequence's prefix is queued. Between
steps the scheduler's thread copies a few pages at a time out of the executor, as long as the writer keeps up; a thread
of its own checks them in and writes them. A sequence that must give up its pages is saved first, for a second at most.

Restoring: threads read and check a prefix page by page while other answers go on, and between steps the scheduler hands
the executor what is there (prefix_reader.py). A prefix that is damaged, foreign or gone is removed and computed again.

A store that cannot be written (a full disk, no permission) costs its entries and one warning, nothing else.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ..executor_protocol import ExecutorProtocol
from . import prefix_file
from .prefix_reader import Candidate, Restore, RestoreStats, Sizes
from .prefix_store import PrefixFolder, PrefixStore
from .sequences import PAGE_TOKENS, CachedSequence

_log = logging.getLogger("kamado.prefixes")

# What is queued for the writer at once: enough to keep a disk busy, little beside any budget.
_QUEUED_BYTES = 16 << 20
# What one call between two steps copies: 1 to 4 ms.
_SLICE_BYTES = 4 << 20
# What a restore holds beside the cache: enough to keep two threads reading while a third copies.
_READ_AHEAD_BYTES = 12 << 20
_WORTH_TOKENS = PAGE_TOKENS  # fewer tokens than this are computed as fast as they are read
_DROP_SECONDS = 1.0  # what saving may hold up a step that needs the sequence's pages
_CLOSE_SECONDS = 20.0


@dataclass(slots=True)
class SaverStats(RestoreStats):
    """Totals since the model was loaded."""

    num_saved: int = 0
    num_given_up: int = 0  # not saved: no room, a full disk, or the sequence changed too soon
    written_bytes: int = 0


@dataclass(slots=True, eq=False)
class _Entry:
    """A prefix on its way to disk."""

    sequence: CachedSequence
    length: int
    label: str
    folder: PrefixFolder
    tokens: bytes
    keys: list[bytes]
    is_place: bool = False
    next_page: int = 0
    written: list[bytes] = field(default_factory=list)  # keys of pages that this entry wrote
    has_failed: bool = False  # set by the writer: the rest is passed over


class PrefixSaver:
    """Saves and restores prefixes of one model. `save`, `advance`, `cut`, `begin_restore` belong to the scheduler."""

    def __init__(
        self,
        store: PrefixStore,
        executor: ExecutorProtocol,
        *,
        binding: dict[str, str],
        about: dict[str, str] | None = None,
        spare_bytes: Callable[[], int] | None = None,
        has_record: bool = False,
    ) -> None:
        """`binding` names model file, build and preset. `spare_bytes()`: what a restore may take beside the plan. With
        `has_record` a prefix can be used whole only."""
        self.store = store
        self.stats = SaverStats()
        self._executor = executor
        self._binding = binding
        self._about = about or {}
        self._spare_bytes = spare_bytes or (lambda: 1 << 62)
        self._has_record = has_record
        self._folders: dict[str, PrefixFolder] = {}
        self._entries: deque[_Entry] = deque()
        self._notify: Callable[[], None] = lambda: None

        self._queue: deque[tuple[_Entry, bytes | None, bytes]] = deque()  # entry, page's key or None, payload
        self._queued_bytes = 0
        self._state = threading.Condition()  # guards the queue
        self._is_closing = False
        self._has_warned = False
        self._writer: threading.Thread | None = None

    def attach(self, notify: Callable[[], None]) -> None:
        """`notify` is called from other threads when the scheduler has something to do."""
        self._notify = notify

    # Saving; the scheduler's thread.

    def save(self, sequence: CachedSequence, length: int, label: str = "", *, is_place: bool = False) -> None:
        """Queues the sequence's first `length` tokens unless hardly more than what is stored already. `is_place`: one
        from which the conversation may have to go on, also when it has gone on from a later one."""
        tokens = prefix_file.token_bytes(sequence.tokens[:length])
        folder = self._folder(sequence.owner)
        for entry in self._entries:
            if entry.folder is folder and entry.length <= length and tokens.startswith(entry.tokens):
                if not label and entry.label:
                    label = entry.label
                if entry.sequence is sequence and entry.length == length:
                    entry.label = label
                    return
        if self._is_closing or length < (1 if label else _WORTH_TOKENS):
            return
        try:
            stored = next(folder.find(tokens), None)
            if stored is not None and label and stored.length == length:
                if folder.point_label(stored.path) == label:
                    return
            elif stored is not None and length - stored.length < (1 if label else _WORTH_TOKENS):
                return
        except OSError:
            return
        # An answer that went on from a queued place makes the shorter one pointless, unless others start there too.
        for entry in [e for e in self._entries if e.sequence is sequence and e.next_page == 0 and e.length < length]:
            if not entry.is_place and (not entry.label or entry.label == label):
                self._entries.remove(entry)
        keys = prefix_file.chain(folder.binding, tokens)
        self._entries.append(_Entry(sequence, length, label, folder, tokens, keys, is_place))
        self._start_writer()

    @property
    def is_saving(self) -> bool:
        """Whether pages wait to be copied for the writer."""
        return bool(self._entries)

    def advance(self) -> bool:
        """Copies some pages for the writer; True when there is more that could be copied at once."""
        budget = _SLICE_BYTES
        while self._entries and budget > 0 and self._queued_bytes < _QUEUED_BYTES:
            budget -= self._advance_entry(self._entries[0])
        return bool(self._entries) and self._queued_bytes < _QUEUED_BYTES

    def cut(self, sequence: CachedSequence, length: int) -> None:
        """What lies past `length` is about to go: queued entries that need it are saved now, or given up."""
        entries = [entry for entry in self._entries if entry.sequence is sequence and entry.length > length]
        deadline = time.monotonic() + _DROP_SECONDS
        for entry in entries:
            while entry in self._entries and time.monotonic() < deadline:
                if self._queued_bytes < _QUEUED_BYTES:
                    self._advance_entry(entry)
                else:
                    with self._state:
                        self._state.wait(0.01)
            if entry in self._entries:
                self._give_up(entry)

    def flush(self, seconds: float = _CLOSE_SECONDS) -> None:
        """Waits until everything that is queued was written, as long as it may take."""
        deadline = time.monotonic() + seconds
        while (self._entries or self._queued_bytes) and time.monotonic() < deadline:
            if not self.advance():
                with self._state:
                    self._state.wait(0.01)
        for entry in list(self._entries):
            self._give_up(entry)

    def close(self) -> None:
        """Ends the writer; what was not written by then is dropped. May be called again."""
        with self._state:
            self._is_closing = True
            self._state.notify_all()
        if self._writer is not None:
            self._writer.join(_CLOSE_SECONDS)

    def _advance_entry(self, entry: _Entry) -> int:
        """One more page, or the end, of an entry; the bytes copied."""
        executor, sequence = self._executor, entry.sequence
        settled = executor.settled_pages(entry.length)
        if entry.has_failed:
            self._entries.remove(entry)
            return 1
        while entry.next_page < settled and entry.folder.has_page(entry.keys[entry.next_page]):
            entry.next_page += 1
        try:
            if entry.next_page < settled:
                page = entry.next_page
                payload = executor.export_pages(sequence.id, page, page + 1)
                entry.next_page += 1
                self._put(entry, entry.keys[page], payload)
            else:
                if not executor.can_reuse_anywhere and (
                    executor.last_reusable(sequence.id, entry.length) != entry.length
                ):
                    self._give_up(entry)  # its exact pages were needed elsewhere
                    return 1
                payload = executor.export_tail(sequence.id, entry.length)
                self._entries.remove(entry)
                self._put(entry, None, payload)
        except (ValueError, MemoryError) as error:
            _log.warning("a prefix of %d tokens could not be saved: %s", entry.length, error)
            self._give_up(entry)
            return 1
        return len(payload)

    def _give_up(self, entry: _Entry) -> None:
        self._entries.remove(entry)
        self.stats.num_given_up += 1

    # Writing; a thread of its own.

    def _start_writer(self) -> None:
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_all, name="kamado-prefixes", daemon=True)
            self._writer.start()

    def _put(self, entry: _Entry, key: bytes | None, payload: bytes) -> None:
        with self._state:
            self._queue.append((entry, key, payload))
            self._queued_bytes += len(payload)
            self._state.notify_all()

    def _write_all(self) -> None:
        while True:
            with self._state:
                while not self._queue:
                    if self._is_closing:
                        return
                    self._state.wait()
                entry, key, payload = self._queue[0]
            self._write(entry, key, payload)
            with self._state:
                self._queue.popleft()
                was_full = self._queued_bytes >= _QUEUED_BYTES
                self._queued_bytes -= len(payload)
                self._state.notify_all()
            if was_full:
                self._notify()

    def _write(self, entry: _Entry, key: bytes | None, payload: bytes) -> None:
        if entry.has_failed:
            return
        try:
            if key is None:
                is_written = entry.folder.write_point(entry.tokens, payload, entry.label)
                self.stats.num_saved += is_written
            else:
                page = 4 * PAGE_TOKENS * entry.keys.index(key)
                tokens = entry.tokens[page : page + 4 * PAGE_TOKENS]
                is_written = entry.folder.write_page(key, tokens, payload)
                entry.written.append(key)
            self.stats.written_bytes += len(payload) if is_written else 0
        except Exception as error:  # a full disk, no permission: whatever it is, answers go on
            is_written = False
            if not self._has_warned:
                self._has_warned = True
                reason = error.strerror or str(error) if isinstance(error, OSError) else repr(error)
                _log.warning("prefixes cannot be stored in %s: %s (answers are not affected)", self.store.root, reason)
        if not is_written:
            entry.has_failed = True
            self.stats.num_given_up += 1
            entry.folder.remove_pages(entry.written)

    # Restoring.

    def num_shared(self, tokens: Sequence[int], owner: str) -> int:
        """Tokens in full pages that are on disk, whether a point makes them usable or not."""
        return PAGE_TOKENS * self._folder(owner).num_pages(prefix_file.token_bytes(tokens))

    def stored_tokens(self, owner: str) -> Iterator[array[int]]:
        """The token ids of every stored prefix, those used latest first. Read from the files' heads, unchecked; may be
        called from any thread."""
        for tokens in self._folder(owner).all_tokens():
            ids = array("i", tokens)
            if sys.byteorder == "big":
                ids.byteswap()
            yield ids

    def begin_restore(self, tokens: Sequence[int], owner: str, *, above: int, max_tokens: int) -> Restore | None:
        """A way to restore the deepest stored beginning of `tokens` that is worth it; None when there is none.

        Worth it: a page more than the `above` tokens that are in memory. Also a prefix that goes on differently, where
        it can be cut. Not more than `max_tokens`.
        """
        folder = self._folder(owner)
        wanted = prefix_file.token_bytes(tokens)
        least = above + _WORTH_TOKENS
        try:
            points = list(folder.find(wanted, above=least - 1))[:4]
            deepest = points[0].length if points else 0
            if not self._has_record:
                is_exact = self._executor.can_reuse_anywhere
                overlap = folder.find_overlap(wanted, above=max(least - 1, deepest), is_exact=is_exact)
                points[:0] = [] if overlap is None else [overlap]
        except OSError:
            return None
        spare = self._spare_bytes()
        candidates = []
        for point in points:
            held = folder.point_tokens(point.path)  # none when it went meanwhile
            if len(held) != 4 * point.length or point.length > max_tokens:
                continue
            sizes = Sizes(self._executor.page_bytes(), self._executor.tail_bytes(point.length))
            if sizes.largest(point.length) <= spare:
                candidates.append(Candidate.of_point(point, held))
        if not candidates:
            return None
        return Restore(
            folder,
            owner,
            candidates,
            least_tokens=least,
            budget_bytes=min(spare, _READ_AHEAD_BYTES),
            stats=self.stats,
            notify=self._notify,
        )

    def _folder(self, owner: str) -> PrefixFolder:
        folder = self._folders.get(owner)
        if folder is None:
            name = prefix_file.digest(b"owner", owner.encode()).hex() if owner else ""
            folder = self.store.folder({**self._binding, "owner": name}, self._about)
            self._folders[owner] = folder
        return folder
