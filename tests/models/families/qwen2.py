"""Qwen2: biases on q, k and v, a window over later layers."""

from __future__ import annotations

from family_cases import BASE, QKV_BIASES, Case, Family, Gguf, heads

FAMILY = Family(
    "qwen2",
    tiny={**BASE, "tie_word_embeddings": True},
    attention={
        **QKV_BIASES,
    },
    number=6,
    golden=(6, [6, 72, 6, 66, 75, 76, 37, 75, 80, 53, 66, 69, 80, 44, 58, 76, 80, 44, 58, 76, 72, 41, 65, 46]),
    gguf=Gguf("QWEN2"),
    cases=(
        Case("qwen2-gqa6-tied", heads(6, 1, hidden_size=96, tie_word_embeddings=True), exact=True),
        Case("qwen2-gqa1-untied", exact=True),
        Case("qwen2-window", {"use_sliding_window": True, "sliding_window": 19, "max_window_layers": 1}, gguf=False),
    ),
)
