"""GLM-4.5 to 4.7: half of the head turned, a dense layer first, sigmoid routers with a bias, a shared expert."""

from __future__ import annotations

from typing import Any

from family_cases import (
    BASE,
    EXPERT_WIDTH,
    EXPERTS,
    QK_NORMS,
    QKV_BIASES,
    SCORE_BIAS,
    TOP_K,
    Case,
    Family,
    Gguf,
    Shapes,
    heads,
    mlp,
    shared_experts,
)

_ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
_MOE = {
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "moe_intermediate_size": EXPERT_WIDTH,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 0,
}


def _ffn(hidden: int, layer: int) -> Shapes:
    return mlp(hidden, layer) if layer == 0 else shared_experts(EXPERT_WIDTH)(hidden, layer)


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    w.add_uint32("glm4moe.expert_gating_func", 2)  # sigmoid
    w.add_expert_shared_count(c["n_shared_experts"])
    w.add_expert_weights_scale(c["routed_scaling_factor"])
    w.add_expert_weights_norm(c.get("norm_topk_prob", True))
    w.add_leading_dense_block_count(c["first_k_dense_replace"])
    w.add_expert_group_count(c.get("n_group", 1))
    w.add_expert_group_used_count(c.get("topk_group", 1))


FAMILY = Family(
    "glm4_moe",
    tiny={**BASE, **_MOE, "use_qk_norm": True, "attention_bias": True, "rope_parameters": _ROPE},
    attention={
        **QK_NORMS,
        **QKV_BIASES,
    },
    ffn=_ffn,
    heading="layers 1-2",
    golden=(0, [56, 93, 20, 81, 85, 75, 37, 85, 36, 81, 48, 93, 85, 2, 84, 85, 36, 6, 17, 85, 6, 17, 10, 42]),
    gguf=Gguf("GLM4_MOE", settings=_gguf_settings, names=SCORE_BIAS),
    cases=(
        Case(
            "glm4moe-norms-biases",
            heads(6, 2, **_MOE, head_dim=16, use_qk_norm=True, attention_bias=True, rope_parameters=_ROPE),
            exact=True,
        ),
        Case(
            "glm4moe-groups",
            heads(8, 1, **{**_MOE, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 2})
            | {"head_dim": 24, "n_group": 4, "topk_group": 2, "norm_topk_prob": False, "num_hidden_layers": 4},
            exact=True,
        ),
    ),
)
