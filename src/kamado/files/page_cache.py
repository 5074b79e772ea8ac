"""How much of a file the page cache holds, and giving it back."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

_CACHESTAT_CALL = 451  # the same number on every architecture; Linux 6.5
_WHOLE_FILE = 0


def cached_bytes(path: Path) -> int | None:
    """Bytes of a file that the page cache holds; None where the system has no call for it, or the file has gone."""
    if platform.system() != "Linux":
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        size = os.fstat(fd).st_size
        pages = _cachestat(fd)
        if pages is None:
            pages = _mincore(fd, size)
        return None if pages is None else min(pages * mmap.PAGESIZE, size)
    finally:
        os.close(fd)


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Cachestat(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _cachestat(fd: int) -> int | None:
    """Pages in the cache by cachestat(2); None before Linux 6.5 and where a sandbox forbids it."""
    found = _Cachestat()
    what = _Range(0, _WHOLE_FILE)
    call = _libc().syscall
    call.restype = ctypes.c_long
    result = call(
        ctypes.c_long(_CACHESTAT_CALL), ctypes.c_uint(fd), ctypes.byref(what), ctypes.byref(found), ctypes.c_uint(0)
    )
    return int(found.cached) if result == 0 else None


def _mincore(fd: int, size: int) -> int | None:
    """Pages in the cache by mincore(2), which older kernels answer for files that we may write."""
    if size == 0:
        return 0
    libc = _libc()
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        return None
    try:
        flags = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
        if libc.mincore(address, size, flags) != 0:
            return None
        return sum(flag & 1 for flag in flags.raw[: -(-size // mmap.PAGESIZE)])
    finally:
        libc.munmap(address, size)


def forget_cached(paths: Sequence[Path]) -> None:
    """Asks the system to drop the files' pages from its cache; pages that someone maps stay. Never an error."""
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            forget_open(fd)
        finally:
            os.close(fd)


def forget_open(fd: int) -> None:
    """As forget_cached, of an open file; pages that are not on disk yet stay."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
