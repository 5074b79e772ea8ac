"""Gemma 4: what its sharing layers and its table of embeddings cost, and settings that files say in several ways."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from native_runner import append, build, needs_native
from numpy_executor import NumpyExecutor
from safetensors.numpy import load_file, save_file

from kamado.errors import CheckpointError, NativeError, UnsupportedError
from kamado.files import open_checkpoint
from kamado.files.types import Layout
from kamado.models import build_program
from kamado.plan.kv_presets import parse_kv
from kamado.plan.sizes import dense_weight_bytes
from kamado.program import Attend, Embed, Program, Rope, Window, format_program, validate

NAME = "gemma4_text"
CONFIG = tiny_models.CONFIGS[NAME]
LAYERS, OWN = CONFIG["num_hidden_layers"], CONFIG["hidden_size_per_layer_input"]
FIRST_SHARING = LAYERS - CONFIG["num_kv_shared_layers"]
TOKENS = list(range(40))
TABLE = "model.embed_tokens_per_layer.weight"


def program(folder: Path, **changes: Any) -> Program:
    return build_program(open_checkpoint(tiny_models.write(folder, NAME, **changes)))


def changed(folder: Path, settings: dict[str, Any] | None = None, **tensors: Any) -> Program:
    """The tiny model with tensors that functions change."""
    tiny_models.write(folder, NAME, **settings or {})
    state = load_file(folder / "model.safetensors")
    for name, change in tensors.items():
        state[name] = change(state.get(name))
    save_file(state, folder / "model.safetensors")
    return build_program(open_checkpoint(folder))


def test_only_layers_that_store_keep_anything(tmp_path: Path) -> None:
    found = program(tmp_path)
    attends = [op for op in found.ops if isinstance(op, Attend)]
    assert [op.stores for op in attends] == [i < FIRST_SHARING for i in range(LAYERS)]
    assert [op.state for op in attends] == [0, 1, 2, 1, 2]
    assert [(state.num_kv_heads, state.head_dim) for state in found.states] == [(2, 16), (2, 16), (1, 32)]  # type: ignore[union-attr]
    assert [isinstance(state, Window) for state in found.states] == [True, True, False]


def test_a_layer_is_printed_once(tmp_path: Path) -> None:
    lines = format_program(program(tmp_path)).splitlines()
    assert [line for line in lines if line.startswith("layer")] == ["layers 0-1", "layer 2", "layer 3", "layer 4"]
    assert sum("per_layer_token_embd" in line or "embed_tokens_per_layer" in line for line in lines) == 4
    assert any(f"embed_tokens_per_layer.weight (97×{LAYERS * OWN} F32)[token] · 4, a piece of 5" in x for x in lines)


@needs_native
@pytest.mark.parametrize("threads", [1, 2])
def test_prompt_rows_are_not_computed_in_layers_that_share(threads: int, tmp_path: Path) -> None:
    """A token's own embedding of a sharing layer is damaged: only a row whose logits are wanted meets it."""
    from kamado import _native

    damaged = 7

    def damage(table: np.ndarray) -> np.ndarray:
        table[damaged, FIRST_SHARING * OWN :] = np.nan
        return table

    found = changed(tmp_path, **{TABLE: damage})
    for prompt, is_met in (([damaged] * 150 + [8], False), ([8] * 150 + [damaged], True), ([damaged], True)):
        executor = build(found, num_threads=threads)
        ids = np.array(prompt, np.int32)
        count, wanted = np.array([len(prompt)], np.int32), np.array([len(prompt) - 1], np.int32)
        sequence = np.array([executor.create_sequence()], np.int32)
        if is_met:
            with pytest.raises(_native.NotFinite):
                executor.step(sequence, count, ids, wanted)
        else:
            logits = executor.step(sequence, count, ids, wanted)
            assert np.isfinite(logits).all()
        executor.close()


def _reads() -> int:
    """Calls that read, of this process so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["syscr"])


@needs_native
@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts a process's reads")
def test_a_row_of_the_table_is_read_once_for_all_layers(tmp_path: Path) -> None:
    executor = build(program(tmp_path), max_rows=64)
    sequence = executor.create_sequence()
    append(executor, [(sequence, TOKENS[:4])])
    before = _reads()
    for_nothing = _reads() - before  # the count reads too
    for rows in (1, 1, 30):
        before = _reads()
        append(executor, [(sequence, TOKENS[:rows])])
        assert _reads() - before - for_nothing == 2 * rows  # of both tables
    executor.close()


def test_the_table_is_in_no_count_of_memory(tmp_path: Path) -> None:
    found = program(tmp_path)
    tables = [op.table for op in found.ops if isinstance(op, Embed) and op.pieces > 1]
    assert len(tables) == LAYERS
    assert {ref.name for ref in tables} == {TABLE}
    more = changed(tmp_path / "more", **{TABLE: lambda table: table.astype(np.float16)})
    assert dense_weight_bytes(found) == dense_weight_bytes(more)


@needs_native
def test_pieces_that_cut_a_block_are_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_models.write(tmp_path, NAME))
    table = checkpoint.tensors[TABLE]
    # 80 values are no whole blocks either, which only an executor asks for; its own rule is met by six pieces.
    coarse = dataclasses.replace(table, layout=Layout.Q8_0)
    with pytest.raises(UnsupportedError, match=r"per_layer\.weight' has pieces of 16 values, no whole number of Q8_0"):
        build_program(dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, TABLE: coarse}))
    found = build_program(checkpoint)
    embed = next(op for op in found.ops if isinstance(op, Embed) and op.pieces > 1)
    coarse = dataclasses.replace(coarse, shape=(97, 96), nbytes=97 * Layout.Q8_0.nbytes(96))
    ops = [found.ops[0], dataclasses.replace(embed, table=coarse, pieces=6), *found.ops[-2:]]
    with pytest.raises(NativeError, match=r"pieces of 16 values of .* are no whole number of Q8_0 blocks of 32"):
        build(dataclasses.replace(found, ops=ops, states=()))
    for pieces, piece in ((4, 0), (5, 5), (5, -1)):
        broken = [dataclasses.replace(embed, pieces=pieces, piece=piece) if op is embed else op for op in found.ops]
        with pytest.raises(ValueError, match=r"embed\)"):
            validate(dataclasses.replace(found, ops=broken))


def test_projections_that_a_sharing_layer_does_not_use_may_be_there(tmp_path: Path) -> None:
    wanted = NumpyExecutor(program(tmp_path / "one")).forward(TOKENS)
    unused = {f"model.layers.3.self_attn.{name}.weight": np.zeros((4, 4), np.float32) for name in ("k_proj", "v_proj")}
    unused["model.layers.4.self_attn.k_norm.weight"] = np.ones(32, np.float32)
    more = changed(tmp_path / "other", **{name: lambda _, v=values: v for name, values in unused.items()})
    assert np.array_equal(NumpyExecutor(more).forward(TOKENS), wanted)
    with pytest.raises(UnsupportedError, match=r"layers\.2\.self_attn\.v_proj"):
        more = {"model.layers.2.self_attn.v_proj.weight": lambda _: np.zeros((4, 4), np.float32)}
        changed(tmp_path / "wrong", **more)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "global_head_dim": None,
            "num_global_key_value_heads": None,
            "per_layer_config": {"2": {"head_dim": 32, "num_key_value_heads": 1}, "4": {"head_dim": 32}}
            | {"4": {"head_dim": 32, "num_key_value_heads": 1}},
        },
        {"layer_types": [*CONFIG["layer_types"][:-1], "sliding_attention"]},  # the class makes the last one global
        {"use_bidirectional_attention": "vision"},
    ],
)
def test_every_way_to_say_it_is_the_same_model(changes: dict[str, Any], tmp_path: Path) -> None:
    wanted = NumpyExecutor(program(tmp_path / "one")).forward(TOKENS)
    assert np.array_equal(NumpyExecutor(program(tmp_path / "other", **changes)).forward(TOKENS), wanted)


def test_most_pairs_of_a_global_head_stand_still(tmp_path: Path) -> None:
    ropes = [op for op in program(tmp_path).ops if isinstance(op, Rope)]
    full = next(op.inv_freq for op in ropes if op.head_dim == 32)
    assert (full[:4] > 0).all()
    assert not full[4:].any()
    assert np.allclose(full[:4], 1e4 ** (-np.arange(4) / 16))
    usual = [op for op in program(tmp_path, rope_parameters=None).ops if isinstance(op, Rope)]
    assert np.allclose(next(op.inv_freq for op in usual if op.head_dim == 32)[:4], 1e6 ** (-np.arange(4) / 16))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_kv_shared_layers": 3}, r"'num_kv_shared_layers' leaves 2 of 5 layers, and none of one of the two kinds"),
        ({"num_kv_shared_layers": 5}, r"'num_kv_shared_layers' leaves 0 of 5 layers"),
        ({"use_bidirectional_attention": "all"}, r"'use_bidirectional_attention' is 'all'"),
        ({"vocab_size_per_layer_input": 64}, r"'vocab_size_per_layer_input' is not 97, as 'vocab_size'"),
        ({"per_layer_config": {"0": {"head_dim": 8}}}, r"'per_layer_config' gives layers of one kind heads of diff"),
        ({"per_layer_config": {"9": {"head_dim": 8}}}, r"'per_layer_config' names layer '9' of 5"),
        ({"per_layer_config": {"2": {"window": 8}}}, r"'per_layer_config\.2\.window' is 8"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, r"'rope_scaling' is set"),
        ({"global_head_dim": 31}, r"heads of width 31: rotary positions need an even one"),
        ({"num_global_key_value_heads": 4}, r"'num_attention_heads' is 6, no multiple of 4 in layer 2"),
        ({"hidden_size_per_layer_input": 8}, r"per_layer_token_embd|embed_tokens_per_layer|per_layer"),
        ({"top_k_experts": 9}, r"'top_k_experts' is 9, more than"),
    ],
)
def test_what_contradicts_is_named(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=problem):
        program(tmp_path, **changes)


@needs_native
def test_heads_of_512_are_kept_as_codes(tmp_path: Path) -> None:
    """As published files have them: presets encode the global layers, whose pages the sharing one reads too."""
    rng, heads, wide = np.random.default_rng(1), 6, 512

    def matrix(*shape: int) -> Any:
        values = (rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)
        return lambda _: values

    tensors = {}
    for i in (2, 4):
        name = f"model.layers.{i}.self_attn."
        tensors[f"{name}q_proj.weight"] = matrix(heads * wide, 48)
        tensors[f"{name}o_proj.weight"] = matrix(48, heads * wide)
        tensors[f"{name}q_norm.weight"] = lambda _: np.full(wide, 0.3, np.float32)
    tensors["model.layers.2.self_attn.k_proj.weight"] = matrix(wide, 48)
    tensors["model.layers.2.self_attn.k_norm.weight"] = lambda _: np.full(wide, 0.3, np.float32)
    found = changed(tmp_path, {"global_head_dim": wide}, **tensors)
    assert parse_kv("auto", 3).for_program(found).bits == ((0, 0),) * 3
    assert parse_kv("balanced", 3).for_program(found).bits == ((0, 0), (0, 0), (4, 4))
    tokens = np.random.default_rng(2).integers(0, tiny_models.VOCAB, 500).tolist()
    exact = _in_steps(found, tokens, [500], None)
    for bits, limit in (((8, 8), 0.01), ((4, 4), 0.2)):
        kv_bits = [(0, 0), (0, 0), bits]
        coded = _in_steps(found, tokens, [500], kv_bits)
        changes = np.abs(coded - exact).max(axis=1)[256:]  # rows of which some are unlike because a router's pick is
        assert 0 < np.median(changes) < limit * exact.std()
        assert np.array_equal(_in_steps(found, tokens, [128, 100, 1, 271], kv_bits), coded)


def _in_steps(found: Program, tokens: list[int], sizes: list[int], kv_bits: list[tuple[int, int]] | None) -> np.ndarray:
    executor = build(found, max_rows=512, kv="f16", kv_bits=kv_bits, kv_reuse_points=1)
    sequence, rows, begin = executor.create_sequence(), [], 0
    for size in sizes:
        rows.append(append(executor, [(sequence, tokens[begin : begin + size])]))
        begin += size
    executor.close()
    return np.concatenate(rows)
