"""Arcee's AFM: Llama with an MLP without a gate, whose activation is the square of a relu."""

from __future__ import annotations

from . import settings as read
from .decoder import Block, model
from .registry import Config, Family, Program, Weights


@Family(gguf=("arcee",), hf=("arcee",), defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5})
def build(c: Config, w: Weights) -> Program:
    """The program of an `arcee` checkpoint."""
    bias = read.stated_bias(c, "attention_bias")
    attention = read.attention(c, read.rope(c, w, permuted=True), bias=bias, out_bias=bias)
    mlp = read.mlp(c, activation="relu2", bias=read.stated_bias(c, "mlp_bias"), gated=False)
    return model(c, w, [Block(attention, mlp)] * read.num_layers(c))
