"""GLM-4 (0414), dense: norms around each part, gate and up as one matrix, neighbours in half of each head turned."""

from __future__ import annotations

from dataclasses import replace

from . import settings as read
from .decoder import Block, model
from .registry import Config, Family, Program, Weights


@Family(
    gguf=("glm4",),
    hf=("glm4",),
    tensors={
        "post_attention_norm": "layers.{i}.post_self_attn_layernorm", "ffn_up": "layers.{i}.mlp.gate_up_proj",
        "post_ffw_norm": "layers.{i}.post_mlp_layernorm",
    },
    defaults={
        "attention_bias": True, "head_dim": 128, "max_position_embeddings": 131072, "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5, "rms_norm_eps": 0.00000015625,
    },
)  # fmt: skip
def build(c: Config, w: Weights) -> Program:
    """The program of a `glm4` checkpoint."""
    rope = read.rope(c, interleaved=True, partial=True)
    attention = read.attention(c, rope, bias=read.stated_bias(c, "attention_bias"))
    mlp = replace(read.mlp(c), fused=True)
    block = Block(attention, mlp, post_norms=True)
    return model(c, w, [block] * read.num_layers(c), ignored=read.draft_tensors(c))
