"""Qwen3, dense: like Llama, with an RMS norm on every query and key head."""

from __future__ import annotations

from dataclasses import replace

from . import settings as read
from .decoder import Block, model
from .registry import Config, Family, Program, Weights


@Family(
    gguf=("qwen3",),
    hf=("qwen3",),
    defaults={"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6},
)
def build(c: Config, w: Weights) -> Program:
    """The program of a `qwen3` checkpoint."""
    bias = read.stated_bias(c, "attention_bias")
    attention = read.attention(c, read.rope(c), qk_norm="head", bias=bias, out_bias=bias)
    mlp = read.mlp(c)
    return model(c, w, [Block(replace(attention, window=window), mlp) for window in read.qwen_windows(c)])
