"""Gemma 4, text: local and global layers with heads of two sizes, layers that attend to what others stored, embeddings
of each layer's own, experts beside an MLP, a scale of the whole stream."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from .. import program as op
from ..errors import UnsupportedError
from ..program import Op
from . import settings as read
from .config import MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_VOCAB
from .decoder import Attention, Block, Mlp, Moe, attended, fed, mlp, model, moe
from .registry import Config, Family, Program, Weights
from .rope import RopeTable, base_frequencies, gguf_rope, hf_ropes, proportional_frequencies
from .stream import Stream

_THETAS: Final = (1e4, 1e6)  # of local and of global layers, in a config.json that says nothing of them
_SHARE: Final = 0.25  # of a global head that turns, likewise
_ROUTER, _EXPERTS = "layers.{i}.router.", "layers.{i}.experts."
_FFN_NORM: Final = "layers.{i}.post_feedforward_layernorm"
# Roles whose names end otherwise than in `.weight`, in both formats.
_ROUTER_SCALE, _EXPERT_SCALE = "ffn_gate_inp.scale$", "ffn_down_exps.scale$"
_MULTIMODAL: Final = r"^(model\.)?(vision_tower|audio_tower|embed_vision|embed_audio)\."

Windows = Sequence[int | None]


@dataclass(frozen=True, slots=True)
class _PerLayer:
    """Embeddings of each layer's own, `width` values, which lie side by side in a table that stays in its file."""

    width: int
    vocab_size: int
    num_layers: int


@Family(
    gguf=("gemma4",),
    hf=("gemma4", "gemma4_text"),
    keys={
        "attention.shared_kv_layers": "num_kv_shared_layers",
        "embedding_length_per_layer_input": "hidden_size_per_layer_input", "expert_used_count": "top_k_experts",
        "hidden_act": "hidden_activation",
    },
    tensors={
        "ffn_norm": "layers.{i}.pre_feedforward_layernorm", "post_ffw_norm": _FFN_NORM,
        "post_ffw_norm_1": _FFN_NORM + "_1", "post_ffw_norm_2": _FFN_NORM + "_2",
        "pre_ffw_norm_2": "layers.{i}.pre_feedforward_layernorm_2", "ffn_gate_inp": _ROUTER + "proj",
        _ROUTER_SCALE: _ROUTER + "scale$", _EXPERT_SCALE: _ROUTER + "per_expert_scale$",
        "ffn_gate_up_exps": _EXPERTS + "gate_up_proj$", "ffn_down_exps": _EXPERTS + "down_proj$",
        "layer_output_scale": "layers.{i}.layer_scalar$", "per_layer_token_embd": "embed_tokens_per_layer",
        "per_layer_model_proj": "per_layer_model_projection", "per_layer_proj_norm": "per_layer_projection_norm",
        "inp_gate": "layers.{i}.per_layer_input_gate", "proj": "layers.{i}.per_layer_projection",
        "post_norm": "layers.{i}.post_per_layer_input_norm",
    },
    defaults={
        "num_hidden_layers": 30, "hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "global_head_dim": 512, "sliding_window": 512,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "vocab_size": 262144,
        "vocab_size_per_layer_input": 262144, "hidden_size_per_layer_input": 256, "tie_word_embeddings": True,
    },
    has_text_config=True,
)  # fmt: skip
def build(c: Config, w: Weights) -> Program:
    """The program of a `gemma4` (GGUF; multimodal safetensors) or `gemma4_text` checkpoint."""
    windows = _windows(c)
    count, hidden = len(windows), c.integer("embedding_length")
    first_sharing = _first_sharing(c, windows)
    activation = c.activation("hidden_act", "gelu_pytorch_tanh")
    dense = [Mlp(width, activation) for width in _widths(c, count, first_sharing)]
    experts = _experts(c)
    attentions = _attentions(c, w, windows, first_sharing)
    scaled = not c.is_gguf or w.has("layer_output_scale", 0)
    layer = partial(_layer, dense=dense, own=_per_layer(c, w, count), scaled=scaled)
    unused = "|".join(str(i) for i in range(first_sharing, count))
    return model(
        c,
        w,
        [
            Block(a, m if experts is None else replace(experts, activation=activation), post_norms=True)
            for a, m in zip(attentions, dense, strict=True)
        ],
        layer=layer,
        # transformers rounds the factor to the weights' type; activations here are float32, so that is its type.
        embedding_scale=float(np.float32(math.sqrt(hidden))),
        softcap=c.optional_number("final_logit_softcapping", low=0.0 if c.is_gguf else 1e-6) or None,
        # Some files carry the projections that layers with another's keys and values do not use.
        ignored=rf"{_MULTIMODAL}|(^blk|layers)\.({unused or 'none'})\.(self_attn\.|attn_)[kv](_proj|_norm)?\.weight$",
        notes=read.vision_notes(w, _MULTIMODAL, "towers for pictures and sound are"),
    )


def _windows(c: Config) -> Windows:
    """The window of every local layer, None of global ones."""
    if not c.is_gguf:
        # The configuration class makes the last layer a global one, whatever the file says of it.
        return (*read.windows(c, 6)[:-1], None)
    for key in ("attention.sliding_window", "attention.sliding_window_pattern"):
        if not c.has(key) or (key == "attention.sliding_window" and read.gguf_window(c) is None):
            raise c.invalid(key, "is missing: which layers are local, and how many tokens they see")
    return read.windows(c, 1)


def _first_sharing(c: Config, windows: Windows) -> int:
    """The first of the layers at the end that attend to what an earlier layer of their kind stored."""
    key = "attention.shared_kv_layers"
    first = len(windows) - c.integer(key, default=0, low=0, high=MAX_LAYERS)
    kinds = {window is None for window in windows[: max(first, 0)]}
    if any((window is None) not in kinds for window in windows):
        raise c.invalid(key, f"leaves {max(first, 0)} of {len(windows)} layers, and none of one of the two kinds")
    return first


def _widths(c: Config, count: int, first_sharing: int) -> Sequence[int]:
    """The width of every layer's MLP."""
    if c.is_gguf:
        return c.integers("feed_forward_length", count)
    width, factor = c.integer("feed_forward_length"), 2 if c.flag("use_double_wide_mlp", default=False) else 1
    return [width] * first_sharing + [factor * width] * (count - first_sharing)


def _experts(c: Config) -> Moe | None:
    """The experts beside the MLP of every layer."""
    if c.is_gguf:
        has_experts = c.integer("expert_count", default=0, low=0) > 0
        c.known({"expert_used_count", "expert_feed_forward_length"})
    else:
        has_experts = c.flag("enable_moe_block", default=False)
        c.known({"num_experts", "top_k_experts", "moe_intermediate_size"})
    return replace(read.moe(c, "expert_feed_forward_length"), expert_scale=_EXPERT_SCALE) if has_experts else None


def _attentions(c: Config, w: Weights, windows: Windows, first_sharing: int) -> list[Attention]:
    """The attention of every layer."""
    num_heads = c.integer("attention.head_count", high=MAX_HEADS)
    local, full = _head_dims(c, windows)
    ropes = _gguf_ropes(c, w, local, full) if c.is_gguf else _hf_ropes(c, local, full)
    if c.is_gguf:  # which says it by the tensors of its global layers
        owners = [i for i in range(first_sharing) if windows[i] is None]
        joined = not any(w.has("attn_v", i) or w.is_fused("attn_qkv", i) for i in owners)
    else:
        joined = c.flag("attention_k_eq_v", default=False)
    kv_heads = _kv_heads(c, windows, joined=joined)
    bias = not c.is_gguf and c.flag("attention_bias", default=False)
    if not c.is_gguf and (kind := c.text("use_bidirectional_attention", default="vision")) != "vision":
        raise c.unsupported("use_bidirectional_attention", f"is {kind!r}: only text that looks back is taken")
    last = {windows[i] is None: i for i in range(first_sharing)}  # by kind, the last layer that stores
    result = []
    for i, window in enumerate(windows):
        if num_heads % kv_heads[i]:
            raise c.invalid("attention.head_count", f"is {num_heads}, no multiple of {kv_heads[i]} in layer {i}")
        sizes = num_heads, kv_heads[i], full if window is None else local
        usual = Attention(*sizes, 1.0, ropes[window is None], window, "head", bias, bias, v_norm=True)
        keys_of = last[window is None] if i >= first_sharing else None
        result.append(replace(usual, v_of_k=window is None and joined, keys_of=keys_of))
    return result


def _head_dims(c: Config, windows: Windows) -> tuple[int, int]:
    """Widths of a head in local and in global layers."""
    if c.is_gguf:
        local, full = (c.integer(f"attention.key_length{end}", high=MAX_HEAD_DIM) for end in ("_swa", ""))
        for end, width in (("_swa", local), ("", full)):
            key = f"attention.value_length{end}"
            if c.integer(key, default=width, high=MAX_HEAD_DIM) != width:
                raise c.unsupported(key, f"is not {width}, as in {c.name(f'attention.key_length{end}')}")
    else:
        local, full = (c.integer(key, high=MAX_HEAD_DIM) for key in ("head_dim", "global_head_dim"))
        own = read.own_of_layers(c, len(windows), "head_dim", local, MAX_HEAD_DIM)
        if own is not None:
            local, full = _by_kind(c, windows, own)
    for width in (local, full):
        if width % 2:
            raise c.invalid("attention.key_length", f"gives heads of width {width}: rotary positions need an even one")
    return local, full


def _kv_heads(c: Config, windows: Windows, *, joined: bool) -> Sequence[int]:
    """Key-value heads of every layer."""
    if c.is_gguf:
        return c.integers("attention.head_count_kv", len(windows), high=MAX_HEADS)
    local = c.integer("attention.head_count_kv", high=MAX_HEADS)
    full = c.optional_integer("num_global_key_value_heads", high=MAX_HEADS)
    full = full if joined and full else local  # which the configuration class passes over where v is not k
    own = read.own_of_layers(c, len(windows), "num_key_value_heads", local, MAX_HEADS)
    return own or [full if window is None else local for window in windows]


def _by_kind(c: Config, windows: Windows, numbers: Sequence[int]) -> tuple[int, int]:
    """The number that all local layers have, and that of all global ones."""
    found = []
    for is_full in (False, True):
        kind = {number for number, window in zip(numbers, windows, strict=True) if (window is None) == is_full}
        if len(kind) > 1:
            raise c.unsupported("per_layer_config", "gives layers of one kind heads of different widths")
        found.append(kind.pop() if kind else numbers[-1])
    return found[0], found[1]


def _gguf_ropes(c: Config, w: Weights, local: int, full: int) -> tuple[RopeTable, RopeTable]:
    """Of local and of global layers. Divisors of a tensor make all but the first pairs of global ones stand still."""
    for key, width in (("rope.dimension_count", full), ("rope.dimension_count_swa", local)):
        if c.integer(key, default=width, high=MAX_HEAD_DIM) != width:
            raise c.unsupported(key, f"is not {width}, the width of a head")
    theta = c.number("rope.freq_base_swa", default=_THETAS[0], low=1.0)
    return RopeTable(base_frequencies(theta, local)), gguf_rope(c, full, w)


def _hf_ropes(c: Config, local: int, full: int) -> tuple[RopeTable, RopeTable]:
    if c.get("rope_scaling") is not None:
        raise c.unsupported("rope_scaling", "is set, which the configuration class does not read")
    if c.get("rope_parameters") is None:
        return RopeTable(base_frequencies(_THETAS[0], local)), RopeTable(
            proportional_frequencies(_THETAS[1], full, _SHARE)
        )
    return hf_ropes(c, local, _THETAS)[0], hf_ropes(c, full, _THETAS)[1]


def _per_layer(c: Config, w: Weights, count: int) -> _PerLayer | None:
    """The layers' own embeddings; None for models without."""
    key = "embedding_length_per_layer_input"
    width = c.optional_integer(key, low=0)
    if width is None:
        width = 0 if c.is_gguf or c.has(key) else int(c.default(key))
    if c.is_gguf:
        rows = w.embedding(c.integer("embedding_length")).rows
    else:
        rows = c.integer("vocab_size", high=MAX_VOCAB)
        if c.integer("vocab_size_per_layer_input", high=MAX_VOCAB) != rows and width:
            raise c.unsupported("vocab_size_per_layer_input", f"is not {rows}, as {c.name('vocab_size')}")
    return _PerLayer(width, rows, count) if width else None


def _layer(s: Stream, b: Block, i: int, *, dense: Sequence[Mlp], own: _PerLayer | None, scaled: bool) -> Iterator[Op]:
    """A block, then what the layer's own embedding of the token adds; the sum times the layer's scale."""
    if own is not None and i == 0:
        yield op.Scale(s.buffer("embedded"), s.x, s.hidden**-0.5)
    yield from attended(s, b, i)
    yield from _beside(s, dense[i], b.ffn, i) if isinstance(b.ffn, Moe) else fed(s, b, i)
    if own is not None:
        yield from _own_added(s, own, dense[i], i)
    if scaled:
        yield op.Rescale(s.x, s.x, s.w.vector("layer_output_scale", 1, i))


def _beside(s: Stream, m: Mlp, e: Moe, i: int) -> Iterator[Op]:
    """x += norm(norm(mlp(norm(x))) + norm(experts(norm(x)))), all norms with weights of their own, the router's too."""
    out, routed = s.buffer("dense"), s.buffer("routed")
    yield s.normed(s.h, s.x, "ffn_norm", i)
    yield from mlp(s, m, s.h, out, i)
    yield s.normed(out, out, "post_ffw_norm_1", i)
    yield s.normed(routed, s.x, _ROUTER_SCALE, i)
    yield op.Scale(routed, routed, s.hidden**-0.5)
    yield s.normed(s.h, s.x, "pre_ffw_norm_2", i)
    yield from moe(s, e, s.h, i, routed)
    picked = s.buffer("moe")
    yield s.normed(picked, picked, "post_ffw_norm_2", i)
    yield op.Add(out, out, picked)
    yield s.normed(out, out, "post_ffw_norm", i)
    yield from s.added(out)


def _own_added(s: Stream, own: _PerLayer, m: Mlp, i: int) -> Iterator[Op]:
    """x += norm(W (activation(gate(x)) ⊙ e)), e = (norm(the layer's share of the embedding) + its piece of a row) / √2

    The share is that of the token's usual embedding, the row that of the table for all layers.
    """
    e, token, gate = (s.buffer(name, own.width) for name in ("own", "own_token", "own_gate"))
    whole = own.num_layers * own.width
    share = s.w.matrix("per_layer_model_proj", whole, s.hidden).row_range(i * own.width, (i + 1) * own.width)
    table = s.w.matrix("per_layer_token_embd", own.vocab_size, whole)
    if own.width % table.layout.block_values:
        raise UnsupportedError(
            f"{s.w.checkpoint.path}: tensor {table.name!r} has pieces of {own.width} values, no whole number of "
            f"{table.layout.name} blocks of {table.layout.block_values}"
        )
    yield op.Linear((e,), s.buffer("embedded"), (share,))
    yield s.normed(e, e, "per_layer_proj_norm")
    yield op.Embed(token, table, float(np.float32(math.sqrt(own.width))), pieces=own.num_layers, piece=i)
    yield op.Add(e, e, token)
    yield op.Scale(e, e, 2**-0.5)
    yield s.linear((("inp_gate", gate),), s.x, False, i)
    yield op.Gate(gate, gate, e, m.activation)
    yield s.linear((("proj", s.h),), gate, False, i)
    yield s.normed(s.h, s.h, "post_norm", i)
    yield from s.added(s.h)
