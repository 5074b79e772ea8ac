"""Quantising in NumPy, for synthetic models and tests. Vectorised, plain rounding, no search for better scales.

`quantize` takes float rows; Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 give the very bytes of llama.cpp's reference, Q4_K and
Q6_K a valid but plainer encoding than llama.cpp's. `random_blocks` makes blocks of a wanted standard deviation and
mean zero out of raw random bits, many times faster than quantising random numbers.

Bytes are always uint8 arrays whose last axis is one row (quantize) or one block (random_blocks).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedError
from ..files.types import Layout

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def quantize(values: npt.NDArray[Any], layout: Layout) -> Bytes:
    """`values` (..., cols) float -> uint8 (..., row bytes). cols must be whole blocks (ValueError); finite values only.

    Raises UnsupportedError for layouts that have no plain quantiser here.
    """
    values = np.ascontiguousarray(values, np.float32)
    if layout is Layout.F32:
        return values.view(np.uint8)
    if layout is Layout.F16:
        return values.astype(np.float16).view(np.uint8)
    if layout is Layout.BF16:
        return _bf16(values).view(np.uint8)
    encode = _ENCODERS.get(layout)
    if encode is None:
        raise UnsupportedError(f"there is no quantiser for {layout.name}; there is one for {_names(_ENCODERS)}")
    if values.shape[-1] % layout.block_values:
        raise ValueError(f"rows of {values.shape[-1]} values are no whole number of {layout.name} blocks")
    blocks = encode(values.reshape(-1, layout.block_values))
    return blocks.reshape(*values.shape[:-1], layout.nbytes(values.shape[-1]))


def random_blocks(layout: Layout, num_blocks: int, std: float, rng: np.random.Generator) -> Bytes:
    """uint8 (num_blocks, block bytes): blocks that decode to mean zero and standard deviation `std` (within 2 %).

    Values are uniform over the layout's codes (over an interval for F32, F16, BF16), every code is one the reference
    quantiser can write, and scales differ from block to block and sub-block to sub-block as in real files.
    """
    if layout in (Layout.F32, Layout.F16, Layout.BF16):
        words = rng.integers(0, 1 << 64, -(-num_blocks // 4), np.uint64)
        uniform = words.view(np.int16)[:num_blocks].astype(np.float32)
        uniform *= np.float32(std * 12**0.5 / 65536)
        return quantize(uniform.reshape(num_blocks, 1), layout)
    make = _RANDOM.get(layout)
    if make is None:
        raise UnsupportedError(f"there are no random {layout.name} blocks; there are for {_names(_RANDOM)}")
    num_bytes = num_blocks * layout.block_bytes
    words = rng.integers(0, 1 << 64, -(-num_bytes // 8), np.uint64)
    blocks = words.view(np.uint8)[:num_bytes].reshape(num_blocks, layout.block_bytes)
    make(blocks, std, rng)
    return blocks


def _names(table: dict[Layout, Any]) -> str:
    return ", ".join(layout.name for layout in table)


def _bf16(values: Floats) -> npt.NDArray[np.uint16]:
    """Round to nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def _f16(values: npt.NDArray[Any]) -> Bytes:
    """(n,) -> (n, 2) bytes."""
    return np.ascontiguousarray(values, np.float16).reshape(-1, 1).view(np.uint8)


def _inverse(scale: Floats) -> Floats:
    """1 / scale, and 0 where that would overflow (f16 stores such a scale as 0 anyway)."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=np.abs(scale) > 1e-38)


# ---- plain quantisers: (blocks, block values) float32 -> (blocks, block bytes) uint8


def _q8_0(x: Floats) -> Bytes:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    # half away from zero, like C's roundf; np.round would take halves to even
    q = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
    return np.concatenate([_f16(d), q.view(np.uint8)], axis=1)


def _signed_extreme(x: Floats) -> Floats:
    """The value of largest magnitude in each block, with its sign."""
    return np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)


def _centred(x: Floats, *, bits: int) -> Bytes:
    """Q4_0, Q5_0: the value of largest magnitude becomes code 0, zero the middle one."""
    middle = 1 << (bits - 1)
    d = _signed_extreme(x) / np.float32(-middle)
    q = np.clip(np.trunc(x * _inverse(d) + np.float32(middle + 0.5)), 0, 2 * middle - 1).astype(np.uint8)
    return np.concatenate([_f16(d), *_planes(q, bits)], axis=1)


def _from_least(x: Floats, *, bits: int) -> Bytes:
    """Q4_1, Q5_1: the least value becomes code 0, the largest the last one."""
    last = (1 << bits) - 1
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / np.float32(last)
    q = np.clip(np.trunc((x - low) * _inverse(d) + np.float32(0.5)), 0, last).astype(np.uint8)
    return np.concatenate([_f16(d), _f16(low), *_planes(q, bits)], axis=1)


def _planes(q: Bytes, bits: int) -> list[Bytes]:
    """Codes (n, 32) -> their fifth bits, if they have any, and their nibbles, the second half above the first."""
    nibbles = q & np.uint8(15)
    fifth = [np.packbits(q >> 4, axis=1, bitorder="little")] if bits == 5 else []
    return [*fifth, nibbles[:, :16] | nibbles[:, 16:] << np.uint8(4)]


def _pack_k_scales(scales: Bytes, mins: Bytes) -> Bytes:
    """6-bit scales and mins (n, 8) -> the 12 bytes of Q4_K and Q5_K."""
    out = np.empty((len(scales), 12), np.uint8)
    out[:, :4] = scales[:, :4] | scales[:, 4:] >> 4 << 6
    out[:, 4:8] = mins[:, :4] | mins[:, 4:] >> 4 << 6
    out[:, 8:] = (scales[:, 4:] & 15) | mins[:, 4:] << 4
    return out


def _q4_k(x: Floats) -> Bytes:
    sub = x.reshape(-1, 8, 32)
    low = np.minimum(sub.min(axis=2), 0)
    scale, offset = (sub.max(axis=2) - low) / np.float32(15), -low  # (n, 8) each, both >= 0
    d, dmin = _through_f16(scale.max(axis=1) / 63), _through_f16(offset.max(axis=1) / 63)
    scales = np.clip(np.rint(scale * _inverse(d)[:, None]), 0, 63).astype(np.uint8)
    mins = np.clip(np.rint(offset * _inverse(dmin)[:, None]), 0, 63).astype(np.uint8)
    step, base = d[:, None] * scales, dmin[:, None] * mins
    q = np.clip(np.rint((sub + base[:, :, None]) * _inverse(step)[:, :, None]), 0, 15).astype(np.uint8)
    pairs = q.reshape(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    return np.concatenate([_f16(d), _f16(dmin), _pack_k_scales(scales, mins), nibbles], axis=1)


def _through_f16(values: Floats) -> Floats:
    return values.astype(np.float16).astype(np.float32)


def _q6_k(x: Floats) -> Bytes:
    sub = x.reshape(-1, 16, 16)
    extreme = np.take_along_axis(sub, np.abs(sub).argmax(axis=2, keepdims=True), axis=2)[:, :, 0]
    scale = extreme / np.float32(-32)  # (n, 16); the extreme value becomes code 0
    d = _through_f16(np.abs(scale).max(axis=1) / 127)
    scales = np.clip(np.rint(scale * _inverse(d)[:, None]), -127, 127).astype(np.int8)
    step = d[:, None] * scales
    q = (np.clip(np.rint(sub * _inverse(step)[:, :, None]), -32, 31) + 32).astype(np.uint8)
    quarters = q.reshape(-1, 2, 4, 32)  # a half of 128 values: four runs of 32 share 64 low and 32 high bytes
    low = quarters & 15
    ql = (low[:, :, :2] | low[:, :, 2:] << 4).reshape(-1, 128)
    high = quarters >> 4
    qh = (high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6).reshape(-1, 64)
    return np.concatenate([ql, qh, scales.view(np.uint8), _f16(d)], axis=1)


_ENCODERS: dict[Layout, Callable[[Floats], Bytes]] = {
    Layout.Q8_0: _q8_0,
    Layout.Q4_0: partial(_centred, bits=4),
    Layout.Q4_1: partial(_from_least, bits=4),
    Layout.Q5_0: partial(_centred, bits=5),
    Layout.Q5_1: partial(_from_least, bits=5),
    Layout.Q4_K: _q4_k,
    Layout.Q6_K: _q6_k,
}


# ---- random blocks: given uniform bytes in place, set the scales. Uniform codes 0..2**b-1 have the standard deviation
# sqrt((4**b - 1) / 12), and a mean of half a code from the layout's zero, which alternating signs of the scale cancel.

_STD = {bits: ((4**bits - 1) / 12) ** 0.5 for bits in (4, 5, 6)}


def _middle(bits: int) -> float:
    """The mean of uniform codes."""
    return ((1 << bits) - 1) / 2


def _jitter(num: int, rng: np.random.Generator) -> Floats:
    """Scale factors around 1 with mean square 1."""
    return (0.75 + 0.5 * rng.random(num, np.float32)) / np.float32((1 + 1 / 48) ** 0.5)


def _random_q8_0(blocks: Bytes, std: float, rng: np.random.Generator) -> None:
    codes = blocks[:, 2:].view(np.int8)
    np.maximum(codes, -127, out=codes)  # the quantiser writes -127 to 127
    blocks[:, :2] = _f16(_jitter(len(blocks), rng) * (std / ((255**2 - 1) / 12) ** 0.5))


def _random_centred(blocks: Bytes, std: float, rng: np.random.Generator, *, bits: int) -> None:
    factors = _jitter(len(blocks), rng)
    factors[::2] *= -1
    blocks[:, :2] = _f16(factors * (std / _STD[bits]))


def _random_from_least(blocks: Bytes, std: float, rng: np.random.Generator, *, bits: int) -> None:
    d = _jitter(len(blocks), rng) * (std / _STD[bits])
    blocks[:, :2], blocks[:, 2:4] = _f16(d), _f16(-_middle(bits) * d)


def _random_k_scales(blocks: Bytes, std: float, _: np.random.Generator, *, bits: int) -> None:
    """Q4_K, Q5_K: sub-block scales uniform in 32..63, the same numbers as mins, dmin = the middle code * d."""
    scales = (blocks[:, 4:12] & np.uint8(31)) | np.uint8(32)
    rms = float(np.mean(np.arange(32, 64) ** 2)) ** 0.5
    d = np.float32(std / _STD[bits] / rms)
    blocks[:, :2], blocks[:, 2:4] = _f16(np.array([d])), _f16(np.array([d * _middle(bits)]))
    blocks[:, 4:16] = _pack_k_scales(scales, scales)


def _random_q6_k(blocks: Bytes, std: float, rng: np.random.Generator) -> None:
    scales = (blocks[:, 192:208] & 63) | 64  # 64..127
    scales[:, ::2] = -scales[:, ::2].view(np.int8).view(np.uint8)
    blocks[:, 192:208] = scales
    rms = float(np.mean(np.arange(64, 128) ** 2)) ** 0.5
    blocks[:, 208:210] = _f16(np.array([std / _STD[6] / rms]))


def _random_mxfp4(blocks: Bytes, std: float, rng: np.random.Generator) -> None:
    """Scales are powers of two: the one below the wanted scale and the one above, so often that variances agree."""
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    wanted = max(std, 1e-30) / float(np.mean(magnitudes**2)) ** 0.5
    below = int(np.floor(np.log2(wanted)))
    share = ((wanted / 2.0**below) ** 2 - 1) / 3
    blocks[:, 0] = np.clip(127 + below + (rng.random(len(blocks)) < share), 0, 254)
    codes = blocks[:, 1:]
    codes[codes & 15 == 8] &= 0xF0  # -0, which no quantiser writes
    codes[codes >> 4 == 8] &= 0x0F


_RANDOM: dict[Layout, Callable[[Bytes, float, np.random.Generator], None]] = {
    Layout.Q8_0: _random_q8_0,
    Layout.Q4_0: partial(_random_centred, bits=4),
    Layout.Q4_1: partial(_random_from_least, bits=4),
    Layout.Q5_0: partial(_random_centred, bits=5),
    Layout.Q5_1: partial(_random_from_least, bits=5),
    Layout.Q4_K: partial(_random_k_scales, bits=4),
    Layout.Q5_K: partial(_random_k_scales, bits=5),
    Layout.Q6_K: _random_q6_k,
    Layout.MXFP4: _random_mxfp4,
}
