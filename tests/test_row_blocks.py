"""Matrices whose rows lie in blocks of another: packed like the same rows together, refused where they cannot be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models.numpy_executor import NumpyExecutor, read_tensor
from native_programs import VOCAB, TensorFile, random_tokens, step

from kamado import _native
from kamado import program as p
from kamado.errors import NativeError
from kamado.files.types import Layout, TensorRef
from kamado.lower import build_executor

COLS, HEADS = 256, 5
X = p.Buffer("x", COLS)


def logits(program: p.Program, **options: Any) -> np.ndarray:
    executor = build_executor(
        program, **{"num_threads": 2, "max_rows": 64, "max_logit_rows": 64, "max_kv_tokens": 128,
                    "max_sequences": 1, "kv": "f32", **options}
    )  # fmt: skip
    try:
        return step(executor, [(executor.create_sequence(), random_tokens(20))])
    finally:
        executor.close()


def program(file: TensorFile, table: TensorRef, parts: tuple[TensorRef, ...]) -> p.Program:
    """x of the parts' products, one after the other added."""
    outs = tuple(p.Buffer(f"part{i}", part.rows) for i, part in enumerate(parts))
    back = tuple(file.matrix(f"back{i}", COLS, out.width) for i, out in enumerate(outs))
    ops: list[p.Op] = [p.Embed(X, table), p.Linear(outs, X, parts)]
    for i, (out, weight) in enumerate(zip(outs, back, strict=True)):
        h = p.Buffer(f"h{i}", COLS)
        ops += [p.Linear((h,), out, (weight,)), p.Add(X, X, h)]
    return p.Program("blocks", [*ops, p.Head(X, table)], 1, COLS, VOCAB, 64)


# Rows that a head has of each part: below a tile of 16 rows, whole tiles, across their borders.
SPLITS = ((1, 1), (3, 2), (16, 16), (40, 24, 7))


@pytest.mark.parametrize("layout", [Layout.F32, Layout.F16, Layout.Q8_0, Layout.Q4_K])
@pytest.mark.parametrize("lengths", SPLITS)
def test_blocks_give_the_bits_of_the_same_rows_together(
    tmp_path: Path, lengths: tuple[int, ...], layout: Layout
) -> None:
    stride = sum(lengths)
    file = TensorFile(tmp_path / "weights.bin")
    table = file.matrix("table", VOCAB, COLS)
    whole = file.matrix("whole", stride * HEADS, COLS, layout)
    rows = np.arange(stride * HEADS).reshape(HEADS, stride)
    values = read_tensor(whole)
    raw = np.fromfile(whole.file, np.uint8, whole.nbytes, offset=whole.offset).reshape(whole.rows, -1)
    in_blocks, together, first = [], [], 0
    for length in lengths:
        part = whole.row_blocks(first, length, stride, HEADS)
        picked = rows[:, first : first + length].reshape(-1)
        assert np.array_equal(read_tensor(part), values[picked])
        assert part.nbytes == raw[picked].nbytes
        alone = tmp_path / f"part{first}.bin"
        raw[picked].tofile(alone)
        in_blocks.append(part)
        together.append(dataclasses.replace(part, file=alone, offset=0, blocks=None, name=f"alone{first}"))
        first += length
    blocks, plain = (program(file, table, tuple(parts)) for parts in (in_blocks, together))
    plain = dataclasses.replace(plain, ops=[_with_weights_of(a, b) for a, b in zip(plain.ops, blocks.ops, strict=True)])
    p.validate(blocks)
    for tier in _native.tiers():
        assert logits(blocks, tier=tier).tobytes() == logits(plain, tier=tier).tobytes()
    wanted = NumpyExecutor(blocks).forward(random_tokens(20))
    tolerance = 1e-4 if layout in (Layout.F32, Layout.F16) else 0.05
    assert np.abs(logits(blocks) - wanted).max() < tolerance * np.abs(wanted).max()


def _with_weights_of(op: Any, other: Any) -> Any:
    """The matrices behind the parts are the same."""
    is_back = isinstance(op, p.Linear) and op.x is not X
    return dataclasses.replace(op, weights=other.weights) if is_back else op


def test_names_and_limits(tmp_path: Path) -> None:
    whole = TensorFile(tmp_path / "weights.bin").matrix("whole", 12, 8)
    assert whole.row_blocks(1, 2, 4, 3).name == "whole[1:3/4]"
    assert whole.row_blocks(4, 4, 4, 2) == whole.row_range(4, 12)
    assert whole.row_blocks(2, 3, 9, 1) == whole.row_range(2, 5)
    for wrong in ((0, 5, 4, 2), (0, 0, 4, 3), (1, 4, 4, 3), (-1, 2, 4, 3), (0, 2, 4, 0)):
        with pytest.raises(IndexError, match="whole"):
            whole.row_blocks(*wrong)
    part = whole.row_blocks(0, 2, 4, 3)
    for use in (lambda: part.row_range(0, 2), lambda: part.index(0), lambda: part.row_blocks(0, 1, 2, 2)):
        with pytest.raises(IndexError, match=r"whole\[0:2/4\]"):
            use()


def test_the_builder_refuses_blocks_that_make_no_rows(tmp_path: Path) -> None:
    whole = TensorFile(tmp_path / "weights.bin").matrix("whole", 12, 8)
    place = (whole.name, str(whole.file), whole.offset, int(whole.layout))
    for rows, block, stride in ((6, 4, 5), (6, 3, 2), (6, -3, 3), (6, 0, 4), (6, 2, 1 << 40), (1 << 40, 2, 4)):
        with pytest.raises(ValueError, match="whole: blocks of"):
            _native.Builder().matrix(*place, rows, 8, block, stride)
    with pytest.raises(ValueError, match="reach past the end"):
        _native.Builder().matrix(*place, 8, 8, 2, 4)


def test_experts_lie_together(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "weights.bin")
    table, router = file.matrix("table", VOCAB, 32), file.matrix("router", 2, 32)
    whole, down = file.matrix("whole", 32, 32), file.experts("down", 2, 32, 8, Layout.F32)
    x, picks, out = p.Buffer("x", 32), p.Buffer("picks", 2), p.Buffer("out", 32)
    gate = tuple(whole.row_blocks(first, 4, 16, 2) for first in (0, 4))
    up = tuple(whole.row_range(first, first + 8) for first in (0, 8))
    broken = p.Program(
        "experts",
        [
            p.Embed(x, table), p.Linear((picks,), x, (router,)), p.Route(picks, 2, 1),
            p.Experts(out, x, picks, gate, up, down), p.Head(out, table),
        ],
        1, 32, VOCAB, 64, 2, 1,
    )  # fmt: skip
    words = r"whole\[0:4/16\]'? lies in blocks, which an expert's must not"
    with pytest.raises(ValueError, match=words):
        p.validate(broken)
    with pytest.raises(NativeError, match=words):
        logits(broken)
