"""Hunyuan, dense: Llama with norms of q and k after the rotation, whose base a factor `alpha` stretches."""

from __future__ import annotations

from dataclasses import replace

from . import settings as read
from .decoder import Attention, Block, model
from .registry import Config, Family, Program, Weights
from .rope import RopeTable, base_frequencies, hf_rope

TENSORS = {
    "attn_q_norm": "layers.{i}.self_attn.query_layernorm",
    "attn_k_norm": "layers.{i}.self_attn.key_layernorm",
}
DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5}


def _rope(c: Config) -> RopeTable:
    """config.json calls it "dynamic" scaling, but with an `alpha` nothing depends on the text; GGUF has the result."""
    section = None if c.is_gguf else c.joined_section("rope_scaling", "rope_parameters")
    if section is None:
        return read.rope(c)
    kind = section.text("rope_type", default=section.text("type", default="default"))
    if kind != "dynamic":
        return hf_rope(c, read.head_dim(c))
    width = read.head_dim(c)
    alpha = section.number("alpha", low=1e-6, high=1e6)
    if section.number("partial_rotary_factor", default=1.0) != 1.0:
        raise section.unsupported("partial_rotary_factor", "is not 1")
    if width <= 2:
        raise section.invalid("alpha", f"stretches heads of {width} values without end")
    theta = section.number("rope_theta", default=c.number("rope_theta", default=10000.0, low=1.0), low=1.0)
    section.known(("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"))  # of other kinds of scaling
    section.refuse_unread()
    return RopeTable(base_frequencies(theta * alpha ** (width / (width - 2)), width))


def hunyuan_attention(c: Config) -> Attention:
    """What the dense and the sparse models have in common."""
    bias = read.stated_bias(c, "attention_bias")
    attention = read.attention(c, _rope(c), qk_norm="head", bias=bias, out_bias=bias)
    return replace(attention, norm_after_rope=True)


@Family(gguf=("hunyuan-dense",), hf=("hunyuan_v1_dense",), tensors=TENSORS, defaults=DEFAULTS)
def build(c: Config, w: Weights) -> Program:
    """The program of a `hunyuan-dense` checkpoint."""
    return model(c, w, [Block(hunyuan_attention(c), read.mlp(c))] * read.num_layers(c))
