"""LFM2 and LFM2.5: short gated convolutions, and attention in some layers; the last norm has a name of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from . import settings as read
from .config import MAX_HEADS, MAX_WIDTH, Config, Keys, shown
from .decoder import Attention, Block, Mlp, Moe, model
from .delta import MAX_TAPS
from .recurrent import ShortConv
from .registry import Family, Program, Weights

_LAYER, _FFN = "layers.{i}.", "layers.{i}.feed_forward."
LFM2_KEYS: Final[Keys] = {
    "attention.layer_norm_rms_epsilon": "norm_eps",
    "leading_dense_block_count": "num_dense_layers",
    "shortconv.l_cache": "conv_L_cache",
    "tie_word_embeddings": ("tie_embedding", "tie_word_embeddings"),
}
LFM2_TENSORS: Final = {
    "output_norm": "embedding_norm",
    "token_embd_norm": "embedding_norm",
    "attn_norm": _LAYER + "operator_norm",
    "attn_q_norm": _LAYER + "self_attn.q_layernorm",
    "attn_k_norm": _LAYER + "self_attn.k_layernorm",
    "attn_output": _LAYER + "self_attn.out_proj",
    "shortconv.conv": _LAYER + "conv.conv",
    "shortconv.in_proj": _LAYER + "conv.in_proj",
    "shortconv.out_proj": _LAYER + "conv.out_proj",
    "ffn_norm": _LAYER + "ffn_norm",
    "ffn_gate": _FFN + "w1",
    "ffn_up": _FFN + "w3",
    "ffn_down": _FFN + "w2",
    "ffn_gate_inp": _FFN + "gate",
    "exp_probs_b": _FFN + "expert_bias$",
    "ffn_gate.{e}": _FFN + "experts.{e}.w1",
    "ffn_up.{e}": _FFN + "experts.{e}.w3",
    "ffn_down.{e}": _FFN + "experts.{e}.w2",
    "ffn_gate_up_exps": _FFN + "experts.gate_up_proj$",
    "ffn_down_exps": _FFN + "experts.down_proj$",
}
LFM2_DEFAULTS: Final = {
    "conv_L_cache": 3,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-5,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "vocab_size": 65536,
}


@Family(
    gguf=("lfm2",),
    hf=("lfm2",),
    keys=LFM2_KEYS,
    tensors=LFM2_TENSORS,
    defaults={**LFM2_DEFAULTS, "hidden_size": 2560, "intermediate_size": 12288},
)
def build(c: Config, w: Weights) -> Program:
    """The program of an `lfm2` checkpoint."""
    ffn = Mlp(c.integer("feed_forward_length") if c.is_gguf else _width(c), "silu")
    window = read.gguf_window(c) if c.is_gguf else None
    return lfm2(c, w, [ffn] * read.num_layers(c), window)


def lfm2(c: Config, w: Weights, ffns: Sequence[Mlp | Moe], window: int | None = None) -> Program:
    """What LFM2 with and without experts have in common: one MLP or one choice of experts a layer."""
    rope, width, conv = read.rope(c), read.head_dim(c), ShortConv(c.integer("shortconv.l_cache", low=2, high=MAX_TAPS))
    num_heads = c.integer("attention.head_count", high=MAX_HEADS)
    mixers: list[Attention | ShortConv] = []
    for num_kv_heads in _kv_heads(c, len(ffns)):
        if num_kv_heads and num_heads % num_kv_heads:
            raise c.invalid("attention.head_count", f"is {num_heads}, no multiple of {num_kv_heads} key-value heads")
        scale = read.inverse_sqrt(width)
        attention = Attention(num_heads, num_kv_heads, width, scale, rope, window, qk_norm="head")
        mixers.append(attention if num_kv_heads else conv)
    return model(c, w, list(map(Block, mixers, ffns)), last_norm="token_embd_norm")


def _kv_heads(c: Config, count: int) -> Sequence[int]:
    """Key-value heads of every layer, 0 where there is a convolution."""
    key = "attention.head_count_kv"
    if c.is_gguf:
        return c.integers(key, count, low=0, high=MAX_HEADS)
    kinds, num_kv_heads = c.sequence("layer_types", count), c.integer(key, high=MAX_HEADS)
    if kinds is None:
        listed = c.sequence("full_attn_idxs")
        return [num_kv_heads if listed is None or i in listed else 0 for i in range(count)]
    c.known({"full_attn_idxs"})
    for kind in kinds:
        if kind not in ("conv", "full_attention"):
            raise c.unsupported("layer_types", f"has {shown(kind)}; known are conv, full_attention")
    return [0 if kind == "conv" else num_kv_heads for kind in kinds]


def _width(c: Config) -> int:
    """Of the MLP: the one that config.json names, or two thirds of it, rounded up."""
    width = c.optional_integer("block_ff_dim") or c.integer("feed_forward_length")
    c.known({"intermediate_size"})
    step = c.integer("block_multiple_of", default=256)
    share = c.number("block_ffn_dim_multiplier", default=1.0, high=1024.0)
    if not c.flag("block_auto_adjust_ff_dim", default=True):
        return width
    width = int(share * int(2 * width / 3))
    width = (width + step - 1) // step * step
    if not 1 <= width <= MAX_WIDTH:
        raise c.invalid("feed_forward_length", f"makes an MLP {width} wide")
    return width
