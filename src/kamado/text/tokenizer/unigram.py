"""SentencePiece's unigram model from GGUF metadata: its normalisation here, the search for the best pieces in Rust.

Held against SentencePiece: white space is trimmed before the mark that stands for the beginning is put in front, byte
tokens are what unknown characters become and never what a text spells, user-defined tokens are matched in the text as
it came and do not begin it anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from .metadata import TokenKind, Vocabulary
from .pieces import SPACE_MARK
from .rust import rust_errors
from .special import SpecialMatcher

if TYPE_CHECKING:
    from tokenizers.models import Unigram


class UnigramEncoder:
    """Encodes text without special tokens.

    `normalize` is the file's own normalisation, before white space is looked at. `unknown_id` None: what no token
    covers is left out, unless there are byte tokens.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        add_space_prefix: bool,
        remove_extra_spaces: bool,
        normalize: Callable[[str], str] | None,
        unknown_id: int | None,
        what: str,
    ) -> None:
        from tokenizers.models import Unigram

        tokens, kinds = vocabulary.tokens, vocabulary.kinds
        self._matcher = SpecialMatcher({tokens[i]: i for i in vocabulary.of_kind(TokenKind.USER_DEFINED)})
        self._byte_ids = vocabulary.byte_ids()
        # Ids are positions, so tokens that no text may produce keep theirs under a name that no text has, and with a
        # score that is none: the penalty of an unknown character counts from the least score of all.
        matched = {int(TokenKind.NORMAL), int(TokenKind.UNDEFINED)}
        words = [
            (token, float(score)) if kind in matched else (f"\0\0{i}\0", 0.0)
            for i, (token, kind, score) in enumerate(zip(tokens, kinds, vocabulary.scores, strict=True))
        ]
        self._unknown = len(words)
        words.append(("\0\0unknown\0", 0.0))
        with rust_errors(what):
            self._model: Unigram = Unigram(words, unk_id=self._unknown, byte_fallback=False)
        self._unknown_id = unknown_id
        self._normalize = normalize
        self._add_space_prefix = add_space_prefix
        self._remove_extra_spaces = remove_extra_spaces

    def encode_text(self, text: str, *, start: bool) -> list[int]:
        """Ids of `text`. `start`: it stands at the beginning or after a control token."""
        pieces = self._matcher.split(text)
        ids: list[int] = []
        is_prefixed = start and self._add_space_prefix
        for i, piece in enumerate(pieces):
            if isinstance(piece, int):
                if is_prefixed:
                    ids += self._encode_marked(SPACE_MARK)
                    is_prefixed = False
                ids.append(piece)
                continue
            is_last = i + 1 == len(pieces)
            normal = self._normal(piece, trims_start=start and i == 0, trims_end=is_last)
            if not normal:
                continue
            if is_prefixed:
                normal = SPACE_MARK + normal
                is_prefixed = False
            ids += self._encode_marked(normal)
        if is_prefixed and text and not self._remove_extra_spaces:  # nothing is left of the text but its beginning
            ids += self._encode_marked(SPACE_MARK)
        return ids

    def _normal(self, text: str, *, trims_start: bool, trims_end: bool) -> str:
        if self._normalize is not None:
            text = self._normalize(text)
        if self._remove_extra_spaces:
            text = re.sub(" {2,}", " ", text.lstrip(" ") if trims_start else text)
            if trims_end:
                text = text.rstrip(f" {SPACE_MARK}")  # marks already in the text count as spaces here, and only here
        return text.replace(" ", SPACE_MARK)

    def _encode_marked(self, text: str) -> list[int]:
        """Ids of text whose spaces are marks."""
        ids: list[int] = []
        with rust_errors("text cannot be tokenized"):
            for token in self._model.tokenize(text):
                if token.id != self._unknown:
                    ids.append(token.id)
                elif self._byte_ids:
                    ids += self.encode_bytes(token.value.encode())
                elif self._unknown_id is not None and ids[-1:] != [self._unknown_id]:
                    ids.append(self._unknown_id)  # a run of unknown characters is one token
        return ids

    def encode_bytes(self, raw: bytes) -> list[int]:
        """Byte tokens of `raw`; the unknown token for a byte that has none."""
        found = (self._byte_ids.get(byte, self._unknown_id) for byte in raw) if self._byte_ids else (self._unknown_id,)
        return [token_id for token_id in found if token_id is not None]
