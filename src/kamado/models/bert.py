"""BERT, the encoder of most embedding models (MiniLM, E5, BGE): each row sees the whole text, norms follow blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..program import Embed, Op, Pool
from . import settings as read
from .config import MAX_CONTEXT, MAX_VOCAB
from .decoder import Attention, Block, Mlp, assemble, attention, mlp
from .pooling import read_pooling
from .registry import Config, Family, Program, Weights
from .stream import Stream

# Heads for training and the pooler in front of classifiers: no embedding model reads them.
_UNUSED_TENSORS = r"(^|\.)(pooler|embeddings\.position_ids)\b|^cls\b"


@Family(
    gguf=("bert",),
    hf=("bert",),
    tensors={
        "token_embd": "embeddings.word_embeddings", "position_embd": "embeddings.position_embeddings",
        "token_types": "embeddings.token_type_embeddings", "token_embd_norm": "embeddings.LayerNorm",
        "attn_q": "encoder.layer.{i}.attention.self.query", "attn_k": "encoder.layer.{i}.attention.self.key",
        "attn_v": "encoder.layer.{i}.attention.self.value", "attn_output": "encoder.layer.{i}.attention.output.dense",
        "attn_output_norm": "encoder.layer.{i}.attention.output.LayerNorm",
        "ffn_up": "encoder.layer.{i}.intermediate.dense", "ffn_down": "encoder.layer.{i}.output.dense",
        "layer_output_norm": "encoder.layer.{i}.output.LayerNorm",
    },
    defaults={
        "num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
        "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "vocab_size": 30522,
    },
    classes=("BertModel", "BertForMaskedLM", "BertForPreTraining"),
)  # fmt: skip
def build(c: Config, w: Weights) -> Program:
    """The program of a `bert` checkpoint. All tokens are of type 0: the texts are single, not pairs."""
    _check_encoder(c)
    attend = replace(read.attention(c, None, bias=True, out_bias=True), causal=False)
    ffn = read.mlp(c, activation="gelu", bias=True, gated=False)
    s = Stream(w, c.integer("embedding_length"), c.number("attention.layer_norm_epsilon"), "layer")
    context = c.integer("context_length", high=MAX_CONTEXT)
    pooling = read_pooling(c.whole) or "mean"
    vocab_size = None if c.is_gguf else c.integer("vocab_size", high=MAX_VOCAB)
    num_types = None if c.is_gguf else c.integer("type_vocab_size", high=MAX_VOCAB)
    num_layers = read.num_layers(c)
    c.whole.refuse_unread()

    table = w.embedding(s.hidden, vocab_size)
    positions = w.matrix("position_embd", context, s.hidden)
    ops: list[Op] = [Embed(s.x, table), Embed(s.h, positions, index="position"), *s.added(s.h)]
    if num_types is not None or w.has("token_types"):
        ops += [Embed(s.h, w.matrix("token_types", num_types, s.hidden), index="first"), *s.added(s.h)]
    ops.append(s.normed(s.x, s.x, "token_embd_norm"))
    for i in range(num_layers):
        ops += _block(s, attend, ffn, i)
    ops.append(Pool(s.x, pooling))
    return assemble(
        s, ops, [Block(attend, ffn)] * num_layers, table.rows, context, pooling=pooling, ignored=_UNUSED_TENSORS
    )


def _block(s: Stream, a: Attention, m: Mlp, i: int) -> Iterator[Op]:
    """x = norm(x + attention(x)); x = norm(x + mlp(x))"""
    yield from attention(s, a, s.x, i)
    yield from s.added(s.h)
    yield s.normed(s.x, s.x, "attn_output_norm", i)
    yield from mlp(s, m, s.x, s.h, i)
    yield from s.added(s.h)
    yield s.normed(s.x, s.x, "layer_output_norm", i)


def _check_encoder(c: Config) -> None:
    if c.is_gguf:
        if c.flag("attention.causal", default=False):
            raise c.unsupported("attention.causal", "is true: a BERT that looks back only")
        return
    kind = c.text("position_embedding_type", default="absolute")
    if kind != "absolute":
        raise c.unsupported("position_embedding_type", f"is {kind!r}; supported is 'absolute'")
    for key in ("is_decoder", "add_cross_attention"):
        if c.flag(key, default=False):
            raise c.unsupported(key, "is true: an encoder is needed")
