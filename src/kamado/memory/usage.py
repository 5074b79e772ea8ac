"""What memory is really in use: by this process and by cached pages of our files; and whether the budget was kept."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .profile import innermost_memory_cgroup, kib_fields

_CACHESTAT_CALL = 451  # the same number on every architecture; Linux 6.5
_WHOLE_FILE = 0
_FORGET_BYTES = 64 << 20  # read between two calls that give the page cache back


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes at one moment. None: this system does not tell."""

    resident_bytes: int  # RSS, mapped file pages included
    anonymous_bytes: int
    mapped_file_bytes: int  # of libraries, mostly
    peak_resident_bytes: int  # since the process began
    file_cache_bytes: int | None = None  # cached pages of the model's files, whoever read them
    cgroup_bytes: int | None = None  # charged to our innermost memory cgroup, others in it included
    cgroup_cache_bytes: int | None = None
    cgroup_peak_bytes: int | None = None


def memory_use(files: Sequence[Path] = (), root: Path = Path("/")) -> MemoryUse:
    """Looks at the process and its cgroup, and at how much of `files` the page cache holds."""
    status = kib_fields(root / "proc/self/status")
    resident = status.get("VmRSS", 0)
    cached = [cached_bytes(path) for path in files]
    current, cache, peak = _cgroup_use(root)
    return MemoryUse(
        resident_bytes=resident,
        anonymous_bytes=status.get("RssAnon", resident),
        mapped_file_bytes=status.get("RssFile", 0),
        peak_resident_bytes=status.get("VmHWM", 0) or _peak_by_rusage(),
        file_cache_bytes=None if None in cached or not cached else sum(filter(None, cached)),
        cgroup_bytes=current,
        cgroup_cache_bytes=cache,
        cgroup_peak_bytes=peak,
    )


def peak_resident_bytes() -> int:
    """The largest resident size this process had (file pages that it mapped included)."""
    return kib_fields(Path("/proc/self/status")).get("VmHWM", 0) or _peak_by_rusage()


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
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            pass
        finally:
            os.close(fd)


def _cgroup_use(root: Path) -> tuple[int | None, int | None, int | None]:
    """(charged, of that file cache, peak) of our innermost memory cgroup."""
    directory = innermost_memory_cgroup(root)
    if directory is None:
        return None, None, None

    def number(*names: str) -> int | None:
        for name in names:
            try:
                return int((directory / name).read_text())
            except (OSError, ValueError):
                continue
        return None

    cache = None
    try:
        stat = dict(line.split(None, 1) for line in (directory / "memory.stat").read_text().splitlines())
        cache = int(stat.get("total_cache") or stat.get("file") or stat["cache"])
    except (OSError, ValueError, KeyError):
        pass
    return (
        number("memory.current", "memory.usage_in_bytes"),
        cache,
        number("memory.peak", "memory.max_usage_in_bytes"),
    )


def _peak_by_rusage() -> int:
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


class BudgetWatch:
    """Holds what a model was promised against what is used. Call `sample` at moments that matter.

    The process's own peak counts from when the watch began: what was used before is no model's. Cached pages of `files`
    are counted with what is resident at the same moment.
    """

    def __init__(self, budget_bytes: int, files: Sequence[Path]) -> None:
        self.budget_bytes = budget_bytes
        self.files = tuple(files)
        self._peak_before = peak_resident_bytes()
        self._peak = 0

    def sample(self) -> MemoryUse:
        """Looks now, and remembers the largest."""
        use = memory_use(self.files)
        self._peak = max(self._peak, use.resident_bytes + (use.file_cache_bytes or 0))
        if use.peak_resident_bytes > self._peak_before:
            self._peak = max(self._peak, use.peak_resident_bytes)
        return use

    def forget_files(self) -> None:
        """Drops what the page cache holds of the files, after a look at how much that is."""
        if self.files:
            self.sample()
            forget_cached(self.files)

    def forgetting(self, progress: Callable[[int, int], None] | None = None) -> Callable[[int, int], None]:
        """`progress(done, total)` of reading the files, which also drops what that leaves in the page cache."""
        dropped = 0

        def report(done: int, total: int) -> None:
            nonlocal dropped
            if done - dropped >= _FORGET_BYTES:
                dropped = done
                self.forget_files()
            if progress is not None:
                progress(done, total)

        return report

    @property
    def peak_bytes(self) -> int:
        """The most that was seen: resident memory and cached pages of the files."""
        return self._peak

    @property
    def has_held(self) -> bool:
        """Whether the peak is within the budget."""
        return self._peak <= self.budget_bytes
