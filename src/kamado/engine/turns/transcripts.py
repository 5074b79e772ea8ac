"""What was said lately, as token ids: a conversation that comes back goes on from the very ids that were generated.

A prompt is compared with the transcripts of its owner (same_text.py), and takes the ids of the one that says most of
it; only the rest keeps the ids that the tokenizer gave. So the prefix in the cache is found, and what was computed is
not computed again because a template or a tokenizer writes it otherwise. What an answer is given is the same text
either way, and one owner's transcripts are never compared with another's prompts.

A transcript is 4 bytes a token. After a restart they are taken from the prefix store, when an owner asks first.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence

from ..cache.sequences import common_prefix
from .same_text import SameText

# One more costs each prompt and each answer a comparison: 31 µs on a busy machine, where 35 ids are shared.
_MAX_TRANSCRIPTS = 512
# Answers that wait to be taken in by the next prompt: whoever collects an answer has pieces to pass on.
_MAX_WAITING = 8
# Transcripts that begin most like the prompt and are compared in full: several answers to one question are alike.
_MAX_COMPARED = 8


class Transcripts:
    """The latest conversations of one model, by owner. Thread-safe."""

    def __init__(
        self,
        vocab_size: int,
        *,
        max_bytes: int,
        stored: Callable[[str], Iterable[array[int]]] | None = None,
    ) -> None:
        """`max_bytes` of ids are kept at most. `stored(owner)`: what outlived earlier processes, the latest first."""
        self._vocab_size = vocab_size
        self._max_bytes = max_bytes
        self._stored = stored
        self._asked: set[str] = set()  # owners whose stored ones were taken
        self._lock = threading.Lock()
        self._inbox: deque[tuple[str, array[int]]] = deque()
        self._kept: OrderedDict[int, tuple[str, array[int]]] = OrderedDict()  # by number, the least used first
        self._next = 0
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the ids that are kept."""
        with self._lock:
            self._take_inbox()
            return self._nbytes

    def remember(self, owner: str, tokens: Sequence[int]) -> None:
        """A prompt with its answer, as far as it came. Never waits: it may be called when an answer is collected."""
        self._inbox.append((owner, array("i", tokens)))
        if len(self._inbox) > _MAX_WAITING and self._lock.acquire(blocking=False):
            try:
                self._take_inbox()
            finally:
                self._lock.release()

    def match(
        self,
        owner: str,
        tokens: list[int],
        same_text: Callable[[], SameText],
        names: frozenset[str] = frozenset(),
    ) -> list[int]:
        """`tokens`, or the same text with the ids of a transcript at its beginning. `names`: the prompt's tools."""
        wanted = array("i", tokens)
        with self._lock:
            self._take_stored(owner)
            self._take_inbox()
            own = [(number, kept) for number, (whose, kept) in self._kept.items() if whose == owner]
        ranked = sorted(((common_prefix(wanted, kept), number, kept) for number, kept in own), key=lambda r: -r[0])
        if not ranked or ranked[0][0] == len(tokens):
            return tokens
        best = (ranked[0][0], 0)
        found: tuple[int, array[int]] | None = None
        for shared, number, kept in ranked[:_MAX_COMPARED]:
            if not shared:
                break
            place = same_text().common(wanted, kept, names)
            if place[0] > best[0]:
                best, found = place, (number, kept)
        if found is None:
            return tokens
        with self._lock:
            if found[0] in self._kept:
                self._kept.move_to_end(found[0])
        return [*found[1][: best[1]], *tokens[best[0] :]]

    def _take_inbox(self) -> None:
        while self._inbox:
            self._keep(*self._inbox.popleft())

    def _keep(self, owner: str, tokens: array[int], *, is_latest: bool = True) -> None:
        for number, (whose, kept) in list(self._kept.items()):
            if whose != owner:
                continue
            shared = common_prefix(kept, tokens)
            if shared == len(tokens):  # it is the beginning of one that is kept
                self._kept.move_to_end(number)
                return
            if shared >= len(kept) - 1:  # this one goes on from there; the last id ended a turn, perhaps otherwise
                self._drop(number)
        nbytes = tokens.itemsize * len(tokens)
        if nbytes > self._max_bytes:
            return
        self._next += 1
        self._kept[self._next] = (owner, tokens)
        self._nbytes += nbytes
        if not is_latest:
            self._kept.move_to_end(self._next, last=False)
        while self._nbytes > self._max_bytes or len(self._kept) > _MAX_TRANSCRIPTS:
            self._drop(next(iter(self._kept)))

    def _drop(self, number: int) -> None:
        _, tokens = self._kept.pop(number)
        self._nbytes -= tokens.itemsize * len(tokens)

    def _take_stored(self, owner: str) -> None:
        if self._stored is None or owner in self._asked:
            return
        self._asked.add(owner)
        for tokens in self._stored(owner):
            nbytes = tokens.itemsize * len(tokens)
            if self._nbytes + nbytes > self._max_bytes:
                return
            if tokens and min(tokens) >= 0 and max(tokens) < self._vocab_size:
                self._keep(owner, tokens, is_latest=False)
