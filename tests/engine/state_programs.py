"""Models of the programs of native_state.py, one for each kind of state, on the native executor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import native_state
from native_state import source_rows

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

_HEAD_DIM = 64  # that of a KV preset

PROGRAMS: dict[str, Callable[[Path], p.Program]] = {
    name: partial(make, vocab=VOCAB, head_dim=_HEAD_DIM) for name, make in native_state.PROGRAMS.items()
}


def sources_of(program: p.Program, seed: int = 0) -> Sources | None:
    """Rows for the program's sources; None when it has none."""
    rows = source_rows(program, seed)
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
    template: str = CHATML,
) -> Model:
    """A model of the program with a byte tokenizer."""
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
            tokenizer=TokenizerSource("gguf", {}, path), chat_template=template, sampling={},
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
