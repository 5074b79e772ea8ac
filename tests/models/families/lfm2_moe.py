"""LFM2 with experts: an MLP in the first layer, sigmoid routers with a bias for the choice."""

from __future__ import annotations

from typing import Any

from family_cases import EXPERT_WIDTH, EXPERTS, TOP_K, Case, Family, Gguf, Shapes, experts, heads

from . import lfm2

_MOE = {
    "num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "moe_intermediate_size": EXPERT_WIDTH,
    "num_dense_layers": 1,
}
_KINDS = {"layer_types": ["conv", "full_attention", "conv"]}


def _ffn(hidden: int, layer: int) -> Shapes:
    if layer == 0:
        return lfm2.mixer(hidden, layer) | lfm2.mlp(hidden)
    routed = experts(EXPERT_WIDTH, "feed_forward.", ("w1", "w3", "w2"))(hidden, layer)
    return lfm2.mixer(hidden, layer) | routed | {"feed_forward.expert_bias": (EXPERTS,)}


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    lfm2.gguf_settings(w, c)
    w.add_leading_dense_block_count(c["num_dense_layers"])
    w.add_uint32("lfm2moe.expert_gating_func", 2)  # sigmoid


FAMILY = Family(
    "lfm2_moe",
    tiny={**lfm2.OPTIONS, **_MOE},
    without=lfm2.WITHOUT,
    ffn=_ffn,
    last_norm="embedding_norm",
    heading="layer 2",
    golden=(0, [59, 71, 86, 76, 57, 37, 59, 75, 51, 0, 57, 36, 32, 3, 73, 80, 85, 73, 91, 81, 49, 18, 50, 10]),
    gguf=Gguf(
        "LFM2MOE",
        settings=_gguf_settings,
        names={"feed_forward.expert_bias": "feed_forward.expert_bias.bias"},
        converted=lfm2.converted,
    ),
    cases=(
        Case(
            "lfm2moe-gqa8",
            heads(8, 1, **{**_MOE, "num_experts": 9, "num_experts_per_tok": 4}, hidden_size=96, num_hidden_layers=4)
            | {"layer_types": ["full_attention", "conv", "conv", "full_attention"], "conv_L_cache": 4},
            exact=True,
        ),
        Case(
            "lfm2moe-factor-no-bias",
            heads(4, 2, **_MOE, **_KINDS, routed_scaling_factor=2.5, norm_topk_prob=False, use_expert_bias=False),
            gguf=False,  # the converter writes none of the three
        ),
    ),
    published={"conv_bias": False, "tie_embedding": True, "use_pos_enc": True, "theta": 1000000.0},
)
