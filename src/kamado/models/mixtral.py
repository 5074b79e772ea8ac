"""Mixtral in safetensors: Mistral with experts for the MLP. In GGUF it is `llama` with `expert_count`."""

from __future__ import annotations

from dataclasses import replace

from ..program import Program
from . import config, llama
from .common import hf_weights
from .config import Config
from .rope import hf_rope

_MOE = "model.layers.{i}.block_sparse_moe"

HF_NAMES = {
    **{role: name for role, name in llama.HF_NAMES.items() if ".mlp." not in name},
    "router": _MOE + ".gate.weight",
    "expert_gate": _MOE + ".experts.{e}.w1.weight",
    "expert_down": _MOE + ".experts.{e}.w2.weight",
    "expert_up": _MOE + ".experts.{e}.w3.weight",
}


def read_args(c: Config) -> llama.Args:
    """Llama's settings, a window and the experts."""
    num_experts, top_k = config.expert_counts(c, ("num_local_experts", "num_experts"), "num_experts_per_tok", (8, 2))
    args = llama.Args.from_hf(c, absent_kv=8, default_context=131072)
    return replace(
        args,
        window=c.optional_integer("sliding_window", high=config.MAX_CONTEXT),
        eps=c.number("rms_norm_eps", default=1e-5),
        num_experts=num_experts,
        top_k=top_k,
    )


def build(c: Config) -> Program:
    """The program of a `mixtral` checkpoint."""
    checkpoint = c.checkpoint
    config.check_causal_lm(c)
    args = read_args(c)
    rope = hf_rope(c, args.head_dim, default_theta=1e6)
    c.refuse_unread()
    return llama.model(checkpoint.architecture, args, hf_weights(checkpoint, HF_NAMES), rope)
