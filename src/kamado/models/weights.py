"""What every family file uses besides its settings: tensors by role, and the row buffers of a decoder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Any, Final

import numpy as np

from ..checkpoint.plain_file import open_regular
from ..checkpoint.types import Checkpoint, Layout, TensorRef
from ..errors import CorruptFileError, MissingTensorError, UnsupportedError
from ..program import Buffer
from .config import MAX_VOCAB

# Tensors that no forward pass needs: position tables that older exports carried along.
_IGNORED_TENSORS: Final = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn_rot_embd\.weight)$")


def hf_weights(
    checkpoint: Checkpoint, names: Mapping[str, str], *, norm: str = "final_norm", default: str = "model."
) -> Weights:
    """The tensors of a safetensors directory, under whatever prefix they lie.

    `names` are those of transformers' classes, with `default` before all but the output matrix. Base models are
    published without it (Qwen3-Embedding, E5-Mistral), wrapped ones with another (`language_model.model.`,
    `model.language_model.`, `transformer.`): the prefix is what stands before both the token table and the role `norm`.
    Raises UnsupportedError when there are several such places.
    """
    stems = {role: name.removeprefix(default) for role, name in names.items()}
    # With those in a layout that cannot be run: asked for by their right name, they are refused by that.
    present = {*checkpoint.tensors, *getattr(checkpoint.tensors, "unsupported", ())}
    prefix = _one_prefix(checkpoint, present, (stems["embed"], stems[norm]), default)
    renamed = {role: prefix + stem for role, stem in stems.items()}
    if "head" in names:
        renamed["head"] = _one_prefix(checkpoint, present, (names["head"],), "") + names["head"]
    return Weights(checkpoint, renamed)


def _one_prefix(checkpoint: Checkpoint, present: Set[str], probes: tuple[str, ...], default: str) -> str:
    """What stands before every one of `probes` in the file; `default` when it has none of them."""
    first = probes[0]
    found = {name.removesuffix(first) for name in present if name == first or name.endswith("." + first)}
    found = {prefix for prefix in found if all(prefix + probe in present for probe in probes)} or found
    if len(found) > 1:
        shown = " and ".join(repr(prefix + first) for prefix in sorted(found)[:2])
        raise UnsupportedError(f"{checkpoint.path}: {shown} are both there: which of the models is meant is not clear")
    return found.pop() if found else default


def has_no_head(checkpoint: Checkpoint) -> bool:
    """Whether config.json names a base model (`Qwen2Model`) and no output matrix lies in the file: it makes vectors."""
    names = checkpoint.metadata.get("architectures") if checkpoint.format == "safetensors" else None
    return (
        isinstance(names, list)
        and bool(names)
        and all(isinstance(name, str) and name.endswith("Model") for name in names)
        and not any(name.endswith("lm_head.weight") for name in checkpoint.tensors)
    )


class Weights:
    """Tensors by role. `names` maps a role to the file's name, with {i} for the layer and {e} for the expert.

    Keeps count of what was asked for, so that `finish` can refuse a file with tensors that would be ignored.
    """

    def __init__(self, checkpoint: Checkpoint, names: Mapping[str, str], prefix: str = "") -> None:
        self.checkpoint = checkpoint
        self._names = names
        self._prefix = prefix
        self._used: set[str] = set()

    def name(self, role: str, layer: int | None = None, expert: int | None = None) -> str:
        """The file's name for `role`."""
        return self._prefix + self._names[role].format(i=layer, e=expert)

    def has(self, role: str, layer: int | None = None, expert: int | None = None) -> bool:
        """Whether the format has a name for `role` and the file has the tensor."""
        return role in self._names and self.checkpoint.has(self.name(role, layer, expert))

    def _tensor(self, name: str, shape: tuple[int | None, ...]) -> TensorRef:
        ref = self.checkpoint.tensor(name, shape)
        self._used.add(name)
        return ref

    def matrix(self, role: str, rows: int | None, cols: int, layer: int | None = None) -> TensorRef:
        """A (rows, cols) matrix; rows None takes what the file has."""
        return self._tensor(self.name(role, layer), (rows, cols))

    def vector(self, role: str, length: int, layer: int | None = None) -> TensorRef:
        """A vector of unquantised values."""
        ref = self._tensor(self.name(role, layer), (length,))
        if ref.layout not in (Layout.F32, Layout.F16, Layout.BF16):
            raise UnsupportedError(
                f"{self.checkpoint.path}: tensor {ref.name!r} is {ref.layout.name}, a vector must not be"
            )
        return ref

    def bias(self, role: str, length: int, layer: int, wanted: bool | None = None) -> TensorRef | None:
        """A bias: `wanted` by the settings or not, or as the file has it when they do not say (None)."""
        if wanted or (wanted is None and self.has(role, layer)):
            return self.vector(role, length, layer)
        return None

    def embedding(self, cols: int, rows: int | None = None) -> TensorRef:
        """The token table; the vocabulary is its row count when the settings do not say."""
        ref = self.matrix("embed", rows, cols)
        if not 1 <= ref.rows <= MAX_VOCAB:
            raise MissingTensorError(
                f"{self.checkpoint.path}: tensor {ref.name!r} has {ref.rows} rows, limit {MAX_VOCAB}"
            )
        return ref

    def head(self, table: TensorRef, tied: bool | None) -> TensorRef:
        """The output matrix. A tensor in the file wins, as in transformers 5; without one the table serves if `tied`.

        `tied` None is GGUF's way: no output tensor means tied. A base model has no output at all: see `has_no_head`.
        """
        if self.has("head") or (tied is False and not has_no_head(self.checkpoint)):
            return self.matrix("head", table.rows, table.cols)
        return table

    def experts(
        self, layer: int, num_experts: int, width: int, hidden: int
    ) -> tuple[tuple[TensorRef, ...], tuple[TensorRef, ...], tuple[TensorRef, ...]]:
        """Gate, up and down of every expert, however packed: stacked, gate on up stacked, or one tensor each.

        Roles: `experts_gate_up`; `experts_gate`, `experts_up`, `experts_down`; `expert_gate`, `expert_up`,
        `expert_down` with {e} in the name.
        """
        down = self._expert_part("down", layer, num_experts, hidden, width)
        separate = "experts_gate" in self._names or "expert_gate" in self._names
        if self.has("experts_gate_up", layer) or not separate:
            both = self._tensor(self.name("experts_gate_up", layer), (num_experts, 2 * width, hidden))
            slices = [both.index(e) for e in range(num_experts)]
            gate = tuple(s.row_range(0, width) for s in slices)
            return gate, tuple(s.row_range(width, 2 * width) for s in slices), down
        return (
            self._expert_part("gate", layer, num_experts, width, hidden),
            self._expert_part("up", layer, num_experts, width, hidden),
            down,
        )

    def _expert_part(self, part: str, layer: int, num_experts: int, rows: int, cols: int) -> tuple[TensorRef, ...]:
        role = f"expert_{part}"
        if role in self._names and (f"experts_{part}" not in self._names or self.has(role, layer, 0)):
            return tuple(self._tensor(self.name(role, layer, e), (rows, cols)) for e in range(num_experts))
        stacked = self._tensor(self.name(f"experts_{part}", layer), (num_experts, rows, cols))
        return tuple(stacked.index(e) for e in range(num_experts))

    def values(self, role: str, length: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The numbers of a small F32 vector, e.g. rope factors: the only tensors read here."""
        ref = self._tensor(self.name(role), (length,))
        if ref.layout is not Layout.F32:
            raise UnsupportedError(f"{self.checkpoint.path}: tensor {ref.name!r} is {ref.layout.name}, needed as F32")
        try:
            with open_regular(ref.file) as file:
                file.seek(ref.offset)
                raw = file.read(ref.nbytes)
        except OSError as error:
            raise CorruptFileError(f"{ref.file}: cannot be read: {error.strerror or error}") from error
        if len(raw) != ref.nbytes:
            raise CorruptFileError(f"{ref.file}: ends inside tensor {ref.name!r}")
        return np.frombuffer(raw, dtype="<f4", count=length).astype(np.float64)

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


class Buffers:
    """The row buffers of a decoder, used again by every layer."""

    def __init__(self, hidden: int, q: int, kv: int, ffn: int = 0, experts: int = 0) -> None:
        self.x = Buffer("x", hidden)  # residual stream
        self.h = Buffer("h", hidden)  # normed input of a block, then its output
        self.q = Buffer("q", q)
        self.k = Buffer("k", kv)
        self.v = Buffer("v", kv)
        self.attn = Buffer("attn", q)  # attention output before the output projection
        self.moe = Buffer("moe", hidden)  # output of the experts, whose input must survive until the last of them
        self.gate = Buffer("gate", ffn)
        self.up = Buffer("up", ffn)
        self.router = Buffer("router", experts)
