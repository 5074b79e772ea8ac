"""Qwen3-Next: delta rule between gated attention, a key head's rows in turns, a gated shared expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import family_cases as fc
import numpy as np

TAPS = 4
KINDS = ["linear_attention", "full_attention", "linear_attention"]
_KEYS, _VALUES = fc.KV_HEADS * fc.HEAD_DIM, fc.HEADS * fc.HEAD_DIM  # widths of q and k, of v and the gate
SHARED_WIDTH = 2 * fc.EXPERT_WIDTH
LINEAR: dict[str, Any] = {
    "linear_conv_kernel_dim": TAPS,
    "linear_key_head_dim": fc.HEAD_DIM,
    "linear_value_head_dim": fc.HEAD_DIM,
    "linear_num_key_heads": fc.KV_HEADS,
    "linear_num_value_heads": fc.HEADS,
}
OPTIONS: dict[str, Any] = {
    **fc.BASE,
    **LINEAR,
    "rms_norm_eps": 1e-6,
    "layer_types": KINDS,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
}
MOE: dict[str, Any] = {
    "num_experts": fc.EXPERTS,
    "num_experts_per_tok": fc.TOP_K,
    "moe_intermediate_size": fc.EXPERT_WIDTH,
    "shared_expert_intermediate_size": SHARED_WIDTH,
}
# Of the cases: head counts, widths of a head and taps that differ from each other.
ODD: dict[str, Any] = {
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 20,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
}
PLAIN_NORMS = ("linear_attn.norm.weight",)


def mixer(apart: fc.Shapes) -> Callable[[int, int], fc.Shapes]:
    """Gated attention, or the delta rule with the matrices `apart` for its input."""

    def shapes(hidden: int, layer: int) -> fc.Shapes:
        if KINDS[layer] == "full_attention":
            return {**fc.QK_NORMS, "self_attn.q_proj.weight": (2 * fc.HEADS * fc.HEAD_DIM, hidden)}
        return {
            **{f"self_attn.{part}_proj.weight": () for part in "qkvo"},
            **{f"linear_attn.{name}.weight": (*rows, hidden) for name, rows in apart.items()},
            "linear_attn.conv1d.weight": (2 * _KEYS + _VALUES, 1, TAPS),
            "linear_attn.dt_bias": (fc.HEADS,),
            "linear_attn.A_log": (fc.HEADS,),
            "linear_attn.norm.weight": (fc.HEAD_DIM,),
            "linear_attn.out_proj.weight": (hidden, _VALUES),
        }

    return shapes


def moe(hidden: int, layer: int) -> fc.Shapes:
    """One tensor an expert, as published, and the shared one with its gate."""
    inward, outward = (SHARED_WIDTH, hidden), (hidden, SHARED_WIDTH)
    shared = "mlp.shared_expert."
    return {
        **fc.experts(fc.EXPERT_WIDTH)(hidden, layer),
        f"{shared}gate_proj.weight": inward,
        f"{shared}up_proj.weight": inward,
        f"{shared}down_proj.weight": outward,
        "mlp.shared_expert_gate.weight": (1, hidden),
    }


def gguf_settings(w: Any, c: dict[str, Any]) -> None:
    """What the converter writes of the delta rule, and of the shared expert where there is one."""
    w.add_ssm_conv_kernel(c["linear_conv_kernel_dim"])
    w.add_ssm_state_size(c["linear_key_head_dim"])
    w.add_ssm_group_count(c["linear_num_key_heads"])
    w.add_ssm_time_step_rank(c["linear_num_value_heads"])
    w.add_ssm_inner_size(c["linear_value_head_dim"] * c["linear_num_value_heads"])
    recurrent = [kind == "linear_attention" for kind in c["layer_types"]]
    w.add_array(f"{w.arch}.attention.recurrent_layers", recurrent)
    w.add_full_attention_interval(c.get("full_attention_interval", 4))
    if "shared_expert_intermediate_size" in c:
        w.add_expert_shared_feed_forward_length(c["shared_expert_intermediate_size"])


def converted(name: str, values: Any, c: dict[str, Any]) -> dict[str, Any]:
    """Decays as they are multiplied, taps as a matrix, rows of one kind together, experts joined."""
    stem, _, last = name.rpartition("linear_attn.")
    if last == "A_log":
        return {name: -np.exp(values)}
    if last == "dt_bias":
        return {f"{stem}linear_attn.dt_proj.bias": values}
    if last == "conv1d.weight":
        return {name: values.squeeze(1)}
    if last == "in_proj_qkvz.weight":
        share = c["linear_num_value_heads"] // c["linear_num_key_heads"] * c["linear_value_head_dim"]
        cuts = np.cumsum([c["linear_key_head_dim"], c["linear_key_head_dim"], share])
        parts = np.split(values.reshape(c["linear_num_key_heads"], -1, values.shape[-1]), cuts, axis=1)
        q, k, v, z = (part.reshape(-1, values.shape[-1]) for part in parts)
        qkv = np.concatenate([q, k, v])
        return {f"{stem}linear_attn.in_proj_qkv.weight": qkv, f"{stem}linear_attn.in_proj_z.weight": z}
    if name.endswith("experts.gate_up_proj"):
        gate, up = np.split(values, 2, axis=1)
        stem = name.removesuffix("gate_up_proj")
        return {f"{stem}gate_proj.weight": gate, f"{stem}up_proj.weight": up}
    return {f"{name}.weight" if name.endswith("experts.down_proj") else name: values}


FAMILY = fc.Family(
    "qwen3_next",
    tiny={**OPTIONS, **MOE},
    ffn=lambda hidden, layer: (
        mixer({"in_proj_qkvz": (2 * _KEYS + 2 * _VALUES,), "in_proj_ba": (2 * fc.HEADS,)})(hidden, layer)
        | moe(hidden, layer)
    ),
    norm_base=0.0,
    plain_norms=PLAIN_NORMS,
    heading="layers 0, 2",
    golden=(0, [8, 2, 36, 74, 45, 78, 6, 55, 55, 61, 85, 8, 36, 91, 77, 72, 33, 16, 49, 5, 55, 27, 6, 2]),
    gguf=fc.Gguf("QWEN3NEXT", settings=gguf_settings, converted=converted),
    cases=(
        fc.Case(
            "qwen3next-gqa8",
            fc.heads(8, 1, **{**MOE, "num_experts": 9, "num_experts_per_tok": 4}, **ODD, head_dim=24)
            | {"num_hidden_layers": 4},
        ),
        fc.Case(
            "qwen3next-grouped",
            fc.heads(6, 2, **MOE, head_dim=16, layer_types=KINDS)
            | {**ODD, "linear_num_key_heads": 2, "linear_num_value_heads": 8, "rope_theta": 1e6},
        ),
        fc.Case(
            "qwen3next-some-mlps",
            fc.heads(4, 2, **MOE, **ODD, head_dim=32, mlp_only_layers=[1], norm_topk_prob=False, hidden_act="gelu")
            | {"full_attention_interval": 2, "partial_rotary_factor": 0.5},
            gguf=False,
        ),
    ),
    published={
        "decoder_sparse_step": 1, "full_attention_interval": 4, "mlp_only_layers": [], "norm_topk_prob": True,
        "output_router_logits": False, "router_aux_loss_coef": 0.001, "rope_scaling": None,
        "use_sliding_window": False, "attn_output_gate": True,
    },
)  # fmt: skip
