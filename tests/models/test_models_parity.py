"""Every family against transformers in float32, and GGUF against safetensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kamado.files import open_checkpoint
from kamado.models import build_program
from kamado.program import DeltaScan, Program

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("gguf", reason="gguf is not installed")

from gguf_export import export  # noqa: E402
from model_cases import CASES, Case, build_model, quiet, reference_logits  # noqa: E402
from native_runner import append, build, native_logits, needs_native  # noqa: E402
from numpy_executor import NumpyExecutor  # noqa: E402

pytestmark = pytest.mark.parity

TOLERANCE = 1e-3  # of the logits' standard deviation: issue 2
NUM_TOKENS = 200


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, list[int], Any]]:
    """(directory, tokens, reference logits) of a case in a dtype; written and run once."""
    known: dict[tuple[str, str], tuple[Path, list[int], Any]] = {}

    def get(case: Case, dtype: str = "float32") -> tuple[Path, list[int], Any]:
        if (case.name, dtype) not in known:
            model = build_model(case).to(getattr(torch, dtype))
            directory = tmp_path_factory.mktemp(case.name)
            with quiet():
                # In the original form of OLMo hybrid it cuts one tensor of three widths into three of one.
                model.save_pretrained(directory, save_original_format=case.family != "olmo_hybrid")
            tokens = np.random.default_rng(7).integers(0, 200, NUM_TOKENS).tolist()
            known[case.name, dtype] = directory, tokens, reference_logits(directory, tokens)
        return known[case.name, dtype]

    return get


def program_of(path: Path, tokens: list[int]) -> Program:
    """The program for contexts as long as these tokens: transformers looks at the length of the text."""
    return build_program(open_checkpoint(path)).for_context(len(tokens))


def reached(logits: Any, reference: Any) -> float:
    """Largest difference over the standard deviation; fails where the argmax differs without a tie."""
    logits, reference = np.asarray(logits, np.float64), np.asarray(reference, np.float64)
    assert logits.shape == reference.shape
    tolerance = TOLERANCE * reference.std()
    top = np.sort(reference, axis=-1)
    clear = top[:, -1] - top[:, -2] > tolerance
    assert clear.sum() > 0.9 * len(clear)
    assert (logits.argmax(-1) == reference.argmax(-1))[clear].all()
    return float(np.abs(logits - reference).max() / reference.std())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_families_agree_with_transformers(case: Case, saved: Any, record_parity: Any) -> None:
    directory, tokens, reference = saved(case)
    result = reached(NumpyExecutor(program_of(directory, tokens)).forward(tokens), reference)
    record_parity(case.name, "numpy F32", result)
    assert result <= 1e-4  # float64 against float32: far inside the 1e-3


@needs_native
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_native_executor_rounds_no_more_than_transformers(case: Case, saved: Any, record_parity: Any) -> None:
    """Its distance from transformers in float64 is at most four times that of transformers in float32."""
    directory, tokens, reference = saved(case)
    exact = reference_logits(directory, tokens, "float64")
    rounding = float(np.abs(reference - exact).max())
    logits = native_logits(program_of(directory, tokens), tokens)
    distance = float(np.abs(logits - exact).max())
    record_parity(case.name, "native / F32's rounding", distance / rounding)
    assert distance <= 4 * rounding
    top = np.sort(exact, axis=-1)
    clear = top[:, -1] - top[:, -2] > 4 * rounding
    assert (logits.argmax(-1) == exact.argmax(-1))[clear].all()


@needs_native
@pytest.mark.parametrize("case", [case for case in CASES if case.continues], ids=lambda case: case.name)
def test_a_continued_cache_agrees_with_transformers(case: Case, saved: Any) -> None:
    """transformers goes on from its cache by other code; lengths around those at which kernels change."""
    directory, tokens, _ = saved(case)
    cuts = [1, 64, 65, 130]
    reference = reference_logits(directory, tokens, cuts=cuts)
    executor = build(program_of(directory, tokens))
    sequence = executor.create_sequence()
    parts = itertools.pairwise([0, *cuts, len(tokens)])
    logits = np.concatenate([append(executor, [(sequence, tokens[begin:end])]) for begin, end in parts])
    executor.close()
    assert reached(logits, reference) <= 1e-4


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_native_executor_agrees_with_transformers(case: Case, dtype: str, saved: Any, record_parity: Any) -> None:
    directory, tokens, reference = saved(case, dtype)
    logits = native_logits(program_of(directory, tokens), tokens)
    result = reached(logits, reference)
    record_parity(case.name, f"native {dtype.replace('float', 'F').replace('bF', 'BF')}", result)
    assert result <= TOLERANCE


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", sorted({case.family for case in CASES}))
def test_half_precision_files_agree(family: str, dtype: str, saved: Any) -> None:
    case = next(case for case in CASES if case.family == family)
    directory, tokens, reference = saved(case, dtype)
    assert reached(NumpyExecutor(program_of(directory, tokens)).forward(tokens), reference) <= 1e-4


@pytest.mark.parametrize("case", [case for case in CASES if case.gguf], ids=lambda case: case.name)
def test_a_gguf_file_gives_the_same_logits(case: Case, saved: Any, tmp_path: Path) -> None:
    directory, tokens, reference = saved(case)
    program = program_of(directory, tokens)
    one = NumpyExecutor(program).forward(tokens)
    other = NumpyExecutor(program_of(export(directory, tmp_path / "model.gguf"), tokens)).forward(tokens)
    if case.exact:
        assert np.array_equal(one, other)
    else:
        # Permuted heads add up in another order; factors and bases of the rotation are float32, and decays.
        has_decays = any(isinstance(op, DeltaScan) for op in program.ops)
        limit = 1e-5 if "llama3" in case.name or "alpha" in case.name or has_decays else 1e-10
        assert np.abs(one - other).max() <= limit * reference.std()


@needs_native
@pytest.mark.parametrize("case", [case for case in CASES if case.gguf], ids=lambda case: case.name)
def test_a_gguf_file_gives_the_same_native_logits(case: Case, saved: Any, tmp_path: Path) -> None:
    directory, tokens, reference = saved(case)
    one = native_logits(program_of(directory, tokens), tokens)
    other = native_logits(program_of(export(directory, tmp_path / "model.gguf"), tokens), tokens)
    if case.exact:
        assert np.array_equal(one, other)
    else:
        assert np.abs(one - other).max() <= 1e-4 * reference.std()


@pytest.mark.parametrize("route", ["numpy", pytest.param("native", marks=needs_native)])
def test_rope_scaling_far_out(route: str, saved: Any) -> None:
    """Positions 24 times past the original context; the reference's float32 angles are off by 1500 · 6e-8 there."""
    case = next(case for case in CASES if case.name == "llama-gqa8-llama3-rope")
    directory, _, _ = saved(case)
    tokens = np.random.default_rng(11).integers(0, 200, 1536).tolist()
    program = program_of(directory, tokens)
    if route == "native":
        logits = native_logits(program, tokens, max_rows=1536)
    else:
        logits = NumpyExecutor(program, np.float32).forward(tokens)
    far = reached(logits, reference_logits(directory, tokens))
    assert far <= TOLERANCE
