"""What a stored prefix or a recorded measurement is bound to: this model file, this build.

A header and a size are shared by fine-tunes of one model, so a few hundred bytes of every tensor are read too: tens of
milliseconds for a thousand tensors, once a load. A file that was edited in a place nobody looked at still has another
time of change, which stored prefixes are bound to as well.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ...files.types import Checkpoint

_HEAD_BYTES = 1 << 20
_SAMPLE_BYTES = 128
_MAX_SAMPLED_TENSORS = 4096
_DIGEST_BYTES = 16


def model_identity(checkpoint: Checkpoint) -> str:
    """A digest of the files' sizes, their beginnings and samples of every tensor; the same for a copy elsewhere."""
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    handles: dict[Path, int] = {}
    try:
        for file in checkpoint.files:
            handles[file] = fd = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
            state.update(str(os.fstat(fd).st_size).encode() + b"\0")
            state.update(_read(fd, _HEAD_BYTES, 0))
        tensors = sorted(checkpoint.tensors.values(), key=lambda t: (str(t.file), t.offset))
        step = max(1, len(tensors) // _MAX_SAMPLED_TENSORS)
        for tensor in tensors[::step]:
            places = [(tensor.file, tensor.offset, tensor.nbytes)]
            places += [(*tensor.scales, tensor.scales_nbytes)] if tensor.scales else []
            for path, offset, nbytes in places:
                fd = handles.get(path, -1)
                if fd >= 0:
                    for third in (1, 2):
                        state.update(_read(fd, _SAMPLE_BYTES, offset + nbytes * third // 3))
    finally:
        for fd in handles.values():
            os.close(fd)
    return state.hexdigest()


def changed_at(checkpoint: Checkpoint) -> str:
    """When the files were last changed, in nanoseconds."""
    return " ".join(str(os.stat(file).st_mtime_ns) for file in checkpoint.files)


def build_identity(tier: str) -> str:
    """Version, native module and kernel tier: what the bits of a computed key depend on beside the model."""
    from importlib import metadata

    from ... import _native

    try:
        version = metadata.version("kamado")
    except metadata.PackageNotFoundError:  # run from its source tree
        version = "source"
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with open(_native.__file__, "rb") as file:
        while part := file.read(1 << 20):
            state.update(part)
    return f"{version} {state.hexdigest()} {tier}"


def _read(fd: int, size: int, offset: int) -> bytes:
    return os.pread(fd, size, offset) if hasattr(os, "pread") else _seek_read(fd, size, offset)


def _seek_read(fd: int, size: int, offset: int) -> bytes:
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, size)
