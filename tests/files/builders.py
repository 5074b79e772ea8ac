"""Small model files made by hand: valid ones through the writers, wrong ones byte by byte."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kamado.files.gguf_writer import GgufWriter
from kamado.files.types import Layout


def text(value: str | bytes) -> bytes:
    """A GGUF string."""
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def key_value(key: str, kind: int, raw: bytes) -> bytes:
    """A GGUF key-value with its value as bytes."""
    return text(key) + struct.pack("<I", kind) + raw


def tensor_info(
    name: str, dims: Sequence[int], type_id: int = 0, offset: int = 0, num_dims: int | None = None
) -> bytes:
    """A GGUF tensor info; `dims` in file order."""
    head = text(name) + struct.pack("<I", len(dims) if num_dims is None else num_dims)
    return head + struct.pack(f"<{len(dims)}QIQ", *dims, type_id, offset)


ARCHITECTURE = key_value("general.architecture", 8, text("llama"))


def gguf_bytes(
    key_values: Sequence[bytes] = (ARCHITECTURE,),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    num_tensors: int | None = None,
    num_key_values: int | None = None,
) -> bytes:
    """A GGUF file whose counts may lie."""
    counts = (
        version,
        len(tensors) if num_tensors is None else num_tensors,
        len(key_values) if num_key_values is None else num_key_values,
    )
    head = b"GGUF" + struct.pack("<IQQ", *counts) + b"".join(key_values) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def write_gguf(path: Path, metadata: Mapping[str, Any] = {}, tensors: Mapping[str, Any] | None = None) -> Path:
    """A valid GGUF of F32 arrays."""
    writer = GgufWriter("llama")
    for key, value in metadata.items():
        writer.add(key, value)
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)} if tensors is None else tensors
    for name, array in arrays.items():
        writer.add_tensor(name, array.shape, Layout.F32)
    with writer.open(path) as sink:
        for name, array in arrays.items():
            sink.write(name, array)
    return path


def tokenizer_metadata(num_tokens: int = 64) -> dict[str, Any]:
    """The tokenizer keys of a byte-pair vocabulary."""
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(num_tokens)],
        "tokenizer.ggml.token_type": [1] * num_tokens,
        "tokenizer.ggml.merges": ["t 0", "t 1"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
    }


def safetensors_bytes(header: Any, data: bytes = b"", *, header_bytes: int | None = None) -> bytes:
    """A safetensors file whose header may say anything."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if header_bytes is None else header_bytes) + raw + data


def f32_entry(shape: Sequence[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    """One tensor of a safetensors header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write_hf(path: Path, files: Mapping[str, Any]) -> Path:
    """A directory of files: bytes as they are, text as UTF-8, anything else as JSON."""
    for name, content in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            target.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path
