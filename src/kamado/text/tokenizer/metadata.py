"""Typed, checked access to the tokenizer keys of a GGUF file. Nothing from the file is used before it passes here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ...errors import TokenizerError
from ...files.strings import Strings
from .pieces import byte_fallback_value

if TYPE_CHECKING:
    from ..._native import StringTable

# Largest known vocabulary: 262 208 tokens; longest known token: 1 024 bytes (whitespace runs). Room for growth, but
# no room for a file that wants gigabytes or a merge loop over megabyte tokens.
MAX_TOKENS = 1 << 22
MAX_MERGES = 1 << 24
MAX_TOKEN_CHARS = 1 << 14

# Writers store -1 as an unsigned number when a model has no such token.
_ABSENT_ID = 0xFFFFFFFF

TOKENS_KEY = "tokenizer.ggml.tokens"
TYPES_KEY = "tokenizer.ggml.token_type"
SCORES_KEY = "tokenizer.ggml.scores"
MERGES_KEY = "tokenizer.ggml.merges"


class TokenKind(IntEnum):
    """What a token is. Values are those of `tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(slots=True)
class Vocabulary:
    """Tokens by id, their kinds, and the way back. `scores` is empty when the file has none."""

    tokens: list[str]
    kinds: list[int]
    scores: list[float]
    ids: dict[str, int]

    def of_kind(self, *kinds: TokenKind) -> list[int]:
        """Ids of all tokens of these kinds, ascending."""
        # A byte a kind lets `re` do the search: 1 ms for 262 144 tokens, ten times less than a loop.
        return [hit.start() for hit in re.finditer(b"[%s]" % re.escape(bytes(kinds)), bytes(self.kinds))]

    def byte_ids(self) -> dict[int, int]:
        """The byte tokens' ids by their bytes."""
        values = {byte_fallback_value(self.tokens[token_id]): token_id for token_id in self.of_kind(TokenKind.BYTE)}
        return {value: token_id for value, token_id in values.items() if value is not None}

    def ids_without(self, *kinds: TokenKind) -> dict[str, int]:
        """`ids` without the tokens of these kinds."""
        ids = self.ids.copy()
        for token_id in self.of_kind(*kinds):
            del ids[self.tokens[token_id]]
        return ids


class Metadata:
    """The `tokenizer.*` keys of one file. Every getter raises TokenizerError naming file and key."""

    def __init__(self, data: Mapping[str, Any], path: Path) -> None:
        self._data = data
        self.path = path

    def about(self, key: str) -> str:
        """How an error about `key` begins."""
        return f"{self.path}: metadata key '{key}'"

    def fail(self, key: str, what: str) -> NoReturn:
        """Raise TokenizerError about `key`."""
        raise TokenizerError(f"{self.about(key)} {what}")

    def has(self, key: str) -> bool:
        """Whether the file has the key at all."""
        return self._data.get(key) is not None

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self._data.get(key, default)
        if not isinstance(value, str):
            self.fail(key, f"is a {type(value).__name__}, not a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self._data.get(key, default)
        if type(value).__name__ not in ("bool", "bool_"):
            self.fail(key, f"is a {type(value).__name__}, not a boolean")
        return bool(value)

    def token_id(self, key: str, num_tokens: int, default: int | None = None) -> int | None:
        """A token id inside the vocabulary, or `default` when the key is absent; None if that is outside."""
        value = self._data.get(key)
        if value is None:
            return default if default is not None and default < num_tokens else None
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            self.fail(key, f"is a {type(value).__name__}, not a token id")
        value = int(value)
        if value in (-1, _ABSENT_ID):
            return None
        if not 0 <= value < num_tokens:
            self.fail(key, f"is {value}, outside the vocabulary of {num_tokens} tokens")
        return value

    def array(self, key: str, limit: int) -> list[Any]:
        """An array as a list, at most `limit` long. Absent is empty."""
        value = self._data.get(key)
        if value is None:
            return []
        if hasattr(value, "tolist"):
            value = value.tolist()
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            self.fail(key, f"is a {type(value).__name__}, not an array")
        if len(value) > limit:
            self.fail(key, f"has {len(value)} entries, more than the {limit} that are allowed")
        return value if isinstance(value, list) else list(value)

    def strings(self, key: str, limit: int) -> list[str]:
        """An array of strings, each valid UTF-8 and of sane length."""
        values = self.array(key, limit)
        kinds = set(map(type, values))
        if not kinds <= {str}:
            self.fail(key, f"holds {', '.join(sorted(k.__name__ for k in kinds - {str}))} where strings are needed")
        if values and max(map(len, values)) > 2 * MAX_TOKEN_CHARS:
            self.fail(key, f"has an entry of more than {2 * MAX_TOKEN_CHARS} characters")
        try:
            "".join(values).encode()
        except UnicodeEncodeError:
            self.fail(key, "has an entry that is not valid UTF-8")
        return values

    def token_table(self, tokens: list[str]) -> StringTable:
        """`tokens`, a vocabulary's, as the native code takes them."""
        stored = self._data.get(TOKENS_KEY)
        if isinstance(stored, Strings) and stored.tolist() is tokens:
            return stored.table
        from ..._native import StringTable

        return StringTable(tokens)

    def merge_table(self) -> StringTable:
        """The merges as the native code takes them, which holds each against the vocabulary."""
        if not self.has(MERGES_KEY):
            self.fail(MERGES_KEY, "is missing")
        stored = self._data[MERGES_KEY]
        if isinstance(stored, Strings) and len(stored) <= MAX_MERGES:
            return stored.table
        from ..._native import StringTable

        return StringTable(self.strings(MERGES_KEY, MAX_MERGES))

    def vocabulary(self) -> Vocabulary:
        """Tokens, kinds and scores, checked against each other."""
        tokens = self.strings(TOKENS_KEY, MAX_TOKENS)
        if not tokens:
            self.fail(TOKENS_KEY, "is missing or empty" if self.has(TOKENS_KEY) else "is missing")
        if max(map(len, tokens)) > MAX_TOKEN_CHARS:
            self.fail(TOKENS_KEY, f"has a token of more than {MAX_TOKEN_CHARS} characters")
        if "" in tokens:
            # Nothing can produce an empty token, but its id must stay taken. llama.cpp names such tokens the same way.
            tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
        ids = dict(zip(tokens, range(len(tokens)), strict=True))
        if len(ids) != len(tokens):
            twice = next(i for i, token in enumerate(tokens) if ids[token] != i)
            self.fail(TOKENS_KEY, f"has {tokens[twice]!r} twice, as token {twice} and {ids[tokens[twice]]}")
        return Vocabulary(tokens, self._kinds(len(tokens)), self._scores(len(tokens)), ids)

    def _beside(self, key: str, num_tokens: int, types: set[type], what: str) -> list[Any] | None:
        """An array with an entry of these types for each token; None: the file has none."""
        values = self.array(key, MAX_TOKENS)
        if not values and not self.has(key):
            return None
        if len(values) != num_tokens:
            self.fail(key, f"has {len(values)} entries for {num_tokens} tokens")
        if not set(map(type, values)) <= types:
            self.fail(key, f"holds something other than {what}")
        return values

    def _kinds(self, num_tokens: int) -> list[int]:
        kinds = self._beside(TYPES_KEY, num_tokens, {int}, "whole numbers")
        if kinds is None:
            return [int(TokenKind.NORMAL)] * num_tokens
        unknown = set(kinds) - {int(kind) for kind in TokenKind}
        if unknown:
            self.fail(TYPES_KEY, f"has the unknown token type {min(unknown)}")
        return list(kinds)  # ours to change: see special.mark_end_tokens

    def _scores(self, num_tokens: int) -> list[float]:
        scores = self._beside(SCORES_KEY, num_tokens, {int, float}, "numbers")
        if scores is None:
            return []
        try:
            # NaN has no order, and a heap needs one.
            finite = math.isfinite(math.fsum(map(abs, scores)))
        except (OverflowError, ValueError):
            finite = False
        if not finite:
            self.fail(SCORES_KEY, "has a score that is no finite number")
        return scores
