"""Hunyuan A13B: experts and a shared one of the same width in every layer; what is said by layer must not differ."""

from __future__ import annotations

from . import settings as read
from .decoder import Block, model
from .hunyuan_v1_dense import DEFAULTS, TENSORS, hunyuan_attention
from .registry import Config, Family, Program, Weights

_MLP = "layers.{i}.mlp."


@Family(
    gguf=("hunyuan-moe",),
    hf=("hunyuan_v1_moe",),
    keys={"expert_used_count": ("moe_topk", "num_experts_per_tok"), "expert_feed_forward_length": "intermediate_size"},
    tensors={
        **TENSORS,
        "ffn_gate_inp": _MLP + "gate.wg",
        "ffn_gate_shexp": _MLP + "shared_mlp.gate_proj",
        "ffn_up_shexp": _MLP + "shared_mlp.up_proj",
        "ffn_down_shexp": _MLP + "shared_mlp.down_proj",
    },
    defaults={**DEFAULTS, "num_experts": 1, "moe_topk": 1},
)
def build(c: Config, w: Weights) -> Program:
    """The program of a `hunyuan-moe` checkpoint."""
    width = c.integer("expert_feed_forward_length")
    shared = read.shared_width(c, width) if c.is_gguf else width
    experts = read.moe(c, "expert_feed_forward_length", shared=shared)
    if c.is_gguf:
        c.integer("feed_forward_length")  # that of an expert once more
    return model(c, w, [Block(hunyuan_attention(c), experts)] * read.num_layers(c))
