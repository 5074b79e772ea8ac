"""BERT, the encoder of most embedding models (MiniLM, E5, BGE): each row sees the whole text, norms follow blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..program import Activation, Add, Attend, Buffer, Embed, Gate, Linear, Norm, Op, Pool, Pooling, Program
from . import config
from .common import Buffers, Weights, hf_weights
from .config import Config
from .pooling import read_pooling

GGUF_NAMES = {
    "embed": "token_embd.weight",
    "positions": "position_embd.weight",
    "types": "token_types.weight",
    "embed_norm": "token_embd_norm.weight",
    "embed_norm_bias": "token_embd_norm.bias",
    "q": "blk.{i}.attn_q.weight",
    "q_bias": "blk.{i}.attn_q.bias",
    "k": "blk.{i}.attn_k.weight",
    "k_bias": "blk.{i}.attn_k.bias",
    "v": "blk.{i}.attn_v.weight",
    "v_bias": "blk.{i}.attn_v.bias",
    "o": "blk.{i}.attn_output.weight",
    "o_bias": "blk.{i}.attn_output.bias",
    "attn_norm": "blk.{i}.attn_output_norm.weight",
    "attn_norm_bias": "blk.{i}.attn_output_norm.bias",
    "up": "blk.{i}.ffn_up.weight",
    "up_bias": "blk.{i}.ffn_up.bias",
    "down": "blk.{i}.ffn_down.weight",
    "down_bias": "blk.{i}.ffn_down.bias",
    "ffn_norm": "blk.{i}.layer_output_norm.weight",
    "ffn_norm_bias": "blk.{i}.layer_output_norm.bias",
}

HF_NAMES = {
    "embed": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "types": "embeddings.token_type_embeddings.weight",
    "embed_norm": "embeddings.LayerNorm.weight",
    "embed_norm_bias": "embeddings.LayerNorm.bias",
    "q": "encoder.layer.{i}.attention.self.query.weight",
    "q_bias": "encoder.layer.{i}.attention.self.query.bias",
    "k": "encoder.layer.{i}.attention.self.key.weight",
    "k_bias": "encoder.layer.{i}.attention.self.key.bias",
    "v": "encoder.layer.{i}.attention.self.value.weight",
    "v_bias": "encoder.layer.{i}.attention.self.value.bias",
    "o": "encoder.layer.{i}.attention.output.dense.weight",
    "o_bias": "encoder.layer.{i}.attention.output.dense.bias",
    "attn_norm": "encoder.layer.{i}.attention.output.LayerNorm.weight",
    "attn_norm_bias": "encoder.layer.{i}.attention.output.LayerNorm.bias",
    "up": "encoder.layer.{i}.intermediate.dense.weight",
    "up_bias": "encoder.layer.{i}.intermediate.dense.bias",
    "down": "encoder.layer.{i}.output.dense.weight",
    "down_bias": "encoder.layer.{i}.output.dense.bias",
    "ffn_norm": "encoder.layer.{i}.output.LayerNorm.weight",
    "ffn_norm_bias": "encoder.layer.{i}.output.LayerNorm.bias",
}

# Heads for training and the pooler in front of classifiers: no embedding model reads them.
_UNUSED_TENSORS = r"(^|\.)(pooler|embeddings\.position_ids)\b|^cls\b"
_ARCHITECTURES = ("BertModel", "BertForMaskedLM", "BertForPreTraining")


@dataclass(frozen=True, slots=True)
class Args:
    """What the forward pass needs to know."""

    num_layers: int
    hidden: int
    ffn: int
    num_heads: int
    head_dim: int
    eps: float
    context_length: int
    activation: Activation
    pooling: Pooling
    vocab_size: int | None = None
    num_types: int | None = None

    @classmethod
    def from_gguf(cls, c: Config) -> Args:
        """From the metadata below `general.architecture`."""
        hidden = c.integer("embedding_length")
        num_heads = c.integer("attention.head_count", high=config.MAX_HEADS)
        if c.flag("attention.causal", default=False):
            raise c.unsupported("attention.causal", "is true: a BERT that looks back only")
        return cls(
            num_layers=c.integer("block_count", high=config.MAX_LAYERS),
            hidden=hidden,
            ffn=c.integer("feed_forward_length"),
            num_heads=num_heads,
            head_dim=config.gguf_head_dim(c, hidden, num_heads),
            eps=c.number("attention.layer_norm_epsilon"),
            context_length=c.integer("context_length", high=config.MAX_CONTEXT),
            activation="gelu_erf",
            pooling=read_pooling(c) or "mean",
        )

    @classmethod
    def from_hf(cls, c: Config) -> Args:
        """From config.json."""
        hidden = c.integer("hidden_size", default=768)
        num_heads = c.integer("num_attention_heads", default=12, high=config.MAX_HEADS)
        kind = c.text("position_embedding_type", default="absolute")
        if kind != "absolute":
            raise c.unsupported("position_embedding_type", f"is {kind!r}; supported is 'absolute'")
        for key in ("is_decoder", "add_cross_attention"):
            if c.flag(key, default=False):
                raise c.unsupported(key, "is true: an encoder is needed")
        return cls(
            num_layers=c.integer("num_hidden_layers", default=12, high=config.MAX_LAYERS),
            hidden=hidden,
            ffn=c.integer("intermediate_size", default=3072),
            num_heads=num_heads,
            head_dim=config.hf_head_dim(c, hidden, num_heads),
            eps=c.number("layer_norm_eps", default=1e-12),
            context_length=c.integer("max_position_embeddings", default=512, high=config.MAX_CONTEXT),
            activation=c.activation("hidden_act", "gelu"),
            pooling=read_pooling(c) or "mean",
            vocab_size=c.integer("vocab_size", default=30522, high=config.MAX_VOCAB),
            num_types=c.integer("type_vocab_size", default=2, high=config.MAX_VOCAB),
        )


def norm(a: Args, w: Weights, out: Buffer, role: str, i: int | None = None) -> Norm:
    """out = layer_norm(out), with weight and bias."""
    bias = w.vector(f"{role}_bias", a.hidden, i)
    return Norm(out, out, w.vector(role, a.hidden, i), bias, eps=a.eps, kind="layer")


def attention(a: Args, w: Weights, b: Buffers, i: int) -> Iterator[Op]:
    """x = norm(x + attention(x) · o)"""
    n, dim = a.hidden, a.head_dim
    roles = ("q", "k", "v")
    yield Linear(
        (b.q, b.k, b.v),
        b.x,
        tuple(w.matrix(role, n, n, i) for role in roles),
        tuple(w.vector(f"{role}_bias", n, i) for role in roles),
    )
    scale = config.inverse_sqrt(dim)
    yield Attend(b.attn, b.q, b.k, b.v, i, a.num_heads, a.num_heads, dim, dim, scale, causal=False)
    yield Linear((b.h,), b.attn, (w.matrix("o", n, n, i),), (w.vector("o_bias", n, i),))
    yield Add(b.x, b.x, b.h)
    yield norm(a, w, b.x, "attn_norm", i)


def mlp(a: Args, w: Weights, b: Buffers, i: int) -> Iterator[Op]:
    """x = norm(x + activation(x · up) · down)"""
    yield Linear((b.gate,), b.x, (w.matrix("up", a.ffn, a.hidden, i),), (w.vector("up_bias", a.ffn, i),))
    yield Gate(b.gate, b.gate, None, a.activation)
    yield Linear((b.h,), b.gate, (w.matrix("down", a.hidden, a.ffn, i),), (w.vector("down_bias", a.hidden, i),))
    yield Add(b.x, b.x, b.h)
    yield norm(a, w, b.x, "ffn_norm", i)


def model(architecture: str, a: Args, w: Weights) -> Program:
    """The whole pass from token to vector. All tokens are of type 0: the texts are single, not pairs."""
    b = Buffers(a.hidden, a.hidden, a.hidden, a.ffn)
    table = w.embedding(a.hidden, a.vocab_size)
    ops: list[Op] = [
        Embed(b.x, table),
        Embed(b.h, w.matrix("positions", a.context_length, a.hidden), index="position"),
        Add(b.x, b.x, b.h),
    ]
    if a.num_types is not None or w.has("types"):
        ops += [Embed(b.h, w.matrix("types", a.num_types, a.hidden), index="first"), Add(b.x, b.x, b.h)]
    ops.append(norm(a, w, b.x, "embed_norm"))
    for i in range(a.num_layers):
        ops += attention(a, w, b, i)
        ops += mlp(a, w, b, i)
    ops.append(Pool(b.x, a.pooling))
    w.finish(_UNUSED_TENSORS)
    return Program(architecture, ops, a.num_layers, a.hidden, table.rows, a.context_length, pooling=a.pooling)


def build(c: Config) -> Program:
    """The program of a `bert` checkpoint."""
    checkpoint = c.checkpoint
    if c.is_gguf:
        args, w = Args.from_gguf(c), Weights(checkpoint, GGUF_NAMES)
    else:
        for name in c.sequence("architectures") or []:
            if name not in _ARCHITECTURES:
                raise c.unsupported(
                    "architectures", f"names {str(name)[:60]!r}; supported are {', '.join(_ARCHITECTURES)}"
                )
        args, w = Args.from_hf(c), hf_weights(checkpoint, HF_NAMES, norm="embed_norm", default="")
    c.refuse_unread()
    return model(checkpoint.architecture, args, w)
