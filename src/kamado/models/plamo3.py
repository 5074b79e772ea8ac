"""PLaMo 3: norms around every part, fused projections, local layers that turn at a rate of their own."""

from __future__ import annotations

from dataclasses import replace

from . import settings as read
from .decoder import Block, model
from .registry import Config, Family, Program, Weights
from .rope import RopeTable, base_frequencies

_LAYER = "layers.layers.{i}."
# What safetensors leave out of the norms' weights: each begins its training at this value.
_OFFSETS = {"post_attention_norm": 1 / 5, "post_ffw_norm": 1 / 5**1.5}


@Family(
    gguf=("plamo3",),
    hf=("plamo3",),
    keys={"attention.sliding_window": ("window_size", "sliding_window"), "rope.freq_base_swa": "rope_local_theta"},
    tensors={
        "attn_norm": _LAYER + "pre_mixer_norm",
        "attn_qkv": _LAYER + "mixer.qkv_proj",
        "attn_q_norm": _LAYER + "mixer.q_norm",
        "attn_k_norm": _LAYER + "mixer.k_norm",
        "attn_output": _LAYER + "mixer.o_proj",
        "post_attention_norm": _LAYER + "post_mixer_norm",
        "ffn_norm": _LAYER + "pre_mlp_norm",
        "ffn_up": _LAYER + "mlp.gate_up_proj",
        "ffn_down": _LAYER + "mlp.down_proj",
        "post_ffw_norm": _LAYER + "post_mlp_norm",
    },
    defaults={"tie_word_embeddings": True},
)
def build(c: Config, w: Weights) -> Program:
    """The program of a `plamo3` checkpoint."""
    if not c.is_gguf and c.number("rope_scaling_factor", default=1.0) != 1.0:
        raise c.unsupported("rope_scaling_factor", "is not 1: convert the model to GGUF, where its meaning is known")
    local = RopeTable(base_frequencies(c.number("rope.freq_base_swa", default=1e4, low=1.0), read.head_dim(c)))
    everywhere = read.attention(c, read.rope(c), qk_norm="head")
    mlp = replace(read.mlp(c), fused=True)
    windows = read.windows(c, 8, "sliding_window_pattern")
    blocks = [
        Block(replace(everywhere, rope=local, window=window) if window else everywhere, mlp, post_norms=True)
        for window in windows
    ]
    offsets = {} if c.is_gguf else _OFFSETS
    return model(c, w, blocks, norm_offset=0.0 if c.is_gguf else 1.0, norm_offsets=offsets)
