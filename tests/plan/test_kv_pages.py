"""A page is as long as the native cache's, and the formula counts what that cache takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from native_programs import VOCAB, dense, random_tokens, step
from native_state import PROGRAMS, source_rows

from kamado.lower import build_executor
from kamado.plan import sizes
from kamado.plan.kv_pages import PAGE_TOKENS, kv_layers, kv_needs, num_kv_layers, pages_for
from kamado.plan.kv_presets import parse_kv
from kamado.program import Attend, Program

SHAPE: dict[str, Any] = {"hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 64, "layers": 3}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Three layers, the second with a window of 40 tokens."""
    return dense(tmp_path_factory.mktemp("weights") / "weights.bin", **SHAPE)


def test_a_page_is_as_long_as_the_native_one(program: Program) -> None:
    executor = build_executor(
        program, num_threads=1, max_rows=64, max_logit_rows=1, max_kv_tokens=4 * PAGE_TOKENS, max_sequences=1, kv="f16"
    )
    assert executor.num_pages == 4
    sequence = executor.create_sequence()
    for num_tokens in (1, PAGE_TOKENS, PAGE_TOKENS + 1, 2 * PAGE_TOKENS, 2 * PAGE_TOKENS + 1):
        assert executor.reserve(sequence, num_tokens)
        assert executor.count_pages([sequence]) == pages_for(num_tokens)


def test_a_vector_of_128_takes_what_the_design_says(program: Program) -> None:
    wide = [
        op if not isinstance(op, Attend) else Attend(op.out, op.q, op.k, op.v, op.state, 4, 1, 128, 128, 1.0)
        for op in program.ops
    ]
    layer = kv_layers(Program("wide", wide, 3, 64, VOCAB, 4096), parse_kv("balanced", 3))[0]
    assert layer.code_bytes == 128 * (70 + 68)  # keys are centred: 2 bytes a token for the page's mean
    assert layer.exact_bytes == 128 * 2 * 256


@pytest.mark.parametrize("text", ["exact", "balanced", "small", "safe", "balanced,layers=0:exact"])
def test_the_formula_is_what_the_cache_takes(program: Program, text: str) -> None:
    plan = parse_kv(text, 3).for_program(program)
    needs = kv_needs(program, plan)
    executor = build_executor(
        program, num_threads=1, max_rows=256, max_logit_rows=1, max_kv_tokens=4096, max_sequences=2, kv="f16",
        kv_bits=plan.bits, kv_reuse_points=1,
    )  # fmt: skip
    sequence = executor.create_sequence()
    for _ in range(8):
        step(executor, [(sequence, random_tokens(256))], rows=[])
    before = executor.stats()
    for _ in range(4):
        step(executor, [(sequence, random_tokens(256))], rows=[])
    after = executor.stats()
    assert after["kv_bytes"] - before["kv_bytes"] == 1024 * needs.token_bytes
    exact = kv_needs(program, parse_kv("exact", 3))
    assert needs.token_bytes <= exact.token_bytes
    assert after["kv_bytes_encoded"] == 23 * needs.code_page_bytes + needs.sink_bytes
    step(executor, [(sequence, random_tokens(100))], rows=[])
    most = needs.bytes_of(kv_tokens=4096, max_sequences=2, max_rows=256, reuse_points=1)
    assert executor.stats()["kv_bytes"] <= most
    assert executor.page_bytes() <= needs.kept_page_bytes + needs.code_page_bytes
    assert needs.can_reuse_anywhere == executor.can_reuse_anywhere is False  # the second layer has a window


@pytest.mark.parametrize("name", ["decay", "source"])
def test_records_and_sources_take_what_the_formula_says(tmp_path: Path, name: str) -> None:
    program = PROGRAMS[name](tmp_path / "weights.bin")
    needs = kv_needs(program, parse_kv("exact", num_kv_layers(program)))
    assert needs.can_reuse_anywhere == (name == "source")
    assert needs.least_records(2, 3) == (7 if name == "decay" else 0)
    executor = build_executor(
        program, num_threads=1, max_rows=64, max_logit_rows=1, max_kv_tokens=1024, max_sequences=2, kv="f16",
        max_records=needs.least_records(2, 3) or None,
    )  # fmt: skip
    for _ in range(2):
        sequence = executor.create_sequence()
        for state, k, v in source_rows(program):
            executor.set_source(sequence, state, k, v)
        for _ in range(4):
            step(executor, [(sequence, random_tokens(5))], rows=[])
            executor.mark_reuse(sequence)
    taken = executor.stats()["records_bytes"]
    assert taken == 2 * needs.source_bytes if name == "source" else 8 * needs.record_bytes  # two sequences, six marks
    assert taken <= needs.records_bytes(2, needs.least_records(2, 3))
    assert ("record" in needs.formula()) == (name == "decay")


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_weights_are_counted_as_the_executor_has_them(tmp_path: Path, name: str) -> None:
    program = PROGRAMS[name](tmp_path / "weights")
    executor = build_executor(
        program, num_threads=1, max_rows=64, max_logit_rows=1, max_kv_tokens=128, max_sequences=1, kv="f16"
    )
    assert sizes.dense_weight_bytes(program) == executor.stats()["weight_bytes"]


def test_scans_and_convolutions_are_counted_beside_products(tmp_path: Path) -> None:
    assert sizes.scan_ops(PROGRAMS["decay"](tmp_path / "decay")) == 0
    assert sizes.scan_ops(PROGRAMS["conv"](tmp_path / "conv")) == 2 * 64 * 3
    channels = 2 * 16 + 2 * 16 + 4 * 72
    assert sizes.scan_ops(PROGRAMS["delta"](tmp_path / "delta")) == 7 * 4 * 16 * 72 + 2 * channels * 4
