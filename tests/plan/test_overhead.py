"""What a container counts beside our own memory: cached pages of libraries and modules, and the kernel's share."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from kamado.files.page_cache import cached_bytes
from kamado.plan.machine import kib_fields
from kamado.plan.overhead import kernel_bytes, library_bytes, mapped_files, planned_kernel_bytes
from kamado.plan.usage import memory_use

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MIB = 1 << 20


def test_each_part_of_a_mapped_file_counts_once(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text(
        "7f0000000000-7f0000002000 r-xp 00000000 fd:00 12 /lib/a b.so\n"
        "7f0000002000-7f0000004000 r--p 00001000 fd:00 12 /lib/a b.so\n"  # its second page again
        "7f0000005000-7f0000006000 rw-p 00009000 fd:00 12 /lib/a b.so\n"
        "7f0000010000-7f0000011000 rw-p 00000000 00:00 0 \n"
        "7f0000020000-7f0000030000 rw-p 00000000 00:00 0 [heap]\n"
        "7f0000040000-7f0000041000 rw-s 00000000 00:01 0 /dev/zero (deleted)\n"
        "7f0000050000-7f0000051000 r--p 00000000 fd:00 13 /lib/c.so\n"
    )
    assert mapped_files(maps) == {"/lib/a b.so": 4 * 4096, "/lib/c.so": 4096}
    assert mapped_files(tmp_path / "gone") == {}


@linux
def test_libraries_and_modules_are_counted() -> None:
    """At least what is in the cache of a library that NumPy maps for sure, and of our own modules."""
    import numpy as np

    core = Path(np._core._multiarray_umath.__file__)
    cached = cached_bytes(core)
    total = library_bytes()
    if cached is None or total is None:
        pytest.skip("this system does not tell what it caches")
    assert total > cached > 0
    use = memory_use()
    assert use.library_bytes is not None
    assert use.library_bytes > 0.9 * use.mapped_file_bytes  # mapped pages are cached pages
    assert use.beside_bytes >= use.kernel_bytes


@linux
def test_page_tables_take_a_512th_whatever_the_size_of_pages() -> None:
    """The reason why huge pages save nothing here: each has a table set aside."""
    size = 64 * MIB
    for advice in (getattr(mmap, "MADV_HUGEPAGE", None), getattr(mmap, "MADV_NOHUGEPAGE", None)):
        before = kernel_bytes()
        if not before or advice is None:
            pytest.skip("this system does not tell")
        with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory.madvise(advice)
            for at in range(0, size, 4096):
                memory[at] = 1
            assert kernel_bytes() - before == pytest.approx(size // 512, rel=0.3)


@linux
def test_the_kernels_share_is_planned() -> None:
    assert planned_kernel_bytes(0, 2, 2) % 4096 == 0
    more = planned_kernel_bytes(5 << 30, 2, 2) - planned_kernel_bytes(0, 2, 2)
    assert more == 10 * MIB
    resident = kib_fields(Path("/proc/self/status"))["VmRSS"]
    assert kernel_bytes() <= planned_kernel_bytes(resident, 8, 8) + 2 * MIB


def test_a_system_that_does_not_tell_is_no_fault(tmp_path: Path) -> None:
    assert kernel_bytes(tmp_path) == 0
    assert library_bytes(tmp_path) is None
    assert memory_use(root=tmp_path).beside_bytes == 0
