"""Gemma 3, text: scaled embeddings, norms before and after each block, QK-norm, local layers between global ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..checkpoint.types import Checkpoint, TensorRef
from ..program import Activation, Add, Attend, Buffer, Embed, Gate, Head, Linear, Norm, Op, Program, Rope
from . import config
from .common import Buffers, Weights, hf_weights
from .config import Config
from .rope import RopeTable, base_frequencies, gguf_context, gguf_rope, hf_rope_section

GGUF_NAMES = {
    "embed": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
    "attn_norm": "blk.{i}.attn_norm.weight",
    "q": "blk.{i}.attn_q.weight",
    "q_norm": "blk.{i}.attn_q_norm.weight",
    "k": "blk.{i}.attn_k.weight",
    "k_norm": "blk.{i}.attn_k_norm.weight",
    "v": "blk.{i}.attn_v.weight",
    "o": "blk.{i}.attn_output.weight",
    "post_attn_norm": "blk.{i}.post_attention_norm.weight",
    "ffn_norm": "blk.{i}.ffn_norm.weight",
    "gate": "blk.{i}.ffn_gate.weight",
    "up": "blk.{i}.ffn_up.weight",
    "down": "blk.{i}.ffn_down.weight",
    "post_ffn_norm": "blk.{i}.post_ffw_norm.weight",
}

HF_NAMES = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attn_norm": "model.layers.{i}.input_layernorm.weight",
    "q": "layers.{i}.self_attn.q_proj.weight",
    "q_norm": "layers.{i}.self_attn.q_norm.weight",
    "k": "layers.{i}.self_attn.k_proj.weight",
    "k_norm": "layers.{i}.self_attn.k_norm.weight",
    "v": "layers.{i}.self_attn.v_proj.weight",
    "o": "layers.{i}.self_attn.o_proj.weight",
    "post_attn_norm": "layers.{i}.post_attention_layernorm.weight",
    "ffn_norm": "layers.{i}.pre_feedforward_layernorm.weight",
    "gate": "layers.{i}.mlp.gate_proj.weight",
    "up": "layers.{i}.mlp.up_proj.weight",
    "down": "layers.{i}.mlp.down_proj.weight",
    "post_ffn_norm": "layers.{i}.post_feedforward_layernorm.weight",
}

_VISION_TENSORS = r"^(model\.)?(vision_tower|multi_modal_projector)\."
_LAYERS_OF_27B = 62


@dataclass(frozen=True, slots=True)
class Args:
    """What the forward pass needs to know. The defaults are those of files that leave a key out, as Google's do."""

    num_layers: int
    hidden: int
    ffn: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    context_length: int
    activation: Activation
    attention_scale: float
    windows: tuple[int | None, ...]  # one entry a layer; None is a global layer
    final_softcap: float | None
    norm_offset: float  # safetensors store the norms' weights less 1
    vocab_size: int | None = None
    tied: bool | None = None

    @classmethod
    def from_gguf(cls, c: Config) -> Args:
        """From the metadata below `general.architecture`."""
        hidden = c.integer("embedding_length")
        num_heads, num_kv_heads = config.head_counts(c, "attention.head_count", "attention.head_count_kv")
        num_layers = c.integer("block_count", high=config.MAX_LAYERS)
        head_dim = config.gguf_head_dim(c, hidden, num_heads)
        # No key says it: the 27B alone scales by hidden / heads, not by head_dim; llama.cpp tells it by its layers.
        scalar = hidden // num_heads if num_layers == _LAYERS_OF_27B else head_dim
        window = c.optional_integer("attention.sliding_window", low=0, high=config.MAX_CONTEXT) or None
        return cls(
            num_layers=num_layers,
            hidden=hidden,
            ffn=c.integer("feed_forward_length"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            eps=c.number("attention.layer_norm_rms_epsilon"),
            context_length=gguf_context(c),
            activation="gelu_tanh",
            attention_scale=c.number("attention.scale", default=0.0) or config.inverse_sqrt(scalar),
            windows=_gguf_windows(c, num_layers, window),
            final_softcap=c.optional_number("final_logit_softcapping") or None,
            norm_offset=0.0,
        )

    @classmethod
    def from_hf(cls, c: Config) -> Args:
        """From config.json."""
        num_layers = c.integer("num_hidden_layers", default=26, high=config.MAX_LAYERS)
        hidden = c.integer("hidden_size", default=2304)
        num_heads, num_kv_heads = config.head_counts(c, "num_attention_heads", "num_key_value_heads", (8, 4))
        pattern = c.integer("sliding_window_pattern", "_sliding_window_pattern", default=6)
        window = c.integer("sliding_window", default=4096, high=config.MAX_CONTEXT)
        return cls(
            num_layers=num_layers,
            hidden=hidden,
            ffn=c.integer("intermediate_size", default=9216),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=config.hf_head_dim(c, hidden, num_heads, default=256),
            eps=c.number("rms_norm_eps", default=1e-6),
            context_length=c.integer("max_position_embeddings", default=131072, high=config.MAX_CONTEXT),
            activation=c.activation("hidden_activation", "gelu_pytorch_tanh"),
            attention_scale=config.inverse_sqrt(c.number("query_pre_attn_scalar", default=256.0, low=1e-6)),
            windows=config.sliding_windows(c, num_layers, window, [(i + 1) % pattern != 0 for i in range(num_layers)]),
            final_softcap=c.optional_number("final_logit_softcapping", low=1e-6),
            norm_offset=1.0,
            vocab_size=c.integer("vocab_size", default=262208, high=config.MAX_VOCAB),
            tied=c.flag("tie_word_embeddings", default=True),
        )


def _gguf_windows(c: Config, num_layers: int, window: int | None) -> tuple[int | None, ...]:
    pattern = c.get("attention.sliding_window_pattern")
    if window is None:
        return (None,) * num_layers
    if isinstance(pattern, int | np.integer) or pattern is None:
        every = c.integer("attention.sliding_window_pattern", default=6, low=0)
        return tuple(window if every == 0 or (i + 1) % every else None for i in range(num_layers))
    flags = c.sequence("attention.sliding_window_pattern", num_layers) or []
    return tuple(window if flag else None for flag in flags)


@dataclass(frozen=True, slots=True)
class Ropes:
    """Local layers turn faster than global ones, and only the latter are scaled for long contexts."""

    local: RopeTable
    full: RopeTable

    @classmethod
    def from_gguf(cls, c: Config, head_dim: int) -> Ropes:
        """GGUF scales the global layers only."""
        local_theta = c.number("rope.freq_base_swa", default=10000.0, low=1.0)
        return cls(RopeTable(base_frequencies(local_theta, head_dim)), gguf_rope(c, head_dim))

    @classmethod
    def from_hf(cls, c: Config, head_dim: int) -> Ropes:
        """`rope_theta`, `rope_local_base_freq` and `rope_scaling`, or transformers 5's dictionary by layer type."""
        full_theta = c.number("rope_theta", default=1e6, low=1.0)
        local_theta = c.number("rope_local_base_freq", default=10000.0, low=1.0)
        local = full = RopeTable(base_frequencies(local_theta, head_dim))
        new, old = c.section("rope_parameters"), c.section("rope_scaling")
        if new is not None and old is not None:
            raise old.unsupported("rope_type", f"comes with {c.name('rope_parameters')}: the two may contradict")
        local_section = new.section("sliding_attention") if new else None
        full_section = new.section("full_attention") if new else old
        if new is not None:
            for key in new.present():
                if key not in ("sliding_attention", "full_attention"):
                    raise new.unsupported(key, "is set for all layers, not by layer type")
        full = RopeTable(base_frequencies(full_theta, head_dim))
        if local_section is not None:
            local = hf_rope_section(c, local_section, head_dim, local_theta)
        if full_section is not None:
            full = hf_rope_section(c, full_section, head_dim, full_theta)
        return cls(local, full)


def norm(a: Args, out: Buffer, x: Buffer, weight: TensorRef, group: int | None = None) -> Norm:
    """Gemma's RMS norm: weights count from 1 in safetensors."""
    return Norm(out, x, weight, eps=a.eps, group=group, weight_offset=a.norm_offset)


def attention(a: Args, w: Weights, b: Buffers, ropes: Ropes, i: int) -> Iterator[Op]:
    """h = norm(attention(norm(x)) · o)"""
    q, kv = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    rope = ropes.full if a.windows[i] is None else ropes.local
    yield norm(a, b.h, b.x, w.vector("attn_norm", a.hidden, i))
    yield Linear(
        (b.q, b.k, b.v),
        b.h,
        (w.matrix("q", q, a.hidden, i), w.matrix("k", kv, a.hidden, i), w.matrix("v", kv, a.hidden, i)),
    )
    for buffer, role in ((b.q, "q_norm"), (b.k, "k_norm")):
        yield norm(a, buffer, buffer, w.vector(role, a.head_dim, i), group=a.head_dim)
        yield Rope(buffer, a.head_dim, rope.inv_freq, attention_factor=rope.attention_factor)
    yield Attend(
        b.attn, b.q, b.k, b.v, i, a.num_heads, a.num_kv_heads, a.head_dim, a.head_dim, a.attention_scale, a.windows[i]
    )
    yield Linear((b.h,), b.attn, (w.matrix("o", a.hidden, q, i),))
    yield norm(a, b.h, b.h, w.vector("post_attn_norm", a.hidden, i))


def mlp(a: Args, w: Weights, b: Buffers, i: int) -> Iterator[Op]:
    """h = norm((gelu(norm(x) · gate) · (norm(x) · up)) · down)"""
    yield norm(a, b.h, b.x, w.vector("ffn_norm", a.hidden, i))
    yield Linear((b.gate, b.up), b.h, (w.matrix("gate", a.ffn, a.hidden, i), w.matrix("up", a.ffn, a.hidden, i)))
    yield Gate(b.gate, b.gate, b.up, a.activation)
    yield Linear((b.h,), b.gate, (w.matrix("down", a.hidden, a.ffn, i),))
    yield norm(a, b.h, b.h, w.vector("post_ffn_norm", a.hidden, i))


def block(a: Args, w: Weights, b: Buffers, ropes: Ropes, i: int) -> Iterator[Op]:
    """x += attention(x); x += mlp(x)"""
    yield from attention(a, w, b, ropes, i)
    yield Add(b.x, b.x, b.h)
    yield from mlp(a, w, b, i)
    yield Add(b.x, b.x, b.h)


def model(checkpoint: Checkpoint, a: Args, w: Weights, ropes: Ropes) -> Program:
    """The whole pass from token to logits."""
    b = Buffers(a.hidden, a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim, a.ffn)
    table = w.embedding(a.hidden, a.vocab_size)
    # transformers rounds the factor to the weights' type; activations here are float32, so that is its type.
    ops: list[Op] = [Embed(b.x, table, float(np.float32(math.sqrt(a.hidden))))]
    for i in range(a.num_layers):
        ops += block(a, w, b, ropes, i)
    ops.append(norm(a, b.h, b.x, w.vector("final_norm", a.hidden)))
    ops.append(Head(b.h, w.head(table, a.tied), softcap=a.final_softcap))
    w.finish(_VISION_TENSORS)
    vision = any(name.startswith(("vision_tower.", "model.vision_tower.")) for name in checkpoint.tensors)
    notes = ("text only: the file's vision tower is not used",) if vision else ()
    return Program(checkpoint.architecture, ops, a.num_layers, a.hidden, table.rows, a.context_length, notes=notes)


def build(c: Config) -> Program:
    """The program of a `gemma3` (GGUF; multimodal safetensors) or `gemma3_text` checkpoint."""
    checkpoint = c.checkpoint
    if c.is_gguf:
        args, w = Args.from_gguf(c), Weights(checkpoint, GGUF_NAMES)
        ropes = Ropes.from_gguf(c, args.head_dim)
        c.refuse_unread()
        return model(checkpoint, args, w, ropes)
    config.check_causal_lm(c)
    text = c.section("text_config") or c
    args = Args.from_hf(text)
    ropes = Ropes.from_hf(text, args.head_dim)
    c.refuse_unread()
    return model(checkpoint, args, hf_weights(checkpoint, HF_NAMES), ropes)
