"""Real weights in the shape of a family whose own models nobody has here: a small dense Llama (the donor) is written as
a GGUF file of that family which computes what the donor computes. benchmarks/donors.py runs the checks.

How each part of the family is made to say the donor's words, all weights F32:

- Rotation. The donor turns its whole head, pairs of neighbours (GGUF's order of `llama`); the family half of a head
  twice as wide, pairs of halves. Rows of q and k are put back into halves; q's other half is zero, k's holds noise.
- Norms of q and k, which the donor has not: q and k are made 1e-9 times as large, so that eps alone is under the root,
  and the norm's weight brings them back. The attention's other scale (by the wider head) is in q's weight.
- Experts. The FFN's neurons, in random order, are dealt over the picked experts (and the shared one). The bias of the
  choice makes the same experts the picked ones for every row; which ids they have is drawn by layer. Their scores:
  pairs σ(l) and σ(−l) with l a random function of the row, one expert ½ (its row of the router is zero), one expert 1
  (its logit is far above what a float tells from 1). The scores' sum is always pairs + 1.5, so that down matrices are
  divided by what is known. The two of a pair hold the same neurons in another order: σ(l) + σ(−l) = 1 is the only way
  to have weights that change from row to row and a sum that does not. Every other expert, every padding neuron, every
  column that meets zeros only, and a layer that drafts tokens (GLM) hold noise.
- The constant. A logit that is large whatever the row needs a value that never changes sign: the hidden state is 32
  wider, and its first further value is a constant of the embedding, too small to move a norm, that no layer writes.
  The norms' weights and eps allow for the greater width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kamado import _native
from kamado.files.gguf_header import read_header
from kamado.files.gguf_writer import GgufWriter
from kamado.files.types import Checkpoint, Layout

Array = npt.NDArray[np.float32]

FURTHER = 32  # values of the hidden state that the donor does not have
SMALL = 1e-9  # q and k before their norm
CONSTANT = 1e-4  # of the shortest embedding
LARGEST_ROW = 1e5  # no row of the stream is longer (SmolLM2's reach some thousands)
LOGIT_STD = 1.5  # of a router's logits over rows
CERTAIN = 30.0  # σ of it is 1 in float32
CHOSEN = 1.5  # choice bias of picked experts: above any score of the others and their bias
OTHERS_BIAS = 0.2  # others have up to so much


@dataclass(frozen=True, slots=True)
class Shape:
    """What one family adds to a Llama."""

    architecture: str
    row_norm: bool  # q and k are normed whole, not head by head
    dense: int = 0  # layers at the beginning without experts
    shared: int = 0  # neurons of the donor that the shared expert takes
    scale: float = 1.0  # on the experts' weights
    drafts: int = 0  # layers behind the others that only draft tokens
    ffn_norm: str = "ffn_norm"
    has_output: bool = False  # a matrix of its own for the logits


SHAPES = {
    "glm4moe": Shape(
        "glm4moe", row_norm=False, dense=1, shared=256, scale=2.5, drafts=1, ffn_norm="post_attention_norm"
    ),
    "minimax-m2": Shape("minimax-m2", row_norm=True, has_output=True),
}


@dataclass(frozen=True, slots=True)
class Experts:
    """How many there are. Picked: two a pair, one with score ½, one with score 1."""

    count: int
    pairs: int

    @property
    def top_k(self) -> int:
        """Picked ones."""
        return 2 * self.pairs + 2


@dataclass(frozen=True, slots=True)
class Made:
    """A file that was written, and which expert ids are picked in each layer: pairs first, then ½, then 1."""

    path: Path
    picked: dict[int, list[int]]


class Donor:
    """The dense Llama's tensors as float32, read when they are asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.layers, self.hidden, self.ffn = map(self._key, ("block_count", "embedding_length", "feed_forward_length"))
        self.heads, self.kv_heads = self._key("attention.head_count"), self._key("attention.head_count_kv")
        self.head_dim = self.hidden // self.heads
        self.eps = float(checkpoint.metadata["llama.attention.layer_norm_rms_epsilon"])

    def _key(self, key: str) -> int:
        return int(self.checkpoint.metadata[f"llama.{key}"])

    def __call__(self, name: str) -> Array:
        """One tensor."""
        ref = self.checkpoint.tensors[name]
        with ref.file.open("rb") as file:
            file.seek(ref.offset)
            data = np.frombuffer(file.read(ref.nbytes), np.uint8)
        return _native.dequantize(int(ref.layout), data, ref.num_values).reshape(ref.shape)


def write_baseline(donor: Donor, path: Path) -> Path:
    """The donor as it is, all tensors F32."""
    header = read_header(donor.checkpoint.files[0])
    writer = GgufWriter("llama")
    _copy_keys(writer, header, ("general.", "tokenizer.", "llama."))
    tensors = donor.checkpoint.tensors
    _write(writer, path, [(name, ref.shape, lambda name=name: donor(name)) for name, ref in tensors.items()])
    return path


def write_shape(donor: Donor, shape: Shape, experts: Experts, path: Path, seed: int = 13) -> Made:
    """The donor in the shape of a family."""
    header = read_header(donor.checkpoint.files[0])
    writer = GgufWriter(shape.architecture)
    _copy_keys(writer, header, ("general.", "tokenizer."))
    for key, value in _settings(donor, shape, experts).items():
        writer.add(f"{shape.architecture}.{key}", value)
    made = Made(path, {})
    layers = [_Layer(donor, shape, experts, seed, i) for i in range(donor.layers)]
    sizes: dict[bool, dict[str, tuple[int, ...]]] = {}
    entries: list[tuple[str, tuple[int, ...], Callable[[], Array]]] = []
    embedding = _embedding(donor)
    entries.append(("token_embd.weight", embedding.shape, lambda: embedding))
    for layer in layers:
        is_dense = layer.index < shape.dense
        if is_dense not in sizes:
            sizes[is_dense] = {role: make().shape for role, make in layer.tensors().items()}
        for role, make in layer.tensors().items():
            entries.append((f"blk.{layer.index}.{role}", sizes[is_dense][role], make))
        if not is_dense:
            made.picked[layer.index] = layer.ids[: experts.top_k].tolist()
    entries += _drafts(donor, shape, sizes[False], seed)
    entries.append(("output_norm.weight", (_width(donor),), lambda: _norm(donor, "output_norm.weight")))
    if shape.has_output:
        entries.append(("output.weight", embedding.shape, lambda: _output(donor, seed)))
    _write(writer, path, entries)
    return made


def _drafts(
    donor: Donor, shape: Shape, sizes: dict[str, tuple[int, ...]], seed: int
) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Array]]]:
    """Layers behind the others that draft tokens: whole ones, all noise."""
    rng, width = np.random.default_rng((seed, donor.layers)), _width(donor)
    norms = dict.fromkeys(("enorm", "hnorm", "shared_head_norm"), (width,))
    further = {f"nextn.{role}.weight": size for role, size in ({"eh_proj": (width, 2 * width)} | norms).items()}
    for i in range(donor.layers, donor.layers + shape.drafts):
        for role, size in (sizes | further).items():
            yield f"blk.{i}.{role}", size, lambda size=size: _noise(rng, *size)


def _output(donor: Donor, seed: int) -> Array:
    """The donor's embeddings again; what meets the zeros of the last norm is noise."""
    table = donor("token_embd.weight")
    return np.concatenate([table, _noise(np.random.default_rng(seed), len(table), FURTHER)], axis=1)


def _settings(donor: Donor, shape: Shape, experts: Experts) -> dict[str, Any]:
    metadata = donor.checkpoint.metadata
    keys = {
        "block_count": donor.layers + shape.drafts,
        "context_length": metadata["llama.context_length"],
        "embedding_length": _width(donor),
        "feed_forward_length": donor.ffn if shape.dense else _expert_width(donor, shape, experts),
        "attention.head_count": donor.heads,
        "attention.head_count_kv": donor.kv_heads,
        "attention.key_length": 2 * donor.head_dim,
        "attention.value_length": 2 * donor.head_dim,
        "attention.layer_norm_rms_epsilon": donor.eps * donor.hidden / _width(donor),
        "rope.freq_base": float(metadata["llama.rope.freq_base"]),
        "rope.dimension_count": donor.head_dim,
        "expert_count": experts.count,
        "expert_used_count": experts.top_k,
        "expert_gating_func": 2,  # sigmoid
        "expert_feed_forward_length": _expert_width(donor, shape, experts),
    }
    if shape.shared:
        keys |= {"expert_shared_count": 1, "expert_weights_scale": shape.scale, "expert_weights_norm": True}
        if shape.shared != keys["expert_feed_forward_length"]:
            keys["expert_shared_feed_forward_length"] = shape.shared
    if shape.dense:
        keys["leading_dense_block_count"] = shape.dense
    if shape.drafts:
        keys["nextn_predict_layers"] = shape.drafts
    return keys


def _width(donor: Donor) -> int:
    return donor.hidden + FURTHER


def _expert_width(donor: Donor, shape: Shape, experts: Experts) -> int:
    return -(-(donor.ffn - shape.shared) // (experts.pairs + 2))


def _noise(rng: np.random.Generator, *shape: int) -> Array:
    """Of about the size of trained weights."""
    return rng.standard_normal(shape, np.float32) * np.float32(0.1)


def _constant(embedding: Array) -> float:
    """What stands in the first further value of each embedding."""
    lengths = np.sqrt((embedding.astype(np.float64) ** 2).sum(axis=1))
    return CONSTANT * float(np.percentile(lengths, 1))


def _embedding(donor: Donor) -> Array:
    table = donor("token_embd.weight")
    wide = np.zeros((len(table), _width(donor)), np.float32)
    wide[:, : donor.hidden] = table
    wide[:, donor.hidden] = _constant(table)
    return wide


def _norm(donor: Donor, name: str, constant: float = 0.0) -> Array:
    """A norm's weights for the greater width: x / sqrt(Σx² / width) is sqrt(width / hidden) times as large."""
    wide = np.zeros(_width(donor), np.float32)
    wide[: donor.hidden] = donor(name).astype(np.float64) * np.sqrt(donor.hidden / _width(donor))
    wide[donor.hidden] = constant
    return wide


class _Layer:
    """One layer's tensors in the family's shape. What is random in it depends on the seed and its number alone."""

    def __init__(self, donor: Donor, shape: Shape, experts: Experts, seed: int, index: int) -> None:
        self.donor, self.shape, self.experts, self.seed, self.index = donor, shape, experts, seed, index
        rng = self._rng("picks")
        self.ids = rng.permutation(experts.count)  # the first top_k are the picked ones
        self.neurons = rng.permutation(donor.ffn)
        parts = np.array_split(self.neurons[shape.shared :], experts.pairs + 2)
        self.members = [rng.permutation(part) for part in parts[: experts.pairs] for _ in range(2)]
        self.members += parts[experts.pairs :]

    def _rng(self, what: str) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.index, *what.encode()))

    def _own(self, role: str) -> Array:
        return self.donor(f"blk.{self.index}.{role}.weight")

    def tensors(self) -> dict[str, Callable[[], Array]]:
        """By the end of their names."""
        donor, shape = self.donor, self.shape
        name = f"blk.{self.index}."
        found: dict[str, Callable[[], Array]] = {
            "attn_norm.weight": lambda: _norm(donor, name + "attn_norm.weight"),
            "attn_q.weight": lambda: self._turned("attn_q", donor.heads),
            "attn_k.weight": lambda: self._turned("attn_k", donor.kv_heads),
            "attn_v.weight": lambda: self._reading(self._by_heads(self._own("attn_v"), donor.kv_heads, None), "v"),
            "attn_output.weight": self._output,
            "attn_q_norm.weight": lambda: self._qk_norm(donor.heads, np.sqrt(2.0)),
            "attn_k_norm.weight": lambda: self._qk_norm(donor.kv_heads, 1.0),
            f"{shape.ffn_norm}.weight": lambda: _norm(donor, name + "ffn_norm.weight", 1.0),
        }
        if self.index < shape.dense:
            found |= {f"ffn_{part}.weight": lambda part=part: self._dense(part, None) for part in _PARTS}
            return found
        found |= {
            "ffn_gate_inp.weight": self._router,
            "exp_probs_b.bias": self._bias,
            **{f"ffn_{part}_exps.weight": lambda part=part: self._experts(part) for part in _PARTS},
        }
        if shape.shared:
            own = self.neurons[: shape.shared]
            found |= {f"ffn_{part}_shexp.weight": lambda part=part: self._dense(part, own) for part in _PARTS}
        return found

    def _reading(self, matrix: Array, what: str) -> Array:
        """Columns for the greater width: none for the constant, noise for what is always zero."""
        wide = np.zeros((*matrix.shape[:-1], _width(self.donor)), np.float32)
        wide[..., : self.donor.hidden] = matrix
        wide[..., self.donor.hidden + 1 :] = _noise(self._rng(what), *matrix.shape[:-1], FURTHER - 1)
        return wide

    def _writing(self, matrix: Array) -> Array:
        """Rows for the greater width, which add nothing to it."""
        return np.concatenate([matrix, np.zeros((FURTHER, matrix.shape[1]), np.float32)])

    def _by_heads(self, rows: Array, heads: int, other: Array | None) -> Array:
        """Each head's rows, and behind them as many `other` ones; None: zeros."""
        mine = rows.reshape(heads, self.donor.head_dim, -1)
        other = np.zeros_like(mine) if other is None else other.reshape(mine.shape)
        return np.concatenate([mine, other], axis=1).reshape(2 * len(rows), -1)

    def _turned(self, role: str, heads: int) -> Array:
        """q or k: pairs of neighbours become pairs of halves, before a norm that only brings back their size."""
        rows = self._own(role)
        pairs = rows.reshape(heads, self.donor.head_dim // 2, 2, -1)
        halves = pairs.transpose(0, 2, 1, 3).reshape(rows.shape)
        other = None if role == "attn_q" else _noise(self._rng("k half"), *rows.shape)
        return self._reading(self._by_heads(halves, heads, other) * np.float32(SMALL), role)

    def _qk_norm(self, heads: int, factor: float) -> Array:
        eps = float(np.float32(self.donor.eps * self.donor.hidden / _width(self.donor)))
        width = 2 * self.donor.head_dim * (heads if self.shape.row_norm else 1)
        return np.full(width, np.sqrt(eps) / SMALL * factor, np.float32)

    def _output(self) -> Array:
        """Columns that meet the zero half of each head of v hold noise."""
        own = self._own("attn_output")
        columns = self._by_heads(np.ascontiguousarray(own.T), self.donor.heads, _noise(self._rng("output"), *own.shape))
        return self._writing(np.ascontiguousarray(columns.T))

    def _dense(self, part: str, neurons: npt.NDArray[np.int64] | None) -> Array:
        """The whole MLP, or a share of its neurons."""
        own = self._own(f"ffn_{part}")
        if part == "down":
            return self._writing(own if neurons is None else own[:, neurons])
        return self._reading(own if neurons is None else own[neurons], f"ffn_{part}")

    def _experts(self, part: str) -> Array:
        """The donor's neurons in the picked experts, noise everywhere else."""
        own = self._own(f"ffn_{part}")
        width, hidden = _expert_width(self.donor, self.shape, self.experts), self.donor.hidden
        total = self.experts.pairs + 1.5
        found = _noise(self._rng(f"experts {part}"), self.experts.count, width, _width(self.donor))
        for at, neurons in enumerate(self.members):
            expert, score = found[self.ids[at]], 0.5 if at == 2 * self.experts.pairs else 1.0
            if part == "down":
                expert[:] = 0  # also for the neurons that fill the width
                expert[: len(neurons), :hidden] = own[:, neurons].T.astype(np.float64) * (
                    total / (score * self.shape.scale)
                )
            else:
                expert[: len(neurons), :hidden] = own[neurons]
                expert[:, hidden] = 0
        return np.ascontiguousarray(found.transpose(0, 2, 1)) if part == "down" else found

    def _router(self) -> Array:
        """Random rows; of the picked ones: pairs of opposite rows, zero, and a multiple of the constant."""
        donor, pairs = self.donor, self.experts.pairs
        rows = np.zeros((self.experts.count, _width(donor)), np.float32)
        weights = np.abs(self._own("ffn_norm"))
        free = self._rng("router").standard_normal((self.experts.count, donor.hidden), np.float32)
        # A few channels of trained norms are far larger than the others and would decide alone.
        free *= np.float32(LOGIT_STD * donor.hidden**-0.5) / np.maximum(weights, 0.05 * np.median(weights))
        rows[self.ids, : donor.hidden] = free
        rows[self.ids[1 : 2 * pairs : 2]] = -rows[self.ids[0 : 2 * pairs : 2]]
        rows[self.ids[2 * pairs : 2 * pairs + 2]] = 0
        value = _constant(donor("token_embd.weight"))
        rows[self.ids[2 * pairs + 1], donor.hidden] = CERTAIN * LARGEST_ROW / value / _width(donor) ** 0.5
        return rows

    def _bias(self) -> Array:
        bias = self._rng("bias").random(self.experts.count, np.float32) * np.float32(OTHERS_BIAS)
        bias[self.ids[: self.experts.top_k]] += np.float32(CHOSEN)
        return bias


_PARTS = ("gate", "up", "down")


def _copy_keys(writer: GgufWriter, header: Any, beginnings: tuple[str, ...]) -> None:
    left_out = ("general.architecture", "general.file_type", "general.quantization_version", "general.size_label")
    for key, value in header.metadata.items():
        if key.startswith(beginnings) and key not in left_out:
            writer.add(key, value, *header.types[key])
    writer.add("general.file_type", 0)  # all F32


def _write(writer: GgufWriter, path: Path, entries: Iterable[tuple[str, tuple[int, ...], Callable[[], Array]]]) -> None:
    """All tensors, each made when its turn comes."""
    entries = list(entries)
    for name, shape, _ in entries:
        writer.add_tensor(name, shape, Layout.F32)
    with writer.open(path) as sink:
        for name, _, make in entries:
            sink.write(name, np.ascontiguousarray(make(), np.float32))
        sink.forget_written()
