"""Writing GGUF v3: metadata, tensor infos, then the data streamed in order. The file appears whole or not at all."""

from __future__ import annotations

import math
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .atomic import replacing
from .direct_file import DirectFile
from .gguf_header import DEFAULT_ALIGNMENT, MAGIC, SCALAR_CODES, ValueType
from .strings import Strings
from .types import Layout


class GgufWriter:
    """Collects metadata and tensor infos, then writes them and hands out one sink for the data.

    writer = GgufWriter("llama")
    writer.add("llama.block_count", 2)
    writer.add_tensor("token_embd.weight", (256, 64), Layout.F32)
    with writer.open(path) as sink:
        sink.write("token_embd.weight", array)     # in the order of add_tensor, in as many pieces as wanted
    """

    def __init__(self, architecture: str, *, alignment: int = DEFAULT_ALIGNMENT) -> None:
        self.alignment = alignment
        self.metadata: dict[str, tuple[Any, ValueType, ValueType | None]] = {}
        self.tensors: dict[str, tuple[tuple[int, ...], Layout]] = {}
        self.add("general.architecture", architecture)
        if alignment != DEFAULT_ALIGNMENT:
            self.add("general.alignment", alignment)

    def add(self, key: str, value: Any, kind: ValueType | None = None, item_kind: ValueType | None = None) -> None:
        """Set a key. Without `kind`: bool, text, float as FLOAT32, int as UINT32 (INT32 when negative), or an array of
        such. Raises UsageError for what GGUF cannot hold."""
        is_array = isinstance(value, (list, tuple, np.ndarray, Strings))
        if is_array and item_kind is None:
            item_kind = _kind_of(key, value[0] if len(value) else 0)
        self.metadata[key] = (value, kind or (ValueType.ARRAY if is_array else _kind_of(key, value)), item_kind)

    def add_tensor(self, name: str, shape: Sequence[int], layout: Layout) -> None:
        """Announce a tensor, shape in NumPy order. Data is written later, in the order of these calls."""
        if name in self.tensors:
            raise UsageError(f"tensor {name!r} was added twice")
        if not 1 <= len(shape) <= 4 or shape[-1] % layout.block_values:
            raise UsageError(f"tensor {name!r}: shape {tuple(shape)} does not fit {layout.name}")
        self.tensors[name] = (tuple(shape), layout)

    def tensor_bytes(self) -> int:
        """Bytes of all announced tensors, padding left out."""
        return sum(_nbytes(shape, layout) for shape, layout in self.tensors.values())

    def header(self) -> bytes:
        """Everything before the tensor data, padded to the alignment."""
        out = bytearray(MAGIC + struct.pack("<IQQ", 3, len(self.tensors), len(self.metadata)))
        for key, (value, kind, item_kind) in self.metadata.items():
            out += _text(key) + struct.pack("<I", kind) + _value(key, value, kind, item_kind)
        offset = 0
        for name, (shape, layout) in self.tensors.items():
            out += _text(name) + struct.pack("<I", len(shape))
            out += struct.pack(f"<{len(shape)}QIQ", *reversed(shape), layout, offset)
            offset += _nbytes(shape, layout)
            offset += -offset % self.alignment
        return bytes(out + b"\0" * (-len(out) % self.alignment))

    def write_hollow(self, path: Path, known: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write the header, `known` tensors, and for the others a hole, which reads as zeros and takes no room."""
        path.parent.mkdir(parents=True, exist_ok=True)
        header = self.header()
        with replacing(path) as partial, partial.open("wb") as file:
            file.write(header)
            end = len(header)
            for name, (shape, layout) in self.tensors.items():
                nbytes = _nbytes(shape, layout)
                if name in known:
                    data = np.ascontiguousarray(known[name])
                    assert data.nbytes == nbytes, f"{name} has {nbytes} bytes, {data.nbytes} were given"
                    file.seek(end)
                    file.write(data.data)
                end += nbytes + -nbytes % self.alignment
            file.truncate(end)

    @contextmanager
    def open(self, path: Path) -> Iterator[TensorSink]:
        """Write the header and give the sink for the tensors. `path` appears when the block ends with all of them
        written; a short or missing tensor is an AssertionError, since that is a bug of ours. Raises UsageError when the
        disk has no room for them."""
        path.parent.mkdir(parents=True, exist_ok=True)
        total, free = self.tensor_bytes(), shutil.disk_usage(path.parent).free
        if total > free:
            raise UsageError(f"the model takes {total / 1e9:.1f} GB and {path.parent} has {free / 1e9:.1f} GB free")
        with replacing(path) as partial, DirectFile(partial) as file:
            file.write(self.header())
            sink = TensorSink(file, self)
            yield sink
            sink.finish()


class TensorSink:
    """Takes tensor data in the announced order."""

    def __init__(self, file: DirectFile, writer: GgufWriter) -> None:
        self._file = file
        self._alignment = writer.alignment
        self._pending = [(name, _nbytes(shape, layout)) for name, (shape, layout) in writer.tensors.items()]
        self._pending.reverse()
        self._written = 0

    def write(self, name: str, data: npt.NDArray[Any]) -> None:
        """Append `data` (any dtype, C-contiguous) to tensor `name`, which must be the first unfinished one."""
        expected, nbytes = self._pending[-1]
        assert name == expected, f"{name} written before {expected}"
        self._written += data.nbytes
        assert self._written <= nbytes, f"{name} has {nbytes} bytes, {self._written} were written"
        self._file.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        if self._written == nbytes:
            self._file.write(b"\0" * (-nbytes % self._alignment))
            self._pending.pop()
            self._written = 0

    def forget_written(self) -> None:
        """Take what was written out of the page cache. There is nothing to do where it went past it."""
        self._file.forget_written()

    def finish(self) -> None:
        """Check that every tensor is whole."""
        assert not self._pending, f"{len(self._pending)} tensors were not written, the first {self._pending[-1][0]}"


def _nbytes(shape: tuple[int, ...], layout: Layout) -> int:
    return layout.nbytes(math.prod(shape))


def _kind_of(key: str, value: Any) -> ValueType:
    if isinstance(value, (bool, np.bool_)):
        return ValueType.BOOL
    if isinstance(value, str):
        return ValueType.STRING
    if isinstance(value, (float, np.floating)):
        return ValueType.FLOAT32
    if isinstance(value, (int, np.integer)):
        if not -(2**31) <= value < 2**32:
            return ValueType.INT64 if value < 2**63 else ValueType.UINT64
        return ValueType.INT32 if value < 0 else ValueType.UINT32
    raise UsageError(f"key {key!r}: a {type(value).__name__} has no place in GGUF metadata")


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Any, kind: ValueType, item_kind: ValueType | None) -> bytes:
    try:
        if kind is ValueType.STRING:
            return _text(value)
        if kind is not ValueType.ARRAY:
            return struct.pack("<" + SCALAR_CODES[kind], value)
        assert item_kind is not None
        head = struct.pack("<IQ", item_kind, len(value))
        if item_kind is ValueType.STRING:
            return head + b"".join(map(_text, value))
        if item_kind is ValueType.ARRAY:
            raise UsageError(f"key {key!r}: arrays of arrays are not written")
        return head + struct.pack(f"<{len(value)}{SCALAR_CODES[item_kind]}", *value)
    except (struct.error, AttributeError) as error:
        raise UsageError(f"key {key!r}: {error}") from error
