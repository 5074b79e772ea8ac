"""Granite MoE with a shared expert, whose gate and up are one matrix."""

from __future__ import annotations

from typing import Any

from family_cases import EXPERTS, NO_HEAD_DIM, TOP_K, Case, Family, Gguf, Shapes, heads

from . import granite, granitemoe

_SHARED = 40


def _ffn(hidden: int, layer: int) -> Shapes:
    shared = {"input_linear.weight": (2 * _SHARED, hidden), "output_linear.weight": (hidden, _SHARED)}
    routed = granitemoe.experts(hidden, layer)
    return {**routed, **{f"shared_mlp.{name}": shape for name, shape in shared.items()}}


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    granite.gguf_settings(w, c)
    w.add_expert_shared_feed_forward_length(c["shared_intermediate_size"])


def _converted(name: str, values: Any, c: dict[str, Any]) -> dict[str, Any]:
    layer, is_shared, part = name.partition("shared_mlp.")
    if not is_shared:
        return {name: values}
    place, width = f"{layer}mlp.shared_expert.", c["shared_intermediate_size"]
    if part == "output_linear.weight":
        return {f"{place}down_proj.weight": values}
    return {f"{place}gate_proj.weight": values[:width], f"{place}up_proj.weight": values[width:]}


FAMILY = Family(
    "granitemoeshared",
    tiny={
        **NO_HEAD_DIM,
        **granite.MULTIPLIERS,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "shared_intermediate_size": _SHARED,
        "tie_word_embeddings": True,
    },
    ffn=_ffn,
    golden=(5, [71, 84, 31, 62, 89, 25, 62, 61, 55, 35, 93, 45, 9, 52, 66, 84, 60, 64, 79, 92, 36, 60, 61, 22]),
    gguf=Gguf(
        "GRANITE_MOE",
        permuted=True,
        settings=_gguf_settings,
        converted=_converted,
        keys={"rope.scaling.finetuned": False},
    ),
    cases=(
        Case(
            "granitemoeshared-multipliers",
            heads(6, 2, hidden_size=96, num_local_experts=6, num_experts_per_tok=2, shared_intermediate_size=48)
            | granite.MULTIPLIERS,
        ),
        Case(
            "granitemoeshared-gqa8-bias",
            heads(8, 1, num_local_experts=4, num_experts_per_tok=4, shared_intermediate_size=32, attention_bias=True)
            | {"tie_word_embeddings": True},
        ),
    ),
    published={"output_router_logits": True, "attention_bias": False},
)
