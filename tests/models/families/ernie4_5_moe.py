"""ERNIE 4.5 with experts: a bias for the choice kept as a row, two shared experts, layers without experts."""

from __future__ import annotations

from typing import Any

import family_cases as fc

_MOE = {
    "moe_num_experts": fc.EXPERTS,
    "moe_k": fc.TOP_K,
    "moe_intermediate_size": fc.EXPERT_WIDTH,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
}


def _ffn(hidden: int, layer: int) -> fc.Shapes:
    if layer == 0:
        return fc.mlp(hidden, layer)
    shared = {name.replace("mlp.", "mlp.shared_experts."): shape for name, shape in _shared(hidden).items()}
    return {
        **fc.experts(fc.EXPERT_WIDTH)(hidden, layer),
        **shared,
        "mlp.moe_statics.e_score_correction_bias": (1, fc.EXPERTS),
    }


def _shared(hidden: int) -> fc.Shapes:
    inward, outward = (2 * fc.EXPERT_WIDTH, hidden), (hidden, 2 * fc.EXPERT_WIDTH)
    return {"mlp.gate_proj.weight": inward, "mlp.up_proj.weight": inward, "mlp.down_proj.weight": outward}


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    w.add_expert_count(c["moe_num_experts"])
    w.add_expert_used_count(c["moe_k"])
    w.add_interleave_moe_layer_step(c.get("moe_layer_interval", 1))
    w.add_leading_dense_block_count(c["moe_layer_start_index"])
    w.add_expert_shared_count(c["moe_num_shared_experts"])
    if c["moe_num_shared_experts"]:
        w.add_expert_shared_feed_forward_length(c["moe_num_shared_experts"] * c["moe_intermediate_size"])


FAMILY = fc.Family(
    "ernie4_5_moe",
    tiny={**fc.NO_HEAD_DIM, **_MOE, "tie_word_embeddings": True, "rope_theta": 500000.0},
    ffn=_ffn,
    heading="layers 1-2",
    golden=(0, [93, 56, 45, 91, 86, 41, 68, 73, 86, 9, 2, 73, 86, 86, 37, 42, 10, 41, 86, 86, 86, 86, 86, 86]),
    gguf=fc.Gguf("ERNIE4_5_MOE", settings=_gguf_settings, names=fc.SCORE_BIAS),
    cases=(
        fc.Case("ernie-moe-shared", fc.heads(6, 2, **_MOE, hidden_size=96), exact=True),
        fc.Case(
            "ernie-moe-every-second",
            {
                **_MOE, "num_hidden_layers": 5, "moe_layer_interval": 2, "moe_num_shared_experts": 0, "moe_k": 4,
                "tie_word_embeddings": False,
            },
            exact=True,
        ),
        # What GGUF does not know: a last layer with experts, biases.
        fc.Case(
            "ernie-moe-last-dense",
            {**_MOE, "num_hidden_layers": 4, "moe_layer_end_index": 2, "use_bias": True},
            gguf=False,
        ),
    ),
)  # fmt: skip
