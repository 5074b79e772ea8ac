"""A GGUF file of the gpt-oss shape (donor_files.py) as a directory of safetensors, as transformers has it.

Its config.json can say what the GGUF file cannot: a limit of the gate that the donor's values do not reach. Rows of
gate and up come by turns, experts' matrices are transposed, and the tokenizer is the same one in `tokenizer.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from donor_files import Made
from donor_shapes import Array, Donor
from kamado.files import open_checkpoint

FAR_LIMIT = 1e4  # of the gate: the donor's own values come to 12
CONTROL = 3  # kind of a token in GGUF
_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}  # fmt: skip
_OF_LAYERS = {
    "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.router",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}  # fmt: skip


def as_directory(made: Made, folder: Path, limit: float = FAR_LIMIT) -> Made:
    """The file in safetensors, one a layer so that little is held at once; it is removed."""
    gguf = Donor(open_checkpoint(made.path))
    folder.mkdir()
    _save(folder / _shard(gguf.layers), {name: gguf(role) for role, name in _WHOLE.items()})
    places = dict.fromkeys(_WHOLE.values(), _shard(gguf.layers))
    for i in range(gguf.layers):
        tensors = _layer(gguf, i)
        _save(folder / _shard(i), tensors)
        places |= dict.fromkeys(tensors, _shard(i))
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    _write_json(folder / "config.json", _config(gguf, limit))
    _write_tokenizer(gguf, folder)
    made.path.unlink()
    return Made(folder, made.picked, made.own)


def _shard(number: int) -> str:
    return f"model-{number:05}.safetensors"


def _save(path: Path, tensors: dict[str, Array]) -> None:
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, path, {"format": "pt"})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _layer(gguf: Donor, i: int) -> dict[str, Array]:
    own, experts = f"model.layers.{i}.", f"model.layers.{i}.mlp.experts."
    found = {
        f"{own}{name}.{end}": gguf(f"blk.{i}.{role}.{end}")
        for role, name in _OF_LAYERS.items()
        for end in ("weight", "bias")
        if f"blk.{i}.{role}.{end}" in gguf.checkpoint.tensors
    }
    found[f"{own}self_attn.sinks"] = gguf(f"blk.{i}.attn_sinks.weight")
    for end, name in (("weight", ""), ("bias", "_bias")):
        gate, up, down = (gguf(f"blk.{i}.ffn_{part}_exps.{end}") for part in ("gate", "up", "down"))
        both = np.stack([gate, up], axis=2).reshape(len(gate), 2 * gate.shape[1], *gate.shape[2:])
        found[f"{experts}gate_up_proj{name}"] = both.swapaxes(1, -1) if end == "weight" else both
        found[f"{experts}down_proj{name}"] = down.swapaxes(1, -1) if end == "weight" else down
    return found


def _config(gguf: Donor, limit: float) -> dict[str, Any]:
    window = int(gguf.metadata("attention.sliding_window"))
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "vocab_size": gguf.checkpoint.tensors["token_embd.weight"].shape[0],
        "hidden_size": gguf.hidden,
        "intermediate_size": int(gguf.metadata("expert_feed_forward_length")),
        "num_hidden_layers": gguf.layers,
        "num_attention_heads": gguf.heads,
        "num_key_value_heads": gguf.kv_heads,
        "head_dim": gguf.head_dim,
        "max_position_embeddings": int(gguf.metadata("context_length")),
        "rms_norm_eps": gguf.eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(gguf.metadata("rope.freq_base"))},
        "sliding_window": window,
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(gguf.layers)],
        "num_local_experts": int(gguf.metadata("expert_count")),
        "num_experts_per_tok": int(gguf.metadata("expert_used_count")),
        "swiglu_limit": limit,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "eos_token_id": int(gguf.checkpoint.metadata["tokenizer.ggml.eos_token_id"]),
    }


def _write_tokenizer(gguf: Donor, folder: Path) -> None:
    """SmolLM2's: digits one by one, words as in GPT-2, pairs of bytes merged."""
    keys = gguf.checkpoint.metadata
    tokens, kinds = list(keys["tokenizer.ggml.tokens"]), keys["tokenizer.ggml.token_type"]
    steps = [{"type": "Digits", "individual_digits": True}]
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True})
    content = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for i, kind in enumerate(kinds) if kind == CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [pair.split(" ") for pair in keys["tokenizer.ggml.merges"]],
        },
    }  # fmt: skip
    _write_json(folder / "tokenizer.json", content)
    names = {end: tokens[int(keys[f"tokenizer.ggml.{end}_token_id"])] for end in ("bos", "eos")}
    settings = {f"{end}_token": name for end, name in names.items()}
    template = keys["tokenizer.chat_template"]
    _write_json(folder / "tokenizer_config.json", settings | {"chat_template": template, "add_bos_token": False})
