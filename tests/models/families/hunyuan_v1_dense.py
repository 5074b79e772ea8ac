"""Hunyuan, dense: q and k normed after they are turned, a base stretched by `alpha`."""

from __future__ import annotations

from family_cases import BASE, HEAD_DIM, Case, Family, Gguf, Shapes, heads

QK_LAYER_NORMS: Shapes = {
    "self_attn.query_layernorm.weight": (HEAD_DIM,),
    "self_attn.key_layernorm.weight": (HEAD_DIM,),
}
ALPHA = {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 50.0, "factor": 1.0}

FAMILY = Family(
    "hunyuan_v1_dense",
    tiny={**BASE, "rope_parameters": ALPHA},
    attention=QK_LAYER_NORMS,
    golden=(2, [38, 83, 85, 82, 69, 12, 45, 12, 8, 82, 81, 29, 36, 39, 6, 8, 12, 28, 23, 8, 21, 58, 51, 28]),
    gguf=Gguf("HUNYUAN_DENSE"),
    cases=(
        Case("hunyuan-alpha", heads(6, 2, head_dim=24, rope_parameters=ALPHA)),
        Case("hunyuan-plain-gqa8", heads(8, 1, head_dim=16, tie_word_embeddings=True), exact=True),
    ),
)
