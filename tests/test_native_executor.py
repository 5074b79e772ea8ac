"""The executor against a NumPy forward pass, and its bits against itself: threads, tiers, chunks, company, forks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models.numpy_executor import NumpyExecutor
from native_programs import VOCAB, check_chunks_and_company, dense, moe, random_tokens, step

from kamado import _native
from kamado import program as p
from kamado.files.types import Layout
from kamado.lower import build_executor

PROGRAMS: dict[str, Callable[[Path], p.Program]] = {
    "dense": dense,
    "dense-q4_0": lambda path: dense(path, layout=Layout.Q4_0, v_layout=Layout.Q8_0),
    "dense-k": lambda path: dense(
        path, hidden=256, heads=16, kv_heads=4, ffn=256, layers=2, layout=Layout.Q4_K, v_layout=Layout.Q6_K
    ),
    "moe": moe,
    "moe-q8_0": lambda path: moe(path, width=64, layout=Layout.Q8_0, down_layout=Layout.Q5_1),
}
# Activations of 8 bits against none; random codes of a K layout have larger tails.
TOLERANCE = {"dense": 2e-5, "moe": 2e-5, "dense-q4_0": 0.03, "moe-q8_0": 0.03, "dense-k": 0.03}
LONG = random_tokens(300)  # spans three pages of the cache


def build(program: p.Program, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "num_threads": 2, "max_rows": 320, "max_logit_rows": 320, "max_kv_tokens": 2048, "max_sequences": 6,
        "kv": "f16",
    }  # fmt: skip
    return build_executor(program, **{**defaults, **options})


@pytest.fixture(scope="module", params=list(PROGRAMS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def program(name: str, tmp_path_factory: pytest.TempPathFactory) -> p.Program:
    return PROGRAMS[name](tmp_path_factory.mktemp("weights") / "weights.bin")


@pytest.fixture(scope="module")
def executor(program: p.Program) -> Any:
    return build(program)


@pytest.fixture(scope="module")
def expected(executor: Any) -> np.ndarray:
    """Logits of LONG, in one prefill by two threads."""
    sequence = executor.create_sequence()
    logits = step(executor, [(sequence, LONG)])
    executor.free_sequence(sequence)
    return logits


def test_agrees_with_numpy(name: str, program: p.Program) -> None:
    executor = build(program, kv="f32")
    got = step(executor, [(executor.create_sequence(), LONG)])
    wanted = NumpyExecutor(program).forward(LONG)
    error = np.sqrt(((got - wanted) ** 2).mean(axis=1)) / wanted.std()
    assert np.median(error) < TOLERANCE[name]
    assert got.std() > 0.1  # the comparison means something


@pytest.mark.parametrize("tier", _native.tiers())
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_tiers_give_the_same_bits(
    program: p.Program, expected: np.ndarray, tier: str, threads: int
) -> None:
    executor = build(program, tier=tier, num_threads=threads)
    assert (executor.tier, executor.num_threads) == (tier, threads)
    sequence = executor.create_sequence()
    assert step(executor, [(sequence, LONG[:131])]).tobytes() == expected[:131].tobytes()
    for i in range(131, 140):
        assert step(executor, [(sequence, LONG[i : i + 1])]).tobytes() == expected[i].tobytes()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 140), max_size=6), st.lists(st.integers(0, 60), max_size=3), st.randoms())
def test_chunks_and_company_give_the_same_bits(
    executor: Any, expected: np.ndarray, chunks: list[int], company: list[int], random: Any
) -> None:
    """Any chunking of a prompt, with any other sequences in the same steps before and after it."""
    check_chunks_and_company(executor, LONG, expected, chunks, company, random)


def test_rows_without_logits_change_nothing(executor: Any, expected: np.ndarray) -> None:
    sequence = executor.create_sequence()
    assert step(executor, [(sequence, LONG[:200])], rows=[]).shape == (0, VOCAB)
    rows = [99, 3, 3, 50]  # any order, also twice
    assert step(executor, [(sequence, LONG[200:])], rows=rows).tobytes() == expected[[200 + r for r in rows]].tobytes()
    executor.truncate(sequence, 250)
    assert step(executor, [(sequence, [LONG[250]])], rows=[0, 0]).tobytes() == expected[[250, 250]].tobytes()
    executor.truncate(sequence, 250)
    assert step(executor, [(sequence, [LONG[250]])], rows=[]).size == 0
    assert step(executor, [(sequence, [LONG[251]])]).tobytes() == expected[251].tobytes()
    executor.free_sequence(sequence)


@pytest.mark.parametrize("at", [1, 100, 128, 200, 256, 299])
def test_forks_and_truncation_give_the_same_bits(executor: Any, expected: np.ndarray, at: int) -> None:
    parent = executor.create_sequence()
    step(executor, [(parent, LONG)], rows=[])
    child = executor.fork_sequence(parent, at)
    assert (executor.length(parent), executor.length(child)) == (300, at)
    step(executor, [(child, random_tokens(30, seed=9))], rows=[])
    executor.truncate(child, at)
    executor.truncate(parent, at)
    part = LONG[at : at + 150]
    both = step(executor, [(child, part), (parent, part)])
    assert both.tobytes() == expected[at : at + 150].tobytes() * 2
    executor.free_sequence(parent)
    executor.free_sequence(child)


def test_a_long_context_is_shared_out_to_the_same_bits(executor: Any, program: p.Program) -> None:
    """Decode with many pages: one thread walks them in order, several share them."""
    rows = []
    for threads in (1, 3):
        other = build(program, num_threads=threads)
        sequence = other.create_sequence()
        step(other, [(sequence, LONG)], rows=[])
        other.tile_kv(sequence, 1500)
        assert other.length(sequence) == 1500
        rows.append([step(other, [(sequence, [t])]).tobytes() for t in (1, 2)])
        other.truncate(sequence, 1500)
        rows[-1].append(step(other, [(sequence, [1, 2])]).tobytes())
    assert rows[0] == rows[1]
    assert rows[0][0] + rows[0][1] == rows[0][2]


def test_score_is_the_log_softmax_of_the_logits(program: p.Program, expected: np.ndarray) -> None:
    count = 150
    targets = np.array(LONG[1 : count + 1], np.int32)
    targets[[7, 149]] = -1
    wide = expected[:count].astype(np.float64)
    log_total = np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1)) + wide.max(1)
    wanted = wide[np.arange(count), np.maximum(targets, 0)] - log_total
    wanted[[7, 149]] = 0.0
    results = []
    for max_rows, max_logit_rows in ((320, 320), (64, 7), (150, 1)):
        executor = build(program, max_rows=max_rows, max_logit_rows=max_logit_rows)
        sequence = executor.create_sequence()
        results.append(executor.score(sequence, np.array(LONG[:count], np.int32), targets))
        assert executor.length(sequence) == count
        np.testing.assert_allclose(results[-1], wanted, atol=1e-5)
        with pytest.raises(ValueError, match="cache holds 2048"):  # found in the middle: nothing is left behind
            executor.score(sequence, np.ones(1950, np.int32), np.ones(1950, np.int32))
        assert executor.length(sequence) == count
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


def test_window_ends_where_it_says(tmp_path: Path) -> None:
    """With a window of w, a token w places back cannot matter, one at w - 1 can."""
    file_program = dense(tmp_path / "w.bin", layers=1)
    ops = [op if not isinstance(op, p.Attend) else _with_window(op, 40) for op in file_program.ops]
    program = p.Program("windowed", ops, 1, file_program.hidden, VOCAB, 4096)
    executor = build(program)

    def last(tokens: list[int]) -> bytes:
        sequence = executor.create_sequence()
        logits = step(executor, [(sequence, tokens)], rows=[len(tokens) - 1]).tobytes()
        executor.free_sequence(sequence)
        return logits

    base = LONG[:180]
    changed = (base[-41] + 1) % VOCAB
    assert last(base) == last([*base[:-41], changed, *base[-40:]])
    changed = (base[-40] + 1) % VOCAB
    assert last(base) != last([*base[:-40], changed, *base[-39:]])


def _with_window(op: p.Attend, window: int) -> p.Attend:
    return p.Attend(
        op.out, op.q, op.k, op.v, op.state, op.num_heads, op.num_kv_heads, op.head_dim, op.v_dim, op.scale, window
    )


def test_ties_go_to_the_lower_expert(tmp_path: Path) -> None:
    """Equal router logits: the first top_k experts are picked, so changing a later one changes nothing."""
    first = moe(tmp_path / "a.bin", layers=1)
    zero = tmp_path / "zero.bin"
    zero.write_bytes(b"\0" * 65536)
    logits = []
    for changed in (None, 2, 3):
        ops: list[p.Op] = []
        for op in first.ops:
            if isinstance(op, p.Linear) and op.outs[0].name == "router":
                ref = op.weights[0]
                flat = type(ref)("zero", zero, 0, ref.nbytes, ref.shape, ref.layout)
                ops.append(p.Linear(op.outs, op.x, (flat,)))
            elif isinstance(op, p.Experts) and changed is not None:
                gate = list(op.gate)
                gate[changed] = op.gate[0]
                ops.append(p.Experts(op.out, op.x, op.logits, tuple(gate), op.up, op.down, op.activation))
            else:
                ops.append(op)
        executor = build(p.Program("ties", ops, 1, first.hidden, VOCAB, 4096, 8, 3))
        logits.append(step(executor, [(executor.create_sequence(), LONG[:40])]).tobytes())
    assert logits[0] != logits[1]
    assert logits[0] == logits[2]
