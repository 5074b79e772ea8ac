"""ERNIE 4.5 with experts: softmax routers with a bias for the choice, shared experts, some layers without."""

from __future__ import annotations

from dataclasses import replace

from . import settings as read
from .config import MAX_LAYERS
from .decoder import Block, model
from .ernie4_5 import DEFAULTS, ernie_attention, ernie_mlp
from .registry import Config, Family, Program, Weights


@Family(
    gguf=("ernie4_5-moe",),
    hf=("ernie4_5_moe",),
    keys={
        "expert_count": ("moe_num_experts", "num_experts"),
        "expert_used_count": ("moe_k", "num_experts_per_tok"),
        "expert_shared_count": "moe_num_shared_experts",
        "leading_dense_block_count": "moe_layer_start_index",
        "interleave_moe_layer_step": "moe_layer_interval",
    },
    tensors={"exp_probs_b": "layers.{i}.mlp.moe_statics.e_score_correction_bias$"},
    defaults={
        **DEFAULTS, "moe_intermediate_size": 1536, "moe_k": 6, "moe_layer_interval": 1, "moe_layer_start_index": 1,
        "moe_num_experts": 64, "moe_num_shared_experts": 2, "num_key_value_heads": 4,
    },
)  # fmt: skip
def build(c: Config, w: Weights) -> Program:
    """The program of an `ernie4_5-moe` checkpoint. config.json may also say which layer with experts is the last."""
    layers = range(read.num_layers(c))
    shared = read.shared_width(c, c.integer("expert_feed_forward_length"))
    experts = read.moe(c, "expert_feed_forward_length", choice_bias=None if c.is_gguf else True, shared=shared)
    has_biases = bool(read.stated_bias(c, "use_bias")) and not c.is_gguf
    norm_min = 1e-12 if c.is_gguf else c.number("moe_norm_min", default=1e-12, high=1.0)
    experts = replace(experts, shared_bias=has_biases, norm_min=norm_min)
    first = read.leading_dense(c)
    step = c.integer("interleave_moe_layer_step", default=1, high=MAX_LAYERS)
    last = -1 if c.is_gguf else c.integer("moe_layer_end_index", default=-1, low=-1, high=MAX_LAYERS)
    has_experts = [first <= i <= (layers[-1] if last == -1 else last) and (i + 1) % step == 0 for i in layers]
    attention, mlp = ernie_attention(c), ernie_mlp(c)
    blocks = [Block(attention, experts if is_sparse else mlp) for is_sparse in has_experts]
    read.num_drafts(c)  # left out of published files
    return model(c, w, blocks, head_bias=has_biases, ignored=r"^model\.mtp_")
