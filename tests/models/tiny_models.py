"""Tiny safetensors directories of every family, written from a NumPy seed: no torch needed.

Shapes and names are spelled out here and in families/, apart from the name maps under test.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from family_cases import (
    EXPERTS,
    FFN,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    TRAINED,
    VOCAB,
    Shapes,
    as_trained,
    families,
)
from safetensors.numpy import save_file

__all__ = ["CONFIGS", "EXPERTS", "FAMILIES", "FFN", "HEADS", "HEAD_DIM", "HIDDEN", "KV_HEADS", "LAYERS", "VOCAB"]

FAMILIES = families()
CONFIGS: dict[str, dict[str, Any]] = {name: family.tiny for name, family in sorted(FAMILIES.items())}


def shapes(family: str) -> Shapes:
    """Tensor names and shapes of a tiny model."""
    case, config = FAMILIES[family], CONFIGS[family]
    hidden, q, kv = config["hidden_size"], HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    result: Shapes = {"model.embed_tokens.weight": (VOCAB, hidden), f"model.{case.last_norm}.weight": (hidden,)}
    result |= {f"model.{name}": shape for name, shape in case.outside.items()}
    if not config.get("tie_word_embeddings", family == "gemma3_text"):
        result["lm_head.weight"] = (VOCAB, hidden)
    for i in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (q, hidden),
            "self_attn.k_proj.weight": (kv, hidden),
            "self_attn.v_proj.weight": (kv, hidden),
            "self_attn.o_proj.weight": (hidden, q),
            **case.attention,
            **case.ffn(hidden, i),
        }
        result |= {
            f"model.{case.layers}.{i}.{name}": shape
            for name, shape in layer.items()
            if shape and name not in case.without
        }
    return result


def random_tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator, *, norm_base: float) -> np.ndarray:
    """Values large enough that every part of the network shows in the logits."""
    if name.endswith(TRAINED):
        return as_trained(name, rng.random(shape)).astype(np.float32)
    values = rng.standard_normal(shape)
    if name in ("model.norm.weight", "model.embedding_norm.weight"):
        # Random signs, or a tied head would only echo its input.
        return (np.sign(values) * (1.0 + 0.2 * rng.standard_normal(shape)) - (1.0 - norm_base)).astype(np.float32)
    if name.endswith("norm.weight"):
        return (norm_base + 0.2 * values).astype(np.float32)
    if name.endswith(("norm_1.weight", "norm_2.weight", "scale", "scalar")):
        return (1.0 + 0.2 * values).astype(np.float32)
    if name.endswith((".bias", "_bias")):
        return (0.2 * values).astype(np.float32)
    if "embed_tokens" in name:
        return (0.2 * values).astype(np.float32)
    return (values / np.sqrt(shape[-1])).astype(np.float32)


def write(directory: Path, family: str, seed: int = 0, **changes: Any) -> Path:
    """config.json (with `changes`) and model.safetensors."""
    directory.mkdir(parents=True, exist_ok=True)
    case = FAMILIES[family]
    rng = np.random.default_rng([seed, crc32(family.encode()) if case.number is None else case.number])
    tensors = {
        name: random_tensor(name, shape, rng, norm_base=case.base_of(name)) for name, shape in shapes(family).items()
    }
    for name in tensors:
        for end, times in case.stretched.items():
            if name.endswith(end):
                tensors[name] *= np.float32(times)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": family, **CONFIGS[family], **changes}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory
