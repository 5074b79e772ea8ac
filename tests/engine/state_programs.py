"""Four small programs, one for each kind of state beside a layer's own pages, and models of them on the native one.

decay    a running sum with decay in the last layer: a record, written after the last attention
widths   pages of two widths in one layer
earlier  an attention that reads the pages of an earlier layer and stores none
source   an attention that reads keys and values made once, beside pages
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from native_programs import TensorFile, inv_freq

from kamado import _native
from kamado import program as p
from kamado.engine.cache.prefix_saver import PrefixSaver
from kamado.engine.cache.prefix_store import PrefixStore
from kamado.engine.cache.sequences import Sources
from kamado.engine.cache.turn_starts import wanted_marks
from kamado.engine.generation import Generation
from kamado.engine.model import Model
from kamado.engine.piece import Piece
from kamado.engine.schedule.request import Request
from kamado.files.types import Checkpoint, TokenizerSource
from kamado.lower import build_executor
from kamado.options import sampling_from

from .fakes import CHATML, VOCAB, ByteTokenizer, make_plan

HIDDEN, HEADS, HEAD_DIM, KV_HEADS = 64, 2, 64, 1
SOURCE_ROWS, MAX_SOURCE_ROWS = 150, 200
_WIDTH = HEADS * HEAD_DIM
_KV_WIDTH = KV_HEADS * HEAD_DIM


class _Maker:
    """Writes weights and collects operations."""

    def __init__(self, path: Path) -> None:
        self.file = TensorFile(path, seed=5)
        self.x, self.h, self.out = (p.Buffer(name, HIDDEN) for name in ("x", "h", "out"))
        self.q, self.attended = p.Buffer("q", _WIDTH), p.Buffer("attended", _WIDTH)
        self.table = self.file.matrix("table", VOCAB, HIDDEN)
        self.ops: list[p.Op] = [p.Embed(self.x, self.table)]

    def norm(self, name: str) -> None:
        self.ops.append(p.Norm(self.h, self.x, self.file.vector(name, HIDDEN)))

    def linear(self, outs: Sequence[p.Buffer], x: p.Buffer, name: str) -> None:
        weights = tuple(self.file.matrix(f"{name}.{i}", out.width, x.width) for i, out in enumerate(outs))
        self.ops.append(p.Linear(tuple(outs), x, weights))

    def attend(
        self, name: str, state: int, *, stores: bool = True, kv_heads: int = KV_HEADS, dim: int = HEAD_DIM
    ) -> None:
        """Reads the norm, adds to x."""
        heads = _WIDTH // dim
        q = self.q
        if stores:
            k, v = (p.Buffer(f"{part}{kv_heads}x{dim}", kv_heads * dim) for part in "kv")
            self.linear((q, k, v), self.h, name)
            self.ops += [p.Rope(q, dim, inv_freq(dim)), p.Rope(k, dim, inv_freq(dim))]
        else:
            k = v = None
            self.linear((q,), self.h, name)
            self.ops.append(p.Rope(q, dim, inv_freq(dim)))
        self.ops.append(
            p.Attend(self.attended, q, k, v, state, heads, kv_heads, dim, dim, scale=dim**-0.5, stores=stores)
        )
        self.linear((self.out,), self.attended, f"{name}.o")
        self.ops.append(p.Add(self.x, self.x, self.out))

    def program(self, name: str, states: Sequence[p.State], num_layers: int = 2) -> p.Program:
        self.norm("last")
        self.ops.append(p.Head(self.h, self.table, scale=2.0))
        return p.Program(name, self.ops, num_layers, HIDDEN, VOCAB, 16384, states=tuple(states))


def decay(path: Path) -> p.Program:
    m = _Maker(path)
    m.norm("norm0")
    m.attend("attend0", 0)
    m.norm("norm1")
    m.linear((m.out,), m.h, "in")
    m.ops.append(p.Accumulate(m.out, m.out, 1, 0.875))
    m.ops.append(p.Scale(m.out, m.out, 0.25))
    m.ops.append(p.Add(m.x, m.x, m.out))
    return m.program("decay", (p.Pages(KV_HEADS, HEAD_DIM, HEAD_DIM), p.Record("sum", 4 * HIDDEN)))


def widths(path: Path) -> p.Program:
    m = _Maker(path)
    m.norm("norm0")
    m.attend("wide0", 0, dim=64)
    m.attend("narrow0", 1, kv_heads=2, dim=16)
    m.norm("norm1")
    m.attend("attend1", 2)
    return m.program("widths", (p.Pages(1, 64, 64), p.Pages(2, 16, 16), p.Pages(KV_HEADS, HEAD_DIM, HEAD_DIM)))


def earlier(path: Path) -> p.Program:
    m = _Maker(path)
    m.norm("norm0")
    m.attend("attend0", 0)
    m.norm("norm1")
    m.attend("attend1", 0, stores=False)
    return m.program("earlier", (p.Pages(KV_HEADS, HEAD_DIM, HEAD_DIM),))


def source(path: Path) -> p.Program:
    m = _Maker(path)
    m.norm("norm0")
    m.attend("attend0", 0)
    m.norm("norm1")
    m.attend("cross1", 1, stores=False)
    return m.program(
        "source", (p.Pages(KV_HEADS, HEAD_DIM, HEAD_DIM), p.Source(KV_HEADS, HEAD_DIM, HEAD_DIM, MAX_SOURCE_ROWS))
    )


PROGRAMS: dict[str, Callable[[Path], p.Program]] = {
    "decay": decay, "widths": widths, "earlier": earlier, "source": source,
}  # fmt: skip


def sources_of(program: p.Program, seed: int = 0) -> Sources | None:
    """Rows for the program's sources; None when it has none."""
    rng = np.random.default_rng(seed)
    rows = [
        (
            number,
            rng.standard_normal((SOURCE_ROWS, _KV_WIDTH)).astype(np.float32),
            rng.standard_normal((SOURCE_ROWS, _KV_WIDTH)).astype(np.float32),
        )
        for number, state in enumerate(program.states)
        if isinstance(state, p.Source)
    ]
    return Sources(tuple(rows)) if rows else None


def state_model(
    program: p.Program,
    *,
    threads: int = 1,
    max_rows: int = 512,
    kv_tokens: int = 8192,
    kv: str = "f16",
    kv_bits: Sequence[tuple[int, int]] | None = None,
    max_sequences: int = 8,
    reuse_points: int = 8,
    max_records: int | None = None,
    store: PrefixStore | None = None,
) -> Model:
    """A model of the program with a byte tokenizer and ChatML."""
    plan = make_plan(context=min(kv_tokens, 8192), kv_tokens=kv_tokens, max_rows=max_rows, max_logit_rows=16)
    executor = build_executor(
        program,
        num_threads=threads,
        max_rows=max_rows,
        max_logit_rows=16,
        max_kv_tokens=kv_tokens,
        max_sequences=max_sequences,
        kv=kv,
        kv_bits=kv_bits,
        kv_reuse_points=reuse_points,
        max_records=max_records,
    )
    binding = {"model": program.architecture, "format": executor.kv_fingerprint}
    path = Path("state.gguf")
    return Model(
        checkpoint=Checkpoint(
            path=path, files=(path,), format="gguf", architecture="state", metadata={}, tensors={},
            tokenizer=TokenizerSource("gguf", {}, path), chat_template=CHATML, sampling={},
        ),
        plan=plan,
        executor=executor,
        tokenizer=ByteTokenizer(),
        cancelled_error=_native.Cancelled,
        max_sequences=max_sequences,
        saver=None if store is None else PrefixSaver(store, executor, binding=binding, has_record=program.has_record),
        has_record=program.has_record,
    )  # fmt: skip


def generate(
    model: Model, tokens: Sequence[int], seed: int, *, sources: Sources | None = None, max_tokens: int = 12
) -> Generation:
    """As `model.generate` at temperature 1, with sources."""
    request = Request(
        tokens,
        sampling=sampling_from({}, {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": seed}),
        vocab_size=VOCAB,
        max_tokens=max_tokens,
        logprobs=2,
        marks=wanted_marks(len(tokens), None) if model._has_record else (),
        sources=sources,
    )
    return Generation(request, model._scheduler, model)


def answer(generation: Iterable[Piece]) -> list[tuple[int, float, tuple[tuple[int, float], ...]]]:
    """Tokens, and log-probabilities to the last bit."""
    return [(piece.token, piece.logprob, piece.top_logprobs) for piece in generation]
