"""ERNIE 4.5, dense: Llama whose heads turn by interleaved pairs in both formats, with biases everywhere or nowhere."""

from __future__ import annotations

from . import settings as read
from .decoder import Attention, Block, Mlp, model
from .registry import Config, Family, Program, Weights

DEFAULTS = {
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}


def ernie_attention(c: Config) -> Attention:
    """What the dense and the sparse models have in common."""
    bias = read.stated_bias(c, "use_bias")
    return read.attention(c, read.rope(c, interleaved=True), bias=bias, out_bias=bias)


def ernie_mlp(c: Config) -> Mlp:
    """The MLP of layers without experts."""
    return read.mlp(c, bias=read.stated_bias(c, "use_bias"))


@Family(
    gguf=("ernie4_5",),
    hf=("ernie4_5",),
    defaults={**DEFAULTS, "head_dim": 128, "num_key_value_heads": 2},
)
def build(c: Config, w: Weights) -> Program:
    """The program of an `ernie4_5` checkpoint."""
    return model(c, w, [Block(ernie_attention(c), ernie_mlp(c))] * read.num_layers(c))
