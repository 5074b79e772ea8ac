"""Seed-OSS: Llama with biases on q, k and v."""

from __future__ import annotations

from . import settings as read
from .decoder import Block, model
from .registry import Config, Family, Program, Weights


@Family(
    gguf=("seed_oss",),
    hf=("seed_oss",),
    defaults={
        "attention_bias": True,
        "head_dim": 128,
        "max_position_embeddings": 524288,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
    },
)
def build(c: Config, w: Weights) -> Program:
    """The program of a `seed_oss` checkpoint."""
    attention = read.attention(
        c,
        read.rope(c),
        bias=read.stated_bias(c, "attention_bias"),
        out_bias=read.stated_bias(c, "attention_out_bias"),
    )
    mlp = read.mlp(c, bias=read.stated_bias(c, "mlp_bias"))
    return model(c, w, [Block(attention, mlp, ffn_norm="post_attention_norm")] * read.num_layers(c))
