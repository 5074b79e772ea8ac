"""Tokenizers: text to token ids and back, exactly as the model's own tokenizer does it.

`load_tokenizer` reads GGUF metadata (byte-level BPE, SentencePiece BPE, unigram, WordPiece) or a `tokenizer.json`.
Special tokens in text are plain text unless parsing them is asked for.
"""

from __future__ import annotations

from ...files.types import TokenizerSource
from .base import Tokenizer
from .pieces import StreamDecoder

__all__ = ["StreamDecoder", "Tokenizer", "load_tokenizer"]


def load_tokenizer(source: TokenizerSource) -> Tokenizer:
    """The tokenizer of a checkpoint.

    Raises TokenizerError when its data is missing or contradicts itself, UnsupportedError when this version has no
    such kind; both name the file and the key.
    """
    if source.kind == "gguf":
        from .gguf import load_gguf

        return load_gguf(source)
    from .hf import load_hf

    return load_hf(source)
