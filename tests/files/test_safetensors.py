"""Safetensors directories as hubs publish them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kamado.errors import UnsupportedError
from kamado.files import open_checkpoint
from kamado.files.types import Layout

from .builders import f32_entry, safetensors_bytes, write_hf

CONFIG = {"model_type": "llama", "hidden_size": 4}


def test_single_file(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"}, "b": f32_entry([2, 2], 8, 16, "BF16"), "a": f32_entry([2], 0, 8),
        "ids": f32_entry([1], 16, 24, "I64"), "none": f32_entry([0, 3], 24, 24),
    }  # fmt: skip
    files = {
        "config.json": CONFIG, "model.safetensors": safetensors_bytes(header, bytes(range(24))), "tokenizer.json": "{}",
        "tokenizer_config.json": {"chat_template": "T", "bos_token": "<s>"},
        "generation_config.json": {"temperature": 0.7, "top_p": 0.9, "top_k": None, "eos_token_id": 3},
    }  # fmt: skip
    checkpoint = open_checkpoint(write_hf(tmp_path / "tiny", files))
    assert (checkpoint.format, checkpoint.architecture, checkpoint.name) == ("safetensors", "llama", "tiny")
    ref = checkpoint.tensor("b", (2, 2))
    assert ref.layout is Layout.BF16
    assert ref.file.read_bytes()[ref.offset : ref.offset + ref.nbytes] == bytes(range(8, 16))
    with pytest.raises(UnsupportedError, match="'ids' is stored as I64"):
        checkpoint.tensor("ids")
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer.kind == "hf"
    assert checkpoint.tokenizer.path.name == "tokenizer.json"
    assert checkpoint.tokenizer.data["tokenizer_config.json"]["bos_token"] == "<s>"
    assert checkpoint.tokenizer.data["generation_config.json"]["eos_token_id"] == 3
    assert checkpoint.chat_template == "T"
    assert checkpoint.sampling == {"temperature": 0.7, "top_p": 0.9}
    assert open_checkpoint(tmp_path / "tiny" / "model.safetensors").tensors.keys() == checkpoint.tensors.keys()


def test_shards(tmp_path: Path) -> None:
    where = {"a": "m-1.safetensors", "b": "m-2.safetensors"}
    files = {name: safetensors_bytes({key: f32_entry([1], 0, 4)}, bytes(4)) for key, name in where.items()}
    index = {"model.safetensors.index.json": {"weight_map": where}}
    checkpoint = open_checkpoint(write_hf(tmp_path, {"config.json": CONFIG, **files, **index}))
    assert [file.name for file in checkpoint.files] == sorted(where.values())
    assert {name: ref.file.name for name, ref in checkpoint.tensors.items()} == where
    assert checkpoint.tokenizer is None


def test_named_templates_and_the_jinja_file_first(tmp_path: Path) -> None:
    entries = [{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]
    files = {
        "config.json": CONFIG, "model.safetensors": safetensors_bytes({}),
        "tokenizer_config.json": {"chat_template": entries},
    }  # fmt: skip
    path = write_hf(tmp_path, files)
    checkpoint = open_checkpoint(path)
    assert (checkpoint.chat_template, dict(checkpoint.chat_templates)) == ("D", {"rag": "R"})
    write_hf(path, {"chat_template.jinja": "J", "additional_chat_templates/tool_use.jinja": "U"})
    checkpoint = open_checkpoint(path)
    assert (checkpoint.chat_template, dict(checkpoint.chat_templates)) == ("J", {"rag": "R", "tool_use": "U"})


def test_reference_writer(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    arrays = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "h": np.ones((2,), np.float16)}
    library.save_file(arrays, write_hf(tmp_path, {"config.json": CONFIG}) / "model.safetensors")
    for name, ref in open_checkpoint(tmp_path).tensors.items():
        read = np.fromfile(ref.file, arrays[name].dtype, ref.num_values, offset=ref.offset).reshape(ref.shape)
        assert np.array_equal(read, arrays[name])


@pytest.mark.real
def test_real_directory_reads_like_the_reference(real_model: Callable[[str], Path]) -> None:
    library = pytest.importorskip("safetensors")
    checkpoint = open_checkpoint(real_model("minilm"))
    with library.safe_open(checkpoint.files[0], "numpy") as theirs:
        names = set(theirs.keys())
        assert names - set(checkpoint.tensors) <= {"embeddings.position_ids"}
        for name, ref in checkpoint.tensors.items():
            ours = np.fromfile(ref.file, np.float32, ref.num_values, offset=ref.offset).reshape(ref.shape)
            assert np.array_equal(ours, theirs.get_tensor(name))
