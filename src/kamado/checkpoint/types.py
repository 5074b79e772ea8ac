"""What a file becomes: where its tensors lie and what its numbers mean. No weight is ever copied into Python."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal


class Layout(IntEnum):
    """How a tensor's numbers are stored. Values are GGML's type ids, so that a GGUF header needs no table."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_NL = 20
    IQ4_XS = 23
    BF16 = 30
    MXFP4 = 39

    @property
    def block_values(self) -> int:
        """Values in one block: rows are a whole number of blocks."""
        return _BLOCKS[self][0]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return _BLOCKS[self][1]

    def nbytes(self, num_values: int) -> int:
        """Bytes of `num_values` values, which must be a whole number of blocks."""
        if num_values % self.block_values:
            raise ValueError(f"{num_values} values are no whole number of {self.name} blocks of {self.block_values}")
        return num_values // self.block_values * self.block_bytes

    @property
    def bits_per_value(self) -> float:
        """Stored bits a value, scales included."""
        return 8.0 * self.block_bytes / self.block_values


# (values, bytes) of one block, ggml-common.h of llama.cpp.
_BLOCKS: dict[Layout, tuple[int, int]] = {
    Layout.F32: (1, 4),
    Layout.F16: (1, 2),
    Layout.BF16: (1, 2),
    Layout.Q4_0: (32, 18),
    Layout.Q4_1: (32, 20),
    Layout.Q5_0: (32, 22),
    Layout.Q5_1: (32, 24),
    Layout.Q8_0: (32, 34),
    Layout.Q2_K: (256, 84),
    Layout.Q3_K: (256, 110),
    Layout.Q4_K: (256, 144),
    Layout.Q5_K: (256, 176),
    Layout.Q6_K: (256, 210),
    Layout.IQ4_NL: (32, 18),
    Layout.IQ4_XS: (256, 136),
    Layout.MXFP4: (32, 17),
}


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where one tensor lies. `shape` is row-major as NumPy has it: a matrix is (rows, cols), cols contiguous."""

    name: str
    file: Path
    offset: int  # bytes from the start of `file`
    nbytes: int
    shape: tuple[int, ...]
    layout: Layout

    @property
    def num_values(self) -> int:
        """Values in all."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Length of the first axis; 1 for a vector."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def cols(self) -> int:
        """Values in a row."""
        return self.shape[-1]

    def index(self, i: int) -> TensorRef:
        """The i-th slice along the first axis, e.g. one expert of a stacked (experts, rows, cols) tensor."""
        if len(self.shape) < 2 or not 0 <= i < self.shape[0]:
            raise IndexError(f"{self.name} has shape {self.shape}: no slice {i}")
        nbytes = self.nbytes // self.shape[0]
        return TensorRef(f"{self.name}[{i}]", self.file, self.offset + i * nbytes, nbytes, self.shape[1:], self.layout)

    def row_range(self, begin: int, end: int) -> TensorRef:
        """Rows [begin, end) of a matrix, e.g. the keys of a fused query-key-value projection."""
        if len(self.shape) != 2 or not 0 <= begin < end <= self.shape[0]:
            raise IndexError(f"{self.name} has shape {self.shape}: no rows {begin}:{end}")
        row_nbytes = self.nbytes // self.shape[0]
        return TensorRef(
            f"{self.name}[{begin}:{end}]",
            self.file,
            self.offset + begin * row_nbytes,
            (end - begin) * row_nbytes,
            (end - begin, self.shape[1]),
            self.layout,
        )


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """Raw tokenizer data as the file has it; `checkpoint.tokenizer.load()` turns it into a Tokenizer.

    kind "gguf": `data` is the metadata under `tokenizer.*`. kind "hf": `data` has parsed `tokenizer_config.json`,
    `special_tokens_map.json`, `added_tokens.json`, `generation_config.json` and of `config.json` the ends of a text;
    `path` is the `tokenizer.json` file.
    """

    kind: Literal["gguf", "hf"]
    data: Mapping[str, Any]
    path: Path


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One model as it lies on disk. Created by `checkpoint.open_checkpoint(path)`; holds no open file."""

    path: Path  # the file or directory the user named
    files: tuple[Path, ...]  # every file that holds weights
    format: Literal["gguf", "safetensors"]
    architecture: str  # GGUF `general.architecture`, or config.json `model_type`
    metadata: Mapping[str, Any]  # GGUF key-values, or config.json as parsed
    tensors: Mapping[str, TensorRef]
    tokenizer: TokenizerSource | None
    chat_template: str | None  # Jinja source, default one
    chat_templates: Mapping[str, str] = field(default_factory=dict)  # named ones ("tool_use", …)
    sampling: Mapping[str, float] = field(default_factory=dict)  # the file's own recommended parameters
    name: str | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())

    def tensor(self, name: str, shape: Sequence[int | None] | None = None) -> TensorRef:
        """The tensor called `name`. Raises MissingTensorError when absent or of another shape (None fits all)."""
        from ..errors import MissingTensorError

        ref = self.tensors.get(name)
        if ref is None:
            raise MissingTensorError(
                f"{self.path}: tensor {name!r} is missing: the file is incomplete or of another family"
            )
        if shape is not None and not (
            len(shape) == len(ref.shape) and all(w is None or w == g for w, g in zip(shape, ref.shape, strict=True))
        ):
            wanted = ", ".join("any" if w is None else str(w) for w in shape)
            raise MissingTensorError(f"{self.path}: tensor {name!r} has shape {ref.shape}, the model needs ({wanted})")
        return ref

    def has(self, name: str) -> bool:
        """Whether there is such a tensor. UnsupportedError when there is, in a layout that cannot be run."""
        return name in self.tensors
