"""Every family: the logits of a text are the same bits however it was cut, with whom, on what, and after a restart."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tiny_models
from native_runner import append, build, needs_native

from kamado.errors import MemoryBudgetError
from kamado.files import open_checkpoint
from kamado.models import build_program
from kamado.program import Program

pytestmark = needs_native

FAMILIES = sorted(tiny_models.FAMILIES)
# With layers that keep a record, and what their scans and convolutions are computed in elsewhere: chunks of 64.
RECURRENT = [
    name for name in FAMILIES if {"conv", "linear_attention"} & {*tiny_models.CONFIGS[name].get("layer_types", ())}
]
LENGTHS = (1, 63, 64, 65, 130, 300)
SPARSE = [name for name in FAMILIES if {"num_experts_per_tok", "top_k_experts"} & tiny_models.CONFIGS[name].keys()]
LENGTH = 150  # more than one 128-token page
RNG = np.random.default_rng(3)
TOKENS = RNG.integers(0, tiny_models.VOCAB, LENGTH).tolist()
OTHER = RNG.integers(0, tiny_models.VOCAB, LENGTH).tolist()
LONG = RNG.integers(0, tiny_models.VOCAB, LENGTHS[-1]).tolist()


@pytest.fixture(scope="module", params=FAMILIES)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Program:
    return build_program(open_checkpoint(tiny_models.write(tmp_path_factory.mktemp(request.param), request.param)))


@pytest.fixture(scope="module")
def whole(program: Program) -> np.ndarray:
    """All logits, from one step alone."""
    executor = build(program)
    rows = append(executor, [(executor.create_sequence(), TOKENS)])
    executor.close()
    return rows


def _in_parts(executor: Any, cuts: list[int]) -> np.ndarray:
    """Logits of TOKENS in parts, with another sequence before or behind each."""
    mine, companion = executor.create_sequence(), executor.create_sequence()
    rows, begin = [], 0
    for i, size in enumerate(cuts):
        part, company = TOKENS[begin : begin + size], OTHER[begin : begin + 1 + size // 2]
        begin += size
        if i % 2:
            rows.append(append(executor, [(companion, company), (mine, part)])[len(company) :])
        else:
            rows.append(append(executor, [(mine, part), (companion, company)])[:size])
    return np.concatenate(rows)


@pytest.mark.parametrize(
    ("threads", "cuts"),
    [(1, [1] * 150), (2, [150]), (2, [7, 1, 1, 90, 51]), (1, [128, 22]), (2, [127, 2, 21])],
    ids=lambda value: str(value) if isinstance(value, int) else "-".join(map(str, value[:5])),
)
def test_chunks_threads_and_company(program: Program, whole: np.ndarray, threads: int, cuts: list[int]) -> None:
    executor = build(program, num_threads=threads)
    assert np.array_equal(_in_parts(executor, cuts), whole)
    executor.close()


def test_tiers(program: Program, whole: np.ndarray) -> None:
    from kamado import _native

    for tier in _native.tiers():
        executor = build(program, tier=tier)
        assert np.array_equal(append(executor, [(executor.create_sequence(), TOKENS)]), whole), tier
        executor.close()


@pytest.mark.parametrize("program", SPARSE, indirect=True)
def test_budgets(program: Program, whole: np.ndarray) -> None:
    """Experts from disk, into as few slots as work and into twice as many."""
    with pytest.raises(MemoryBudgetError, match="too little") as caught:
        build(program, expert_bytes=1)
    least = int(str(caught.value).rsplit(" ", 1)[1])
    for expert_bytes in (least, 2 * least):
        executor = build(program, expert_bytes=expert_bytes, num_threads=2, verify_slots=True)
        assert np.array_equal(_in_parts(executor, [128, 22]), whole)
        executor.close()


@pytest.mark.parametrize("length", [40, 128, 137])
def test_forks_and_cuts(program: Program, whole: np.ndarray, length: int) -> None:
    executor = build(program)
    first = executor.create_sequence()
    append(executor, [(first, TOKENS[:length])])
    executor.mark_reuse(first)
    append(executor, [(first, OTHER[:9])])
    fork = executor.fork_sequence(first, length)
    assert np.array_equal(append(executor, [(fork, TOKENS[length:])]), whole[length:])
    executor.truncate(first, length)
    assert np.array_equal(append(executor, [(first, TOKENS[length:])]), whole[length:])
    executor.close()


def test_restart(program: Program, whole: np.ndarray) -> None:
    """What one executor kept, in another one."""
    length = 137
    before, after = build(program), build(program)
    sequence = before.create_sequence()
    append(before, [(sequence, TOKENS[:length])])
    before.mark_reuse(sequence)
    pages = before.settled_pages(length)
    kept, tail = before.export_pages(sequence, 0, pages), before.export_tail(sequence, length)
    before.close()
    restored = after.begin_import(length)
    after.import_pages(restored, 0, pages, memoryview(kept))
    after.import_tail(restored, memoryview(tail))
    assert np.array_equal(append(after, [(restored, TOKENS[length:])]), whole[length:])
    after.close()


@pytest.mark.parametrize("program", RECURRENT, indirect=True)
def test_records_over_long_texts(program: Program) -> None:
    """In one chunk, one by one, at the lengths where chunked forms change, at random, with cancelled steps between."""
    from kamado import _native

    executor = build(program, max_rows=320)
    rng = np.random.default_rng(8)
    whole = append(executor, [(executor.create_sequence(), LONG)])
    drawn = sorted({int(end) for end in rng.integers(1, len(LONG), 12)} | {len(LONG)})
    for ends in (LENGTHS, tuple(range(1, len(LONG) + 1)), tuple(drawn)):
        sequence = executor.create_sequence()
        for begin, end in itertools.pairwise((0, *ends)):
            if end % 3 == 0:
                executor.cancel()
                with pytest.raises(_native.Cancelled):
                    append(executor, [(sequence, OTHER[:5])])
            assert np.array_equal(append(executor, [(sequence, LONG[begin:end])]), whole[begin:end])
        executor.free_sequence(sequence)
    for length in LENGTHS:
        sequence = executor.create_sequence()
        assert np.array_equal(append(executor, [(sequence, LONG[:length])]), whole[:length])
        executor.free_sequence(sequence)
    executor.close()
