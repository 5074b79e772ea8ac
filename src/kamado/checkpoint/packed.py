"""Experts packed beforehand: a side file in which each expert is one record, the bytes of its slot as they are.

    0        magic, versions, sizes (_PREAMBLE)
    88       JSON: which model's files it was made from, and a digest of where its experts lie in them
    ...      a table, one row a record: offset, bytes, checksum (of a record not written yet: 0)
    ...      zeros up to a multiple of 4096, then the records, each a multiple of 4096

A streamed expert is then one read, straight into its slot, with nothing to pack on arrival. The file is written under
another name, record by record; what was written before an interruption is checked and kept. It gets its name when
every record was read back from the disk and found right.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import PackedFileError, PackedFileWarning
from .types import Checkpoint, TensorRef

ExpertRecord = tuple[TensorRef, TensorRef, TensorRef]  # gate, up, down
Progress = Callable[[int, int], None]

SUFFIX = ".experts"
_PARTIAL = ".part"
_MAGIC = b"KAMADOXP"
_FORMAT_VERSION = 1
# magic, format version, version of tiles and slots, header bytes, JSON bytes, records, file bytes, is whole, sha256
_PREAMBLE = struct.Struct("<8sIIIIQQQ32s8x")
_WHOLE_AT, _DIGEST_AT = 40, 48
_ROW = np.dtype([("offset", "<u8"), ("bytes", "<u8"), ("checksum", "<u8")])
_ALIGN = 4096
_MOST_HEADER_BYTES = 1 << 28  # of a model's file: what is read to know it again
_FORGET_BYTES = 64 << 20
_MARGIN_BYTES = 64 << 20  # left free on the disk


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A side file that belongs to a model, its header checked."""

    path: Path
    nbytes: int
    offsets: Sequence[int] = field(repr=False)  # by expert, layer after layer
    checksums: Sequence[int] = field(repr=False)


@dataclass(frozen=True, slots=True)
class PackReport:
    """What `pack_experts` did."""

    path: Path
    nbytes: int
    num_records: int
    num_kept: int  # records that an earlier, interrupted run had written


def packed_path(model: Path) -> Path:
    """Where the side file of a model lies: beside its (first) file, or in its directory."""
    return model / f"model{SUFFIX}" if model.is_dir() else model.with_name(model.name + SUFFIX)


def packed_bytes(model: Path) -> int:
    """Bytes of the side file of a model, finished or not; 0 without one."""
    path = packed_path(model)
    for candidate in (path, path.with_name(path.name + _PARTIAL)):
        with suppress(OSError):
            return candidate.stat().st_size
    return 0


def find_packed(checkpoint: Checkpoint, records: Sequence[ExpertRecord], path: Path | None = None) -> PackedFile | None:
    """The side file of a model's experts, None when there is none at `path` (None: where it belongs).

    Raises PackedFileError, with the reason, when there is one that is damaged or was not made from these very files.
    """
    path = path or packed_path(checkpoint.path)
    try:
        with open(path, "rb") as file:
            nbytes = os.fstat(file.fileno()).st_size
            _check_preamble(path, file.read(_PREAMBLE.size))
            layout = _Layout(checkpoint, records)
            file.seek(0)
            header = bytearray(file.read(len(layout.header)))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PackedFileError(f"{path}: {error.strerror or error}") from None
    _check_origin(path, header, layout)
    if not int.from_bytes(header[_WHOLE_AT : _WHOLE_AT + 8], "little"):
        raise PackedFileError(f"{path}: was not finished")
    digest = bytes(header[_DIGEST_AT : _DIGEST_AT + 32])
    if digest != _digest(header):
        raise PackedFileError(f"{path}: its header is damaged")
    if nbytes != layout.file_bytes:
        raise PackedFileError(f"{path}: has {nbytes} bytes where {layout.file_bytes} were written")
    table = layout.table_of(header)
    return PackedFile(path, nbytes, table["offset"].tolist(), table["checksum"].tolist())


def choose_packed(
    checkpoint: Checkpoint, records: Sequence[ExpertRecord], packed: str | Path | bool | None
) -> PackedFile | None:
    """The side file to read experts from, as `kamado.load(packed=…)` has it: False none; None what lies beside the
    model, with a PackedFileWarning when it is none of this model's; a path, or True, what must be there.

    Raises PackedFileError when what was asked for is not there or does not belong to the model.
    """
    if packed is False:
        return None
    path = Path(packed).expanduser() if isinstance(packed, (str, Path)) else None
    try:
        found = find_packed(checkpoint, records, path)
    except PackedFileError as error:
        if packed is not None:
            raise
        warnings.warn(f"{error}; experts are read from the model's own file instead", PackedFileWarning, stacklevel=3)
        return None
    if found is None and packed is not None:
        raise PackedFileError(f"{path or packed_path(checkpoint.path)}: no such file: kamado pack writes it")
    return found


def pack_experts(
    checkpoint: Checkpoint,
    records: Sequence[ExpertRecord],
    out: Path | None = None,
    *,
    progress: Progress | None = None,
) -> PackReport:
    """Writes the side file of a model's experts to `out` (None: where it is found by itself).

    Takes the memory of about two experts; what it leaves in the page cache is given back. Interrupted in any way, it
    goes on from there when it is called again: what is on the disk is checked first. `progress(done, total)` counts
    bytes, of writing and then of reading back. Raises PackedFileError when there are no experts, too little room is on
    the disk or another process writes the same file; OSError when a file cannot be read or written.
    """
    if not records:
        raise PackedFileError(f"{checkpoint.path}: has no experts, there is nothing to pack")
    out = (out or packed_path(checkpoint.path)).absolute()
    layout = _Layout(checkpoint, records)
    partial = out.with_name(out.name + _PARTIAL)
    with _locked(partial) as fd:
        _check_room(partial, fd, layout.file_bytes)
        writer = _Writer(partial, fd, layout, progress)
        try:
            num_kept = writer.resume()
            writer.write_rest(records)
            writer.read_back()
        finally:
            writer.close()
        if layout.identity != _identity(checkpoint, records):
            raise PackedFileError(f"{checkpoint.path}: was changed while it was packed: pack it again")
        writer.finish()
        os.replace(partial, out)
    _sync_directory(out.parent)
    return PackReport(out, layout.file_bytes, len(records), num_kept)


class _Layout:
    """Where everything lies: the header of a file with no record written yet."""

    def __init__(self, checkpoint: Checkpoint, records: Sequence[ExpertRecord]) -> None:
        from .. import _native

        sizes: dict[tuple[int, int, int], int] = {}

        def packed_bytes(ref: TensorRef) -> int:
            key = int(ref.layout), ref.rows, ref.cols
            if key not in sizes:
                sizes[key] = _native.packed_bytes(*key)
            return sizes[key]

        self.parts = [[packed_bytes(ref) for ref in record] for record in records]
        self.identity = _identity(checkpoint, records)
        text = json.dumps(self.identity, sort_keys=True).encode()
        self.table_at = _round_up(_PREAMBLE.size + len(text), 64)
        header_bytes = _round_up(self.table_at + len(records) * _ROW.itemsize, _ALIGN)
        self.table = np.zeros(len(records), _ROW)
        self.table["bytes"] = [_round_up(sum(parts), _ALIGN) for parts in self.parts]
        self.table["offset"] = header_bytes + np.cumsum(self.table["bytes"]) - self.table["bytes"]
        self.file_bytes = header_bytes + int(self.table["bytes"].sum())
        self.header = bytearray(header_bytes)
        _PREAMBLE.pack_into(
            self.header, 0, _MAGIC, _FORMAT_VERSION, _native.PACKED_VERSION, header_bytes, len(text), len(records),
            self.file_bytes, 0, bytes(32),
        )  # fmt: skip
        self.header[_PREAMBLE.size : _PREAMBLE.size + len(text)] = text
        self.header[self.table_at : self.table_at + self.table.nbytes] = self.table.tobytes()

    def table_of(self, header: bytes | bytearray) -> NDArray[np.void]:
        """A copy of the table in a header of this layout."""
        return np.frombuffer(header, _ROW, len(self.table), self.table_at).copy()

    def is_header(self, header: bytes | bytearray) -> bool:
        """Whether a header is of this layout, whichever records are written."""
        if len(header) != len(self.header):
            return False
        plain = bytearray(header)
        plain[_WHOLE_AT : _DIGEST_AT + 32] = bytes(_DIGEST_AT + 32 - _WHOLE_AT)
        table = self.table_of(plain)
        table["checksum"] = 0
        plain[self.table_at : self.table_at + table.nbytes] = table.tobytes()
        return plain == self.header


class _Writer:
    """Writes records, reads them back, and keeps account of both in the table on the disk."""

    def __init__(self, path: Path, fd: int, layout: _Layout, progress: Progress | None) -> None:
        self._path = path
        self._fd = fd
        self._direct = _open_direct(path)
        self._layout = layout
        self._table = layout.table.copy()
        self._is_read_back = np.zeros(len(self._table), bool)
        self._buffer = mmap.mmap(-1, int(self._table["bytes"].max()))  # page-aligned, as direct I/O wants it
        self._values = np.frombuffer(self._buffer, np.uint8)
        self._progress = progress
        self._done = 0
        self._total = 2 * int(self._table["bytes"].sum())
        self._unsynced = 0

    def close(self) -> None:
        """Gives the second descriptor back."""
        if self._direct is not None:
            os.close(self._direct)

    def resume(self) -> int:
        """Number of records that are on the disk already; the table of any other file is begun anew."""
        header = os.pread(self._fd, len(self._layout.header), 0)
        if not self._layout.is_header(header):
            os.ftruncate(self._fd, 0)
            _write(self._fd, self._layout.header, 0)
            return 0
        written = self._layout.table_of(header)["checksum"]
        for i in np.flatnonzero(written):
            if self._checksum_on_disk(int(i)) != written[i]:
                _write(self._fd, bytes(8), self._checksum_at(int(i)))
                continue
            self._table["checksum"][i] = written[i]
            self._is_read_back[i] = True
            self._count(2 * int(self._table["bytes"][i]))
        return int(self._is_read_back.sum())

    def write_rest(self, records: Sequence[ExpertRecord]) -> None:
        """Packs and writes what is missing."""
        from .. import _native

        with _Sources() as sources:
            for i in map(int, np.flatnonzero(self._table["checksum"] == 0)):
                size = int(self._table["bytes"][i])
                begin = 0
                for ref, nbytes in zip(records[i], self._layout.parts[i], strict=True):
                    stored = sources.read(ref)
                    out = self._values[begin : begin + nbytes]
                    _native.pack_matrix(int(ref.layout), ref.rows, ref.cols, stored, out)
                    begin += nbytes
                self._values[begin:size] = 0
                value = _native.checksum(self._values[:size])
                self._write_record(i, size)
                self._table["checksum"][i] = value
                _write(self._fd, value.to_bytes(8, "little"), self._checksum_at(i))
                self._count(size)
        os.fsync(self._fd)

    def read_back(self) -> None:
        """Compares what the disk has with what was written. Raises PackedFileError when it differs."""
        _forget(self._fd)
        for i in np.flatnonzero(~self._is_read_back):
            if self._checksum_on_disk(int(i)) != self._table["checksum"][i]:
                _write(self._fd, bytes(8), self._checksum_at(int(i)))
                raise PackedFileError(
                    f"{self._path}: record {i} reads back other bytes than were written: the disk is failing; "
                    "pack again to another place"
                )
            self._count(int(self._table["bytes"][i]))

    def finish(self) -> None:
        """Says in the header that all is there."""
        header = bytearray(self._layout.header)
        header[self._layout.table_at : self._layout.table_at + self._table.nbytes] = self._table.tobytes()
        header[_WHOLE_AT] = 1
        header[_DIGEST_AT : _DIGEST_AT + 32] = _digest(header)
        _write(self._fd, header, 0)
        os.fsync(self._fd)
        _forget(self._fd)

    def _checksum_at(self, record: int) -> int:
        return self._layout.table_at + record * _ROW.itemsize + 16

    def _checksum_on_disk(self, record: int) -> int:
        """Of what lies in the file; 0 when it ends before."""
        from .. import _native

        begin, size = int(self._table["offset"][record]), int(self._table["bytes"][record])
        fd = self._fd if self._direct is None else self._direct
        got = 0
        while got < size:
            with memoryview(self._buffer) as view:
                part = os.preadv(fd, [view[got:size]], begin + got)
            if part == 0:
                return 0
            got += part
        if self._direct is None:
            _forget(self._fd, begin, size)
        return _native.checksum(self._values[:size])

    def _write_record(self, record: int, size: int) -> None:
        offset = int(self._table["offset"][record])
        with memoryview(self._buffer) as view:
            if self._direct is not None:
                try:
                    _write(self._direct, view[:size], offset)
                    return
                except OSError as error:
                    if error.errno != errno.EINVAL:  # a file system that opens for direct writes and refuses them
                        raise
                    os.close(self._direct)
                    self._direct = None
            _write(self._fd, view[:size], offset)
        self._unsynced += size
        if self._unsynced >= _FORGET_BYTES:
            os.fsync(self._fd)
            _forget(self._fd)
            self._unsynced = 0

    def _count(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self._total)


class _Sources:
    """Reads tensors of the model's files, and gives back what that leaves in the page cache."""

    def __init__(self) -> None:
        self._fds: dict[Path, int] = {}

    def __enter__(self) -> _Sources:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds.values():
            os.close(fd)

    def read(self, ref: TensorRef) -> NDArray[np.uint8]:
        """uint8[nbytes]."""
        fd = self._fds.get(ref.file)
        if fd is None:
            fd = self._fds[ref.file] = os.open(ref.file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        out = np.empty(ref.nbytes, np.uint8)
        got = 0
        while got < ref.nbytes:
            part = os.preadv(fd, [out[got:].data], ref.offset + got)
            if part == 0:
                raise PackedFileError(f"{ref.file}: ends before {ref.name} does: it was changed")
            got += part
        _forget(fd, ref.offset, ref.nbytes)
        return out


def _identity(checkpoint: Checkpoint, records: Sequence[ExpertRecord]) -> dict[str, Any]:
    """What must be the same for a side file to belong to a model."""
    used = {ref.file for record in records for ref in record}
    first: dict[Path, int] = {}  # where tensors begin: before that, a file describes itself
    for tensor in checkpoint.tensors.values():
        first[tensor.file] = min(first.get(tensor.file, tensor.offset), tensor.offset)
    sources = []
    for path in sorted(used):
        status = os.stat(path)
        header = min(first.get(path, 0), _MOST_HEADER_BYTES)
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read(header)).hexdigest()
        sources.append(
            {"name": path.name, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "header_sha256": digest}
        )
    places = hashlib.sha256()
    for record in records:
        for ref in record:
            places.update(f"{ref.file.name}\0{ref.offset} {int(ref.layout)} {ref.rows} {ref.cols}\n".encode())
    return {"sources": sources, "experts_sha256": places.hexdigest()}


def _check_preamble(path: Path, preamble: bytes) -> None:
    from .. import _native

    if len(preamble) < _PREAMBLE.size or preamble[:8] != _MAGIC:
        raise PackedFileError(f"{path}: is no file of packed experts")
    _, version, packed_version, *_ = _PREAMBLE.unpack(preamble)
    if (version, packed_version) != (_FORMAT_VERSION, _native.PACKED_VERSION):
        raise PackedFileError(f"{path}: was written by another version of Kamado (format {version}.{packed_version})")


def _check_origin(path: Path, header: bytearray, layout: _Layout) -> None:
    """Raises PackedFileError that says how the file differs from what the model would give."""
    if layout.is_header(header):
        return
    try:
        length = _PREAMBLE.unpack_from(header)[4]
        made_from = json.loads(header[_PREAMBLE.size : _PREAMBLE.size + length])
        names, ours = ([s["name"] for s in i["sources"]] for i in (made_from, layout.identity))
        is_older = made_from["sources"] != layout.identity["sources"]
    except (ValueError, KeyError, TypeError, RecursionError, struct.error):
        raise PackedFileError(f"{path}: its header is damaged") from None
    if names != ours:
        raise PackedFileError(f"{path}: was packed from {', '.join(map(str, names))[:200]}, not from this model")
    if is_older:
        raise PackedFileError(f"{path}: the model's file was changed after it was packed")
    raise PackedFileError(f"{path}: its header is damaged")


def _check_room(path: Path, fd: int, file_bytes: int) -> None:
    status = os.fstat(fd)
    missing = file_bytes - min(status.st_size, getattr(status, "st_blocks", 0) * 512)
    free = shutil.disk_usage(path.parent).free
    if missing + _MARGIN_BYTES > free:
        if status.st_size == 0:
            path.unlink(missing_ok=True)
        raise PackedFileError(
            f"{path.parent}: the packed experts take {missing / 1e9:.2f} GB more and {free / 1e9:.2f} GB are free: "
            "make room or name another place with --out"
        )


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """A descriptor of the unfinished file, which no other process writes."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
    try:
        try:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except OSError:
            raise PackedFileError(f"{path}: is being written by another process: wait for it") from None
        yield fd
    finally:
        os.close(fd)


def _open_direct(path: Path) -> int | None:
    """A descriptor for reads and writes past the page cache; None where the file system has none."""
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        return None
    return fd


def _write(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.pwrite(fd, view[done:], offset + done)


def _forget(fd: int, offset: int = 0, count: int = 0) -> None:
    """Drops pages of a file from the cache; a count of 0: to its end."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(fd, offset, count, os.POSIX_FADV_DONTNEED)


def _sync_directory(path: Path) -> None:
    with suppress(OSError):  # not every system opens directories
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _digest(header: bytes | bytearray) -> bytes:
    """sha256 of a header, its own place left out."""
    plain = bytearray(header)
    plain[_DIGEST_AT : _DIGEST_AT + 32] = bytes(32)
    return hashlib.sha256(plain).digest()


def _round_up(value: int, to: int) -> int:
    return -(-value // to) * to
