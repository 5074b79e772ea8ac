"""MiniMax M2: norms over the rows of q and k, half of the head turned, sigmoid routers with a bias."""

from __future__ import annotations

from typing import Any

import family_cases as fc


def _ffn(hidden: int, layer: int) -> fc.Shapes:
    routed = fc.experts(fc.FFN, "block_sparse_moe.", ("w1", "w3", "w2"))(hidden, layer)
    return {**routed, "block_sparse_moe.e_score_correction_bias": (fc.EXPERTS,)}


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    w.add_uint32("minimax-m2.expert_gating_func", 2)  # sigmoid
    w.add_expert_feed_forward_length(c["intermediate_size"])
    if "rotary_dim" in c and "partial_rotary_factor" not in c.get("rope_parameters", {}):
        w.add_rope_dimension_count(c["rotary_dim"])


FAMILY = fc.Family(
    "minimax_m2",
    tiny={
        **fc.BASE,
        "num_local_experts": fc.EXPERTS,
        "num_experts_per_tok": fc.TOP_K,
        "rotary_dim": 8,
        "rope_theta": 1e4,
    },
    attention={
        "self_attn.q_norm.weight": (fc.HEADS * fc.HEAD_DIM,),
        "self_attn.k_norm.weight": (fc.KV_HEADS * fc.HEAD_DIM,),
    },
    ffn=_ffn,
    golden=(2, [85, 85, 10, 22, 80, 19, 19, 49, 89, 19, 56, 79, 90, 79, 90, 79, 15, 52, 45, 22, 79, 90, 79, 90]),
    gguf=fc.Gguf(
        "MINIMAXM2",
        settings=_gguf_settings,
        names=fc.SCORE_BIAS,
        keys={"expert_feed_forward_length": 64, "vocab_size": 97},
    ),
    cases=(
        fc.Case(
            "minimax-m2-half-turned",
            fc.heads(6, 2, num_local_experts=6, num_experts_per_tok=2, head_dim=16, rotary_dim=8, rope_theta=1e4),
            exact=True,
        ),
        fc.Case(
            "minimax-m2-gqa8-quarter",
            fc.heads(8, 1, num_local_experts=5, num_experts_per_tok=3, head_dim=24, tie_word_embeddings=True)
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.25}},
            exact=True,
        ),
    ),
    published={
        "scoring_func": "sigmoid", "use_qk_norm": True, "qk_norm_type": "per_layer", "use_routing_bias": True,
        "attn_type_list": [1, 1, 1], "layernorm_full_attention_beta": 1.0, "layernorm_mlp_beta": 1.0,
        "shared_intermediate_size": 0, "shared_moe_mode": "sigmoid", "mlp_intermediate_size": 8192,
        "use_mtp": True, "num_mtp_modules": 3, "mtp_transformer_layers": 1, "attn_window_size": None,
        "output_router_logits": False, "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0,
    },
)  # fmt: skip
