"""Llama: every scaling rule of its positions, biases, groups of heads."""

from __future__ import annotations

from family_cases import BASE, LINEAR, LLAMA3, YARN, Case, Family, Gguf, heads

_SCALING = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}

FAMILY = Family(
    "llama",
    tiny={**BASE, "tie_word_embeddings": True, "rope_theta": 500000.0, "rope_scaling": _SCALING},
    number=2,
    golden=(4, [46, 89, 95, 51, 94, 94, 94, 94, 51, 54, 29, 54, 74, 83, 91, 30, 94, 12, 91, 80, 91, 30, 94, 81]),
    gguf=Gguf("LLAMA", permuted=True),
    cases=(
        Case("llama-gqa1-untied"),
        Case("llama-gqa3-tied", heads(6, 2, hidden_size=96, tie_word_embeddings=True)),
        Case("llama-gqa8-llama3-rope", heads(8, 1, rope_parameters=LLAMA3)),
        Case("llama-gqa6-biases", heads(6, 1, hidden_size=96, attention_bias=True, mlp_bias=True)),
        Case("llama-head24-linear-rope", {"head_dim": 24, "rope_parameters": LINEAR}),
        Case("llama-yarn", {"rope_parameters": YARN}),
    ),
)
