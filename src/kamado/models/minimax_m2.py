"""MiniMax M2, M2.1, M2.5: norms over the whole of q and of k, part of each head turned, sigmoid router with a bias."""

from __future__ import annotations

from . import settings as read
from .decoder import Block, model
from .registry import Config, Family, Program, Weights

_MOE = "layers.{i}.block_sparse_moe."


@Family(
    gguf=("minimax-m2",),
    hf=("minimax_m2",),
    keys={
        "expert_count": ("num_local_experts", "num_experts"),
        "expert_feed_forward_length": "intermediate_size",
        "rope.dimension_count": "rotary_dim",
    },
    tensors={
        "ffn_gate_inp": _MOE + "gate",
        "exp_probs_b": _MOE + "e_score_correction_bias$",
        "ffn_gate.{e}": _MOE + "experts.{e}.w1",
        "ffn_down.{e}": _MOE + "experts.{e}.w2",
        "ffn_up.{e}": _MOE + "experts.{e}.w3",
    },
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 196608,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 8,
        "num_local_experts": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5e6,
    },
)
def build(c: Config, w: Weights) -> Program:
    """The program of a `minimax-m2` checkpoint. Published safetensors are FP8, which the reader of files refuses."""
    read.check_normalized(c)
    attention = read.attention(c, read.rope(c, partial=True), qk_norm="row")
    experts = read.moe(c, "expert_feed_forward_length", "feed_forward_length", score="sigmoid", choice_bias=True)
    return model(c, w, [Block(attention, experts)] * read.num_layers(c))
