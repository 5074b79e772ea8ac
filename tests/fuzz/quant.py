"""Fuzz quantised blocks: the first byte chooses a layout, the rest are its blocks or numbers to make blocks of.

Decoding any bytes gives as many numbers as asked for and never reads past them; encoding finite numbers gives blocks
that decode to finite numbers whenever their scale is in f16's range.
"""

from __future__ import annotations

import numpy as np

from kamado.errors import UnsupportedError
from kamado.files.types import Layout
from kamado.synth.quantise import quantize

_LAYOUTS = tuple(Layout)


def fuzz_one(data: bytes) -> None:
    """One layout and its bytes. Raises only for a fault of ours."""
    layout = _LAYOUTS[data[0] % len(_LAYOUTS) if data else 0]
    num_blocks = (len(data) - 1) // layout.block_bytes if data else 0
    if num_blocks:
        _decode(layout, data[1 : 1 + num_blocks * layout.block_bytes], num_blocks * layout.block_values)
    num_rows = (len(data) - 1) // 4 // layout.block_values if data else 0
    if num_rows:
        _encode(layout, np.frombuffer(data, "<f4", num_rows * layout.block_values, 1).reshape(num_rows, -1))


def _decode(layout: Layout, blocks: bytes, num_values: int) -> np.ndarray:
    from kamado import _native

    values = _native.dequantize(layout, np.frombuffer(blocks, np.uint8), num_values)
    assert values.shape == (num_values,)
    return values


def _encode(layout: Layout, numbers: np.ndarray) -> None:
    numbers = np.clip(np.nan_to_num(numbers), -6e4, 6e4)
    try:
        blocks = quantize(numbers, layout)
    except UnsupportedError:
        return
    assert blocks.shape == (len(numbers), layout.block_bytes)
    assert np.isfinite(_decode(layout, blocks.tobytes(), numbers.size)).all()


if __name__ == "__main__":
    from _loop import run

    halves = (0x0000, 0x8000, 0x3C00, 0x7BFF, 0x7C00, 0x7E00, 0x0001, 0xFC00)  # zeros, one, largest, inf, nan, smallest
    run("quant", fuzz_one, (*tuple(half.to_bytes(2, "little") for half in halves), b"\xff" * 16, b"\x80" * 16))
