"""What a container counts beside our own memory: cached pages of Python and its libraries, and the kernel's share."""

from __future__ import annotations

import sys
from pathlib import Path

from ..isolated import WORKER_BASE_BYTES, worker_pids
from .budget import round_up
from .machine import kib_fields
from .page_cache import cached_bytes

_PAGE_BYTES = 4096
# A page table of 4 KiB for every 2 MiB in use. Huge pages do not change that: the kernel sets a table aside with each
# of them, so that it can be split (measured: 2.0 MiB a GiB with and without them, Linux 6.18).
_TABLE_SHARE = 512
# A thread's kernel stack of 16 KiB, its descriptor, and the entry of its processor's stock of charged pages (64).
_KERNEL_THREAD_BYTES = (16 << 10) + (16 << 10)
_CHARGE_STOCK_BYTES = 64 * _PAGE_BYTES
# What Python, NumPy, the engine and the tokenizers leave in the page cache after a cold start, mapped pages included:
# 84 MiB with read-ahead of 8 MiB (numpy 36, tokenizers 11, libpython 9.5, other libraries 16, compiled modules 11);
# 92.3 MiB where an installation had just written them, so that every page was cached.
LIBRARY_BYTES = 100 << 20
CONSTRAINT_LIBRARY_BYTES = 8 << 20  # llguidance
# The process that tries templates and grammars, and what honest ones take there (13 MiB in all were measured). Hostile
# ones may take WORK_BYTES for some seconds before it is ended: the server's share has room for that.
WORKER_BYTES = WORKER_BASE_BYTES + (8 << 20)
# Inodes and directory entries of the thousand files that a cold start opens, mappings, descriptors; page tables of
# what is mapped but not ours. Measured 1.6 MiB after a cold start, 1.9 with answers of a given form.
_KERNEL_BYTES = 3 << 20
# Mapped files: read-ahead goes past what is mapped.
_READ_AHEAD_BYTES = 4 << 20
# Blocks of directories and inode tables that finding those files reads: cached pages of the disk itself (measured 4.1
# MiB after a cold start of `load`, 6.4 of `kamado run`; ext4).
_DIRECTORY_BYTES = 6 << 20
_OUR_THREADS = 8  # readers, scheduler, tokenizer, prefix writer, NumPy's


def planned_kernel_bytes(resident_bytes: int, num_threads: int, cpus: int) -> int:
    """What the kernel takes, in whole pages, for a process of `resident_bytes` with `num_threads` to compute, on a
    machine of `cpus` processors."""
    threads = num_threads + _OUR_THREADS
    stocks = min(threads, cpus) * _CHARGE_STOCK_BYTES
    total = _KERNEL_BYTES + threads * _KERNEL_THREAD_BYTES + stocks + resident_bytes // _TABLE_SHARE
    return round_up(total, _PAGE_BYTES)


def kernel_bytes(root: Path = Path("/")) -> int:
    """What the kernel takes for this process now: its page tables as counted, the rest as planned. 0 where the system
    does not tell."""
    status = root / "proc/self/status"
    tables = kib_fields(status).get("VmPTE", 0)
    if not tables:
        return 0
    num_threads = next(
        (int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("Threads:")), 1
    )
    return _KERNEL_BYTES + num_threads * _KERNEL_THREAD_BYTES + tables


def workers_bytes(root: Path = Path("/")) -> int:
    """The most that the worker processes which are there now have taken; the files that they mapped are ours too."""
    total = 0
    for pid in worker_pids():
        status = kib_fields(root / f"proc/{pid}/status")
        total += max(0, status.get("VmHWM", 0) - status.get("RssFile", 0)) + status.get("VmPTE", 0)
    return total


def library_bytes(root: Path = Path("/")) -> int | None:
    """Cached pages of the files that this process runs: Python, what it mapped, the modules that it imported. Whoever
    read them, so at most what a container was charged for them. None where the system does not tell."""
    mapped = mapped_files(root / "proc/self/maps")
    if not mapped:
        return None
    total = 0
    for path, mapped_bytes in mapped.items():
        # All of a file may be cached because someone copied it.
        cached = cached_bytes(Path(path))
        total += min(mapped_bytes + _READ_AHEAD_BYTES, cached) if cached is not None else mapped_bytes
    return total + _module_bytes() + _DIRECTORY_BYTES


def mapped_files(maps: Path) -> dict[str, int]:
    """Bytes of each file that /proc/self/maps shows, each part once."""
    try:
        lines = maps.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    ranges: dict[str, list[tuple[int, int]]] = {}
    for line in lines:
        words = line.split(None, 5)  # address range, rights, offset, device, inode, path
        if len(words) != 6 or not words[5].startswith("/") or words[4] == "0":
            continue
        first, _, last = words[0].partition("-")
        offset = int(words[2], 16)
        ranges.setdefault(words[5], []).append((offset, offset + int(last, 16) - int(first, 16)))
    sizes = {}
    for path, parts in ranges.items():
        size = reached = 0
        for begin, end in sorted(parts):
            size += max(0, end - max(begin, reached))
            reached = max(reached, end)
        sizes[path] = size
    return sizes


def _module_bytes() -> int:
    """Cached pages of the modules that were imported: compiled ones, and sources where those were read."""
    total = 0
    for module in list(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        for path in (getattr(spec, "cached", None), getattr(spec, "origin", None)):
            if isinstance(path, str) and path.endswith((".py", ".pyc")):
                total += cached_bytes(Path(path)) or 0
    return total
