"""Sinks of attention: a score a head that takes its share and carries no value, on exact pages and on codes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models.numpy_executor import NumpyExecutor
from native_programs import TensorFile, dense, random_tokens, step

from kamado import _native
from kamado import program as p
from kamado.lower import build_executor

HEADS = 4
LONG = random_tokens(700, seed=5)  # six pages, of which a last query reads four as codes
BITS = [(4, 4), (0, 0), (3, 2)]  # the second layer has a window


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> p.Program:
    return dense(tmp_path_factory.mktemp("weights") / "weights.bin", heads=HEADS, kv_heads=2, head_dim=64)


def with_sinks(plain: p.Program, folder: Path, values: Any) -> p.Program:
    file = TensorFile(folder / "sinks.bin")
    sinks = file.add("sinks", np.asarray(values))
    ops = [dataclasses.replace(op, sinks=sinks) if isinstance(op, p.Attend) else op for op in plain.ops]
    return dataclasses.replace(plain, ops=ops)


def logits_of(program: p.Program, *, chunk: int = 300, **options: Any) -> np.ndarray:
    defaults: dict[str, Any] = {
        "num_threads": 2, "max_rows": 320, "max_logit_rows": 320, "max_kv_tokens": 1024, "max_sequences": 1,
        "kv": "f16",
    }  # fmt: skip
    executor = build_executor(program, **{**defaults, **options})
    sequence = executor.create_sequence()
    rows = [step(executor, [(sequence, LONG[i : i + chunk])]) for i in range(0, 600, chunk)]
    rows += [step(executor, [(sequence, [token])]) for token in LONG[600:]]  # whose pages threads share out
    executor.close()
    return np.concatenate(rows)


@pytest.mark.parametrize("bits", [None, BITS])
def test_the_same_bits_of_threads_tiers_and_chunks_and_the_oracle_agrees(
    bits: Any, plain: p.Program, tmp_path: Path
) -> None:
    program = with_sinks(plain, tmp_path, [0.5, 2.0, -1.0, 4.0])
    wanted = logits_of(program, kv_bits=bits)
    for tier in _native.tiers():
        for threads, chunk in ((1, 300), (3, 75)):
            got = logits_of(program, kv_bits=bits, tier=tier, num_threads=threads, chunk=chunk)
            assert got.tobytes() == wanted.tobytes(), (tier, threads)
    exact = NumpyExecutor(program).forward(LONG)
    without = NumpyExecutor(plain).forward(LONG)
    assert np.abs(without - exact).max() > 0.1 * exact.std()  # they are seen
    # Keys and values of the cache are rounded to f16, or to codes in the first and the last layer.
    assert np.sqrt(((wanted - exact) ** 2).mean()) < (2e-3 if bits is None else 0.2) * exact.std()


@pytest.mark.parametrize("bits", [None, BITS])
def test_a_sink_far_below_all_scores_changes_no_bit(bits: Any, plain: p.Program, tmp_path: Path) -> None:
    program = with_sinks(plain, tmp_path, [-1e30] * HEADS)
    assert logits_of(program, kv_bits=bits).tobytes() == logits_of(plain, kv_bits=bits).tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sink_that_is_no_number_is_damage(value: float, plain: p.Program, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="a sink of attention"):
        logits_of(with_sinks(plain, tmp_path, [1.0, 2.0, value, 3.0]))


@pytest.mark.parametrize("bits", [None, BITS])
def test_a_sink_far_above_all_scores_takes_everything(bits: Any, plain: p.Program, tmp_path: Path) -> None:
    """As if what attention gives were zeros."""
    program = with_sinks(plain, tmp_path, [300.0] * HEADS)
    silent = dataclasses.replace(plain, ops=_muted(plain))
    assert np.array_equal(logits_of(program, kv_bits=bits), logits_of(silent))


def _muted(program: p.Program) -> list[p.Op]:
    """Attention's output times 0."""
    ops: list[p.Op] = []
    for op in program.ops:
        ops.append(op)
        if isinstance(op, p.Attend):
            ops.append(p.Scale(op.out, op.out, 0.0))
    return ops


def test_sinks_are_of_heads(plain: p.Program, tmp_path: Path) -> None:
    program = with_sinks(plain, tmp_path, [1.0] * 3)
    with pytest.raises(ValueError, match=r"tensor 'sinks' has shape \(3,\), expected \(4,\)"):
        p.validate(program)
    with pytest.raises(Exception, match="vector sinks has 3 values, expected 4"):
        logits_of(program)
