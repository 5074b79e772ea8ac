"""Qwen3-Next and Qwen3-Coder-Next: the delta rule in three layers of four, gated attention, a gated shared expert."""

from __future__ import annotations

from dataclasses import replace

from . import settings as read
from .delta import QWEN_MOE_DEFAULTS, QWEN_TENSORS, delta_net, gated_moe, qwen
from .registry import Config, Family, Program, Weights


@Family(
    gguf=("qwen3next",),
    hf=("qwen3_next",),
    keys={"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
    tensors={
        **QWEN_TENSORS,
        "ssm_in": "layers.{i}.linear_attn.in_proj_qkvz",
        "ssm_ba": "layers.{i}.linear_attn.in_proj_ba",
    },
    defaults={
        **QWEN_MOE_DEFAULTS, "intermediate_size": 5632, "num_experts": 512, "num_experts_per_tok": 10,
        "num_hidden_layers": 48,
    },
)  # fmt: skip
def build(c: Config, w: Weights) -> Program:
    """The program of a `qwen3next` checkpoint; in config.json some layers may have an MLP in the place of experts."""
    read.check_normalized(c)
    moe = gated_moe(c, normalize=c.is_gguf or c.flag("expert_weights_norm", default=True))
    sparse = read.sparse_layers(c)
    mlp = moe if all(sparse) else read.mlp(c)
    c.known({"feed_forward_length", "intermediate_size"})  # of layers without experts
    return qwen(c, w, replace(delta_net(c), mixed=True), [moe if is_sparse else mlp for is_sparse in sparse])
