"""Ministral 3: Llama whose queries grow with the logarithm of their position, behind the trained length."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from . import settings as read
from .config import MAX_CONTEXT
from .decoder import Block, model
from .registry import Config, Family, Program, Weights

MINISTRAL3_DEFAULTS: Final = {
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
}


def ministral3(c: Config, w: Weights, **more: Any) -> Program:
    """The program of Ministral 3's text model, alone or in a file with pictures; `more` is for decoder.model."""
    beta, length = _temper(c)
    attention = read.attention(
        c,
        read.rope(c, w, permuted=True, log_multiplier=True),
        window=None if c.is_gguf else c.optional_integer("attention.sliding_window", high=MAX_CONTEXT),
        bias=None if c.is_gguf else False,
        out_bias=None if c.is_gguf else False,
    )
    attention = replace(attention, temper=(beta, length, 0) if beta else None)
    mlp = read.mlp(c, bias=None if c.is_gguf else False)
    return model(c, w, [Block(attention, mlp)] * read.num_layers(c), **more)


def _temper(c: Config) -> tuple[float, int]:
    """How fast queries grow, and after how many positions: config.json says it among the numbers of the rotation."""
    context = c.integer("context_length", high=MAX_CONTEXT)
    if c.is_gguf:
        c.known({"rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"})  # of a yarn scaling, and read with one
        length = c.integer("rope.scaling.original_context_length", default=context, high=MAX_CONTEXT)
        return c.number("attention.temperature_scale", default=0.0), length
    rope = c.joined_section("rope_scaling", "rope_parameters")
    if rope is None:
        raise c.invalid("rope_parameters", "is missing, which says how queries grow with their position")
    rope.known({"max_position_embeddings"})  # the whole model's once more
    outer = c.optional_integer("original_max_position_embeddings", high=MAX_CONTEXT)
    length = outer or rope.integer("original_max_position_embeddings", default=context, high=MAX_CONTEXT)
    return rope.number("llama_4_scaling_beta"), length


@Family(gguf=("mistral3",), hf=("ministral3",), defaults=MINISTRAL3_DEFAULTS)
def build(c: Config, w: Weights) -> Program:
    """The program of a `ministral3` checkpoint. GGUF says `mistral3`, of Mistral Small too, whose queries stay."""
    return ministral3(c, w)
