"""Fuzz the GGUF header: any bytes either open, with every tensor inside the file, or raise a KamadoError."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

from kamado.errors import KamadoError
from kamado.files.gguf import open_gguf

_DIRECTORY = tempfile.TemporaryDirectory(prefix="kamado-fuzz-")
_PATH = Path(_DIRECTORY.name) / "m-00001-of-00001.gguf"


def fuzz_one(data: bytes) -> None:
    """One file. Raises only for a fault of ours."""
    _PATH.write_bytes(data)
    try:
        checkpoint = open_gguf(_PATH)
    except KamadoError as error:
        if "\n" in str(error):
            raise AssertionError("an error is one line") from error
        return
    refs = sorted(checkpoint.tensors.values(), key=lambda ref: ref.offset)
    for ref in refs:
        assert ref.offset > 0
        assert ref.offset + ref.nbytes <= len(data)
        assert ref.nbytes == ref.layout.nbytes(ref.num_values)
    for before, after in pairwise(refs):
        assert before.offset + before.nbytes <= after.offset


if __name__ == "__main__":
    from _loop import run

    numbers = (0, 1, 2, 7, 8, 9, 12, 13, 32, 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 60, (1 << 64) - 32)
    tokens = [number.to_bytes(8, "little") for number in numbers] + [
        number.to_bytes(4, "little") for number in numbers[:9]
    ]
    names = b"general.architecture general.alignment split.count split.no tokenizer.ggml.tokens tokenizer.chat_template"
    run("gguf", fuzz_one, (*tokens, *(len(name).to_bytes(8, "little") + name for name in names.split())))
