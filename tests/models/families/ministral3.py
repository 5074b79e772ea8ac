"""Ministral 3: YaRN and queries that grow with their position, alone and with pictures."""

from __future__ import annotations

from typing import Any

from family_cases import BASE, YARN, Case, Family, Gguf, heads

_ROPE = {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5}
_SHORT = {**_ROPE, "original_max_position_embeddings": 8, "factor": 16.0}


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    w.add_rope_scaling_yarn_log_mul(c["rope_parameters"]["mscale_all_dim"])
    w.add_attn_temperature_scale(c["rope_parameters"]["llama_4_scaling_beta"])


FAMILY = Family(
    "ministral3",
    tiny={**BASE, "rope_parameters": {**_ROPE, "original_max_position_embeddings": 16}},
    golden=(2, [43, 13, 80, 80, 73, 13, 51, 70, 27, 70, 70, 29, 32, 80, 70, 73, 62, 80, 43, 69, 13, 54, 13, 54]),
    gguf=Gguf("MISTRAL3", permuted=True, settings=_gguf_settings),
    cases=(
        Case("ministral3-gqa8", heads(8, 1, head_dim=12, rope_parameters=_ROPE)),
        Case(
            "ministral3-short-tied",
            heads(6, 2, head_dim=16, hidden_size=72, tie_word_embeddings=True)
            | {"rope_parameters": {**_SHORT, "mscale_all_dim": 0.5, "max_position_embeddings": 4096}},
        ),
        Case("ministral3-window", heads(4, 4, head_dim=16, sliding_window=9, rope_parameters=_SHORT), gguf=False),
        Case(
            "mistral3-ministral3",
            heads(4, 2, head_dim=16, model_type="ministral3", rope_parameters=_SHORT),
            gguf=False,
            family="mistral3",
        ),
    ),
)
