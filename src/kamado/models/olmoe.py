"""OLMoE: experts in every layer, an RMS norm over the whole of q and of k, expert weights not renormalised."""

from __future__ import annotations

from . import settings as read
from .decoder import Block, model
from .registry import Config, Family, Program, Weights


@Family(
    gguf=("olmoe",),
    hf=("olmoe",),
    keys={"expert_feed_forward_length": "intermediate_size"},
    defaults={"num_experts": 64, "num_experts_per_tok": 8, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
)
def build(c: Config, w: Weights) -> Program:
    """The program of an `olmoe` checkpoint."""
    bias = read.stated_bias(c, "attention_bias")
    attention = read.attention(c, read.rope(c), qk_norm="row", bias=bias, out_bias=bias)
    normalize = c.flag("expert_weights_norm", default=False)
    experts = read.moe(c, "expert_feed_forward_length", "feed_forward_length", normalize=normalize)
    return model(c, w, [Block(attention, experts)] * read.num_layers(c))
