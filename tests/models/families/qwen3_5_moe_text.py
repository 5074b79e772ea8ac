"""Qwen3.5 with experts: two tensors a layer hold them all, the shared one is gated."""

from __future__ import annotations

from family_cases import EXPERT_WIDTH, EXPERTS, Case, Family, Gguf, Shapes, heads

from . import qwen3_5_text as dense
from . import qwen3_next as base


def _ffn(hidden: int, layer: int) -> Shapes:
    """As published: gate on up of all experts, and down, one tensor each."""
    single = {name: shape for name, shape in base.moe(hidden, layer).items() if ".experts." not in name}
    return {
        **dense.mixer(hidden, layer),
        **single,
        "mlp.experts.gate_up_proj": (EXPERTS, 2 * EXPERT_WIDTH, hidden),
        "mlp.experts.down_proj": (EXPERTS, hidden, EXPERT_WIDTH),
    }


FAMILY = Family(
    "qwen3_5_moe_text",
    tiny={key: value for key, value in (dense.OPTIONS | base.MOE).items() if key != "intermediate_size"},
    ffn=_ffn,
    norm_base=0.0,
    plain_norms=base.PLAIN_NORMS,
    heading="layers 0, 2",
    golden=(0, [62, 10, 37, 79, 90, 53, 75, 67, 28, 29, 7, 44, 2, 21, 35, 95, 64, 26, 10, 16, 55, 4, 39, 83]),
    gguf=Gguf("QWEN35MOE", settings=dense.gguf_settings, converted=dense.converted),
    cases=(
        Case(
            "qwen35moe-gqa8",
            heads(8, 1, **{**base.MOE, "num_experts": 9, "num_experts_per_tok": 4}, **base.ODD, head_dim=24)
            | {"num_hidden_layers": 4},
        ),
        Case(
            "qwen35moe-wrapped",
            heads(6, 2, **base.MOE, head_dim=16, layer_types=base.KINDS)
            | {**base.ODD, "linear_num_key_heads": 2, "linear_num_value_heads": 8},
            gguf=False,  # names of a wrapper's tensors
            family="qwen3_5_moe",
        ),
    ),
    published={**dense.PUBLISHED, "norm_topk_prob": True, "router_aux_loss_coef": 0.001, "output_router_logits": False},
)
