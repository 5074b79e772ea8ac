"""A saved transformers model as a GGUF file, named, permuted and described as llama.cpp's converter does it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from family_cases import Family, Gguf, families
from safetensors.numpy import load_file

# Where the converter gathers the experts of a layer before it looks the name up.
_MERGED = {"w1": "feed_forward.experts.w1", "w2": "feed_forward.experts.w2", "w3": "feed_forward.experts.w3"}


def export(directory: Path, path: Path, also: Callable[[gguf.GGUFWriter], None] | None = None) -> Path:
    """Writes `path` from the model in `directory`, all tensors F32; `also` adds settings, such as a vocabulary."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    family = families()[config["model_type"]]
    assert family.gguf is not None
    architecture = gguf.MODEL_ARCH[family.gguf.member]
    writer = gguf.GGUFWriter(path, family.gguf.called)
    _settings(writer, config, family.gguf)
    if also is not None:
        also(writer)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    state = load_file(directory / "model.safetensors")
    for name, values in _tensors(state, config, family).items():
        if name.startswith(("rope_freqs.", "rope_factors_", "blk.")):
            mapped: str | None = name
        else:
            for end, other in family.gguf.names.items():
                name = name.removesuffix(end) + other if name.endswith(end) else name
            mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert mapped is not None, name
        writer.add_tensor(mapped, np.ascontiguousarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _settings(w: gguf.GGUFWriter, c: dict[str, Any], form: Gguf) -> None:
    heads = c["num_attention_heads"]
    head_dim = c.get("head_dim")
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    if "intermediate_size" in c:
        w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(heads)
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_layer_norm_rms_eps(c.get("rms_norm_eps") or c["norm_eps"])
    if head_dim:
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
    if "partial_rotary_factor" in rope:
        w.add_rope_dimension_count(int((head_dim or c["hidden_size"] // heads) * rope["partial_rotary_factor"]))
    if form.permuted:
        w.add_vocab_size(c["vocab_size"])
        w.add_rope_dimension_count(head_dim or c["hidden_size"] // heads)
    full = rope.get("full_attention", rope)
    if full.get("rope_type") in ("linear", "yarn"):
        w.add_rope_scaling_type(gguf.RopeScalingType(full["rope_type"]))
        w.add_rope_scaling_factor(full["factor"])
        if full["rope_type"] == "yarn":
            w.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
    theta = full.get("rope_theta", c.get("rope_theta", 10000.0))
    if "alpha" in full:
        width = head_dim or c["hidden_size"] // heads
        theta *= full["alpha"] ** (width / (width - 2))
    w.add_rope_freq_base(theta)
    if "sliding_attention" in rope:
        w.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    if form.settings is not None:
        form.settings(w, c)
    elif c.get("sliding_window") and c.get("use_sliding_window", True):
        w.add_sliding_window(c["sliding_window"])  # the converter leaves it out; older files have it
    experts = c.get("num_local_experts", c.get("num_experts", c.get("n_routed_experts")))
    if experts:
        w.add_expert_count(experts)
        w.add_expert_used_count(c.get("num_experts_per_tok") or c.get("moe_topk") or c["top_k_experts"])
    if c.get("moe_intermediate_size"):
        w.add_expert_feed_forward_length(c["moe_intermediate_size"])


def _tensors(state: dict[str, np.ndarray], c: dict[str, Any], family: Family) -> dict[str, np.ndarray]:
    result: dict[str, np.ndarray] = {}
    experts: dict[str, dict[int, np.ndarray]] = {}
    form = family.gguf
    assert form is not None
    if form.converted is not None:
        state = {n: v for name, values in state.items() for n, v in form.converted(name, values, c).items()}
    state = {name: values for name, values in state.items() if not name.startswith(("vision_model.", "vit_large_"))}
    for name, values in sorted(state.items()):
        if form.permuted and re.search(r"\.[qk]_proj\.", name):
            values = _permute(values, c["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"])
        if name.endswith("norm.weight"):
            values = values + np.float32(1.0 - family.base_of(name))
        if match := re.fullmatch(r"(.*\.layers\.\d+\.)(.*)\.experts\.(\d+)\.(\w+)\.weight", name):
            layer, block, expert, part = match.groups()
            if part in _MERGED:
                merged = f"{layer.removeprefix('model.')}{_MERGED[part]}.weight"
            else:
                merged = f"{layer}{block}.experts.{part}.weight"
            experts.setdefault(merged, {})[int(expert)] = values
            continue
        if name.endswith("block_sparse_moe.input_linear.weight"):
            layer = name.removeprefix("model.").partition("block_sparse_moe")[0]
            gate, up = np.split(values, 2, axis=1)
            result[f"{layer}feed_forward.experts.w1.weight"] = gate
            result[f"{layer}feed_forward.experts.w3.weight"] = up
            continue
        result[name] = values
    for name, parts in experts.items():
        result[name] = np.stack([parts[e] for e in range(len(parts))])
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    full = rope.get("full_attention", rope)
    if full.get("rope_type") == "llama3":
        result["rope_freqs.weight"] = _llama3_factors(c, full)
    if rope.get("rope_type") == "longrope":
        for name in ("long", "short"):
            result[f"rope_factors_{name}.weight"] = np.array(rope[f"{name}_factor"], np.float32)
    return result


def _permute(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from (half, pair) to (pair, half) order."""
    split = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)


def _llama3_factors(c: dict[str, Any], rope: dict[str, Any]) -> np.ndarray:
    width = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    head_dim = int(width * rope.get("partial_rotary_factor", 1.0))
    theta = rope.get("rope_theta", c.get("rope_theta"))
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    context = rope["original_max_position_embeddings"]
    factors = []
    for exponent in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (exponent / head_dim)
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    factors += [1.0] * (width // 2 - len(factors))  # of pairs that are not turned
    return np.array(factors, dtype=np.float32)
