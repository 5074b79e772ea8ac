"""LongRoPE: which of the two rotations runs is the planned context's doing, and is said; damaged settings are named."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from click.testing import CliRunner
from native_runner import needs_native
from numpy_executor import NumpyExecutor

import kamado
from kamado import program as p
from kamado.cli.main import cli
from kamado.errors import CheckpointError
from kamado.files import open_checkpoint
from kamado.files.types import Checkpoint
from kamado.models import build_program

ORIGINAL, LONGEST = 256, 512  # of the tiny model
ROPE = tiny_models.CONFIGS["phi3"]["rope_parameters"]
PROMPT = np.random.default_rng(2).integers(0, tiny_models.VOCAB, 150).tolist()


def write(folder: Path, **changes: Any) -> Checkpoint:
    return open_checkpoint(tiny_models.write(folder, "phi3", **changes))


def rotation(program: p.Program) -> p.Rope:
    return next(op for op in program.ops if isinstance(op, p.Rope))


def test_the_planned_context_decides(tmp_path: Path) -> None:
    program = build_program(write(tmp_path))
    assert program.context_length == LONGEST
    assert program.for_context(ORIGINAL) is program
    long = program.for_context(ORIGINAL + 1)
    assert program.ops is not long.ops is program.for_context(LONGEST).ops
    plain = 1e4 ** (-np.arange(0, 12, 2) / 12)
    for one, name in ((program, "short_factor"), (long, "long_factor")):
        np.testing.assert_allclose(rotation(one).inv_freq, plain / np.array(ROPE[name]), rtol=1e-7)
        assert rotation(one).attention_factor == pytest.approx(math.sqrt(1 + math.log(2) / math.log(256)), rel=1e-7)
        assert (one.context_length, one.longer is None) == (LONGEST, one is long)
    assert program.notes[0].startswith(f"positions as of contexts up to {ORIGINAL} tokens;")
    assert long.notes[0].startswith(f"positions as of contexts above {ORIGINAL} tokens, for short texts too")
    one, other = (NumpyExecutor(it).forward(PROMPT) for it in (program, long))
    assert np.abs(one - other).max() > 0.1 * one.std()


@pytest.mark.parametrize(
    "changes",
    [
        {"max_position_embeddings": ORIGINAL},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        {"rope_parameters": None},
    ],
)
def test_a_model_of_one_length_has_one_rotation(changes: dict[str, Any], tmp_path: Path) -> None:
    program = build_program(write(tmp_path, **changes))
    assert program.longer is None
    assert program.notes == ()
    assert program.for_context(program.context_length) is program


def test_what_the_user_lets_pass_is_said_for_longer_contexts_too(tmp_path: Path) -> None:
    program = build_program(write(tmp_path, new_scale=2.5), ["new_scale"])
    assert program.overridden == program.for_context(LONGEST).overridden == ("new_scale",)


@pytest.mark.parametrize(
    ("factor", "wanted"),
    [({}, 1.190238), ({"factor": 1.0}, 1.0), ({"factor": 4096.0}, 2**0.5), ({"attention_factor": 2.5}, 2.5)],
)
def test_factor_on_the_rotation(factor: dict[str, float], wanted: float, tmp_path: Path) -> None:
    """The first is Phi-4-mini's: 131 072 positions of 4096."""
    changes = {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
    program = build_program(write(tmp_path, **changes, rope_parameters={**ROPE, **factor}))
    for one in (program, program.for_context(131072)):
        assert rotation(one).attention_factor == pytest.approx(wanted, abs=1e-6)


@needs_native
def test_loading_takes_the_rotation_of_its_context(tmp_path: Path) -> None:
    folder = tiny_models.write(tmp_path, "phi3")
    program = build_program(open_checkpoint(folder))
    texts = {}
    for context in (ORIGINAL, ORIGINAL + 1, LONGEST):
        wanted, lead = NumpyExecutor(program.for_context(context)).greedy(PROMPT, 8)
        assert lead > 1e-3
        with kamado.load(folder, context=context, kv="f32") as model:
            assert model.plan.notes == program.for_context(context).notes
            got = [piece.token for piece in model.generate(PROMPT, max_tokens=8, temperature=0.0)]
        assert got == wanted
        texts[context] = got
    assert texts[ORIGINAL] != texts[LONGEST] == texts[ORIGINAL + 1]


@needs_native
def test_kept_prompts_are_not_taken_over_by_the_other_rotation(tmp_path: Path) -> None:
    folder = tiny_models.write(tmp_path, "phi3")

    def reused(context: int) -> int:
        with kamado.load(folder, context=context, prefix_cache="64MiB") as model:
            generation = model.generate(PROMPT, max_tokens=1, temperature=0.0)
            list(generation)
            return int(generation.usage.num_reused_tokens)

    assert [reused(context) for context in (ORIGINAL, LONGEST)] == [0, 0]
    assert reused(ORIGINAL) > 100
    assert reused(LONGEST) > 100


# --- damaged settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"long_factor": None}, "'rope_parameters.long_factor' has 0 numbers, needed are 6"),
        ({"short_factor": [1.0] * 5}, "'rope_parameters.short_factor' has 5 numbers, needed are 6"),
        ({"short_factor": [1.0] * 5 + ["x"]}, "'rope_parameters.short_factor' has 'x', which is no number from 0.001"),
        ({"long_factor": [1.0] * 5 + [True]}, "'rope_parameters.long_factor' has True, which is no number"),
        ({"long_factor": [1.0] * 5 + [0.0]}, "'rope_parameters.long_factor' has 0.0, which is no number"),
        ({"long_factor": [1.0] * 5 + [-1]}, "'rope_parameters.long_factor' has -1, which is no number"),
        ({"short_factor": [1.0] * 5 + [math.nan]}, "'rope_parameters.short_factor' has nan, which is no number"),
        ({"short_factor": [1.0] * 5 + [10**400]}, "'rope_parameters.short_factor' has 1000"),
        ({"long_factor": {"a": 1}}, "'rope_parameters.long_factor' must be a list"),
        ({"original_max_position_embeddings": 99}, "'rope_parameters.original_max_position_embeddings' is 99 while"),
        ({"factor": 0.0}, "'rope_parameters.factor'"),
        ({"rope_type": "dynamic"}, "'rope_parameters.rope_type' is 'dynamic'; supported are default, longrope"),
        ({"rope_type": "default"}, "'rope_parameters.short_factor'"),
        ({"short_mscale": 1.2}, "'rope_parameters.short_mscale' is 1.2"),
        ({"partial_rotary_factor": 0.2}, "partial_rotary_factor"),
    ],
)
def test_config_json(rope: dict[str, Any], named: str, tmp_path: Path) -> None:
    checkpoint = write(tmp_path, rope_parameters={**ROPE, **rope})
    with pytest.raises(CheckpointError) as fault:
        build_program(checkpoint)
    assert named in str(fault.value)


def test_an_original_length_of_one_is_no_context(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'original_max_position_embeddings' must lie in 2"):
        build_program(write(tmp_path, original_max_position_embeddings=1))


@pytest.mark.parametrize("kind", ["longrope", "su", "yarn"])
def test_older_names_of_the_rule(kind: str, tmp_path: Path) -> None:
    new = build_program(write(tmp_path / "new"))
    settings = {key: value for key, value in ROPE.items() if key not in ("rope_type", "rope_theta")}
    old = {"rope_parameters": None, "rope_scaling": {"type": kind, **settings}, "rope_theta": ROPE["rope_theta"]}
    program = build_program(write(tmp_path / "old", **old))
    for context in (ORIGINAL, LONGEST):
        one, other = (rotation(it.for_context(context)) for it in (new, program))
        assert np.array_equal(one.inv_freq, other.inv_freq)
        assert one.attention_factor == other.attention_factor


@pytest.fixture
def gguf_file(tmp_path: Path) -> Callable[[dict[str, Any]], Checkpoint]:
    """The tiny model as a GGUF file, with other settings and without the tensors that are None."""
    pytest.importorskip("gguf", reason="gguf is not installed")
    from gguf_export import export

    folder = tiny_models.write(tmp_path, "phi3")
    checkpoint = open_checkpoint(export(folder, tmp_path / "model.gguf"))

    def change(changes: dict[str, Any]) -> Checkpoint:
        gone = {key for key, value in changes.items() if value is None}
        tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in gone}
        metadata = {key: value for key, value in (checkpoint.metadata | changes).items() if key not in gone}
        return dataclasses.replace(checkpoint, tensors=tensors, metadata=metadata)

    return change


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_factors_long.weight": None}, "rope_factors_long.weight"),
        ({"rope_factors_short.weight": None}, "rope_factors_short.weight"),
        ({"phi3.rope.dimension_count": 16}, "rope_factors_short.weight"),
        ({"phi3.rope.dimension_count": 11}, "'phi3.rope.dimension_count' is 11, which is odd"),
        ({"phi3.rope.dimension_count": 18}, "'phi3.rope.dimension_count' must lie in 2..16"),
        ({"phi3.rope.scaling.original_context_length": 1}, "original_context_length' must lie in 2"),
        ({"phi3.rope.scaling.type": "dynamic"}, "'phi3.rope.scaling.type' is 'dynamic'"),
        ({"phi3.rope.scaling.attn_factor": -1.0}, "'phi3.rope.scaling.attn_factor'"),
    ],
)
def test_gguf(changes: dict[str, Any], named: str, gguf_file: Callable[[dict[str, Any]], Checkpoint]) -> None:
    build_program(gguf_file({}))
    with pytest.raises(CheckpointError) as fault:
        build_program(gguf_file(changes))
    assert named in str(fault.value)


def test_gguf_files_without_factors_have_one_rotation(gguf_file: Callable[[dict[str, Any]], Checkpoint]) -> None:
    gone = {"rope_factors_long.weight": None, "rope_factors_short.weight": None, "phi3.rope.scaling.attn_factor": None}
    program = build_program(gguf_file(gone))
    assert program.longer is None
    assert rotation(program).attention_factor == 1.0


def test_gguf_files_may_have_a_plain_factor_too(gguf_file: Callable[[dict[str, Any]], Checkpoint]) -> None:
    """As llama.cpp has it, which divides by both."""
    one = rotation(build_program(gguf_file({})))
    for kind in ("longrope", "linear"):
        other = rotation(build_program(gguf_file({"phi3.rope.scaling.type": kind, "phi3.rope.scaling.factor": 2.0})))
        assert np.array_equal(one.inv_freq / 2, other.inv_freq)
    with pytest.raises(CheckpointError, match="'phi3.rope.scaling.type' is 'longer'"):
        build_program(gguf_file({"phi3.rope.scaling.type": "longer"}))


def test_gguf_factors_that_are_no_divisors(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    from gguf_export import export

    folder = tiny_models.write(tmp_path, "phi3", rope_parameters={**ROPE, "long_factor": [1.0] * 5 + [math.inf]})
    with pytest.raises(CheckpointError, match=r"rope_factors_long\.weight' has values that are no numbers from 0\.001"):
        build_program(open_checkpoint(export(folder, tmp_path / "model.gguf")))


@pytest.mark.parametrize(("context", "told"), [(ORIGINAL, "up to 256 tokens"), (LONGEST, "above 256 tokens")])
def test_a_plan_tells_it(context: int, told: str, tmp_path: Path) -> None:
    folder = tiny_models.write(tmp_path, "phi3")
    arguments = ["plan", str(folder), "--context", str(context), "--memory", "4GiB"]
    assert f"note: positions as of contexts {told}" in CliRunner().invoke(cli, arguments).stdout
    (note,) = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)["notes"]
    assert note.startswith(f"positions as of contexts {told}")
