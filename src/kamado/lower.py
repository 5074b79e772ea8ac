"""Hands a `Program` to the native executor: tensors and buffers become ids, operations calls of its builder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import _native
from .errors import MemoryBudgetError, NativeError, UnsupportedError
from .files.types import Layout, TensorRef
from .program import Buffer, Experts, Op, Program, State
from .program.operation import BUFFERS, Kind, fields_of

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
    max_records: int | None = None,
    record_rows: int = 1,
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

    `max_records`: of a program with records, for sequences and reuse points together, at least two a sequence; None: as
    many as the other options ask for. A step keeps those after each of its last `record_rows` rows.

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
        for state in program.states:
            lowering.builder.state(type(state).__name__.lower(), **_sizes(state))
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
            max_records=max_records or 0,
            record_rows=record_rows,
            **streaming,
        )
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        if raised or isinstance(error, _native.Cancelled):
            raise
        if streaming and isinstance(error, ValueError) and "read buffers take" in str(error):
            raise MemoryBudgetError(f"{program.architecture}: {error}") from error
        raise NativeError(f"{program.architecture}: {error}") from error


def _sizes(state: State) -> dict[str, int]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != "name"}


class _Lowering:
    """Ids of what the builder was given so far."""

    def __init__(self) -> None:
        self.builder = _native.Builder()
        self._paths: dict[Path, str] = {}
        self._buffers: dict[str, tuple[int, Buffer]] = {}
        self._constants: dict[bytes, int] = {}
        # What stands for a value in the builder; parameters stand for themselves.
        self._lowered: dict[Kind, Callable[[Any], object]] = {
            **dict.fromkeys(BUFFERS, self.buffer),
            **dict.fromkeys((Kind.TABLE, Kind.MATRIX, Kind.TAPS), self.matrix),
            Kind.CONSTANTS: self.constants,
        }

    def buffer(self, buffer: Buffer) -> int:
        known = self._buffers.get(buffer.name)
        if known is None:
            known = self._buffers[buffer.name] = (self.builder.buffer(buffer.name, buffer.width), buffer)
        elif known[1].width != buffer.width:
            raise NativeError(
                f"buffer {buffer.name} is {known[1].width} wide in one operation, {buffer.width} in another"
            )
        return known[0]

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
        place = ref.name, self.path(ref.file), ref.offset, int(layout), ref.rows, ref.cols
        scales, scales_offset = ref.scales or (None, 0)
        scales_path = "" if scales is None else self.path(scales)
        return self.builder.matrix(*place, *(ref.blocks or (0, 0)), ref.by_column, scales_path, scales_offset)

    def vector(self, ref: TensorRef, add: float) -> int:
        step = ref.blocks[1] if ref.blocks else 1
        place = ref.name, self.path(ref.file), ref.offset, int(ref.layout), ref.num_values
        return self.builder.vector(*place, add, step)

    def constants(self, values: NDArray[np.float64]) -> int:
        values = np.ascontiguousarray(values, dtype=np.float64)
        key = values.tobytes()
        if key not in self._constants:
            self._constants[key] = self.builder.constant(values)
        return self._constants[key]

    def append(self, op: Op) -> None:
        fields: dict[str, object] = {}
        for field in fields_of(type(op)):
            if field.kind is Kind.ADDED:
                continue  # belongs to its tensor
            lowered = self._lowered.get(field.kind, _itself)
            if field.kind is Kind.VECTOR:
                lowered = partial(self.vector, add=getattr(op, f"{field.name}_offset", 0.0))
            value = getattr(op, field.name)
            entries = [None if entry is None else lowered(entry) for entry in (value if field.is_list else (value,))]
            fields[field.name] = entries if field.is_list else entries[0]
        self.builder.append(op.label(), fields)


def _itself(value: object) -> object:
    return value
