"""A setting counts wherever it stands; where it stands twice, as transformers has it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from kamado.errors import MetadataError
from kamado.files import Checkpoint, open_checkpoint

from .builders import ARCHITECTURE, f32_entry, gguf_bytes, key_value, safetensors_bytes, write_hf

_WEIGHTS = {"model.safetensors": safetensors_bytes({"a": f32_entry([1], 0, 4)}, bytes(4))}


def _open(folder: Path, config: dict[str, Any] | None = None, **files: Any) -> Checkpoint:
    named = {name.replace("__", "/") + ".json": value for name, value in files.items()}
    return open_checkpoint(
        write_hf(folder, {"config.json": {"model_type": "llama", **(config or {})}, **named, **_WEIGHTS})
    )


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.05},
         {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.05}),
        ({"temperature": 0.7, "top_p": 0.8}, None, {"temperature": 0.7, "top_p": 0.8}),
        ({"text_config": {"top_k": 64}, "temperature": 0.2}, None, {"temperature": 0.2, "top_k": 64}),
        ({"temperature": 0.7}, {"top_p": 0.5}, {"top_p": 0.5}),  # the file is there, so config.json does not count
        ({}, {"temperature": 0.6, "do_sample": False}, {"temperature": 0.0}),
        ({"do_sample": False}, None, {"temperature": 0.0}),
        ({"do_sample": False}, {"temperature": 0.6}, {"temperature": 0.6}),
        ({}, {"temperature": None, "top_p": None}, {}),
        ({}, {}, {}),
    ],
)  # fmt: skip
def test_sampling(
    tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None, expected: dict[str, float]
) -> None:
    files = {} if generation is None else {"generation_config": generation}
    assert _open(tmp_path, config, **files).sampling == expected


@pytest.mark.parametrize("value", [10**400, -(10**400), "hot", True, [0.5], {}, float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["temperature", "top_k", "top_p", "min_p", "repetition_penalty"])
def test_sampling_that_is_no_number(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(MetadataError, match=rf"generation_config\.json: key '{key}' must be a number"):
        _open(tmp_path / "a", generation_config={key: value})
    with pytest.raises(MetadataError, match=rf"/config\.json: key '{key}' must be a number"):
        _open(tmp_path / "b", {key: value})


def test_sampling_of_a_gguf_file_that_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([ARCHITECTURE, key_value("general.sampling.temp", 6, struct.pack("<f", float("nan")))]))
    with pytest.raises(MetadataError, match=r"general\.sampling\.temp.*must be a number"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, {"suppress_tokens": [3, 1, 900]}, (3, 1, 900)),
        ({}, {"suppress_tokens": None}, ()),
        ({}, {}, ()),
        ({"suppress_tokens": [3]}, None, (3,)),
        ({"text_config": {"suppress_tokens": [4]}}, None, (4,)),
        ({"suppress_tokens": [3]}, {}, ()),  # the file is there, so config.json does not count
    ],
)
def test_suppressed_tokens(
    tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None, expected: tuple[int, ...]
) -> None:
    files = {} if generation is None else {"generation_config": generation}
    assert _open(tmp_path, config, **files).suppressed == expected


_NO_IDS = [5, "5", {"5": 1}, [True], [1.0], ["5"], [None], [[1]], [10**400], [0] * ((1 << 20) + 1)]


@pytest.mark.parametrize("value", _NO_IDS, ids=lambda value: repr(value)[:20])
def test_suppressed_tokens_that_are_no_list_of_ids(tmp_path: Path, value: Any) -> None:
    with pytest.raises(MetadataError, match=r"generation_config\.json: key 'suppress_tokens' (must be|lists)"):
        _open(tmp_path / "a", generation_config={"suppress_tokens": value})
    with pytest.raises(MetadataError, match=r"/config\.json: key 'suppress_tokens' (must be|lists)"):
        _open(tmp_path / "b", {"suppress_tokens": value})


@pytest.mark.parametrize(
    "value",
    [
        (5, struct.pack("<i", 3)),
        (9, struct.pack("<IQ", 6, 1) + struct.pack("<f", 3.0)),
        (9, struct.pack("<IQ", 7, 1) + b"\1"),
        (9, struct.pack("<IQ", 5, (1 << 20) + 1) + bytes(4 * ((1 << 20) + 1))),
    ],
    ids=["number", "floats", "flags", "many"],
)
def test_suppressed_tokens_of_a_gguf_file_that_are_no_list_of_ids(tmp_path: Path, value: tuple[int, bytes]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([ARCHITECTURE, key_value("tokenizer.ggml.suppress_tokens", *value)]))
    with pytest.raises(MetadataError, match=r"key 'tokenizer\.ggml\.suppress_tokens' (must be|lists)"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("files", "default", "named"),
    [
        ({}, None, {}),
        ({"tokenizer_config.json": {"chat_template": "a"}}, "a", {}),
        ({"tokenizer_config.json": {"chat_template": [{"name": "default", "template": "a"},
                                                      {"name": "tool_use", "template": "b"}]}}, "a", {"tool_use": "b"}),
        ({"tokenizer_config.json": {"chat_template": {"default": "a", "rag": "b"}}}, "a", {"rag": "b"}),
        ({"tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "b"}]}}, None, {"rag": "b"}),
        ({"tokenizer_config.json": {"chat_template": None}}, None, {}),
        ({"tokenizer_config.json": {"chat_template": "a"}, "chat_template.json": {"chat_template": "b"}}, "b", {}),
        ({"tokenizer_config.json": {"chat_template": "a"}, "chat_template.json": {}}, "a", {}),
        ({"chat_template.json": {"chat_template": "b"}, "chat_template.jinja": "c"}, "c", {}),
        ({"tokenizer_config.json": {"chat_template": [{"name": "default", "template": "a"},
                                                      {"name": "rag", "template": "b"}]},
          "chat_template.jinja": "c"}, "c", {"rag": "b"}),
        ({"additional_chat_templates/rag.jinja": "d", "chat_template.jinja": "c"}, "c", {"rag": "d"}),
        ({"additional_chat_templates/rag.jinja": "d", "tokenizer_config.json": {"chat_template": "a"}}, "a",
         {"rag": "d"}),
    ],
)  # fmt: skip
def test_chat_templates(tmp_path: Path, files: dict[str, Any], default: str | None, named: dict[str, str]) -> None:
    checkpoint = open_checkpoint(write_hf(tmp_path, {"config.json": {"model_type": "llama"}, **files, **_WEIGHTS}))
    assert checkpoint.chat_template == default
    assert checkpoint.chat_templates == named


@pytest.mark.parametrize("value", [7, True, [7], [{"name": "a"}], [{"template": "a"}], {"default": 7}, 10**400])
@pytest.mark.parametrize("name", ["tokenizer_config", "chat_template"])
def test_templates_that_are_none(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(MetadataError, match=rf"{name}\.json: .*chat_template"):
        _open(tmp_path, **{name: {"chat_template": value}})


@pytest.mark.parametrize(
    ("config", "ends"),
    [
        ({"eos_token_id": [1, 434]}, [1, 434]),
        ({"eos_token_id": 7}, 7),
        ({"text_config": {"eos_token_id": [1, 106]}}, [1, 106]),
        ({"eos_token_id": None, "text_config": {"eos_token_id": 5}}, 5),
        ({"eos_token_id": 4, "text_config": {"eos_token_id": 5}}, 4),
        ({}, None),
        ({"text_config": 7}, None),
    ],
)
def test_ends_of_config_json_reach_the_tokenizer(tmp_path: Path, config: dict[str, Any], ends: Any) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    source = _open(tmp_path, config).tokenizer
    assert source is not None
    assert source.data["config.json"].get("eos_token_id") == ends
