"""Parts of a layer that stand in the place of attention and keep a record: short convolutions, the gated delta rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .. import program as op
from ..files.types import TensorRef
from ..program import Activation, Buffer, HeadMap, Op, Record
from .stream import Stream

_L2_EPS = 1e-6  # of the norms of q and k, which every reference of the delta rule has


@dataclass(frozen=True, slots=True)
class ShortConv:
    """out = W (c ⊙ conv(b ⊙ x)), of which b, c and x are the thirds of `shortconv.in_proj`."""

    taps: int


@dataclass(frozen=True, slots=True)
class DeltaNet:
    """The gated delta rule (program.DeltaScan says what the fields mean) on convolved q, k and v, normed and gated.

    q, k and v are one matrix (`attn_qkv`) or three (`ssm_q`, …), and so are their taps. `mixed` files are Qwen3-Next's:
    rows of beta and of the decay take turns, a key head's of each (`ssm_ba`), and in safetensors and old GGUF files
    those of q, k, v and the gate do so too (`ssm_in`).
    """

    num_k_heads: int
    num_v_heads: int
    k_dim: int
    v_dim: int
    taps: int
    heads: HeadMap
    decay_is_log: bool
    activation: Activation = "silu"  # behind the convolutions
    beta_scale: float = 1.0
    norm_eps: float | None = None  # None: that of the other norms
    mixed: bool = False


def short_conv(s: Stream, m: ShortConv, x: Buffer, i: int) -> Iterator[Op]:
    """h = the gated convolution of x, by the weights of layer i"""
    b, c, u = (s.buffer(f"conv_{name}") for name in "bcx")
    yield op.Linear((b, c, u), x, s.w.parts("shortconv.in_proj", [s.hidden] * 3, s.hidden, i))
    yield op.Gate(b, b, u, "none")
    yield _conv(s, u, b, s.w.taps("shortconv.conv", s.hidden, m.taps, i), "none")
    yield op.Gate(c, c, u, "none")
    yield s.linear((("shortconv.out_proj", s.h),), c, False, i)


def delta_net(s: Stream, m: DeltaNet, x: Buffer, i: int) -> Iterator[Op]:
    """h = the gated delta rule over x, by the weights of layer i"""
    key_width, value_width = m.num_k_heads * m.k_dim, m.num_v_heads * m.v_dim
    widths = {"q": key_width, "k": key_width, "v": value_width, "gate": value_width}
    widths |= {"beta": m.num_v_heads, "decay": m.num_v_heads}
    raw = {name: s.buffer(f"delta_{name}_raw" if name in "qkv" else f"delta_{name}", n) for name, n in widths.items()}
    weights = _projections(s, m, x.width, i)
    yield op.Linear(tuple(raw[name] for name in weights), x, tuple(weights.values()))
    q, k, v = rows = [s.buffer(f"delta_{name}", widths[name]) for name in "qkv"]
    for name, row, taps in zip("qkv", rows, _taps(s, m, [row.width for row in rows], i), strict=True):
        yield _conv(s, row, raw[name], taps, m.activation)
    for row in (q, k):
        yield op.Norm(row, row, None, None, _L2_EPS, "l2", m.k_dim)
    out = s.buffer("delta", value_width)
    decay, dt_bias = s.w.vector("ssm_a", m.num_v_heads, i), s.w.vector("ssm_dt", m.num_v_heads, i, end="bias")
    state = s.keep(Record(f"delta{i}", 4 * m.num_v_heads * m.k_dim * m.v_dim))
    yield op.DeltaScan(
        out, q, k, v, raw["decay"], raw["beta"], decay, dt_bias, state,
        m.num_k_heads, m.num_v_heads, m.k_dim, m.v_dim, m.k_dim**-0.5, m.heads, m.beta_scale, m.decay_is_log,
    )  # fmt: skip
    yield s.normed(out, out, "ssm_norm", i, m.v_dim, m.norm_eps)
    yield op.Gate(out, raw["gate"], out, "silu")
    yield s.linear((("ssm_out", s.h),), out, False, i)


def _conv(s: Stream, out: Buffer, x: Buffer, taps: TensorRef, activation: Activation) -> op.Conv:
    """out = the causal convolution of x, with a record of its own."""
    state = s.keep(Record(f"conv{len(s.states)}", 4 * (taps.cols - 1) * x.width))
    return op.Conv(out, x, taps, state, None, activation)


def _taps(s: Stream, m: DeltaNet, widths: list[int], i: int) -> Iterator[TensorRef]:
    """Those of q, k and v."""
    if s.w.is_fused("ssm_conv1d_q", i) and not s.w.has("ssm_conv1d", i):
        yield from (s.w.taps(f"ssm_conv1d_{part}", width, m.taps, i) for part, width in zip("qkv", widths, strict=True))
        return
    whole, begin = s.w.taps("ssm_conv1d", sum(widths), m.taps, i), 0
    for width in widths:
        yield whole.row_range(begin, begin + width)
        begin += width


def _projections(s: Stream, m: DeltaNet, cols: int, i: int) -> dict[str, TensorRef]:
    """The matrices of q, k, v, the gate, beta and the decay, wherever their rows lie."""
    share = m.num_v_heads // m.num_k_heads  # value heads of a key head
    key_width, value_width = m.num_k_heads * m.k_dim, m.num_v_heads * m.v_dim
    found: dict[str, TensorRef] = {}
    if m.mixed and s.w.is_fused("ssm_in", i):
        rows = {"q": m.k_dim, "k": m.k_dim, "v": share * m.v_dim, "gate": share * m.v_dim}
        found |= _by_turns(s, "ssm_in", i, cols, m.num_k_heads, rows)
    else:
        widths = {"q": key_width, "k": key_width, "v": value_width}
        if s.w.is_fused("ssm_q", i):
            found |= {part: s.w.matrix(f"ssm_{part}", width, cols, i) for part, width in widths.items()}
        else:
            found |= dict(zip("qkv", s.w.parts("attn_qkv", list(widths.values()), cols, i), strict=True))
        found["gate"] = s.w.matrix("attn_gate", value_width, cols, i)
    if m.mixed:
        return found | _by_turns(s, "ssm_ba", i, cols, m.num_k_heads, {"beta": share, "decay": share})
    found["beta"] = s.w.matrix("ssm_beta", m.num_v_heads, cols, i)
    found["decay"] = s.w.matrix("ssm_alpha", m.num_v_heads, cols, i)
    return found


def _by_turns(s: Stream, role: str, i: int, cols: int, count: int, rows: dict[str, int]) -> dict[str, TensorRef]:
    """The parts of a matrix in which so many rows of each follow each other, `count` times."""
    stride = sum(rows.values())
    whole = s.w.matrix(role, stride * count, cols, i)
    found, first = {}, 0
    for name, length in rows.items():
        found[name] = whole.row_blocks(first, length, stride, count)
        first += length
    return found
