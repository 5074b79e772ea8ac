"""The tensors of a file by role, whatever the format calls them and however it packs them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np

from ..errors import MissingTensorError, UnsupportedError
from ..files.numbers import read_vector
from ..files.types import Checkpoint, Layout, TensorRef
from .config import MAX_VOCAB

# Tensors that no forward pass needs: position tables that older exports carried along.
_IGNORED_TENSORS: Final = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn_rot_embd\.weight)$")


def _hf_names(checkpoint: Checkpoint, stems: Mapping[str, str]) -> dict[str, str]:
    """`stems` (see names.HF_TENSORS) with the prefix under which the model lies in a safetensors directory.

    transformers writes `model.` before all but the output matrix of a language model, and nothing for an encoder. Base
    models are published without it (Qwen3-Embedding, E5-Mistral), wrapped ones with another (`language_model.model.`,
    `model.language_model.`, `transformer.`): the prefix is what stands before both the token table and the norm that
    frames the layers. Raises UnsupportedError when there are several such places.
    """
    writes_text = "output" in stems
    norm = stems["output_norm" if writes_text else "token_embd_norm"]
    # With those in a layout that cannot be run: asked for by their right name, they are refused by that.
    present = {*checkpoint.tensors, *getattr(checkpoint.tensors, "unsupported", ())}
    probes = (f"{stems['token_embd']}.weight", f"{norm}.weight")
    prefix = _one_prefix(checkpoint, present, probes, "model." if writes_text else "")
    names = {role: "|".join(prefix + one for one in stem.split("|")) for role, stem in stems.items()}
    if writes_text:
        head = stems["output"]
        names["output"] = _one_prefix(checkpoint, present, (f"{head}.weight",), "") + head
    return names


def _one_prefix(checkpoint: Checkpoint, present: Set[str], probes: tuple[str, ...], default: str) -> str:
    """What stands before every one of `probes` in the file; `default` when it has none of them."""
    first = probes[0]
    found = {name.removesuffix(first) for name in present if name == first or name.endswith("." + first)}
    found = {prefix for prefix in found if all(prefix + probe in present for probe in probes)} or found
    if len(found) > 1:
        shown = " and ".join(repr(prefix + first) for prefix in sorted(found)[:2])
        raise UnsupportedError(f"{checkpoint.path}: {shown} are both there: which of the models is meant is not clear")
    return found.pop() if found else default


class Weights:
    """Tensors by role: GGUF's name without `blk.{i}.` and the ending; {e} in it stands for the expert.

    `hf_tensors` names them in a safetensors directory: see names.HF_TENSORS. Keeps count of what was asked for, so that
    `finish` can refuse a file with tensors that would be ignored.
    """

    def __init__(self, checkpoint: Checkpoint, hf_tensors: Mapping[str, str]) -> None:
        self.checkpoint = checkpoint
        self._hf = None if checkpoint.format == "gguf" else _hf_names(checkpoint, hf_tensors)
        self._used: set[str] = set()

    def name(self, role: str, layer: int | None = None, expert: int | None = None, end: str = "weight") -> str:
        """The file's name for `role`."""
        stems = (role if layer is None else f"blk.{{i}}.{role}") if self._hf is None else self._hf[role]
        first, *others = stems.format(i=layer, e=expert).split("|")
        if self._hf is None and first in self.checkpoint.tensors:
            return first  # norms of PLaMo, whose converter looks them up with their ending; decays of the delta rule
        names = [one.removesuffix("$") if one.endswith("$") else f"{one}.{end}" for one in (first, *others)]
        return next((name for name in names[1:] if name in self.checkpoint.tensors), names[0])

    def has(self, role: str, layer: int | None = None, expert: int | None = None, end: str = "weight") -> bool:
        """Whether the format has a name for `role` and the file has the tensor."""
        return (self._hf is None or role in self._hf) and self.checkpoint.has(self.name(role, layer, expert, end))

    @property
    def is_base_model(self) -> bool:
        """Whether config.json names a model without an output (`Qwen2Model`), and there is none: it makes vectors."""
        names = self.checkpoint.metadata.get("architectures") if self._hf is not None else None
        return (
            isinstance(names, list)
            and bool(names)
            and all(isinstance(name, str) and name.endswith("Model") for name in names)
            and not self.has("output")
        )

    def is_fused(self, role: str, layer: int) -> bool:
        """Whether the file has the matrix that stands for several: by the family's names, or by its own in GGUF."""
        return self.has(role, layer) if self._hf is None else role in self._hf

    def _tensor(self, name: str, shape: tuple[int | None, ...]) -> TensorRef:
        ref = self.checkpoint.tensor(name, shape)
        self._used.add(name)
        return ref

    def matrix(self, role: str, rows: int | None, cols: int, layer: int | None = None) -> TensorRef:
        """A (rows, cols) matrix; rows None takes what the file has."""
        return self._tensor(self.name(role, layer), (rows, cols))

    def parts(self, role: str, rows: Sequence[int], cols: int, layer: int | None = None) -> tuple[TensorRef, ...]:
        """The matrices that lie one below the other in one of sum(rows) rows."""
        whole = self.matrix(role, sum(rows), cols, layer)
        ends = list(itertools.accumulate(rows))
        return tuple(whole.row_range(end - count, end) for count, end in zip(rows, ends, strict=True))

    def row(self, role: str, cols: int, layer: int | None = None) -> TensorRef:
        """A matrix of one row, which GGUF files keep as a vector."""
        name = self.name(role, layer)
        if self.checkpoint.has(name) and self.checkpoint.tensor(name).shape == (cols,):
            return replace(self._tensor(name, (cols,)), shape=(1, cols))
        return self.matrix(role, 1, cols, layer)

    def taps(self, role: str, channels: int, taps: int, layer: int) -> TensorRef:
        """The (channels, taps) of a convolution, in safetensors as torch has it: (channels, 1, taps).

        Raises UnsupportedError for the order that MLX has, whose norms are other numbers too.
        """
        name = self.name(role, layer)
        if self.checkpoint.has(name) and self.checkpoint.tensor(name).shape == (channels, taps, 1) and taps > 1:
            raise UnsupportedError(
                f"{self.checkpoint.path}: tensor {name!r} has shape {(channels, taps, 1)}, as MLX writes it: "
                "such directories have other numbers in other places too; take the model as published, or GGUF"
            )
        return self._tensor(name, (channels, taps) if self._hf is None else (channels, 1, taps)).as_matrix()

    def vector(self, role: str, length: int, layer: int | None = None, end: str = "weight") -> TensorRef:
        """A vector of unquantised values. Some files keep it as a matrix of one row."""
        name = self.name(role, layer, end=end)
        if self.checkpoint.has(name) and len(self.checkpoint.tensor(name).shape) == 2:
            ref = self._tensor(name, (1, length)).index(0)
        else:
            ref = self._tensor(name, (length,))
        return self._unquantised(ref)

    def _unquantised(self, ref: TensorRef) -> TensorRef:
        if not ref.layout.is_float:
            raise UnsupportedError(
                f"{self.checkpoint.path}: tensor {ref.name!r} is {ref.layout.name}, a vector must not be"
            )
        return ref

    def bias(self, role: str, length: int, layer: int | None, wanted: bool | None) -> TensorRef | None:
        """The bias of a matrix: `wanted` by the settings or not, or as the file has it when they do not say (None)."""
        if wanted or (wanted is None and self.has(role, layer, end="bias")):
            return self.vector(role, length, layer, end="bias")
        return None

    def embedding(self, cols: int, rows: int | None = None) -> TensorRef:
        """The token table; the vocabulary is its row count when the settings do not say."""
        ref = self.matrix("token_embd", rows, cols)
        if not 1 <= ref.rows <= MAX_VOCAB:
            raise MissingTensorError(
                f"{self.checkpoint.path}: tensor {ref.name!r} has {ref.rows} rows, limit {MAX_VOCAB}"
            )
        return ref

    def experts(
        self, layer: int, num_experts: int, width: int, hidden: int
    ) -> tuple[tuple[TensorRef, ...], tuple[TensorRef, ...], tuple[TensorRef, ...]]:
        """Gate, up and down of every expert, however packed.

        Stacked, gate on up stacked, or one tensor each. Where the file's names have `ffn_gate_up_pairs`, rows of gate
        and up alternate, in blocks of MXFP4, or as the transpose of all that is not quantised (gpt-oss).
        """
        if self._hf is not None and "ffn_gate_up_pairs" in self._hf:
            pairs = self._turned("ffn_gate_up_pairs", layer, (num_experts, 2 * width, hidden))
            gate, up = (tuple(pair.every(2, first) for pair in pairs) for first in (0, 1))
            return gate, up, self._turned("ffn_down_exps", layer, (num_experts, hidden, width))
        down = self._expert_part("down", layer, num_experts, hidden, width)
        named = self._hf is not None and "ffn_gate_up_exps" in self._hf
        # Directories of one family may have either, since transformers 5 joins what it reads.
        if self.has("ffn_gate_up_exps", layer) or (named and not self._has_single_experts(layer)):
            both = self._tensor(self.name("ffn_gate_up_exps", layer), (num_experts, 2 * width, hidden))
            slices = [both.index(e) for e in range(num_experts)]
            gate = tuple(s.row_range(0, width) for s in slices)
            return gate, tuple(s.row_range(width, 2 * width) for s in slices), down
        return (
            self._expert_part("gate", layer, num_experts, width, hidden),
            self._expert_part("up", layer, num_experts, width, hidden),
            down,
        )

    def _turned(self, role: str, layer: int, shape: tuple[int, int, int]) -> tuple[TensorRef, ...]:
        """Matrices of `shape` that lie in one tensor, and transposed unless they are in blocks."""
        name = self.name(role, layer)
        if self.checkpoint.tensor(name).layout.is_float:
            whole = self._tensor(name, (shape[0], shape[2], shape[1])).transposed()
        else:
            whole = self._tensor(name, shape)
        return tuple(whole.index(e) for e in range(shape[0]))

    def expert_biases(
        self, layer: int, num_experts: int, width: int, hidden: int
    ) -> tuple[tuple[TensorRef, ...], tuple[TensorRef, ...], tuple[TensorRef, ...]]:
        """Biases of gate, up and down of every expert; those of gate and up alternate where their rows do."""
        if self._hf is not None and "ffn_gate_up_pairs.bias" in self._hf:
            pairs = self._stacked(self.name("ffn_gate_up_pairs.bias", layer), num_experts, 2 * width)
            gate, up = (tuple(pair.every(2, first) for pair in pairs) for first in (0, 1))
            return gate, up, self._stacked(self.name("ffn_down_exps.bias", layer), num_experts, hidden)
        gate, up, down = (
            self._stacked(self.name(f"ffn_{part}_exps", layer, end="bias"), num_experts, length)
            for part, length in (("gate", width), ("up", width), ("down", hidden))
        )
        return gate, up, down

    def _stacked(self, name: str, num_experts: int, length: int) -> tuple[TensorRef, ...]:
        """A vector of every expert, which lie in one tensor."""
        whole = self._unquantised(self._tensor(name, (num_experts, length)))
        return tuple(whole.index(e) for e in range(num_experts))

    def _has_single_experts(self, layer: int) -> bool:
        return any(self.has(f"ffn_{part}.{{e}}", layer, 0) for part in ("gate", "up", "down"))

    def _expert_part(
        self, part: Literal["gate", "up", "down"], layer: int, num_experts: int, rows: int, cols: int
    ) -> tuple[TensorRef, ...]:
        one, all_of_them = f"ffn_{part}.{{e}}", f"ffn_{part}_exps"
        # In GGUF only Mixtral files of December 2023 have one tensor an expert.
        is_single = self.has(one, layer, 0) if self._hf is None else self._has_single_experts(layer)
        if is_single or (self._hf is not None and all_of_them not in self._hf):
            return tuple(self._tensor(self.name(one, layer, e), (rows, cols)) for e in range(num_experts))
        stacked = self._tensor(self.name(all_of_them, layer), (num_experts, rows, cols))
        return tuple(stacked.index(e) for e in range(num_experts))

    def values(self, role: str, length: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The numbers of a small F32 vector, e.g. rope factors: the only tensors read here."""
        ref = self._tensor(self.name(role), (length,))
        if ref.layout is not Layout.F32:
            raise UnsupportedError(f"{self.checkpoint.path}: tensor {ref.name!r} is {ref.layout.name}, needed as F32")
        return read_vector(ref)

    def finish(self, ignored: str | None = None) -> None:
        """Raises UnsupportedError when the file has tensors that nothing asked for, but for names matching `ignored`.

        A tensor left out (a shared expert, a bias, an attention sink) would change the answer without a word.
        """
        left = [
            name
            for name in self.checkpoint.tensors
            if name not in self._used
            and not _IGNORED_TENSORS.search(name)
            and not (ignored is not None and re.search(ignored, name))
        ]
        if left:
            shown = ", ".join(repr(name) for name in sorted(left)[:3])
            raise UnsupportedError(
                f"{self.checkpoint.path}: {len(left)} tensors have no place in a model of architecture "
                f"{self.checkpoint.architecture!r} ({shown}{', …' if len(left) > 3 else ''}): "
                "running without them would give wrong answers"
            )
