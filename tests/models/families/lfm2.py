"""LFM2: short convolutions in the place of attention in most layers, a last norm with a name of its own."""

from __future__ import annotations

from typing import Any

from family_cases import FFN, HEAD_DIM, HEADS, NO_HEAD_DIM, Case, Family, Gguf, Shapes, heads

TAPS = 3
KINDS = ["conv", "full_attention", "conv"]
OPTIONS: dict[str, Any] = {
    **{("norm_eps" if key == "rms_norm_eps" else key): value for key, value in NO_HEAD_DIM.items()},
    "conv_L_cache": TAPS,
    "layer_types": KINDS,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
WITHOUT = ("input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.o_proj.weight")


def mixer(hidden: int, layer: int) -> Shapes:
    """The norms of a layer, and its convolution or attention."""
    norms: Shapes = {"operator_norm.weight": (hidden,), "ffn_norm.weight": (hidden,)}
    if KINDS[layer] != "conv":
        out = {"self_attn.out_proj.weight": (hidden, HEADS * HEAD_DIM)}
        return norms | out | {f"self_attn.{part}_layernorm.weight": (HEAD_DIM,) for part in "qk"}
    return {
        **norms,
        **{f"self_attn.{part}_proj.weight": () for part in "qkv"},
        "conv.conv.weight": (hidden, 1, TAPS),
        "conv.in_proj.weight": (3 * hidden, hidden),
        "conv.out_proj.weight": (hidden, hidden),
    }


def mlp(hidden: int) -> Shapes:
    """Its matrices by their names here."""
    inward = dict.fromkeys(("feed_forward.w1.weight", "feed_forward.w3.weight"), (FFN, hidden))
    return {**inward, "feed_forward.w2.weight": (hidden, FFN)}


def converted(name: str, values: Any, c: dict[str, Any]) -> dict[str, Any]:
    """Taps as a matrix."""
    return {name: values.squeeze(1) if name.endswith("conv.conv.weight") else values}


def gguf_settings(w: Any, c: dict[str, Any]) -> None:
    """Key-value heads by layer, none where there is a convolution."""
    w.add_head_count_kv([c["num_key_value_heads"] if kind != "conv" else 0 for kind in c["layer_types"]])
    w.add_vocab_size(c["vocab_size"])
    w.add_shortconv_l_cache(c["conv_L_cache"])


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    gguf_settings(w, c)
    width, step = c["intermediate_size"], c.get("block_multiple_of", 256)
    if c.get("block_auto_adjust_ff_dim", True):
        width = int(c.get("block_ffn_dim_multiplier", 1.0) * int(2 * width / 3))
        width = step * ((width + step - 1) // step)
    w.add_feed_forward_length(width)


FAMILY = Family(
    "lfm2",
    tiny={**OPTIONS, "block_auto_adjust_ff_dim": False},
    without=WITHOUT,
    ffn=lambda hidden, layer: mixer(hidden, layer) | mlp(hidden),
    last_norm="embedding_norm",
    heading="layers 0, 2",
    golden=(0, [21, 29, 95, 65, 35, 32, 55, 60, 4, 63, 24, 90, 30, 96, 3, 16, 17, 26, 28, 22, 41, 92, 29, 19]),
    gguf=Gguf("LFM2", settings=_gguf_settings, converted=converted, keys={"attention.sliding_window": 0}),
    cases=(
        Case(
            "lfm2-gqa8-adjusted",
            heads(8, 1, hidden_size=96, num_hidden_layers=4, conv_L_cache=5, block_multiple_of=8)
            | {"layer_types": ["conv", "full_attention", "conv", "conv"], "block_ffn_dim_multiplier": 1.3},
            exact=True,
        ),
        Case(
            "lfm2-listed-attention",
            heads(6, 3, hidden_size=60, full_attn_idxs=[0, 2], conv_L_cache=2, tie_word_embeddings=False)
            | {"block_ff_dim": 200, "block_multiple_of": 16, "norm_eps": 1e-6},
            exact=True,
        ),
        Case(
            "lfm2-convolutions-last",
            heads(4, 4, layer_types=["full_attention", "conv", "conv"], block_auto_adjust_ff_dim=False),
            exact=True,
        ),
    ),
    published={
        "block_dim": 96, "block_mlp_init_scale": 1.0, "block_norm_eps": 1e-5, "block_out_init_scale": 1.0,
        "block_use_swiglu": True, "block_use_xavier_init": True, "block_ff_dim": FFN, "conv_bias": False,
        "conv_dim": 96, "conv_dim_out": 96, "conv_use_xavier_init": True, "full_attn_idxs": [1], "num_heads": 6,
        "theta": 1000000.0, "tie_embedding": True, "use_pos_enc": True,
    },
)  # fmt: skip
