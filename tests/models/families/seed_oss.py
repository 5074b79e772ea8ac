"""Seed-OSS: biases on q, k and v."""

from __future__ import annotations

from family_cases import BASE, QKV_BIASES, Case, Family, Gguf, heads

FAMILY = Family(
    "seed_oss",
    tiny={**BASE, "rope_theta": 1e4},
    attention={
        **QKV_BIASES,
    },
    golden=(6, [91, 26, 60, 61, 82, 61, 75, 82, 61, 69, 70, 22, 93, 26, 87, 12, 61, 91, 36, 82, 70, 22, 4, 93]),
    gguf=Gguf("SEED_OSS", keys={"vocab_size": 97}),
    cases=(
        Case("seed-oss-gqa3", heads(6, 2, head_dim=24, rope_parameters={"rope_theta": 1e7}), exact=True),
        Case(
            "seed-oss-other-biases-gqa8",
            heads(8, 1, head_dim=None, attention_bias=False, attention_out_bias=True, mlp_bias=True)
            | {"tie_word_embeddings": True},
            exact=True,
        ),
    ),
    published={
        "attention_bias": True, "attention_out_bias": False, "mlp_bias": False, "residual_dropout": 0.1,
        "pretraining_tp": 1, "rope_scaling": {"rope_type": "default"},
    },
    )  # fmt: skip
