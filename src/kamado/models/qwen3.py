"""Qwen3, dense: like Llama, with an RMS norm on every query and key head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..program import Activation, Add, Attend, Embed, Gate, Head, Linear, Norm, Op, Program, Rope
from . import config
from .common import Buffers, Weights, hf_weights
from .config import Config
from .rope import RopeTable, gguf_context, gguf_rope, hf_context, hf_rope

GGUF_NAMES = {
    "embed": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
    "attn_norm": "blk.{i}.attn_norm.weight",
    "q": "blk.{i}.attn_q.weight",
    "q_norm": "blk.{i}.attn_q_norm.weight",
    "q_bias": "blk.{i}.attn_q.bias",
    "k": "blk.{i}.attn_k.weight",
    "k_norm": "blk.{i}.attn_k_norm.weight",
    "k_bias": "blk.{i}.attn_k.bias",
    "v": "blk.{i}.attn_v.weight",
    "v_bias": "blk.{i}.attn_v.bias",
    "o": "blk.{i}.attn_output.weight",
    "o_bias": "blk.{i}.attn_output.bias",
    "ffn_norm": "blk.{i}.ffn_norm.weight",
    "gate": "blk.{i}.ffn_gate.weight",
    "up": "blk.{i}.ffn_up.weight",
    "down": "blk.{i}.ffn_down.weight",
}

HF_NAMES = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attn_norm": "model.layers.{i}.input_layernorm.weight",
    "q": "model.layers.{i}.self_attn.q_proj.weight",
    "q_norm": "model.layers.{i}.self_attn.q_norm.weight",
    "q_bias": "model.layers.{i}.self_attn.q_proj.bias",
    "k": "model.layers.{i}.self_attn.k_proj.weight",
    "k_norm": "model.layers.{i}.self_attn.k_norm.weight",
    "k_bias": "model.layers.{i}.self_attn.k_proj.bias",
    "v": "model.layers.{i}.self_attn.v_proj.weight",
    "v_bias": "model.layers.{i}.self_attn.v_proj.bias",
    "o": "model.layers.{i}.self_attn.o_proj.weight",
    "o_bias": "model.layers.{i}.self_attn.o_proj.bias",
    "ffn_norm": "model.layers.{i}.post_attention_layernorm.weight",
    "gate": "model.layers.{i}.mlp.gate_proj.weight",
    "up": "model.layers.{i}.mlp.up_proj.weight",
    "down": "model.layers.{i}.mlp.down_proj.weight",
}


@dataclass(frozen=True, slots=True)
class Args:
    """What the forward pass needs to know."""

    num_layers: int
    hidden: int
    ffn: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    context_length: int
    activation: Activation
    windows: tuple[int | None, ...]  # one entry a layer
    vocab_size: int | None = None
    tied: bool | None = None
    attention_bias: bool | None = None  # None: as the file has it

    @classmethod
    def from_gguf(cls, c: Config) -> Args:
        """From the metadata below `general.architecture`."""
        hidden = c.integer("embedding_length")
        num_heads, num_kv_heads = config.head_counts(c, "attention.head_count", "attention.head_count_kv")
        num_layers = c.integer("block_count", high=config.MAX_LAYERS)
        return cls(
            num_layers=num_layers,
            hidden=hidden,
            ffn=c.integer("feed_forward_length"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=config.gguf_head_dim(c, hidden, num_heads),
            eps=c.number("attention.layer_norm_rms_epsilon"),
            context_length=gguf_context(c),
            activation="silu",
            windows=(None,) * num_layers,
        )

    @classmethod
    def from_hf(cls, c: Config) -> Args:
        """From config.json."""
        hidden = c.integer("hidden_size")
        num_heads, num_kv_heads = config.head_counts(c, "num_attention_heads", "num_key_value_heads", absent_kv=32)
        num_layers = c.integer("num_hidden_layers", high=config.MAX_LAYERS)
        return cls(
            num_layers=num_layers,
            hidden=hidden,
            ffn=c.integer("intermediate_size"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=config.hf_head_dim(c, hidden, num_heads, default=128),
            eps=c.number("rms_norm_eps", default=1e-6),
            context_length=hf_context(c, 32768),
            activation=c.activation("hidden_act", "silu"),
            windows=config.qwen_windows(c, num_layers),
            vocab_size=c.integer("vocab_size", high=config.MAX_VOCAB),
            tied=c.flag("tie_word_embeddings", default=False),
            attention_bias=c.flag("attention_bias", default=False),
        )


def attention(a: Args, w: Weights, b: Buffers, rope: RopeTable, i: int) -> Iterator[Op]:
    """h = attention(norm(x)) · o"""
    q, kv = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    yield Norm(b.h, b.x, w.vector("attn_norm", a.hidden, i), eps=a.eps)
    yield Linear(
        (b.q, b.k, b.v),
        b.h,
        (w.matrix("q", q, a.hidden, i), w.matrix("k", kv, a.hidden, i), w.matrix("v", kv, a.hidden, i)),
        (
            w.bias("q_bias", q, i, a.attention_bias),
            w.bias("k_bias", kv, i, a.attention_bias),
            w.bias("v_bias", kv, i, a.attention_bias),
        ),
    )
    for buffer, norm in ((b.q, "q_norm"), (b.k, "k_norm")):
        yield Norm(buffer, buffer, w.vector(norm, a.head_dim, i), eps=a.eps, group=a.head_dim)
        yield Rope(buffer, a.head_dim, rope.inv_freq, attention_factor=rope.attention_factor)
    scale = config.inverse_sqrt(a.head_dim)
    yield Attend(b.attn, b.q, b.k, b.v, i, a.num_heads, a.num_kv_heads, a.head_dim, a.head_dim, scale, a.windows[i])
    yield Linear((b.h,), b.attn, (w.matrix("o", a.hidden, q, i),), (w.bias("o_bias", a.hidden, i, a.attention_bias),))


def mlp(a: Args, w: Weights, b: Buffers, i: int) -> Iterator[Op]:
    """h = (activation(norm(x) · gate) · (norm(x) · up)) · down"""
    yield Norm(b.h, b.x, w.vector("ffn_norm", a.hidden, i), eps=a.eps)
    yield Linear((b.gate, b.up), b.h, (w.matrix("gate", a.ffn, a.hidden, i), w.matrix("up", a.ffn, a.hidden, i)))
    yield Gate(b.gate, b.gate, b.up, a.activation)
    yield Linear((b.h,), b.gate, (w.matrix("down", a.hidden, a.ffn, i),))


def block(a: Args, w: Weights, b: Buffers, rope: RopeTable, i: int) -> Iterator[Op]:
    """x += attention(x); x += mlp(x)"""
    yield from attention(a, w, b, rope, i)
    yield Add(b.x, b.x, b.h)
    yield from mlp(a, w, b, i)
    yield Add(b.x, b.x, b.h)


def model(architecture: str, a: Args, w: Weights, rope: RopeTable) -> Program:
    """The whole pass from token to logits."""
    b = Buffers(a.hidden, a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim, a.ffn)
    table = w.embedding(a.hidden, a.vocab_size)
    ops: list[Op] = [Embed(b.x, table)]
    for i in range(a.num_layers):
        ops += block(a, w, b, rope, i)
    ops.append(Norm(b.h, b.x, w.vector("final_norm", a.hidden), eps=a.eps))
    ops.append(Head(b.h, w.head(table, a.tied)))
    w.finish()
    return Program(architecture, ops, a.num_layers, a.hidden, table.rows, a.context_length)


def build(c: Config) -> Program:
    """The program of a `qwen3` checkpoint."""
    checkpoint = c.checkpoint
    if c.is_gguf:
        args, w = Args.from_gguf(c), Weights(checkpoint, GGUF_NAMES)
        rope = gguf_rope(c, args.head_dim)
    else:
        config.check_causal_lm(c)
        args, w = Args.from_hf(c), hf_weights(checkpoint, HF_NAMES)
        rope = hf_rope(c, args.head_dim)
    c.refuse_unread()
    return model(checkpoint.architecture, args, w, rope)
