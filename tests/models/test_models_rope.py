"""Rotary frequencies of every scaling rule, against transformers' own functions and by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kamado.files.types import Checkpoint
from kamado.models.config import Config
from kamado.models.rope import gguf_rope, hf_rope

HEAD_DIM = 64


def hf(**settings: Any) -> Config:
    return Config.of(_checkpoint("safetensors", {"max_position_embeddings": 8192, **settings}))


def gguf(**settings: Any) -> Config:
    return Config.of(_checkpoint("gguf", {f"llama.{key.replace('__', '.')}": v for key, v in settings.items()}))


def _checkpoint(kind: Any, metadata: dict[str, Any]) -> Checkpoint:
    return Checkpoint(Path("x"), (), kind, "llama", metadata, {}, None, None)


RULES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "default", "rope_theta": 1e6},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 2048},
    {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 512,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
    {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "original_max_position_embeddings": 4096,
        "attention_factor": 1.25,
    },
]


@pytest.mark.parity
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["rope_type"])
def test_rules_agree_with_transformers(rule: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("torch", reason="torch is not installed")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=8192, rope_parameters=dict(rule)
    )
    reference = LlamaRotaryEmbedding(config)
    table = hf_rope(hf(rope_parameters=rule), HEAD_DIM)
    np.testing.assert_allclose(table.inv_freq, reference.inv_freq.numpy(), rtol=2e-6)
    assert table.attention_factor == pytest.approx(reference.attention_scaling, rel=1e-6)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["rope_type"])
def test_old_and_new_keys_mean_the_same(rule: dict[str, Any]) -> None:
    new = hf_rope(hf(rope_parameters=rule), HEAD_DIM)
    scaling = {("type" if key == "rope_type" else key): v for key, v in rule.items() if key != "rope_theta"}
    old = hf_rope(hf(rope_theta=rule["rope_theta"], rope_scaling=scaling), HEAD_DIM)
    assert np.array_equal(old.inv_freq, new.inv_freq)
    assert old.attention_factor == new.attention_factor


def test_default_frequencies_by_hand() -> None:
    table = hf_rope(hf(), 8)
    np.testing.assert_allclose(table.inv_freq, [1.0, 0.1, 0.01, 0.001], rtol=1e-15)
    assert table.inv_freq.dtype == np.float64


def test_gguf_linear_and_yarn() -> None:
    plain = gguf_rope(gguf(rope__freq_base=10000.0), HEAD_DIM)
    linear = gguf_rope(gguf(rope__scaling__type="linear", rope__scaling__factor=4.0), HEAD_DIM)
    np.testing.assert_allclose(linear.inv_freq * 4.0, plain.inv_freq, rtol=1e-15)
    yarn = gguf_rope(
        gguf(
            context_length=8192,
            rope__scaling__type="yarn",
            rope__scaling__factor=4.0,
            rope__scaling__original_context_length=2048,
        ),
        HEAD_DIM,
    )
    same = hf_rope(
        hf(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}), HEAD_DIM
    )
    assert np.array_equal(yarn.inv_freq, same.inv_freq)
    assert yarn.attention_factor == same.attention_factor == pytest.approx(0.1 * math.log(4.0) + 1.0)
    # Fast waves stay, slow ones are stretched by the whole factor.
    assert yarn.inv_freq[0] == 1.0
    assert yarn.inv_freq[-1] == pytest.approx(plain.inv_freq[-1] / 4.0)
