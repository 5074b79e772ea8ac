"""Mistral: a window over all layers; without one, and with pictures, in Mistral Small 3."""

from __future__ import annotations

from family_cases import BASE, YARN, Case, Family, Gguf, heads

FAMILY = Family(
    "mistral",
    tiny={**BASE, "sliding_window": 7},
    number=3,
    golden=(0, [21, 94, 60, 60, 60, 10, 48, 23, 57, 23, 23, 23, 11, 11, 62, 43, 2, 0, 23, 95, 46, 23, 23, 29]),
    gguf=Gguf("LLAMA", permuted=True),
    cases=(
        Case("mistral-window-gqa6", heads(6, 1, hidden_size=96, sliding_window=17)),
        Case("mistral3-small", heads(8, 2, head_dim=12, sliding_window=None), gguf=False, family="mistral3"),
        Case("mistral3-window", {"sliding_window": 11, "rope_parameters": YARN}, gguf=False, family="mistral3"),
    ),
)
