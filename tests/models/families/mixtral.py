"""Mixtral: experts, with and without a window."""

from __future__ import annotations

from family_cases import BASE, EXPERTS, FFN, TOP_K, Case, Family, Gguf, experts, heads

FAMILY = Family(
    "mixtral",
    tiny={
        **BASE,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "sliding_window": None,
        "rope_theta": 1e6,
    },
    ffn=experts(FFN, "block_sparse_moe.", ("w1", "w3", "w2")),
    number=4,
    golden=(0, [1, 54, 25, 50, 35, 76, 18, 50, 49, 16, 68, 69, 25, 27, 80, 36, 6, 4, 65, 45, 92, 68, 50, 94]),
    gguf=Gguf("LLAMA", permuted=True),
    cases=(
        Case("mixtral-gqa3", heads(6, 2, hidden_size=96, num_local_experts=6, num_experts_per_tok=2)),
        Case("mixtral-window-top3", {"sliding_window": 33, "num_local_experts": 5, "num_experts_per_tok": 3}),
    ),
)
