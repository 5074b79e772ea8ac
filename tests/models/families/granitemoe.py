"""Granite MoE: multipliers, experts stacked gate on up."""

from __future__ import annotations

from family_cases import EXPERTS, FFN, NO_HEAD_DIM, TOP_K, Case, Family, Gguf, Shapes, heads

from .granite import gguf_settings


def experts(hidden: int, layer: int) -> Shapes:
    """Experts stacked, gate on up, and their router."""
    moe = "block_sparse_moe."
    return {
        f"{moe}router.layer.weight": (EXPERTS, hidden),
        f"{moe}input_linear.weight": (EXPERTS, 2 * FFN, hidden),
        f"{moe}output_linear.weight": (EXPERTS, hidden, FFN),
    }


_MULTIPLIERS = {
    "hidden_size": 96, "embedding_multiplier": 6.0, "attention_multiplier": 0.15, "residual_multiplier": 0.22,
    "logits_scaling": 4.0,
}  # fmt: skip


FAMILY = Family(
    "granitemoe",
    tiny={
        **NO_HEAD_DIM,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "embedding_multiplier": 1.5,
        "attention_multiplier": 0.125,
        "residual_multiplier": 0.72,
        "logits_scaling": 4.0,
        "tie_word_embeddings": True,
    },
    ffn=experts,
    number=1,
    golden=(1, [0, 69, 80, 82, 32, 35, 82, 32, 35, 82, 35, 82, 29, 34, 53, 66, 2, 31, 43, 82, 29, 82, 29, 82]),
    gguf=Gguf("GRANITE_MOE", permuted=True, settings=gguf_settings),
    cases=(
        Case(
            "granitemoe-multipliers",
            heads(6, 2, num_local_experts=6, num_experts_per_tok=2, tie_word_embeddings=True, **_MULTIPLIERS),
        ),
        Case("granitemoe-plain-gqa8", heads(8, 1, num_local_experts=4, num_experts_per_tok=4)),
    ),
)
