"""Solar Open: experts in every layer, the whole head turned; in GGUF it is GLM-4.5's architecture."""

from __future__ import annotations

from typing import Any

from family_cases import BASE, EXPERT_WIDTH, EXPERTS, SCORE_BIAS, TOP_K, Case, Family, Gguf, heads, shared_experts

_MOE = {
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "moe_intermediate_size": EXPERT_WIDTH,
    "n_shared_experts": 1,
}


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    w.add_rope_dimension_count(c["head_dim"])
    w.add_uint32("glm4moe.expert_gating_func", 2)  # sigmoid
    w.add_expert_shared_count(c["n_shared_experts"])
    w.add_expert_weights_scale(c.get("routed_scaling_factor", 1.0))
    w.add_expert_weights_norm(c.get("norm_topk_prob", True))
    w.add_leading_dense_block_count(0)
    w.add_expert_group_count(c.get("n_group", 1))
    w.add_expert_group_used_count(c.get("topk_group", 1))


FAMILY = Family(
    "solar_open",
    tiny={**BASE, **_MOE, "rope_theta": 1e4},
    ffn=shared_experts(EXPERT_WIDTH),
    golden=(0, [10, 33, 35, 67, 86, 68, 82, 42, 16, 38, 92, 38, 92, 38, 92, 38, 42, 66, 50, 42, 66, 50, 92, 47]),
    gguf=Gguf("GLM4_MOE", settings=_gguf_settings, names=SCORE_BIAS),
    cases=(
        Case("solar-open-gqa3", heads(6, 2, **_MOE, head_dim=16, rope_parameters={"rope_theta": 1e4}), exact=True),
        Case(
            "solar-open-groups-biases",
            heads(8, 1, **{**_MOE, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 2})
            | {"head_dim": 24, "n_group": 4, "topk_group": 2, "norm_topk_prob": False, "routed_scaling_factor": 2.5}
            | {"attention_bias": True},
            exact=True,
        ),
    ),
    published={
        "first_k_dense_replace": 0, "partial_rotary_factor": 1.0, "use_qk_norm": False, "intermediate_size": 10240,
        "rope_scaling": None, "norm_topk_prob": True, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
        "output_router_logits": False, "attention_bias": False,
    },
)  # fmt: skip
