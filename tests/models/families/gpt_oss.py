"""gpt-oss, whose files are MXFP4 (test_gpt_oss.py) or, as here, the transposes of what is not quantised."""

from __future__ import annotations

from typing import Any

import family_cases as fc

_MOE = {"num_local_experts": fc.EXPERTS, "num_experts_per_tok": fc.TOP_K, "intermediate_size": fc.EXPERT_WIDTH}
_YARN = {**fc.YARN, "beta_fast": 32.0, "beta_slow": 1.0}
_UNTRUNCATED = {**_YARN, "rope_theta": 150000.0, "factor": 32.0, "truncate": False}


def _ffn(hidden: int, layer: int) -> fc.Shapes:
    return {
        "mlp.router.weight": (fc.EXPERTS, hidden),
        "mlp.router.bias": (fc.EXPERTS,),
        "mlp.experts.gate_up_proj": (fc.EXPERTS, hidden, 2 * fc.EXPERT_WIDTH),
        "mlp.experts.gate_up_proj_bias": (fc.EXPERTS, 2 * fc.EXPERT_WIDTH),
        "mlp.experts.down_proj": (fc.EXPERTS, fc.EXPERT_WIDTH, hidden),
        "mlp.experts.down_proj_bias": (fc.EXPERTS, hidden),
    }


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    w.add_sliding_window(c["sliding_window"])
    w.add_expert_feed_forward_length(c["intermediate_size"])
    rope = c["rope_parameters"]
    if "beta_fast" in rope:
        w.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        w.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])


def converted(name: str, values: Any, c: dict[str, Any]) -> dict[str, Any]:
    """Gate and up apart, neither of them transposed."""
    if name.endswith(".sinks"):
        return {f"{name}.weight": values}
    stem, part, end = name.partition("_proj")
    if ".experts." not in stem:
        return {name: values}
    kind = ".bias" if end else ".weight"
    values = values if end else values.swapaxes(-1, -2)
    if not stem.endswith("gate_up"):
        return {f"{stem}{part}{kind}": values}
    stem = stem.removesuffix("gate_up")
    return {f"{stem}gate_proj{kind}": values[:, 0::2], f"{stem}up_proj{kind}": values[:, 1::2]}


FAMILY = fc.Family(
    "gpt_oss",
    tiny={**fc.BASE, **_MOE, "sliding_window": 7, "rope_parameters": _YARN},
    attention={
        "self_attn.q_proj.bias": (fc.HEADS * fc.HEAD_DIM,),
        "self_attn.k_proj.bias": (fc.KV_HEADS * fc.HEAD_DIM,),
        "self_attn.v_proj.bias": (fc.KV_HEADS * fc.HEAD_DIM,),
        "self_attn.o_proj.bias": (fc.BASE["hidden_size"],),
        "self_attn.sinks": (fc.HEADS,),
    },
    ffn=_ffn,
    stretched={"gate_up_proj": 5.0, "sinks": 4.0},  # so that its limit of 7 bites, and sinks are seen
    heading="layers 0, 2",
    golden=(0, [34, 60, 38, 60, 60, 6, 51, 60, 51, 46, 38, 1, 2, 51, 2, 34, 34, 34, 2, 95, 95, 39, 53, 72]),
    gguf=fc.Gguf("GPT_OSS", settings=_gguf_settings, converted=converted),
    published={
        "attention_bias": True,
        "experts_per_token": fc.TOP_K,
        "initial_context_length": 4096,
        "output_router_logits": False,
        "quantization_config": {
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
            "quant_method": "mxfp4",
        },
        "router_aux_loss_coef": 0.9,
        "swiglu_limit": 7.0,
    },
    cases=(
        fc.Case(
            "gpt-oss-gqa8-untruncated-yarn",
            fc.heads(
                8,
                1,
                **_MOE,
                head_dim=20,
                sliding_window=13,
                rope_parameters=_UNTRUNCATED,
                max_position_embeddings=2048,
            ),
            gguf=False,
        ),
        fc.Case(
            "gpt-oss-limits",
            fc.heads(
                6,
                2,
                **_MOE,
                head_dim=16,
                swiglu_limit=0.7,
                swiglu_alpha=1.3,
                layer_types=["full_attention", "sliding_attention", "sliding_attention"],
                sliding_window=5,
                rope_parameters={"rope_type": "default", "rope_theta": 1e4},
            ),
            gguf=False,
        ),
        fc.Case(
            "gpt-oss-no-bias",
            fc.heads(4, 2, **_MOE, head_dim=16, attention_bias=False, sliding_window=9, rope_parameters=_YARN),
            gguf=False,
        ),
        fc.Case(
            "gpt-oss-mha",
            fc.heads(
                4, 4, **{**_MOE, "num_experts_per_tok": 4}, head_dim=24, sliding_window=128, rope_parameters=_YARN
            ),
            exact=True,
        ),
    ),
)
