"""Gemma 3: local and global layers, norms around every part, and the multimodal files."""

from __future__ import annotations

from typing import Any

from family_cases import BASE, HEAD_DIM, HIDDEN, QK_NORMS, Case, Family, Gguf, heads

_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    w.add_sliding_window(c["sliding_window"])
    local = [kind == "sliding_attention" for kind in c["layer_types"]]
    if local != [(i + 1) % 6 != 0 for i in range(len(local))]:  # the pattern that needs no key
        w.add_sliding_window_pattern(local)
    if c.get("final_logit_softcapping"):
        w.add_final_logit_softcapping(c["final_logit_softcapping"])


FAMILY = Family(
    "gemma3_text",
    tiny={
        **BASE,
        "query_pre_attn_scalar": HEAD_DIM,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": _ROPES,
    },
    attention={
        **QK_NORMS,
        "pre_feedforward_layernorm.weight": (HIDDEN,),
        "post_feedforward_layernorm.weight": (HIDDEN,),
    },
    norm_base=0.0,
    number=0,
    golden=(0, [59, 31, 71, 8, 46, 69, 88, 33, 69, 12, 14, 64, 29, 46, 31, 33, 70, 33, 70, 33, 55, 34, 89, 11]),
    heading="layers 0, 2",
    gguf=Gguf("GEMMA3", settings=_gguf_settings),
    cases=(
        Case(
            "gemma3-gqa3-window",
            heads(6, 2, hidden_size=96, head_dim=16, query_pre_attn_scalar=16, sliding_window=13, num_hidden_layers=7),
            exact=True,
        ),
        Case(
            "gemma3-long-rope-softcap",
            heads(
                4,
                1,
                head_dim=32,
                query_pre_attn_scalar=32,
                sliding_window=50,
                final_logit_softcapping=5.0,
                tie_word_embeddings=False,
                layer_types=["full_attention", "sliding_attention", "full_attention"],
                rope_parameters=_ROPES,
            ),
            exact=True,
        ),
        # Its query scalar, no head's width, has no GGUF key.
        Case(
            "gemma3-multimodal",
            {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 9, "pad_token_id": 0},
            gguf=False,
            family="gemma3",
        ),
    ),
)
