"""Granite, dense: multipliers."""

from __future__ import annotations

from typing import Any

from family_cases import NO_HEAD_DIM, Case, Family, Gguf, heads

MULTIPLIERS = {
    "embedding_multiplier": 1.5,
    "attention_multiplier": 0.125,
    "residual_multiplier": 0.72,
    "logits_scaling": 4.0,
}


def gguf_settings(w: Any, c: dict[str, Any]) -> None:
    """Granite's multipliers under the converter's names."""
    w.add_attention_scale(c["attention_multiplier"])
    w.add_embedding_scale(c["embedding_multiplier"])
    w.add_residual_scale(c["residual_multiplier"])
    w.add_logit_scale(c["logits_scaling"])


FAMILY = Family(
    "granite",
    tiny={**NO_HEAD_DIM, **MULTIPLIERS, "tie_word_embeddings": True},
    golden=(4, [69, 40, 92, 57, 77, 48, 41, 41, 21, 47, 92, 57, 77, 48, 41, 55, 57, 71, 41, 92, 15, 86, 15, 86]),
    gguf=Gguf("GRANITE", permuted=True, settings=gguf_settings, keys={"rope.scaling.finetuned": True}),
    cases=(
        Case("granite-multipliers", heads(6, 2, hidden_size=96, tie_word_embeddings=True, **MULTIPLIERS)),
        Case(
            "granite-biases-gqa8", heads(8, 1, attention_bias=True, mlp_bias=True, rope_parameters={"rope_theta": 1e7})
        ),
    ),
    published={"attention_bias": False, "mlp_bias": False, "rope_scaling": None},
)
