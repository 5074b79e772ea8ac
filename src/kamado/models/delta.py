"""The rules by which families with delta-rule layers read them: which layers, heads, taps, and what is not run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ..program import HeadMap
from . import settings as read
from .config import MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, Config, shown
from .decoder import Attention, Block, Mlp, Moe, model
from .recurrent import DeltaNet
from .registry import Program, Weights

MAX_TAPS: Final = 64

DELTA_TENSORS: Final = {
    "ssm_conv1d": "layers.{i}.linear_attn.conv1d",
    "ssm_dt": "layers.{i}.linear_attn.dt_bias$",
    "ssm_a": "layers.{i}.linear_attn.A_log$",
    "ssm_norm": "layers.{i}.linear_attn.norm",
    "ssm_out": "layers.{i}.linear_attn.out_proj",
}
# What Qwen3-Next and Qwen3.5 call the rest.
QWEN_TENSORS: Final = {
    **DELTA_TENSORS,
    "ffn_gate_inp_shexp": "layers.{i}.mlp.shared_expert_gate",
    "ffn_gate_up_exps": "layers.{i}.mlp.experts.gate_up_proj$",
    "ffn_down_exps": "layers.{i}.mlp.experts.down_proj$",
    **{f"ffn_{part}_shexp": f"layers.{{i}}.mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")},
}
# Of their configuration classes.
QWEN_DEFAULTS: Final = {
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "max_position_embeddings": 32768,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-6,
}
QWEN_MOE_DEFAULTS: Final = {
    **QWEN_DEFAULTS,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}


def recurrent_layers(c: Config, every: int) -> list[bool]:
    """Which layers have the delta rule: as the file lists them, else all but each `every`-th."""
    layers = range(read.num_layers(c))
    if c.is_gguf:
        listed = c.sequence("attention.recurrent_layers", len(layers), read.num_drafts(c))
        return [(i + 1) % every != 0 for i in layers] if listed is None else [bool(item) for item in listed]
    types = c.sequence("layer_types", len(layers))
    if types is None:
        return [(i + 1) % every != 0 for i in layers]
    for kind in types:
        if kind not in ("linear_attention", "full_attention"):
            raise c.unsupported("layer_types", f"has {shown(kind)}; known are linear_attention, full_attention")
    return [kind == "linear_attention" for kind in types]


def delta_net(c: Config, heads: HeadMap = "grouped") -> DeltaNet:
    """The delta rule of every layer that has it; `heads`: how value heads share key heads in this file."""
    num_k_heads, num_v_heads = (c.integer(key, high=MAX_HEADS) for key in ("ssm.group_count", "ssm.time_step_rank"))
    if num_v_heads % num_k_heads:
        raise c.invalid("ssm.time_step_rank", f"is {num_v_heads}, no multiple of the {num_k_heads} key heads")
    k_dim = c.integer("ssm.state_size", high=MAX_HEAD_DIM)
    if c.is_gguf:
        inner = c.integer("ssm.inner_size")
        v_dim = inner // num_v_heads
        if inner % num_v_heads or not 1 <= v_dim <= MAX_HEAD_DIM:
            raise c.invalid("ssm.inner_size", f"is {inner}, which {num_v_heads} heads cannot share")
    else:
        v_dim = c.integer("linear_value_head_dim", high=MAX_HEAD_DIM)
    taps = c.integer("ssm.conv_kernel", low=2, high=MAX_TAPS)
    activation = c.activation("hidden_act", "silu")
    return DeltaNet(num_k_heads, num_v_heads, k_dim, v_dim, taps, heads, not c.is_gguf, activation)


def gated_attention(c: Config) -> Attention:
    """Attention of Qwen3-Next and Qwen3.5: a quarter of each head turns, a gate a value comes with the queries."""
    section = None if c.is_gguf else c.joined_section("rope_scaling", "rope_parameters")
    if section is not None:  # which pairs turn by what position of a picture; in texts all three are the same
        section.known({"mrope_section", "mrope_interleaved"})
    c.known({"rope.dimension_sections"})
    return replace(read.attention(c, read.rope(c, partial=True), qk_norm="head"), gate="query")


def gated_moe(c: Config, *, normalize: bool) -> Moe:
    """Experts of Qwen3-Next and Qwen3.5, and the shared one with a gate a row."""
    shared = c.integer("expert_shared_feed_forward_length")
    moe = read.moe(c, "expert_feed_forward_length", normalize=normalize, shared=shared)
    return replace(moe, shared_gate=True)


def qwen(c: Config, w: Weights, delta: DeltaNet, ffns: Sequence[Mlp | Moe]) -> Program:
    """What Qwen3-Next and Qwen3.5 have in common: one MLP or one choice of experts a layer."""
    attention = gated_attention(c)
    every = c.integer("full_attention_interval", default=4, high=MAX_LAYERS)
    blocks = [
        Block(delta if is_recurrent else attention, ffn, ffn_norm="post_attention_norm")
        for is_recurrent, ffn in zip(recurrent_layers(c, every), ffns, strict=True)
    ]
    drafts = read.draft_tensors(c)
    return model(
        c,
        w,
        blocks,
        # Safetensors store the norms' weights less 1, but for that of the delta rule.
        norm_offset=0.0 if c.is_gguf else 1.0,
        norm_offsets={"ssm_norm": 0.0},
        ignored="|".join(filter(None, (r"^(model\.)?mtp\.", drafts, read.VISION_TENSORS))),
        notes=read.vision_notes(w),
    )
