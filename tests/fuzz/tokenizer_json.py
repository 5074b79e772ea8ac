"""Fuzz `tokenizer.json`: any file is loaded and encodes a text, or raises KamadoError, within its limits; the worker
process that tries it first may die, this one never, and it does not grow."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path

from kamado.errors import KamadoError
from kamado.files.types import TokenizerSource
from kamado.text.tokenizer import load_tokenizer
from kamado.text.tokenizer.bounds import LOAD_BYTES, MAX_GROWTH

_TEXT = "hello aaaa </s> 日本語\n\n  ab 12 \u0301\x00"


def fuzz_one(data: bytes) -> None:
    """One file. Raises only for a fault of ours."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_bytes(data)
        try:
            tokenizer = load_tokenizer(TokenizerSource("hf", {}, path))
            for text in (_TEXT, "a" * 500, " " * 500):
                ids = tokenizer.encode(text)
                # A token a byte of the text as it was normalised, and what is put around it.
                assert len(ids) <= MAX_GROWTH * len(text.encode()) + 1024, len(ids)
                tokenizer.decode(ids)
        except KamadoError:
            pass
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < LOAD_BYTES, f"{grown >> 20} MiB"


if __name__ == "__main__":
    from _loop import run

    words = (
        '{"type":"Replace","pattern":{"String":"a"},"content":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}, {"type":"ByteLevel"},'
        ' {"type":"Sequence","normalizers":[ ]} {"type":"NFKD"}, {"Regex":".*"} {"Regex":"(a*)*b"} "content":""'
        ' "prepend":"xxxxxxxxxxxxxxxx" {"type":"Lowercase"}, "vocab":{ "merges":[ null 99999999 "type":"Unigram"'
        ' "type":"WordPiece" "precompiled_charsmap":"/P///wAA"'
    )
    run("tokenizer_json", fuzz_one, tuple(map(str.encode, words.split())))
