"""What is in use: the process, the page cache of files, the cgroup; and whether a budget was kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from kamado.files import page_cache
from kamado.files.page_cache import cached_bytes, forget_cached
from kamado.plan.disk import measure_disk
from kamado.plan.machine import machine
from kamado.plan.usage import BudgetWatch, memory_use

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
GIB = 1 << 30


@linux
def test_the_page_cache_of_a_file_is_seen_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(3_000_001))
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    path.read_bytes()
    cached = cached_bytes(path)
    if cached is None:
        pytest.skip("this system does not tell what it caches")
    assert cached == 3_000_001
    fd = os.open(path, os.O_RDONLY)
    assert page_cache._mincore(fd, 3_000_001) == -(-3_000_001 // 4096)
    os.close(fd)
    forget_cached([path])
    left = cached_bytes(path)
    if left:  # tmpfs keeps its files nowhere else
        pytest.skip("the file system keeps its pages")
    assert left == 0


def test_files_that_are_not_there_are_no_fault(tmp_path: Path) -> None:
    assert cached_bytes(tmp_path / "gone") is None
    forget_cached([tmp_path / "gone"])
    assert memory_use([tmp_path / "gone"]).file_cache_bytes is None
    assert memory_use().file_cache_bytes is None


@linux
def test_the_process_is_measured() -> None:
    use = memory_use()
    assert 0 < use.anonymous_bytes <= use.resident_bytes <= use.peak_resident_bytes


def make_root(tmp_path: Path, files: dict[str, str]) -> Path:
    base = {
        "proc/self/status": "VmHWM:\t  300 kB\nVmRSS:\t  200 kB\nRssAnon:\t  150 kB\nRssFile:\t  50 kB\n",
        "proc/meminfo": f"MemTotal:  {8 * GIB // 1024} kB\nMemAvailable:  {6 * GIB // 1024} kB\n",
    }
    for name, text in (base | files).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_v2_cgroup_is_read(tmp_path: Path) -> None:
    root = make_root(
        tmp_path,
        {
            "proc/self/cgroup": "0::/box\n",
            "sys/fs/cgroup/box/memory.max": str(2 * GIB),
            "sys/fs/cgroup/box/memory.current": str(GIB),
            "sys/fs/cgroup/box/memory.peak": str(GIB + 5),
            "sys/fs/cgroup/box/memory.stat": f"anon 7\nfile {GIB // 2}\nactive_file 0\ninactive_file {GIB // 2}\n",
        },
    )
    use = memory_use(root=root)
    assert (use.cgroup_bytes, use.cgroup_cache_bytes, use.cgroup_peak_bytes) == (GIB, GIB // 2, GIB + 5)
    here = machine(root)
    # Half of what the cgroup holds is cache, which gives way; a 32nd is left as margin.
    assert here.usable_bytes == 2 * GIB - (GIB // 2 - 150 * 1024) - 2 * GIB // 32
    assert here.memory_bytes == 2 * GIB


def test_a_v1_cgroup_is_read(tmp_path: Path) -> None:
    directory = "sys/fs/cgroup/memory/box"
    root = make_root(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/box\n",
            f"{directory}/memory.limit_in_bytes": str(GIB),
            f"{directory}/memory.usage_in_bytes": str(GIB // 2),
            f"{directory}/memory.max_usage_in_bytes": str(GIB),
            f"{directory}/memory.stat": (
                f"cache 3\ntotal_cache {GIB // 4}\ntotal_active_file 0\ntotal_inactive_file {GIB // 4}\n"
            ),
        },
    )
    use = memory_use(root=root)
    assert (use.cgroup_bytes, use.cgroup_cache_bytes, use.cgroup_peak_bytes) == (GIB // 2, GIB // 4, GIB)
    assert machine(root).usable_bytes == GIB - (GIB // 4 - 150 * 1024) - GIB // 32


def test_without_a_cgroup_others_keep_what_they_hold(tmp_path: Path) -> None:
    assert machine(make_root(tmp_path, {})).usable_bytes == 6 * GIB + 150 * 1024 - 8 * GIB // 32


@linux
def test_a_watch_counts_cached_pages_and_what_is_resident(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(2_000_000))
    without = BudgetWatch(1, ())
    resident = without.sample().resident_bytes
    assert without.peak_bytes >= resident
    assert not without.has_held
    watch = BudgetWatch(1 << 50, (path,))
    watch.forget_files()
    assert watch.has_held
    if cached_bytes(path) is not None:
        assert watch.peak_bytes >= 2_000_000


@linux
def test_the_disk_probe_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(1 << 20))
    assert measure_disk(path, request_bytes=64 << 10, seconds=0.02, seed=1) > 0
    with pytest.raises(OSError, match="gone"):
        measure_disk(tmp_path / "gone")
