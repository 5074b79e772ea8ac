"""Arcee's Trinity: gated attention, positions on local layers alone, norms around each part, a shared expert."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from . import settings as read
from .decoder import Block, model
from .registry import Config, Family, Program, Weights

_GLOBAL_EVERY = 4


@Family(
    gguf=("afmoe",),
    hf=("afmoe",),
    keys={
        "expert_shared_count": "num_shared_experts", "expert_weights_scale": "route_scale",
        "leading_dense_block_count": "num_dense_layers",
    },
    tensors={
        "attn_gate": "layers.{i}.self_attn.gate_proj", "ffn_norm": "layers.{i}.pre_mlp_layernorm",
        "post_ffw_norm": "layers.{i}.post_mlp_layernorm", "ffn_gate_inp": "layers.{i}.mlp.router.gate",
        "exp_probs_b": "layers.{i}.mlp.expert_bias$",
    },
    defaults={
        "head_dim": 128, "max_position_embeddings": 16384, "moe_intermediate_size": 1408, "num_dense_layers": 1,
        "num_experts": 64, "num_experts_per_tok": 6, "num_shared_experts": 2, "rms_norm_eps": 1e-5,
        "sliding_window": 1024,
    },
)  # fmt: skip
def build(c: Config, w: Weights) -> Program:
    """The program of an `afmoe` checkpoint. llama.cpp turns all but each fourth layer, whichever have the window."""
    bias = read.stated_bias(c, "attention_bias")
    windows = read.windows(c, _GLOBAL_EVERY, "global_attn_every_n_layers")
    if not c.is_gguf and not any(windows) and c.sequence("layer_types") is None:
        raise c.unsupported("attention.sliding_window", "is not there for the local layers")
    rope = read.rope(c)
    attention = replace(read.attention(c, None, qk_norm="head", bias=bias, out_bias=bias), gate="value")
    experts = read.moe(
        c,
        "expert_feed_forward_length",
        score="sigmoid",
        normalize=c.flag("expert_weights_norm", default=False) if c.is_gguf else True,
        scaled=True,
        choice_bias=True,
        shared=read.shared_width(c, c.integer("expert_feed_forward_length")),
        norm_eps=1e-20,
    )
    mlp, dense = read.mlp(c), read.leading_dense(c)
    blocks = []
    for i, window in enumerate(windows):
        turned = (i + 1) % _GLOBAL_EVERY != 0 if c.is_gguf else window is not None
        layer = replace(attention, rope=rope if turned else None, window=window)
        blocks.append(Block(layer, mlp if i < dense else experts, post_norms=True))
    is_scaled = c.is_gguf or c.flag("mup_enabled", default=False)
    scale = float(np.float32(math.sqrt(c.integer("embedding_length")))) if is_scaled else 1.0
    return model(c, w, blocks, embedding_scale=scale)
