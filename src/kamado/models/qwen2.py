"""Qwen2 and Qwen2.5: Llama's shape with biases on q, k and v."""

from __future__ import annotations

from . import settings as read
from .decoder import Block, model
from .registry import Config, Family, Program, Weights


@Family(
    gguf=("qwen2",),
    hf=("qwen2",),
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6},
)
def build(c: Config, w: Weights) -> Program:
    """The program of a `qwen2` checkpoint."""
    rope, mlp = read.rope(c), read.mlp(c)
    bias = None if c.is_gguf else True
    return model(
        c, w, [Block(read.attention(c, rope, window=window, bias=bias), mlp) for window in read.qwen_windows(c)]
    )
