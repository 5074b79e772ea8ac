"""Tiny safetensors directories of every family, written from a NumPy seed: no torch needed.

Shapes and names are spelled out here, apart from the name maps under test.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS, VOCAB = 48, 6, 2, 16, 64, 3, 97
EXPERTS, TOP_K, EXPERT_WIDTH = 5, 2, 32

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
}
# OLMoE and Granite have no head_dim of their own.
_NO_HEAD_DIM = {**{k: v for k, v in _BASE.items() if k != "head_dim"}, "hidden_size": HEADS * HEAD_DIM}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        **_BASE,
        "tie_word_embeddings": True,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {**_BASE, "sliding_window": 7},
    "mixtral": {**_BASE, "num_local_experts": EXPERTS, "num_experts_per_tok": TOP_K, "sliding_window": None},
    "qwen2": {**_BASE, "tie_word_embeddings": True},
    "qwen3": dict(_BASE),
    "qwen3_moe": {
        **_BASE,
        "num_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "moe_intermediate_size": EXPERT_WIDTH,
        "norm_topk_prob": True,
    },
    "gemma3_text": {
        **_BASE,
        "query_pre_attn_scalar": HEAD_DIM,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "olmoe": {
        **_NO_HEAD_DIM,
        "num_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "norm_topk_prob": False,
        "pad_token_id": None,
        "eos_token_id": None,
    },
    "granitemoe": {
        **_NO_HEAD_DIM,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "embedding_multiplier": 1.5,
        "attention_multiplier": 0.125,
        "residual_multiplier": 0.72,
        "logits_scaling": 4.0,
        "tie_word_embeddings": True,
    },
}


def shapes(family: str) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a tiny model."""
    config = CONFIGS[family]
    hidden, q, kv = config["hidden_size"], HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    result: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, hidden), "model.norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings", family == "gemma3_text"):
        result["lm_head.weight"] = (VOCAB, hidden)
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        attn = layer + "self_attn."
        result |= {
            layer + "input_layernorm.weight": (hidden,),
            layer + "post_attention_layernorm.weight": (hidden,),
            attn + "q_proj.weight": (q, hidden),
            attn + "k_proj.weight": (kv, hidden),
            attn + "v_proj.weight": (kv, hidden),
            attn + "o_proj.weight": (hidden, q),
        }
        if family == "qwen2":
            result |= {attn + "q_proj.bias": (q,), attn + "k_proj.bias": (kv,), attn + "v_proj.bias": (kv,)}
        if family in ("qwen3", "qwen3_moe", "gemma3_text"):
            result |= {attn + "q_norm.weight": (HEAD_DIM,), attn + "k_norm.weight": (HEAD_DIM,)}
        if family == "olmoe":
            result |= {attn + "q_norm.weight": (q,), attn + "k_norm.weight": (kv,)}
        if family == "gemma3_text":
            result[layer + "pre_feedforward_layernorm.weight"] = (hidden,)
            result[layer + "post_feedforward_layernorm.weight"] = (hidden,)
        if family == "mixtral":
            moe = layer + "block_sparse_moe."
            result[moe + "gate.weight"] = (EXPERTS, hidden)
            for e in range(EXPERTS):
                result[f"{moe}experts.{e}.w1.weight"] = result[f"{moe}experts.{e}.w3.weight"] = (FFN, hidden)
                result[f"{moe}experts.{e}.w2.weight"] = (hidden, FFN)
        elif family in ("qwen3_moe", "olmoe"):
            width = EXPERT_WIDTH if family == "qwen3_moe" else FFN
            result[layer + "mlp.gate.weight"] = (EXPERTS, hidden)
            for e in range(EXPERTS):
                expert = f"{layer}mlp.experts.{e}."
                result |= {expert + "gate_proj.weight": (width, hidden), expert + "up_proj.weight": (width, hidden)}
                result[expert + "down_proj.weight"] = (hidden, width)
        elif family == "granitemoe":
            moe = layer + "block_sparse_moe."
            result[moe + "router.layer.weight"] = (EXPERTS, hidden)
            result[moe + "input_linear.weight"] = (EXPERTS, 2 * FFN, hidden)
            result[moe + "output_linear.weight"] = (EXPERTS, hidden, FFN)
        else:
            mlp = layer + "mlp."
            result |= {mlp + "gate_proj.weight": (FFN, hidden), mlp + "up_proj.weight": (FFN, hidden)}
            result[mlp + "down_proj.weight"] = (hidden, FFN)
    return result


def random_tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator, *, norm_base: float) -> np.ndarray:
    """Values large enough that every part of the network shows in the logits."""
    values = rng.standard_normal(shape)
    if name == "model.norm.weight":
        # Random signs, or a tied head would only echo its input.
        return (np.sign(values) * (1.0 + 0.2 * rng.standard_normal(shape)) - (1.0 - norm_base)).astype(np.float32)
    if name.endswith("norm.weight"):
        return (norm_base + 0.2 * values).astype(np.float32)
    if name.endswith(".bias"):
        return (0.2 * values).astype(np.float32)
    if "embed_tokens" in name:
        return (0.2 * values).astype(np.float32)
    return (values / np.sqrt(shape[-1])).astype(np.float32)


def write(directory: Path, family: str, seed: int = 0, **changes: Any) -> Path:
    """config.json (with `changes`) and model.safetensors."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, sorted(CONFIGS).index(family)])
    base = 0.0 if family == "gemma3_text" else 1.0
    tensors = {name: random_tensor(name, shape, rng, norm_base=base) for name, shape in shapes(family).items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": family, **CONFIGS[family], **changes}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory
