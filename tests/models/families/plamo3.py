"""PLaMo 3: fused projections, norms whose weights begin at 1, 1/5 and 1/5^1.5, two thetas. Reference: llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from family_cases import BASE, FFN, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, Family, Gguf, Shapes

_OFFSETS = {"post_mixer_norm": 1 / 5, "post_mlp_norm": 1 / 5**1.5}


def _ffn(hidden: int, layer: int) -> Shapes:
    return {"mlp.gate_up_proj.weight": (2 * FFN, hidden), "mlp.down_proj.weight": (hidden, FFN)}


def _converted(name: str, values: Any, c: dict[str, Any]) -> Mapping[str, Any]:
    if name.endswith("norm.weight"):
        part = name.removesuffix(".weight").rpartition(".")[2]
        values = values + values.dtype.type(_OFFSETS.get(part, 1.0) - 1)  # to the usual 1
    return {name: values}


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    w.add_vocab_size(c["vocab_size"])
    w.add_sliding_window(c["window_size"])
    w.add_sliding_window_pattern(c["sliding_window_pattern"])
    w.add_rope_freq_base_swa(c["rope_local_theta"])


FAMILY = Family(
    "plamo3",
    tiny={
        **BASE,
        "window_size": 7,
        "sliding_window_pattern": 2,
        "rope_theta": 1e6,
        "rope_local_theta": 1e4,
        "tie_word_embeddings": True,
    },
    attention={
        "mixer.qkv_proj.weight": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
        "mixer.q_norm.weight": (HEAD_DIM,),
        "mixer.k_norm.weight": (HEAD_DIM,),
        "mixer.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
        "pre_mixer_norm.weight": (HIDDEN,),
        "post_mixer_norm.weight": (HIDDEN,),
        "pre_mlp_norm.weight": (HIDDEN,),
        "post_mlp_norm.weight": (HIDDEN,),
    },
    without=(
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        "self_attn.q_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.v_proj.weight",
        "self_attn.o_proj.weight",
    ),
    layers="layers.layers",
    ffn=_ffn,
    norm_base=0.0,
    heading="layers 0, 2",
    golden=(2, [1, 25, 58, 58, 58, 58, 58, 58, 58, 58, 92, 23, 23, 44, 9, 20, 80, 38, 5, 80, 92, 87, 92, 92]),
    gguf=Gguf("PLAMO3", settings=_gguf_settings, converted=_converted),
)
