"""OLMoE: one norm over the whole of q and of k, expert weights as the router gives them."""

from __future__ import annotations

from family_cases import EXPERTS, FFN, HEAD_DIM, HEADS, KV_HEADS, NO_HEAD_DIM, TOP_K, Case, Family, Gguf, experts, heads

FAMILY = Family(
    "olmoe",
    tiny={
        **NO_HEAD_DIM,
        "num_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "norm_topk_prob": False,
        "pad_token_id": None,
        "eos_token_id": None,
    },
    attention={"self_attn.q_norm.weight": (HEADS * HEAD_DIM,), "self_attn.k_norm.weight": (KV_HEADS * HEAD_DIM,)},
    ffn=experts(FFN),
    number=5,
    golden=(6, [89, 59, 52, 61, 52, 16, 37, 59, 34, 50, 91, 18, 61, 65, 29, 44, 18, 24, 52, 29, 34, 29, 52, 29]),
    gguf=Gguf("OLMOE"),
    cases=(
        Case("olmoe-gqa1", {"num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": False}, exact=True),
        Case(
            "olmoe-gqa3-normalized",
            heads(6, 2, hidden_size=96, num_experts=5, num_experts_per_tok=2, norm_topk_prob=True, attention_bias=True),
            gguf=False,
        ),
    ),
)
