"""GLM-4.5 to 4.7: half of the head turned, a dense layer first, sigmoid routers with a bias, a shared expert."""

from __future__ import annotations

from typing import Any

import family_cases as fc

_ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
_MOE = {
    "n_routed_experts": fc.EXPERTS,
    "num_experts_per_tok": fc.TOP_K,
    "moe_intermediate_size": fc.EXPERT_WIDTH,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 0,
}


def _ffn(hidden: int, layer: int) -> fc.Shapes:
    return fc.mlp(hidden, layer) if layer == 0 else fc.shared_experts(fc.EXPERT_WIDTH)(hidden, layer)


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    w.add_uint32("glm4moe.expert_gating_func", 2)  # sigmoid
    w.add_expert_shared_count(c["n_shared_experts"])
    w.add_expert_weights_scale(c["routed_scaling_factor"])
    w.add_expert_weights_norm(c.get("norm_topk_prob", True))
    w.add_leading_dense_block_count(c["first_k_dense_replace"])
    w.add_expert_group_count(c.get("n_group", 1))
    w.add_expert_group_used_count(c.get("topk_group", 1))


FAMILY = fc.Family(
    "glm4_moe",
    tiny={**fc.BASE, **_MOE, "use_qk_norm": True, "attention_bias": True, "rope_parameters": _ROPE},
    attention={
        **fc.QK_NORMS,
        **fc.QKV_BIASES,
    },
    ffn=_ffn,
    heading="layers 1-2",
    golden=(0, [56, 93, 20, 81, 85, 75, 37, 85, 36, 81, 48, 93, 85, 2, 84, 85, 36, 6, 17, 85, 6, 17, 10, 42]),
    gguf=fc.Gguf("GLM4_MOE", settings=_gguf_settings, names=fc.SCORE_BIAS),
    cases=(
        fc.Case(
            "glm4moe-norms-biases",
            fc.heads(6, 2, **_MOE, head_dim=16, use_qk_norm=True, attention_bias=True, rope_parameters=_ROPE),
            exact=True,
        ),
        fc.Case(
            "glm4moe-groups",
            fc.heads(8, 1, **{**_MOE, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 2})
            | {"head_dim": 24, "n_group": 4, "topk_group": 2, "norm_topk_prob": False, "num_hidden_layers": 4},
            exact=True,
        ),
    ),
)
