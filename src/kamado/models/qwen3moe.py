"""Qwen3 Mixture-of-Experts (`qwen3moe` in GGUF, `qwen3_moe` in safetensors): Qwen3 with experts for the MLP."""

from __future__ import annotations

from . import settings as read
from .config import MAX_CONTEXT
from .decoder import Block, model
from .registry import Config, Family, Program, Weights


@Family(
    gguf=("qwen3moe",),
    hf=("qwen3_moe",),
    defaults={"num_key_value_heads": 4, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6},
)
def build(c: Config, w: Weights) -> Program:
    """The program of a `qwen3moe` checkpoint; in config.json some layers may have an MLP in the place of experts."""
    bias = read.stated_bias(c, "attention_bias")
    normalize = c.flag("expert_weights_norm", default=c.is_gguf)
    experts = read.moe(c, "expert_feed_forward_length", normalize=normalize)
    window = None
    if not c.is_gguf:
        window = c.optional_integer("sliding_window", high=MAX_CONTEXT)
        window = window if c.flag("use_sliding_window", default=False) else None
    attention = read.attention(c, read.rope(c), window=window, qk_norm="head", bias=bias, out_bias=bias)
    has_width = not c.is_gguf or c.has("feed_forward_length")  # of layers without experts, which GGUF does not know
    mlp = read.mlp(c) if has_width else experts
    return model(c, w, [Block(attention, experts if is_sparse else mlp) for is_sparse in read.sparse_layers(c)])
