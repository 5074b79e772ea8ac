"""Trinity: a gate on what attention gives, positions on local layers alone, sigmoid routers with a bias."""

from __future__ import annotations

from typing import Any

import family_cases as fc

_MOE = {
    "num_experts": fc.EXPERTS,
    "num_experts_per_tok": fc.TOP_K,
    "moe_intermediate_size": fc.EXPERT_WIDTH,
    "num_shared_experts": 2,
    "num_dense_layers": 1,
    "route_scale": 2.5,
    "mup_enabled": True,
}
_RENAMED = {"mlp.gate.weight": "mlp.router.gate.weight", "mlp.gate.e_score_correction_bias": "mlp.expert_bias"}


def _ffn(hidden: int, layer: int) -> fc.Shapes:
    if layer == 0:
        return fc.mlp(hidden, layer)
    shapes = {
        _RENAMED.get(name, name): shape for name, shape in fc.shared_experts(fc.EXPERT_WIDTH)(hidden, layer).items()
    }
    return {
        name: tuple(2 * n if n == fc.EXPERT_WIDTH and "shared" in name else n for n in shape)
        for name, shape in shapes.items()
    }


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    w.add_uint32("afmoe.expert_gating_func", 2)  # sigmoid
    w.add_expert_shared_count(c["num_shared_experts"])
    w.add_expert_weights_scale(c["route_scale"])
    w.add_expert_weights_norm(True)
    w.add_leading_dense_block_count(c["num_dense_layers"])
    w.add_sliding_window(c["sliding_window"])


FAMILY = fc.Family(
    "afmoe",
    tiny={**fc.BASE, **_MOE, "num_hidden_layers": 4, "sliding_window": 7},
    attention={
        **fc.QK_NORMS,
        "self_attn.gate_proj.weight": (fc.HEADS * fc.HEAD_DIM, fc.HIDDEN),
        "pre_mlp_layernorm.weight": (fc.HIDDEN,),
        "post_mlp_layernorm.weight": (fc.HIDDEN,),
    },
    ffn=_ffn,
    heading="layers 1-2",
    golden=(1, [58, 44, 72, 81, 39, 64, 43, 39, 64, 58, 8, 86, 0, 64, 59, 18, 94, 86, 82, 72, 49, 77, 95, 10]),
    gguf=fc.Gguf("AFMOE", settings=_gguf_settings, names={"mlp.expert_bias": "mlp.expert_bias.bias"}),
    cases=(
        fc.Case(
            "afmoe-gqa8",
            fc.heads(8, 1, **{**_MOE, "num_experts": 9, "num_experts_per_tok": 4}, head_dim=12, sliding_window=13)
            | {"num_hidden_layers": 5},
            exact=True,
        ),
        fc.Case(
            "afmoe-own-layers",
            fc.heads(6, 2, **{**_MOE, "mup_enabled": False, "num_dense_layers": 2}, head_dim=16, sliding_window=21)
            | {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "attention_bias": True},
            gguf=False,
        ),
    ),
)
