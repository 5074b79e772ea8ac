"""OLMo hybrid: delta rule with betas up to 2, normed before its parts, between attention that is normed behind them."""

from __future__ import annotations

from typing import Any

from family_cases import FFN, HEADS, NO_HEAD_DIM, YARN, Case, Family, Shapes, heads, mlp

from . import olmo2

_KINDS = ["linear_attention", "full_attention", "linear_attention"]
_K_HEADS, _K_DIM, _V_DIM, _TAPS = 2, 12, 20, 4
_LINEAR: dict[str, Any] = {
    "linear_conv_kernel_dim": _TAPS,
    "linear_key_head_dim": _K_DIM,
    "linear_value_head_dim": _V_DIM,
    "linear_num_key_heads": _K_HEADS,
    "linear_num_value_heads": HEADS,
}
_IDS = {"pad_token_id": 0, "eos_token_id": 2}
_WIDTHS = {"q": _K_HEADS * _K_DIM, "k": _K_HEADS * _K_DIM, "v": HEADS * _V_DIM}


def _ffn(hidden: int, layer: int) -> Shapes:
    if _KINDS[layer] == "full_attention":
        return {**mlp(hidden, layer), **olmo2.NORMS, "input_layernorm.weight": ()}
    return {
        **mlp(hidden, layer),
        **{f"self_attn.{part}_proj.weight": () for part in "qkvo"},
        **{f"linear_attn.{part}_proj.weight": (width, hidden) for part, width in _WIDTHS.items()},
        **{f"linear_attn.{part}_conv1d.weight": (width, 1, _TAPS) for part, width in _WIDTHS.items()},
        **{f"linear_attn.{part}_proj.weight": (HEADS, hidden) for part in "ab"},
        "linear_attn.g_proj.weight": (HEADS * _V_DIM, hidden),
        "linear_attn.o_proj.weight": (hidden, HEADS * _V_DIM),
        "linear_attn.o_norm.weight": (_V_DIM,),
        "linear_attn.A_log": (HEADS,),
        "linear_attn.dt_bias": (HEADS,),
    }


FAMILY = Family(
    "olmo_hybrid",
    tiny={**NO_HEAD_DIM, **_LINEAR, **_IDS, "layer_types": _KINDS, "rope_parameters": {"rope_theta": None}},
    ffn=_ffn,
    heading="layers 0, 2",
    golden=(0, [41, 81, 81, 2, 87, 73, 41, 73, 96, 2, 62, 68, 75, 16, 85, 32, 74, 2, 9, 1, 81, 85, 26, 2]),
    cases=(
        Case(
            "olmohybrid-no-positions",
            heads(
                8, 1, hidden_size=96, layer_types=_KINDS, rope_parameters={"rope_theta": None, "rope_type": "default"}
            ),
            gguf=False,
        ),
        Case(
            "olmohybrid-turned",
            heads(6, 3, hidden_size=96, num_hidden_layers=5, linear_num_key_heads=2, linear_num_value_heads=4)
            | {"linear_allow_neg_eigval": False, "linear_value_head_dim": 24, "rms_norm_eps": 1e-3},
            gguf=False,
        ),
        Case(
            "olmohybrid-few-layers",
            heads(4, 2, hidden_size=80, num_hidden_layers=2, attention_bias=True, tie_word_embeddings=True)
            | {"rope_parameters": YARN, "linear_conv_kernel_dim": 2, "intermediate_size": FFN, "hidden_act": "gelu"},
            gguf=False,
        ),
    ),
    published={"rope_scaling": None, "linear_a_log_min": 0.0, "linear_dt_max": 0.1, "attention_bias": False},
)
