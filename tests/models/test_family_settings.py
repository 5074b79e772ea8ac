"""What single families read in a way of their own: which layers have positions and windows, and what they refuse."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from kamado import program as p
from kamado.errors import CheckpointError
from kamado.files import open_checkpoint
from kamado.files.types import Checkpoint
from kamado.models import build_program

pytest.importorskip("gguf", reason="gguf is not installed")

from gguf_export import export


def hf(folder: Path, family: str, **changes: Any) -> p.Program:
    """The program of the tiny model; None leaves a setting out."""
    checkpoint = open_checkpoint(tiny_models.write(folder, family))
    metadata = {key: value for key, value in (checkpoint.metadata | changes).items() if value is not None}
    return build_program(dataclasses.replace(checkpoint, metadata=metadata))


def gguf_file(folder: Path, family: str, **changes: Any) -> Checkpoint:
    """The tiny model as GGUF; `__` in a name stands for a dot, None leaves a setting out."""
    tiny_models.write(folder, family)
    checkpoint = open_checkpoint(export(folder, folder / "model.gguf"))
    named = {f"{checkpoint.architecture}.{key.replace('__', '.')}": value for key, value in changes.items()}
    metadata = {key: value for key, value in (checkpoint.metadata | named).items() if value is not None}
    return dataclasses.replace(checkpoint, metadata=metadata)


def turned(program: p.Program) -> list[bool]:
    """Whether each layer has positions."""
    found, ops = [], iter(program.ops)
    is_turned = False
    for op in ops:
        if isinstance(op, p.Attend):
            found.append(is_turned)
            is_turned = False
        is_turned = is_turned or isinstance(op, p.Rope)
    return found


def windows(program: p.Program) -> list[int | None]:
    return [op.window for op in program.ops if isinstance(op, p.Attend)]


# --- SmolLM3 ----------------------------------------------------------------------------------------------------------


def test_smollm3_layers_without_positions(tmp_path: Path) -> None:
    assert turned(hf(tmp_path, "smollm3")) == [True, True, True, False]
    assert turned(hf(tmp_path, "smollm3", no_rope_layer_interval=2)) == [True, False, True, False]
    listed = hf(tmp_path, "smollm3", no_rope_layers=[0, 1, 1, 0], no_rope_layer_interval=2)
    assert turned(listed) == [False, True, True, False]
    assert turned(build_program(gguf_file(tmp_path, "smollm3"))) == [True, True, True, False]


def test_smollm3_windows(tmp_path: Path) -> None:
    windowed = {"sliding_window": 9, "use_sliding_window": True}
    assert windows(hf(tmp_path, "smollm3", **windowed)) == [None, None, None, 9]
    assert windows(hf(tmp_path, "smollm3", sliding_window=9)) == [None] * 4
    kinds = ["sliding_attention", "full_attention"] * 2
    assert windows(hf(tmp_path, "smollm3", **windowed, layer_types=kinds)) == [9, None, 9, None]
    with pytest.raises(CheckpointError, match="'layer_types' asks for sliding_attention while no sliding window"):
        hf(tmp_path, "smollm3", layer_types=kinds)


@pytest.mark.parametrize("value", [[1, 1, 1], [1, 1, 1, 2], [1, 1, 1, "0"], 4])
def test_smollm3_positions_that_are_no_flags(value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'no_rope_layers'"):
        hf(tmp_path, "smollm3", no_rope_layers=value)


# --- MiniMax M2 -------------------------------------------------------------------------------------------------------


def test_minimax_says_twice_how_much_of_a_head_turns(tmp_path: Path) -> None:
    share = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    rope = next(op for op in hf(tmp_path, "minimax_m2", rope_parameters=share).ops if isinstance(op, p.Rope))
    assert rope.inv_freq.size == 4
    with pytest.raises(CheckpointError, match="'rotary_dim' is 8 while partial_rotary_factor turns 4 of 16 values"):
        hf(tmp_path, "minimax_m2", rope_parameters={**share, "partial_rotary_factor": 0.25})
    whole = hf(tmp_path, "minimax_m2", rotary_dim=None)
    assert next(op for op in whole.ops if isinstance(op, p.Rope)).inv_freq.size == 8


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scoring_func", "softmax"), ("qk_norm_type", "per_head"), ("use_qk_norm", False), ("use_routing_bias", False),
        ("attn_type_list", [1, 0, 1]), ("layernorm_mlp_beta", 3.5), ("shared_intermediate_size", 64),
        ("quantization_config", {"quant_method": "fp8"}), ("sliding_window", 9),
    ],
)  # fmt: skip
def test_minimax_of_another_kind_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"'{key}"):
        hf(tmp_path, "minimax_m2", **{key: value})


def test_minimax_gguf(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'minimax-m2.expert_gating_func' is 1, a router that is not sigmoid"):
        build_program(gguf_file(tmp_path, "minimax_m2", expert_gating_func=1))
    with pytest.raises(CheckpointError, match=r"'minimax-m2\.expert_weights_norm' is false"):
        build_program(gguf_file(tmp_path, "minimax_m2", expert_weights_norm=False))
    program = build_program(gguf_file(tmp_path, "minimax_m2", expert_gating_func=None))
    assert {op.score for op in program.ops if isinstance(op, p.Route)} == {"sigmoid"}


# --- EXAONE 4 ---------------------------------------------------------------------------------------------------------


def test_exaone4_without_a_window_has_positions_everywhere(tmp_path: Path) -> None:
    kinds = ["full_attention"] * 3
    checkpoint = open_checkpoint(tiny_models.write(tmp_path, "exaone4", sliding_window=None, layer_types=kinds))
    program = build_program(checkpoint)
    assert (turned(program), windows(program)) == ([True] * 3, [None] * 3)
    # As transformers has it: with a window, global layers have no positions, even when all are global.
    program = hf(tmp_path, "exaone4", layer_types=kinds)
    assert (turned(program), windows(program)) == ([False] * 3, [None] * 3)


def test_exaone4_pattern(tmp_path: Path) -> None:
    every = hf(tmp_path, "exaone4", layer_types=None, sliding_window_pattern=2)
    assert (turned(every), windows(every)) == ([True, False, True], [9, None, 9])
    usual = hf(tmp_path, "exaone4", layer_types=None)
    assert (turned(usual), windows(usual)) == ([True] * 3, [9] * 3)
    with pytest.raises(CheckpointError, match="'sliding_window_pattern'"):
        hf(tmp_path, "exaone4", layer_types=None, sliding_window_pattern="LLLG")


def test_exaone4_gguf_of_the_32b_may_leave_its_window_out(tmp_path: Path) -> None:
    unsaid = {"attention__sliding_window": None, "attention__sliding_window_pattern": None}
    few = gguf_file(tmp_path, "exaone4", **unsaid)
    program = build_program(few)
    assert (turned(program), windows(program)) == ([True] * 3, [None] * 3)
    more = {
        name.replace("blk.1.", f"blk.{i}."): dataclasses.replace(tensor, name=name.replace("blk.1.", f"blk.{i}."))
        for name, tensor in few.tensors.items()
        for i in range(64 if "blk.1." in name else 1)
    }
    many = dataclasses.replace(
        few, metadata=few.metadata | {"exaone4.block_count": 64}, tensors={**few.tensors, **more}
    )
    program = build_program(many)
    assert turned(program) == [True, True, True, False] * 16
    assert windows(program) == [4096, 4096, 4096, None] * 16


# --- Granite ----------------------------------------------------------------------------------------------------------


def test_granite_gguf_without_positions(tmp_path: Path) -> None:
    assert turned(build_program(gguf_file(tmp_path, "granite"))) == [True] * 3
    assert turned(build_program(gguf_file(tmp_path, "granite", rope__scaling__finetuned=True))) == [True] * 3
    assert turned(build_program(gguf_file(tmp_path, "granite", rope__scaling__finetuned=False))) == [False] * 3


def test_granite_moe_gguf_always_has_positions(tmp_path: Path) -> None:
    """llama.cpp looks at the key in `granite` alone."""
    assert turned(build_program(gguf_file(tmp_path, "granitemoe", rope__scaling__finetuned=False))) == [True] * 3


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"layer_types": ["mamba", "attention", "attention"]}, "'layer_types' has 'mamba'; without attention"),
        ({"layer_types": ["attention", "linear_attention", "attention"]}, "'layer_types' has 'linear_attention'"),
        ({"layer_types": None}, "'layer_types' is missing: all layers are Mamba then"),
        ({"layer_types": ["attention"] * 2}, "'layer_types' has 2 entries"),
        ({"position_embedding_type": "alibi"}, "'position_embedding_type' is 'alibi'; supported are rope and nope"),
        ({"shared_intermediate_size": 0}, "'shared_intermediate_size' must lie in 1"),
        ({"normalization_function": "layernorm"}, "'normalization_function' is 'layernorm'"),
    ],
)
def test_granite_4_of_another_kind_is_refused(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as fault:
        hf(tmp_path, "granitemoehybrid", **changes)
    assert named in str(fault.value)


def test_granite_4_says_by_either_name_what_its_layers_are(tmp_path: Path) -> None:
    program = hf(tmp_path, "granitemoehybrid", layer_types=None, layers_block_type=["full_attention"] * 3)
    assert turned(program) == [True] * 3
    assert turned(hf(tmp_path, "granitemoehybrid", position_embedding_type=None)) == [False] * 3


# --- Solar Open and Seed-OSS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"), [("first_k_dense_replace", 1), ("partial_rotary_factor", 0.5), ("use_qk_norm", True)]
)
def test_solar_open_is_no_glm(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"'{key}'"):
        hf(tmp_path, "solar_open", **{key: value})


def test_seed_oss_head_of_null_is_the_share_of_the_rows(tmp_path: Path) -> None:
    """Left out it is 128 wide; said to be null, the heads share the width of the rows: 48 / 6."""
    with pytest.raises(CheckpointError, match=r"self_attn\.q_proj\.weight'.*\(768, 48\)"):
        hf(tmp_path, "seed_oss", head_dim=None)
    with pytest.raises(CheckpointError, match=r"self_attn\.q_proj\.weight'.*\(48, 48\)"):
        build_program(open_checkpoint(tiny_models.write(tmp_path, "seed_oss", head_dim=None)))
