"""Qwen3: norms on every head."""

from __future__ import annotations

from family_cases import BASE, QK_NORMS, YARN, Case, Family, Gguf, heads

FAMILY = Family(
    "qwen3",
    tiny=BASE,
    attention=QK_NORMS,
    number=7,
    golden=(1, [12, 81, 39, 12, 71, 26, 4, 81, 51, 27, 34, 37, 96, 47, 66, 61, 12, 12, 66, 61, 61, 61, 12, 12]),
    gguf=Gguf("QWEN3"),
    cases=(
        Case("qwen3-gqa8", heads(8, 1, head_dim=32, rope_parameters={"rope_theta": 1e6}), exact=True),
        Case("qwen3-biases-tied", {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
        Case("qwen3-yarn", {"head_dim": 32, "rope_parameters": YARN}),
    ),
)
