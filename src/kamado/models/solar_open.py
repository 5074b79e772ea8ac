"""Solar Open in safetensors: GLM-4.5's experts in every layer, the whole head turned. In GGUF it is `glm4moe`."""

from __future__ import annotations

from . import settings as read
from .decoder import Block, model
from .glm4_moe import glm_moe
from .registry import Config, Family, Program, Weights


@Family(
    hf=("solar_open",),
    defaults={
        "head_dim": 128, "max_position_embeddings": 131072, "n_shared_experts": 1, "n_routed_experts": 128,
        "num_experts_per_tok": 8, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    },
)  # fmt: skip
def build(c: Config, w: Weights) -> Program:
    """The program of a `solar_open` checkpoint."""
    attention = read.attention(c, read.rope(c), bias=read.stated_bias(c, "attention_bias"))
    return model(c, w, [Block(attention, glm_moe(c))] * read.num_layers(c))
