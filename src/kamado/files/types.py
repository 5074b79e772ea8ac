"""What a file becomes: where its tensors lie and what its numbers mean. No weight is ever copied into Python."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from .layouts import Layout as Layout


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where one tensor lies. `shape` is row-major as NumPy has it: a matrix is (rows, cols), cols contiguous.

    With `blocks` the rows do not all lie together: so many do, and each such block begins so many rows after the last.
    """

    name: str
    file: Path
    offset: int  # bytes from the start of `file`
    nbytes: int  # of its own rows
    shape: tuple[int, ...]
    layout: Layout
    blocks: tuple[int, int] | None = None  # rows of a block, rows from one to the next

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
        if len(self.shape) < 2 or self.blocks is not None or not 0 <= i < self.shape[0]:
            raise IndexError(f"{self.name} has shape {self.shape}: no slice {i}")
        nbytes = self.nbytes // self.shape[0]
        return TensorRef(f"{self.name}[{i}]", self.file, self.offset + i * nbytes, nbytes, self.shape[1:], self.layout)

    def row_range(self, begin: int, end: int) -> TensorRef:
        """Rows [begin, end) of a matrix, e.g. the keys of a fused query-key-value projection."""
        if len(self.shape) != 2 or self.blocks is not None or not 0 <= begin < end <= self.shape[0]:
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

    def row_blocks(self, first: int, length: int, stride: int, count: int) -> TensorRef:
        """`count` blocks of `length` rows, from row `first` on every `stride` rows: one thing of several that a head has.

        [first:first+length/stride] in the name.
        """
        if not 0 < length <= stride or count < 1:
            raise IndexError(f"{self.name}: no {count} blocks of {length} rows every {stride}")
        span = self.row_range(first, first + (count - 1) * stride + length)
        if count == 1 or length == stride:
            return span
        return replace(
            span,
            name=f"{self.name}[{first}:{first + length}/{stride}]",
            nbytes=span.nbytes // span.rows * length * count,
            shape=(length * count, span.cols),
            blocks=(length, stride),
        )

    def as_matrix(self) -> TensorRef:
        """The first axis as rows, the others as one, e.g. the (channels, 1, taps) of a convolution."""
        if len(self.shape) < 2:
            raise IndexError(f"{self.name} has shape {self.shape}: no rows")
        return replace(self, shape=(self.shape[0], self.num_values // self.shape[0]))


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
    suppressed: tuple[int, ...] = ()  # token ids that are never to be sampled; some may be past the vocabulary

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
