"""LFM2 with experts (LFM2-8B-A1B): a sigmoid router with a bias for the choice, MLPs in the first layers."""

from __future__ import annotations

from . import settings as read
from .decoder import Mlp, Moe
from .lfm2 import LFM2_DEFAULTS, LFM2_KEYS, LFM2_TENSORS, lfm2
from .registry import Config, Family, Program, Weights


@Family(
    gguf=("lfm2moe",),
    hf=("lfm2_moe",),
    keys=LFM2_KEYS,
    tensors=LFM2_TENSORS,
    defaults={
        **LFM2_DEFAULTS, "hidden_size": 2048, "intermediate_size": 7168, "moe_intermediate_size": 1792,
        "num_dense_layers": 2, "num_experts": 32, "num_experts_per_tok": 4,
    },
)  # fmt: skip
def build(c: Config, w: Weights) -> Program:
    """The program of an `lfm2moe` checkpoint."""
    read.check_normalized(c)
    if not c.is_gguf and c.get("layer_types") is None:
        raise c.invalid("layer_types", "is missing, which says what layers have attention")
    experts = read.moe(
        c,
        "expert_feed_forward_length",
        score="sigmoid",
        normalize=c.is_gguf or c.flag("expert_weights_norm", default=True),
        scaled=True,
        choice_bias=c.is_gguf or c.flag("use_expert_bias", default=True),
        norm_eps=1e-6,
    )
    mlp = Mlp(c.integer("feed_forward_length"), "silu")
    dense = read.leading_dense(c)
    ffns: list[Mlp | Moe] = [mlp if i < dense else experts for i in range(read.num_layers(c))]
    return lfm2(c, w, ffns)
