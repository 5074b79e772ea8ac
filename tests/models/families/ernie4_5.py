"""ERNIE 4.5, dense: interleaved pairs in both formats, a head wider than hidden / heads, biases or none."""

from __future__ import annotations

from typing import Any

from family_cases import (
    BASE,
    FFN,
    HIDDEN,
    QKV_BIASES,
    Case,
    Family,
    Gguf,
    Shapes,
    heads,
    mlp,
)

BIASES: Shapes = {
    **QKV_BIASES,
    "self_attn.o_proj.bias": (HIDDEN,),
}


def mlp_with_biases(hidden: int, layer: int) -> Shapes:
    """The usual MLP with the biases that `use_bias` gives it."""
    biases = {"mlp.gate_proj.bias": (FFN,), "mlp.up_proj.bias": (FFN,), "mlp.down_proj.bias": (hidden,)}
    return {**mlp(hidden, layer), **biases}


def gguf_settings(w: Any, c: dict[str, Any]) -> None:
    w.add_vocab_size(c["vocab_size"])
    w.add_rope_dimension_count(c["head_dim"])


FAMILY = Family(
    "ernie4_5",
    tiny={**BASE, "use_bias": True, "tie_word_embeddings": False, "rope_theta": 500000.0},
    attention=BIASES,
    ffn=mlp_with_biases,
    golden=(11, [62, 8, 29, 8, 29, 6, 28, 8, 29, 87, 68, 68, 68, 5, 94, 87, 40, 59, 8, 29, 85, 85, 85, 85]),
    gguf=Gguf("ERNIE4_5", settings=gguf_settings),
    cases=(
        Case("ernie-gqa8-tied", heads(8, 1, head_dim=16), exact=True),
        Case(
            "ernie-biases",
            heads(6, 2, head_dim=24, use_bias=True, tie_word_embeddings=False, rms_norm_eps=1e-3),
            exact=True,
        ),
    ),
)
