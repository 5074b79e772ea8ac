"""Qwen3 with experts: in all layers, or beside layers with an MLP."""

from __future__ import annotations

from family_cases import BASE, EXPERT_WIDTH, EXPERTS, QK_NORMS, TOP_K, Case, Family, Gguf, experts, heads

FAMILY = Family(
    "qwen3_moe",
    tiny={
        **BASE,
        "num_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "moe_intermediate_size": EXPERT_WIDTH,
        "norm_topk_prob": True,
    },
    attention=QK_NORMS,
    ffn=experts(EXPERT_WIDTH),
    number=8,
    golden=(2, [52, 22, 52, 22, 20, 52, 22, 12, 22, 22, 22, 22, 31, 6, 6, 14, 22, 40, 76, 16, 46, 46, 46, 17]),
    gguf=Gguf("QWEN3MOE"),
    cases=(
        Case(
            "qwen3moe-gqa8-top3",
            heads(
                8, 1, num_experts=9, num_experts_per_tok=3, moe_intermediate_size=32, norm_topk_prob=True, head_dim=16
            ),
            exact=True,
        ),
        Case(
            "qwen3moe-dense-layers",
            {
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 32,
                "norm_topk_prob": False,
                "mlp_only_layers": [0],
                "use_sliding_window": True,
                "sliding_window": 23,
            },
            gguf=False,
        ),
    ),
)
