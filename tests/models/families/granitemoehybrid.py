"""Granite 4.0 without Mamba layers: a dense MLP where the shared expert is all there is, or experts beside it."""

from __future__ import annotations

from typing import Any

from family_cases import FFN, NO_HEAD_DIM, Case, Family, Gguf, Shapes, heads

from . import granite


def _ffn(hidden: int, layer: int) -> Shapes:
    return {"shared_mlp.input_linear.weight": (2 * FFN, hidden), "shared_mlp.output_linear.weight": (hidden, FFN)}


def _converted(name: str, values: Any, c: dict[str, Any]) -> dict[str, Any]:
    layer, is_mlp, part = name.partition("shared_mlp.")
    if not is_mlp:
        return {name: values}
    if part == "output_linear.weight":
        return {f"{layer}mlp.down_proj.weight": values}
    width = c["shared_intermediate_size"]
    return {f"{layer}mlp.gate_proj.weight": values[:width], f"{layer}mlp.up_proj.weight": values[width:]}


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    granite.gguf_settings(w, c)
    w.add_expert_shared_feed_forward_length(c["shared_intermediate_size"])
    w.add_rope_scaling_finetuned(True)
    w.add_ssm_conv_kernel(4)
    w.add_ssm_inner_size(2 * c["hidden_size"])


_DENSE = {"num_local_experts": 0, "layer_types": ["attention"] * 3, "mamba_n_heads": 8}
_ROPE = {"position_embedding_type": "rope"}

FAMILY = Family(
    "granitemoehybrid",
    tiny={
        **NO_HEAD_DIM, **granite.MULTIPLIERS, **_DENSE, **_ROPE,
        "shared_intermediate_size": FFN, "tie_word_embeddings": True,
    },
    ffn=_ffn,
    golden=(8, [62, 68, 27, 37, 13, 0, 13, 68, 13, 68, 13, 68, 83, 10, 33, 54, 27, 37, 83, 38, 58, 38, 58, 10]),
    gguf=Gguf("GRANITE", permuted=True, settings=_gguf_settings, converted=_converted),
    cases=(
        Case(
            "granite4-dense-gqa3",
            heads(6, 2, hidden_size=96, shared_intermediate_size=96, **granite.MULTIPLIERS, **_DENSE, **_ROPE),
        ),
        Case(
            "granite4-no-positions-gqa8",
            heads(8, 1, shared_intermediate_size=40, **granite.MULTIPLIERS, **_DENSE),
            gguf=False,  # the converter says that such models have positions
        ),
        Case(
            "granite4-experts",
            heads(6, 2, hidden_size=96, shared_intermediate_size=40, num_local_experts=6, num_experts_per_tok=2)
            | {**granite.MULTIPLIERS, **_ROPE, "layer_types": ["attention"] * 3, "mamba_n_heads": 8},
            gguf=False,  # such a file would be `granitemoe`
        ),
    ),
    published={
        "num_experts_per_tok": 0, "mamba_chunk_size": 256, "mamba_conv_bias": True, "mamba_d_conv": 4,
        "mamba_d_head": 64, "mamba_d_state": 128, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_proj_bias": False,
        "normalization_function": "rmsnorm", "init_method": "mup", "rope_scaling": None, "attention_bias": False,
        "output_router_logits": False, "router_aux_loss_coef": 0.01,
    },
)  # fmt: skip
