"""Gemma 4's tokenizer: byte-pair merging by rank, of characters and not of bytes, in text whose spaces are marks.

Held against llama.cpp: a run of newlines is looked up whole before anything is merged in it, and a character that is no
token becomes its bytes. Words are cut only where no token reaches across, so that it does not show.
"""

from __future__ import annotations

import re

from ...errors import TokenizerError
from .metadata import MERGES_KEY, Metadata, TokenKind, Vocabulary
from .pieces import SPACE_MARK
from .spm import word_pattern

_HIDDEN = (TokenKind.CONTROL, TokenKind.UNKNOWN, TokenKind.UNUSED, TokenKind.BYTE)


class MarkedPairsEncoder:
    """Encodes text without special tokens."""

    def __init__(self, meta: Metadata, vocabulary: Vocabulary) -> None:
        """Raises TokenizerError for merges that do not fit the vocabulary."""
        from ..._native import BytePairs

        hidden = bytes(kind in _HIDDEN for kind in range(256))
        try:
            self._pairs = BytePairs(
                meta.token_table(vocabulary.tokens),
                bytes(vocabulary.kinds).translate(hidden),
                meta.merge_table(),
                False,
            )
        except ValueError as error:
            raise TokenizerError(f"{meta.about(MERGES_KEY)} {error}") from None
        ids = vocabulary.ids_without(*_HIDDEN)
        self._runs = {token: i for token, i in ids.items() if token[0] == "\n" and not token.strip("\n")}
        self._characters = frozenset(token for token in ids if len(token) == 1)
        self._words = word_pattern(ids)
        self._byte_ids = vocabulary.byte_ids()

    def encode_text(self, text: str, *, start: bool) -> list[int]:
        """Ids of `text`; its position does not matter."""
        text = text.replace(" ", SPACE_MARK)
        unknown = "".join(sorted(set(text) - self._characters))
        apart = re.compile(rf"(\n+|[{re.escape(unknown)}])" if unknown else r"(\n+)")
        ids: list[int] = []
        for i, piece in enumerate(apart.split(text)):
            if i % 2 == 0:
                ids += self._merge(self._words.findall(piece))
            elif piece in self._runs:
                ids.append(self._runs[piece])
            elif piece[0] in unknown:
                ids += self.encode_bytes(piece.encode())
            else:
                ids += self._merge([piece])
        return ids

    def _merge(self, words: list[str]) -> list[int]:
        return self._pairs.encode([(word, (0, 0)) for word in words])

    def encode_bytes(self, raw: bytes) -> list[int]:
        """Byte tokens of `raw`; nothing for a byte that has none."""
        return [self._byte_ids[byte] for byte in raw if byte in self._byte_ids]
