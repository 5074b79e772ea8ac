"""Calls into the `tokenizers` package: its errors and panics become ours, and its import is put off until needed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...errors import TokenizerError
from .pieces import byte_alphabet

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RustTokenizer

    from ..._native import StringTable
    from .pretokenizers import PreTokenizer

# Longer texts are cut: one call then holds little memory, and the regex engine stays far from its backtracking limit
# (10 million steps), past which it panics. The package holds the interpreter meanwhile: 12 ms for 32,768 characters of
# words, and 60 for the longest piece, in which no other conversation gets its next token.
_CHUNK_CHARS = 1 << 15
_MAX_CHUNK_CHARS = 1 << 17
# Every pattern ends a word at a single newline between a visible character and an ASCII letter, and at a single blank
# between two ASCII letters.
_SAFE_CUT = re.compile(r"(?<=\S\n)(?=[A-Za-z])|(?<=[A-Za-z])(?= [A-Za-z])")


@contextmanager
def rust_errors(what: str) -> Iterator[None]:
    """Turn whatever the package raises, panics included, into a TokenizerError that begins with `what`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, TokenizerError):
        raise
    except BaseException as error:  # its panics derive from BaseException
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        lines = str(error).splitlines() or [type(error).__name__]
        raise TokenizerError(f"{what}: {lines[0][:300]}") from error


def chunks(text: str) -> Iterator[str]:
    """`text` in pieces of bounded size, cut where no word can reach across.

    A text without such a place for 131,072 characters is cut there all the same: still the same text, perhaps with
    other tokens around the cut.
    """
    begin = 0
    while len(text) - begin > _CHUNK_CHARS:
        cut = _SAFE_CUT.search(text, begin + _CHUNK_CHARS, begin + _MAX_CHUNK_CHARS)
        if cut is not None:
            end = cut.start()
        elif len(text) - begin > _MAX_CHUNK_CHARS:
            end = begin + _MAX_CHUNK_CHARS
        else:
            break
        yield text[begin:end]
        begin = end
    if begin < len(text):
        yield text[begin:]


class ByteLevelEncoder:
    """Byte-level BPE over text without special tokens. The package cuts words; merging them is native code, whose
    tables of 150 000 merges are ready in a tenth of the time that the package's own take."""

    def __init__(
        self, tokens: StringTable, is_hidden: bytes, merges: StringTable, pre: PreTokenizer, what: str
    ) -> None:
        from tokenizers import Regex, pre_tokenizers

        from ..._native import BytePairs

        try:
            self._pairs = BytePairs(tokens, is_hidden, merges, pre.ignore_merges)
        except ValueError as error:
            raise TokenizerError(f"{what} {error}") from None
        with rust_errors(what):
            splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
            to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            self._words = pre_tokenizers.Sequence([*splits, to_bytes])
        self._nfc = pre.nfc
        alphabet = byte_alphabet().items()
        found = {byte: self._pairs.encode([(char, (0, 1))]) for byte, char in alphabet}
        self._byte_ids = {byte: ids[0] if ids else None for byte, ids in found.items()}

    def encode_text(self, text: str, *, start: bool) -> list[int]:
        """Ids of `text`; its position does not matter."""
        if self._nfc:
            text = unicodedata.normalize("NFC", text)
        ids: list[int] = []
        with rust_errors("text cannot be tokenized"):
            for chunk in chunks(text):
                ids += self._pairs.encode(self._words.pre_tokenize_str(chunk))
        return ids

    def encode_bytes(self, raw: bytes) -> list[int]:
        """One token a byte; U+FFFD for a byte without a token (SmolLM2 lacks those that no valid text has)."""
        ids: list[int] = []
        for byte in raw:
            token_id = self._byte_ids[byte]
            ids += self.encode_text("\ufffd", start=False) if token_id is None else (token_id,)
        return ids


class RustEncoder:
    """Any other vocabulary the package can model: normalizer, words, model. Text without special tokens."""

    def __init__(self, rust: RustTokenizer, unknown_id: int | None) -> None:
        self._rust = rust
        self._unknown_id = unknown_id

    def encode_text(self, text: str, *, start: bool) -> list[int]:
        """Ids of `text`; its position does not matter."""
        with rust_errors("text cannot be tokenized"):
            return list(self._rust.encode(text, add_special_tokens=False).ids)

    def encode_bytes(self, raw: bytes) -> list[int]:
        """The unknown token: these vocabularies have no bytes."""
        return [self._unknown_id] if self._unknown_id is not None else []
