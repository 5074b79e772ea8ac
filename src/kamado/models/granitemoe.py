"""IBM Granite MoE: experts in every layer, and multipliers on embeddings, attention, residuals and logits."""

from __future__ import annotations

from . import settings as read
from .decoder import Block, model
from .registry import Config, Family, Program, Weights

_MOE = "layers.{i}.block_sparse_moe."


@Family(
    gguf=("granitemoe",),
    hf=("granitemoe",),
    keys={"expert_count": "num_local_experts", "expert_feed_forward_length": "intermediate_size"},
    tensors={
        "ffn_gate_inp": _MOE + "router.layer",
        "ffn_gate_up_exps": _MOE + "input_linear",
        "ffn_down_exps": _MOE + "output_linear",
    },
    defaults={
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "attention_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
)
def build(c: Config, w: Weights) -> Program:
    """The program of a `granitemoe` checkpoint."""
    bias = read.stated_bias(c, "attention_bias")
    read.check_normalized(c)
    scale = read.gguf_scale(c) if c.is_gguf else c.number("attention.scale")
    attention = read.attention(c, read.rope(c, w, permuted=True), scale=scale, bias=bias, out_bias=bias)
    experts = read.moe(c, "expert_feed_forward_length", "feed_forward_length", score="topk_softmax")
    return model(
        c,
        w,
        [Block(attention, experts)] * read.num_layers(c),
        embedding_scale=read.factor(c, "embedding_scale"),
        residual_scale=read.factor(c, "residual_scale"),
        logit_scale=1.0 / c.number("logit_scale", low=1e-20),
    )
