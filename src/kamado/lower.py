"""Hands a `Program` to the native executor: tensors and buffers become ids, operations calls of its builder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np

from . import _native
from .checkpoint.types import Layout, TensorRef
from .errors import MemoryBudgetError, NativeError, UnsupportedError
from .program import (
    Add,
    Attend,
    Buffer,
    Embed,
    Experts,
    Gate,
    Head,
    Linear,
    Norm,
    Op,
    Pool,
    Program,
    Rope,
    Route,
    Scale,
    Softcap,
)

Progress = Callable[[int, int], None]


def build_executor(
    program: Program,
    *,
    num_threads: int,
    max_rows: int,
    max_logit_rows: int,
    max_kv_tokens: int,
    max_sequences: int,
    kv: Literal["f32", "f16"],
    tier: str | None = None,
    expert_bytes: int | None = None,
    num_readers: int = 4,
    direct_io: Literal["auto", "on", "off"] = "auto",
    verify_slots: bool = False,
    look_ahead: Literal["auto", "on", "off"] = "auto",
    kv_bits: Sequence[tuple[int, int]] | None = None,
    kv_reuse_points: int = 0,
    drop_file_cache: bool = False,
    progress: Progress | None = None,
) -> _native.Executor:
    """An executor of `program` with its weights packed into memory.

    `expert_bytes` None: all of them. Else experts are read from their files when they are needed, by `num_readers`
    threads, into slots that take at most that many bytes; results are the same bits. `direct_io` "auto": past the page
    cache where the file system can. `verify_slots` compares every expert used with its bytes in the file: for tests.
    `look_ahead` "auto": the next layer's experts are read ahead, by guess, while that is measured to pay.

    `kv_bits`: (key bits, value bits) of each KV layer, (0, 0) for exact ones; layers with a window then keep their
    window only, and sequences can be cut and forked at reuse points (`_native.Executor.mark_reuse`), of which
    `kv_reuse_points` certainly keep their pages. None: everything is kept exactly.

    `drop_file_cache`: loading keeps no more than a few MiB of the files in the page cache, and nothing in the end;
    always so with `expert_bytes`.

    Tensors that two operations share are loaded once. A table that only Embed uses stays on disk, read row by row.
    `progress(done_bytes, total_bytes)` is called from this thread at most every 50 ms; what it raises stops the load.
    Raises UnsupportedError when a tensor has a layout or shape that no kernel takes, MemoryBudgetError when
    `expert_bytes` are too few, NativeError for any other refusal.
    """
    raised: list[BaseException] = []

    def report(done_bytes: int, total_bytes: int) -> None:
        try:
            if progress is not None:
                progress(done_bytes, total_bytes)
        except BaseException as error:
            raised.append(error)
            raise

    streaming: dict[str, Any] = {}
    if expert_bytes is not None and any(isinstance(op, Experts) and op.gate for op in program.ops):
        streaming = {
            "expert_bytes": expert_bytes,
            "num_readers": num_readers,
            "direct_io": direct_io,
            "verify_slots": verify_slots,
            "look_ahead": look_ahead,
        }
    try:
        lowering = _Lowering()
        for op in program.ops:
            lowering.append(op)
        return lowering.builder.build(
            num_threads=num_threads,
            max_rows=max_rows,
            max_logit_rows=max_logit_rows,
            max_kv_tokens=max_kv_tokens,
            max_sequences=max_sequences,
            kv=kv,
            tier=tier,
            progress=report if progress is not None else None,
            kv_bits=None if kv_bits is None else list(kv_bits),
            kv_reuse_points=kv_reuse_points,
            drop_file_cache=drop_file_cache,
            **streaming,
        )
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        if raised or isinstance(error, _native.Cancelled):
            raise
        if streaming and isinstance(error, ValueError) and "read buffers take" in str(error):
            raise MemoryBudgetError(f"{program.architecture}: {error}") from error
        raise NativeError(f"{program.architecture}: {error}") from error


class _Lowering:
    """Ids of what the builder was given so far."""

    def __init__(self) -> None:
        self.builder = _native.Builder()
        self._paths: dict[Path, str] = {}
        self._buffers: dict[str, tuple[int, Buffer]] = {}
        self._inv_freqs: dict[bytes, int] = {}

    def buffer(self, buffer: Buffer) -> int:
        known = self._buffers.get(buffer.name)
        if known is None:
            known = self._buffers[buffer.name] = (self.builder.buffer(buffer.name, buffer.width), buffer)
        elif known[1].width != buffer.width:
            raise NativeError(
                f"buffer {buffer.name} is {known[1].width} wide in one operation, {buffer.width} in another"
            )
        return known[0]

    def buffer_or_none(self, buffer: Buffer | None) -> int | None:
        return None if buffer is None else self.buffer(buffer)

    def path(self, path: Path) -> str:
        text = self._paths.get(path)
        if text is None:
            text = self._paths[path] = str(path)
        return text

    def matrix(self, ref: TensorRef) -> int:
        if len(ref.shape) != 2:
            raise UnsupportedError(f"{ref.name} has shape {ref.shape}: a matrix is needed")
        layout = Layout(ref.layout)
        if ref.cols % layout.block_values:
            raise UnsupportedError(
                f"{ref.name} has rows of {ref.cols} values: "
                f"no whole number of {layout.name} blocks of {layout.block_values}"
            )
        return self.builder.matrix(ref.name, self.path(ref.file), ref.offset, int(layout), ref.rows, ref.cols)

    def vector(self, ref: TensorRef | None, add: float = 0.0) -> int | None:
        if ref is None:
            return None
        return self.builder.vector(ref.name, self.path(ref.file), ref.offset, int(ref.layout), ref.num_values, add)

    def append(self, op: Op) -> None:
        build = self.builder
        match op:
            case Embed():
                build.embed(self.buffer(op.out), self.matrix(op.table), op.scale, op.index)
            case Norm():
                x = self.buffer(op.x)
                weight, bias = self.vector(op.weight, op.weight_offset), self.vector(op.bias)
                build.norm(self.buffer(op.out), x, weight, bias, op.eps, op.kind == "layer", op.group or 0)
            case Linear():
                outs = [self.buffer(out) for out in op.outs]
                weights = [self.matrix(weight) for weight in op.weights]
                build.linear(outs, self.buffer(op.x), weights, [self.vector(bias) for bias in op.biases])
            case Rope():
                self._rope(op)
            case Attend():
                self._attend(op)
            case Gate():
                build.gate(self.buffer(op.out), self.buffer(op.a), self.buffer_or_none(op.b), op.activation)
            case Route():
                build.route(
                    self.buffer(op.logits),
                    op.num_experts,
                    op.top_k,
                    op.score,
                    op.normalize,
                    self.vector(op.bias),
                    op.num_groups,
                    op.top_groups,
                    op.scale,
                )
            case Experts():
                build.experts(
                    self.buffer(op.out),
                    self.buffer(op.x),
                    self.buffer(op.logits),
                    [self.matrix(weight) for weight in op.gate],
                    [self.matrix(weight) for weight in op.up],
                    [self.matrix(weight) for weight in op.down],
                    op.activation,
                )
            case Add():
                build.add(self.buffer(op.out), self.buffer(op.a), self.buffer(op.b))
            case Scale():
                build.scale(self.buffer(op.out), self.buffer(op.x), op.factor)
            case Softcap():
                build.softcap(self.buffer(op.out), self.buffer(op.x), op.cap)
            case Head():
                weight = self.matrix(op.weight)
                build.head(self.buffer(op.x), weight, self.vector(op.bias), op.scale, op.softcap or 0.0)
            case Pool():
                build.head(self.buffer(op.x), None, None, 1.0, 0.0)
            case _:
                assert_never(op)

    def _rope(self, op: Rope) -> None:
        values = np.ascontiguousarray(op.inv_freq, dtype=np.float64)
        key = values.tobytes()
        if key not in self._inv_freqs:
            self._inv_freqs[key] = self.builder.constant(values)
        self.builder.rope(self.buffer(op.x), op.head_dim, self._inv_freqs[key], op.interleaved, op.attention_factor)

    def _attend(self, op: Attend) -> None:
        self.builder.attend(
            out=self.buffer(op.out),
            q=self.buffer(op.q),
            k=self.buffer(op.k),
            v=self.buffer(op.v),
            layer=op.layer,
            num_heads=op.num_heads,
            num_kv_heads=op.num_kv_heads,
            head_dim=op.head_dim,
            v_dim=op.v_dim,
            scale=op.scale,
            window=op.window or 0,
            softcap=op.softcap or 0.0,
            causal=op.causal,
        )
