"""What memory is really in use, by all that a container counts; and whether the budget was kept."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .machine import cgroup_number, cgroup_stat, innermost_memory_cgroup, kib_fields
from .overhead import kernel_bytes, library_bytes, workers_bytes
from .page_cache import cached_bytes, forget_cached


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes at one moment. None: this system does not tell."""

    resident_bytes: int  # RSS, mapped file pages included
    anonymous_bytes: int
    mapped_file_bytes: int  # of libraries, mostly
    peak_resident_bytes: int  # since the process began
    file_cache_bytes: int | None = None  # cached pages of the model's files, whoever read them
    library_bytes: int | None = None  # cached pages of Python, libraries and modules, those that are mapped included
    kernel_bytes: int = 0  # page tables and more that the kernel keeps for this process; 0: it does not tell
    worker_bytes: int = 0  # of the processes that try templates and grammars
    cgroup_bytes: int | None = None  # charged to our innermost memory cgroup, others in it included
    cgroup_cache_bytes: int | None = None
    cgroup_peak_bytes: int | None = None

    @property
    def beside_bytes(self) -> int:
        """What a container counts beside what is resident: cached pages that nobody mapped, the kernel's share, and our
        worker processes."""
        unmapped = max(0, (self.library_bytes or 0) - self.mapped_file_bytes)
        return unmapped + self.kernel_bytes + self.worker_bytes


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
        library_bytes=library_bytes(root),
        kernel_bytes=kernel_bytes(root),
        worker_bytes=workers_bytes(root),
        cgroup_bytes=current,
        cgroup_cache_bytes=cache,
        cgroup_peak_bytes=peak,
    )


def peak_resident_bytes() -> int:
    """The largest resident size this process had (file pages that it mapped included)."""
    return kib_fields(Path("/proc/self/status")).get("VmHWM", 0) or _peak_by_rusage()


def _cgroup_use(root: Path) -> tuple[int | None, int | None, int | None]:
    """(charged, of that file cache, peak) of our innermost memory cgroup."""
    directory = innermost_memory_cgroup(root)
    if directory is None:
        return None, None, None

    stat = cgroup_stat(directory)
    return (
        cgroup_number(directory, "memory.current", "memory.usage_in_bytes"),
        next((stat[name] for name in ("total_cache", "file", "cache") if name in stat), None),
        cgroup_number(directory, "memory.peak", "memory.max_usage_in_bytes"),
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

    The process's own peak counts from when the watch began: what was used before is no model's. Cached pages of
    `files`, of Python and its libraries, and what the kernel keeps for us are counted with what is resident.
    """

    def __init__(self, budget_bytes: int, files: Sequence[Path]) -> None:
        self.budget_bytes = budget_bytes
        self.files = tuple(files)
        self._peak_before = peak_resident_bytes()
        self.peak_bytes = 0  # the most that was seen

    def sample(self) -> MemoryUse:
        """Looks now, and remembers the largest."""
        use = memory_use(self.files)
        self.peak_bytes = max(self.peak_bytes, use.resident_bytes + (use.file_cache_bytes or 0) + use.beside_bytes)
        if use.peak_resident_bytes > self._peak_before:
            self.peak_bytes = max(self.peak_bytes, use.peak_resident_bytes + use.beside_bytes)
        return use

    def forget_files(self) -> None:
        """Drops what the page cache holds of the files, after a look at how much that is."""
        if self.files:
            self.sample()
            forget_cached(self.files)

    @property
    def has_held(self) -> bool:
        """Whether the peak is within the budget."""
        return self.peak_bytes <= self.budget_bytes
