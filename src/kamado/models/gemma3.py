"""Gemma 3, text: scaled embeddings, norms before and after each block, QK-norm, local layers between global ones."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from . import settings as read
from .decoder import Block, model
from .registry import Config, Family, Program, Weights

_LAYERS_OF_27B = 62


@Family(
    gguf=("gemma3",),
    hf=("gemma3", "gemma3_text"),
    keys={"hidden_act": "hidden_activation"},
    tensors={"ffn_norm": "layers.{i}.pre_feedforward_layernorm"},
    defaults={
        "num_hidden_layers": 26, "hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256.0, "sliding_window": 4096,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "vocab_size": 262208, "tie_word_embeddings": True,
    },
    has_text_config=True,
)  # fmt: skip
def build(c: Config, w: Weights) -> Program:
    """The program of a `gemma3` (GGUF; multimodal safetensors) or `gemma3_text` checkpoint."""
    local, full = read.ropes(c, theta=1e6, local_theta=10000.0)
    attention = read.attention(c, full, scale=_scale(c), qk_norm="head")
    windowed = replace(attention, rope=local)
    mlp = read.mlp(c, activation="gelu_pytorch_tanh")
    return model(
        c,
        w,
        [
            Block(attention if window is None else replace(windowed, window=window), mlp, post_norms=True)
            for window in read.windows(c, 6, "sliding_window_pattern", "_sliding_window_pattern")
        ],
        # transformers rounds the factor to the weights' type; activations here are float32, so that is its type.
        embedding_scale=float(np.float32(math.sqrt(c.integer("embedding_length")))),
        softcap=c.optional_number("final_logit_softcapping", low=0.0 if c.is_gguf else 1e-6) or None,
        norm_offset=0.0 if c.is_gguf else 1.0,  # safetensors store the norms' weights less 1
        ignored=read.VISION_TENSORS,
        notes=read.vision_notes(w),
    )


def _scale(c: Config) -> float:
    if not c.is_gguf:
        return read.inverse_sqrt(c.number("query_pre_attn_scalar", low=1e-6))
    # No key says it: the 27B alone scales by hidden / heads, not by head_dim; llama.cpp tells it by its layers.
    is_27b = read.num_layers(c) == _LAYERS_OF_27B
    width = c.integer("embedding_length") // read.head_counts(c)[0] if is_27b else read.head_dim(c)
    return read.gguf_scale(c) or read.inverse_sqrt(width)
