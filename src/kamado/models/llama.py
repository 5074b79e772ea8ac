"""Llama 2 and 3.x, Mistral, SmolLM2; in GGUF also Mixtral, which is `llama` with `expert_count`."""

from __future__ import annotations

from . import settings as read
from .config import MAX_EXPERTS
from .decoder import Attention, Block, Mlp, model
from .registry import Config, Family, Program, Weights


def llama_attention(c: Config, w: Weights, window: int | None) -> Attention:
    """What Llama, Mistral and Mixtral have in common."""
    bias = read.stated_bias(c, "attention_bias")
    scale = read.gguf_scale(c) if c.is_gguf else None
    rope = read.rope(c, w, permuted=True)
    return read.attention(c, rope, scale=scale, window=window, bias=bias, out_bias=bias)


def llama_mlp(c: Config) -> Mlp:
    """Llama's and Mistral's MLP."""
    return read.mlp(c, bias=read.stated_bias(c, "mlp_bias"))


@Family(gguf=("llama",), hf=("llama",), defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-6})
def build(c: Config, w: Weights) -> Program:
    """The program of a `llama` checkpoint."""
    attention = llama_attention(c, w, read.gguf_window(c) if c.is_gguf else None)
    if c.is_gguf and c.integer("expert_count", default=0, low=0, high=MAX_EXPERTS):
        read.check_normalized(c)
        return model(c, w, [Block(attention, read.moe(c, "feed_forward_length"))] * read.num_layers(c))
    return model(c, w, [Block(attention, llama_mlp(c))] * read.num_layers(c))
