"""OLMo 3 and Trinity: what is different in the layers with a window, in either format."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gguf_export
import numpy as np
import pytest
import tiny_models
from numpy_executor import NumpyExecutor

from kamado.errors import CheckpointError
from kamado.files import open_checkpoint
from kamado.models import build_program
from kamado.program import Attend, Op, Rope, Route


def from_hf(folder: Path, family: str, **changes: Any) -> list[Op]:
    return list(build_program(open_checkpoint(tiny_models.write(folder, family, **changes))).ops)


def from_gguf(folder: Path, family: str, **changes: Any) -> list[Op]:
    """Of the exported tiny model, with other settings; None takes one out."""
    tiny_models.write(folder, family)
    checkpoint = open_checkpoint(gguf_export.export(folder, folder / "model.gguf"))
    named = {f"{checkpoint.architecture}.{key}": value for key, value in changes.items()}
    metadata = {key: value for key, value in {**checkpoint.metadata, **named}.items() if value is not None}
    return list(build_program(dataclasses.replace(checkpoint, metadata=metadata)).ops)


def ropes(ops: list[Op]) -> list[tuple[float, float]]:
    """(lowest frequency, factor) of each layer's q."""
    return [(float(op.inv_freq[-1]), op.attention_factor) for op in ops if isinstance(op, Rope) and op.x.name == "q"]


def windows(ops: list[Op]) -> list[int | None]:
    return [op.window for op in ops if isinstance(op, Attend)]


def test_olmo3_scales_the_global_layers_alone(tmp_path: Path) -> None:
    for number, ops in enumerate((from_hf(tmp_path / "hf", "olmo3"), from_gguf(tmp_path / "gguf", "olmo3"))):
        assert windows(ops) == [7, None, 7], number
        local, full, other = ropes(ops)
        assert local == other == (pytest.approx(1e4 ** (-14 / 16)), 1.0)
        assert full == (pytest.approx(local[0] / 4), pytest.approx(0.1 * np.log(4) + 1))


def test_olmo3_has_a_base_of_its_own_and_a_pattern(tmp_path: Path) -> None:
    ops = from_hf(tmp_path, "olmo3", rope_parameters=None, layer_types=None, num_hidden_layers=3)
    assert windows(ops) == [7, 7, 7]
    assert ropes(ops)[0][0] == pytest.approx(5e5 ** (-14 / 16))
    old = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    ops = from_hf(tmp_path, "olmo3", rope_parameters=None, rope_theta=1e4, rope_scaling=old)
    assert ropes(ops) == ropes(from_hf(tmp_path, "olmo3"))


def test_olmo2_in_gguf_has_no_window_without_the_key(tmp_path: Path) -> None:
    pattern = {"attention.sliding_window": None, "attention.sliding_window_pattern": None}
    ops = from_gguf(tmp_path, "olmo3", **pattern)
    assert windows(ops) == [None] * 3
    assert len(set(ropes(ops))) == 1
    four = {"attention.sliding_window_pattern": None}
    assert windows(from_gguf(tmp_path, "olmo3", **four)) == [7, 7, 7]


def test_trinity_turns_local_layers_alone(tmp_path: Path) -> None:
    types = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    assert [len(ropes(from_hf(tmp_path, "afmoe", **changes))) for changes in ({}, {"layer_types": types})] == [3, 2]
    assert windows(from_hf(tmp_path, "afmoe", global_attn_every_n_layers=2)) == [7, None, 7, None]
    assert len(ropes(from_gguf(tmp_path, "afmoe"))) == 3
    # llama.cpp turns by number, also where a file has no window.
    assert len(ropes(from_gguf(tmp_path, "afmoe", **{"attention.sliding_window": None}))) == 3


def test_trinity_divides_by_the_sum_as_each_format_says(tmp_path: Path) -> None:
    def divides(ops: list[Op]) -> set[bool]:
        return {op.normalize for op in ops if isinstance(op, Route)}

    assert divides(from_hf(tmp_path, "afmoe")) == {True}
    assert divides(from_gguf(tmp_path, "afmoe", expert_weights_norm=True)) == {True}
    assert divides(from_gguf(tmp_path, "afmoe", expert_weights_norm=None)) == {False}


def test_trinity_scales_embeddings_when_asked(tmp_path: Path) -> None:
    plain = NumpyExecutor(build_program(open_checkpoint(tiny_models.write(tmp_path, "afmoe", mup_enabled=False))))
    assert getattr(plain.program.ops[0], "scale", None) == 1.0
    for ops in (from_hf(tmp_path, "afmoe"), from_gguf(tmp_path, "afmoe")):
        assert getattr(ops[0], "scale", None) == float(np.float32(np.sqrt(48)))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sliding_window": None}, "sliding_window"),
        ({"route_norm": False}, "'route_norm' is False"),
        ({"score_func": "softmax"}, "'score_func' is 'softmax'"),
        ({"n_group": 2}, "'n_group' is 2"),
        ({"num_dense_layers": -1}, "'num_dense_layers' must lie in 0"),
        ({"num_shared_experts": 4096}, r"shared_experts\.gate_proj"),
    ],
)
def test_what_trinity_cannot_be_is_refused_by_name(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=problem):
        from_hf(tmp_path, "afmoe", **changes)
