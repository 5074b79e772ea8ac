"""Step 3.5: the settings as published files have them, which transformers rewrites when it saves a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from family_cases import LLAMA3
from numpy_executor import NumpyExecutor
from safetensors.numpy import load_file, save_file

from kamado.errors import CheckpointError
from kamado.files import open_checkpoint
from kamado.models import build_program
from kamado.program import Attend, Experts, Gate, Program

TOKENS = list(range(40))
OTHER = {"attention_type": "sliding_attention", "num_attention_heads": 8, "num_attention_groups": 2, "head_dim": 16}
LISTS: dict[str, Any] = {
    "mlp_layer_types": None,
    "moe_layers_enum": "1,2,3,4",
    "num_sliding_attention_heads": None,
    "attention_other_setting": OTHER,
    "rope_parameters": None,
    "rope_theta": [500000.0, 1e4, 500000.0, 1e4, 1e4],
    "partial_rotary_factors": [0.5, 1.0, 0.5, 1.0, 1.0],
    "rope_scaling": {key: value for key, value in LLAMA3.items() if key != "rope_theta"},
}


def program(folder: Path, **changes: Any) -> Program:
    return build_program(open_checkpoint(tiny_models.write(folder, "step3p5", **changes)))


def logits(of: Program) -> np.ndarray:
    return NumpyExecutor(of).forward(TOKENS)


@pytest.mark.parametrize(
    "changes",
    [
        LISTS,
        {**LISTS, "moe_layers_enum": [1, 2]},
        {"num_sliding_attention_heads": 12, "per_layer_config": {"1": {"num_attention_heads": 8}, "2": {}}},
        {"num_nextn_predict_layers": 0, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}
        | {"mlp_layer_types": ["dense", "sparse", "sparse"], "swiglu_limits": [0.0, None, 0.3]}
        | {"swiglu_limits_shared": [0.4, 0.2, 0.0]},
    ],
)
def test_every_way_to_say_it_is_the_same_model(changes: dict[str, Any], tmp_path: Path) -> None:
    wanted = logits(program(tmp_path / "one"))
    assert np.array_equal(logits(program(tmp_path / "other", **changes)), wanted)


def test_heads_windows_and_limits_stand_where_the_file_says(tmp_path: Path) -> None:
    ops = program(tmp_path).ops
    assert [(op.num_heads, op.window) for op in ops if isinstance(op, Attend)] == [(6, None), (8, 7), (6, None)]
    assert [op.limit for op in ops if isinstance(op, Experts)] == [None, pytest.approx(0.3)]
    gates = [op for op in ops if isinstance(op, Gate)]
    assert [op.group for op in gates if op.activation == "sigmoid"] == [16, 16, 16]
    assert [op.limit for op in gates if op.activation == "silu"] == [pytest.approx(0.4), pytest.approx(0.2), None]


def test_draft_layers_and_pictures_are_left_out(tmp_path: Path) -> None:
    folder = tiny_models.write(tmp_path, "step3p5")
    wanted = logits(build_program(open_checkpoint(folder)))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.3.eh_proj.weight"] = np.zeros((48, 96), np.float32)
    tensors["vision_model.conv1.weight"] = np.zeros((4, 4), np.float32)
    save_file(tensors, folder / "model.safetensors")
    with_more = build_program(open_checkpoint(folder))
    assert np.array_equal(logits(with_more), wanted)
    assert with_more.notes == ("text only: the file's vision tower is not used",)
    config = json.loads((folder / "config.json").read_text())
    for key in ("layer_types", "mlp_layer_types", "swiglu_limits", "swiglu_limits_shared"):
        config[key] = config[key][:3]
    (folder / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 0}))
    with pytest.raises(CheckpointError, match=r"model\.layers\.3\.eh_proj"):
        build_program(open_checkpoint(folder))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({**LISTS, "rope_theta": [5e5, 1e4, 1e5, 1e4, 1e4]}, "'rope_theta' differs between layers of one kind"),
        ({**LISTS, "partial_rotary_factors": [0.5, 1.0]}, "'partial_rotary_factors' has 2 entries"),
        ({**LISTS, "partial_rotary_factors": [0.5, 2.0, 0.5]}, "'partial_rotary_factors' must lie in 0..1"),
        ({**LISTS, "moe_layers_enum": "1,x"}, "'moe_layers_enum' must be numbers of layers"),
        ({**LISTS, "attention_other_setting": {**OTHER, "num_attention_groups": 4}}, "num_attention_groups' is not"),
        ({**LISTS, "attention_other_setting": {**OTHER, "head_dim": 8}}, "head_dim' is not 'head_dim'"),
        ({**LISTS, "attention_other_setting": {**OTHER, "spin": 8}}, "attention_other_setting.spin' is 8"),
        ({"per_layer_config": {"3": {"num_attention_heads": 8}}}, "'per_layer_config' names layer '3' of 3"),
        ({"per_layer_config": {"x": {}}}, "'per_layer_config' names layer 'x' of 3"),
        ({"per_layer_config": {"1": {"head_dim": 8}}}, r"'per_layer_config\.1\.head_dim' is 8"),
        ({"num_sliding_attention_heads": 7}, "'num_attention_heads' is 7 in a layer, no multiple of"),
        ({"mlp_layer_types": ["dense", "odd", "sparse"]}, "'mlp_layer_types' has 'odd'"),
        ({"swiglu_limits": [0.0, -1.0, 0.0]}, "'swiglu_limits' must lie in 0"),
        ({"swiglu_limits": [0.0, False, 0.0]}, "'swiglu_limits' must be a number"),
        ({"gating": False}, "'gating' is False"),
        ({"sliding_window": None}, "no sliding window is in force"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=problem):
        program(tmp_path, **changes)
