"""Step 3.5 Flash, which transformers runs as the text model of Step 3.7."""

from __future__ import annotations

from typing import Any

import family_cases as fc

_DRAFTS = 2
_LOCAL_HEADS = fc.HEADS + 2
_KINDS = ["full_attention", "sliding_attention", "full_attention"]
_ROPES = {
    "full_attention": {**fc.LLAMA3, "partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
}
_MOE = {
    "n_routed_experts": fc.EXPERTS,
    "num_experts_per_tok": fc.TOP_K,
    "moe_intermediate_size": fc.EXPERT_WIDTH,
    "share_expert_dim": fc.EXPERT_WIDTH + 8,
    "moe_router_scaling_factor": 3.0,
    "pad_token_id": 0,
}
# The limits bite in about one of three values.
_LIMITS = {"swiglu_limits": [0.0, None, 0.3, 0.0, 0.0], "swiglu_limits_shared": [0.4, 0.2, 0.0, 0.0, 0.0]}


def _ffn(hidden: int, layer: int) -> fc.Shapes:
    q = (_LOCAL_HEADS if _KINDS[layer] == "sliding_attention" else fc.HEADS) * fc.HEAD_DIM
    attention: fc.Shapes = {
        "self_attn.q_proj.weight": (q, hidden),
        "self_attn.g_proj.weight": (q // fc.HEAD_DIM, hidden),
        "self_attn.o_proj.weight": (hidden, q),
    }
    if layer == 0:
        return attention | fc.mlp(hidden, layer)
    shared = fc.EXPERT_WIDTH + 8
    return {
        **attention,
        "moe.gate.weight": (fc.EXPERTS, hidden),
        "moe.router_bias": (fc.EXPERTS,),
        "moe.gate_proj.weight": (fc.EXPERTS, fc.EXPERT_WIDTH, hidden),
        "moe.up_proj.weight": (fc.EXPERTS, fc.EXPERT_WIDTH, hidden),
        "moe.down_proj.weight": (fc.EXPERTS, hidden, fc.EXPERT_WIDTH),
        "share_expert.gate_proj.weight": (shared, hidden),
        "share_expert.up_proj.weight": (shared, hidden),
        "share_expert.down_proj.weight": (hidden, shared),
    }


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    """As the converter does it for a file whose draft layers are elsewhere: counted, and without tensors."""
    count, drafts = c["num_hidden_layers"], c["num_nextn_predict_layers"]
    local = [kind == "sliding_attention" for kind in c["layer_types"][:count]] + [True] * drafts
    w.add_block_count(count + drafts)
    w.add_nextn_predict_layers(drafts)
    w.add_head_count([c["num_sliding_attention_heads"] if yes else c["num_attention_heads"] for yes in local])
    w.add_head_count_kv([c["num_key_value_heads"]] * len(local))
    w.add_sliding_window(c["sliding_window"])
    w.add_sliding_window_pattern(local)
    w.add_rope_dimension_count(c["head_dim"])
    w.add_expert_shared_feed_forward_length(c["share_expert_dim"])
    w.add_expert_weights_scale(c["moe_router_scaling_factor"])
    w.add_expert_weights_norm(True)
    w.add_leading_dense_block_count(c["mlp_layer_types"].index("sparse"))
    w.add_moe_every_n_layers(1)
    for key, name in (("swiglu_limits", "exp"), ("swiglu_limits_shared", "shexp")):
        limits = [float(limit or 0.0) for limit in (c.get(key) or [0.0] * count)[:count]] + [0.0] * drafts
        w.add_array(f"step35.swiglu_clamp_{name}", limits)


FAMILY = fc.Family(
    "step3p5",
    tiny={
        **fc.BASE,
        **_MOE,
        **_LIMITS,
        "layer_types": [*_KINDS, *["sliding_attention"] * _DRAFTS],
        "mlp_layer_types": ["dense", *["sparse"] * (fc.LAYERS - 1 + _DRAFTS)],
        "num_nextn_predict_layers": _DRAFTS,
        "num_sliding_attention_heads": _LOCAL_HEADS,
        "sliding_window": 7,
        "rope_parameters": _ROPES,
    },
    attention=fc.QK_NORMS,
    ffn=_ffn,
    norm_base=0.0,
    heading="layer 1",
    golden=(2, [89, 56, 22, 20, 89, 89, 59, 54, 22, 89, 89, 52, 54, 22, 18, 95, 4, 81, 15, 12, 89, 48, 0, 0]),
    gguf=fc.Gguf("STEP35", settings=_gguf_settings, names={"moe.router_bias": "moe.router_bias.bias"}),
    cases=(
        fc.Case(
            "step3p7-llama3",
            {
                **_MOE,
                **_LIMITS,
                "num_attention_heads": 6,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "layer_types": [*_KINDS, *["sliding_attention"] * _DRAFTS],
                "num_nextn_predict_layers": _DRAFTS,
                "attention_other_setting": {"num_attention_heads": 8},
                "moe_layers_enum": "1,2",
                "sliding_window": 13,
                "rope_theta": [5e5, 1e4, 5e5, 1e4, 1e4],
                "partial_rotary_factors": [0.5, 1.0, 0.5, 1.0, 1.0],
                "rope_scaling": {key: value for key, value in fc.LLAMA3.items() if key != "rope_theta"},
            },
            family="step3p7",
        ),
        fc.Case(
            "step3p7-gqa8",
            {
                **_MOE,
                "num_attention_heads": 8,
                "num_key_value_heads": 1,
                "head_dim": 20,
                "num_hidden_layers": 5,
                "query_pre_attn_scalar": 24,
                "sliding_window": 9,
                "attention_bias": True,
                "rope_theta": 1e4,
            },
            gguf=False,
            family="step3p7",
        ),
    ),
)
