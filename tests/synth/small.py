"""Sizes at which a model of each family is small and still has all kinds of its layers."""

from __future__ import annotations

from kamado.synth.families import SHAPES

SMALL: dict[str, int] = {"layers": 4, "hidden": 256, "heads": 4, "kv_heads": 2, "head_dim": 64}
# Layers of both kinds before those that read their keys; global layers with a quarter of the heads.
_LEAST: dict[str, dict[str, int]] = {
    "gemma4-e2b": {"layers": 10},
    "gemma4-26b-a4b": {"layers": 6, "kv_heads": 4},
}


def small(family: str, **experts: int) -> dict[str, int]:
    """Settings for `synthesize`; `experts`: those of a family that has experts."""
    shape = SHAPES[family]
    sizes = SMALL | (experts if shape.experts else {}) | ({"ffn": 512} if shape.ffn else {})
    return sizes | _LEAST.get(family, {})
