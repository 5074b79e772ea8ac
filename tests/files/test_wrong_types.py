"""Every key that a file of ours has, with every wrong kind of value: a typed error that names it, or it loads."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kamado.errors import KamadoError
from kamado.files import open_checkpoint
from kamado.models import build_program
from kamado.plan.forecast import plan
from kamado.plan.machine import Machine
from kamado.text.tokenizer import load_tokenizer

from .builders import f32_entry, gguf_bytes, key_value, safetensors_bytes, text, tokenizer_metadata

_HIDDEN, _FFN, _LAYERS = 32, 64, 2
_SHAPES: dict[str, tuple[int, ...]] = {"token_embd.weight": (64, _HIDDEN), "output_norm.weight": (_HIDDEN,)}
for _i in range(_LAYERS):
    _SHAPES |= {f"blk.{_i}.{n}.weight": (_HIDDEN, _HIDDEN) for n in ("attn_q", "attn_k", "attn_v", "attn_output")}
    _SHAPES |= {f"blk.{_i}.{n}.weight": (_HIDDEN,) for n in ("attn_norm", "ffn_norm")}
    _SHAPES |= {f"blk.{_i}.{n}.weight": (_FFN, _HIDDEN) for n in ("ffn_gate", "ffn_up")}
    _SHAPES[f"blk.{_i}.ffn_down.weight"] = (_HIDDEN, _FFN)

GGUF_KEYS: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "general.alignment": 32,
    "general.file_type": 0,
    "general.license": "mit",
    "general.sampling.temp": 0.5,
    "general.sampling.top_k": 40,
    "split.count": 0,
    "llama.block_count": _LAYERS,
    "llama.context_length": 128,
    "llama.embedding_length": _HIDDEN,
    "llama.feed_forward_length": _FFN,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 2,
    "llama.attention.key_length": 16,
    "llama.attention.value_length": 16,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.attention.sliding_window": 0,
    "llama.rope.dimension_count": 16,
    "llama.rope.freq_base": 1e4,
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 4.0,
    "llama.rope.scaling.original_context_length": 64,
    "llama.rope.scaling.attn_factor": 1.0,
    "llama.expert_count": 0,
    "llama.vocab_size": 64,
    "llama.pooling_type": 3,
    "tokenizer.chat_template": "{{ messages }}",
    "tokenizer.chat_template.rag": "{{ messages }}",
    "tokenizer.ggml.scores": [0.0] * 64,
    "tokenizer.ggml.add_eos_token": False,
    "tokenizer.ggml.add_space_prefix": False,
    "tokenizer.ggml.remove_extra_whitespaces": False,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.eot_token_id": 3,
    "tokenizer.ggml.precompiled_charsmap": [],
    **tokenizer_metadata(),
    "tokenizer.ggml.tokens": ["t", "0", "1", "t0", "t1", *(f"w{i}" for i in range(59))],
}


_MACHINE = Machine(
    cpus=2,
    cpus_online=2,
    memory_bytes=8 << 30,
    memory_total_bytes=8 << 30,
    memory_limited_by="machine",
    cpu_model="test",
    cpu_features=(),
    usable_bytes=0,
)


def _scalar(kind: int, code: str, value: Any) -> tuple[int, bytes]:
    return kind, struct.pack("<" + code, value)


def _array(item_kind: int, count: int, raw: bytes) -> tuple[int, bytes]:
    return 9, struct.pack("<IQ", item_kind, count) + raw


# (value type, bytes) by name: every type of the format, and numbers at their ends.
GGUF_VALUES: dict[str, tuple[int, bytes]] = {
    "u8": _scalar(0, "B", 255), "i8": _scalar(1, "b", -128), "u16": _scalar(2, "H", 65535), "i16": _scalar(3, "h", -1),
    "zero": _scalar(4, "I", 0), "u32": _scalar(4, "I", 2**32 - 1), "i32": _scalar(5, "i", -(2**31)),
    "u64": _scalar(10, "Q", 2**64 - 1), "i64": _scalar(11, "q", -(2**63)), "f32": _scalar(6, "f", 0.5),
    "nan": _scalar(6, "f", math.nan), "inf": _scalar(12, "d", math.inf), "f64": _scalar(12, "d", -1e308),
    "bool": _scalar(7, "B", 1), "text": (8, text("text")), "empty": (8, text("")), "no text": (8, text(b"\xff\xfe\0")),
    "no words": _array(8, 0, b""), "words": _array(8, 2, text("a b") + text(b"\xff")),
    "numbers": _array(5, 3, bytes(12)),
    "floats": _array(6, 2, struct.pack("<2f", math.nan, -math.inf)), "bools": _array(7, 2, b"\0\1"),
    "arrays": _array(9, 2, struct.pack("<IQIQ", 0, 0, 8, 0)), "many words": _array(8, 1500, text("a") * 1500),
}  # fmt: skip


def use(path: Path) -> None:
    """All that a load does before weights are read."""
    checkpoint = open_checkpoint(path)
    program = build_program(checkpoint)
    plan(checkpoint, program, context=64, on=_MACHINE)
    if checkpoint.tokenizer is not None:
        tokenizer = load_tokenizer(checkpoint.tokenizer)
        tokenizer.decode(tokenizer.encode("t0 <s> \u65e5", special=True))


_FEW = ("i8", "zero", "u64", "nan", "bool", "empty", "no words", "words", "numbers", "arrays")


def fault(path: Path) -> str | None:
    """What our error says, None when it loads; any other error is a failed test."""
    try:
        use(path)
    except KamadoError as error:
        return str(error)
    return None


def gguf_tensors() -> tuple[list[bytes], bytes]:
    from .builders import tensor_info

    infos, offset = [], 0
    for name, shape in _SHAPES.items():
        infos.append(tensor_info(name, shape[::-1], offset=offset))
        offset += -(-4 * int(np.prod(shape)) // 32) * 32
    return infos, bytes(offset)


def encoded(value: Any) -> tuple[int, bytes]:
    match value:
        case bool():
            return _scalar(7, "B", value)
        case int():
            return _scalar(4, "I", value)
        case float():
            return _scalar(6, "f", value)
        case str():
            return 8, text(value)
        case [str(), *_]:
            return _array(8, len(value), b"".join(map(text, value)))
        case [float(), *_]:
            return _array(6, len(value), struct.pack(f"<{len(value)}f", *value))
        case _:
            return _array(5, len(value), struct.pack(f"<{len(value)}i", *value))


@pytest.mark.parametrize("model", ["gpt2", "llama", "t5", "bert"])
@pytest.mark.parametrize("key", GGUF_KEYS)
def test_every_gguf_key(tmp_path: Path, key: str, model: str) -> None:
    if model != "gpt2" and not key.startswith("tokenizer."):
        return
    path = tmp_path / "m.gguf"
    infos, data = gguf_tensors()
    # What a key is comes first to light with one kind of vocabulary; the others try the ends.
    for change in (None, *(GGUF_VALUES if model == "gpt2" else _FEW)):
        values = {name: encoded(value) for name, value in GGUF_KEYS.items()}
        values["tokenizer.ggml.model"] = encoded(model)
        if change is not None:
            values[key] = GGUF_VALUES[change]
        path.write_bytes(gguf_bytes([key_value(name, *value) for name, value in values.items()], infos, data))
        found = fault(path)
        assert change is not None or found is None
        assert found is None or str(path) in found, (key, change)


CONFIG: dict[str, Any] = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 64, "hidden_size": _HIDDEN,
    "intermediate_size": _FFN, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 16, "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "hidden_act": "silu", "rope_theta": 1e4,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32},
    "rope_parameters": {"rope_type": "yarn"}, "tie_word_embeddings": True, "attention_bias": False,
    "use_sliding_window": False, "sliding_window": 16, "max_window_layers": 1, "layer_types": ["full_attention"],
    "eos_token_id": [1], "torch_dtype": "float32", "quantization_config": None, "_name_or_path": "x", "text_config": {},
    "temperature": 0.5,
}  # fmt: skip
FILES: dict[str, dict[str, Any]] = {
    "config.json": CONFIG,
    "generation_config.json": {
        "eos_token_id": [1], "temperature": 0.5, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.1,
        "do_sample": True,
    },
    "tokenizer_config.json": {
        "bos_token": "a", "eos_token": {"content": "b"}, "add_bos_token": False, "add_eos_token": False,
        "chat_template": [{"name": "default", "template": "x"}],
        "added_tokens_decoder": {"0": {"content": "a", "special": False}}, "additional_special_tokens": ["a"],
    },
    "special_tokens_map.json": {"eos_token": "b", "additional_special_tokens": [{"content": "a"}]},
    "added_tokens.json": {"a": 0},
    "chat_template.json": {"chat_template": "x"},
    "1_Pooling/config.json": {"pooling_mode_lasttoken": True, "word_embedding_dimension": 32},
    "model.safetensors.index.json": {"metadata": {"total_size": 1}, "weight_map": {}},
}  # fmt: skip

JSON_VALUES: list[Any] = [
    None, True, False, 0, -1, 7, 2**31, 2**63, -(2**64), 10**400, 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf, "",
    "x", "\ud800", "\0", [], [1], [[[1]]], ["x", None], [{}], {}, {"x": 1}, {"content": 7}, {"0": {"content": "zz"}},
    [10**400], [math.nan], ["full_attention"] * 3,
]  # fmt: skip


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))


def _changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _changed(copy[path[0]], path[1:], new)
    return copy


def write_directory(path: Path) -> None:
    """A tiny Qwen3 with every small file that can lie beside it."""
    from tokenizers import Tokenizer, models

    shapes = {"model.embed_tokens.weight": (64, _HIDDEN), "model.norm.weight": (_HIDDEN,)}
    layer = "model.layers.0."
    shapes |= {f"{layer}{n}_layernorm.weight": (_HIDDEN,) for n in ("input", "post_attention")}
    shapes |= {f"{layer}self_attn.{n}_proj.weight": (_HIDDEN, _HIDDEN) for n in "qkvo"}
    shapes |= {f"{layer}self_attn.{n}_norm.weight": (16,) for n in "qk"}
    shapes |= {f"{layer}mlp.{n}_proj.weight": (_FFN, _HIDDEN) for n in ("gate", "up")}
    shapes[f"{layer}mlp.down_proj.weight"] = (_HIDDEN, _FFN)
    header, offset = {}, 0
    for name, shape in shapes.items():
        nbytes = 4 * int(np.prod(shape))
        header[name] = f32_entry(shape, offset, offset + nbytes)
        offset += nbytes
    (path / "w.safetensors").write_bytes(safetensors_bytes(header, bytes(offset)))
    FILES["model.safetensors.index.json"]["weight_map"] = dict.fromkeys(shapes, "w.safetensors")
    (path / "tokenizer.json").write_text(Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?")).to_str())
    (path / "1_Pooling").mkdir()
    for file, content in FILES.items():
        (path / file).write_text(json.dumps(content))


@pytest.mark.parametrize("name", FILES)
def test_every_json_key(tmp_path: Path, name: str) -> None:
    write_directory(tmp_path)
    use(tmp_path)
    # The entries of an index are all alike.
    places = [p for p in _paths(FILES[name]) if len(p) == 1 or not name.endswith("index.json")]
    for place in [(), *places]:
        for value in JSON_VALUES if len(place) == 1 else JSON_VALUES[:: 1 + len(place)]:
            (tmp_path / name).write_text(json.dumps(_changed(FILES[name], place, value)))
            found = fault(tmp_path)
            assert found is None or str(tmp_path) in found, (place, value)


@pytest.mark.parametrize("name", FILES)
def test_deep_and_long_json(tmp_path: Path, name: str) -> None:
    write_directory(tmp_path)
    for raw in (
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"a":' + b"9" * 5000 + b"}",
        b"",
        b"null",
        b"\xff",
        b'{"a":1,"a":2}',
    ):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(KamadoError):
            use(tmp_path)


def test_the_types_are_all_there() -> None:
    assert {kind for kind, _ in GGUF_VALUES.values()} == set(range(13))
