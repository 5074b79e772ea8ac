"""SentencePiece BPE: merge the neighbours whose joined text is the best-scored token, until none is left.

The rule is SentencePiece's (and llama.cpp's): of all neighbours whose concatenation is a token, the highest score goes
first, ties to the left. Unlike rank-based BPE the parts need not be tokens, so no list of merges describes it exactly,
and making one for 262 144 tokens would take seconds; the scores are enough.

A text is cut into words first where no token can reach across: then the words can be merged apart and remembered.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Collection

from .metadata import TokenKind, Vocabulary
from .pieces import SPACE_MARK

# Words that repeat are short. 1 << 16 words of at most 48 characters are about 20 MB.
_CACHE_WORDS = 1 << 16
_CACHE_WORD_CHARS = 48


class SentencePieceEncoder:
    """Encodes text without special tokens."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        add_space_prefix: bool,
        remove_extra_spaces: bool,
        unknown_id: int | None,
        normalize: Callable[[str], str] | None = None,
    ) -> None:
        """`normalize` is the file's own normalisation, before white space is looked at."""
        # Control and byte tokens are never the result of a merge: "</s>" or "<0x0A>" in plain text is text.
        self._ids = vocabulary.ids_without(TokenKind.CONTROL, TokenKind.BYTE, TokenKind.UNKNOWN)
        # Nor are user-defined ones: they were cut out of the text before, unless they are written with space marks.
        for token_id in vocabulary.of_kind(TokenKind.USER_DEFINED):
            if SPACE_MARK not in vocabulary.tokens[token_id]:
                del self._ids[vocabulary.tokens[token_id]]
        self._scores = vocabulary.scores
        self._unused = frozenset(vocabulary.of_kind(TokenKind.UNUSED))
        self._max_chars = max(map(len, self._ids), default=0)
        byte_ids = vocabulary.byte_ids()
        self._byte_ids = [byte_ids.get(value) for value in range(256)]
        self._unknown_id = unknown_id
        self._normalize = normalize
        self._add_space_prefix = add_space_prefix
        self._remove_extra_spaces = remove_extra_spaces
        self._words = word_pattern(self._ids)
        self._cache: dict[str, list[int]] = {}

    def encode_text(self, text: str, *, start: bool) -> list[int]:
        """Ids of `text`. `start`: it stands at the beginning or after a special token."""
        if self._normalize is not None:
            text = self._normalize(text)
        if self._remove_extra_spaces:
            # Marks already in the text count as spaces at its end, nowhere else, as in SentencePiece.
            text = re.sub(" +", " ", text.lstrip(" ") if start else text).rstrip(f" {SPACE_MARK}")
            if not text:
                return []
        if start and self._add_space_prefix:
            text = " " + text
        text = text.replace(" ", SPACE_MARK)
        cache = self._cache
        ids: list[int] = []
        for word in self._words.findall(text):
            found = cache.get(word)
            if found is None:
                found = self._merge(word)
                if len(word) <= _CACHE_WORD_CHARS:
                    if len(cache) >= _CACHE_WORDS:
                        cache.clear()
                    cache[word] = found
            ids += found
        if None in self._byte_ids and self._unknown_id is not None:
            return _join_runs(ids, self._unknown_id)
        return ids

    def encode_bytes(self, raw: bytes) -> list[int]:
        """Byte tokens of `raw`; the unknown token for a byte that has none."""
        ids = (self._byte_ids[byte] for byte in raw)
        return [i if i is not None else self._unknown_id for i in ids if i is not None or self._unknown_id is not None]  # type: ignore[misc]

    def _merge(self, word: str) -> list[int]:
        ids, scores, max_chars = self._ids, self._scores, self._max_chars
        size = len(word)
        # A symbol is word[i:ends[i]]; ends[i] is 0 once it was merged into the one before, at befores of its end.
        ends = list(range(1, size + 1))
        befores = list(range(-1, size))
        heap: list[tuple[float, int, int, int]] = []
        halves: dict[str, int] = {}  # unused token -> where its left part ends, from its begin
        unused = self._unused

        for i in range(size - 1):
            token_id = ids.get(word[i : i + 2])
            if token_id is not None:
                heap.append((-scores[token_id], i, i + 1, i + 2))
                if token_id in unused:
                    halves[word[i : i + 2]] = 1
        heapq.heapify(heap)
        while heap:
            _, left, middle, end = heapq.heappop(heap)
            if ends[left] != middle or ends[middle] != end:
                continue  # one of the two has changed since
            ends[left] = end
            ends[middle] = 0
            befores[end] = left
            before = befores[left]
            if before >= 0 and end - before <= max_chars:
                token_id = ids.get(word[before:end])
                if token_id is not None:
                    heapq.heappush(heap, (-scores[token_id], before, left, end))
                    if token_id in unused:
                        halves[word[before:end]] = left - before
            if end < size:
                after = ends[end]
                if after - left <= max_chars:
                    token_id = ids.get(word[left:after])
                    if token_id is not None:
                        heapq.heappush(heap, (-scores[token_id], left, end, after))
                        if token_id in unused:
                            halves[word[left:after]] = end - left
        result: list[int] = []
        begin = 0
        while begin < size:
            end = ends[begin]
            self._emit(word[begin:end], halves, result)
            begin = end
        return result

    def _emit(self, symbol: str, halves: dict[str, int], result: list[int]) -> None:
        """Append the ids of a finished symbol: its token, the parts of a token that is marked unused, or its bytes."""
        stack = [symbol]
        while stack:
            text = stack.pop()
            token_id = self._ids.get(text)
            if token_id is None:
                result += self.encode_bytes(text.encode())
            elif token_id in self._unused and text in halves:
                stack += (text[halves[text] :], text[: halves[text]])
            else:
                result.append(token_id)


def word_pattern(tokens: Collection[str]) -> re.Pattern[str]:
    """Pieces of text that can be merged apart without changing the result: no token has what stands at a cut.

    Cuts are before a space mark, unless a token has a mark after that same character (Gemma has one such token,
    ">\u2581</"), and around a newline, tab or carriage return, unless a token has it beside another character.
    """
    joined = "\0".join(["", *tokens, ""])
    if joined.count("\0") != len(tokens) + 1:
        return re.compile(".+", re.DOTALL)  # tokens with NUL, which real ones have not: never cut
    alone = "".join(c for c in "\n\t\r" if joined.count(c) == joined.count(f"\0{c}\0"))
    word = f"[^{SPACE_MARK}{alone}]"
    before_mark = "".join(map(re.escape, sorted(set(re.findall(f"([^{SPACE_MARK}\0]){SPACE_MARK}", joined)))))
    going_on = f"(?:(?<=[{before_mark}]){SPACE_MARK}+{word}*)*" if before_mark else ""
    return re.compile((f"[{alone}]|" if alone else "") + f"{SPACE_MARK}*{word}+{going_on}|{SPACE_MARK}+")


def _join_runs(ids: list[int], unknown_id: int) -> list[int]:
    """A run of unknown tokens is one token, as SentencePiece has it without byte tokens."""
    return [token_id for i, token_id in enumerate(ids) if token_id != unknown_id or i == 0 or ids[i - 1] != unknown_id]
