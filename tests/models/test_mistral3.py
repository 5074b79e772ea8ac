"""Mistral Small 3 and Ministral 3: what stands around the text model, and how its queries grow."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf_export
import numpy as np
import pytest
import tiny_models
from numpy_executor import NumpyExecutor
from safetensors.numpy import load_file, save_file

from kamado.errors import CheckpointError
from kamado.files import open_checkpoint
from kamado.models import build_program
from kamado.program import Attend, Program, Rope, Temper

TOKENS = list(range(40))


def logits(of: Program) -> np.ndarray:
    return NumpyExecutor(of).forward(TOKENS)


def wrapped(folder: Path, text: str, *, beside: dict[str, Any] | None = None, **changes: Any) -> Path:
    """The tiny `text` model as a `mistral3` directory, with tensors of a vision tower."""
    tiny_models.write(folder, text)
    config = {"model_type": "mistral3", "text_config": {"model_type": text, **tiny_models.CONFIGS[text], **changes}}
    (folder / "config.json").write_text(json.dumps({**config, "image_token_index": 10, **(beside or {})}))
    tensors = {f"language_model.{name}": values for name, values in load_file(folder / "model.safetensors").items()}
    tensors["vision_tower.patch_conv.weight"] = np.zeros((4, 4), np.float32)
    tensors["multi_modal_projector.linear_1.weight"] = np.zeros((4, 4), np.float32)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("text", ["mistral", "ministral3"])
def test_the_text_model_of_a_file_with_pictures_is_the_one_alone(text: str, tmp_path: Path) -> None:
    alone = build_program(open_checkpoint(tiny_models.write(tmp_path / "alone", text)))
    inside = build_program(open_checkpoint(wrapped(tmp_path / "inside", text)))
    assert np.array_equal(logits(alone), logits(inside))
    assert inside.notes == ("text only: the file's vision tower is not used",)


def test_defaults_are_those_of_the_text_models_class(tmp_path: Path) -> None:
    small = build_program(open_checkpoint(wrapped(tmp_path / "s", "mistral", max_position_embeddings=None)))
    other = build_program(open_checkpoint(wrapped(tmp_path / "m", "ministral3", max_position_embeddings=None)))
    assert (small.context_length, other.context_length) == (131072, 262144)


def test_a_tie_is_what_the_whole_file_says(tmp_path: Path) -> None:
    """Unless the output matrix is there, which wins; without a word it is tied, whatever the text part says."""
    folder = wrapped(tmp_path, "mistral")
    untied = logits(build_program(open_checkpoint(folder)))
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    tied = logits(build_program(open_checkpoint(folder)))
    assert np.abs(tied - untied).max() > 0.1 * untied.std()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        build_program(open_checkpoint(folder))


@pytest.mark.parametrize(
    ("text", "changes", "problem"),
    [
        (
            "mistral",
            {"model_type": "mistral4"},
            r"'text_config\.model_type' is 'mistral4'; supported are mistral, ",
        ),
        ("mistral", {"new_scale": 2.0}, r"'text_config\.new_scale' is 2\.0"),
        ("ministral3", {"rope_parameters": None}, r"'text_config\.rope_parameters' is missing"),
        ("ministral3", {"rope_parameters": {"rope_type": "default"}}, "llama_4_scaling_beta' is missing"),
        ("ministral3", {"rope_parameters": {"llama_4_scaling_beta": -1.0}}, "llama_4_scaling_beta' must lie in 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(text: str, changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=problem):
        build_program(open_checkpoint(wrapped(tmp_path, text, **changes)))


def test_a_wrapper_without_a_text_model_is_refused(tmp_path: Path) -> None:
    folder = wrapped(tmp_path, "mistral")
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral3", **tiny_models.CONFIGS["mistral"]}))
    with pytest.raises(CheckpointError, match="'text_config' is missing"):
        build_program(open_checkpoint(folder))


def test_queries_grow_behind_the_trained_length(tmp_path: Path) -> None:
    program = build_program(open_checkpoint(tiny_models.write(tmp_path, "ministral3")))
    tempers = [op for op in program.ops if isinstance(op, Temper)]
    assert {(op.x.name, op.beta, op.length, op.offset) for op in tempers} == {("q", 0.5, 16, 0)}
    assert len(tempers) == sum(isinstance(op, Attend) for op in program.ops)
    plain = dataclasses.replace(program, ops=[op for op in program.ops if not isinstance(op, Temper)])
    difference = np.abs(logits(program) - logits(plain)).max(-1)
    assert difference[:16].max() == 0
    assert difference[16:].min() > 0


def test_gguf_files_of_mistral_small_have_no_growth(tmp_path: Path) -> None:
    """And say by yarn_log_multiplier how much of YaRN's factor is left: all at 0, nothing at 1."""
    folder = tiny_models.write(tmp_path, "ministral3")
    checkpoint = open_checkpoint(gguf_export.export(folder, folder / "model.gguf"))
    growth = 0.1 * np.log(4.0) + 1
    for multiplier, factor in ((0.0, growth), (1.0, 1.0), (0.5, growth / (0.05 * np.log(4.0) + 1))):
        changes = {"attention.temperature_scale": 0.0, "rope.scaling.yarn_log_multiplier": multiplier}
        metadata = {**checkpoint.metadata, **{f"mistral3.{key}": value for key, value in changes.items()}}
        ops = build_program(dataclasses.replace(checkpoint, metadata=metadata)).ops
        assert not any(isinstance(op, Temper) for op in ops)
        assert [op.attention_factor for op in ops if isinstance(op, Rope)] == [pytest.approx(factor)] * 6
