"""Hunyuan A13B: a shared MLP beside experts of the same width."""

from __future__ import annotations

from typing import Any

from family_cases import BASE, EXPERTS, FFN, TOP_K, Case, Family, Gguf, Shapes, experts, heads, mlp

from .hunyuan_v1_dense import ALPHA, QK_LAYER_NORMS


def _ffn(hidden: int, layer: int) -> Shapes:
    routed = {n.replace("mlp.gate.", "mlp.gate.wg."): shape for n, shape in experts(FFN)(hidden, layer).items()}
    return routed | {n.replace("mlp.", "mlp.shared_mlp."): shape for n, shape in mlp(hidden, layer).items()}


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    w.add_expert_feed_forward_length(c["intermediate_size"])
    w.add_expert_shared_feed_forward_length(c["intermediate_size"])
    w.add_expert_shared_count(1)


FAMILY = Family(
    "hunyuan_v1_moe",
    tiny={**BASE, "num_experts": EXPERTS, "moe_topk": TOP_K, "rope_parameters": ALPHA},
    attention=QK_LAYER_NORMS,
    ffn=_ffn,
    golden=(0, [47, 26, 7, 4, 3, 12, 76, 2, 2, 2, 2, 55, 36, 34, 76, 64, 47, 36, 88, 33, 94, 63, 6, 6]),
    gguf=Gguf("HUNYUAN_MOE", settings=_gguf_settings),
    cases=(
        Case(
            "hunyuan-moe-alpha",
            heads(6, 2, num_experts=6, moe_topk=3, head_dim=16, rope_parameters={**ALPHA, "alpha": 1000.0}),
        ),
        Case("hunyuan-moe-gqa8", heads(8, 1, num_experts=4, moe_topk=1, head_dim=16), exact=True),
    ),
)
