"""Quantisers against the gguf package's, and random blocks for what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from kamado.errors import UnsupportedError
from kamado.files.types import Layout
from kamado.synth.quantise import quantize, random_blocks

gguf = pytest.importorskip("gguf")

EXACT = [Layout.F32, Layout.F16, Layout.BF16, Layout.Q8_0, Layout.Q4_0, Layout.Q4_1, Layout.Q5_0, Layout.Q5_1]
RANDOM = [*EXACT, Layout.Q4_K, Layout.Q5_K, Layout.Q6_K, Layout.MXFP4]
# 4- and 6-bit codes with 6- and 8-bit scales on normal numbers: rounding error / signal, with a margin of a fifth
ERROR = {Layout.Q4_K: 0.09, Layout.Q6_K: 0.022}


def decode(blocks: np.ndarray, layout: Layout) -> np.ndarray:
    return np.asarray(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(int(layout))))


def hard_rows() -> np.ndarray:
    """Normal rows over twelve decades, and the awkward ones: zeros, one sign, ties, a lone spike."""
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((24, 512), np.float32) * np.float32(10.0) ** np.arange(-6, 6, 0.5, np.float32)[:, None]
    rows[0] = 0
    rows[1] = np.abs(rows[1])
    rows[2] = -np.abs(rows[2])
    rows[3] = np.arange(512) % 64 - 31.5
    rows[4] = 0
    rows[4, 77] = -3
    return rows


@pytest.mark.parametrize("layout", EXACT, ids=lambda layout: layout.name)
def test_bytes_are_the_references(layout: Layout) -> None:
    rows = np.clip(hard_rows(), -6e4, 6e4)
    theirs = gguf.quants.quantize(rows, gguf.GGMLQuantizationType(int(layout)))
    assert np.array_equal(quantize(rows, layout), theirs.view(np.uint8))


@pytest.mark.parametrize("layout", ERROR, ids=lambda layout: layout.name)
def test_k_layouts_are_close(layout: Layout) -> None:
    rows = hard_rows()
    decoded = decode(quantize(rows, layout), layout)
    assert np.isfinite(decoded).all()
    assert np.array_equal(decoded[0], rows[0])
    normal = slice(8, None)  # scales of smaller rows fall below f16's normal numbers
    error = np.linalg.norm(decoded[normal] - rows[normal], axis=1) / np.linalg.norm(rows[normal], axis=1)
    assert error.max() < ERROR[layout]


@pytest.mark.parametrize("layout", RANDOM, ids=lambda layout: layout.name)
def test_random_blocks_have_the_moments_they_promise(layout: Layout) -> None:
    num_blocks = 1 << 18 if layout.block_values == 1 else (1 << 20) // layout.block_values
    blocks = random_blocks(layout, num_blocks, 0.02, np.random.default_rng(1))
    assert blocks.shape == (num_blocks, layout.block_bytes)
    values = decode(blocks, layout).astype(np.float64)
    assert abs(values.std() / 0.02 - 1) < 0.02
    assert abs(values.mean() / 0.02) < 0.02
    assert np.array_equal(blocks, random_blocks(layout, num_blocks, 0.02, np.random.default_rng(1)))
    assert layout.block_values == 1 or len(np.unique(blocks[:64], axis=0)) == 64


def test_q8_codes_leave_out_the_one_the_quantiser_never_writes() -> None:
    codes = random_blocks(Layout.Q8_0, 4096, 1.0, np.random.default_rng(2))[:, 2:].view(np.int8)
    assert (codes.min(), codes.max()) == (-127, 127)


@pytest.mark.parametrize("std", [1.0, 0.37, 3e-3, 0.0])
def test_scales_of_mxfp4_are_powers_of_two_around_the_wanted_one(std: float) -> None:
    blocks = random_blocks(Layout.MXFP4, 1 << 14, std, np.random.default_rng(3))
    assert np.ptp(blocks[:, 0].astype(int)) <= 1
    assert not np.isin(np.concatenate([blocks[:, 1:] & 15, blocks[:, 1:] >> 4]), [8]).any()  # -0
    assert decode(blocks, Layout.MXFP4).std() == pytest.approx(std, rel=0.02, abs=1e-6)


def test_refusals() -> None:
    with pytest.raises(UnsupportedError, match="no quantiser for IQ4_XS"):
        quantize(np.zeros((1, 256), np.float32), Layout.IQ4_XS)
    with pytest.raises(UnsupportedError, match="no random IQ4_XS blocks"):
        random_blocks(Layout.IQ4_XS, 1, 1.0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no whole number of Q8_0 blocks"):
        quantize(np.zeros((1, 33), np.float32), Layout.Q8_0)
