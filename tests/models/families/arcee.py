"""Arcee: an MLP without a gate, by the square of a relu."""

from __future__ import annotations

from family_cases import BASE, FFN, LLAMA3, YARN, Case, Family, Gguf, Shapes, heads


def _mlp(hidden: int, layer: int) -> Shapes:
    return {"mlp.up_proj.weight": (FFN, hidden), "mlp.down_proj.weight": (hidden, FFN)}


FAMILY = Family(
    "arcee",
    tiny=BASE,
    ffn=_mlp,
    golden=(7, [74, 72, 49, 66, 72, 96, 83, 23, 23, 71, 28, 48, 96, 71, 63, 24, 28, 22, 96, 96, 40, 71, 50, 63]),
    gguf=Gguf("ARCEE", permuted=True),
    cases=(
        Case("arcee-gqa8-yarn", heads(8, 1, head_dim=12, rope_parameters=YARN)),
        Case("arcee-llama3-tied", heads(4, 4, rope_parameters=LLAMA3, tie_word_embeddings=True)),
        Case("arcee-biases", heads(6, 3, hidden_size=72, attention_bias=True, mlp_bias=True), gguf=False),
        Case("arcee-silu", heads(4, 2, hidden_act="silu"), gguf=False),
    ),
)
