"""Mistral: a window over all layers."""

from __future__ import annotations

from family_cases import BASE, Case, Family, heads

FAMILY = Family(
    "mistral",
    tiny={**BASE, "sliding_window": 7},
    number=3,
    golden=(0, [21, 94, 60, 60, 60, 10, 48, 23, 57, 23, 23, 23, 11, 11, 62, 43, 2, 0, 23, 95, 46, 23, 23, 29]),
    gguf="LLAMA",
    permuted=True,
    cases=(Case("mistral-window-gqa6", heads(6, 1, hidden_size=96, sliding_window=17)),),
)
