"""Damage in a model file reaches the caller as one typed error, for answers and vectors, whatever tensor has it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tiny_bert
import tiny_models
from native_runner import needs_native
from safetensors.numpy import load_file, save_file

from kamado import load
from kamado.errors import NativeError
from kamado.plan.kv_presets import PRESETS

pytestmark = needs_native

# What other families have beyond these: norms behind parts, gates, squares of relus, limits, queries by position.
_PARTS = {
    "olmo2": r"(q_norm|post_feedforward_layernorm)",
    "glm4": r"(gate_up_proj|post_mlp_layernorm)",
    "arcee": r"(up|down)_proj",
    "ministral3": r"q_proj",
    "afmoe": r"(self_attn\.(gate|o)_proj|router|shared_experts|expert_bias)",
    "step3p5": r"(g_proj|k_norm|moe\.gate\.|router_bias|share_expert)",
    "gemma4_text": r"(layer_scalar|router|per_layer|layernorm_[12]|q_norm|k_proj)",
    "gpt_oss": r"(sinks|router|[qko]_proj)",
}
# Of layers that keep a record: their third layer.
_RECURRENT = {"lfm2": r"\.conv\.", "qwen3_5_moe_text": r"(linear_attn|shared_expert_gate)"}


def _damage(folder: Path, name: str, value: float) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name][..., 0] = value
    save_file(tensors, path)


def _names(family: str, layer: int = 1) -> list[str]:
    """One layer's tensors, and those outside of the layers."""
    names = [name for name in tiny_models.shapes(family) if ".layers." not in name or f".layers.{layer}." in name]
    return [name for name in names if ".experts." not in name and not re.search(r"\.moe\.\w+_proj\.", name)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("family", "name"),
    [(f, n) for f in ("llama", "qwen2", "qwen3_moe", "granitemoe") for n in _names(f)]
    + [(f, n) for f, part in _PARTS.items() for n in _names(f) if re.search(part, n)]
    + [(f, n) for f, part in _RECURRENT.items() for n in _names(f, 2) if re.search(part, n)],
)
def test_answers(tmp_path: Path, family: str, name: str, value: float) -> None:
    folder = tiny_models.write(tmp_path, family)
    _damage(folder, name, value)
    with load(folder, context=256) as model:
        for prompt in ([1, 2, 3, 4, 5], [7]):
            with pytest.raises(NativeError, match="came out not finite"):
                list(model.generate(prompt, max_tokens=8, temperature=0.0))
        with pytest.raises(NativeError, match="came out not finite"):
            model.score([1, 2, 3, 4])


@pytest.mark.parametrize("kv", PRESETS)
def test_every_preset_of_the_cache(tmp_path: Path, kv: str) -> None:
    folder = tiny_models.write(tmp_path, "qwen3")
    _damage(folder, "model.layers.0.self_attn.v_proj.weight", np.nan)
    with load(folder, context=256, kv=kv) as model, pytest.raises(NativeError, match="a value of attention"):
        list(model.generate([1, 2, 3], max_tokens=2))


def test_damage_that_only_a_later_token_meets(tmp_path: Path) -> None:
    """The prompt is fine; the damaged row of the table is read while answering."""
    folder = tiny_models.write(tmp_path, "qwen3", tie_word_embeddings=False)
    with load(folder, context=256) as model:
        first = next(iter(model.generate([1, 2, 3], max_tokens=1, temperature=0.0))).token
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][first] = np.nan
    save_file(tensors, path)
    with load(folder, context=256) as model:
        generation = iter(model.generate([1, 2, 3], max_tokens=8, temperature=0.0))
        assert next(generation).token == first
        with pytest.raises(NativeError, match="came out not finite"):
            list(generation)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", [n for n in tiny_bert.shapes(tiny_bert.CONFIG) if "layer.0" in n or "layer.2" in n or "embeddings" in n]
)
def test_vectors(tmp_path: Path, name: str, value: float) -> None:
    folder = tiny_bert.write(tmp_path)
    _damage(folder, name, value)
    with load(folder) as model, pytest.raises(NativeError, match="not finite"):
        model.embed([[1, 2, 3, 4], [5, 6]])
