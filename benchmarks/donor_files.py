"""Real weights in the shape of a family whose own models nobody has here: a small dense Llama (the donor) is written as
a GGUF file of that family which computes what the donor computes. benchmarks/donors.py runs the checks.

How each part of the family is made to say the donor's words, all weights F32:

- Rotation. The donor turns its whole head, pairs of neighbours (GGUF's order of `llama`); the family half of a head
  twice as wide, pairs of halves. Rows of q and k are put back into halves; q's other half is zero, k's holds noise.
  LFM2 turns whole heads, as wide as the donor's; it has one query head more for each head of keys, which holds noise.
- Norms of q and k, which the donor has not: q and k are made 1e-9 times as large, so that eps alone is under the root,
  and the norm's weight brings them back. The attention's other scale (by the wider head) is in q's weight.
- Experts. The FFN's neurons, in random order, are dealt over the picked experts (and the shared one). The bias of the
  choice makes the same experts the picked ones for every row; which ids they have is drawn by layer. Their scores:
  pairs σ(l) and σ(−l) with l a random function of the row, one expert ½ (its row of the router is zero), one expert 1
  (its logit is far above what a float tells from 1). The scores' sum is always pairs + 1.5, so that down matrices are
  divided by what is known. The two of a pair hold the same neurons in another order: σ(l) + σ(−l) = 1 is the only way
  to have weights that change from row to row and a sum that does not. Every other expert, every padding neuron, every
  column that meets zeros only, and a layer that drafts tokens (GLM) hold noise.
- A softmax (Qwen3.5) has no bias of the choice: all experts are in pairs, whose logits l and m are the same for every
  pair, so that each pair has the same share of the sum; the logits of the others are far below.
- gpt-oss: a gate g · σ(1.702 g) · (u + 1) is made a silu by factors and a bias of −1, its limits are out of the way but
  for the gate's (11.9 in the donor's own): donor_safetensors.py makes the file a directory, whose config.json can say
  another limit. Sinks are far below all scores, o's bias takes away what v's brings, and the router's bias picks.
- Gates of attention and of the shared expert (Qwen3.5): their rows are zero, σ is ½, what they multiply is doubled.
- Layers with a record in the place of attention (convolutions, the delta rule): further ones, every third, which hold
  noise and add nothing. This shows where their tensors and states lie, not what they compute: that is shown by
  tests/models/test_tiny_trained.py.
- The constant. A logit that is large whatever the row needs a value that never changes sign: the hidden state is
  wider, and its first further value is a constant of the embedding, too small to move a norm, that no layer writes.
  The norms' weights and eps allow for the greater width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from donor_layers import CONV_TAPS, DELTA_DIM, DELTA_KEY_HEADS, DELTA_VALUE_HEADS, FurtherLayer, Layer
from donor_shapes import Array, Donor, Experts, Fitted, Shape, noise
from kamado.files.gguf_header import read_header
from kamado.files.gguf_writer import GgufWriter
from kamado.files.types import Layout

Sizes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Made:
    """A file that was written, and of each layer with experts the ids of the picked ones, groups in order."""

    path: Path
    picked: dict[int, list[int]]
    own: frozenset[int]  # layers that say what one of the donor's says


def write_baseline(donor: Donor, path: Path) -> Path:
    """The donor as it is, all tensors F32."""
    header = read_header(donor.checkpoint.files[0])
    writer = GgufWriter(donor.checkpoint.architecture)
    copy_keys(writer, header, ("general.", "tokenizer.", f"{donor.checkpoint.architecture}."))
    tensors = donor.checkpoint.tensors
    write_tensors(writer, path, [(name, ref.shape, lambda name=name: donor(name)) for name, ref in tensors.items()])
    return path


def write_shape(donor: Donor, shape: Shape, experts: Experts, path: Path, seed: int = 13) -> Made:
    """The donor in the shape of a family."""
    fitted, sources = Fitted(donor, shape, experts, seed), shape.sources(donor.layers)
    header = read_header(donor.checkpoint.files[0])
    writer = GgufWriter(shape.architecture)
    copy_keys(writer, header, ("general.", "tokenizer."))
    for key, value in (_settings(fitted) | _record_settings(fitted)).items():
        writer.add(f"{shape.architecture}.{key}", value)
    made = Made(path, {}, frozenset(i for i, (_, is_own) in enumerate(sources) if is_own))
    sizes: dict[tuple[bool, bool], Sizes] = {}
    embedding = fitted.embedding()
    entries: list[tuple[str, tuple[int, ...], Callable[[], Array]]] = []
    entries.append(("token_embd.weight", embedding.shape, lambda: embedding))
    for i, (source, is_own) in enumerate(sources):
        layer = Layer(fitted, i, source) if is_own else FurtherLayer(fitted, i, source)
        kind = (layer.is_dense, is_own)
        if kind not in sizes:
            sizes[kind] = {role: make().shape for role, make in layer.tensors().items()}
        for role, make in layer.tensors().items():
            entries.append((f"blk.{i}.{role}", sizes[kind][role], make))
        if not layer.is_dense:
            made.picked[i] = layer.ids[: experts.top_k].tolist()
    entries += _drafts(fitted, len(sources), sizes[False, True])
    entries.append((f"{shape.last_norm}.weight", (fitted.width,), lambda: fitted.norm("output_norm.weight")))
    if shape.has_output:
        entries.append(("output.weight", embedding.shape, fitted.output))
    write_tensors(writer, path, entries)
    return made


def _drafts(fitted: Fitted, layers: int, sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Array]]]:
    """Layers behind the others that draft tokens: whole ones, all noise."""
    rng, width = np.random.default_rng((fitted.seed, layers)), fitted.width
    norms = dict.fromkeys(("enorm", "hnorm", "shared_head_norm"), (width,))
    further = {f"nextn.{role}.weight": size for role, size in ({"eh_proj": (width, 2 * width)} | norms).items()}
    for i in range(layers, layers + fitted.shape.drafts):
        for role, size in (sizes | further).items():
            yield f"blk.{i}.{role}", size, lambda size=size: noise(rng, *size)


def _settings(fitted: Fitted) -> dict[str, Any]:
    donor, shape, experts = fitted.donor, fitted.shape, fitted.experts
    keys = {
        "block_count": len(shape.sources(donor.layers)) + shape.drafts,
        "context_length": donor.metadata("context_length"),
        "embedding_length": fitted.width,
        "feed_forward_length": donor.ffn if shape.dense else fitted.expert_width,
        "attention.head_count": fitted.heads,
        "attention.head_count_kv": donor.kv_heads,
        "attention.layer_norm_rms_epsilon": fitted.eps,
        "rope.freq_base": float(donor.metadata("rope.freq_base")),
        "expert_count": experts.count,
        "expert_used_count": experts.top_k,
        "expert_feed_forward_length": fitted.expert_width,
    }
    if shape.has_biases:
        keys["attention.sliding_window"] = donor.metadata("context_length")  # every other layer's: out of the way
    if shape.wide_heads or shape.has_biases:
        keys |= dict.fromkeys(("attention.key_length", "attention.value_length"), fitted.head_dim)
        keys["rope.dimension_count"] = donor.head_dim
    if shape.router == "sigmoid":
        keys["expert_gating_func"] = 2
    if shape.shared and shape.router == "sigmoid":
        keys |= {"expert_shared_count": 1, "expert_weights_scale": shape.scale, "expert_weights_norm": True}
    if shape.shared not in (0, fitted.expert_width):
        keys["expert_shared_feed_forward_length"] = shape.shared
    if shape.dense:
        keys["leading_dense_block_count"] = shape.dense
    if shape.drafts:
        keys["nextn_predict_layers"] = shape.drafts
    return keys


def _record_settings(fitted: Fitted) -> dict[str, Any]:
    """Those of layers with a record in the place of attention."""
    are_own = [is_own for _, is_own in fitted.shape.sources(fitted.donor.layers)]
    if fitted.shape.between == "conv":
        heads = [fitted.donor.kv_heads if is_own else 0 for is_own in are_own]
        return {"attention.head_count_kv": heads, "shortconv.l_cache": CONV_TAPS["conv"]}
    if fitted.shape.between == "delta":
        half = fitted.donor.head_dim // 2
        return {
            "attention.recurrent_layers": [not is_own for is_own in are_own],
            "rope.dimension_sections": [half - 2 * (half // 3), half // 3, half // 3, 0],
            "ssm.conv_kernel": CONV_TAPS["delta"],
            "ssm.state_size": DELTA_DIM,
            "ssm.group_count": DELTA_KEY_HEADS,
            "ssm.time_step_rank": DELTA_VALUE_HEADS,
            "ssm.inner_size": DELTA_VALUE_HEADS * DELTA_DIM,
        }
    return {}


def copy_keys(writer: GgufWriter, header: Any, beginnings: tuple[str, ...]) -> None:
    """The donor's own keys that begin so; all tensors will be F32."""
    left_out = ("general.architecture", "general.file_type", "general.quantization_version", "general.size_label")
    for key, value in header.metadata.items():
        if key.startswith(beginnings) and key not in left_out:
            writer.add(key, value, *header.types[key])
    writer.add("general.file_type", 0)  # all F32


def write_tensors(
    writer: GgufWriter, path: Path, entries: Iterable[tuple[str, tuple[int, ...], Callable[[], Array]]]
) -> None:
    """All tensors, each made when its turn comes."""
    entries = list(entries)
    for name, shape, _ in entries:
        writer.add_tensor(name, shape, Layout.F32)
    with writer.open(path) as sink:
        for name, _, make in entries:
            sink.write(name, np.ascontiguousarray(make(), np.float32))
        sink.forget_written()
