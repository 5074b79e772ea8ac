"""Qwen3.5, dense: delta rule between gated attention; GGUF files have the value heads in another order."""

from __future__ import annotations

from typing import Any

import numpy as np
from family_cases import HEAD_DIM, HEADS, KV_HEADS, Case, Family, Gguf, heads, mlp

from . import qwen3_next as base

_KEYS, _VALUES = KV_HEADS * HEAD_DIM, HEADS * HEAD_DIM
_PAIRS = HEAD_DIM // 4  # that turn
# By what position of a picture each pair turns.
_SECTIONS = [(_PAIRS + 2) // 3, (_PAIRS + 1) // 3, _PAIRS // 3]
OPTIONS: dict[str, Any] = {
    **base.OPTIONS,
    "rope_parameters": {
        **base.OPTIONS["rope_parameters"], "mrope_section": _SECTIONS, "mrope_interleaved": True,
    },
}  # fmt: skip
mixer = base.mixer(
    {"in_proj_qkv": (2 * _KEYS + _VALUES,), "in_proj_z": (_VALUES,), "in_proj_b": (HEADS,), "in_proj_a": (HEADS,)}
)
PUBLISHED = {
    "attn_output_gate": True, "full_attention_interval": 4, "mamba_ssm_dtype": "float32", "mlp_only_layers": [],
    "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False, "attention_bias": False,
}  # fmt: skip


def _tiled(values: Any, axis: int, width: int, c: dict[str, Any]) -> Any:
    """Value heads in the order of their place in the group of a key head, then of the key head."""
    count = c["linear_num_key_heads"]
    shape = (*values.shape[:axis], count, -1, width, *values.shape[axis + 1 :])
    return values.reshape(shape).swapaxes(axis, axis + 1).reshape(values.shape)


def converted(name: str, values: Any, c: dict[str, Any]) -> dict[str, Any]:
    """As for Qwen3-Next, with value heads in another order."""
    last, width = name.rpartition("linear_attn.")[2], c["linear_value_head_dim"]
    if last in ("in_proj_qkv.weight", "conv1d.weight"):
        keys = 2 * c["linear_num_key_heads"] * c["linear_key_head_dim"]
        values = np.concatenate([values[:keys], _tiled(values[keys:], 0, width, c)])
    elif last == "in_proj_z.weight":
        values = _tiled(values, 0, width, c)
    elif last in ("in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_bias"):
        values = _tiled(values, 0, 1, c)
    elif last == "out_proj.weight":
        values = _tiled(values, 1, width, c)
    return base.converted(name, values, c)


def gguf_settings(w: Any, c: dict[str, Any]) -> None:
    """As for Qwen3-Next, and the sections of the rotation, which the converter always writes."""
    base.gguf_settings(w, c)
    w.add_rope_dimension_sections([*c["rope_parameters"].get("mrope_section", [11, 11, 10]), 0])


FAMILY = Family(
    "qwen3_5_text",
    tiny=OPTIONS,
    ffn=lambda hidden, layer: mixer(hidden, layer) | mlp(hidden, layer),
    norm_base=0.0,
    plain_norms=base.PLAIN_NORMS,
    heading="layers 0, 2",
    golden=(1, [59, 37, 12, 37, 42, 74, 40, 0, 37, 69, 37, 62, 37, 71, 88, 89, 40, 71, 41, 46, 12, 62, 37, 55]),
    gguf=Gguf("QWEN35", settings=gguf_settings, converted=converted),
    cases=(
        Case("qwen35-gqa8", heads(8, 1, **base.ODD, head_dim=24, num_hidden_layers=4)),
        Case(
            "qwen35-pictures-left-out",
            heads(6, 2, **base.ODD, head_dim=16, layer_types=base.KINDS, tie_word_embeddings=True)
            | {"rope_parameters": OPTIONS["rope_parameters"]},
            gguf=False,  # names of a wrapper's tensors
            family="qwen3_5",
        ),
        Case(
            "qwen35-one-value-head-a-key-head",
            heads(4, 2, **{**base.ODD, "linear_num_value_heads": 3}, head_dim=32, full_attention_interval=3),
        ),
    ),
    published=PUBLISHED,
)
