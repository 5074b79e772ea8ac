"""GLM-4, dense: neighbours in half of each head turned, gate and up in one matrix, norms around each part."""

from __future__ import annotations

import family_cases as fc

_ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}


def _mlp(hidden: int, layer: int) -> fc.Shapes:
    return {"mlp.gate_up_proj.weight": (2 * fc.FFN, hidden), "mlp.down_proj.weight": (hidden, fc.FFN)}


FAMILY = fc.Family(
    "glm4",
    tiny={**fc.BASE, "rope_parameters": _ROPE, "pad_token_id": 0},
    attention={
        "post_self_attn_layernorm.weight": (fc.HIDDEN,),
        "post_mlp_layernorm.weight": (fc.HIDDEN,),
        **fc.QKV_BIASES,
    },
    ffn=_mlp,
    golden=(0, [18, 17, 7, 17, 7, 0, 3, 11, 6, 91, 58, 39, 26, 71, 9, 17, 71, 11, 6, 71, 11, 6, 71, 11]),
    gguf=fc.Gguf("GLM4"),
    cases=(
        fc.Case("glm4-gqa8", fc.heads(8, 1, head_dim=20, hidden_size=80, rope_parameters=_ROPE), exact=True),
        fc.Case(
            "glm4-no-biases-linear",
            fc.heads(4, 4, head_dim=16, attention_bias=False)
            | {"rope_parameters": {**fc.LINEAR, "partial_rotary_factor": 0.25}, "tie_word_embeddings": True},
            exact=True,
        ),
        fc.Case(
            "glm4-yarn",
            fc.heads(6, 2, head_dim=24, hidden_size=72, rope_parameters={**fc.YARN, "partial_rotary_factor": 0.75}),
            exact=True,
        ),
    ),
)
