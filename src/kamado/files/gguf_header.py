"""The header of one GGUF file: key-values and tensor infos, read from bytes nobody vouches for.

Every count and length is held against a cap and against the size of the file before anything is allocated for it, so
that what a header can make us allocate is a small multiple of the bytes it really has. Python's integers do not
overflow; the caps keep every product far below 2**63, which is what native code later computes with.

Covered: truncation, lying counts and lengths, wrong types, duplicate names, offsets outside the file, misaligned or
overlapping tensors. Not covered: what the numbers mean to a model (models/) and whether weights are finite.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CorruptFileError, MetadataError, UnsupportedError
from .layouts import Layout
from .plain_file import open_regular
from .strings import Strings

# Caps: far above every published model (Gemma: 262k tokens, DeepSeek: about 1100 tensors a file), far below harm.
MAX_KEY_VALUES = 65_536
MAX_TENSORS = 65_536
MAX_KEY_BYTES = 65_535  # the format's own limit
MAX_TENSOR_NAME_BYTES = 1024  # ggml itself stops at 63
MAX_STRING_BYTES = 64 << 20
MAX_ARRAY_ITEMS = 1 << 23  # a charsmap has 0.25 M bytes, a list of merges 0.5 M strings
MAX_TOTAL_ITEMS = 1 << 23  # the largest vocabulary and its merges, types and scores are 1.3 M
MAX_ARRAY_DEPTH = 3
MAX_INNER_ARRAYS = 4096  # arrays in arrays, which no published file has; each takes as long as a thousand numbers
MAX_DIMS = 4
MAX_TENSOR_VALUES = 1 << 48
MIN_ALIGNMENT, MAX_ALIGNMENT = 8, 1 << 16
DEFAULT_ALIGNMENT = 32
# Arrays of at least so many strings are scanned natively and kept as bytes (strings.Strings); shorter ones are lists.
MIN_SCANNED_STRINGS = 1024
_FIRST_READ_BYTES = 4 << 20  # one read holds the header of most files; tensor data behind it is cheap by comparison

MAGIC = b"GGUF"
_U64 = struct.Struct("<Q")


class ValueType(IntEnum):
    """GGUF's type ids of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# struct codes (little-endian) of the types of fixed size
SCALAR_CODES: dict[ValueType, str] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "B",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}

# (name, values a block, bytes a block) of every type id that ggml defines, ours or not: sizes are checked for all.
GGML_TYPES: dict[int, tuple[str, int, int]] = {
    **{int(layout): (layout.name, layout.block_values, layout.block_bytes) for layout in Layout},
    9: ("Q8_1", 32, 36),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as the header states it, checked. `shape` is in NumPy order, `offset` from the file's start."""

    name: str
    shape: tuple[int, ...]
    type_id: int  # a key of GGML_TYPES
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """Everything before the tensor data of one file."""

    path: Path
    version: int
    alignment: int
    data_offset: int
    file_bytes: int
    metadata: dict[str, Any]
    # (type, item type) of each key; the second is None unless the first is ARRAY
    types: dict[str, tuple[ValueType, ValueType | None]]
    tensors: dict[str, TensorInfo]


class _Cursor:
    """A position in a file whose first bytes are in memory; more are read when the position asks for them."""

    def __init__(self, file: BinaryIO, file_bytes: int, path: Path) -> None:
        self.file = file
        self.file_bytes = file_bytes
        self.path = path
        self.data = file.read(min(_FIRST_READ_BYTES, file_bytes))
        self.pos = 0
        self.num_items = 0
        self.num_inner_arrays = 0

    def need(self, end: int, what: str) -> None:
        """Make bytes up to `end` available, or say that the file ends inside `what`."""
        if end <= len(self.data):
            return
        if end <= self.file_bytes:
            more = min(max(end, 2 * len(self.data)), self.file_bytes) - len(self.data)
            self.data += self.file.read(more)
        if end > len(self.data):
            raise CorruptFileError(
                f"{self.path}: {what} would end at byte {end}, but the file has {self.file_bytes}: "
                "it is truncated or damaged; fetch it again"
            )

    def scalar(self, code: str, what: str) -> Any:
        size = struct.calcsize("<" + code)
        self.need(self.pos + size, what)
        (value,) = struct.unpack_from("<" + code, self.data, self.pos)
        self.pos += size
        return value

    def raw_string(self, cap: int, what: str) -> bytes:
        length = self.scalar("Q", what)
        if length > cap:
            raise CorruptFileError(f"{self.path}: {what} claims {length} bytes, more than the limit of {cap}")
        self.need(self.pos + length, what)
        raw = self.data[self.pos : self.pos + length]
        self.pos += length
        return raw

    def name(self, cap: int, what: str) -> str:
        raw = self.raw_string(cap, what)
        if not raw:
            raise CorruptFileError(f"{self.path}: {what} is empty")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise CorruptFileError(f"{self.path}: {what} is not valid UTF-8") from None

    def strings(self, count: int, what: str) -> Sequence[str]:
        """`count` strings. Bytes that are no UTF-8 become surrogates, since real vocabularies hold pieces of
        characters; `.encode("utf-8", "surrogateescape")` gives them back."""
        if count < MIN_SCANNED_STRINGS:
            return self.read_strings(count, what)
        try:
            from .._native import scan_strings
        except ImportError:  # a header can be read without the executor, only more slowly
            return self.read_strings(count, what)
        while True:
            table, end, num_bytes = scan_strings(self.data, self.pos, count)
            if table is not None:
                self.pos = end
                return Strings(table)
            self.need(end + num_bytes, what)  # reads twice as much, or says that the file ends

    def read_strings(self, count: int, what: str) -> list[str]:
        """`count` strings, in Python: the rule that the native scanner is held against."""
        data, pos, limit = self.data, self.pos, len(self.data)
        unpack = _U64.unpack_from
        out: list[str] = []
        append = out.append
        for _ in range(count):
            begin = pos + 8
            if begin > limit:
                self.need(begin, what)
                data, limit = self.data, len(self.data)
            end = begin + unpack(data, pos)[0]
            if end > limit:
                self.need(end, what)
                data, limit = self.data, len(self.data)
            append(data[begin:end].decode("utf-8", "surrogateescape"))
            pos = end
        self.pos = pos
        return out

    def value_type(self, what: str) -> ValueType:
        type_id = self.scalar("I", what)
        try:
            return ValueType(type_id)
        except ValueError:
            raise CorruptFileError(f"{self.path}: {what} has value type {type_id}, GGUF has 0 to 12") from None

    def array(self, what: str, depth: int) -> tuple[Sequence[Any], ValueType]:
        if depth > MAX_ARRAY_DEPTH:
            raise CorruptFileError(f"{self.path}: {what} nests arrays deeper than {MAX_ARRAY_DEPTH}")
        item_type = self.value_type(what)
        count = self.scalar("Q", what)
        self.num_items += count
        if count > MAX_ARRAY_ITEMS or self.num_items > MAX_TOTAL_ITEMS:
            raise CorruptFileError(
                f"{self.path}: {what} claims {count} items; the limit is {MAX_ARRAY_ITEMS} an array, "
                f"{MAX_TOTAL_ITEMS} a file"
            )
        if item_type is ValueType.ARRAY:
            self.num_inner_arrays += count
            if self.num_inner_arrays > MAX_INNER_ARRAYS:
                raise CorruptFileError(
                    f"{self.path}: {what} claims {count} arrays in an array; the limit is {MAX_INNER_ARRAYS} a file"
                )
            self.need(self.pos + 12 * count, what)
            return [self.array(what, depth + 1)[0] for _ in range(count)], item_type
        if item_type is ValueType.STRING:
            self.need(self.pos + 8 * count, what)
            return self.strings(count, what), item_type
        return self.scalars(item_type, count, what), item_type

    def scalars(self, kind: ValueType, count: int, what: str) -> list[Any]:
        """`count` values of fixed size."""
        code = f"<{count}{SCALAR_CODES[kind]}"
        begin, end = self.pos, self.pos + struct.calcsize(code)
        self.need(end, what)
        self.pos = end
        if kind is not ValueType.BOOL:
            return list(struct.unpack_from(code, self.data, begin))
        raw = self.data[begin:end]
        if wrong := raw.translate(None, b"\0\1"):  # a loop over the items took 100 ns each
            raise CorruptFileError(f"{self.path}: {what} is a bool of value {wrong[0]}, not 0 or 1")
        return list(map(bool, raw))

    def value(self, what: str) -> tuple[Any, tuple[ValueType, ValueType | None]]:
        kind = self.value_type(what)
        if kind is ValueType.ARRAY:
            items, item_type = self.array(what, 1)
            return items, (kind, item_type)
        if kind is ValueType.STRING:
            return self.raw_string(MAX_STRING_BYTES, what).decode("utf-8", "replace"), (kind, None)
        return self.scalars(kind, 1, what)[0], (kind, None)


def read_header(path: Path) -> Header:
    """The checked header of one file, shards of a split model not yet joined.

    Raises CorruptFileError or MetadataError (one sentence: file, key or tensor, what is wrong), UnsupportedError for
    GGUF 1, big-endian files and tensor types that this version cannot even size. A file that cannot be read at all is
    a CorruptFileError as well.
    """
    try:
        with open_regular(path) as file:
            return _parse(_Cursor(file, os.fstat(file.fileno()).st_size, path))
    except OSError as error:
        raise CorruptFileError(f"{path}: cannot be read: {error.strerror or error}") from error


def _parse(cursor: _Cursor) -> Header:
    path = cursor.path
    num_tensors, num_key_values, version = _read_counts(cursor)
    metadata: dict[str, Any] = {}
    types: dict[str, tuple[ValueType, ValueType | None]] = {}
    for i in range(num_key_values):
        key = cursor.name(MAX_KEY_BYTES, f"metadata key {i}")
        if key in metadata:
            raise CorruptFileError(f"{path}: metadata key {key!r} appears twice")
        metadata[key], types[key] = cursor.value(f"metadata key {key!r}")
    alignment = _alignment(metadata, path)
    stated = [_read_tensor_info(cursor, i) for i in range(num_tensors)]
    data_offset = -(-cursor.pos // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, type_id, offset in stated:
        if name in tensors:
            raise CorruptFileError(f"{path}: tensor {name!r} appears twice")
        if offset % alignment:
            raise CorruptFileError(f"{path}: tensor {name!r} lies at offset {offset}, not a multiple of {alignment}")
        nbytes = _tensor_bytes(path, name, shape, type_id)
        begin = data_offset + offset
        if begin + nbytes > cursor.file_bytes:
            raise CorruptFileError(
                f"{path}: tensor {name!r} would end at byte {begin + nbytes}, but the file has {cursor.file_bytes}: "
                "it is truncated or damaged; fetch it again"
            )
        tensors[name] = TensorInfo(name, shape, type_id, begin, nbytes)
    _check_disjoint(path, tensors)
    return Header(path, version, alignment, data_offset, cursor.file_bytes, metadata, types, tensors)


def _read_counts(cursor: _Cursor) -> tuple[int, int, int]:
    path = cursor.path
    magic = cursor.data[:4]
    if magic != MAGIC:
        raise CorruptFileError(f"{path}: not a GGUF file: it begins with {magic!r}, not {MAGIC!r}")
    cursor.pos = 4
    version = cursor.scalar("I", "the header")
    if version not in (2, 3):
        if version & 0xFFFF == 0 and version >> 16:
            raise UnsupportedError(f"{path}: this GGUF file is big-endian; only little-endian files can be read")
        raise UnsupportedError(f"{path}: GGUF version {version}; this version of Kamado reads 2 and 3")
    num_tensors, num_key_values = cursor.scalar("Q", "the header"), cursor.scalar("Q", "the header")
    if num_tensors > MAX_TENSORS:
        raise CorruptFileError(f"{path}: the header claims {num_tensors} tensors, the limit is {MAX_TENSORS}")
    if num_key_values > MAX_KEY_VALUES:
        raise CorruptFileError(f"{path}: the header claims {num_key_values} keys, the limit is {MAX_KEY_VALUES}")
    return num_tensors, num_key_values, version


def _alignment(metadata: dict[str, Any], path: Path) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not MIN_ALIGNMENT <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise MetadataError(
            f"{path}: metadata key 'general.alignment' is {alignment!r}; it must be a power of two "
            f"from {MIN_ALIGNMENT} to {MAX_ALIGNMENT}"
        )
    return alignment


def _read_tensor_info(cursor: _Cursor, i: int) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.name(MAX_TENSOR_NAME_BYTES, f"the name of tensor {i}")
    what = f"tensor {name!r}"
    num_dims = cursor.scalar("I", what)
    if not 1 <= num_dims <= MAX_DIMS:
        raise CorruptFileError(f"{cursor.path}: {what} has {num_dims} dimensions, not 1 to {MAX_DIMS}")
    shape = tuple(cursor.scalar("Q", what) for _ in range(num_dims))[::-1]
    type_id = cursor.scalar("I", what)
    return name, shape, type_id, cursor.scalar("Q", what)


def _tensor_bytes(path: Path, name: str, shape: tuple[int, ...], type_id: int) -> int:
    num_values = 1
    for dim in shape:
        num_values *= dim
        if dim < 1 or num_values > MAX_TENSOR_VALUES:
            raise CorruptFileError(f"{path}: tensor {name!r} has the impossible shape {shape}")
    known = GGML_TYPES.get(type_id)
    if known is None:
        raise UnsupportedError(f"{path}: tensor {name!r} is stored as type {type_id}, which this version does not know")
    type_name, block_values, block_bytes = known
    if shape[-1] % block_values:
        raise CorruptFileError(
            f"{path}: tensor {name!r} has rows of {shape[-1]} values, not a whole number of {type_name} blocks "
            f"of {block_values}"
        )
    return num_values // block_values * block_bytes


def _check_disjoint(path: Path, tensors: dict[str, TensorInfo]) -> None:
    ordered = sorted(tensors.values(), key=attrgetter("offset"))
    for before, after in pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise CorruptFileError(f"{path}: tensors {before.name!r} and {after.name!r} overlap")
