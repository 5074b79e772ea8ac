"""gpt-oss 20b and 120b: sinks in attention, a gate clamped before it, biases everywhere, experts in MXFP4."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import settings as read
from .decoder import Block, model
from .registry import Config, Family, Program, Weights
from .rope import RopeTable, yarn_attention_factor, yarn_frequencies

_EXPERTS = "layers.{i}.mlp.experts."
# The rotation of the configuration class, whose base stands beside it; its corners are not rounded.
_FACTOR, _ORIGINAL = 32.0, 4096
_YARN = {"rope_type": "yarn", "factor": _FACTOR, "original_max_position_embeddings": _ORIGINAL}
_ALPHA, _LIMIT = float(np.float32(1.702)), 7.0  # of the gate, in files that do not say


@Family(
    gguf=("gpt-oss",),
    hf=("gpt_oss",),
    keys={
        "expert_count": ("num_local_experts", "num_experts"),
        "expert_used_count": ("num_experts_per_tok", "experts_per_token"),
        "expert_feed_forward_length": "intermediate_size",
    },
    tensors={
        "attn_sinks": "layers.{i}.self_attn.sinks$",
        "ffn_gate_inp": "layers.{i}.mlp.router", "ffn_gate_up_pairs": _EXPERTS + "gate_up_proj$",
        "ffn_gate_up_pairs.bias": _EXPERTS + "gate_up_proj_bias$", "ffn_down_exps": _EXPERTS + "down_proj$",
        "ffn_down_exps.bias": _EXPERTS + "down_proj_bias$",
    },
    defaults={
        "head_dim": 64, "hidden_size": 2880, "intermediate_size": 2880, "max_position_embeddings": 131072,
        "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 36, "num_key_value_heads": 8,
        "num_local_experts": 128, "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "sliding_window": 128,
        "vocab_size": 201088, "rope_parameters": _YARN,
    },
)  # fmt: skip
def build(c: Config, w: Weights) -> Program:
    """The program of a `gpt-oss` checkpoint. GGUF has no keys for the numbers of its gate."""
    _check_quantisation(c)
    has_bias = c.is_gguf or c.flag("attention_bias", default=True)
    usual = replace(read.attention(c, _rope(c), bias=has_bias, out_bias=has_bias), sinks=True)
    alpha = _ALPHA if c.is_gguf else c.number("swiglu_alpha", default=_ALPHA, low=1e-6)
    limit = _LIMIT if c.is_gguf else c.number("swiglu_limit", default=_LIMIT, low=1e-6)
    experts = read.moe(c, "expert_feed_forward_length", score="topk_softmax")
    if experts.activation != "silu":
        raise c.unsupported("hidden_act", f"is {experts.activation}, not silu")
    experts = replace(experts, alpha=alpha, limit=limit, router_bias=True, biases=True)
    c.known({"feed_forward_length", "initial_context_length"})  # no dense layer; what YaRN's own key says
    blocks = [
        Block(replace(usual, window=window), experts, ffn_norm="post_attention_norm") for window in read.windows(c, 2)
    ]
    return model(c, w, blocks)


def _rope(c: Config) -> RopeTable:
    """GGUF files do not say that the corners of YaRN are not rounded, and llama.cpp rounds them."""
    if c.is_gguf or c.has("rope_scaling") or c.has("rope_parameters"):
        return read.rope(c)
    theta = c.number("rope_theta", low=1.0)
    if theta <= 1.0:
        raise c.invalid("rope_theta", f"must be above 1 for yarn, got {theta:g}")
    table = yarn_frequencies(theta, read.head_dim(c), _FACTOR, _ORIGINAL, 32.0, 1.0, truncate=False)
    return RopeTable(table, yarn_attention_factor(_FACTOR))


def _check_quantisation(c: Config) -> None:
    """MXFP4 is the form in which these models are published: which tensors are in it the file itself shows."""
    section = c.section("quantization_config")
    if section is None:
        return
    method = section.text("quant_method", default="")
    if method != "mxfp4":
        raise section.unsupported("quant_method", f"is {method!r}; supported is 'mxfp4'")
    section.known({"modules_to_not_convert", "dequantize"})
