"""IBM Granite MoE (3.x): experts in every layer, in `granitemoeshared` one more that sees every row."""

from __future__ import annotations

from dataclasses import replace

from . import settings as read
from .decoder import Moe
from .granite import GRANITE_DEFAULTS, gguf_ffn, granite_attention, granite_model
from .registry import Config, Family, Program, Weights

_MOE = "layers.{i}.block_sparse_moe."
_SHARED = "layers.{i}.shared_mlp."

GRANITE_MOE_KEYS = {
    "expert_count": "num_local_experts",
    "expert_feed_forward_length": "intermediate_size",
    "expert_shared_feed_forward_length": "shared_intermediate_size",
}
GRANITE_MOE_TENSORS = {
    "ffn_gate_inp": _MOE + "router.layer",
    "ffn_gate_up_exps": _MOE + "input_linear",
    "ffn_down_exps": _MOE + "output_linear",
    "ffn_up_shexp": _SHARED + "input_linear",
    "ffn_down_shexp": _SHARED + "output_linear",
}
GRANITE_MOE_DEFAULTS = {**GRANITE_DEFAULTS, "num_local_experts": 8, "num_experts_per_tok": 2}


def hf_moe(c: Config, shared: int) -> Moe:
    """The experts of a safetensors file, and a shared one `shared` wide whose gate and up are one matrix."""
    experts = read.moe(c, "expert_feed_forward_length", score="topk_softmax", shared=shared)
    return replace(experts, shared_fused=True)


@Family(
    gguf=("granitemoe",),
    hf=("granitemoe",),
    keys=GRANITE_MOE_KEYS,
    tensors=GRANITE_MOE_TENSORS,
    defaults=GRANITE_MOE_DEFAULTS,
)
def build(c: Config, w: Weights) -> Program:
    """The program of a `granitemoe` checkpoint."""
    return granite_model(c, w, granite_attention(c, w), gguf_ffn(c) if c.is_gguf else hf_moe(c, 0))


@Family(
    hf=("granitemoeshared",),
    keys=GRANITE_MOE_KEYS,
    tensors=GRANITE_MOE_TENSORS,
    defaults={**GRANITE_MOE_DEFAULTS, "shared_intermediate_size": 0},
)
def build_shared(c: Config, w: Weights) -> Program:
    """The program of a `granitemoeshared` checkpoint."""
    return granite_model(
        c, w, granite_attention(c, w), hf_moe(c, c.integer("expert_shared_feed_forward_length", low=0))
    )
