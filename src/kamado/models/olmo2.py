"""OLMo 2: each part sees the stream as it is and is normed before it is added; one norm over the whole of q and k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from . import settings as read
from .decoder import Block, model
from .registry import Config, Family, Program, Weights
from .rope import RopeTable


def olmo(c: Config, w: Weights, ropes: tuple[RopeTable, RopeTable], windows: Sequence[int | None]) -> Program:
    """What OLMo 2 and 3 have in common: layers with a window are turned without the scaling for long contexts."""
    bias = read.stated_bias(c, "attention_bias")
    local, full = ropes
    attention = read.attention(c, full, qk_norm="row", bias=bias, out_bias=bias)
    mlp = read.mlp(c)
    layers = [attention if window is None else replace(attention, rope=local, window=window) for window in windows]
    return model(c, w, [Block(layer, mlp, post_norms=True, pre_norms=False) for layer in layers])


@Family(gguf=("olmo2",), hf=("olmo2",), defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5})
def build(c: Config, w: Weights) -> Program:
    """The program of an `olmo2` checkpoint; GGUF files of OLMo 3 say so too, and have a window."""
    if c.is_gguf:
        return olmo(c, w, read.ropes(c), read.windows(c, 4))
    return olmo(c, w, (read.rope(c),) * 2, (None,) * read.num_layers(c))
