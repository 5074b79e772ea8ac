"""IBM Granite MoE: experts in every layer, and multipliers on embeddings, attention, residuals and logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..program import Activation, Add, Attend, Embed, Experts, Head, Linear, Norm, Op, Program, Rope, Route, Scale
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
    "router": "blk.{i}.ffn_gate_inp.weight",
    "experts_gate_up": "blk.{i}.ffn_gate_up_exps.weight",
    "experts_gate": "blk.{i}.ffn_gate_exps.weight",
    "experts_up": "blk.{i}.ffn_up_exps.weight",
    "experts_down": "blk.{i}.ffn_down_exps.weight",
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
    "router": "model.layers.{i}.block_sparse_moe.router.layer.weight",
    "experts_gate_up": "model.layers.{i}.block_sparse_moe.input_linear.weight",
    "experts_down": "model.layers.{i}.block_sparse_moe.output_linear.weight",
}


@dataclass(frozen=True, slots=True)
class Args:
    """What the forward pass needs to know."""

    num_layers: int
    hidden: int
    expert_width: int
    num_experts: int
    top_k: int
    expert_scale: float
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    context_length: int
    activation: Activation
    interleaved: bool  # GGUF stores q and k permuted for pairs (2i, 2i + 1)
    embedding_scale: float
    attention_scale: float
    residual_scale: float
    logit_divisor: float
    vocab_size: int | None = None
    tied: bool | None = None
    attention_bias: bool | None = None  # None: as the file has it

    @classmethod
    def from_gguf(cls, c: Config) -> Args:
        """From the metadata below `general.architecture`."""
        hidden = c.integer("embedding_length")
        num_heads, num_kv_heads = config.head_counts(c, "attention.head_count", "attention.head_count_kv")
        head_dim = config.gguf_head_dim(c, hidden, num_heads)
        num_experts, top_k = config.expert_counts(c, ("expert_count",), "expert_used_count")
        if not c.flag("expert_weights_norm", default=True):
            raise c.unsupported("expert_weights_norm", "is false, which no model of this family has")
        return cls(
            num_layers=c.integer("block_count", high=config.MAX_LAYERS),
            hidden=hidden,
            expert_width=c.integer("expert_feed_forward_length", "feed_forward_length"),
            num_experts=num_experts,
            top_k=top_k,
            expert_scale=config.gguf_softmax_router(c),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            eps=c.number("attention.layer_norm_rms_epsilon"),
            context_length=gguf_context(c),
            activation="silu",
            interleaved=True,
            # 0 and absent mean: no such factor.
            embedding_scale=c.number("embedding_scale", default=1.0) or 1.0,
            attention_scale=c.number("attention.scale", default=0.0) or config.inverse_sqrt(head_dim),
            residual_scale=c.number("residual_scale", default=1.0) or 1.0,
            logit_divisor=c.number("logit_scale", low=1e-20),
        )

    @classmethod
    def from_hf(cls, c: Config) -> Args:
        """From config.json."""
        hidden = c.integer("hidden_size")
        num_heads, num_kv_heads = config.head_counts(c, "num_attention_heads", "num_key_value_heads")
        num_experts, top_k = config.expert_counts(c, ("num_local_experts",), "num_experts_per_tok", (8, 2))
        return cls(
            num_layers=c.integer("num_hidden_layers", high=config.MAX_LAYERS),
            hidden=hidden,
            expert_width=c.integer("intermediate_size"),
            num_experts=num_experts,
            top_k=top_k,
            expert_scale=1.0,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=config.hf_head_dim(c, hidden, num_heads),
            eps=c.number("rms_norm_eps", default=1e-6),
            context_length=hf_context(c, 2048),
            activation=c.activation("hidden_act", "silu"),
            interleaved=False,
            embedding_scale=c.number("embedding_multiplier", default=1.0),
            attention_scale=c.number("attention_multiplier", default=1.0),
            residual_scale=c.number("residual_multiplier", default=1.0),
            logit_divisor=c.number("logits_scaling", default=1.0, low=1e-20),
            vocab_size=c.integer("vocab_size", high=config.MAX_VOCAB),
            tied=c.flag("tie_word_embeddings", default=False),
            attention_bias=c.flag("attention_bias", default=False),
        )


def attention(a: Args, w: Weights, b: Buffers, rope: RopeTable, i: int) -> Iterator[Op]:
    """h = attention(norm(x)) · o · residual_scale"""
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
    yield Attend(b.attn, b.q, b.k, b.v, i, a.num_heads, a.num_kv_heads, a.head_dim, a.head_dim, a.attention_scale)
    yield Linear((b.h,), b.attn, (w.matrix("o", a.hidden, q, i),), (w.bias("o_bias", a.hidden, i, a.attention_bias),))
    if a.residual_scale != 1.0:
        yield Scale(b.h, b.h, a.residual_scale)


def moe(a: Args, w: Weights, b: Buffers, i: int) -> Iterator[Op]:
    """moe = residual_scale · Σ over the top-k experts of softmax over their logits · expert(norm(x))"""
    yield Norm(b.h, b.x, w.vector("ffn_norm", a.hidden, i), eps=a.eps)
    yield Linear((b.router,), b.h, (w.matrix("router", a.num_experts, a.hidden, i),))
    yield Route(b.router, a.num_experts, a.top_k, "topk_softmax", scale=a.expert_scale)
    gate, up, down = w.experts(i, a.num_experts, a.expert_width, a.hidden)
    yield Experts(b.moe, b.h, b.router, gate, up, down, a.activation)
    if a.residual_scale != 1.0:
        yield Scale(b.moe, b.moe, a.residual_scale)


def block(a: Args, w: Weights, b: Buffers, rope: RopeTable, i: int) -> Iterator[Op]:
    """x += attention(x); x += moe(x)"""
    yield from attention(a, w, b, rope, i)
    yield Add(b.x, b.x, b.h)
    yield from moe(a, w, b, i)
    yield Add(b.x, b.x, b.moe)


def model(architecture: str, a: Args, w: Weights, rope: RopeTable) -> Program:
    """The whole pass from token to logits."""
    b = Buffers(a.hidden, a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim, experts=a.num_experts)
    table = w.embedding(a.hidden, a.vocab_size)
    ops: list[Op] = [Embed(b.x, table, a.embedding_scale)]
    for i in range(a.num_layers):
        ops += block(a, w, b, rope, i)
    ops.append(Norm(b.h, b.x, w.vector("final_norm", a.hidden), eps=a.eps))
    ops.append(Head(b.h, w.head(table, a.tied), scale=1.0 / a.logit_divisor))
    w.finish()
    return Program(architecture, ops, a.num_layers, a.hidden, table.rows, a.context_length, a.num_experts, a.top_k)


def build(c: Config) -> Program:
    """The program of a `granitemoe` checkpoint."""
    checkpoint = c.checkpoint
    if c.is_gguf:
        args, w = Args.from_gguf(c), Weights(checkpoint, GGUF_NAMES)
        rope = gguf_rope(c, args.head_dim, w)
    else:
        config.check_causal_lm(c)
        args, w = Args.from_hf(c), hf_weights(checkpoint, HF_NAMES)
        rope = hf_rope(c, args.head_dim)
    c.refuse_unread()
    return model(checkpoint.architecture, args, w, rope)
