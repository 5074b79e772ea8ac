"""Fuzz safetensors directories: the first byte says which file the rest becomes; it opens or raises a KamadoError."""

from __future__ import annotations

import tempfile
from pathlib import Path

from kamado.errors import KamadoError
from kamado.files.safetensors import open_safetensors

_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.json",
)
_DIRECTORY = tempfile.TemporaryDirectory(prefix="kamado-fuzz-")
_PATH = Path(_DIRECTORY.name)
_HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
_WEIGHTS = len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(8)


def fuzz_one(data: bytes) -> None:
    """One directory. Raises only for a fault of ours."""
    chosen, content = _FILES[data[0] % len(_FILES) if data else 0], data[1:]
    for name in _FILES:
        (_PATH / name).unlink(missing_ok=True)
    (_PATH / "config.json").write_bytes(b'{"model_type":"llama"}')
    (_PATH / "model.safetensors").write_bytes(_WEIGHTS)
    (_PATH / chosen).write_bytes(content)
    try:
        checkpoint = open_safetensors(_PATH)
    except KamadoError as error:
        if "\n" in str(error):
            raise AssertionError("an error is one line") from error
        return
    for ref in checkpoint.tensors.values():
        assert ref.file.parent == _PATH
        assert ref.offset >= 8
        assert ref.offset + ref.nbytes <= ref.file.stat().st_size
        assert ref.nbytes == ref.layout.nbytes(ref.num_values)


if __name__ == "__main__":
    from _loop import run

    words = (
        b'"dtype" "F32" "I64" "shape" "data_offsets" [0,8] [2] { } [ ] , : -1 1e999 NaN null true 9223372036854775808'
    )
    words += b' "weight_map" "../a.safetensors" "model.safetensors" "chat_template" "model_type" "a" "__metadata__"'
    run("safetensors", fuzz_one, tuple(words.split()))
