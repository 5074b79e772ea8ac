"""Small programs, for each kind of state beside a layer's own pages.

decay    a running sum with decay in the last layer: a record, written after the last attention
sums     two running sums and no attention: records of two widths alone
widths   pages of two widths in one layer
earlier  an attention that reads the pages of an earlier layer and stores none
source   an attention that reads keys and values made once, beside pages
conv     a convolution between two gates: a record of the last rows
delta    a gated delta rule behind convolutions of q, k and v: four records, the heads tiled
channels the same with a decay for each row of S, the logarithm of it stored, the heads grouped and betas up to 2
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from native_programs import VOCAB, TensorFile, inv_freq
from numpy.typing import NDArray

from kamado import program as p

HIDDEN, HEAD_DIM, KV_HEADS = 64, 32, 1
SOURCE_ROWS, MOST_SOURCE_ROWS = 150, 200
PAGES = p.Pages(KV_HEADS, HEAD_DIM, HEAD_DIM)  # of programs with the usual heads


class _Maker:
    """Writes weights and collects operations."""

    def __init__(self, path: Path, vocab: int, head_dim: int = HEAD_DIM) -> None:
        self.file = TensorFile(path, seed=5)
        self.vocab = vocab
        self.head_dim, self.width = head_dim, 2 * head_dim
        self.pages = p.Pages(KV_HEADS, head_dim, head_dim)
        self.x, self.h, self.out = (p.Buffer(name, HIDDEN) for name in ("x", "h", "out"))
        self.q, self.attended = p.Buffer("q", self.width), p.Buffer("attended", self.width)
        self.table = self.file.matrix("table", vocab, HIDDEN)
        self.ops: list[p.Op] = [p.Embed(self.x, self.table)]

    def norm(self, name: str) -> None:
        self.ops.append(p.Norm(self.h, self.x, self.file.vector(name, HIDDEN)))

    def linear(self, outs: Sequence[p.Buffer], x: p.Buffer, name: str) -> None:
        weights = tuple(self.file.matrix(f"{name}.{i}", out.width, x.width) for i, out in enumerate(outs))
        self.ops.append(p.Linear(tuple(outs), x, weights))

    def attend(
        self, name: str, state: int, *, stores: bool = True, kv_heads: int = KV_HEADS, dim: int | None = None
    ) -> None:
        """Reads the norm, adds to x."""
        dim = dim or self.head_dim
        heads = self.width // dim
        kept = [p.Buffer(f"{part}{kv_heads}x{dim}", kv_heads * dim) for part in "kv"] if stores else []
        self.linear((self.q, *kept), self.h, name)
        self.ops += [p.Rope(rows, dim, inv_freq(dim)) for rows in (self.q, *kept[:1])]
        k, v = kept or (None, None)
        self.ops.append(
            p.Attend(self.attended, self.q, k, v, state, heads, kv_heads, dim, dim, scale=dim**-0.5, stores=stores)
        )
        self.linear((self.out,), self.attended, f"{name}.o")
        self.ops.append(p.Add(self.x, self.x, self.out))

    def sum(self, name: str, rows: p.Buffer, state: int, decay: float) -> None:
        """Adds a running sum of `rows`, made of the norm, to x."""
        self.norm(f"norm{name}")
        self.linear((rows,), self.h, f"in{name}")
        self.ops.append(p.Accumulate(rows, rows, state, decay))
        if rows is not self.out:
            self.linear((self.out,), rows, f"out{name}")
        self.ops += [p.Scale(self.out, self.out, 0.25), p.Add(self.x, self.x, self.out)]

    def program(self, name: str, *states: p.State) -> p.Program:
        self.norm("last")
        self.ops.append(p.Head(self.h, self.table, scale=2.0))
        return p.Program(name, self.ops, 2, HIDDEN, self.vocab, 16384, states=states)


def decay(path: Path, vocab: int = VOCAB, head_dim: int = HEAD_DIM) -> p.Program:
    m = _Maker(path, vocab, head_dim)
    m.norm("norm0")
    m.attend("attend0", 0)
    m.sum("1", m.out, 1, 0.875)
    return m.program("decay", m.pages, p.Record("sum", 4 * HIDDEN))


def sums(path: Path, vocab: int = VOCAB, head_dim: int = HEAD_DIM) -> p.Program:
    m = _Maker(path, vocab, head_dim)
    wide = p.Buffer("wide", 3 * HIDDEN)
    m.sum("0", wide, 0, 0.75)
    m.sum("1", m.out, 1, 0.875)
    return m.program("sums", p.Record("wide", 4 * wide.width), p.Record("sum", 4 * HIDDEN))


def widths(path: Path, vocab: int = VOCAB, head_dim: int = HEAD_DIM) -> p.Program:
    m = _Maker(path, vocab, head_dim)
    m.norm("norm0")
    m.attend("wide0", 0, dim=64)
    m.attend("narrow0", 1, kv_heads=2, dim=16)
    m.norm("norm1")
    m.attend("attend1", 2)
    return m.program("widths", p.Pages(1, 64, 64), p.Pages(2, 16, 16), m.pages)


def earlier(path: Path, vocab: int = VOCAB, head_dim: int = HEAD_DIM) -> p.Program:
    m = _Maker(path, vocab, head_dim)
    m.norm("norm0")
    m.attend("attend0", 0)
    m.norm("norm1")
    m.attend("attend1", 0, stores=False)
    return m.program("earlier", m.pages)


def source(path: Path, vocab: int = VOCAB, head_dim: int = HEAD_DIM) -> p.Program:
    m = _Maker(path, vocab, head_dim)
    m.norm("norm0")
    m.attend("cross0", 0, stores=False)
    m.attend("attend0", 1)
    m.norm("norm1")
    m.attend("cross1", 0, stores=False)
    return m.program("source", p.Source(KV_HEADS, head_dim, head_dim, MOST_SOURCE_ROWS), m.pages)


def conv(path: Path, vocab: int = VOCAB, head_dim: int = HEAD_DIM) -> p.Program:
    m = _Maker(path, vocab, head_dim)
    m.norm("norm0")
    m.attend("attend0", 0)
    m.norm("norm1")
    b, c, seen = (p.Buffer(name, HIDDEN) for name in ("b", "c", "seen"))
    m.linear((b, c, m.out), m.h, "in")
    m.ops.append(p.Gate(m.out, b, m.out, "none"))
    m.ops.append(p.Conv(seen, m.out, m.file.matrix("conv", HIDDEN, 3), 1, m.file.vector("bias", HIDDEN, 0.0)))
    m.ops.append(p.Gate(seen, c, seen, "none"))
    m.linear((m.out,), seen, "out")
    m.ops.append(p.Add(m.x, m.x, m.out))
    return m.program("conv", m.pages, p.Record("conv", 4 * 2 * HIDDEN))


def _delta(m: _Maker, name: str, k_dim: int, v_dim: int, by_channel: bool) -> p.Program:
    """Key heads half as many as value heads."""
    m.norm("norm0")
    m.attend("attend0", 0)
    m.norm("norm1")
    q, k, v, z, a, b, qc, kc, vc = (
        p.Buffer(it, width)
        for it, width in [
            ("q1", 2 * k_dim), ("k1", 2 * k_dim), ("v1", 4 * v_dim), ("z", 4 * v_dim),
            ("a", 4 * k_dim if by_channel else 4), ("b", 4),
            ("qc", 2 * k_dim), ("kc", 2 * k_dim), ("vc", 4 * v_dim),
        ]
    )  # fmt: skip
    m.linear((q, k, v, z, a, b), m.h, "in")
    taps = m.file.matrix("conv", q.width + k.width + v.width, 4)
    convs: list[p.Conv] = []
    for number, (out, rows) in enumerate([(qc, q), (kc, k), (vc, v)], start=1):
        begin = sum(op.x.width for op in convs)
        convs.append(p.Conv(out, rows, taps.row_range(begin, begin + rows.width), number, activation="silu"))
    m.ops += convs
    m.ops += [p.Norm(rows, rows, None, kind="l2", group=k_dim) for rows in (qc, kc)]
    rate = np.abs(m.file.rng.standard_normal(4)) + 0.1
    scan = p.DeltaScan(
        v, qc, kc, vc, a, b, m.file.add("rate", np.log(rate) if by_channel else -rate),
        m.file.vector("dt", a.width, -2.0), 4, 2, 4, k_dim, v_dim, k_dim**-0.5,
        heads="grouped" if by_channel else "tiled", beta_scale=2.0 if by_channel else 1.0, decay_is_log=by_channel,
    )  # fmt: skip
    m.ops += [scan, p.Norm(v, v, m.file.vector("norm", v_dim), group=v_dim), p.Gate(v, z, v, "silu")]
    m.linear((m.out,), v, "out")
    m.ops.append(p.Add(m.x, m.x, m.out))
    records = [p.Record(f"record{op.state}", op.record_bytes) for op in (*convs, scan)]
    return m.program(name, m.pages, *records)


def delta(path: Path, vocab: int = VOCAB, head_dim: int = HEAD_DIM) -> p.Program:
    return _delta(_Maker(path, vocab, head_dim), "delta", 16, 72, by_channel=False)


def channels(path: Path, vocab: int = VOCAB, head_dim: int = HEAD_DIM) -> p.Program:
    return _delta(_Maker(path, vocab, head_dim), "channels", 9, 40, by_channel=True)


PROGRAMS: dict[str, Callable[..., p.Program]] = {
    "decay": decay, "sums": sums, "widths": widths, "earlier": earlier, "source": source, "conv": conv,
    "delta": delta, "channels": channels,
}  # fmt: skip


def source_rows(program: p.Program, seed: int = 0) -> list[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
    """(state, keys, values) for each source of the program."""
    rng = np.random.default_rng(seed)
    sources = [(number, state) for number, state in enumerate(program.states) if isinstance(state, p.Source)]
    return [(number, _rows(rng, state), _rows(rng, state)) for number, state in sources]


def _rows(rng: np.random.Generator, state: p.Source) -> NDArray[np.float32]:
    return rng.standard_normal((SOURCE_ROWS, state.num_kv_heads * state.head_dim)).astype(np.float32)
