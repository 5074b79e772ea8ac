"""ERNIE 4.5, dense: interleaved pairs in both formats, a head wider than hidden / heads, biases or none."""

from __future__ import annotations

from typing import Any

import family_cases as fc

BIASES: fc.Shapes = {
    **fc.QKV_BIASES,
    "self_attn.o_proj.bias": (fc.HIDDEN,),
}


def mlp_with_biases(hidden: int, layer: int) -> fc.Shapes:
    """The usual MLP with the biases that `use_bias` gives it."""
    biases = {"mlp.gate_proj.bias": (fc.FFN,), "mlp.up_proj.bias": (fc.FFN,), "mlp.down_proj.bias": (hidden,)}
    return {**fc.mlp(hidden, layer), **biases}


def gguf_settings(w: Any, c: dict[str, Any]) -> None:
    w.add_vocab_size(c["vocab_size"])
    w.add_rope_dimension_count(c["head_dim"])


FAMILY = fc.Family(
    "ernie4_5",
    tiny={**fc.BASE, "use_bias": True, "tie_word_embeddings": False, "rope_theta": 500000.0},
    attention=BIASES,
    ffn=mlp_with_biases,
    golden=(11, [62, 8, 29, 8, 29, 6, 28, 8, 29, 87, 68, 68, 68, 5, 94, 87, 40, 59, 8, 29, 85, 85, 85, 85]),
    gguf=fc.Gguf("ERNIE4_5", settings=gguf_settings),
    cases=(
        fc.Case("ernie-gqa8-tied", fc.heads(8, 1, head_dim=16), exact=True),
        fc.Case(
            "ernie-biases",
            fc.heads(6, 2, head_dim=24, use_bias=True, tie_word_embeddings=False, rms_norm_eps=1e-3),
            exact=True,
        ),
    ),
)
