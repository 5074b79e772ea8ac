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
    A matrix `by_column` lies as its transpose does, whose columns are its rows. `scales` are those of MXFP4 blocks that
    lie apart, a byte each: the codes then lie in pairs, values 2i and 2i + 1 in a byte.
    """

    name: str
    file: Path
    offset: int  # bytes from the start of `file`
    nbytes: int  # of its own rows
    shape: tuple[int, ...]
    layout: Layout
    blocks: tuple[int, int] | None = None  # rows of a block, rows from one to the next
    by_column: bool = False
    scales: tuple[Path, int] | None = None  # file, and where the first row's begin

    @property
    def scales_nbytes(self) -> int:
        """Bytes of scales that lie apart, beside the `nbytes` of codes."""
        return self.num_values // self.layout.block_values if self.scales else 0

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
        return self._part(f"{self.name}[{i}]", i, 1, self.shape[1:])

    def row_range(self, begin: int, end: int) -> TensorRef:
        """Rows [begin, end) of a matrix, e.g. the keys of a fused query-key-value projection."""
        is_whole = self.blocks is None and not self.by_column
        if len(self.shape) != 2 or not is_whole or not 0 <= begin < end <= self.shape[0]:
            raise IndexError(f"{self.name} has shape {self.shape}: no rows {begin}:{end}")
        return self._part(f"{self.name}[{begin}:{end}]", begin, end - begin, (end - begin, self.shape[1]))

    def _part(self, name: str, begin: int, count: int, shape: tuple[int, ...]) -> TensorRef:
        """`count` entries of the first axis, which lie together."""
        nbytes, scales = self.nbytes // self.shape[0], self.scales
        if scales is not None:
            scales = scales[0], scales[1] + begin * (self.scales_nbytes // self.shape[0])
        offset = self.offset + begin * nbytes
        # Not `replace`, which takes four times as long: some models have a hundred thousand matrices of experts.
        return TensorRef(
            name, self.file, offset, count * nbytes, shape, self.layout, self.blocks, self.by_column, scales
        )

    def row_blocks(self, first: int, length: int, stride: int, count: int) -> TensorRef:
        """`count` blocks of `length` rows, the first at row `first`, one every `stride` rows: one of a head's things.

        The name ends with [first:first+length/stride].
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

    def every(self, step: int, first: int) -> TensorRef:
        """The rows, or of a vector the values, `first`, `first + step` and so on, as many as of each other beginning.

        [first::step] in the name.
        """
        count = self.shape[0] // step
        if self.blocks is not None or self.shape[0] % step or not 0 <= first < step or len(self.shape) > 2:
            raise IndexError(f"{self.name} has shape {self.shape}: not every {step} of its rows from {first} on")
        name, shape = f"{self.name}[{first}::{step}]", (count, *self.shape[1:])
        if len(shape) == 2 and not self.by_column:
            begin = self.row_range(first, first + 1)
            offset, scales = begin.offset, begin.scales
        else:
            offset, scales = self.offset + first * self.layout.block_bytes, None
        blocks = (1, step) if count > 1 or self.by_column else None
        nbytes = self.nbytes // step
        return replace(self, name=name, offset=offset, nbytes=nbytes, shape=shape, blocks=blocks, scales=scales)

    def transposed(self) -> TensorRef:
        """The last two axes exchanged; none but unquantised tensors."""
        if len(self.shape) < 2 or not self.layout.is_float or self.blocks is not None or self.by_column:
            raise IndexError(f"{self.name} has shape {self.shape} in {self.layout.name}: it has no transpose")
        return replace(self, shape=(*self.shape[:-2], self.shape[-1], self.shape[-2]), by_column=True)

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
        return sum(t.nbytes + t.scales_nbytes for t in self.tensors.values())

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
