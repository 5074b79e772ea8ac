"""Llama 2 and 3.x, Mistral, SmolLM2; in GGUF also Mixtral, which is `llama` with `expert_count`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..program import Activation, Add, Attend, Embed, Experts, Gate, Head, Linear, Norm, Op, Program, Rope, Route
from . import config
from .common import Buffers, Weights, hf_weights
from .config import Config
from .rope import RopeTable, gguf_context, gguf_rope, hf_context, hf_rope

GGUF_NAMES = {
    "embed": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
    "rope_freqs": "rope_freqs.weight",
    "attn_norm": "blk.{i}.attn_norm.weight",
    "q": "blk.{i}.attn_q.weight",
    "q_bias": "blk.{i}.attn_q.bias",
    "k": "blk.{i}.attn_k.weight",
    "k_bias": "blk.{i}.attn_k.bias",
    "v": "blk.{i}.attn_v.weight",
    "v_bias": "blk.{i}.attn_v.bias",
    "o": "blk.{i}.attn_output.weight",
    "o_bias": "blk.{i}.attn_output.bias",
    "ffn_norm": "blk.{i}.ffn_norm.weight",
    "gate": "blk.{i}.ffn_gate.weight",
    "gate_bias": "blk.{i}.ffn_gate.bias",
    "up": "blk.{i}.ffn_up.weight",
    "up_bias": "blk.{i}.ffn_up.bias",
    "down": "blk.{i}.ffn_down.weight",
    "down_bias": "blk.{i}.ffn_down.bias",
    "router": "blk.{i}.ffn_gate_inp.weight",
    "experts_gate_up": "blk.{i}.ffn_gate_up_exps.weight",
    "experts_gate": "blk.{i}.ffn_gate_exps.weight",
    "experts_up": "blk.{i}.ffn_up_exps.weight",
    "experts_down": "blk.{i}.ffn_down_exps.weight",
    # Mixtral files of December 2023 have one tensor an expert.
    "expert_gate": "blk.{i}.ffn_gate.{e}.weight",
    "expert_up": "blk.{i}.ffn_up.{e}.weight",
    "expert_down": "blk.{i}.ffn_down.{e}.weight",
}

HF_NAMES = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attn_norm": "model.layers.{i}.input_layernorm.weight",
    "q": "model.layers.{i}.self_attn.q_proj.weight",
    "q_bias": "model.layers.{i}.self_attn.q_proj.bias",
    "k": "model.layers.{i}.self_attn.k_proj.weight",
    "k_bias": "model.layers.{i}.self_attn.k_proj.bias",
    "v": "model.layers.{i}.self_attn.v_proj.weight",
    "v_bias": "model.layers.{i}.self_attn.v_proj.bias",
    "o": "model.layers.{i}.self_attn.o_proj.weight",
    "o_bias": "model.layers.{i}.self_attn.o_proj.bias",
    "ffn_norm": "model.layers.{i}.post_attention_layernorm.weight",
    "gate": "model.layers.{i}.mlp.gate_proj.weight",
    "gate_bias": "model.layers.{i}.mlp.gate_proj.bias",
    "up": "model.layers.{i}.mlp.up_proj.weight",
    "up_bias": "model.layers.{i}.mlp.up_proj.bias",
    "down": "model.layers.{i}.mlp.down_proj.weight",
    "down_bias": "model.layers.{i}.mlp.down_proj.bias",
}


@dataclass(frozen=True, slots=True)
class Args:
    """What the forward pass needs to know; `*_bias` None means: as the file has it."""

    num_layers: int
    hidden: int
    ffn: int  # width of the MLP, or of one expert
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    context_length: int
    attention_scale: float
    activation: Activation
    interleaved: bool  # GGUF stores q and k permuted for pairs (2i, 2i + 1)
    window: int | None = None
    vocab_size: int | None = None
    tied: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    num_experts: int = 0
    top_k: int = 0
    expert_scale: float = 1.0

    @classmethod
    def from_gguf(cls, c: Config) -> Args:
        """From the metadata below `general.architecture`."""
        hidden = c.integer("embedding_length")
        num_heads, num_kv_heads = config.head_counts(c, "attention.head_count", "attention.head_count_kv")
        head_dim = config.gguf_head_dim(c, hidden, num_heads)
        num_experts, top_k, expert_scale = 0, 0, 1.0
        if c.integer("expert_count", default=0, low=0, high=config.MAX_EXPERTS):
            num_experts, top_k = config.expert_counts(c, ("expert_count",), "expert_used_count")
            expert_scale = config.gguf_softmax_router(c)
            if not c.flag("expert_weights_norm", default=True):
                raise c.unsupported("expert_weights_norm", "is false, which no model of this family has")
        return cls(
            num_layers=c.integer("block_count", high=config.MAX_LAYERS),
            hidden=hidden,
            ffn=c.integer("feed_forward_length"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            eps=c.number("attention.layer_norm_rms_epsilon"),
            context_length=gguf_context(c),
            attention_scale=c.number("attention.scale", default=0.0) or config.inverse_sqrt(head_dim),
            activation="silu",
            interleaved=True,
            window=c.optional_integer("attention.sliding_window", low=0, high=config.MAX_CONTEXT) or None,
            num_experts=num_experts,
            top_k=top_k,
            expert_scale=expert_scale,
        )

    @classmethod
    def from_hf(cls, c: Config, *, absent_kv: int | None = None, default_context: int = 2048) -> Args:
        """From config.json. `absent_kv`: see `config.head_counts`; `default_context`: positions when it says none."""
        hidden = c.integer("hidden_size")
        num_heads, num_kv_heads = config.head_counts(
            c, "num_attention_heads", "num_key_value_heads", absent_kv=absent_kv
        )
        head_dim = config.hf_head_dim(c, hidden, num_heads)
        return cls(
            num_layers=c.integer("num_hidden_layers", high=config.MAX_LAYERS),
            hidden=hidden,
            ffn=c.integer("intermediate_size"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            eps=c.number("rms_norm_eps", default=1e-6),
            context_length=hf_context(c, default_context),
            attention_scale=config.inverse_sqrt(head_dim),
            activation=c.activation("hidden_act", "silu"),
            interleaved=False,
            vocab_size=c.integer("vocab_size", high=config.MAX_VOCAB),
            tied=c.flag("tie_word_embeddings", default=False),
            attention_bias=c.flag("attention_bias", default=False),
            mlp_bias=c.flag("mlp_bias", default=False),
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
    for buffer in (b.q, b.k):
        yield Rope(buffer, a.head_dim, rope.inv_freq, a.interleaved, rope.attention_factor)
    yield Attend(
        b.attn, b.q, b.k, b.v, i, a.num_heads, a.num_kv_heads, a.head_dim, a.head_dim, a.attention_scale, a.window
    )
    yield Linear((b.h,), b.attn, (w.matrix("o", a.hidden, q, i),), (w.bias("o_bias", a.hidden, i, a.attention_bias),))


def mlp(a: Args, w: Weights, b: Buffers, i: int) -> Iterator[Op]:
    """h = (activation(norm(x) · gate) · (norm(x) · up)) · down"""
    yield Norm(b.h, b.x, w.vector("ffn_norm", a.hidden, i), eps=a.eps)
    yield Linear(
        (b.gate, b.up),
        b.h,
        (w.matrix("gate", a.ffn, a.hidden, i), w.matrix("up", a.ffn, a.hidden, i)),
        (w.bias("gate_bias", a.ffn, i, a.mlp_bias), w.bias("up_bias", a.ffn, i, a.mlp_bias)),
    )
    yield Gate(b.gate, b.gate, b.up, a.activation)
    yield Linear(
        (b.h,), b.gate, (w.matrix("down", a.hidden, a.ffn, i),), (w.bias("down_bias", a.hidden, i, a.mlp_bias),)
    )


def moe(a: Args, w: Weights, b: Buffers, i: int) -> Iterator[Op]:
    """moe = Σ over the top-k experts of softmax(router(norm(x))), renormalised, · expert(norm(x))"""
    yield Norm(b.h, b.x, w.vector("ffn_norm", a.hidden, i), eps=a.eps)
    yield Linear((b.router,), b.h, (w.matrix("router", a.num_experts, a.hidden, i),))
    yield Route(b.router, a.num_experts, a.top_k, "softmax", normalize=True, scale=a.expert_scale)
    gate, up, down = w.experts(i, a.num_experts, a.ffn, a.hidden)
    yield Experts(b.moe, b.h, b.router, gate, up, down, a.activation)


def block(a: Args, w: Weights, b: Buffers, rope: RopeTable, i: int) -> Iterator[Op]:
    """x += attention(x); x += mlp(x)"""
    yield from attention(a, w, b, rope, i)
    yield Add(b.x, b.x, b.h)
    if a.num_experts:
        yield from moe(a, w, b, i)
        yield Add(b.x, b.x, b.moe)
    else:
        yield from mlp(a, w, b, i)
        yield Add(b.x, b.x, b.h)


def model(architecture: str, a: Args, w: Weights, rope: RopeTable) -> Program:
    """The whole pass from token to logits."""
    b = Buffers(a.hidden, a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim, a.ffn, a.num_experts)
    table = w.embedding(a.hidden, a.vocab_size)
    ops: list[Op] = [Embed(b.x, table)]
    for i in range(a.num_layers):
        ops += block(a, w, b, rope, i)
    ops.append(Norm(b.h, b.x, w.vector("final_norm", a.hidden), eps=a.eps))
    ops.append(Head(b.h, w.head(table, a.tied)))
    w.finish()
    return Program(architecture, ops, a.num_layers, a.hidden, table.rows, a.context_length, a.num_experts, a.top_k)


def build(c: Config) -> Program:
    """The program of a `llama` checkpoint."""
    checkpoint = c.checkpoint
    if c.is_gguf:
        w = Weights(checkpoint, GGUF_NAMES)
        args = Args.from_gguf(c)
        rope = gguf_rope(c, args.head_dim, w)
    else:
        config.check_causal_lm(c)
        w = hf_weights(checkpoint, HF_NAMES)
        args = Args.from_hf(c)
        rope = hf_rope(c, args.head_dim)
    c.refuse_unread()
    return model(checkpoint.architecture, args, w, rope)
