"""OLMo 3: windows on all but each fourth layer, positions of the others stretched by YaRN."""

from __future__ import annotations

from typing import Any

from family_cases import NO_HEAD_DIM, YARN, Case, Family, Gguf, heads

from .olmo2 import NORMS

_ROPES = {
    "full_attention": YARN,
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    w.add_sliding_window(c["sliding_window"])
    w.add_sliding_window_pattern([kind == "sliding_attention" for kind in c["layer_types"]])


FAMILY = Family(
    "olmo3",
    tiny={
        **NO_HEAD_DIM,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": _ROPES,
        "pad_token_id": None,
        "eos_token_id": None,
    },
    attention=NORMS,
    without=("input_layernorm.weight",),
    heading="layers 0, 2",
    golden=(2, [59, 8, 12, 12, 12, 8, 57, 76, 4, 4, 4, 4, 86, 47, 90, 31, 31, 2, 7, 80, 85, 85, 76, 80]),
    gguf=Gguf("OLMO2", settings=_gguf_settings),
    cases=(
        Case(
            "olmo3-gqa8-yarn-factor",  # GGUF has no key of one meaning for the factor
            heads(8, 1, hidden_size=96, sliding_window=13)
            | {"rope_parameters": {**_ROPES, "full_attention": {**YARN, "attention_factor": 1.2, "beta_fast": 16.0}}},
            gguf=False,
        ),
        Case(
            "olmo3-usual-layers",
            heads(4, 2, hidden_size=80, sliding_window=40, num_hidden_layers=5, rope_parameters=None),
            exact=True,
        ),
        Case(
            "olmo3-long",
            heads(
                6,
                3,
                hidden_size=96,
                sliding_window=21,
                layer_types=["full_attention", "sliding_attention", "full_attention"],
                rope_parameters=_ROPES,
            ),
            exact=True,
        ),
    ),
)
