"""IQuest-Coder (plain): Llama's code under its own name."""

from __future__ import annotations

from family_cases import BASE, Case, Family, Gguf, heads

FAMILY = Family(
    "iquestcoder",
    tiny=BASE,
    golden=(2, [31, 58, 39, 3, 0, 58, 64, 80, 64, 80, 69, 2, 2, 2, 2, 2, 88, 80, 84, 31, 67, 56, 56, 3]),
    gguf=Gguf("LLAMA", permuted=True),
    cases=(
        Case("iquest-gqa8", heads(8, 1, head_dim=16)),
        Case(
            "iquest-biases-tied",
            heads(6, 2, hidden_size=96, attention_bias=True, tie_word_embeddings=True),
        ),
    ),
)
