"""What families with convolutions and delta rules read in a way of their own: layers, rows, what is left out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from numpy_executor import NumpyExecutor
from test_family_settings import gguf_file, hf, turned, windows

from kamado import program as p
from kamado.errors import CheckpointError
from kamado.files import open_checkpoint
from kamado.files.types import Checkpoint
from kamado.models import build_program

TOKENS = np.random.default_rng(2).integers(0, tiny_models.VOCAB, 30).tolist()
QWEN = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")


def mixers(program: p.Program) -> list[str]:
    """What each layer has in the place of attention."""
    names = {p.Attend: "attention", p.DeltaScan: "delta", p.Conv: "conv"}
    found = [names[type(op)] for op in program.ops if type(op) in names]
    return [name for name in found if name != "conv"] if "delta" in found else found


def with_tensors(checkpoint: Checkpoint, changes: dict[str, Any]) -> Checkpoint:
    """Other tensors; None takes one away."""
    tensors = {name: ref for name, ref in (dict(checkpoint.tensors) | changes).items() if ref is not None}
    return dataclasses.replace(checkpoint, tensors=tensors)


def logits(program: p.Program) -> np.ndarray:
    return NumpyExecutor(program).forward(TOKENS)


# --- which layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", QWEN)
def test_every_so_many_layers_have_attention_where_the_file_lists_none(family: str, tmp_path: Path) -> None:
    wanted = ["delta", "attention", "delta"]
    assert mixers(hf(tmp_path, family)) == wanted
    assert mixers(hf(tmp_path, family, layer_types=None, full_attention_interval=2)) == wanted
    one = {"attention__recurrent_layers": None, "full_attention_interval": 2}
    assert mixers(build_program(gguf_file(tmp_path, family, **one))) == wanted
    listed = {"attention__recurrent_layers": [True, False, True], "full_attention_interval": 3}
    assert mixers(build_program(gguf_file(tmp_path, family, **listed))) == wanted
    with pytest.raises(CheckpointError, match="'layer_types' has 'sliding_attention'"):
        hf(tmp_path, family, layer_types=["linear_attention", "sliding_attention", "linear_attention"])
    with pytest.raises(CheckpointError, match=r"linear_attn"):  # every fourth: none of three
        hf(tmp_path, family, layer_types=None)


@pytest.mark.parametrize("family", QWEN)
def test_blocks_that_draft_are_left_out(family: str, tmp_path: Path) -> None:
    plain = gguf_file(tmp_path, family)
    drafting = gguf_file(
        tmp_path, family, block_count=4, nextn_predict_layers=1, attention__recurrent_layers=[True, False, True, False]
    )
    extra = next(iter(plain.tensors.values()))
    names = ("attn_norm.weight", "nextn.eh_proj.weight", "ffn_gate_inp.weight")
    more = with_tensors(drafting, {f"blk.3.{name}": extra for name in names})
    assert np.array_equal(logits(build_program(more)), logits(build_program(plain)))
    folder = open_checkpoint(tiny_models.write(tmp_path, family))
    extra = next(iter(folder.tensors.values()))
    names = ("mtp.fc.weight", "mtp.layers.0.self_attn.q_proj.weight", "model.visual.blocks.0.norm1.weight")
    program = build_program(with_tensors(folder, dict.fromkeys(names, extra)))
    assert program.notes == ("text only: the file's vision tower is not used",)
    with pytest.raises(CheckpointError, match=r"mtq\.fc"):
        build_program(with_tensors(folder, {"mtq.fc.weight": extra}))


# --- whose rows -------------------------------------------------------------------------------------------------------


def test_old_files_of_qwen3_next_have_all_rows_of_a_key_head_together(tmp_path: Path) -> None:
    new, folder = gguf_file(tmp_path, "qwen3_next"), open_checkpoint(tiny_models.write(tmp_path, "qwen3_next"))
    changes: dict[str, Any] = {}
    for i in (0, 2):
        whole = folder.tensors[f"model.layers.{i}.linear_attn.in_proj_qkvz.weight"]
        changes |= {f"blk.{i}.attn_qkv.weight": None, f"blk.{i}.attn_gate.weight": None}
        changes[f"blk.{i}.ssm_in.weight"] = dataclasses.replace(whole, name=f"blk.{i}.ssm_in.weight")
    old = build_program(with_tensors(new, changes))
    assert np.array_equal(logits(old), logits(build_program(new)))


def test_the_order_of_value_heads_is_that_of_the_kind_of_file(tmp_path: Path) -> None:
    for family, order in (("qwen3_next", "grouped"), ("qwen3_5_text", "tiled"), ("qwen3_5_moe_text", "tiled")):
        scans = [op for op in build_program(gguf_file(tmp_path, family)).ops if isinstance(op, p.DeltaScan)]
        assert {(op.heads, op.decay_is_log) for op in scans} == {(order, False)}
        scans = [op for op in hf(tmp_path, family).ops if isinstance(op, p.DeltaScan)]
        assert {(op.heads, op.decay_is_log) for op in scans} == {("grouped", True)}


def test_the_gate_of_the_shared_expert_is_a_row_or_a_vector(tmp_path: Path) -> None:
    checkpoint = gguf_file(tmp_path, "qwen3_5_moe_text")
    name = "blk.1.ffn_gate_inp_shexp.weight"
    ref = checkpoint.tensors[name]
    other = {(48,): (1, 48), (1, 48): (48,)}[ref.shape]
    changed = with_tensors(checkpoint, {name: dataclasses.replace(ref, shape=other)})
    assert np.array_equal(logits(build_program(changed)), logits(build_program(checkpoint)))


@pytest.mark.parametrize(
    ("family", "name"),
    [("qwen3_5_text", "linear_attn.conv1d"), ("lfm2", "conv.conv"), ("qwen3_next", "linear_attn.conv1d")],
)
def test_directories_of_mlx_are_refused(family: str, name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_models.write(tmp_path, family))
    name = f"model.layers.0.{name}.weight"
    ref = checkpoint.tensors[name]
    turned_over = dataclasses.replace(ref, shape=(ref.shape[0], ref.shape[2], 1))
    with pytest.raises(CheckpointError, match=rf"'{name}' has shape .*, as MLX writes it"):
        build_program(with_tensors(checkpoint, {name: turned_over}))


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        (
            "qwen3_5_text",
            {"linear_num_value_heads": 5},
            "'linear_num_value_heads' is 5, no multiple of the 2 key heads",
        ),
        ("qwen3_5_text", {"attention_bias": True}, "'attention_bias' is True"),
        ("qwen3_5_text", {"attn_output_gate": False}, "'attn_output_gate' is False"),
        ("qwen3_5_text", {"mlp_only_layers": [1]}, r"'mlp_only_layers' is \[1\]"),
        ("qwen3_5_text", {"linear_conv_kernel_dim": 1}, "'linear_conv_kernel_dim' must lie in 2"),
        ("qwen3_5_moe_text", {"norm_topk_prob": False}, "'norm_topk_prob' is False"),
        ("qwen3_5_moe_text", {"shared_expert_intermediate_size": 0}, "'shared_expert_intermediate_size' must lie in 1"),
        ("lfm2", {"conv_bias": True}, "'conv_bias' is True"),
        ("lfm2", {"layer_types": ["conv", "full_attention", "sliding_attention"]}, "'layer_types' has 'sliding_att"),
        ("lfm2", {"num_key_value_heads": 4}, "'num_attention_heads' is 6, no multiple of 4 key-value heads"),
        ("lfm2", {"block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": 0.0, "block_multiple_of": 1}, "0 wide"),
        ("lfm2_moe", {"layer_types": None}, "'layer_types' is missing"),
        ("olmo_hybrid", {"linear_key_head_dim": None, "hidden_size": 1}, "'linear_key_head_dim' is 0"),
        (
            "olmo_hybrid",
            {"rope_scaling": {"rope_type": "default"}},
            "'rope_scaling.rope_type' comes with 'rope_parameters'",
        ),
    ],
)
def test_what_config_json_may_not_say(family: str, changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=named):
        hf(tmp_path, family, **changes)


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("qwen3_5_text", {"ssm__inner_size": 97}, "'qwen35.ssm.inner_size' is 97, which 6 heads cannot share"),
        ("qwen3_5_text", {"attention__recurrent_layers": [True]}, "recurrent_layers' has 1 entries"),
        ("qwen3_next", {"expert_weights_norm": False}, "'qwen3next.expert_weights_norm' is false"),
        ("qwen3_5_moe_text", {"expert_gating_func": 2}, "'qwen35moe.expert_gating_func' is 2"),
        ("lfm2", {"attention__head_count_kv": [0, 5, 0]}, "'lfm2.attention.head_count' is 6, no multiple of 5"),
        ("lfm2", {"attention__causal": False}, "'lfm2.attention.causal' is False"),
        ("lfm2_moe", {"expert_gating_func": 1}, "'lfm2moe.expert_gating_func' is 1, a router that is not sigmoid"),
        ("lfm2_moe", {"attention__sliding_window": 8}, "'lfm2moe.attention.sliding_window' is 8"),
    ],
)
def test_what_gguf_may_not_say(family: str, changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=named):
        build_program(gguf_file(tmp_path, family, **changes))


# --- LFM2 -------------------------------------------------------------------------------------------------------------


def test_lfm2_widths_and_ties(tmp_path: Path) -> None:
    adjusted = {"block_auto_adjust_ff_dim": True, "block_multiple_of": 16, "intermediate_size": 90}
    assert hf(tmp_path, "lfm2", **adjusted).num_layers == 3  # 60 of 90, rounded up to the 64 of the file
    assert hf(tmp_path, "lfm2", intermediate_size=7, block_ff_dim=64).num_layers == 3
    assert hf(tmp_path, "lfm2", tie_word_embeddings=None, tie_embedding=True).num_layers == 3
    with pytest.raises(CheckpointError, match="lm_head"):
        hf(tmp_path, "lfm2", tie_word_embeddings=None, tie_embedding=False)
    with pytest.raises(CheckpointError, match="'tie_embedding' is False while 'tie_word_embeddings' is True"):
        hf(tmp_path, "lfm2", tie_embedding=False)


def test_lfm2_lists_of_attention(tmp_path: Path) -> None:
    wanted = ["conv", "attention", "conv"]
    assert mixers(hf(tmp_path, "lfm2", layer_types=None, full_attn_idxs=[1])) == wanted
    assert windows(build_program(gguf_file(tmp_path, "lfm2", attention__sliding_window=9))) == [9]


# --- OLMo hybrid ------------------------------------------------------------------------------------------------------


def test_olmo_hybrid_turns_where_there_is_a_base(tmp_path: Path) -> None:
    assert turned(hf(tmp_path, "olmo_hybrid")) == [False]
    assert turned(hf(tmp_path, "olmo_hybrid", rope_parameters=None)) == [True]
    assert turned(hf(tmp_path, "olmo_hybrid", rope_parameters={"rope_type": "default"})) == [True]
    checkpoint = open_checkpoint(tiny_models.write(tmp_path, "olmo_hybrid", rope_parameters=None, rope_theta=None))
    assert turned(build_program(checkpoint)) == [False]


def test_olmo_hybrid_makes_the_sizes_that_a_file_leaves_out(tmp_path: Path) -> None:
    sizes = ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
    with pytest.raises(CheckpointError, match=r"q_proj\.weight' has shape \(24, 96\), the model needs \(72, 96\)"):
        hf(tmp_path, "olmo_hybrid", **dict.fromkeys(sizes))  # 6 heads of 3/4 · 96 / 6
    with pytest.raises(CheckpointError, match=r"v_proj\.weight' has shape \(120, 96\), the model needs \(144, 96\)"):
        hf(tmp_path, "olmo_hybrid", linear_value_head_dim=None)  # twice the 12 of a key


def test_olmo_hybrid_reads_either_name_of_its_tensors(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_models.write(tmp_path, "olmo_hybrid"))
    changes: dict[str, Any] = {}
    for i in (0, 2):
        for one, other in (
            ("input_layernorm", "attention_layer_norm"),
            ("post_attention_layernorm", "feedforward_layer_norm"),
        ):
            name, new = (f"model.layers.{i}.{part}.weight" for part in (one, other))
            changes |= {name: None, new: dataclasses.replace(checkpoint.tensors[name], name=new)}
    renamed = build_program(with_tensors(checkpoint, changes))
    assert np.array_equal(logits(renamed), logits(build_program(checkpoint)))
