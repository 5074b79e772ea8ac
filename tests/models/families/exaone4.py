"""EXAONE 4.0: norms behind each part, QK-norm, positions in local layers alone when there is a window."""

from __future__ import annotations

from typing import Any

from family_cases import BASE, HIDDEN, LLAMA3, QK_NORMS, Case, Family, Gguf, heads

_KINDS = ["sliding_attention", "full_attention", "sliding_attention"]


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    w.add_vocab_size(c["vocab_size"])
    if c["sliding_window"] is not None:
        w.add_sliding_window(c["sliding_window"])
        w.add_sliding_window_pattern([kind == "sliding_attention" for kind in c["layer_types"]])


FAMILY = Family(
    "exaone4",
    tiny={**BASE, "rope_theta": 1e4, "sliding_window": 9, "layer_types": _KINDS},
    attention={**QK_NORMS, "post_feedforward_layernorm.weight": (HIDDEN,)},
    without=("input_layernorm.weight",),
    heading="layer 1",
    golden=(0, [70, 13, 25, 45, 13, 68, 1, 73, 73, 4, 4, 4, 1, 11, 59, 1, 70, 95, 58, 95, 67, 0, 0, 76]),
    gguf=Gguf("EXAONE4", settings=_gguf_settings),
    cases=(
        Case("exaone4-every-fourth", heads(6, 2, head_dim=16, num_hidden_layers=5, sliding_window=33), exact=True),
        Case(
            "exaone4-no-window-llama3",
            heads(8, 1, head_dim=32, sliding_window=None, layer_types=["full_attention"] * 3, rope_parameters=LLAMA3)
            | {"tie_word_embeddings": True},
        ),
    ),
    published={"sliding_window_pattern": "LLLG", "rope_scaling": None, "attention_dropout": 0.0},
)
