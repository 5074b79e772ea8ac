"""Phi-3 to Phi-4-mini: fused matrices, part of the head turned, two sets of rotary factors."""

from __future__ import annotations

import math
from typing import Any

from family_cases import FFN, HEAD_DIM, HEADS, KV_HEADS, NO_HEAD_DIM, Case, Family, Gguf, Shapes, heads

_QKV = "self_attn.qkv_proj.weight"


def _mlp(hidden: int, layer: int) -> Shapes:
    return {"mlp.gate_up_proj.weight": (2 * FFN, hidden), "mlp.down_proj.weight": (hidden, FFN)}


def _longrope(pairs: int, share: float = 1.0, **more: Any) -> dict[str, Any]:
    factors = {
        "short_factor": [1.0 + 0.05 * i for i in range(pairs)],
        "long_factor": [1.0 + 0.5 * i for i in range(pairs)],  # as real ones: 1 for the fastest pair
    }
    return {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": share, **factors, **more}


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    rope = c.get("rope_parameters") or {}
    original = c["original_max_position_embeddings"]
    w.add_rope_scaling_orig_ctx_len(original)
    w.add_sliding_window(c.get("sliding_window") or 0)
    if rope.get("rope_type") == "longrope":
        scale = c["max_position_embeddings"] / original
        factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        w.add_rope_scaling_attn_factors(rope.get("attention_factor") or factor)


FAMILY = Family(
    "phi3",
    tiny={
        **NO_HEAD_DIM,
        "original_max_position_embeddings": 256,
        "rope_parameters": _longrope(3 * HEAD_DIM // 8, 0.75),
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    },
    attention={_QKV: ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HEADS * HEAD_DIM)},
    without=tuple(f"self_attn.{part}_proj.weight" for part in "qkv"),
    ffn=_mlp,
    golden=(6, [29, 62, 21, 47, 33, 29, 62, 18, 74, 54, 30, 62, 31, 67, 29, 46, 54, 90, 44, 38, 44, 74, 75, 50]),
    gguf=Gguf(
        "PHI3",
        settings=_gguf_settings,
        keys={"rope.scaling.type": "longrope", "attention.sliding_window": 262144},
    ),
    cases=(
        Case(
            "phi3-short-three-quarters",
            heads(6, 2, hidden_size=96, rope_parameters=_longrope(6, 0.75), original_max_position_embeddings=1024)
            | {"tie_word_embeddings": True},
        ),
        Case(
            "phi3-long-gqa8",
            heads(8, 1, rope_parameters=_longrope(4), original_max_position_embeddings=64),
            continues=False,  # its keys are turned anew at the original length, which `generate` alone does
        ),
        Case("phi3-plain-window", {"sliding_window": 33, "original_max_position_embeddings": 4096}, exact=True),
    ),
    published={
        "embd_pdrop": 0.0, "resid_pdrop": 0.0, "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False,
        "mlp_bias": False, "attention_bias": False, "sliding_window": 262144,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    },
    )  # fmt: skip
