"""The native executor on one sequence, for tests that compare it with something else."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from kamado.program import Program

HAS_NATIVE = importlib.util.find_spec("kamado._native") is not None

needs_native = pytest.mark.skipif(not HAS_NATIVE, reason="the native module is not built")


def build(
    program: Program, *, num_threads: int = 1, max_rows: int = 256, max_tokens: int = 4096, **options: Any
) -> Any:
    """An executor with a float32 KV cache."""
    from kamado.lower import build_executor

    return build_executor(
        program,
        num_threads=num_threads,
        max_rows=max_rows,
        max_logit_rows=max_rows,
        max_kv_tokens=max_tokens,
        max_sequences=8,
        **{"kv": "f32", **options},
    )


def append(executor: Any, steps: list[tuple[int, list[int]]]) -> np.ndarray:
    """One step over [(sequence, tokens)]; logits of every row, copied."""
    tokens = [t for _, part in steps for t in part]
    logits = executor.step(
        np.array([s for s, _ in steps], np.int32),
        np.array([len(part) for _, part in steps], np.int32),
        np.array(tokens, np.int32),
        np.arange(len(tokens), dtype=np.int32),
    )
    return np.array(logits, copy=True)


def native_logits(program: Program, tokens: list[int], **options: Any) -> np.ndarray:
    """float32[tokens, vocab] of one prefill."""
    executor = build(program, **options)
    try:
        return append(executor, [(executor.create_sequence(), tokens)])
    finally:
        executor.close()
