"""A tiny BERT in a safetensors directory, from a NumPy seed; names and shapes are spelled out apart from the map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 300,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}


def shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    h, ffn = c["hidden_size"], c["intermediate_size"]
    out: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (c["vocab_size"], h),
        "embeddings.position_embeddings.weight": (c["max_position_embeddings"], h),
        "embeddings.token_type_embeddings.weight": (c["type_vocab_size"], h),
        "pooler.dense.weight": (h, h),
        "pooler.dense.bias": (h,),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(c["num_hidden_layers"]):
        layer = f"encoder.layer.{i}."
        for name, rows, cols in (
            ("attention.self.query", h, h),
            ("attention.self.key", h, h),
            ("attention.self.value", h, h),
            ("attention.output.dense", h, h),
            ("intermediate.dense", ffn, h),
            ("output.dense", h, ffn),
        ):
            out |= {f"{layer}{name}.weight": (rows, cols), f"{layer}{name}.bias": (rows,)}
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
    for norm in norms:
        out |= {f"{norm}.weight": (h,), f"{norm}.bias": (h,)}
    return out


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in shapes(config).items():
        noise = rng.standard_normal(shape).astype(np.float32)
        if name.endswith("LayerNorm.weight"):
            out[name] = 1 + 0.2 * noise
        elif name.endswith("bias"):
            out[name] = 0.3 * noise
        elif "embeddings" in name:
            out[name] = noise
        else:
            out[name] = noise / np.float32(np.sqrt(shape[-1]))
    return out


def write(folder: Path, *, pooling: str | None = None, prefix: str = "", seed: int = 0, **changes: Any) -> Path:
    """The directory; `pooling` is the key of 1_Pooling/config.json that is true."""
    config = {**CONFIG, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({prefix + name: values for name, values in tensors(config, seed).items()}, folder / "model.safetensors")
    if pooling is not None:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        text = json.dumps({"word_embedding_dimension": config["hidden_size"], pooling: True})
        (folder / "1_Pooling" / "config.json").write_text(text, encoding="utf-8")
    return folder
