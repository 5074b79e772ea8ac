"""Matrices that lie otherwise than row after row of whole blocks: columns, every second row, scales apart. Packed like
the same numbers in the usual order, refused where they cannot be."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from models.numpy_executor import read_tensor
from native_programs import TensorFile
from test_row_blocks import COLS, logits, program

from kamado import _native
from kamado.errors import NativeError
from kamado.files.types import Layout, TensorRef

SIZES = (1, 2, 16, 17, 40)  # rows: below a tile of 16, whole tiles, across their border


def same_bits(folder: Path, odd: list[TensorRef], usual: list[TensorRef]) -> None:
    """Products with both are the same bits, on every tier, and what the oracle reads of them are the same numbers."""
    file = TensorFile(folder / "others.bin")
    table = file.matrix("table", 101, odd[0].cols)
    wanted = program(file, table, tuple(usual))
    ops = [
        dataclasses.replace(op, weights=tuple(odd)) if getattr(op, "weights", ()) == tuple(usual) else op
        for op in wanted.ops
    ]
    for one, other in zip(odd, usual, strict=True):
        assert np.array_equal(read_tensor(one), read_tensor(other))
    for tier in _native.tiers():
        got = logits(dataclasses.replace(wanted, ops=ops), tier=tier)
        assert got.tobytes() == logits(wanted, tier=tier).tobytes()


@pytest.mark.parametrize("layout", [Layout.F32, Layout.F16])
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("step", [1, 2])
def test_columns_of_unquantised_values(step: int, rows: int, layout: Layout, tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "stored.bin")
    stored = file.matrix("stored", COLS, step * rows, layout)
    turned = stored.transposed()
    odd = [turned.every(step, first) for first in range(step)] if step > 1 else [turned]
    values = read_tensor(stored)
    usual = [file.add(f"usual{i}", values[:, i::step].T, layout) for i in range(step)]
    same_bits(tmp_path, odd, usual)
    if step > 1:  # one alone, whose last column ends before the file's last value
        same_bits(tmp_path, odd[1:], usual[1:])


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("step", [1, 2])
def test_mxfp4_whose_scales_lie_apart(step: int, rows: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(rows)
    file, blocks = TensorFile(tmp_path / "stored.bin"), COLS // 32
    pairs = rng.integers(0, 256, (step * rows, blocks, 16), np.uint8)
    scales = rng.integers(118, 124, (step * rows, blocks), np.uint8)
    place = file.add("pairs", np.frombuffer(pairs.tobytes(), np.float32))
    apart = file.add("scales", np.frombuffer(np.resize(scales, -(-scales.size // 4) * 4).tobytes(), np.float32))
    whole = TensorRef(
        "whole",
        place.file,
        place.offset,
        pairs.size,
        (step * rows, COLS),
        Layout.MXFP4,
        scales=(apart.file, apart.offset),
    )
    odd = [whole.every(step, first) for first in range(step)] if step > 1 else [whole]
    codes = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(*pairs.shape[:2], 32)
    usual = []
    for first in range(step):
        halves = codes[first::step, :, :16] | codes[first::step, :, 16:] << 4
        raw = np.concatenate([scales[first::step, :, None], halves], axis=-1)
        alone = tmp_path / f"alone{first}.bin"
        raw.tofile(alone)
        usual.append(TensorRef(f"alone{first}", alone, 0, raw.size, (rows, COLS), Layout.MXFP4))
    same_bits(tmp_path, odd, usual)
    if rows > 1 and step == 1:
        same_bits(tmp_path, [whole.row_range(1, rows)], [usual[0].row_range(1, rows)])


def test_names_and_limits(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "weights.bin")
    whole, coded = file.matrix("whole", 12, 32), file.matrix("coded", 4, 32, Layout.Q8_0)
    assert whole.every(2, 1).name == "whole[1::2]"
    assert whole.transposed().every(4, 2).shape == (8, 12)
    stack = dataclasses.replace(whole, shape=(3, 4, 32))
    assert stack.transposed().index(2).every(2, 1).shape == (16, 4)
    assert stack.transposed().index(2).offset == stack.index(2).offset
    for wrong in (
        lambda: whole.every(5, 0), lambda: whole.every(2, 2), lambda: whole.every(2, -1), lambda: stack.every(2, 0),
        lambda: whole.every(2, 0).every(2, 0), lambda: whole.every(2, 0).row_range(0, 1), lambda: coded.transposed(),
        lambda: whole.transposed().row_range(0, 4), lambda: whole.transposed().transposed(),
        lambda: whole.every(2, 0).transposed(), lambda: whole.transposed().row_blocks(0, 1, 2, 4),
    ):  # fmt: skip
        with pytest.raises(IndexError, match="whole|coded"):
            wrong()


def test_the_builder_refuses_what_no_file_can_have(tmp_path: Path) -> None:
    whole = TensorFile(tmp_path / "weights.bin").matrix("whole", 12, 32)
    path, size = str(whole.file), whole.file.stat().st_size
    builder = _native.Builder()

    def matrix(layout: Layout, rows: int, cols: int, *place: object, offset: int = 32) -> None:
        builder.matrix("m", path, offset, int(layout), rows, cols, *place)

    matrix(Layout.F32, 32, 12, 0, 0, True)
    matrix(Layout.F32, 16, 12, 1, 2, True, offset=36)
    for words, arguments in (
        ("reaches past the end", (Layout.F32, 32, 13, 0, 0, True)),
        ("reaches past the end", (Layout.F32, 1 << 28, 1 << 28, 1, 2, True)),
        ("out of range", (Layout.F32, 1 << 40, 12, 0, 0, True)),
        ("out of range", (Layout.F32, 32, 0, 0, 0, True)),
        ("blocks of rows that do not lie one behind the other", (Layout.F32, 16, 12, 2, 4, True)),
        ("only unquantised values", (Layout.Q8_0, 32, 12, 0, 0, True)),
        ("only unquantised values", (Layout.F32, 32, 12, 0, 0, True, path, 32)),
        ("no layout whose scales can lie apart", (Layout.Q8_0, 4, 32, 0, 0, False, path, 32)),
        ("no layout whose scales can lie apart", (Layout.MXFP4, 4, 33, 0, 0, False, path, 32)),
        ("reaches past the end", (Layout.MXFP4, 4, 32, 0, 0, False, path, size - 3)),
        ("reaches past the end", (Layout.MXFP4, 4, 32, 0, 0, False, path, (1 << 64) - 1)),
        ("reaches past the end", (Layout.MXFP4, 1 << 20, 32, 0, 0, False, path, 32)),
        ("cannot open", (Layout.MXFP4, 4, 32, 0, 0, False, path + "x", 32)),
    ):
        with pytest.raises(ValueError, match=words):
            matrix(*arguments)
    builder.vector("v", path, 32, 0, 4, 0.0, 3)
    for length, step in ((0, 1), (4, 0), (4, -1), (4, 1 << 40), (1 << 40, 1)):
        with pytest.raises(ValueError, match="v: .* are out of range"):
            builder.vector("v", path, 32, 0, length, 0.0, step)
    with pytest.raises(ValueError, match="reach past the end"):
        builder.vector("v", path, size - 16, 0, 3, 0.0, 2)


def test_a_table_whose_rows_are_read_alone_lies_row_after_row(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "weights.bin")
    stored, usual = file.matrix("stored", COLS, 101), file.matrix("usual", 4, COLS)
    with pytest.raises(NativeError, match="tensor stored does not lie row after row"):
        logits(program(file, stored.transposed(), (usual,)))
