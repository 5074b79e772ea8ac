"""Mixtral in safetensors: Mistral with experts for the MLP. In GGUF it is `llama` with `expert_count`."""

from __future__ import annotations

from . import settings as read
from .config import MAX_CONTEXT
from .decoder import Block, model
from .llama import llama_attention
from .registry import Config, Family, Program, Weights

_MOE = "layers.{i}.block_sparse_moe."


@Family(
    hf=("mixtral",),
    keys={"expert_count": ("num_local_experts", "num_experts")},
    tensors={
        "ffn_gate_inp": _MOE + "gate",
        "ffn_gate.{e}": _MOE + "experts.{e}.w1",
        "ffn_down.{e}": _MOE + "experts.{e}.w2",
        "ffn_up.{e}": _MOE + "experts.{e}.w3",
    },
    defaults={
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
    },
)
def build(c: Config, w: Weights) -> Program:
    """The program of a `mixtral` checkpoint."""
    window = c.optional_integer("sliding_window", high=MAX_CONTEXT)
    return model(c, w, [Block(llama_attention(c, w, window), read.moe(c, "feed_forward_length"))] * read.num_layers(c))
